"""The real network: a small perceptron on a few hundred Fashion-MNIST images, many times over."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.data import load_fashion_mnist
from toolkit.learn.loop import fit
from toolkit.learn.stacked import StackedMLP
from toolkit.optimization.multipass_sgd.sgd import visiting_orders
from toolkit.optimization.multipass_sgd.study import (
    Recipe,
    Tuned,
    choose_steps,
    doublings,
    log_grid,
)
from toolkit.runtime import TUNING_SEEDS

CLASSES = 10
PIXELS = 14 * 14


@dataclass(frozen=True)
class NetworkRecipe(Recipe):
    """An MLP 196-h-10 with squared loss on Fashion-MNIST; nothing here is stated by the paper.

    The arms that exist: `multi_pass` (K passes over `n` images; it also reports `fixed_step`, all
    K at the step size tuned for `fixed_at` passes) and `one_pass` (each image of a larger sample
    once).
    """

    arms: tuple[str, ...] = ("multi_pass", "one_pass")
    seeds: int = 8  # subsets, initialisations and orders; ours
    tuning_seeds: int = 4  # others, from 10,000 on
    n: int = 400  # images that are reused; ours
    passes: tuple[int, ...] = doublings(64)  # K
    fresh: tuple[int, ...] = (400, 800, 1600, 3200, 6400, 12_800)  # images of one pass; ours
    etas: tuple[float, ...] = log_grid(0.00125, 0.16, 8)  # grid of step sizes
    batch: int = 4  # images a step
    width: int = 64  # hidden units
    fixed_at: int = 16  # the K whose step size `fixed_step` takes
    test_images: int = 4000  # for the risk


def run_network(
    recipe: NetworkRecipe, seeds: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """Squared test risk and error after K passes, and after one pass over more images.

    Returns:
        `"multi_pass/risk@K"`, `"multi_pass/error@K"`, `"fixed_step/risk@K"`, `"one_pass/risk@N"`,
        and so on; `"ARM/eta@…"` and `"ARM/edge@…"` are what the tuning seeds chose.
    """
    results: dict[str, np.ndarray] = {}
    for arm in recipe.arms:
        tuned = tune_network(recipe, arm, device)
        etas = sorted(set(tuned.etas))
        scores = _scores(recipe, arm, seeds, etas, device).cpu().numpy()
        for k, x in enumerate(tuned.passes):
            chosen = scores[k, etas.index(tuned.etas[k])]
            results[f"{arm}/risk@{x}"], results[f"{arm}/error@{x}"] = chosen.T
            results[f"{arm}/eta@{x}"] = np.full(len(seeds), tuned.etas[k])
            results[f"{arm}/edge@{x}"] = np.full(len(seeds), float(tuned.at_edge[k]))
            if arm == "multi_pass":
                fixed = etas.index(tuned.etas[tuned.passes.index(recipe.fixed_at)])
                results[f"fixed_step/risk@{x}"] = scores[k, fixed, :, 0]
    return results


@lru_cache(maxsize=64)
def tune_network(recipe: NetworkRecipe, arm: str, device: torch.device) -> Tuned:
    """Choose the step size for each number of passes (or of fresh images) on tuning seeds.

    Raises:
        ValueError: for an unknown arm, or if `fixed_at` is none of the passes.
    """
    if arm not in ("multi_pass", "one_pass"):
        raise ValueError(f"arm must be multi_pass or one_pass, got {arm!r}")
    if recipe.fixed_at not in recipe.passes:
        raise ValueError(f"fixed_at must be one of {recipe.passes}, got {recipe.fixed_at}")
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + recipe.tuning_seeds)
    risk = _scores(recipe, arm, seeds, recipe.etas, device)[..., 0]
    passes = recipe.fresh if arm == "one_pass" else recipe.passes
    return choose_steps(risk, passes, recipe.etas)


def _scores(
    recipe: NetworkRecipe,
    arm: str,
    seeds: Sequence[int],
    etas: Sequence[float],
    device: torch.device,
) -> Float[Tensor, "P E S 2"]:
    """Test risk and error at every snapshot, for every step size and seed."""
    x, y, test_x, test_y = fashion_14(recipe.test_images, device)
    model = _networks(recipe, seeds, len(etas)).to(device)
    rates = torch.tensor(etas, device=device).repeat_interleave(len(seeds))  # replica = (eta, seed)

    def loss(model: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        inputs, targets = batch
        outputs = model(inputs.repeat(len(etas), 1, 1))
        squared = 0.5 * (outputs - targets.repeat(len(etas), 1, 1)) ** 2
        return (rates * squared.sum(-1).mean(-1)).sum()  # with lr 1 each replica steps by its eta

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    scores = []
    for stage in _stages(recipe, arm, seeds):
        fit(model, _batches(x, y, stage, recipe.batch), loss, optimizer)
        scores.append(_test_scores(model, test_x, test_y))
    return torch.stack(scores).unflatten(1, (len(etas), len(seeds)))


def _stages(
    recipe: NetworkRecipe, arm: str, seeds: Sequence[int]
) -> Iterator[list[Int[Tensor, "m S"]]]:
    """Between two snapshots: a list of passes, each the images that every seed visits."""
    streams = [np.random.default_rng([int(seed), 0]) for seed in seeds]
    subset = torch.from_numpy(np.stack([rng.permutation(60_000) for rng in streams], axis=1))
    if arm == "one_pass":
        yield from ([subset[a:b]] for a, b in itertools.pairwise((0, *recipe.fresh)))
        return
    orders = visiting_orders(recipe.n, recipe.passes[-1], seeds)
    done = 0
    for passes in recipe.passes:
        yield [subset.gather(0, next(orders)) for _ in range(passes - done)]
        done = passes


def _batches(
    x: Float[Tensor, "n pixels"], y: Float[Tensor, "n k"], passes: list[Tensor], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for images in passes:
        for index in images.to(x.device).split(size):
            yield x[index].transpose(0, 1), y[index].transpose(0, 1)


def _networks(recipe: NetworkRecipe, seeds: Sequence[int], copies: int) -> StackedMLP:
    """One initialisation a seed, the same for every step size."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    widths = (PIXELS, recipe.width, CLASSES)
    return StackedMLP(len(seeds), widths, generators).fork(torch.arange(len(seeds)).repeat(copies))


@torch.no_grad()
def _test_scores(
    model: StackedMLP, x: Float[Tensor, "m pixels"], y: Float[Tensor, "m k"]
) -> Float[Tensor, "replicas 2"]:
    outputs = model(x.expand(len(model.weights[0]), -1, -1))
    risk = 0.5 * ((outputs - y) ** 2).sum(-1).mean(-1)
    error = (outputs.argmax(-1) != y.argmax(-1)).float().mean(-1)
    return torch.stack([risk, error], dim=-1)


@lru_cache(maxsize=2)
def fashion_14(
    test_images: int, device: torch.device
) -> tuple[
    Float[Tensor, "n pixels"],
    Float[Tensor, "n k"],
    Float[Tensor, "m pixels"],
    Float[Tensor, "m k"],
]:
    """Fashion-MNIST pooled to 14×14 and standardised, with one-hot targets: train, then test.

    Raises:
        DataMissing: if the set is not prepared.
    """
    parts = []
    for split, count in (("train", None), ("test", test_images)):
        data = load_fashion_mnist(split)
        x = F.avg_pool2d(data.images[:count].float() / 255, 2).flatten(1)
        parts += [x, F.one_hot(data.label[:count], CLASSES).float()]
    mean, std = parts[0].mean(), parts[0].std()
    parts[0], parts[2] = (parts[0] - mean) / std, (parts[2] - mean) / std
    return tuple(part.to(device) for part in parts)  # type: ignore[return-value]
