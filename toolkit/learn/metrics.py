"""Accuracy, calibration and retrieval."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def accuracy(logits: Float[Tensor, "... n k"], y: Int[Tensor, "... n"]) -> Float[Tensor, "..."]:
    """The share of rows whose largest logit is the label, over the last axis of y."""
    return (logits.argmax(dim=-1) == y).float().mean(dim=-1)


def calibration_error(
    probs: Float[Tensor, "n k"], y: Int[Tensor, " n"], bins: int = 15
) -> Float[Tensor, ""]:
    """Expected calibration error: mean |accuracy − confidence| over equal-width bins.

    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks" (2017), Eq. 3.

    Args:
        probs: predicted probabilities, rows summing to 1.
        y: labels.
        bins: of the confidence.

    Raises:
        ValueError: if a probability lies outside [0, 1].
    """
    if probs.min() < 0 or probs.max() > 1 + 1e-4:
        raise ValueError("probs must lie in [0, 1]; did you pass logits?")
    confidence, guess = probs.max(dim=1)
    which = (confidence * bins).long().clamp(max=bins - 1)
    gap = (guess == y).to(probs.dtype) - confidence
    total = torch.zeros(bins, dtype=probs.dtype, device=probs.device).index_add_(0, which, gap)
    return total.abs().sum() / len(y)


def recall_at_k(
    q: Float[Tensor, "queries d"],
    g: Float[Tensor, "gallery d"],
    yq: Int[Tensor, " queries"],
    yg: Int[Tensor, " gallery"],
    ks: Sequence[int] = (1, 5, 10),
    size: int = 1024,
) -> dict[int, float]:
    """The share of queries with an item of their label among the k nearest by cosine.

    Args:
        q: query features.
        g: gallery features.
        yq: labels of the queries.
        yg: labels of the gallery.
        ks: cut-offs.
        size: queries at a time.

    Raises:
        ValueError: if a k lies outside 1…gallery.
    """
    if not ks or min(ks) < 1 or max(ks) > len(g):
        raise ValueError(f"each k must lie in 1…{len(g)}, got {tuple(ks)}")
    gallery = F.normalize(g, dim=1)
    found = []
    for chunk, labels in zip(F.normalize(q, dim=1).split(size), yq.split(size), strict=True):
        nearest = (chunk @ gallery.T).topk(max(ks), dim=1).indices
        found.append((yg[nearest] == labels[:, None]).cumsum(dim=1) > 0)
    hit = torch.cat(found).float().mean(dim=0)
    return {k: float(hit[k - 1]) for k in ks}
