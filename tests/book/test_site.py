"""Every page of the built site in a real browser: quiet, offline, alive, readable by all."""

import json

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.book.browser import (
    PHONE,
    draw_all,
    drawn,
    font_colours,
    opened,
    served,
    settled,
)
from toolkit.explore.figures import template, theme
from toolkit.press.build import SITE, pages
from toolkit.press.reader import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow]
every_page = pytest.mark.parametrize("name", pages())


@pytest.fixture(scope="session")
def site():
    with served() as address:
        yield address


@every_page
def test_a_page_is_quiet_and_its_figures_follow_the_keyboard(browser, site, name):
    with opened(browser) as page:
        page.goto(f"{site}/{name}.html")
        assert page.locator("article h1").count() == 1
        _mathematics_is_set(page)
        heights = _heights(page)
        draw_all(page)
        assert _heights(page) == heights, "the page jumps when a figure is drawn"
        for number in range(len(heights)):
            _every_control_answers(page, number)
        for number in range(page.locator(".prediction").count()):
            _a_prediction_reveals(page, number)


@every_page
def test_a_page_passes_axe_and_follows_the_theme(browser, site, name):
    with opened(browser, color_scheme="light") as page:
        page.goto(f"{site}/{name}.html")
        draw_all(page)
        _passes_axe(page, "light")
        light = font_colours(page)
        _switch_to(page, "dark")
        assert set(light) <= {theme()["light"]["ink"]}
        assert set(font_colours(page)) <= {theme()["dark"]["ink"]}
        _passes_axe(page, "dark")


@every_page
def test_a_phone_never_scrolls_sideways(browser, site, name):
    with opened(browser, **PHONE) as page:
        page.goto(f"{site}/{name}.html")
        draw_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wide = page.evaluate(
            """() => [...document.querySelectorAll('.explorable, .explorable *, .prediction')]
              .filter((e) => !e.closest('svg') && e.getBoundingClientRect().right > 390.5)
              .map((e) => e.className)"""
        )
        assert not wide
        assert not _cut_titles(page)


@every_page
def test_without_javascript_the_still_pictures_and_answers_show(browser, site, name):
    with opened(browser, java_script_enabled=False) as page:
        page.goto(f"{site}/{name}.html")
        for figure in page.locator(".explorable").all():
            figure.scroll_into_view_if_needed()
            assert figure.locator("img").is_visible()
            assert figure.locator("img").bounding_box()["width"] > 200
            assert figure.locator("figcaption").inner_text().strip()
        for details in page.locator(".prediction details").all():
            details.locator("summary").click()
            assert details.locator("p").first.is_visible()


@every_page
def test_the_download_is_the_notebook_without_outputs(browser, site, name):
    source = ROOT / f"{name}.ipynb"
    if not source.is_file():
        assert (ROOT / f"{name}.md").is_file()
        return
    with opened(browser) as page:
        page.goto(f"{site}/{name}.html")
        link = page.locator('a[href*="_sources/"][href$=".ipynb"]').first
        address = page.evaluate("link => link.href", link.element_handle())
        text = page.request.get(address).text()
    given = nbformat.reads(text, as_version=4)
    nbformat.validate(given)
    code = [cell for cell in given.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    if not name.endswith("_exercises"):
        assert json.loads(text) == json.loads(source.read_text("utf-8"))


def test_search_works_offline(browser, site):
    with opened(browser) as page:
        page.goto(f"{site}/search.html?q=momentum")
        page.wait_for_selector("#search-results li a")
        assert "momentum" in page.inner_text("#search-results").lower()


def test_a_chapter_works_from_a_file(browser):
    name = _first_with_a_slider()
    with opened(browser) as page:
        page.goto((SITE / f"{name}.html").as_uri())
        draw_all(page)
        _every_control_answers(page, 0)
        assert page.locator(".live-bar").count() == 0


def test_paper_gets_the_still_picture(browser, site):
    with opened(browser) as page:
        page.goto(f"{site}/{_first_with_a_slider()}.html")
        draw_all(page)
        page.emulate_media(media="print")
        figure = page.locator(".explorable").first
        assert figure.locator(".explorable-poster").is_visible()
        assert not figure.locator(".explorable-plot").is_visible()
        assert not figure.locator(".explorable-controls").is_visible()


def test_python_and_the_page_make_the_same_template(browser, site):
    for mode in ("light", "dark"):
        with opened(browser, color_scheme=mode) as page:
            page.goto(f"{site}/{_first_with_a_slider()}.html")
            draw_all(page)
            seen = page.evaluate("document.querySelector('.explorable-plot').layout.template")
        seen["layout"].pop("scene")  # only the page draws in three dimensions with a theme
        assert seen == json.loads(json.dumps(template(mode)))


def test_a_figure_that_cannot_be_drawn_says_so(browser, site):
    with opened(browser) as page:
        page.route("**/plotly.min.js*", lambda route: route.abort())
        page.goto(f"{site}/{_first_with_a_slider()}.html")
        note = page.locator(".explorable-note").first
        note.wait_for()
        assert "stays still" in note.inner_text()
        assert page.locator(".explorable-poster").first.is_visible()
        page.problems.clear()  # the complaint was asked for


# ------------------------------------------------------------------------------------ helpers


def _mathematics_is_set(page):
    """MathJax has turned every formula, and understood it."""
    if page.locator("article .math").count() == 0:
        return
    page.wait_for_function("window.MathJax?.startup?.promise")
    page.evaluate("MathJax.startup.promise")
    for formula in page.locator("article .math").all():
        assert formula.locator("mjx-container").count() > 0, formula.inner_text()
    assert page.locator("mjx-merror").count() == 0


def _cut_titles(page):
    """Titles of figures and axes that reach beyond their figure."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.explorable-figure')].flatMap((figure) => {
          const frame = figure.getBoundingClientRect();
          return [...figure.querySelectorAll('.gtitle, .xtitle, .ytitle, .x2title, .y2title')]
            .filter((title) => {
              const { left, right, top, bottom } = title.getBoundingClientRect();
              return left < frame.left - 1 || right > frame.right + 1
                || top < frame.top - 1 || bottom > frame.bottom + 1;
            })
            .map((title) => title.textContent);
        })"""
    )


def _heights(page):
    return page.evaluate(
        "[...document.querySelectorAll('.explorable')].map((e) => e.getBoundingClientRect().height)"
    )


def _every_control_answers(page, number):
    """Each slider and choice has a name, moves by keyboard, and changes the figure."""
    figure = page.locator(".explorable").nth(number)
    for slider in figure.get_by_role("slider").all():
        assert page.evaluate("e => e.labels[0].textContent.trim()", slider.element_handle())
        before, text = drawn(page, number), slider.get_attribute("aria-valuetext")
        _press_until_changed(page, number, slider, "ArrowRight", "Home", "End")
        assert slider.get_attribute("aria-valuetext") != text
        assert drawn(page, number) != before
    for choice in figure.get_by_role("group").all():
        assert choice.locator("legend").inner_text().strip()
        _press_until_changed(page, number, choice.locator("input:checked"), "ArrowRight")


def _press_until_changed(page, number, control, *keys):
    before = drawn(page, number)
    control.focus()
    for key in keys:
        page.keyboard.press(key)
        settled(page, number)
        if drawn(page, number) != before:
            return
    raise AssertionError(f"figure {number} does not answer {keys}")


def _a_prediction_reveals(page, number):
    """Choose with the arrow keys, confirm with Enter, hear the verdict."""
    box = page.locator(".prediction").nth(number)
    assert not box.locator("details").is_visible()
    box.get_by_role("radio").first.focus()
    page.keyboard.press("Space")
    button = box.get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert box.get_by_role("status").inner_text() in ("Right.", "Not this time.")
    assert box.locator("details p").first.is_visible()


def _switch_to(page, mode):
    """Press the theme's own button until the page is in that mode."""
    button = page.locator("button.theme-switch-button").first
    for _ in range(3):
        if page.evaluate("document.documentElement.dataset.theme") == mode:
            break
        button.click()
    assert page.evaluate("document.documentElement.dataset.theme") == mode
    page.mouse.move(640, 450)  # off the button, so that its tooltip goes
    page.wait_for_function("!document.querySelector('.tooltip')")
    page.wait_for_timeout(300)  # colours fade over


def _passes_axe(page, mode):
    options = {"resultTypes": ["violations"], "preload": False}  # it would fetch styles again
    found = Axe().run(page, options=options).response["violations"]
    grave = [v for v in found if v["impact"] in ("serious", "critical")]
    lines = [
        f"{mode}: {v['id']} ({v['help']}): {node['target']} {node['html'][:120]}"
        for v in grave
        for node in v["nodes"][:5]
    ]
    assert not grave, "\n".join(lines)


def _first_with_a_slider():
    for name in pages():
        html = SITE / f"{name}.html"
        if html.is_file() and "&quot;slider&quot;" in html.read_text("utf-8"):
            return name
    raise AssertionError("no page of the site has an explorable with a slider")
