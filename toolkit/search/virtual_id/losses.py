"""What a click says: the losses of the two networks (the forms are ours, see the chapter)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

MOST_WEIGHT = 5.0
"""Inverse propensities of first clicks are clipped here."""


class ListLoss(NamedTuple):
    """A mean over lists, and how many lists were left out because nothing in them was clicked."""

    loss: Float[Tensor, ""]
    skipped: int


def inverse_propensity(position: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log₂(r + 1) for positions r ≥ 1: one over the chance that a visitor looks so far down.

    Raises:
        ValueError: for a position below 1.
    """
    if position.numel() and int(position.min()) < 1:
        raise ValueError(f"positions count from 1, got {int(position.min())}")
    return torch.log2(position.float() + 1)


def first_click_loss(
    logits: Float[Tensor, "batch categories"],
    first: Int[Tensor, " batch"],
    weight: Float[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """L_first: cross-entropy with the category of the first click, weighted by its propensity.

    Args:
        logits: of the virtual categories.
        first: v(first), the virtual category of each visit's first click.
        weight: w₁, such as `inverse_propensity` clipped at `MOST_WEIGHT`; scaled here to mean 1.

    Raises:
        ValueError: for a weight that is negative or not finite, or weights that are all 0.
    """
    if not torch.isfinite(weight).all() or (weight < 0).any() or not weight.sum() > 0:
        raise ValueError("weights must be finite, not negative, and not all zero")
    return (weight / weight.mean() * F.cross_entropy(logits, first, reduction="none")).mean()


def switch_click_loss(
    logits: Float[Tensor, "batch categories"],
    left: Int[Tensor, " batch"],
    entered: Int[Tensor, " batch"],
    margin: float = 1.0,
) -> Float[Tensor, ""]:
    """L_switch: [m + log p_a − log p_b]₊ where a visitor left category a for b.

    Args:
        logits: of the virtual categories.
        left: a; −1 for a visit without a switch.
        entered: b; −1 likewise.
        margin: m.

    Returns:
        The mean over visits with a switch; 0 without any.

    Raises:
        ValueError: if a visit switches from a category to itself, or has only one of the two.
    """
    switched = left >= 0
    if (switched != (entered >= 0)).any():
        raise ValueError("left and entered must be −1 for the same visits")
    if (left[switched] == entered[switched]).any():
        raise ValueError("a switch inside one category is none: mark it −1")
    if not switched.any():
        return logits.sum() * 0
    log_p = logits[switched].log_softmax(dim=1)
    apart = log_p.gather(1, entered[switched, None]) - log_p.gather(1, left[switched, None])
    return (margin - apart).clamp(min=0).mean()


def listwise_click_loss(
    fq: Float[Tensor, "batch d"],
    fitems: Float[Tensor, "batch items d"],
    clicked: Bool[Tensor, "batch items"] | Float[Tensor, "batch items"],
    mask: Bool[Tensor, "batch items"] | None = None,
    tau: float = 0.1,
    propensity: Float[Tensor, "batch items"] | None = None,
) -> ListLoss:
    """L_list: the clicked ones of a list share its softmax.

    L = −Σ_{i ∈ D⁺} w_i log softmax_D(f_q · f_j / τ)_i with weights that sum to 1 over D⁺.

    Args:
        fq: features of the queries.
        fitems: of the listings shown under them.
        clicked: which were clicked; or grades from 0, such as a dwell time.
        mask: which places hold a listing at all; by default all.
        tau: τ.
        propensity: inverse propensities of the places, such as log₂(r + 1); by default all 1.

    Returns:
        The mean over lists with a click, 0 without any, and the number of the others.

    Raises:
        ValueError: if τ is not positive, shapes differ, or a grade or propensity is negative or
            not finite.
    """
    if not tau > 0:
        raise ValueError(f"τ must be positive, got {tau}")
    weight = clicked.float() if propensity is None else clicked.float() * propensity
    mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    if weight.shape != fitems.shape[:2] or mask.shape != weight.shape or len(fq) != len(fitems):
        raise ValueError(
            f"fq {tuple(fq.shape)}, fitems {tuple(fitems.shape)}, clicked {tuple(weight.shape)} "
            f"and mask {tuple(mask.shape)} do not fit"
        )
    if not torch.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("grades and propensities must be finite and not negative")
    weight = weight * mask
    total = weight.sum(dim=1)
    some = total > 0
    if not some.any():
        return ListLoss(fq.sum() * 0, len(fq))
    score = torch.einsum("bd,bld->bl", fq[some], fitems[some]) / tau
    log_p = score.masked_fill(~mask[some], -torch.inf).log_softmax(dim=1)
    log_p = log_p.masked_fill(~mask[some], 0.0)
    loss = -(weight[some] / total[some, None] * log_p).sum(dim=1).mean()
    return ListLoss(loss, int((~some).sum()))
