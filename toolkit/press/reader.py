"""What the site shows of a notebook: its executed twin, made when it is out of date.

The sources hold no outputs. MyST-NB hands each of them to `read` as text, which returns the twin
`build/executed/NAME.ipynb` of the same key, and executes the notebook if there is none.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import nbformat
from nbformat import NotebookNode

from toolkit.course.release import edition, is_exercises
from toolkit.evidence.claims import MIME
from toolkit.source import digest, imports

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "TQDM_DISABLE": "1",
}
PAGE_ENVIRONMENT = KERNEL_ENVIRONMENT | {"TOOLKIT_STATIC": "1", "TOOLKIT_JOBS": "1"}

KERNEL_ONLY = {"application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"}


class CellFailed(RuntimeError):
    """A chapter's cell raised; the message names chapter, cell and error."""


def read(text: str) -> NotebookNode:
    """Return what the site shows for a notebook's source text.

    Raises:
        CellFailed: if a cell raises.
        ValueError: if the notebook does not name itself, or shows what a page cannot.
    """
    source = nbformat.reads(text, as_version=4)
    twin = nbformat.read(execute(source_path(name_of(source))), as_version=4)
    student = os.environ.get("TOOLKIT_EDITION") == "student"
    shown = edition(twin, solutions=not student, page=True) if is_exercises(twin) else twin
    require_page_outputs(shown)
    for cell in shown.cells:  # bookkeeping is not for readers
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(MIME, None)
    return shown


def execute(path: Path, profile: str | None = None, seed: int | None = None) -> Path:
    """Execute a source notebook unless its twin is up to date.

    Without `profile` and `seed` this is the book's own twin, `build/executed/NAME.ipynb`, made
    with the notebook's defaults. With either it is a run, `build/runs/NAME-PROFILE.ipynb`, always
    made anew. A failed cell leaves `build/failed/NAME.ipynb` and the old twin.

    Args:
        path: of the source, inside `book/`.
        profile: `"quick"` or `"full"`.
        seed: the first seed.

    Returns:
        The path of the twin.

    Raises:
        CellFailed: if a cell raises.
    """
    text = path.read_text("utf-8")
    if profile is None and seed is None:
        twin, wanted = twin_path(path.stem), key(text)
        if key_of(twin) != wanted:
            _papermill(path, twin, {}, PAGE_ENVIRONMENT, wanted)
        return twin
    parameters = {k: v for k, v in (("profile", profile), ("seed", seed)) if v is not None}
    suffix = "-".join(str(value) for value in parameters.values())
    twin = build_place("runs") / f"{path.stem}-{suffix}.ipynb"
    _papermill(path, twin, parameters, KERNEL_ENVIRONMENT, "")
    return twin


def in_a_kernel(run: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call what starts a kernel, up to three times if it dies before its first reply.

    A kernel is told its ports before it binds them: another process may take one in between.

    Raises:
        RuntimeError: if the kernel died three times; whatever else `run` raises, at once.
    """
    for _ in range(2):
        try:
            return run(*args, **options)
        except RuntimeError as error:
            if "died before replying" not in str(error):
                raise
    return run(*args, **options)


def key(text: str) -> str:
    """What a twin depends on: source, the toolkit's code it reaches, record, data, lock."""
    source = nbformat.reads(text, as_version=4)
    name = name_of(source)
    code = "\n".join(_python(cell.source) for cell in source.cells if cell.cell_type == "code")
    total = hashlib.sha256(text.encode())
    total.update(digest("toolkit", *imports(code), text=True).encode())
    slug = name.removesuffix("_exercises")
    for file in (f"evidence/{slug}.json", "data_scripts/manifest.json", "requirements.txt"):
        place = ROOT / file
        total.update(place.read_bytes() if place.is_file() else b"")
    return total.hexdigest()[:32]


def key_of(twin: Path) -> str | None:
    """The key in a twin's metadata, or None if there is no readable twin."""
    try:
        return nbformat.read(twin, as_version=4).metadata.get("toolkit", {}).get("key")
    except (FileNotFoundError, ValueError, nbformat.ValidationError, AttributeError):
        return None


def require_page_outputs(notebook: NotebookNode) -> None:
    """Refuse outputs that show nothing on a page without a kernel.

    Raises:
        ValueError: naming the cell that shows a bare widget or plotly figure.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            kinds = set(output.get("data", {}))
            if kinds & KERNEL_ONLY and "text/html" not in kinds:
                raise ValueError(
                    f"cell {cell.id!r} shows {', '.join(kinds & KERNEL_ONLY)}, which a page cannot "
                    "draw; wrap it in Explorable or show_figure"
                )


def name_of(notebook: NotebookNode) -> str:
    """The notebook's name, which is its file's stem.

    Raises:
        ValueError: if the metadata lack it.
    """
    name = notebook.metadata.get("toolkit", {}).get("name")
    if not name:
        raise ValueError('a source notebook names itself: metadata {"toolkit": {"name": "STEM"}}')
    return name


def sources() -> list[Path]:
    """All source notebooks of the book, in order of their paths."""
    found = sorted((ROOT / "book").rglob("*.ipynb"))
    return [path for path in found if ".ipynb_checkpoints" not in path.parts]


def source_path(name: str) -> Path:
    """The source notebook of that name.

    Raises:
        ValueError: if the book has none.
    """
    for path in sources():
        if path.stem == name:
            return path
    raise ValueError(f"no notebook is called {name!r}; there are {[p.stem for p in sources()]}")


def twin_path(name: str) -> Path:
    """Where the executed twin of a notebook lies."""
    return build_place("executed") / f"{name}.ipynb"


def build_place(kind: str) -> Path:
    """`build/KIND`, or below `$TOOLKIT_BUILD`."""
    return Path(os.environ.get("TOOLKIT_BUILD", ROOT / "build")) / kind


def _papermill(
    path: Path, twin: Path, parameters: dict, environment: dict[str, str], stamp: str
) -> None:
    """Execute into a temporary name, stamp, rename: a kill at any moment leaves the old twin."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    # It cannot read `a, b = 1, 2` and would call our parameters unknown; it sets them all the same.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    twin.parent.mkdir(parents=True, exist_ok=True)
    temporary = twin.with_suffix(f".{os.getpid()}.tmp.ipynb")
    begin = time.perf_counter()
    try:
        with _environment(environment):
            in_a_kernel(
                papermill.execute_notebook,
                path,
                temporary,
                parameters=parameters,
                cwd=ROOT / "book",
                kernel_name="python3",
                progress_bar=bool(parameters),  # a run is watched; the book has its own bar
                request_save_on_cell_execute=False,
                autosave_cell_every=0,
                extra_arguments=["--log-level=40"],  # errors only
            )
        _stamp(temporary, stamp, time.perf_counter() - begin)
        temporary.replace(twin)
    except PapermillExecutionError as error:
        failed = build_place("failed") / twin.name
        failed.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(failed)
        raise CellFailed(
            f"{path.stem}: cell {error.cell_index} raised {error.ename}: {error.evalue}\n"
            f"the notebook with its traceback: {failed}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _stamp(path: Path, stamp: str, seconds: float) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.toolkit["key"] = stamp
    notebook.metadata.toolkit["seconds"] = round(seconds, 1)
    notebook.metadata.pop("papermill", None)
    nbformat.write(notebook, path)


class _environment:
    """Set variables for the kernels that start inside the block, then put the old ones back."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in (*self.values, "TOOLKIT_STATIC")}
        os.environ.pop("TOOLKIT_STATIC", None)
        os.environ.update(self.values)

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _python(cell: str) -> str:
    """A cell without its IPython magics, so that it parses."""
    return "\n".join(
        "" if line.lstrip().startswith(("%", "!")) else line for line in cell.split("\n")
    )
