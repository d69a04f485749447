"""GPU-efficient networks (Lin et al. 2020, arXiv:2006.14090).

`networks` holds the block types and the three GENets, `rank` the intrinsic rank of kernels, `llr`
the search LLR-NAS, `placement` assignments of types to stages at equal latency, `facts` published
timings; `recipe` and `training` are what the chapter runs, `reference` the latency table that its
choices rest on, and `scale` is the paper's own size. The structure language and the latency tables
are the part's: `toolkit.networks.structures`, `toolkit.networks.latency`.
"""

import torch

from toolkit.networks.genet.facts import (
    SPEED_TABLE,
    V100,
    V100_BANDWIDTH,
    V100_PEAK,
    V100_RATIOS,
    V100_ROWS,
    V100Row,
)
from toolkit.networks.genet.llr import (
    LLR,
    Found,
    Option,
    SearchSpace,
    StageTimes,
    draw_structures,
)
from toolkit.networks.genet.networks import (
    GENETS,
    RESOLUTION,
    TIMM_NAMES,
    TYPES,
    copy_weights,
    fuse_bn,
    genet,
    typed,
)
from toolkit.networks.genet.placement import match_latency, place
from toolkit.networks.genet.rank import kernel_spectrum, rank_stats, stage_ranks
from toolkit.networks.genet.recipe import (
    FULL,
    LATENCY_BATCH,
    MASTER,
    PLACEMENTS,
    QUICK,
    RES,
    SPACE,
    Recipe,
    tuning_grid,
)
from toolkit.networks.genet.reference import reference_table
from toolkit.networks.genet.scale import PaperRecipe, run_scale
from toolkit.networks.genet.training import (
    distil,
    draw_variants,
    llr_study,
    placements,
    rank_study,
    train,
    train_structure,
    variant_records,
)
from toolkit.networks.images import load_splits

__all__ = [
    "FULL",
    "GENETS",
    "LATENCY_BATCH",
    "LLR",
    "MASTER",
    "PLACEMENTS",
    "PROFILES",
    "QUICK",
    "RES",
    "RESOLUTION",
    "SPACE",
    "SPEED_TABLE",
    "TIMM_NAMES",
    "TYPES",
    "V100",
    "V100_BANDWIDTH",
    "V100_PEAK",
    "V100_RATIOS",
    "V100_ROWS",
    "Found",
    "Option",
    "PaperRecipe",
    "Recipe",
    "SearchSpace",
    "StageTimes",
    "V100Row",
    "copy_weights",
    "distil",
    "draw_structures",
    "draw_variants",
    "experiment",
    "fuse_bn",
    "genet",
    "kernel_spectrum",
    "llr_study",
    "load_splits",
    "match_latency",
    "place",
    "placements",
    "rank_stats",
    "rank_study",
    "reference_table",
    "run_scale",
    "stage_ranks",
    "train",
    "train_structure",
    "tuning_grid",
    "typed",
    "variant_records",
]

PROFILES: dict[str, Recipe] = {"quick": QUICK, "full": FULL, "paper": PaperRecipe()}


def experiment(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train every placement of block types; at the paper's scale, train or time the GENets.

    Returns:
        See `placements` and `run_scale`.
    """
    if isinstance(recipe, PaperRecipe):
        return run_scale(recipe, seed, device)
    return placements(recipe, seed, device)
