"""Another year's exercises: other data, other constants, the same solutions.

Every exercises notebook draws its data from `seed` in its `parameters` cell. Numbers that a
statement names stand in a cell of constants; its metadata `reseed` lists the values that take
turns, so that neighbouring years always differ.
"""

import copy
import json
import re
from typing import Any

from nbformat import NotebookNode

from toolkit.course.folders import Course, write

YEARS = range(1990, 10_000)
"""Years that seeds may be made of: below 10,000, where experiments tune."""
SEED = re.compile(r'^profile, seed, device = "quick", \d+, "auto"$')


def reseed(year: int, course: Course) -> None:
    """Let a course's next releases be those of a year.

    Raises:
        ValueError: if it is no year.
    """
    _check(year)
    write(course.home / "year.json", json.dumps({"year": year}) + "\n")


def year_of(course: Course) -> int | None:
    """The year that `reseed` has set; None for the book's own exercises.

    Raises:
        ValueError: if the file was changed into something else.
    """
    path = course.home / "year.json"
    if not path.is_file():
        return None
    try:
        return _check(json.loads(path.read_text("utf-8"))["year"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no year; run: toolkit course reseed YEAR") from error


def of_year(notebook: NotebookNode, year: int) -> NotebookNode:
    """The notebook with a year's seed and constants; the book's own is not changed.

    Raises:
        ValueError: if it is no year, or the notebook has no `parameters` cell of the usual form,
            or lists turns for a constant that it does not define.
    """
    _check(year)
    made = copy.deepcopy(notebook)
    cells = {cell.id: cell for cell in made.cells}
    if "parameters" not in cells or not SEED.fullmatch(cells["parameters"].source):
        raise ValueError("the parameters cell must read: profile, seed, device = …")
    cells["parameters"].source = f'profile, seed, device = "quick", {year}, "auto"'
    for cell in made.cells:
        for place, (name, turns) in enumerate(sorted(cell.metadata.get("reseed", {}).items())):
            cell.source = _with(cell.source, name, turns[(year + place) % len(turns)])
    return made


def _with(source: str, name: str, value: Any) -> str:
    """The cell with another value of one constant; a comment behind it stays."""
    text = repr(tuple(value) if isinstance(value, list) else value)
    changed, count = re.subn(
        rf"^{re.escape(name)} = .*?(?=  #|$)", f"{name} = {text}", source, flags=re.MULTILINE
    )
    if count != 1:
        raise ValueError(f"{count} lines define the constant {name}")
    return changed


def _check(year: object) -> int:
    if not isinstance(year, int) or year not in YEARS:
        raise ValueError(f"a year lies between {YEARS[0]} and {YEARS[-1]}, got {year!r}")
    return year
