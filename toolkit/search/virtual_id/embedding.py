"""Embeddings of a co-click graph: skip-gram on random walks, and its closed form."""

import logging
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32, Int64
from scipy import sparse
from scipy.linalg import eigh

from toolkit.search.virtual_id.graph import check_graph, covered

DENSE_LIMIT = 5000
"""Nodes up to which the closed form takes a dense eigendecomposition."""


def coclick_embedding(
    graph: sparse.csr_array,
    dim: int = 64,
    method: str = "sgns",
    walks: int = 10,
    length: int = 40,
    window: int = 5,
    negatives: int = 5,
    seed: int = 0,
    *,
    epochs: int = 3,
    back: float = 1.0,
    away: float = 1.0,
    workers: int = 1,
) -> Float32[np.ndarray, "nodes dim"]:
    """Φ: nodes that lie close in the graph get similar vectors.

    `"sgns"` is DeepWalk (Perozzi, Al-Rfou and Skiena 2014) with negative sampling: random walks are
    sentences for gensim's skip-gram. `"netmf"` is what skip-gram converges to (Qiu et al. 2018,
    Eq. 8): a factorisation of log max(vol / (T n) · Σ_{t ≤ T} Pᵗ D⁻¹, 1), T = `window`.

    Args:
        graph: A, symmetric.
        dim: d_g. The closed form needs about as many as there are clusters: a lower rank drops
            whole components of the graph.
        method: `"sgns"` or `"netmf"`.
        walks: from every node (γ).
        length: nodes of a walk (ℓ).
        window: greatest distance of two nodes of a walk that count as neighbours (w).
        negatives: noise samples a pair (n), drawn in proportion to count^0.75.
        seed: of walks and training.
        epochs: passes of skip-gram over the walks.
        back: node2vec's return parameter p; 1 for DeepWalk.
        away: node2vec's in-out parameter q; 1 for DeepWalk.
        workers: threads of gensim; with more than 1 the result is not repeatable.

    Returns:
        One row a node; zero where the graph has no edge. Rows beyond the rank are zero-padded.

    Raises:
        ValueError: for another method, numbers below 1, or a graph that is not symmetric, finite
            and weighted from 0.
    """
    check_graph(graph)
    numbers = {"dim": dim, "walks": walks, "window": window, "negatives": negatives}
    if method not in ("sgns", "netmf") or min(numbers.values()) < 1 or length < 2:
        raise ValueError(
            f"method is 'sgns' or 'netmf', {', '.join(numbers)} at least 1 and length at least 2; "
            f"got {method!r}, {numbers}, length {length}"
        )
    if not graph.nnz:
        return np.zeros((graph.shape[0], dim), np.float32)
    if method == "netmf":
        return factorise(closed_form(graph, window, negatives), dim, seed)
    paths = random_walks(graph, walks, length, seed, back=back, away=away)
    order = np.random.default_rng([seed, 1]).permutation(len(paths))
    sentences = paths[order].astype(str).tolist()
    return skip_gram(sentences, graph.shape[0], dim, window, negatives, seed, epochs, workers)


def random_walks(
    graph: sparse.csr_array,
    walks: int,
    length: int,
    seed: int,
    *,
    back: float = 1.0,
    away: float = 1.0,
    start: Int64[np.ndarray, " nodes"] | None = None,
) -> Int64[np.ndarray, "walks length"]:
    """Walks with P(j | i) = A_ij / Σ_k A_ik, `walks` from every node that has an edge.

    All walks take their steps together. With `back` or `away` other than 1 they are node2vec's
    (Grover and Leskovec 2016): a step from i to k after h → i is accepted in proportion to 1/p if
    k = h, to 1 if k is a neighbour of h, and to 1/q else.

    Args:
        graph: A.
        walks: from each node.
        length: nodes of a walk.
        seed: of all steps.
        back: p.
        away: q.
        start: the nodes to start from, each with an edge; by default all of them.

    Raises:
        ValueError: unless p and q are positive.
    """
    if min(back, away) <= 0:
        raise ValueError(f"back and away must be positive, got {back} and {away}")
    rng = np.random.default_rng(seed)
    start = np.flatnonzero(covered(graph)) if start is None else start
    path = np.empty((length, walks * len(start)), np.int64)
    path[0] = np.concatenate([rng.permutation(start) for _ in range(walks)])
    step = _Stepper(graph)
    for t in range(1, length):
        if t == 1 or back == away == 1:
            path[t] = step(path[t - 1], rng)
        else:
            path[t] = _second_order(step, path[t - 2], path[t - 1], back, away, rng)
    return np.ascontiguousarray(path.T)


def closed_form(
    graph: sparse.csr_array, window: int, negatives: float
) -> np.ndarray | sparse.csr_array:
    """Log max(vol / (T n) · Σ_{t=1…T} Pᵗ D⁻¹, 1): dense up to `DENSE_LIMIT` nodes, else sparse."""
    degree = np.asarray(graph.sum(axis=1)).ravel()
    inverse = np.divide(1, degree, out=np.zeros_like(degree), where=degree > 0)
    step = sparse.diags_array(inverse) @ graph
    power = step if graph.shape[0] > DENSE_LIMIT else step.toarray()
    total = power
    for _ in range(window - 1):
        power = step @ power
        total = total + power
    total = total * (degree.sum() / (window * negatives))
    if sparse.issparse(total):
        total = sparse.csr_array(total @ sparse.diags_array(inverse))
        total.data = np.log(np.maximum(total.data, 1))
        return total
    return np.log(np.maximum(total * inverse, 1))


def factorise(
    matrix: np.ndarray | sparse.csr_array, dim: int, seed: int = 0
) -> Float32[np.ndarray, "nodes dim"]:
    """U_d √Σ_d of a symmetric matrix; missing ranks are zero."""
    n = matrix.shape[0]
    rank = min(dim, n)
    if sparse.issparse(matrix):
        from sklearn.utils.extmath import randomized_svd

        vectors, size, _ = randomized_svd(matrix, rank, random_state=seed)
    else:
        values, vectors = eigh(((matrix + matrix.T) / 2).astype(np.float32))
        keep = np.argsort(-abs(values), kind="stable")[:rank]
        vectors, size = vectors[:, keep], abs(values[keep])
    return np.pad(vectors * np.sqrt(size), ((0, 0), (0, dim - rank))).astype(np.float32)


def skip_gram(
    sentences: Iterable[list[str]],
    nodes: int,
    dim: int,
    window: int,
    negatives: int,
    seed: int,
    epochs: int,
    workers: int,
) -> Float32[np.ndarray, "nodes dim"]:
    """Gensim's skip-gram on walks; zero rows for nodes that no walk visits.

    Args:
        sentences: walks of node numbers as texts; may be read several times.
        nodes: rows of the result.
        dim: of a vector.
        window: greatest distance.
        negatives: noise samples a pair, in proportion to count^0.75.
        seed: of the training.
        epochs: passes.
        workers: threads.
    """
    from gensim.models import Word2Vec

    logging.getLogger("gensim").setLevel(logging.ERROR)
    model = Word2Vec(
        sentences,
        vector_size=dim,
        window=window,
        sg=1,
        negative=negatives,
        ns_exponent=0.75,
        min_count=0,
        sample=0,
        seed=seed,
        epochs=epochs,
        workers=workers,
    )
    found = np.zeros((nodes, dim), np.float32)
    found[np.array(model.wv.index_to_key, dtype=np.int64)] = model.wv.vectors
    return found


class _Stepper:
    """Draws neighbours of many nodes at once: a search in the running sum of all weights."""

    def __init__(self, graph: sparse.csr_array) -> None:
        graph = graph.tocsr()
        graph.sort_indices()
        self.indices, self.nodes = graph.indices, graph.shape[0]
        self.until = np.cumsum(graph.data)
        ends = np.concatenate([[0.0], self.until])
        self.low, self.high = ends[graph.indptr[:-1]], ends[graph.indptr[1:]]
        self.first, self.last = graph.indptr[:-1], graph.indptr[1:] - 1
        rows = np.repeat(np.arange(self.nodes), np.diff(graph.indptr))
        self.edges = rows * self.nodes + self.indices

    def __call__(self, node: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        target = self.low[node] + rng.random(len(node)) * (self.high[node] - self.low[node])
        place = np.searchsorted(self.until, target, side="right")
        return self.indices[np.clip(place, self.first[node], self.last[node])]

    def joined(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        key = one * self.nodes + other
        place = np.minimum(np.searchsorted(self.edges, key), len(self.edges) - 1)
        return self.edges[place] == key


def _second_order(
    step: _Stepper,
    before: np.ndarray,
    now: np.ndarray,
    back: float,
    away: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Rejection sampling: propose by A, accept in proportion to node2vec's bias."""
    chosen = np.empty_like(now)
    open_ = np.arange(len(now))
    largest = max(1 / back, 1.0, 1 / away)
    while len(open_):
        found = step(now[open_], rng)
        near = step.joined(before[open_], found)
        bias = np.where(found == before[open_], 1 / back, np.where(near, 1.0, 1 / away))
        taken = rng.random(len(open_)) * largest < bias
        chosen[open_[taken]] = found[taken]
        open_ = open_[~taken]
    return chosen
