"""Wrong labels, made on purpose: symmetric, pair, class- and instance-dependent label noise.

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


def instance_noise(
    x: Float[Tensor, "rows d"],
    y: Int64[Tensor, "n"],
    rate: float,
    num_classes: int,
    *,
    spread: float = 0.1,
    generator: torch.Generator,
) -> NoisyLabels:
    """Flip labels by what the example looks like: some images are mistaken more often than others.

    Each example draws its own flip rate, normal around `rate` and cut to [0, 1]; the wrong class
    is drawn from a softmax of the features under a random projection of the true class. Xia et
    al., "Part-dependent label noise" (2020), Algorithm 2; features are standardised here.

    Args:
        x: features, one row an example.
        y: the true classes, 0 to K−1.
        rate: mean rate of wrong labels, 0 to 1 (near 0 and 1 the cut moves the mean inward).
        num_classes: K, at least 2.
        spread: standard deviation of the examples' rates.
        generator: a CPU generator.

    Raises:
        ValueError: as `symmetric_noise`; also for a negative spread or lengths that differ.
    """
    _check(y, rate, num_classes)
    if len(x) != len(y) or not spread >= 0:
        raise ValueError(f"need one row a label and spread ≥ 0, got {len(x)}, {len(y)}, {spread}")
    rates = (rate + spread * torch.randn(len(y), generator=generator)).clamp(0, 1)
    views = torch.randn(num_classes, x.shape[1], num_classes, generator=generator)
    scores = torch.empty(len(y), num_classes)
    z = ((x - x.mean(0)) / (x.std(0, correction=0) + 1e-6)).to("cpu", torch.float32)
    for label in range(num_classes):
        rows = (y == label).nonzero()[:, 0].cpu()
        scores[rows] = z[rows] @ views[label] / x.shape[1] ** 0.5
    others = scores.scatter(1, y.cpu()[:, None], -torch.inf).softmax(dim=1)
    other = torch.multinomial(others, 1, generator=generator)[:, 0].to(y.device)
    flipped = (torch.rand(len(y), generator=generator) < rates).to(y.device)
    return NoisyLabels(torch.where(flipped, other, y), y, flipped)


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
