"""Losses of dense detectors: what the classifier, the regressor and the quality branch minimise."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss


def one_hot(labels: Int64[Tensor, "samples"], num_classes: int) -> Float[Tensor, "samples classes"]:
    """Rows of zeros, with a one where there is a label from 0; −1 stands for background."""
    rows = F.one_hot(labels.clamp(min=0), num_classes).float()
    return rows * (labels >= 0)[:, None]


def focal_loss(
    logits: Float[Tensor, "samples classes"], labels: Int64[Tensor, "samples"]
) -> Float[Tensor, ""]:
    """Sum of the sigmoid focal loss, α = .25, γ = 2 (torchvision's); the caller divides by N₊.

    Args:
        logits: of every sample that counts.
        labels: from 0; −1 is background.
    """
    return sigmoid_focal_loss(logits, one_hot(labels, logits.shape[1]), 0.25, 2.0, "sum")


def dr_loss(
    logits: Float[Tensor, "samples classes"],
    labels: Int64[Tensor, "samples"],
    pos_lambda: float = 1.0,
    neg_lambda: float = 0.1 / math.log(3.5),
    L: float = 6.0,
    tau: float = 4.0,
) -> Float[Tensor, ""]:
    """Distributional ranking: the hardest negatives must stay ½ below the hardest positives.

    τ/L · log(1 + exp L(P̄₋ − P̄₊ + ½)), where P̄₋ is the mean of the negatives' probabilities weighted
    by softmax(p/λ₋), and P̄₊ that of the positives' weighted by softmax(−p/λ₊); P̄₊ = 1 without any.
    Qian et al., "DR loss: improving object detection by distributional ranking" (2020), with the
    constants of its release. It needs no division by N₊.

    Args:
        logits: of every sample that counts, of all images together.
        labels: from 0; −1 is background.
        pos_lambda: λ₊, positive.
        neg_lambda: λ₋, positive.
        L: steepness, positive.
        tau: scale.

    Raises:
        ValueError: if λ₊, λ₋ or L is not positive.
    """
    if min(pos_lambda, neg_lambda, L) <= 0:
        raise ValueError(f"need positive {pos_lambda=}, {neg_lambda=}, {L=}")
    positive = one_hot(labels, logits.shape[1]).bool()
    wanted, unwanted = logits[positive].sigmoid(), logits[~positive].sigmoid()
    high = (F.softmax(unwanted / neg_lambda, 0) * unwanted).sum()
    low = (F.softmax(-wanted / pos_lambda, 0) * wanted).sum() if len(wanted) else 1.0
    return tau / L * F.softplus(L * (high - low + 0.5))


def giou_loss(
    boxes: Float[Tensor, "samples anchors 4"],
    targets: Float[Tensor, "samples 4"],
    chosen: Float[Tensor, "samples anchors"],
) -> Float[Tensor, ""]:
    """Sum over samples of the mean of 1 − GIoU over their chosen anchors (torchvision's GIoU).

    Args:
        boxes: decoded from every anchor of every positive sample.
        targets: the object of each sample.
        chosen: 1 for the anchors that are regressed, else 0; at least one a sample.
    """
    losses = generalized_box_iou_loss(boxes, targets[:, None].expand_as(boxes))
    return ((losses * chosen).sum(1) / chosen.sum(1)).sum()


def paired_iou(
    boxes: Float[Tensor, "samples anchors 4"], targets: Float[Tensor, "samples 4"]
) -> Float[Tensor, "samples anchors"]:
    """IoU of each decoded box with the object of its sample."""
    other = targets[:, None]
    low = torch.maximum(boxes[..., :2], other[..., :2])
    high = torch.minimum(boxes[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1)
    return shared / (areas - shared).clamp(min=1e-7)


def centreness(
    points: Float[Tensor, "samples 2"], targets: Float[Tensor, "samples 4"]
) -> Float[Tensor, "samples"]:
    """FCOS's centre-ness of a location in its object, 1 in the middle and 0 on the border.

    √(min(l, r) / max(l, r) · min(t, b) / max(t, b)), equation 3 of the FCOS paper.
    """
    before = (points - targets[:, :2]).clamp(min=0)
    after = (targets[:, 2:] - points).clamp(min=0)
    ratio = torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-7)
    return ratio.prod(1).sqrt()
