import gzip
import io
import tarfile

import pytest

from data_scripts import archives
from data_scripts.archives import ArchiveError, read_json, read_member


def member(name, content=b"content", **changes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in changes.items():
        setattr(info, field, value)
    return info, content


def archive(tmp_path, *members):
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def test_one_file_is_read(tmp_path):
    path = archive(tmp_path, member("package/a.txt", b"one"), member("package/b.txt", b"two"))
    assert read_member(path, "b.txt") == b"two"


def test_json_is_read(tmp_path):
    path = archive(tmp_path, member("package/a.json", b'{"key": [1]}'))
    assert read_json(path, "a.json") == {"key": [1]}


def test_absent_file_is_named(tmp_path):
    with pytest.raises(ArchiveError, match=r"has no file c\.txt"):
        read_member(archive(tmp_path, member("package/a.txt")), "c.txt")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "package/../../x"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    path = archive(tmp_path, member(name), member("package/a.txt"))
    with pytest.raises(ArchiveError, match="leaves its folder"):
        read_member(path, "a.txt")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    link = member("package/a.txt", b"", type=kind, linkname="/etc/passwd")
    with pytest.raises(ArchiveError, match="link or a device"):
        read_member(archive(tmp_path, link), "a.txt")


def test_too_large_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 10)
    path = archive(tmp_path, member("package/a.txt", b"eleven byte"))
    with pytest.raises(ArchiveError, match="11 bytes, over 10"):
        read_member(path, "a.txt")


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ARCHIVE_LIMIT", 2**20)
    bomb = member("package/zeros", bytes(2**22))
    with pytest.raises(ArchiveError, match="unpacks to more"):
        read_member(archive(tmp_path, bomb, member("package/a.txt")), "a.txt")


def test_cut_archive_is_damaged(tmp_path):
    path = archive(tmp_path, member("package/a.txt", bytes(range(256)) * 400))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArchiveError, match="damaged"):
        read_member(path, "b.txt")


def test_other_files_are_damaged_archives(tmp_path):
    path = tmp_path / "page.tgz"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ArchiveError, match="damaged"):
        read_member(path, "a.txt")
    path.write_bytes(gzip.compress(b"no tar at all" * 100))
    with pytest.raises(ArchiveError, match=r"damaged|no file"):
        read_member(path, "a.txt")
