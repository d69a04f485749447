"""Why does multi-epoch training help? (Xu, Qian, Li, Jin 2021, arXiv:2105.06015).

`sgd` holds the method, thousands of trajectories in one tensor; `theory` what can be computed
exactly beside it; `study`, `network` and `scale` the experiments, from a random problem in sixteen
dimensions to ResNet-18.
"""

from collections.abc import Sequence

import numpy as np
import torch

from toolkit.optimization.multipass_sgd.network import NetworkRecipe, run_network
from toolkit.optimization.multipass_sgd.scale import CifarRecipe, run_cifar
from toolkit.optimization.multipass_sgd.sgd import Trajectories, sgd_trajectories, visiting_orders
from toolkit.optimization.multipass_sgd.study import (
    Recipe,
    SineLinkRecipe,
    Tuned,
    doublings,
    log_grid,
    run_synthetic,
    synthetic_studies,
    tune_steps,
)
from toolkit.optimization.multipass_sgd.theory import (
    Decomposition,
    effective_reuse,
    empirical_minimiser,
    erm_floor,
    linear_moments,
    one_pass_bound,
    probe_landscape,
    reuse_moments,
)

__all__ = [
    "PROFILES",
    "CifarRecipe",
    "Decomposition",
    "NetworkRecipe",
    "Recipe",
    "SineLinkRecipe",
    "Trajectories",
    "Tuned",
    "doublings",
    "effective_reuse",
    "empirical_minimiser",
    "erm_floor",
    "experiment",
    "linear_moments",
    "log_grid",
    "one_pass_bound",
    "probe_landscape",
    "reuse_moments",
    "run_cifar",
    "run_network",
    "run_synthetic",
    "sgd_trajectories",
    "studies",
    "synthetic_studies",
    "tune_steps",
    "visiting_orders",
]

PROFILES: dict[str, Recipe] = {
    "quick": SineLinkRecipe(),
    "full": SineLinkRecipe(seeds=256, tuning_seeds=256, passes=doublings(128)),
    "paper": CifarRecipe(),
}


def studies(profile: str) -> dict[str, Sequence[Recipe]]:
    """Every setting of the chapter, by the study it belongs to.

    Args:
        profile: `"quick"` or `"full"`.

    Returns:
        The studies of `synthetic_studies` and `network` (C7).

    Raises:
        ValueError: for another profile.
    """
    if profile not in ("quick", "full"):
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    network = NetworkRecipe() if profile == "quick" else NetworkRecipe(seeds=32, tuning_seeds=16)
    return {**synthetic_studies(profile), "network": [network]}


def experiment(
    recipe: Recipe, seed: int | Sequence[int], device: torch.device
) -> dict[str, float] | dict[str, np.ndarray]:
    """Run all arms of a recipe for one seed, or for several that are stacked.

    A seed gives the same numbers alone and among others. Step sizes are tuned first, on
    seeds from 10,000 on.

    Returns:
        `"ARM/METRIC@x"`: a number, or one value a seed where `seed` is a list; see
        `run_synthetic`, `run_network`, `run_cifar`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    seeds = [int(s) for s in seed] if isinstance(seed, Sequence) else [int(seed)]
    if isinstance(recipe, CifarRecipe):
        results = run_cifar(recipe, seeds, device)
    elif isinstance(recipe, NetworkRecipe):
        results = run_network(recipe, seeds, device)
    elif isinstance(recipe, SineLinkRecipe):
        results = run_synthetic(recipe, seeds, device)
    else:
        raise TypeError(f"need a recipe of multipass_sgd, got {type(recipe).__name__}")
    if isinstance(seed, Sequence):
        return results
    return {name: float(values[0]) for name, values in results.items()}
