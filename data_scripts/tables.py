"""Small CSV tables that lie beside the arrays: indices, concepts, licences."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_scripts import manifest


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table in UTF-8 with one line of names."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(head)
        table.writerows(rows)


def write_licences(folder: Path, kind: str, works: Mapping[str, str]) -> None:
    """Write `LICENSES.csv`: under which licence, by whom and from where each work is.

    Args:
        folder: of the prepared set.
        kind: what a work is: `"vendor"`, `"font"`, `"photo"`.
        works: name of a work → name of its download in the manifest.
    """
    sources = {name: manifest.downloads()[download] for name, download in works.items()}
    rows = [(name, one.licence, one.author, one.url) for name, one in sources.items()]
    write_table(folder / "LICENSES.csv", [kind, "licence", "author", "url"], rows)
