"""Which emoji concepts make the shop and which train the backbone: `emoji_pools.csv`, committed.

The pools hold concepts that seven vendors draw and that can be told apart: of two that look alike
in any vendor's hand, the later one is dropped. `python -m data_scripts.pools` writes the file again
from the prepared rasters; a test holds that it is the same.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_scripts.tables import write_table
from toolkit.data import EMOJI_VENDORS, Emoji, load_emoji
from toolkit.data.store import DataError, atomic_write

PATH = Path(__file__).with_name("emoji_pools.csv")
SEED = 20210
SIZES = {"shop": 600, "backbone": 100, "spare": 16}
"""Concepts of each pool, in the order in which the permuted concepts are handed out."""

VENDORS = tuple(vendor for vendor in EMOJI_VENDORS if vendor != "fxemoji")
GROUPS = (
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
)
SCENE_CLASSES = ("1F34E", "1F34C", "1F436", "1F431", "1F697")
"""Red apple, banana, dog face, cat face, automobile: kept for the made scenes."""

NEAR = 0.04
"""Root-mean-square difference, on a scale of 0 to 1, below which two images look alike."""


def read() -> dict[str, list[str]]:
    """The committed pools: name → keys of concepts, by rank."""
    pools: dict[str, list[str]] = {name: [] for name in SIZES}
    with PATH.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pools[row["pool"]].append(row["key"])
    return pools


def compute(emoji: Emoji) -> dict[str, list[str]]:
    """The pools, from the rasters.

    Raises:
        DataError: if another number of concepts passes than when the pools were fixed.
    """
    drawn = drawn_by_all(emoji)
    distinct = [drawn[place] for place in first_of_lookalikes(_thumbnails(emoji, drawn))]
    keys = [key for key in (emoji.keys[c] for c in distinct) if key not in SCENE_CLASSES]
    if (len(drawn), len(distinct), len(keys)) != (738, 720, 716):
        raise DataError(
            f"{len(drawn)}, {len(distinct)}, {len(keys)} concepts pass; expected 738, 720, 716"
        )
    permuted = [keys[place] for place in np.random.default_rng(SEED).permutation(len(keys))]
    ends = np.cumsum([0, *SIZES.values()])
    return {name: permuted[ends[i] : ends[i + 1]] for i, name in enumerate(SIZES)}


def drawn_by_all(emoji: Emoji) -> list[int]:
    """The concepts of the seven groups that all seven vendors draw, in emojibase's order."""
    vendors: dict[int, set[str]] = {}
    for concept, vendor in zip(emoji.concept.tolist(), emoji.vendor.tolist(), strict=True):
        vendors.setdefault(concept, set()).add(EMOJI_VENDORS[vendor])
    return [
        concept
        for concept in sorted(vendors)
        if emoji.groups[concept] in GROUPS and vendors[concept] >= set(VENDORS)
    ]


def first_of_lookalikes(thumbnails: np.ndarray) -> list[int]:
    """Places kept when each concept near an earlier kept one, in any vendor's hand, is dropped.

    Args:
        thumbnails: float [concepts, vendors, pixels], 0 to 1.
    """
    near = np.any([_mean_squares(images) <= NEAR**2 for images in thumbnails.swapaxes(0, 1)], 0)
    kept: list[int] = []
    for place, row in enumerate(near):
        if not row[kept].any():
            kept.append(place)
    return kept


def _mean_squares(images: np.ndarray) -> np.ndarray:
    """Mean squared difference of every pair: [n, pixels] → [n, n]."""
    images = images.astype(np.float64)
    norms = (images**2).mean(1)
    return norms[:, None] + norms[None] - 2 / images.shape[1] * images @ images.T


def _thumbnails(emoji: Emoji, concepts: Sequence[int]) -> np.ndarray:
    """Float [concepts, vendors, 24·24·3]: on white at 48×48, averaged to 24×24."""
    pairs = zip(emoji.concept.tolist(), emoji.vendor.tolist(), strict=True)
    rows = {pair: row for row, pair in enumerate(pairs)}
    wanted = [[rows[c, EMOJI_VENDORS.index(vendor)] for vendor in VENDORS] for c in concepts]
    return np.stack([[_thumbnail(emoji.images[row].numpy()) for row in some] for some in wanted])


def _thumbnail(image: np.ndarray) -> np.ndarray:
    colour, alpha = image[:3].astype(np.float32), image[3].astype(np.float32) / 255
    white = np.rint(colour * alpha + 255 * (1 - alpha)).astype(np.uint8).transpose(1, 2, 0)
    small = np.asarray(Image.fromarray(white).resize((48, 48), Image.Resampling.BOX))
    return (small.reshape(24, 2, 24, 2, 3).mean((1, 3)) / 255).ravel()


def _write(emoji: Emoji) -> None:
    label = dict(zip(emoji.keys, emoji.labels, strict=True))
    rows = [
        (pool, rank, key, label[key])
        for pool, keys in compute(emoji).items()
        for rank, key in enumerate(keys)
    ]
    with atomic_write(PATH) as path:
        write_table(path, ["pool", "rank", "key", "label"], rows)


if __name__ == "__main__":
    _write(load_emoji())
