"""The shop: 600 products by six vendors, with real shots of them, categories and words.

A product is a concept of the shop's pool, a listing is one vendor's picture of it on white, a query
is a photograph of it. Query i of split s is drawn with `default_rng([1, s, i])`, so any one of them
can be made again alone; the queries of a product follow each other.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from data_scripts import emoji, manifest, pools
from data_scripts.jobs import in_parallel
from data_scripts.tables import write_licences, write_table
from toolkit.data import (
    CATALOGUE_VENDORS,
    EMOJI_VENDORS,
    SHOP_VENDORS,
    Emoji,
    Photos,
    load_emoji,
    load_photos,
)
from toolkit.data.compose import on_white
from toolkit.data.shots import draw_shot, render_shots

WORLD = 1
SPLITS = {"train": 0, "val": 1, "test": 2}
PER_PRODUCT = {"train": 7, "val": 2, "test": 10}
"""Queries of each product; those of the test split are by the vendor without listings."""

SMALLEST_LEAF = 5
"""Products that a sub-group needs to be a leaf category of its own."""
PIECE = 60
"""Queries that are rendered together."""


def prepare(folder: Path, inputs: Mapping[str, Path], size: str = "") -> None:
    """Write catalogue, queries, products with their words, leaf categories and licences."""
    pictures, places = load_emoji(), load_photos()
    concepts = [pictures.keys.index(key) for key in pools.read()["shop"]]
    rows = sprite_rows(pictures, concepts)
    write_products(folder, pictures, concepts)
    listings = rows[:, : len(CATALOGUE_VENDORS)].flatten()
    np.save(folder / "catalogue.npy", on_white(pictures.images[listings]).permute(0, 2, 3, 1))
    np.save(folder / "sprites.npy", listings.numpy())
    for split in SPLITS:
        write_queries(folder, split, pictures, rows, places)
    works = {vendor: emoji.PACKAGES[vendor] for vendor in SHOP_VENDORS}
    write_licences(folder, "work", works | _photographs() | {"words": "emojibase-data"})


def sprite_rows(pictures: Emoji, concepts: Sequence[int]) -> torch.Tensor:
    """Which emoji image shows a product by a vendor: int64 [products, 7], held-out vendor last."""
    pairs = zip(pictures.concept.tolist(), pictures.vendor.tolist(), strict=True)
    row = {pair: number for number, pair in enumerate(pairs)}
    vendors = [EMOJI_VENDORS.index(vendor) for vendor in SHOP_VENDORS]
    return torch.tensor([[row[concept, vendor] for vendor in vendors] for concept in concepts])


def write_products(folder: Path, pictures: Emoji, concepts: Sequence[int]) -> None:
    """Write `leaves.csv` (leaf categories, with their departments) and `products.csv`."""
    groups = [pictures.groups[concept] for concept in concepts]
    leaf_of = merge_small([pictures.subgroups[concept] for concept in concepts], groups)
    department = dict(zip(leaf_of, groups, strict=True))
    leaves = sorted(department, key=pictures.subgroups.index)
    table = [(number, leaf, department[leaf]) for number, leaf in enumerate(leaves)]
    write_table(folder / "leaves.csv", ["leaf", "name", "department"], table)
    products = []
    for product, (concept, leaf) in enumerate(zip(concepts, leaf_of, strict=True)):
        words = " ".join(tokens(pictures.labels[concept], pictures.tags[concept]))
        about = pictures.keys[concept], pictures.labels[concept], leaves.index(leaf), words
        products.append((product, *about))
    write_table(folder / "products.csv", ["product", "key", "label", "leaf", "tokens"], products)


def merge_small(subgroups: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Let sub-groups with fewer than 5 products join the largest sub-group of their group.

    Args:
        subgroups: of each product.
        groups: likewise.
    """
    sizes = Counter(subgroups)
    largest: dict[str, str] = {}
    for subgroup, group in zip(subgroups, groups, strict=True):
        if sizes[subgroup] > sizes.get(largest.get(group, ""), 0):
            largest[group] = subgroup
    return [
        subgroup if sizes[subgroup] >= SMALLEST_LEAF else largest[group]
        for subgroup, group in zip(subgroups, groups, strict=True)
    ]


def tokens(label: str, tags: Sequence[str]) -> list[str]:
    """The set of words of a label and tags, lower case, in alphabetical order."""
    return sorted(set(re.findall("[a-z0-9]+", " ".join([label, *tags]).lower())))


def write_queries(
    folder: Path, split: str, pictures: Emoji, rows: torch.Tensor, places: Photos
) -> None:
    """Render all queries of a split: `SPLIT_image.npy`, `SPLIT_crop.npy`, `SPLIT.safetensors`.

    Args:
        folder: to write into.
        split: `"train"`, `"val"` or `"test"`.
        pictures: all emoji images.
        rows: int64 [products, 7], as `sprite_rows` has them.
        places: all of them; the split's own are used.
    """
    count = len(rows) * PER_PRODUCT[split]
    allowed = [place for place, name in enumerate(places.split) if name == split]
    jobs = []
    for first in range(0, count, PIECE):
        numbers = range(first, min(first + PIECE, count))
        needed = rows[numbers[0] // PER_PRODUCT[split] : numbers[-1] // PER_PRODUCT[split] + 1]
        jobs.append((pictures.images[needed].numpy(), split, numbers, allowed))
    made = in_parallel(render, jobs, f"emoji_shop: {split}")
    image, crop, box, vendor, photo = (np.concatenate(column) for column in zip(*made, strict=True))
    np.save(folder / f"{split}_image.npy", image)
    np.save(folder / f"{split}_crop.npy", crop)
    product = np.arange(count) // PER_PRODUCT[split]
    columns = {"box": box, "photo": photo, "product": product, "vendor": vendor}
    (folder / f"{split}.safetensors").write_bytes(save(columns))


def render(
    sprites: np.ndarray, split: str, numbers: Sequence[int], allowed: Sequence[int]
) -> tuple[np.ndarray, ...]:
    """Render some consecutive queries.

    Args:
        sprites: uint8 [products, 7, 4, 64, 64] of their products, straight alpha.
        split: `"train"`, `"val"` or `"test"`.
        numbers: of the queries in the split.
        allowed: rows of the tiles of the split.

    Returns:
        Images and crops, channels last; boxes; vendors; rows of the tiles behind.
    """
    torch.set_num_threads(1)
    vendors, shots = [], []
    for number in numbers:
        rng = np.random.default_rng([WORLD, SPLITS[split], number])
        vendors.append(_choose_vendor(rng, split))
        shots.append(draw_shot(rng, allowed))
    first = numbers[0] // PER_PRODUCT[split]
    products = [number // PER_PRODUCT[split] - first for number in numbers]
    done = render_shots(torch.from_numpy(sprites[products, vendors]), shots, load_photos().images)
    views = (view.permute(0, 2, 3, 1).numpy() for view in (done.image, done.crop))
    photo = np.array([shot.background.place for shot in shots])
    return *views, done.box.numpy(), np.array(vendors), photo


def _choose_vendor(rng: np.random.Generator, split: str) -> int:
    held_out = len(CATALOGUE_VENDORS)
    return held_out if split == "test" else int(rng.integers(held_out))


def _photographs() -> dict[str, str]:
    downloads = manifest.datasets()["photos"].downloads
    return {Path(download).stem: download for download in downloads}
