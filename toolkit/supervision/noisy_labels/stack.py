"""Every (rate, seed) of a recipe side by side: images, labels, orders and networks."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from toolkit.data import (
    NoisyLabels,
    instance_noise,
    load_fashion_mnist,
    pair_noise,
    symmetric_noise,
)
from toolkit.learn.nets import conv_net
from toolkit.learn.stacked import StackedMLP
from toolkit.supervision.noisy_labels.recipe import NetworkRecipe

CLASSES = 10
SIDE = 28
CHUNK = 500
"""Examples of a replica that are evaluated at a time."""


class Stack:
    """The data of Q settings × S seeds, replica (q, s) at place q · S + s.

    All settings of a seed share its images, its test images and the order in which they are
    visited; a setting is a corruption rate, or a copy of one. Flips are drawn once, before
    training, and are nested: what is wrong at a low rate is wrong, in the same way, at a higher.
    """

    def __init__(
        self, recipe: NetworkRecipe, seeds: Sequence[int], device: torch.device, copies: int = 1
    ) -> None:
        """Draw every seed's subset and flips.

        Args:
            recipe: sizes, rates and the kind of noise.
            seeds: S of them; a seed's data do not depend on its company.
            device: where the tensors live.
            copies: how often the rates are repeated: settings = copies × rates.

        Raises:
            DataMissing: if Fashion-MNIST is not prepared.
        """
        self.recipe, self.seeds, self.device = recipe, [int(seed) for seed in seeds], device
        self.rates = recipe.rates * copies
        tasks = [seed_data(recipe.n, recipe.test_images, int(seed)) for seed in seeds]
        self.images, self.clean, self.test_images, self.test_labels = (
            torch.stack(column).to(device) for column in zip(*tasks, strict=True)
        )
        self.given = self.shown = self.draw_labels(epoch=0)
        self.choices = 0
        self.keep(torch.ones(self.given.shape, dtype=torch.bool))

    @property
    def flipped(self) -> Bool[Tensor, "q s n"]:
        """Where the given label is wrong."""
        return self.given != self.clean

    def draw_labels(self, epoch: int) -> Int64[Tensor, "q s n"]:
        """The labels given at each rate; the procedure uses epoch 0's throughout."""
        rows = [
            [self._draw(rate, column, epoch).given for column in range(len(self.seeds))]
            for rate in self.recipe.rates
        ]
        drawn = torch.stack([torch.stack(row) for row in rows])
        return drawn.repeat(len(self.rates) // len(self.recipe.rates), 1, 1)

    def labels(self, q: int, s: int) -> NoisyLabels:
        """The labels of one replica, as drawn before training."""
        return NoisyLabels(self.given[q, s], self.clean[s], self.flipped[q, s])

    def keep(self, kept: Bool[Tensor, "q s n"]) -> None:
        """From the next batch on, visit only these examples, in a new order.

        Raises:
            ValueError: if a replica would have none.
        """
        if not bool(kept.any(-1).all()):
            raise ValueError("at least one example of every replica must be kept")
        self.kept = kept.to(self.device)
        self.choices += 1
        rows = kept.cpu().numpy().reshape(-1, kept.shape[-1])
        seeds = self.seeds * len(self.rates)
        self.streams = [
            visits(row, [seed, 3, self.choices]) for row, seed in zip(rows, seeds, strict=True)
        ]

    def batches(
        self, begin: int, end: int, redraw: bool = False
    ) -> Iterator[tuple[Float[Tensor, "r b d"], Int64[Tensor, "r b"]]]:
        """Images and given labels of the steps begin…end−1, one row a replica.

        An epoch is n/b steps for every replica, also for one that visits fewer examples, and so
        each of them more often: all methods take the same number of steps.

        Args:
            begin: the first step, where the last call ended.
            end: the step after the last.
            redraw: show newly drawn labels at each epoch after the first; `given` stays.
        """
        shape = (len(self.rates), len(self.seeds), -1)
        rows = torch.arange(len(self.seeds), device=self.device)[:, None]
        for step in range(begin, end):
            epoch, place = divmod(step, self.recipe.steps_per_epoch)
            if redraw and epoch and not place:
                self.shown = self.draw_labels(epoch)
            chosen = [list(islice(stream, self.recipe.batch)) for stream in self.streams]
            index = torch.tensor(chosen, device=self.device).view(shape)
            yield self.images[rows, index].flatten(0, 1), self.shown.gather(2, index).flatten(0, 1)

    @torch.no_grad()
    def outputs(self, model: nn.Module, images: Float[Tensor, "s m d"]) -> Float[Tensor, "q s m k"]:
        """Every replica's logits for its seed's images."""
        chunks = [
            model(chunk.repeat(len(self.rates), 1, 1)) for chunk in images.split(CHUNK, dim=1)
        ]
        return torch.cat(chunks, dim=1).unflatten(0, (len(self.rates), len(self.seeds)))

    def networks(self) -> nn.Module:
        """One initialisation a seed, the same for all its settings."""
        recipe, count = self.recipe, len(self.seeds)
        index = torch.arange(count).repeat(len(self.rates))
        if recipe.network == "mlp":
            generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
            widths = (SIDE * SIDE, *recipe.widths, CLASSES)
            return StackedMLP(count, widths, generators).fork(index).to(self.device)
        nets = [_small_cnn(recipe.channels, seed) for seed in self.seeds]
        return SideBySide([deepcopy(nets[i]) for i in index.tolist()]).to(self.device)

    def _draw(self, rate: float, column: int, epoch: int) -> NoisyLabels:
        generator = noise_generator(self.seeds[column], epoch)
        y = self.clean[column]
        if self.recipe.noise == "instance":
            x = self.images[column]
            return instance_noise(x, y, rate, CLASSES, generator=generator)
        draw = symmetric_noise if self.recipe.noise == "symmetric" else pair_noise
        return draw(y, rate, CLASSES, generator=generator)


class SideBySide(nn.Module):
    """R networks of any kind, one after the other: what stacking is for perceptrons, unstacked."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Float[Tensor, "r b d"]) -> Float[Tensor, "r b k"]:
        """Apply network r to x[r]."""
        return torch.stack([net(rows) for net, rows in zip(self.nets, x, strict=True)])


def visits(kept: np.ndarray, seed: list[int]) -> Iterator[int]:
    """The examples that a replica visits, for ever: a new order each pass.

    Replicas of one seed follow the same orders, whatever each leaves out of them.
    """
    orders = np.random.default_rng(seed)
    while True:
        order = orders.permutation(len(kept))
        yield from order[kept[order]].tolist()


def noise_generator(seed: int, epoch: int = 0) -> torch.Generator:
    """The stream of a seed's flips; the same for every rate, so that flips are nested."""
    state = np.random.SeedSequence([int(seed), 5, epoch]).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


@lru_cache(maxsize=32)
def seed_data(n: int, test_images: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images [n, 784], their classes, test images [m, 784], their classes, of one seed.

    Pixels are divided by 255; the mean image of the training subset is taken off and everything
    divided by the subset's one standard deviation.

    Raises:
        DataMissing: if Fashion-MNIST is not prepared.
        ValueError: if the set has fewer images.
    """
    rng, parts = np.random.default_rng([seed, 0]), []
    for split, count in (("train", n), ("test", test_images)):
        data = load_fashion_mnist(split)
        if not 1 <= count <= len(data.label):
            raise ValueError(f"the {split} set has {len(data.label)} images, asked for {count}")
        index = torch.from_numpy(rng.permutation(len(data.label))[:count])
        parts += [data.images[index].flatten(1).float() / 255, data.label[index]]
    mean = parts[0].mean(0)
    std = (parts[0] - mean).std(correction=0)
    return (parts[0] - mean) / std, parts[1], (parts[2] - mean) / std, parts[3]


def _small_cnn(channels: tuple[int, ...], seed: int) -> nn.Sequential:
    """Stride-2 convolutions, 64 hidden units, ten outputs; no normalisation."""
    side = SIDE
    for _ in channels:
        side = -(-side // 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return nn.Sequential(
            nn.Unflatten(1, (1, SIDE, SIDE)),
            conv_net(*channels, norm="none"),
            nn.Flatten(),
            nn.Linear(channels[-1] * side**2, 64),
            nn.ReLU(),
            nn.Linear(64, CLASSES),
        )
