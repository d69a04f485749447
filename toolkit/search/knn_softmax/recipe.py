"""Every number of the experiments, for the three profiles."""

import math
from dataclasses import dataclass, replace
from typing import Any

ARMS = ("full", "knn", "random", "knn+fill", "random+logq")
"""Full softmax; the published rule; random classes; three neighbours a label and corrected random
fills; corrected random classes (sampled softmax with a uniform proposal, without replacement)."""

HEADS: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "knn": {"mode": "knn"},
    "random": {"mode": "random"},
    "knn+fill": {"mode": "knn", "correct_fill": True},
    "random+logq": {"mode": "random", "correct_fill": True},
    "warm+knn": {"mode": "full"},  # becomes "knn" after `warm_share` of the training
}
"""How the arms differ."""


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters. "Not verified" marks what is believed of the paper but was not at hand."""

    arms: tuple[str, ...] = ARMS
    seeds: int = 3
    num_classes: int = 1000  # C; paper: 100 million
    batch: int = 16  # examples of one rank, b; paper: 64 (not verified)
    rho: float = 0.1  # active ratio ρ; paper: 0.1 (not verified)
    epochs: int = 4  # passes over train; paper: 8 with FCCS, 20 without (not verified)
    pca: int = 128  # inputs of the small network, principal components; ours
    hidden: int = 256  # units of its hidden layer; ours
    d: int = 64  # feature width; paper: 512 (not verified)
    scale: float = 24.0  # s of cosine logits; paper: not stated
    fill_neighbours: int = 3  # neighbours per label in "knn+fill"; ours
    rebuild_every: int = 1  # epochs between graphs; paper: 1 (not verified)
    lr: float = 0.05  # rate of the network, SGD; paper: not stated
    momentum: float = 0.9  # of the network; paper: not stated
    rates: tuple[float, ...] = (1.0, 2.0, 2.0, 2.0, 2.0)  # of W, one an arm, see `RATES`; ours
    warm_share: float = 0.25  # of training with the full softmax in "warm+knn"; ours
    probe: int = 512  # train images on which softmax mass is measured; ours

    side_classes: int = 100  # classes of the two side experiments; ours
    side_batch: int = 16  # examples of a batch there; ours
    side_epochs: int = 20  # of the baseline schedule there; paper: 20 (not verified)
    schedules: tuple[str, ...] = ("fccs", "cosine")  # compared with the baseline; ours
    ladder: tuple[float, ...] = (0.2, 0.3, 0.4, 0.6, 0.8, 1.0)  # lengths tried; ours
    sparse_epochs: int = 6  # passes over train with sparse gradients; ours
    density: float = 0.01  # share of gradient entries sent; paper: 0.001 (not verified)
    dense_lr: float = 0.025  # rate of the network under dense gradients there, tuned; ours
    sparse_lr: float = 0.2  # rate of the network under top-k gradients, tuned; paper: not stated
    sparse_momentum: float = 0.5  # μ of the compressor, tuned with it; DGC: 0.9
    side_rate: float = 2.0  # of W under sparse gradients, tuned at 1,000 classes; ours
    piecewise_rate: float = 1.0  # of W in the baseline schedule, tuned; ours
    cosine_rate: float = 2.0  # of W in the cosine schedule, tuned at 40 % of its length; ours
    cosine_lr: float = 0.05  # rate of the network there, tuned with it; ours
    lars_rate: float = 10.0  # η₀ of LARS, tuned at 40 % of its length; paper: not stated
    trust: float = 0.001  # c of LARS; paper: not stated
    weight_decay: float = 1e-4  # β of LARS; paper: not stated
    warmup: float = 0.1  # share of FCCS spent in warm-up; paper: not stated
    accumulate: int = 8  # a_max of FCCS, batches; paper: not stated

    backbone: str = "mlp"  # mlp, conv or resnet50; paper: resnet50 (not verified)
    data: str = "glyphs"  # or a folder with train/ and val/, one folder a class
    micro_batches: int = 1  # of the pipeline; paper: not stated
    density_warmup: int = 0  # epochs of density warm-up; DGC: 4
    half: bool = False  # backbone in bfloat16; paper: half precision (not verified)
    max_steps: int = 0  # stop after so many iterations; 0: run all epochs


PROFILES = {
    "quick": Recipe(),
    "full": Recipe(
        seeds=5,
        num_classes=4000,
        batch=64,
        epochs=6,
        rates=(2.0, 4.0, 4.0, 4.0, 4.0),
        side_classes=1000,
        piecewise_rate=3.0,
        cosine_rate=16.0,
        cosine_lr=0.2,
        lars_rate=6.0,
    ),
    "paper": Recipe(
        arms=("knn",),
        seeds=1,
        num_classes=6763,
        batch=64,
        epochs=8,
        d=512,
        scale=30.0,
        lr=10.0,
        rates=(1.0,),
        backbone="conv",
        micro_batches=4,
        density=0.001,
        density_warmup=1,
        accumulate=8,
    ),
}


RATES = {
    16: dict(zip(ARMS, PROFILES["quick"].rates, strict=True))
    | {"warm+knn": 2.0, "hashed": 2.0, "adaptive": 0.2},
    64: dict(zip(ARMS, PROFILES["full"].rates, strict=True)),
}
"""Rates of the class weights by batch size and arm: the best of `tuning_grid` in mean accuracy on
val images over three tuning seeds; none lay at an end of its grid. "warm+knn" takes that of "knn".
"""

TUNED = {arm: (0.5, 1.0, 2.0, 4.0) for arm in ARMS} | {
    "hashed": (1.0, 2.0, 4.0),
    "adaptive": (0.05, 0.1, 0.2, 0.4),
}


def tuning_grid(arm: str, batch: int = 16) -> tuple[Recipe, ...]:
    """The recipes among which an arm's rate was chosen, at 1,000 classes.

    A batch four times as large tries rates twice as large.
    """
    base = replace(PROFILES["quick"], epochs=6, arms=(arm,), batch=batch)
    return tuple(replace(base, rates=(rate * math.sqrt(batch / 16),)) for rate in TUNED[arm])


def studies() -> dict[str, Recipe]:
    """The sweeps of `full`.

    "main" has all arms at 4,000 classes; "small_batch" and "many_neighbours" are two more points
    of M/B there; "peers" are other methods at 1,000 classes.
    """
    full = PROFILES["full"]
    small = replace(PROFILES["quick"], epochs=6, seeds=3)

    def with_arms(recipe: Recipe, *arms: str, **changes: Any) -> Recipe:
        return replace(recipe, arms=arms, rates=tuple(RATES[16][arm] for arm in arms), **changes)

    return {
        "main": full,
        "small_batch": with_arms(full, "full", "knn", "knn+fill", batch=16),
        "many_neighbours": with_arms(full, "knn", "knn+fill", batch=16, rho=0.2),
        "peers": with_arms(small, "full", "knn", "warm+knn", "hashed", "adaptive"),
    }
