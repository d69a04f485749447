"""Towards understanding label smoothing (Xu, Xu, Qian, Li, Jin 2020, arXiv:2006.11653).

`loss` and `schedule` hold the method, `deviation` and `theory` what the paper says about it;
`network`, `experiments`, `cnn` and `convex` the small experiments, `scale` the large one.
"""

from collections.abc import Sequence

import numpy as np
import torch

from toolkit.supervision.label_smoothing.branches import train_branches
from toolkit.supervision.label_smoothing.cnn import run_cnn
from toolkit.supervision.label_smoothing.convex import ConvexRecipe, run_convex
from toolkit.supervision.label_smoothing.data import Sample, draw_sample
from toolkit.supervision.label_smoothing.deviation import (
    Deviation,
    gradient_deviation,
    optimal_theta,
    smoothed_deviation,
)
from toolkit.supervision.label_smoothing.experiments import (
    first_above,
    introduced_labels,
    run_deviation,
    run_drops,
    run_network,
)
from toolkit.supervision.label_smoothing.loss import smoothed_cross_entropy
from toolkit.supervision.label_smoothing.network import predictions, train
from toolkit.supervision.label_smoothing.quality import quality, reliability, temperatures
from toolkit.supervision.label_smoothing.recipe import (
    SHARED_RATES,
    TUNED_RATES,
    Arm,
    CnnRecipe,
    DeviationRecipe,
    DropRecipe,
    NetworkRecipe,
    Recipe,
    Study,
    crossing_recipes,
    parse_arm,
    path_recipe,
    studies,
)
from toolkit.supervision.label_smoothing.scale import ScaleRecipe, run_scale
from toolkit.supervision.label_smoothing.schedule import TwoStageSchedule
from toolkit.supervision.label_smoothing.theory import Plan, logit_gap, lsr_bound, tsla_plan

__all__ = [
    "PROFILES",
    "SHARED_RATES",
    "TUNED_RATES",
    "Arm",
    "CnnRecipe",
    "ConvexRecipe",
    "Deviation",
    "DeviationRecipe",
    "DropRecipe",
    "NetworkRecipe",
    "Plan",
    "Recipe",
    "Sample",
    "ScaleRecipe",
    "Study",
    "TwoStageSchedule",
    "crossing_recipes",
    "draw_sample",
    "experiment",
    "first_above",
    "gradient_deviation",
    "introduced_labels",
    "logit_gap",
    "lsr_bound",
    "optimal_theta",
    "parse_arm",
    "path_recipe",
    "predictions",
    "quality",
    "reliability",
    "run_cnn",
    "run_convex",
    "run_deviation",
    "run_drops",
    "run_network",
    "run_scale",
    "smoothed_cross_entropy",
    "smoothed_deviation",
    "studies",
    "temperatures",
    "train",
    "train_branches",
    "tsla_plan",
]

PROFILES: dict[str, Recipe] = {
    "quick": NetworkRecipe(),
    "full": NetworkRecipe(seeds=32),
    "paper": ScaleRecipe(),
}

RUNS = {
    ScaleRecipe: run_scale,
    ConvexRecipe: run_convex,
    DeviationRecipe: run_deviation,
    DropRecipe: run_drops,
    CnnRecipe: run_cnn,
    NetworkRecipe: run_network,
}


def experiment(
    recipe: Recipe, seed: int | Sequence[int], device: torch.device
) -> dict[str, float] | dict[str, np.ndarray]:
    """Run all arms of a recipe for one seed, or for several that are stacked.

    A seed gives the same numbers alone and among others. Learning rates are the recipe's: the
    chapter tunes them on seeds from 10,000 on.

    Returns:
        `"ARM/METRIC"` or `"ARM/METRIC@x"`: a number, or one value a seed where `seed` is a list;
        see `run_network`, `run_cnn`, `run_deviation`, `run_drops`, `run_convex`, `run_scale`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    run = RUNS.get(type(recipe))
    if run is None:
        raise TypeError(f"need a recipe of label_smoothing, got {type(recipe).__name__}")
    seeds = [int(s) for s in seed] if isinstance(seed, Sequence) else [int(seed)]
    results = run(recipe, seeds, device)  # type: ignore[operator]
    if isinstance(seed, Sequence):
        return results
    return {name: float(values[0]) for name, values in results.items()}
