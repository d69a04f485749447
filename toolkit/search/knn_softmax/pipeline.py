"""The overlapping pipeline: while a micro-batch is computed, the previous one is on the wire.

Song et al. (2020) split the batch of a rank into micro-batches, so that gathering the features and
scattering their gradients hides behind the backbone. The labels of the *whole* batch are gathered
first: the active classes, and so the result, are those of the unsplit step.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from toolkit.learn.distributed import gather_with_grad, world
from toolkit.search.knn_softmax.softmax import ShardedSoftmax, check_batch


class MicroBatchPipeline:
    """One training step, forward and backward, in `n` overlapping micro-batches.

    Args:
        backbone: from inputs `[b, …]` to features `[b, d]`. A batch norm sees one micro-batch at a
            time; nothing else differs from the unsplit step.
        head: the sharded softmax.
        n: micro-batches; the batch of a rank must divide by it.
        link: the wire, by default that of the head's group.

    Raises:
        ValueError: if `n` is below 1.
    """

    def __init__(
        self, backbone: nn.Module, head: ShardedSoftmax, n: int, link: "Link | None" = None
    ) -> None:
        if n < 1:
            raise ValueError(f"n is {n}; at least one micro-batch is needed")
        self.backbone, self.head, self.n = backbone, head, n
        self.link = link or Link(head.group)

    def step(
        self, x: Float[Tensor, "b ..."], labels: Int[Tensor, " b"], share: float = 1.0
    ) -> Float[Tensor, ""]:
        """Accumulate the gradients of one batch; returns the global loss L.

        The gradients of the backbone are this rank's part: sum them over ranks
        (`sum_gradients`, or a `TopKCompressor`).

        Args:
            x: inputs of this rank.
            labels: global class ids.
            share: weight of this batch in the update, 1/a when a batches are accumulated.

        Raises:
            ValueError: if the batch does not divide by `n`, or as `ShardedSoftmax.forward`.
        """
        if len(x) % self.n:
            raise ValueError(f"a batch of {len(x)} does not divide into {self.n} micro-batches")
        micro_labels = labels.chunk(self.n)
        y = torch.cat([gather_with_grad(part, self.head.group) for part in micro_labels])
        active = self.head.select(y)

        features: list[Tensor] = []
        transfers: list[Transfer] = []
        for part in x.chunk(self.n):
            features.append(self.backbone(part))
            check_batch(features[-1], micro_labels[len(transfers)], self.head.d, self.head.group)
            transfers.append(self.link.all_gather(features[-1].detach()))
        everyone = torch.cat([transfer.wait() for transfer in transfers]).requires_grad_()

        loss = self.head.loss(everyone, y, active)
        (loss * share).backward()

        assert everyone.grad is not None
        transfers = [self.link.reduce_scatter(part) for part in everyone.grad.chunk(self.n)]
        for part, transfer in zip(features, transfers, strict=True):
            part.backward(transfer.wait())
        return loss.detach()


def sum_gradients(
    parameters: Iterable[nn.Parameter], group: dist.ProcessGroup | None = None
) -> None:
    """All-reduce the backbone's gradients with a sum: L already holds the 1/B of all ranks."""
    if world(group)[1] == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=group)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@dataclass
class Transfer:
    """Something on the wire."""

    result: Tensor
    work: dist.Work | None
    arrival: float

    def wait(self) -> Tensor:
        """Block until it has arrived."""
        if self.work is not None:
            self.work.wait()
        time.sleep(max(0.0, self.arrival - time.perf_counter()))
        return self.result


class Link:
    """The wire between the ranks; an injected delay makes a slow one out of a fast one.

    Args:
        group: the ranks; a single process sends to itself.
        delay: seconds that one transfer occupies the wire. Transfers queue; nothing else waits.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, delay: float = 0.0) -> None:
        self.group, self.delay, self.free = group, delay, 0.0

    def all_gather(self, x: Float[Tensor, "b d"]) -> Transfer:
        """Start to send `x` to all; the result is `[R·b, d]`, rank 0 first."""
        size = world(self.group)[1]
        if size == 1:
            return Transfer(x, None, self._arrival())
        out = x.new_empty(size * len(x), *x.shape[1:])
        work = dist.all_gather_single(out, x.contiguous(), group=self.group, async_op=True)
        return Transfer(out, work, self._arrival())

    def reduce_scatter(self, x: Float[Tensor, "all_b d"]) -> Transfer:
        """Start to sum `x` over ranks; the result is this rank's block `[b, d]`."""
        size = world(self.group)[1]
        if size == 1:
            return Transfer(x, None, self._arrival())
        out = x.new_empty(len(x) // size, *x.shape[1:])
        work = dist.reduce_scatter_single(out, x.contiguous(), group=self.group, async_op=True)
        return Transfer(out, work, self._arrival())

    def _arrival(self) -> float:
        self.free = max(self.free, time.perf_counter()) + self.delay
        return self.free


@dataclass(frozen=True)
class Event:
    """One bar of the timeline: a lane is busy from `start` to `end`."""

    lane: str
    name: str
    micro_batch: int
    start: float
    end: float


def timeline(
    n: int,
    *,
    forward: float,
    backward: float,
    gather: float,
    scatter: float,
    head: float = 0.0,
    reduce: float = 0.0,
) -> list[Event]:
    """When a step with `n` micro-batches computes and sends, on one processor and one wire.

    Args:
        n: micro-batches.
        forward: seconds of the backbone's forward pass over the whole batch.
        backward: seconds of its backward pass.
        gather: seconds to gather all features.
        scatter: seconds to reduce-scatter all their gradients.
        head: seconds of the sharded softmax.
        reduce: seconds to reduce the backbone's gradients at the end.

    Returns:
        Events in order of their start; the step ends with the last one.

    Raises:
        ValueError: if `n` is below 1 or a time is negative.
    """
    times = (forward, backward, gather, scatter, head, reduce)
    if n < 1 or min(times) < 0:
        raise ValueError(f"n is {n} and the times are {times}: need n ≥ 1 and no negative time")
    events, compute, wire = [], 0.0, 0.0
    for i in range(n):
        events.append(Event("compute", "forward", i, compute, compute + forward / n))
        compute += forward / n
        start = max(compute, wire)
        wire = start + gather / n
        events.append(Event("wire", "gather", i, start, wire))
    compute = max(compute, wire)
    events.append(Event("compute", "softmax", -1, compute, compute + head))
    compute = wire = compute + head
    for i in range(n):
        events.append(Event("wire", "scatter", i, wire, wire + scatter / n))
        wire += scatter / n
        compute = max(compute, wire)
        events.append(Event("compute", "backward", i, compute, compute + backward / n))
        compute += backward / n
    events.append(Event("wire", "gradients", -1, compute, compute + reduce))
    return sorted(events, key=lambda event: event.start)
