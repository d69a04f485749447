"""The twins' clips as floats, and random short training clips cut from them."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from toolkit.data import load_emoji_video

VISIBLE = 0.2
"""A frame counts if at least this share of the first mask's area is still seen."""


@dataclass(frozen=True)
class TwinClips:
    """Clips of one set: pictures in 0…1, where the target is, where its twins are."""

    frames: Float[Tensor, "clips time 3 height width"]
    mask: Bool[Tensor, "clips time height width"]
    distractor: Bool[Tensor, "clips time height width"]
    distractors: Int64[Tensor, "clips"]

    @cached_property
    def area(self) -> Int64[Tensor, "clips time"]:
        """Pixels in which the target is seen."""
        return self.mask.flatten(2).sum(dim=2)

    @property
    def counted(self) -> Bool[Tensor, "clips time"]:
        """Which frames are scored: all but the first, where the target is seen well enough."""
        seen = self.area >= VISIBLE * self.area[:, :1]
        seen[:, 0] = False
        return seen

    def select(self, rows: slice | Shaped[Tensor, "_"]) -> "TwinClips":
        """Some of the clips."""
        parts = (self.frames, self.mask, self.distractor, self.distractors)
        return TwinClips(*(part[rows] for part in parts))

    def to(self, device: torch.device) -> "TwinClips":
        """The same clips on a device."""
        parts = (self.frames, self.mask, self.distractor, self.distractors)
        return TwinClips(*(part.to(device) for part in parts))


@lru_cache(maxsize=8)
def load_twins(name: str, decode: bool = False) -> TwinClips:
    """A set of twins: `tune`, `judge`, `alone`, `teleport`, `train` or `long`.

    Args:
        name: of the set.
        decode: whether frames come from the compressed files; else as they were before.
    """
    clips = load_emoji_video(name, decode=decode)
    frames = clips.frames.contiguous().float() / 255
    return TwinClips(frames, clips.mask, clips.distractor, clips.label)


def training_clips(
    clips: TwinClips,
    batch: int,
    frames: int,
    max_skip: int,
    generator: torch.Generator,
    least: int = 20,
    strangers: float = 0.5,
) -> tuple[Float[Tensor, "batch frames 3 height width"], Bool[Tensor, "batch frames h w"]]:
    """Short clips to train on: ordered frames, up to `max_skip` left out between two, augmented.

    Each is mirrored, transposed and played backwards with probability ½, its colour channels are
    permuted, its brightness and contrast drawn anew: how to match must not depend on looks.

    Args:
        clips: to cut from.
        batch: how many.
        frames: in each.
        max_skip: largest number of frames left out between two; fewer where the clip is too short.
        generator: on the CPU.
        least: pixels of the target in the first frame.
        strangers: share of the clips into which the sprites of another clip are pasted, before
            the target: not everything that moves is one.

    Raises:
        ValueError: if clips are too short, or no target is large enough.
    """
    length = clips.mask.shape[1]
    if frames > length:
        raise ValueError(f"cannot cut {frames} frames out of {length}")
    max_skip = min(max_skip, (length - frames) // max(1, frames - 1))

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch,), generator=generator)

    gaps = torch.stack([1 + draw(max_skip + 1) for _ in range(frames - 1)], dim=1)
    times = torch.cat([torch.zeros(batch, 1, dtype=torch.int64), gaps.cumsum(dim=1)], dim=1)
    room = length - times[:, -1]
    times += (torch.rand(batch, generator=generator) * room).long()[:, None]
    backwards = draw(2).bool()
    times = torch.where(backwards[:, None], times.flip(1), times)
    area = clips.area
    rows = torch.stack([_row(area[:, t] >= least, generator) for t in times[:, 0].tolist()])
    pictures, masks = (x[rows[:, None], times] for x in (clips.frames, clips.mask))
    others = (rows + 1 + draw(max(1, len(clips.mask) - 1))) % len(clips.mask)
    wanted = torch.rand(batch, generator=generator) < strangers
    pictures, masks = _paste(clips, others, times, wanted, pictures, masks, least)
    return _augment(pictures, masks, generator)


def _paste(
    clips: TwinClips,
    rows: Int64[Tensor, "batch"],
    times: Int64[Tensor, "batch frames"],
    wanted: Bool[Tensor, "batch"],
    pictures: Float[Tensor, "batch frames 3 height width"],
    masks: Bool[Tensor, "batch frames height width"],
    least: int,
) -> tuple[Tensor, Tensor]:
    """Paste the sprites of other clips, unless they would hide the first target."""
    foreign, own, twins = (
        x[rows[:, None], times] for x in (clips.frames, clips.mask, clips.distractor)
    )
    over = own | twins
    left = (masks[:, 0] & ~over[:, 0]).flatten(1).sum(dim=1)
    over &= (wanted.to(left.device) & (left >= least))[:, None, None, None]
    return torch.where(over[:, :, None], foreign, pictures), masks & ~over


def _row(allowed: Bool[Tensor, "clips"], generator: torch.Generator) -> Int64[Tensor, ""]:
    known = allowed.nonzero()[:, 0].cpu()
    if not len(known):
        raise ValueError("no clip shows a target that is large enough")
    return known[torch.randint(len(known), (), generator=generator)]


def _augment(pictures: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    batch, device = len(pictures), pictures.device

    def coin() -> Tensor:
        return (torch.rand(batch, generator=generator) < 0.5).to(device)[:, None, None, None]

    for change in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        heads = coin()
        pictures = torch.where(heads[:, None], change(pictures), pictures)
        masks = torch.where(heads, change(masks), masks)
    order = torch.rand(batch, 3, generator=generator).argsort(dim=1).to(device)
    pictures = pictures.gather(2, order[:, None, :, None, None].expand_as(pictures))
    gain, shift = (torch.rand(2, batch, 1, 1, 1, 1, generator=generator) - 0.5).to(device)
    return (0.5 + (pictures - 0.5) * (1 + 0.6 * gain) + 0.3 * shift).clamp(0, 1), masks
