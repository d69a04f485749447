"""The editions of an exercises notebook, made with nbgrader's own preprocessors in process."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from toolkit.course.folders import ROOT, Course, write
from toolkit.course.reseed import of_year, year_of

HIDDEN = ("BEGIN HIDDEN TESTS", "END HIDDEN TESTS")
SOLUTION = ("BEGIN SOLUTION", "END SOLUTION")


def release(slugs: Sequence[str], course: Course) -> list[Path]:
    """Put exercises into a course and make the students' notebooks, through nbgrader.

    Solutions and hidden tests are gone, cells that are not answers are locked, and behind an
    answer that draws stands the picture that it should draw. Data and constants are those of the
    year that `reseed` has set.

    Args:
        slugs: chapters; none means all that have exercises.
        course: where; an exercise that is there already is made anew, its grades stay.

    Returns:
        The students' notebooks.

    Raises:
        ValueError: for a chapter without exercises, or marks that nbgrader does not understand.
    """
    known = exercises()
    if unknown := [slug for slug in slugs if slug not in known]:
        raise ValueError(f"no exercises are called {unknown[0]!r}; there are {', '.join(known)}")
    course.configure()
    made, year = [], year_of(course)
    for slug in slugs or known:
        write(course.source(slug), nbformat.writes(source(known[slug], year)))
        course.convert("GenerateAssignment", slug)
        made.append(course.release(slug))
    return made


def exercises() -> dict[str, Path]:
    """The exercises notebooks of the book, by chapter."""
    found = sorted((ROOT / "book").glob("*/*_exercises.ipynb"))
    return {path.stem.removesuffix("_exercises"): path for path in found}


def source(path: Path, year: int | None = None) -> NotebookNode:
    """A notebook of the book as nbgrader's source: every cell has marks, so all may be locked.

    Where the executed twin is at hand, the pictures that solutions draw are kept; not with the
    data of another year, which the twin did not see.
    """
    notebook = nbformat.read(path, as_version=4)
    twin = ROOT / "build" / "executed" / path.name
    pictures = {}
    if year is not None:
        notebook = of_year(notebook, year)
    elif twin.is_file():
        pictures = _pictures(nbformat.read(twin, as_version=4))
    cells = []
    for cell in notebook.cells:
        cell.metadata.setdefault("nbgrader", LOCKED | {"grade_id": cell.id})
        cells += [cell, *pictures.get(cell.id, [])]
    notebook.cells = cells
    return notebook


LOCKED = {"grade": False, "solution": False, "task": False, "locked": True, "schema_version": 3}
"""nbgrader's marks of a cell that students read and run, but do not change."""


def _pictures(twin: NotebookNode) -> dict[str, list[NotebookNode]]:
    """A locked cell with the picture that an answer of the twin draws, by the answer's id."""
    found = {}
    for cell in twin.cells:
        drawn = list(_drawn(cell)) if is_solution(cell) and cell.cell_type == "code" else []
        if drawn:
            name = f"{cell.id}-expected"
            text = "\n".join(
                f"![What you should see](attachment:{i}.png)" for i in range(len(drawn))
            )
            marks = LOCKED | {"grade_id": name}
            shown = new_markdown_cell(text, id=name, metadata={"nbgrader": marks})
            shown.attachments = {f"{i}.png": {"image/png": image} for i, image in enumerate(drawn)}
            found[cell.id] = [shown]
    return found


def _pictures_alone(outputs: list[NotebookNode]) -> list[NotebookNode]:
    return [output for output in outputs if "image/png" in output.get("data", {})]


def _drawn(cell: NotebookNode) -> Iterator[str]:
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            yield output.data["image/png"]


def edition(notebook: NotebookNode, solutions: bool, page: bool = False) -> NotebookNode:
    """What others may see of an exercises notebook: never a hidden test.

    Args:
        notebook: a source or executed exercises notebook; it is not changed.
        solutions: True for the reader's edition (each solution cell folded away), False for the
            student's notebook (solutions replaced by a stub, outputs gone).
        page: without solutions, keep what the given cells show, and the pictures of answers.

    Raises:
        ValueError: if a mark is not closed, or stands in a cell that nbgrader does not know.
    """
    from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions

    made = copy.deepcopy(notebook)
    try:
        solved = [is_solution(cell) for cell in made.cells]
        made, _ = ClearHiddenTests().preprocess(made, {})
        if not solutions:
            made, _ = ClearSolutions().preprocess(made, {})
    except RuntimeError as error:
        raise ValueError(f"the exercises' marks are wrong: {error}") from error
    for cell, is_answer in zip(made.cells, solved, strict=True):
        if cell.cell_type != "code":
            continue
        if solutions and is_answer:
            _fold(cell)
        elif not solutions:
            cell.execution_count = None
            kept = _pictures_alone(cell.outputs) if is_answer else cell.outputs
            cell.outputs = kept if page else []
    return made


def is_solution(cell: NotebookNode) -> bool:
    """Whether a cell holds an answer that students write."""
    return bool(cell.metadata.get("nbgrader", {}).get("solution"))


def is_exercises(notebook: NotebookNode) -> bool:
    """Whether a notebook holds cells for nbgrader."""
    return any("nbgrader" in cell.metadata for cell in notebook.cells)


def hidden_lines(notebook: NotebookNode) -> set[str]:
    """The lines of all hidden tests, stripped; the site must hold none of them."""
    lines, inside = set(), False
    for cell in notebook.cells:
        for line in cell.source.splitlines():
            if HIDDEN[0] in line or HIDDEN[1] in line:
                inside = HIDDEN[0] in line
            elif inside and line.strip():
                lines.add(line.strip())
    return lines


def without_hidden_lines(source: str) -> str:
    """A test as students see it."""
    kept, inside = [], False
    for line in source.splitlines():
        if HIDDEN[0] in line or HIDDEN[1] in line:
            inside = HIDDEN[0] in line
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def _fold(cell: NotebookNode) -> None:
    tags = cell.metadata.setdefault("tags", [])
    if "hide-cell" not in tags:
        tags.append("hide-cell")
    cell.metadata["mystnb"] = {
        "code_prompt_show": "Show a solution",
        "code_prompt_hide": "Hide the solution",
    }
    cell.source = "\n".join(
        line for line in cell.source.split("\n") if not any(mark in line for mark in SOLUTION)
    )
