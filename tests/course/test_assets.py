"""Pages of nbconvert and nbgrader find MathJax beside them."""

import re

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell, new_notebook

from toolkit.course.assets import lay, lay_mathjax, wheel, with_mathjax


def page():
    notebook = new_notebook(cells=[new_markdown_cell("A formula: $x_1^2$.")])
    return HTMLExporter().from_notebook_node(nbformat.from_dict(notebook))[0]


def test_the_network_is_not_asked_for_mathjax():
    before, after = page(), with_mathjax(page(), "../mathjax")
    assert "/mathjax/2" in before
    assert not re.search(r"https?://[^\"' ]*mathjax", after, re.IGNORECASE)
    assert 'src="../mathjax/tex-chtml.js"' in after
    assert "MathJax.Hub" not in after
    assert "$x_1^2$" in after


def test_mathjax_is_laid_once(tmp_path):
    lay_mathjax(tmp_path)
    script = tmp_path / "tex-chtml.js"
    laid = script.stat().st_mtime_ns
    lay_mathjax(tmp_path, ("sre/mathmaps/en.json",))
    assert script.stat().st_mtime_ns == laid
    assert (tmp_path / "sre/mathmaps/en.json").is_file()
    assert any((tmp_path / "output/chtml/fonts").rglob("*.woff"))


def test_a_changed_file_is_laid_again(tmp_path):
    source, target = tmp_path / "a", tmp_path / "folder" / "b"
    source.write_text("one")
    lay(source, target)
    source.write_text("longer")
    lay(source, target)
    assert target.read_text() == "longer"


def test_a_missing_package_is_named():
    with pytest.raises(FileNotFoundError, match="no-such-package"):
        wheel("no_such_package")
