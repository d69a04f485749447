"""What a detector reports, and how many overlapping candidates become one report."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms


@dataclass(frozen=True)
class Detections:
    """Boxes reported in one image, by falling score."""

    boxes: Float[Tensor, "n 4"]
    """x₀, y₀, x₁, y₁ in pixels."""
    scores: Float[Tensor, "n"]
    labels: Int64[Tensor, "n"]


@torch.no_grad()
def select(
    boxes: Float[Tensor, "batch candidates 4"],
    scores: Float[Tensor, "batch candidates classes"],
    image_size: tuple[int, int],
    *,
    levels: Sequence[int] | None = None,
    threshold: float = 0.0,
    per_level: int = 1000,
    nms_iou: float = 0.5,
    most: int = 100,
) -> list[Detections]:
    """Turn candidates into detections: threshold, best of each level, NMS within classes, best.

    All images go through one call of `torchvision.ops.batched_nms`.

    Args:
        boxes: of the candidates; they are clipped to the image.
        scores: of each class, 0 to 1.
        image_size: height and width in pixels.
        levels: how many candidates each pyramid level has; by default there is one level.
        threshold: a score must be larger.
        per_level: pairs of candidate and class that each level keeps.
        nms_iou: of two boxes of a class that overlap more, the lower score goes.
        most: detections kept of an image.
    """
    chosen = [_best(part, per_level) for part in scores.split(list(levels or [scores.shape[1]]), 1)]
    starts = [0, *torch.tensor(levels or [0]).cumsum(0).tolist()]
    value = torch.cat([score for score, _, _ in chosen], 1)
    place = torch.cat(
        [rows + start for start, (_, rows, _) in zip(starts, chosen, strict=False)], 1
    )
    label = torch.cat([classes for _, _, classes in chosen], 1)
    height, width = image_size
    box = boxes.gather(1, place[..., None].expand(*place.shape, 4)).clamp(min=0)
    box = box.minimum(box.new_tensor([width, height, width, height]))
    image, at = (value > threshold).nonzero(as_tuple=True)
    value, label, box = value[image, at], label[image, at], box[image, at]
    keep = batched_nms(box, value, image * scores.shape[2] + label, nms_iou)
    found = []
    for number in range(len(scores)):
        own = keep[image[keep] == number][:most]
        found.append(Detections(box[own], value[own], label[own]))
    return found


def _best(scores: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of a level: score, candidate, class; each [batch, pairs]."""
    flat = scores.flatten(1)
    value, index = flat.topk(min(most, flat.shape[1]), dim=1)
    return value, index // scores.shape[2], index % scores.shape[2]
