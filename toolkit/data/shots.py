"""Real shots: a sprite photographed on somebody's table, as a shopper would send it.

A shot is first drawn, number by number (`draw_shot`), then rendered together with others
(`render_shots`), so that any one of them can be made again alone.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor

from toolkit.data.compose import (
    average,
    boxes_of,
    over,
    paste,
    placement,
    premultiply,
    shrink,
    warp,
)

FRAME, CROP = 64, 48
"""Sides of a shot and of its crop, in pixels."""

FADE = 0.8
"""How far the background goes towards white in the crop."""
MARGIN = 0.1
"""What the crop adds on each side of the box, as a share of the box's longer side."""


@dataclass(frozen=True)
class Background:
    """A square window of a tile, to be shrunk to the size of the frame."""

    place: int
    """Row of the tile among all places."""
    left: int
    top: int
    side: int
    """Pixels of the window's side."""
    flip: bool
    """Whether left and right change places."""


@dataclass(frozen=True)
class Shot:
    """All that chance decides about one real shot."""

    background: Background
    side: float
    """Side of the sprite, as a share of the frame's."""
    stretch: float
    """Binary logarithm of what width over height is multiplied by; the area stays."""
    angle: float
    """Degrees, anticlockwise."""
    spot: tuple[float, float]
    """Where the box lies between its leftmost and rightmost, topmost and lowest place: 0 to 1."""
    contrast: float
    """Factor of the distance from grey 128."""
    brightness: float
    """Added, in levels of 255."""
    gains: tuple[float, float, float]
    """Factors of red, green, blue."""
    blur: float
    """σ in pixels."""
    noise: Float32[np.ndarray, "3 size size"]
    """Added, in levels of 255."""
    quality: int
    """Of the JPEG file."""


@dataclass(frozen=True)
class RealShots:
    """Rendered shots in two views."""

    image: UInt8[Tensor, "n 3 64 64"]
    crop: UInt8[Tensor, "n 3 48 48"]
    """What a detector would hand on: the square around the box, its background nearly white."""
    box: Float32[Tensor, "n 4"]
    """Tight box of the object in `image`: x₀, y₀, x₁, y₁ in pixels, half-open."""


def draw_background(
    rng: np.random.Generator, places: Sequence[int], size: int, tile: int = 224
) -> Background:
    """Draw a place, a square window of its tile no smaller than the frame, and a flip.

    Args:
        rng: its state decides.
        places: rows of the tiles to choose from.
        size: side of the frame in pixels.
        tile: side of a tile in pixels.
    """
    place = places[int(rng.integers(len(places)))]
    side = int(rng.integers(min(size, tile), tile + 1))
    left, top = (int(start) for start in rng.integers(0, tile - side + 1, 2))
    return Background(place, left, top, side, bool(rng.random() < 0.5))


def draw_shot(rng: np.random.Generator, places: Sequence[int]) -> Shot:
    """Draw all that chance decides about one real shot.

    Args:
        rng: its state decides.
        places: rows of the tiles that may be behind it.
    """
    return Shot(
        background=draw_background(rng, places, FRAME),
        side=rng.uniform(0.45, 0.7),
        stretch=rng.uniform(-0.1, 0.1),
        angle=rng.uniform(-10, 10),
        spot=tuple(rng.random(2).tolist()),
        contrast=2 ** rng.uniform(-0.15, 0.15),
        brightness=rng.uniform(-10, 10),
        gains=tuple((1 + rng.uniform(-0.05, 0.05, 3)).tolist()),
        blur=rng.uniform(0, 0.5),
        noise=rng.normal(0, 2, (3, FRAME, FRAME)).astype(np.float32),
        quality=int(rng.integers(70, 91)),
    )


def render_shots(
    sprites: UInt8[Tensor, "batch 4 rows columns"],
    shots: Sequence[Shot],
    tiles: UInt8[Tensor, "places 3 height width"],
) -> RealShots:
    """Paste each sprite on its background, photograph it, and cut out its crop.

    Args:
        sprites: straight alpha, at least 48 px a side.
        shots: what `draw_shot` drew for each of them.
        tiles: all places, in the order that `Background.place` counts.

    Raises:
        ValueError: if there are not as many shots as sprites.
    """
    if len(sprites) != len(shots):
        raise ValueError(f"{len(sprites)} sprites for {len(shots)} shots")
    ground = render_backgrounds([shot.background for shot in shots], tiles, FRAME)
    small = _shrunk(premultiply(sprites, torch.float64), shots)
    theta = _placed(small, shots)
    image, _, box = paste(ground, small, theta)
    faded = over(warp(small, theta, FRAME, FRAME), ground + FADE * (1 - ground))
    photographs, faded_photographs = (photograph(view, shots) for view in (image, faded))
    pairs = zip(faded_photographs, box.tolist(), strict=True)
    crop = np.stack([_crop(frame, corners) for frame, corners in pairs])
    return RealShots(
        torch.from_numpy(photographs).permute(0, 3, 1, 2),
        torch.from_numpy(crop).permute(0, 3, 1, 2),
        box,
    )


def render_backgrounds(
    backgrounds: Sequence[Background], tiles: UInt8[Tensor, "places 3 height width"], size: int
) -> Float[Tensor, "batch 3 {size} {size}"]:
    """Cut the windows out of their tiles, flip some, and average them down to the frame: 0 to 1."""
    return torch.cat([_render_background(one, tiles[one.place], size) for one in backgrounds])


def photograph(
    images: Float[Tensor, "batch 3 64 64"], shots: Sequence[Shot]
) -> UInt8[np.ndarray, "batch 64 64 3"]:
    """What a cheap camera makes of scenes from 0 to 1: light, blur, noise, JPEG; channels last."""
    contrast, brightness, blur = (
        _column(shots, name)[:, None, None, None] for name in ("contrast", "brightness", "blur")
    )
    levels = (images * 255 - 128) * contrast + 128 + brightness
    levels = levels * _column(shots, "gains")[:, :, None, None]
    noise = torch.from_numpy(np.stack([shot.noise for shot in shots]))
    noisy = (blurred(levels, blur) + noise).round().clamp(0, 255).to(torch.uint8)
    frames = noisy.permute(0, 2, 3, 1).numpy()
    pairs = zip(frames, shots, strict=True)
    return np.stack([_through_jpeg(frame, shot.quality) for frame, shot in pairs])


def blurred(
    images: Float[Tensor, "batch channels height width"], sigma: Float[Tensor, "batch 1 1 1"]
) -> Float[Tensor, "batch channels height width"]:
    """Gaussian blur, each image with its own σ in pixels (below 1; 5 taps; edges repeat)."""
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    offsets = torch.arange(-2, 3, dtype=images.dtype)
    taps = torch.exp(-(offsets**2) / (2 * sigma.clamp(min=1e-3) ** 2))
    taps = taps / taps.sum(-1, keepdim=True)
    height, width = images.shape[2:]
    rows = torch.stack([taps[..., k : k + 1] * padded[:, :, k : k + height] for k in range(5)])
    tall = rows.sum(0)
    return torch.stack([taps[..., k : k + 1] * tall[..., k : k + width] for k in range(5)]).sum(0)


def _render_background(
    background: Background, tile: UInt8[Tensor, "3 height width"], size: int
) -> Float[Tensor, "1 3 {size} {size}"]:
    rows = slice(background.top, background.top + background.side)
    columns = slice(background.left, background.left + background.side)
    whole = torch.tensor([[0, 0, background.side, background.side]])
    small = average(tile[None, :, rows, columns].double() / 255, whole, size)
    return small.flip(3) if background.flip else small


def _shrunk(sprites: Tensor, shots: Sequence[Shot]) -> Tensor:
    side, stretch = _column(shots, "side") * FRAME, _column(shots, "stretch")
    return shrink(sprites, side * 2 ** (stretch / 2), side * 2 ** (-stretch / 2), FRAME)


def _placed(sprites: Tensor, shots: Sequence[Shot]) -> Tensor:
    """Where each sprite goes: whole pixels from the middle, its tight box inside the frame."""
    size, angle = (FRAME, FRAME), _column(shots, "angle")
    middle = torch.full((len(shots), 2), FRAME / 2, dtype=torch.float64)
    ones = torch.ones(len(shots), dtype=torch.float64)
    layer = warp(sprites, placement(middle, angle, ones, size, size), FRAME, FRAME)
    box = boxes_of(layer[:, 3] > 0.5).double()
    room = FRAME - (box[:, 2:] - box[:, :2])
    corner = torch.floor(_column(shots, "spot") * (room + 1))
    return placement(middle + corner - box[:, :2], angle, ones, size, size)


def _crop(frame: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The square around a box with its margin, 48×48; white where it leaves the frame."""
    x0, y0, x1, y1 = (FRAME + corner for corner in box)
    half = max(x1 - x0, y1 - y0) * (0.5 + MARGIN)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    wide = np.pad(frame, ((FRAME, FRAME), (FRAME, FRAME), (0, 0)), constant_values=255)
    square = (x - half, y - half, x + half, y + half)
    resized = Image.fromarray(wide).resize((CROP, CROP), Image.Resampling.BICUBIC, square)
    return np.asarray(resized)


def _through_jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _column(shots: Sequence[Shot], name: str) -> Tensor:
    values: list[Any] = [getattr(shot, name) for shot in shots]
    return torch.tensor(values, dtype=torch.float64)
