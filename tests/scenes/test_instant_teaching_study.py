"""How labels are judged, and the small experiment."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.scenes.test_evaluate import fixture
from toolkit.data import load_emoji_scenes
from toolkit.scenes import instant_teaching
from toolkit.scenes.detections import Detections
from toolkit.scenes.evaluate import coco_ap
from toolkit.scenes.instant_teaching.quality import (
    judge_labels,
    label_ap,
    label_counts,
    precision_at_recall,
    precision_recall,
)
from toolkit.scenes.instant_teaching.study import burn_ins, lessons

CPU = torch.device("cpu")
TINY = instant_teaching.Recipe(
    arms=("instant",), burn_in=2, steps=2, batch=2, unlabelled=8, test_images=4, tau=0.05
)


def judged(seed=0, images=25):
    found, boxes, labels, _ = fixture(images, seed, crowded=False)
    return judge_labels(found, boxes, labels, 3), (found, boxes, labels)


def one(boxes, scores, labels):
    return Detections(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels).long()
    )


# ---------------------------------------------------------------------------------- judging


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_label_ap_is_cocos(seed):
    ours, given = judged(seed)
    assert label_ap(ours) == pytest.approx(coco_ap(*given)["AP"], abs=1e-6)


def test_label_ap_of_chosen_pictures_is_that_of_those_pictures_alone():
    ours, (found, boxes, labels) = judged()
    some = [3, 4, 7, 9, 11, 14, 18]
    alone = coco_ap(*([part[i] for i in some] for part in (found, boxes, labels)))["AP"]
    assert label_ap(ours, some) == pytest.approx(alone, abs=1e-6)
    assert label_ap(ours, np.repeat(np.arange(25), 3)) == pytest.approx(label_ap(ours), abs=1e-6)


def test_each_object_is_used_once_and_by_the_best_label():
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    found = one(
        [[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 10]],
        [0.5, 0.9, 0.8, 0.7],
        [0, 0, 1, 2],
    )
    ours = judge_labels([found], [truth], [torch.tensor([0, 1])], 3)
    assert ours.score.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.5])
    assert ours.hit[:, 0].tolist() == [True, True, False, False]
    assert ours.hit[:, 9].tolist() == [False, True, False, True]  # IoU .95: the second best
    assert precision_recall(ours, 0.6) == pytest.approx((2 / 3, 1.0))
    assert precision_recall(ours, 0.85) == pytest.approx((1.0, 0.5))
    assert np.isnan(precision_recall(ours, 0.95)[0])


def test_precision_at_a_recall_takes_the_highest_threshold_that_reaches_it():
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    found = one(
        [[40.0, 40, 50, 50], [0, 0, 10, 10], [45, 45, 50, 50], [20, 20, 30, 30]],
        [0.9, 0.8, 0.7, 0.6],
        [0, 0, 0, 0],
    )
    ours = judge_labels([found], [truth], [torch.tensor([0, 0])], 1)
    assert precision_at_recall(ours, 0.5) == (0.5, True)
    assert precision_at_recall(ours, 1.0) == (0.5, True)
    few = judge_labels([one([[0.0, 0, 10, 10]], [0.9], [0])], [truth], [torch.tensor([0, 0])], 1)
    assert precision_at_recall(few, 0.8) == (1.0, False)


def test_counts_add_up_to_precision():
    ours, _ = judged()
    counts = label_counts(ours, 0.4).sum(0)
    assert counts[1] / counts[0] == pytest.approx(precision_recall(ours, 0.4)[0])
    assert (label_counts(ours, 0.4) <= label_counts(ours, 0.2)).all()


def test_pictures_without_labels_or_objects_are_judged():
    none = one([], [], [])
    ours = judge_labels([none, none], [torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2, 3)
    assert np.isnan(label_ap(ours))
    assert np.isnan(precision_at_recall(ours, 0.5)[0])
    with pytest.raises(ValueError, match="2 pictures"):
        judge_labels([none, none], [torch.zeros(0, 4)], [torch.zeros(0).long()], 3)


# --------------------------------------------------------------------------------- training


def state(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.slow
def test_a_seed_gives_the_same_networks_twice_and_two_that_differ():
    recipe = replace(TINY, arms=("co_rectify",))
    first, again = burn_ins(recipe, 3, CPU), burn_ins(recipe, 3, CPU)
    assert state(first[0]).equal(state(again[0]))
    assert not state(first[0]).equal(state(first[1]))
    ends = []
    for _ in range(2):
        *_, end = lessons(recipe, "co_rectify", first, 3, CPU)
        ends.append(state(end.models[0]))
    assert ends[0].equal(ends[1])
    assert state(first[0]).equal(state(again[0]))  # what was burnt in stays as it was


@pytest.mark.slow
def test_stops_do_not_change_what_is_learnt():
    models = burn_ins(TINY, 0, CPU)
    *_, whole = lessons(TINY, "instant", models, 0, CPU)
    kept = state(whole.models[0])
    steps = []
    for lesson in lessons(TINY, "instant", models, 0, CPU, stops=(1,)):
        steps.append(lesson.step)
    assert steps == [1, 2]
    assert state(lesson.models[0]).equal(kept)


@pytest.mark.slow
def test_the_experiment_reports_every_arm():
    recipe = replace(TINY, arms=tuple(instant_teaching.ARMS))
    results = instant_teaching.experiment(recipe, 0, CPU)
    for arm in (*instant_teaching.ARMS, "burn_in"):
        assert 0 <= results[f"{arm}/AP"] <= 1
    for arm in instant_teaching.ARMS:
        assert {f"{arm}/{name}" for name in ("matched", "recall", "boxes")} <= results.keys()
    assert {"own/label_ap", "rectified/label_ap", "burn_in/recall@0.05"} <= results.keys()


@pytest.mark.slow
def test_rates_are_chosen_without_the_hidden_truth(monkeypatch):
    import toolkit.scenes.instant_teaching.study as study

    def never(*args, **kwargs):
        raise AssertionError("the hidden truth was read")

    monkeypatch.setattr(study, "hidden", never)
    recipe = replace(TINY, arms=("supervised", "static", "instant"), judge="val")
    results = instant_teaching.experiment(recipe, 10_000, CPU)
    assert {"burn_in/f1@0.5", "static/AP"} <= results.keys()
    with pytest.raises(AssertionError, match="hidden truth"):
        instant_teaching.experiment(replace(TINY, arms=("oracle",), judge="val"), 0, CPU)


@pytest.mark.slow
def test_burn_in_learns():
    recipe = replace(TINY, burn_in=50, batch=8)
    (model,) = burn_ins(recipe, 0, CPU)
    scenes = load_emoji_scenes("square", "train", fold=0)
    found = model.predict(scenes.images.float() / 255)
    assert coco_ap(found, scenes.boxes, scenes.labels)["AP50"] > 0.05


def test_profiles_differ_in_size_only():
    quick, full = (instant_teaching.PROFILES[name] for name in ("quick", "full"))
    assert set(quick.arms) < set(full.arms)
    assert full.seeds >= 5
    studies = instant_teaching.studies("full")
    assert set(studies) == {"main", "extras", "tuning"}
    assert studies["tuning"].judge == "val"
    with pytest.raises(ValueError, match="quick or full"):
        instant_teaching.studies("paper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("yolo",)}, "arms must be some of"),
        ({"steps": 0}, "at least 1"),
        ({"lr": 0.0}, "must be positive"),
        ({"tau": 1.0}, "0 < tau < 1"),
        ({"unlabelled": 601}, "unlabelled must lie"),
        ({"judge": "train"}, "judge must be"),
    ],
)
def test_settings_that_cannot_run_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(instant_teaching.Recipe(), **change)


def test_a_recipe_of_another_paper_is_refused():
    with pytest.raises(TypeError, match="recipe"):
        instant_teaching.experiment(3, 0, CPU)
