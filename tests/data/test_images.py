"""The loaders on the prepared data (`python -m data_scripts fetch` comes first)."""

import numpy as np
import pytest
import torch

from toolkit import data
from toolkit.data import store


@pytest.fixture
def nothing_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (data.load_fashion_mnist, "fashion_mnist"),
        (data.load_emoji, "emoji"),
        (data.load_glyphs, "glyphs"),
        (data.load_photos, "photos"),
    ],
)
def test_missing_sets_name_their_command(nothing_prepared, load, name):
    with pytest.raises(data.DataMissing, match=f"`python -m data_scripts fetch {name}`"):
        load()


def test_missing_size_names_its_command(nothing_prepared):
    with pytest.raises(data.DataMissing, match="fetch glyphs --size 20k"):
        data.load_glyphs(size="20k")


def test_digits_need_no_download(nothing_prepared):
    digits = data.load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (digits.images.dtype, digits.images.max()) == (torch.uint8, 16)
    assert torch.bincount(digits.label).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip


@pytest.mark.parametrize(("split", "size"), [("train", 60_000), ("test", 10_000)])
def test_fashion_mnist_is_balanced(split, size):
    fashion = data.load_fashion_mnist(split)
    assert fashion.images.shape == (size, 1, 28, 28)
    assert torch.bincount(fashion.label).tolist() == [size // 10] * 10
    assert len(fashion.classes) == 10


def test_fashion_mnist_has_its_known_mean_and_deviation():
    pixels = data.load_fashion_mnist().images.numpy() / np.float32(255)
    assert pixels.mean() == pytest.approx(0.2860, abs=5e-5)
    assert pixels.std() == pytest.approx(0.3530, abs=5e-5)


def test_writing_to_a_loaded_tensor_changes_nothing_on_disk():
    fashion = data.load_fashion_mnist("test")
    before = fashion.images[0].clone()
    fashion.images[0] = 7
    assert torch.equal(data.load_fashion_mnist("test").images[0], before)


@pytest.mark.parametrize("load", [data.load_fashion_mnist, data.load_glyphs, data.load_photos])
def test_unknown_splits_are_refused(load):
    with pytest.raises(ValueError, match="split must be one of train"):
        load("extra")


def test_emoji_have_the_counts_of_the_pinned_versions():
    emoji = data.load_emoji()
    assert emoji.images.shape == (11_199, 4, 64, 64)
    per_vendor = torch.bincount(emoji.vendor).tolist()
    assert per_vendor == [1678, 1259, 1940, 1940, 1594, 1248, 1044, 496]
    vendors = torch.bincount(emoji.concept)
    assert len(vendors) == len(emoji.keys) == 1945
    assert [int((vendors >= least).sum()) for least in (1, 5, 6, 7, 8)] == [
        1945, 1246, 1126, 928, 477,
    ]  # fmt: skip


def test_emoji_columns_describe_the_same_concept():
    emoji = data.load_emoji()
    apple = emoji.keys.index("1F34E")
    assert (emoji.labels[apple], emoji.groups[apple], emoji.subgroups[apple]) == (
        "red apple",
        "food-drink",
        "food-fruit",
    )
    assert "fruit" in emoji.tags[apple]
    images = emoji.images[emoji.concept == apple].float()
    opaque = images[:, 3] > 200
    red, green, blue = ((images[:, i] * opaque).sum((1, 2)) / opaque.sum((1, 2)) for i in range(3))
    assert (red > green).all()
    assert (red > blue).all()


def test_emoji_alpha_is_straight():
    """Where ink is half covered, its colour is still full: brighter than alpha allows."""
    images = data.load_emoji().images[:200]
    edge = (images[:, 3] > 60) & (images[:, 3] < 190)
    assert (images[:, :3].amax(1)[edge] > images[:, 3][edge]).float().mean() > 0.3


def test_faces_are_found_by_subgroup():
    emoji = data.load_emoji()
    faces = [name for name in emoji.subgroups if name.startswith("face-")]
    assert len(faces) > 80


@pytest.mark.parametrize(("split", "per_class"), [("train", 8), ("val", 2), ("test", 4)])
def test_glyphs_have_the_same_number_of_each_class(split, per_class):
    glyphs = data.load_glyphs(split, 6763)
    assert glyphs.images.shape == (6763 * per_class, 1, 32, 32)
    assert torch.bincount(glyphs.label).tolist() == [per_class] * 6763
    assert len(set(glyphs.chars)) == 6763


def test_glyph_classes_are_a_prefix():
    few, many = data.load_glyphs("val", 50), data.load_glyphs("val", 1000)
    assert few.chars == many.chars[:50]
    assert torch.equal(few.images, many.images[:100])


@pytest.mark.parametrize("split", ["train", "val"])
def test_brush_fonts_are_held_out_of_train_and_val(split):
    glyphs = data.load_glyphs(split, 6763)
    assert not glyphs.heldout.any()
    assert glyphs.font.unique().tolist() == [0, 1, 2, 3, 4]


def test_one_test_image_in_four_is_in_a_brush_font():
    glyphs = data.load_glyphs("test", 6763)
    assert glyphs.heldout.reshape(-1, 4).tolist() == [[False, False, False, True]] * 6763
    shares = torch.bincount(glyphs.font[glyphs.heldout], minlength=8)[5:] / 6763
    assert (shares - 1 / 3).abs().max() < 0.02


def test_train_shows_every_font_once_and_three_of_them_twice():
    fonts = data.load_glyphs("train", 6763).font.reshape(-1, 8)
    assert (fonts[:, :5] == torch.arange(5)).all()
    assert (fonts[:, 5:].sort(1).values.diff(dim=1) > 0).all()


def test_lookalikes_are_five_hundred_common_characters():
    common = set(data.load_glyphs("val", 3755).chars)
    alike = data.load_glyphs("val", 500, lookalikes=True)
    assert alike.images.shape == (1000, 1, 32, 32)
    assert set(alike.chars) < common
    assert {"土", "士", "未", "末"} < set(alike.chars)


def test_lookalike_images_are_those_of_the_same_character():
    alike, every = data.load_glyphs("val", 3, lookalikes=True), data.load_glyphs("val", 3755)
    place = every.chars.index(alike.chars[2])
    assert torch.equal(alike.images[alike.label == 2], every.images[every.label == place])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "1 to 6763, got 0"),
        ({"num_classes": 6764}, "1 to 6763"),
        ({"num_classes": 501, "lookalikes": True}, "1 to 500"),
        ({"size": "40k"}, "'' or '20k'"),
        ({"size": "20k", "lookalikes": True}, "leave size out"),
    ],
)
def test_impossible_glyphs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.load_glyphs(**options)


@pytest.mark.parametrize(("split", "count"), [("train", 22), ("val", 4), ("test", 12), (None, 38)])
def test_photographs_have_their_places(split, count):
    photos = data.load_photos(split)
    assert photos.images.shape == (count, 3, 224, 224)
    assert len(photos.photo) == len(photos.split) == count


def test_no_photograph_is_in_two_splits():
    photos = data.load_photos()
    assert len(set(zip(photos.photo, photos.split, strict=True))) == len(set(photos.photo)) == 7


def test_store_errors_are_reachable_from_the_package():
    assert data.DataMissing is store.DataMissing
