"""What the built site holds of the exercises: solutions folded, hidden tests nowhere."""

import functools

import nbformat
import pytest

from toolkit.course.release import edition, hidden_lines
from toolkit.press.build import SITE
from toolkit.press.reader import ROOT, sources
from toolkit.press.sphinx_ext import external_requests

EXERCISES = [path for path in sources() if path.stem.endswith("_exercises")]


@pytest.fixture(scope="module")
def site_text():
    kinds = (".html", ".ipynb", ".js", ".json", ".txt", ".inv")
    files = [
        path for path in SITE.rglob("*") if path.suffix in kinds and "offline" not in path.parts
    ]
    assert files, "the site is not built; run: toolkit build"
    return {path: path.read_text("utf-8", errors="ignore") for path in files}


@functools.cache
def in_the_open():
    """What the sources of the book show: all but hidden tests."""
    return "\n".join(
        cell.source
        for path in sources()
        for cell in edition(nbformat.read(path, as_version=4), solutions=True).cells
    )


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_no_hidden_test_is_in_the_site(path, site_text):
    lines = hidden_lines(nbformat.read(path, as_version=4))
    assert lines
    # A line such as `)` says nothing; lines that stand in the open elsewhere are no secret.
    secrets = [line for line in lines if len(line) > 12 and line not in in_the_open()]
    assert secrets
    for file, text in site_text.items():
        plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
        found = [line for line in secrets if line in plain or line.replace('"', '\\"') in plain]
        assert not found, f"{file} shows {found[:2]}"


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_the_download_is_the_students_notebook(path):
    given = nbformat.read(SITE / "_sources" / "book" / path.parent.name / path.name, as_version=4)
    text = "\n".join(cell.source for cell in given.cells)
    assert "raise NotImplementedError()" in text
    assert "BEGIN SOLUTION" not in text
    assert "BEGIN HIDDEN TESTS" not in text


def test_downloads_of_chapters_are_their_sources():
    for path in sources():
        if path not in EXERCISES:
            assert (SITE / "_sources" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_nothing_in_the_site_loads_from_outside():
    assert list(external_requests(SITE)) == []
