"""The emoji shop as the networks read it: pictures or principal components, and their truth."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import load_emoji_shop
from toolkit.search.recall import identical_recall

COMPONENTS = 128
"""Principal components of 32×32 pictures: what the old engine sees, too."""
TEST_SHOTS = 2
"""Test queries of each product that the chapter reads, of ten."""


@dataclass(frozen=True)
class Shop:
    """Pictures of listings and queries, as images or components; truth is for evaluation only."""

    listings: Float[Tensor, "listings ..."]
    queries: Float[Tensor, "queries ..."]
    """Train queries."""
    val: Float[Tensor, "val ..."]
    test: Float[Tensor, "test ..."]
    product: Int64[Tensor, "listings"]
    query_product: Int64[Tensor, "queries"]
    val_product: Int64[Tensor, "val"]
    test_product: Int64[Tensor, "test"]
    leaf: Int64[Tensor, "listings"]
    """The leaf category of each listing: no secret, its seller chose it."""
    product_leaf: Int64[Tensor, "products"]


@lru_cache(maxsize=4)
def shop_inputs(products: int, kind: str, device: torch.device) -> Shop:
    """The shop with its first products.

    Args:
        products: how many.
        kind: `"pixels"`, [n, 3, 32, 32] in ±0.5; or `"components"`, the 128 principal components of
            the listings, scaled by one number.
        device: of all tensors.

    Raises:
        ValueError: for another kind.
    """
    if kind not in ("pixels", "components"):
        raise ValueError(f"kind is 'pixels' or 'components', got {kind!r}")
    shop = load_emoji_shop(products)
    splits = shop.queries
    kept = torch.arange(len(splits["test"].product)) % 10 < TEST_SHOTS
    pictures = [
        _thumbnails(images)
        for images in (
            shop.catalogue,
            splits["train"].crop,
            splits["val"].crop,
            splits["test"].crop[kept],
        )
    ]
    if kind == "components":
        pictures = _components(pictures)
    listings, queries, val, test = (x.to(device) for x in pictures)
    return Shop(
        listings,
        queries,
        val,
        test,
        shop.product.to(device),
        splits["train"].product.to(device),
        splits["val"].product.to(device),
        splits["test"].product[kept].to(device),
        shop.leaf[shop.product].to(device),
        shop.leaf.to(device),
    )


def recall_at_1(
    queries: Float[Tensor, "queries d"],
    listings: Float[Tensor, "listings d"],
    wanted: Int64[Tensor, " queries"],
    product: Int64[Tensor, " listings"],
) -> float:
    """Identical Recall@1 by cosine."""
    score = F.normalize(queries.flatten(1), dim=1) @ F.normalize(listings.flatten(1), dim=1).T
    return identical_recall(score.topk(1, dim=1).indices, product, wanted, ks=(1,))[1]


def _thumbnails(images: Tensor) -> Float[Tensor, "n 3 32 32"]:
    return F.interpolate(images.float(), size=32, mode="area") / 255 - 0.5


def _components(pictures: list[Tensor]) -> list[Tensor]:
    flat = [x.flatten(1).numpy() for x in pictures]
    components = min(COMPONENTS, len(flat[0]) - 1)
    pca = PCA(components, svd_solver="arpack", random_state=0).fit(flat[0])
    found = [torch.from_numpy(pca.transform(x)).float() for x in flat]
    return [x / found[0].std() for x in found]
