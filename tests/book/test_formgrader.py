"""nbgrader's formgrader in JupyterLab, on the folders that `toolkit course` makes."""

import os
import re
import subprocess
import sys

import nbformat
import psutil
import pytest

from tests.book.browser import TOKEN, await_server, end_tree, free_port, opened
from toolkit.course.collect import collect
from toolkit.course.folders import Course
from toolkit.course.grade import grade
from toolkit.course.release import exercises, release

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SLUG, STUDENT = "coke", "ada"
HALF_A_MINUTE = 30_000
WIDE = {"width": 1800, "height": 1000}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course with one graded submission: the solution of a chapter."""
    course = Course(tmp_path_factory.mktemp("course"))
    release([SLUG], course)
    folder = tmp_path_factory.mktemp("in")
    nbformat.write(nbformat.read(exercises()[SLUG], as_version=4), folder / f"{STUDENT}.ipynb")
    collect(folder, SLUG, course)
    points = grade([SLUG], course)[SLUG][STUDENT]
    return course, points


@pytest.fixture(scope="module")
def lab(course, tmp_path_factory):
    """JupyterLab in the course's folder, as the teaching guide says to start it."""
    folder, port = tmp_path_factory.mktemp("jupyter"), free_port()
    places = {f"JUPYTER_{k}_DIR": str(folder / k.lower()) for k in ("CONFIG", "RUNTIME", "DATA")}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(folder), "JUPYTERLAB_WORKSPACES_DIR": str(folder)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--ServerApp.allow_root=True"]
    command += ["--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(folder / "server.log", "w") as log:
        server = psutil.Popen(
            command,
            cwd=course[0].home,
            env=os.environ | places | {"JUPYTER_TOKEN": TOKEN},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            await_server(server, port, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            end_tree(server)


def test_formgrader_shows_the_course(browser, lab, course, tmp_path):
    _, points = course
    with opened(browser, own=False, viewport=WIDE) as page:
        page.goto(f"{lab}/lab?token={TOKEN}")
        page.locator("#jp-MainLogo").wait_for(timeout=2 * HALF_A_MINUTE)
        page.get_by_role("menuitem", name="Nbgrader", exact=True).click()
        page.get_by_role("menuitem", name="Formgrader", exact=True).click()
        form = page.frame_locator("iframe[src*='formgrader']")
        row = form.get_by_role("row").filter(has_text=SLUG)
        row.wait_for(timeout=HALF_A_MINUTE)
        assert "released" in row.inner_text() or "draft" in row.inner_text()
        page.screenshot(path=os.environ.get("SCREENSHOT", tmp_path / "formgrader.png"))
        form.get_by_role("link", name="Manual Grading").click()
        for _ in ("assignment", "notebook"):
            form.get_by_role("link", name=SLUG, exact=True).click(timeout=HALF_A_MINUTE)
        marks = form.get_by_role("row").filter(has_text="Submission #1")
        marks.wait_for(timeout=HALF_A_MINUTE)
        assert f"{points:g}" in re.split(r"\s+|/", marks.inner_text()), marks.inner_text()
        page.screenshot(path=os.environ.get("SCREENSHOT2", tmp_path / "gradebook.png"))
