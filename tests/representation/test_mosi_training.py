"""Clips, pretext batches, probes and the experiment, on the prepared small videos."""

import math
from dataclasses import replace

import pytest
import torch

from toolkit.learn.probes import linear_probe
from toolkit.representation import mosi
from toolkit.representation.mosi import clips as mosi_clips
from toolkit.representation.mosi import pretext, probes, study

CPU = torch.device("cpu")
TINY = mosi.Recipe(steps=2, look_levels=("easy",))


def rng(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture(scope="module")
def videos():
    return mosi.load_videos("easy", "test", "small")


# --- clips --------------------------------------------------------------------------------------


def test_windows_of_a_reversed_clip_are_the_windows_reversed():
    grey = torch.randint(0, 256, (3, 48, 5, 5), dtype=torch.uint8, generator=rng())
    forward = mosi.all_windows(grey).view(3, 4, 1, 8, 5, 5)
    backward = mosi.all_windows(grey.flip(1)).view(3, 4, 1, 8, 5, 5)
    assert torch.equal(backward, forward.flip(1).flip(3))
    assert torch.equal(mosi.frozen(forward[:, 0]), mosi.frozen(forward[:, 0].flip(2)))


def test_shuffling_keeps_frames_and_changes_their_order():
    clips = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(50, 1, 8, 2, 2)
    mixed = mosi.shuffled(clips, rng())
    assert torch.equal(mixed.sort(dim=2).values, clips)
    assert len({tuple(row[0, :, 0, 0].tolist()) for row in mixed}) > 40


def test_a_window_outside_its_clip_is_refused():
    grey = torch.zeros(1, 48, 4, 4, dtype=torch.uint8)
    assert mosi.windows(grey, torch.tensor([33])).shape == (1, 1, 8, 4, 4)
    with pytest.raises(ValueError, match="leaves the 48 frames"):
        mosi.windows(grey, torch.tensor([34]))


def test_every_scene_shows_every_class(videos):
    assert videos.label.view(-1, 8).tolist() == [list(range(8))] * 15
    assert videos.grey.shape == (120, 48, 40, 40)
    assert videos.stills.shape == (120, 12, 72, 72)
    share = videos.seen.float().mean(dim=(2, 3))
    assert share.min() > 0.02
    assert share.max() < 0.7


def test_within_a_pair_the_middle_tells_nothing(videos):
    """An identity before encoding; H.264 leaves small differences."""
    middle = mosi.hand_crafted("middle", (videos, torch.arange(120)))
    first, second = middle[0::2], middle[1::2]
    apart = (first - second).abs().mean() / middle.std()
    assert apart < 0.05
    start = mosi.hand_crafted("first", (videos, torch.arange(120)))
    assert (start[0::2] - start[1::2]).abs().mean() / start.std() > 3 * apart


def test_photograph_stills_repeat_and_half_carry_an_emoji():
    stills = mosi.photograph_stills(6)
    assert stills.shape == (6, 72, 72)
    mosi.photograph_stills.cache_clear()
    assert torch.equal(stills, mosi.photograph_stills(6))


# --- pretext ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arm", "clips"), [("masked", 36), ("pairs25", 25), ("separate", 25)])
def test_every_arm_sees_about_as_many_clips_a_step(arm, clips):
    x, y = pretext.mosi_batch(TINY, arm, rng(), CPU)
    assert x.shape == (clips, 1, 8, 40, 40)
    assert y.shape == ((25, 2) if arm == "separate" else (clips,))


def test_before_the_mirror_every_class_comes_equally_often():
    _, kept = pretext.mosi_batch(TINY, "flip_wrong", rng(), CPU)
    assert kept.bincount().tolist() == [4] * 9


def test_the_released_flip_keeps_labels_and_ours_does_not():
    kept = pretext.mosi_batch(TINY, "flip_wrong", rng(), CPU)
    ours = pretext.mosi_batch(TINY, "masked", rng(), CPU)
    assert torch.equal(kept[0], ours[0])
    assert kept[1].tolist() == list(range(9)) * 4
    changed = kept[1] != ours[1]
    assert changed.any()
    assert (kept[1][changed] < 4).all()


def test_flicker_is_laid_before_the_mask():
    """In the class at rest only the moving square changes: the released leak."""
    clips, labels = pretext.mosi_batch(TINY, "flicker", rng(), CPU)
    rest = clips[labels == 8]
    changing = rest.var(dim=2)[:, 0] > 1e-6
    assert (changing.float().mean(dim=(1, 2)) < 0.3).all()
    assert changing.any(dim=(1, 2)).all()
    calm, labels = pretext.mosi_batch(TINY, "masked", rng(), CPU)
    assert calm[labels == 8].var(dim=2).max() == 0


def test_sub_pixel_clips_show_the_same_classes_between_pixels():
    """Same draws, same labels; a frame moves by less than a pixel more or less."""
    whole, labels = pretext.mosi_batch(TINY, "masked", rng(), CPU)
    between, same = pretext.mosi_batch(TINY, "subpixel", rng(), CPU)
    assert torch.equal(labels, same)
    rest = labels == 8
    assert torch.allclose(whole[rest], between[rest], atol=1e-6)
    assert 0 < (whole - between).abs()[~rest].mean() < 0.1


def test_stills_never_come_from_a_video():
    photos, frames = pretext.sources(TINY, "stills"), pretext.sources(TINY, "masked")
    assert torch.equal(photos, mosi.photograph_stills())
    assert len(frames) == 200 * 12


def test_rotations_and_paces_are_what_they_say():
    clips, labels = pretext.rotation_batch(TINY, "rotation", rng(), CPU)
    assert clips.shape == (36, 1, 8, 40, 40)
    assert labels.bincount().tolist() == [9, 9, 9, 9]
    clips, labels = pretext.pace_batch(TINY, "pace", rng(), CPU)
    change = torch.stack([clips[labels == k].diff(dim=2).abs().mean() for k in range(3)])
    assert change[0] < change[1] < change[2]


def test_validation_scenes_are_no_source():
    scene = torch.arange(25).repeat_interleave(8)
    assert len(pretext.training_rows(TINY, scene)) == 200
    judged = pretext.training_rows(replace(TINY, judge="validation"), scene)
    assert scene[judged].max() == 19
    gallery, queries = probes.splits(replace(TINY, judge="validation"), "easy")
    learnt = set(gallery[0].scene[gallery[1]].tolist())
    assert not learnt & set(queries[0].scene[queries[1]].tolist())


def test_heads_sum_their_losses():
    torch.manual_seed(0)
    clips = torch.rand(6, 1, 8, 40, 40, generator=rng())
    labels = torch.randint(0, 5, (6, 2), generator=rng())
    model = mosi.MoSINet(mosi.TinyVideoNet(), (5, 5), dropout=0.0).eval()
    x, y = model(clips).split([5, 5], dim=1)
    expected = torch.nn.functional.cross_entropy(x, labels[:, 0])
    expected = expected + torch.nn.functional.cross_entropy(y, labels[:, 1])
    assert torch.allclose(model.loss(clips, labels), expected)
    assert model.maps(clips).shape == (6, 64, 2, 10, 10)
    with pytest.raises(ValueError, match="two classes"):
        mosi.MoSINet(mosi.TinyVideoNet(), 1)


def test_standardised_clips_have_no_scale_and_plain_ones_stay_finite():
    clips = 7 + 3 * torch.rand(4, 1, 8, 9, 9, generator=rng())
    x = mosi.standardise(clips)
    assert x.mean(dim=(1, 2, 3, 4)).abs().max() < 1e-4
    assert (x.std(dim=(1, 2, 3, 4)) - 1).abs().max() < 0.01
    assert mosi.standardise(torch.full((1, 1, 8, 9, 9), 0.5)).abs().max() == 0


# --- probes -------------------------------------------------------------------------------------


def test_values_are_averaged_over_each_scene():
    hits = torch.tensor([True, False, True, True])
    assert probes.by_scene(hits, torch.tensor([7, 7, 9, 9])).tolist() == [0.5, 1.0]


def test_labelled_rows_take_whole_scenes(videos):
    split = (videos, torch.arange(120))
    rows = probes.labelled_rows(split, 3, seed=1)
    assert len(rows) == 24
    assert videos.label[rows].bincount().tolist() == [3] * 8
    assert len(videos.scene[rows].unique()) == 3
    assert len(probes.labelled_rows(split, 0, seed=1)) == 120
    with pytest.raises(ValueError, match="there are 15"):
        probes.labelled_rows(split, 16, seed=1)


def test_perfect_features_score_one_and_pairs_need_order(videos):
    split = (videos, torch.arange(120))
    exact = torch.nn.functional.one_hot(videos.label, 8).float()
    noise = 0.01 * torch.randn(exact.shape, generator=rng())
    scores = probes.frozen_scores((exact + noise, exact), split, split)
    assert {float(scores[name].mean()) for name in ("probe", "r1", "pair", "pair_x")} == {1.0}
    blind = torch.nn.functional.one_hot(videos.label // 2, 4).float() + noise[:, :4]
    found = probes.frozen_scores((blind, blind.flip(0).flip(0)), split, split)
    assert found["pair"].mean() < 0.75  # only the noise tells the two apart
    assert found["probe"].mean() < 0.75
    rows = torch.arange(2)
    guess = linear_probe(exact[:16], videos.label[:16], exact[:2], "ridge")
    assert torch.equal(guess, rows)


def test_unknown_features_and_views_are_refused(videos):
    with pytest.raises(ValueError, match="no features"):
        mosi.hand_crafted("hog", (videos, torch.arange(8)))
    with pytest.raises(ValueError, match="view must be"):
        probes.seen_as(torch.zeros(1, 1, 8, 4, 4), "backwards", rng())


def test_optical_flow_tells_directions_apart(videos):
    rows = (videos.label < 4).nonzero()[:, 0]
    features = mosi.hand_crafted("flow", (videos, rows))
    right, left = (features[videos.label[rows] == k][:, 4].mean() for k in (0, 1))
    assert right > 0.1
    assert left < -0.1


def test_opposite_directions_are_compared():
    logits = torch.zeros(2, 9)
    logits[0, 0], logits[1, 3] = 1.0, -1.0
    pool = mosi.MotionClass()
    labels = torch.tensor([0, 3])
    assert study.sign_hits(logits, labels, pool.time_reverse(labels)).tolist() == [True, False]


# --- the experiment -----------------------------------------------------------------------------


@pytest.mark.slow
def test_one_seed_measures_all_arms_and_repeats():
    recipe = replace(TINY, arms=("random", "masked"), labels=(2,), tuned_arms=("scratch",))
    recipe = replace(recipe, tuned_steps=2)
    first = mosi.experiment(recipe, 0, CPU)
    pretext._pretrained.cache_clear()
    assert mosi.experiment(recipe, 0, CPU) == first
    assert math.isclose(first["scratch/tuned"], first["scratch/tuned_easy_2"], abs_tol=1e-6)
    for name in (
        "masked/real",
        "masked/resampled",
        "random/hit_easy",
        "masked/shuffled_pair_easy",
        "masked/probe",
    ):
        assert 0 <= first[name] <= 1
    cells = [value for name, value in first.items() if name.startswith("scratch/tuned_easy_2@")]
    assert len(cells) == 15
    assert math.isclose(sum(cells) / 15, first["scratch/tuned_easy_2"], abs_tol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["stills", "flicker", "subpixel", "shuffled", "pace", "separate"])
def test_every_arm_learns_without_failing(arm):
    model = mosi.pretrain_mosi(TINY, arm, 0, CPU)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.slow
def test_the_unmasked_pretext_is_learnt_in_sixty_steps_and_needs_order():
    recipe = replace(TINY, steps=60)
    model = mosi.pretrain_mosi(recipe, "unmasked", 0, CPU)
    scores = study.pretext_scores(recipe, model, "unmasked", 0)
    assert scores["real"].mean() > 0.6
    assert scores["still"].mean() < 0.25
    assert abs(scores["shuffled_sign"].mean() - 0.5) < 0.15


def test_studies_and_bad_recipes():
    assert set(mosi.studies("full")) == {"main", "few_unmasked", "blind", "peers", "variants"}
    assert mosi.PROFILES["full"].seeds == 5
    assert mosi.PROFILES["full"].steps == 200
    assert {study.seeds for study in mosi.studies("full").values()} == {3, 5}
    with pytest.raises(ValueError, match="quick or full"):
        mosi.studies("paper")
    for change, message in (
        ({"arms": ("moco",)}, "arms must be"),
        ({"levels": ("medium",)}, "levels must be"),
        ({"judge": "train"}, "judge must be"),
        ({"steps": 0}, "at least one step"),
        ({"source": 40}, "source must be"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **change)
    with pytest.raises(TypeError):
        mosi.experiment(object(), 0, CPU)


def test_the_stills_are_larger_than_the_square():
    assert mosi_clips.SOURCE > TINY.source > mosi_clips.SIDE
