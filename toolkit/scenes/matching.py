"""Which prior answers for which object: the thresholds on IoU that most detectors share.

The whole batch is matched at once. A prior is a single anchor, or a location with several anchors,
whose IoU with an object is the largest of theirs.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from toolkit.scenes.boxes import is_box, pairwise_iou

NEGATIVE, IGNORED = -1, -2
"""Values of a match that are no object's index."""


def best_iou(
    anchors: Float[Tensor, "locations anchors 4"], boxes: Float[Tensor, "batch objects 4"]
) -> Float[Tensor, "batch objects locations"]:
    """Largest IoU of each object with any anchor of each location; 0 for padding."""
    locations, each = anchors.shape[:2]
    iou = pairwise_iou(boxes, anchors.transpose(0, 1).flatten(0, 1)[None])
    return iou.unflatten(2, (each, locations)).amax(2)


def match(
    iou: Float[Tensor, "batch objects priors"],
    boxes: Float[Tensor, "batch objects 4"],
    hi: float,
    lo: float,
    *,
    force: bool = True,
) -> Int64[Tensor, "batch priors"]:
    """Match priors to objects.

    A prior takes the object of its largest IoU (the first on ties) if that is at least `hi`, none
    below `lo`, and is ignored between. With `force`, each object then claims its best prior (the
    first on ties) whatever the IoU, if it overlaps any; where two claim one, the larger IoU wins
    (then the first object).

    Args:
        iou: of every object with every prior, 0 for padding.
        boxes: padded as by `pad_boxes`; says which objects there are.
        hi: smallest IoU of a positive prior.
        lo: an IoU below is negative.
        force: whether objects claim their best prior.

    Returns:
        The index of the object, −1 (negative) or −2 (ignored).

    Raises:
        ValueError: unless 0 ≤ lo ≤ hi ≤ 1.
    """
    if not 0 <= lo <= hi <= 1:
        raise ValueError(f"need 0 ≤ lo ≤ hi ≤ 1, got lo={lo}, hi={hi}")
    largest, matched = iou.max(1)
    matched = matched.masked_fill(largest < hi, IGNORED).masked_fill_(largest < lo, NEGATIVE)
    return _claimed(matched, iou, boxes) if force else matched


def _claimed(matched: Tensor, iou: Tensor, boxes: Tensor) -> Tensor:
    """Give each object its best prior."""
    top, prior = iou.max(2)
    claims = is_box(boxes) & (top > 0)
    strongest = iou.new_zeros(matched.shape).scatter_reduce(1, prior, top * claims, "amax")
    wins = claims & (top == strongest.gather(1, prior))
    nobody = boxes.shape[1]
    index = torch.arange(nobody, device=iou.device).expand_as(prior)
    winner = torch.full_like(matched, nobody).scatter_reduce(
        1, prior, torch.where(wins, index, nobody), "amin"
    )
    return torch.where(winner < nobody, winner, matched)
