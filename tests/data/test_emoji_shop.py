"""The shop on the prepared data (`python -m data_scripts fetch` comes first)."""

from collections import Counter

import pytest
import torch

from toolkit import data
from toolkit.data.compose import on_white

PER_PRODUCT = {"train": 7, "val": 2, "test": 10}


@pytest.fixture(scope="module")
def shop():
    return data.load_emoji_shop()


def test_missing_shop_names_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))
    with pytest.raises(data.DataMissing, match="`python -m data_scripts fetch emoji_shop`"):
        data.load_emoji_shop()


@pytest.mark.parametrize("products", [0, 601])
def test_impossible_numbers_of_products_are_refused(products):
    with pytest.raises(ValueError, match=f"1 to 600, got {products}"):
        data.load_emoji_shop(products)


def test_listing_is_six_times_product_plus_vendor(shop):
    assert shop.catalogue.shape == (3600, 3, 64, 64)
    assert torch.equal(6 * shop.product + shop.vendor, torch.arange(3600))


def test_listings_are_the_sprites_on_white(shop):
    emoji = data.load_emoji()
    rows = [0, 1234, 3599]
    white = on_white(emoji.images[shop.sprite[rows]])
    assert torch.equal(white, shop.catalogue[rows])
    names = [data.EMOJI_VENDORS[vendor] for vendor in emoji.vendor[shop.sprite]]
    assert names == [data.SHOP_VENDORS[vendor] for vendor in shop.vendor]


def test_leaves_are_the_frozen_46_in_seven_departments(shop):
    sizes = torch.bincount(shop.leaf, minlength=46)
    assert (len(shop.leaves), len(shop.departments)) == (46, 7)
    assert sizes.min() >= 5
    assert sizes.sum() == 600
    departments = {}
    for leaf, department in zip(shop.leaf.tolist(), shop.department.tolist(), strict=True):
        assert departments.setdefault(leaf, department) == department


def test_three_words_in_ten_name_a_single_product(shop):
    every = [word for words in shop.tokens for word in words]
    counts = Counter(every)
    share = sum(counts[word] == 1 for word in every) / len(every)
    assert share == pytest.approx(0.31, abs=0.005)
    assert all(words and words == sorted(set(words)) for words in shop.tokens)


def test_fewer_products_are_a_prefix(shop):
    few = data.load_emoji_shop(200)
    assert few.catalogue.shape == (1200, 3, 64, 64)
    assert few.tokens == shop.tokens[:200]
    assert torch.equal(few.leaf, shop.leaf[:200])
    assert few.leaves == shop.leaves
    for split, count in PER_PRODUCT.items():
        part, whole = few.queries[split], shop.queries[split]
        assert len(part.image) == len(part.product) == 200 * count
        assert torch.equal(part.crop[-1], whole.crop[200 * count - 1])
        assert part.product.max() == 199


@pytest.mark.parametrize("split", PER_PRODUCT)
def test_queries_of_a_product_follow_each_other(shop, split):
    queries, count = shop.queries[split], PER_PRODUCT[split]
    assert queries.image.shape == (600 * count, 3, 64, 64)
    assert queries.crop.shape == (600 * count, 3, 48, 48)
    assert torch.equal(queries.product, torch.arange(600).repeat_interleave(count))


def test_only_test_queries_show_the_held_out_vendor(shop):
    assert data.SHOP_VENDORS[6] == "fluent-flat"
    assert (shop.queries["test"].vendor == 6).all()
    for split in ("train", "val"):
        shares = torch.bincount(shop.queries[split].vendor) / len(shop.queries[split].vendor)
        assert len(shares) == 6
        assert (shares - 1 / 6).abs().max() < 0.03


def test_no_photograph_is_in_two_splits(shop):
    photos = data.load_photos()
    seen = {}
    for split, queries in shop.queries.items():
        places = queries.photo.unique().tolist()
        assert {photos.split[place] for place in places} == {split}
        assert len(places) == photos.split.count(split)
        seen[split] = {photos.photo[place] for place in places}
    assert not seen["train"] & seen["test"] | seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]


def test_boxes_are_whole_pixels_inside_the_frame(shop):
    for queries in shop.queries.values():
        assert (queries.box == queries.box.round()).all()
        assert queries.box.min() >= 0
        assert queries.box.max() <= 64
        assert (queries.box[:, 2:] > queries.box[:, :2]).all()


def test_objects_take_the_intended_share_of_the_frame(shop):
    box = torch.cat([queries.box for queries in shop.queries.values()])
    sides = (box[:, 2:] - box[:, :2]) / 64
    assert 0.45 < sides.mean() < 0.55
    assert sides.max() < 0.85
