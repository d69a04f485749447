"""Weak and strong views of pictures, and boxes carried from one view to another.

A view moves a point x of the picture to x′ = a x + b, on each axis by its own numbers; a mirrored
one has a negative a. So boxes found in one view can be used in any other.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

ZOOM = (0.9, 1.1)
"""A view is larger or smaller by a factor from this range."""
HOLE = 8
"""Side of a hole in pixels."""
SMALLEST = 1.0
"""A box with a shorter side after clipping is no box."""


@dataclass(frozen=True)
class View:
    """Where the points of each picture went: x′ = scale · x + shift, in pixels, x before y."""

    scale: Float[Tensor, "batch 2"]
    shift: Float[Tensor, "batch 2"]


def original(batch: int) -> View:
    """The view that leaves every picture as it is."""
    return View(torch.ones(batch, 2), torch.zeros(batch, 2))


def weak_augment(
    x: Float[Tensor, "batch 3 height width"],
    generator: torch.Generator,
    zoom: tuple[float, float] = ZOOM,
) -> tuple[Float[Tensor, "batch 3 height width"], View]:
    """Mirror with probability ½ and zoom about the middle; grey fills the border.

    Args:
        x: pixels from 0 to 1.
        generator: on the CPU.
        zoom: range of the factor, uniform.

    Returns:
        The pictures and the view, on the device of `x`.
    """
    draw = torch.rand(2, len(x), generator=generator)
    factor = zoom[0] + (zoom[1] - zoom[0]) * draw[0]
    mirror = torch.where(draw[1] < 0.5, -1.0, 1.0)
    scale = torch.stack([mirror * factor, factor], 1).to(x.device)
    size = scale.new_tensor([x.shape[3], x.shape[2]])
    view = View(scale, (1 - scale) * size / 2)
    return warp(x, view), view


def strong_augment(
    x: Float[Tensor, "batch 3 height width"], generator: torch.Generator
) -> tuple[Float[Tensor, "batch 3 height width"], View]:
    """A weak view of its own, then colours, blur and holes; see `photometric`."""
    moved, view = weak_augment(x, generator)
    return photometric(moved, generator), view


def photometric(
    x: Float[Tensor, "batch 3 height width"], generator: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Change what pictures look like and leave all things where they are.

    Each independently: contrast and brightness ±.2 (probability ½), channels in another order
    (.2), mean over 3×3 pixels (.2), two black holes of 8×8 px (½).
    """
    draw = torch.rand(6, len(x), generator=generator).to(x.device)
    wide = draw[:, :, None, None, None]
    contrast, brightness = 0.8 + 0.4 * wide[4], 0.4 * wide[5] - 0.2
    changed = ((x - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)
    x = torch.where(wide[0] < 0.5, changed, x)
    order = torch.rand(len(x), 3, generator=generator).argsort(1).to(x.device)
    shuffled = x.gather(1, order[:, :, None, None].expand_as(x))
    x = torch.where(wide[1] < 0.2, shuffled, x)
    x = torch.where(wide[2] < 0.2, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), x)
    return x * ((wide[3] >= 0.5) | ~holes(x, 2, generator))


def warp(
    x: Float[Tensor, "batch 3 height width"], view: View
) -> Float[Tensor, "batch 3 height width"]:
    """Pictures as a view shows them; what comes from outside is grey (.5)."""
    size = view.scale.new_tensor([x.shape[3], x.shape[2]])
    inverse = 1 / view.scale
    offset = inverse - 2 * view.shift * inverse / size - 1
    zero = torch.zeros_like(inverse[:, 0])
    theta = torch.stack(
        [
            torch.stack([inverse[:, 0], zero, offset[:, 0]], 1),
            torch.stack([zero, inverse[:, 1], offset[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x - 0.5, grid, align_corners=False) + 0.5


def map_boxes(
    boxes: Float[Tensor, "batch most 4"], T_from: View, T_to: View
) -> Float[Tensor, "batch most 4"]:
    """Carry boxes from one view of a picture to another; nothing is clipped, NaN stays.

    Args:
        boxes: x₀, y₀, x₁, y₁ in pixels of `T_from`.
        T_from: the view in which the boxes were found.
        T_to: the view in which they are needed.

    Raises:
        ValueError: if the numbers of pictures differ.
    """
    if not len(boxes) == len(T_from.scale) == len(T_to.scale):
        raise ValueError(
            f"boxes of {len(boxes)} pictures, views of {len(T_from.scale)} and {len(T_to.scale)}"
        )
    corners = boxes.unflatten(-1, (2, 2))
    old, new = ((v.scale[:, None, None], v.shift[:, None, None]) for v in (T_from, T_to))
    moved = (corners - old[1].to(boxes)) / old[0].to(boxes) * new[0].to(boxes) + new[1].to(boxes)
    return torch.cat([moved.amin(2), moved.amax(2)], -1)


def clip_boxes(
    boxes: Float[Tensor, "*batch 4"], size: tuple[int, int]
) -> Float[Tensor, "*batch 4"]:
    """Cut boxes at the border of pictures of this height and width; NaN if hardly any is left."""
    far = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    inside = boxes.clamp(min=0).minimum(far)
    gone = ((inside[..., 2:] - inside[..., :2]) < SMALLEST).any(-1)
    return inside.masked_fill(gone[..., None], torch.nan)


def holes(
    x: Float[Tensor, "batch 3 height width"], count: int, generator: torch.Generator
) -> Bool[Tensor, "batch 1 height width"]:
    """Which pixels lie in one of `count` squares of 8×8 px at random places in each picture."""
    centre = torch.rand(2, count, len(x), 1, generator=generator).to(x.device)
    covered = []
    for axis, side in ((0, x.shape[2]), (1, x.shape[3])):
        distance = torch.arange(side, device=x.device) + 0.5 - centre[axis] * side
        covered.append(distance.abs() < HOLE / 2)
    return (covered[0][..., :, None] & covered[1][..., None, :]).any(0)[:, None]
