import errno
import subprocess
import sys
import time

import pytest

from data_scripts import manifest, pipeline, sources
from tests.data_scripts.conftest import use_manifest
from toolkit.data import store


def test_fetch_prepares_and_says_what_it_made(toy):
    made = pipeline.fetch([manifest.find("toy")])
    assert [name for name, _ in made] == ["toy"]
    assert pipeline.is_prepared(manifest.find("toy"))
    assert store.locate("toy", "array.npy").exists()


def test_second_fetch_does_nothing(toy):
    for _ in range(2):
        made = pipeline.fetch([manifest.find("toy")])
    assert (made, toy.downloads, toy.prepared) == ([], 1, 1)


def test_sizes_share_the_download_and_have_their_own_folder(toy):
    pipeline.fetch([manifest.find("toy"), manifest.find("toy", "large")])
    assert (toy.downloads, toy.prepared) == (1, 2)
    assert store.locate("toy", "size.txt", size="large").read_text() == "large"


def test_what_a_set_needs_comes_first(toy):
    made = pipeline.fetch([manifest.find("toy", "made")])
    assert [name for name, _ in made] == ["toy", "toy_made"]


def test_raised_version_prepares_again_with_all_that_needs_it(toy, tmp_path, monkeypatch):
    pipeline.fetch([manifest.find("toy", "made")])
    use_manifest(tmp_path, monkeypatch, version=2)
    assert not pipeline.is_prepared(manifest.find("toy"))
    assert len(pipeline.fetch([manifest.find("toy", "made")])) == 2


def test_missing_or_cut_file_is_prepared_again(toy):
    pipeline.fetch([manifest.find("toy")])
    path = store.locate("toy", "array.npy")
    path.write_bytes(path.read_bytes()[:-1])
    assert len(pipeline.fetch([manifest.find("toy")])) == 1
    store.locate("toy", "array.npy").unlink()
    assert len(pipeline.fetch([manifest.find("toy")])) == 1


def test_wrong_checksum_deletes_the_download_and_prepares_nothing(toy):
    toy.sent = b"hostile bytes!!"
    with pytest.raises(store.ChecksumError, match="has been deleted"):
        pipeline.fetch([manifest.find("toy")])
    assert toy.prepared == 0
    assert list((toy.folder / "downloads").iterdir()) == []


def test_fetch_mends_itself_after_a_wrong_checksum(toy):
    toy.sent = b"hostile bytes!!"
    with pytest.raises(store.ChecksumError):
        pipeline.fetch([manifest.find("toy")])
    toy.sent = b"published bytes"
    assert len(pipeline.fetch([manifest.find("toy")])) == 1


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_interrupted_preparation_leaves_no_folder(toy, stop):
    def prepare(folder, inputs, size):
        (folder / "array.npy").write_bytes(b"half")
        raise stop

    toy.script.prepare = prepare
    with pytest.raises(stop):
        pipeline.fetch([manifest.find("toy")])
    assert not (toy.folder / "toy").exists()
    assert [path.name for path in toy.folder.glob(".*.tmp")] == []


def test_full_disk_is_one_message_and_leaves_no_folder(toy):
    def prepare(folder, inputs, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    toy.script.prepare = prepare
    with pytest.raises(store.StoreError, match="no space left while writing"):
        pipeline.fetch([manifest.find("toy")])
    assert not (toy.folder / "toy").exists()


def test_remains_of_a_killed_run_are_swept_up(toy):
    (toy.folder / "downloads").mkdir(parents=True)
    (toy.folder / ".toy.abc.tmp").mkdir()
    (toy.folder / ".toy.abc.tmp" / "half.npy").touch()
    (toy.folder / "downloads" / ".bytes.tgz.xyz.tmp").touch()
    pipeline.fetch([manifest.find("toy")])
    assert sorted(path.name for path in toy.folder.iterdir()) == [".lock", "downloads", "toy"]
    assert [path.name for path in (toy.folder / "downloads").iterdir()] == ["toy-bytes-1.0.tgz"]


KILLED = """
import time
from pathlib import Path
from toolkit.data.store import atomic_folder
with atomic_folder(Path("toy")) as folder:
    (folder / "array.npy").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_killed_process_leaves_nothing_under_its_name(toy):
    toy.folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=toy.folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.wait()
    assert not (toy.folder / "toy").exists()
    pipeline.fetch([manifest.find("toy")])
    assert list(toy.folder.glob(".*.tmp")) == []


WAITS = """
import fcntl, os, sys, time
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(handle, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(0.5)
"""


def test_second_process_waits_for_the_first(toy):
    toy.folder.mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(toy.folder / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    start = time.monotonic()
    pipeline.fetch([manifest.find("toy")])
    other.wait()
    assert time.monotonic() - start > 0.2


def test_verify_finds_nothing_wrong_in_a_fresh_set(toy):
    pipeline.fetch([manifest.find("toy")])
    assert pipeline.verify(manifest.find("toy")) == []


def test_verify_finds_a_changed_byte_and_deletes_the_file(toy):
    pipeline.fetch([manifest.find("toy")])
    path = store.locate("toy", "array.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert pipeline.is_prepared(manifest.find("toy"))
    (fault,) = pipeline.verify(manifest.find("toy"))
    assert "has been deleted" in fault
    assert not pipeline.is_prepared(manifest.find("toy"))


def test_verify_of_an_absent_set_says_so(toy):
    assert pipeline.verify(manifest.find("toy")) == ["toy is not prepared"]


def test_unreadable_receipt_counts_as_none(toy):
    pipeline.fetch([manifest.find("toy")])
    store.locate("toy", "prepared.json").write_text("{")
    assert pipeline.read_receipt(manifest.find("toy")) is None


def test_script_with_its_own_source_is_asked_instead_of_npm(toy, monkeypatch):
    monkeypatch.setattr(sources, "from_npm", None)
    toy.script.download = toy.get
    pipeline.fetch([manifest.find("toy")])
    assert toy.downloads == 1
