"""What the chapter and the benchmarks time and compare: steps, ranks, an overlapped pipeline."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.learn.distributed import world
from toolkit.learn.nets import mlp
from toolkit.search.knn_softmax.graph import ShardedGraph, shard_bounds
from toolkit.search.knn_softmax.pipeline import Link, MicroBatchPipeline, sum_gradients
from toolkit.search.knn_softmax.softmax import ShardedSoftmax, neighbours_needed

STEPS = {
    "torch": ("torch", 1.0),
    "full": ("full", 1.0),
    "knn": ("knn", 0.1),
    "random": ("random", 0.1),
    "knn_1": ("knn", 0.01),
}
"""The steps that are raced: mode and active ratio; "torch" is `F.cross_entropy` over all."""


def softmax_steps(
    num_classes: int,
    d: int,
    settings: dict[str, tuple[str, float]] = STEPS,
    *,
    batch: int = 64,
    seed: int = 0,
) -> dict[str, Callable[[], None]]:
    """Training steps of the last layer alone: loss, backward and update of the rows.

    Neighbours are random classes, as only their number matters for time, and only the labels of
    the one batch have lists. Building a graph is timed apart. Logits are cosines; all steps share
    one weight matrix and one batch.

    Args:
        num_classes: C.
        d: feature width.
        settings: mode and active ratio of each step.
        batch: examples.
        seed: of everything drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(num_classes, d, generator=generator))
    features = torch.randn(batch, d, generator=generator).requires_grad_()
    labels = torch.randint(0, num_classes, (batch,), generator=generator)
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def step(mode: str, rho: float) -> Callable[[], None]:
        head_mode: Any = "full" if mode == "torch" else mode
        with torch.device("meta"):  # its own weights are replaced
            head = ShardedSoftmax(d, num_classes, mode=head_mode, rho=rho, scale=24.0)
        head.weight, head.generator = weight, torch.Generator().manual_seed(seed)
        if mode == "knn":
            k = 1 + neighbours_needed(head.num_active, batch)
            head.graph = _random_lists(labels, num_classes, k, generator)

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            if mode == "torch":
                F.cross_entropy(head.scores(features), labels).backward()
            else:
                head(features, labels).backward()
            optimizer.step()

        return run

    return {name: step(*setting) for name, setting in settings.items()}


def _random_lists(
    labels: Tensor, num_classes: int, k: int, generator: torch.Generator
) -> ShardedGraph:
    own = labels.unique()
    near = torch.randint(0, num_classes, (len(own), k), generator=generator)
    near[:, 0] = own
    length = torch.zeros(num_classes + 1, dtype=torch.int64)
    length[own + 1] = k
    position = torch.arange(k).expand_as(near)
    start = length.cumsum(0)
    return ShardedGraph(start, near.flatten().int(), position.flatten().int(), 0, num_classes, k)


def shard_errors(
    num_classes: int = 1001, micro_batches: Sequence[int] = (1, 4)
) -> dict[str, float]:
    """Largest deviation of this world's step from the unsharded one, computed here as well.

    Call it in every rank (`launch(shard_errors, 2)`). The reference is `F.cross_entropy` over
    all class weights in one piece.

    Args:
        num_classes: C; take one that the number of ranks does not divide.
        micro_batches: numbers of micro-batches to try.

    Returns:
        "loss", "features" (through the backbone's weights) and "weights": absolute differences,
        the largest over the numbers of micro-batches.
    """
    rank, size = world()
    draw = torch.Generator().manual_seed(0)
    d, b = 32, 16
    W = torch.randn(num_classes, d, generator=draw).div(math.sqrt(d)).requires_grad_()
    x = torch.randn(b * size, 24, generator=draw)
    y = torch.randint(0, num_classes, (b * size,), generator=draw)
    reference = _seeded_mlp(24, d)
    z = 24.0 * F.normalize(reference(x), dim=1) @ F.normalize(W, dim=1).T
    loss = F.cross_entropy(z, y)
    loss.backward()
    assert W.grad is not None
    low, high = shard_bounds(num_classes, rank, size)
    mine = slice(rank * b, (rank + 1) * b)
    errors = {"loss": 0.0, "features": 0.0, "weights": 0.0}
    for mode in ("full", "knn"):
        for n in micro_batches:
            net = _seeded_mlp(24, d)
            settings: dict[str, Any] = {"mode": mode, "neighbours": 4}
            head = ShardedSoftmax(d, num_classes, rho=1.0, scale=24.0, **settings)
            head.weight.data = W.detach()[low:high].clone()
            got = MicroBatchPipeline(net, head, n).step(x[mine], y[mine])
            sum_gradients(net.parameters())
            assert head.weight.grad is not None
            found: dict[str, Any] = {
                "loss": (got - loss.detach()).abs(),
                "features": _largest_difference(net, reference),
                "weights": (head.weight.grad.to_dense() - W.grad[low:high]).abs().max(),
            }
            errors = {name: max(errors[name], float(found[name])) for name in errors}
    return errors


class PipelineRace:
    """One training step on a slow link, in 1 … n micro-batches, and its parts.

    Args:
        delay: seconds that gathering all features takes on the link; scattering as much.
        batch: examples.
        width: of the backbone's hidden layers; sets how long it computes.
        num_classes: of the softmax.
    """

    def __init__(
        self, delay: float, batch: int = 256, width: int = 1024, num_classes: int = 1000
    ) -> None:
        draw = torch.Generator().manual_seed(0)
        self.delay = delay
        self.net = _seeded_mlp(256, 64, width)
        self.head = ShardedSoftmax(64, num_classes, scale=24.0)
        self.x = torch.randn(batch, 256, generator=draw)
        self.y = torch.randint(0, num_classes, (batch,), generator=draw)

    def step(self, n: int) -> Callable[[], None]:
        """A step in `n` micro-batches."""
        link = Link(delay=self.delay / n)
        pipeline = MicroBatchPipeline(self.net, self.head, n, link)

        def run() -> None:
            pipeline.step(self.x, self.y)
            self.net.zero_grad()
            self.head.zero_grad()

        return run

    def compute(self, n: int) -> Callable[[], None]:
        """The same step on a link without delay."""
        return PipelineRace.step(self._without_delay(), n)

    def forward(self) -> None:
        """The backbone's forward pass."""
        self.net(self.x)

    def _without_delay(self) -> "PipelineRace":
        twin = object.__new__(PipelineRace)
        twin.__dict__ |= self.__dict__ | {"delay": 0.0}
        return twin


def _seeded_mlp(before: int, after: int, width: int = 48) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp(before, width, width, after)


def _largest_difference(net: nn.Module, reference: nn.Module) -> float:
    pairs = zip(net.parameters(), reference.parameters(), strict=True)
    return max(float((a.grad - b.grad).abs().max()) for a, b in pairs)  # type: ignore[operator]
