"""From visits to training examples: labels, triplets, lists."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from toolkit.data import ClickLog
from toolkit.search.triplets import Triplets


def first_clicks(log: ClickLog) -> tuple[Int64[Tensor, " visits"], Int64[Tensor, " visits"]]:
    """The listing that each visit clicked first in time, and its position from 1; −1 for none."""
    slot = (log.click_order == 0).long().argmax(dim=1)
    some = log.clicked.any(dim=1)
    listing = log.shown.gather(1, slot[:, None])[:, 0]
    return torch.where(some, listing, -1), torch.where(some, slot + 1, -1)


def majority_category(
    log: ClickLog, category: Int64[Tensor, " listings"]
) -> Int64[Tensor, " visits"]:
    """The category of most clicked items of a visit; ties go to the one clicked earlier.

    Args:
        log: the visits.
        category: of every listing; clicks on −1 do not count.

    Returns:
        −1 where no click counts.
    """
    kind = torch.where(log.clicked, category[log.shown], -1)
    kinds = int(category.max()) + 1
    votes = torch.zeros(len(kind), kinds + 1).scatter_add_(
        1, torch.where(kind < 0, kinds, kind), torch.ones(kind.shape)
    )
    late = torch.iinfo(torch.int16).max
    # a vote counts whole, the time of a kind's first click less than one
    when = torch.full((len(kind), kinds + 1), float(late)).scatter_reduce_(
        1,
        torch.where(kind < 0, kinds, kind),
        torch.where(log.clicked, log.click_order, late).float(),
        "amin",
    )
    score = (votes - when / (late + 1))[:, :kinds]
    return torch.where((kind >= 0).any(dim=1), score.argmax(dim=1), -1)


def switches(
    log: ClickLog, category: Int64[Tensor, " leaves"]
) -> tuple[Int64[Tensor, " visits"], Int64[Tensor, " visits"]]:
    """The virtual categories that each visit left and entered, −1 for visits that tell nothing.

    Left out are visits without a switch, switches inside one virtual category or from and to a leaf
    without one, and visits without a click: the visitor may only have been curious.

    Args:
        log: the visits.
        category: the virtual category of each leaf, −1 for none.
    """
    left, entered = category[log.tab], category[log.switched_to.clamp(min=0)]
    counts = (log.switched_to >= 0) & log.clicked.any(dim=1)
    counts &= (left >= 0) & (entered >= 0) & (left != entered)
    return torch.where(counts, left, -1), torch.where(counts, entered, -1)


def draw_triplets(triplets: Triplets, generator: torch.Generator) -> Triplets:
    """One triplet a visit, uniformly among its own; visits in ascending order."""
    _, counts = torch.unique_consecutive(triplets.visit, return_counts=True)
    start = counts.cumsum(0) - counts
    chosen = (torch.rand(len(counts), generator=generator) * counts).long()
    return triplets[start + chosen]


@dataclass(frozen=True)
class Lists:
    """Some of what each visit was shown."""

    visit: Int64[Tensor, "n"]
    item: Int64[Tensor, "n size"]
    clicked: Bool[Tensor, "n size"]
    position: Int64[Tensor, "n size"]
    """In the list that was shown, from 1."""
    has_triplet: Bool[Tensor, "n"]
    """Where true, the first two items are d⁺ and d⁻."""

    def __getitem__(self, rows: Tensor) -> "Lists":
        """The lists of these rows."""
        return Lists(*(column[rows] for column in vars(self).values()))


def draw_lists(log: ClickLog, size: int, triplets: Triplets, generator: torch.Generator) -> Lists:
    """The clicked items of every visit with a click, filled up with others that it was shown.

    A listing that was shown twice takes part once, at its better position.

    Args:
        log: the visits.
        size: items a list.
        triplets: at most one a visit, as `draw_triplets` makes them; its two come first.
        generator: of the choice.

    Raises:
        ValueError: if a visit shows fewer than `size` listings, or fewer than two are asked for.
    """
    slots = log.shown.shape[1]
    if not 2 <= size <= slots:
        raise ValueError(f"a list needs 2 to {slots} items, got {size}")
    key = torch.rand(log.shown.shape, generator=generator) + log.clicked
    again = (log.shown[:, :, None] == log.shown[:, None, :]).tril(-1).any(dim=2)
    key[again] = -1.0
    paired = torch.zeros(len(key), dtype=torch.bool)
    paired[triplets.visit] = True
    for rank, item in ((3.0, triplets.positive), (2.5, triplets.negative)):
        slot = (log.shown[triplets.visit] == item[:, None]).long().argmax(dim=1)
        key[triplets.visit, slot] = rank
    visit = log.clicked.any(dim=1).nonzero()[:, 0]
    slot = key[visit].topk(size, dim=1).indices
    return Lists(
        visit,
        log.shown[visit].gather(1, slot),
        log.clicked[visit].gather(1, slot),
        slot + 1,
        paired[visit],
    )
