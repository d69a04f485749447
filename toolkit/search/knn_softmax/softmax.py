"""KNN softmax over classes that are split among ranks (Song et al. 2020).

A rank owns a block of class weights. Features and labels travel to the weights, never the reverse;
three numbers per example come back. The softmax runs over the *active classes* alone: the labels of
the batch and their nearest neighbours in the graph of the class weights.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from toolkit.learn.distributed import gather_with_grad, world
from toolkit.search.knn_softmax.graph import Backend, ShardedGraph, build_knn_graph, shard_bounds

Mode = Literal["full", "knn", "random"]


@dataclass(frozen=True)
class Active:
    """The classes of one rank that take part in one step.

    Attributes:
        ids: local class ids, sorted and distinct, M_r of them.
        label_pos: where each label of the batch stands in `ids`; −1 if another rank owns it.
        is_fill: true for classes drawn at random, neither label nor neighbour.
    """

    ids: Int[Tensor, " active"]
    label_pos: Int[Tensor, " batch"]
    is_fill: Bool[Tensor, " active"]


def select_active(
    labels: Int[Tensor, " batch"], graph: ShardedGraph, m: int, generator: torch.Generator
) -> Active:
    """Choose exactly `m` active classes of this rank for the labels of the global batch.

    Labels stay. Neighbours follow by their smallest position in any label's list, ties by id. What
    is still free is filled with random other classes of the rank.

    Args:
        labels: global ids of all ranks' examples.
        graph: this rank's part of the KNN graph.
        m: number of active classes on this rank, M_r.
        generator: draws the fills; on the CPU.

    Raises:
        ValueError: if a label is outside [0, C), if `m` exceeds the classes of this rank, or is
            below the number of distinct labels that it owns.
    """
    _check_labels(labels, graph.num_classes)
    ids, position = graph.lookup(labels)
    local = labels - graph.low
    return select_candidates(local, ids, position, graph.k, graph.num_local, m, generator)


def select_random(
    labels: Int[Tensor, " batch"],
    num_classes: int,
    low: int,
    num_local: int,
    m: int,
    generator: torch.Generator,
) -> Active:
    """The labels of this rank and uniformly drawn others: PartialFC's rule, `m` in all.

    Args:
        labels: global ids of all ranks' examples.
        num_classes: classes of all ranks, C.
        low: first class of this rank.
        num_local: classes of this rank, C_r.
        m: number of active classes.
        generator: draws the fills; on the CPU.

    Raises:
        ValueError: as `select_active`.
    """
    _check_labels(labels, num_classes)
    nobody = labels.new_empty(0)
    return select_candidates(labels - low, nobody, nobody.int(), 0, num_local, m, generator)


def select_candidates(
    local_labels: Int[Tensor, " batch"],
    ids: Int[Tensor, " found"],
    position: Int[Tensor, " found"],
    k: int,
    num_local: int,
    m: int,
    generator: torch.Generator,
) -> Active:
    """The rule of `select_active` for candidates from anywhere.

    Args:
        local_labels: labels minus the first class of this rank; outside [0, C_r): another rank's.
        ids: local ids of the candidates, repetitions allowed.
        position: of each in the list that it comes from, int32 below `k`; small comes first.
        k: length of the lists.
        num_local: classes of this rank, C_r.
        m: number of active classes.
        generator: draws the fills; on the CPU.

    Raises:
        ValueError: if `m` exceeds `num_local` or is below the number of distinct labels.
    """
    label_pos = _position(local_labels, num_local)
    owned = label_pos >= 0
    _check_room(label_pos[owned], m, num_local)
    best = torch.full((num_local,), k, dtype=torch.int32, device=ids.device)
    best.scatter_reduce_(0, ids, position, "amin")  # the smallest position over the batch
    best[label_pos[owned]] = -1
    kept = _smallest(best, k, m)
    fills = _draw(best, k, m - len(kept), generator)
    ids, is_fill = kept, torch.zeros_like(kept, dtype=torch.bool)
    if len(fills):
        ids, order = torch.cat([kept, fills]).sort()
        is_fill = order >= len(kept)
    label_pos[owned] = torch.searchsorted(ids, label_pos[owned])
    return Active(ids, label_pos, is_fill)


def neighbours_needed(num_active: int, batch: int) -> int:
    """Neighbours per label that fill `num_active` places twice over: ⌈2M/B⌉, our decision."""
    return math.ceil(2 * num_active / batch)


class DistributedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of logits whose columns are spread over ranks.

    `apply(logits[batch, own], label_pos[batch], group)` returns the same scalar on every rank.
    Per example three numbers are exchanged: the largest logit, the sum of exponentials and the
    logit of the label, to which ranks that do not own it (`label_pos` −1) add 0. Backward needs no
    communication: ∂z = (p − onehot)/B.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "batch own"],
        label_pos: Int[Tensor, " batch"],
        group: dist.ProcessGroup | None = None,
    ) -> Float[Tensor, ""]:
        """The loss; logits of half precision are widened before the exponential."""
        z = logits if logits.dtype == torch.float64 else logits.float()
        largest = _all_reduce(z.amax(dim=1), dist.ReduceOp.MAX, group)
        exponential = (z - largest[:, None]).exp_()
        row = (label_pos >= 0).nonzero().squeeze(1)
        target = torch.zeros_like(largest)
        target[row] = z[row, label_pos[row]]
        sums = torch.stack([exponential.sum(dim=1), target])
        Z, target = _all_reduce(sums, dist.ReduceOp.SUM, group)
        ctx.save_for_backward(exponential.div_(Z[:, None]), row, label_pos)
        ctx.dtype = logits.dtype
        return (Z.log() + largest - target).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """∂L/∂z of this rank's columns."""
        p, row, label_pos = ctx.saved_tensors
        share = gradient / len(p)
        dz = p * share
        dz[row, label_pos[row]] -= share
        return dz.to(ctx.dtype), None, None


class ShardedSoftmax(nn.Module):
    """The last layer of a classifier with very many classes, and its loss.

    Args:
        d: width of the features.
        num_classes: classes of all ranks, C.
        mode: "full" softmax; "knn", over labels and their neighbours; "random", over labels and
            random others.
        rho: active ratio ρ = M/C in (0, 1].
        neighbours: how many neighbours of each label may become active; by default ⌈2M/B⌉,
            twice what fills the places. [our decision]
        correct_fill: add log(1/π) to the logits of random fills, π being the chance of a class to
            be drawn, so that the sum of exponentials is unbiased. [our decision]
        scale: s of cosine logits s·cos(f, W_j); None for plain inner products f·W_j.
        margin: subtracted from the label's cosine (CosFace); only with `scale`.
        backend: who builds the graph.
        group: ranks that share the classes.
        seed: of the weights N(0, 1/d), the same for any number of ranks, and of the fills, which
            each rank draws from its own stream.

    Attributes:
        weight: W^(r), the class weights of this rank. There is no bias.
        graph: this rank's graph, None before the first `rebuild`.

    Raises:
        ValueError: for `rho` outside (0, 1], more ranks than classes, or an unknown mode.
    """

    def __init__(
        self,
        d: int,
        num_classes: int,
        *,
        mode: Mode = "full",
        rho: float = 1.0,
        neighbours: int | None = None,
        correct_fill: bool = False,
        scale: float | None = None,
        margin: float = 0.0,
        backend: Backend = "exact",
        group: dist.ProcessGroup | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        rank, size = world(group)
        _check_head(mode, rho, num_classes, size, scale, margin)
        self.d, self.num_classes, self.mode, self.rho = d, num_classes, mode, rho
        self.neighbours, self.correct_fill = neighbours, correct_fill
        self.scale, self.margin, self.backend, self.group = scale, margin, backend, group
        self.low, high = shard_bounds(num_classes, rank, size)
        self.num_local = high - self.low
        self.num_active = math.ceil(rho * self.num_local)
        self.generator = torch.Generator().manual_seed(seed * 100_003 + rank)
        self.weight = nn.Parameter(_initial_rows(self.low, high, d, seed))
        self.graph: ShardedGraph | None = None

    def forward(
        self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """Gather features and labels of all ranks and return the global loss L.

        The gradient of `features` is this rank's part of ∂L/∂f, with the 1/B of the global batch
        in it: a backbone sums its gradients over ranks, it does not average them.

        Args:
            features: of this rank's examples; every rank has the same number.
            labels: global class ids.

        Raises:
            ValueError: for features of another width, labels outside [0, C), or ranks with
                different numbers of examples.
        """
        check_batch(features, labels, self.d, self.group)
        y = gather_with_grad(labels, self.group)
        return self.loss(gather_with_grad(features, self.group), y, self.select(y))

    def select(self, labels: Int[Tensor, " batch"]) -> Active | None:
        """The active classes for the labels of the whole global batch; None means all."""
        if self.mode == "full":
            _check_labels(labels, self.num_classes)
            return None
        m = self._room_for(labels)
        if self.mode == "random":
            return select_random(
                labels, self.num_classes, self.low, self.num_local, m, self.generator
            )
        if self.graph is None:
            self.rebuild(len(labels))
        assert self.graph is not None
        return select_active(labels, self.graph, m, self.generator)

    def loss(
        self,
        features: Float[Tensor, "batch d"],
        labels: Int[Tensor, " batch"],
        active: Active | None,
    ) -> Float[Tensor, ""]:
        """L of the global batch over the active classes of all ranks.

        Args:
            features: of the global batch.
            labels: of the global batch.
            active: from `select`.
        """
        if active is None:
            W, position = self.weight, _position(labels - self.low, self.num_local)
        else:
            W, position = ActiveRows.apply(self.weight, active.ids), active.label_pos
        z = self.logits(features, W)
        if self.margin and self.scale:
            row = (position >= 0).nonzero().squeeze(1)
            z = z.index_put((row, position[row]), z.new_tensor(-self.scale * self.margin), True)
        if active is not None and self.correct_fill:
            z = z + active.is_fill * _log_inverse_chance(active, self.num_local)
        return DistributedCrossEntropy.apply(z, position, self.group)

    def logits(
        self, features: Float[Tensor, "batch d"], W: Float[Tensor, "active d"]
    ) -> Float[Tensor, "batch active"]:
        """f·W_j, or s·cos(f, W_j)."""
        if self.scale is None:
            return features @ W.T
        return (self.scale * F.normalize(features, dim=1)) @ F.normalize(W, dim=1).T

    def scores(self, features: Float[Tensor, "batch d"]) -> Float[Tensor, "batch own"]:
        """Logits of all classes of this rank, for prediction."""
        return self.logits(features, self.weight)

    @torch.no_grad()
    def rebuild(self, batch: int) -> None:
        """Build the KNN graph of the present weights, with all ranks.

        Args:
            batch: examples of the global batch, B; sets the number of neighbours where `neighbours`
                is not given.
        """
        wanted = self.neighbours
        if wanted is None:
            wanted = neighbours_needed(math.ceil(self.rho * self.num_classes), batch)
        k = min(1 + wanted, self.num_classes - 1)
        near = build_knn_graph(self.weight, k, group=self.group, backend=self.backend)
        self.graph = ShardedGraph.from_neighbours(near, self.group)

    @torch.no_grad()
    def coverage(
        self, features: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """P_A, the mass that the full softmax puts on the active classes, per example.

        By L_full − L_A = −log P_A and ‖p − q‖₁ = 2(1 − P_A) it governs all that is lost. Takes no
        draw from the training's generator.

        Args:
            features: of the global batch, the same on every rank.
            labels: of the global batch.
        """
        state = self.generator.get_state()
        active = self.select(labels)
        self.generator.set_state(state)
        if active is None:
            return features.new_ones(len(features))
        z = self.scores(features).float()
        largest = _all_reduce(z.amax(dim=1), dist.ReduceOp.MAX, self.group)
        e = (z - largest[:, None]).exp()
        inside, total = _all_reduce(
            torch.stack([e[:, active.ids].sum(dim=1), e.sum(dim=1)]), dist.ReduceOp.SUM, self.group
        )
        return inside / total

    def _room_for(self, labels: Tensor) -> int:
        """M_r, grown if this rank owns more distinct labels: dropping one would drop its loss."""
        if len(labels) <= self.num_active:
            return self.num_active
        distinct = len(_owned(labels, self.low, self.num_local).unique())
        if distinct > self.num_active:
            warnings.warn(
                f"{distinct} distinct labels need more than the {self.num_active} active classes "
                f"of rho={self.rho}: the set grows",
                stacklevel=3,
            )
        return max(self.num_active, distinct)


class ActiveRows(torch.autograd.Function):
    """Rows of a matrix, with a gradient that holds these rows only.

    `apply(W[own, d], ids[active])`, ids sorted and distinct. A dense gradient would be as large as
    W and cost the time that the active set saves.
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor, ids: Tensor) -> Tensor:
        """The rows."""
        ctx.save_for_backward(ids)
        ctx.size = W.shape
        return W.index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """A sparse tensor of the size of W."""
        (ids,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(
            ids[None], gradient, ctx.size, is_coalesced=True, check_invariants=False
        ), None


class ActiveRowSGD(torch.optim.Optimizer):
    """SGD with momentum whose inactive rows stand still, weight and momentum alike.

    `torch.optim.SGD` has no momentum for sparse gradients that leaves the other rows alone: theirs
    would drift on old velocity. Dense gradients are treated as all rows active.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: momentum factor.

    Raises:
        ValueError: for a negative rate or a momentum outside [0, 1).
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.0) -> None:
        if lr < 0 or not 0 <= momentum < 1:
            raise ValueError(f"lr {lr} must be ≥ 0 and momentum {momentum} in [0, 1)")
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the rows that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group["lr"], group["momentum"])

    def _update(self, p: Tensor, gradient: Tensor, lr: float, momentum: float) -> None:
        if momentum == 0:
            p.add_(gradient, alpha=-lr)
            return
        state = self.state[p]
        if not state:
            state["velocity"] = torch.zeros_like(p)
        velocity = state["velocity"]
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows = gradient.indices()[0]
            velocity[rows] = momentum * velocity[rows] + gradient.values()
            p.index_add_(0, rows, velocity[rows], alpha=-lr)
        else:
            velocity.mul_(momentum).add_(gradient)
            p.add_(velocity, alpha=-lr)


def check_batch(
    features: Tensor, labels: Tensor, d: int, group: dist.ProcessGroup | None = None
) -> None:
    """Refuse features of another width and ranks of different batch sizes.

    Raises:
        ValueError: with what was given.
    """
    if features.dim() != 2 or features.shape[1] != d:
        raise ValueError(f"features are {tuple(features.shape)}; expected [batch, {d}]")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels are {tuple(labels.shape)} for {len(features)} features")
    _, size = world(group)
    if size > 1:
        count = torch.tensor([len(labels)], device=labels.device)
        counts = count.new_empty(size)
        dist.all_gather_single(counts, count, group=group)
        if counts.unique().numel() > 1:
            raise ValueError(f"ranks have unequal batches {counts.tolist()}; drop the last batch")


def _initial_rows(low: int, high: int, d: int, seed: int, block: int = 4096) -> Tensor:
    """Rows low…high of one random matrix that every rank knows, drawn in blocks of classes."""
    rows = []
    for begin in range(low // block * block, high, block):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + begin)
        drawn = torch.randn(block, d, generator=generator) / math.sqrt(d)
        rows.append(drawn[max(0, low - begin) : high - begin])
    return torch.cat(rows)


def _check_room(labels: Int[Tensor, " owned"], m: int, num_local: int) -> None:
    if m > num_local:
        raise ValueError(f"m is {m}; this rank has {num_local} classes")
    if m < len(labels) and m < (distinct := len(labels.unique())):
        raise ValueError(f"m is {m}; it must hold the {distinct} distinct labels of this rank")


def _smallest(best: Int[Tensor, " own"], k: int, m: int) -> Int[Tensor, " kept"]:
    """Up to m classes with `best` below k by rising value, ties by id; sorted by id.

    Counting values instead of sorting them: positions are small integers.
    """
    ids = (best < k).nonzero().squeeze(1)
    if len(ids) <= m:
        return ids
    value = best[ids] + 1  # labels 0, then positions from 1
    cut = int(torch.searchsorted(value.bincount(minlength=k + 1).cumsum(0), m))
    inside = value < cut
    tied = (value == cut).nonzero().squeeze(1)
    inside[tied[: m - int(inside.sum())]] = True
    return ids[inside]


def _draw(best: Tensor, k: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct classes that are neither label nor candidate, uniformly."""
    if count == 0:
        return best.new_empty(0, dtype=torch.int64)
    free = (best >= k).nonzero().squeeze(1)
    return free[torch.randperm(len(free), generator=generator)[:count].to(best.device)]


def _log_inverse_chance(active: Active, num_local: int) -> float:
    """log(1/π), π = fills / classes of this rank that are not yet active."""
    fills = int(active.is_fill.sum())
    return math.log((num_local - len(active.ids) + fills) / fills) if fills else 0.0


def _owned(labels: Tensor, low: int, num_local: int) -> Tensor:
    local = labels - low
    return local[(local >= 0) & (local < num_local)]


def _position(local: Tensor, num_local: int) -> Tensor:
    return torch.where((local >= 0) & (local < num_local), local, -1)


def _all_reduce(x: Tensor, op: Any, group: dist.ProcessGroup | None) -> Tensor:
    if world(group)[1] > 1:
        dist.all_reduce(x, op, group=group)
    return x


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.numel() and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; "
            f"they must lie in [0, {num_classes})"
        )


def _check_head(
    mode: str, rho: float, num_classes: int, size: int, scale: float | None, margin: float
) -> None:
    if mode not in ("full", "knn", "random"):
        raise ValueError(f"mode is {mode!r}; choose full, knn or random")
    if not 0 < rho <= 1:
        raise ValueError(f"rho is {rho}; it must lie in (0, 1]")
    if num_classes < size:
        raise ValueError(f"{num_classes} classes cannot be split over {size} ranks")
    if margin and scale is None:
        raise ValueError("a margin needs cosine logits: give scale")
