"""JupyterLab and the live pages, driven as a reader would."""

import json
import shutil

import pytest

from tests.book.browser import (
    TOKEN,
    draw_all,
    drawn,
    lab_server,
    opened,
    sessions,
    settled,
)
from toolkit.press.build import pages
from toolkit.press.reader import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MINUTE = 60_000


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The book's sources and site in another place, since JupyterLab saves what it opens."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "book", root / "book")
    (root / "_build").symlink_to(ROOT / "_build")
    return root


@pytest.fixture(scope="module")
def lab(checkout, tmp_path_factory):
    with lab_server(checkout, tmp_path_factory.mktemp("jupyter")) as address:
        yield address


def chapters():
    """Pages of the site with a slider, in reading order; the first is the book's intro."""
    found = []
    for name in pages():
        html = ROOT / "_build" / "html" / f"{name}.html"
        if html.is_file() and "&quot;slider&quot;" in html.read_text("utf-8"):
            found.append(name)
    assert found, "no page of the site has an explorable with a slider"
    return found


def quickest_chapter():
    """Of the papers' chapters the one that executed in the least time."""

    def seconds(name):
        twin = ROOT / "build" / "executed" / f"{name.rpartition('/')[2]}.ipynb"
        return json.loads(twin.read_text("utf-8"))["metadata"]["toolkit"]["seconds"]

    return min((name for name in chapters() if name.count("/") == 2), key=seconds)


def test_a_slider_in_jupyterlab_computes_a_new_figure(browser, lab):
    with opened(browser, own=False) as page:
        page.goto(f"{lab}/lab/tree/{quickest_chapter()}.ipynb?token={TOKEN}")
        run_all_cells(page)
        handle = page.locator(".widget-slider .noUi-handle").first
        handle.wait_for(timeout=2 * MINUTE)
        output = page.locator(".jupyter-widgets.widget-output .js-plotly-plot").first
        output.wait_for(timeout=MINUTE)
        before = _plot(output)
        handle.focus()
        page.keyboard.press("End")
        page.wait_for_function(
            "([before, read]) => eval(read)(document.querySelector("
            "'.jupyter-widgets.widget-output .js-plotly-plot')) !== before",
            arg=[before, READ],
            timeout=2 * MINUTE,  # the kernel first runs what is left of the chapter
        )
        reading = page.locator(".widget-slider .widget-readout").first.inner_text()
        assert reading.strip()


def test_the_live_page_computes_what_the_site_never_stored(browser, lab):
    name = _first_continuous() or chapters()[0]
    with opened(browser) as page:
        page.goto(f"{lab}/book/{name}.html?token={TOKEN}")
        draw_all(page)
        page.get_by_role("button", name="Compute live").click()
        await_status(page, "Live")
        assert len(sessions(lab)) >= 1
        for number in range(page.locator(".explorable").count()):
            figure = page.locator(".explorable").nth(number)
            for slider in figure.get_by_role("slider").all():
                before = drawn(page, number)
                slider.focus()
                for key in ("ArrowRight", "Home", "End"):
                    page.keyboard.press(key)
                    settled(page, number)
                    if drawn(page, number) != before:
                        break
                else:
                    raise AssertionError(f"figure {number} does not answer")
        _shows_a_state_between(page)
        before = _live_sessions(lab)
        assert len(before) == 1
        page.goto("about:blank")
        _await_no_live_session(lab, page)


def test_stopping_returns_to_the_stored_states(browser, lab):
    with opened(browser) as page:
        page.goto(f"{lab}/book/{chapters()[0]}.html?token={TOKEN}")
        draw_all(page)
        stored = drawn(page, 0)
        page.get_by_role("button", name="Compute live").click()
        await_status(page, "Live")
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Compute live").wait_for()
        settled(page, 0)
        _await_no_live_session(lab, page)
        assert json.loads(drawn(page, 0))[0] == json.loads(stored)[0]


def test_a_failing_cell_is_named_and_the_page_stays_static(browser, lab, checkout):
    name = chapters()[0]
    path = checkout / f"{name}.ipynb"
    text = path.read_text("utf-8")
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code[0]["source"] = ["raise ValueError('broken on purpose')"]
    path.write_text(json.dumps(notebook))
    try:
        with opened(browser) as page:
            page.goto(f"{lab}/book/{name}.html?token={TOKEN}")
            draw_all(page)
            page.get_by_role("button", name="Compute live").click()
            await_status(page, "Cell 1 failed: ValueError: broken on purpose")
            slider = page.get_by_role("slider").first
            slider.focus()
            before = slider.get_attribute("aria-valuetext")
            page.keyboard.press("End")
            settled(page, 0)
            assert slider.get_attribute("aria-valuetext") != before
            _await_no_live_session(lab, page)
    finally:
        path.write_text(text)


def test_a_page_opens_in_jupyterlab(browser, lab):
    name = chapters()[0]
    with opened(browser, own=False) as page:
        page.goto(f"{lab}/book/{name}.html?token={TOKEN}")
        page.get_by_role("link", name="Open in JupyterLab").click()
        page.locator(".jp-Notebook").first.wait_for(timeout=MINUTE)
        assert f"/lab/tree/{name}.ipynb" in page.url


def test_exercises_open_as_the_readers_own_copy_without_solutions(browser, lab, checkout):
    names = [name for name in pages() if name.endswith("_exercises")]
    assert names, "the table of contents lists no exercises"
    copy = checkout / "answers" / f"{names[0].rpartition('/')[2]}.ipynb"
    with opened(browser, own=False) as page:
        page.goto(f"{lab}/book/{names[0]}.html?token={TOKEN}")
        assert page.get_by_role("button", name="Compute live").count() == 0
        page.get_by_role("link", name="Open in JupyterLab").click()
        page.locator(".jp-Notebook").first.wait_for(timeout=MINUTE)
    text = copy.read_text("utf-8")
    assert "HIDDEN TESTS" not in text
    assert "BEGIN SOLUTION" not in text
    copy.write_text(text.replace("YOUR CODE HERE", "my code"))
    with opened(browser, own=False) as page:
        page.goto(f"{lab}/book/{names[0]}.html")
        page.goto(f"{lab}/book/{names[0]}.html?token={TOKEN}")
        page.get_by_role("link", name="Open in JupyterLab").click()
        page.locator(".jp-Notebook").first.wait_for(timeout=MINUTE)
    assert "my code" in copy.read_text("utf-8"), "the reader's work was overwritten"


# ------------------------------------------------------------------------------------ helpers

READ = "(plot) => JSON.stringify([plot.data, plot.layout.title, plot.layout.annotations])"


def run_all_cells(page):
    page.locator(".jp-Notebook").first.wait_for(timeout=MINUTE)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=MINUTE)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def _plot(locator):
    return locator.evaluate(READ)


def await_status(page, text):
    page.wait_for_function(
        "text => document.querySelector('.live-bar [role=status]').textContent.startsWith(text)",
        arg=text,
        timeout=2 * MINUTE,
    )


def _live_sessions(lab):
    return [session for session in sessions(lab) if "live-" in session["path"]]


def _await_no_live_session(lab, page):
    for _ in range(50):
        if not _live_sessions(lab):
            return
        page.wait_for_timeout(200)
    raise AssertionError(f"left running: {_live_sessions(lab)}")


def _first_continuous():
    for name in chapters():
        html = (ROOT / "_build" / "html" / f"{name}.html").read_text("utf-8")
        if "&quot;continuous&quot;: true" in html:
            return name
    return None


def _shows_a_state_between(page):
    """A continuous slider stops between two stored values, and the kernel says which value."""
    slider = page.locator(".explorable input[type=range][step='0.25']").first
    if slider.count() == 0:
        return
    slider.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    number = slider.evaluate(
        "e => [...document.querySelectorAll('.explorable')].indexOf(e.closest('.explorable'))"
    )
    settled(page, number)
    assert slider.evaluate("e => Number(e.value)") == 0.25
    stored = slider.evaluate(
        "e => e.closest('.explorable').explorable.spec.controls"
        ".find((c) => c.name === e.name).texts"
    )
    assert slider.get_attribute("aria-valuetext") not in stored
