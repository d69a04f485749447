"""Pseudo labels: what a network believes of pictures without labels, and how two correct it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from toolkit.scenes.boxes import pad_boxes, pad_labels
from toolkit.scenes.detections import Detections, select
from toolkit.scenes.instant_teaching.detector import RCNN, one_hot


@torch.no_grad()
def pseudo_label(
    model: RCNN,
    weak: Float[Tensor, "batch 3 height width"],
    tau: float,
    nms_iou: float = 0.5,
    max_det: int = 100,
) -> list[Detections]:
    """What the network is sure of in weak views: each region's best class, if its score is ≥ τ.

    Args:
        model: labels in evaluation mode, without gradient.
        weak: pixels from 0 to 1.
        tau: τ, the threshold of scores.
        nms_iou: of two boxes of a class that overlap more, the lower score goes.
        max_det: boxes kept of a picture.

    Raises:
        ValueError: for τ outside (0, 1).
    """
    check_tau(tau)
    with evaluating(model):
        feats = model.features(weak)
        boxes, scores = model.refine(feats, model.proposals(feats))
    return keep_sure(boxes, scores, tau, (weak.shape[2], weak.shape[3]), nms_iou, max_det)


def keep_sure(
    boxes: Float[Tensor, "batch most 4"],
    scores: Float[Tensor, "batch most classes"],
    tau: float,
    size: tuple[int, int],
    nms_iou: float = 0.5,
    max_det: int = 100,
) -> list[Detections]:
    """Boxes with their best foreground class, if its score is ≥ τ, without duplicates."""
    foreground = scores[..., :-1]
    best = foreground == foreground.amax(-1, keepdim=True)
    sure = foreground.where(best & (foreground >= tau), 0.0)
    return select(boxes, sure, size, nms_iou=nms_iou, most=max_det)


def rectify(
    model: RCNN,
    feats: Sequence[Tensor],
    boxes: Float[Tensor, "batch most 4"],
    soft_scores: Float[Tensor, "batch most classes"],
    *,
    averaged: bool = False,
) -> tuple[Float[Tensor, "batch most 4"], Float[Tensor, "batch most classes"]]:
    """Correct boxes t and scores s by a second opinion t̄, s̄: the map 𝓡 of co-rectify.

    The network looks at each box as if it were a proposal. The new box is the mean of t and t̄,
    weighted by the largest entries of s and s̄ (of s̄ over **all** classes, the background
    included, as in the release); the new scores are the mean of s and s̄.

    Args:
        model: the second opinion.
        feats: of its `features`.
        boxes: t, padded with NaN.
        soft_scores: s, of C + 1 entries.
        averaged: weight t̄ by the new scores instead of s̄, as the release's second pass does.
    """
    other, opinion = model.refine(feats, boxes)
    mean = (soft_scores + opinion) / 2
    own = soft_scores.amax(-1, keepdim=True)
    weight = (mean if averaged else opinion).amax(-1, keepdim=True)
    return (boxes * own + other * weight) / (own + weight), mean


@torch.no_grad()
def co_rectify(
    m1: RCNN,
    m2: RCNN,
    weak: Float[Tensor, "batch 3 height width"],
    tau: float,
    passes: int = 2,
) -> tuple[list[Detections], list[Detections]]:
    """Labels for two networks, each corrected by the other.

    With one pass the labels for network 1 are 𝓡₂(P₁), its own boxes corrected by network 2. With
    two (the release) both pool their boxes P = P₁ ∪ P₂, P′ = 𝓡₁(P) ∪ 𝓡₂(P) ∪ P, and the labels
    for network 1 are 𝓡₂(P′). Then suppression of duplicates, and τ again.

    Args:
        m1: network 1.
        m2: network 2, of the same classes; a copy of network 1 could correct nothing.
        weak: weak views that both see, pixels from 0 to 1.
        tau: τ, the threshold of scores.
        passes: 1 or 2.

    Raises:
        ValueError: for τ outside (0, 1), or another number of passes.
    """
    check_tau(tau)
    if passes not in (1, 2):
        raise ValueError(f"passes must be 1 or 2, got {passes}")
    with evaluating(m1), evaluating(m2):
        feats = [m.features(weak) for m in (m1, m2)]
        size = (weak.shape[2], weak.shape[3])
        own = [
            _as_tensors(keep_sure(*m.refine(f, m.proposals(f)), tau, size), m.num_classes)
            for m, f in zip((m1, m2), feats, strict=True)
        ]
        if passes == 1:
            fixed = [rectify(m2, feats[1], *own[0]), rectify(m1, feats[0], *own[1])]
        else:
            pool = _together(own)
            views = [rectify(m, f, *pool) for m, f in zip((m1, m2), feats, strict=True)]
            wide = _together([*views, pool])
            fixed = [
                rectify(m2, feats[1], *wide, averaged=True),
                rectify(m1, feats[0], *wide, averaged=True),
            ]
    first, second = (keep_sure(boxes, scores, tau, size) for boxes, scores in fixed)
    return first, second


def check_tau(tau: float) -> None:
    """Raise ValueError unless 0 < τ < 1."""
    if not 0 < tau < 1:
        raise ValueError(f"tau must lie between 0 and 1, got {tau}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Labelling must not move a network's statistics: evaluation mode, for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _as_tensors(found: list[Detections], num_classes: int) -> tuple[Tensor, Tensor]:
    """Boxes, and one-hot vectors times the score, both padded."""
    boxes = pad_boxes([one.boxes for one in found])
    kinds = pad_labels([one.labels for one in found])
    scores = boxes.new_zeros(kinds.shape)
    for row, one in zip(scores, found, strict=True):
        row[: len(one.scores)] = one.scores
    return boxes, one_hot(kinds, num_classes) * scores[..., None]


def _together(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    boxes, scores = zip(*parts, strict=True)
    return torch.cat(boxes, 1), torch.cat(scores, 1)
