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

_MOTION, _NONE = 3, np.iinfo(np.int64).min
"""The word with both components of the motion, and what stands for "no vector"."""
CHUNK = 16
"""Frames at a time: their vectors stay in the processor's cache."""


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
    mv, valid = empty_maps(len(vectors), height, width, grid)
    for begin in range(0, len(vectors), CHUNK):
        some = slice(begin, begin + CHUNK)
        fill_maps(vectors[some], grid, mv[some], valid[some])
    return torch.from_numpy(mv), torch.from_numpy(valid)


def empty_maps(
    time: int, height: int, width: int, grid: int
) -> tuple[Float32[np.ndarray, "time 2 rows columns"], Bool[np.ndarray, "time rows columns"]]:
    """Maps without any motion. Raises as `rasterize_mvs`."""
    if grid < 1:
        raise ValueError(f"grid must be at least 1 pixel, got {grid}")
    rows, columns = -(-height // grid), -(-width // grid)
    return np.zeros((time, 2, rows, columns), np.float32), np.zeros((time, rows, columns), bool)


def fill_maps(
    vectors: Sequence[np.ndarray],
    grid: int,
    mv: Float32[np.ndarray, "time 2 rows columns"],
    valid: Bool[np.ndarray, "time rows columns"],
) -> None:
    """Write the vectors of some frames into their empty maps, see `rasterize_mvs`."""
    every = np.concatenate([_words(some) for some in vectors]).view(VECTOR)[:, 0]
    if not len(every):
        return
    frame = np.repeat(np.arange(len(vectors)), [len(some) for some in vectors])
    if grid == 8 and (place := _on_grid_of_eight(every, valid.shape[1:])):
        _fill_eights(every, frame, *place, mv, valid)
    else:
        _fill_blocks(every, frame, grid, mv, valid)


def chosen(vectors: np.ndarray, which: Bool[np.ndarray, "n"]) -> np.ndarray:
    """Some of the vectors."""
    return _words(vectors)[which].view(VECTOR)[:, 0]


def _words(vectors: np.ndarray) -> np.ndarray:
    """Vectors as rows of five plain words, which NumPy copies much faster than such records."""
    return np.ascontiguousarray(vectors).view(np.int64).reshape(-1, VECTOR.itemsize // 8)


def _on_grid_of_eight(
    vectors: np.ndarray, cells: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Row, column, and whether two rows, two columns; None unless H.264 could have made them."""
    place: list[np.ndarray] = []
    twice: list[np.ndarray] = []
    for middle, side, count in zip(("dst_y", "dst_x"), ("h", "w"), cells, strict=True):
        size = vectors[side].astype(np.int16)
        start, double = vectors[middle] - size // 2, size == 16
        if ((size != 8) & ~double).any() or (start & 7).any():
            return None
        if start.min() < 0 or start.max() >= 8 * count:
            return None
        place.append(start >> 3)
        twice.append(double)
    if (vectors["motion_scale"] != 4).any():
        return None
    return place[0], place[1], twice[0], twice[1]


def _fill_eights(
    vectors: np.ndarray,
    frame: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    tall: np.ndarray,
    wide: np.ndarray,
    mv: np.ndarray,
    valid: np.ndarray,
) -> None:
    """One write for both components, a row and a column of spare cells for what sticks out."""
    time, rows, columns = valid.shape
    cells = np.full((time, rows + 1, columns + 1), _NONE)
    flat = cells.reshape(-1)
    first = (frame * (rows + 1) + row) * (columns + 1) + column
    motion = np.ascontiguousarray(_words(vectors)[:, _MOTION])
    flat[first] = motion
    right, below = np.flatnonzero(wide), np.flatnonzero(tall)
    both = right[tall[right]]
    flat[first[right] + 1] = motion[right]
    flat[first[below] + columns + 1] = motion[below]
    flat[first[both] + columns + 2] = motion[both]
    shown = cells[:, :-1, :-1]
    np.not_equal(shown, _NONE, out=valid)
    steps = np.where(valid, shown, 0).view(np.int32).reshape(*valid.shape, 2)
    np.negative(steps, out=steps)
    mv[:] = steps.transpose(0, 3, 1, 2)
    mv *= np.float32(0.25)


def _fill_blocks(
    vectors: np.ndarray, frame: np.ndarray, grid: int, mv: np.ndarray, valid: np.ndarray
) -> None:
    """Blocks of any size and place, on any grid."""
    _, rows, columns = valid.shape
    top, bottom = _cells(vectors["dst_y"], vectors["h"], rows, grid)
    left, right = _cells(vectors["dst_x"], vectors["w"], columns, grid)
    motion = _forward(vectors)
    for down in range(int((bottom - top).max())):
        for across in range(int((right - left).max())):
            here = np.flatnonzero((top + down < bottom) & (left + across < right))
            cell = frame[here], top[here] + down, left[here] + across
            mv[cell[0], :, cell[1], cell[2]], valid[cell] = motion[here], True


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
