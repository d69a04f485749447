"""Discrimination: cross-entropy against last epoch's labels and centres."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F


def coke_loss(
    pred: Float[Tensor, "batch d"],
    centers: Float[Tensor, "clusters d"],
    targets: Shaped[Tensor, "batch ..."],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of softmax(pᵀC^pre / λ) against labels or distributions over clusters.

    Prices take no part: they decide who belongs to a cluster, not what the network should say.

    Args:
        pred: unit-length features that carry the gradient.
        centers: C^pre, frozen at the end of the last epoch, one row a cluster.
        targets: labels [batch], or probabilities [batch, clusters].
        temperature: λ.

    Raises:
        ValueError: if λ is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return F.cross_entropy(pred @ centers.T / temperature, targets)


@torch.no_grad()
def two_view_targets(
    labels: Shaped[Tensor, " batch"],
    other: Float[Tensor, "batch d"],
    centers: Float[Tensor, "clusters d"],
    temperature: float,
    alpha: float = 0.2,
) -> Float[Tensor, "batch clusters"]:
    """Targets of one view: α one-hot(label) + (1 − α) softmax(x_otherᵀC^pre / λ).

    Variance reduction 2: the other view says which further clusters are close. No gradient passes.

    Args:
        labels: last epoch's, the same for both views.
        other: the unit-length projection of the other view.
        centers: C^pre.
        temperature: λ.
        alpha: α, weight of the hard label.

    Raises:
        ValueError: if α lies outside [0, 1] or λ is not positive.
    """
    if not 0 <= alpha <= 1 or not temperature > 0:
        raise ValueError(f"need 0 ≤ alpha ≤ 1 and temperature > 0, got {alpha}, {temperature}")
    soft = (other.float() @ centers.T / temperature).softmax(dim=1)
    hard = torch.full_like(soft[:, :1], alpha)
    return ((1 - alpha) * soft).scatter_add_(1, labels.long()[:, None], hard)
