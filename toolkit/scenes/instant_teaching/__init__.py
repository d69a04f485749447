"""Instant-Teaching: semi-supervised object detection (Zhou et al. 2021, arXiv:2103.11402).

`detector` is a small Faster R-CNN that accepts soft labels; `augment` and `mixing` make views,
`labels` the pseudo labels and their co-rectification, `teaching` the training step; `quality`
judges labels by a truth that training never sees, `study` is the small experiment, `scale` is the
paper's own size. Details that the text leaves open follow the authors' release.
"""

from dataclasses import replace

import torch

from toolkit.scenes.instant_teaching.augment import (
    View,
    clip_boxes,
    map_boxes,
    original,
    strong_augment,
    warp,
    weak_augment,
)
from toolkit.scenes.instant_teaching.detector import RCNN, Anatomy, TinyRCNN, one_hot, roi_losses
from toolkit.scenes.instant_teaching.labels import co_rectify, pseudo_label, rectify
from toolkit.scenes.instant_teaching.mixing import Example, mixup_pair, mosaic_pair
from toolkit.scenes.instant_teaching.quality import (
    Judged,
    judge_labels,
    label_ap,
    label_counts,
    precision_at_recall,
    precision_recall,
)
from toolkit.scenes.instant_teaching.recipe import ARMS, Recipe
from toolkit.scenes.instant_teaching.scale import PaperRecipe, run_paper
from toolkit.scenes.instant_teaching.study import (
    burn_ins,
    hidden,
    lessons,
    rectified_labels,
    run_study,
    write_labels,
)
from toolkit.scenes.instant_teaching.teaching import Batch, InstantTeacher

__all__ = [
    "ARMS",
    "PROFILES",
    "RCNN",
    "Anatomy",
    "Batch",
    "Example",
    "InstantTeacher",
    "Judged",
    "PaperRecipe",
    "Recipe",
    "TinyRCNN",
    "View",
    "burn_ins",
    "clip_boxes",
    "co_rectify",
    "experiment",
    "hidden",
    "judge_labels",
    "label_ap",
    "label_counts",
    "lessons",
    "map_boxes",
    "mixup_pair",
    "mosaic_pair",
    "one_hot",
    "original",
    "precision_at_recall",
    "precision_recall",
    "pseudo_label",
    "rectified_labels",
    "rectify",
    "roi_losses",
    "run_paper",
    "run_study",
    "strong_augment",
    "studies",
    "warp",
    "weak_augment",
    "write_labels",
]


def studies(profile: str) -> dict[str, Recipe]:
    """Every setting of the chapter, by the study it belongs to.

    `main` decides the claims; only in `full`: `tuning` chooses rates and threshold on validation
    scenes, `extras` are arms beside the paper's, on two seeds.

    Args:
        profile: `"quick"` or `"full"`.

    Raises:
        ValueError: for another profile.
    """
    if profile == "quick":
        arms = ("static", "instant", "co_rectify")
        return {"main": Recipe(arms=arms, burn_in=240, steps=80, lr=4e-3, test_images=100)}
    if profile != "full":
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    main = Recipe(seeds=5)
    tuned = ("supervised", "static", "instant")
    others = ("ema", "oracle", "co_rectify_1", "refresh20", "refresh80", "tau30", "tau70", "tau90")
    return {
        "main": main,
        "tuning": replace(main, arms=tuned, seeds=2, judge="val", test_images=100),
        "extras": replace(main, arms=others, seeds=2),
    }


PROFILES: dict[str, Recipe | PaperRecipe] = {
    "quick": studies("quick")["main"],
    "full": studies("full")["main"],
    "paper": PaperRecipe(),
}


def experiment(recipe: Recipe | PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Run all arms of a recipe for one seed.

    Returns:
        `"ARM/METRIC"`; see `run_study` and `run_paper`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    if isinstance(recipe, PaperRecipe):
        return run_paper(recipe, seed, device)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"need a recipe of instant_teaching, got {type(recipe).__name__}")
    return run_study(recipe, seed, device)
