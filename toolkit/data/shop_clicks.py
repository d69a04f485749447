"""Visitors of the emoji shop: what an old engine showed them, and what they clicked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float32, Int16, Int64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from toolkit.data.emoji_shop import CATALOGUE_VENDORS, EmojiShop, load_emoji_shop

SHOWN = 30
"""Listings that a visitor is shown."""
CLICK_WORLD = 5
"""First number of the seed of every visit's generator."""


@dataclass(frozen=True)
class ClickLog:
    """What visitors of the shop were shown and did; a row is a visit."""

    query: Int64[Tensor, "visits"]
    """The photograph: a train query."""
    shown: Int64[Tensor, "visits slots"]
    """The listings, best first."""
    clicked: Bool[Tensor, "visits slots"]
    click_order: Int16[Tensor, "visits slots"]
    """The place of a click in time, from 0; −1 where there was none."""
    tab: Int64[Tensor, "visits"]
    """The leaf category that the shop opened."""
    switched_to: Int64[Tensor, "visits"]
    """The one that the visitor chose instead; −1 for none."""

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> "ClickLog":
        """Read a log with one row a visit.

        Args:
            frame: columns `query`; `shown`, a list of listings, equally many in every row;
                `clicks`, the list of clicked positions in the order of time, from 0; `tab`;
                `switched_to`, −1 for none; optionally `times`, those of the clicks.

        Raises:
            ValueError: if a column or visit is not like that; the message names the first one.
        """
        columns = ["query", "shown", "clicks", "tab", "switched_to"]
        if missing := [name for name in columns if name not in frame]:
            raise ValueError(f"a click log needs the columns {columns}; missing: {missing}")
        lengths = {len(items) for items in frame["shown"]}
        if len(lengths) != 1:
            raise ValueError(f"every visit must show equally many listings, got {sorted(lengths)}")
        (slots,) = lengths
        order = np.full((len(frame), slots), -1, np.int16)
        times = frame["times"] if "times" in frame else [None] * len(frame)
        for visit, (clicks, when) in enumerate(zip(frame["clicks"], times, strict=True)):
            _check_clicks(visit, clicks, when, slots)
            order[visit, list(clicks)] = range(len(clicks))
        query, tab, switched_to = (
            torch.tensor(frame[name].to_numpy(np.int64)) for name in ("query", "tab", "switched_to")
        )
        shown = torch.tensor(np.stack(frame["shown"].to_list()).astype(np.int64))
        click_order = torch.from_numpy(order)
        return cls(query, shown, click_order >= 0, click_order, tab, switched_to)

    def to_frame(self) -> pd.DataFrame:
        """The log as a table that `from_frame` reads."""
        in_time = torch.where(self.clicked, self.click_order, torch.iinfo(torch.int16).max)
        positions, counts = in_time.argsort(1).tolist(), self.clicked.sum(1).tolist()
        columns = {name: getattr(self, name).tolist() for name in ("query", "shown", "tab")}
        clicks = [row[:count] for row, count in zip(positions, counts, strict=True)]
        return pd.DataFrame(columns | {"clicks": clicks, "switched_to": self.switched_to.tolist()})


def simulate_clicks(
    products: int = 300,
    visits: int | None = None,
    seed: int = 0,
    p: tuple[float, float, float] = (0.6, 0.15, 0.05),
    affinity: float = 0.5,
    noise: float = 0.1,
    *,
    similarity: Float[Tensor, "queries listings"] | None = None,
) -> ClickLog:
    """Let people photograph products, look at what the shop's old engine finds, and click.

    Visit t brings train query t mod (7 · products). The engine shows the 30 listings of highest
    cosine + `affinity` · [same product] + `noise` · N(0, 1), never the query's own listing. The
    listing at position r ≥ 1 is looked at with probability 1 / log₂(r + 1), and then clicked with
    a probability from `p`. Clicks follow each other by position, but in 70 % of the visits those on
    the right product come first. The shop opens the true leaf category as its tab in 75 % of the
    visits, else another one of the department; half of the wrong tabs are switched to the true
    one, and 3 % of the right ones to a random one.

    Visit t of a seed has its own generator: a longer log begins with the shorter one.

    Args:
        products: the first so many of the shop, at least 6.
        visits: by default three for each query.
        seed: which log.
        p: probability of a click on a listing of the same product, of another product of the same
            leaf category, and of any other.
        affinity: stands for what a grown engine knows from text and sales; 0 leaves the pictures.
        noise: σ of what the engine adds by chance, anew in every visit.
        similarity: of another engine, in the place of the cosine of `old_engine`.

    Raises:
        ValueError: for numbers outside these ranges, or a similarity of another shape.
        DataMissing: if the shop is not prepared.
    """
    _check_simulation(products, visits, p, noise)
    shop = load_emoji_shop(products)
    queries = shop.queries["train"]
    score = _old_engine(products) if similarity is None else similarity
    if score.shape != (len(queries.product), len(shop.product)):
        raise ValueError(
            f"similarity must have shape {len(queries.product), len(shop.product)}, "
            f"got {tuple(score.shape)}"
        )
    same = queries.product[:, None] == shop.product
    own = len(CATALOGUE_VENDORS) * queries.product + queries.vendor
    biased = (score + affinity * same).scatter(1, own[:, None], -torch.inf)
    visits = 3 * len(own) if visits is None else visits
    blocks = range(0, visits, 500)
    parts = [
        _visit(shop, biased, range(start, min(start + 500, visits)), seed, p, noise)
        for start in blocks
    ]
    return ClickLog(*(torch.cat(column) for column in zip(*parts, strict=True)))


def old_engine(shop: EmojiShop) -> Float32[Tensor, "queries listings"]:
    """The cosine of every train crop with every listing, as the shop's first engine has it.

    Both are averaged to 32×32 pixels and projected on the 128 principal components of the listings.
    """
    from sklearn.decomposition import PCA

    listings = _thumbnails(shop.catalogue)
    components = min(128, len(listings) - 1)
    pca = PCA(components, svd_solver="arpack", random_state=0).fit(listings)
    found, sought = (
        torch.from_numpy(pca.transform(images)).float()
        for images in (listings, _thumbnails(shop.queries["train"].crop))
    )
    return torch.nn.functional.normalize(sought) @ torch.nn.functional.normalize(found).T


@lru_cache(maxsize=2)
def _old_engine(products: int) -> Tensor:
    return old_engine(load_emoji_shop(products))


def _visit(
    shop: EmojiShop,
    score: Float[Tensor, "queries listings"],
    numbers: range,
    seed: int,
    p: tuple[float, float, float],
    noise: float,
) -> tuple[Tensor, ...]:
    """Some consecutive visits: the columns of their `ClickLog`."""
    normal = np.empty((len(numbers), score.shape[1]), np.float32)
    uniform = np.empty((len(numbers), 2 * SHOWN + 5))
    for row, visit in enumerate(numbers):
        rng = np.random.default_rng([CLICK_WORLD, seed, visit])
        rng.standard_normal(out=normal[row], dtype=np.float32)
        rng.random(out=uniform[row])
    look, like, eager, *rest = torch.from_numpy(uniform).split([SHOWN, SHOWN, 1, 1, 1, 1, 1], 1)
    query = torch.tensor(numbers) % len(score)
    product = shop.queries["train"].product[query]
    shown = (score[query] + noise * torch.from_numpy(normal)).topk(SHOWN).indices
    same = shop.product[shown] == product[:, None]
    alike = shop.leaf[shop.product[shown]] == shop.leaf[product][:, None]
    examine = 1 / torch.log2(torch.arange(SHOWN, dtype=torch.float64) + 2)
    click = torch.where(same, p[0], torch.where(alike, p[1], p[2]))
    clicked = (look < examine) & (like < click)
    order = _order(clicked, same, eager < 0.7)
    return query, shown, clicked, order, *_tabs(shop, product, torch.cat(rest, 1))


def _order(clicked: Tensor, same: Tensor, eager: Tensor) -> Int16[Tensor, "visits slots"]:
    """When each click comes: by position, but for the eager those on the right product first."""
    late = torch.arange(SHOWN) + SHOWN * (eager & ~same) + 2 * SHOWN * ~clicked
    return torch.where(clicked, late.argsort(1).argsort(1), -1).short()


def _tabs(
    shop: EmojiShop, product: Int64[Tensor, "visits"], chance: Float[Tensor, "visits 4"]
) -> tuple[Int64[Tensor, "visits"], Int64[Tensor, "visits"]]:
    """The tab that opens and the one that it is switched to."""
    true, leaves = shop.leaf[product], len(shop.leaves)
    department = torch.full((leaves,), -1)  # none, for a leaf without a product in this shop
    department[shop.leaf] = shop.department
    other = ~torch.eye(leaves, dtype=torch.bool) & (department >= 0)
    near = other & (department[:, None] == department)
    near = torch.where(near.any(1, keepdim=True), near, other)
    tab = torch.where(chance[:, 0] < 0.75, true, _pick(near[true], chance[:, 1]))
    back = torch.where(chance[:, 2] < 0.5, true, -1)
    away = torch.where(chance[:, 2] < 0.03, _pick(other[true], chance[:, 3]), -1)
    return tab, torch.where(tab == true, away, back)


def _pick(
    allowed: Bool[Tensor, "visits leaves"], chance: Float[Tensor, "visits"]
) -> Int64[Tensor, "visits"]:
    """One of the allowed leaves of each row, uniformly."""
    number = (chance * allowed.sum(1)).long()
    return ((allowed.cumsum(1) == number[:, None] + 1) & allowed).long().argmax(1)


def _thumbnails(images: UInt8[Tensor, "n 3 side side"]) -> Float32[np.ndarray, "n 3072"]:
    """Images averaged to 32×32, one row each, 0 to 1."""
    return (interpolate(images.float(), size=32, mode="area") / 255).flatten(1).numpy()


def _check_simulation(
    products: int, visits: int | None, p: tuple[float, float, float], noise: float
) -> None:
    if products * len(CATALOGUE_VENDORS) <= SHOWN:
        raise ValueError(f"{SHOWN} shown listings need at least 6 products, got {products}")
    if visits is not None and visits < 1:
        raise ValueError(f"visits must be at least 1, got {visits}")
    if len(p) != 3 or not all(0 <= one <= 1 for one in p):
        raise ValueError(f"p must be three probabilities, got {p}")
    if noise < 0:
        raise ValueError(f"noise must not be negative, got {noise}")


def _check_clicks(
    visit: int, clicks: Sequence[int], times: Sequence[float] | None, slots: int
) -> None:
    if not all(0 <= place < slots for place in clicks) or len(set(clicks)) < len(clicks):
        raise ValueError(
            f"visit {visit}: clicks must be different positions from 0 to {slots - 1}, "
            f"got {list(clicks)}"
        )
    if times is None:
        return
    if len(times) != len(clicks) or any(later <= earlier for earlier, later in pairwise(times)):
        raise ValueError(
            f"visit {visit}: times must rise, one for each of {len(clicks)} clicks, "
            f"got {list(times)}"
        )
