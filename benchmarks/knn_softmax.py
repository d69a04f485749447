"""The KNN softmax step against the full one (≥ 5× at 10 % active) and random negatives (± 20 %).

Last layer alone, one thread, B = 64, d = 128, cosine logits: loss, backward, update of the rows.
Peers: `F.cross_entropy` over all classes, and PartialFC's selection at equal size. The amortised
ratio has one exact graph per epoch of ten images per class in it, extrapolated from 2,048 rows.
"""

import math
from collections.abc import Callable

import pandas as pd
import torch

from _report import report
from toolkit.runtime import race
from toolkit.search import knn_softmax
from toolkit.search.knn_softmax import graph

BATCH, WIDTH, IMAGES_PER_CLASS = 64, 128, 10
FASTER, LIKE_RANDOM = 5.0, 0.2
SETTINGS = {"full": ("torch", 1.0), "knn": ("knn", 0.1), "random": ("random", 0.1)}


def main(sizes: tuple[int, ...] = (100_000, 1_000_000)) -> None:
    torch.set_num_threads(1)
    for num_classes in sizes:
        race_of(num_classes)


def race_of(num_classes: int) -> None:
    steps = knn_softmax.softmax_steps(num_classes, WIDTH, SETTINGS, batch=BATCH)
    # Two races: after the full softmax, whoever comes next finds the caches cold.
    first = fastest(num_classes, full=steps["full"], knn=steps["knn"])
    second = fastest(num_classes, knn=steps["knn"], random=steps["random"])
    print(f"{num_classes:,} classes, d = {WIDTH}, B = {BATCH}; ms per step, median")
    print("  " + ", ".join(f"{k} {1e3 * v:.2f}" for k, v in first.median().items()))
    print("  " + ", ".join(f"{k} {1e3 * v:.2f}" for k, v in second.median().items()))
    gain, like = first["full"] / first["knn"], second["knn"] / second["random"]
    report("  full / KNN", gain, at_least=FASTER)
    report("  KNN / random", like, at_most=1 + LIKE_RANDOM)
    amortised(num_classes, first.median())


def fastest(num_classes: int, **steps: Callable[[], None]) -> pd.DataFrame:
    """Seconds; each sample is the fastest of a few rounds, which leaves out what others cost."""
    block, blocks = (5, 8) if num_classes <= 100_000 else (2, 5)
    seconds = race(rounds=block * blocks, warmup=2, **steps)
    return seconds.groupby(seconds.index // block).min()


def amortised(num_classes: int, step: pd.Series) -> None:
    """One exact graph an epoch: what remains of the gain."""
    rows = torch.nn.functional.normalize(torch.randn(num_classes, WIDTH), dim=1)
    k, few = 64, 2048
    empty = torch.full((few, k), -torch.inf), torch.full((few, k), -1)
    once = race(
        rounds=1, warmup=0, graph=lambda: graph._meet(rows[:few], 0, rows, 0, k, 4096, empty)
    )
    build = once["graph"].iloc[0] * num_classes / few
    epoch = math.ceil(IMAGES_PER_CLASS * num_classes / BATCH)
    ratio = epoch * step["full"] / (epoch * step["knn"] + build)
    print(
        f"  with one exact graph per epoch of {epoch:,} steps ({build:,.0f} s, extrapolated, "
        f"K = {k}): {ratio:.2f}×"
    )


if __name__ == "__main__":
    main()
