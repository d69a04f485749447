"""A world where the method must work: an image is the sum of what its two words name.

A class is a pair of attributes, such as a colour and a thing. Each attribute has a direction in
feature space and a word; both occur in frequent and in rare classes. It is the control that tells
a broken method from data that do not suit it.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from toolkit.runtime import TUNING_SEEDS
from toolkit.search.sicot.longtail import tail_counts
from toolkit.search.sicot.recipe import Recipe
from toolkit.search.sicot.shop import Task

DIMENSIONS = 128
SPREAD = 2.0
"""Standard deviation of an image about its class, in each direction; attributes have 1."""
OWN = 0.5
"""Size of what a class has beyond its attributes, such as a shape of its own."""
VAL, TEST = 2, 10
"""Images of a class."""


def attribute_task(recipe: Recipe, seed: int, device: torch.device) -> Task:
    """Features of a long tail of attribute pairs; titles have two informative words."""
    rng = np.random.default_rng([seed, 8])
    counts = tail_counts(recipe.products, recipe.n_max, recipe.n_min, seed)
    side = math.ceil(math.sqrt(recipe.products))
    pairs = rng.permutation(side * side)[: recipe.products]
    first, second = np.divmod(pairs, side)
    parts = rng.normal(size=(2, side, DIMENSIONS))
    own = OWN * rng.normal(size=(recipe.products, DIMENSIONS))
    centres = torch.from_numpy(parts[0][first] + parts[1][second] + own).float()
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))

    def drawn(number: Int64[Tensor, " classes"]) -> tuple[Float[Tensor, "n d"], Tensor]:
        y = torch.arange(recipe.products).repeat_interleave(number)
        noise = SPREAD * torch.randn(len(y), DIMENSIONS, generator=generator)
        return (centres[y] + noise).to(device), y.to(device)

    x, y = drawn(counts)
    val, test = (drawn(torch.full_like(counts, each)) for each in (VAL, TEST))
    judged = val if seed >= TUNING_SEEDS else test
    tokens = [[f"first{a}", f"second{b}"] for a, b in zip(first, second, strict=True)]
    return Task(x, y, counts.to(device), val, judged, tokens, seed)
