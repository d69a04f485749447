"""Learning with noisily labeled data (Xu, Qian, Li, Jin 2021, arXiv:2104.04114).

`label_noise` holds what label noise does to a label and the threshold's closed form; `kernel_flow`
the solvable model and `kernel_study` its curves on real images; `memorisation` the measures;
`stack`, `training` and `baselines` train networks side by side; `recipe` names the settings and
`scale` is ResNet-18 on CIFAR.
"""

from collections.abc import Sequence

import numpy as np
import torch

from toolkit.supervision.noisy_labels.baselines import out_of_fold, run_network
from toolkit.supervision.noisy_labels.kernel_flow import KernelFlow, relu_ntk, unit_rows
from toolkit.supervision.noisy_labels.kernel_study import (
    KernelCurves,
    KernelTask,
    centred_labels,
    fashion_task,
    given_labels,
    kernel_curves,
    simulated_risk,
)
from toolkit.supervision.noisy_labels.label_noise import (
    crossing,
    label_variance,
    noise_to_signal,
    phase_threshold,
    signal,
)
from toolkit.supervision.noisy_labels.memorisation import (
    delta_curve,
    memorisation,
    small_loss_select,
)
from toolkit.supervision.noisy_labels.recipe import NetworkRecipe, Recipe, network_studies
from toolkit.supervision.noisy_labels.scale import ScaleRecipe, run_scale
from toolkit.supervision.noisy_labels.stack import Stack
from toolkit.supervision.noisy_labels.training import History, train_noisy, transition_matrix

__all__ = [
    "PROFILES",
    "History",
    "KernelCurves",
    "KernelFlow",
    "KernelTask",
    "NetworkRecipe",
    "Recipe",
    "ScaleRecipe",
    "Stack",
    "centred_labels",
    "crossing",
    "delta_curve",
    "experiment",
    "fashion_task",
    "given_labels",
    "kernel_curves",
    "label_variance",
    "memorisation",
    "noise_to_signal",
    "out_of_fold",
    "phase_threshold",
    "relu_ntk",
    "run_network",
    "run_scale",
    "signal",
    "simulated_risk",
    "small_loss_select",
    "studies",
    "train_noisy",
    "transition_matrix",
    "unit_rows",
]

PROFILES: dict[str, Recipe] = {
    "quick": network_studies("quick")["main"],
    "full": network_studies("full")["main"],
    "paper": ScaleRecipe(),
}


def studies(profile: str) -> dict[str, NetworkRecipe]:
    """Every setting of the chapter's networks, by the study it belongs to.

    Args:
        profile: `"quick"` or `"full"`.

    Raises:
        ValueError: for another profile.
    """
    if profile not in ("quick", "full"):
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    return network_studies(profile)


def experiment(
    recipe: Recipe, seed: int | Sequence[int], device: torch.device
) -> dict[str, float] | dict[str, np.ndarray]:
    """Run all arms of a recipe for one seed, or for several that are stacked.

    A seed gives the same numbers alone and among others.

    Returns:
        `"ARM/METRIC_EPOCH@RATE"`: a number, or one value a seed where `seed` is a list; see
        `run_network` and `run_scale`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    if isinstance(recipe, ScaleRecipe):
        return run_scale(recipe, seed, device)
    if not isinstance(recipe, NetworkRecipe):
        raise TypeError(f"need a recipe of noisy_labels, got {type(recipe).__name__}")
    seeds = [int(s) for s in seed] if isinstance(seed, Sequence) else [int(seed)]
    results = run_network(recipe, seeds, device)
    if isinstance(seed, Sequence):
        return results
    return {name: float(values[0]) for name, values in results.items()}
