"""Every exercise both ways: solutions score all, no answer nothing, wrong answers what is due."""

import ast
import contextlib
from collections import Counter
from pathlib import Path
from unittest import mock

import nbformat
import pytest

from tests.course.wrong_answers import Judge, load, written
from toolkit.course import folders
from toolkit.course import grade as grading
from toolkit.course.grade import environment
from toolkit.course.release import exercises
from toolkit.course.reseed import of_year
from toolkit.course.sandbox import Limits, Sandbox

BRANCHES = Path(__file__).with_name("branches.py")
SLUGS = list(exercises())
TOLD = {slug: load(slug) for slug in SLUGS}
WRONG = [(slug, wrong) for slug in SLUGS for wrong in TOLD[slug]["wrong"]]


@contextlib.contextmanager
def judge_sandbox(slug):
    """A sandbox whose program has imported what the notebook imports."""
    modules = sorted(imported(nbformat.read(exercises()[slug], as_version=4)))
    variables = environment(folders.data(), isolate=True) | {
        "PRELOAD": " ".join(modules),
        "MEMOISE": " ".join(TOLD[slug]["costly"]),
    }
    root = Path(folders.__file__).parents[2]
    readable = [root / "toolkit", folders.data()]
    patience = mock.patch.object(grading, "CELL_SECONDS", 900.0)  # a busy machine is no verdict
    with patience, Sandbox(BRANCHES, readable, variables, Limits(wall=3600.0)) as sandbox:
        sandbox.receive()
        yield sandbox


def imported(notebook):
    """Modules that a notebook imports, and those that `from … import` may mean."""
    found = set()
    for cell in notebook.cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.fixture(scope="module")
def judged():
    """The verdicts on a chapter's solution, on no answers, and on every wrong answer; run once."""
    found = {}

    def of(slug):
        if slug not in found:
            notebook = nbformat.read(exercises()[slug], as_version=4)
            with judge_sandbox(slug) as sandbox:
                found[slug] = verdicts(Judge(sandbox, notebook), TOLD[slug]["wrong"])
        return found[slug]

    return of


def verdicts(judge, wrong):
    """What comes of each submission, by its name."""
    found = {"solution": judge.solved(), "numbers": judge.numbers(), "empty": judge.empty()}
    for cell in dict.fromkeys(one["cell"] for one in wrong):
        own = [one for one in wrong if one["cell"] == cell]
        tried = judge.tried(cell, [written(judge.by_name, one) for one in own])
        found |= {(cell, one["why"]): got for one, got in zip(own, tried, strict=True)}
    judge.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("slug", SLUGS)
def test_the_solution_scores_all_and_no_answer_scores_nothing(judged, slug):
    assert not {test: error for test, error in judged(slug)["solution"].items() if error}
    assert not [test for test, error in judged(slug)["empty"].items() if not error]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slug", "wrong"), WRONG, ids=[f"{slug}-{one['cell']}-{one['why']}" for slug, one in WRONG]
)
def test_a_wrong_answer_loses_what_it_should(judged, slug, wrong):
    got = judged(slug)[wrong["cell"], wrong["why"]]
    assert [test for test, error in got.items() if error] == wrong["fails"], got


@pytest.mark.parametrize("slug", SLUGS)
def test_each_exercise_has_at_least_three_wrong_answers(slug):
    notebook = nbformat.read(exercises()[slug], as_version=4)
    place, number = {}, 0
    for cell in notebook.cells:
        number += cell.cell_type == "markdown" and cell.source.startswith("## ")
        place[cell.id] = number
    wrong = TOLD[slug]["wrong"]
    counted = Counter(place[one["cell"]] for one in wrong)
    assert number >= 3
    assert all(counted[exercise] >= 3 for exercise in range(1, number + 1)), counted
    assert len({(one["cell"], one["why"]) for one in wrong}) == len(wrong)
    assert all(one["fails"] for one in wrong)


YEAR = 2027


@pytest.mark.slow
@pytest.mark.parametrize("slug", SLUGS)
def test_another_year_is_solved_alike_and_not_by_last_years_numbers(judged, slug):
    numbers = judged(slug)["numbers"]
    assert sorted(numbers) == sorted(TOLD[slug]["numbers"])
    book = nbformat.read(exercises()[slug], as_version=4)
    with judge_sandbox(slug) as sandbox:
        judge = Judge(sandbox, of_year(book, YEAR))
        solved = judge.solved()
        assert not {test: error for test, error in solved.items() if error}
        for cell, text in numbers.items():
            solution = judge.by_name[cell].source
            (copied,) = judge.tried(cell, [f"{solution}\n{text}"])
            assert any(copied.values()), f"last year's numbers of {cell} pass"
