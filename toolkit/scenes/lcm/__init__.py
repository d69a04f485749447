"""Learning position and target consistency for memory-based video object segmentation.

Hu et al. (2021), arXiv:2104.04329. `reads` are the ways to read a memory, `guidance` the paper's
two modules, `encoders` and `network` the whole method, `metrics` how masks are judged; `matcher`
learns nothing, `training` does, `study` holds the experiments and `scale` the paper's own size.
"""

import torch

from toolkit.scenes.backbone import pretrained_backbone
from toolkit.scenes.lcm.clips import TwinClips, load_twins, training_clips
from toolkit.scenes.lcm.guidance import ObjectRelation, PositionGuidance
from toolkit.scenes.lcm.matcher import (
    Read,
    Scores,
    enlarge,
    memory_frames,
    patch_keys,
    position_logits,
    score,
    training_free_propagate,
)
from toolkit.scenes.lcm.metrics import (
    area_matched,
    davis_evaluate,
    davis_f,
    davis_j,
    davis_statistics,
    leak,
)
from toolkit.scenes.lcm.network import LCM, Memory, soft_aggregate
from toolkit.scenes.lcm.reads import affinity, memory_read, position_guided_read, sine_position
from toolkit.scenes.lcm.recipe import ALPHAS, MatcherRecipe, Recipe
from toolkit.scenes.lcm.scale import PaperRecipe, run_paper
from toolkit.scenes.lcm.study import run_matcher, run_study
from toolkit.scenes.lcm.training import matching_loss, train_arm, train_base

__all__ = [
    "ALPHAS",
    "LCM",
    "PROFILES",
    "MatcherRecipe",
    "Memory",
    "ObjectRelation",
    "PaperRecipe",
    "PositionGuidance",
    "Read",
    "Recipe",
    "Scores",
    "TwinClips",
    "affinity",
    "area_matched",
    "davis_evaluate",
    "davis_f",
    "davis_j",
    "davis_statistics",
    "enlarge",
    "experiment",
    "leak",
    "load_twins",
    "matching_loss",
    "memory_frames",
    "memory_read",
    "patch_keys",
    "position_guided_read",
    "position_logits",
    "pretrained_backbone",
    "run_matcher",
    "run_paper",
    "run_study",
    "score",
    "sine_position",
    "soft_aggregate",
    "train_arm",
    "train_base",
    "training_clips",
    "training_free_propagate",
]

PROFILES: dict[str, Recipe | PaperRecipe] = {
    "quick": Recipe(),
    "full": Recipe(
        seeds=4,
        base_steps=1000,
        arm_steps=200,
        sets=("judge", "alone", "teleport", "long"),
        decoded=("grm", "lcm"),
        intervals=(1, 2, 5, 10, 0),
    ),
    "paper": PaperRecipe(),
}


def experiment(
    recipe: Recipe | MatcherRecipe | PaperRecipe, seed: int, device: torch.device
) -> dict[str, float]:
    """Run all arms of a recipe for one seed.

    Returns:
        `"ARM/METRIC"`, and `"ARM/METRIC@CLIP"`; see `run_study`, `run_matcher` and `run_paper`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    if isinstance(recipe, PaperRecipe):
        return run_paper(recipe, seed, device)
    if isinstance(recipe, MatcherRecipe):
        return run_matcher(recipe, seed, device)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"need a recipe of lcm, got {type(recipe).__name__}")
    return run_study(recipe, seed, device)
