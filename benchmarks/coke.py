"""Online assignment against the bare product with argmax (≤ 1.3×) and against Sinkhorn (≥ 3×).

B = 1,024 features of width 128, K = 5,000 clusters, float32, one thread. Assignment and updates
of prices and centres are counted together. Peers: `(x @ c.T).argmax(1)`, the floor; and three
iterations of Sinkhorn with its argmax, as SwAV assigns. Last: the exact optimum over few pairs
against HiGHS over all of them.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linprog
from scipy.sparse import eye_array, kron
from torch.nn import functional as F

from _report import report
from toolkit.representation import coke
from toolkit.runtime import race, start

BATCH, WIDTH, CLUSTERS = 1024, 128, 5000
FLOOR_TARGET, SINKHORN_TARGET = 1.3, 3.0


def main() -> None:
    """Print each ratio, its spread over rounds, and its target."""
    start()
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(BATCH, WIDTH, generator=generator), dim=1)
    kmeans = coke.OnlineConstrainedKMeans(CLUSTERS, WIDTH)
    centers = kmeans.centers

    def online() -> None:
        kmeans.update(x, kmeans.assign(x))

    seconds = settled(
        bare=lambda: (x @ centers.T).argmax(dim=1),
        online=online,
        sinkhorn=lambda: coke.sinkhorn(x @ centers.T).argmax(dim=1),
    )
    print("ms a batch: " + ", ".join(f"{k} {1e3 * v:.1f}" for k, v in seconds.median().items()))
    report("online / bare", seconds["online"] / seconds["bare"], at_most=FLOOR_TARGET)
    report("Sinkhorn / online", seconds["sinkhorn"] / seconds["online"], at_least=SINKHORN_TARGET)

    scores, low = coke.long_tail_stream(2000, 0), np.full(20, 40)
    seconds = race(
        rounds=5,
        warmup=1,
        few=lambda: coke.solve_assignment_lp(scores, low),
        all=lambda: whole_program(scores, low),
    )
    report("exact optimum, N = 2,000: all pairs / few", seconds["all"] / seconds["few"])


def settled(block: int = 4, blocks: int = 10, **steps: Callable[[], object]) -> pd.DataFrame:
    """Seconds of each step as in a run of its own, the fastest of a block; blocks take turns.

    In turn one by one, a step would pay for the memory that the step before it gave back.
    """
    rows = [
        {
            name: race(rounds=block, warmup=2, **{name: step})[name].min()
            for name, step in steps.items()
        }
        for _ in range(blocks)
    ]
    return pd.DataFrame(rows)


def whole_program(scores: np.ndarray, low: np.ndarray) -> float:
    """The linear program over all pairs."""
    n, clusters = scores.shape
    ones = np.ones((1, n)), np.ones((1, clusters))
    found = linprog(
        -scores.ravel(),
        A_ub=-kron(ones[0], eye_array(clusters), format="csr"),
        b_ub=-low,
        A_eq=kron(eye_array(n), ones[1], format="csr"),
        b_eq=np.ones(n),
        method="highs",
    )
    return -found.fun


if __name__ == "__main__":
    main()
