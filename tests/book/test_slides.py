"""Every deck in a browser: it needs no network, and nothing falls off a slide at 16:9."""

import pytest

from tests.book.browser import opened
from toolkit.course.slides import slides

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WIDE = {"width": 1280, "height": 720}
LOWEST = """() => {
  const shown = [...Reveal.getCurrentSlide().querySelectorAll("*")]
    .map((part) => part.getBoundingClientRect()).filter((box) => box.height);
  return [Math.max(...shown.map((b) => b.bottom)), Math.max(...shown.map((b) => b.right))];
}"""


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    return slides(tmp_path_factory.mktemp("slides"))


def test_no_slide_overflows_and_no_deck_reaches_out(browser, decks):
    for deck in decks:
        with opened(browser, viewport=WIDE) as page:
            page.goto(deck.as_uri())
            page.wait_for_function("window.Reveal && Reveal.isReady()")
            page.wait_for_function("window.MathJax && MathJax.startup.promise")
            page.evaluate("MathJax.startup.promise.then(() => true)")
            total = page.evaluate("Reveal.getTotalSlides()")
            assert total >= 10
            for number in range(total):
                page.evaluate("n => Reveal.slide(n)", number)
                low, right = page.evaluate(LOWEST)
                assert low <= 710, f"{deck.stem}, slide {number + 1} is too long"
                assert right <= 1280, f"{deck.stem}, slide {number + 1} is too wide"
            images = page.locator("img.figure")
            assert all(images.nth(i).get_attribute("alt") for i in range(images.count()))
