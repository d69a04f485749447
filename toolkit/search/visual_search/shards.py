"""Many machines as one index: shards hold different items, replicas the same (method C).

Each shard returns its own best k, and the k best of all are the k best of the whole: no shard can
hold one that is not among its own k best. A shard that does not answer makes the result partial,
and says so.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from toolkit.search.topk import merge_topk
from toolkit.search.visual_search.store import Found, Ids, VisualIndex, check_ids, check_k

DEAD = (ConnectionError, EOFError, TimeoutError)
"""What a replica raises that is gone; any other error is the caller's and is passed on."""


class ShardDown(ConnectionError):
    """No replica of a shard is left, so a change cannot be kept."""


class ShardedIndex:
    """Items spread over shards by id, each shard on one or more replicas.

    Reads go to the replicas in turn; a replica that fails is left out from then on, until `revive`.
    Writes go to all living replicas of a shard.

    Args:
        shards: for each shard its replicas, all empty or all with the same items.
        workers: threads that ask shards at the same time; faiss and sockets let go of the
            interpreter while they work.

    Raises:
        ValueError: without shards, or for a shard without a replica.
    """

    def __init__(self, shards: Sequence[Sequence[VisualIndex]], workers: int | None = None) -> None:
        if not shards or not all(shards):
            raise ValueError("need at least one shard, and one replica of each")
        self.replicas = [list(shard) for shard in shards]
        self.alive = [[True] * len(shard) for shard in shards]
        self._turn = [itertools.count() for _ in shards]
        self._writing = threading.Lock()
        self._pool = ThreadPoolExecutor(workers or len(shards))

    def __len__(self) -> int:
        return sum(self._read(shard, len) for shard in range(len(self.replicas)))

    def owner(self, ids: NDArray) -> NDArray:
        """The shard of each id."""
        return ids % len(self.replicas)

    def add(self, ids: Ids, features: Float[Tensor, "n d"] | NDArray) -> None:
        """Add items on the shards that own them.

        Raises:
            ValueError: from a shard, for bad items; shards asked before it keep theirs.
            ShardDown: if a shard that owns one has no replica left; nothing is written then.
        """
        self._write("add", ids, features)

    def update(self, ids: Ids, features: Float[Tensor, "n d"] | NDArray) -> None:
        """Give items new features; raises as `add` does."""
        self._write("update", ids, features)

    def remove(self, ids: Ids) -> None:
        """Take items out; raises as `add` does."""
        self._write("remove", ids, None)

    def search(
        self,
        features: Float[Tensor, "b d"],
        k: int,
        filter: Ids | None = None,
    ) -> Found:
        """The k best over all shards that answer.

        Raises:
            ValueError: for bad queries.
            ShardDown: if no shard answers.
        """
        check_k(k)

        def ask(shard: int) -> Found | None:
            try:
                return self._read(shard, lambda replica: replica.search(features, k, filter))
            except ShardDown:
                return None

        answers = list(self._pool.map(ask, range(len(self.replicas))))
        found = [answer for answer in answers if answer is not None]
        if not found:
            raise ShardDown("no shard answers")
        scores, ids = merge_topk(
            torch.stack([one.scores for one in found]), torch.stack([one.ids for one in found]), k
        )
        partial = len(found) < len(answers) or any(one.partial for one in found)
        return Found(scores, ids, partial)

    def revive(self, shard: int, replica: int, fresh: VisualIndex) -> None:
        """Put a replica back that holds the shard's items again."""
        with self._writing:
            self.replicas[shard][replica] = fresh
            self.alive[shard][replica] = True

    def close(self) -> None:
        """End the threads; the shards stay open."""
        self._pool.shutdown()

    def _read(self, shard: int, ask: Callable[[VisualIndex], Any]) -> Any:
        """Ask one replica, the next one if it is gone."""
        count, first = len(self.replicas[shard]), next(self._turn[shard])
        for number in ((first + step) % count for step in range(count)):
            if self.alive[shard][number]:
                try:
                    return ask(self.replicas[shard][number])
                except DEAD:
                    self.alive[shard][number] = False
        raise ShardDown(f"shard {shard} has no living replica")

    def _write(self, what: str, ids: Ids, features: Tensor | NDArray | None) -> None:
        numbers = check_ids(ids, None if features is None else len(features))
        owner = self.owner(numbers)
        wanted = np.unique(owner).tolist()
        with self._writing:
            if down := [shard for shard in wanted if not any(self.alive[shard])]:
                raise ShardDown(f"shard {down[0]} has no living replica; nothing was written")
            for shard in wanted:
                rows = np.flatnonzero(owner == shard)
                self._write_one(shard, what, numbers[rows], features, rows)

    def _write_one(
        self, shard: int, what: str, ids: NDArray, features: Tensor | NDArray | None, rows: NDArray
    ) -> None:
        arguments = (ids,) if features is None else (ids, features[rows])
        for number, replica in enumerate(self.replicas[shard]):
            if self.alive[shard][number]:
                try:
                    getattr(replica, what)(*arguments)
                except DEAD:
                    self.alive[shard][number] = False
        if not any(self.alive[shard]):
            raise ShardDown(f"shard {shard} died while {what} was written to it")
