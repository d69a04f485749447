"""Augmentation with one draw per example (torchvision's v2 draws once a batch)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def random_affine(
    x: Float[Tensor, "b c h w"],
    *,
    degrees: float = 0.0,
    scale: float = 0.0,
    shift: float = 0.0,
    flip: bool = False,
    generator: torch.Generator,
) -> Float[Tensor, "b c h w"]:
    """Rotate, scale, shift and flip each image by its own random amounts; borders repeat.

    Args:
        x: images.
        degrees: rotation is uniform in ±degrees.
        scale: the factor is 2^U(−scale, scale).
        shift: uniform in ±shift of each side.
        flip: mirror left and right with probability ½.
        generator: on the CPU.

    Raises:
        ValueError: for a negative amount, or a shift above 1.
    """
    if min(degrees, scale, shift) < 0 or shift > 1:
        raise ValueError(f"need amounts ≥ 0 and shift ≤ 1, got {degrees=}, {scale=}, {shift=}")
    draw = torch.rand(5, len(x), generator=generator).to(x.device, x.dtype) * 2 - 1
    angle = draw[0] * math.radians(degrees)
    zoom = torch.exp2(-draw[1] * scale)
    mirror = torch.where(draw[4] < 0, -1.0, 1.0) if flip else torch.ones_like(angle)
    ratio = x.shape[2] / x.shape[3]
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    across = torch.stack([mirror * cos, -sin * ratio, 2 * shift * draw[2]], dim=1)
    down = torch.stack([mirror * sin / ratio, cos, 2 * shift * draw[3]], dim=1)
    theta = torch.stack([across, down], dim=1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
