"""Self-supervised video representation by context and motion decoupling (arXiv:2104.00862).

Huang et al. 2021. `videos` reads compressed videos, `transform` crops and mirrors pictures and
vectors together, `network` and `loss` are the method, `pretext` trains, `probes` asks what was
learnt, `study` is the whole experiment for one seed, `codec` measures motion vectors themselves,
and `scale` is the paper's own size.
"""

from dataclasses import replace

import torch

from toolkit.data.motion_vectors import rasterize_mvs
from toolkit.representation.context_motion.codec import error_study, reading_speeds, vector_errors
from toolkit.representation.context_motion.loss import pointwise_info_nce
from toolkit.representation.context_motion.network import (
    ContextMotionNet,
    LinearPredictor,
    MotionPredictor,
    ProjectionHead,
    tiny_network,
)
from toolkit.representation.context_motion.pretext import (
    arm_loss,
    fastest,
    motion_loss,
    motion_scores,
    pretrain_context_motion,
    trained,
)
from toolkit.representation.context_motion.probes import (
    action_scores,
    bias_scores,
    clip_features,
    scene_scores,
    splits,
    vector_histogram,
)
from toolkit.representation.context_motion.recipe import Recipe
from toolkit.representation.context_motion.scale import PaperRecipe, run_paper
from toolkit.representation.context_motion.study import run_references, run_study, tuning_grid
from toolkit.representation.context_motion.transform import MotionTransform, View
from toolkit.representation.context_motion.videos import (
    MotionVideos,
    exact_motion,
    fill_intra,
    keyframe_near,
    load_motion_videos,
    negative_starts,
)

__all__ = [
    "PROFILES",
    "ContextMotionNet",
    "LinearPredictor",
    "MotionPredictor",
    "MotionTransform",
    "MotionVideos",
    "PaperRecipe",
    "ProjectionHead",
    "Recipe",
    "View",
    "action_scores",
    "arm_loss",
    "bias_scores",
    "clip_features",
    "error_study",
    "exact_motion",
    "experiment",
    "fastest",
    "fill_intra",
    "keyframe_near",
    "load_motion_videos",
    "motion_loss",
    "motion_scores",
    "negative_starts",
    "pointwise_info_nce",
    "pretrain_context_motion",
    "rasterize_mvs",
    "reading_speeds",
    "run_paper",
    "run_references",
    "run_study",
    "scene_scores",
    "splits",
    "studies",
    "tiny_network",
    "trained",
    "tuning_grid",
    "vector_errors",
    "vector_histogram",
]


def studies(profile: str) -> dict[str, Recipe]:
    """Every setting of the chapter's networks, by the study it belongs to.

    `main` decides the primary claims. Only in `full`: `labels` trains on labels, alone and with
    motion prediction; `released` flips and crops as the released code does; the others change one
    thing each.

    Args:
        profile: `"quick"` or `"full"`.

    Raises:
        ValueError: for another profile.
    """
    if profile == "quick":
        return {"main": Recipe()}
    if profile != "full":
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    main = Recipe(seeds=5, size="large")
    motion = replace(main, arms=("motion",), seeds=2)
    once = replace(motion, seeds=1)
    return {
        "main": main,
        "labels": replace(main, arms=("supervised", "supervised_motion")),
        "design": replace(main, arms=("regression", "linear"), seeds=2),
        "released": replace(motion, aware=False),
        "gap0": replace(motion, gap=0),
        "negatives0": replace(motion, negatives=0),
        "overlap": replace(once, gap=-13),
        "shared_crop": replace(once, shared_crop=True),
        "strangers": replace(once, kin=1),
        "everywhere": replace(once, queries=49),
        "peers": replace(once, arms=("mosi", "pace")),
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
        raise TypeError(f"need a recipe of context_motion, got {type(recipe).__name__}")
    return run_study(recipe, seed, device)
