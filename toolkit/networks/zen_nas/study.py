"""Training, scoring and searching small networks on Fashion-MNIST."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.learn.loop import fit, minibatches, predict, warmup_cosine
from toolkit.learn.metrics import accuracy
from toolkit.networks.images import Split, load_splits
from toolkit.networks.structures import BlockSpec, Network, Structure, build, count, parse, repair
from toolkit.networks.zen_nas.chain import Chain
from toolkit.networks.zen_nas.proxies import PROXIES
from toolkit.networks.zen_nas.recipe import BUDGET, CLASSES, RES, SPACE_FM, START, Recipe
from toolkit.networks.zen_nas.search import (
    History,
    SearchConfig,
    evolve,
    random_structure,
    random_within,
)

CHECKPOINTS = (0.25, 0.5, 1.0)
"""Shares of the training after which validation accuracy is read."""

WIDE_PARAMS = (2_000, 40_000)
ISO_PARAMS = (9_000, 12_000)
ISO_DEPTH = (8, 40)
"""Convolutions on the way from the image to the last map."""

DRAWS = 200_000
"""Structures tried for each place of a study."""


# --- the networks of the ranking study ----------------------------------------------------------


def wide_structures(number: int, rng: np.random.Generator) -> list[tuple[BlockSpec, ...]]:
    """Networks whose sizes are spread evenly on a logarithmic scale, one for each interval.

    The intervals start at the least network of the space, which has some 2,500 parameters.
    """
    low = max(WIDE_PARAMS[0], _cost(_least()))
    edges = np.geomspace(low, WIDE_PARAMS[1], number + 1).tolist()
    return [_draw(rng, sizes) for sizes in pairwise(edges)]


def iso_structures(number: int, rng: np.random.Generator) -> list[tuple[BlockSpec, ...]]:
    """Networks of nearly the same number of parameters, their depths spread evenly."""
    halves = np.linspace(ISO_DEPTH[0] / 2, ISO_DEPTH[1] / 2, number).round()
    return [_draw(rng, ISO_PARAMS, 2 * int(half)) for half in halves]


def _draw(
    rng: np.random.Generator, sizes: tuple[float, float], depth: int | None = None
) -> tuple[BlockSpec, ...]:
    """Random structures, with a random limit on widths and depths, until one fits."""
    for _ in range(DRAWS):
        widest, deepest = int(rng.choice(SPACE_FM.widths)), int(rng.integers(1, 6))
        specs = random_structure(START, SPACE_FM, rng, widest=widest, deepest=deepest)
        fits = sizes[0] <= _cost(specs) <= sizes[1]
        if fits and depth in (None, len(Chain.of(specs).convs)):
            return specs
    raise RuntimeError(f"none of {DRAWS:,} structures had {sizes} parameters and depth {depth}")


def _least() -> tuple[BlockSpec, ...]:
    """The smallest structure of the space: bottlenecks and full blocks are both tried."""
    start, width = parse(START), SPACE_FM.widths[0]
    tried = [
        repair(
            [
                start[0],
                *(
                    replace(spec, kind=kind, out_ch=width, bottleneck=width, n=1, kernel=0)
                    for spec in start[1:-1]
                ),
                start[-1],
            ]
        )
        for kind in SPACE_FM.kinds
    ]
    return min(tried, key=_cost)


def _cost(specs: Structure) -> int:
    return count(specs, RES, num_classes=CLASSES).params


# --- training -----------------------------------------------------------------------------------


def train_structure(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train `recipe.structure` with its residual links.

    Returns:
        `"val@SHARE"` on held-out images after shares of the training, `"accuracy"` on the test
        images at its end, and `"params"`, `"macs"`, `"convs"`.
    """
    specs = parse(recipe.structure)
    cost = count(specs, RES, num_classes=CLASSES)
    net = _fresh(specs, seed, device)
    data, val, test = load_splits(device)
    judged = Split(val.x[: recipe.judged], val.y[: recipe.judged])
    draw = torch.Generator().manual_seed(seed)
    batches = minibatches(data.x, data.y, size=recipe.batch, steps=recipe.steps, generator=draw)
    optimizer = torch.optim.SGD(
        net.parameters(),
        recipe.rate,
        recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
        foreach=True,
    )
    warm = max(1, round(recipe.warmup * recipe.steps))
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, recipe.steps, warm))
    results: dict[str, float] = {}
    done = 0
    for share in CHECKPOINTS:
        goal = round(share * recipe.steps)
        fit(net, islice(batches, goal - done), _cross_entropy, optimizer, schedule=schedule)
        done = goal
        results[f"val@{share:g}"] = _accuracy(net, judged)
    sizes = {"params": cost.params, "macs": cost.macs, "convs": PROXIES["depth"](specs, RES)}
    return results | {"accuracy": _accuracy(net, test)} | {k: float(v) for k, v in sizes.items()}


def _fresh(specs: Structure, seed: int, device: torch.device) -> Network:
    """Xavier's initialisation; residual blocks start as their shortcuts (γ = 0 at their end)."""
    torch.manual_seed(seed)
    net = build(specs, CLASSES, zero_last=True)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    net = net.to(device)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)


def _accuracy(net: Network, split: Split) -> float:
    return float(accuracy(predict(net, split.x), split.y))


# --- scores -------------------------------------------------------------------------------------


def score_structure(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Every proxy of `recipe.structure`, the mean over random networks; and what it cost.

    Returns:
        `"NAME"`, and `"NAME/seconds"`, the median of one draw.
    """
    specs = parse(recipe.structure)
    results: dict[str, float] = {}
    for name, proxy in PROXIES.items():
        draws = torch.Generator().manual_seed(seed)
        values, times = [], []
        for _ in range(recipe.repeats):
            begin = time.perf_counter()
            values.append(proxy(specs, RES, recipe.score_batch, draws))
            times.append(time.perf_counter() - begin)
        results |= {name: float(np.mean(values)), f"{name}/seconds": float(np.median(times))}
    return results


# --- searches -----------------------------------------------------------------------------------


def search_structure(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Maximise `recipe.proxy` by evolution within the budget.

    Returns:
        The winner's blocks as numbers (see `structure_of`), its `"score"`, the `"seconds"`, the
        share of mutants `"rejected"`, and `"trace@STEP"`, the best score so far.
    """
    begin = time.perf_counter()
    found = search(recipe, seed)
    taken = time.perf_counter() - begin
    steps = np.unique(np.geomspace(1, recipe.search_steps, 24).round().astype(int))
    trace = {f"trace@{step}": float(found.trace[step - 1]) for step in steps.tolist()}
    shares = {"score": found.score, "rejected": found.rejected / recipe.search_steps}
    return as_numbers(found.best) | shares | trace | {"seconds": taken}


def search(recipe: Recipe, seed: int) -> History:
    """The search itself, with the whole of its history.

    Raises:
        ValueError: for an unknown proxy.
    """
    if recipe.proxy not in PROXIES:
        raise ValueError(f"proxies are {', '.join(PROXIES)}; got {recipe.proxy!r}")
    proxy = PROXIES[recipe.proxy]
    cfg = SearchConfig(recipe.population, recipe.search_steps, seed=seed)
    return evolve(
        START,
        SPACE_FM,
        BUDGET,
        lambda specs, draws: proxy(specs, RES, recipe.score_batch, draws),
        cfg,
    )


def random_search(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """As `search_structure`, but every structure is a fresh random one within the budget."""
    rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    tried = random_within(START, SPACE_FM, BUDGET, rng, recipe.search_steps)
    scores = [PROXIES[recipe.proxy](specs, RES, recipe.score_batch, draws) for specs in tried]
    best = int(np.argmax(scores))
    return as_numbers(tried[best]) | {"score": scores[best]}


def as_numbers(specs: Structure) -> dict[str, float]:
    """The free blocks of a structure of the small space as numbers."""
    kinds = SPACE_FM.kinds
    return {
        f"block{place}/{name}": float(value)
        for place, spec in enumerate(specs[1:-1], 1)
        for name, value in (
            ("kind", kinds.index(spec.kind)),
            ("out", spec.out_ch),
            ("inner", spec.bottleneck),
            ("n", spec.n),
        )
    }


def structure_of(row: Mapping[str, float]) -> tuple[BlockSpec, ...]:
    """The structure that `as_numbers` wrote down."""
    start = parse(START)
    middle = []
    for place, spec in enumerate(start[1:-1], 1):
        kind, out, inner, n = (
            int(row[f"block{place}/{name}"]) for name in ("kind", "out", "inner", "n")
        )
        named = SPACE_FM.kinds[kind]
        middle.append(replace(spec, kind=named, out_ch=out, bottleneck=inner, n=n, kernel=0))
    return repair([start[0], *middle, start[-1]])


# --- rank statistics ----------------------------------------------------------------------------


def partial_tau(x: Sequence[float], y: Sequence[float], z: Sequence[float]) -> float:
    """Kendall's partial τ of x and y given z, from the three τ-b.

    (τ_xy − τ_xz τ_yz) / √((1 − τ_xz²)(1 − τ_yz²)); NaN where z orders x or y completely.
    """
    xy, xz, yz = (float(kendalltau(*pair).statistic) for pair in ((x, y), (x, z), (y, z)))
    left = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / left**0.5 if left > 0 else float("nan")
