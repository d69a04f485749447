"""`toolkit build`: execute what is out of date in parallel, then let jupyter-book make the site."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import joblib
import nbformat
import yaml
from tqdm.auto import tqdm

from toolkit.press import reader

SITE = reader.ROOT / "_build" / "html"
STUDENT_SITE = reader.ROOT / "_build" / "student" / "_build" / "html"
"""The site without solutions; jupyter-book adds `_build/html` to the folder it is given."""


class BuildFailed(RuntimeError):
    """The build stopped; the message says where and what to do."""


def build(
    names: Sequence[str] = (),
    jobs: int = 2,
    scheduler: str | None = None,
    edition: str = "reader",
) -> Path:
    """Execute the book's stale notebooks and make the site.

    Args:
        names: of notebooks to execute; by default all in the table of contents. With names given
            only these are executed, and the site is not made.
        jobs: notebooks at a time on this machine.
        edition: "reader", or "student": a site of its own without solutions.
        scheduler: address of a Dask scheduler to execute them on instead; its workers must share
            this folder. By default `DASK_SCHEDULER_ADDRESS`.

    Returns:
        The site's first page.

    Raises:
        BuildFailed: if a notebook fails, or jupyter-book warns.
        ValueError: for an unknown name, or fewer than one job.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if edition not in ("reader", "student"):
        raise ValueError(f"edition must be reader or student, got {edition!r}")
    paths = [reader.source_path(name) for name in names] or in_contents()
    _execute_all(stale(paths), jobs, scheduler or os.environ.get("DASK_SCHEDULER_ADDRESS"))
    if not names:
        _jupyter_book(edition)
    return (SITE if edition == "reader" else STUDENT_SITE) / "index.html"


def in_contents() -> list[Path]:
    """The notebooks among the pages, in reading order."""
    files = (reader.ROOT / f"{name}.ipynb" for name in pages())
    return [path for path in files if path.is_file()]


def pages() -> list[str]:
    """The pages that `_toc.yml` names, such as `book/search/knn_softmax`, in reading order."""
    return list(_files(yaml.safe_load((reader.ROOT / "_toc.yml").read_text("utf-8"))))


def stale(paths: Sequence[Path]) -> list[Path]:
    """Those whose twin has another key, slowest first by the seconds of the old twin."""
    out = [
        path
        for path in paths
        if reader.key_of(reader.twin_path(path.stem)) != reader.key(path.read_text("utf-8"))
    ]
    return sorted(out, key=_seconds, reverse=True)


def _files(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ("root", "file"):
                yield str(value)
            else:
                yield from _files(value)
    elif isinstance(node, list):
        for item in node:
            yield from _files(item)


def _seconds(path: Path) -> float:
    try:
        twin = nbformat.read(reader.twin_path(path.stem), as_version=4)
    except (OSError, ValueError, AttributeError):
        return float("inf") if not path.stem.endswith("_exercises") else 0.0
    return float(twin.metadata.get("toolkit", {}).get("seconds", 0))


def _execute_all(paths: Sequence[Path], jobs: int, scheduler: str | None) -> None:
    if not paths:
        print("all notebooks are up to date")
        return
    failures = []
    with tqdm(total=len(paths), desc="executing", unit="notebook") as bar:
        for name, seconds, error in _outcomes(paths, jobs, scheduler):
            bar.update()
            bar.write(f"  {name}: {error or f'{seconds:.0f} s'}")
            if error:
                failures.append(error)
    if failures:
        raise BuildFailed("\n".join([*failures, "mend the cell, then run the same command again"]))


def _outcomes(
    paths: Sequence[Path], jobs: int, scheduler: str | None
) -> Iterator[tuple[str, float, str]]:
    if scheduler:
        from distributed import Client, as_completed

        with Client(scheduler) as client:
            for future in as_completed([client.submit(_one, path, pure=False) for path in paths]):
                yield future.result()
        return
    parallel = joblib.Parallel(n_jobs=min(jobs, len(paths)), return_as="generator_unordered")
    yield from parallel(joblib.delayed(_one)(path) for path in paths)


def _one(path: Path) -> tuple[str, float, str]:
    try:
        reader.execute(path)
    except reader.CellFailed as error:
        return path.stem, 0.0, str(error)
    except Exception as error:
        return path.stem, 0.0, f"{path.stem}: {type(error).__name__}: {error}"
    return path.stem, _seconds(path), ""


def _jupyter_book(edition: str) -> None:
    """Make the site. After a failure the next build starts clean, so no warning is forgotten."""
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", ".", "-W", "--keep-going", "-q"]
    site = SITE if edition == "reader" else STUDENT_SITE
    if edition == "student":
        command += ["--path-output", str(site.parents[1])]
    environment = os.environ | {"TOOLKIT_EDITION": edition}
    done = subprocess.run(command, cwd=reader.ROOT, env=environment, check=False)
    if done.returncode:
        shutil.rmtree(site.parent / ".doctrees", ignore_errors=True)
        shutil.rmtree(site / ".doctrees", ignore_errors=True)
        raise BuildFailed("jupyter-book found the problems above; mend them and build again")
