"""Pseudo motions: labelled clips made from still images, all classes of an image at once.

The order of the classes, the distances, the starts and the static mask follow the released
generator (`sslgenerators/mosi` in the TAdaConv repository).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, overload

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

Clips = Float[Tensor, "n channels time height width"]


@dataclass(frozen=True)
class MotionClass:
    """The label pool: signed speeds of the window on both axes, from −K to K.

    Decoupled, a clip moves along one axis at most: 4K + 1 classes, in the released order x-speeds
    −K…−1, 1…K, then y-speeds, then rest. Otherwise all (2K + 1)² pairs, x-speed first.

    Raises:
        ValueError: for K below 1.
    """

    K: int = 2
    decoupled: bool = True

    def __post_init__(self) -> None:
        if self.K < 1:
            raise ValueError(f"K must be at least 1, got {self.K}")

    @cached_property
    def speeds(self) -> Int64[Tensor, "classes 2"]:
        """The x- and the y-speed of each class."""
        every = torch.arange(-self.K, self.K + 1)
        if not self.decoupled:
            return torch.cartesian_prod(every, every)
        moving, rest = every[every != 0], torch.zeros(2 * self.K, dtype=torch.int64)
        across, down = torch.stack([moving, rest], dim=1), torch.stack([rest, moving], dim=1)
        return torch.cat([across, down, torch.zeros(1, 2, dtype=torch.int64)])

    @property
    def factors(self) -> Float[Tensor, "classes 2"]:
        """Speeds over K: the share of the travel that the window covers, with its sign."""
        return self.speeds / self.K

    @property
    def n(self) -> int:
        """How many classes."""
        return len(self.speeds)

    def index(self, sx: int, sy: int) -> int:
        """The label of a pair of speeds.

        Raises:
            ValueError: if there is no such class.
        """
        found = (self.speeds == torch.tensor([sx, sy])).all(dim=1).nonzero()
        if not len(found):
            raise ValueError(f"({sx}, {sy}) is no class of {self}")
        return int(found[0])

    def hflip(self, labels: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
        """Labels of the clips mirrored left and right: the x-speed changes its sign."""
        return self._signs(labels, -1, 1)

    def vflip(self, labels: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
        """Labels of the clips mirrored top and bottom."""
        return self._signs(labels, 1, -1)

    def time_reverse(self, labels: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
        """Labels of the clips shown backwards."""
        return self._signs(labels, -1, -1)

    def axis_labels(self, labels: Int64[Tensor, "n"]) -> Int64[Tensor, "n 2"]:
        """For separate heads: x-speed + K and y-speed + K, each one of 2K + 1."""
        return (self.speeds + self.K).to(labels.device)[labels]

    def _signs(self, labels: Tensor, sx: int, sy: int) -> Tensor:
        table = torch.tensor([self.index(sx * x, sy * y) for x, y in self.speeds.tolist()])
        return table.to(labels.device)[labels]


def pseudo_motion(
    images: Float[Tensor, "b channels height width"],
    factors: Float[Tensor, "n 2"],
    crop: int,
    frames: int,
    generator: torch.Generator,
    train: bool = True,
    jitter: tuple[float, float] = (1.0, 1.0),
    subpixel: bool = False,
) -> tuple[Float[Tensor, "bn channels frames crop crop"], Int64[Tensor, "bn"]]:
    """Slide a window over each image, once in every class: [image 0 class 0, image 0 class 1, …].

    The label names the motion of the *window*; what is seen moves the other way.

    Args:
        images: square, larger than the crop.
        factors: of x and y, in [−1, 1]: the share of the travel side − crop, `MotionClass.factors`.
        crop: side of a frame, in pixels.
        frames: of a clip; the window covers its distance in frames − 1 steps.
        generator: on the CPU; not used where `train` is false and there is no jitter.
        train: starts are uniform; otherwise the path lies in the middle of the image.
        jitter: the distance is multiplied by U(low, high), but never beyond the travel.
        subpixel: interpolate between pixels instead of cutting positions to integers.

    Returns:
        The clips and their labels, rows of `factors`.

    Raises:
        ValueError: if an image is not square or not larger than the crop, there are fewer than two
            frames, a factor lies outside [−1, 1] or the jitter is no range in (0, ∞).
    """
    _check_motion(images, factors, crop, frames, jitter)
    b, n, travel = len(images), len(factors), images.shape[-1] - crop
    share = factors.float().cpu().repeat(b, 1)  # [b n, 2]
    low, high = jitter
    if low != 1 or high != 1:
        most = torch.where(share == 0, high, (1 / share.abs()).clamp(max=high))
        least = most.clamp(max=low)
        share = share * (least + (most - least) * torch.rand(share.shape, generator=generator))
    path = window_path(share * travel, travel, frames, generator if train else None)
    clips = _crop(images, path.to(images.device), crop, subpixel)
    return clips, torch.arange(n, device=images.device).repeat(b)


def window_path(
    distance: Float[Tensor, "n 2"], travel: int, frames: int, generator: torch.Generator | None
) -> Float64[Tensor, "n frames 2"]:
    """Corners of the windows in each frame, x and y, before they are cut to integers.

    Starts are whole pixels, uniform in [max(0, −δ), min(D, D − δ)], or ⌊(D − δ)/2⌋ without a
    generator; from there a straight line to start + δ.
    """
    lowest = (-distance).clamp(min=0).trunc()
    highest = (travel - distance).clamp(max=travel).trunc()
    if generator is None:
        start = ((travel - distance) / 2).floor()
    else:
        draw = torch.rand(distance.shape, generator=generator)
        start = lowest + (draw * (highest - lowest + 1)).floor().clamp(max=highest - lowest)
    step = torch.arange(frames, dtype=torch.float64)[None, :, None]
    moved = distance[:, None].double() * step / (frames - 1)  # exact where it is a whole number
    return (start[:, None] + moved).clamp(0, travel)


@overload
def static_mask(
    clips: Clips,
    ratio: tuple[float, float] = ...,
    *,
    generator: torch.Generator,
    return_rect: Literal[False] = ...,
) -> Clips: ...


@overload
def static_mask(
    clips: Clips,
    ratio: tuple[float, float] = ...,
    *,
    generator: torch.Generator,
    return_rect: Literal[True],
) -> tuple[Clips, Int64[Tensor, "n 4"]]: ...


def static_mask(
    clips: Clips,
    ratio: tuple[float, float] = (0.3, 0.5),
    *,
    generator: torch.Generator,
    return_rect: bool = False,
) -> Clips | tuple[Clips, Int64[Tensor, "n 4"]]:
    """Freeze each clip outside a random rectangle at one of its frames.

    Args:
        clips: what moves.
        ratio: the rectangle's side over the frame's is uniform in this range, one draw a clip.
        generator: on the CPU.
        return_rect: also return, per clip, top, left, side and the frozen frame.

    Raises:
        ValueError: unless 0 < low ≤ high ≤ 1.
    """
    low, high = ratio
    if not 0 < low <= high <= 1:
        raise ValueError(f"ratio must be a range in (0, 1], got {ratio}")
    count, _, frames, height, width = clips.shape
    draw = torch.rand(4, count, generator=generator)
    share = low + (high - low) * draw[0]
    tall, wide = (share * height).long().clamp(min=1), (share * width).long().clamp(min=1)
    top = (draw[1] * (height - tall + 1)).long()
    left = (draw[2] * (width - wide + 1)).long()
    frozen = (draw[3] * frames).long()
    inside = rectangle(top, left, tall, wide, (height, width)).to(clips.device)
    still = clips[torch.arange(count, device=clips.device), :, frozen.to(clips.device)]
    masked = torch.where(inside[:, None, None].expand_as(clips), clips, still[:, :, None])
    rect = torch.stack([top, left, tall, frozen], dim=1)
    return (masked, rect) if return_rect else masked


def rectangle(
    top: Int64[Tensor, "n"],
    left: Int64[Tensor, "n"],
    tall: Int64[Tensor, "n"],
    wide: Int64[Tensor, "n"],
    size: tuple[int, int],
) -> Shaped[Tensor, "n height width"]:
    """True inside."""
    rows, columns = torch.arange(size[0]), torch.arange(size[1])
    down = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    across = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return down[:, :, None] & across[:, None, :]


def mirror(
    clips: Clips,
    labels: Int64[Tensor, "n"],
    classes: MotionClass,
    *,
    generator: torch.Generator,
    swap: bool = True,
    p: float = 0.5,
) -> tuple[Clips, Int64[Tensor, "n"]]:
    """Mirror whole clips left and right with probability p.

    Args:
        clips: to mirror.
        labels: their classes.
        classes: the label pool.
        generator: on the CPU.
        swap: change the labels with the clips. The released generator does not (False).
        p: probability.
    """
    chosen = (torch.rand(len(clips), generator=generator) < p).to(clips.device)
    across = torch.arange(clips.shape[-1], device=clips.device)
    column = torch.where(chosen[:, None], across.flip(0), across)  # what each pixel shows
    clips = clips.gather(-1, column[:, None, None, None].expand_as(clips))
    return clips, torch.where(chosen, classes.hflip(labels), labels) if swap else labels


def _crop(images: Tensor, path: Tensor, crop: int, subpixel: bool) -> Tensor:
    """Windows at all corners, in whole pixels or between them."""
    if not subpixel:
        return _gather(images, path.long(), crop)
    corner = path.floor()
    share = (path - corner)[:, None, :, None, None, :]  # [n, 1, T, 1, 1, xy]
    last = images.shape[-1] - crop
    wide = _gather(images, corner.long().clamp(max=last - 1), crop + 1)  # one pixel more
    share = torch.where(path[:, None, :, None, None] >= last, 1.0, share).to(images.dtype)
    right = torch.lerp(wide[..., :-1], wide[..., 1:], share[..., 0])
    return torch.lerp(right[..., :-1, :], right[..., 1:, :], share[..., 1])


def _gather(images: Tensor, corner: Tensor, crop: int) -> Tensor:
    """All windows in one `index_select`: each begins at an offset of its own in the flat pictures.

    A window is a strided view (a row lies `side` numbers behind the one above), so that a view of
    *all* offsets costs nothing, and the copy of the chosen ones is the whole work.
    """
    b, channels, side, _ = images.shape
    frames = corner.shape[1]
    plane = side * side * torch.arange(b * channels, device=corner.device).view(b, 1, channels, 1)
    offset = (corner[..., 1] * side + corner[..., 0]).view(b, -1, 1, frames)
    last = b * channels * side * side - (crop - 1) * (side + 1)
    windows = images.contiguous().as_strided((last, crop, crop), (1, side, 1))
    chosen = windows.index_select(0, (plane + offset).flatten())
    return chosen.view(len(corner), channels, frames, crop, crop)


def _check_motion(
    images: Tensor, factors: Tensor, crop: int, frames: int, jitter: tuple[float, float]
) -> None:
    height, width = images.shape[-2:]
    if height != width or height <= crop or crop < 1:
        raise ValueError(f"need square images larger than the crop {crop}, got {height}×{width}")
    if frames < 2:
        raise ValueError(f"a motion needs at least 2 frames, got {frames}")
    if factors.abs().max() > 1:
        raise ValueError(f"speed factors must lie in [-1, 1], got up to {factors.abs().max()}")
    if not 0 < jitter[0] <= jitter[1]:
        raise ValueError(f"jitter must be a range of positive factors, got {jitter}")
