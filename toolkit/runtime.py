"""Where and how experiments run: device, seeds, threads, sweeps over seeds and settings, races.

An experiment is a function `experiment(recipe, seed, device) -> dict[str, float]`; a recipe is a
frozen dataclass of hyper-parameters. `sweep` calls it for every recipe and seed and returns one
table, computed in parallel and kept on disk until the code, the recipe or the lock changes.
"""

import hashlib
import inspect
import json
import os
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from toolkit.source import digest, imports

Experiment = Callable[..., dict[str, Any]]

TUNING_SEEDS = 10_000
"""The first seed of `tune`. Verdicts use seeds below it."""


def start(seed: int = 0, device: str = "auto", threads: int = 1) -> torch.device:
    """Prepare a chapter: one thread per kernel, seeded generators, a device.

    One thread makes results repeat to the last digit; parallel work happens between experiments.

    Args:
        seed: for Python, NumPy and torch.
        device: `"auto"` takes CUDA where there is one, else the CPU; any torch device is allowed.
        threads: of torch, for one kernel.

    Raises:
        ValueError: for a device that this machine lacks, or fewer than one thread.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)
    seed_everything(seed)
    return choose_device(device)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (experiments pass their own)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 — libraries still read the global generator
    torch.manual_seed(seed)


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; `"auto"` is CUDA where available, else the CPU.

    Raises:
        ValueError: if torch knows no such device or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {name!r} is not usable here ({reason}); try 'auto' or 'cpu'"
        ) from error
    return chosen


# --- sweeps -------------------------------------------------------------------------------------


def sweep(
    experiment: Experiment,
    recipes: Any,
    seeds: Iterable[int],
    *,
    device: str | torch.device = "cpu",
    batch: int = 1,
    jobs: int | None = None,
) -> pd.DataFrame:
    """Run an experiment for every recipe and seed; one row each.

    Cells run in parallel with joblib, or on a Dask cluster when `DASK_SCHEDULER_ADDRESS` is set.
    Each finished cell is kept on disk under the hash of the recipe, the seed, the kind of device,
    the code that the experiment reaches and the lock, so an interrupted sweep goes on where it was.
    A cell that raises keeps its row with the error; the others are not lost.

    With `TOOLKIT_SWEEP=check` the first seed of every recipe is computed again, alone, and must
    agree with the kept row to a relative 1e-4. Metrics named `seconds…` are exempt.

    Args:
        experiment: `(recipe, seed, device) -> {"arm/metric": value}`, in an importable module.
        recipes: one recipe (a dataclass) or a sequence of recipes of one class.
        seeds: distinct integers.
        device: handed to the experiment.
        batch: how many seeds one call gets. Above 1 the experiment receives a list of seeds and
            returns arrays of that length.
        jobs: processes; by default `TOOLKIT_JOBS`, else all cores (one on an accelerator).

    Returns:
        A table with the columns `setting`, `seed`, the recipe's varied fields, the results, `error`
        (an empty string where all went well).

    Raises:
        TypeError: if a recipe is no dataclass, or their classes differ.
        ValueError: for no or repeated seeds, `batch < 1`, or an experiment without a source file.
        RuntimeError: if every cell failed, or the check found another result.
    """
    settings, seeds = _recipes(recipes), _seeds(seeds)
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    kind = torch.device(device).type
    cache = _Cache(_code_key(experiment, type(settings[0])), kind)
    rows: dict[tuple[int, int], dict] = {}
    for index, recipe in enumerate(settings):
        for seed in seeds:
            if (kept := cache.read(recipe, seed)) is not None:
                rows[index, seed] = kept
    if os.environ.get("TOOLKIT_SWEEP") == "check":
        _check(experiment, settings, seeds[0], str(device), rows)
    cells = [
        _Cell(index, recipe, chunk, batch > 1)
        for index, recipe in enumerate(settings)
        for chunk in _chunks([seed for seed in seeds if (index, seed) not in rows], batch)
    ]
    for cell, results, error in _run(experiment, cells, str(device), _jobs(jobs, kind)):
        for seed, result in zip(cell.seeds, results, strict=True):
            rows[cell.setting, seed] = result | ({"error": error} if error else {})
            if not error:
                cache.write(cell.recipe, seed, result)
    return _table(settings, seeds, rows)


def tune(
    experiment: Experiment,
    recipes: Sequence[Any],
    objective: str,
    *,
    seeds: int = 3,
    minimise: bool = True,
    device: str | torch.device = "cpu",
    batch: int = 1,
) -> Any:
    """The recipe with the best mean objective on seeds that no verdict sees (from 10,000 on).

    Args:
        experiment: as in `sweep`.
        recipes: the grid, in order: the best at either end raises a warning.
        objective: a key of the experiment's result.
        seeds: how many tuning seeds.
        minimise: False where larger is better.
        device: handed to the experiment.
        batch: as in `sweep`.

    Raises:
        ValueError: if the experiment returns no such key.
    """
    runs = sweep(
        experiment,
        recipes,
        range(TUNING_SEEDS, TUNING_SEEDS + seeds),
        device=device,
        batch=batch,
    )
    if objective not in runs:
        raise ValueError(f"the experiment returns no {objective!r}, but {sorted(runs.columns)}")
    risk = runs[objective].to_numpy(float).reshape(len(recipes), seeds)
    return recipes[pick_best(torch.tensor(risk if minimise else -risk))]


def pick_best(risk: Float[Tensor, "settings seeds"]) -> int:
    """The index of the setting with the least mean risk; a non-finite run counts as +∞.

    Warns when the best lies at an end of a grid of three or more: the optimum may lie outside.

    Raises:
        ValueError: if no setting has a finite mean.
    """
    mean = torch.where(torch.isfinite(risk), risk, torch.inf).mean(dim=1)
    best = int(mean.argmin())
    if not torch.isfinite(mean[best]):
        raise ValueError("every setting diverged on at least one tuning seed; widen the grid")
    if len(mean) > 2 and best in (0, len(mean) - 1):
        warnings.warn(
            f"the best setting is number {best} of {len(mean)}: a grid edge", stacklevel=2
        )
    return best


def race(rounds: int = 10, warmup: int = 3, **fns: Callable[[], Any]) -> pd.DataFrame:
    """Time functions against each other, in turn, so that drift of the machine hits all alike.

    Args:
        rounds: counted calls of each function.
        warmup: calls before them.
        **fns: functions without arguments, by name.

    Returns:
        Seconds, one column a function, one row a round.

    Raises:
        ValueError: without functions or rounds.
    """
    if not fns or rounds < 1:
        raise ValueError("race needs at least one function and one round")
    for _ in range(warmup):
        for fn in fns.values():
            fn()
    return pd.DataFrame(
        [{name: _seconds(fn) for name, fn in fns.items()} for _ in range(rounds)]
    ).rename_axis("round")


def _seconds(fn: Callable[[], Any]) -> float:
    _synchronise()
    begin = time.perf_counter()
    fn()
    _synchronise()
    return time.perf_counter() - begin


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class _Cell:
    """One call of the experiment: a recipe and the seeds that it gets at once."""

    setting: int
    recipe: Any
    seeds: list[int]
    stacked: bool


class _Cache:
    """One JSON file a (recipe, seed), written to a temporary name and renamed."""

    def __init__(self, code: str, kind: str) -> None:
        self.code, self.kind = code, kind
        self.folder = build_folder("sweeps")

    def path(self, recipe: Any, seed: int) -> Path:
        key = [type(recipe).__qualname__, asdict(recipe), seed, self.kind, self.code]
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        return self.folder / name[:2] / f"{name[:24]}.json"

    def read(self, recipe: Any, seed: int) -> dict | None:
        try:
            return json.loads(self.path(recipe, seed).read_text("utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def write(self, recipe: Any, seed: int, result: dict) -> None:
        path = self.path(recipe, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(result), "utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def build_folder(name: str) -> Path:
    """Where made things lie: `build/NAME` in a checkout, else below `$TOOLKIT_DATA`."""
    if (folder := os.environ.get("TOOLKIT_BUILD")) is not None:
        return Path(folder) / name
    root = Path(__file__).parents[1]
    if (root / "pyproject.toml").is_file():
        return root / "build" / name
    home = os.environ.get("TOOLKIT_DATA", Path.home() / ".cache" / "papers-that-run")
    return Path(home) / name


def _recipes(recipes: Any) -> list[Any]:
    settings = list(recipes) if isinstance(recipes, list | tuple) else [recipes]
    if not settings or not all(is_dataclass(r) and not isinstance(r, type) for r in settings):
        raise TypeError(f"recipes must be a dataclass or a list of them, got {recipes!r}")
    if len({type(recipe) for recipe in settings}) > 1:
        raise TypeError("all recipes of a sweep must be of one class")
    return settings


def _seeds(seeds: Iterable[int]) -> list[int]:
    chosen = [int(seed) for seed in seeds]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"seeds must be distinct and at least one, got {chosen}")
    return chosen


def _code_key(experiment: Experiment, recipe: type) -> str:
    """Hash what the result depends on beside recipe and seed: the code it reaches and the lock."""
    module = experiment.__module__
    if module.split(".")[0] == "toolkit":
        code = digest(module, *({recipe.__module__} if _is_ours(recipe) else ()))
    else:
        try:
            text = Path(inspect.getfile(experiment)).read_text("utf-8")
        except (OSError, TypeError) as error:
            raise ValueError(
                f"{experiment.__qualname__} has no source file to hash; put it into a module"
            ) from error
        code = hashlib.sha256(text.encode()).hexdigest() + digest(*imports(text))
    lock = Path(__file__).parents[1] / "requirements.txt"
    locked = hashlib.sha256(lock.read_bytes()).hexdigest()[:20] if lock.is_file() else ""
    return f"{experiment.__qualname__}:{code}:{locked}"


def _is_ours(recipe: type) -> bool:
    return recipe.__module__.split(".")[0] == "toolkit"


def _chunks(seeds: list[int], size: int) -> Iterator[list[int]]:
    for begin in range(0, len(seeds), size):
        yield seeds[begin : begin + size]


def _jobs(jobs: int | None, kind: str) -> int:
    if jobs is None:
        jobs = int(os.environ.get("TOOLKIT_JOBS", 0)) or (
            os.cpu_count() or 1 if kind == "cpu" else 1
        )
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    return jobs


def _run(
    experiment: Experiment, cells: list[_Cell], device: str, jobs: int
) -> Iterator[tuple[_Cell, list[dict], str]]:
    """Yield each finished cell with one result a seed and the error, in the order they end."""
    silent = "TOOLKIT_STATIC" in os.environ or not cells
    with tqdm(total=len(cells), desc="sweep", disable=silent, leave=False, file=sys.stderr) as bar:
        for index, results, error in _outcomes(experiment, cells, device, jobs):
            bar.update()
            yield cells[index], results, error


def _outcomes(
    experiment: Experiment, cells: list[_Cell], device: str, jobs: int
) -> Iterable[tuple[int, list[dict], str]]:
    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        return _on_dask(address, experiment, cells, device)
    if jobs == 1 or len(cells) < 2:
        return (_call(experiment, index, cell, device) for index, cell in enumerate(cells))
    return joblib.Parallel(n_jobs=min(jobs, len(cells)), return_as="generator_unordered")(
        joblib.delayed(_call)(experiment, index, cell, device) for index, cell in enumerate(cells)
    )


def _on_dask(
    address: str, experiment: Experiment, cells: list[_Cell], device: str
) -> Iterator[tuple[int, list[dict], str]]:
    from distributed import Client, as_completed

    with Client(address) as client:
        futures = [
            client.submit(_call, experiment, index, cell, device, pure=False)
            for index, cell in enumerate(cells)
        ]
        for future in as_completed(futures):
            yield future.result()


def _call(experiment: Experiment, index: int, cell: _Cell, device: str) -> tuple[int, list, str]:
    """Run one cell where it landed; an exception becomes text, so that it crosses processes."""
    try:
        with _one_thread():
            result = experiment(
                cell.recipe, cell.seeds if cell.stacked else cell.seeds[0], torch.device(device)
            )
        return index, _rows(result, len(cell.seeds)), ""
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return index, [{} for _ in cell.seeds], text


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rows(result: dict[str, Any], count: int) -> list[dict[str, float]]:
    columns = {name: np.asarray(value, float).reshape(-1) for name, value in result.items()}
    for name, column in columns.items():
        if len(column) != count:
            raise ValueError(f"{name} has {len(column)} values for {count} seeds")
    return [{name: float(column[i]) for name, column in columns.items()} for i in range(count)]


def _check(experiment: Experiment, settings: list[Any], seed: int, device: str, rows: dict) -> None:
    for index, recipe in enumerate(settings):
        if (index, seed) not in rows:
            continue
        _, (now,), error = _call(experiment, 0, _Cell(index, recipe, [seed], False), device)
        kept = rows[index, seed]
        wrong = [
            f"{name}: {kept.get(name)} kept, {now.get(name)} now"
            for name in sorted(kept.keys() | now.keys())
            if not name.rpartition("/")[2].startswith("seconds")
            and not np.isclose(
                kept.get(name, np.nan), now.get(name, np.nan), rtol=1e-4, atol=1e-9, equal_nan=True
            )
        ]
        if error or wrong:
            raise RuntimeError(f"seed {seed} of {recipe} does not repeat: {error or wrong[:5]}")


def _table(settings: list[Any], seeds: list[int], rows: dict) -> pd.DataFrame:
    names = [field.name for field in fields(settings[0])]
    varied = [n for n in names if len({repr(getattr(r, n)) for r in settings}) > 1]
    frame = pd.DataFrame(
        [
            {"setting": index, "seed": seed}
            | {name: getattr(recipe, name) for name in varied}
            | {"error": ""}
            | rows[index, seed]
            for index, recipe in enumerate(settings)
            for seed in seeds
        ]
    )
    failed = frame[frame["error"] != ""]
    for _, row in failed.iterrows():
        place = {name: row[name] for name in ["seed", *varied]}
        warnings.warn(f"a cell failed at {place}: {row['error']}", stacklevel=3)
    if len(failed) == len(frame):
        raise RuntimeError(f"every cell failed; the first: {failed['error'].iloc[0]}")
    return frame[[column for column in frame if column != "error"] + ["error"]]
