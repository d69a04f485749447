"""Average precision as COCO defines it, by faster-coco-eval, from plain boxes."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from toolkit.scenes.detections import Detections

EVERY = (0.0, 1e10)


def coco_ap(
    detections: Sequence[Detections],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    labels: Sequence[Int64[Tensor, "_"]],
    *,
    crowd: Sequence[Bool[Tensor, "_"]] | None = None,
    buckets: Mapping[str, tuple[float, float]] | None = None,
    by: str = "aspect",
) -> dict[str, float]:
    """Average precision over IoU thresholds .50, .55 … .95, classes and recalls.

    Args:
        detections: of each image; the best 100 count.
        boxes: true ones of each image, x₀, y₀, x₁, y₁ in pixels.
        labels: their classes.
        crowd: which of them are crowd regions: what lies in one is neither right nor wrong.
        buckets: names of subsets of objects and the interval of each. As for COCO's small, medium
            and large, a detection outside the interval that matches nothing does not count.
        by: what intervals bound: `"aspect"`, the longer side over the shorter, or `"area"`, px².

    Returns:
        `AP`, `AP50`, `AP75`, and `AP/NAME` of every bucket; NaN where there is no object.

    Raises:
        ValueError: if the numbers of images differ, or for another `by`.
    """
    if not len(detections) == len(boxes) == len(labels):
        raise ValueError(
            f"detections of {len(detections)} images, boxes of {len(boxes)}, labels of "
            f"{len(labels)}: they must be of the same images"
        )
    if by not in ("aspect", "area"):
        raise ValueError(f"by must be 'aspect' or 'area', got {by!r}")
    ranges = {"all": EVERY, **(buckets or {})}
    truth = coco_truth(boxes, labels, crowd, by)
    found = coco_results(detections, by)
    with contextlib.redirect_stdout(io.StringIO()):
        precision = _precision(truth, found, ranges)
    table = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    table |= {f"AP/{name}": precision[..., 1 + i] for i, name in enumerate(buckets or {})}
    return {name: _mean(values) for name, values in table.items()}


def coco_truth(
    boxes: Sequence[Float[Tensor, "_ 4"]],
    labels: Sequence[Int64[Tensor, "_"]],
    crowd: Sequence[Bool[Tensor, "_"]] | None = None,
    by: str = "area",
) -> dict[str, Any]:
    """Objects as a COCO data set; with `by="aspect"` its field `area` holds the aspect."""
    sizes = [len(some) for some in boxes]
    image = np.repeat(np.arange(len(sizes)), sizes)
    every = torch.cat(list(boxes)).double().cpu().numpy().reshape(-1, 4)
    label = torch.cat(list(labels)).cpu().numpy()
    crowded = torch.cat(list(crowd)).cpu().numpy() if crowd else np.zeros(len(every), bool)
    columns = image, label, _xywh(every), _measure(every, by), crowded.astype(int)
    annotations = [
        {
            "id": 1 + number,
            "image_id": where,
            "category_id": kind,
            "bbox": box,
            "area": size,
            "iscrowd": region,
        }
        for number, (where, kind, box, size, region) in enumerate(_rows(*columns))
    ]
    return {
        "images": [{"id": number} for number in range(len(sizes))],
        "annotations": annotations,
        "categories": [{"id": int(kind), "name": str(kind)} for kind in np.unique(label)],
    }


def coco_results(detections: Sequence[Detections], by: str = "area") -> list[dict[str, Any]]:
    """Detections in COCO's form of results, with `area` as in `coco_truth`."""
    image = np.repeat(np.arange(len(detections)), [len(one.scores) for one in detections])
    every = torch.cat([one.boxes for one in detections]).double().cpu().numpy().reshape(-1, 4)
    score = torch.cat([one.scores for one in detections]).double().cpu().numpy()
    label = torch.cat([one.labels for one in detections]).cpu().numpy()
    columns = image, label, _xywh(every), score, _measure(every, by)
    return [
        {
            "id": 1 + number,
            "image_id": where,
            "category_id": kind,
            "bbox": box,
            "score": value,
            "area": size,
        }
        for number, (where, kind, box, value, size) in enumerate(_rows(*columns))
    ]


def _precision(truth: dict, found: list, ranges: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Interpolated precision [10 thresholds, 101 recalls, classes, ranges]; −1 without objects."""
    if not truth["annotations"]:
        return np.full((10, 101, 1, len(ranges)), -1.0)
    known = COCO(truth)
    results = COCO({**truth, "annotations": found})
    evaluation = COCOeval_faster(known, results, iouType="bbox")
    evaluation.params.areaRng = [list(interval) for interval in ranges.values()]
    evaluation.params.areaRngLbl = list(ranges)
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., 0]


def _mean(precision: np.ndarray) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else float("nan")


def _rows(*columns: np.ndarray) -> Iterator[tuple]:
    """Rows of plain Python numbers and lists."""
    return zip(*(column.tolist() for column in columns), strict=True)


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def _measure(boxes: np.ndarray, by: str) -> np.ndarray:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
    return sides.prod(1) if by == "area" else sides.max(1) / sides.min(1)
