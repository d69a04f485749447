"""Every number of the experiments, for the three profiles."""

from dataclasses import dataclass

FEATURE_ARMS = (
    "leaf",
    "virtual",
    "truth",
    "joint",
    "permuted",
    "triplet",
    "list",
    "infonce",
    "content",
    "random",
)
"""Cross-entropy on leaf categories, on Virtual IDs, on true products (the upper bound); the paper's
joint training; Virtual IDs on permuted listings; its ranking losses alone; contrast of co-clicked
pictures without IDs; cross-entropy on content clusters; IDs permuted over all pictures."""

RATES = {
    "mlp": {
        "leaf": 0.002,
        "virtual": 0.008,
        "truth": 0.016,
        "joint": 0.008,
        "permuted": 0.008,
        "triplet": 0.0005,
        "list": 0.001,
        "infonce": 0.002,
        "content": 0.004,
        "random": 0.008,
    },
    "conv": {
        "leaf": 0.004,
        "virtual": 0.004,
        "truth": 0.004,
        "joint": 0.004,
        "permuted": 0.004,
        "triplet": 0.00025,
        "list": 0.00025,
        "infonce": 0.004,
        "content": 0.004,
        "random": 0.004,
    },
}
"""Rates of Adam by backbone and arm: the best of `tuning_grid` in Recall@1 of val queries.

The controls "permuted" and "random" take the rate of "virtual", which they imitate."""


METHODS = ("netmf", "pooled", "sgns", "node2vec", "louvain", "spectral", "components", "rows")
"""Ways from clicks to clusters: see `graph_clusters`."""


@dataclass(frozen=True)
class Recipe:
    """The Feature Network's experiment. The paper's own settings were not at hand: all are ours."""

    arms: tuple[str, ...] = FEATURE_ARMS[:5]
    seeds: int = 5
    rates: tuple[float, ...] = ()  # of Adam, one an arm; empty: those of `RATES`
    products: int = 300  # of the shop; six listings each
    visits: int = 6300  # of the click log, on 2,100 train queries
    p_other: float = 0.05  # clicks on looked-at listings of another leaf, p_n; the same leaf: 3 p_n
    clusters: int = 300  # Virtual IDs K: listings / an average cluster of six
    rank: int = 320  # of the closed-form embedding, d_g ≥ K
    window: int = 5  # of the walk, T
    negatives: int = 5  # noise samples a pair, n
    backbone: str = "mlp"  # on 128 components; "conv" on 32×32 pixels; paper: CNN
    hidden: int = 256  # units of the mlp's hidden layer
    channels: tuple[int, ...] = (24, 48, 96)  # of the conv's stages
    dim: int = 64  # of the feature f
    scale: float = 16.0  # of the classifier's cosines
    steps: int = 400  # of Adam
    visits_a_step: int = 14  # lists in a batch; with their photographs 126 pictures
    list_size: int = 8  # items of a list
    margin: float = 0.2  # δ of the triplets, in squared distance
    tau: float = 0.1  # τ of lists and of contrast
    alpha: float = 0.3  # weight of the triplet term in "joint", tuned among .3, 1, 3
    beta: float = 1.0  # weight of the list term in "joint", tuned among .1, .3, 1, 3
    keep_near: float = 0.9  # quantile of old distances below which a click may be a positive
    drop_near: float = 0.05  # quantile below which what was not clicked is no negative


@dataclass(frozen=True)
class GridRecipe:
    """One cell of the phase diagram: co-click clusters against content clusters (C1)."""

    methods: tuple[str, ...] = ("netmf",)
    seeds: int = 3
    products: int = 300
    visits: int = 6300
    p_other: float = 0.05
    clusters: int = 300
    rank: int = 320
    window: int = 5
    negatives: int = 5
    walks: int = 10
    length: int = 20


@dataclass(frozen=True)
class CategoryRecipe:
    """The Category Network (C4) and the two stages of a search."""

    arms: tuple[str, ...] = ("base", "first", "first+switch")
    seeds: int = 8
    products: int = 300
    categories: int = 24  # virtual ones, the same in all arms
    rates: tuple[float, ...] = (0.016, 0.016, 0.016)  # of Adam, one an arm, tuned
    first: float = 0.25  # λ₁, tuned among 0.125 … 2
    switch: float = 0.25  # λ₂, tuned among 0.06 … 1
    margin: float = 1.0  # m of the switch term
    hidden: int = 256
    batch: int = 128  # visits a step
    steps: int = 400


@dataclass(frozen=True)
class BiasRecipe:
    """Position bias and its correction, with the list loss on components (C6)."""

    arms: tuple[str, ...] = ("biased", "corrected", "unbiased")
    seeds: int = 8
    rates: tuple[float, ...] = (0.001, 0.001, 0.001)  # of Adam, one an arm, tuned
    base: Recipe = Recipe(arms=("list",))


@dataclass(frozen=True)
class BudgetRecipe:
    """Clicks against labels: supervised networks on n labelled pictures (C5)."""

    budgets: tuple[int, ...] = (100, 300, 1000, 2100, 3600)  # labelled pictures n, of 3,900
    rates: tuple[float, ...] = (0.001, 0.008, 0.004, 0.004, 0.016)  # of Adam, one a budget, tuned
    seeds: int = 8
    base: Recipe = Recipe(arms=("virtual",))


@dataclass(frozen=True)
class TrafficRecipe:
    """Visits under the new engine (C7)."""

    arm: str = "virtual"
    seeds: int = 8
    held_out: int = 2  # of the seven photographs of a product, kept from training
    base: Recipe = Recipe(arms=("virtual",))


AnyRecipe = Recipe | GridRecipe | CategoryRecipe | BiasRecipe | BudgetRecipe | TrafficRecipe


def studies(profile: str) -> dict[str, list[AnyRecipe]]:
    """Every setting of the chapter, by study.

    Args:
        profile: `"quick"` or `"full"`.

    Returns:
        "features" (C2, C3); in `full` also "phase" (C1), "methods", "categories" (C4), "labels"
        (C5), "bias" (C6) and "traffic" (C7).

    Raises:
        ValueError: for another profile.
    """
    if profile == "quick":
        return {"features": [Recipe()]}
    if profile != "full":
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    return {
        "features": [Recipe(arms=FEATURE_ARMS, seeds=8, backbone="conv")],
        "phase": [
            GridRecipe(visits=visits, p_other=p)
            for p in (0.01, 0.05, 0.15, 0.3)
            for visits in (1500, 3000, 6300, 12600)
        ],
        "methods": [GridRecipe(methods=METHODS)],
        "categories": [CategoryRecipe()],
        "labels": [BudgetRecipe()],
        "bias": [BiasRecipe()],
        "traffic": [TrafficRecipe()],
    }


def tuning_grid(arm: str, backbone: str = "mlp") -> list[Recipe]:
    """The recipes among which an arm's rate was chosen."""
    rates = [2.0**power * 1e-3 for power in range(-4, 6)]
    return [Recipe(arms=(arm,), rates=(rate,), backbone=backbone) for rate in rates]
