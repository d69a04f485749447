"""Frames of made clips: a sprite that follows a path, before a photograph that a camera pans.

Positions are pixels of the frame, x to the right, y down; a pixel's middle lies at ½. The camera
moves the view over the photograph, so the ground drifts the other way; a sprite's path is given in
the frame and does not depend on the camera.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.data.compose import over, placement, premultiply, shrink, to_bytes, warp


def view(ground: Tensor, camera: Sequence[float], frames: int, size: int) -> Tensor:
    """What a panning camera sees of a wider ground, by bilinear interpolation.

    Args:
        ground: float [3, side, side], 0 to 1.
        camera: the view's velocity, x and y, in pixels a frame. The view lies in the middle of the
            ground half-way through the clip.
        frames: how many.
        size: side of the view in pixels.

    Returns:
        Float [frames, 3, size, size].

    Raises:
        ValueError: if the view would leave the ground.
    """
    side = ground.shape[-1]
    reach = max(abs(speed) for speed in camera) * (frames - 1) / 2
    if size + 2 * reach > side:
        raise ValueError(f"a view of {size} px that moves by ±{reach:g} leaves a ground of {side}")
    times = torch.arange(frames, dtype=torch.float64) - (frames - 1) / 2
    shift = times[:, None] * torch.tensor(camera, dtype=torch.float64) * 2 / side
    scale = torch.eye(2, dtype=torch.float64) * size / side
    theta = torch.cat([scale.expand(frames, 2, 2), shift[:, :, None]], 2).to(ground)
    grid = F.affine_grid(theta, [frames, 3, size, size], align_corners=False)
    return F.grid_sample(ground.expand(frames, -1, -1, -1), grid, align_corners=False)


def sprite_layers(sprite: np.ndarray, poses: np.ndarray, side: float, size: int) -> Tensor:
    """A sprite in every pose, each on a transparent frame.

    It is shrunk by area averages to its size in the frame, then turned and shifted by bicubic
    interpolation.

    Args:
        sprite: uint8 [rows, columns, 4], straight alpha.
        poses: float [frames, 4]: x and y of the middle, natural logarithm of the scale, angle in
            degrees (anticlockwise).
        side: of the sprite at scale 1, in pixels.
        size: side of a frame in pixels.

    Returns:
        Float [frames, 4, size, size], premultiplied.
    """
    whole = premultiply(torch.from_numpy(sprite).permute(2, 0, 1)[None])
    sides = torch.from_numpy(side * np.exp(poses[:, 2]))
    canvas = 2 * (int(sides.max()) // 2 + 2)
    if np.ptp(poses[:, 2]) == 0:
        small = shrink(whole, sides[:1], sides[:1], canvas).expand(len(poses), -1, -1, -1)
    else:
        small = shrink(whole.expand(len(poses), -1, -1, -1), sides, sides, canvas)
    where, angles = torch.from_numpy(poses[:, :2]), torch.from_numpy(poses[:, 3])
    theta = placement(where, angles, torch.ones_like(angles), (canvas, canvas), (size, size))
    return warp(small, theta, size, size)


def stack(layers: Sequence[Tensor], ground: Tensor) -> tuple[Tensor, Tensor]:
    """Lay layers over a ground, one after the other.

    Args:
        layers: each float [frames, 4, size, size], premultiplied; the first lies lowest.
        ground: float [frames, 3, size, size].

    Returns:
        The pictures, float [frames, 3, size, size], 0 to 1, and what is seen of each layer, bool
        [layers, frames, size, size]: where its alpha is over ½ and no higher layer's is.
    """
    masks = torch.stack([layer[:, 3] > 0.5 for layer in layers])
    for layer in layers:
        ground = over(layer, ground)
    hidden = torch.zeros_like(masks[0])
    for number in reversed(range(len(masks))):
        masks[number] &= ~hidden
        hidden |= masks[number]
    return ground, masks


def to_frames(pictures: Tensor) -> np.ndarray:
    """Bytes with channels last: float [frames, 3, H, W], 0 to 1 → uint8 [frames, H, W, 3]."""
    return to_bytes(pictures).permute(0, 2, 3, 1).contiguous().numpy()
