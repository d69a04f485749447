"""Speed of assignment and matching, of evaluation, and of the head, each against a named peer."""

import contextlib
import io

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from _report import report
from toolkit.data import load_emoji_scenes
from toolkit.runtime import race, start
from toolkit.scenes.boxes import pad_boxes
from toolkit.scenes.detections import Detections
from toolkit.scenes.evaluate import coco_ap, coco_results, coco_truth
from toolkit.scenes.heads import Tower
from toolkit.scenes.semi_anchored import (
    assign_anchors,
    assign_locations,
    head_cost,
    make_anchors,
)

ASSIGN, EVALUATE, HEAD = 5.0, 3.0, 1.15  # targets: at least so many times faster
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""COCO's, in px²."""


def main() -> None:
    """Print times and ratios."""
    start()
    assignment()
    evaluation()
    head()


def assignment() -> None:
    """A batch of scenes at once, against one image at a time.

    The peers: torchvision's `box_iou` and `Matcher` for each image, as its RetinaNet does it, and
    the same rule location by location, as the paper's text reads.
    """
    anchors = make_anchors((4, 8, 16), (64, 64), base=3.0)
    scenes = load_emoji_scenes("stretched", "train")
    matcher, flat = Matcher(0.5, 0.4, allow_low_quality_matches=True), anchors.flatten(0, 1)

    def each_location(boxes: list[torch.Tensor]) -> list:
        return [
            matcher(box_iou(some, flat).unflatten(1, anchors.shape[:2]).amax(2)) for some in boxes
        ]

    for count in (12, 96):
        boxes = list(scenes.boxes[:count])
        times = race(
            7,
            3,
            locations=lambda b=boxes: assign_locations(anchors, pad_boxes(b)),
            locations_each=lambda b=boxes: each_location(b),
            anchors=lambda b=boxes: assign_anchors(anchors, pad_boxes(b)),
            anchors_each=lambda b=boxes: [matcher(box_iou(some, flat)) for some in b],
        )
        for kind in ("locations", "anchors"):
            report(f"{kind}, {count} scenes", 1e3 * times[kind], "ms")
            report("  torchvision, one by one / ours", times[f"{kind}_each"] / times[kind])
    boxes = list(scenes.boxes[:12])
    times = race(
        3,
        1,
        ours=lambda: assign_locations(anchors, pad_boxes(boxes)),
        reference=lambda: [by_location(anchors, some) for some in boxes],
    )
    gain = times["reference"] / times["ours"]
    report("locations, reference image by image / ours", gain, at_least=ASSIGN)


def by_location(anchors: torch.Tensor, boxes: torch.Tensor) -> list[int]:
    """The rule of `assign_locations` for one image, read from its text."""
    overlap = torch.stack([box_iou(boxes, priors).amax(1) for priors in anchors], 1)
    out = []
    for column in overlap.T.tolist():
        best = max(column)
        out.append(column.index(best) if best >= 0.5 else -1 if best < 0.4 else -2)
    claims: dict[int, tuple[float, int]] = {}
    for number, row in enumerate(overlap.tolist()):
        place = row.index(max(row))
        if max(row) > claims.get(place, (0.0, 0))[0]:
            claims[place] = (max(row), number)
    for place, (_, number) in claims.items():
        out[place] = number
    return out


def evaluation() -> None:
    """AP and COCO's three sizes, of 100 noisy detections an image, against pycocotools."""
    scenes = load_emoji_scenes("stretched", "train")
    detections = [
        noisy(box, label, i)
        for i, (box, label) in enumerate(zip(scenes.boxes, scenes.labels, strict=True))
    ]

    def peer() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            truth, results = COCO(), COCO()
            truth.dataset = coco_truth(scenes.boxes, scenes.labels)
            truth.createIndex()
            rows = [{**row, "iscrowd": 0} for row in coco_results(detections)]
            results.dataset = {**truth.dataset, "annotations": rows}
            results.createIndex()
            judge = COCOeval(truth, results, "bbox")
            judge.params.areaRng = [[0, 1e10], *map(list, SIZES.values())]
            judge.params.areaRngLbl = ["all", *SIZES]
            judge.params.maxDets = [100]
            judge.evaluate()
            judge.accumulate()
        found = judge.eval["precision"][..., 0, 0]
        return float(found[found > -1].mean())

    def ours() -> float:
        found = coco_ap(detections, scenes.boxes, scenes.labels, buckets=SIZES, by="area")
        return found["AP"]

    assert abs(ours() - peer()) < 1e-6
    times = race(3, 1, ours=ours, pycocotools=peer)
    report(f"AP of {len(detections)} images", times["ours"], "s")
    report("  pycocotools / ours", times["pycocotools"] / times["ours"], at_least=EVALUATE)


def noisy(box: torch.Tensor, label: torch.Tensor, seed: int) -> Detections:
    """100 detections: the objects, moved a little, many times, with random classes at times."""
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(0, len(box), (100,), generator=generator)
    moved = box[pick] + torch.randn(100, 4, generator=generator) * 2
    moved = torch.cat([moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2] + 1)], 1)
    scores = torch.rand(100, generator=generator).sort(descending=True).values
    kinds = torch.randint(0, 5, (100,), generator=generator)
    right = torch.rand(100, generator=generator) < 0.7
    return Detections(moved, scores, torch.where(right, label[pick], kinds))


def head() -> None:
    """The whole head on one level of 50×84 cells, COCO's 80 classes, against torchvision's."""
    torch.manual_seed(0)
    maps = [torch.rand(1, 256, 50, 84)]
    classes, boxes = Tower(256, 80, 4, 32), Tower(256, 45, 4, 32)
    peer = RetinaNetHead(256, 9, 80, norm_layer=lambda width: torch.nn.GroupNorm(32, width))
    with torch.no_grad():
        times = race(
            3,
            1,
            semi=lambda: (classes(maps), boxes(maps)),
            retina=lambda: peer(maps),
        )
    costs = [head_cost(name, 80, 9, 256, depth=4)["macs"] for name in ("retina", "semi")]
    report("head, 4,200 cells", 1e3 * times["semi"], "ms")
    report("  torchvision's RetinaNetHead / ours", times["retina"] / times["semi"], at_least=HEAD)
    print(f"  by multiply-adds: {costs[0] / costs[1]:.3g} ×")


if __name__ == "__main__":
    main()
