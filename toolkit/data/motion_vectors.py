"""From a codec's list of block vectors to maps of motion.

For every block that an H.264 encoder predicts from another frame, it stores the way from the block
to its source, in quarters of a pixel. The motion of the picture is the opposite of that way.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

VECTOR = np.dtype(
    [
        ("source", "i4"),
        ("w", "u1"),
        ("h", "u1"),
        ("src_x", "i2"),
        ("src_y", "i2"),
        ("dst_x", "i2"),
        ("dst_y", "i2"),
        ("flags", "u8"),
        ("motion_x", "i4"),
        ("motion_y", "i4"),
        ("motion_scale", "u2"),
    ],
    align=True,
)
"""FFmpeg's `AVMotionVector`: `dst` is the middle of the block, `source` < 0 is an earlier frame."""


def rasterize_mvs(
    vectors: Sequence[np.ndarray], height: int, width: int, grid: int = 8
) -> tuple[Float32[Tensor, "time 2 rows columns"], Bool[Tensor, "time rows columns"]]:
    """Fill blocks with their motion, on a grid, for all frames of a clip at once.

    A cell takes the vector of the block that its middle lies in. The blocks of one frame must not
    overlap, as a codec's do not that predicts each from one frame.

    Args:
        vectors: of each frame, with the fields of `VECTOR`.
        height: of a frame in pixels.
        width: likewise.
        grid: side of a cell in pixels; 8 is the smallest block of H.264 that FFmpeg tells apart.

    Returns:
        Forward motion since the reference frame in pixels, x to the right, then y downwards, zero
        where no block was predicted; and where one was. There are ⌈height / grid⌉ rows.

    Raises:
        ValueError: if `grid` is not positive.
    """
    if grid < 1:
        raise ValueError(f"grid must be at least 1 pixel, got {grid}")
    rows, columns = -(-height // grid), -(-width // grid)
    mv = np.zeros((len(vectors) * rows * columns, 2), np.float32)
    valid = np.zeros(len(mv), bool)
    every = np.concatenate(vectors) if len(vectors) else np.empty(0, VECTOR)
    if len(every):
        frame = np.repeat(np.arange(len(vectors)), [len(some) for some in vectors])
        top, bottom = _cells(every["dst_y"], every["h"], rows, grid)
        left, right = _cells(every["dst_x"], every["w"], columns, grid)
        motion = _forward(every)
        for down in range(int((bottom - top).max())):
            for across in range(int((right - left).max())):
                here = np.flatnonzero((top + down < bottom) & (left + across < right))
                cell = (frame[here] * rows + top[here] + down) * columns + left[here] + across
                mv[cell], valid[cell] = motion[here], True
    shape = (len(vectors), rows, columns)
    maps = torch.from_numpy(mv.reshape(*shape, 2)).movedim(3, 1).contiguous()
    return maps, torch.from_numpy(valid.reshape(shape))


def _cells(
    middle: np.ndarray, size: np.ndarray, count: int, grid: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first cell whose middle lies in each block, and the one after the last."""
    start = middle.astype(np.int64) - size // 2
    edges = (-((grid - 2 * edge) // (2 * grid)) for edge in (start, start + size))
    first, end = (np.clip(edge, 0, count) for edge in edges)
    return first, end


def _forward(vectors: np.ndarray) -> np.ndarray:
    """From source to block, in pixels: float32 [n, 2]."""
    scale = vectors["motion_scale"].astype(np.float32)
    motion = np.empty((len(vectors), 2), np.float32)
    for axis, name in enumerate(("motion_x", "motion_y")):
        motion[:, axis] = (0 - vectors[name]) / scale
    return motion
