import nbformat
import pytest

from toolkit.course.release import edition, hidden_lines, is_exercises

SOLUTION = "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"
TEST = (
    "assert double(2) == 4\n### BEGIN HIDDEN TESTS\nassert double(-1) == -2\n### END HIDDEN TESTS"
)


def marks(**more):
    return {"schema_version": 3, "locked": False, "task": False, "grade": False} | more


@pytest.fixture
def exercises():
    solution = nbformat.v4.new_code_cell(SOLUTION, id="double")
    solution.metadata["nbgrader"] = marks(grade_id="double", solution=True)
    test = nbformat.v4.new_code_cell(TEST, id="test-double")
    test.metadata["nbgrader"] = marks(
        grade_id="test-double", solution=False, grade=True, points=1, locked=True
    )
    test.outputs = [nbformat.v4.new_output("stream", text="fine")]
    return nbformat.v4.new_notebook(cells=[solution, test])


def text(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


def test_the_reader_sees_solutions_folded_and_no_hidden_test(exercises):
    shown = edition(exercises, solutions=True)
    assert "return 2 * x" in text(shown)
    assert "double(-1)" not in text(shown)
    assert "SOLUTION" not in text(shown)
    assert shown.cells[0].metadata.tags == ["hide-cell"]
    assert shown.cells[1].outputs


def test_the_student_gets_a_stub_and_no_outputs(exercises):
    given = edition(exercises, solutions=False)
    assert "return 2 * x" not in text(given)
    assert "raise NotImplementedError()" in text(given)
    assert "double(-1)" not in text(given)
    assert given.cells[1].outputs == []


def test_the_source_is_not_changed(exercises):
    before = nbformat.writes(exercises)
    edition(exercises, solutions=False)
    assert nbformat.writes(exercises) == before


def test_hidden_lines_are_those_between_the_marks(exercises):
    assert hidden_lines(exercises) == {"assert double(-1) == -2"}


def test_an_open_mark_is_refused(exercises):
    exercises.cells[1].source = exercises.cells[1].source.replace("### END HIDDEN TESTS", "")
    with pytest.raises(ValueError, match="marks are wrong"):
        edition(exercises, solutions=True)


def test_a_chapter_is_no_exercises_notebook(exercises):
    assert is_exercises(exercises)
    assert not is_exercises(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]))
