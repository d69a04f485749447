"""The KNN graph of the class weights: built exactly on a ring of ranks, then cut by shard.

Song et al. (2020) build the graph exactly rather than approximately, since a missed neighbour is
lost probability mass at every later step. [reconstructed: the ring's details]
"""

from dataclasses import dataclass
from typing import Literal

import faiss
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.learn.distributed import world
from toolkit.search.topk import merge_topk

Backend = Literal["exact", "faiss", "ivf", "hnsw"]


def shard_bounds(num_classes: int, rank: int, size: int) -> tuple[int, int]:
    """First class of a rank's block and the one after its last: [low, high).

    Blocks are contiguous; the first `num_classes % size` ranks own one class more.
    """
    share, more = divmod(num_classes, size)
    low = rank * share + min(rank, more)
    return low, low + share + (rank < more)


@torch.no_grad()
def build_knn_graph(
    W: Float[Tensor, "own d"],
    k: int,
    *,
    chunk: int = 4096,
    group: dist.ProcessGroup | None = None,
    backend: Backend = "exact",
    dtype: torch.dtype | None = None,
) -> Int[Tensor, "own k"]:
    """The k classes of largest cosine to each class of this rank, itself first.

    Each rank keeps its own block and passes a travelling one round a ring; after R rounds every
    pair of classes has met. While two blocks are multiplied, the next one is already on its way.

    Args:
        W: class weights of this rank, rows need no unit length.
        k: entries per class, the class itself included at position 0.
        chunk: side of a tile of similarities, classes; bounds the memory to chunk² numbers.
        group: the ranks that share the classes; without one, `W` holds all of them.
        backend: "exact" is the ring; "faiss" (exact), "ivf" and "hnsw" (approximate) are peers
            that gather all weights on every rank.
        dtype: precision of the similarities; the paper's GPUs use half. [not verified]

    Returns:
        Global class ids by falling cosine; −1 where an approximate index found fewer.

    Raises:
        ValueError: if `k` is not in [1, C), if `backend` is unknown, or if the ranks' blocks are
            not those of `shard_bounds`.
    """
    rank, size = world(group)
    num_classes = _count(W, group)
    low, high = shard_bounds(num_classes, rank, size)
    if not 1 <= k < num_classes:
        raise ValueError(f"k is {k}; it must be at least 1 and below the {num_classes} classes")
    if len(W) != high - low:
        raise ValueError(
            f"rank {rank} has {len(W)} classes; its block of {num_classes} is {high - low}"
        )
    rows = F.normalize(W.detach(), dim=1)
    rows = rows if dtype is None else rows.to(dtype)
    if backend == "exact":
        return _ring(rows, num_classes, k, chunk, group)
    if backend not in ("faiss", "ivf", "hnsw"):
        raise ValueError(f"backend is {backend!r}; choose exact, faiss, ivf or hnsw")
    return _with_faiss(rows.float(), num_classes, k, backend, group)


@dataclass(frozen=True)
class ShardedGraph:
    """The graph as one rank needs it: for any class, its neighbours that live on this rank.

    A compressed sparse matrix of C rows. Over R ranks a rank holds about C·K/R entries instead of
    C·K (the paper's compressed graph, as far as known).

    Attributes:
        start: row c lies in `ids[start[c]:start[c + 1]]`.
        ids: local class ids, int32.
        position: place in the neighbour list of the row's class; 0 is the class itself.
        low: first class of this rank.
        num_local: classes on this rank, C_r.
        k: entries per class before the cut.
    """

    start: Int[Tensor, " classes_plus_1"]
    ids: Int[Tensor, " entries"]
    position: Int[Tensor, " entries"]
    low: int
    num_local: int
    k: int

    @property
    def num_classes(self) -> int:
        """All classes of all ranks, C."""
        return len(self.start) - 1

    @classmethod
    def from_neighbours(
        cls, neighbours: Int[Tensor, "own k"], group: dist.ProcessGroup | None = None
    ) -> "ShardedGraph":
        """Send every entry to the rank that owns the neighbour (one all-to-all).

        Args:
            neighbours: global ids from `build_knn_graph`, −1 for none.
            group: the same ranks.
        """
        rank, size = world(group)
        num_classes, k = _count(neighbours, group), neighbours.shape[1]
        low, high = shard_bounds(num_classes, rank, size)
        row, position = (neighbours >= 0).nonzero(as_tuple=True)
        entries = torch.stack([row + low, neighbours[row, position], position], dim=1)
        row, ids, position = _to_owners(entries, num_classes, group).unbind(dim=1)
        start = torch.zeros(num_classes + 1, dtype=torch.int64, device=row.device)
        start[1:] = torch.bincount(row, minlength=num_classes).cumsum(0)
        return cls(start, (ids - low).int(), position.int(), low, high - low, k)

    def lookup(
        self, labels: Int[Tensor, " batch"]
    ) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
        """Local ids and positions of all neighbours of some classes, repetitions included.

        Args:
            labels: global class ids.
        """
        begin = self.start[labels]
        length = self.start[labels + 1] - begin
        offset = length.cumsum(0) - length
        entry = torch.arange(int(length.sum()), device=labels.device)
        entry = entry + (begin - offset).repeat_interleave(length)
        return self.ids[entry].long(), self.position[entry]

    def bytes(self) -> int:
        """Memory of the three arrays."""
        return sum(part.nbytes for part in (self.start, self.ids, self.position))


def _ring(
    rows: Tensor, num_classes: int, k: int, chunk: int, group: dist.ProcessGroup | None
) -> Tensor:
    rank, size = world(group)
    largest = shard_bounds(num_classes, 0, size)[1]
    travelling = F.pad(rows, (0, 0, 0, largest - len(rows)))  # the same shape for every sender
    low, _ = shard_bounds(num_classes, rank, size)
    empty = rows.new_full((len(rows), k), -torch.inf, dtype=torch.float32)
    nobody = torch.full_like(empty, -1, dtype=torch.int64)
    best = list(zip(empty.split(chunk), nobody.split(chunk), strict=True))
    for step in range(size):
        owner = (rank - step) % size
        begin, end = shard_bounds(num_classes, owner, size)
        arriving, transfers = _pass_on(travelling, group) if step < size - 1 else (travelling, [])
        block = travelling[: end - begin]
        for part, own in enumerate(rows.split(chunk)):
            first = low + part * chunk
            best[part] = _meet(own, first, block, begin, k, chunk, best[part])
        for transfer in transfers:
            transfer.wait()
        travelling = arriving
    return torch.cat([ids for _, ids in best])


def _meet(
    own: Tensor,
    first: int,
    block: Tensor,
    begin: int,
    k: int,
    chunk: int,
    best: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Merge the neighbours that some own rows have in one block into their running top k."""
    scores, ids = [best[0]], [best[1]]
    for offset in range(0, len(block), chunk):
        tile = block[offset : offset + chunk]
        similarity = (own @ tile.T).float()
        at = begin + offset
        low, high = max(first, at), min(first + len(own), at + len(tile))
        row = torch.arange(low, max(low, high), device=own.device)
        similarity[row - first, row - at] = torch.inf  # a class comes first in its own list
        score, column = similarity.topk(min(k, len(tile)), dim=1)
        missing = k - score.shape[1]
        scores.append(F.pad(score, (0, missing), value=-torch.inf))
        ids.append(F.pad(column + at, (0, missing), value=-1))
    return merge_topk(torch.stack(scores), torch.stack(ids), k)


def _pass_on(block: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, list[dist.Work]]:
    rank, size = world(group)
    arriving = torch.empty_like(block)
    send = dist.P2POp(dist.isend, block, group=group, group_peer=(rank + 1) % size)
    receive = dist.P2POp(dist.irecv, arriving, group=group, group_peer=(rank - 1) % size)
    return arriving, dist.batch_isend_irecv([send, receive])


def _to_owners(
    entries: Int[Tensor, "sent 3"], num_classes: int, group: dist.ProcessGroup | None
) -> Int[Tensor, "received 3"]:
    """All-to-all of (row, neighbour, position): each goes to the rank that owns the neighbour."""
    size = world(group)[1]
    if size == 1:
        return entries
    highs = [shard_bounds(num_classes, rank, size)[1] for rank in range(size)]
    owner = torch.bucketize(
        entries[:, 1].contiguous(), torch.tensor(highs, device=entries.device), right=True
    )
    sent = torch.bincount(owner, minlength=size)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    arrived = entries.new_empty(int(received.sum()), 3)
    dist.all_to_all_single(
        arrived,
        entries[owner.argsort(stable=True)],
        received.tolist(),
        sent.tolist(),
        group=group,
    )
    return arrived


def _with_faiss(
    rows: Tensor, num_classes: int, k: int, backend: str, group: dist.ProcessGroup | None
) -> Tensor:
    everyone = _gather_rows(rows, num_classes, group).cpu().numpy()
    index = _faiss_index(backend, everyone.shape[1], num_classes, k)
    index.train(everyone)
    index.add(everyone)
    found = torch.from_numpy(index.search(rows.cpu().numpy(), k)[1]).to(rows.device)
    low, _ = shard_bounds(num_classes, *world(group))
    return _self_first(found, torch.arange(low, low + len(rows), device=rows.device))


def _faiss_index(backend: str, d: int, num_classes: int, k: int) -> faiss.Index:
    if backend == "faiss":
        return faiss.IndexFlatIP(d)
    if backend == "ivf":
        cells = max(1, int(num_classes**0.5))
        ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
        ivf.nprobe = max(1, cells // 8)
        return ivf
    hnsw = faiss.IndexHNSWFlat(d, 32, faiss.METRIC_INNER_PRODUCT)
    hnsw.hnsw.efSearch = max(128, 2 * k)
    return hnsw


def _self_first(found: Int[Tensor, "own k"], own: Int[Tensor, " own"]) -> Int[Tensor, "own k"]:
    """Move each class to the front of its list; where the index missed it, drop the last."""
    is_self = found == own[:, None]
    is_self[:, -1] |= ~is_self.any(dim=1)
    others = found[~is_self].view(len(found), -1)
    return torch.cat([own[:, None], others], dim=1)


def _gather_rows(rows: Tensor, num_classes: int, group: dist.ProcessGroup | None) -> Tensor:
    size = world(group)[1]
    if size == 1:
        return rows
    bounds = [shard_bounds(num_classes, rank, size) for rank in range(size)]
    largest = bounds[0][1]
    padded = F.pad(rows, (0, 0, 0, largest - len(rows)))
    blocks = [torch.empty_like(padded) for _ in bounds]
    dist.all_gather(blocks, padded, group=group)
    return torch.cat([b[: high - low] for b, (low, high) in zip(blocks, bounds, strict=True)])


def _count(rows: Tensor, group: dist.ProcessGroup | None) -> int:
    total = torch.tensor([len(rows)], device=rows.device)
    if world(group)[1] > 1:
        dist.all_reduce(total, group=group)
    return int(total)
