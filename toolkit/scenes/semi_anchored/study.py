"""One seed, all arms: train, then measure detection, boxes and classification on other scenes."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.metrics import average_precision_score
from torch import Tensor

from toolkit.data import SCENE_CLASSES, Scenes, load_emoji_scenes
from toolkit.scenes.anchors import make_anchors
from toolkit.scenes.boxes import pad_boxes, pad_labels
from toolkit.scenes.detections import Detections, select
from toolkit.scenes.evaluate import coco_ap
from toolkit.scenes.semi_anchored.assign import (
    assign_anchors,
    assign_centres,
    assign_locations,
)
from toolkit.scenes.semi_anchored.detector import OneStageDetector
from toolkit.scenes.semi_anchored.losses import paired_iou
from toolkit.scenes.semi_anchored.recipe import Recipe
from toolkit.scenes.semi_anchored.training import outputs, train_detector

ASPECTS = {"even": (0.0, 1.5), "longer": (1.5, 2.2), "longest": (2.2, 1e6)}
"""Buckets of the longer side over the shorter."""
STRIDES, SIZE, BASE = (4, 8, 16), (64, 64), 3.0
POINTS = 12
"""Of a curve of the training loss."""


def run_study(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train every arm of a recipe for one seed and measure it.

    Returns:
        `"ARM/METRIC"`, with the metrics of `detection_scores` and `location_scores`, and
        `"ARM/loss@STEP"`; for further ways to decode, `"semi_DECODE/METRIC"`.
    """
    scenes = load_emoji_scenes("stretched", "train", aspect=recipe.aspect)
    unseen = first(load_emoji_scenes("stretched", recipe.judge, aspect=recipe.aspect), recipe)
    results: dict[str, float] = {}
    for arm in recipe.arms:
        model, losses = train_detector(recipe, arm, scenes, seed, device)
        out = outputs(model, unseen.images)
        scores = detection_scores(model, out, unseen) | location_scores(model, out, unseen)
        results |= {f"{arm}/{name}": value for name, value in scores.items()}
        for part in torch.arange(recipe.steps).tensor_split(min(POINTS, recipe.steps)):
            results[f"{arm}/loss@{int(part[-1]) + 1}"] = float(losses[part].mean())
        for decode in recipe.decodes if arm == "semi" else ():
            model.decode = decode
            again = detection_scores(model, out, unseen)
            results |= {f"semi_{decode}/{name}": value for name, value in again.items()}
    return results


def detections_of(
    model: OneStageDetector, out: dict[str, Tensor], size: tuple[int, int] = SIZE
) -> list[Detections]:
    """What the detector reports, from outputs that are there already."""
    boxes, scores = model.candidates(out)
    each = boxes.shape[1] // sum(size[0] * size[1] // s**2 for s in model.strides)
    cells = [each * (size[0] // s) * (size[1] // s) for s in model.strides]
    return select(boxes, scores, size, levels=cells)


def detection_scores(
    model: OneStageDetector, out: dict[str, Tensor], scenes: Scenes
) -> dict[str, float]:
    """`AP`, `AP50`, `AP75` and `AP_BUCKET` for objects of each bucket of shapes."""
    found = coco_ap(detections_of(model, out), scenes.boxes, scenes.labels, buckets=ASPECTS)
    return {name.replace("/", "_"): value for name, value in found.items() if value == value}


def location_scores(
    model: OneStageDetector, out: dict[str, Tensor], scenes: Scenes
) -> dict[str, float]:
    """Boxes and classes at the locations that the anchor rule makes positive, for every head alike.

    `iou`: mean IoU of the box that the head would report there with the location's object; of the
    anchor of the highest predicted quality, where there are several. `iou_oracle`: of the best
    anchor; `iou_mean`: over all anchors. `iou_BUCKET`: for the objects of a bucket of shapes.
    `location_ap`: mean over classes of the average precision of ranking all locations that are not
    ignored; of several anchors the highest score counts.
    """
    anchors = make_anchors(STRIDES, SIZE, base=BASE)
    boxes, labels = pad_boxes(scenes.boxes), pad_labels(scenes.labels)
    matched = assign_locations(anchors, boxes)
    image, place = (matched >= 0).nonzero(as_tuple=True)
    target = boxes[image, matched[image, place]]
    iou = paired_iou(out["boxes"].cpu()[image, place], target)
    chosen = out["quality"].cpu()[image, place].argmax(1, keepdim=True)
    selected = iou.gather(1, chosen)[:, 0]
    sides = target[:, 2:] - target[:, :2]
    aspect = sides.amax(1) / sides.amin(1)
    by_shape = {
        f"iou_{name}": float(selected[(aspect > low) & (aspect <= high)].mean())
        for name, (low, high) in ASPECTS.items()
        if bool(((aspect > low) & (aspect <= high)).any())
    }
    return {
        "iou": float(selected.mean()),
        "iou_oracle": float(iou.amax(1).mean()),
        "iou_mean": float(iou.mean()),
        **by_shape,
        "location_ap": ranking(out["cls"].cpu(), matched, labels),
    }


def ranking(
    logits: Tensor, matched: Int64[Tensor, "n locations"], labels: Int64[Tensor, "n most"]
) -> float:
    """Mean over classes of the average precision with which locations are ranked."""
    logits = logits.amax(2) if logits.ndim == 4 else logits
    kind = torch.where(matched >= 0, labels.gather(1, matched.clamp(min=0)), matched)
    counted = kind > -2
    values = [
        average_precision_score((kind[counted] == c).numpy(), logits[..., c][counted].numpy())
        for c in range(len(SCENE_CLASSES))
    ]
    return float(np.mean(values))


def sample_counts(scenes: Scenes) -> dict[str, Float[Tensor, "scenes 2"]]:
    """How many negative and positive samples every scene gives the classifier of each head.

    Keys: `retina` (anchors), `semi` (locations by the anchor rule), `one_prior` (locations by one
    square prior), `center` (FCOS's centre sampling).
    """
    anchors, boxes = make_anchors(STRIDES, SIZE, base=BASE), pad_boxes(scenes.boxes)
    square = make_anchors(STRIDES, SIZE, (1.0,), (1.0,), BASE)
    points = (square[:, 0, :2] + square[:, 0, 2:]) / 2
    stride = (square[:, 0, 2] - square[:, 0, 0]) / BASE
    matches = {
        "retina": assign_anchors(anchors, boxes).flatten(1),
        "semi": assign_locations(anchors, boxes),
        "one_prior": assign_locations(square, boxes),
        "center": assign_centres(points, stride, boxes),
    }
    return {
        name: torch.stack([(found == -1).sum(1), (found >= 0).sum(1)], 1).double()
        for name, found in matches.items()
    }


def first(scenes: Scenes, recipe: Recipe) -> Scenes:
    """The first scenes, as many as a recipe judges on."""
    n = recipe.test_images
    return Scenes(scenes.images[:n], scenes.boxes[:n], scenes.labels[:n], scenes.vendors[:n])
