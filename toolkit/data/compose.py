"""Pictures made of pictures: cut-out sprites, resampled and pasted on photographs.

Where the made worlds meet. Colours are multiplied by alpha before they are resampled, so that what
a transparent pixel hides cannot bleed into an edge. Sizes go down by area averages (`average`,
`shrink`), up and around by bicubic interpolation (`paste`). All functions work on whole batches.
"""

import torch
from jaxtyping import Bool, Float, Float32, Real, UInt8
from torch import Tensor
from torch.nn import functional as F


def premultiply(
    sprites: UInt8[Tensor, "batch 4 height width"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch 4 height width"]:
    """Multiply colours by alpha; bytes with straight alpha become numbers from 0 to 1."""
    scaled = sprites.to(dtype) / 255
    return torch.cat([scaled[:, :3] * scaled[:, 3:], scaled[:, 3:]], dim=1)


def on_white(
    sprites: UInt8[Tensor, "batch 4 height width"],
) -> UInt8[Tensor, "batch 3 height width"]:
    """Show sprites with straight alpha on a white ground."""
    layer = premultiply(sprites)
    return to_bytes(layer[:, :3] + 1 - layer[:, 3:])


def to_bytes(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Round numbers from 0 to 1 to bytes; what lies outside is clipped."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def average(
    images: Float[Tensor, "batch channels height width"],
    boxes: Real[Tensor, "batch 4"],
    size: int,
) -> Float[Tensor, "batch channels size size"]:
    """Cut a box out of each image and shrink it: a pixel is the mean of the area that it covers.

    Args:
        images: any channels.
        boxes: x₀, y₀, x₁, y₁ in pixels, half-open, whole or not. What lies beyond the border of an
            image counts as zero, which is transparent for a premultiplied sprite.
        size: pixels of a side of the result.

    Raises:
        ValueError: if a box is empty.
    """
    x0, y0, x1, y1 = boxes.to(images).unbind(1)
    if not bool(((x1 > x0) & (y1 > y0)).all()):
        raise ValueError("every box needs x1 > x0 and y1 > y0")
    height, width = images.shape[2:]
    rows, columns = _overlaps(y0, y1, height, size), _overlaps(x0, x1, width, size)
    return torch.einsum("boh,bchw,bpw->bcop", rows, images, columns)


def shrink(
    sprites: Float[Tensor, "batch 4 height width"],
    widths: Real[Tensor, "batch"],
    heights: Real[Tensor, "batch"],
    size: int,
) -> Float[Tensor, "batch 4 size size"]:
    """Make sprites smaller, by area averages, and centre them on a transparent square.

    Args:
        sprites: premultiplied.
        widths: of the whole sprite afterwards, in pixels, whole or not.
        heights: likewise.
        size: pixels of a side of the square.

    Raises:
        ValueError: if a sprite would grow (`paste` enlarges, by bicubic interpolation).
    """
    height, width = sprites.shape[2:]
    if float(widths.max()) > width or float(heights.max()) > height:
        raise ValueError(
            f"sprites of {width}×{height} px would grow to {float(widths.max()):g}×"
            f"{float(heights.max()):g} px; `paste` enlarges them"
        )
    half = torch.stack([width / widths.to(sprites), height / heights.to(sprites)], 1) * size / 2
    centre = sprites.new_tensor([width / 2, height / 2])
    return average(sprites, torch.cat([centre - half, centre + half], 1), size)


def placement(
    centres: Real[Tensor, "batch 2"],
    angles: Real[Tensor, "batch"],
    scales: Real[Tensor, "batch"],
    sprite_size: tuple[int, int],
    photo_size: tuple[int, int],
) -> Float[Tensor, "batch 2 3"]:
    """The affine maps with which `paste` puts the centres of sprites somewhere, turned and scaled.

    Args:
        centres: x, y of the sprites' centres in the photographs, in pixels.
        angles: in degrees, anticlockwise.
        scales: 1 keeps a sprite's pixels, 2 doubles its sides.
        sprite_size: height, width in pixels.
        photo_size: likewise.
    """
    radians, scales = torch.deg2rad(angles), scales.to(angles)
    cos, sin = torch.cos(radians) / scales, torch.sin(radians) / scales
    back = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    photo, sprite = (
        angles.new_tensor([width, height]) / 2 for height, width in (photo_size, sprite_size)
    )
    shift = (back @ (photo - centres.to(angles))[:, :, None])[:, :, 0]
    return torch.cat([back * photo / sprite[:, None], (shift / sprite)[:, :, None]], 2)


def paste(
    photo: Float[Tensor, "batch 3 height width"],
    sprite: Float[Tensor, "batch 4 rows columns"],
    theta: Float[Tensor, "batch 2 3"],
) -> tuple[
    Float[Tensor, "batch 3 height width"],
    Bool[Tensor, "batch height width"],
    Float32[Tensor, "batch 4"],
]:
    """Put one sprite on each photograph, by bicubic interpolation.

    Args:
        photo: from 0 to 1.
        sprite: premultiplied, from 0 to 1. To make it much smaller, `shrink` it first.
        theta: of `torch.nn.functional.affine_grid`, from the photograph to the sprite, both with
            coordinates from −1 to 1; `placement` makes it from pixels and degrees.

    Returns:
        The images; the masks, where alpha is over ½; the boxes of the masks as `boxes_of` has them.
    """
    layer = warp(sprite, theta, photo.shape[2], photo.shape[3])
    masks = layer[:, 3] > 0.5
    return over(layer, photo), masks, boxes_of(masks)


def warp(
    sprite: Float[Tensor, "batch 4 rows columns"],
    theta: Float[Tensor, "batch 2 3"],
    height: int,
    width: int,
) -> Float[Tensor, "batch 4 {height} {width}"]:
    """Move premultiplied sprites on a transparent sheet (arguments as in `paste`)."""
    grid = F.affine_grid(theta, [len(sprite), 4, height, width], align_corners=False)
    layer = F.grid_sample(sprite, grid.to(sprite), mode="bicubic", align_corners=False)
    alpha = layer[:, 3:].clamp(0, 1)  # bicubic interpolation overshoots at edges
    return torch.cat([torch.minimum(layer[:, :3].clamp(min=0), alpha), alpha], 1)


def over(
    layer: Float[Tensor, "batch 4 height width"], ground: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch 3 height width"]:
    """Lay a premultiplied layer over a ground: c + (1 − α) g."""
    return layer[:, :3] + (1 - layer[:, 3:]) * ground


def boxes_of(masks: Bool[Tensor, "batch height width"]) -> Float32[Tensor, "batch 4"]:
    """The tight boxes of masks: x₀, y₀, x₁, y₁ in pixels, half-open; all zero for an empty mask."""
    x0, x1 = _extent(masks.any(1))
    y0, y1 = _extent(masks.any(2))
    return torch.stack([x0, y0, x1, y1], 1).float()


def _extent(
    covered: Bool[Tensor, "batch length"],
) -> tuple[Real[Tensor, "batch"], Real[Tensor, "batch"]]:
    """Where each row's first true entry begins and its last one ends."""
    some, flags = covered.any(1), covered.byte()
    return flags.argmax(1) * some, (covered.shape[1] - flags.flip(1).argmax(1)) * some


def _overlaps(
    start: Float[Tensor, "batch"], stop: Float[Tensor, "batch"], length: int, size: int
) -> Float[Tensor, "batch {size} {length}"]:
    """The share of each target pixel that each source pixel fills, along one axis."""
    steps = torch.arange(size + 1, dtype=start.dtype, device=start.device) / size
    edges = start[:, None] + (stop - start)[:, None] * steps
    pixels = torch.arange(length, dtype=start.dtype, device=start.device)
    right = torch.minimum(edges[:, 1:, None], pixels + 1)
    left = torch.maximum(edges[:, :-1, None], pixels)
    return (right - left).clamp(min=0) * (size / (stop - start))[:, None, None]
