"""On stochastic moving-average estimators (Guo, Xu, Yin, Jin and Yang 2021, arXiv:2104.14840).

One object, an exponential moving average of noisy evaluations, in three places: `adam_family` and
`chains` minimise with it, `minmax` descends and ascends, `bilevel` differentiates through an inner
problem. `estimator` holds what is known about its error; `problems` what it is tested on; `study`,
`study_pairs`, `long_run`, `auc` and `hyperclean` the experiments; `scale` and `molecules` the large
ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from toolkit.optimization.moving_average.adam_family import RULES, AdamFamily
from toolkit.optimization.moving_average.auc import AUCMinMaxLoss, AUCRecipe, run_auc
from toolkit.optimization.moving_average.bilevel import (
    double_loop,
    neumann_expected,
    neumann_hvp,
    smb,
    truncation_floor,
)
from toolkit.optimization.moving_average.chains import minimise_chains, storm_chains
from toolkit.optimization.moving_average.estimator import (
    best_gamma,
    ema,
    gamma_schedule,
    rate_schedule,
    recursion_bound,
    tracking_error,
)
from toolkit.optimization.moving_average.hyperclean import (
    CleaningRecipe,
    HyperClean,
    run_cleaning,
)
from toolkit.optimization.moving_average.long_run import LongRun, long_run
from toolkit.optimization.moving_average.minmax import pdsm, sgd_max
from toolkit.optimization.moving_average.problems import (
    QuadraticBilevel,
    QuadraticSaddle,
    RareEvent,
    Ripple,
    SaturatingBowl,
)
from toolkit.optimization.moving_average.recipe import Recipe
from toolkit.optimization.moving_average.scale import LargeRecipe, run_large
from toolkit.optimization.moving_average.streams import Trace, draws
from toolkit.optimization.moving_average.study import (
    BETAS,
    BOWL_ARMS,
    RARE_ARMS,
    BowlRecipe,
    RareRecipe,
    RecursionRecipe,
    StageRecipe,
    run_bowl,
    run_rare,
    run_recursion,
    run_stages,
)
from toolkit.optimization.moving_average.study_pairs import (
    BILEVEL_ARMS,
    SADDLE_ARMS,
    BilevelRecipe,
    BudgetRecipe,
    SaddleRecipe,
    run_bilevel,
    run_budget,
    run_saddle,
)

__all__ = [
    "BETAS",
    "BILEVEL_ARMS",
    "BOWL_ARMS",
    "PROFILES",
    "RARE_ARMS",
    "RULES",
    "SADDLE_ARMS",
    "AUCMinMaxLoss",
    "AUCRecipe",
    "AdamFamily",
    "BilevelRecipe",
    "BowlRecipe",
    "BudgetRecipe",
    "CleaningRecipe",
    "HyperClean",
    "LargeRecipe",
    "LongRun",
    "QuadraticBilevel",
    "QuadraticSaddle",
    "RareEvent",
    "RareRecipe",
    "Recipe",
    "RecursionRecipe",
    "Ripple",
    "SaddleRecipe",
    "SaturatingBowl",
    "StageRecipe",
    "Trace",
    "best_gamma",
    "double_loop",
    "draws",
    "ema",
    "experiment",
    "gamma_schedule",
    "long_run",
    "minimise_chains",
    "neumann_expected",
    "neumann_hvp",
    "pdsm",
    "rate_schedule",
    "recursion_bound",
    "run_auc",
    "run_bilevel",
    "run_bowl",
    "run_budget",
    "run_cleaning",
    "run_large",
    "run_rare",
    "run_recursion",
    "run_saddle",
    "run_stages",
    "sgd_max",
    "smb",
    "storm_chains",
    "studies",
    "tracking_error",
    "truncation_floor",
]

PROFILES: dict[str, Recipe] = {
    "quick": BowlRecipe(),
    "full": BowlRecipe(T=100_000),
    "paper": LargeRecipe(),
}

RUNS: dict[type[Recipe], Callable[..., dict[str, np.ndarray]]] = {
    BowlRecipe: run_bowl,
    RecursionRecipe: run_recursion,
    RareRecipe: run_rare,
    StageRecipe: run_stages,
    SaddleRecipe: run_saddle,
    BilevelRecipe: run_bilevel,
    BudgetRecipe: run_budget,
    AUCRecipe: run_auc,
    CleaningRecipe: run_cleaning,
    LargeRecipe: run_large,
}


def studies(profile: str) -> dict[str, list[Recipe]]:
    """Every setting of the chapter, by the study it belongs to.

    Args:
        profile: `"quick"` or `"full"`.

    Returns:
        `recursion` (C1), `bowl` and `stages` (C2, C3), `rough` (STORM), `rare` (C4), `saddle` and
        `kappa` (C5), `bilevel` (C6), `budget_saddle` and `budget_bilevel` (C5, C6), `cleaning` (C6)
        and `auc` (C7).

    Raises:
        ValueError: for another profile.
    """
    if profile not in ("quick", "full"):
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    quick = profile == "quick"
    family = tuple(name for name in BOWL_ARMS if "storm" not in name and "rough" not in name)
    bowl = BowlRecipe(arms=family)
    rough = BowlRecipe(arms=("shb", "storm", "shb_rough", "storm_rough"))
    saddle = SaddleRecipe(chains=4 if quick else 8)
    bilevel = BilevelRecipe(chains=4 if quick else 8)
    ours = () if quick else ("sbma",)
    pairs = horizons(128) if quick else horizons(1024)
    budget = BudgetRecipe(seeds=16) if quick else BudgetRecipe(seeds=64, tune=True)
    kappa = [] if quick else [replace(saddle, arms=("pdsm",), mu=mu) for mu in (1.0, 0.5, 0.1)]
    cleaning = CleaningRecipe(tune=True)
    if quick:
        fewer = ("smb", "sbma", "all", "oracle")
        cleaning = CleaningRecipe(arms=fewer, seeds=8, steps=500)
    return {
        "recursion": [RecursionRecipe(T=512) if quick else RecursionRecipe()],
        "bowl": [replace(bowl, T=T) for T in (horizons(256) if quick else horizons(3200))],
        "stages": [StageRecipe(stages=n) for n in (range(2, 8) if quick else range(4, 10))],
        "rough": [replace(rough, T=T) for T in ([2048] if quick else horizons(256))],
        "rare": [RareRecipe(chains=4 if quick else 8)],
        "saddle": [replace(saddle, T=T) for T in pairs],
        "kappa": [replace(recipe, T=T) for recipe in kappa for T in pairs],
        "bilevel": [replace(bilevel, arms=(*bilevel.arms, *ours), T=T) for T in pairs],
        "budget_saddle": [budget],
        "budget_bilevel": [replace(budget, problem="bilevel", arms=BILEVEL_ARMS)],
        "cleaning": [cleaning],
        "auc": [AUCRecipe() if quick else AUCRecipe(seeds=16, tune=True)],
    }


def horizons(first: int) -> list[int]:
    """Six horizons T in doublings, over 1.5 decades."""
    return [first * 2**i for i in range(6)]


def experiment(
    recipe: Recipe, seed: int | Sequence[int], device: torch.device
) -> dict[str, float] | dict[str, np.ndarray]:
    """Run all arms of a recipe for one seed, or for several that are stacked.

    A seed gives the same numbers alone and among others. Where rates are tuned, this happens
    first and on seeds from 10,000 on.

    Returns:
        `"ARM/METRIC"` or `"ARM/METRIC@x"`: a number, or one value a seed where `seed` is a list;
        the `run_…` function of the recipe's class names the metrics.

    Raises:
        TypeError: for a recipe of another paper.
    """
    seeds = [int(s) for s in seed] if isinstance(seed, Sequence) else [int(seed)]
    if type(recipe) not in RUNS:
        raise TypeError(f"need a recipe of moving_average, got {type(recipe).__name__}")
    results = RUNS[type(recipe)](recipe, seeds, device)
    if isinstance(seed, Sequence):
        return results
    return {name: float(values[0]) for name, values in results.items()}
