"""The settings of the small experiment, and the studies that the claims rest on."""

from dataclasses import dataclass, replace
from typing import Any

RATIOS = {"free": 0.0, "balanced": 1.0}
"""The ratio r of the arms that differ from CoKe by it only."""

ARMS = (
    "random",
    "coke",
    *RATIOS,
    "sinkhorn",
    "offline",
    "instance",
    "averaged",
    "coupled",
    "two_views",
)


@dataclass(frozen=True)
class Recipe:
    """A small network on Fashion-MNIST without labels; probes see labels afterwards.

    The arms that exist: `random` (the network at its first weights), `coke` (one view, ratio r),
    `free` (r = 0: mini-batch k-means without constraint), `balanced` (r = 1), `sinkhorn` (SwAV's
    assignment in CoKe's loop), `offline` (k-means over all features before each epoch),
    `instance` (one view against a memory bank), `averaged` (variance reduction 1 from epoch
    `stage` on), `coupled` (this batch's labels, moving centres) and `two_views` (variance
    reduction 2 at half the epochs, so that it sees as many images).
    """

    arms: tuple[str, ...] = ("random", "coke", "free", "balanced")  # methods
    seeds: int = 3  # of verdicts
    images: int = 5000  # N
    tail: float = 1.0  # class shares ∝ tail^c; 1 is balanced
    epochs: int = 9  # passes, the first of which does not train
    batch: int = 250  # B
    lr: float = 0.0  # of SGD at the start of the cosine, epoch 1; 0: the arm's own in RATES
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4  # of SGD
    heads: tuple[int, ...] = (30, 40, 50)  # K; the paper's are 3000, 4000, 5000
    ratio: float = 0.4  # r, as released
    dual_lr: float = 3.5  # B / √N; released: 20 for B = 1024, N = 1.28 million
    temperature: float = 0.1  # λ of one view, as released
    beta: float = 1.0  # weight of the prediction branch, as in the released script
    two_view_temperature: float = 0.05  # λ of two views, as released
    alpha: float = 0.2  # α of two views, as released
    stage: int = 7  # first averaged epoch of `averaged`; released: 801 of 1001
    epsilon: float = 0.05  # of Sinkhorn, as SwAV's
    bank_temperature: float = 0.1  # τ of `instance`
    test_images: int = 2000  # balanced over classes
    bank: int = 0  # labelled images a class for kNN and ridge; 0: the training images
    few: int = 10  # labelled images a class for the logistic probe
    few_draws: int = 3  # of these images; accuracies are averaged
    validation: bool = False  # test on held-out training images: for tuning

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if not self.arms or set(self.arms) - set(ARMS):
            raise ValueError(f"arms are {', '.join(ARMS)}; got {self.arms}")
        if not 1 <= self.batch <= self.images or self.epochs < 2:
            raise ValueError(
                f"need 1 ≤ batch ≤ images and 2 epochs or more, got batch={self.batch}, "
                f"images={self.images}, epochs={self.epochs}"
            )
        if not 0 < self.tail <= 1:
            raise ValueError(f"tail lies in (0, 1], got {self.tail}")
        if "averaged" in self.arms and not 1 <= self.stage < self.epochs:
            raise ValueError(f"stage lies in 1…{self.epochs - 1}, got {self.stage}")
        if self.tail < 1 and not self.bank:
            raise ValueError("a long-tailed set needs a balanced bank for its probes")

    def rate(self, arm: str) -> float:
        """The learning rate of an arm: `lr`, or where that is 0 the tuned one."""
        return self.lr or (TAIL_RATES if self.tail < 1 else RATES)[arm]


RATES = {
    "coke": 0.01,
    "free": 0.01,
    "balanced": 0.003,
    "sinkhorn": 0.01,
    "offline": 0.003,
    "instance": 0.01,
    "averaged": 0.01,
    "coupled": 0.0003,
    "two_views": 0.01,
}
"""Learning rates of the arms: the best of `tuning_grid` in kNN accuracy on 5,000 validation images
of tuning seed 10,000. The grid was walked from its middle until the best was no longer the last
tried on a side."""

TAIL_RATES = {"coke": 0.003, "balanced": 0.003}
"""The same for the long-tailed set."""

TRIED = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
"""Learning rates to try, the same for every arm."""

OWN = {
    "sinkhorn": ("epsilon", (0.02, 0.05, 0.1, 0.2)),
    "instance": ("bank_temperature", (0.05, 0.1, 0.2, 0.4)),
}
"""What is tuned of a rival beside its rate, and the values tried; CoKe's own are the released."""


def small_studies(profile: str) -> dict[str, Recipe]:
    """The settings behind the claims, by name.

    Args:
        profile: `"quick"` or `"full"`.

    Returns:
        `main` (C1), and in `full` also `rivals`, `variants` (C4 to C6) and `tail` (C3).
    """
    if profile == "quick":
        return {"main": Recipe(few_draws=1)}
    main = Recipe(seeds=5, images=10_000, epochs=12, dual_lr=2.5, stage=8)
    return {
        "main": main,
        "rivals": replace(main, arms=("sinkhorn", "offline", "instance")),
        "variants": replace(main, arms=("averaged", "coupled", "two_views")),
        "tail": replace(
            main,
            arms=("random", "coke", "balanced"),
            images=5000,
            dual_lr=3.5,
            tail=0.7,
            bank=100,
        ),
    }


def tuning_grid(arm: str, tail: float = 1.0, own: bool = False) -> list[Recipe]:
    """The settings among which an arm's learning rate was chosen: 10 passes over 5,000 images.

    Args:
        arm: which method.
        tail: below 1, on the long-tailed set.
        own: vary the rival's own number in `OWN` instead, at its chosen rate.

    Raises:
        ValueError: for an arm that does not train, or without a number of its own.
    """
    if arm not in (OWN if own else RATES):
        raise ValueError(f"{', '.join(OWN if own else RATES)} are tuned; got {arm!r}")
    base = Recipe(
        arms=(arm,),
        epochs=10,
        stage=7,
        tail=tail,
        bank=100 if tail < 1 else 0,
        validation=True,
        test_images=5000,
    )
    name, values = OWN[arm] if own else ("lr", TRIED)
    settings: list[dict[str, Any]] = [{name: value} for value in values]
    return [replace(base, **setting) for setting in settings]
