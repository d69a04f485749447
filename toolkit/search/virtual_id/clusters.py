"""Virtual IDs: clusters of the co-click embedding, and what else could make them."""

from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn import functional as F

from toolkit.search.virtual_id.graph import check_graph, covered


@dataclass(frozen=True)
class VirtualIDs:
    """A pseudo-label for every node of a co-click graph."""

    labels: Int64[Tensor, "nodes"]
    """v(i) from 0 to k − 1; −1 where a node has none."""
    k: int
    """How many there are; after `match_to` some numbers may be unused."""

    @classmethod
    def fit(
        cls,
        embedding: Float[np.ndarray, "nodes dim"],
        k: int,
        covered_mask: Bool[np.ndarray, "nodes"] | None = None,
        seed: int = 0,
    ) -> "VirtualIDs":
        """k-means on the length-normalised rows (their norm is mere popularity).

        Args:
            embedding: Φ.
            k: how many clusters.
            covered_mask: the nodes that take part; by default those whose row is not zero. The
                others get −1.
            seed: of k-means++.

        Raises:
            ValueError: if k is below 1 or above the number of covered nodes, if a row is not
                finite, or a covered one is zero.
        """
        norm = np.linalg.norm(embedding, axis=1)
        mask = norm > 0 if covered_mask is None else np.asarray(covered_mask, bool)
        if not np.isfinite(norm).all() or (norm[mask] == 0).any():
            raise ValueError("every covered node needs a finite embedding that is not zero")
        if not 1 <= k <= mask.sum():
            raise ValueError(f"k must lie in 1…{mask.sum()}, the covered nodes, got {k}")
        unit = embedding[mask] / norm[mask, None]
        means = KMeans(k, n_init=1, random_state=seed).fit(unit)
        labels = np.full(len(embedding), -1)
        labels[mask] = means.labels_
        return cls(torch.from_numpy(labels), k)

    def assign(self, features: Float[Tensor, "nodes d"]) -> "VirtualIDs":
        """Give the nodes without an ID that of the nearest centroid of image features, by cosine.

        Raises:
            ValueError: if the number of rows differs, or no node has an ID yet.
        """
        if len(features) != len(self.labels):
            raise ValueError(f"{len(features)} features for {len(self.labels)} nodes")
        known = self.labels >= 0
        if not known.any():
            raise ValueError("no node has an ID: there are no centroids")
        unit = F.normalize(features.float(), dim=1)
        centre = torch.zeros(self.k, unit.shape[1]).index_add_(0, self.labels[known], unit[known])
        used = torch.bincount(self.labels[known], minlength=self.k) > 0
        score = (unit[~known] @ F.normalize(centre, dim=1).T).masked_fill(~used, -torch.inf)
        labels = self.labels.clone()
        labels[~known] = score.argmax(dim=1)
        return replace(self, labels=labels)

    def match_to(self, previous: "VirtualIDs") -> "VirtualIDs":
        """Renumber so that clusters keep the number of the old one that they overlap most.

        The assignment that keeps most nodes is found by the Hungarian method; a cluster without an
        old partner gets an unused number, from `previous.k` on if need be. So the rows of a
        classifier keep their meaning when a new log arrives.

        Raises:
            ValueError: if the two have different numbers of nodes.
        """
        if len(previous.labels) != len(self.labels):
            raise ValueError(f"{len(self.labels)} nodes cannot match {len(previous.labels)}")
        both = (self.labels >= 0) & (previous.labels >= 0)
        size = max(self.k, previous.k)
        pair = self.labels[both] * size + previous.labels[both]
        overlap = torch.bincount(pair, minlength=size * size).view(size, size)
        _, number = linear_sum_assignment(overlap.numpy(), maximize=True)
        new = torch.from_numpy(number)[self.labels.clamp(min=0)]
        return VirtualIDs(torch.where(self.labels < 0, -1, new), size)

    def without_small(self, least: int = 2) -> "VirtualIDs":
        """Take the ID from nodes whose cluster has fewer members: one picture is no class."""
        count = torch.bincount(self.labels[self.labels >= 0], minlength=self.k)
        kept = (self.labels >= 0) & (count[self.labels.clamp(min=0)] >= least)
        return replace(self, labels=torch.where(kept, self.labels, -1))

    def permuted(self, seed: int) -> "VirtualIDs":
        """A control: the same IDs, as often, on random nodes among those that have one."""
        where = (self.labels >= 0).nonzero()[:, 0]
        order = torch.randperm(len(where), generator=torch.Generator().manual_seed(seed))
        labels = self.labels.clone()
        labels[where] = self.labels[where[order]]
        return replace(self, labels=labels)


def best_k(
    embedding: Float[np.ndarray, "nodes dim"], ks: tuple[int, ...], seed: int = 0
) -> tuple[int, dict[int, float]]:
    """The number of clusters with the largest mean silhouette, and the silhouettes of all.

    Raises:
        ValueError: as `VirtualIDs.fit`.
    """
    rows = embedding[np.linalg.norm(embedding, axis=1) > 0]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = {
        k: float(silhouette_score(unit, VirtualIDs.fit(rows, k, seed=seed).labels.numpy()))
        for k in ks
    }
    return max(found, key=lambda k: found[k]), found


def community_labels(
    graph: sparse.csr_array, method: str, k: int, seed: int = 0, threshold: float = 0.0
) -> Int64[Tensor, "nodes"]:
    """Clusters of the same graph without an embedding of walks: the older rivals.

    Args:
        graph: A.
        method: `"louvain"`; `"spectral"`; `"components"`, the connected components of the edges
            heavier than `threshold`; `"rows"`, k-means on the rows of A.
        k: clusters of the methods that take a number.
        seed: of the method.
        threshold: of `"components"`.

    Returns:
        A cluster for every node; −1 without an edge.

    Raises:
        ValueError: for another method, or what is no graph.
    """
    check_graph(graph)
    mask = covered(graph)
    inside = sparse.csr_array(graph[mask][:, mask])
    if method == "louvain":
        network = nx.from_scipy_sparse_array(inside)
        found = np.empty(mask.sum(), np.int64)
        for number, members in enumerate(nx.community.louvain_communities(network, seed=seed)):
            found[list(members)] = number
    elif method == "spectral":
        matrix = sparse.csr_matrix(inside)
        model = SpectralClustering(k, affinity="precomputed", random_state=seed, n_init=1)
        found = model.fit_predict(matrix)
    elif method == "components":
        inside.data[inside.data <= threshold] = 0
        inside.eliminate_zeros()
        found = sparse.csgraph.connected_components(inside)[1]
    elif method == "rows":
        found = VirtualIDs.fit(inside.toarray(), k, seed=seed).labels.numpy()
    else:
        raise ValueError(f"method is 'louvain', 'spectral', 'components' or 'rows', got {method!r}")
    labels = np.full(len(mask), -1)
    labels[mask] = found
    return torch.from_numpy(labels)
