"""Triplets from click logs, and the ranking losses on them."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from toolkit.data.shop_clicks import ClickLog


@dataclass(frozen=True)
class Triplets:
    """A photograph, a listing clicked under it, and one that was shown beside it, not clicked."""

    visit: Int64[Tensor, "n"]
    """The row of the log."""
    query: Int64[Tensor, "n"]
    positive: Int64[Tensor, "n"]
    negative: Int64[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.visit)

    def __getitem__(self, rows: Tensor | slice) -> "Triplets":
        """The triplets of these rows (indices, a mask or a slice)."""
        return Triplets(*(getattr(self, field.name)[rows] for field in fields(self)))


def mine_triplets(
    log: ClickLog,
    old_features: tuple[Float[Tensor, "queries d"], Float[Tensor, "listings d"]] | None = None,
    eps: float = torch.inf,
    gamma: float = 0.0,
    *,
    examined_only: bool = False,
) -> Triplets:
    """All triplets (q, d⁺, d⁻) of the log's visits that pass the cleaning.

    A clicked listing is kept if dist(d⁺, q) ≤ ε in older features, one that was not clicked if
    min(dist(d⁻, q), dist(d⁻, d⁺)) ≥ γ: a click far from the photograph was idle, and a neighbour
    that nobody clicked may be the same product. The defaults keep every click.

    Args:
        log: visits, clicks and what was shown.
        old_features: of queries and listings; needed unless ε is ∞ and γ is 0.
        eps: the largest Euclidean distance of a positive.
        gamma: the least Euclidean distance of a negative.
        examined_only: negatives stand above the visit's lowest click; what stands below it may
            never have been looked at.

    Returns:
        In the order of visits, then of the positions of d⁺ and d⁻.

    Raises:
        ValueError: for negative or not-a-number thresholds, thresholds without features, or
            features that do not cover the log.
    """
    _check_mining(log, old_features, eps, gamma)
    slots = log.clicked.shape[1]
    candidate = ~log.clicked
    if examined_only:
        lowest = (log.clicked * torch.arange(slots)).amax(1)
        candidate = candidate & (torch.arange(slots) < lowest[:, None])
    pair = log.clicked[:, :, None] & candidate[:, None, :]
    visit, liked, passed = pair.nonzero(as_tuple=True)
    query, positive, negative = log.query[visit], log.shown[visit, liked], log.shown[visit, passed]
    triplets = Triplets(visit, query, positive, negative)
    if old_features is None:
        return triplets
    queries, listings = old_features
    to_positive = _distance(queries[query], listings[positive])
    to_query = _distance(queries[query], listings[negative])
    between = _distance(listings[positive], listings[negative])
    return triplets[(to_positive <= eps) & (torch.minimum(to_query, between) >= gamma)]


def cleaning_thresholds(
    log: ClickLog,
    old_features: tuple[Float[Tensor, "queries d"], Float[Tensor, "listings d"]],
    positive: float = 0.6,
    negative: float = 0.1,
) -> tuple[float, float]:
    """ε and γ as quantiles of old distances from photographs to what was shown under them.

    Args:
        log: visits.
        old_features: of queries and listings.
        positive: ε is this quantile over clicked pairs.
        negative: γ is this quantile over pairs without a click.

    Raises:
        ValueError: if the features do not cover the log, or a quantile lies outside [0, 1].
    """
    _check_mining(log, old_features, 0.0, 0.0)
    if not 0 <= positive <= 1 or not 0 <= negative <= 1:
        raise ValueError(f"quantiles lie in [0, 1], got {positive} and {negative}")
    queries, listings = old_features
    distance = _distance(queries[log.query][:, None], listings[log.shown])
    clicked, passed = distance[log.clicked], distance[~log.clicked]
    return float(clicked.quantile(positive)), float(passed.quantile(negative))


def allowed_negatives(
    log: ClickLog, visit: Int64[Tensor, " m"], negative: Int64[Tensor, " n"]
) -> Bool[Tensor, "m n"]:
    """Which listings of a batch may serve a visit's query as negatives: those it did not click.

    The true product of a listing is not asked: it would leak what the clicks must teach.
    """
    clicked = torch.where(log.clicked[visit], log.shown[visit], -1)
    return ~(clicked[:, :, None] == negative).any(1)


def triplet_loss(
    fq: Float[Tensor, "m d"],
    fp: Float[Tensor, "m d"],
    fn: Float[Tensor, "n d"],
    margin: float,
    allowed: Bool[Tensor, "m n"] | None = None,
) -> Float[Tensor, ""]:
    """The ranking loss with shared negatives: all negatives of a batch serve all its queries.

    L = mean over q of the mean over its allowed q⁻ of [δ + ‖f_q − f_p‖² − ‖f_q − f_n‖²]₊. The mean
    is taken per query first, so that one badly labelled query cannot dominate.

    Args:
        fq: features of the queries.
        fp: of each query's positive.
        fn: of the negatives.
        margin: δ, in squared distance.
        allowed: which negatives serve which query; by default all. A query without any is left
            out of the mean; without such queries at all the loss is 0.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if allowed is None:
        allowed = torch.ones(len(fq), len(fn), dtype=torch.bool, device=fq.device)
    if fq.shape != fp.shape or fq.shape[1:] != fn.shape[1:]:
        raise ValueError(
            f"fq {tuple(fq.shape)}, fp {tuple(fp.shape)} and fn {tuple(fn.shape)} must be "
            "[m, d], [m, d] and [n, d]"
        )
    if allowed.shape != (len(fq), len(fn)):
        raise ValueError(
            f"allowed must be [{len(fq)}, {len(fn)}], queries by negatives, "
            f"got {tuple(allowed.shape)}"
        )
    near = _squared(fq, fp)[:, None]
    far = fq.square().sum(1, keepdim=True) - 2 * fq @ fn.T + fn.square().sum(1)
    hinge = torch.where(allowed, (margin + near - far).clamp(min=0), 0)
    served = allowed.sum(1)
    per_query = hinge.sum(1) / served.clamp(min=1)
    return per_query.sum() / (served > 0).sum().clamp(min=1)


def triplet_click_loss(
    fq: Float[Tensor, "m d"],
    fpos: Float[Tensor, "m d"],
    fneg: Float[Tensor, "m d"],
    margin: float,
) -> Float[Tensor, ""]:
    """The mean of [δ + ‖f_q − f_{d⁺}‖² − ‖f_q − f_{d⁻}‖²]₊, each query with its own negative.

    Args:
        fq: features of the queries.
        fpos: of what was clicked.
        fneg: of what was shown and not clicked.
        margin: δ, in squared distance.

    Raises:
        ValueError: if the shapes differ.
    """
    if not fq.shape == fpos.shape == fneg.shape:
        raise ValueError(
            "queries, positives and negatives must have one shape, got "
            f"{tuple(fq.shape)}, {tuple(fpos.shape)} and {tuple(fneg.shape)}"
        )
    return (margin + _squared(fq, fpos) - _squared(fq, fneg)).clamp(min=0).mean()


def _squared(a: Float[Tensor, "... d"], b: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
    return (a - b).square().sum(-1)


def _distance(a: Float[Tensor, "... d"], b: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
    return _squared(a, b).sqrt()


def _check_mining(
    log: ClickLog, old_features: tuple[Tensor, Tensor] | None, eps: float, gamma: float
) -> None:
    if not eps >= 0 or not gamma >= 0:
        raise ValueError(f"ε and γ are distances, at least 0, got {eps} and {gamma}")
    if old_features is None:
        if eps < torch.inf or gamma > 0:
            raise ValueError("thresholds ε and γ need old features of queries and listings")
        return
    queries, listings = old_features
    if queries.shape[1:] != listings.shape[1:]:
        raise ValueError(
            f"old features of queries {tuple(queries.shape)} and listings "
            f"{tuple(listings.shape)} must have one width"
        )
    if len(queries) <= int(log.query.max()) or len(listings) <= int(log.shown.max()):
        raise ValueError(
            f"the log names query {int(log.query.max())} and listing {int(log.shown.max())}, but "
            f"there are features of {len(queries)} queries and {len(listings)} listings"
        )
