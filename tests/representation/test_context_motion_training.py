"""Batches, probes and the experiment, on the prepared small videos."""

from dataclasses import replace

import pytest
import torch

from toolkit.representation import context_motion as cm
from toolkit.representation.context_motion import pretext, probes
from toolkit.representation.context_motion.recipe import ARMS

CPU = torch.device("cpu")
TINY = cm.Recipe(steps=2, videos=16)


def rng(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture(scope="module")
def videos_():
    return cm.load_motion_videos("easy", "train", "small")


def test_videos_come_with_motion_in_every_frame(videos_):
    assert videos_.grey.shape == (200, 48, 56, 56)
    assert videos_.mv.shape == (200, 48, 2, 14, 14)
    assert videos_.keyframes.tolist() == [0, 12, 24, 36]
    speed = videos_.mv.norm(dim=2).mean(dim=(0, 2, 3))
    assert speed.min() > 0.3 * speed.median()


def test_motion_vectors_of_classes_point_where_they_should(videos_):
    middle = videos_.mv[:, 17:25]
    fast = middle.flatten(3).abs().amax(dim=(1, 2, 3)) > 0.5
    for label, axis, sign in ((0, 0, 1), (1, 0, -1), (2, 1, 1), (3, 1, -1)):
        mine = middle[(videos_.label == label) & fast][:, :, axis, 3:11, 3:11]
        assert sign * mine.mean() > 0.05


def batch_of(arm, videos_, recipe=TINY, number=0):
    rows = torch.arange(len(videos_.label))
    return next(pretext._batches(recipe, arm, videos_, rows, 1, number, CPU))


def test_batches_hold_what_their_arm_needs(videos_):
    clips, _, keyframes, positive, negative = batch_of("both", videos_)
    assert clips.shape == (32, 1, 8, 40, 40)
    assert keyframes.shape == (16, 1, 1, 40, 40)
    assert positive.shape == (16, 2, 8, 14, 14)
    assert negative.shape == (48, 2, 8, 14, 14)
    clips, _, keyframes, positive, _ = batch_of("context", videos_)
    assert len(clips) == len(keyframes) == 16
    assert len(positive) == 0
    clips, labels, keyframes, positive, _ = batch_of("motion", videos_)
    assert len(clips) == len(positive) == 16
    assert len(keyframes) == 0
    assert labels.sort().values.tolist() == [c for c in range(8) for _ in range(2)]


def test_kin_share_a_scene_and_context_clips_do_not(videos_):
    groups = pretext._kin(torch.arange(200), videos_.scene, 8, rng())
    seen = torch.cat([next(groups) for _ in range(25)])
    assert seen.sort().values.tolist() == list(range(200))
    assert len(videos_.scene[seen[:8]].unique()) == 1


def test_the_motion_after_a_clip_begins_two_frames_later(videos_):
    """The transform that changes nothing lets us find the window in the video."""
    plain = cm.MotionTransform(area=(1.0, 1.0), aspect=(1.0, 1.0), mirror=0.0)
    rows = torch.arange(0, 200, 40)
    for gap in (2, 0, -13):
        recipe = replace(TINY, gap=gap)
        clips, _, _, positive, _ = pretext._draw(recipe, videos_, rows, plain, rng(3))
        start = torch.randint(24, (5,), generator=rng(3))
        for row, begin, clip, window in zip(rows, start, clips, positive, strict=True):
            after = int(begin) + 15 + gap
            expected = videos_.mv[row, after : after + 8].transpose(0, 1) / 10
            assert torch.allclose(window, expected, atol=1e-5)
            first = plain.pictures(videos_.grey[row][None, begin : begin + 1], plain.whole(1))
            assert torch.allclose(clip[:, 0], first[0, :, 0], atol=1e-5)


def test_supervised_arms_get_their_labels_and_no_mirror(videos_):
    rows = pretext.training_rows(replace(TINY, labels=3), videos_, "supervised", 0)
    assert torch.bincount(videos_.label[rows]).tolist() == [3] * 8
    with pytest.raises(ValueError, match="26 labels a class need as many scenes; there are 25"):
        pretext.training_rows(replace(TINY, labels=26), videos_, "supervised", 0)
    kept = pretext.training_rows(replace(TINY, judge="validation"), videos_)
    assert len(kept) == 160


def test_training_lowers_both_losses(videos_):
    recipe = replace(TINY, steps=40, videos=8, area=(1.0, 1.0))
    for arm in ("context", "motion"):
        torch.manual_seed(0)
        model = pretext.TinyModel(recipe, arm, 8)
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        rows = torch.arange(len(videos_.label))
        losses = []
        for batch in pretext._batches(recipe, arm, videos_, rows, recipe.steps, 0, CPU):
            loss = cm.arm_loss(recipe, arm, model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert sum(losses[-5:]) < 0.93 * sum(losses[:5]), arm


def test_the_same_seed_gives_the_same_network_and_arms_share_their_start():
    first = cm.pretrain_context_motion(TINY, "motion", 3, CPU)
    pretext._trained.cache_clear()
    again = cm.pretrain_context_motion(replace(TINY, seeds=9), "motion", 3, CPU)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    frozen = replace(TINY, lr=1e-12)
    heads = [cm.pretrain_context_motion(frozen, arm, 0, CPU) for arm in ("context", "motion")]
    for one, other in zip(*(net.backbone.parameters() for net in heads), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


# --- probes -------------------------------------------------------------------------------------


def test_scene_retrieval_equals_brute_force(videos_):
    rows = torch.arange(0, 200)
    features = torch.randn(200, 5, generator=rng(1)) + 0.7 * videos_.place[:, None]
    found = cm.scene_scores(features, (videos_, rows))
    z = (features - features.mean(0)) / (features.std(0) + 1e-6)
    hits, chances = [], []
    for i in range(200):
        others = [
            j
            for j in range(200)
            if videos_.scene[i] != videos_.scene[j] and videos_.label[i] != videos_.label[j]
        ]
        if not any(videos_.place[i] == videos_.place[j] for j in others):
            continue
        best = max(others, key=lambda j: float(torch.cosine_similarity(z[i], z[j], dim=0)))
        hits.append(float(videos_.place[best] == videos_.place[i]))
        chances.append(
            sum(bool(videos_.place[i] == videos_.place[j]) for j in others) / len(others)
        )
    assert float(found["place_r1"].mean()) == pytest.approx(sum(hits) / len(hits), abs=1e-6)
    assert float(found["place_chance"].mean()) == pytest.approx(
        sum(chances) / len(chances), abs=1e-6
    )


def test_perfect_features_are_scored_as_perfect(videos_):
    rows = torch.arange(200)
    split = (videos_, rows)
    noise = 0.01 * torch.randn(200, 8, generator=rng(2))
    features = torch.nn.functional.one_hot(videos_.label, 8) + noise
    scores = cm.action_scores((features, features), split, split)
    assert all(float(value.mean()) == 1 for value in scores.values())
    assert len(scores["probe"]) == 25


def test_bias_lures_features_of_places_and_not_those_of_actions(videos_):
    split = (videos_, torch.arange(200))
    noise = 0.3 * torch.randn(200, 30, generator=rng(2))
    action = torch.nn.functional.one_hot(videos_.label, 30) + noise
    place = torch.nn.functional.one_hot(videos_.place.unique(return_inverse=True)[1], 30) + noise
    by_action, by_place = cm.bias_scores(action, split), cm.bias_scores(place, split)
    assert by_place["lured"].mean() > by_action["lured"].mean() + 0.3
    assert by_action["fair"].mean() > 0.7


def test_vectors_alone_name_actions_and_thumbnails_do_not(videos_):
    test = cm.load_motion_videos("easy", "test", "small")
    gallery, queries = (videos_, torch.arange(200)), (test, torch.arange(120))
    for make, low, high in ((cm.vector_histogram, 0.6, 1.0), (probes.thumbnails, 0.0, 0.3)):
        scores = cm.action_scores((make(gallery), make(queries)), gallery, queries)
        assert low < scores["probe"].mean() <= high


def test_unknown_views_and_recipes_are_refused(videos_):
    net = cm.pretrain_context_motion(TINY, "motion", 0, CPU)
    with pytest.raises(ValueError, match="view must be real, shuffled, frame"):
        cm.clip_features(net, (videos_, torch.arange(2)), "backwards")
    for wrong, message in (
        (dict(arms=("moco",)), "arms must be of"),
        (dict(videos=12), "multiple of kin"),
        (dict(gap=3), "gap must be in"),
        (dict(negatives=4), "negatives must be in"),
        (dict(area=(0.0, 1.0)), "area must rise"),
        (dict(level="twins"), "level must be"),
        (dict(judge="me"), "judge must be"),
        (dict(steps=0), "need a step"),
    ):
        with pytest.raises(ValueError, match=message):
            cm.Recipe(**wrong)
    with pytest.raises(ValueError, match="quick or full"):
        cm.studies("paper")
    with pytest.raises(TypeError, match="recipe"):
        cm.experiment(object(), 0, CPU)


@pytest.mark.slow
def test_an_experiment_gives_numbers_for_every_arm():
    results = cm.experiment(replace(TINY, arms=ARMS), 0, CPU)
    for arm in ARMS:
        assert 0 <= results[f"{arm}/probe"] <= 1
        assert 0 <= results[f"{arm}/place_r1@0"] <= 1
    assert "motion/moving_top1" in results
    assert "supervised/accuracy" in results
    assert results["motion/chance"] == pytest.approx(1 / (16 * 49 * 4))
    known = cm.run_references(TINY, 0, CPU)
    assert known["middle/pair"] < 0.6 < known["vectors/pair"]
