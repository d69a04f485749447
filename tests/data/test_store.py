import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.data import store


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_place_is_the_environment_s_else_the_user_s_cache(monkeypatch, root):
    assert store.root() == root
    monkeypatch.setenv("TOOLKIT_DATA", "")
    assert store.root() == Path.home() / ".cache/papers-that-run"


def test_missing_data_name_the_command_that_mends_it(root):
    with pytest.raises(store.DataMissing, match=r"`python -m data_scripts fetch emoji`") as caught:
        store.locate("emoji", "images.npy")
    assert caught.value.command == "python -m data_scripts fetch emoji"
    assert str(root / "emoji" / "images.npy") in str(caught.value)


def test_missing_data_of_a_size_name_the_size(root):
    with pytest.raises(store.DataMissing, match="fetch glyphs --size 20k`"):
        store.locate("glyphs", size="20k")


def test_missing_data_are_a_missing_file_too(root):
    with pytest.raises(FileNotFoundError):
        store.locate("emoji")


def test_located_path_of_a_size_lies_in_its_own_folder(root):
    (root / "glyphs_20k").mkdir(parents=True)
    assert store.locate("glyphs", size="20k") == root / "glyphs_20k"


def test_written_file_appears_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with store.atomic_write(path) as temporary:
        temporary.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert leftovers(path.parent) == ["file.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_interrupted_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, stop):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with store.atomic_write(path) as temporary:
            temporary.write_text("half")
            raise stop

    with pytest.raises(stop):
        write()
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == ["file.txt"]


def test_filled_folder_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.npy").touch()
    with store.atomic_folder(path) as folder:
        (folder / "new.npy").touch()
        assert leftovers(path) == ["old.npy"]
    assert leftovers(path) == ["new.npy"]
    assert leftovers(tmp_path) == ["set"]


def test_interrupted_folder_keeps_the_old_one(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.npy").touch()

    def fill():
        with store.atomic_folder(path) as folder:
            (folder / "new.npy").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert leftovers(path) == ["old.npy"]
    assert leftovers(tmp_path) == ["set"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "no permission"),
    ],
)
def test_full_disk_and_missing_permission_give_one_clear_message(tmp_path, code, message):
    def write():
        with store.atomic_write(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise OSError(code, "as the system says")

    with pytest.raises(store.StoreError, match=message) as caught:
        write()
    assert "TOOLKIT_DATA" in str(caught.value)
    assert leftovers(tmp_path) == []


def test_short_write_without_error_number_on_a_full_disk_is_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))

    def write():
        with store.atomic_folder(tmp_path / "set"):
            raise OSError("1000 requested and 10 written")

    with pytest.raises(store.StoreError, match="no space left"):
        write()
    assert leftovers(tmp_path) == []


def test_other_faults_of_the_system_pass_unchanged(tmp_path):
    def write():
        with store.atomic_write(tmp_path / "file"):
            raise OSError(errno.EIO, "broken disk")

    with pytest.raises(OSError, match="broken disk") as caught:
        write()
    assert not isinstance(caught.value, store.StoreError)


def test_place_that_cannot_be_a_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(store.StoreError, match="cannot hold data"):
        store.make_root()


def test_wrong_checksum_deletes_the_file_and_says_so(tmp_path):
    path = tmp_path / "icons.tgz"
    path.write_bytes(b"something else")
    with pytest.raises(store.ChecksumError, match=r"icons\.tgz .* has been deleted"):
        store.check(path, "0" * 64)
    assert not path.exists()


def test_right_checksum_keeps_the_file(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    store.check(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert path.exists()
