"""The Sphinx extension that makes the site self-contained.

It supplies plotly.js and MathJax from installed wheels, removes Thebe (which loads from a CDN),
lets a page be read again when what its twin depends on has changed, fills the scoreboard, hands
out exercises without hidden tests, and warns of any request that would leave the site. Jupyter
Book is run with `-W`, so such a warning fails the build.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging

from toolkit.course.assets import lay, lay_mathjax, wheel
from toolkit.course.guide import table
from toolkit.course.release import edition, is_exercises
from toolkit.evidence.scoreboard import Chapter, render
from toolkit.press import reader

log = logging.getLogger(__name__)

STATIC = [Path(__file__).parents[1] / name / "static" for name in ("explore", "press")]
SPOKEN = ("a11y", "ui", "sre/mathmaps/en.json", "sre/mathmaps/base.json")
OUTSIDE = re.compile(
    r"<(?:script|img|iframe|source|embed|video|audio)\b[^>]*\bsrc\s*=\s*[\"'](?:https?:)?//[^\"']*"
    r"|<link\b(?=[^>]*\brel\s*=\s*[\"'](?:stylesheet|preload|preconnect|modulepreload|icon))"
    r"[^>]*\bhref\s*=\s*[\"'](?:https?:)?//[^\"']*",
    re.IGNORECASE,
)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect everything; called by Sphinx."""
    app.add_directive("scoreboard", ScoreboardDirective)
    app.add_directive("coursework", CourseworkDirective)
    app.add_node(Scoreboard, html=(_visit_scoreboard, _depart_scoreboard))
    app.add_config_value("toolkit_shared", "", "html")  # what every page shows: rewrites them all
    app.connect("config-inited", _configure)
    app.connect("env-get-outdated", _outdated)
    app.connect("env-updated", _keep_keys)
    app.connect("doctree-resolved", _resolve, priority=999)
    app.connect("html-page-context", _drop_thebe_assets, priority=900)
    app.connect("build-finished", _finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


class Scoreboard(nodes.General, nodes.Element):
    """Stands for the table until all pages are read."""


class ScoreboardDirective(Directive):
    """`{scoreboard}`: every claim of the book with its verdicts."""

    def run(self) -> list[nodes.Node]:
        """Leave a place for the table."""
        return [Scoreboard()]


class CourseworkDirective(Directive):
    """`{coursework} NAME`: a table of the teaching guide."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, read as the page's own Markdown."""
        try:
            text = table(self.arguments[0])
        except ValueError as error:
            raise self.error(str(error)) from error
        place = nodes.Element()
        self.state.nested_parse(StringList(text.splitlines(), ""), self.content_offset, place)
        return place.children


def _configure(app: Sphinx, config: Any) -> None:
    config.mathjax_path = "offline/mathjax/tex-chtml.js"
    config.nb_ipywidgets_js = {}
    config.html_theme_options["navbar_persistent"] = []  # one search field is enough
    config.toolkit_shared = _shared_digest()
    for folder in STATIC:
        path = str(folder)
        if path not in config.html_static_path:
            config.html_static_path.append(path)
        _add_assets(app, folder)


def _shared_digest() -> str:
    """Hash of styles, scripts and the table of contents, which is every page's menu."""
    files = [path for folder in STATIC for path in sorted(folder.rglob("*")) if path.is_file()]
    files.append(reader.ROOT / "_toc.yml")
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _add_assets(app: Sphinx, folder: Path) -> None:
    for path in sorted(folder.rglob("*.css")):
        app.add_css_file(path.relative_to(folder).as_posix())
    for path in sorted(folder.rglob("*.js")):
        app.add_js_file(path.relative_to(folder).as_posix(), loading_method="defer")


# --- which pages are read again -----------------------------------------------------------------


def _outdated(app: Sphinx, env: Any, added: set, changed: set, removed: set) -> list[str]:
    """Pages whose twin depends on something that changed, though their source did not."""
    kept = getattr(env, "toolkit_keys", {})
    now = _keys(app, env)
    return [name for name, key in now.items() if kept.get(name) != key] + _with_tables(env)


def _keep_keys(app: Sphinx, env: Any) -> list[str]:
    env.toolkit_keys = _keys(app, env)
    return _with_tables(env)


def _keys(app: Sphinx, env: Any) -> dict[str, str]:
    paths = {name: Path(env.doc2path(name)) for name in env.found_docs}
    return {
        name: reader.key(path.read_text("utf-8"))
        for name, path in paths.items()
        if path.suffix == ".ipynb"
    }


def _with_tables(env: Any) -> list[str]:
    """Pages whose tables are made of all chapters."""
    return [name for name in env.found_docs if Path(name).name in ("scoreboard", "teaching")]


# --- pages --------------------------------------------------------------------------------------


def _resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for node in list(doctree.findall(nodes.raw)):
        text = node.astext()
        if "x-thebe-config" in text or "kernelName" in text:
            node.parent.remove(node)
    for place in doctree.findall(Scoreboard):
        place["html"] = render(list(_chapters(app)))


def _chapters(app: Sphinx) -> Iterator[Chapter]:
    """Every chapter of the built site that shows verdicts, in reading order."""
    from toolkit import PARTS
    from toolkit.evidence import harvest, read_record

    for part, slugs in PARTS.items():
        for slug in slugs:
            docname, twin = f"book/{part}/{slug}", reader.twin_path(slug)
            if docname not in app.env.found_docs or not twin.is_file():
                continue
            title = app.env.titles[docname].astext()
            now = harvest(nbformat.read(twin, as_version=4))
            yield Chapter(slug, title, f"{part}/{slug}.html", now, read_record(slug))


def _visit_scoreboard(self: Any, node: Scoreboard) -> None:
    self.body.append(node["html"])


def _depart_scoreboard(self: Any, node: Scoreboard) -> None:
    pass


def _drop_thebe_assets(app: Sphinx, page: str, template: str, context: dict, doctree: Any) -> None:
    for kind in ("script_files", "css_files"):
        kept = [item for item in context.get(kind, ()) if not _is_thebe(item)]
        context[kind] = kept
    # Sphinx marks citations as a list without list items, which screen readers cannot count
    context["body"] = context.get("body", "").replace(
        'role="list" class="citation-list"', 'class="citation-list"'
    )
    _name_toggles(context)


def _name_toggles(context: dict) -> None:
    """Name the sidebar's buttons that unfold the pages of a chapter; the theme leaves them bare."""
    make = context.get("generate_toctree_html")
    if make is not None:
        context["generate_toctree_html"] = lambda *args, **kwargs: str(
            make(*args, **kwargs)
        ).replace("<summary><span", '<summary aria-label="Show or hide the pages below"><span')


def _is_thebe(asset: Any) -> bool:
    name = getattr(asset, "filename", None) or str(asset)
    body = getattr(asset, "attributes", {}).get("body") or ""
    return "thebe" in name.lower() or "thebe" in body.lower()


# --- after the build ----------------------------------------------------------------------------


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    _copy_offline_assets(site / "_static" / "offline")
    _hand_out_exercises(app, site)
    for page, request in external_requests(site):
        log.warning(
            "%s would load from outside: %s", page, request, type="toolkit", subtype="offline"
        )


def external_requests(site: Path) -> Iterator[tuple[str, str]]:
    """Yield (page, tag) for every script, style, image or frame that is not part of the site."""
    for page in sorted(site.rglob("*.html")):
        if "_static" in page.relative_to(site).parts:
            continue
        for found in OUTSIDE.finditer(page.read_text("utf-8")):
            yield page.relative_to(site).as_posix(), found.group(0)[:200]


def _copy_offline_assets(target: Path) -> None:
    """Put plotly.js and the needed part of MathJax beside the pages, from their packages."""
    lay(wheel("plotly") / "package_data" / "plotly.min.js", target / "plotly.min.js")
    lay_mathjax(target / "mathjax", SPOKEN)


def _hand_out_exercises(app: Sphinx, site: Path) -> None:
    """Sphinx copied the sources for the download button; exercises go out as students get them."""
    for docname in app.env.found_docs:
        path = Path(app.env.doc2path(docname))
        target = site / "_sources" / f"{docname}.ipynb"
        if path.suffix != ".ipynb" or not target.is_file():
            continue
        source = nbformat.read(path, as_version=4)
        if is_exercises(source):
            nbformat.write(edition(source, solutions=False), target)
