"""Co-click graphs: what is clicked in one visit is joined (Section "graph" of the method)."""

import numpy as np
import torch
from jaxtyping import Int
from scipy import sparse
from torch import Tensor

from toolkit.data import ClickLog


def coclick_graph(
    log: ClickLog,
    node: str = "item",
    max_clicks: int = 20,
    normalise: bool = True,
    min_weight: float = 0.0,
    *,
    leaf: Int[Tensor, " listings"],
    query_group: Int[Tensor, " queries"] | None = None,
) -> sparse.csr_array:
    """Join whatever one visitor clicked.

    Every unordered pair of a visit's clicked set S adds 1 / (|S| − 1) to its weight A_ij, so that
    each clicked node of a visit adds 1 to its own degree, however long the visit was.

    Args:
        log: the visits.
        node: `"item"` joins listings; `"category"` maps them to leaf categories first.
        max_clicks: visits with more clicked listings are robots and count for nothing.
        normalise: False adds 1 for a pair instead.
        min_weight: lighter edges are dropped.
        leaf: the leaf category of every listing; its length is the number of items.
        query_group: joins visits of near-identical photographs: queries of one number are treated
            as one, and what was clicked in any of their visits is one set.

    Returns:
        A, symmetric with a zero diagonal: [listings, listings], or [leaves, leaves] up to the
        largest leaf.

    Raises:
        ValueError: for another `node`, a limit below 2, a negative or non-finite `min_weight`, or a
            listing that `leaf` does not know.
    """
    _check_graph(log, node, max_clicks, min_weight, leaf)
    clicks = _incidence(log, len(leaf), query_group)
    size = clicks.sum(axis=1)
    clicks = clicks[(size > 1) & (size <= max_clicks)]
    if node == "category":
        belongs = sparse.csr_array((np.ones(len(leaf)), (np.arange(len(leaf)), leaf.numpy())))
        clicks = ((clicks @ belongs) > 0).astype(float)
        clicks = clicks[clicks.sum(axis=1) > 1]
    each = 1 / (clicks.sum(axis=1) - 1) if normalise else np.ones(clicks.shape[0])
    weight = sparse.csr_array(clicks.T @ sparse.diags_array(each) @ clicks)
    weight.setdiag(0)
    weight.data[weight.data < min_weight] = 0
    weight.eliminate_zeros()
    weight.sort_indices()
    return weight


def covered(graph: sparse.csr_array) -> np.ndarray:
    """Which nodes have an edge, as booleans [N]."""
    return np.asarray(graph.sum(axis=1)).ravel() > 0


def pair_purity(graph: sparse.csr_array, truth: Int[Tensor, " nodes"]) -> float:
    """The share of co-click weight that joins nodes of one true class (for evaluation only)."""
    edges = graph.tocoo()
    rows, columns = edges.coords
    label = truth.numpy()
    return float(edges.data[label[rows] == label[columns]].sum() / max(edges.data.sum(), 1e-12))


def check_graph(graph: sparse.csr_array) -> None:
    """Refuse what is no weighted undirected graph.

    Raises:
        ValueError: if it is not square and symmetric, or a weight is negative or not finite.
    """
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(f"a graph is a square matrix, got shape {graph.shape}")
    if not np.isfinite(graph.data).all() or (graph.data < 0).any():
        raise ValueError("co-click weights must be finite and not negative")
    if abs(graph - graph.T).max() > 1e-9 * max(1.0, abs(graph).max()):
        raise ValueError("a co-click graph must be symmetric")


def _incidence(
    log: ClickLog, items: int, query_group: Int[Tensor, " queries"] | None
) -> sparse.csr_array:
    """Who clicked what, 0 or 1: a listing that was shown twice in a visit counts once."""
    visit, slot = log.clicked.nonzero(as_tuple=True)
    visitor = torch.arange(len(log.query)) if query_group is None else query_group[log.query]
    key = torch.unique(visitor[visit] * items + log.shown[visit, slot]).numpy()
    shape = (int(visitor.max()) + 1 if len(visitor) else 0, items)
    return sparse.csr_array((np.ones(len(key)), (key // items, key % items)), shape=shape)


def _check_graph(
    log: ClickLog, node: str, max_clicks: int, min_weight: float, leaf: Tensor
) -> None:
    if node not in ("item", "category"):
        raise ValueError(f"node is 'item' or 'category', got {node!r}")
    if max_clicks < 2:
        raise ValueError(f"max_clicks must be at least 2, got {max_clicks}")
    if not (np.isfinite(min_weight) and min_weight >= 0):
        raise ValueError(f"min_weight must be finite and not negative, got {min_weight}")
    if len(log.shown) and not 0 <= int(log.shown.min()) <= int(log.shown.max()) < len(leaf):
        raise ValueError(f"the log shows a listing outside the {len(leaf)} that have a leaf")
