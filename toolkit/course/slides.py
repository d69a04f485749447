"""One reveal.js deck a part, from the executed chapters: question, figures, verdicts, take-away.

The decks lie beside one folder of assets (reveal.js, MathJax) and need no network.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from toolkit.course.assets import lay, lay_mathjax, wheel
from toolkit.course.chapters import Chapter, chapters
from toolkit.course.folders import ROOT, write
from toolkit.evidence import Verdict, read_record

HERE = Path(__file__).parent
VERDICTS = 6
"""Claims on one slide."""
CAPTION = 260
"""Characters of a caption."""
PLAIN = {"holds": "holds", "fails": "fails", "undecided": "undecided", "void": "not judged here"}


def slides(place: Path) -> list[Path]:
    """Write `PART.html` for every part of the book, and the assets that they share.

    Returns:
        The decks.

    Raises:
        FileNotFoundError: if a chapter has not been executed, or a package is missing.
    """
    parts = list(dict.fromkeys(chapter.part for chapter in chapters()))
    _assets(place / "assets")
    decks = {part: deck(part) for part in parts}
    made = []
    for part, notebook in decks.items():
        made.append(place / f"{part.lower().replace(' ', '-')}.html")
        write(made[-1], exported(notebook))
    return made


def deck(part: str) -> NotebookNode:
    """A part's slides as a notebook of Markdown cells, one a slide.

    Raises:
        FileNotFoundError: if a chapter of the part has not been executed.
    """
    own = [chapter for chapter in chapters() if chapter.part == part]
    titles = "\n".join(f"- {chapter.title}" for chapter in own)
    texts = [f"# {part}\n\n{titles}"]
    for chapter in own:
        texts += _chapter(chapter)
    cells = [
        new_markdown_cell(text, id=f"slide-{i}", metadata={"slideshow": {"slide_type": "slide"}})
        for i, text in enumerate(texts)
    ]
    return new_notebook(cells=cells, metadata={"title": f"{part} · Papers That Run"})


def exported(notebook: NotebookNode) -> str:
    """The deck's page, by nbconvert's exporter of slides with a template that needs no network."""
    from nbconvert import SlidesExporter

    exporter = SlidesExporter(
        template_name="deck",
        extra_template_basedirs=[str(HERE / "templates")],
        reveal_url_prefix="assets/reveal",
        reveal_theme="deck",
    )
    return str(exporter.from_notebook_node(notebook)[0])


def _chapter(chapter: Chapter) -> Iterator[str]:
    path = ROOT / "build" / "executed" / f"{chapter.slug}.ipynb"
    if not path.is_file():
        raise FileNotFoundError(f"{chapter.slug} has not been executed; run: toolkit build")
    twin = nbformat.read(path, as_version=4)
    cells = {cell.id: cell for cell in twin.cells}
    yield from _opening(cells["title"].source)
    yield from _figures(twin)
    yield from _verdicts(chapter)
    yield _take_away(twin)


def _opening(source: str) -> Iterator[str]:
    """The chapter's title and question, then its answer."""
    title, origin, question, answer = re.split(r"\n\n+", source.strip())[:4]
    origin = cited(origin).removeprefix("*A chapter on ").removesuffix(".*")
    yield f'{title}\n\n<p class="of">{origin}</p>\n\n{cited(question)}'
    yield f"## {title.removeprefix('# ')}\n\n{cited(answer)}"


def _figures(twin: NotebookNode) -> Iterator[str]:
    """Every figure as the page shows it without a kernel, under the heading that it stands in."""
    heading = ""
    for cell in twin.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"(?m)^#{2,4} (.+)$", cell.source)
            heading = found[-1] if found else heading
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                yield _figure(heading, data["image/png"], data["text/plain"])


def _figure(heading: str, image: str, told: str) -> str:
    told = re.sub(r"^\w+: ", "", told).partition(" [")[0].strip()
    alt = html.escape(told)
    shown = told if len(told) <= CAPTION else told[:CAPTION].rpartition(". ")[0] + "."
    if shown == ".":
        shown = told[:CAPTION].rpartition(" ")[0] + " …"
    return (
        f'## {heading}\n\n<img class="figure" alt="{alt}" src="data:image/png;base64,'
        f'{image.strip()}">\n<p class="caption">{html.escape(shown)}</p>'
    )


def _verdicts(chapter: Chapter) -> Iterator[str]:
    """The recorded verdicts, of the largest run there is."""
    records = read_record(chapter.slug)
    profile = "full" if "full" in records else "quick"
    found = records[profile].verdicts if records else []
    count = -(-len(found) // VERDICTS)
    for number in range(count):
        own = found[number * len(found) // count : (number + 1) * len(found) // count]
        of = f" ({number + 1} of {count})" if count > 1 else ""
        yield (
            f"## What the run says{of}\n\n"
            '<table class="verdicts"><tr><th class="claim">Claim</th>'
            f'<th class="outcome">Verdict</th><th>Estimate ({profile} run)</th></tr>'
            f"{''.join(map(_row, own))}</table>"
        )


def _row(verdict: Verdict) -> str:
    outcome = "void" if verdict.void else verdict.outcome
    estimate = f"{verdict.estimate}; rule {verdict.rule}"
    return (
        f'<tr><td class="claim">{html.escape(verdict.statement)}</td>'
        f'<td class="outcome {outcome}">{PLAIN[outcome]}</td>'
        f"<td>{html.escape(estimate)}</td></tr>"
    )


def _take_away(twin: NotebookNode) -> str:
    """The numbered sentences of the last section, whether written or made by the run."""
    names = [cell.id for cell in twin.cells]
    texts = []
    for cell in twin.cells[names.index("takeaway") :]:
        texts.append(cell.source if cell.cell_type == "markdown" else "")
        texts += [out.get("data", {}).get("text/markdown", "") for out in cell.get("outputs", ())]
    points = re.findall(r"(?m)^\d\. .+$", "\n\n".join(map("".join, texts)))
    return "## Take-away\n\n" + "\n".join(cited(point) for point in points)


def cited(text: str) -> str:
    """MyST's `{cite:t}` roles as author and year."""
    return re.sub(r"\{cite:[a-z]+\}`([^`]+)`", lambda role: _author_year(role[1]), text)


def _author_year(key: str) -> str:
    from pybtex.database import parse_file

    entry = parse_file(ROOT / "book" / "references.bib").entries[key]
    names = [" ".join(person.last_names) for person in entry.persons["author"]]
    author = names[0] if len(names) == 1 else f"{names[0]} and {names[1]}"
    return f"{author if len(names) < 3 else f'{names[0]} et al.'} ({entry.fields['year']})"


def _assets(target: Path) -> None:
    """Our theme, and reveal.js and MathJax of the packages that carry them."""
    reveal = wheel("sphinx_revealjs") / "_static" / "revealjs"
    lay(HERE / "static" / "deck.css", target / "reveal/dist/theme/deck.css")
    for name in ("LICENSE", "dist/reveal.css", "dist/reveal.js"):
        lay(reveal / name, target / "reveal" / name)
    lay_mathjax(target / "mathjax")
