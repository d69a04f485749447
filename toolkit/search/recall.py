"""Did the list hold the same product, and how far up?"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def first_rank(
    found: Int[Tensor, "queries k"], product: Int[Tensor, " items"], wanted: Int[Tensor, " queries"]
) -> Int[Tensor, " queries"]:
    """The position, from 1, of the first listing of the wanted product; 0 where there is none.

    Args:
        found: listings by falling score, rows of `product`; −1 marks an empty place.
        product: of each listing.
        wanted: the product of each query.

    Raises:
        ValueError: if the numbers of rows differ, or a listing has no product.
    """
    if len(found) != len(wanted):
        raise ValueError(f"found has {len(found)} rows and wanted {len(wanted)}; they must agree")
    if found.numel() and not -1 <= int(found.min()) <= int(found.max()) < len(product):
        raise ValueError(
            f"found must hold listings 0…{len(product) - 1} or −1, "
            f"got {int(found.min())}…{int(found.max())}"
        )
    if not found.numel():
        return torch.zeros_like(wanted)
    hit = (found >= 0) & (product[found.clamp(min=0)] == wanted[:, None])
    return torch.where(hit.any(1), hit.long().argmax(1) + 1, 0)


def identical_recall(
    found: Int[Tensor, "queries k"],
    product: Int[Tensor, " items"],
    wanted: Int[Tensor, " queries"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[int, float]:
    """Identical Recall@K: the share of queries whose very product is among the first K.

    Args:
        found: listings by falling score, rows of `product`; −1 marks an empty place.
        product: of each listing.
        wanted: the product of each query.
        ks: cut-offs, 1…k.

    Raises:
        ValueError: if a cut-off is longer than the lists, or shapes do not fit.
    """
    if not ks or min(ks) < 1 or max(ks) > found.shape[1]:
        raise ValueError(f"each K must lie in 1…{found.shape[1]}, got {tuple(ks)}")
    rank = first_rank(found, product, wanted)
    return {k: float(((rank > 0) & (rank <= k)).double().mean()) for k in ks}


def mean_reciprocal_rank(
    found: Int[Tensor, "queries k"], product: Int[Tensor, " items"], wanted: Int[Tensor, " queries"]
) -> Float[Tensor, ""]:
    """The mean of 1 / position of the first listing of the wanted product; 0 where there is none.

    Args:
        found: listings by falling score, rows of `product`; −1 marks an empty place.
        product: of each listing.
        wanted: the product of each query.

    Raises:
        ValueError: if shapes do not fit.
    """
    rank = first_rank(found, product, wanted)
    return torch.where(rank > 0, 1 / rank.clamp(min=1), 0).mean()
