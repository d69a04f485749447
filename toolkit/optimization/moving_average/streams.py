"""Random numbers for many chains, each seed with its own stream, and what a run leaves behind."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLOCK = 2**21  # numbers drawn at once


def draws(
    seeds: Sequence[int],
    chains: int,
    width: int,
    steps: int,
    *,
    stream: int,
    kind: str = "normal",
    device: torch.device | str = "cpu",
) -> Iterator[Float[Tensor, "S width"]]:
    """Yield `width` random numbers for each chain, step by step.

    A seed gives the same numbers alone and among others, whatever the number of steps.

    Args:
        seeds: one stream each.
        chains: chains of one seed, side by side: S is seeds × chains.
        width: numbers a chain needs in a step.
        steps: how many steps.
        stream: which of a seed's streams.
        kind: `"normal"` or `"uniform"` (in [0, 1)).
        device: of the tensors.

    Raises:
        ValueError: for no seeds, chains, steps or numbers, or an unknown kind.
    """
    if not len(seeds) or min(chains, width, steps) < 1:
        raise ValueError(
            "need seeds, chains, width and steps >= 1, "
            f"got {len(seeds)} seeds, {chains}, {width} and {steps}"
        )
    if kind not in ("normal", "uniform"):
        raise ValueError(f"kind is 'normal' or 'uniform', got {kind!r}")
    return _draws(seeds, chains, width, steps, stream, kind, torch.device(device))


def _draws(
    seeds: Sequence[int],
    chains: int,
    width: int,
    steps: int,
    stream: int,
    kind: str,
    device: torch.device,
) -> Iterator[Float[Tensor, "S width"]]:
    sources = [np.random.default_rng([int(seed), stream]) for seed in seeds]
    size = min(steps, max(1, BLOCK // (len(sources) * chains * width)))
    for begin in range(0, steps, size):
        shape = (min(size, steps - begin), chains, width)
        blocks = [
            (s.standard_normal if kind == "normal" else s.random)(shape, dtype=np.float32)
            for s in sources
        ]
        yield from torch.from_numpy(np.concatenate(blocks, axis=1)).to(device)


@dataclass(frozen=True, eq=False)
class Trace:
    r"""What a run of many chains leaves behind; a chain that diverged stays, as inf or NaN.

    Time is cut into `points` equal stretches; each entry is the mean over one stretch. With as
    many points as steps it is every step.

    Attributes:
        grad_sq: $\|\nabla F(x_t)\|^2$ (for min-max and bilevel problems of the outer function).
        est_err: $\|v_{t+1}-\nabla F(x_t)\|^2$.
        move: $\|x_{t+1}-x_t\|^2$.
        mean_x: the mean iterate.
        x: the last iterate.
    """

    grad_sq: Float[Tensor, "points E S"]
    est_err: Float[Tensor, "points E S"]
    move: Float[Tensor, "points E S"]
    mean_x: Float[Tensor, "points E S d"]
    x: Float[Tensor, "E S d"]

    @property
    def diverged(self) -> Bool[Tensor, "E S"]:
        """Which chains left the finite numbers."""
        return ~torch.isfinite(self.grad_sq).all(0) | ~torch.isfinite(self.x).all(-1)


class Recorder:
    """Adds up what `Trace` keeps, stretch by stretch."""

    def __init__(self, steps: int, points: int) -> None:
        """Split `steps` into `points` equal stretches.

        Raises:
            ValueError: if that is impossible.
        """
        if not 1 <= points <= steps or steps % points:
            raise ValueError(f"{steps} steps cannot be cut into {points} equal stretches")
        self.length, self.count = steps // points, 0
        self.rows: list[tuple[Tensor, ...]] = []
        self.sums: list[Tensor] = []

    def add(self, gradient: Tensor, estimate: Tensor, old: Tensor, new: Tensor) -> None:
        """Take in one step: the true gradient, its estimate, and the iterate before and after."""
        terms = [
            gradient.square().sum(-1),
            (estimate - gradient).square_().sum(-1),
            (new - old).square_().sum(-1),
            old,
        ]
        if self.count % self.length == 0:
            self.sums = [term.clone() for term in terms]
        else:
            torch._foreach_add_(self.sums, terms)
        self.count += 1
        if self.count % self.length == 0:
            self.rows.append(tuple(total / self.length for total in self.sums))

    def trace(self, x: Tensor) -> Trace:
        """All stretches, and the last iterate."""
        grad_sq, est_err, move, mean_x = map(torch.stack, zip(*self.rows, strict=True))
        return Trace(grad_sq, est_err, move, mean_x, x)
