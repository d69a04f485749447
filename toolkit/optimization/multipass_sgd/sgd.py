"""Stochastic gradient descent on thousands of problems at once, with every pass recorded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.optimization.problems import Sample, SineLink

SAMPLING = ("reshuffle", "shuffle_once", "replacement")
SCHEDULES = ("constant", "pl", "stages", "halve_each_epoch")
AVERAGES = ("last_half", "whole")


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Iterates after some of the passes: `last` as they are, `average` as the output of SGD."""

    epochs: tuple[int, ...]
    last: Float[Tensor, "snapshots E S d"]
    average: Float[Tensor, "snapshots E S d"]


def sgd_trajectories(
    problem: SineLink,
    data: Sample,
    *,
    etas: Float[Tensor, " E"],
    epochs: int,
    seeds: Sequence[int],
    sampling: str = "reshuffle",
    schedule: str = "constant",
    average: str = "last_half",
    batch: int = 1,
    snapshots: str | Sequence[int] = "pow2",
    mu: float | None = None,
) -> Trajectories:
    r"""Run SGD from $w_0=0$ for every step size and every seed in one tensor.

    $w_{t+1}=w_t-\eta_t\nabla\ell(w_t;x_{i_t},y_{i_t})$; all step sizes of a seed see the same
    examples in the same order. A run that diverges spoils its own row only.

    Args:
        problem: supplies the gradient.
        data: one sample for each seed, as `problem.sample` draws it.
        etas: step sizes $\eta$.
        epochs: passes $K$ over the sample.
        seeds: one a data set; each has its own stream of orders.
        sampling: `"reshuffle"` (a new order each pass), `"shuffle_once"`, or `"replacement"`
            (uniform with replacement, what most proofs assume).
        schedule: `"constant"`, `"pl"` (see `step_sizes`), `"stages"` (halved every $T/5$ steps)
            or `"halve_each_epoch"`.
        average: the output of a pass averages its last ⌈steps/2⌉ iterates (`"last_half"`), or
            all iterates since $w_0$ (`"whole"`).
        batch: examples a step; the last batch of a pass may be smaller.
        snapshots: passes to keep: `"pow2"` (1, 2, 4, …, and the last) or a list of them.
        mu: PL constant of the schedule `"pl"`; the problem's proved bound if omitted.

    Raises:
        ValueError: for an unknown mode, no step size, fewer than one pass or example, or a number
            of seeds that is not the number of data sets.
    """
    n, num_seeds, dim = data.x.shape
    _check(sampling, schedule, average, epochs, batch, len(seeds), num_seeds, len(etas))
    keep = snapshot_epochs(epochs, snapshots)
    steps = ceil(n / batch)
    mu = problem.pl_constant_bound() if mu is None else mu
    rates = step_sizes(schedule, etas.to(data.x), steps * epochs, steps, mu)[:, :, None, None]
    tail = steps if average == "whole" else ceil(steps / 2)

    w = data.x.new_zeros(len(etas), num_seeds, dim)
    total, last, outputs = torch.zeros_like(w), [], []
    t = 0
    for epoch, order in enumerate(visiting_orders(n, epochs, seeds, sampling), start=1):
        for step, (x, y) in enumerate(_batches(data, order, batch), start=1):
            w = w - rates[t] * problem.grad(w, x, y)
            t += 1
            if step > steps - tail and (average == "whole" or epoch in keep):
                total += w  # a pass that is not kept needs no average
        if epoch in keep:
            last.append(w)
            outputs.append(total / (t if average == "whole" else tail))
        if average == "last_half":
            total = torch.zeros_like(w)
    return Trajectories(keep, torch.stack(last), torch.stack(outputs))


def visiting_orders(
    n: int, epochs: int, seeds: Sequence[int], sampling: str = "reshuffle"
) -> Iterator[Int[Tensor, "n S"]]:
    """Yield, pass by pass, the order in which each seed visits its `n` examples."""
    streams = [np.random.default_rng([int(seed), 3]) for seed in seeds]
    once = [stream.permutation(n) for stream in streams] if sampling == "shuffle_once" else []
    for _ in range(epochs):
        if sampling == "replacement":
            columns = [stream.integers(n, size=n) for stream in streams]
        else:
            columns = once or [stream.permutation(n) for stream in streams]
        yield torch.from_numpy(np.stack(columns, axis=1))


def _batches(
    data: Sample, order: Int[Tensor, "n S"], size: int
) -> Iterator[tuple[Float[Tensor, "b S d"], Float[Tensor, "b S"]]]:
    """The examples of one pass in the order of each seed (whole rows: five times as fast)."""
    n, num_seeds, dim = data.x.shape
    rows = (order.to(data.x.device) * num_seeds + torch.arange(num_seeds).to(data.x.device)).ravel()
    x = data.x.reshape(-1, dim).index_select(0, rows).view(n, num_seeds, dim)
    y = data.y.reshape(-1).index_select(0, rows).view(n, num_seeds)
    return zip(x.split(size), y.split(size), strict=True)


def step_sizes(
    schedule: str, etas: Float[Tensor, " E"], total: int, per_epoch: int, mu: float
) -> Float[Tensor, "total E"]:
    r"""Step sizes of a whole run.

    `"pl"` is $\eta_t=\min\{\eta,\frac{2t+1}{2\mu(t+1)^2}\}$, the schedule of Karimi, Nutini and
    Schmidt (2016) for PL functions, capped because it starts at $\frac1{2\mu}$.
    """
    t = torch.arange(total, dtype=etas.dtype, device=etas.device)[:, None]
    if schedule == "pl":
        return torch.minimum(etas, (2 * t + 1) / (2 * mu * (t + 1) ** 2))
    stage = {
        "constant": torch.zeros_like(t),
        "stages": torch.floor(5 * t / total),
        "halve_each_epoch": torch.floor(t / per_epoch),
    }[schedule]
    return etas * 0.5**stage


def snapshot_epochs(epochs: int, snapshots: str | Sequence[int] = "pow2") -> tuple[int, ...]:
    """The passes to keep: powers of two and the last one, or those listed."""
    if snapshots == "pow2":
        return tuple(sorted({2**k for k in range(epochs.bit_length())} | {epochs}))
    chosen = tuple(sorted({int(epoch) for epoch in snapshots}))
    if not chosen or chosen[0] < 1 or chosen[-1] > epochs:
        raise ValueError(f"snapshots must lie in 1..{epochs}, got {snapshots}")
    return chosen


def _check(
    sampling: str,
    schedule: str,
    average: str,
    epochs: int,
    batch: int,
    num_seeds: int,
    num_data: int,
    num_etas: int,
) -> None:
    for name, given, allowed in (
        ("sampling", sampling, SAMPLING),
        ("schedule", schedule, SCHEDULES),
        ("average", average, AVERAGES),
    ):
        if given not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {given!r}")
    if epochs < 1 or batch < 1 or num_etas < 1:
        raise ValueError(f"need epochs, batch, step sizes >= 1, got {epochs}, {batch}, {num_etas}")
    if num_seeds != num_data:
        raise ValueError(f"data hold {num_data} seeds, but {num_seeds} seeds are given")
