"""The same index on other engines: zvec (durable, filtered, in process) and Milvus (a cluster).

Both are optional: `pip install papers-that-run[zvec]` or `[milvus]`. Beside `filter` (ids) their
searches take `category`, a number stored with each item, which these engines filter natively.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from toolkit.search.visual_search.store import (
    Found,
    Ids,
    check_features,
    check_ids,
    check_k,
    ranked,
)

NONE = -1
"""The category of items that were added without one."""
AT_ONCE = 1000
"""Items of one request."""


class _Database(ABC):
    """The checks that both databases lack: right widths, no id twice, none unknown."""

    d: int
    unit: bool
    closed: bool

    def add(
        self,
        ids: Ids,
        features: Float[Tensor, "n d"],
        categories: Ids | None = None,
    ) -> None:
        """Add new items.

        Raises:
            ValueError: for a known or repeated id, another width, or non-finite rows.
        """
        rows = check_features(features, self.d, self.unit)
        numbers = check_ids(ids, len(rows))
        groups = _groups(categories, len(rows))
        if known := self._known(numbers):
            raise ValueError(f"id {known[0]} is in the index already; remove it first")
        for begin in range(0, len(rows), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            self._insert(numbers[part].tolist(), rows[part].tolist(), groups[part])

    def remove(self, ids: Ids) -> None:
        """Take items out.

        Raises:
            ValueError: for an unknown id; nothing is removed then.
        """
        numbers = check_ids(ids)
        known = set(self._known(numbers))
        if unknown := [one for one in numbers.tolist() if one not in known]:
            raise ValueError(f"id {unknown[0]} is not in the index")
        if len(numbers):
            self._delete(numbers.tolist())

    def search(
        self,
        features: Float[Tensor, "b d"],
        k: int,
        filter: Ids | None = None,
        *,
        category: int | None = None,
    ) -> Found:
        """The k best among those of `filter` and `category`.

        Raises:
            ValueError: for another width, non-finite rows, or k below 1.
        """
        check_k(k)
        queries = check_features(features, self.d, self.unit, "queries")
        chosen = None if filter is None else [int(one) for one in np.asarray(filter)]
        group = None if category is None else int(category)
        return _padded(self._best(queries, k, chosen, group) if len(queries) else [], k)

    @abstractmethod
    def _known(self, ids: NDArray) -> list[int]:
        """Which of these ids are there."""

    @abstractmethod
    def _insert(self, ids: list[int], rows: list[list[float]], groups: list[int]) -> None:
        """Store checked items."""

    @abstractmethod
    def _delete(self, ids: list[int]) -> None:
        """Take known items out."""

    @abstractmethod
    def _best(
        self, queries: NDArray, k: int, chosen: list[int] | None, category: int | None
    ) -> list[list[tuple[int, float]]]:
        """Up to k pairs of id and score for each query."""


class ZvecIndex(_Database):
    """Items in a zvec collection: kept on disk, one process writes.

    Args:
        folder: of the collection; opened if it exists, else made.
        d: width of the features.
        kind: `"flat"` is exact, `"hnsw"` approximate and complete only after `optimize`.
        unit: whether features must have length 1.

    Raises:
        ImportError: if zvec is not installed.
        ValueError: for an unknown kind, or a collection of another width.
    """

    def __init__(
        self, folder: str | Path, d: int, kind: str = "flat", *, unit: bool = True
    ) -> None:
        self._zvec = zvec = _import_zvec()
        if kind not in ("flat", "hnsw"):
            raise ValueError(f"kind is {kind!r}; choose 'flat' or 'hnsw'")
        self.d, self.unit, self.closed = d, unit, False
        if Path(folder).exists():
            self._items = zvec.open(str(folder))
            width = self._items.schema.vector("feature").dimension
            if width != d:
                self._items.close()
                raise ValueError(f"the collection has width {width}, not {d}")
            return
        metric = {"metric_type": zvec.MetricType.IP}
        index = zvec.FlatIndexParam(**metric) if kind == "flat" else zvec.HnswIndexParam(**metric)
        schema = zvec.CollectionSchema(
            "items",
            fields=[
                zvec.FieldSchema(name, zvec.DataType.INT64, index_param=zvec.InvertIndexParam())
                for name in ("item", "category")
            ],
            vectors=[zvec.VectorSchema("feature", zvec.DataType.VECTOR_FP32, d, index)],
        )
        self._items = zvec.create_and_open(str(folder), schema)

    def __len__(self) -> int:
        return int(self._open().stats.doc_count)

    def _insert(self, ids: list[int], rows: list[list[float]], groups: list[int]) -> None:
        docs = [
            self._zvec.Doc(
                id=str(one), vectors={"feature": row}, fields={"item": one, "category": group}
            )
            for one, row, group in zip(ids, rows, groups, strict=True)
        ]
        self._accepted(self._items.insert(docs))

    def _delete(self, ids: list[int]) -> None:
        self._accepted(self._items.delete([str(one) for one in ids]))

    def _best(
        self, queries: NDArray, k: int, chosen: list[int] | None, category: int | None
    ) -> list[list[tuple[int, float]]]:
        conditions = [] if category is None else [f"category = {category}"]
        if chosen is not None:
            listed = ", ".join(map(str, chosen))
            conditions.append(f"item in ({listed})" if chosen else "item < 0")
        where, items = " and ".join(conditions) or None, self._open()
        vectors = [self._zvec.Query(field_name="feature", vector=row.tolist()) for row in queries]
        lists = [items.query(vector, topk=k, filter=where) for vector in vectors]
        return [[(int(doc.id), doc.score) for doc in one] for one in lists]

    def optimize(self) -> None:
        """Build what approximate kinds search; until then new items are scanned."""
        self._open().optimize()

    def flush(self) -> None:
        """Write everything to the disk."""
        self._open().flush()

    def close(self) -> None:
        """Write everything and let go of the folder."""
        if not self.closed:
            self._items.flush()
            self._items.close()
            self.closed = True

    def _open(self) -> Any:
        if self.closed:
            raise RuntimeError("the index is closed")
        return self._items

    def _known(self, ids: NDArray) -> list[int]:
        return [int(one) for one in self._open().fetch([str(one) for one in ids.tolist()])]

    @staticmethod
    def _accepted(statuses: Any) -> None:
        for status in statuses if isinstance(statuses, list) else [statuses]:
            if not status.ok():
                raise RuntimeError(f"zvec refused a change: {status.message()}")


class MilvusIndex(_Database):
    """Items in a Milvus collection: embedded (milvus-lite), one server, or a cluster.

    Args:
        uri: a file name ending in `.db` (embedded), or `http://host:19530`.
        d: width of the features.
        collection: its name; opened if it exists, else made.
        index: Milvus' index type, such as `"FLAT"`, `"HNSW"` or `"IVF_FLAT"`.
        unit: whether features must have length 1.

    Raises:
        ImportError: if pymilvus is not installed.
    """

    def __init__(
        self,
        uri: str | Path,
        d: int,
        collection: str = "items",
        index: str = "FLAT",
        *,
        unit: bool = True,
    ) -> None:
        pymilvus = _import_pymilvus()
        self.d, self.unit, self.name, self.closed = d, unit, collection, False
        self._client = client = pymilvus.MilvusClient(str(uri))
        if client.has_collection(collection):
            client.load_collection(collection)
            return
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
        schema.add_field("category", pymilvus.DataType.INT64)
        schema.add_field("feature", pymilvus.DataType.FLOAT_VECTOR, dim=d)
        settings = client.prepare_index_params()
        settings.add_index("feature", index_type=index, metric_type="IP")
        client.create_collection(collection, schema=schema, index_params=settings)

    def __len__(self) -> int:
        answer = self._open().query(self.name, filter="", output_fields=["count(*)"])
        return int(answer[0]["count(*)"])

    def _insert(self, ids: list[int], rows: list[list[float]], groups: list[int]) -> None:
        data = [
            {"id": one, "category": group, "feature": row}
            for one, row, group in zip(ids, rows, groups, strict=True)
        ]
        self._client.insert(self.name, data)

    def _delete(self, ids: list[int]) -> None:
        self._client.delete(self.name, ids=ids)

    def _best(
        self, queries: NDArray, k: int, chosen: list[int] | None, category: int | None
    ) -> list[list[tuple[int, float]]]:
        conditions = [] if category is None else [f"category == {category}"]
        if chosen is not None:
            conditions.append(f"id in {chosen}")
        lists = self._open().search(
            self.name,
            queries.tolist(),
            limit=k,
            filter=" and ".join(conditions),
            search_params={"metric_type": "IP"},
            output_fields=["id"],
            consistency_level="Strong",
        )
        return [[(int(hit["id"]), hit["distance"]) for hit in one] for one in lists]

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self._client.close()
            self.closed = True

    def _open(self) -> Any:
        if self.closed:
            raise RuntimeError("the index is closed")
        return self._client

    def _known(self, ids: NDArray) -> list[int]:
        client, known = self._open(), []
        for begin in range(0, len(ids), AT_ONCE):
            part = ids[begin : begin + AT_ONCE].tolist()
            rows = client.query(self.name, filter=f"id in {part}", output_fields=["id"])
            known += [int(row["id"]) for row in rows]
        return known


def _groups(categories: Any, count: int) -> list[int]:
    if categories is None:
        return [NONE] * count
    groups = [int(one) for one in np.asarray(categories)]
    if len(groups) != count:
        raise ValueError(f"{len(groups)} categories for {count} items")
    return groups


def _padded(lists: list[list[tuple[int, float]]], k: int) -> Found:
    scores = np.full((len(lists), k), -np.inf, np.float32)
    ids = np.full((len(lists), k), -1, np.int64)
    for row, one in enumerate(lists):
        for place, (item, score) in enumerate(one[:k]):
            ids[row, place], scores[row, place] = item, score
    return ranked(scores, ids, k)


def _import_zvec() -> Any:
    try:
        import zvec
    except ImportError as error:
        raise ImportError("zvec is missing; pip install 'papers-that-run[zvec]'") from error
    return zvec


def _import_pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError as error:
        raise ImportError("pymilvus is missing; pip install 'papers-that-run[milvus]'") from error
    return pymilvus
