"""The editions of an exercises notebook, made with nbgrader's own preprocessors in process."""

import copy

from nbformat import NotebookNode

HIDDEN = ("BEGIN HIDDEN TESTS", "END HIDDEN TESTS")
SOLUTION = ("BEGIN SOLUTION", "END SOLUTION")


def edition(notebook: NotebookNode, solutions: bool) -> NotebookNode:
    """What others may see of an exercises notebook: never a hidden test.

    Args:
        notebook: a source or executed exercises notebook; it is not changed.
        solutions: True for the reader's edition (each solution cell folded away), False for the
            student's notebook (solutions replaced by a stub, outputs gone).

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
        if not solutions:
            cell.outputs, cell.execution_count = [], None
        elif is_answer:
            _fold(cell)
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
