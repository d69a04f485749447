import csv

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts import emoji, emoji_video, manifest, pools, sources, video_actions, video_twins
from data_scripts.video_render import sprite_layers, stack, to_frames, view
from toolkit.data import (
    EASY_MOTIONS,
    EMOJI_VENDORS,
    HARD_MOTIONS,
    TWIN_SETS,
    decode,
    load_emoji_video,
    load_photos,
)
from toolkit.data.store import locate


@pytest.fixture(scope="module")
def draw():
    """The SVG of a concept by a vendor."""
    pinned = manifest.datasets()["emoji_video"].downloads
    inputs = {name: sources.verified(manifest.downloads()[name]) for name in pinned}
    icons, keys = emoji_video._icons(inputs), pools.read()["shop"]
    return lambda concept, vendor: emoji_video._svg(icons, keys, concept, vendor)


def scene_of(level, split, number):
    """Draw a scene of the small set again, with its window of its tile."""
    first = emoji_video.BLOCKS[f"{level}/small"]
    rng = np.random.default_rng([3, emoji_video.SPLITS[split], first + number])
    concepts = {"train": 200, "test": 100}[split]
    return video_actions.draw_scene(rng, level, concepts, 7)


def window_of(scene, place):
    left, top = scene.window
    return load_photos().images[place, :, top : top + 176, left : left + 176].numpy()


def square(side=128):
    """A sprite that is opaque white all over."""
    return np.full((side, side, 4), 255, np.uint8)


def pose(x=56.0, y=56.0, scale=0.0, angle=0.0, frames=2):
    return np.tile([x, y, scale, angle], (frames, 1)).astype(np.float64)


# ------------------------------------------------------------------- what a scene is made of


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_profiles_run_slow_down_and_rest(seed):
    u = video_actions.draw_profile(np.random.default_rng(seed))
    assert u.shape == (48,)
    assert u[0] == pytest.approx(-u[-1])
    assert 0 < u[-1] <= 12
    steps = np.diff(u)
    assert len(np.unique(steps.round(9))) >= 2
    kinds = steps / steps.max()
    assert np.isin(kinds.round(6), [0, 0.5, 1]).all()
    ends = np.flatnonzero(np.diff(kinds.round(6)))
    assert np.diff(ends).min(initial=6) >= 6
    assert np.diff(ends).max(initial=12) <= 12


def test_classes_are_those_of_the_loader():
    assert video_actions.classes("easy") == EASY_MOTIONS
    assert video_actions.classes("hard") == HARD_MOTIONS
    assert {name: kind.split for name, kind in video_twins.SETS.items()} == TWIN_SETS


@pytest.mark.parametrize("level", ["easy", "hard"])
def test_scenes_stay_in_their_ranges(level):
    ranges = video_actions.RANGES[level]
    scenes = [scene_of(level, "train", number) for number in range(200)]
    halves = [scene.half for scene in scenes]
    assert ranges["half"][0] <= min(halves) < max(halves) <= ranges["half"][1]
    assert np.abs([scene.camera for scene in scenes]).max() <= ranges["camera"]
    assert np.abs([scene.camera for scene in scenes]).max() > 0.9 * ranges["camera"]
    assert {scene.vendor for scene in scenes} == set(range(7))
    assert np.max([scene.window for scene in scenes]) <= 48


def test_item_numbers_of_two_sets_never_meet():
    used = set()
    for name, first in emoji_video.BLOCKS.items():
        level, _, size = name.partition("/")
        count = max(emoji_video.SCENES[size].values()) if size else video_twins.SETS[name].count
        numbers = set(range(first, first + count))
        assert not used & numbers, level
        used |= numbers


# ------------------------------------------------------------------------------- rendering


def centre_of(alpha):
    half = torch.arange(alpha.shape[-1]) + 0.5
    return (
        torch.stack([(alpha.sum(-2) * half).sum(-1), (alpha.sum(-1) * half).sum(-1)], -1)
        / (alpha.sum((-1, -2))[:, None])
    )


def test_sprites_lie_where_the_pose_says():
    path = np.array([[40.3, 61.7, 0, 0], [50.0, 50.5, 0.2, 33.0], [70.9, 44.1, -0.3, -80.0]])
    alpha = sprite_layers(square(), path, 30.0, 112)[:, 3]
    assert (centre_of(alpha) - torch.from_numpy(path[:, :2])).abs().max() < 0.03
    area = 30.0**2 * torch.from_numpy(np.exp(2 * path[:, 2]))
    assert ((alpha.sum((1, 2)) / area) - 1).abs().max() < 0.01


def test_sprites_turn_anticlockwise():
    sprite = square()
    sprite[:, :64, 3] = 0  # the right half is left: turned by 90 degrees it is the upper half
    alpha = sprite_layers(sprite, pose(angle=90, frames=1), 40.0, 112)[0, 3]
    assert alpha[36:55, 37:75].min() > 0.99
    assert alpha[58:].max() < 0.01


def test_view_pans_against_the_ground():
    ramp = torch.arange(176).expand(3, 176, 176) / 256
    seen = view(ramp, (0.5, 0.25), 48, 112)
    assert seen.shape == (48, 3, 112, 112)
    assert (seen[1:] - seen[:-1]).sub(0.5 / 256).abs().max() < 1e-5
    still = view(ramp, (0.0, 0.0), 3, 112)
    torch.testing.assert_close(still[0], ramp[:, 32:144, 32:144])
    with pytest.raises(ValueError, match="leaves a ground of 176"):
        view(ramp, (0.0, -1.5), 48, 112)


def test_higher_layers_hide_lower_ones():
    low = sprite_layers(square(), pose(50), 20.0, 112)
    high = sprite_layers(square(), pose(60), 20.0, 112)
    pictures, masks = stack([0.5 * low, low, high], torch.zeros(2, 3, 112, 112))
    assert pictures.max() > 0.99
    assert not masks[0].any()
    assert masks[1].sum() == 2 * 10 * 20
    assert masks[2].sum() == 2 * 20 * 20
    assert not (masks[1] & masks[2]).any()


def test_pairs_are_reversed_exactly_before_encoding(draw):
    scene = scene_of("hard", "train", 0)
    (sprite,) = emoji.raster([draw(scene.concept, scene.vendor)])
    ground = torch.from_numpy(window_of(scene, 0)) / 255
    made = list(video_actions.render(scene, "hard", sprite, ground))
    assert len(made) == len(HARD_MOTIONS)
    for first, second in zip(made[:10:2], made[1:10:2], strict=True):
        for forth, back in zip(first[:3], second[:3], strict=True):
            assert np.array_equal(forth[::-1], back)
        assert tuple(-speed for speed in first[3]) == second[3]
    shake = made[10]
    assert not any(np.array_equal(shake[0][::-1], other[0]) for other in made)


# --------------------------------------------------------------------------- twins' motion


def test_twins_start_apart_and_bounce_half_a_side_from_the_border():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        paths = video_twins.draw_paths(rng, 3, 18.0, 24, teleport=False)
        assert paths.min() >= 9
        assert paths.max() <= 55
        gaps = np.linalg.norm(paths[:, None, 0] - paths[None, :, 0], axis=-1)
        assert (gaps + 18 * np.eye(3) >= 18).all()
        steps = np.linalg.norm(np.diff(paths, axis=1), axis=-1)
        assert steps.max() <= 3.5 + 1e-9
        assert (np.median(steps, 1) >= 1.5).all()


@pytest.mark.parametrize("seed", range(8))
def test_teleported_twin_goes_on_after_its_jump(seed):
    here, there = (
        video_twins.draw_paths(np.random.default_rng(seed), 2, 16.0, 8, teleport)
        for teleport in (False, True)
    )
    assert np.array_equal(here[1], there[1])
    assert np.array_equal(here[0, :5], there[0, :5])
    assert np.array_equal(there[0, 5], np.clip((here[0, 5] + 32) % 64, 8, 56))
    assert np.linalg.norm(np.diff(there[0, 5:], axis=0), axis=1).max() <= 3.5


def test_any_sprite_may_be_the_target_on_top_or_below():
    kind, orders = video_twins.SETS["judge"], set()
    for number in range(1, 60, 2):
        rng = np.random.default_rng(number)
        orders.add(video_twins.draw_twins(rng, kind, number, [3], 100, 7).order)
    assert len(orders) == 6


# ---------------------------------------------------------------------- the prepared folder


@pytest.mark.parametrize(("level", "split", "number"), [("easy", "train", 7), ("hard", "test", 14)])
def test_any_scene_can_be_made_again_alone(draw, level, split, number):
    stored = load_emoji_video(level, split, decode=False)
    rows = (stored.scene == number).nonzero()[:, 0].tolist()
    place, concept = int(stored.place[rows[0]]), int(stored.concept[rows[0]])
    scene = scene_of(level, split, number)
    assert concept == scene.concept + {"train": 0, "test": 200}[split]
    assert int(stored.vendor[rows[0]]) == EMOJI_VENDORS.index(pools.VENDORS[scene.vendor])
    svg, window = draw(concept, scene.vendor), window_of(scene, place)
    made = emoji_video.make_scene(scene, level, svg, window)
    for row, clip in zip(rows, made, strict=True):
        assert stored.path[row].read_bytes() == clip["mp4"]
        assert np.array_equal(np.packbits(stored.mask[row].numpy()), clip["mask"])
        assert np.array_equal(stored.pose[row].numpy(), clip["pose"])


@pytest.mark.parametrize("level", ["easy", "hard"])
def test_decoded_frames_are_near_the_rendered_ones(draw, level):
    stored = load_emoji_video(level, "train", decode=False)
    for number in (1, 12):
        scene = scene_of(level, "train", number)
        row = int((stored.scene == number).nonzero()[0])
        (sprite,) = emoji.raster([draw(scene.concept, scene.vendor)])
        ground = torch.from_numpy(window_of(scene, int(stored.place[row]))) / 255
        frames, *_ = next(video_actions.render(scene, level, sprite, ground))
        decoded = decode(stored.path[row]).permute(0, 2, 3, 1).numpy()
        error = np.square(frames.astype(float) - decoded.astype(float)).mean()
        assert 10 * np.log10(255**2 / error) > 26


@pytest.mark.parametrize("name", ["tune", "train", "long"])
def test_any_twins_can_be_made_again_alone(draw, name):
    stored, kind = load_emoji_video(name, decode=False), video_twins.SETS[name]
    places = [p for p, split in enumerate(load_photos().split) if split == kind.split]
    first = emoji_video.BLOCKS[name]
    for number in (3, kind.count - 1):
        rng = np.random.default_rng([3, emoji_video.SPLITS[kind.split], first + number])
        concepts = 200 if kind.concepts == "train" else 100
        twins = video_twins.draw_twins(rng, kind, number, places, concepts, 7)
        svg = draw(int(stored.concept[number]), twins.vendor)
        (clip,) = emoji_video.make_twins([(twins, rng, svg)])
        assert np.array_equal(to_channels_last(stored.frames[number]), clip["frames"])
        assert stored.path[number].read_bytes() == clip["mp4"]
        assert np.array_equal(np.packbits(stored.distractor[number].numpy()), clip["distractor"])


def to_channels_last(frames):
    return to_frames(frames.double() / 255)


def test_every_work_has_licence_author_and_address():
    with locate("emoji_video", "LICENSES.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 + 7
    assert all(row["licence"] and row["author"] and row["url"] for row in rows)
    share_alike = {row["work"] for row in rows if row["licence"] == "CC-BY-SA-4.0"}
    assert share_alike == {"openmoji", "emojione-v1"}


def test_sizes_on_demand_are_known():
    for size in ("medium", "large"):
        dataset = manifest.find("emoji_video", size)
        assert not dataset.default
        assert dataset.name == f"emoji_video_{size}"
    assert manifest.find("emoji_video").default
