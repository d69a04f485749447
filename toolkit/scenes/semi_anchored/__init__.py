"""Semi-anchored detector for one-stage object detection (Chen, Qian, Li 2020, arXiv:2009.04989).

`assign` says which sample answers for which object, `losses` what is minimised, `detector` is one
network with the three heads, `cost` counts; `training` and `study` are the small experiment,
`scale` is the paper's own size. Only the abstract was at hand: what it leaves open is our
reconstruction, and each such choice is an option.
"""

from dataclasses import replace

import torch

from toolkit.scenes.anchors import make_anchors
from toolkit.scenes.semi_anchored.assign import (
    assign_anchors,
    assign_centres,
    assign_locations,
)
from toolkit.scenes.semi_anchored.cost import head_cost
from toolkit.scenes.semi_anchored.detector import OneStageDetector
from toolkit.scenes.semi_anchored.losses import centreness, dr_loss
from toolkit.scenes.semi_anchored.recipe import ARMS, Recipe
from toolkit.scenes.semi_anchored.scale import PaperRecipe, run_paper
from toolkit.scenes.semi_anchored.study import ASPECTS, run_study, sample_counts
from toolkit.scenes.semi_anchored.training import train_detector

__all__ = [
    "ARMS",
    "ASPECTS",
    "PROFILES",
    "OneStageDetector",
    "PaperRecipe",
    "Recipe",
    "assign_anchors",
    "assign_centres",
    "assign_locations",
    "centreness",
    "dr_loss",
    "experiment",
    "head_cost",
    "make_anchors",
    "run_paper",
    "run_study",
    "sample_counts",
    "studies",
    "train_detector",
]


def studies(profile: str) -> dict[str, Recipe]:
    """Every setting of the chapter's networks, by the study it belongs to.

    `main` decides the claims; only in `full`: `control` has objects in square boxes, `variants`
    are other ways to choose samples and to classify.

    Args:
        profile: `"quick"` or `"full"`.

    Raises:
        ValueError: for another profile.
    """
    if profile == "quick":
        return {"main": Recipe(test_images=100)}
    if profile != "full":
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    main = Recipe(
        arms=("retina", "fcos", "semi", "semi_iou"), seeds=5, steps=240, decodes=("all", "mean")
    )
    control = replace(main, arms=("fcos", "semi"), aspect=1, decodes=())
    others = ("fcos_center", "fcos_centreness", "semi_center", "semi_dr")
    variants = replace(main, arms=others, seeds=2, decodes=())
    return {"main": main, "control": control, "variants": variants}


PROFILES: dict[str, Recipe | PaperRecipe] = {
    "quick": studies("quick")["main"],
    "full": studies("full")["main"],
    "paper": PaperRecipe(),
}


def experiment(recipe: Recipe | PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Run all arms of a recipe for one seed.

    Returns:
        `"ARM/METRIC"`, and `"ARM/loss@STEP"`; see `run_study` and `run_paper`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    if isinstance(recipe, PaperRecipe):
        return run_paper(recipe, seed, device)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"need a recipe of semi_anchored, got {type(recipe).__name__}")
    return run_study(recipe, seed, device)
