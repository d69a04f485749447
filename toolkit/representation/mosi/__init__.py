"""Self-supervised motion learning from static images (Huang et al. 2021, arXiv:2104.00240).

`generator` makes labelled clips out of stills; `network` holds the video networks and their maps,
`pointing` the pointing game; `clips` are the action videos, `pretext` trains without labels,
`probes` asks what was learnt, `study` is the whole experiment for one seed, and `scale` is the
paper's own size.
"""

from dataclasses import replace

import torch

from toolkit.representation.mosi.clips import (
    STARTS,
    VideoSet,
    all_windows,
    frozen,
    load_videos,
    photograph_stills,
    shuffled,
    windows,
)
from toolkit.representation.mosi.generator import (
    MotionClass,
    mirror,
    pseudo_motion,
    static_mask,
    window_path,
)
from toolkit.representation.mosi.network import MoSINet, TinyVideoNet, cam, standardise
from toolkit.representation.mosi.pointing import difference_map, edge_map, pointing_game
from toolkit.representation.mosi.pretext import mosi_batch, pretext_batches, pretrain_mosi
from toolkit.representation.mosi.probes import clip_features, fine_tune, frozen_scores, hand_crafted
from toolkit.representation.mosi.recipe import Recipe
from toolkit.representation.mosi.scale import PaperRecipe, run_paper
from toolkit.representation.mosi.study import (
    fine_tuning_grid,
    run_references,
    run_study,
    tuning_grid,
)

__all__ = [
    "PROFILES",
    "STARTS",
    "MoSINet",
    "MotionClass",
    "PaperRecipe",
    "Recipe",
    "TinyVideoNet",
    "VideoSet",
    "all_windows",
    "cam",
    "clip_features",
    "difference_map",
    "edge_map",
    "experiment",
    "fine_tune",
    "fine_tuning_grid",
    "frozen",
    "frozen_scores",
    "hand_crafted",
    "load_videos",
    "mirror",
    "mosi_batch",
    "photograph_stills",
    "pointing_game",
    "pretext_batches",
    "pretrain_mosi",
    "pseudo_motion",
    "run_paper",
    "run_references",
    "run_study",
    "shuffled",
    "standardise",
    "static_mask",
    "studies",
    "tuning_grid",
    "window_path",
    "windows",
]


def studies(profile: str) -> dict[str, Recipe]:
    """Every setting of the chapter's networks, by the study it belongs to.

    `main` decides most claims. Only in `full`: `few_unmasked` fine-tunes *unmasked* with 2 labels,
    `blind` trains on labels without the order of frames, `peers` are other pretext tasks,
    `variants` other ways to run MoSI, one of them a control.

    Args:
        profile: `"quick"` or `"full"`.

    Raises:
        ValueError: for another profile.
    """
    if profile == "quick":
        return {"main": Recipe()}
    if profile != "full":
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    main = Recipe(
        arms=("random", "masked", "unmasked", "flip_wrong", "stills"),
        seeds=5,
        size="medium",
        source_levels=("easy", "hard"),
        levels=("easy", "hard"),
        steps=200,
        labels=(2, 5, 10, 0),
        tuned_arms=("scratch", "masked"),
        tuned_levels=("easy", "hard"),
    )
    few = replace(main, arms=())
    side = replace(main, labels=(), tuned_arms=())
    blind = ("scratch_shuffled", "scratch_frame")
    variants = ("shuffled", "flicker", "pairs25", "separate", "subpixel")
    return {
        "main": main,
        "few_unmasked": replace(few, labels=(2,), tuned_arms=("unmasked",)),
        "blind": replace(few, seeds=3, labels=(0,), tuned_arms=blind),
        "peers": replace(side, arms=("rotation", "pace")),
        "variants": replace(side, seeds=3, arms=variants),
    }


PROFILES: dict[str, Recipe | PaperRecipe] = {
    "quick": studies("quick")["main"],
    "full": studies("full")["main"],
    "paper": PaperRecipe(),
}


def experiment(recipe: Recipe | PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Run all arms of a recipe for one seed.

    Returns:
        `"ARM/METRIC"`, and `"ARM/METRIC@SCENE"`; see `run_study` and `run_paper`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    if isinstance(recipe, PaperRecipe):
        return run_paper(recipe, seed, device)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"need a recipe of mosi, got {type(recipe).__name__}")
    return run_study(recipe, seed, device)
