"""Walks against a Python loop (≥ 20×), the closed form against skip-gram, and the graph.

One thread, the click log of the shop with 300 products: 1,800 nodes, 10 walks of 40 nodes each.
Peers: the same walks node by node, as the reference implementation of DeepWalk takes them; gensim's
skip-gram on those walks; pairs counted in a Python loop over visits. gensim *is* the skip-gram of
the toolkit, so it has no rival here: what is measured is how long the closed form takes instead.
"""

import itertools
from collections import defaultdict

import numpy as np
import torch
from scipy import sparse

from _report import report
from toolkit.data import ClickLog, simulate_clicks
from toolkit.runtime import race, start
from toolkit.search import virtual_id

WALKS, LENGTH, FASTER = 10, 40, 20.0


def main() -> None:
    """Print each ratio, its spread over rounds, and its target."""
    start()
    shop = virtual_id.shop_inputs(300, "components", torch.device("cpu"))
    log = simulate_clicks(300)
    graph = virtual_id.coclick_graph(log, leaf=shop.leaf)
    seconds = race(
        rounds=5,
        warmup=1,
        together=lambda: virtual_id.random_walks(graph, WALKS, LENGTH, 0),
        one_by_one=lambda: slow_walks(graph, 1, LENGTH),
    )
    gain = WALKS * seconds["one_by_one"] / seconds["together"]
    report("walks: one by one / together", gain, at_least=FASTER)
    seconds = race(
        rounds=5,
        warmup=1,
        product=lambda: virtual_id.coclick_graph(log, leaf=shop.leaf),
        loop=lambda: slow_graph(log),
    )
    gain = seconds["loop"] / seconds["product"]
    report("graph: loop over pairs / sparse product", gain, at_least=1)
    seconds = race(
        rounds=3,
        warmup=0,
        closed=lambda: virtual_id.coclick_embedding(graph, 320, "netmf"),
        skip_gram=lambda: virtual_id.coclick_embedding(graph, 64, "sgns", WALKS, LENGTH),
    )
    gain = seconds["skip_gram"] / seconds["closed"]
    report("embedding: skip-gram / closed form", gain, at_least=1)


def slow_walks(graph: sparse.csr_array, walks: int, length: int) -> list[list[int]]:
    """Node by node, with cumulative weights prepared for every node."""
    rng = np.random.default_rng(0)
    rows = [slice(*graph.indptr[i : i + 2]) for i in range(graph.shape[0])]
    near = [graph.indices[row] for row in rows]
    until = [np.cumsum(graph.data[row]) for row in rows]
    found = []
    for _ in range(walks):
        for node in np.flatnonzero(virtual_id.covered(graph)):
            walk = [node]
            while len(walk) < length:
                here = walk[-1]
                place = np.searchsorted(until[here], rng.random() * until[here][-1], side="right")
                walk.append(near[here][min(place, len(near[here]) - 1)])
            found.append(walk)
    return found


def slow_graph(log: ClickLog) -> dict[tuple[int, int], float]:
    """Pairs of every visit, counted in a dictionary."""
    weight: dict[tuple[int, int], float] = defaultdict(float)
    for shown, clicked in zip(log.shown.numpy(), log.clicked.numpy(), strict=True):
        chosen = sorted(set(shown[clicked].tolist()))
        if 1 < len(chosen) <= 20:
            for pair in itertools.combinations(chosen, 2):
                weight[pair] += 1 / (len(chosen) - 1)
    return weight


if __name__ == "__main__":
    main()
