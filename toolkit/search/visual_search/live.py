"""An index that changes while it is searched: main, delta, tombstones (method C, real time).

The main index never changes but for tombstones. New items go into a small delta; both are searched
and merged. When the delta outgrows its share, a new main is built in the background from what is
alive, and takes the place of the old one in one assignment.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from toolkit.search.visual_search.index import BinaryRerankIndex, FaissIndex
from toolkit.search.visual_search.journal import Journal, Op, Snapshots
from toolkit.search.visual_search.store import (
    Found,
    Ids,
    check_features,
    check_ids,
    check_k,
    ranked,
)

Static = FaissIndex | BinaryRerankIndex


class ClosedIndex(RuntimeError):
    """The index was closed."""


class LiveIndex:
    """Real-time add, update and remove; searches never wait for a rebuild.

    Args:
        make: an empty index for the main part.
        make_delta: an empty index for the delta; by default `make`, which must then take items one
            by one (any `"flat"` kind).
        delta_limit: a delta with more than this share of all items, or as many tombstones, starts
            a rebuild.
        least: below so many items in the delta nothing is rebuilt.
        folder: where changes are logged before they are acknowledged; without one nothing is kept.
        background: rebuild in a thread; False: within the call that outgrew the limit.

    Raises:
        ValueError: for a limit outside (0, 1], or a damaged folder.
        RuntimeError: if another process holds the folder.
    """

    def __init__(
        self,
        make: Callable[[], Static],
        *,
        make_delta: Callable[[], Static] | None = None,
        delta_limit: float = 0.1,
        least: int = 1000,
        folder: str | Path | None = None,
        background: bool = True,
    ) -> None:
        if not 0 < delta_limit <= 1:
            raise ValueError(f"delta_limit must lie in (0, 1], got {delta_limit}")
        self.make, self.make_delta = make, make_delta or make
        self.delta_limit, self.least, self.background = delta_limit, least, background
        self._lock, self._rebuild_lock = threading.RLock(), threading.Lock()
        self._parts: tuple[Static, ...] = (make(), self.make_delta())
        self._gone: set[int] | None = None  # removed since a rebuild began
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None
        """What stopped the latest rebuild in the background."""
        self.rebuilds, self.closed = 0, False
        self._disk = Snapshots(Path(folder)) if folder is not None else None
        self._log: Journal | None = None
        if self._disk is not None:
            self._recover(self._disk)

    @property
    def d(self) -> int:
        """Width of the features."""
        return self._parts[-1].items.d

    def __len__(self) -> int:
        with self._lock:
            return sum(len(part) for part in self._parts)

    def add(self, ids: Ids, features: Float[Tensor, "n d"] | NDArray) -> None:
        """Make new items searchable; on return they are found, and kept if there is a folder.

        Raises:
            ValueError: for a known or repeated id, another width, or non-finite rows.
            ClosedIndex: after `close`.
        """
        self._change("add", ids, features)

    def update(self, ids: Ids, features: Float[Tensor, "n d"] | NDArray) -> None:
        """Give known items new features, in one step for every reader.

        Raises:
            ValueError: for an unknown or repeated id, another width, or non-finite rows.
            ClosedIndex: after `close`.
        """
        self._change("update", ids, features)

    def remove(self, ids: Ids) -> None:
        """Take items out; no search that begins later finds them.

        Raises:
            ValueError: for an unknown or repeated id: nothing is removed then.
            ClosedIndex: after `close`.
        """
        self._change("remove", ids, None)

    def search(
        self,
        features: Float[Tensor, "b d"],
        k: int,
        filter: Ids | None = None,
    ) -> Found:
        """The k best of main and delta, as `FaissIndex.search` has it."""
        check_k(k)
        # An item that is updated meanwhile leaves the older parts before it is in the delta; since
        # the delta is read last, and a reader whose parts were exchanged begins again, it is never
        # missed, and the later copy wins.
        while True:
            with self._lock:
                self._open()
                parts = self._parts
            found = [part.search(features, k, filter) for part in parts[:-1] if len(part)]
            with self._lock:
                if parts is self._parts:
                    if len(parts[-1]):
                        found.append(parts[-1].search(features, k, filter))
                    break
        if len(found) == 1:
            return found[0]
        if not found:
            return parts[-1].search(features, k, filter)
        ids = np.concatenate([part.ids.numpy() for part in reversed(found)], 1)
        scores = np.concatenate([part.scores.numpy() for part in reversed(found)], 1)
        return ranked(scores, _first_only(ids), k)

    def contains(self, ids: Ids) -> NDArray:
        """Which ids are there."""
        with self._lock:
            return np.any([part.contains(ids) for part in self._parts], axis=0)

    def rebuild(self) -> None:
        """Merge the delta into a new main part now; searches and changes go on meanwhile."""
        with self._rebuild_lock:
            with self._lock:
                self._open()
                parts = self._parts
                alive = [part.items.alive.copy() for part in parts]
                self._parts = (*parts, self.make_delta())
                self._gone = set()
                generation = self._next_log()
            try:
                kept = [part.items.living(a) for part, a in zip(parts, alive, strict=True)]
                ids = np.concatenate([part[0] for part in kept])
                order = ids.argsort(kind="stable")
                ids = ids[order]
                rows = np.concatenate([part[1] for part in kept])[order]
                main = self.make()
                if len(ids):
                    main.add(ids, rows)
                if self._disk is not None:
                    self._disk.write(generation, ids, rows)
            finally:
                with self._lock:
                    gone, self._gone = self._gone, None
            with self._lock:
                left = np.fromiter(gone or (), np.int64)
                main.remove(left[main.contains(left)])
                self._parts = (main, self._parts[-1])
                self.rebuilds += 1

    def wait(self) -> None:
        """Return when no rebuild runs.

        Raises:
            RuntimeError: if the latest rebuild failed; its error is the cause.
        """
        if self._thread is not None:
            self._thread.join()
        if self.error is not None:
            raise RuntimeError("the rebuild failed; the index goes on as it was") from self.error

    def close(self) -> None:
        """Finish a rebuild, close the log and let another process have the folder."""
        if self.closed:
            return
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self.closed = True
            if self._log is not None and self._disk is not None:
                self._log.close()
                self._disk.close()

    def _open(self) -> None:
        if self.closed:
            raise ClosedIndex("the index is closed")

    def _change(self, op: Op, ids: Ids, features: Tensor | NDArray | None) -> None:
        items = self._parts[-1].items
        rows = None if features is None else check_features(features, items.d, items.unit)
        numbers = check_ids(ids, None if rows is None else len(rows))
        with self._lock:
            self._open()
            known = self.contains(numbers)
            if op == "add" and known.any():
                raise ValueError(
                    f"id {int(numbers[known][0])} is in the index already; update or remove it"
                )
            if op != "add" and not known.all():
                raise ValueError(f"id {int(numbers[~known][0])} is not in the index")
            if not len(numbers):
                return
            if self._log is not None:
                self._log.append(op, numbers, rows)  # first the disk, then the reply
            self._apply(op, numbers, rows)
            start = self.background and self._outgrown()
            if start:
                self._thread = threading.Thread(target=self._in_background, daemon=True)
                self._thread.start()
        if not self.background and self._outgrown():
            self.rebuild()

    def _apply(self, op: Op, ids: NDArray, rows: NDArray | None) -> None:
        if op != "add":
            for part in self._parts:
                part.remove(ids[part.contains(ids)])
            if self._gone is not None:
                self._gone.update(ids.tolist())
        if rows is not None:
            self._parts[-1].add(ids, rows)

    def _outgrown(self) -> bool:
        if self._gone is not None or (self._thread is not None and self._thread.is_alive()):
            return False
        main, *_, delta = self._parts
        change = max(len(delta.items.ids), main.items.dead)
        return change > max(self.least, self.delta_limit * len(self))

    def _in_background(self) -> None:
        try:
            self.rebuild()
            self.error = None
        except BaseException as error:
            self.error = error

    def _next_log(self) -> int:
        """Begin the log of the generation that a rebuild makes; 0 without a folder."""
        if self._disk is None or self._log is None:
            return 0
        generation = int(self._log.path.name.removeprefix("log-")) + 1
        self._log.close()
        self._log = Journal(self._disk.log(generation))
        return generation

    def _recover(self, disk: Snapshots) -> None:
        """The latest snapshot, then every logged change, in order."""
        state = disk.state()
        if len(state.get("ids", ())):
            self._parts[0].add(state["ids"], state["features"])
        for log in disk.logs():
            for op, arrays in log.records:
                self._apply(op, arrays["ids"], arrays.get("features"))
            log.records = []
            if self._log is not None:
                self._log.close()
            self._log = log


def staleness(index: LiveIndex, item: int, feature: Float[Tensor, "1 d"]) -> float:
    """Seconds from the call that adds an item until a search finds it."""
    begin = time.perf_counter()
    index.add(np.array([item]), feature)
    while item not in index.search(feature, 10).ids[0].tolist():
        if time.perf_counter() - begin > 10:
            return float("inf")
    return time.perf_counter() - begin


def _first_only(ids: NDArray) -> NDArray:
    """Each id once a row, where it stands first; −1 in its other places."""
    order = ids.argsort(1, kind="stable")
    row = np.take_along_axis(ids, order, 1)
    again = np.zeros_like(ids, bool)
    repeated = np.concatenate([np.zeros((len(ids), 1), bool), row[:, 1:] == row[:, :-1]], 1)
    np.put_along_axis(again, order, repeated, 1)
    return np.where(again, -1, ids)
