"""What `manifest.json` pins: every download, and the data sets that are prepared from them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from toolkit.data.store import DataError

PATH = Path(__file__).with_name("manifest.json")


@dataclass(frozen=True)
class Download:
    """One published file, pinned."""

    name: str
    kind: str
    """How it is got: a function of `sources.py`."""
    version: str
    licence: str
    author: str
    url: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """One prepared folder."""

    name: str
    """Of the folder: the script's name, and its size where there are several."""
    script: str
    """The module of `data_scripts` whose `prepare` makes it."""
    size: str
    what: str
    version: int
    """Raised by hand whenever the script draws something else: prepared folders are made again."""
    licence: str
    default: bool
    """Whether a plain `fetch` prepares it."""
    downloads: tuple[str, ...]
    needs: tuple[str, ...]
    """Other data sets that must be prepared before it."""


@cache
def downloads() -> dict[str, Download]:
    """All pinned downloads by name."""
    return {name: Download(name=name, **entry) for name, entry in _read()["downloads"].items()}


@cache
def datasets() -> dict[str, DataSet]:
    """All data sets by name, in the order in which they are prepared."""
    return {name: _dataset(name, entry) for name, entry in _read()["datasets"].items()}


def key(name: str) -> str:
    """A digest of all that a prepared folder depends on: its entry, its downloads, its needs."""
    dataset = datasets()[name]
    content = [
        {"version": dataset.version, "script": dataset.script, "size": dataset.size},
        [asdict(downloads()[download]) for download in dataset.downloads],
        [key(needed) for needed in dataset.needs],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def find(name: str, size: str = "") -> DataSet:
    """The data set of a script's name and a size.

    Raises:
        DataError: if there is none; the message lists those that there are.
    """
    for dataset in datasets().values():
        if (dataset.script, dataset.size) == (name, size) or (dataset.name == name and not size):
            return dataset
    known = ", ".join(
        entry.script + (f" --size {entry.size}" if entry.size else "")
        for entry in datasets().values()
    )
    raise DataError(
        f"no data set {name!r}{f' of size {size!r}' if size else ''}; there are: {known}"
    )


def _dataset(name: str, entry: dict) -> DataSet:
    given = {"script": name, "size": "", "default": True, "needs": (), **entry}
    lists = {field: tuple(given[field]) for field in ("downloads", "needs")}
    return DataSet(name=name, **{**given, **lists})


def _read() -> dict:
    return json.loads(PATH.read_text("utf-8"))
