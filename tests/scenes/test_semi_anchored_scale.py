"""The paper's size: COCO folders, two processes, checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.scenes.published import as_coco
from toolkit.data import load_emoji_scenes
from toolkit.learn.distributed import launch
from toolkit.scenes import semi_anchored
from toolkit.scenes.semi_anchored import scale

CPU = torch.device("cpu")
TINY = semi_anchored.PaperRecipe(
    train_images="val",
    train_annotations="val/annotations.json",
    test_images="test",
    test_annotations="small.json",
    depth=50,
    weights="",
    short=(64, 72),
    long=96,
    batch=1,
    max_steps=1,
)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return replace(TINY, data=as_coco(tmp_path_factory.mktemp("coco"), "stretched"))


def test_published_boxes_are_clipped_and_empty_ones_dropped(coco):
    folder = scale.CocoImages(coco, "test", 0)
    scenes = load_emoji_scenes("stretched", "test")
    image = next(i for i in range(3) if folder.rows[i][-1]["id"] == 9002)
    boxes, _, crowd = folder.truth(image, crowd=True)
    assert len(boxes) == len(scenes.boxes[image]) + 1
    assert boxes[-1].tolist() == [60, 60, 64, 64]
    _, labels, regions = folder.truth(0)
    assert not regions.any()
    assert len(labels) == len(folder.truth(0, crowd=True)[1]) - 1
    assert crowd.dtype == torch.bool


def test_images_are_resized_with_their_boxes(coco):
    folder = scale.CocoImages(replace(coco, short=(72, 72)), "train", 0)
    seen = {False: 0, True: 0}
    for index in range(12):
        image, boxes, _ = folder[index]
        plain, _, _ = folder.truth(index)
        assert image.shape == (3, 72, 72)
        same = bool((boxes - plain * 72 / 64).abs().max() < 1e-3)
        mirrored = torch.stack([64 - plain[:, 2], plain[:, 1], 64 - plain[:, 0], plain[:, 3]], 1)
        assert same or (boxes - mirrored * 72 / 64).abs().max() < 1e-3
        seen[same] += 1
    assert min(seen.values()) > 0


def test_batches_have_sides_of_128(coco):
    folder = scale.CocoImages(coco, "train", 0)
    images, boxes, labels = scale.collate([folder[0], folder[1]])
    assert images.shape == (2, 3, 128, 128)
    assert boxes.shape[:2] == labels.shape
    assert (images[:, :, 80:] == 0).all()


def test_large_images_keep_to_the_long_side(tmp_path):
    Image.fromarray(np.zeros((50, 200, 3), np.uint8)).save(tmp_path / "wide.png")
    pixels = torch.zeros(3, 50, 200, dtype=torch.uint8)
    image, factor = scale._resized(pixels, 100, 300)
    assert image.shape == (3, 75, 300)
    assert factor == (1.5, 1.5)


def test_the_rate_warms_up_and_drops_twice():
    recipe = semi_anchored.PaperRecipe()
    assert scale.rate(0, recipe) == pytest.approx(1 / 3)
    assert scale.rate(500, recipe) == 1
    assert scale.rate(120_000, recipe) == pytest.approx(0.1)
    assert scale.rate(170_000, recipe) == pytest.approx(0.01)


def run(recipe):
    return {k: float(v) for k, v in semi_anchored.experiment(recipe, 0, CPU).items()}


@pytest.mark.slow
def test_two_processes_train_test_and_agree(coco):
    first, second = launch(run, 2, coco)
    assert first == second
    assert first.keys() == {"semi/loss", "semi/AP", "semi/AP50", "semi/AP75"}
    assert all(np.isfinite(value) for value in first.values())


@pytest.mark.slow
def test_a_checkpoint_is_taken_up_again(coco, tmp_path):
    recipe = replace(coco, folder=str(tmp_path), save_every=1)
    run(recipe)
    kept = tmp_path / "semi_anchored_semi.pt"
    assert torch.load(kept, weights_only=True)["done"] == 1
    run(recipe)
    assert torch.load(kept, weights_only=True)["done"] == 2
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("yolo",)}, "arms must be of"),
        ({"depth": 18}, "depth must be 50 or 101"),
        ({"short": (900, 800)}, "need 0 < short ≤ long"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_what_cannot_run_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(semi_anchored.PaperRecipe(), **change)


def test_without_a_folder_it_says_how_to_name_one():
    with pytest.raises(ValueError, match="--set data=FOLDER"):
        semi_anchored.experiment(semi_anchored.PaperRecipe(), 0, CPU)
