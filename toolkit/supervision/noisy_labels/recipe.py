"""Every setting of the chapter's networks, and the studies that the claims rest on."""

from dataclasses import dataclass, replace
from itertools import pairwise

ARMS = ("noisy", "clean_subset", "small_loss", "early_stopping", "forward", "cleanlab", "redrawn")
NOISES = ("symmetric", "pair", "instance")
LOSSES = ("cross_entropy", "squared")
NETWORKS = ("mlp", "cnn")


@dataclass(frozen=True)
class Recipe:
    """What every study of this chapter has."""

    arms: tuple[str, ...] = ("noisy",)  # methods
    seeds: int = 8  # of verdicts


@dataclass(frozen=True)
class NetworkRecipe(Recipe):
    """A small network on Fashion-MNIST with wrong labels; nothing here is stated by the paper.

    Every arm takes the same number of steps with batches of the same size. The arms that exist:
    `noisy` (plain SGD on the labels as given), `clean_subset` (an oracle: the same run without the
    wrong examples), `small_loss` (from epoch 1 on only the 1 − ρ of least
    loss), `early_stopping` (on a noisy validation split), `forward` (the loss corrected by the
    known transition matrix), `cleanlab` (without what cross-validation calls an issue) and
    `redrawn` (new noise each epoch: the control that cannot memorise).
    """

    noise: str = "symmetric"  # or "pair", "instance"
    loss: str = "cross_entropy"  # or "squared"
    network: str = "mlp"  # or "cnn": two stride-2 convolutions
    n: int = 1000  # training images
    rates: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)  # corruption rates rho
    epochs: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0)  # where to
    # measure, in passes of n/b steps; the last one is T
    lr: float = 0.02  # constant learning rate of SGD
    momentum: float = 0.9  # of SGD
    batch: int = 20  # images a step
    widths: tuple[int, ...] = (128, 128)  # hidden units of the perceptron
    channels: tuple[int, ...] = (16, 32)  # of the convolutions
    test_images: int = 2000  # with clean labels, drawn afresh for each seed
    validation: float = 0.2  # share of the training images that early stopping sets aside
    folds: int = 5  # of cleanlab's cross-validation
    fold_epochs: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 10.0)  # it takes the best on held-out
    # given labels

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        for name, given, allowed in (
            ("arms", self.arms, ARMS),
            ("noise", (self.noise,), NOISES),
            ("loss", (self.loss,), LOSSES),
            ("network", (self.network,), NETWORKS),
        ):
            if not given or set(given) - set(allowed):
                raise ValueError(f"{name} must be of {', '.join(allowed)}; got {given}")
        if not self.rates or any(not 0 <= rate <= 1 for rate in self.rates):
            raise ValueError(f"rates must lie in [0, 1], got {self.rates}")
        if self.n < 1 or self.batch < 1 or self.n % self.batch:
            raise ValueError(f"batch must divide n, got batch={self.batch}, n={self.n}")
        for name, epochs in (("epochs", self.epochs), ("fold_epochs", self.fold_epochs)):
            steps = self.steps(epochs)
            if not steps or steps[0] < 1 or any(b <= a for a, b in pairwise(steps)):
                raise ValueError(f"{name} must rise by at least one step, got {epochs}")
        if self.noise == "instance" and "forward" in self.arms:
            raise ValueError("instance-dependent noise has no transition matrix to correct by")
        if "small_loss" in self.arms and 1.0 not in self.epochs:
            raise ValueError("small-loss selection happens after epoch 1; add it to the epochs")
        if not 0 < self.validation < 1 or self.folds < 2:
            raise ValueError(f"need 0 < validation < 1, folds ≥ 2: {self.validation}, {self.folds}")

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over all n images."""
        return self.n // self.batch

    def steps(self, epochs: tuple[float, ...]) -> list[int]:
        """Those passes in steps."""
        return [round(epoch * self.steps_per_epoch) for epoch in epochs]


def network_studies(profile: str) -> dict[str, NetworkRecipe]:
    """The settings behind the claims, by name.

    Args:
        profile: `"quick"` or `"full"`.

    Returns:
        `main` (C1, C2, C4), `baselines` and `stopping` (C5, C6 and the table of methods), and in
        `full` also `pair`, `instance`, `squared`, `redrawn` and `cnn`.
    """
    methods = ("clean_subset", "small_loss", "forward", "cleanlab")
    until_20 = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0)  # stopping happens early
    if profile == "quick":
        main = NetworkRecipe()
        side = replace(main, rates=(0.4,), seeds=4)
        return {
            "main": main,
            "baselines": replace(side, arms=methods),
            "stopping": replace(side, arms=("early_stopping",), epochs=until_20[:-1]),
        }
    main = NetworkRecipe(
        n=4000,
        batch=40,
        rates=(0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8),
        seeds=10,
    )
    side = replace(main, rates=(0.1, 0.2, 0.4), seeds=6)
    return {
        "main": main,
        "baselines": replace(side, arms=methods),
        "stopping": replace(side, arms=("early_stopping",), epochs=until_20),
        "pair": replace(side, noise="pair"),
        "instance": replace(side, noise="instance"),
        "squared": replace(side, loss="squared"),
        "redrawn": replace(side, arms=("redrawn",), rates=(0.4,)),
        "cnn": replace(  # at lr 0.02 it has hardly begun after epoch 1 (40 steps)
            main,
            network="cnn",
            n=2000,
            batch=50,
            lr=0.05,
            rates=(0.0, 0.1, 0.2, 0.4, 0.6),
            epochs=(0.5, 1.0, 2.0, 5.0, 20.0, 60.0),
            seeds=4,
        ),
    }
