"""A matcher that learns nothing: patches of colour as keys, the soft mask as the value.

It asks what position is worth to a read, without any training that could hide it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from toolkit.scenes.lcm.clips import TwinClips
from toolkit.scenes.lcm.metrics import area_matched, davis_f, davis_j, leak
from toolkit.scenes.lcm.network import check_first_masks
from toolkit.scenes.lcm.reads import sine_position, window

GRID = 16
"""Cells on a side of the grid that is matched."""
TEMPERATURE = 0.05
CODE = 64
"""Dimensions of the position code, of unit norm."""


@dataclass(frozen=True)
class Read:
    """How the matcher reads its memory.

    Attributes:
        kind: `"global"`: all earlier frames by appearance (STM). `"position"`: the previous frame,
            with α e_i · e_j in the logit. `"window"`: the previous frame, only cells at most
            `strength` rows and columns away. `"kernel"`: all earlier frames; each memory cell
            speaks around the query cell that it fits best, within a Gaussian of `strength` cells
            (Seong et al. 2020). `"copy"`: the first mask, for ever.
        strength: α, the radius, or the Gaussian's σ.
    """

    kind: str
    strength: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be read."""
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if self.strength < 0 or (self.kind == "kernel" and self.strength == 0):
            raise ValueError(f"strength of {self.kind} cannot be {self.strength}")


KINDS = ("global", "position", "window", "kernel", "copy")


def patch_keys(
    frames: Float[Tensor, "*batch 3 height width"],
) -> Float[Tensor, "*batch cells 12"]:
    """Key of each cell: its 2×2 mean colours, centred over the frame, of unit norm."""
    images = frames.reshape(-1, *frames.shape[-3:])
    patches = F.pixel_unshuffle(F.adaptive_avg_pool2d(images, 2 * GRID), 2).flatten(2)
    keys = F.normalize(patches - patches.mean(dim=2, keepdim=True), dim=1).transpose(1, 2)
    return keys.reshape(*frames.shape[:-3], GRID * GRID, 12)


def position_logits() -> Float[Tensor, "cells cells"]:
    """e_i · e_j of all pairs of cells; 1 on the diagonal."""
    code = F.normalize(sine_position(CODE, GRID, GRID).flatten(1), dim=0)
    return code.T @ code


def training_free_propagate(
    frames: Float[Tensor, "batch time 3 height width"],
    mask0: Bool[Tensor, "_ _ _"],
    reads: list[Read],
    every: int | None = 1,
) -> Float[Tensor, "reads batch time rows columns"]:
    """Soft masks of every frame, on the grid of 16×16 cells, for each way to read.

    Predicted soft masks are fed back as they are. Ways that read the previous frame only differ
    in what is added to the logit and run as one batch.

    Args:
        frames: in 0…1.
        mask0: of the target in frame 0.
        reads: the ways.
        every: memory of the global and kernel reads holds the first frame, the previous one and
            every n-th; None: no others.

    Raises:
        ValueError: for no frame, an empty first mask, masks that do not lie on the frames, or
            `every` below 1.
    """
    if every is not None and every < 1:
        raise ValueError(f"every must be at least 1 or None, got {every}")
    check_first_masks(frames, mask0[:, None].float(), stride=GRID)
    keys = patch_keys(frames)
    first = F.adaptive_avg_pool2d(mask0[:, None].float(), GRID).flatten(1)
    results: list[Tensor] = [first] * len(reads)
    near = [i for i, read in enumerate(reads) if read.kind in ("position", "window")]
    if near:
        bias = torch.stack([_bias(reads[i]).to(frames) for i in near])
        for i, soft in zip(near, _by_previous(keys, first, bias), strict=True):
            results[i] = soft
    for i, read in enumerate(reads):
        if read.kind in ("global", "kernel"):
            results[i] = _by_all(keys, first, read, every)
        elif read.kind == "copy":
            results[i] = first[:, None].expand(-1, frames.shape[1], -1)
    return torch.stack(results).unflatten(-1, (GRID, GRID))


def memory_frames(t: int, every: int | None) -> list[int]:
    """What frame t reads: the first frame, every n-th, the previous one."""
    return [i for i in range(t) if i in (0, t - 1) or (every is not None and i % every == 0)]


def enlarge(
    soft: Float[Tensor, "*batch rows columns"], size: tuple[int, int]
) -> Float[Tensor, "*batch height width"]:
    """Bilinear, to pixels of the frame."""
    flat = soft.reshape(-1, 1, *soft.shape[-2:])
    large = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return large.reshape(*soft.shape[:-2], *size)


@dataclass(frozen=True)
class Scores:
    """Scores of each frame of each clip; NaN where a frame does not count."""

    j: Float[Tensor, "*batch time"]
    f: Float[Tensor, "*batch time"]
    leak: Float[Tensor, "*batch time"]
    empty: Float[Tensor, "*batch time"]

    def mean(self, name: str, frames: slice = slice(None)) -> Float[Tensor, "*batch"]:
        """Mean over counted frames of `"j"`, `"f"`, `"jf"`, `"leak"` or `"empty"`, a clip each."""
        values = (self.j + self.f) / 2 if name == "jf" else getattr(self, name)
        return values[..., frames].nanmean(dim=-1)


def score(
    soft: Float[Tensor, "*batch clips time height width"], clips: TwinClips, matched: bool = True
) -> Scores:
    """J, F and leak of soft masks in pixels.

    Args:
        soft: of the target.
        clips: the truth.
        matched: whether a mask is as many of its highest pixels as the first mask has; otherwise
            all above ½. Leak is NaN where a mask is empty.
    """
    truth, twins = (x.expand(soft.shape) for x in (clips.mask, clips.distractor))
    if matched:
        area = clips.mask[:, 0].flatten(1).sum(dim=1)[:, None]
        pred = area_matched(soft, area.expand(soft.shape[:-2]))
    else:
        pred = soft > 0.5
    counted = clips.counted.expand(soft.shape[:-2])

    def only(x: Tensor) -> Tensor:
        return torch.where(counted, x.float(), torch.nan)

    nothing = ~pred.flatten(-2).any(dim=-1)
    return Scores(
        only(davis_j(truth, pred)),
        only(davis_f(truth, pred)),
        only(leak(pred, twins)),
        only(nothing),
    )


def _bias(read: Read) -> Float[Tensor, "cells cells"]:
    """What is added to the logit of a memory cell (row) and a query cell (column)."""
    if read.kind == "position":
        return read.strength * position_logits()
    near = window(GRID, GRID, int(read.strength))
    return torch.zeros(near.shape).masked_fill(~near, -torch.inf)


def _by_previous(
    keys: Float[Tensor, "batch time cells 12"],
    first: Float[Tensor, "batch cells"],
    bias: Float[Tensor, "reads cells cells"],
) -> Float[Tensor, "reads batch time cells"]:
    masks = [first.expand(len(bias), *first.shape)]
    for t in range(1, keys.shape[1]):
        logits = keys[:, t - 1] @ keys[:, t].transpose(1, 2) / TEMPERATURE
        weights = (logits + bias[:, None]).softmax(dim=2)
        masks.append((masks[-1][:, :, None] @ weights)[:, :, 0])
    return torch.stack(masks, dim=2)


def _by_all(
    keys: Float[Tensor, "batch time cells 12"],
    first: Float[Tensor, "batch cells"],
    read: Read,
    every: int | None,
) -> Float[Tensor, "batch time cells"]:
    masks = [first]
    for t in range(1, keys.shape[1]):
        kept = memory_frames(t, every)
        memory = keys[:, kept].flatten(1, 2)
        values = torch.cat([masks[i] for i in kept], dim=1)
        logits = memory @ keys[:, t].transpose(1, 2) / TEMPERATURE
        if read.kind == "kernel":
            logits = logits + _around_best(logits, read.strength)
        masks.append((values[:, None] @ logits.softmax(dim=1))[:, 0])
    return torch.stack(masks, dim=1)


def _around_best(
    logits: Float[Tensor, "batch memory query"], sigma: float
) -> Float[Tensor, "batch memory query"]:
    """Log of a Gaussian around the query cell that each memory cell fits best."""
    rows = torch.arange(GRID).repeat_interleave(GRID)
    places = torch.stack([rows, torch.arange(GRID).repeat(GRID)], dim=1).to(logits)
    distance = torch.cdist(places, places).square()
    return -distance[logits.argmax(dim=2)] / (2 * sigma**2)
