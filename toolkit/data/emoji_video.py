"""Emoji in motion: compressed clips with the exact mask and the exact motion of what moves.

`easy` and `hard` show one sprite that moves in one of 8 or 12 ways before a photograph that the
camera pans. Every scene is shown in all classes, and classes come in pairs of which one is the
other with its frames in reverse order: a picture tells nothing of the class. The sets of twins
show a target among identical sprites: nothing but where it was tells it from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from toolkit.data.store import locate
from toolkit.data.video import decode as decode_mp4

EASY_MOTIONS = ("right", "left", "down", "up", "cw", "ccw", "grow", "shrink")
"""Classes of `easy`; the place in this tuple is the label. Classes 2 k and 2 k + 1 are a pair."""
HARD_MOTIONS = (*EASY_MOTIONS, "spin+", "spin-", "shake-h", "shake-v")
"""Classes of `hard`. The two shakes are no pair: reversed, they are shakes again."""
TWIN_SETS = {
    "tune": "val",
    "judge": "test",
    "alone": "test",
    "teleport": "test",
    "train": "train",
    "long": "test",
}
"""The sets of twins, with the split of their photographs."""
VIDEO_SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class Clips:
    """Clips of one set, with all that is to be known about them."""

    frames: UInt8[Tensor, "n shown 3 height width"]
    """As many as there are moments in the clip; none, where they were not asked for."""
    mask: Bool[Tensor, "n time height width"]
    """Where the target is seen: its alpha is over ½ and no other sprite lies above it."""
    distractor: Bool[Tensor, "n time height width"]
    """Where any of its twins is seen."""
    label: Int64[Tensor, "n"]
    """The class: a place in `EASY_MOTIONS` or `HARD_MOTIONS`. Of twins: how many distractors."""
    place: Int64[Tensor, "n"]
    """The tile behind it: a row of `load_photos()`. No photograph is in two splits."""
    scene: Int64[Tensor, "n"]
    """Clips of one scene differ in their motion only; in it, they follow the classes."""
    pose: Float32[Tensor, "n time 4"]
    """Of the target: x, y of the sprite's middle in pixels of the frame (a pixel's middle lies at
    ½), natural logarithm of its scale, angle in degrees, anticlockwise. A point p of the target
    goes to xₜ₊₁ + e^Δs R(Δθ)(p − xₜ)."""
    camera: Float32[Tensor, "n 2"]
    """Velocity of the view over the photograph, x, y in pixels a frame: the background moves by
    its negative. The pose is that in the frame and has nothing to add."""
    path: tuple[Path, ...]
    """The MP4 files: 25 frames a second, keyframe every 12, no B-frames, one reference."""
    concept: Int64[Tensor, "n"]
    """What is shown: a product of `load_emoji_shop()`; 0–199 in training, 200–299 else."""
    vendor: Int64[Tensor, "n"]
    """Who drew it: an index into `EMOJI_VENDORS`."""


def load_emoji_video(
    name: str, split: str | None = None, size: str = "small", decode: bool = True
) -> Clips:
    """Clips of one set.

    Sizes are separate sets, not prefixes of one another: small has 25 + 15 scenes (train + test) of
    `easy` and of `hard`, medium 50 + 25, large 75 + 38, times 8 or 12 classes.

    Args:
        name: `"easy"` or `"hard"` (48 frames, 112×112), or a set of twins (64×64): `"tune"`,
            `"judge"`, `"alone"`, `"teleport"`, `"train"` (8 frames) or `"long"` (24).
        split: `"train"` or `"test"`; a set of twins has one split only, which may be left out.
        size: `"small"`, `"medium"` or `"large"`; sets of twins are `"small"`.
        decode: whether frames are those of the compressed files. If not, twins come as they were
            before compression, and `easy` and `hard` with no frames: `[n, 0, 3, 112, 112]`.

    Raises:
        ValueError: for an unknown name, split or size.
        DataMissing: if the set is not prepared; the message names the command.
        DataError: if a file is damaged.
    """
    _check(name, split, size)
    twins = name in TWIN_SETS
    parts = (name,) if twins else (name, str(split))
    folder = locate("emoji_video", *parts, size="" if size == "small" else size)
    with np.load(folder / "truth.npz", allow_pickle=False) as file:
        truth = {column: file[column] for column in file.files}
    paths = tuple(folder / path for path in truth["path"].tolist())
    side, time = (64 if twins else 112), truth["pose"].shape[1]
    shape = (len(paths), time, side, side)
    numbers = ("label", "place", "scene", "concept", "vendor")
    return Clips(
        frames=_frames(folder, paths, shape, decode),
        mask=_bits(truth["mask"], shape),
        distractor=_bits(truth["distractor"], shape) if twins else _nowhere(shape),
        pose=torch.from_numpy(truth["pose"]),
        camera=torch.from_numpy(truth["camera"]),
        path=paths,
        **{column: torch.from_numpy(truth[column].astype(np.int64)) for column in numbers},
    )


def _frames(
    folder: Path, paths: Sequence[Path], shape: tuple[int, int, int, int], decode: bool
) -> Tensor:
    count, _, height, width = shape
    if decode:
        frames = torch.empty((*shape, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
        for row, path in zip(frames, paths, strict=True):
            row.copy_(decode_mp4(path))
        return frames
    raw = folder / "frames.npy"
    if not raw.exists():
        return torch.empty((count, 0, 3, height, width), dtype=torch.uint8)
    mapped = np.load(raw, mmap_mode="c", allow_pickle=False)
    return torch.from_numpy(mapped).permute(0, 1, 4, 2, 3)


def _bits(packed: np.ndarray, shape: tuple[int, int, int, int]) -> Tensor:
    flat = np.unpackbits(packed, axis=1, count=shape[1] * shape[2] * shape[3])
    return torch.from_numpy(flat.reshape(shape).view(bool))


def _nowhere(shape: tuple[int, int, int, int]) -> Tensor:
    return torch.zeros((), dtype=torch.bool).expand(shape)  # one byte, however many clips


def _check(name: str, split: str | None, size: str) -> None:
    if name not in ("easy", "hard", *TWIN_SETS):
        raise ValueError(f"name must be easy, hard, {', '.join(TWIN_SETS)}; got {name!r}")
    allowed = (TWIN_SETS[name], None) if name in TWIN_SETS else ("train", "test")
    if split not in allowed:
        known = " or ".join(repr(one) for one in allowed if one)
        raise ValueError(f"the split of {name!r} must be {known}, got {split!r}")
    sizes = VIDEO_SIZES[:1] if name in TWIN_SETS else VIDEO_SIZES
    if size not in sizes:
        raise ValueError(f"the size of {name!r} must be one of {', '.join(sizes)}; got {size!r}")
