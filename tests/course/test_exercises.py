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
YEAR = 2027


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


def verdicts(judge, wrong):
    """What comes of each submission, by its name."""
    found = {"solution": judge.solved(), "numbers": judge.numbers(), "empty": judge.empty()}
    for cell in dict.fromkeys(one["cell"] for one in wrong):
        own = [one for one in wrong if one["cell"] == cell]
        tried = judge.tried(cell, [written(judge.by_name, one) for one in own])
        found |= {(cell, one["why"]): got for one, got in zip(own, tried, strict=True)}
    judge.close()
    return found


def pytest_generate_tests(metafunc):
    """One test a wrong answer of the chapter."""
    if "wrong" in metafunc.fixturenames:
        wrong = TOLD[metafunc.cls.slug]["wrong"]
        metafunc.parametrize("wrong", wrong, ids=[f"{w['cell']}-{w['why']}" for w in wrong])


class Exercises:
    """The tests of one chapter. Each has a class, so that two workers can share the chapters."""

    slug: str

    @pytest.fixture(scope="class")
    def judged(self):
        """The verdicts on the solution, on no answers, and on every wrong answer; run once."""
        notebook = nbformat.read(exercises()[self.slug], as_version=4)
        with judge_sandbox(self.slug) as sandbox:
            return verdicts(Judge(sandbox, notebook), TOLD[self.slug]["wrong"])

    @pytest.mark.slow
    def test_the_solution_scores_all_and_no_answer_scores_nothing(self, judged):
        assert not {test: error for test, error in judged["solution"].items() if error}
        assert not [test for test, error in judged["empty"].items() if not error]

    @pytest.mark.slow
    def test_a_wrong_answer_loses_what_it_should(self, judged, wrong):
        got = judged[wrong["cell"], wrong["why"]]
        assert [test for test, error in got.items() if error] == wrong["fails"], got

    def test_each_exercise_has_at_least_three_wrong_answers(self):
        notebook = nbformat.read(exercises()[self.slug], as_version=4)
        place, number = {}, 0
        for cell in notebook.cells:
            number += cell.cell_type == "markdown" and cell.source.startswith("## ")
            place[cell.id] = number
        wrong = TOLD[self.slug]["wrong"]
        counted = Counter(place[one["cell"]] for one in wrong)
        assert number >= 3
        assert all(counted[exercise] >= 3 for exercise in range(1, number + 1)), counted
        assert len({(one["cell"], one["why"]) for one in wrong}) == len(wrong)
        assert all(one["fails"] for one in wrong)

    @pytest.mark.slow
    def test_another_year_is_solved_alike_and_not_by_last_years_numbers(self, judged):
        numbers = judged["numbers"]
        assert sorted(numbers) == sorted(TOLD[self.slug]["numbers"])
        book = nbformat.read(exercises()[self.slug], as_version=4)
        with judge_sandbox(self.slug) as sandbox:
            judge = Judge(sandbox, of_year(book, YEAR))
            solved = judge.solved()
            assert not {test: error for test, error in solved.items() if error}
            for cell, text in numbers.items():
                solution = judge.by_name[cell].source
                (copied,) = judge.tried(cell, [f"{solution}\n{text}"])
                assert any(copied.values()), f"last year's numbers of {cell} pass"


for chapter in SLUGS:
    globals()[f"Test_{chapter}"] = type(f"Test_{chapter}", (Exercises,), {"slug": chapter})
