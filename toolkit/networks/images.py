"""Fashion-MNIST as the architecture chapters train and judge on it."""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from toolkit.data.images import load_fashion_mnist

VALIDATION = 10_000
"""Training images held out to choose by; the test images judge once."""


@dataclass(frozen=True)
class Split:
    """Standardised images and labels."""

    x: Float[Tensor, "n 1 28 28"]
    y: Int64[Tensor, "n"]


@cache
def load_splits(device: torch.device) -> tuple[Split, Split, Split]:
    """50,000 images to train, 10,000 to choose, 10,000 to test.

    Raises:
        DataMissing: if Fashion-MNIST is not prepared.
    """
    train, test = load_fashion_mnist("train"), load_fashion_mnist("test")
    x, y = _pixels(train.images).to(device), train.label.to(device)
    return (
        Split(x[:-VALIDATION], y[:-VALIDATION]),
        Split(x[-VALIDATION:], y[-VALIDATION:]),
        Split(_pixels(test.images).to(device), test.label.to(device)),
    )


def _pixels(images: Tensor) -> Float[Tensor, "n 1 28 28"]:
    return (images.float() / 255 - 0.286) / 0.353
