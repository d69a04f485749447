"""Scenes for detectors: two or three emoji of five classes before a photograph, with their boxes.

On disk every split is a COCO data set: `annotations.json` beside `images/*.png`, with the visible
mask of every object as run lengths, so pycocotools and `torchvision.datasets.CocoDetection` read
it as it is. The loader reads the same pictures from one array.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from toolkit.data.store import locate

SCENE_CLASSES = ("red apple", "banana", "dog face", "cat face", "automobile")
"""Names of the classes; the place in this tuple is the label, and COCO's category id."""
SCENE_VENDORS = ("noto", "twemoji", "fluent-flat", "emojione", "noto-v1")
"""Who draws the objects."""
SCENE_SPLITS = {
    "square": ("train", "val", "test", "unlabelled"),
    "stretched": ("train", "val", "test"),
}
FOLDS, FOLD = 5, 32
"""How many folds the labelled pool of `square` has, and the scenes of each."""


@dataclass(frozen=True)
class Scenes:
    """Scenes of one split; object j of scene i is row j of `boxes[i]`, `labels[i]`, `vendors[i]`.

    Objects lie on one another in their order: the last one is on top.
    """

    images: UInt8[Tensor, "n 3 64 64"]
    boxes: list[Float32[Tensor, "_ 4"]]
    """x₀, y₀, x₁, y₁ in pixels, half-open, of the whole object, also where another one hides it."""
    labels: list[Int64[Tensor, "_"]]
    """An index into `SCENE_CLASSES`."""
    vendors: list[Int64[Tensor, "_"]]
    """Who drew it: an index into `SCENE_VENDORS`."""


def load_emoji_scenes(
    kind: str,
    split: str,
    *,
    aspect: int = 3,
    fold: int | None = None,
    hidden_truth: bool = False,
) -> Scenes:
    """Scenes of one kind and split.

    Args:
        kind: `"square"`, sprites of 16 to 30 px in their own shape, or `"stretched"`, √area from 9
            to 34 px and sides in ratios from 1/3 to 3.
        split: `"train"`, `"val"` or `"test"`; of `square` also `"unlabelled"`, more training
            scenes, whose objects come as none.
        aspect: of `stretched`, the largest ratio of sides: 3, or 1 for the control whose boxes are
            square, drawn alike otherwise.
        fold: of `square`'s training scenes, only 32 f to 32 f + 31, with f from 0 to 4.
        hidden_truth: return what `unlabelled` shows. Only to score labels that a method found;
            nothing that trains may ask for it.

    Raises:
        ValueError: for another kind, split, aspect or fold, or one that does not go with the rest.
        DataMissing: if the set is not prepared; the message names the command.
    """
    _check(kind, split, aspect, fold, hidden_truth)
    folder = locate("emoji_scenes", kind + ("_aspect1" if aspect == 1 else ""), split)
    images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
    annotations = folder / ("truth.json" if hidden_truth else "annotations.json")
    boxes, labels, vendors = _read(annotations, len(images))
    part = slice(None) if fold is None else slice(FOLD * fold, FOLD * (fold + 1))
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2)[part]
    return Scenes(pictures, boxes[part], labels[part], vendors[part])


def _read(path: Path, count: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The rows of every scene of a COCO file: boxes, labels, vendors."""
    boxes: list[list] = [[] for _ in range(count)]
    labels: list[list] = [[] for _ in range(count)]
    vendors: list[list] = [[] for _ in range(count)]
    for row in json.loads(path.read_text("utf-8"))["annotations"]:
        x, y, width, height = row["bbox"]
        boxes[row["image_id"]].append([x, y, x + width, y + height])
        labels[row["image_id"]].append(row["category_id"])
        vendors[row["image_id"]].append(SCENE_VENDORS.index(row["vendor"]))
    return (
        [torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) for rows in boxes],
        [torch.tensor(rows, dtype=torch.int64) for rows in labels],
        [torch.tensor(rows, dtype=torch.int64) for rows in vendors],
    )


def _check(kind: str, split: str, aspect: int, fold: int | None, hidden_truth: bool) -> None:
    if kind not in SCENE_SPLITS:
        raise ValueError(f"kind must be {' or '.join(map(repr, SCENE_SPLITS))}, got {kind!r}")
    if split not in SCENE_SPLITS[kind]:
        known = ", ".join(SCENE_SPLITS[kind])
        raise ValueError(f"the split of {kind!r} must be one of {known}; got {split!r}")
    if aspect not in (1, 3) or (aspect == 1 and kind != "stretched"):
        raise ValueError(f"aspect must be 3, or 1 for 'stretched'; got {aspect} for {kind!r}")
    if fold is not None and (kind, split) != ("square", "train"):
        raise ValueError(f"only the training scenes of 'square' have folds, not {kind!r}/{split!r}")
    if fold is not None and fold not in range(FOLDS):
        raise ValueError(f"fold must be 0 to {FOLDS - 1}, got {fold}")
    if hidden_truth and split != "unlabelled":
        raise ValueError(f"hidden_truth goes with the split 'unlabelled', not {split!r}")
