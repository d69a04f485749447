"""One unlabelled picture mixed with one labelled picture: Mixup, and a Mosaic of two."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SURVIVES = 0.25
"""A cut box stays if more than this share of its width and of its height is left."""


class Example(NamedTuple):
    """A picture with its objects."""

    image: Float[Tensor, "3 height width"]
    boxes: Float[Tensor, "n 4"]
    """x₀, y₀, x₁, y₁ in pixels."""
    soft: Float[Tensor, "n classes"]
    """C + 1 weights of each object, the background last."""


def mixup_pair(unlabelled: Example, labelled: Example, lam: float) -> Example:
    """Blend two pictures, and keep the objects of both with the weights of their pictures.

    x = λ x_u + (1 − λ) x_l; soft labels λ e_c of the unlabelled and (1 − λ) e_c of the labelled
    picture. The missing mass of a vector goes nowhere, not to the background (as in the release).

    Args:
        unlabelled: with its pseudo labels.
        labelled: with its true labels.
        lam: λ, from Beta(1, 1) in training.

    Raises:
        ValueError: for λ outside [0, 1], pictures of different size, or other classes.
    """
    _check(unlabelled, labelled)
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {lam}")
    return Example(
        lam * unlabelled.image + (1 - lam) * labelled.image,
        torch.cat([unlabelled.boxes, labelled.boxes]),
        torch.cat([lam * unlabelled.soft, (1 - lam) * labelled.soft]),
    )


def mosaic_pair(unlabelled: Example, labelled: Example, axis: int, cut: int) -> Example:
    """Put the top (or left) of the unlabelled picture before the rest of the labelled one.

    Boxes are cut at the seam; one survives only if **both** its width and its height keep more
    than a quarter of what they were.

    Args:
        unlabelled: with its pseudo labels.
        labelled: with its true labels.
        axis: 0 cuts between rows (top and bottom), 1 between columns (left and right).
        cut: rows or columns of the unlabelled picture, 0 to the whole side; in training uniform
            between a quarter and three quarters.

    Raises:
        ValueError: for another axis, a cut outside the picture, pictures of different size, or
            other classes.
    """
    _check(unlabelled, labelled)
    if axis not in (0, 1):
        raise ValueError(f"axis must be 0 (rows) or 1 (columns), got {axis}")
    side = unlabelled.image.shape[1 + axis]
    if not 0 <= cut <= side:
        raise ValueError(f"cut must lie in 0…{side}, got {cut}")
    rest = labelled.image.narrow(1 + axis, cut, side - cut)
    image = torch.cat([unlabelled.image.narrow(1 + axis, 0, cut), rest], 1 + axis)
    first, keep_first = _cut(unlabelled.boxes, axis, 0, cut)
    second, keep_second = _cut(labelled.boxes, axis, cut, side)
    soft = torch.cat([unlabelled.soft[keep_first], labelled.soft[keep_second]])
    return Example(image, torch.cat([first, second]), soft)


def mix(unlabelled: Example, labelled: Example, generator: torch.Generator) -> Example:
    """Mixup or Mosaic, each with probability ½, with random λ, direction and cut."""
    if float(torch.rand((), generator=generator)) < 0.5:
        lam = float(torch.rand((), generator=generator))  # Beta(1, 1)
        return mixup_pair(unlabelled, labelled, lam)
    axis = int(torch.randint(2, (), generator=generator))
    side = unlabelled.image.shape[1 + axis]
    low, high = side // 4, 3 * side // 4
    return mosaic_pair(
        unlabelled, labelled, axis, int(torch.randint(low, high, (), generator=generator))
    )


def _cut(boxes: Tensor, axis: int, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Boxes between two rows or columns, and which of the given ones survive."""
    inside = boxes.clone()
    along = [1, 3] if axis == 0 else [0, 2]
    inside[:, along] = inside[:, along].clamp(low, high)
    before, after = boxes[:, 2:] - boxes[:, :2], inside[:, 2:] - inside[:, :2]
    keep = (after > SURVIVES * before).all(1)
    return inside[keep], keep


def _check(unlabelled: Example, labelled: Example) -> None:
    shapes = [tuple(one.image.shape) for one in (unlabelled, labelled)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"pictures must be of one size, got {shapes[0]} and {shapes[1]}")
    if unlabelled.soft.shape[1:] != labelled.soft.shape[1:]:
        raise ValueError("soft labels must have the same number of classes")
