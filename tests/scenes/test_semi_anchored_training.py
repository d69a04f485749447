"""The small experiment: training, flips, measures, profiles."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from toolkit.data import Scenes, load_emoji_scenes
from toolkit.scenes import semi_anchored
from toolkit.scenes.boxes import pad_boxes
from toolkit.scenes.semi_anchored.study import (
    detection_scores,
    location_scores,
    ranking,
    sample_counts,
)
from toolkit.scenes.semi_anchored.training import flipped, train_detector

CPU = torch.device("cpu")


def few(count=24, split="train"):
    scenes = load_emoji_scenes("stretched", split)
    return Scenes(
        scenes.images[:count], scenes.boxes[:count], scenes.labels[:count], scenes.vendors[:count]
    )


def test_mirrored_boxes_lie_on_their_objects():
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 10:20, 5:30] = 255
    boxes = pad_boxes([torch.tensor([[5.0, 10, 30, 20]])] * 2)
    turned, moved = flipped(images, boxes, torch.tensor([True, False]))
    assert moved[:, 0].tolist() == [[34, 10, 59, 20], [5, 10, 30, 20]]
    assert turned[0, 0, 10:20, 34:59].min() == 255
    assert turned[0].sum() == images[0].sum()
    assert turned[1].equal(images[1])


def test_mirroring_keeps_padding():
    boxes = pad_boxes([torch.zeros(0, 4), torch.tensor([[5.0, 10, 30, 20]])])
    _, moved = flipped(
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8), boxes, torch.tensor([True, True])
    )
    assert moved[0].isnan().all()
    assert not moved[1].isnan().any()


@pytest.mark.slow
def test_one_seed_gives_the_same_detector_twice():
    recipe = semi_anchored.Recipe(steps=3, batch=4)
    losses = [train_detector(recipe, "semi", few(), 5, CPU)[1] for _ in range(2)]
    assert losses[0].equal(losses[1])
    assert not train_detector(recipe, "semi", few(), 6, CPU)[1].equal(losses[0])


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["semi", "retina", "fcos"])
def test_training_lowers_the_loss(arm):
    recipe = semi_anchored.Recipe(steps=30, batch=6, warmup=5)
    _, losses = train_detector(recipe, arm, few(12), 0, CPU)
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()


@pytest.mark.slow
def test_experiment_reports_every_arm():
    recipe = semi_anchored.Recipe(
        arms=("semi", "fcos_centreness"), steps=2, batch=4, test_images=10, decodes=("all", "mean")
    )
    results = semi_anchored.experiment(recipe, 0, CPU)
    for arm in ("semi", "semi_all", "semi_mean", "fcos_centreness"):
        assert 0 <= results[f"{arm}/AP"] <= 1
    assert results["semi/iou_mean"] <= results["semi/iou_oracle"]
    assert results["fcos_centreness/iou"] == results["fcos_centreness/iou_oracle"]
    assert "semi/loss@2" in results


def test_perfect_outputs_get_perfect_scores():
    scenes = few(10, "test")
    model = semi_anchored.OneStageDetector(5)
    anchors = semi_anchored.make_anchors((4, 8, 16), (64, 64), base=3.0)
    boxes = pad_boxes(scenes.boxes)
    matched = semi_anchored.assign_locations(anchors, boxes)
    labels = torch.nn.utils.rnn.pad_sequence(scenes.labels, batch_first=True)
    kinds = labels.gather(1, matched.clamp(min=0))
    cls = torch.full((10, 336, 5), -30.0)
    cls.scatter_(2, kinds[..., None], torch.where(matched >= 0, 30.0, -30.0)[..., None])
    target = boxes.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 4))
    out = {
        "cls": cls,
        "boxes": torch.where((matched >= 0)[..., None], target, torch.tensor([0.0, 0, 1, 1]))[
            :, :, None
        ].expand(-1, -1, 9, -1),
        "quality": torch.full((10, 336, 9), 30.0),
    }
    found = detection_scores(model, out, scenes) | location_scores(model, out, scenes)
    assert found["AP"] == pytest.approx(1.0)
    assert found["iou"] == pytest.approx(1.0)
    assert found["location_ap"] == pytest.approx(1.0)


def test_ranking_leaves_ignored_locations_out():
    matched = torch.tensor([[0, -1, -2, -1]])
    labels = torch.tensor([[0]])
    logits = torch.tensor([[[2.0] * 5, [1.0] * 5, [9.0] * 5, [0.0] * 5]])
    with pytest.warns(UserWarning, match="positive"):  # four classes are not there
        assert ranking(logits, matched, labels) == pytest.approx(0.2)


def test_classifying_locations_divides_the_imbalance():
    counts = {name: table.sum(0) for name, table in sample_counts(few(300)).items()}
    ratio = {name: float(total[0] / total[1]) for name, total in counts.items()}
    assert ratio["retina"] == pytest.approx(101.0, rel=0.05)
    assert ratio["semi"] == pytest.approx(24.5, rel=0.05)
    assert ratio["one_prior"] == pytest.approx(84, rel=0.08)
    assert ratio["retina"] / ratio["semi"] > 3


def test_profiles_differ_in_size_only():
    quick, full = (semi_anchored.PROFILES[name] for name in ("quick", "full"))
    assert set(quick.arms) < set(full.arms)
    assert full.seeds >= 5
    assert set(semi_anchored.studies("full")) == {"main", "control", "variants"}
    with pytest.raises(ValueError, match="quick or full"):
        semi_anchored.studies("paper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("yolo",)}, "arms must be some of"),
        ({"steps": 0}, "must be positive"),
        ({"aspect": 2}, "aspect must be 1 or 3"),
        ({"judge": "train"}, "judge must be"),
        ({"decodes": ("best",)}, "decodes must be of"),
    ],
)
def test_settings_that_cannot_run_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(semi_anchored.Recipe(), **change)


def test_a_recipe_of_another_paper_is_refused():
    with pytest.raises(TypeError):
        semi_anchored.experiment(np.zeros(3), 0, CPU)
