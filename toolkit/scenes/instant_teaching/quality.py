"""How good pseudo labels are, judged by the truth that training never sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from toolkit.scenes.boxes import pad_boxes, pad_labels, pairwise_iou
from toolkit.scenes.detections import Detections

IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Judged:
    """Labels of many pictures, by falling score, and which of them are right."""

    image: NDArray
    """[n]: the picture of each label."""
    label: NDArray
    score: NDArray
    hit: NDArray
    """[n, 10]: right class and IoU ≥ .50, .55 … .95 with an object that no better label took."""
    truths: NDArray
    """[pictures, C]: objects of each class."""


def judge_labels(
    found: Sequence[Detections],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    labels: Sequence[Int64[Tensor, "_"]],
    num_classes: int,
) -> Judged:
    """Compare found labels with the truth, as COCO does: each object is used once, by score.

    All pictures and IoU thresholds are matched at once, rank by rank.

    Raises:
        ValueError: if the numbers of pictures differ.
    """
    if not len(found) == len(boxes) == len(labels):
        raise ValueError(
            f"labels found in {len(found)} pictures, but boxes of {len(boxes)} and classes of "
            f"{len(labels)}"
        )
    found = [_host(one) for one in found]
    ours, kinds = pad_boxes([f.boxes for f in found]), pad_labels([f.labels for f in found])
    truth, classes = pad_boxes(boxes), pad_labels(labels)
    iou = pairwise_iou(ours.nan_to_num(-1e6), truth.nan_to_num(1e6))
    iou = iou * (kinds[:, :, None] == classes[:, None])
    hit = _matched(iou)
    rows = [hit[image, : len(one.scores)] for image, one in enumerate(found)]
    score = torch.cat([one.scores for one in found])
    order = score.argsort(descending=True, stable=True)
    image = torch.arange(len(found)).repeat_interleave(torch.tensor([len(r) for r in rows]))
    counts = torch.stack([(classes == kind).sum(1) for kind in range(num_classes)], 1)
    return Judged(
        image[order].numpy(),
        torch.cat([one.labels for one in found])[order].numpy(),
        score[order].numpy(),
        torch.cat(rows)[order].numpy(),
        counts.numpy(),
    )


def precision_recall(judged: Judged, tau: float) -> tuple[float, float]:
    """Precision and recall at IoU ½ of the labels with a score of at least τ; NaN without any."""
    sure = judged.score >= tau
    hits = judged.hit[sure, 0].sum()
    precision = hits / sure.sum() if sure.any() else np.nan
    return float(precision), float(hits / judged.truths.sum())


def precision_at_recall(judged: Judged, recall: float) -> tuple[float, bool]:
    """Precision at IoU ½ with the highest threshold that reaches a recall.

    Returns:
        The precision, and whether the recall is reached; if not, of all labels.
    """
    hits = judged.hit[:, 0].cumsum()
    reached = hits >= recall * judged.truths.sum() - 1e-9
    place = int(reached.argmax()) if reached.any() else len(hits) - 1
    if not len(hits):
        return float("nan"), False
    return float(hits[place] / (place + 1)), bool(reached.any())


def label_counts(judged: Judged, tau: float) -> NDArray:
    """[pictures, 2]: labels with a score of at least τ in each picture, and the right ones."""
    sure = judged.score >= tau
    pictures = len(judged.truths)
    every = np.bincount(judged.image[sure], minlength=pictures)
    right = np.bincount(judged.image[sure], judged.hit[sure, 0], minlength=pictures)
    return np.stack([every, right], 1)


def label_ap(judged: Judged, pictures: ArrayLike | None = None) -> float:
    """COCO's average precision over classes and IoU .50 … .95.

    Args:
        judged: labels and truth.
        pictures: indices of pictures, repeated as often as they count (for a bootstrap); by
            default each once.
    """
    count = len(judged.truths)
    chosen = np.arange(count) if pictures is None else np.asarray(pictures, int)
    weight = np.bincount(chosen, minlength=count).astype(float)
    total = weight @ judged.truths
    values = []
    for kind in np.flatnonzero(total):
        mine = judged.label == kind
        values.append(_class_ap(judged.hit[mine], weight[judged.image[mine]], total[kind]))
    return float(np.mean(values)) if values else float("nan")


def _class_ap(hit: NDArray, weight: NDArray, total: float) -> float:
    right = (weight[:, None] * hit).cumsum(0)
    every = weight.cumsum()[:, None]
    precision = right / np.maximum(every, 1e-12)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    precision = np.concatenate([precision, np.zeros((1, hit.shape[1]))])
    places = [np.searchsorted(column, RECALLS * total - 1e-9) for column in right.T]
    return float(np.mean([precision[place, i] for i, place in enumerate(places)]))


def _matched(iou: Float[Tensor, "images found truths"]) -> Bool[Tensor, "images found 10"]:
    """Which labels, best first, find an object that is still free, at each threshold."""
    images, count, truths = iou.shape
    least = torch.tensor(IOUS, dtype=iou.dtype)[None, :, None]
    free = torch.ones(images, len(IOUS), truths, dtype=torch.bool)
    hit = torch.zeros(images, count, len(IOUS), dtype=torch.bool)
    for rank in range(count):
        overlap = iou[:, rank, None] * free
        best, place = overlap.max(2, keepdim=True)
        right = best >= least
        hit[:, rank] = right[..., 0]
        free &= ~(torch.zeros_like(free).scatter_(2, place, True) & right)
    return hit


def _host(one: Detections) -> Detections:
    """On the CPU, by falling score."""
    order = one.scores.argsort(descending=True, stable=True).cpu()
    return Detections(one.boxes.cpu()[order], one.scores.cpu()[order], one.labels.cpu()[order])
