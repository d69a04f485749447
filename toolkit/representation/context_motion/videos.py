"""Compressed videos as small arrays: grey pictures, motion maps, and which frames are keyframes.

Each set is read once a process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from toolkit.data import CompressedClip, load_emoji_video, read_compressed
from toolkit.representation.mosi.clips import STARTS, window_times

STORED, CELLS = 56, 14
"""Pixels of a side of the stored pictures, cells of a side of the motion maps."""
FRAMES, WINDOW, MOTION, LAST = 48, 15, 8, 23
"""Frames of a video, of a clip's span, of a motion window; the last start of a clip."""
NEAR = 5
"""Frames between a clip and its keyframe, at most; paper 5."""


@dataclass(frozen=True)
class MotionVideos:
    """Videos of one level and split; those of one scene follow each other, one a class."""

    grey: UInt8[Tensor, "n 48 56 56"]
    mv: Float[Tensor, "n 48 2 14 14"]
    """Forward motion in pixels of the file a frame (112×112), keyframes filled by `fill_intra`."""
    label: Int64[Tensor, "n"]
    scene: Int64[Tensor, "n"]
    place: Int64[Tensor, "n"]
    """Which photograph is behind it."""
    keyframes: Int64[Tensor, "k"]
    """Frames that are I-frames, the same in all videos."""


@cache
def load_motion_videos(level: str, split: str, size: str) -> MotionVideos:
    """Read pictures and motion vectors of one split of `"easy"` or `"hard"`.

    Raises:
        ValueError: if the files have keyframes at different times.
    """
    clips = load_emoji_video(level, split, size, decode=False)
    grey, mv, kinds = [], [], set()
    for path in clips.path:
        read = check_clip(read_compressed(path, size=(STORED, STORED)), FRAMES)
        assert read.rgb is not None
        assert read.mv is not None
        grey.append(luma(read.rgb))
        mv.append(fill_intra(read.mv, read.pict_type))
        kinds.add(read.pict_type)
    if len(kinds) != 1:
        raise ValueError(f"all videos must have their keyframes at the same times: {level} {split}")
    return MotionVideos(
        grey=torch.stack(grey),
        mv=torch.stack(mv),
        label=clips.label,
        scene=clips.scene,
        place=clips.place,
        keyframes=torch.tensor([t for t, kind in enumerate(kinds.pop()) if kind == "I"]),
    )


def fill_intra(
    mv: Float[Tensor, "time 2 rows columns"], pict_type: Sequence[str]
) -> Float[Tensor, "time 2 rows columns"]:
    """Give I-frames, which have no vectors, the mean motion of the nearest frames that have.

    Otherwise every window would show where its keyframe is, by a flash of zeros.

    Args:
        mv: from `read_compressed`.
        pict_type: `"I"`, `"P"` or `"B"` of each frame.

    Raises:
        ValueError: if the lengths differ, or no frame has vectors.
    """
    if len(mv) != len(pict_type):
        raise ValueError(f"need one kind a frame, got {len(pict_type)} for {len(mv)} frames")
    moving = [t for t, kind in enumerate(pict_type) if kind != "I"]
    if not moving:
        raise ValueError("no frame has motion vectors: all are I-frames")
    filled = mv.clone()
    for time, kind in enumerate(pict_type):
        if kind == "I":
            before = [t for t in moving if t < time][-1:]
            after = [t for t in moving if t > time][:1]
            filled[time] = mv[before + after].mean(dim=0)
    return filled


def motion_windows(
    mv: Float[Tensor, "n time 2 rows columns"], start: Int64[Tensor, "n"]
) -> Float[Tensor, "n 8 2 rows columns"]:
    """Motion maps of 8 consecutive frames of each video.

    Raises:
        ValueError: if a window does not fit into its video.
    """
    times = start[:, None] + torch.arange(MOTION)
    if ((times < 0) | (times >= mv.shape[1])).any():
        raise ValueError(f"a motion window leaves the {mv.shape[1]} frames: {start.tolist()}")
    return mv[torch.arange(len(mv))[:, None], times]


def negative_starts(
    positive: Int64[Tensor, "n"], count: int, frames: int, generator: torch.Generator
) -> Int64[Tensor, "n count"]:
    """Starts of windows that share no frame with the positive one, uniform over what is left.

    Raises:
        ValueError: if there is no room for any.
    """
    starts = torch.arange(frames - MOTION + 1)
    free = (starts[None] - positive[:, None]).abs() >= MOTION
    if not free.any(dim=1).all():
        raise ValueError(f"no window of {MOTION} frames is free in {frames}: {positive.tolist()}")
    draw = torch.rand(len(positive), count, len(starts), generator=generator)
    return (draw * free[:, None]).argmax(dim=2)


def keyframe_near(
    start: Int64[Tensor, "n"], keyframes: Int64[Tensor, "k"], generator: torch.Generator
) -> Int64[Tensor, "n"]:
    """A random I-frame within a clip or at most `NEAR` frames from it.

    Raises:
        ValueError: if a clip has none: a video with one keyframe serves its beginning only.
    """
    first, last = start[:, None] - NEAR, start[:, None] + WINDOW - 1 + NEAR
    near = (keyframes >= first) & (keyframes <= last)
    if not near.any(dim=1).all():
        lonely = start[~near.any(dim=1)].tolist()
        raise ValueError(
            f"no keyframe within {NEAR} frames of the clips at {lonely}; "
            f"the video's keyframes are {keyframes.tolist()}"
        )
    draw = torch.rand(near.shape, generator=generator)
    return keyframes[(draw * near).argmax(dim=1)]


def clip_frames(
    grey: UInt8[Tensor, "n time h w"], start: Int64[Tensor, "n"]
) -> UInt8[Tensor, "n 8 h w"]:
    """Eight pictures of each video, two video frames apart.

    Raises:
        ValueError: if a clip does not fit into its video.
    """
    times = start[:, None] + window_times(0)
    if int(times.min()) < 0 or int(times.max()) >= grey.shape[1]:
        raise ValueError(f"a clip of {WINDOW} frames leaves the {grey.shape[1]}: {start.tolist()}")
    return grey[torch.arange(len(grey))[:, None], times]


def evaluation_starts(n: int) -> Int64[Tensor, "n4"]:
    """The four windows of each of n videos, those of a video beside each other."""
    return torch.tensor(STARTS).repeat(n)


def luma(rgb: UInt8[Tensor, "time 3 h w"]) -> UInt8[Tensor, "time h w"]:
    """Grey values as in the file."""
    weight = torch.tensor([0.299, 0.587, 0.114])
    return torch.einsum("tchw,c->thw", rgb.float(), weight).round().to(torch.uint8)


def exact_motion(
    clips_pose: Float[Tensor, "time 4"],
    camera: Float[Tensor, "2"],
    mask: Bool[Tensor, "time h w"],
) -> Float[Tensor, "time 2 h w"]:
    """True forward motion of every pixel since the frame before: the object's, else the ground's.

    A point p of the object in frame t was at x + e^(-Δs) R(-Δθ) (p - x') before, with x' and x the
    object's middle now and then. The first frame is zero.

    Args:
        clips_pose: x, y (pixels), log-scale, angle (degrees anticlockwise), see `load_emoji_video`.
        camera: pixels a frame; the ground moves by its negative.
        mask: where the object is seen.
    """
    time, height, width = mask.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    points = torch.stack([x, y])  # [2, h, w]
    truth = -camera[:, None, None].expand(time, 2, height, width).clone()
    for t in range(1, time):
        now, before = clips_pose[t], clips_pose[t - 1]
        shrink, turn = torch.exp(before[2] - now[2]), torch.deg2rad(before[3] - now[3])
        cos, sin = torch.cos(turn), torch.sin(turn)
        rotation = torch.stack([torch.stack([cos, sin]), torch.stack([-sin, cos])])  # y is down
        away = points - now[:2, None, None]
        source = before[:2, None, None] + shrink * torch.einsum("ij,jhw->ihw", rotation, away)
        truth[t] = torch.where(mask[t], points - source, truth[t])
    truth[0] = 0
    return truth


def check_clip(clip: CompressedClip, frames: int) -> CompressedClip:
    """Refuse a compressed clip that is too short, or that has no motion vectors.

    Raises:
        ValueError: if it has fewer frames than needed, or all its blocks are intra-coded.
    """
    if len(clip.pict_type) < frames:
        raise ValueError(f"need {frames} frames or more, the video has {len(clip.pict_type)}")
    if clip.valid is None or not clip.valid.any():
        raise ValueError("the video has no motion vectors: all of its blocks are intra-coded")
    return clip
