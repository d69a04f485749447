"""A question to answer before reading on."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """Ask the reader to predict first, then reveal. Make it the last line of a cell.

    Works without a kernel, and without JavaScript: there the answer unfolds.

    Args:
        question: one sentence; `$…$` is set as mathematics and backticks as code, here and below.
        options: two to six possible answers.
        answer: the right one: its text or its place, counted from 0.
        because: why, in one to three sentences.

    Raises:
        ValueError: fewer than two options, repeated options, or an answer that is none of them.
    """

    question: str
    options: Sequence[str]
    answer: str | int
    because: str

    def __post_init__(self) -> None:
        options = tuple(str(option) for option in self.options)
        object.__setattr__(self, "options", options)
        if not 2 <= len(set(options)) == len(options) <= 6:
            raise ValueError(f"two to six different options, got {options}")
        if not self.question.strip() or not self.because.strip():
            raise ValueError("a prediction needs a question and a reason (`because`)")
        if self.answer in options:
            object.__setattr__(self, "answer", options.index(str(self.answer)))
        elif not (isinstance(self.answer, int) and 0 <= self.answer < len(options)):
            raise ValueError(f"answer {self.answer!r} is none of {options}")

    def __repr__(self) -> str:
        return f"Predict: {self.question} ({' / '.join(self.options)})"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self._html(), "text/plain": repr(self)}

    def _html(self) -> str:
        name = "predict-" + hashlib.sha256(repr(self).encode()).hexdigest()[:10]
        radios = "".join(
            f'<div><label><input type="radio" name="{name}" value="{i}"> '
            f"<span>{_text(option)}</span></label></div>"
            for i, option in enumerate(self.options)
        )
        return (
            f'<div class="prediction tex2jax_process mathjax_process" data-answer="{self.answer}">'
            f"<fieldset><legend><strong>Predict first.</strong> {_text(self.question)}</legend>"
            f"{radios}</fieldset>"
            "<details><summary>Show the answer</summary>"
            f"<p><strong>{_text(self.options[int(self.answer)])}</strong></p>"
            f"<p>{_text(self.because)}</p></details></div>"
        )


def _text(text: str) -> str:
    """Escaped text with `$…$` in MathJax's brackets and backticks as code."""
    text = html.escape(text, quote=False)
    text = re.sub(r"\$([^$]+)\$", r"\\(\1\\)", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
