import contextlib
import io

import numpy as np
import pytest
import torch

from tests.scenes.test_boxes import random_boxes
from toolkit.scenes.detections import Detections
from toolkit.scenes.evaluate import coco_ap, coco_results, coco_truth


def fixture(images=25, seed=0, crowded=True):
    """Objects and noisy reports of them, with false ones; every third image has a crowd region."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels, crowd, detections = [], [], [], []
    for number in range(images):
        count = number % 4
        some = random_boxes(count, seed + number)
        kinds = torch.randint(0, 3, (count,), generator=generator)
        regions = torch.zeros(count, dtype=torch.bool)
        if crowded and count and number % 3 == 0:
            regions[0] = True
            some[0] = torch.tensor([0.0, 0, 50, 40])
        noisy = some + torch.randn(count, 4, generator=generator)
        false = random_boxes(3, seed + 1000 + number)
        within = torch.tensor([[5.0, 5, 15, 15], [20, 10, 34, 30]])
        every = torch.cat([noisy, false, within])
        every = torch.cat([every[:, :2], torch.maximum(every[:, 2:], every[:, :2] + 1)], 1)
        guesses = torch.cat([kinds, torch.randint(0, 3, (5,), generator=generator)])
        scores = torch.rand(len(every), generator=generator)
        order = scores.argsort(descending=True)
        detections.append(Detections(every[order], scores[order], guesses[order]))
        boxes.append(some)
        labels.append(kinds)
        crowd.append(regions)
    return detections, boxes, labels, crowd


def by_pycocotools(detections, boxes, labels, crowd, ranges, by):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth, results = coco.COCO(), coco.COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = coco_truth(boxes, labels, crowd, by)
        truth.createIndex()
        found = [{**row, "iscrowd": 0} for row in coco_results(detections, by)]
        results.dataset = {**truth.dataset, "annotations": found}
        results.createIndex()
        evaluation = cocoeval.COCOeval(truth, results, "bbox")
        evaluation.params.areaRng = [list(r) for r in ranges.values()]
        evaluation.params.areaRngLbl = list(ranges)
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0]


def mean(values):
    return float(values[values > -1].mean())


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize(
    ("by", "buckets"),
    [
        ("area", {"small": (0, 60), "large": (60, 1e9)}),
        ("aspect", {"even": (0, 1.5), "long": (1.5, 99)}),
    ],
)
def test_ap_is_that_of_pycocotools(crowded, by, buckets):
    detections, boxes, labels, crowd = fixture(crowded=crowded)
    ours = coco_ap(detections, boxes, labels, crowd=crowd, buckets=buckets, by=by)
    precision = by_pycocotools(detections, boxes, labels, crowd, {"all": (0, 1e10), **buckets}, by)
    theirs = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    theirs |= {f"AP/{name}": precision[..., 1 + i] for i, name in enumerate(buckets)}
    assert ours == pytest.approx({name: mean(values) for name, values in theirs.items()}, abs=1e-6)
    assert 0.02 < ours["AP"] < 0.98


def test_detections_in_a_crowd_region_are_neither_right_nor_wrong():
    detections, boxes, labels, _ = fixture(images=12)
    inside = torch.tensor([[1.0, 1, 9, 9]] * 5)
    extra = Detections(inside, torch.full((5,), 0.99), torch.zeros(5, dtype=torch.int64))
    region = torch.tensor([[0.0, 0, 60, 60]])
    detections, boxes = [*detections, extra], [*boxes, region]
    labels = [*labels, torch.tensor([0])]
    plain = [torch.zeros(len(some), dtype=torch.bool) for some in boxes]
    marked = [*plain[:-1], torch.tensor([True])]
    without = coco_ap(detections[:-1], boxes[:-1], labels[:-1])
    assert coco_ap(detections, boxes, labels, crowd=marked) == pytest.approx(without)
    assert coco_ap(detections, boxes, labels, crowd=plain)["AP"] < without["AP"]


def test_perfect_and_empty_reports():
    _, boxes, labels, _ = fixture(crowded=False)
    perfect = [Detections(b, torch.ones(len(b)), k) for b, k in zip(boxes, labels, strict=True)]
    nothing = [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))]
    assert coco_ap(perfect, boxes, labels) == pytest.approx({"AP": 1.0, "AP50": 1.0, "AP75": 1.0})
    assert coco_ap(nothing * len(boxes), boxes, labels)["AP"] == 0.0


def test_images_without_objects_give_no_number():
    nothing = [torch.zeros(0, 4)] * 3
    labels = [torch.zeros(0, dtype=torch.int64)] * 3
    found = [Detections(random_boxes(2), torch.rand(2), torch.zeros(2, dtype=torch.int64))] * 3
    assert np.isnan(coco_ap(found, nothing, labels)["AP"])


def test_reports_of_other_images_are_refused():
    detections, boxes, labels, _ = fixture(images=4)
    with pytest.raises(ValueError, match="must be of the same images"):
        coco_ap(detections[:-1], boxes, labels)
    with pytest.raises(ValueError, match="by must be 'aspect' or 'area', got 'size'"):
        coco_ap(detections, boxes, labels, by="size")
