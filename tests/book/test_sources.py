"""The source notebooks: clean, named, with one parameters cell and stable ids."""

import re

import nbformat
import pytest

from toolkit import PARTS
from toolkit.course.release import is_exercises, is_solution
from toolkit.press.build import in_contents
from toolkit.press.reader import ROOT, sources

PATHS = sources()
CHAPTERS = [
    path for path in PATHS if path.parent != ROOT / "book" and "_exercises" not in path.stem
]
EXERCISES = [path for path in PATHS if path.stem.endswith("_exercises")]


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@named(PATHS)
def test_a_source_is_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.toolkit.name == path.stem
    assert "widgets" not in notebook.metadata


@named(PATHS)
def test_ids_are_unique_and_say_something(path):
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    assert len(set(ids)) == len(ids)
    assert not [i for i in ids if re.fullmatch(r"[0-9a-f]{8,}(-[0-9a-f]+)*", i)], "random ids"


@named(PATHS)
def test_one_cell_holds_the_parameters(path):
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0] is next(cell for cell in cells if cell.cell_type == "code")
    assert tagged[0].source.startswith('profile, seed, device = "quick", 0, "auto"')


@named(PATHS)
def test_no_cell_holds_a_bare_widget_or_figure(path):
    code = "\n".join(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    )
    assert not re.search(r"\binteract\(|FigureWidget|\bfig\.show\(|%run|get_ipython", code)


@named(CHAPTERS)
def test_a_chapter_has_its_rooms(path):
    slug, part = path.stem, path.parent.name
    assert slug in PARTS[part]
    module = ROOT / "toolkit" / part / slug
    assert module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()
    assert list((ROOT / "tests" / part).glob(f"test_{slug}*.py"))
    assert path.with_name(f"{slug}_exercises.ipynb").is_file()
    assert (ROOT / "evidence" / f"{slug}.json").is_file()


@named(EXERCISES)
def test_exercises_carry_marks_that_nbgrader_knows(path):
    notebook = nbformat.read(path, as_version=4)
    assert is_exercises(notebook)
    cells = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    ids = [cell.metadata.nbgrader.grade_id for cell in cells]
    assert len(set(ids)) == len(ids)
    assert all(cell.metadata.nbgrader.schema_version == 3 for cell in cells)
    graded = [cell for cell in cells if cell.metadata.nbgrader.grade]
    assert sum("BEGIN HIDDEN TESTS" in cell.source for cell in graded) >= 3
    solutions = [cell for cell in cells if is_solution(cell) and cell.cell_type == "code"]
    assert len(solutions) >= 3
    assert all("BEGIN SOLUTION" in cell.source for cell in solutions)


def test_every_source_stands_in_the_contents():
    assert set(in_contents()) == set(PATHS)
