"""Source in a chapter, and questions to answer first."""

import functools

import pytest

from toolkit.explore import Prediction, Values, show
from toolkit.explore.packing import pack


def undecorated(x: int) -> int:
    """Double, with a fence: ```python```."""
    return 2 * x


@functools.wraps(undecorated)
def wrapped(*arguments):
    return undecorated(*arguments)


def test_a_function_shows_its_source_file_and_line():
    data = show(pack)._repr_mimebundle_()
    assert set(data) == {"text/markdown", "text/plain"}
    first = data["text/plain"].splitlines()[0]
    assert first.startswith("# toolkit/explore/packing.py, line ")
    line = int(first.rpartition(" ")[2])
    with open(pack.__code__.co_filename, encoding="utf-8") as file:
        assert file.readlines()[line - 1].startswith("def pack(")
    assert "The same figures always give the same text." in data["text/markdown"]


def test_methods_are_dedented_and_properties_and_classes_are_shown():
    assert show(Values.at).code.startswith("def at(self")
    assert show(Values.texts).code.startswith("@property\ndef texts")
    assert show(Values).code.startswith("@dataclass")


def test_a_decorated_function_shows_what_was_written():
    assert show(wrapped).code.startswith("def undecorated")


def test_a_fence_in_the_source_does_not_end_the_block():
    text = show(undecorated)._repr_mimebundle_()["text/markdown"]
    assert text.count("````") == 2


@pytest.mark.parametrize("thing", [3, "text", len, None])
def test_what_has_no_source_is_refused(thing):
    with pytest.raises(TypeError, match="function or class"):
        show(thing)


def question(answer=1):
    return Prediction("Is $a<b$ & `c`?", ["no", "yes"], answer, "Since $b > a$.")


def test_a_prediction_works_without_scripts():
    page = question()._repr_mimebundle_()["text/html"]
    assert "<script" not in page
    assert "<details><summary>Show the answer</summary><p><strong>yes</strong>" in page
    assert r"\(a&lt;b\) &amp; <code>c</code>?" in page
    assert page.count('type="radio"') == 2
    assert question("yes")._repr_mimebundle_() == question()._repr_mimebundle_()


@pytest.mark.parametrize(
    ("options", "answer"),
    [(["a"], 0), (["a", "a"], 0), (["a", "b"], 2), (["a", "b"], "c"), (["a", "b"], -1)],
)
def test_bad_predictions_are_refused(options, answer):
    with pytest.raises(ValueError, match=r"options|answer"):
        Prediction("Q?", options, answer, "Because.")
