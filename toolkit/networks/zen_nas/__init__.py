"""Zen-NAS: networks ranked without training (Lin et al. 2021, arXiv:2102.01063).

`score` holds the Zen-score and the Φ-score, `closed` the closed form and the release's way to count
costs, `proxies` the rival rankings, `search` the evolution with its spaces and budgets, `chain` the
stripped network that all of them see. `theory` and `study` are what the chapter runs, `trained`
keeps the networks that its `full` profile trained, `scale` is the paper's own size. The structure
language is the part's: `toolkit.networks.structures`.
"""

import torch

from toolkit.networks.images import load_splits
from toolkit.networks.structures import BlockSpec, Network, build, parse
from toolkit.networks.zen_nas.chain import Chain, as_specs
from toolkit.networks.zen_nas.closed import (
    Term,
    closed_terms,
    official_count,
    taps,
    zen_closed_form,
)
from toolkit.networks.zen_nas.gates import Gate, add_gates
from toolkit.networks.zen_nas.many import closed_forms
from toolkit.networks.zen_nas.proxies import PROXIES, linear_regions, logits, ntk
from toolkit.networks.zen_nas.recipe import (
    BUDGET,
    CLASSES,
    FULL,
    QUICK,
    REPEATED,
    RES,
    SEARCHED,
    SPACE_FM,
    START,
    Recipe,
)
from toolkit.networks.zen_nas.scale import TARGETS, PaperRecipe, run_scale
from toolkit.networks.zen_nas.score import ZenResult, phi_score, zen_score
from toolkit.networks.zen_nas.search import (
    CIFAR_START,
    MAX_LAYERS,
    SPACE_I,
    SPACE_I_PAPER,
    SPACE_II,
    Budget,
    History,
    SearchConfig,
    evolve,
    random_structure,
    random_within,
)
from toolkit.networks.zen_nas.study import (
    CHECKPOINTS,
    as_numbers,
    iso_structures,
    partial_tau,
    random_search,
    score_structure,
    search,
    search_structure,
    structure_of,
    train_structure,
    wide_structures,
)
from toolkit.networks.zen_nas.theory import (
    TheoryRecipe,
    bn_match,
    hidden_width,
    overflow,
    plain,
)
from toolkit.networks.zen_nas.trained import recorded_networks

__all__ = [
    "BUDGET",
    "CHECKPOINTS",
    "CIFAR_START",
    "CLASSES",
    "FULL",
    "MAX_LAYERS",
    "PROFILES",
    "PROXIES",
    "QUICK",
    "REPEATED",
    "RES",
    "SEARCHED",
    "SPACE_FM",
    "SPACE_I",
    "SPACE_II",
    "SPACE_I_PAPER",
    "START",
    "TARGETS",
    "BlockSpec",
    "Budget",
    "Chain",
    "Gate",
    "History",
    "Network",
    "PaperRecipe",
    "Recipe",
    "SearchConfig",
    "Term",
    "TheoryRecipe",
    "ZenResult",
    "add_gates",
    "as_numbers",
    "as_specs",
    "bn_match",
    "build",
    "closed_forms",
    "closed_terms",
    "evolve",
    "experiment",
    "hidden_width",
    "iso_structures",
    "linear_regions",
    "load_splits",
    "logits",
    "ntk",
    "official_count",
    "overflow",
    "parse",
    "partial_tau",
    "phi_score",
    "plain",
    "random_search",
    "random_structure",
    "random_within",
    "recorded_networks",
    "run_scale",
    "score_structure",
    "search",
    "search_structure",
    "structure_of",
    "taps",
    "train_structure",
    "wide_structures",
    "zen_closed_form",
    "zen_score",
]

PROFILES: dict[str, Recipe] = {"quick": QUICK, "full": FULL, "paper": PaperRecipe()}


def experiment(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Search within the budget; at the paper's scale, search or train.

    Returns:
        See `search_structure` and `run_scale`.
    """
    if isinstance(recipe, PaperRecipe):
        return run_scale(recipe, seed, device)
    return search_structure(recipe, seed, device)
