"""The chapter's experiments on random problems: recipes, arms, and what a run returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.optimization.moving_average.chains import minimise_chains, storm_chains
from toolkit.optimization.moving_average.estimator import (
    gamma_schedule,
    rate_schedule,
    recursion_bound,
)
from toolkit.optimization.moving_average.problems import (
    RareEvent,
    Ripple,
    SaturatingBowl,
)
from toolkit.optimization.moving_average.recipe import Recipe
from toolkit.optimization.moving_average.streams import Trace

Results = dict[str, np.ndarray]
T_ = TypeVar("T_")


# --- one level: the bowl --------------------------------------------------------------------------


@dataclass(frozen=True)
class BowlRecipe(Recipe):
    r"""Adam-style minimisation of `SaturatingBowl` for one horizon; every value is ours.

    The arms that exist are those of `BOWL_ARMS`. With $\gamma,\eta\propto T^{-1/2}$ where the
    arm's name does not say otherwise.
    """

    arms: tuple[str, ...] = ("shb", "shb_increasing", "shb_fixed", "sgd", "adam")
    T: int = 1024  # steps, a multiple of 16
    chains: int = 8  # of one seed, side by side; a seed reports their mean
    gamma: float = 4.0  # c of γ = min(1, c / √T)
    eta: float = 0.5  # c of η = c / √T
    G0: float = 0.1  # G₀ of the adaptive rules


@dataclass(frozen=True)
class BowlArm:
    """A rule with its schedule, and its oracle."""

    rule: str
    schedule: str = "sqrt_T"
    gamma: float | None = None  # fixed, where the arm fixes it
    rough: bool = False
    bounds: tuple[float, float] | None = None


BOWL_ARMS = {
    "shb": BowlArm("shb"),
    "shb_increasing": BowlArm("shb", "sqrt_t"),
    "shb_fixed": BowlArm("shb", gamma=0.1),
    "sgd": BowlArm("shb", gamma=1.0),
    "adam": BowlArm("adam"),
    "adam_increasing": BowlArm("adam", "sqrt_t"),
    "amsgrad": BowlArm("amsgrad"),
    "adafom": BowlArm("adafom"),
    "adabound": BowlArm("adabound", bounds=(0.3, 3.0)),
    "adam_plus": BowlArm("adam_plus"),
    "storm": BowlArm("storm"),
    "storm_rough": BowlArm("storm", rough=True),
    "shb_rough": BowlArm("shb", rough=True),
}


def run_bowl(recipe: BowlRecipe, seeds: Sequence[int], device: torch.device) -> Results:
    r"""Time averages over one horizon, for every arm.

    Returns:
        `"ARM/grad_sq"` ($\|\nabla F\|^2$), `"ARM/est_err"` ($\|v_{t+1}-\nabla F(x_t)\|^2$),
        `"ARM/est_err_late"` (its last half) and `"ARM/diverged"` (a share of chains).
    """
    groups: dict[tuple, list[str]] = {}
    for name in recipe.arms:
        arm = _known(name, BOWL_ARMS)
        groups.setdefault((arm.rule, arm.rough, arm.bounds), []).append(name)
    results: Results = {}
    for (rule, rough, bounds), names in groups.items():
        trace = _run_bowl(recipe, rule, rough, bounds, names, seeds, device)
        for e, name in enumerate(names):
            results |= averages(name, trace, e, recipe.chains)
    return results


def _run_bowl(
    recipe: BowlRecipe,
    rule: str,
    rough: bool,
    bounds: tuple[float, float] | None,
    names: list[str],
    seeds: Sequence[int],
    device: torch.device,
) -> Trace:
    gammas, etas = zip(*(bowl_schedules(recipe, name) for name in names), strict=True)
    shared: dict[str, Any] = {
        "gamma": torch.stack(gammas, 1),
        "eta": torch.stack(etas, 1),
        "seeds": seeds,
        "chains": recipe.chains,
        "device": device,
    }
    problem = SaturatingBowl(rough=rough)
    if rule == "storm":
        return storm_chains(problem, recipe.T, **shared)
    return minimise_chains(problem, rule, recipe.T, G0=recipe.G0, bounds=bounds, **shared)


def bowl_schedules(recipe: BowlRecipe, name: str) -> tuple[Tensor, Tensor]:
    r"""$\gamma_t$ and $\eta_t$ of an arm; an arm with fixed $\gamma$ keeps the $\eta$ of `shb`."""
    arm, T = _known(name, BOWL_ARMS), recipe.T
    if arm.rule == "storm":  # its own theory: both shrink at other speeds
        weight = torch.full((T,), min(1.0, recipe.gamma * T ** (-2 / 3)))
        return weight, torch.full((T,), recipe.eta * T ** (-1 / 3))
    eta = rate_schedule(arm.schedule, recipe.eta, T)
    if arm.gamma is not None:
        return torch.full((T,), arm.gamma), eta
    return gamma_schedule(arm.schedule, recipe.gamma, T), eta


# --- the variance recursion -----------------------------------------------------------------------


@dataclass(frozen=True)
class RecursionRecipe(Recipe):
    """Both sides of the variance recursion at log-spaced steps (C1), as means over chains."""

    arms: tuple[str, ...] = ("shb", "shb_increasing", "adam", "adam_increasing")
    seeds: int = 8
    T: int = 1024  # steps
    chains: int = 512  # of one seed: 4,096 in all
    checks: int = 50  # steps that are checked


def run_recursion(recipe: RecursionRecipe, seeds: Sequence[int], device: torch.device) -> Results:
    r"""Left and right of the recursion, step by step.

    Returns:
        `"ARM/left@t"` and `"ARM/right@t"` (factor 1), means over a seed's chains;
        `"ARM/variance@t"` of their difference over chains; `"ARM/noise@t"` is
        $\gamma_t^2\sigma^2$, by which the factor 2 is larger.
    """
    bowl, problem = BowlRecipe(T=recipe.T, chains=recipe.chains), SaturatingBowl()
    steps = check_steps(recipe)
    results: Results = {}
    for name in recipe.arms:
        gamma, eta = bowl_schedules(bowl, name)
        trace = minimise_chains(
            problem,
            BOWL_ARMS[name].rule,
            recipe.T,
            gamma=gamma,
            eta=eta,
            seeds=seeds,
            chains=recipe.chains,
            G0=bowl.G0,
            points=recipe.T,
            device=device,
        )
        for t in steps:
            left = trace.est_err[t, 0]
            before, move = trace.est_err[t - 1, 0], trace.move[t - 1, 0]
            right = recursion_bound(
                before,
                move,
                gamma[t],
                noise=problem.variance,
                lipschitz=problem.smoothness,
                factor=1.0,
            )
            values = {
                "left": left,
                "right": right,
                "variance": (right - left - _by_seed(right - left, recipe.chains)) ** 2,
            }
            for key, value in values.items():
                results[f"{name}/{key}@{t}"] = chain_mean(value, recipe.chains)
            noise = float(gamma[t] ** 2) * problem.variance
            results[f"{name}/noise@{t}"] = np.full(len(seeds), noise)
    return results


def check_steps(recipe: RecursionRecipe) -> list[int]:
    """Distinct log-spaced steps in 1…T−1."""
    count = recipe.checks
    while len(steps := sorted({int(t) for t in np.geomspace(1, recipe.T - 1, count)})) < (
        recipe.checks
    ):
        count += 1
    return steps[: recipe.checks]


# --- Adam's wrong limit ---------------------------------------------------------------------------


@dataclass(frozen=True)
class RareRecipe(Recipe):
    """Adam on `RareEvent` with every cure (C4); every value is ours."""

    arms: tuple[str, ...] = ()  # all of `RARE_ARMS`
    T: int = 30_000  # steps
    chains: int = 2  # of one seed
    p: float = 0.02  # probability of the rare event
    G0: float = 0.1  # G₀
    points: int = 30  # stretches of the curve


@dataclass(frozen=True)
class RareArm:
    """One setting of Adam."""

    beta1: float
    beta2: float = 0.9
    eta: float = 0.01
    increasing: bool = False  # γ = 0.1 / √(t+1), η = 0.5 / √(t+1) instead


BETAS = (0.0, 0.5, 0.9, 0.97, 0.99, 0.997, 0.999)
RARE_ARMS = {
    **{f"beta1_{b}": RareArm(b) for b in BETAS},
    **{f"eta_{e}": RareArm(0.9, eta=e) for e in (0.1, 0.002)},
    **{f"beta2_{c}_{b}": RareArm(b, c) for c in (0.99, 0.999) for b in (0.0, 0.9, 0.99)},
    "increasing": RareArm(0.9, increasing=True),
}


def run_rare(recipe: RareRecipe, seeds: Sequence[int], device: torch.device) -> Results:
    """Where the chains end up.

    Returns:
        `"ARM/mean_x"` over the second half; `"ARM/x@t"` and `"ARM/grad_sq@t"` over the stretch
        that ends at t.
    """
    arms = [_known(name, RARE_ARMS) for name in recipe.arms or RARE_ARMS]
    gammas = [gamma_schedule("const", 1 - a.beta1, recipe.T) for a in arms]
    etas = [rate_schedule("const", a.eta, recipe.T) for a in arms]
    for i, arm in enumerate(arms):
        if arm.increasing:
            gammas[i] = gamma_schedule("sqrt_t", 0.1, recipe.T)
            etas[i] = rate_schedule("sqrt_t", 0.5, recipe.T)
    trace = minimise_chains(
        RareEvent(recipe.p),
        "adam",
        recipe.T,
        gamma=torch.stack(gammas, 1),
        eta=torch.stack(etas, 1),
        beta2=torch.tensor([a.beta2 for a in arms]),
        G0=recipe.G0,
        seeds=seeds,
        chains=recipe.chains,
        points=recipe.points,
        device=device,
    )
    ends = [(i + 1) * recipe.T // recipe.points for i in range(recipe.points)]
    results: Results = {}
    for e, name in enumerate(recipe.arms or RARE_ARMS):
        x = chain_mean(trace.mean_x[:, e, :, 0], recipe.chains)
        g = chain_mean(trace.grad_sq[:, e], recipe.chains)
        results[f"{name}/mean_x"] = x[recipe.points // 2 :].mean(0)
        results |= {f"{name}/x@{t}": x[i] for i, t in enumerate(ends)}
        results |= {f"{name}/grad_sq@{t}": g[i] for i, t in enumerate(ends)}
    return results


# --- stages under the PL inequality ---------------------------------------------------------------


@dataclass(frozen=True)
class StageRecipe(Recipe):
    """Momentum SGD on `Ripple`: stages that halve both rates against a constant choice."""

    arms: tuple[str, ...] = ("stagewise", "sqrt_T")
    stages: int = 4  # the horizon is first × (2**stages − 1)
    first: int = 128  # steps of the first stage
    chains: int = 8  # of one seed


def run_stages(recipe: StageRecipe, seeds: Sequence[int], device: torch.device) -> Results:
    r"""`"ARM/gap"`: $F(x_T)-F_*$ at the end of the horizon, a mean over a seed's chains."""
    T, problem = recipe.first * (2**recipe.stages - 1), Ripple()
    schedules = {
        "stagewise": (
            gamma_schedule("stagewise", 1.0, T, first=recipe.first),
            rate_schedule("stagewise", 1 / 32, T, first=recipe.first),
        ),
        "sqrt_T": (gamma_schedule("sqrt_T", 8.0, T), rate_schedule("sqrt_T", 0.25, T)),
    }
    gammas, etas = zip(*(_known(name, schedules) for name in recipe.arms), strict=True)
    trace = minimise_chains(
        problem,
        "shb",
        T,
        gamma=torch.stack(gammas, 1),
        eta=torch.stack(etas, 1),
        seeds=seeds,
        chains=recipe.chains,
        points=1,
        device=device,
    )
    gap = chain_mean(problem.value(trace.x), recipe.chains)
    return {f"{name}/gap": gap[e] for e, name in enumerate(recipe.arms)}


# --- helpers --------------------------------------------------------------------------------------


def averages(name: str, trace: Trace, e: int, chains: int) -> Results:
    """The time averages of arm e, one value a seed, under the arm's name."""
    half = len(trace.est_err) // 2
    values = {
        "grad_sq": trace.grad_sq[:, e].mean(0),
        "est_err": trace.est_err[:, e].mean(0),
        "est_err_late": trace.est_err[half:, e].mean(0),
        "diverged": trace.diverged[e].float(),
    }
    return {f"{name}/{key}": chain_mean(value, chains) for key, value in values.items()}


def chain_mean(values: Float[Tensor, "*P S"], chains: int) -> np.ndarray:
    """The mean over the chains of each seed, as float64."""
    return values.unflatten(-1, (-1, chains)).double().mean(-1).cpu().numpy()


def _by_seed(values: Float[Tensor, " S"], chains: int) -> Float[Tensor, " S"]:
    """The mean over a seed's chains, repeated for each of them."""
    return values.unflatten(0, (-1, chains)).mean(1).repeat_interleave(chains)


def _known(name: str, arms: Mapping[str, T_]) -> T_:
    if name not in arms:
        raise ValueError(f"arm must be one of {', '.join(arms)}, got {name!r}")
    return arms[name]
