"""Contrastive losses over positions and over videos, with keys of all processes."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from toolkit.learn.distributed import gather_with_grad, world


def pointwise_info_nce(
    q: Float[Tensor, "n d"],
    k: Float[Tensor, "keys d"],
    others: Float[Tensor, "m d"] | None = None,
    tau: float = 0.1,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    r"""$-\frac1n\sum_p\log\frac{\exp(q_p\cdot k_p/\tau)}{\sum_{p'}\exp(q_p\cdot k_{p'}/\tau)}$.

    Huang et al. 2021, $\mathcal L_m$ (rows are positions) and $\mathcal L_i$ (rows are videos).
    Keys are gathered over all processes with gradients to both sides; the loss is this process's
    mean, so that the gradient averaged over processes is that of one process with all rows.

    Args:
        q: queries, unit length.
        k: keys, unit length; row p belongs to query p.
        others: further keys, negatives of every query.
        tau: temperature.
        chunk: queries at a time; their logits are computed again for the gradient, to save memory.

    Raises:
        ValueError: if q and k differ in shape or τ is not positive.
    """
    if q.shape != k.shape:
        raise ValueError(f"need one key a query, got {tuple(k.shape)} for {tuple(q.shape)}")
    if tau <= 0:
        raise ValueError(f"the temperature must be positive, got {tau}")
    keys = gather_with_grad(k)
    if others is not None and len(others):
        keys = torch.cat([keys, gather_with_grad(others)])
    positive = len(q) * world()[0] + torch.arange(len(q), device=q.device)
    if chunk is None or chunk >= len(q):
        return F.cross_entropy((q / tau) @ keys.T, positive)
    parts = [
        checkpoint(_summed, part, keys, rows, tau, use_reentrant=False)
        for part, rows in zip(q.split(chunk), positive.split(chunk), strict=True)
    ]
    return torch.stack(parts).sum() / len(q)


def _summed(
    q: Float[Tensor, "n d"], keys: Float[Tensor, "m d"], positive: Int64[Tensor, "n"], tau: float
) -> Float[Tensor, ""]:
    return F.cross_entropy((q / tau) @ keys.T, positive, reduction="sum")
