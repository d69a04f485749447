"""Where prepared data live, and how they get there whole: place, atomic writes, checksums.

Everything lies under one folder, `$TOOLKIT_DATA` (default `~/.cache/papers-that-run`). A file or
folder appears there under its own name only when it is complete: it is written under a temporary
name and then renamed.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEFAULT = "~/.cache/papers-that-run"
"""The place of the data where `$TOOLKIT_DATA` is not set."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_SPARE = 2**20
"""Bytes: a disk with less than this is full."""
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


class DataError(Exception):
    """Base of every error about data; its message says what to do next."""


class DataMissing(DataError, FileNotFoundError):
    """A data set is not prepared yet; the message names the command that prepares it."""

    def __init__(self, name: str, path: Path, size: str = ""):
        command = f"python -m data_scripts fetch {name}" + (f" --size {size}" if size else "")
        super().__init__(f"the data set {name!r} is not at {path}; prepare it with `{command}`")
        self.command = command

    def __str__(self) -> str:
        return str(self.args[0])


class ChecksumError(DataError):
    """A file is not the one that was published; it has been deleted."""


class StoreError(DataError, OSError):
    """The place of the data cannot be written: the disk is full, or it is not ours."""

    def __str__(self) -> str:
        return str(self.args[0])


def root() -> Path:
    """The folder of all data: `$TOOLKIT_DATA`, by default `~/.cache/papers-that-run`."""
    return Path(os.environ.get("TOOLKIT_DATA") or DEFAULT).expanduser()


def locate(name: str, *parts: str, size: str = "") -> Path:
    """The path of a prepared data set, or of one file in it.

    Args:
        name: of the data set, such as `"emoji"`.
        parts: the file within its folder.
        size: of a data set that exists in several sizes; the default size is `""`.

    Raises:
        DataMissing: if it is not there.
    """
    path = root().joinpath(f"{name}_{size}" if size else name, *parts)
    if not path.exists():
        raise DataMissing(name, path, size)
    return path


def make_root() -> Path:
    """The folder of all data, made if it is not there.

    Raises:
        StoreError: if it cannot be made.
    """
    place = root()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{place} cannot hold data ({error.strerror}); set TOOLKIT_DATA to a folder that you "
            "may write"
        ) from error
    return place


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, expected: str) -> None:
    """Hold a file against its published SHA-256, and delete it if it differs.

    Raises:
        ChecksumError: if it differs.
    """
    found = sha256(path)
    if found == expected:
        return
    path.unlink()
    raise ChecksumError(
        f"{path.name} has SHA-256 {found}, expected {expected}; it is damaged or was replaced, "
        "and has been deleted. Run `python -m data_scripts fetch` again"
    )


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it takes the name `path`, else it goes.

    Raises:
        StoreError: if the disk is full or the folder cannot be written.
    """
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.fchmod(handle, 0o666 & ~_umask())
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it replaces the folder `path`, else it goes.

    Raises:
        StoreError: if the disk is full or the folder cannot be written.
    """
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            filled, old = scratch / "new", scratch / "old"
            filled.mkdir()
            yield filled
            if path.exists():
                path.replace(old)
            filled.replace(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one message that says what to do.

    Raises:
        StoreError: in place of the `OSError` of either kind.
    """
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        if error.errno in _NO_SPACE or (error.errno is None and _is_full(path)):
            raise StoreError(
                f"no space left while writing {path}; free some, or set TOOLKIT_DATA to a folder "
                "on another disk, and run the same command again"
            ) from error
        if error.errno in _NO_PERMISSION:
            raise StoreError(
                f"no permission to write {path}; set TOOLKIT_DATA to a folder that you may write"
            ) from error
        raise


def _is_full(path: Path) -> bool:
    """Whether the disk has no room (NumPy reports a short write without an error number)."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return shutil.disk_usage(there).free < _SPARE


def _umask() -> int:
    """What new files of this process may not be; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
