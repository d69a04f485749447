"""The student's site holds no solution and no hidden test; all else is there."""

import html

import nbformat
import pytest

from toolkit.course.release import exercises
from toolkit.press.build import STUDENT_SITE, build


def student_site():
    """Build it; every text file by its path."""
    build(edition="student")
    kinds = {".html", ".js", ".ipynb", ".txt"}
    files = [path for path in STUDENT_SITE.rglob("*") if path.suffix in kinds]
    return {path: path.read_text("utf-8") for path in files}


def secret_lines(notebook):
    """Long lines of code that stand only inside of solutions and hidden tests."""
    given, secret = set(), set()
    for cell in notebook.cells:
        inside = False
        for line in cell.source.splitlines():
            if "### BEGIN" in line or "### END" in line:
                inside = "BEGIN" in line
            else:
                (secret if inside else given).add(line.strip())
    return {line for line in secret - given if len(line) > 30}


@pytest.mark.slow
def test_it_shows_where_to_write_and_holds_no_solution_and_no_hidden_line():
    """One test, so that the site is built once, by one worker."""
    site = student_site()
    for slug in exercises():
        page = next(text for path, text in site.items() if path.name == f"{slug}_exercises.html")
        assert "YOUR CODE HERE" in page
    pages = "\n".join(site.values())
    assert len(site) > 50
    for slug, path in exercises().items():
        secret = secret_lines(nbformat.read(path, as_version=4))
        assert len(secret) > 20
        chapter = path.with_name(f"{slug}.ipynb").read_text("utf-8")  # shows toolkit code
        for line in secret:
            forms = {line, html.escape(line), html.escape(line, quote=False)}
            assert line in chapter or not any(form in pages for form in forms), f"{slug}: {line}"
