import numpy as np
import pytest
import torch

from toolkit.data import (
    EASY_MOTIONS,
    EMOJI_VENDORS,
    HARD_MOTIONS,
    TWIN_SETS,
    DataMissing,
    load_emoji_video,
    load_photos,
    read_compressed,
)

LEVELS = [(level, split) for level in ("easy", "hard") for split in ("train", "test")]
COUNTS = {"tune": 20, "judge": 40, "alone": 20, "teleport": 40, "train": 400, "long": 40}
every_level = pytest.mark.parametrize(("level", "split"), LEVELS)
every_twins = pytest.mark.parametrize("name", TWIN_SETS)


class _Truths(dict):
    """All sets without decoding, each loaded when it is first asked for."""

    def __missing__(self, name):
        level, _, split = name.partition("/")
        self[name] = load_emoji_video(level, split or None, decode=False)
        return self[name]


@pytest.fixture(scope="module")
def truths():
    return _Truths()


def centroids(masks):
    """Mean x, y of masks [..., H, W] in pixels, a pixel's middle at ½; NaN where empty."""
    half = torch.arange(masks.shape[-1]) + 0.5
    area = masks.sum((-1, -2))
    x, y = (masks.sum(axis) * half for axis in (-2, -1))
    return torch.stack([x.sum(-1), y.sum(-1)], -1) / area[..., None]


def inside(masks):
    """Whether a mask keeps away from the border."""
    return ~(
        masks[..., 0].any(-1) | masks[..., -1].any(-1)
        | masks[..., 0, :].any(-1) | masks[..., -1, :].any(-1)
    )  # fmt: skip


def moved(points, start, end):
    """Where the pose takes points [..., 2] of the target."""
    angle = torch.deg2rad(end[..., 3] - start[..., 3])
    cos, sin = torch.cos(angle), torch.sin(angle)  # anticlockwise, y down
    x, y = (points - start[..., :2]).unbind(-1)
    turned = torch.stack([cos * x + sin * y, cos * y - sin * x], -1)
    return end[..., :2] + torch.exp(end[..., 2:3] - start[..., 2:3]) * turned


@every_level
def test_every_scene_is_shown_once_in_every_class(truths, level, split):
    clips = truths[f"{level}/{split}"]
    motions = {"easy": EASY_MOTIONS, "hard": HARD_MOTIONS}[level]
    scenes = {"train": 25, "test": 15}[split]
    assert clips.label.tolist() == list(range(len(motions))) * scenes
    assert clips.scene.tolist() == torch.arange(scenes).repeat_interleave(len(motions)).tolist()
    for column in (clips.place, clips.concept, clips.vendor):
        by_scene = column.reshape(scenes, -1)
        assert (by_scene == by_scene[:, :1]).all()
    expected = [f"{s:03d}_{motion}.mp4" for s in range(scenes) for motion in motions]
    assert [path.name for path in clips.path] == expected


@every_level
def test_a_place_serves_three_scenes_or_more(truths, level, split):
    clips = truths[f"{level}/{split}"]
    first = clips.label == 0
    scenes = torch.bincount(clips.place[first])
    assert scenes[scenes > 0].min() >= 3
    assert (scenes > 0).sum() == {"train": 8, "test": 5}[split]


def test_no_photograph_and_no_concept_is_in_two_splits(truths):
    photos = load_photos()
    for name in (*("/".join(level) for level in LEVELS), *TWIN_SETS):
        clips = truths[name]
        split = TWIN_SETS.get(name) or name.partition("/")[2]
        assert {photos.split[place] for place in clips.place.tolist()} == {split}
        low, high = (0, 200) if split == "train" else (200, 300)
        assert low <= clips.concept.min() <= clips.concept.max() < high
        assert EMOJI_VENDORS.index("fxemoji") not in clips.vendor


@every_level
def test_second_of_a_pair_is_the_first_reversed(truths, level, split):
    clips = truths[f"{level}/{split}"]
    motions = 8 if level == "easy" else 12
    pairs = {"easy": 4, "hard": 5}[level]
    rows = torch.arange(len(clips.label)).reshape(-1, motions)[:, : 2 * pairs]
    first, second = rows[:, ::2].flatten(), rows[:, 1::2].flatten()
    assert torch.equal(clips.pose[second], clips.pose[first].flip(1))
    assert torch.equal(clips.mask[second], clips.mask[first].flip(1))
    assert torch.equal(clips.camera[second], -clips.camera[first])


def test_classes_move_as_their_names_say(truths):
    clips = truths["hard/train"]
    way = clips.pose[:, -1] - clips.pose[:, 0]
    signs = {"right": (0, 1), "left": (0, -1), "down": (1, 1), "up": (1, -1)}
    signs |= {"grow": (2, 1), "shrink": (2, -1), "spin+": (3, 1), "spin-": (3, -1)}
    for motion, (column, sign) in signs.items():
        path = way[clips.label == HARD_MOTIONS.index(motion)]
        others = [other for other in range(4) if other != column]
        assert (sign * path[:, column] > 0).all()
        assert (path[:, others].abs() < 1e-4).all()
    for motion, sign in (("cw", 1), ("ccw", -1)):
        paths = clips.pose[clips.label == HARD_MOTIONS.index(motion), :, :2]
        steps = paths.diff(dim=1)
        turns = steps[:, :-1, 0] * steps[:, 1:, 1] - steps[:, :-1, 1] * steps[:, 1:, 0]
        assert (sign * turns.sum(1) > 0).all()  # with y down, clockwise is positive


@pytest.mark.parametrize(("level", "split"), [("easy", "test"), ("hard", "train")])
def test_masks_move_as_the_poses_say(truths, level, split):
    clips = truths[f"{level}/{split}"]
    some = torch.arange(0, len(clips.label), 3)
    mask, pose = clips.mask[some], clips.pose[some]
    middle, whole = centroids(mask), inside(mask)
    both = whole[:, 1:] & whole[:, :-1]
    assert both.float().mean() > 0.9
    step = (middle[:, 1:] - moved(middle[:, :-1], pose[:, :-1], pose[:, 1:])).norm(dim=-1)[both]
    assert step.mean() < 0.1
    assert (step < 0.5).float().mean() > 0.99  # a line of one pixel comes and goes in a mask
    first = middle[:, :1].expand_as(middle), pose[:, :1].expand_as(pose)
    way = (middle - moved(*first, pose)).norm(dim=-1)[whole & whole[:, :1]]
    assert (way < 0.5).float().mean() > 0.98


def on_grid(masks, share):
    """Cells of 8×8 of which at least a share lies in the mask: [..., H, W] → [..., h, w]."""
    cells = torch.nn.functional.avg_pool2d(masks.float().flatten(0, -3)[:, None], 8)
    return (cells >= share).reshape(*masks.shape[:-2], *cells.shape[-2:])


def test_motion_vectors_of_right_clips_point_right(truths):
    clips, judged = truths["easy/test"], 0
    for number in (clips.label == EASY_MOTIONS.index("right")).nonzero()[:, 0].tolist():
        read = read_compressed(clips.path[number], rgb=False)
        way = clips.pose[number, :, 0].diff(prepend=clips.pose[number, :1, 0])
        moving = way > 0.5
        found = read.mv[moving, 0][on_grid(clips.mask[number], 1.0)[moving] & read.valid[moving]]
        if len(found) > 100:  # a thin sprite fills no cell
            judged += 1
            assert found.median() > 0.5
            assert found.mean().item() == pytest.approx(way[moving].mean().item(), rel=0.2)
    assert judged >= 10  # of 15


@pytest.mark.slow
def test_motion_vectors_know_the_motion_of_target_and_ground(truths):
    clips = truths["hard/test"]
    errors = {"target": [], "still target": [], "ground": [], "still ground": []}
    for number in range(0, len(clips.label), 5):
        read = read_compressed(clips.path[number], rgb=False)
        target, ground = on_grid(clips.mask[number], 1.0), ~on_grid(clips.mask[number], 1e-6)
        middles = (
            8 * torch.stack(torch.meshgrid(torch.arange(14), torch.arange(14), indexing="xy"), -1)
            + 4.0
        )
        for t in range(1, 48):
            end, start = clips.pose[number, t], clips.pose[number, t - 1]
            truth = middles - moved(middles, end, start)
            for name, cells, exact in (
                ("target", target[t] & read.valid[t], truth),
                ("ground", ground[t] & read.valid[t], -clips.camera[number].expand(14, 14, 2)),
            ):
                found = read.mv[t].movedim(0, -1)[cells]
                errors[name].append((found - exact[cells]).abs().flatten())
                errors[f"still {name}"].append(exact[cells].abs().flatten())
    mean = {name: torch.cat(parts).mean() for name, parts in errors.items()}
    assert mean["target"] < 0.6 * mean["still target"]
    assert mean["ground"] < 0.7 * mean["still ground"]


@pytest.mark.slow
def test_reversed_clips_differ_by_their_compression_only():
    clips = load_emoji_video("easy", "test")
    assert clips.frames.shape == (120, 48, 3, 112, 112)
    for first, second in zip(clips.frames[::2], clips.frames[1::2], strict=True):
        error = (first.float() - second.flip(0).float()).square().mean()
        assert 28 < 10 * torch.log10(255**2 / error) < 45  # dB; each was encoded for itself


@every_twins
def test_sets_of_twins_have_their_shape(truths, name):
    clips = truths[name]
    time = 24 if name == "long" else 8
    assert clips.frames.shape == (COUNTS[name], time, 3, 64, 64)
    assert clips.mask.shape == clips.distractor.shape == (COUNTS[name], time, 64, 64)
    assert clips.pose.shape == (COUNTS[name], time, 4)
    assert not (clips.mask & clips.distractor).any()
    expected = {"alone": {0}, "teleport": {1}, "train": {0, 1, 2}}.get(name, {1, 2})
    assert set(clips.label.tolist()) == expected
    assert (clips.distractor.any((1, 2, 3)) == (clips.label > 0)).all()
    assert clips.camera.abs().max() <= 0.8
    assert (name == "long") == bool(clips.camera.any())


def test_twins_alternate_between_one_and_two_distractors(truths):
    for name in ("tune", "judge", "long"):
        assert truths[name].label.tolist() == [1, 2] * (COUNTS[name] // 2)


def test_target_bounces_at_its_speed(truths):
    steps = truths["judge"].pose[:, :, :2].diff(dim=1).norm(dim=-1)
    assert steps.max() <= 3.5 + 1e-4
    assert (steps.median(1).values >= 1.5 - 1e-4).all()
    assert truths["judge"].pose[..., 3].abs().max() <= 4


def test_teleported_target_jumps_after_frame_four(truths):
    steps = truths["teleport"].pose[:, :, :2].diff(dim=1).norm(dim=-1)
    jump = steps.argmax(1)
    assert (jump == 4).all()
    assert steps[:, 4].min() > 15
    assert steps[:, [0, 1, 2, 3, 5, 6]].max() <= 3.5 + 1e-4


@pytest.mark.parametrize("name", ["tune", "judge", "long"])
def test_twins_before_and_after_compression(truths, name):
    raw, decoded = truths[name].frames.float(), load_emoji_video(name).frames.float()
    error = (raw - decoded).square().mean((1, 2, 3, 4))
    quality = 10 * torch.log10(255**2 / error)
    assert (quality > 24).all()  # small pictures with noise are hard to compress
    assert (quality < 45).all()


def test_without_decoding_actions_have_no_frames(truths):
    assert truths["easy/test"].frames.shape == (120, 0, 3, 112, 112)
    assert not truths["easy/test"].distractor.any()


def test_missing_sizes_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match=r"fetch emoji_video --size medium"):
        load_emoji_video("easy", "train", size="medium")
    with pytest.raises(DataMissing, match=r"fetch emoji_video`"):
        load_emoji_video("judge")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("medium", "train"), "name must be easy, hard, tune"),
        (("easy",), "the split of 'easy' must be 'train' or 'test', got None"),
        (("easy", "val"), "must be 'train' or 'test', got 'val'"),
        (("judge", "train"), "the split of 'judge' must be 'test', got 'train'"),
        (("judge", "test", "large"), "the size of 'judge' must be one of small; got 'large'"),
        (("hard", "train", "tiny"), "must be one of small, medium, large; got 'tiny'"),
    ],
)
def test_unknown_sets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_emoji_video(*arguments)


def test_arrays_are_private(truths):
    frames = truths["tune"].frames
    before = int(frames[0, 0, 0, 0, 0])
    frames[0, 0, 0, 0, 0] = 255 - before
    assert int(load_emoji_video("tune", decode=False).frames[0, 0, 0, 0, 0]) == before
    assert np.asarray(frames).flags.writeable
