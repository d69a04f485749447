import csv

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from data_scripts import glyphs, manifest, sources
from toolkit.data import GLYPH_FONTS, HELD_OUT_FONTS, load_glyphs
from toolkit.data.store import DataError, locate


def font(name):
    pinned = manifest.downloads()[f"@expo-google-fonts/{name}"]
    return glyphs._fonts({pinned.name: sources.verified(pinned)})[name]


@pytest.fixture(scope="module")
def kuaile():
    return font("zcool-kuaile")


@pytest.fixture(scope="module")
def clean():
    return np.load(locate("glyphs", "clean.npy"), mmap_mode="r")


def test_characters_are_two_levels_each_shuffled():
    chars = glyphs.gb2312_characters()
    assert len(set(chars)) == 6763
    codes = [char.encode("gb2312") for char in chars]
    assert max(codes[: glyphs.LEVEL_1]) < min(codes[glyphs.LEVEL_1 :])
    assert codes != sorted(codes)


def test_ink_is_centred_and_spans_four_fifths(kuaile):
    for image in glyphs.draw(kuaile, "永一中"):
        rows, columns = np.nonzero(image > 60)
        spans = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 37 <= max(spans) <= 40
        assert abs(rows.min() + rows.max() - 47) <= 1
        assert abs(columns.min() + columns.max() - 47) <= 1


def test_lacking_characters_are_counted(kuaile):
    with pytest.raises(DataError, match="kuaile lacks 1 of 2 characters"):
        glyphs.draw_all({"kuaile": kuaile}, ["永", "\uac00"])


def test_stored_characters_are_those_that_the_fonts_draw(kuaile, clean):
    chars = load_glyphs(num_classes=5).chars
    assert np.array_equal(clean[:5, GLYPH_FONTS.index("zcool-kuaile")], glyphs.draw(kuaile, chars))


def test_all_characters_are_drawn_in_all_fonts(clean):
    assert clean.shape == (6763, 8, 48, 48)
    assert (clean.max((2, 3)) > 100).all()


@pytest.mark.parametrize("split", glyphs.SPLITS)
@pytest.mark.parametrize("first", [0, 4321])
def test_any_image_can_be_made_again_alone(clean, split, first):
    images, fonts = glyphs.distort(clean[first : first + 3], split, first, HELD_OUT_FONTS)
    stored = np.load(locate("glyphs", f"{split}.npy"), mmap_mode="r")
    rows = slice(first * glyphs.PER_CLASS[split], (first + 3) * glyphs.PER_CLASS[split])
    assert np.array_equal(images, stored[rows])
    assert np.array_equal(fonts, np.load(locate("glyphs", f"{split}_font.npy"))[rows])


def test_images_of_a_class_do_not_depend_on_its_neighbours(clean):
    many, _ = glyphs.distort(clean[10:14], "train", 10, HELD_OUT_FONTS)
    one, _ = glyphs.distort(clean[12:13], "train", 12, HELD_OUT_FONTS)
    assert np.array_equal(many[16:24], one)


def test_splits_show_different_images():
    train, test = (load_glyphs(split, 20).images.flatten(1) for split in ("train", "test"))
    assert not any((image == test).all(1).any() for image in train)


def test_blur_agrees_with_scipy():
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (3, 9, 9)).astype(np.float32)
    sigma = np.array([0.0, 0.3, 0.6], np.float32)
    expected = [
        gaussian_filter(image, s, mode="nearest", radius=2) if s else image
        for image, s in zip(images, sigma, strict=True)
    ]
    np.testing.assert_allclose(glyphs.blur(images, sigma), np.stack(expected), atol=1e-3)


def test_without_held_out_fonts_every_split_uses_them_all():
    two = np.zeros((50, 2, 48, 48), np.uint8)
    for split in glyphs.SPLITS:
        _, fonts = glyphs.distort(two, split, 0, ())
        assert set(fonts) == {0, 1}


def test_nearest_characters_are_listed_first(tmp_path):
    images = np.zeros((4, 48, 48), np.uint8)
    images[1, :24], images[2, :25], images[3, 20:] = 255, 255, 255
    glyphs.write_lookalikes(tmp_path / "alike.csv", images, "甲乙丙丁", count=2)
    with (tmp_path / "alike.csv").open(encoding="utf-8") as file:
        pairs = [(row["char"], row["nearest_char"]) for row in csv.DictReader(file)]
    assert pairs == [("乙", "丙"), ("丙", "乙")]
