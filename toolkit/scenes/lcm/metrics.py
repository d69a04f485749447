"""How good a mask is: region J, contour F, their statistics over time, and the leak into twins."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

DECAY_BINS = 4


def davis_j(
    gt: Shaped[Tensor, "*batch height width"], pred: Shaped[Tensor, "*_ _ _"]
) -> Float[Tensor, "*batch"]:
    """Region similarity J: intersection over union; 1 where both masks are empty.

    Perazzi et al. (2016), § 4.1.

    Raises:
        ValueError: if the shapes differ.
        TypeError: for masks that are not boolean.
    """
    _check_masks(gt, pred)
    both, either = ((x).flatten(-2).sum(dim=-1) for x in (gt & pred, gt | pred))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def davis_f(
    gt: Shaped[Tensor, "*batch height width"],
    pred: Shaped[Tensor, "*_ _ _"],
    bound_th: float = 0.008,
) -> Float[Tensor, "*batch"]:
    """Contour accuracy F: harmonic mean of the precision and recall of boundary pixels.

    A boundary pixel is found if the other boundary passes within the tolerance. Where only one of
    the masks has a boundary, F is 0; where neither has, 1. Perazzi et al. (2016), § 4.1.

    Args:
        gt: true masks.
        pred: predicted masks.
        bound_th: tolerance as a share of the diagonal, rounded up to whole pixels; from 1 on, in
            pixels.

    Raises:
        ValueError: if the shapes differ or the tolerance is not positive.
        TypeError: for masks that are not boolean.
    """
    _check_masks(gt, pred)
    if bound_th <= 0:
        raise ValueError(f"bound_th must be positive, got {bound_th}")
    radius = math.ceil(bound_th if bound_th >= 1 else bound_th * math.hypot(*gt.shape[-2:]))
    true, found = boundary(gt), boundary(pred)
    precision = _share(found, dilate(true, radius))
    recall = _share(true, dilate(found, radius))
    score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    neither = ~true.flatten(-2).any(dim=-1) & ~found.flatten(-2).any(dim=-1)
    return torch.where(neither, 1.0, score)


def boundary(mask: Bool[Tensor, "*batch height width"]) -> Bool[Tensor, "*batch height width"]:
    """Pixels that differ from their right, lower or lower right neighbour; one pixel wide."""
    right, below, diagonal = (torch.zeros_like(mask) for _ in range(3))
    right[..., :, :-1] = mask[..., :, 1:]
    right[..., :, -1] = mask[..., :, -1]
    below[..., :-1, :] = mask[..., 1:, :]
    below[..., -1, :] = mask[..., -1, :]
    diagonal[..., :-1, :-1] = mask[..., 1:, 1:]
    diagonal[..., -1, :] = right[..., -1, :]
    diagonal[..., :, -1] = below[..., :, -1]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    edge[..., -1, -1] = False
    return edge


def dilate(
    mask: Bool[Tensor, "*batch height width"], radius: int
) -> Bool[Tensor, "*batch height width"]:
    """All pixels whose middle lies within `radius` pixels of one of the mask's."""
    steps = torch.arange(-radius, radius + 1, device=mask.device)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).float()[None, None]
    images = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return (F.conv2d(images, disk, padding=radius) > 0.5).reshape(mask.shape)


@dataclass(frozen=True)
class Statistics:
    """What DAVIS reports about one object's scores over time."""

    mean: float
    recall: float
    """Share of frames above one half."""
    decay: float
    """Mean of the first of four bins minus that of the last."""


def davis_statistics(x: Float[Tensor, "time"]) -> Statistics:
    """Mean, recall and decay of an object's scores; frames of NaN are left out.

    Bins share their border frames. The official code casts their places to 8 bits, which is wrong
    beyond 255 frames; these are integers. Perazzi et al. (2016), § 4.2.

    Raises:
        ValueError: without a frame.
    """
    if not len(x):
        raise ValueError("there is no frame to average over")
    known = x[~x.isnan()]
    first, *_, last = decay_bins(len(x))
    decay = x[first].nanmean() - x[last].nanmean()
    recall = (known > 0.5).float().mean()
    return Statistics(float(x.nanmean()), float(recall), float(decay))


def decay_bins(length: int) -> list[slice]:
    """Four bins of frames of about equal length that share their borders."""
    ends = [
        math.floor(1 + (length - 1) * k / DECAY_BINS + 0.5 + 1e-10) - 1
        for k in range(DECAY_BINS + 1)
    ]
    return [slice(a, b + 1) for a, b in pairwise(ends)]


def davis_evaluate(
    gt: Bool[Tensor, "objects time height width"], pred: Bool[Tensor, "objects time height width"]
) -> dict[str, float]:
    """J and F of a sequence by the DAVIS protocol: the first and the last frame do not count.

    Returns:
        `J`, `F` and `J&F`, means over objects of means over time; `J-recall`, `J-decay`, likewise
        for F.

    Raises:
        ValueError: without objects, or for fewer than three frames.
    """
    if len(gt) == 0 or gt.shape[1] < 3:
        raise ValueError(f"need an object and three frames, got shape {list(gt.shape)}")
    scores = {"J": davis_j(gt, pred)[:, 1:-1], "F": davis_f(gt, pred)[:, 1:-1]}
    results = {}
    for name, values in scores.items():
        found = [davis_statistics(row) for row in values]
        results[name] = sum(one.mean for one in found) / len(found)
        results[f"{name}-recall"] = sum(one.recall for one in found) / len(found)
        results[f"{name}-decay"] = sum(one.decay for one in found) / len(found)
    return results | {"J&F": (results["J"] + results["F"]) / 2}


def leak(
    pred: Shaped[Tensor, "*batch height width"], distractor: Shaped[Tensor, "*_ _ _"]
) -> Float[Tensor, "*batch"]:
    """Share of the predicted pixels that lie on a distractor; NaN where nothing is predicted.

    Raises:
        ValueError: if the shapes differ.
        TypeError: for masks that are not boolean.
    """
    _check_masks(pred, distractor)
    wrong, all_ = (x.flatten(-2).sum(dim=-1) for x in (pred & distractor, pred))
    return wrong / all_  # 0/0 is NaN


def area_matched(
    soft: Float[Tensor, "*batch height width"], area: Int64[Tensor, "*batch"]
) -> Bool[Tensor, "*batch height width"]:
    """The `area` highest pixels of each soft mask; ties go to the earlier row, then column.

    An empty mask has no leak; masks of equal area can be compared.

    Raises:
        ValueError: if an area is negative or exceeds the picture.
    """
    pixels = soft.shape[-2:].numel()
    if (area < 0).any() or (area > pixels).any():
        raise ValueError(f"areas must lie in 0…{pixels}")
    order = soft.flatten(-2).argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(pixels, device=soft.device) < area[..., None]
    chosen = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, first)
    return chosen.reshape(soft.shape)


def _share(found: Tensor, near: Tensor) -> Tensor:
    """Share of `found` pixels that are `near`; 1 where there are none, as the protocol has it."""
    hits, all_ = ((x).flatten(-2).sum(dim=-1) for x in (found & near, found))
    return torch.where(all_ > 0, hits / all_.clamp(min=1), 1.0)


def _check_masks(a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."]) -> None:
    if a.dtype != torch.bool or b.dtype != torch.bool:
        raise TypeError(f"masks must be boolean, got {a.dtype} and {b.dtype}")
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"masks must share their shape, got {list(a.shape)} and {list(b.shape)}")
