"""What comes back: a page a student, tables for the platforms, an overview for the teacher."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

from toolkit.course.assets import lay_mathjax, with_mathjax
from toolkit.course.folders import Course, write
from toolkit.course.grade import is_test
from toolkit.course.release import without_hidden_lines


@dataclass(frozen=True)
class Row:
    """The result of one student in one notebook."""

    student: str
    name: str
    slug: str
    score: float
    max_score: float
    late: float
    """Seconds after the due date that the teacher gave in nbgrader; 0 without one."""
    needs_manual_grade: bool
    remarks: tuple[str, ...]


class HideTests(NbGraderPreprocessor):
    """No page for students holds a hidden test."""

    def preprocess_cell(
        self, cell: NotebookNode, resources: dict, cell_index: int
    ) -> tuple[NotebookNode, dict]:
        """Drop the hidden lines of a test."""
        if is_test(cell):
            cell.source = without_hidden_lines(cell.source)
        return cell, resources


def report(slugs: Sequence[str], course: Course) -> list[Row]:
    """Write feedback pages and tables of what `grade` found.

    Below the course: `feedback/STUDENT/SLUG/SLUG.html`, and in `reports/` `grades.csv` (all),
    `SLUG-moodle.csv`, `SLUG-canvas.csv` (as the platforms import them), `overview.md` (what to
    look at by hand).

    Raises:
        FileNotFoundError: for a notebook that was not released, or not graded yet.
    """
    slugs = slugs or course.slugs()
    rows = []
    for slug in slugs:
        course.require_released(slug)
        own = _rows(course, slug)
        rows += own
        if own:
            course.convert("GenerateFeedback", slug)
            _offline(course, slug)
    if not rows:
        raise FileNotFoundError("nothing is graded yet; run: toolkit course grade")
    place = course.home / "reports"
    write(place / "grades.csv", table(rows))
    for slug in slugs:
        own = [row for row in rows if row.slug == slug]
        write(place / f"{slug}-moodle.csv", moodle(own))
        write(place / f"{slug}-canvas.csv", canvas(own))
    write(place / "overview.md", overview(rows))
    return rows


def _offline(course: Course, slug: str) -> None:
    """Let the feedback pages find MathJax beside them."""
    folder = course.home / "feedback"
    lay_mathjax(folder / "mathjax")
    for page in folder.glob(f"*/{slug}/{slug}.html"):
        write(page, with_mathjax(page.read_text("utf-8"), "../../mathjax"))


def table(rows: Sequence[Row]) -> str:
    """All that is known, one line a student and notebook."""
    head = ["student", "name", "notebook", "score", "max_score", "late_seconds", "look", "remarks"]
    return _csv(
        head,
        [
            [
                row.student,
                row.name,
                row.slug,
                f"{row.score:g}",
                f"{row.max_score:g}",
                f"{row.late:.0f}",
                "yes" if row.remarks or row.needs_manual_grade else "",
                "; ".join(row.remarks),
            ]
            for row in rows
        ],
    )


def moodle(rows: Sequence[Row]) -> str:
    """Moodle's offline grading worksheet: it knows participants by `Participant NUMBER`."""
    head = ["Identifier", "Full name", "Grade", "Maximum grade", "Feedback comments"]
    return _csv(
        head,
        [
            [
                f"Participant {row.student}",
                row.name,
                f"{row.score:.2f}",
                f"{row.max_score:.2f}",
                "",
            ]
            for row in rows
        ],
    )


def canvas(rows: Sequence[Row]) -> str:
    """Canvas's gradebook import: its own number as `ID`, the points possible in a second row."""
    slug = rows[0].slug if rows else "notebook"
    head = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", slug]
    most = f"{rows[0].max_score:g}" if rows else ""
    lines = [["    Points Possible", "", "", "", "", most]]
    lines += [[row.name, row.student, "", "", "", f"{row.score:g}"] for row in rows]
    return _csv(head, lines)


def overview(rows: Sequence[Row]) -> str:
    """Means by notebook, and every submission that a person should look at."""
    text = ["# Grades", "", "| notebook | students | mean | of | full marks | none |"]
    text += ["|---|---|---|---|---|---|"]
    for slug in dict.fromkeys(row.slug for row in rows):
        own = [row for row in rows if row.slug == slug]
        mean = sum(row.score for row in own) / len(own)
        full = sum(row.score == row.max_score for row in own)
        none = sum(row.score == 0 for row in own)
        text.append(
            f"| {slug} | {len(own)} | {mean:.1f} | {own[0].max_score:g} | {full} | {none} |"
        )
    text += ["", "## To look at", ""]
    look = [row for row in rows if row.remarks or row.needs_manual_grade]
    for row in look:
        reason = "; ".join(row.remarks) or "an answer needs a grade by hand"
        text.append(f"- {row.name} ({row.student}), {row.slug}: {reason}")
    return "\n".join([*text, *([] if look else ["Nothing."]), ""])


def _rows(course: Course, slug: str) -> list[Row]:
    from nbgrader.api import Gradebook

    rows = []
    with Gradebook(f"sqlite:///{course.home / 'gradebook.db'}", "papers-that-run") as book:
        for found in book.assignment_submissions(slug):
            student = found.student.id
            graded = course.home / "autograded" / student / slug / f"{slug}.ipynb"
            if not graded.is_file():
                continue
            origin = _origin(course, student, slug)
            remarks = nbformat.read(graded, as_version=4).metadata.get("remarks", [])
            fault = [f"it could not be read: {origin['fault']}"] if origin.get("fault") else []
            rows.append(
                Row(
                    student,
                    origin.get("name", student),
                    slug,
                    found.score,
                    found.max_score,
                    found.total_seconds_late,
                    found.needs_manual_grade,
                    (*fault, *map(str, remarks)),
                )
            )
    return sorted(rows, key=lambda row: (row.name, row.student))


def _origin(course: Course, student: str, slug: str) -> dict:
    path = course.submitted(student, slug).with_name("origin.json")
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _csv(head: list[str], lines: list[list[str]]) -> str:
    """A table; a cell that a spreadsheet would compute is made text."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow([f"'{cell}" if cell[:1] in "=+-@\t" and cell else cell for cell in line])
    return stream.getvalue()
