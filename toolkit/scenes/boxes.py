"""Boxes: checks, ragged lists as one padded tensor, and the coding of boxes relative to priors.

A box is x₀, y₀, x₁, y₁ in pixels. A batch of images has different numbers of boxes; padded to the
longest list, with rows of NaN, all images are treated in one call.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MAX_LOG = math.log(1000 / 16)
"""Largest log-ratio of sides that a delta may ask for (as in torchvision and Detectron)."""


def check_targets(
    boxes: Sequence[Float[Tensor, "_ 4"]],
    labels: Sequence[Int64[Tensor, "_"]],
    image_size: tuple[int, int],
    num_classes: int,
) -> None:
    """Refuse boxes and labels that cannot be right; an image without objects is fine.

    Args:
        boxes: of each image.
        labels: likewise.
        image_size: height and width in pixels.
        num_classes: labels are 0 to `num_classes` − 1.

    Raises:
        ValueError: for lists of other lengths, boxes of another shape, not finite, without area or
            outside the image, and for labels outside their range.
    """
    if len(boxes) != len(labels):
        raise ValueError(f"boxes of {len(boxes)} images, but labels of {len(labels)}")
    for image, (some, classes) in enumerate(zip(boxes, labels, strict=True)):
        if some.ndim != 2 or some.shape[1] != 4 or classes.shape != some.shape[:1]:
            shapes = f"{tuple(some.shape)} and {tuple(classes.shape)}"
            raise ValueError(f"image {image}: need boxes [n, 4] and labels [n], got {shapes}")
    every, classes = torch.cat(list(boxes)), torch.cat(list(labels))
    height, width = image_size
    bad = ~((every[:, 2:] > every[:, :2]).all(1) & every.isfinite().all(1))
    if bool(bad.any()):
        raise ValueError(f"a box needs x₁ > x₀ and y₁ > y₀, got {every[bad][0].tolist()}")
    far = every.new_tensor([width, height, width, height])
    out = ((every < 0) | (every > far)).any(1)
    if bool(out.any()):
        raise ValueError(f"box {every[out][0].tolist()} leaves the image of {width}×{height} px")
    wrong = (classes < 0) | (classes >= num_classes)
    if bool(wrong.any()):
        raise ValueError(f"labels must be 0 to {num_classes - 1}, got {int(classes[wrong][0])}")


def pad_boxes(boxes: Sequence[Float[Tensor, "_ 4"]]) -> Float[Tensor, "batch most 4"]:
    """Boxes of all images as one tensor; missing ones are NaN. There is at least one column."""
    padded = pad_sequence(list(boxes), batch_first=True, padding_value=torch.nan)
    if padded.shape[1]:
        return padded
    return padded.new_full((len(boxes), 1, 4), torch.nan)


def pad_labels(labels: Sequence[Int64[Tensor, "_"]]) -> Int64[Tensor, "batch most"]:
    """Labels of all images as one tensor; missing ones are −1. There is at least one column."""
    padded = pad_sequence(list(labels), batch_first=True, padding_value=-1)
    return padded if padded.shape[1] else padded.new_full((len(labels), 1), -1)


def is_box(boxes: Float[Tensor, "*batch 4"]) -> Bool[Tensor, "*batch"]:
    """Which rows of a padded tensor are boxes."""
    return ~boxes[..., 0].isnan()


def pairwise_iou(
    boxes: Float[Tensor, "*#batch objects 4"], priors: Float[Tensor, "*#batch priors 4"]
) -> Float[Tensor, "*batch objects priors"]:
    """IoU of every box with every prior, in batches; 0 for padding, and for two empty boxes.

    `torchvision.ops.box_iou` is the same for one image. Priors, the many, run along memory.
    """
    here = boxes.nan_to_num(-1e6)  # padding: a point far from everything
    x0, y0, x1, y1 = (edge[..., :, None] for edge in here.unbind(-1))
    left, top, right, bottom = (edge[..., None, :] for edge in priors.unbind(-1))
    shared = _overlap(x0, x1, left, right).mul_(_overlap(y0, y1, top, bottom))
    union = (x1 - x0) * (y1 - y0) + (right - left) * (bottom - top)
    return shared / union.sub_(shared).clamp_(min=torch.finfo(union.dtype).tiny)


def encode_boxes(
    boxes: Float[Tensor, "*#batch 4"], priors: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*#batch 4"]:
    """Deltas that lead from priors to boxes: shifts in units of the prior's sides, log-ratios.

    Ren, He, Girshick and Sun, "Faster R-CNN" (2015), equation 2, with unit weights.
    """
    centre, side = _middle(boxes)
    origin, unit = _middle(priors)
    return torch.cat([(centre - origin) / unit, (side / unit).log()], -1)


def decode_boxes(
    deltas: Float[Tensor, "*#batch 4"], priors: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*#batch 4"]:
    """Boxes to which deltas lead from priors; log-ratios are clamped at log(1000/16).

    The inverse of `encode_boxes`; nothing is clipped to an image.
    """
    origin, unit = _middle(priors)
    centre = origin + unit * deltas[..., :2]
    half = unit * deltas[..., 2:].clamp(max=MAX_LOG).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def _overlap(low: Tensor, high: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Length that two intervals share; in place, since memory is what limits it."""
    return torch.minimum(high, stop).sub_(torch.maximum(low, start)).clamp_(min=0)


def _middle(boxes: Float[Tensor, "*batch 4"]) -> tuple[Tensor, Tensor]:
    side = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + side / 2, side
