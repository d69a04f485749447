"""Scripts and fonts that pages need beside them, from the installed packages that carry them."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

MATHJAX = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")
LOADED = re.compile(
    r'<script src="https://[^"]*mathjax[^"]*">\s*</script>.*?<!-- End of mathjax configuration -->',
    re.DOTALL | re.IGNORECASE,
)
"""nbconvert's own way to MathJax, which asks the network."""


def wheel(package: str) -> Path:
    """Where an installed package lies.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"this needs the package {package.replace('_', '-')}; run: make install-dev"
        )
    return Path(spec.origin).parent


def lay(source: Path, target: Path) -> None:
    """Copy a file or a folder, unless a file of that size lies there."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif not target.exists() or target.stat().st_size != source.stat().st_size:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def lay_mathjax(target: Path, more: tuple[str, ...] = ()) -> None:
    """Put the part of MathJax that reads TeX into a folder, and `more` of its files."""
    origin = wheel("sphinx-mathjax-offline") / "static" / "mathjax"
    for name in (*MATHJAX, *more):
        lay(origin / name, target / name)


def with_mathjax(page: str, place: str) -> str:
    """Nbconvert's page, with MathJax from a folder beside it.

    Args:
        page: HTML.
        place: the folder of `lay_mathjax`, as seen from the page. A page that has lost it
            shows its formulas as TeX.
    """
    script = (
        r"<script>MathJax = {tex: {inlineMath: [['$', '$'], ['\\(', '\\)']], "
        "processEscapes: true}};</script>\n"
        f'<script defer src="{place}/tex-chtml.js"></script>'
    )
    return LOADED.sub(lambda _: script, page)
