"""A class of thirty, from release to feedback."""

import csv
import io
import json
import zipfile

import nbformat
import pytest

from tests.course.test_grade import HOSTILE, QUICK
from toolkit.course import grade as grading
from toolkit.course import release as releasing
from toolkit.course.collect import NOTEBOOK_LIMIT, collect, readable
from toolkit.course.folders import Course
from toolkit.course.grade import grade
from toolkit.course.release import exercises, hidden_lines, release
from toolkit.course.report import report

SLUG = "squares"


@pytest.fixture
def course(exercises_file, tmp_path, monkeypatch):
    """A course with one released notebook."""
    monkeypatch.setattr(releasing, "exercises", lambda: {SLUG: exercises_file})
    monkeypatch.setattr(grading, "DEFAULT", QUICK)
    monkeypatch.setattr(grading, "CELL_SECONDS", 3.0)
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "data"))
    course = Course(tmp_path / "course")
    release([SLUG], course)
    return course


@pytest.fixture
def exercises_file(exercises, tmp_path):
    path = tmp_path / f"{SLUG}_exercises.ipynb"
    nbformat.write(exercises, path)
    return path


def test_students_get_neither_solution_nor_hidden_test(course):
    text = course.release(SLUG).read_text()
    assert "return x * x" not in text
    assert "secret" not in text
    made = nbformat.read(course.release(SLUG), as_version=4)
    locked = {c.id: c.metadata.nbgrader.locked for c in made.cells}
    assert locked == {c: c not in ("square", "mean") for c in locked}


def test_no_release_of_the_book_holds_a_solution_or_a_hidden_line():
    for path in exercises().values():
        notebook = nbformat.read(path, as_version=4)
        made = releasing.edition(releasing.source(path), solutions=False)
        text = {line.strip() for c in made.cells for line in c.source.splitlines()}
        told = {line.strip() for c in notebook.cells for line in visible(c.source)}
        secret = hidden_lines(notebook) | {
            line.strip()
            for c in notebook.cells
            for line in set(c.source.splitlines()) - set(visible(c.source))
        }
        assert len(secret - told) > 20
        assert not text & {line for line in secret - told if len(line) > 12}, path.stem


def visible(source):
    """The lines outside solutions and hidden tests."""
    inside = False
    for line in source.splitlines():
        if "### BEGIN" in line or "### END" in line:
            inside = "BEGIN" in line
        elif not inside:
            yield line


@pytest.mark.slow
def test_a_class_of_thirty_gets_the_marks_it_earned(course, submit, tmp_path):
    good = [submit() for _ in range(8)]
    partly = [submit(mean="average = 4.0") for _ in range(8)]
    empty = [submit(square="", mean="") for _ in range(4)]
    hostile = [submit(square=code, mean="") for code in list(HOSTILE.values())[:6]]
    made = [nbformat.writes(one).encode() for one in (*good, *partly, *empty, *hostile)]
    made += [b"", b"{", b"[" * 100_000, b" " * (NOTEBOOK_LIMIT + 1)]
    wanted = [5.0] * 8 + [3.0] * 8 + [0.0] * 14
    archive = tmp_path / "moodle.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for number, content in enumerate(made, 100):
            file.writestr(f"Ada {number}_{number}_assignsubmission_file_/{SLUG}.ipynb", content)

    assert len(collect(archive, SLUG, course)) == 30
    assert grade([SLUG], course)[SLUG] == {str(i): s for i, s in enumerate(wanted, 100)}
    rows = report([SLUG], course)
    assert [row.score for row in rows] == wanted
    assert all(row.max_score == 5 for row in rows)
    assert sum(bool(row.remarks) for row in rows) >= 4 + 3
    table = list(csv.reader(io.StringIO((course.home / "reports/squares-moodle.csv").read_text())))
    assert table[1][:4] == ["Participant 100", "Ada 100", "5.00", "5.00"]
    pages = list((course.home / "feedback").glob(f"*/{SLUG}/{SLUG}.html"))
    assert len(pages) == 30
    assert not any("secret" in page.read_text() for page in pages)
    assert not any('<script src="http' in page.read_text() for page in pages)
    assert (pages[0].parent / "../../mathjax/tex-chtml.js").is_file()


@pytest.mark.slow
def test_what_was_judged_is_not_run_again_until_it_changes(course, submit, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    nbformat.write(submit(), folder / "ada.ipynb")
    collect(folder, SLUG, course)
    assert grade([], course) == {SLUG: {"ada": 5.0}}
    monkeypatch.setattr(grading, "judge", None)
    assert grade([], course) == {SLUG: {"ada": 5.0}}
    nbformat.write(submit(mean=""), folder / "ada.ipynb")
    collect(folder, SLUG, course)
    monkeypatch.undo()
    assert grading.judged(course, SLUG, "ada").points["mean-test"] == 0


@pytest.mark.parametrize(
    ("name", "student", "person"),
    [
        ("Ada Lovelace_123_assignsubmission_file_/squares.ipynb", "123", "Ada Lovelace"),
        ("Ada Lovelace_123_assignsubmission_file_squares.ipynb", "123", "Ada Lovelace"),
        ("lovelaceada_12345_67890_squares.ipynb", "12345", "lovelaceada"),
        ("lovelaceada_LATE_12345_67890_my notebook-2.ipynb", "12345", "lovelaceada"),
        ("ada/squares/squares.ipynb", "ada", "ada"),
        ("ada/anything.ipynb", "ada", "ada"),
        ("ada.ipynb", "ada", "ada"),
    ],
)
def test_platforms_names_are_understood(course, submit, tmp_path, name, student, person):
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    nbformat.write(submit(), path)
    (found,) = collect(tmp_path / "in", SLUG, course)
    assert (found.student, found.name, found.fault) == (student, person, "")
    assert course.students(SLUG) == [student]


def test_the_last_attempt_counts(course, submit, tmp_path):
    for name, answer in (("", "average = 1"), ("-1", "average = 2"), ("-10", "average = 3")):
        nbformat.write(submit(mean=answer), tmp_path / f"ada_12_34_squares{name}.ipynb")
    archive = tmp_path / "canvas.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in tmp_path.glob("ada_*.ipynb"):
            file.write(path, path.name)
    collect(archive, SLUG, course)
    assert "average = 3" in course.submitted("12", SLUG).read_text()


def test_an_archive_cannot_write_elsewhere(course, submit, tmp_path):
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("../evil.ipynb", "../../evil/evil.ipynb", "/tmp/evil.ipynb", ".hid.ipynb"):
            file.writestr(name, nbformat.writes(submit()))
        file.writestr("ada.ipynb", nbformat.writes(submit()))
    collect(archive, SLUG, course)
    assert "ada" in course.students(SLUG)
    assert all(place.is_relative_to(course.home) for place in course.home.rglob("*.ipynb"))


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[" * 100_000, b'{"cells": 3}', b"\xff", b"[]", b"null", b"3"]
)
def test_what_is_no_notebook_becomes_an_empty_one(content):
    notebook, fault = readable(content)
    assert fault
    nbformat.validate(notebook)
    assert json.loads(nbformat.writes(notebook))["cells"][0]["cell_type"] == "markdown"


def test_clear_errors(course, tmp_path):
    with pytest.raises(FileNotFoundError, match="toolkit course release cubes"):
        collect(tmp_path, "cubes", course)
    with pytest.raises(FileNotFoundError, match="there is no"):
        collect(tmp_path / "nothing", SLUG, course)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no notebook"):
        collect(tmp_path / "empty", SLUG, course)
    with pytest.raises(FileNotFoundError, match="nothing is handed in"):
        grade([SLUG], course)
    with pytest.raises(ValueError, match="no exercises are called 'cubes'"):
        release(["cubes"], course)
