"""The action videos of `emoji_video` as small grey arrays, their windows, and stills to slide over.

Each set is decoded and shrunk once a process.
"""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import load_emoji, load_emoji_shop, load_emoji_video, load_photos
from toolkit.data.compose import premultiply

SIDE, FRAMES, STRIDE = 40, 8, 2
"""Of what the network sees: pixels of a side, frames of a window, video frames from one to the
next."""
SOURCE = 72
"""Pixels of a side of the stills; a square of 58 is cut out of them at random, so that even the
fastest window does not begin at the border of the photograph."""
STARTS = (0, 11, 22, 33)
"""First frames of the four windows whose results are averaged; they lie symmetrically in time."""
SPAN = STRIDE * (FRAMES - 1) + 1
DILATION = 3
"""Pixels by which the object's mask grows before a peak is held against it."""


@dataclass(frozen=True)
class VideoSet:
    """Clips of one level and split; clips of one scene follow each other, one a class."""

    grey: UInt8[Tensor, "n 48 40 40"]
    stills: UInt8[Tensor, "n 12 72 72"]
    """Every fourth frame, larger."""
    label: Int64[Tensor, "n"]
    scene: Int64[Tensor, "n"]
    seen: Bool[Tensor, "n windows 112 112"]
    """Where the object is seen in any frame of the window, grown by `DILATION`."""
    grounds: UInt8[Tensor, "n windows 112 112"]
    """The middle frame of each window at full size."""


@cache
def load_videos(level: str, split: str, size: str) -> VideoSet:
    """Decode and shrink one split of `"easy"` or `"hard"`, see `load_emoji_video`."""
    clips = load_emoji_video(level, split, size)
    grey, stills, grounds, seen = [], [], [], []
    middles = [start + SPAN // 2 for start in STARTS]
    for frames, mask in zip(clips.frames, clips.mask, strict=True):
        luma = _luma(frames)
        grey.append(_shrink(luma, SIDE))
        stills.append(_shrink(luma[::4], SOURCE))
        grounds.append(luma[middles, 0].round().to(torch.uint8))
        seen.append(torch.stack([mask[window_times(start)].any(dim=0) for start in STARTS]))
    grown = F.max_pool2d(torch.stack(seen).float(), 2 * DILATION + 1, 1, DILATION) > 0
    return VideoSet(
        grey=torch.stack(grey),
        stills=torch.stack(stills),
        label=clips.label,
        scene=clips.scene,
        seen=grown,
        grounds=torch.stack(grounds),
    )


@cache
def photograph_stills(count: int = 320) -> UInt8[Tensor, "count 72 72"]:
    """Parts of training photographs; on every other one lies an emoji of a training concept.

    No video frame is among them. The draws are fixed: it is a data set.
    """
    generator = torch.Generator().manual_seed(20_210_403)
    photos = load_photos("train").images
    rows = load_emoji_shop(200).sprite
    emoji = premultiply(load_emoji().images[rows[torch.randperm(len(rows), generator=generator)]])
    stills = torch.empty(count, SOURCE, SOURCE, dtype=torch.uint8)
    for i in range(count):
        photo = _luma(photos[int(torch.randint(len(photos), (), generator=generator))][None])
        picture = _shrink(_random_square(photo, (112, 176), generator), SOURCE)[0].float()
        if i % 2:
            _lay(picture, emoji[i], generator)
        stills[i] = picture.round().clamp(0, 255).to(torch.uint8)
    return stills


def window_times(start: int, stride: int = STRIDE) -> Int64[Tensor, "frames"]:
    """The video frames of a window."""
    return start + stride * torch.arange(FRAMES)


def windows(
    grey: UInt8[Tensor, "n time side side"], start: Int64[Tensor, "n"], stride: int = STRIDE
) -> Float[Tensor, "n 1 frames side side"]:
    """One window of each clip, numbers from 0 to 1.

    Raises:
        ValueError: if a window does not fit into its clip.
    """
    times = start[:, None] + stride * torch.arange(FRAMES, device=start.device)
    if int(times.min()) < 0 or int(times.max()) >= grey.shape[1]:
        raise ValueError(f"a window of stride {stride} leaves the {grey.shape[1]} frames: {start}")
    return grey[torch.arange(len(grey), device=grey.device)[:, None], times][:, None] / 255


def all_windows(
    grey: UInt8[Tensor, "n time side side"],
) -> Float[Tensor, "nw 1 frames side side"]:
    """The four windows of evaluation, those of a clip beside each other."""
    times = torch.stack([window_times(start) for start in STARTS]).to(grey.device)
    return grey[:, times].flatten(0, 1)[:, None] / 255


def shuffled(
    clips: Float[Tensor, "n c t h w"], generator: torch.Generator
) -> Float[Tensor, "n c t h w"]:
    """The frames of each clip in an order of its own."""
    order = torch.rand(len(clips), clips.shape[2], generator=generator).argsort(dim=1)
    rows = torch.arange(len(clips))[:, None]
    return clips.transpose(1, 2)[rows, order.to(clips.device)].transpose(1, 2)


def frozen(clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n c t h w"]:
    """The middle frame all the time: frames 3 and 4 of 8 in turn, so that reversal changes it not.

    A window has an even number of frames, hence no single middle; their mean is shown.
    """
    half = clips.shape[2] // 2
    return clips[:, :, half - 1 : half + 1].mean(dim=2, keepdim=True).expand_as(clips)


def _luma(frames: UInt8[Tensor, "t 3 h w"]) -> Float[Tensor, "t 1 h w"]:
    weight = torch.tensor([0.299, 0.587, 0.114])
    return torch.einsum("tchw,c->thw", frames.float(), weight)[:, None]


def _shrink(frames: Float[Tensor, "t 1 h w"], side: int) -> UInt8[Tensor, "t side side"]:
    small = F.interpolate(frames, (side, side), mode="bilinear", antialias=True)[:, 0]
    return small.round().clamp(0, 255).to(torch.uint8)


def _random_square(
    photo: Tensor, sides: tuple[int, int], generator: torch.Generator
) -> Float[Tensor, "1 1 s s"]:
    side = int(torch.randint(sides[0], sides[1] + 1, (), generator=generator))
    room = torch.tensor(photo.shape[-2:]) - side + 1
    top, left = (torch.rand(2, generator=generator) * room).long().tolist()
    return photo[..., top : top + side, left : left + side]


def _lay(picture: Tensor, emoji: Float[Tensor, "4 h w"], generator: torch.Generator) -> None:
    """Lay an emoji of 14 to 42 pixels on a picture, somewhere."""
    side = int(torch.randint(14, 43, (), generator=generator))
    sprite = F.interpolate(emoji[None], (side, side), mode="bilinear", antialias=True)
    top, left = torch.randint(SOURCE - side + 1, (2,), generator=generator).tolist()
    place = picture[top : top + side, left : left + side]
    place.mul_(1 - sprite[0, 3]).add_(255 * _luma_of(sprite[0, :3]))


def _luma_of(colours: Float[Tensor, "3 h w"]) -> Float[Tensor, "h w"]:
    return torch.einsum("chw,c->hw", colours, torch.tensor([0.299, 0.587, 0.114]))
