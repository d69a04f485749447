"""The exercises of another year: what changes, and what does not."""

import json
from itertools import pairwise

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from toolkit.course.folders import Course
from toolkit.course.release import edition, exercises, release
from toolkit.course.reseed import of_year, reseed, year_of

PARAMETERS = 'profile, seed, device = "quick", 0, "auto"'


def small(source="A = 1  # one\nB = (1, 2)", **turns):
    cells = [
        new_code_cell(PARAMETERS, id="parameters"),
        new_code_cell(source, id="constants", metadata={"reseed": turns}),
    ]
    return new_notebook(cells=cells)


def test_the_seed_is_the_year_and_constants_take_turns():
    book = small(A=[1, 3, 5], B=[[1, 2], [4, 5]])
    made = [of_year(book, year).cells for year in (2026, 2027, 2028, 2029)]
    assert made[1][0].source == 'profile, seed, device = "quick", 2027, "auto"'
    values = [cells[1].source for cells in made]
    assert values[0] == "A = 3  # one\nB = (4, 5)"
    assert values[1] == "A = 5  # one\nB = (1, 2)"
    assert all(one != two for one, two in pairwise(values))
    assert book.cells[0].source == PARAMETERS
    assert of_year(book, 2027) == of_year(book, 2027)


@pytest.mark.parametrize("year", [0, 1989, 10_000, "2027", 2027.0, None])
def test_what_is_no_year_is_refused(year, tmp_path):
    with pytest.raises(ValueError, match="a year lies between"):
        of_year(small(), year)
    with pytest.raises(ValueError, match="a year lies between"):
        reseed(year, Course(tmp_path))


def test_a_constant_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="0 lines define the constant C"):
        of_year(small(C=[1, 2]), 2027)


@pytest.mark.parametrize("slug", list(exercises()))
def test_the_books_own_constants_are_the_first_turn_and_every_turn_differs(slug):
    book = nbformat.read(exercises()[slug], as_version=4)
    cells = {cell.id: cell for cell in book.cells}
    for cell in book.cells:
        names: dict = {}
        if turns := cell.metadata.get("reseed", {}):
            exec(cell.source, names)
        for name, values in turns.items():
            kept = list(names[name]) if isinstance(names[name], tuple) else names[name]
            assert kept == values[0], name
            assert len({json.dumps(value) for value in values}) == len(values) > 1
    other = {cell.id: cell.source for cell in of_year(book, 2027).cells}
    changed = {name for name, source in other.items() if source != cells[name].source}
    assert "parameters" in changed
    assert changed <= {"parameters", "constants"}


@pytest.mark.slow
def test_the_release_is_that_of_the_year(tmp_path):
    course = Course(tmp_path)
    assert year_of(course) is None
    reseed(2027, course)
    assert year_of(course) == 2027
    release(["coke"], course)
    source = nbformat.read(course.source("coke"), as_version=4)
    given = nbformat.read(course.release("coke"), as_version=4)
    for made in (source, given):
        assert '"quick", 2027' in next(c.source for c in made.cells if c.id == "parameters")
    wanted = edition(of_year(nbformat.read(exercises()["coke"], as_version=4), 2027), False)
    assert [c.source for c in given.cells] == [c.source for c in wanted.cells]


def test_a_damaged_year_is_told(tmp_path):
    (tmp_path / "year.json").write_text('{"year": "soon"}')
    with pytest.raises(ValueError, match="toolkit course reseed YEAR"):
        year_of(Course(tmp_path))
