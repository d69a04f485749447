import csv
import filecmp

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from data_scripts import emoji_shop, pools
from toolkit.data import load_emoji, load_photos
from toolkit.data.store import locate


@pytest.fixture(scope="module")
def pictures():
    return load_emoji()


@pytest.fixture(scope="module")
def rows(pictures):
    concepts = [pictures.keys.index(key) for key in pools.read()["shop"]]
    return emoji_shop.sprite_rows(pictures, concepts)


@pytest.mark.parametrize("split", emoji_shop.SPLITS)
@pytest.mark.parametrize("first", [0, 1001])
def test_any_query_can_be_made_again_alone(pictures, rows, split, first):
    numbers = range(first, first + 3)
    allowed = [place for place, name in enumerate(load_photos().split) if name == split]
    products = slice(first // emoji_shop.PER_PRODUCT[split], None)
    sprites = pictures.images[rows[products][:2]].numpy()
    made = emoji_shop.render(sprites, split, numbers, allowed)
    columns = load_file(locate("emoji_shop", f"{split}.safetensors"))
    views = [
        np.load(locate("emoji_shop", f"{split}_{view}.npy"), mmap_mode="r")
        for view in ("image", "crop")
    ]
    stored = (*views, columns["box"], columns["vendor"], columns["photo"])
    for now, then in zip(made, stored, strict=True):
        assert np.array_equal(now, then[first : first + 3])


@pytest.mark.slow
def test_two_preparations_give_equal_bytes(pictures, rows, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        emoji_shop.write_queries(tmp_path / name, "val", pictures, rows[:40], load_photos())
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["val.safetensors", "val_crop.npy", "val_image.npy"]
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)[0] == names


@pytest.mark.slow
def test_queries_of_fewer_products_are_a_prefix(pictures, rows, tmp_path):
    emoji_shop.write_queries(tmp_path, "val", pictures, rows[:40], load_photos())
    for name in ("val_image.npy", "val_crop.npy"):
        whole = np.load(locate("emoji_shop", name), mmap_mode="r")
        assert np.array_equal(np.load(tmp_path / name), whole[:80])


def test_sprites_are_the_product_by_its_vendors_in_order(pictures, rows):
    shop = pools.read()["shop"]
    assert rows.shape == (600, 7)
    for product in (0, 299, 599):
        concepts = pictures.concept[rows[product]]
        assert {pictures.keys[concept] for concept in concepts} == {shop[product]}
    order = [0, 2, 5, 1, 6, 3, 4]  # noto, twemoji, emojione, noto-v1, emojione-v1, openmoji, fluent
    assert (pictures.vendor[rows] == torch.tensor(order)).all()


def test_small_subgroups_join_the_largest_of_their_group():
    subgroups = ["cup"] * 5 + ["pot"] * 2 + ["pan"] * 6 + ["owl"] * 3 + ["cat"] * 4
    groups = ["kitchen"] * 13 + ["animals"] * 7
    merged = emoji_shop.merge_small(subgroups, groups)
    assert merged == ["cup"] * 5 + ["pan"] * 8 + ["cat"] * 7


def test_words_are_a_set_of_lower_case_letters_and_digits():
    assert emoji_shop.tokens("Japanese “No Vacancy” Button", ["no", "24-hour", "button"]) == [
        "24", "button", "hour", "japanese", "no", "vacancy",
    ]  # fmt: skip


def test_every_vendor_and_photograph_has_its_licence():
    with locate("emoji_shop", "LICENSES.csv").open(encoding="utf-8") as file:
        works = {row["work"]: row for row in csv.DictReader(file)}
    assert len(works) == 7 + 7 + 1
    assert all(row["licence"] and row["author"] and row["url"] for row in works.values())
    shared_alike = {name for name, row in works.items() if row["licence"] == "CC-BY-SA-4.0"}
    assert shared_alike == {"openmoji", "emojione-v1"}
