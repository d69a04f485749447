"""The chapters that stand, as teaching needs them: title, part, question, reading and run time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from toolkit.course.folders import ROOT

WORDS_A_MINUTE = 120
"""Of careful reading: text with formulas goes at half the pace of a novel."""
SECONDS_A_LINE = 3
"""Of code that a page shows."""


@dataclass(frozen=True)
class Chapter:
    """A chapter's notebook in its part."""

    slug: str
    part: str
    """As the table of contents writes it, such as `Optimisation`."""
    path: Path

    @property
    def notebook(self) -> NotebookNode:
        """The source."""
        return nbformat.read(self.path, as_version=4)

    @property
    def title(self) -> str:
        """The first heading, as plain text."""
        return str(self.notebook.cells[0].source.splitlines()[0].removeprefix("# ").strip())

    @property
    def reading_minutes(self) -> int:
        """Words at `WORDS_A_MINUTE` and visible lines of code, to the next five minutes."""
        words = lines = 0
        for cell in self.notebook.cells:
            if cell.cell_type == "markdown":
                words += len(re.findall(r"\w+", cell.source))
            elif not {"hide-input", "parameters"} & set(cell.metadata.get("tags", [])):
                lines += len(cell.source.splitlines())
        minutes = words / WORDS_A_MINUTE + lines * SECONDS_A_LINE / 60
        return 5 * max(1, -(-int(minutes) // 5))


@cache
def chapters() -> tuple[Chapter, ...]:
    """Every chapter of the table of contents that has exercises, in reading order."""
    return tuple(_chapters())


def _chapters() -> Iterator[Chapter]:
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    for part in contents["parts"]:
        for entry in part["chapters"]:
            path = ROOT / f"{entry['file']}.ipynb"
            if path.with_name(f"{path.stem}_exercises.ipynb").is_file():
                yield Chapter(path.stem, part["caption"], path)
