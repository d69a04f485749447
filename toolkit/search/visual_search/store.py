"""What every index of this chapter keeps: ids, features and tombstones, by position of arrival."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

Ids: TypeAlias = Int[Tensor, " n"] | NDArray | Sequence[int]
"""Whole numbers, not negative, each once."""


class Found(NamedTuple):
    """Top lists, best first, ties by rising id; empty places hold −∞ and −1, at the end."""

    scores: Float[Tensor, "queries k"]
    """Inner products; larger is better."""
    ids: Int[Tensor, "queries k"]
    partial: bool = False
    """True where a shard did not answer: the list may lack items."""


@runtime_checkable
class VisualIndex(Protocol):
    """What all indexes have in common, whether faiss, Milvus or a shard across the network."""

    def __len__(self) -> int: ...

    def add(self, ids: Ids, features: Float[Tensor, "n d"] | NDArray) -> None:
        """Make items searchable. Raises ValueError for known ids, wrong widths and NaN."""

    def remove(self, ids: Ids) -> None:
        """Take items out. Raises ValueError for unknown ids."""

    def search(
        self,
        features: Float[Tensor, "b d"],
        k: int,
        filter: Ids | None = None,
    ) -> Found:
        """The k items of largest inner product with each query, among those of `filter`."""


class Rows:
    """A numpy array that grows at its end in amortised constant time.

    Args:
        *shape: of one row.
        dtype: of the numbers.
    """

    def __init__(self, *shape: int, dtype: type = np.float32) -> None:
        self._buffer: NDArray = np.empty((16, *shape), dtype)
        self._count = 0

    def append(self, rows: NDArray) -> None:
        """Copy rows to the end."""
        need = self._count + len(rows)
        if need > len(self._buffer):
            grown = np.empty(
                (max(need, 2 * len(self._buffer)), *self._buffer.shape[1:]), rows.dtype
            )
            grown[: self._count] = self.view
            self._buffer = grown
        self._buffer[self._count : need] = rows
        self._count = need

    @property
    def view(self) -> NDArray:
        """All rows, without a copy; valid until the next `append`."""
        return self._buffer[: self._count]


class Positions:
    """From ids to the positions of their latest arrival.

    A sorted table answers for most ids, a dictionary for the latest; the dictionary is merged into
    the table when it has grown to a quarter of it.
    """

    def __init__(self) -> None:
        self._ids, self._places = np.empty(0, np.int64), np.empty(0, np.int64)
        self._recent: dict[int, int] = {}

    def put(self, ids: NDArray, first: int) -> None:
        """Ids take the positions from `first` on."""
        self._recent.update(zip(ids.tolist(), range(first, first + len(ids)), strict=True))
        if len(self._recent) > max(65_536, len(self._ids) // 4):
            self._merge()

    def find(self, ids: NDArray) -> NDArray:
        """The position of each id, −1 where it never arrived."""
        places = np.full(len(ids), -1, np.int64)
        if len(self._ids):
            slot = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
            places = np.where(self._ids[slot] == ids, self._places[slot], -1)
        if self._recent:
            latest = (self._recent.get(one, -1) for one in ids.tolist())
            newer = np.fromiter(latest, np.int64, len(ids))
            places = np.where(newer >= 0, newer, places)
        return places

    def _merge(self) -> None:
        count = len(self._recent)
        newer = np.fromiter(self._recent.keys(), np.int64, count)
        places = np.fromiter(self._recent.values(), np.int64, count)
        old = ~np.isin(self._ids, newer)
        ids = np.concatenate([self._ids[old], newer])
        order = ids.argsort(kind="stable")
        self._ids = ids[order]
        self._places = np.concatenate([self._places[old], places])[order]
        self._recent = {}


class Items:
    """Ids, features and tombstones by position; what is taken out keeps its place, marked dead.

    Args:
        d: width of the features.
        unit: whether features must have length 1, so that inner products are cosines.

    Raises:
        ValueError: for a width below 1.
    """

    def __init__(self, d: int, unit: bool = True) -> None:
        if d < 1:
            raise ValueError(f"features need a width of at least 1, got {d}")
        self.d, self.unit = d, unit
        self._ids, self._features = Rows(dtype=np.int64), Rows(d)
        self._alive, self._positions = Rows(dtype=np.bool_), Positions()
        self.dead = 0

    def __len__(self) -> int:
        return len(self.ids) - self.dead

    @property
    def ids(self) -> NDArray:
        """By position, dead ones included."""
        return self._ids.view

    @property
    def features(self) -> NDArray:
        """By position, dead ones included."""
        return self._features.view

    @property
    def alive(self) -> NDArray:
        """By position."""
        return self._alive.view

    def positions(self, ids: NDArray) -> NDArray:
        """Where living items are; −1 for the others."""
        places = self._positions.find(ids)
        return np.where((places >= 0) & self.alive[places], places, -1) if len(self.ids) else places

    def append(self, ids: NDArray, features: NDArray) -> None:
        """Store checked items behind the others."""
        self._positions.put(ids, len(self.ids))
        self._ids.append(ids)
        self._features.append(features)
        self._alive.append(np.ones(len(ids), np.bool_))

    def bury(self, places: NDArray) -> None:
        """Mark positions as dead."""
        self.alive[places] = False
        self.dead += len(places)

    def living(self, alive: NDArray | None = None) -> tuple[NDArray, NDArray]:
        """Ids and features of what is there, or was when `alive` was copied, by rising id."""
        places = np.flatnonzero(self.alive if alive is None else alive)
        places = places[self.ids[places].argsort()]
        return self.ids[places], self.features[places]


def check_features(
    features: Float[Tensor, "n d"] | NDArray, d: int, unit: bool, what: str = "features"
) -> NDArray:
    """The features as a contiguous float32 array.

    Raises:
        TypeError: if they are no numbers.
        ValueError: for another width, NaN or infinity, or rows that lack unit length.
    """
    if not isinstance(features, Tensor | np.ndarray):
        raise TypeError(f"{what} must be a tensor or an array, got {type(features).__name__}")
    rows = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
    if rows.ndim != 2 or rows.shape[1] != d:
        raise ValueError(f"{what} must be [n, {d}], got {list(rows.shape)}")
    rows = np.ascontiguousarray(rows, np.float32)
    length = np.einsum("nd,nd->n", rows, rows)
    if not np.isfinite(length).all():
        bad = int(np.flatnonzero(~np.isfinite(length))[0])
        raise ValueError(f"{what} must be finite, row {bad} is not")
    if unit and len(rows) and np.abs(length - 1).max() > 2e-3:
        bad = int(np.abs(length - 1).argmax())
        raise ValueError(
            f"{what} must have unit length for cosines, row {bad} has {length[bad] ** 0.5:.4g}"
        )
    return rows


def check_ids(ids: Ids, count: int | None = None) -> NDArray:
    """The ids as int64.

    Raises:
        ValueError: if they are negative, not whole, repeated, or not `count` many.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"ids must be a list of whole numbers, got {array.dtype} {array.shape}")
    array = array.astype(np.int64)
    if count is not None and len(array) != count:
        raise ValueError(f"{len(array)} ids for {count} rows of features")
    if array.size and array.min() < 0:
        raise ValueError(f"ids must not be negative, got {int(array.min())}")
    if len(np.unique(array)) < len(array):
        values, counts = np.unique(array, return_counts=True)
        raise ValueError(f"id {int(values[counts > 1][0])} was given twice")
    return array


def check_k(k: int) -> None:
    """Raise ValueError for a list shorter than 1."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def ranked(scores: NDArray, ids: NDArray, k: int) -> Found:
    """Sort lists by falling score, ties by rising id, cut or padded to k; id −1 is empty."""
    scores = np.where(ids < 0, -np.inf, scores).astype(np.float32)
    order = np.lexsort((np.where(ids < 0, np.iinfo(np.int64).max, ids), -scores), axis=-1)[:, :k]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    if (short := k - ids.shape[1]) > 0:
        scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
        ids = np.pad(ids, ((0, 0), (0, short)), constant_values=-1)
    return Found(torch.from_numpy(scores), torch.from_numpy(ids))
