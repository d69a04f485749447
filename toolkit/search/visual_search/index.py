"""The index of one machine: exact and approximate faiss, and binary codes with a fine rank.

Per shard a coarse filter looks at codes by Hamming distance, then the few candidates are ranked by
their stored features (method C).
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import faiss as _faiss
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from toolkit.search.visual_search.codes import BinaryEncoder
from toolkit.search.visual_search.store import (
    Found,
    Ids,
    Items,
    check_features,
    check_ids,
    check_k,
    ranked,
)

faiss: Any = _faiss  # its stubs lack some of what it has
FloatKind = Literal["flat", "ivf", "hnsw", "ivfpq"]
Coarse = Literal["flat", "ivf", "hnsw"]


class PositionIndex(ABC):
    """Checks, ids and tombstones around a search by position, which subclasses add."""

    def __init__(self, d: int, unit: bool) -> None:
        self.items = Items(d, unit)

    def __len__(self) -> int:
        return len(self.items)

    def add(self, ids: Ids, features: Float[Tensor, "n d"] | NDArray) -> None:
        """Make items searchable.

        Args:
            ids: not negative, none known.
            features: one row an id; of unit length unless the index was made with `unit=False`.

        Raises:
            ValueError: for a known or repeated id, another width, or non-finite rows.
        """
        rows = check_features(features, self.items.d, self.items.unit)
        numbers = check_ids(ids, len(rows))
        known = self.items.positions(numbers) >= 0
        if known.any():
            raise ValueError(
                f"id {int(numbers[known][0])} is in the index already; remove it first"
            )
        if len(rows):
            self._append(rows)
            self.items.append(numbers, rows)

    def remove(self, ids: Ids) -> None:
        """Take items out at once; their memory comes back when the index is built anew.

        Raises:
            ValueError: for an id that is not there.
        """
        numbers = check_ids(ids)
        places = self.items.positions(numbers)
        if (places < 0).any():
            raise ValueError(f"id {int(numbers[places < 0][0])} is not in the index")
        self.items.bury(places)

    def contains(self, ids: Ids) -> NDArray:
        """Which ids are there."""
        return self.items.positions(np.asarray(ids, np.int64)) >= 0

    def get(self, ids: Ids) -> Float[Tensor, "n d"]:
        """The stored features of some ids.

        Raises:
            ValueError: for an id that is not there.
        """
        numbers = check_ids(ids)
        places = self.items.positions(numbers)
        if (places < 0).any():
            raise ValueError(f"id {int(numbers[places < 0][0])} is not in the index")
        return torch.from_numpy(self.items.features[places])

    def search(
        self,
        features: Float[Tensor, "b d"],
        k: int,
        filter: Ids | None = None,
    ) -> Found:
        """The k items of largest inner product with each query.

        Args:
            features: queries.
            k: length of the lists; an index with fewer items pads with −1 and −∞.
            filter: ids that may be found, such as a category's; they are singled out before the
                search, not after, so the lists stay full. Unknown ids are ignored.

        Raises:
            ValueError: for another width, non-finite rows, or k below 1.
        """
        check_k(k)
        queries = check_features(features, self.items.d, self.items.unit, "queries")
        if not len(self) or not len(queries):
            return ranked(np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64), k)
        allowed = None
        if filter is not None:
            allowed = self.items.positions(np.asarray(filter, np.int64))
            allowed = np.unique(allowed[allowed >= 0])
        scores, places = self._find(queries, k, allowed)
        ids = np.where(places >= 0, self.items.ids[places], -1)
        return ranked(scores, ids, k)

    @abstractmethod
    def _append(self, rows: NDArray) -> None:
        """Put rows behind the others in what is searched."""

    @abstractmethod
    def _find(self, queries: NDArray, k: int, allowed: NDArray | None) -> tuple[NDArray, NDArray]:
        """Scores and positions of at least k candidates, among the allowed positions if given."""


class FaissIndex(PositionIndex):
    """Float vectors in faiss: `"flat"` is exact, `"ivf"`, `"hnsw"` and `"ivfpq"` approximate.

    Args:
        d: width of the features.
        kind: of index.
        unit: whether features must have length 1.
        lists: of the inverted file, at most one for every 39 of the first items.
        probe: lists (IVF) or candidates (HNSW) that a query visits.

    Raises:
        ValueError: for an unknown kind.
    """

    def __init__(
        self,
        d: int,
        kind: FloatKind = "flat",
        *,
        unit: bool = True,
        lists: int = 128,
        probe: int | None = None,
    ) -> None:
        super().__init__(d, unit)
        if kind not in ("flat", "ivf", "hnsw", "ivfpq"):
            raise ValueError(f"kind is {kind!r}; choose 'flat', 'ivf', 'hnsw' or 'ivfpq'")
        self.kind, self.lists = kind, lists
        self.probe = probe if probe is not None else (64 if kind == "hnsw" else 8)
        self.core: Any = None

    def _append(self, rows: NDArray) -> None:
        if self.core is None:
            lists = max(1, min(self.lists, len(rows) // 39))
            names = {
                "flat": "Flat",
                "ivf": f"IVF{lists},Flat",
                "hnsw": "HNSW16",
                "ivfpq": f"IVF{lists},PQ{self.items.d // 4}",
            }
            self.core = faiss.index_factory(
                self.items.d, names[self.kind], faiss.METRIC_INNER_PRODUCT
            )
            self.core.train(rows)
        self.core.add(rows)

    def _find(self, queries: NDArray, k: int, allowed: NDArray | None) -> tuple[NDArray, NDArray]:
        settings: dict[str, Any] = {}
        if allowed is not None or self.items.dead:
            alive = self.items.alive
            if allowed is not None:
                alive = np.zeros_like(alive)
                alive[allowed] = True
            bits = np.packbits(alive, bitorder="little")
            settings["sel"] = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        return self._with_ties(queries, k, settings)

    def _with_ties(
        self, queries: NDArray, k: int, settings: dict[str, Any]
    ) -> tuple[NDArray, NDArray]:
        """A few more than k, and all that tie with the k-th, each pair scored on its own.

        faiss multiplies blocks of matrices: its last bits depend on where an item stands, and what
        ties would be settled by that.
        """
        total = len(self.items.ids)
        fetch = min(total, k + 8)
        while True:
            _, places = self.core.search(queries, fetch, params=self._parameters(fetch, settings))
            scores = pair_scores(queries, self.items.features, places)
            if fetch == total or self.kind != "flat" or not _tied(scores, k):
                return scores, places
            fetch = min(total, 2 * fetch)

    def _parameters(self, fetch: int, settings: dict[str, Any]) -> Any:
        if self.kind == "flat":
            return faiss.SearchParameters(**settings) if settings else None
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(self.probe, fetch), **settings)
        return faiss.SearchParametersIVF(nprobe=self.probe, **settings)


class BinaryRerankIndex(PositionIndex):
    """Binary codes find candidates by Hamming distance; stored features rank them.

    Args:
        encoder: fitted.
        candidates: c, how many the coarse filter hands on.
        coarse: `"flat"` scans all codes, `"ivf"` those of the nearest cells, `"hnsw"` walks.
        lists: of the binary inverted file.
        probe: cells (IVF) or candidates (HNSW) that a query visits.
        unit: whether features must have length 1.

    Raises:
        ValueError: for an encoder that is not fitted, candidates below 1, or an unknown filter.
    """

    def __init__(
        self,
        encoder: BinaryEncoder,
        candidates: int = 600,
        *,
        coarse: Coarse = "flat",
        lists: int = 1024,
        probe: int = 32,
        unit: bool = True,
    ) -> None:
        if encoder.mean is None:
            raise ValueError("fit the encoder first")
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        if coarse not in ("flat", "ivf", "hnsw"):
            raise ValueError(f"coarse is {coarse!r}; choose 'flat', 'ivf' or 'hnsw'")
        super().__init__(len(encoder.mean), unit)
        self.encoder, self.candidates = encoder, candidates
        self.coarse, self.lists, self.probe = coarse, lists, probe
        self.core: Any = None

    @property
    def bytes_per_item(self) -> float:
        """Memory of code, feature and id."""
        return self.encoder.bits / 8 + 4 * self.items.d + 8

    def codes(self, features: NDArray) -> NDArray:
        """Packed codes of checked features."""
        return self.encoder.encode(torch.from_numpy(features)).numpy()

    def shortlist(
        self, queries: NDArray, count: int, allowed: NDArray | None = None
    ) -> tuple[NDArray, NDArray]:
        """Hamming distances and positions of the nearest codes; −1 marks an empty place.

        Tombstones are dropped here, and more is fetched in their place. With a filter the allowed
        codes alone are compared, exactly.
        """
        codes = self.codes(queries)
        if allowed is not None:
            return self._among(codes, count, allowed)
        total, dead = len(self.items.ids), self.items.dead
        if not dead:
            return self.core.search(codes, min(count, total))
        fetch = count + dead * count // total + 32
        while True:
            distance, places = self.core.search(codes, min(fetch, total))
            distance, places = self._living(distance, places, count)
            if fetch >= min(total, count + dead) or (places[:, -1] >= 0).all():
                return distance, places
            fetch *= 2

    def _living(self, distance: NDArray, places: NDArray, count: int) -> tuple[NDArray, NDArray]:
        kept = (places >= 0) & self.items.alive[places]
        order = np.argsort(~kept, axis=1, kind="stable")[:, :count]
        places = np.where(kept, places, -1)
        return np.take_along_axis(distance, order, 1), np.take_along_axis(places, order, 1)

    def _among(self, codes: NDArray, count: int, allowed: NDArray) -> tuple[NDArray, NDArray]:
        if not len(allowed):
            return np.empty((len(codes), 0), np.int64), np.empty((len(codes), 0), np.int64)
        stored = self.codes(self.items.features[allowed])
        distance = np.stack([np.bitwise_count(stored ^ code).sum(1) for code in codes])
        best = distance.argsort(1, kind="stable")[:, :count]
        return np.take_along_axis(distance, best, 1), allowed[best]

    def _append(self, rows: NDArray) -> None:
        codes = self.codes(rows)
        if self.core is None:
            self.core = self._make(codes)
        self.core.add(codes)

    def _make(self, codes: NDArray) -> Any:
        bits = self.encoder.bits
        if self.coarse == "hnsw":
            core = faiss.IndexBinaryHNSW(bits, 16)
            core.hnsw.efSearch = max(self.probe, self.candidates)
            return core
        if self.coarse == "flat":
            return faiss.IndexBinaryFlat(bits)
        self._quantiser = faiss.IndexBinaryFlat(bits)  # faiss keeps a pointer to it
        lists = max(1, min(self.lists, len(codes) // 39))
        core = faiss.IndexBinaryIVF(self._quantiser, bits, lists)
        core.nprobe, core.cp.niter = self.probe, 8
        core.train(codes[:: max(1, len(codes) // (64 * lists))])
        return core

    def _find(self, queries: NDArray, k: int, allowed: NDArray | None) -> tuple[NDArray, NDArray]:
        _, places = self.shortlist(queries, max(self.candidates, k), allowed)
        return fine_rank(queries, self.items.features, places, k)


def fine_rank(
    queries: NDArray, features: NDArray, places: NDArray, k: int
) -> tuple[NDArray, NDArray]:
    """Exact inner products with candidates, and the k best of them, unsorted.

    Args:
        queries: [b, d].
        features: by position.
        places: candidates of each query, −1 for none.
        k: how many to keep.
    """
    scores = pair_scores(queries, features, places)
    if places.shape[1] > 4 * k:
        best = np.argpartition(-scores, 2 * k, axis=1)[:, : 2 * k]
        fewer = np.take_along_axis(scores, best, 1)
        if not _tied(fewer, k):  # what ties is settled by id, so none of it may be cut
            return fewer, np.take_along_axis(places, best, 1)
    return scores, places


def pair_scores(queries: NDArray, features: NDArray, places: NDArray) -> NDArray:
    """Inner products of each query with the features at its places, −∞ for place −1.

    A pair's score depends on the pair alone, not on what stands beside it.
    """
    places = np.ascontiguousarray(places, np.int64)
    scores = np.full(places.shape, -np.inf, np.float32)
    if places.size:
        faiss.fvec_inner_products_by_idx(
            faiss.swig_ptr(scores),
            faiss.swig_ptr(queries),
            faiss.swig_ptr(features),
            faiss.swig_ptr(places),
            queries.shape[1],
            *places.shape,
        )
        scores[places < 0] = -np.inf
    return scores


def _tied(scores: NDArray, k: int) -> bool:
    """Whether a row has no score clearly below its k-th: then more may tie with it."""
    if scores.shape[1] <= k:
        return True
    kth = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
    return bool((scores.min(1) > kth - 1e-5).any())
