"""The standard protocol at full size: ResNet-18 on CIFAR, (rate, seed) cells over processes.

The paper's own set-up could not be read; every value here is ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.data import NoisyLabels, pair_noise, symmetric_noise
from toolkit.data.cifar import Cifar, load_cifar
from toolkit.learn.augment import random_affine
from toolkit.learn.distributed import world
from toolkit.learn.loop import fit, predict, warmup_cosine
from toolkit.learn.resnet import cifar_resnet18
from toolkit.learn.torchrun import sum_over_ranks, torchrun_group
from toolkit.supervision.noisy_labels.memorisation import memorisation
from toolkit.supervision.noisy_labels.recipe import Recipe

FIRST = tuple(i / 10 for i in range(1, 10))  # with epoch 1: ten points inside the first epoch
METRICS = ("error", "fit_clean", "fit_wrong", "excess", "auc")


@dataclass(frozen=True)
class ScaleRecipe(Recipe):
    """The whole of CIFAR with wrong labels, no augmentation; every value is the field's or ours."""

    seeds: int = 5  # flips, initialisations and orders
    noise: str = "symmetric"  # or "pair"; the test labels stay clean
    rates: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # pair: to 0.45
    n: int = 50_000  # training images
    epochs: int = 200  # T
    constant: int = 60  # epochs at the first learning rate; half a cosine follows
    lr: float = 0.1  # of SGD
    momentum: float = 0.9  # of SGD
    batch: int = 128  # images a step
    augment: bool = False  # shift by up to an eighth and mirror; the main figure does without
    classes: int = 10  # 10 or 100: which CIFAR
    folder: str = ""  # of the binary files; default: cifar-10-batches-bin in $TOOLKIT_DATA

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if self.noise not in ("symmetric", "pair"):
            raise ValueError(f"noise must be symmetric or pair, got {self.noise!r}")
        if self.arms != ("noisy",):
            raise ValueError(f"this profile has the one arm 'noisy', got {self.arms}")
        if not self.rates or any(not 0 <= rate <= 1 for rate in self.rates):
            raise ValueError(f"rates must lie in [0, 1], got {self.rates}")
        if self.seeds < 1 or not 1 <= self.constant <= self.epochs or self.epochs < 2:
            raise ValueError("need seeds ≥ 1 and 1 ≤ constant ≤ epochs, epochs ≥ 2")
        if ceil(self.n / self.batch) < 10:
            raise ValueError(f"ten points inside an epoch need n ≥ 10 batches, got n={self.n}")


def run_scale(
    recipe: ScaleRecipe, seed: int | Sequence[int], device: torch.device
) -> dict[str, float] | dict[str, np.ndarray]:
    """Train every (rate, seed) cell, one model a process, and measure it after every epoch.

    Under torchrun the cells are dealt out to the processes, and all of them return the same.

    Args:
        recipe: the protocol.
        seed: a list, or the first of `recipe.seeds` successive seeds.
        device: under torchrun with GPUs each process takes its own.

    Returns:
        `"noisy/METRIC_EPOCH@RATE"`: for a list one value a seed; else the mean over seeds, beside
        each seed's value under `"seedS/…"`. A diverged run is NaN, and so is its mean.

    Raises:
        FileNotFoundError: if the images are missing; the message says where to put them.
        ValueError: if CIFAR has fewer images.
    """
    seeds = (
        [int(s) for s in seed]
        if isinstance(seed, Sequence)
        else list(range(int(seed), int(seed) + recipe.seeds))
    )
    with torchrun_group(device) as home:
        data = load_cifar(recipe.classes, recipe.folder, home)
        if recipe.n > len(data.train_labels):
            raise ValueError(f"CIFAR has {len(data.train_labels)} training images, not {recipe.n}")
        table = _all_cells(recipe, data, seeds)
    results = {
        f"{metric}_{epoch:g}@{rate:g}": table[i, :, p, j]
        for (i, rate), (p, epoch), (j, metric) in product(
            enumerate(recipe.rates), enumerate(checkpoints(recipe)), enumerate(METRICS)
        )
        if rate > 0 or metric in ("error", "fit_clean")
    }
    if isinstance(seed, Sequence):
        return {f"noisy/{name}": values for name, values in results.items()}
    return {f"noisy/{name}": float(values.mean()) for name, values in results.items()} | {
        f"seed{s}/{name}": float(values[i])
        for name, values in results.items()
        for i, s in enumerate(seeds)
    }


def checkpoints(recipe: ScaleRecipe) -> tuple[float, ...]:
    """Ten points inside the first epoch, then every epoch."""
    return (*FIRST, *map(float, range(1, recipe.epochs + 1)))


def _all_cells(recipe: ScaleRecipe, data: Cifar, seeds: Sequence[int]) -> np.ndarray:
    """Shape [rates, seeds, checkpoints, metrics], the same on every process."""
    rank, size = world()
    shape = (len(recipe.rates), len(seeds), len(checkpoints(recipe)), len(METRICS))
    table = torch.zeros(shape, dtype=torch.float64, device=data.train_labels.device)
    for cell, (i, j) in enumerate(np.ndindex(shape[:2])):
        if cell % size == rank:
            table[i, j] = _train(recipe, data, recipe.rates[i], seeds[j]).to(table)
    sum_over_ranks(table)  # every cell is zero but on one process
    return table.cpu().numpy()


def _train(
    recipe: ScaleRecipe, data: Cifar, rate: float, seed: int
) -> Float[Tensor, "points metrics"]:
    """One model: the same images, flips (nested in the rate), weights and orders for all rates."""
    device = data.train_labels.device
    rng = np.random.default_rng([seed, 0])
    subset = torch.from_numpy(rng.permutation(len(data.train_labels))[: recipe.n]).to(device)
    draw = symmetric_noise if recipe.noise == "symmetric" else pair_noise
    noisy = draw(
        data.train_labels[subset],
        rate,
        recipe.classes,
        generator=torch.Generator().manual_seed(seed),
    )
    torch.manual_seed(seed)
    model = cifar_resnet18(recipe.classes).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    per_epoch = ceil(recipe.n / recipe.batch)
    schedule = LambdaLR(optimizer, lambda step: _factor(recipe, step, per_epoch))
    batches = _batches(recipe, data.train_images[subset], noisy.given, seed)
    measured, done = [], 0
    for epoch in checkpoints(recipe):
        step = round(epoch * per_epoch)
        some = (next(batches) for _ in range(step - done))
        amp = torch.bfloat16 if device.type == "cuda" else None
        fit(model, some, _loss, optimizer, schedule=schedule, amp=amp)
        done = step
        measured.append(_measure(model, data, data.train_images[subset], noisy, seed))
    return torch.tensor(measured, dtype=torch.float64)


def _factor(recipe: ScaleRecipe, step: int, per_epoch: int) -> float:
    """1 for the constant epochs, then half a cosine to 0."""
    begin = recipe.constant * per_epoch
    total = max(1, (recipe.epochs - recipe.constant) * per_epoch)
    return 1.0 if step <= begin else warmup_cosine(step - begin, total)


def _batches(
    recipe: ScaleRecipe, images: UInt8[Tensor, "n 3 32 32"], given: Int64[Tensor, "n"], seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    orders, generator = np.random.default_rng([seed, 1]), torch.Generator().manual_seed(seed)
    while True:
        order = torch.from_numpy(orders.permutation(len(given))).to(given.device)
        for index in order.split(recipe.batch):
            x = _pixels(images[index])
            if recipe.augment:
                x = random_affine(x, shift=0.125, flip=True, generator=generator)
            yield x, given[index]


def _pixels(images: UInt8[Tensor, "b 3 32 32"]) -> Float[Tensor, "b 3 32 32"]:
    """Centred to about [-2, 2]."""
    return ((images.float() / 255 - 0.47) / 0.25).contiguous(memory_format=torch.channels_last)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _measure(
    model: nn.Module, data: Cifar, images: Tensor, noisy: NoisyLabels, seed: int
) -> list[float]:
    """Clean test error and what `memorisation` says; NaN for a diverged run."""
    logits, outputs = (
        torch.cat([predict(model, _pixels(chunk)) for chunk in part.split(1000)]).float()
        for part in (images, data.test_images)
    )
    error = float((outputs.argmax(1) != data.test_labels).double().mean())
    if not bool(torch.isfinite(outputs).all()):
        error = float("nan")
    control = torch.Generator().manual_seed(seed)
    learnt = memorisation(logits, noisy, generator=control)
    return [error, *(learnt[name] for name in METRICS[1:])]
