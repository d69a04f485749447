"""The intrinsic rank of convolution kernels, always beside the same numbers at initialisation."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def kernel_spectrum(weight: Float[Tensor, "out in k k"]) -> Float[Tensor, "n"]:
    """Singular values of the kernel as a matrix C_out × (C_in·k²), over the largest, falling.

    n is the smaller side. In float64.

    Raises:
        ValueError: for a kernel of zeros.
    """
    values = torch.linalg.svdvals(weight.detach().double().flatten(1))
    if values[0] == 0:
        raise ValueError("a kernel of zeros has no spectrum")
    return values / values[0]


def rank_stats(s: Float[Tensor, "n"]) -> dict[str, float]:
    """Three soft ranks of a spectrum, each divided by n.

    Args:
        s: singular values, not all zero.

    Returns:
        `"half"`: share of values above half of the largest. `"stable"`: Σσ²/σ₁². `"entropy"`:
        exp(−Σ p log p) with p = σ/Σσ.
    """
    n, p = len(s), s / s.sum()
    entropy = -torch.special.xlogy(p, p).sum()
    return {
        "half": float((s > s.max() / 2).double().mean()),
        "stable": float(s.square().sum() / s.max().square() / n),
        "entropy": float(entropy.exp() / n),
    }


def stage_ranks(blocks: Sequence[nn.Module]) -> list[dict[str, float]]:
    """The mean of `rank_stats` over the k×k kernels (k > 1, not depthwise) of each module."""
    stages = []
    for module in blocks:
        found = [
            rank_stats(kernel_spectrum(conv.weight))
            for conv in module.modules()
            if isinstance(conv, nn.Conv2d) and conv.kernel_size[0] > 1 and conv.groups == 1
        ]
        if not found:
            raise ValueError("a stage without full k×k convolutions has no kernels to rank")
        stages.append({name: sum(f[name] for f in found) / len(found) for name in found[0]})
    return stages
