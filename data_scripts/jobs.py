"""One function over many pieces of work, on all the cores, with a progress bar."""

from collections.abc import Callable, Sequence
from typing import Any

from joblib import Parallel, cpu_count, delayed
from tqdm.auto import tqdm


def in_parallel(work: Callable[..., Any], pieces: Sequence[tuple], title: str) -> list[Any]:
    """Call `work(*piece)` for every piece, in processes; results come in the order of the pieces.

    Args:
        work: a function of a module (processes import it by name).
        pieces: the arguments of each call.
        title: of the progress bar.
    """
    processes = min(cpu_count(), len(pieces))
    results = Parallel(n_jobs=processes, return_as="generator")(
        delayed(work)(*piece) for piece in pieces
    )
    return list(tqdm(results, total=len(pieces), desc=title))
