"""The evolutionary search of the paper (Algorithm 2), its spaces and budgets."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.networks.structures import BlockSpec, Space, Structure, count, mutate, repair
from toolkit.networks.zen_nas.chain import Specs, as_specs

YOUNG = 10
"""Members up to which the search mutates its initial structure only."""

SPACE_I = Space(
    kinds=tuple(
        name.format(k=k)
        for name in ("SuperResK1K{k}K1", "SuperResK{k}K{k}")
        for k, weight in ((3, 3), (5, 2), (7, 1))
        for _ in range(weight)
    )
)
"""Bottlenecks and full blocks, as released: the kernels 3, 5, 7 are drawn as 3 : 2 : 1."""

SPACE_I_PAPER = replace(SPACE_I, kinds=tuple(dict.fromkeys(SPACE_I.kinds)))
"""The same, drawn uniformly, as the paper's text says."""

SPACE_II = Space(
    kinds=tuple(f"SuperResIDWE{e}K{k}" for k in (3, 5, 7) for e in (1, 2, 4, 6)), fixed=(-1,)
)
"""Inverted bottlenecks with depthwise convolutions; the last 1×1 convolution keeps its width."""

CIFAR_START = (
    "SuperConvK3BNRELU(3,8,1,1)SuperResK3K3(8,16,1,8,1)SuperResK3K3(16,32,2,16,1)"
    "SuperResK3K3(32,64,2,32,1)SuperResK3K3(64,64,2,32,1)SuperConvK1BNRELU(64,128,1,1)"
)
"""Where the released search on CIFAR starts."""

MAX_LAYERS: dict[str, dict[float, int]] = {
    "cifar, 1e6 parameters": {1.0: 18, 2.0: 20},
    "imagenet, latency in ms": {0.1: 10, 0.2: 13, 0.3: 16, 0.5: 20, 0.8: 25, 1.2: 30},
    "imagenet, 1e6 multiply-adds": {400: 14, 600: 14, 800: 16},
}
"""Layers (Σ n over super-blocks) that the release allows with each budget."""


@dataclass(frozen=True)
class Budget:
    """What a network may cost, its residual links and classifier included.

    Attributes:
        res: side of the square input, in pixels.
        num_classes: of the classifier.
        params: parameters.
        macs: multiply-adds of one image.
        layers: Σ n over super-blocks; convolutions are more.
        seconds: of whatever `clock` measures or predicts.
        clock: seconds of a structure, such as a `LatencyTable`'s or a `Roofline`'s prediction.
    """

    res: int
    num_classes: int = 10
    params: float | None = None
    macs: float | None = None
    layers: int | None = None
    seconds: float | None = None
    clock: Callable[[Structure], float] | None = None

    def __post_init__(self) -> None:
        """Refuse what no network can meet, and seconds without a clock."""
        limits = (self.params, self.macs, self.layers, self.seconds)
        if any(limit is not None and not limit > 0 for limit in limits):
            raise ValueError(f"limits must be positive, got {self}")
        if self.res < 1 or self.num_classes < 1:
            raise ValueError(f"res and num_classes must be at least 1, got {self}")
        if (self.seconds is None) != (self.clock is None):
            raise ValueError("a limit in seconds needs a clock, and a clock a limit")

    def broken(self, specs: Structure) -> list[str]:
        """The limits that a structure breaks, in words; the clock is asked last."""
        cost = count(specs, self.res, num_classes=self.num_classes)
        found = [
            f"{value:,} {name} of {limit:,.0f}"
            for name, value, limit in (
                ("layers", cost.layers, self.layers),
                ("params", cost.params, self.params),
                ("macs", cost.macs, self.macs),
            )
            if limit is not None and value > limit
        ]
        if not found and self.clock is not None and self.seconds is not None:
            taken = self.clock(specs)
            if taken > self.seconds:
                found.append(f"{taken:.3g} seconds of {self.seconds:.3g}")
        return found


@dataclass(frozen=True)
class SearchConfig:
    """Numbers of the search.

    Attributes:
        population: N; paper 256, released scripts 512.
        steps: T mutations, refused ones included; paper 96,000, released scripts 480,000.
        blocks: drawn for each mutation once the population has grown.
        seed: of mutations and of the random networks that are scored.
    """

    population: int = 256
    steps: int = 96_000
    blocks: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an empty search."""
        if min(self.population, self.steps, self.blocks) < 1:
            raise ValueError(f"population, steps and blocks must be at least 1, got {self}")


@dataclass(frozen=True)
class History:
    """What a search went through.

    Attributes:
        best: the structure with the highest score.
        score: its score.
        population: the last members with their scores, best first.
        trace: the highest score after each step; −∞ before the first.
        rejected: mutants over budget.
    """

    best: tuple[BlockSpec, ...]
    score: float
    population: tuple[tuple[float, tuple[BlockSpec, ...]], ...]
    trace: NDArray[np.float64]
    rejected: int


def evolve(
    init: Specs,
    space: Space,
    budget: Budget,
    score_fn: Callable[[Structure, torch.Generator], float],
    cfg: SearchConfig,
) -> History:
    """Mutate, refuse what is over budget, score once, keep the best N.

    Args:
        init: where mutation starts; it need not meet the budget, and is not scored.
        space: what may be drawn.
        budget: of the whole network, residual links included.
        score_fn: (structure, generator) -> number, higher is better.
        cfg: numbers of the search.

    Raises:
        ValueError: if the smallest structure of the space is over budget, or no mutant was within.
    """
    start = as_specs(init)
    _check_reachable(start, space, budget)
    rng = np.random.default_rng(cfg.seed)
    draws = torch.Generator().manual_seed(cfg.seed)
    members: list[tuple[float, tuple[BlockSpec, ...]]] = []
    trace, rejected, best = np.full(cfg.steps, -np.inf), 0, (-np.inf, start)
    for step in range(cfg.steps):
        while len(members) > cfg.population:
            members.pop(min(range(len(members)), key=lambda place: members[place][0]))
        child = _child(start, members, space, rng, cfg.blocks)
        if budget.broken(child):
            rejected += 1
        else:
            members.append((float(score_fn(child, draws)), child))
            best = max(best, members[-1], key=lambda member: member[0])
        trace[step] = best[0]
    if not members:
        raise ValueError(
            f"none of {cfg.steps} mutants met the budget; the last broke {budget.broken(child)}"
        )
    ranked = sorted(members, key=lambda member: -member[0])
    if best[0] == -np.inf:
        warnings.warn("every score was −∞", stacklevel=2)
        best = ranked[0]
    return History(best[1], best[0], tuple(ranked), trace, rejected)


def _child(
    start: tuple[BlockSpec, ...],
    members: list[tuple[float, tuple[BlockSpec, ...]]],
    space: Space,
    rng: np.random.Generator,
    blocks: int,
) -> tuple[BlockSpec, ...]:
    if len(members) <= YOUNG:
        return mutate(start, space, rng, 1)
    return mutate(members[int(rng.integers(len(members)))][1], space, rng, blocks)


def _check_reachable(start: tuple[BlockSpec, ...], space: Space, budget: Budget) -> None:
    """The narrowest and shallowest structure of every kind: one of them must fit."""
    narrow = min(space.widths) if space.widths else space.bounds[0]
    fixed = {place % len(start) for place in space.fixed}
    complaints = []
    for kind in dict.fromkeys(space.kinds):
        smallest = repair(
            [
                spec if place in fixed else _smallest(spec, kind, narrow, space.depths[0])
                for place, spec in enumerate(start)
            ]
        )
        complaints.append(budget.broken(smallest))
        if not complaints[-1]:
            return
    raise ValueError(
        f"no network of this space meets the budget: the smallest has {', '.join(complaints[0])}"
    )


def _smallest(spec: BlockSpec, kind: str, width: int, depth: int) -> BlockSpec:
    if spec.kind.startswith("SuperConv"):
        return replace(spec, out_ch=width, bottleneck=width)
    return replace(spec, kind=kind, out_ch=width, bottleneck=width, n=depth, kernel=0)


# --- random structures --------------------------------------------------------------------------


def random_structure(
    init: Specs,
    space: Space,
    rng: np.random.Generator,
    *,
    widest: int | None = None,
    deepest: int | None = None,
) -> tuple[BlockSpec, ...]:
    """Every free block drawn uniformly from a space with lists of widths; strides are kept.

    Args:
        init: gives strides and the fixed blocks.
        space: with `widths` and finite `depths`.
        rng: NumPy's generator.
        widest: use no wider entry of the list.
        deepest: no larger n.

    Raises:
        ValueError: for a space without a list of widths, or nothing left to draw.
    """
    start = as_specs(init)
    widths = [width for width in space.widths if widest is None or width <= widest]
    low, high = space.depths
    high = high if deepest is None else min(high, deepest)
    if not widths or high < low:
        raise ValueError("random structures need a list of widths and of depths to draw from")
    fixed = {place % len(start) for place in space.fixed}
    drawn = []
    for place, spec in enumerate(start):
        if place in fixed or spec.kind.startswith("SuperConv"):
            drawn.append(spec)
            continue
        kind = str(rng.choice(space.kinds))
        out, inner = (int(rng.choice(widths)) for _ in range(2))
        n = int(rng.integers(low, high + 1))
        drawn.append(replace(spec, kind=kind, out_ch=out, bottleneck=inner, n=n, kernel=0))
    return repair(drawn)


def random_within(
    init: Specs, space: Space, budget: Budget, rng: np.random.Generator, count: int
) -> list[tuple[BlockSpec, ...]]:
    """Random structures that meet a budget, by rejection.

    Raises:
        ValueError: if no network can meet it, or fewer than one in 10,000 does.
    """
    _check_reachable(as_specs(init), space, budget)
    found: list[tuple[BlockSpec, ...]] = []
    for _ in range(10_000 * count):
        candidate = random_structure(init, space, rng)
        if not budget.broken(candidate):
            found.append(candidate)
        if len(found) == count:
            return found
    raise ValueError(f"only {len(found)} of {count} random structures met {budget}")
