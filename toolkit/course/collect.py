"""From what a learning platform hands out to nbgrader's folder `submitted`.

Nothing that students send is trusted: archives are read member by member, names are checked, sizes
are limited, and a notebook that cannot be read becomes an empty one with the reason in it.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import nbformat
from nbformat import NotebookNode, ValidationError
from nbformat.v4 import new_markdown_cell, new_notebook

from toolkit.course.folders import NAME, Course, write

NOTEBOOK_LIMIT = 20 * 2**20
"""Bytes of a notebook; the pictures of its outputs count."""
FILES_LIMIT = 5_000
"""Files of one archive or folder."""

UNREADABLE = (
    ValueError,
    ValidationError,
    RecursionError,
    AttributeError,
    KeyError,
    TypeError,
)
"""What reading a file that is no notebook may raise."""

PLATFORMS = (
    # Moodle, in folders or flat: Ada Lovelace_12345_assignsubmission_file_/name.ipynb
    re.compile(r"(?P<name>[^/]+?)_(?P<student>\d+)_assignsubmission_file_?/?[^/]*\.ipynb"),
    # Canvas: lovelaceada_LATE_12345_67890_name-1.ipynb
    re.compile(
        r"(?P<name>[^/_]+)_(?:LATE_)?(?P<student>\d+)_\d+_[^/]*?(?:-(?P<again>\d+))?\.ipynb"
    ),
    # nbgrader, and plain folders: ada/name/name.ipynb, ada/name.ipynb
    re.compile(r"(?P<student>[^/]+)/(?:[^/]+/)?[^/]*\.ipynb"),
    # one file a student: ada.ipynb
    re.compile(r"(?P<student>[^/]+)\.ipynb"),
)


@dataclass(frozen=True)
class Collected:
    """One notebook that came in."""

    student: str
    name: str
    """As the platform writes the student's name; else as `student`."""
    origin: str
    fault: str
    """Why it could not be read; empty if it could."""


def collect(place: Path, slug: str, course: Course) -> list[Collected]:
    """Sort a folder or zip of submissions of one notebook into the course.

    Understands what Moodle and Canvas download, nbgrader's own folders, and one file or folder a
    student. Where a student sent several, the last attempt counts.

    Raises:
        FileNotFoundError: if the place or the release is not there.
        ValueError: if it holds no notebook, or is no folder and no zip.
    """
    course.require_released(slug)
    latest: dict[str, tuple[Collected, NotebookNode]] = {}
    for origin, content in sorted(_files(place), key=lambda file: _attempt(file[0])):
        match = _whose(origin)
        if match is None:
            continue
        notebook, fault = readable(content)
        names = match.groupdict()
        student = _clean(names["student"])
        latest[student] = Collected(student, names.get("name") or student, origin, fault), notebook
    if not latest:
        raise ValueError(f"{place} holds no notebook whose name says whose it is")
    for one, notebook in latest.values():
        target = course.submitted(one.student, slug)
        write(target, nbformat.writes(notebook))
        write(target.with_name("origin.json"), json.dumps(vars(one), ensure_ascii=False) + "\n")
    return [one for one, _ in latest.values()]


def readable(content: bytes | None) -> tuple[NotebookNode, str]:
    """A valid notebook without outputs, and what was wrong with the one that came.

    Args:
        content: the file; None if it was too large to be read.
    """
    try:
        if content is None or len(content) > NOTEBOOK_LIMIT:
            raise ValueError(f"it is larger than {NOTEBOOK_LIMIT // 2**20} MB")
        notebook = nbformat.reads(content.decode("utf-8"), as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        return notebook, ""
    except (
        ValueError,
        ValidationError,
        RecursionError,
        AttributeError,
        KeyError,
        TypeError,
    ) as bad:
        first = (str(bad) or type(bad).__name__).splitlines()[0][:200]
        text = f"This submission could not be read: {first}"
        return new_notebook(cells=[new_markdown_cell(text, id="unreadable")]), first


def repair(course: Course, slug: str) -> list[Collected]:
    """Make every notebook in `submitted` a readable one, however it came there.

    The file that could not be read is kept beside it, as `unreadable`.
    """
    faults = []
    for student in course.students(slug):
        path = course.submitted(student, slug)
        if not path.is_file():
            continue
        large = path.stat().st_size > NOTEBOOK_LIMIT
        notebook, fault = readable(None if large else path.read_bytes())
        if fault:
            path.replace(path.with_name("unreadable"))
            write(path, nbformat.writes(notebook))
            faults.append(Collected(student, student, str(path), fault))
    return faults


def _files(place: Path) -> Iterator[tuple[str, bytes | None]]:
    """Names and contents of notebooks, None where too large."""
    if place.is_dir():
        files = [path for path in sorted(place.rglob("*.ipynb")) if path.is_file()]
        _few(len(files))
        for path in files:
            if not path.is_symlink():
                large = path.stat().st_size > NOTEBOOK_LIMIT
                yield path.relative_to(place).as_posix(), None if large else path.read_bytes()
    elif zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            _few(len(archive.infolist()))
            for member in archive.infolist():
                if member.filename.endswith(".ipynb") and not member.is_dir():
                    yield member.filename, _unpacked(archive, member)
    elif place.exists():
        raise ValueError(f"{place} is neither a folder nor a zip archive")
    else:
        raise FileNotFoundError(f"there is no {place}")


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | None:
    """A member's content, read no further than the limit, whatever its header says."""
    try:
        with archive.open(member) as stream:
            content = stream.read(NOTEBOOK_LIMIT + 1)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError):
        return b""
    return None if len(content) > NOTEBOOK_LIMIT else content


def _few(count: int) -> None:
    if count > FILES_LIMIT:
        raise ValueError(f"{count} files are more than the {FILES_LIMIT} that one collection takes")


def _whose(origin: str) -> re.Match | None:
    parts = PurePosixPath(origin).parts
    if ".." in parts or any(part.startswith((".", "__MACOSX")) for part in parts):
        return None
    return next((found for rule in PLATFORMS if (found := rule.fullmatch(origin))), None)


def _attempt(origin: str) -> tuple[int, str]:
    match = _whose(origin)
    again = match.groupdict().get("again") if match else None
    return int(again or 0), origin


def _clean(student: str) -> str:
    """A name that may be a folder's."""
    kept = re.sub(r"[^A-Za-z0-9_.@-]+", "-", student).strip("-._")[:100]
    if not NAME.fullmatch(kept):
        raise ValueError(f"{student!r} cannot be the name of a student's folder")
    return kept
