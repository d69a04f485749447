"""What a codec's motion vectors are worth: how fast they are read, and how wrong they are."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import (
    Clips,
    encode_h264,
    load_clips,
    load_emoji_video,
    read_compressed,
)
from toolkit.representation.context_motion.videos import exact_motion, luma
from toolkit.runtime import race

CELL = 8
"""Pixels of a side of a cell of the motion maps."""
MARGIN = 2
"""Pixels between what counts as object or ground and the object's border."""


def reading_speeds(name: str, rounds: int = 3, pairs: int = 3) -> dict[str, list[float]]:
    """Frames a second on one real clip: decoding, reading vectors, optical flow; a value a round.

    `decode`: without pictures or vectors; `vectors`: motion maps; `rgb`: pictures; `farneback` and
    `dis` (its ultrafast preset): flow between decoded grey pictures, decoding not counted.

    Args:
        name: of a clip, see `load_clips`.
        rounds: of the race.
        pairs: frames whose flow is computed in a round.
    """
    clip = load_clips()[name]
    content, count = clip.path.read_bytes(), clip.frames
    shown = read_compressed(content, mvs=False).rgb
    assert shown is not None
    grey = luma(shown[count // 2 : count // 2 + pairs + 1]).numpy()
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    fns: dict[str, tuple[int, Callable[[], object]]] = {
        "decode": (count, lambda: read_compressed(content, rgb=False, mvs=False)),
        "vectors": (count, lambda: read_compressed(content, rgb=False, refs="drop-future")),
        "rgb": (count, lambda: read_compressed(content, mvs=False)),
        "farneback": (pairs, lambda: [farneback(a, b) for a, b in _pairs(grey)]),
        "dis": (pairs, lambda: [dis.calc(a, b, None) for a, b in _pairs(grey)]),  # type: ignore[call-overload]
    }
    cv2.setNumThreads(1)
    times = race(rounds, 1, **{label: fn for label, (_, fn) in fns.items()})
    return {label: (frames / times[label]).tolist() for label, (frames, _) in fns.items()}


def farneback(
    before: UInt8[np.ndarray, "h w"], now: UInt8[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w 2"]:
    """Farneback's optical flow with the settings of OpenCV's documentation."""
    return cv2.calcOpticalFlowFarneback(before, now, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]


def vector_errors(clips: Clips, rows: Tensor, **options: Any) -> dict[str, Float[Tensor, "videos"]]:
    """Mean L1 distance of vectors from the exact motion, a value a video, in pixels a frame.

    `object`, `ground`: of the file's vectors; `object_zero`, `ground_zero`: of predicting no motion
    at all. A cell counts where its 8×8 pixels, and two more around them, show the object (or none
    of it) now and in the frame before. Frames are P-frames.

    Args:
        clips: from `load_emoji_video(…, decode=False)`.
        rows: the videos.
        options: of `encode_h264`, to decode and encode each video anew; none: the file as it is.
    """
    found: dict[str, list[Tensor]] = {}
    for row in rows.tolist():
        source: Any = clips.path[row]
        if options:
            pictures = read_compressed(clips.path[row], mvs=False).rgb
            assert pictures is not None
            source = encode_h264(pictures.permute(0, 2, 3, 1).numpy(), **options)
        read = read_compressed(source, rgb=False)
        assert read.mv is not None
        truth = F.avg_pool2d(
            exact_motion(clips.pose[row], clips.camera[row], clips.mask[row]), CELL
        )
        predicted = torch.tensor([kind == "P" for kind in read.pict_type])
        for name, where in regions(clips.mask[row]).items():
            chosen = where & predicted[:, None, None]
            if not chosen.any():
                continue  # a thin sprite fills no cell
            for key, guess in ((name, read.mv), (f"{name}_zero", torch.zeros_like(read.mv))):
                error = (guess - truth).abs().sum(dim=1) / 2  # mean of the two components
                found.setdefault(key, []).append(error[chosen].mean())
    return {name: torch.stack(values) for name, values in found.items()}


def regions(mask: Bool[Tensor, "time h w"]) -> dict[str, Bool[Tensor, "time rows columns"]]:
    """Cells inside the object and cells of the ground, away from its border, now and before."""
    seen = mask.float()[:, None]
    grown = F.max_pool2d(seen, 2 * MARGIN + 1, 1, MARGIN)
    eaten = 1 - F.max_pool2d(1 - seen, 2 * MARGIN + 1, 1, MARGIN)
    inside = (F.avg_pool2d(eaten, CELL) == 1)[:, 0]
    outside = (F.avg_pool2d(grown, CELL) == 0)[:, 0]
    both = {"object": inside, "ground": outside}
    return {name: here & torch.cat([here[:1], here[:-1]]) for name, here in both.items()}


def error_study(size: str, count: int = 40) -> dict[str, Float[Tensor, "videos"]]:
    """`vector_errors` of test videos as they are, and of the `ultrafast` preset.

    Videos are those of every class in turn, one a scene first.
    """
    clips = load_emoji_video("easy", "test", size, decode=False)
    classes = int(clips.label.max()) + 1
    scenes = len(clips.label) // classes
    rows = torch.tensor(
        [(i % scenes) * classes + (i + i // scenes) % classes for i in range(count)]
    )
    normal = vector_errors(clips, rows)
    fast = vector_errors(clips, rows, preset="ultrafast")
    return normal | {f"ultrafast_{name}": value for name, value in fast.items()}


def _pairs(grey: UInt8[np.ndarray, "t h w"]) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(pairwise(grey))
