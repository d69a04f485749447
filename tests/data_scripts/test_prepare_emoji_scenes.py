import csv
import json

import numpy as np
import pytest
import torch

from data_scripts import backbone, emoji_scenes, manifest, pools
from toolkit.data import SCENE_CLASSES, SCENE_VENDORS, load_emoji, load_photos
from toolkit.data.store import locate


@pytest.fixture(scope="module")
def sprites():
    return emoji_scenes.class_sprites(load_emoji())


def places_of(split):
    return [place for place, name in enumerate(load_photos().split) if name == split]


def test_classes_are_those_kept_out_of_the_pools():
    pictures = load_emoji()
    named = [pictures.labels[pictures.keys.index(key)] for key in pools.SCENE_CLASSES]
    assert tuple(named) == SCENE_CLASSES


@pytest.mark.parametrize(
    ("kind", "split"),
    [("square", "unlabelled"), ("stretched", "test"), ("stretched_aspect1", "val")],
)
def test_any_scene_can_be_made_again_alone(sprites, kind, split):
    numbers = (7, 61)
    photographs = "train" if split == "unlabelled" else split
    images, annotations = emoji_scenes.make_scenes(
        sprites, kind, split, numbers, places_of(photographs)
    )
    folder = locate("emoji_scenes", kind, split)
    stored = np.load(folder / "images.npy", mmap_mode="r")
    truth = "truth.json" if split == "unlabelled" else "annotations.json"
    rows = json.loads((folder / truth).read_text())["annotations"]
    for number, image, made in zip(numbers, images, annotations, strict=True):
        assert np.array_equal(image, stored[number])
        own = [row for row in rows if row["image_id"] == number]
        assert [
            {k: v for k, v in row.items() if k not in ("id", "image_id")} for row in own
        ] == made


def test_scenes_of_other_splits_or_kinds_are_drawn_with_other_numbers():
    used = set()
    for kind in ("square", "stretched"):
        for split, count in emoji_scenes.COUNTS[kind].items():
            first = emoji_scenes.BLOCKS[kind]
            own = {(emoji_scenes.SPLITS[split], first + i) for i in range(count)}
            assert not used & own
            used |= own
    crops = {(backbone.SPLIT, backbone.FIRST + i) for i in range(700 * backbone.SHOTS)}
    assert not used & crops


def test_a_place_is_given_up_after_fifty_tries():
    rng = np.random.default_rng(0)
    assert emoji_scenes.find_spot(rng, (60, 60), [(0, 0, 64, 64)]) is None
    x, y = emoji_scenes.find_spot(rng, (10, 20), [])
    assert 0 <= x <= 54
    assert 0 <= y <= 44


def test_later_objects_hide_earlier_ones():
    def thing(x0):
        layer = torch.zeros(4, 64, 64, dtype=torch.float64)
        layer[:, :10, x0 : x0 + 10] = 1
        about = emoji_scenes.Thing(0, 0, 10, 10, 0.0, 1.0)
        return emoji_scenes.Placed(about, layer, (x0, 0, x0 + 10, 10))

    rows = emoji_scenes.annotate([thing(0), thing(8)])
    assert [row["area"] for row in rows] == [80, 100]
    assert [row["bbox"] for row in rows] == [[0, 0, 10, 10], [8, 0, 10, 10]]


def test_a_shifted_sprite_does_not_come_back_at_the_other_border():
    whole = torch.zeros(1, 4, 64, 64, dtype=torch.float64)
    whole[:, :, 20:40, 20:40] = 1
    whole[:, :, 20:40, 19] = 0.3  # a faint edge outside the tight box
    placed = emoji_scenes.put_square(whole, emoji_scenes.Thing(0, 0, 20, 20, 0.0, 1.0), (0, 10))
    assert placed.box == (0, 10, 20, 30)
    assert placed.layer[:, :, 21:].max() == 0
    assert placed.layer[3, 10:30, :20].min() == 1


@pytest.mark.parametrize(("width", "height"), [(5, 16), (58, 20), (40, 40)])
def test_stretched_sprites_fill_their_box(sprites, width, height):
    thing = emoji_scenes.Thing(0, 0, width, height, 11.0, 1.0)
    whole = emoji_scenes.cut_out(torch.from_numpy(sprites[0, 0]), thing)
    placed = emoji_scenes.put_stretched(whole, thing, (3, 5))
    assert placed.box == (3, 5, 3 + width, 5 + height)
    inside = placed.layer[3, 5 : 5 + height, 3 : 3 + width]
    assert placed.layer[3].sum() - inside.sum() < 1e-9
    assert (inside.sum(0) > 0).all()
    assert (inside.sum(1) > 0).all()
    assert placed.layer.min() >= 0
    assert placed.layer.max() <= 1 + 1e-9


def test_a_split_is_written_with_its_truth_apart(sprites, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_scenes, "in_parallel", lambda work, jobs, _: [work(*j) for j in jobs])
    places = load_photos()
    for split in ("unlabelled", "val"):
        emoji_scenes.write_split(tmp_path / split, "square", split, 3, sprites, places)
    annotations = json.loads((tmp_path / "unlabelled" / "annotations.json").read_text())
    truth = json.loads((tmp_path / "unlabelled" / "truth.json").read_text())
    assert annotations["annotations"] == []
    assert len(truth["annotations"]) >= 3
    assert annotations["images"] == truth["images"]
    assert [row["file_name"] for row in truth["images"]] == [
        f"images/{i:06d}.png" for i in range(3)
    ]
    assert not (tmp_path / "val" / "truth.json").exists()
    ids = [row["id"] for row in truth["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for part in ("unlabelled", "val"):
        stored = np.load(locate("emoji_scenes", "square", part) / "images.npy", mmap_mode="r")
        assert np.array_equal(np.load(tmp_path / part / "images.npy"), stored[:3])


def test_every_work_has_licence_author_and_address():
    for name, works in (("emoji_scenes", 5 + 7), ("scenes", 7 + 7)):
        with locate(name, "LICENSES.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == works
        assert all(row["licence"] and row["author"] and row["url"] for row in rows)
    with locate("emoji_scenes", "LICENSES.csv").open(encoding="utf-8") as file:
        assert not [row for row in csv.DictReader(file) if row["licence"] == "CC-BY-SA-4.0"]


def test_both_sets_come_with_a_plain_fetch():
    for name in ("emoji_scenes", "scenes"):
        assert manifest.find(name).default
    assert set(SCENE_VENDORS) < set(pools.VENDORS)


# ------------------------------------------------------------------------------ the backbone


def test_backbone_learnt_concepts_that_no_scene_shows():
    about = json.loads(locate("scenes", "backbone.json").read_text())
    assert len(about["concepts"]) == 100
    assert not set(about["concepts"]) & set(SCENE_CLASSES)
    assert about["accuracy"] > 0.2  # chance is .01


@pytest.mark.slow
def test_training_the_backbone_again_gives_equal_weights():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (160, 3, 32, 32), dtype=torch.uint8, generator=generator)
    label, held_out = torch.arange(160) % 4, torch.arange(160) < 40
    one, two = (backbone.train(images, label, held_out, seed=3, steps=3)[0] for _ in range(2))
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(first, second)
