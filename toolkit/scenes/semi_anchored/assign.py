"""Which sample of a one-stage detector answers for which object.

The paper's point is that classification and regression need not share one set of samples: here is
the set of single anchors (RetinaNet), the set of locations (the semi-anchored detector), and the
set of locations in the middle of objects (FCOS). How a location becomes positive is our
reconstruction.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from toolkit.scenes.boxes import is_box, pairwise_iou
from toolkit.scenes.matching import NEGATIVE, best_iou, match

HI, LO = 0.5, 0.4
"""IoU from which a sample is positive, and below which it is negative (RetinaNet's)."""


def assign_anchors(
    anchors: Float[Tensor, "locations anchors 4"],
    boxes: Float[Tensor, "*batch objects 4"],
    hi: float = HI,
    lo: float = LO,
) -> Int64[Tensor, "*batch locations anchors"]:
    """Match every anchor by its own IoU, as RetinaNet does; see `toolkit.scenes.matching.match`.

    Args:
        anchors: from `make_anchors`.
        boxes: of one image, or of a batch, padded as by `pad_boxes`.
        hi: smallest IoU of a positive anchor.
        lo: an anchor below is negative.

    Returns:
        Index of the object, −1 (negative) or −2 (ignored).

    Raises:
        ValueError: unless 0 ≤ lo ≤ hi ≤ 1, or for a box without area.
    """
    padded = _batched(boxes)
    matched = match(pairwise_iou(padded, anchors.flatten(0, 1)[None]), padded, hi, lo)
    return matched.reshape(*boxes.shape[:-2], *anchors.shape[:2])


def assign_locations(
    anchors: Float[Tensor, "locations anchors 4"],
    boxes: Float[Tensor, "*batch objects 4"],
    hi: float = HI,
    lo: float = LO,
) -> Int64[Tensor, "*batch locations"]:
    """Match every location by the best IoU of its anchors: m_x = max over k, g of IoU(a_xk, g).

    Positive from `hi`, negative below `lo`, else ignored; then each object claims its best
    location. The order of a location's anchors does not matter.

    Args:
        anchors: from `make_anchors`.
        boxes: of one image, or of a batch, padded as by `pad_boxes`.
        hi: smallest IoU of a positive location.
        lo: a location below is negative.

    Returns:
        Index of the object, −1 (negative) or −2 (ignored).

    Raises:
        ValueError: unless 0 ≤ lo ≤ hi ≤ 1, or for a box without area.
    """
    padded = _batched(boxes)
    matched = match(best_iou(anchors, padded), padded, hi, lo)
    return matched.reshape(*boxes.shape[:-2], len(anchors))


def assign_centres(
    points: Float[Tensor, "locations 2"],
    stride: Float[Tensor, "locations"],
    boxes: Float[Tensor, "*batch objects 4"],
    limit: float = 3.0,
    radius: float = 1.5,
) -> Int64[Tensor, "*batch locations"]:
    """Match the locations near the middle of an object, as FCOS does.

    A location is positive for an object if it lies inside the box and within `radius` strides of
    its middle on both axes, and if the largest distance to a side suits its level: up to `limit`
    strides, and on all but the finest level more than half of that; the coarsest has no upper end.
    Of several objects the smallest wins. Nothing is ignored.

    Tian et al., "FCOS: fully convolutional one-stage object detection" (2019), section 3, with the
    centre sampling of its later version.

    Args:
        points: middles of the cells, x and y in pixels.
        stride: of the level of each.
        boxes: of one image, or of a batch, padded as by `pad_boxes`.
        limit: in strides; FCOS has 8 at full size, 3 suits anchors of side 3 s.
        radius: in strides.

    Returns:
        Index of the object or −1 (negative).

    Raises:
        ValueError: for a limit or radius that is not positive, or a box without area.
    """
    if min(limit, radius) <= 0:
        raise ValueError(f"limit and radius must be positive, got {limit} and {radius}")
    padded = _batched(boxes)
    low, high = padded[:, :, None, :2], padded[:, :, None, 2:]
    reach = torch.cat([points - low, high - points], -1)
    off_centre = (points - (low + high) / 2).abs().amax(-1)
    most = reach.amax(-1)
    lower = torch.where(stride > stride.min(), stride * limit / 2, 0.0)
    upper = torch.where(stride < stride.max(), stride * limit, torch.inf)
    fits = (reach.amin(-1) > 0) & (off_centre < radius * stride) & (most > lower) & (most < upper)
    area = (padded[..., 2:] - padded[..., :2]).prod(-1, keepdim=True)
    smallest, which = torch.where(fits, area, torch.inf).min(1)
    matched = torch.where(smallest.isfinite(), which, NEGATIVE)
    return matched.reshape(*boxes.shape[:-2], len(points))


def _batched(boxes: Tensor) -> Tensor:
    """As [batch, objects, 4] with one object at least, which may be padding."""
    flat = boxes if boxes.ndim == 3 else boxes[None]
    if not flat.shape[1]:
        return flat.new_full((len(flat), 1, 4), torch.nan)
    empty = is_box(flat) & ~(flat[..., 2:] > flat[..., :2]).all(-1)
    if bool(empty.any()):
        raise ValueError(f"a box needs x₁ > x₀ and y₁ > y₀, got {flat[empty][0].tolist()}")
    return flat
