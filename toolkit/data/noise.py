"""Wrong labels, made on purpose: symmetric, pair and class-dependent label noise.

`rate` is the probability that a label is wrong. A flipped label is always one of the *other*
K−1 classes, so the given labels are wrong at that rate exactly in expectation.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class NoisyLabels:
    """Labels as given to the learner, beside the truth."""

    given: Int64[Tensor, "n"]
    clean: Int64[Tensor, "n"]
    flipped: Bool[Tensor, "n"]
    """Where the two differ."""


def symmetric_noise(
    y: Int64[Tensor, "n"], rate: float, num_classes: int, *, generator: torch.Generator
) -> NoisyLabels:
    """Flip each label with probability `rate`, to one of the other classes uniformly.

    Args:
        y: the true classes, 0 to K−1.
        rate: of wrong labels, 0 to 1.
        num_classes: K, at least 2.
        generator: a CPU generator.

    Raises:
        ValueError: for a rate outside [0, 1], fewer than two classes, or a label outside 0…K−1.
    """
    _check(y, rate, num_classes)
    step = torch.randint(1, num_classes, y.shape, generator=generator).to(y.device)
    return _flip(y, (y + step) % num_classes, rate, generator)


def pair_noise(
    y: Int64[Tensor, "n"], rate: float, num_classes: int, *, generator: torch.Generator
) -> NoisyLabels:
    """Flip each label with probability `rate`, to the next class (the last to the first).

    Args:
        y: the true classes, 0 to K−1.
        rate: of wrong labels, 0 to 1.
        num_classes: K, at least 2.
        generator: a CPU generator.

    Raises:
        ValueError: as `symmetric_noise`.
    """
    _check(y, rate, num_classes)
    return _flip(y, (y + 1) % num_classes, rate, generator)


def matrix_noise(
    y: Int64[Tensor, "n"],
    transition: Float[Tensor, "clean given"],
    *,
    generator: torch.Generator,
) -> NoisyLabels:
    """Draw each given label from the row of its true class: T[i, j] = P(given = j | clean = i).

    The matrix says both how often a class is mistaken and for which other one.

    Args:
        y: the true classes, 0 to K−1.
        transition: T, non-negative; every row sums to 1.
        generator: a CPU generator.

    Raises:
        ValueError: for a matrix that is not square, has a negative entry or a row that does not sum
            to 1, or for a label outside 0…K−1.
    """
    rows = transition.detach().to("cpu", torch.float64)
    if rows.ndim != 2 or rows.shape[0] != rows.shape[1]:
        raise ValueError(f"transition must be square, got shape {tuple(rows.shape)}")
    _check(y, 0.0, len(rows))
    if not bool((rows >= 0).all()):
        raise ValueError("transition must be non-negative and finite")
    if not torch.allclose(rows.sum(1), torch.ones(len(rows), dtype=torch.float64), atol=1e-6):
        raise ValueError(f"rows of transition must sum to 1, got {rows.sum(1).tolist()}")
    edges = rows.cumsum(1)[y.cpu()].contiguous()
    draws = torch.rand(len(y), 1, generator=generator, dtype=torch.float64) * edges[:, -1:]
    given = torch.searchsorted(edges, draws, right=True)[:, 0].to(y.device)
    return NoisyLabels(given, y, given != y)


def _flip(
    clean: Int64[Tensor, "n"], other: Int64[Tensor, "n"], rate: float, generator: torch.Generator
) -> NoisyLabels:
    flipped = (torch.rand(clean.shape, generator=generator) < rate).to(clean.device)
    return NoisyLabels(torch.where(flipped, other, clean), clean, flipped)


def _check(y: Int64[Tensor, "n"], rate: float, num_classes: int) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must be 0 to {num_classes - 1}, got {low} to {high}")
