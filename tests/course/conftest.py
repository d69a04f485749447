"""A small exercises notebook, and submissions of all kinds."""

import copy

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

SETUP = "import numpy as np\n\nseed = 0"
SQUARE = '''def square(x):
    """x squared."""
    ### BEGIN SOLUTION
    return x * x
    ### END SOLUTION'''
SQUARE_TEST = """assert square(3) == 9
### BEGIN HIDDEN TESTS
secret = 12
assert square(secret) == 144
### END HIDDEN TESTS"""
SQUARE_ARRAY = """x = np.arange(4.0)
assert np.allclose(square(x), x**2)
### BEGIN HIDDEN TESTS
assert square(np.array([-1.5]))[0] == 2.25
### END HIDDEN TESTS"""
MEAN = """### BEGIN SOLUTION
average = float(np.mean([1, 2, 6]))
### END SOLUTION"""
MEAN_TEST = """assert average > 0
### BEGIN HIDDEN TESTS
assert np.isclose(average, 3.0)
### END HIDDEN TESTS"""


def cell(source, name, points=None, answer=False):
    """A cell with nbgrader's marks."""
    marks = {
        "grade": points is not None,
        "grade_id": name,
        "locked": not answer,
        "solution": answer,
        "schema_version": 3,
        "task": False,
    }
    if points is not None:
        marks["points"] = points
    return new_code_cell(source, id=name, metadata={"nbgrader": marks})


@pytest.fixture(scope="session")
def exercises():
    """The source: two answers, three tests, 5 points."""
    cells = [
        new_markdown_cell("# Squares", id="title"),
        cell(SETUP, "setup"),
        cell(SQUARE, "square", answer=True),
        cell(SQUARE_TEST, "square-test", 2),
        cell(SQUARE_ARRAY, "square-array", 1),
        cell(MEAN, "mean", answer=True),
        cell(MEAN_TEST, "mean-test", 2),
    ]
    return new_notebook(cells=cells, metadata={})


@pytest.fixture
def submit(exercises):
    """Build a submission: answers by name; by default the solutions."""

    def build(extra=(), **answers):
        made = copy.deepcopy(exercises)
        for one in made.cells:
            if one.id in answers:
                one.source = answers[one.id]
        for place, source in extra:
            made.cells.insert(place, new_code_cell(source))
        return made

    return build
