"""Subsets of labelled data: so many examples of each class, balanced or long-tailed."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor


def take_per_class(
    y: Int64[Tensor, "n"], counts: int | Sequence[int], *, generator: torch.Generator
) -> Int64[Tensor, "m"]:
    """Draw, without replacement, a given number of examples of each class.

    Args:
        y: the classes, 0 to C−1.
        counts: one number for every class, or one per class; 0 leaves a class out.
        generator: a CPU generator; the same state gives the same examples.

    Returns:
        Positions in `y`, in random order.

    Raises:
        ValueError: if a class has fewer examples than asked for, or `counts` is shorter than the
            number of classes.
    """
    num_classes = int(y.max()) + 1 if len(y) else 0
    wanted = [counts] * num_classes if isinstance(counts, int) else [int(count) for count in counts]
    available = torch.bincount(y.cpu(), minlength=len(wanted)).tolist()
    if len(wanted) < num_classes:
        raise ValueError(f"counts has {len(wanted)} entries for {num_classes} classes")
    for label, (want, have) in enumerate(zip(wanted, available, strict=True)):
        if not 0 <= want <= have:
            raise ValueError(f"class {label}: {want} examples asked for, 0 to {have} possible")
    order = torch.randperm(len(y), generator=generator)
    ranks = _rank_within_class(y.cpu()[order])
    chosen = ranks < torch.tensor(wanted, dtype=torch.int64)[y.cpu()[order]]
    return order[chosen].to(y.device)


def long_tail_counts(num_classes: int, n_max: int, n_min: int) -> Int64[Tensor, "classes"]:
    """Class sizes that fall geometrically: n_c = n_max (n_min / n_max)^(c / (C−1)), rounded.

    Args:
        num_classes: C, at least 2.
        n_max: examples of class 0.
        n_min: examples of class C−1, from 1 to `n_max`.

    Raises:
        ValueError: outside these ranges.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if not 1 <= n_min <= n_max:
        raise ValueError(f"1 <= n_min <= n_max is needed, got n_min={n_min}, n_max={n_max}")
    exponent = np.arange(num_classes) / (num_classes - 1)
    return torch.from_numpy(np.rint(n_max * (n_min / n_max) ** exponent).astype(np.int64))


def _rank_within_class(y: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
    """How many earlier examples share an example's class."""
    by_class = torch.argsort(y, stable=True)
    sizes = torch.bincount(y)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    ranks = torch.empty_like(y)
    ranks[by_class] = torch.arange(len(y)) - starts
    return ranks
