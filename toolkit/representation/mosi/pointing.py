"""The pointing game: does the peak of a map lie on what moves? And maps that need no learning."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

COARSE = 10
"""Cells of a side of the maps below, as in the last stage of the tiny network."""


def pointing_game(
    maps: Float[Tensor, "n height width"], masks: Bool[Tensor, "m tall wide"]
) -> Bool[Tensor, "n"]:
    """Whether the peak of each map lies in its mask; of equal peaks the first in row order counts.

    Raises:
        ValueError: if shapes differ or a map is not finite.
    """
    if maps.shape != masks.shape:
        raise ValueError(f"one mask a map, of its size: got {maps.shape} and {masks.shape}")
    if not bool(torch.isfinite(maps).all()):
        raise ValueError("a map holds a number that is not finite: it has no peak")
    peak = maps.flatten(1).argmax(dim=1, keepdim=True)
    return masks.flatten(1).gather(1, peak)[:, 0]


def difference_map(
    clips: Float[Tensor, "n c t h w"], size: tuple[int, int]
) -> Float[Tensor, "n height width"]:
    """Mean absolute change from frame to frame: a motion detector, where the camera is still."""
    return _coarse(clips.diff(dim=2).abs().mean(dim=(1, 2)), size)


def edge_map(
    clips: Float[Tensor, "n c t h w"], size: tuple[int, int]
) -> Float[Tensor, "n height width"]:
    """Mean squared gradient over space: what stands out in a still picture."""
    down, across = torch.gradient(clips, dim=(3, 4))
    return _coarse((down.square() + across.square()).mean(dim=(1, 2)), size)


def _coarse(maps: Float[Tensor, "n h w"], size: tuple[int, int]) -> Float[Tensor, "n a b"]:
    cells = F.adaptive_avg_pool2d(maps[:, None], COARSE)
    return F.interpolate(cells, size, mode="bilinear")[:, 0]
