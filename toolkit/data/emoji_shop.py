"""A small shop with known truth: 600 products, six vendors, photographed queries.

A product is an emoji concept; a listing is one vendor's picture of it; a query is a real shot of a
product, as a shopper would send it. Test queries show the products by a seventh vendor, which no
listing and no other query does.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from safetensors.torch import load_file
from torch import Tensor

from toolkit.data.store import locate

CATALOGUE_VENDORS = ("noto", "twemoji", "emojione", "noto-v1", "emojione-v1", "openmoji")
"""Who draws the listings, in their order: listing ℓ = 6 p + v."""
SHOP_VENDORS = (*CATALOGUE_VENDORS, "fluent-flat")
"""All vendors; the place in this tuple is the vendor's id in the shop. The last is held out."""

PRODUCTS = 600
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ShopQueries:
    """Real shots of one split; those of a product follow each other, products ascending."""

    image: UInt8[Tensor, "n 3 64 64"]
    """The whole photograph."""
    crop: UInt8[Tensor, "n 3 48 48"]
    """A detector's output: the square around the box, with its background nearly white."""
    box: Float32[Tensor, "n 4"]
    """Tight box of the object in `image`: x₀, y₀, x₁, y₁ in pixels, half-open."""
    product: Int64[Tensor, "n"]
    vendor: Int64[Tensor, "n"]
    """Who drew it: an index into `SHOP_VENDORS`."""
    photo: Int64[Tensor, "n"]
    """The tile behind it: a row of `load_photos()`, which names the photograph."""


@dataclass(frozen=True)
class EmojiShop:
    """Listings, categories, words and queries of the first so many products."""

    catalogue: UInt8[Tensor, "listings 3 64 64"]
    """Pictures on white; listing 6 p + v shows product p by vendor v."""
    product: Int64[Tensor, "listings"]
    vendor: Int64[Tensor, "listings"]
    """An index into `SHOP_VENDORS`."""
    leaf: Int64[Tensor, "products"]
    """The leaf category: an index into `leaves`."""
    department: Int64[Tensor, "products"]
    """An index into `departments`."""
    tokens: list[list[str]]
    """The words of each product, in alphabetical order."""
    queries: dict[str, ShopQueries]
    """By split: `"train"` 7 of each product, `"val"` 2, `"test"` 10 by the held-out vendor."""
    labels: tuple[str, ...]
    """The name of each product."""
    leaves: tuple[str, ...]
    departments: tuple[str, ...]
    sprite: Int64[Tensor, "listings"]
    """Rows of `load_emoji()`: the listings with alpha."""


def load_emoji_shop(products: int = PRODUCTS) -> EmojiShop:
    """The shop with its first products: six listings each, and all their queries.

    Leaf categories are those of the whole shop, 46 in seven departments, so that a product keeps
    its category's number whatever the size. Images are memory-mapped.

    Args:
        products: how many, 1 to 600; chapters take 200, 300 or 600.

    Raises:
        ValueError: for another number.
        DataMissing: if the set is not prepared.
    """
    if not 1 <= products <= PRODUCTS:
        raise ValueError(f"products must be 1 to {PRODUCTS}, got {products}")
    folder = locate("emoji_shop")
    rows, leaves = _rows(folder / "products.csv")[:products], _rows(folder / "leaves.csv")
    departments = tuple(dict.fromkeys(row["department"] for row in leaves))
    department = torch.tensor([departments.index(row["department"]) for row in leaves])
    leaf = torch.tensor([int(row["leaf"]) for row in rows])
    vendors = len(CATALOGUE_VENDORS)
    return EmojiShop(
        catalogue=_images(folder / "catalogue.npy", products * vendors),
        product=torch.arange(products).repeat_interleave(vendors),
        vendor=torch.arange(vendors).repeat(products),
        leaf=leaf,
        department=department[leaf],
        tokens=[row["tokens"].split() for row in rows],
        queries={split: _queries(folder, split, products) for split in SPLITS},
        labels=tuple(row["label"] for row in rows),
        leaves=tuple(row["name"] for row in leaves),
        departments=departments,
        sprite=_mapped(folder / "sprites.npy")[: products * vendors],
    )


def _queries(folder: Path, split: str, products: int) -> ShopQueries:
    columns = load_file(folder / f"{split}.safetensors")
    count = len(columns["product"]) * products // PRODUCTS
    return ShopQueries(
        image=_images(folder / f"{split}_image.npy", count),
        crop=_images(folder / f"{split}_crop.npy", count),
        **{name: column[:count] for name, column in columns.items()},
    )


def _images(path: Path, count: int) -> Tensor:
    return _mapped(path).permute(0, 3, 1, 2)[:count]


def _mapped(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
