"""What the chapter measures beside training: fusion, codes, shards, a changing index.

Each function returns values; intervals belong to the chapter.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import load_fashion_mnist
from toolkit.search.topk import overlap
from toolkit.search.visual_search.codes import BinaryEncoder
from toolkit.search.visual_search.fusion import CategoryFusion
from toolkit.search.visual_search.index import BinaryRerankIndex, FaissIndex, fine_rank
from toolkit.search.visual_search.live import LiveIndex, staleness
from toolkit.search.visual_search.remote import replica_processes
from toolkit.search.visual_search.shards import ShardedIndex

COMPONENTS = 64


@dataclass(frozen=True)
class Clothes:
    """Fashion-MNIST as unit-length features: 64 centred principal components."""

    train: Float[Tensor, "60000 d"]
    test: Float[Tensor, "10000 d"]
    train_labels: Int64[Tensor, " 60000"]
    test_labels: Int64[Tensor, " 10000"]


@lru_cache(maxsize=1)
def clothes() -> Clothes:
    """Load and project Fashion-MNIST (1 s)."""
    parts = {split: load_fashion_mnist(split) for split in ("train", "test")}
    pixels = {split: part.images.flatten(1).float() / 255 for split, part in parts.items()}
    mean = pixels["train"].mean(0)
    centred = pixels["train"] - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    basis = vectors[:, values.argsort(descending=True)[:COMPONENTS]]
    train, test = (F.normalize((pixels[split] - mean) @ basis) for split in ("train", "test"))
    return Clothes(train, test, parts["train"].label, parts["test"].label)


# --- A: which category? -------------------------------------------------------------------------


def category_draws(
    seed: int, draws: int = 5, labelled: int = 3000, validation: int = 1000
) -> list[dict[str, float]]:
    """Top-1 of model, search and fusion on the 10,000 test images, for several label draws.

    λ and α are chosen on validation images outside the labelled and the test set. `single` is the
    better of the two parts on validation, `fused_only` and `single_only` count test images that
    one of the two alone gets right (McNemar).
    """
    from sklearn.linear_model import LogisticRegression

    data, rows = clothes(), []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(1000 * seed + draw)
        chosen = torch.randperm(len(data.train), generator=generator)[: labelled + validation]
        known, held = chosen[:labelled], chosen[labelled:]
        classifier = LogisticRegression(C=10.0, max_iter=100, tol=1e-3)
        classifier.fit(data.train[known].numpy(), data.train_labels[known].numpy())

        def model(x: Tensor, classifier: LogisticRegression = classifier) -> Tensor:
            return torch.from_numpy(classifier.predict_proba(x.numpy())).float()

        fusion = CategoryFusion(data.train[known], data.train_labels[known], 10)
        fusion.fit(data.train[held], model(data.train[held]), data.train_labels[held])
        val = {
            name: _right(p, data.train_labels[held]).float().mean()
            for name, p in _parts(fusion, data.train[held], model(data.train[held])).items()
        }
        test = {
            name: _right(p, data.test_labels)
            for name, p in _parts(fusion, data.test, model(data.test)).items()
        }
        single = "model" if val["model"] >= val["search"] else "search"
        rows.append(
            {name: float(hit.double().mean()) for name, hit in test.items()}
            | {
                "single": float(test[single].double().mean()),
                "fused_only": float((test["fused"] & ~test[single]).sum()),
                "single_only": float((test[single] & ~test["fused"]).sum()),
                "lam": fusion.lam,
                "alpha": fusion.alpha,
            }
        )
    return rows


def _parts(fusion: CategoryFusion, x: Tensor, model: Tensor) -> dict[str, Tensor]:
    return {
        "model": model,
        "search": fusion.search_proba(x),
        "fused": fusion.predict_proba(x, model),
    }


def _right(p: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    return p.argmax(1) == labels


# --- C: codes -----------------------------------------------------------------------------------


def code_recall(
    encoder: BinaryEncoder,
    items: Float[Tensor, "n d"],
    queries: Float[Tensor, "b d"],
    candidates: tuple[int, ...],
    k: int = 60,
    shards: int = 1,
) -> dict[int, Float[Tensor, " b"]]:
    """Linear recall@k of each query, for several numbers of candidates.

    The overlap of coarse filter and fine rank with the exhaustive float search. With shards, each
    ranks its own ⌈candidates / shards⌉.
    """
    exact = FaissIndex(items.shape[1])
    exact.add(np.arange(len(items)), items)
    truth = exact.search(queries, k).ids
    wanted = queries.numpy()
    shortlists = []
    for shard in range(shards):
        numbers = np.arange(shard, len(items), shards)
        index = BinaryRerankIndex(encoder)
        index.add(numbers, items[numbers])
        most = min(len(numbers), -(-max(candidates) // shards))
        shortlists.append(numbers[index.shortlist(wanted, most)[1]])
    recall = {}
    for count in candidates:
        places = np.concatenate([part[:, : -(-count // shards)] for part in shortlists], 1)
        scores, places = fine_rank(wanted, items.numpy(), places, k)
        order = np.lexsort((places, -scores), axis=-1)[:, :k]
        found = np.take_along_axis(places, order, 1)
        recall[count] = overlap(torch.from_numpy(found), truth).double()
    return recall


def dial(
    items: Float[Tensor, "n d"],
    queries: Float[Tensor, "b d"],
    bits: tuple[int, ...],
    candidates: tuple[int, ...],
    shards: tuple[int, ...],
    seed: int = 0,
) -> dict[tuple[int, int, int], float]:
    """Mean linear recall@60 for every (bits, candidates, shards)."""
    results = {}
    for width in bits:
        encoder = BinaryEncoder("rotation", width, seed).fit(items)
        for count in shards:
            for c, recall in code_recall(encoder, items, queries, candidates, 60, count).items():
                results[width, c, count] = float(recall.mean())
    return results


def sharding(
    items: Float[Tensor, "n d"], queries: Float[Tensor, "b d"], counts: tuple[int, ...], k: int = 60
) -> dict[int, dict[str, bool]]:
    """Is an index of S shards the same as one, in ids and in scores?"""
    single = FaissIndex(items.shape[1])
    single.add(np.arange(len(items)), items)
    expected = single.search(queries, k)
    results = {}
    for count in counts:
        shards = ShardedIndex([[FaissIndex(items.shape[1])] for _ in range(count)])
        shards.add(np.arange(len(items)), items)
        found = shards.search(queries, k)
        shards.close()
        results[count] = {
            "ids": torch.equal(found.ids, expected.ids),
            "scores": torch.equal(found.scores, expected.scores),
        }
    return results


def replica_seconds(
    items: Float[Tensor, "n d"],
    queries: Float[Tensor, "b d"],
    *,
    rounds: int = 10,
    asked: int = 100,
    k: int = 60,
    clients: int = 4,
) -> dict[str, NDArray]:
    """Seconds of many single queries over one replica and over two, in turn, `rounds` times.

    Each replica is a process that keeps to one core; `clients` threads ask at the same time.
    """
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    with replica_processes(items, 2) as replicas, ThreadPoolExecutor(clients) as pool:
        shards = {
            "one": ShardedIndex([replicas[:1]], workers=clients),
            "two": ShardedIndex([replicas], workers=clients),
        }
        turns = [queries[place % len(queries)][None] for place in range(asked)]
        for turn in range(-1, rounds):
            for name, index in shards.items():
                begin = time.perf_counter()
                list(pool.map(lambda query, index=index: index.search(query, k), turns))
                if turn >= 0:  # the first is for warming up
                    seconds[name].append(time.perf_counter() - begin)
        for index in shards.values():
            index.close()
    return {name: np.array(values) for name, values in seconds.items()}


# --- C: an index that changes -------------------------------------------------------------------


def mixed_stream(
    features: Float[Tensor, "n d"],
    queries: Float[Tensor, "b d"],
    seed: int,
    *,
    start: int = 20_000,
    rounds: int = 10,
    share: float = 0.05,
    candidates: int = 200,
    k: int = 10,
) -> list[dict[str, float]]:
    """Insert and delete 5 % each, search, and compare with an index built anew; `rounds` times.

    Returns:
        A row a round: `recall` and `rebuilt` (linear recall@k of the live index and of one built
        anew from the same items), `deleted` (how often a removed id came back), `staleness`
        (seconds from the call that adds an item until it is found), `rebuilds` so far.
    """
    rng = np.random.default_rng([11, seed])
    encoder = BinaryEncoder("rotation", 256, seed).fit(features[:start])
    index = LiveIndex(lambda: BinaryRerankIndex(encoder, candidates), least=500)
    alive = np.arange(start)
    index.add(alive, features[:start])
    index.rebuild()
    fresh, gone, rows = start, np.empty(0, np.int64), []
    for _ in range(rounds):
        count = int(share * len(alive))
        left = rng.choice(alive, count, replace=False)
        new = np.arange(fresh, fresh + count)
        index.remove(left)
        index.add(new, features[new])
        alive = np.concatenate([np.setdiff1d(alive, left), new])
        gone, fresh = np.concatenate([gone, left]), fresh + count
        late = staleness(index, fresh, features[fresh : fresh + 1])
        alive, fresh = np.append(alive, fresh), fresh + 1
        rows.append(_compare(index, encoder, features, alive, gone, queries, candidates, k))
        rows[-1] |= {"staleness": late, "rebuilds": float(index.rebuilds)}
    index.close()
    return rows


def _compare(
    index: LiveIndex,
    encoder: BinaryEncoder,
    features: Tensor,
    alive: NDArray,
    gone: NDArray,
    queries: Tensor,
    candidates: int,
    k: int,
) -> dict[str, float]:
    alive = np.sort(alive)
    exact, anew = FaissIndex(features.shape[1]), BinaryRerankIndex(encoder, candidates)
    for other in (exact, anew):
        other.add(alive, features[alive])
    truth, found = exact.search(queries, k).ids, index.search(queries, k).ids
    return {
        "recall": float(overlap(found, truth).double().mean()),
        "rebuilt": float(overlap(anew.search(queries, k).ids, truth).double().mean()),
        "deleted": float(np.isin(found.numpy(), gone).sum()),
        "alive": float(len(index) == len(alive)),
    }


# --- C7: time -----------------------------------------------------------------------------------


def clustered(
    source: Float[Tensor, "n d"], count: int, seed: int, spread: float = 0.25
) -> Float[Tensor, "count d"]:
    """Many items from few: real features, each with noise of its own, of unit length again.

    Args:
        source: real features of unit length.
        count: how many.
        seed: of the noise.
        spread: length of the noise vector.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(source), (count,), generator=generator)
    noise = torch.randn(count, source.shape[1], generator=generator)
    return F.normalize(source[rows] + spread / source.shape[1] ** 0.5 * noise)


def seconds_per_query(search: object, queries: NDArray, k: int) -> NDArray:
    """Seconds of each query, one at a time, after three for warming up."""
    times = []
    for place, query in enumerate(queries):
        begin = time.perf_counter()
        search(query[None], k)  # type: ignore[operator]
        if place >= 3:
            times.append(time.perf_counter() - begin)
    return np.array(times)
