"""A small convolutional network, one seed at a time."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from toolkit.learn.loop import fit, predict, warmup_cosine
from toolkit.learn.nets import conv_net
from toolkit.supervision.label_smoothing.branches import train_branches
from toolkit.supervision.label_smoothing.data import Sample, draw_sample
from toolkit.supervision.label_smoothing.loss import smoothed_cross_entropy
from toolkit.supervision.label_smoothing.quality import mean_nll, quality
from toolkit.supervision.label_smoothing.recipe import CnnRecipe, parse_arm

SIDE = 28


def run_cnn(recipe: CnnRecipe, seeds: Sequence[int], device: torch.device) -> dict[str, np.ndarray]:
    """Final quality of every arm, as `run_network`.

    Raises:
        ValueError: for another data set than Fashion-MNIST, or an arm that needs labels.
    """
    arms = [parse_arm(name, recipe.epochs) for name in recipe.arms]
    plain = all(arm.label == "uniform" and not arm.entropy and not arm.step_drop for arm in arms)
    if recipe.data != "fashion" or not plain:
        raise ValueError("the convolutional network knows fashion and uniform labels only")
    found: dict[str, list[float]] = {}
    for seed in seeds:
        sample = draw_sample(recipe, [seed], device)
        for key, value in _one_network(recipe, sample).items():
            found.setdefault(key, []).append(value)
    return {key: np.array(values) for key, values in found.items()}


def _one_network(recipe: CnnRecipe, sample: Sample) -> dict[str, float]:
    torch.manual_seed(sample.seeds[0])
    head = recipe.channels[-1] * math.ceil(SIDE / 2 ** len(recipe.channels)) ** 2
    body = conv_net(*recipe.channels, norm="none")
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(head, sample.classes)).to(sample.x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    results: dict[str, float] = {}

    def advance(epoch: int, theta: float) -> None:
        fit(
            model,
            _batches(recipe, sample, epoch),
            lambda net, batch: smoothed_cross_entropy(net(batch[0]), batch[1], theta),
            optimizer,
            schedule=_rates(recipe, optimizer, len(sample.x[0]), epoch),
        )

    def finish(name: str) -> None:
        test, val, train = (
            predict(model, _pixels(x[0]))[None] for x in (sample.test_x, sample.val_x, sample.x)
        )
        found = quality(test, sample.test_y)
        found |= {f"val_{k}": v for k, v in quality(val, sample.val_y).items() if k != "ece"}
        found["train_ce"] = mean_nll(train, sample.y).cpu().numpy()
        results.update({f"{name}/{key}": float(value[0]) for key, value in found.items()})

    schedules = {name: parse_arm(name, recipe.epochs).schedule for name in recipe.arms}
    train_branches(schedules, recipe.epochs, model, optimizer, advance, finish)
    return results


def _batches(recipe: CnnRecipe, sample: Sample, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng([sample.seeds[0], 3, epoch])
    order = torch.from_numpy(rng.permutation(len(sample.x[0]))).to(sample.x.device)
    for index in order.split(recipe.batch):
        yield _pixels(sample.x[0, index]), sample.y[0, index]


def _pixels(x: Tensor) -> Tensor:
    return x.view(-1, 1, SIDE, SIDE)


def _rates(recipe: CnnRecipe, optimizer: Optimizer, n: int, epoch: int) -> LambdaLR:
    """This epoch's part of one cosine over the whole training."""
    per_epoch = math.ceil(n / recipe.batch)
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr
        group.pop("initial_lr", None)
    total = per_epoch * recipe.epochs
    return LambdaLR(optimizer, lambda step: warmup_cosine(per_epoch * epoch + step, total))
