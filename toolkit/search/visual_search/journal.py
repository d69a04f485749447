"""What a killed process must not lose: a write-ahead log, and snapshots that appear whole.

A change is written to the log and flushed to the disk before it is acknowledged. A snapshot is
written under a temporary name, flushed, and named by one atomic rename; only then is the old log
deleted. Arrays lie in safetensors files, so nothing read back can run code.
"""

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

Op = Literal["add", "remove", "update"]
OPS: tuple[Op, ...] = ("add", "remove", "update")
HEAD = struct.Struct("<4sBQI")
MAGIC = b"VSW1"


class DamagedLog(ValueError):
    """A record in the middle of a log does not match its checksum."""


def pack(**arrays: NDArray) -> bytes:
    """Arrays as one safetensors blob."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def unpack(blob: bytes) -> dict[str, NDArray]:
    """The arrays of `pack`."""
    return load(blob)


class Journal:
    """An append-only file of changes, each with its length and a checksum.

    Opening it reads what is there. A record cut short at the very end was never acknowledged: it is
    dropped. Damage anywhere else raises.

    Args:
        path: of the file; made if missing.

    Raises:
        DamagedLog: for a record in the middle that does not match its checksum.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records, end = _read(path)
        self._file: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(end)
        self._file.seek(end)
        sync_folder(path.parent)

    def append(self, op: Op, ids: NDArray, features: NDArray | None = None) -> None:
        """Write one change and wait until the disk has it.

        Raises:
            OSError: if the disk refuses; the file is then as before.
        """
        arrays = {"ids": ids} if features is None else {"ids": ids, "features": features}
        body = pack(**arrays)
        begin = self._file.tell()
        try:
            head = HEAD.pack(MAGIC, OPS.index(op), len(body), zlib.crc32(body))
            self._file.write(head + body)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._file.seek(begin)
            self._file.truncate(begin)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _read(path: Path) -> tuple[list[tuple[Op, dict[str, NDArray]]], int]:
    """The whole records of a log, and where they end."""
    if not path.exists():
        return [], 0
    blob, records, place = path.read_bytes(), [], 0
    while place + HEAD.size <= len(blob):
        magic, op, length, checksum = HEAD.unpack_from(blob, place)
        begin, end = place + HEAD.size, place + HEAD.size + length
        if magic != MAGIC or op >= len(OPS):
            raise DamagedLog(f"{path.name}: no record begins at byte {place}")
        if end > len(blob):
            break  # cut short: the process died while it wrote
        body = blob[begin:end]
        if zlib.crc32(body) != checksum:
            if end == len(blob):
                break
            raise DamagedLog(f"{path.name}: the record at byte {place} does not match its checksum")
        records.append((OPS[op], unpack(body)))
        place = end
    return records, place


class Snapshots:
    """A folder with the latest whole state and the logs of what came after.

    `CURRENT` names the generation g in force: the state lies in `state-g.safetensors`, changes
    since in `log-g`, `log-g+1` … (a rebuild opens the next log before its state is written).

    Args:
        folder: made if missing; one process at a time holds it.

    Raises:
        RuntimeError: if another process holds it.
        ValueError: if a file in it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise RuntimeError(f"another process holds the index in {folder.name}") from error
        current = folder / "CURRENT"
        self.generation = json.loads(current.read_text())["generation"] if current.exists() else 0
        self._sweep()

    def state(self) -> dict[str, NDArray]:
        """Ids and features of the snapshot in force; empty before the first.

        Raises:
            ValueError: if the file does not match its checksum.
        """
        path = self._state(self.generation)
        if not self.generation:
            return {}
        blob = path.read_bytes()
        expected = json.loads((self.folder / "CURRENT").read_text())["crc32"]
        if zlib.crc32(blob) != expected:
            raise ValueError(f"{path.name} does not match its checksum")
        return unpack(blob)

    def logs(self) -> Iterator[Journal]:
        """The logs since the snapshot, in order; the last is the one to write on."""
        number = self.generation
        while True:
            last = not self.log(number + 1).exists()
            yield Journal(self.log(number))
            if last:
                return
            number += 1

    def log(self, generation: int) -> Path:
        """The log of what came after a snapshot."""
        return self.folder / f"log-{generation}"

    def write(self, generation: int, ids: NDArray, features: NDArray) -> None:
        """Put a new state in force and delete what it replaces."""
        path = self._state(generation)
        blob = pack(ids=ids, features=features)
        _write_whole(path, blob)
        about = {"generation": generation, "crc32": zlib.crc32(blob), "items": len(ids)}
        _write_whole(self.folder / "CURRENT", json.dumps(about).encode())
        self.generation = generation
        self._sweep()

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def _state(self, generation: int) -> Path:
        return self.folder / f"state-{generation}.safetensors"

    def _sweep(self) -> None:
        """Delete what an older generation, or a process that died, left behind."""
        for path in self.folder.iterdir():
            kind, _, number = path.name.removesuffix(".safetensors").partition("-")
            stale = path.suffix == ".tmp"
            stale |= kind == "state" and number != str(self.generation)
            stale |= kind == "log" and number.isdigit() and int(number) < self.generation
            if stale:
                path.unlink()


def _write_whole(path: Path, blob: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries: a new name is lost in a crash otherwise."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
