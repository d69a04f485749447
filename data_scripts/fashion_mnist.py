"""Fashion-MNIST: from the official address, an installed Debian package, or Debian's archive.

Debian compressed the four files anew, so the pinned checksums are of the unpacked IDX bytes.
"""

import gzip
import os
import shutil
import struct
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from tqdm.auto import tqdm

from data_scripts.manifest import Download
from data_scripts.sources import PATIENCE, FetchError, place, run
from data_scripts.tables import write_licences
from toolkit.data import store

OFFICIAL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
PACKAGE = "dataset-fashion-mnist"
FOLDER = Path("usr/share/datasets/fashion-mnist")
"""Where the Debian package puts the files, below the root."""

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
SHAPES = {
    "train_images": (60_000, 28, 28),
    "train_labels": (60_000,),
    "test_images": (10_000, 28, 28),
    "test_labels": (10_000,),
}


def download(missing: Sequence[Download]) -> None:
    """Get the unpacked IDX files from the first source that gives them all.

    Raises:
        FetchError: if all three sources fail; the message names each failure.
        StoreError: if they cannot be written.
    """
    failures = []
    for name, source in SOURCES.items():
        try:
            source(missing)
        except (FetchError, store.ChecksumError) as error:
            failures.append(f"  {name}: {error}")
        else:
            return
    raise FetchError(
        "Fashion-MNIST could not be had:\n" + "\n".join(failures) + "\n"
        "Go online and run `python -m data_scripts fetch fashion_mnist` again, or put the four "
        f"unpacked files ({', '.join(FILES.values())}) into {store.root() / 'downloads'}"
    )


def prepare(folder: Path, inputs: Mapping[str, Path], size: str = "") -> None:
    """Write the four arrays as uint8: images [N,28,28], labels [N]."""
    for name, file in FILES.items():
        array = read_idx(inputs[file].read_bytes())
        if array.shape != SHAPES[name]:
            raise store.DataError(f"{file} has shape {array.shape}, expected {SHAPES[name]}")
        np.save(folder / f"{name}.npy", array)
    write_licences(folder, "work", {"Fashion-MNIST": FILES["train_images"]})


def read_idx(content: bytes) -> np.ndarray:
    """An array of unsigned bytes in the IDX format of MNIST.

    Raises:
        ValueError: if the content is not of that format.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError("not an IDX file of unsigned bytes")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != int(np.prod(shape)):
        raise ValueError(f"{len(content) - start} bytes do not fill the shape {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _official(missing: Sequence[Download]) -> None:
    for wanted in missing:
        address = f"{OFFICIAL}/{wanted.name}.gz"
        with store.atomic_write(place(wanted)) as temporary:
            try:
                with urllib.request.urlopen(address, timeout=PATIENCE) as reply:
                    _unpack(reply, temporary, wanted)
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                raise FetchError(f"{OFFICIAL} does not answer ({error})") from error
            store.check(temporary, wanted.sha256)


def _installed(missing: Sequence[Download]) -> None:
    _take_from(Path("/") / FOLDER, missing)


def _debian_archive(missing: Sequence[Download]) -> None:
    """`apt-get download` and `dpkg-deb -x` need no root; fresh package lists do."""
    impatient = ["-o", f"Acquire::http::Timeout={PATIENCE}", "-o", "Acquire::Retries=0"]
    root = store.make_root()
    with store.clear_errors(root):
        scratch = tempfile.mkdtemp(prefix=".debian-", suffix=".tmp", dir=root)
    try:
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            run(["apt-get", *impatient, "-qq", "update"], timeout=12 * PATIENCE)
        run(["apt-get", *impatient, "-qq", "download", PACKAGE], cwd=Path(scratch))
        (package,) = Path(scratch).glob("*.deb")
        run(["dpkg-deb", "-x", str(package), scratch])
        _take_from(Path(scratch) / FOLDER, missing)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _take_from(folder: Path, missing: Sequence[Download]) -> None:
    for wanted in missing:
        packed = folder / f"{wanted.name}.gz"
        if not packed.is_file():
            raise FetchError(f"{packed} is not there")
        with store.atomic_write(place(wanted)) as temporary:
            with packed.open("rb") as file:
                _unpack(file, temporary, wanted)
            store.check(temporary, wanted.sha256)


def _unpack(packed: IO[bytes], path: Path, wanted: Download) -> None:
    """Unpack a gzip stream, at most one byte beyond the pinned length."""
    left = wanted.bytes + 1
    with (
        gzip.GzipFile(fileobj=packed) as stream,
        path.open("wb") as file,
        tqdm(total=wanted.bytes, unit="B", unit_scale=True, desc=wanted.name, leave=False) as bar,
    ):
        try:
            while left and (chunk := stream.read(min(left, 2**20))):
                file.write(chunk)
                left -= len(chunk)
                bar.update(len(chunk))
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise FetchError(f"{wanted.name}.gz is damaged: {error}") from error


SOURCES = {
    OFFICIAL: _official,
    f"the installed Debian package {PACKAGE}": _installed,
    "Debian's archive": _debian_archive,
}
"""Tried in this order."""
