"""Improved knowledge distillation via full kernel matrix transfer (Qian, Li, Hu 2022, KDA).

`kernels` is the mathematics, `landmarks` and `losses` the method, `distiller` both in one loss;
`training` and `study` are the small experiment that `recipe` describes, `stack` trains many tiny
students side by side for a figure, `scale` is the paper's own size.
"""

from typing import Any

import torch

from toolkit.networks.nystrom_distillation.distiller import Distiller, Taps
from toolkit.networks.nystrom_distillation.kernels import (
    TransferBound,
    best_error,
    gram_distance,
    gram_norm,
    linear_cka,
    nystrom,
    nystrom_error,
    transfer_bound,
)
from toolkit.networks.nystrom_distillation.landmarks import (
    LandmarkBank,
    averaging_matrix,
    class_landmarks,
    gaussian_landmarks,
    kmeans_landmarks,
    random_landmarks,
)
from toolkit.networks.nystrom_distillation.losses import (
    at_loss,
    attention,
    gram_loss,
    hint_loss,
    kd_loss,
    kda_loss,
    rkd_loss,
    sp_loss,
)
from toolkit.networks.nystrom_distillation.recipe import ARMS, Recipe, studies
from toolkit.networks.nystrom_distillation.scale import PaperRecipe, run_paper
from toolkit.networks.nystrom_distillation.stack import (
    StackRecipe,
    pixels,
    stack_teacher,
    train_stack,
)
from toolkit.networks.nystrom_distillation.study import (
    LandmarkRecipe,
    compare,
    features_of_teacher,
    perturbed,
    run_landmarks,
    run_students,
)

__all__ = [
    "ARMS",
    "PROFILES",
    "Distiller",
    "LandmarkBank",
    "LandmarkRecipe",
    "PaperRecipe",
    "Recipe",
    "StackRecipe",
    "Taps",
    "TransferBound",
    "at_loss",
    "attention",
    "averaging_matrix",
    "best_error",
    "class_landmarks",
    "compare",
    "experiment",
    "features_of_teacher",
    "gaussian_landmarks",
    "gram_distance",
    "gram_loss",
    "gram_norm",
    "hint_loss",
    "kd_loss",
    "kda_loss",
    "kmeans_landmarks",
    "linear_cka",
    "nystrom",
    "nystrom_error",
    "perturbed",
    "pixels",
    "random_landmarks",
    "rkd_loss",
    "run_landmarks",
    "run_paper",
    "run_students",
    "sp_loss",
    "stack_teacher",
    "studies",
    "train_stack",
    "transfer_bound",
]

PROFILES: dict[str, Any] = {
    "quick": studies("quick")["main"][0],
    "full": studies("full")["main"][0],
    "paper": PaperRecipe(),
}


def experiment(recipe: Any, seed: int, device: torch.device) -> dict[str, float]:
    """Run all arms of a recipe for one seed; see `run_students`, `run_landmarks`, `run_paper`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    if isinstance(recipe, PaperRecipe):
        return run_paper(recipe, seed, device)
    if isinstance(recipe, LandmarkRecipe):
        return run_landmarks(recipe, seed, device)
    if isinstance(recipe, Recipe):
        return run_students(recipe, seed, device)
    raise TypeError(f"need a recipe of nystrom_distillation, got {type(recipe).__name__}")
