"""The paper's size: COCO canvases, pairs, two processes, checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.scenes.published import as_coco
from toolkit.data import load_emoji_scenes
from toolkit.learn.distributed import launch
from toolkit.scenes import instant_teaching
from toolkit.scenes.instant_teaching import scale

CPU = torch.device("cpu")
SMALL = replace(
    scale.FASTER, candidates=20, proposals=20, rpn_samples=16, roi_samples=8, pool=3, hidden=16
)
TINY = instant_teaching.PaperRecipe(
    train_images="val",
    train_annotations="val/annotations.json",
    test_images="test",
    test_annotations="small.json",
    share=0.1,
    weights="",
    anatomy=SMALL,
    short=(60, 96),
    canvas=128,
    tau=0.02,
    max_steps=1,
)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return replace(TINY, data=as_coco(tmp_path_factory.mktemp("coco"), "square"))


def test_published_boxes_are_cut_and_empty_ones_dropped(coco):
    folder = scale.CocoCanvas(coco, "test")
    scenes = load_emoji_scenes("square", "test")
    image = next(i for i in range(3) if folder.rows[i][-1]["id"] == 9002)
    boxes, labels, _ = folder.truth(image, crowd=True)
    assert len(boxes) == len(labels) == len(scenes.boxes[image]) + 1
    assert boxes[-1].tolist() == [60, 60, 64, 64]
    assert len(folder.truth(0)[1]) == len(folder.truth(0, crowd=True)[1]) - 1


def test_pictures_lie_in_the_middle_of_their_canvas_with_their_boxes(coco):
    folder = scale.CocoCanvas(coco, "train")
    scenes = load_emoji_scenes("square", "val")
    image, boxes, labels = folder[0]
    assert image.shape == (3, 128, 128)
    assert (image[:, :16] == 128).all()
    assert (image[:, :, 112:] == 128).all()
    assert torch.allclose(boxes, scenes.boxes[0] * 1.5 + 16)
    assert labels.equal(scenes.labels[0])
    small = torch.nn.functional.avg_pool2d(image[:, 16:112, 16:112].float(), 3, 3)
    plain = torch.nn.functional.avg_pool2d(scenes.images[0].float(), 2, 2)
    assert (small - plain).abs().mean() < 6


def test_labelled_and_unlabelled_pictures_are_apart_and_paired_by_blocks(coco):
    pairs = scale.Pairs(scale.CocoCanvas(coco, "train"), 0.1, seed=4)
    assert len(pairs) == 10
    assert not set(pairs.labelled) & set(pairs.unlabelled)
    assert len(pairs.unlabelled) == 90
    picked = {}
    pairs.pictures = {i: (torch.tensor(i),) * 3 for i in range(100)}
    for epoch in range(6):
        pairs.epoch = epoch
        for index in range(10):
            (labelled, _, _), unlabelled = pairs[index]
            other = int(unlabelled)
            assert int(labelled) == pairs.labelled[index]
            assert other in pairs.unlabelled[9 * index : 9 * index + 9]
            picked.setdefault(index, set()).add(other)
    assert max(len(seen) for seen in picked.values()) > 2


def test_the_rate_warms_up_and_drops_twice():
    recipe = instant_teaching.PaperRecipe()
    assert scale.rate(0, recipe, 1478) == pytest.approx(1 / 3)
    assert scale.rate(200, recipe, 1478) == pytest.approx(1)
    assert scale.rate(80 * 1478, recipe, 1478) == pytest.approx(0.1)
    assert scale.rate(110 * 1478, recipe, 1478) == pytest.approx(0.01)


def test_strong_views_of_the_release_stay_pictures():
    x = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    out, view = scale.strong_view(x, torch.Generator().manual_seed(1), (0.6, 1.0))
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1
    assert view.scale.abs().min() >= 0.6


def run(recipe):
    return {k: float(v) for k, v in instant_teaching.experiment(recipe, 0, CPU).items()}


@pytest.mark.slow
def test_two_processes_train_test_and_agree(coco):
    first, second = launch(run, 2, replace(coco, arms=("co_rectify",)))
    assert first == second
    assert first.keys() == {f"co_rectify/{name}" for name in ("loss", "AP", "AP50", "AP75")}
    assert all(np.isfinite(value) for value in first.values())


@pytest.mark.slow
def test_a_checkpoint_is_taken_up_again(coco, tmp_path):
    recipe = replace(coco, arms=("supervised",), folder=str(tmp_path), save_every=1)
    run(recipe)
    kept = tmp_path / "instant_teaching_supervised.pt"
    assert torch.load(kept, weights_only=True)["done"] == 1
    run(recipe)
    assert torch.load(kept, weights_only=True)["done"] == 2
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("yolo",)}, "arms must be of"),
        ({"depth": 18}, "depth must be 50 or 101"),
        ({"short": (900, 800)}, "need 0 < short"),
        ({"canvas": 1000}, "multiple of 64"),
        ({"share": 1.0}, "share must lie"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_what_cannot_run_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(instant_teaching.PaperRecipe(), **change)


def test_without_a_folder_it_says_how_to_name_one():
    with pytest.raises(ValueError, match="--set data=FOLDER"):
        instant_teaching.experiment(instant_teaching.PaperRecipe(), 0, CPU)
