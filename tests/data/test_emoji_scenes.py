import json

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from toolkit.data import (
    SCENE_CLASSES,
    SCENE_VENDORS,
    DataMissing,
    load_emoji_scenes,
)
from toolkit.data.store import locate

EVERY = [("square", split) for split in ("train", "val", "test")]
EVERY += [("stretched", split) for split in ("train", "val", "test")]
COUNTS = {
    ("square", "train"): 160,
    ("square", "val"): 100,
    ("square", "test"): 200,
    ("square", "unlabelled"): 600,
    ("stretched", "train"): 600,
    ("stretched", "val"): 100,
    ("stretched", "test"): 150,
}
every = pytest.mark.parametrize(("kind", "split"), EVERY)


@pytest.mark.parametrize(("kind", "split"), COUNTS)
def test_counts_and_shapes(kind, split):
    scenes = load_emoji_scenes(kind, split)
    count = COUNTS[kind, split]
    assert scenes.images.shape == (count, 3, 64, 64)
    assert scenes.images.dtype == torch.uint8
    assert len(scenes.boxes) == len(scenes.labels) == len(scenes.vendors) == count


@every
def test_boxes_lie_inside_and_hardly_overlap(kind, split):
    scenes = load_emoji_scenes(kind, split)
    boxes = torch.cat(scenes.boxes)
    assert boxes.dtype == torch.float32
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    for some, labels in zip(scenes.boxes, scenes.labels, strict=True):
        assert 1 <= len(some) == len(labels) <= 3
        assert torch.triu(box_iou(some, some), 1).max() <= 0.1 + 1e-6


@every
def test_classes_and_vendors_are_even(kind, split):
    scenes = load_emoji_scenes(kind, split)
    for values in (torch.cat(scenes.labels), torch.cat(scenes.vendors)):
        share = torch.bincount(values, minlength=5) / len(values)
        assert len(share) == 5
        assert (share - 0.2).abs().max() < 0.09


def test_sides_and_shapes_are_those_asked_for():
    square = torch.cat(load_emoji_scenes("square", "train").boxes)
    assert (square[:, 2:] - square[:, :2]).amax(1).min() >= 8
    assert (square[:, 2:] - square[:, :2]).max() <= 40
    sides = torch.cat(load_emoji_scenes("stretched", "train").boxes)
    sides = sides[:, 2:] - sides[:, :2]
    root, ratio = sides.prod(1).sqrt(), (sides[:, 0] / sides[:, 1]).log()
    assert root.min() >= 8.5
    assert root.max() <= 34.5
    assert ratio.abs().max() <= np.log(3.3)
    assert (ratio.abs() > np.log(2.2)).float().mean() > 0.2
    even = torch.cat(load_emoji_scenes("stretched", "train", aspect=1).boxes)
    assert (even[:, 2] - even[:, 0]).equal(even[:, 3] - even[:, 1])


def test_the_control_shows_the_same_things_in_other_shapes():
    wide = load_emoji_scenes("stretched", "train")
    even = load_emoji_scenes("stretched", "train", aspect=1)
    same = [a.tolist() == b.tolist() for a, b in zip(wide.labels, even.labels, strict=True)]
    first = [int(a[0]) == int(b[0]) for a, b in zip(wide.labels, even.labels, strict=True)]
    assert np.mean(first) == 1
    assert np.mean(same) > 0.3


def test_folds_part_the_labelled_pool():
    pool = load_emoji_scenes("square", "train")
    folds = [load_emoji_scenes("square", "train", fold=fold) for fold in range(5)]
    assert torch.cat([fold.images for fold in folds]).equal(pool.images)
    assert torch.cat([box for fold in folds for box in fold.boxes]).equal(torch.cat(pool.boxes))
    assert all(len(fold.boxes) == 32 for fold in folds)


def test_unlabelled_scenes_hide_their_truth():
    scenes = load_emoji_scenes("square", "unlabelled")
    assert all(len(some) == 0 for some in scenes.boxes)
    assert all(some.shape == (0, 4) for some in scenes.boxes)
    truth = load_emoji_scenes("square", "unlabelled", hidden_truth=True)
    assert min(len(some) for some in truth.boxes) >= 1
    folder = locate("emoji_scenes", "square", "unlabelled")
    assert json.loads((folder / "annotations.json").read_text())["annotations"] == []


def test_loading_does_not_touch_the_truth(monkeypatch):
    read = []
    original = type(locate("emoji_scenes")).read_text

    def watched(self, *args, **kwargs):
        read.append(self.name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr("pathlib.Path.read_text", watched)
    load_emoji_scenes("square", "unlabelled")
    assert read == ["annotations.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "round"}, "kind must be 'square' or 'stretched', got 'round'"),
        ({"kind": "stretched", "split": "unlabelled"}, "split of 'stretched' must be one of"),
        ({"aspect": 2}, "aspect must be 3, or 1"),
        ({"kind": "square", "aspect": 1}, "aspect must be 3, or 1"),
        ({"fold": 0}, "only the training scenes of 'square' have folds"),
        ({"kind": "square", "fold": 5}, "fold must be 0 to 4, got 5"),
        ({"kind": "square", "hidden_truth": True}, "goes with the split 'unlabelled'"),
    ],
)
def test_unknown_settings_are_refused(arguments, message):
    given = {"kind": "stretched", "split": "train", **arguments}
    with pytest.raises(ValueError, match=message):
        load_emoji_scenes(given.pop("kind"), given.pop("split"), **given)


def test_missing_data_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match="python -m data_scripts fetch emoji_scenes"):
        load_emoji_scenes("square", "train")


# --------------------------------------------------------------------------- as COCO data sets


def decoded(annotation, coco):
    return torch.from_numpy(coco.annToMask(annotation)).bool()


@pytest.mark.parametrize(("kind", "split"), [("square", "val"), ("stretched", "test")])
def test_pycocotools_reads_boxes_and_masks(kind, split):
    coco_module = pytest.importorskip("pycocotools.coco")
    folder, scenes = locate("emoji_scenes", kind, split), load_emoji_scenes(kind, split)
    coco = coco_module.COCO(str(folder / "annotations.json"))
    assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == list(SCENE_CLASSES)
    for number in range(0, len(scenes.images), 7):
        rows = coco.loadAnns(coco.getAnnIds(number))
        masks = [decoded(row, coco) for row in rows]
        assert [row["category_id"] for row in rows] == scenes.labels[number].tolist()
        assert not torch.stack(masks).sum(0).gt(1).any()  # visible parts never overlap
        for row, mask, box in zip(rows, masks, scenes.boxes[number].long().tolist(), strict=True):
            assert row["area"] == int(mask.sum()) > 0
            assert row["vendor"] in SCENE_VENDORS
            assert abs(row["rotation"]) <= 15
            x0, y0, x1, y1 = box
            assert mask[y0:y1, x0:x1].sum() == mask.sum()


def test_the_topmost_object_fills_its_box():
    coco_module = pytest.importorskip("pycocotools.coco")
    folder, scenes = locate("emoji_scenes", "square", "val"), load_emoji_scenes("square", "val")
    coco = coco_module.COCO(str(folder / "annotations.json"))
    for number, boxes in enumerate(scenes.boxes):
        mask = decoded(coco.loadAnns(coco.getAnnIds(number))[-1], coco)
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert [int(edge) for edge in tight] == boxes[-1].long().tolist()


@pytest.mark.parametrize(("kind", "split"), [("square", "unlabelled"), ("stretched", "val")])
def test_torchvision_reads_the_same_pictures(kind, split):
    pytest.importorskip("pycocotools")
    from torchvision.datasets import CocoDetection

    folder, scenes = locate("emoji_scenes", kind, split), load_emoji_scenes(kind, split)
    pairs = CocoDetection(str(folder), str(folder / "annotations.json"))
    assert len(pairs) == len(scenes.images)
    for number in (0, 13, len(pairs) - 1):
        image, target = pairs[number]
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert pixels.equal(scenes.images[number])
        assert len(target) == len(scenes.boxes[number])
