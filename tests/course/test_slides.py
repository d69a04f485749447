"""Decks: what a slide holds, and that a page asks the network for nothing."""

import re

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from toolkit.course import slides
from toolkit.course.chapters import chapters
from toolkit.evidence import read_record

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNg"
    "YGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
)


@pytest.fixture
def twin():
    """An executed chapter in small."""
    figure = new_code_cell("draw()", id="draw")
    told = "Explorable: Risk against passes. It falls. [Passes: 1 … 8]"
    figure.outputs = [new_output("display_data", {"image/png": PIXEL, "text/plain": told})]
    made = new_code_cell("Markdown(…)", id="points")
    made.outputs = [new_output("display_data", {"text/markdown": "1. First.\n2. Second."})]
    cells = [
        new_markdown_cell("## Play <first>\n\nText.", id="play"),
        figure,
        new_markdown_cell("## Take-away\n\n**Further reading.** More.", id="takeaway"),
        made,
    ]
    return new_notebook(cells=cells)


def test_a_figure_stands_under_its_heading_with_its_words(twin):
    (text,) = slides._figures(twin)
    assert text.startswith("## Play <first>")
    assert 'alt="Risk against passes. It falls."' in text
    assert "[Passes" not in text


def test_a_long_caption_ends_with_a_sentence():
    text = slides._figure("h", PIXEL, "Figure: " + "A sentence of words. " * 40)
    caption = re.search(r'class="caption">(.*?)</p>', text)[1]
    assert caption.endswith("words.")
    assert len(caption) <= slides.CAPTION


def test_the_take_away_may_be_made_by_the_run(twin):
    assert slides._take_away(twin) == "## Take-away\n\n1. First.\n2. Second."


def test_citations_become_author_and_year():
    assert slides.cited("{cite:t}`xu2021multipass` says") == "Xu et al. (2021) says"


@pytest.mark.parametrize("chapter", chapters(), ids=lambda chapter: chapter.slug)
def test_openings_and_verdicts_of_every_chapter(chapter):
    cells = {cell.id: cell for cell in chapter.notebook.cells}
    title, answer = slides._opening(cells["title"].source)
    assert chapter.title in title
    assert "The question" in title
    assert "The answer" in answer
    assert "{cite" not in title + answer
    assert "takeaway" in cells
    told = list(slides._verdicts(chapter))
    rows = sum(text.count('<td class="claim">') for text in told)
    records = read_record(chapter.slug)
    assert rows == len(records["full" if "full" in records else "quick"].verdicts)
    assert all(text.count('<td class="claim">') <= slides.VERDICTS for text in told)


def test_a_deck_asks_the_network_for_nothing(tmp_path):
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# A\n\n$x^2$", metadata={"slideshow": {"slide_type": "slide"}}),
            new_markdown_cell("# B", metadata={"slideshow": {"slide_type": "slide"}}),
        ]
    )
    page = slides.exported(notebook)
    assert page.count("<section>") >= 2
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"]+)"', page)
    assert loaded
    assert all(place.startswith("assets/") for place in loaded), loaded
    slides._assets(tmp_path / "assets")
    assert all((tmp_path / place).is_file() for place in loaded)
    assert "require(" not in page
