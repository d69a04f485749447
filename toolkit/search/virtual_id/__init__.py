"""Virtual IDs: labels from co-clicks (Zhang et al., CIKM 2019, arXiv:2102.04667).

`graph`, `embedding` and `clusters` turn a click log into Virtual IDs; `losses`, `networks` and
`examples` are what the two networks learn from it. `shop`, `training`, `study` and `sides` are the
chapter's experiments, `scale` the paper's own setting under torchrun.
"""

from collections.abc import Callable
from typing import Any

import torch

from toolkit.search.virtual_id.clusters import VirtualIDs, best_k, community_labels
from toolkit.search.virtual_id.embedding import (
    closed_form,
    coclick_embedding,
    factorise,
    random_walks,
)
from toolkit.search.virtual_id.examples import (
    Lists,
    draw_lists,
    draw_triplets,
    first_clicks,
    majority_category,
    switches,
)
from toolkit.search.virtual_id.graph import coclick_graph, covered, pair_purity
from toolkit.search.virtual_id.losses import (
    ListLoss,
    first_click_loss,
    inverse_propensity,
    listwise_click_loss,
    switch_click_loss,
)
from toolkit.search.virtual_id.networks import CategoryNetwork, FeatureNetwork
from toolkit.search.virtual_id.recipe import (
    FEATURE_ARMS,
    METHODS,
    RATES,
    BiasRecipe,
    BudgetRecipe,
    CategoryRecipe,
    GridRecipe,
    Recipe,
    TrafficRecipe,
    studies,
    tuning_grid,
)
from toolkit.search.virtual_id.scale import PaperRecipe, run_paper
from toolkit.search.virtual_id.shop import recall_at_1, shop_inputs
from toolkit.search.virtual_id.sides import (
    copied_order,
    look_alikes,
    run_bias,
    run_budgets,
    run_categories,
    run_traffic,
    train_category,
    virtual_categories,
    without_position_bias,
)
from toolkit.search.virtual_id.study import (
    click_rates,
    clicks_of,
    graph_clusters,
    old_features,
    run_features,
    run_grid,
)
from toolkit.search.virtual_id.training import (
    Classes,
    arm_classes,
    click_classes,
    evaluate,
    feature_network,
    train_feature,
)

__all__ = [
    "FEATURE_ARMS",
    "METHODS",
    "PROFILES",
    "RATES",
    "BiasRecipe",
    "BudgetRecipe",
    "CategoryNetwork",
    "CategoryRecipe",
    "Classes",
    "FeatureNetwork",
    "GridRecipe",
    "ListLoss",
    "Lists",
    "PaperRecipe",
    "Recipe",
    "TrafficRecipe",
    "VirtualIDs",
    "arm_classes",
    "best_k",
    "click_classes",
    "click_rates",
    "clicks_of",
    "closed_form",
    "coclick_embedding",
    "coclick_graph",
    "community_labels",
    "copied_order",
    "covered",
    "draw_lists",
    "draw_triplets",
    "evaluate",
    "experiment",
    "factorise",
    "feature_network",
    "first_click_loss",
    "first_clicks",
    "graph_clusters",
    "inverse_propensity",
    "listwise_click_loss",
    "look_alikes",
    "majority_category",
    "old_features",
    "pair_purity",
    "random_walks",
    "recall_at_1",
    "run_bias",
    "run_budgets",
    "run_categories",
    "run_features",
    "run_grid",
    "run_paper",
    "run_traffic",
    "shop_inputs",
    "studies",
    "switch_click_loss",
    "switches",
    "train_category",
    "train_feature",
    "tuning_grid",
    "virtual_categories",
    "without_position_bias",
]

PROFILES = {
    "quick": studies("quick")["features"][0],
    "full": studies("full")["features"][0],
    "paper": PaperRecipe(),
}


def experiment(recipe: Any, seed: int, device: torch.device) -> dict[str, float]:
    """Run all arms of a recipe for one seed: of the click log, the weights and the batches.

    Returns:
        `"ARM/METRIC"`; see `run_features`, `run_grid`, `run_categories`, `run_bias`, `run_budgets`,
        `run_traffic` and `run_paper`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    for kind, run in RUNS.items():
        if isinstance(recipe, kind):
            return run(recipe, seed, device)
    raise TypeError(f"need a recipe of virtual_id, got {type(recipe).__name__}")


RUNS: dict[type, Callable[..., dict[str, float]]] = {
    Recipe: run_features,
    GridRecipe: run_grid,
    CategoryRecipe: run_categories,
    BiasRecipe: run_bias,
    BudgetRecipe: run_budgets,
    TrafficRecipe: run_traffic,
    PaperRecipe: run_paper,
}
"""What runs a recipe of each kind."""
