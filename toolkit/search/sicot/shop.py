"""The emoji shop as a long tail: a class is a product, some have many listings, most have few.

Everything here is fixed before any method is chosen or tuned: images, frequencies, titles, splits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import EmojiShop, draw_title, load_emoji_shop, shared_only
from toolkit.runtime import TUNING_SEEDS
from toolkit.search.sicot.longtail import tail_counts
from toolkit.search.sicot.recipe import Recipe
from toolkit.search.sicot.words import Vocabulary

VENDORS, SHOTS = 6, 7
"""Listings and training photographs of a product."""
SIDE = 32
"""Pixels of an image's side."""


@dataclass(frozen=True, eq=False)
class Task:
    """What one seed learns from and is judged on; images have no title when they are judged."""

    x: Tensor
    """Training inputs: features [n, 128], or images [n, 3, 32, 32]."""
    y: Int64[Tensor, " n"]
    counts: Int64[Tensor, " classes"]
    """Training images of each class."""
    val: tuple[Tensor, Int64[Tensor, " v"]]
    """Two photographs a class, of drawings by known vendors."""
    test: tuple[Tensor, Int64[Tensor, " m"]]
    """Ten photographs a class, drawn by the vendor held out; for tuning seeds, `val`."""
    tokens: list[list[str]]
    """The words of each product."""
    seed: int

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.counts)


@dataclass(frozen=True, eq=False)
class Titles:
    """The words of training images, and of test images for the modes that use them."""

    vocabulary: Vocabulary
    train: Int64[Tensor, "n length"]
    test: Int64[Tensor, "m length"]
    informative: Bool[Tensor, "m length"]
    """Which words of a test title are its product's own."""
    texts: tuple[list[list[str]], list[list[str]]]
    """The titles themselves."""


def shop_task(recipe: Recipe, seed: int, device: torch.device) -> Task:
    """The long-tailed training images and the balanced test images of one seed.

    Image j of class c is, for even j, the listing of vendor π_c(j mod 6), for odd j one of seven
    photographs in turn; each with its own shift ±10 %, scale .85 to 1.1, rotation ±10° and
    brightness ±10 %, then averaged to 32×32. Features are the leading principal components of
    the training images.

    Raises:
        DataMissing: if the shop is not prepared.
    """
    size = (recipe.products, recipe.n_max, recipe.n_min)
    return _shop_task(*size, recipe.inputs, seed, device)


@lru_cache(maxsize=1)
def _shop_task(
    products: int, n_max: int, n_min: int, inputs: str, seed: int, device: torch.device
) -> Task:
    """The last one is remembered: a search for learning rates asks for it again and again."""
    shop = load_emoji_shop(products)
    counts = tail_counts(products, n_max, n_min, seed)
    images, y = training_images(shop, counts, seed)
    held_out = "val" if seed >= TUNING_SEEDS else "test"
    judged = [shrunk(shop.queries[split].crop) for split in ("val", held_out)]
    labels = [shop.queries[split].product for split in ("val", held_out)]
    x = [images, *judged]
    x = principal_components(x, seed) if inputs == "features" else [2 * i - 1 for i in x]
    x, labels = [part.to(device) for part in x], [part.to(device) for part in labels]
    val, test = zip(x[1:], labels, strict=True)
    return Task(x[0], y.to(device), counts.to(device), val, test, shop.tokens, seed)


def training_images(
    shop: EmojiShop, counts: Int64[Tensor, " classes"], seed: int
) -> tuple[Float[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]:
    """Images 0 … n_c − 1 of each class c, from 0 to 1, and their classes."""
    rng = np.random.default_rng([seed, 1])
    vendors = torch.from_numpy(np.stack([rng.permutation(VENDORS) for _ in counts]))
    y = torch.arange(len(counts)).repeat_interleave(counts)
    number = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y]  # j
    on_white = number % 2 == 0
    listing = VENDORS * y + vendors[y, number % VENDORS]
    shot = SHOTS * y + number // 2 % SHOTS
    images = torch.empty(len(y), 3, SIDE, SIDE)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    draw = torch.rand(len(y), 5, generator=generator)
    crops = shop.queries["train"].crop
    images[on_white] = varied(shop.catalogue[listing[on_white]], draw[on_white])
    images[~on_white] = varied(crops[shot[~on_white]], draw[~on_white])
    return images, y


def varied(
    images: UInt8[Tensor, "n 3 side side"], draw: Float[Tensor, "n 5"]
) -> Float[Tensor, "n 3 32 32"]:
    """Shift ±10 %, scale .85 to 1.1, rotate ±10°, brighten ±10 %, average to 32×32; white outside.

    Args:
        images: bytes.
        draw: five numbers from 0 to 1 an image: right, down, scale, angle, brightness.
    """
    shift, angle = 0.4 * draw[:, :2] - 0.2, torch.deg2rad(20 * draw[:, 3] - 10)  # sides are 2
    scale = 0.85 + 0.25 * draw[:, 2]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    theta = torch.cat([turn, -turn @ shift[:, :, None]], dim=2)
    parts = []
    for image, matrix in zip(images.split(1024), theta.split(1024), strict=True):
        grid = F.affine_grid(matrix, list(image.shape), align_corners=False)
        ink = 1 - image.float() / 255  # so that what comes in from outside, 0, is white
        parts.append(
            F.interpolate(F.grid_sample(ink, grid, align_corners=False), SIDE, mode="area")
        )
    gain = 0.9 + 0.2 * draw[:, 4, None, None, None]
    return ((1 - torch.cat(parts)) * gain).clamp(0, 1)


def shrunk(images: UInt8[Tensor, "n 3 side side"]) -> Float[Tensor, "n 3 32 32"]:
    """Images as they are, averaged to 32×32, from 0 to 1."""
    return F.interpolate(images.float() / 255, SIDE, mode="area")


def principal_components(
    images: Sequence[Float[Tensor, "_ 3 32 32"]], seed: int, components: int = 128
) -> list[Float[Tensor, "_ components"]]:
    """Project on the first components of the first set, and give all one scale: mean square 1."""
    flat = [part.flatten(1).numpy() for part in images]
    components = min(components, *flat[0].shape)
    pca = PCA(components, svd_solver="randomized", random_state=seed).fit(flat[0])
    projected = [torch.from_numpy(pca.transform(part)) for part in flat]
    scale = projected[0].square().mean().sqrt()
    return [(part / scale).float() for part in projected]


# --- titles -------------------------------------------------------------------------------------


def product_words(tokens: list[list[str]], kind: str) -> list[list[str]]:
    """The words that titles of each product are made of.

    Args:
        tokens: the words of each product.
        kind: `"own"`: as they are; `"shared"`: without those that name a single product;
            `"renamed"`: every word made its product's own, so that no two products share one.

    Raises:
        ValueError: for another kind.
    """
    if kind == "own":
        return tokens
    if kind == "shared":
        return shared_only(tokens)
    if kind == "renamed":
        return [[f"{word}#{p}" for word in words] for p, words in enumerate(tokens)]
    raise ValueError(f"kind is 'own', 'shared' or 'renamed', got {kind!r}")


def unique_share(tokens: list[list[str]]) -> float:
    """The share of the products' words that name a single product."""
    return 1 - sum(map(len, shared_only(tokens))) / sum(map(len, tokens))


def draw_titles(task: Task, recipe: Recipe, kind: str) -> Titles:
    """One title for each training image and each test image; the vocabulary is of the former.

    Args:
        task: whose images.
        recipe: its `noise_words` and `length`.
        kind: of `product_words`.
    """
    words = product_words(task.tokens, kind)
    train, test = (
        list(_titles(words, y.tolist(), [task.seed, 6, split], recipe))
        for split, y in ((0, task.y), (2, task.test[1]))
    )
    vocabulary = Vocabulary.fit(train)
    tokens = [vocabulary.encode(texts, recipe.length)[0] for texts in (train, test)]
    own = torch.zeros(len(test), recipe.length, dtype=torch.bool)
    for row, (title, p) in enumerate(zip(test, task.test[1].tolist(), strict=True)):
        for place, word in enumerate(title):
            own[row, place] = word in words[p]
    train_tokens, test_tokens = (part.to(task.y.device) for part in tokens)
    known = test_tokens > 1
    return Titles(
        vocabulary, train_tokens, test_tokens, own.to(known.device) & known, (train, test)
    )


def _titles(
    words: list[list[str]], products: list[int], key: list[int], recipe: Recipe
) -> Iterator[list[str]]:
    """The titles of each product come from a stream of its own, in turn."""
    streams: dict[int, np.random.Generator] = {}
    for p in products:
        if p not in streams:
            streams[p] = np.random.default_rng([*key, p])
        yield draw_title(words, p, streams[p], noise=recipe.noise_words, max_len=recipe.length)
