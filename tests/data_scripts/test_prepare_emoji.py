import csv

import numpy as np
import pytest

from data_scripts import emoji, manifest, pools, sources
from data_scripts.emoji import IconSet
from toolkit.data import load_emoji
from toolkit.data.store import DataError, locate

RED_SQUARE = {"body": '<path fill="#f00" d="M0 0h8v8H0z"/>'}
BOX = {"left": 0, "top": 0, "width": 8, "height": 8}
CONCEPTS = {
    "1F600": {"label": "grinning face"},
    "1F34E": {"label": "red apple"},
    "2764": {"label": "red heart"},
    "1F44D": {"label": "thumbs up"},
}


def icons(names=(), aliases=None, chars=None):
    return IconSet(dict.fromkeys(names, RED_SQUARE), aliases or {}, chars or {}, BOX)


def match(**vendors):
    sets = {vendor: icons() for vendor in emoji.NAMED_AFTER} | vendors
    return emoji.match(CONCEPTS, sets)


def test_code_points_match_without_variation_selector():
    found = match(noto=icons(["heart"], chars={"2764-fe0f": "heart", "1f3fb": "tone"}))
    assert found["noto"] == {"2764": "heart"}


def test_names_match_labels():
    assert match(plain=icons(["red-apple", "unheard-of"]))["plain"] == {"1F34E": "red-apple"}


def test_names_match_the_names_that_other_sets_give_to_code_points():
    twemoji = icons(["apple"], chars={"1f34e": "apple"})
    assert match(twemoji=twemoji, plain=icons(["apple"]))["plain"] == {"1F34E": "apple"}


def test_names_match_plain_aliases_but_not_turned_ones():
    aliases = {"like": {"parent": "thumb"}, "dislike": {"parent": "thumb", "rotate": 2}}
    twemoji = icons(["thumb"], aliases, {"1f44d": "thumb"})
    assert match(twemoji=twemoji, plain=icons(["like"]))["plain"] == {"1F44D": "like"}
    assert match(twemoji=twemoji, plain=icons(["dislike"]))["plain"] == {}


def test_hyphens_may_differ_where_that_is_unique():
    assert match(plain=icons(["thumbsup"]))["plain"] == {"1F44D": "thumbsup"}
    noto = icons(["th-umbsup"], chars={"1f600": "th-umbsup"})
    assert match(noto=noto, plain=icons(["thumbsup"]))["plain"] == {}


def test_first_name_of_a_concept_wins_and_icons_come_before_aliases():
    aliases = {"red-apple": {"parent": "redapple"}}
    assert match(plain=icons(["redapple"], aliases))["plain"] == {"1F34E": "redapple"}


def test_slugs():
    assert emoji.slug("Keycap: *!") == "keycap"
    assert emoji.slug("man’s shoe") == "man-s-shoe"


def test_icon_that_is_not_square_is_centred():
    wide = {"body": '<path fill="#00f" d="M0 0h8v4H0z"/>', "height": 4}
    pixels = emoji.raster([emoji.svg(IconSet({"wide": wide}, {}, {}, BOX), "wide", 16)])[0]
    assert pixels.shape == (16, 16, 4)
    assert (pixels[4:12] == [0, 0, 255, 255]).all()
    assert (pixels[:4] == 0).all()
    assert (pixels[12:] == 0).all()


def test_half_transparent_colour_is_stored_straight():
    glass = {"body": '<path fill="#f00" fill-opacity=".5" d="M0 0h8v8H0z"/>'}
    pixels = emoji.raster([emoji.svg(IconSet({"glass": glass}, {}, {}, BOX), "glass", 8)])[0]
    assert np.abs(pixels.astype(int) - [255, 0, 0, 128]).max() <= 1


def test_other_counts_than_the_pinned_versions_are_refused():
    with pytest.raises(DataError, match="expected"):
        emoji._check_counts({"noto": {}}, [])


@pytest.fixture(scope="module")
def matched():
    pinned = manifest.datasets()["emoji"].downloads
    paths = {name: sources.verified(manifest.downloads()[name]) for name in pinned}
    concepts = emoji.read_concepts(paths["emojibase-data"])
    sets = {name: emoji.read_icons(paths[package]) for name, package in emoji.PACKAGES.items()}
    return concepts, sets, emoji.match(concepts, sets)


def test_real_sets_match_as_counted(matched):
    concepts, _, found = matched
    assert len(concepts) == 1949
    assert {vendor: len(keys) for vendor, keys in found.items()} == emoji.COUNTS
    assert sum(emoji.COUNTS.values()) == 11_199


def test_stored_rasters_are_those_of_the_icons(matched):
    _, sets, found = matched
    images = np.load(locate("emoji", "images.npy"), mmap_mode="r")
    with locate("emoji", "index.csv").open(encoding="utf-8") as file:
        index = list(csv.DictReader(file))
    for row in np.linspace(0, len(index) - 1, 40).astype(int):
        key, vendor = index[row]["concept"], index[row]["vendor"]
        document = emoji.svg(sets[vendor], found[vendor][key], emoji.SIDE)
        assert np.array_equal(images[row], emoji.raster([document])[0]), (key, vendor)


def test_every_vendor_has_licence_author_and_address():
    with locate("emoji", "LICENSES.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["vendor"] for row in rows] == list(emoji.PACKAGES)
    assert all(row["licence"] and row["author"] and row["url"] for row in rows)
    share_alike = {row["vendor"] for row in rows if row["licence"] == "CC-BY-SA-4.0"}
    assert share_alike == {"openmoji", "emojione-v1"}


def test_committed_pools_have_their_sizes_and_no_concept_twice():
    committed = pools.read()
    assert {name: len(keys) for name, keys in committed.items()} == pools.SIZES
    every = [key for keys in committed.values() for key in keys]
    assert len(set(every)) == 716
    assert not set(every) & set(pools.SCENE_CLASSES)


@pytest.mark.slow
def test_committed_pools_follow_from_the_rasters():
    assert pools.compute(load_emoji()) == pools.read()


def test_of_two_lookalikes_the_later_is_dropped_for_any_vendor():
    thumbnails = np.zeros((4, 2, 10))
    thumbnails[1] = 0.5
    thumbnails[2, 0], thumbnails[2, 1] = 1.0, 0.53
    thumbnails[3] = 0.8
    assert pools.first_of_lookalikes(thumbnails) == [0, 1, 3]
