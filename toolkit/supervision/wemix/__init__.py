"""WeMix: how to better utilize data augmentation (Xu et al. 2020, arXiv:2010.01267).

`method` holds AugDrop, MixLoss and WeMix, `augment` what they are applied to, `bias` and `theory`
why they help; `training` runs the small experiment that `recipe` describes, `shop` a case where the
augmentation points towards the target, `scale` CIFAR and folders of images under torchrun.
"""

from typing import Any

import torch

from toolkit.supervision.wemix.augment import (
    affine,
    augmentation,
    colour,
    cutmix,
    mixup,
    rand_augment,
    trivial_augment,
)
from toolkit.supervision.wemix.bias import domain_gap, gradient_bias
from toolkit.supervision.wemix.method import (
    PRESETS,
    Plan,
    WeMixSchedule,
    additive_loss,
    mix_loss,
    stage,
    wemix_step,
)
from toolkit.supervision.wemix.recipe import Recipe
from toolkit.supervision.wemix.scale import PaperRecipe, run_paper
from toolkit.supervision.wemix.shop import ShopRecipe, run_shop, shop_study
from toolkit.supervision.wemix.study import METHODS, STRENGTHS, studies
from toolkit.supervision.wemix.theory import (
    Bowls,
    augdrop_bound,
    augdrop_weights,
    bias_floor,
    isotropic_risk,
    logistic_path,
    mixloss_weights,
    optimal_lambda,
    simulate_sequence_model,
)
from toolkit.supervision.wemix.training import (
    arm_schedule,
    batches,
    fashion_task,
    rate_factor,
    run_small,
    small_cnn,
    train,
)

__all__ = [
    "METHODS",
    "PRESETS",
    "PROFILES",
    "STRENGTHS",
    "Bowls",
    "PaperRecipe",
    "Plan",
    "Recipe",
    "ShopRecipe",
    "WeMixSchedule",
    "additive_loss",
    "affine",
    "arm_schedule",
    "augdrop_bound",
    "augdrop_weights",
    "augmentation",
    "batches",
    "bias_floor",
    "colour",
    "cutmix",
    "domain_gap",
    "experiment",
    "fashion_task",
    "gradient_bias",
    "isotropic_risk",
    "logistic_path",
    "mix_loss",
    "mixloss_weights",
    "mixup",
    "optimal_lambda",
    "rand_augment",
    "rate_factor",
    "run_paper",
    "run_shop",
    "run_small",
    "shop_study",
    "simulate_sequence_model",
    "small_cnn",
    "stage",
    "studies",
    "train",
    "trivial_augment",
    "wemix_step",
]

PROFILES: dict[str, Any] = {
    "quick": Recipe(seeds=4),
    "full": Recipe(seeds=8),
    "paper": PaperRecipe(),
}


def experiment(recipe: Any, seed: int, device: torch.device) -> dict[str, float]:
    """Run all arms of a recipe for one seed; see `run_small`, `run_shop`, `run_paper`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    if isinstance(recipe, PaperRecipe):
        return run_paper(recipe, seed, device)
    if isinstance(recipe, ShopRecipe):
        return run_shop(recipe, seed, device)
    if isinstance(recipe, Recipe):
        return run_small(recipe, seed, device)
    raise TypeError(f"need a recipe of wemix, got {type(recipe).__name__}")
