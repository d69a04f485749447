"""Long tails: how accuracy is told by class size, and what else is done about rare classes."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import WeightedRandomSampler

from toolkit.data import long_tail_counts

SHOP_EDGES = (6, 20)
"""Few below 6 images, medium below 20, many from 20 on: the small experiment's buckets."""
LARGE_EDGES = (20, 101)
"""Few below 20 images, medium to 100, many above: usual for large sets."""
BUCKETS = ("few", "medium", "many")
SIZES = (2, 4, 6, 10, 20, 40, 100)
"""Finer buckets, by their least class size; the first also holds what is smaller."""


def tail_counts(num_classes: int, n_max: int, n_min: int, seed: int) -> Int64[Tensor, "classes"]:
    """Class sizes that fall geometrically along a random order of the classes.

    n_c = round(n_max (n_min / n_max)^(r_c / (C−1))), r a permutation of 0 … C−1.

    Args:
        num_classes: C.
        n_max: images of the largest class.
        n_min: images of the smallest.
        seed: of the permutation.

    Raises:
        ValueError: see `toolkit.data.long_tail_counts`.
    """
    place = np.random.default_rng([seed, 0]).permutation(num_classes)
    return long_tail_counts(num_classes, n_max, n_min)[torch.from_numpy(place)]


def class_accuracy(
    pred: Int[Tensor, " n"], y: Int[Tensor, " n"], num_classes: int
) -> Float[Tensor, " classes"]:
    """The accuracy on each class; NaN for one without test images."""
    right = torch.bincount(y[pred == y], minlength=num_classes)
    return right / torch.bincount(y, minlength=num_classes)


def size_accuracy(
    pred: Int[Tensor, " n"], y: Int[Tensor, " n"], counts: Int[Tensor, " classes"]
) -> dict[int, float]:
    """Mean accuracy over the classes of each size in `SIZES`; NaN where there is none."""
    each = class_accuracy(pred, y, len(counts))
    which = torch.bucketize(counts, torch.tensor(SIZES[1:], device=counts.device), right=True)
    return {size: float(each[which == i].nanmean()) for i, size in enumerate(SIZES)}


def bucket_accuracy(
    pred: Int[Tensor, " n"],
    y: Int[Tensor, " n"],
    counts: Int[Tensor, " classes"],
    edges: tuple[int, int] = SHOP_EDGES,
) -> dict[str, float]:
    """Mean accuracy over the classes with few, medium and many training images, and over all.

    Args:
        pred: predicted classes.
        y: true classes.
        counts: training images of each class.
        edges: the least number of images of a medium and of a large class.

    Returns:
        `few`, `medium`, `many`, `all`; NaN for a bucket without a tested class.

    Raises:
        ValueError: for different lengths, edges that do not rise, or a class without images.
    """
    if len(pred) != len(y) or not edges[0] < edges[1]:
        raise ValueError(
            f"need as many predictions as labels and rising edges, got {len(pred)}, {len(y)}, "
            f"{edges}"
        )
    check_counts(counts)
    each = class_accuracy(pred, y, len(counts))
    which = torch.bucketize(counts, torch.tensor(edges, device=counts.device), right=True)
    found = {name: float(each[which == i].nanmean()) for i, name in enumerate(BUCKETS)}
    return found | {"all": float(each.nanmean())}


def logit_adjust(
    z: Float[Tensor, "... classes"], counts: Int[Tensor, " classes"], tau: float = 1.0
) -> Float[Tensor, "... classes"]:
    """Add τ log π_c to the logits in training; without it, predictions favour rare classes.

    Menon et al., "Long-tail learning via logit adjustment" (2021), Equation 10; at τ = 1 the
    balanced softmax of Ren et al. (2020).

    Args:
        z: logits.
        counts: training images of each class; π_c is their share.
        tau: τ.

    Raises:
        ValueError: for a class without images.
    """
    check_counts(counts)
    return z + tau * (counts / counts.sum()).log().to(z)


def class_balanced_weights(
    counts: Int[Tensor, " classes"], beta: float = 0.999
) -> Float[Tensor, " classes"]:
    """Weights (1 − β) / (1 − β^n_c), scaled to a mean of 1.

    Cui et al., "Class-balanced loss based on effective number of samples" (2019), Equation 3.

    Args:
        counts: training images of each class.
        beta: β in [0, 1); 0 weighs all classes alike.

    Raises:
        ValueError: for another β, or a class without images.
    """
    check_counts(counts)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
    weight = (1 - beta) / -torch.expm1(counts.double() * math.log(beta)) if beta else counts * 0 + 1
    return (weight / weight.double().mean()).float()


def class_balanced_order(
    y: Int[Tensor, " n"], total: int, generator: torch.Generator
) -> Int64[Tensor, " total"]:
    """Draw images with replacement so that every class is as likely as any other.

    Args:
        y: the classes of all images.
        total: how many to draw.
        generator: on the CPU.
    """
    weights = 1 / torch.bincount(y).clamp(min=1)[y].double()
    return torch.tensor(list(WeightedRandomSampler(weights.tolist(), total, True, generator)))


def tau_normalise(weight: Float[Tensor, "classes d"], tau: float) -> Float[Tensor, "classes d"]:
    """W_c / ‖W_c‖^τ: frequent classes lose the length of their rows (Kang et al. 2020)."""
    return weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12) ** tau


class CosineClassifier(nn.Module):
    """Logits s · cos(f, W_c), which LDAM needs for its margins to mean the same in all classes."""

    def __init__(self, d: int, num_classes: int, scale: float = 30.0) -> None:
        """Draw W.

        Args:
            d: width of the features.
            num_classes: C.
            scale: s.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, d) / math.sqrt(d))
        self.scale = scale

    def forward(self, f: Float[Tensor, "batch d"]) -> Float[Tensor, "batch classes"]:
        """Return s · cos(f, W_c)."""
        return self.scale * F.linear(F.normalize(f, dim=1), F.normalize(self.weight, dim=1))


def ldam_loss(
    z: Float[Tensor, "batch classes"],
    y: Int[Tensor, " batch"],
    counts: Int[Tensor, " classes"],
    margin: float = 0.5,
    scale: float = 30.0,
    weight: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy with a margin ∝ n_c^(−1/4) on the label's cosine.

    Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss" (2019),
    Equation 13; with class weights late in training it is LDAM-DRW.

    Args:
        z: logits of `CosineClassifier`.
        y: labels.
        counts: training images of each class.
        margin: of the rarest class.
        scale: s of the classifier.
        weight: of each class.

    Raises:
        ValueError: for a class without images.
    """
    check_counts(counts)
    each = counts.to(z) ** -0.25
    each = margin * each / each.max()
    lowered = F.one_hot(y, len(counts)) * each[y][:, None] * scale
    return F.cross_entropy(z - lowered, y, weight=weight)


def check_counts(counts: Tensor) -> None:
    """Refuse a class without images, before any work."""
    if len(counts) == 0 or int(counts.min()) < 1:
        raise ValueError("every class needs at least one training image")
