"""The chapter's studies on the emoji shop: one seed of a recipe, all arms on one click log."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import ClickLog, simulate_clicks
from toolkit.search.virtual_id.clusters import VirtualIDs, community_labels
from toolkit.search.virtual_id.embedding import coclick_embedding
from toolkit.search.virtual_id.graph import coclick_graph, covered, pair_purity
from toolkit.search.virtual_id.recipe import RATES, GridRecipe, Recipe
from toolkit.search.virtual_id.shop import Shop, recall_at_1, shop_inputs
from toolkit.search.virtual_id.training import arm_classes, evaluate, train_feature


@dataclass(frozen=True)
class Clicks:
    """A click log of the shop and what it was made into."""

    log: ClickLog
    graph: sparse.csr_array
    ids: VirtualIDs
    content: VirtualIDs
    """Clusters of the pictures' components, as many."""


def click_rates(p_other: float) -> tuple[float, float, float]:
    """Clicks on what is looked at: same product .6, same leaf 3 p_n (at most .45), others p_n."""
    return 0.6, min(3 * p_other, 0.45), p_other


@lru_cache(maxsize=2)
def clicks_of(recipe: Recipe | GridRecipe, seed: int) -> Clicks:
    """The log of a seed, its graph and its Virtual IDs; nothing here knows the products."""
    shop = shop_inputs(recipe.products, "components", torch.device("cpu"))
    log = simulate_clicks(recipe.products, recipe.visits, seed, click_rates(recipe.p_other))
    graph = coclick_graph(log, leaf=shop.leaf)
    embedding = coclick_embedding(
        graph, recipe.rank, "netmf", window=recipe.window, negatives=recipe.negatives
    )
    ids = VirtualIDs.fit(embedding, min(recipe.clusters, int(covered(graph).sum())), seed=seed)
    return Clicks(log, graph, ids, content_clusters(recipe.products, recipe.clusters, seed))


@lru_cache(maxsize=16)
def content_clusters(products: int, clusters: int, seed: int) -> VirtualIDs:
    """k-means on the components of the listings: what can be had without a click."""
    shop = shop_inputs(products, "components", torch.device("cpu"))
    return VirtualIDs.fit(shop.listings.numpy(), clusters, seed=seed)


def run_features(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """All arms of the Feature Network on one log.

    Returns:
        For each arm `arm/recall` on test, `arm/recall@5`… see `evaluate`; `pca/recall`, of the
        components themselves; `clusters/coclick`, `clusters/content`, `clusters/purity`,
        `clusters/covered` as `run_grid`.

    Raises:
        ValueError: unless there is one rate an arm, or an arm has none of its own.
    """
    rates = _rates(recipe)
    clicks = clicks_of(_clicks_key(recipe), seed)
    flat = shop_inputs(recipe.products, "components", torch.device("cpu"))
    kind = "pixels" if recipe.backbone == "conv" else "components"
    shop = shop_inputs(recipe.products, kind, device)
    results = cluster_quality(clicks, flat.product) | {
        "pca/recall": recall_at_1(flat.test, flat.listings, flat.test_product, flat.product),
        "pca/val": recall_at_1(flat.val, flat.listings, flat.val_product, flat.product),
    }
    for arm, rate in zip(recipe.arms, rates, strict=True):
        classes = arm_classes(arm, clicks.log, flat, clicks.ids, clicks.content, seed)
        net = train_feature(recipe, arm, rate, clicks.log, shop, classes, old_features(flat), seed)
        results |= {f"{arm}/{name}": value for name, value in evaluate(net, shop).items()}
    return results


def run_grid(recipe: GridRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """One cell of the phase diagram.

    Returns:
        `clusters/coclick` and `clusters/content`, the adjusted Rand index against products, both on
        the covered listings; `clusters/purity` of the pairs; `clusters/covered`, the share of
        listings with an edge; and `clusters/METHOD` for further methods on the same graph.
    """
    clicks = clicks_of(recipe, seed)
    truth = shop_inputs(recipe.products, "components", torch.device("cpu")).product
    results = cluster_quality(clicks, truth)
    mask = covered(clicks.graph)
    for method in recipe.methods:
        if method != "netmf":
            graph = (
                pooled_graph(clicks.log, recipe.products) if method == "pooled" else clicks.graph
            )
            labels = graph_clusters(recipe, method, graph, seed)
            results[f"clusters/{method}"] = adjusted_rand_score(truth[mask], labels[mask])
            results[f"count/{method}"] = float(len(labels[mask].unique()))
    return results


def graph_clusters(
    recipe: GridRecipe, method: str, graph: sparse.csr_array, seed: int
) -> Int64[Tensor, " nodes"]:
    """Clusters by another method than the closed form on single visits.

    `"sgns"` and `"node2vec"` (q = ½) embed by walks; `"pooled"` is the closed form again, for a
    graph of pooled visits; `"components"` are those of the edges heavier than the median; others as
    `community_labels`.
    """
    if method == "pooled":
        embedding = coclick_embedding(graph, recipe.rank, "netmf", window=recipe.window)
        return VirtualIDs.fit(embedding, recipe.clusters, seed=seed).labels
    if method in ("sgns", "node2vec"):
        embedding = coclick_embedding(
            graph,
            64,
            "sgns",
            recipe.walks,
            recipe.length,
            recipe.window,
            recipe.negatives,
            seed,
            away=0.5 if method == "node2vec" else 1.0,
        )
        return VirtualIDs.fit(embedding, recipe.clusters, seed=seed).labels
    threshold = float(np.median(graph.data)) if method == "components" else 0.0
    return community_labels(graph, method, recipe.clusters, seed, threshold)


def pooled_graph(log: ClickLog, products: int) -> sparse.csr_array:
    """The graph in which all visits with one photograph count as one."""
    leaf = shop_inputs(products, "components", torch.device("cpu")).leaf
    return coclick_graph(log, leaf=leaf, query_group=torch.arange(int(log.query.max()) + 1))


def cluster_quality(clicks: Clicks, truth: Int64[Tensor, " listings"]) -> dict[str, float]:
    """Co-click against content clusters on the same listings: those with an edge."""
    mask = torch.from_numpy(covered(clicks.graph))
    return {
        "clusters/coclick": adjusted_rand_score(truth[mask], clicks.ids.labels[mask]),
        "clusters/content": adjusted_rand_score(truth[mask], clicks.content.labels[mask]),
        "clusters/purity": pair_purity(clicks.graph, truth),
        "clusters/covered": float(mask.double().mean()),
    }


def old_features(shop: Shop) -> tuple[Tensor, Tensor]:
    """What the old engine compares: unit components of queries and listings."""
    return F.normalize(shop.queries, dim=1), F.normalize(shop.listings, dim=1)


def _rates(recipe: Recipe) -> tuple[float, ...]:
    known = RATES[recipe.backbone]
    if unknown := [arm for arm in recipe.arms if arm not in known]:
        raise ValueError(f"no arm is called {unknown[0]!r}; there are {', '.join(known)}")
    rates = recipe.rates or tuple(known[arm] for arm in recipe.arms)
    if len(rates) != len(recipe.arms):
        raise ValueError(f"{len(rates)} rates for the {len(recipe.arms)} arms")
    return rates


def _clicks_key(recipe: Recipe) -> GridRecipe:
    """What the log and its clusters depend on."""
    return GridRecipe(
        products=recipe.products,
        visits=recipe.visits,
        p_other=recipe.p_other,
        clusters=recipe.clusters,
        rank=recipe.rank,
        window=recipe.window,
        negatives=recipe.negatives,
    )
