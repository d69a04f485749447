"""Prior boxes: some at every cell of every level of a feature pyramid."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

OCTAVE = tuple(2 ** (third / 3) for third in range(3))
"""The three scales of RetinaNet within an octave."""


def make_anchors(
    strides: Sequence[int],
    image_size: tuple[int, int],
    scales: Sequence[float] = OCTAVE,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    base: float = 4.0,
) -> Float[Tensor, "locations anchors 4"]:
    """Anchors of all levels, location by location: x₀, y₀, x₁, y₁ in pixels, not clipped.

    Anchor k at a cell's middle has area (base · stride · scale)², and height over width = ratio;
    ratios run fastest. Lin et al., "Focal loss for dense object detection" (2017), section 4.

    Args:
        strides: of the levels, finest first.
        image_size: height and width in pixels.
        scales: of the sides.
        ratios: height over width.
        base: side at scale 1, in strides.

    Returns:
        Levels follow each other; within one, rows of cells from the top.

    Raises:
        ValueError: for no level, scale or ratio, one that is not positive, or a side of the image
            that is no multiple of the coarsest stride.
    """
    if not strides or not scales or not ratios:
        raise ValueError("need at least one stride, scale and ratio")
    if min(*strides, *scales, *ratios, base) <= 0:
        raise ValueError(f"need positive numbers, got {strides=}, {scales=}, {ratios=}, {base=}")
    if any(side % max(strides) for side in image_size):
        raise ValueError(f"sides {image_size} must be multiples of the stride {max(strides)}")
    return torch.cat(
        [_level(stride, image_size, scales, ratios, base * stride) for stride in strides]
    )


def locations(
    strides: Sequence[int], image_size: tuple[int, int]
) -> tuple[Float[Tensor, "locations 2"], Int64[Tensor, "locations"]]:
    """The middles of all cells, x and y in pixels, and the level of each, in the anchors' order."""
    points, level = [], []
    for number, stride in enumerate(strides):
        height, width = (side // stride for side in image_size)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        points.append((torch.stack([x, y], -1).flatten(0, 1) + 0.5) * stride)
        level.append(torch.full((height * width,), number))
    return torch.cat(points), torch.cat(level)


def _level(
    stride: int,
    image_size: tuple[int, int],
    scales: Sequence[float],
    ratios: Sequence[float],
    base: float,
) -> Float[Tensor, "cells anchors 4"]:
    centres, _ = locations([stride], image_size)
    root = torch.tensor(ratios).sqrt()
    sides = torch.stack([1 / root, root], -1)[None] * base * torch.tensor(scales)[:, None, None]
    half = sides.flatten(0, 1)[None] / 2
    return torch.cat([centres[:, None] - half, centres[:, None] + half], -1)
