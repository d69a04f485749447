"""The chapter's experiments as plain data: methods by name, and the settings they run in."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch

from toolkit.runtime import pick_best
from toolkit.supervision.label_smoothing.schedule import TwoStageSchedule

METHODS = {"lsr": "constant", "tsla": "drop", "reverse": "reverse"} | {
    name: name for name in ("linear", "cosine")
}
LABELS = ("uniform", "pre", "self", "posterior")
DROP_SHARE = 0.75  # of the epochs; fixed before any run


@dataclass(frozen=True)
class Recipe:
    """What every experiment of the chapter has."""

    arms: tuple[str, ...] = ("ce", "lsr:0.4", "tsla:0.4")  # methods, see `parse_arm`
    seeds: int = 4  # runs behind a verdict; paper: not confirmed


@dataclass(frozen=True)
class NetworkRecipe(Recipe):
    """A perceptron with one hidden layer, many replicas in one stack; every value is ours."""

    data: str = "fashion"  # or "emoji_faces", "glyphs"
    n: int = 1000  # training images (of `fashion`, drawn per seed)
    noise: float = 0.0  # share of training labels flipped to another class
    epochs: int = 40  # E, with one cosine over all of them
    lr: float = 0.05  # learning rate at the start of the cosine
    momentum: float = 0.9  # of SGD; never reset
    batch: int = 32  # images a step; the last, short batch is kept
    width: int = 128  # hidden units
    val_images: int = 2000  # that choose learning rates; labelled as the training set is
    test_images: int = 5000  # clean
    teacher_images: int = 4000  # other images that the teacher of `_pre` arms saw
    teacher_epochs: int = 12  # of the teacher's training, at learning rate 0.02


@dataclass(frozen=True)
class CnnRecipe(NetworkRecipe):
    """The same with a small convolutional network on 28×28 pixels, one seed at a time."""

    channels: tuple[int, ...] = (16, 32)  # 3×3 convolutions with stride 2


@dataclass(frozen=True)
class DeviationRecipe(NetworkRecipe):
    """δ along the training of each arm."""

    checkpoints: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40)  # epochs
    labels: tuple[str, ...] = ("uniform",)  # ŷ to measure
    verify: int = 0  # images on which torch's own loss must reproduce the parabola


@dataclass(frozen=True)
class DropRecipe(NetworkRecipe):
    """Curves and calibration of every drop epoch, for the explorable."""

    thetas: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6)
    drops: tuple[int, ...] = (0, 5, 10, 15, 20, 25, 30, 35, 40)
    points: tuple[int, ...] = (0, 1, 2, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37, 40)


@dataclass(frozen=True)
class Arm:
    """A method's settings over the epochs."""

    name: str
    schedule: TwoStageSchedule
    label: str = "uniform"
    entropy: float = 0.0
    """β of the confidence penalty."""
    step_drop: bool = False
    """Constant learning rate, divided by ten at three quarters, instead of the cosine."""

    def setting(self, epoch: int) -> tuple[float, str, float, bool]:
        """What decides an epoch's training: arms that agree so far share their replicas."""
        theta = self.schedule.theta(epoch)
        return theta, self.label if theta else "uniform", self.entropy, self.step_drop


def parse_arm(name: str, epochs: int) -> Arm:
    """Read a method's name.

    `ce`; `lsr:θ`; `tsla:θ` (drops at three quarters) or `tsla:θ:s`; `reverse:θ[:s]` (one-hot
    first); `linear:θ`, `cosine:θ` (decay to 0 over all epochs); `penalty:β` (cross-entropy less β
    times the entropy); `two_stage` (one-hot, learning rate constant, then a tenth). `lsr_pre` and
    `tsla_pre` take ŷ from a teacher, `…_self` from the one-hot network itself, `…_posterior` from
    the known label noise.

    Raises:
        ValueError: for anything else.
    """
    parts = name.split(":")
    method, _, label = parts[0].partition("_")
    try:
        numbers = [float(part) for part in parts[1:]]
    except ValueError:
        raise ValueError(f"no method is called {name!r}; see `parse_arm`") from None
    if name in ("ce", "two_stage"):
        return Arm(name, TwoStageSchedule(0, 0), step_drop=name == "two_stage")
    if method == "penalty" and not label and len(numbers) == 1 and numbers[0] >= 0:
        return Arm(name, TwoStageSchedule(0, 0), entropy=numbers[0])
    long = 2 if method in ("tsla", "reverse") else 1
    if method not in METHODS or (label or "uniform") not in LABELS or not 1 <= len(numbers) <= long:
        raise ValueError(f"no method is called {name!r}; see `parse_arm`")
    end = DROP_SHARE * epochs if method in ("tsla", "reverse") else epochs
    drop_at = numbers[1] if len(numbers) == 2 else end
    return Arm(name, TwoStageSchedule(numbers[0], drop_at, METHODS[method]), label or "uniform")


# --- the studies of the chapter -------------------------------------------------------------------

CORE = ("ce", "lsr:0.4", "tsla:0.4")
READ_OFF = ("temperature", "early_stopping")
CLEAN = (*CORE, "linear:0.4", "reverse:0.4", *READ_OFF)
NOISY = (*CORE, "linear:0.4", *READ_OFF)
RIVALS = (
    *("lsr:0.1", "tsla:0.1", "reverse:0.1", "tsla:0.4:10", "tsla:0.4:20", "cosine:0.4"),
    *("penalty:0.1", "two_stage", "lsr_pre:0.4", "tsla_pre:0.4", "lsr_self:0.4", "tsla_self:0.4"),
)
MORE_RIVALS = ("lsr:0.2", "lsr:0.6", "penalty:0.3")
RATES = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # every arm's grid of learning rates
SHARED_RATES = (0.02, 0.05, 0.1)  # of the table at one learning rate for all

# What `Study.choose` found on the tuning seeds of `full`: `quick` reads it, `full` searches again
# and the chapter says where it found another rate. To search by hand, for one study:
#   study = studies("full")["clean"]
#   seeds = range(TUNING_SEEDS, TUNING_SEEDS + study.tuning_seeds)
#   study.choose(sweep(experiment, study.grid(), seeds, batch=len(seeds)), "accuracy")
TUNED_RATES: dict[str, dict[str, dict[str, float]]] = {
    "clean": {
        "accuracy": {
            "ce": 0.05,
            "lsr:0.4": 0.05,
            "tsla:0.4": 0.1,
            "linear:0.4": 0.05,
            "reverse:0.4": 0.005,
            "temperature": 0.05,
            "early_stopping": 0.01,
        },
        "nll": {
            "ce": 0.005,
            "lsr:0.4": 0.02,
            "tsla:0.4": 0.05,
            "linear:0.4": 0.02,
            "reverse:0.4": 0.005,
            "temperature": 0.01,
            "early_stopping": 0.005,
        },
    },
    "rivals": {
        "accuracy": {
            "lsr:0.1": 0.01,
            "tsla:0.1": 0.05,
            "reverse:0.1": 0.01,
            "tsla:0.4:10": 0.02,
            "tsla:0.4:20": 0.2,
            "cosine:0.4": 0.05,
            "penalty:0.1": 0.05,
            "two_stage": 0.01,
            "lsr_pre:0.4": 0.1,
            "tsla_pre:0.4": 0.1,
            "lsr_self:0.4": 0.01,
            "tsla_self:0.4": 0.05,
        },
    },
    "noisy": {
        "accuracy": {
            "ce": 0.005,
            "lsr:0.4": 0.01,
            "tsla:0.4": 0.02,
            "linear:0.4": 0.01,
            "temperature": 0.005,
            "early_stopping": 0.01,
        },
    },
}


@dataclass(frozen=True)
class Study:
    """One setting, its arms, and on how many seeds their learning rates are tuned."""

    recipe: NetworkRecipe
    rates: tuple[float, ...] = RATES
    """Grid of learning rates, the same for every arm."""
    tuning_seeds: int = 0
    """Seeds from 10,000 on, which no verdict sees; 0 where the chapter takes `TUNED_RATES`."""

    def grid(self) -> list[NetworkRecipe]:
        """All arms at every learning rate, for the tuning seeds."""
        return [replace(self.recipe, lr=rate) for rate in self.rates]

    def choose(self, tuning: pd.DataFrame, metric: str) -> dict[str, float]:
        """The learning rate of each arm with the best mean on validation images.

        A rate at which a tuning seed diverged is never chosen.

        Args:
            tuning: what `sweep` returned for `grid()`.
            metric: `"accuracy"` (largest) or `"nll"` (least).

        Raises:
            ValueError: for another metric, or if an arm diverged at every rate.
        """
        if metric not in ("accuracy", "nll"):
            raise ValueError(f"metric must be accuracy or nll, got {metric!r}")
        sign = -1 if metric == "accuracy" else 1
        chosen = {}
        for arm in self.recipe.arms:
            values = tuning[f"{arm}/val_{metric}"].to_numpy(float)
            risk = torch.tensor(sign * values).view(len(self.rates), -1)
            with warnings.catch_warnings():  # the chapter reports grid edges itself
                warnings.simplefilter("ignore", UserWarning)
                chosen[arm] = self.rates[pick_best(risk)]
        return chosen

    def at_rates(self, wanted: Mapping[str, Iterable[float]]) -> list[NetworkRecipe]:
        """One recipe a learning rate, each with the arms that want it."""
        by_rate = {
            rate: tuple(arm for arm in self.recipe.arms if rate in wanted[arm])
            for rate in sorted({rate for arm in self.recipe.arms for rate in wanted[arm]})
        }
        return [replace(self.recipe, lr=rate, arms=arms) for rate, arms in by_rate.items()]


def studies(profile: str) -> dict[str, Study]:
    """The tuned experiments of the chapter, by name.

    Args:
        profile: `"quick"` or `"full"`.

    Returns:
        `clean` (C3, C4, C6, C7), `rivals` (every other method), `noisy` (C5), and in `full` also
        `n500`, `n4000`, `cnn`, `faces`, `glyphs`: size, architecture, many look-alike classes.

    Raises:
        ValueError: for another profile.
    """
    if profile not in ("quick", "full"):
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    full = profile == "full"
    base = NetworkRecipe()
    noisy = replace(base, n=2000, noise=0.4, epochs=24, arms=NOISY, seeds=16 if full else 4)
    rivals = replace(base, arms=(*RIVALS, *MORE_RIVALS * full), seeds=16 if full else 3)
    found = {
        "clean": Study(replace(base, arms=CLEAN, seeds=32 if full else 4), RATES, 4 * full),
        "rivals": Study(rivals, RATES, 3 * full),
        "noisy": Study(noisy, RATES[:-1], 4 * full),
    }
    if not full:
        return found
    return found | {
        "n500": Study(replace(base, n=500, seeds=32), RATES[1:], 4),
        "n4000": Study(replace(base, n=4000, seeds=16), RATES[:-1], 1),
        "cnn": Study(CnnRecipe(seeds=8), RATES[:-1], 1),
        "faces": Study(replace(base, data="emoji_faces", seeds=16), RATES[1:-1], 4),
        "glyphs": Study(replace(base, data="glyphs", seeds=8), RATES[2:], 1),
    }


def crossing_recipes(profile: str) -> list[DeviationRecipe]:
    """δ at every epoch of one-hot training, without and with 40 % wrong labels (C2)."""
    base = DeviationRecipe(arms=("ce",), n=2000, epochs=24, lr=0.02, checkpoints=tuple(range(25)))
    base = replace(base, seeds=16 if profile == "full" else 4)
    return [replace(base, noise=noise) for noise in (0.0, 0.4)]


def path_recipe(profile: str) -> DeviationRecipe:
    """δ along one-hot training and along LSR, clean labels; the parabola verified (C1, C2)."""
    base = DeviationRecipe(arms=("ce", "lsr:0.4"), lr=0.1, verify=64)
    return replace(base, seeds=16 if profile == "full" else 4)
