"""COCO as it is published, for detectors at the paper's size."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from toolkit.learn.distributed import world
from toolkit.learn.torchrun import sum_over_ranks
from toolkit.scenes.detections import Detections
from toolkit.scenes.evaluate import coco_ap

MOST = 100
"""Detections of an image that count."""


class CocoFolder(Dataset):
    """Images of a COCO data set and the truth about them; how one is shown is a subclass's."""

    def __init__(self, data: str, images: str, annotations: str) -> None:
        """Read the annotations.

        Args:
            data: folder of COCO.
            images: folder in it.
            annotations: file in it.

        Raises:
            FileNotFoundError: if there are no annotations.
        """
        root = Path(data).expanduser()
        self.root = root / images
        content = json.loads((root / annotations).read_text("utf-8"))
        self.categories = sorted(row["id"] for row in content["categories"])
        self.images: list[dict] = content["images"]
        self.rows: dict[int, list[dict]] = {row["id"]: [] for row in self.images}
        for row in content["annotations"]:
            self.rows[row["image_id"]].append(row)

    def __len__(self) -> int:
        return len(self.images)

    def truth(self, index: int, crowd: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes as published but cut at the border, classes, and which are crowd regions.

        Annotations whose box has no area are dropped.
        """
        about = self.images[index]
        rows = [r for r in self.rows[about["id"]] if crowd or not r.get("iscrowd", 0)]
        boxes = torch.tensor([r["bbox"] for r in rows], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        far = torch.tensor([about["width"], about["height"]], dtype=torch.float32).repeat(2)
        boxes = boxes.clamp(min=0).minimum(far)
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        kinds = [self.categories.index(r["category_id"]) for r in rows]
        labels = torch.tensor(kinds, dtype=torch.int64)
        regions = torch.tensor([bool(r.get("iscrowd", 0)) for r in rows], dtype=torch.bool)
        return boxes[real], labels[real], regions[real]


@torch.no_grad()
def ap_over_ranks(
    detect: Callable[[int], Detections], test: CocoFolder, device: torch.device
) -> dict[str, float]:
    """`AP`, `AP50`, `AP75`; each process tests its share, and all of them know all detections.

    Args:
        detect: what is found in an image, by its index, in published coordinates.
        test: the images.
        device: of this process.
    """
    rank, size = world()
    found = torch.zeros(len(test), MOST, 6, device=device)
    for index in range(rank, len(test), size):
        one = detect(index)
        columns = [one.boxes, one.scores[:, None], one.labels[:, None].float()]
        found[index, : len(one.boxes)] = torch.cat(columns, 1)
    detections = [_detections(rows[rows[:, 4] > 0]) for rows in sum_over_ranks(found).cpu()]
    truth = [test.truth(index, crowd=True) for index in range(len(test))]
    boxes, labels, crowd = ([row[i] for row in truth] for i in range(3))
    return coco_ap(detections, boxes, labels, crowd=crowd)


def _detections(rows: Tensor) -> Detections:
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].long())
