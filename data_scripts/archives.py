"""Read single files out of npm's archives, without unpacking anything to disk.

An archive is a stranger's file: its names, kinds and sizes are checked before a byte is used.
"""

import gzip
import io
import json
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.data.store import DataError

MEMBER_LIMIT = 64 * 2**20
"""Bytes of one file; the largest that we read, an icon set, has 25 MB."""
ARCHIVE_LIMIT = 2**30
"""Bytes of a whole archive, unpacked; the largest, a font family, has 134 MB."""


class ArchiveError(DataError):
    """An archive is damaged, or holds what no honest package holds."""


def read_member(archive: Path, member: str) -> bytes:
    """The content of one file of a `.tgz`, read as a stream.

    Args:
        archive: a gzip-compressed tar file.
        member: its name, without the leading `package/`.

    Raises:
        ArchiveError: if it is missing or too large, or if the archive is damaged, unpacks to more
            than `ARCHIVE_LIMIT`, or has an absolute or climbing name, a link or a device before it.
    """
    try:
        with gzip.open(archive) as packed, tarfile.open(fileobj=_Capped(packed), mode="r|") as tar:
            for entry in tar:
                _refuse_hostile(entry, archive)
                if entry.name == f"package/{member}":
                    return _content(tar, entry)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ArchiveError(f"{archive.name} is damaged: {error}") from error
    raise ArchiveError(f"{archive.name} has no file {member}")


def read_json(archive: Path, member: str) -> Any:
    """A JSON file of an archive. Raises as `read_member`."""
    return json.loads(read_member(archive, member))


def _refuse_hostile(entry: tarfile.TarInfo, archive: Path) -> None:
    path = PurePosixPath(entry.name)
    if path.is_absolute() or ".." in path.parts:
        raise ArchiveError(f"{archive.name} holds a file that leaves its folder: {entry.name!r}")
    if not (entry.isreg() or entry.isdir()):
        raise ArchiveError(f"{archive.name} holds a link or a device: {entry.name!r}")


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    if entry.size > MEMBER_LIMIT:
        raise ArchiveError(f"{entry.name} has {entry.size:,} bytes, over {MEMBER_LIMIT:,}")
    file = tar.extractfile(entry)
    content = file.read() if file else b""
    if len(content) != entry.size:
        raise ArchiveError(f"{entry.name} is cut short")
    return content


class _Capped(io.RawIOBase):
    """A stream that refuses to unpack more than `ARCHIVE_LIMIT` bytes."""

    def __init__(self, stream: gzip.GzipFile):
        self._stream, self._left = stream, ARCHIVE_LIMIT

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size if size >= 0 else self._left + 1)
        self._left -= len(content)
        if self._left < 0:
            raise ArchiveError(f"an archive unpacks to more than {ARCHIVE_LIMIT:,} bytes")
        return content
