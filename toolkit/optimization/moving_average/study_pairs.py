"""The chapter's experiments on problems with two variables: min-max and bilevel."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.optimization.moving_average.bilevel import double_loop, smb
from toolkit.optimization.moving_average.estimator import gamma_schedule, rate_schedule
from toolkit.optimization.moving_average.minmax import pdsm, sgd_max
from toolkit.optimization.moving_average.problems import QuadraticBilevel, QuadraticSaddle
from toolkit.optimization.moving_average.recipe import Recipe
from toolkit.optimization.moving_average.streams import Trace
from toolkit.optimization.moving_average.study import Results, averages, chain_mean
from toolkit.runtime import TUNING_SEEDS


@dataclass(frozen=True)
class SaddleRecipe(Recipe):
    r"""Min-max on `QuadraticSaddle` for one horizon; every value is ours.

    The arms that exist: `pdsm`, `pdsm_increasing` (γ falls as 1/√t; give it steps that do so too),
    `pdsm_sema` (averages the dual too), `sgda`, `sgda_100` (batch
    100), `pdada` (Adam's scaling), `sgd_max` (double loop).
    """

    arms: tuple[str, ...] = ("pdsm", "pdsm_sema", "sgda", "pdada")
    T: int = 1024  # steps, a multiple of 16 (of 256 for sgd_max)
    chains: int = 8  # of one seed
    mu: float = 0.2  # strong concavity μ
    gamma: float = 4.0  # c of γ = min(1, c / √T)
    eta_x: float = 0.25  # c of η_x = c / √T
    eta_y: float = 2.0  # c of η_y = c / √T
    G0: float = 0.1  # of pdada
    inner: int = 15  # ascent steps of sgd_max


SADDLE_ARMS = ("pdsm", "pdsm_increasing", "pdsm_sema", "sgda", "sgda_100", "pdada", "sgd_max")


def run_saddle(recipe: SaddleRecipe, seeds: Sequence[int], device: torch.device) -> Results:
    r"""Time averages: `"ARM/grad_sq"` ($\|\nabla\Phi\|^2$), `"ARM/est_err"`, `"ARM/lag"`."""
    T = recipe.T
    rates = (rate_schedule("sqrt_T", recipe.eta_x, T), rate_schedule("sqrt_T", recipe.eta_y, T))
    gamma = gamma_schedule("sqrt_T", recipe.gamma, T)
    results: Results = {}
    for name in recipe.arms:
        trace, lag = saddle_trace(recipe, name, gamma, rates, seeds, device)
        results |= averages(name, trace, 0, recipe.chains)
        if lag is not None:
            results[f"{name}/lag"] = chain_mean(lag[:, 0].mean(0), recipe.chains)
    return results


def saddle_trace(
    recipe: SaddleRecipe,
    name: str,
    gamma: Float[Tensor, "..."],
    rates: tuple[Float[Tensor, "..."], Float[Tensor, "T *E"]],
    seeds: Sequence[int],
    device: torch.device,
) -> tuple[Trace, Tensor | None]:
    """One arm with given schedules; the double loop takes its first step sizes throughout."""
    if name not in SADDLE_ARMS:
        raise ValueError(f"arm must be one of {', '.join(SADDLE_ARMS)}, got {name!r}")
    problem = QuadraticSaddle(recipe.mu)
    shared: dict[str, Any] = {"seeds": seeds, "chains": recipe.chains, "device": device}
    if name == "sgd_max":
        trace = sgd_max(
            problem,
            len(gamma),
            eta_x=rates[0][0],
            eta_y=rates[1][0],
            inner=recipe.inner,
            **shared,
        )
        return trace, None
    return pdsm(
        problem,
        len(gamma),
        gamma=torch.ones_like(gamma) if name.startswith("sgda") else gamma,
        eta_x=rates[0],
        eta_y=rates[1],
        dual="sema" if name == "pdsm_sema" else "sgd",
        adaptive="adam" if name == "pdada" else None,
        G0=recipe.G0,
        batch=100 if name == "sgda_100" else 1,
        **shared,
    )


@dataclass(frozen=True)
class BilevelRecipe(Recipe):
    r"""Bilevel minimisation of `QuadraticBilevel` for one horizon; every value is ours.

    The arms that exist: `smb`, `smb_increasing` (γ falls as 1/√t; give it steps that do so too),
    `smb_sgd` (the inner gradient is not averaged), `sbma` (tracked
    solver, ours), `plain` (no averaging at all), `ttsa`, `double_loop` (stocBiO-type), `exact`
    (knows y* and the inverse; not averaged).
    """

    arms: tuple[str, ...] = ("smb", "smb_sgd", "plain", "ttsa")
    T: int = 1024  # steps, a multiple of 16 (of 256 for double_loop)
    chains: int = 4  # of one seed
    k: int = 8  # length of the Neumann series
    gamma_x: float = 8.0  # c of γ_x = min(1, c / √T)
    gamma_y: float = 16.0  # c of γ_y = min(1, c / √T)
    eta_x: float = 1.0  # c of η_x = c / √T
    eta_y: float = 8.0  # c of η_y = min(0.4, c / √T)
    inner: int = 15  # inner steps of double_loop, of batch 1
    ttsa_x: float = 0.1  # c of TTSA's outer steps c / (t+1)^0.6
    ttsa_y: float = 0.4  # c of TTSA's inner steps c / (t+1)^0.4


BILEVEL_ARMS = (
    "smb",
    "smb_increasing",
    "smb_sgd",
    "sbma",
    "plain",
    "ttsa",
    "double_loop",
    "exact",
)


def run_bilevel(recipe: BilevelRecipe, seeds: Sequence[int], device: torch.device) -> Results:
    r"""Time averages: `"ARM/grad_sq"` ($\|\nabla F\|^2$), `"ARM/est_err"`, `"ARM/lag"`."""
    T = recipe.T
    rates = (
        rate_schedule("sqrt_T", recipe.eta_x, T),
        rate_schedule("sqrt_T", recipe.eta_y, T).clamp(max=0.4),
    )
    t = torch.arange(1.0, T + 1)
    slow = (recipe.ttsa_x * t**-0.6, recipe.ttsa_y * t**-0.4)
    results: Results = {}
    for names in _together(recipe.arms):
        pairs = [slow if name == "ttsa" else rates for name in names]
        x, y = (torch.stack(column, 1) for column in zip(*pairs, strict=True))
        trace, lag = bilevel_trace(recipe, names, (x, y), seeds, device)
        for e, name in enumerate(names):
            results |= averages(name, trace, e, recipe.chains)
            if lag is not None:
                results[f"{name}/lag"] = chain_mean(lag[:, e].mean(0), recipe.chains)
    return results


def _together(arms: Sequence[str]) -> list[list[str]]:
    """Arms that one call of `smb` runs side by side, since they differ in schedules only."""
    stacked = [name for name in arms if name not in SOLVER | {"double_loop": ""}]
    return [stacked] * bool(stacked) + [[name] for name in arms if name not in stacked]


def bilevel_trace(
    recipe: BilevelRecipe,
    names: Sequence[str],
    rates: tuple[Float[Tensor, "T E"], Float[Tensor, "T E"]],
    seeds: Sequence[int],
    device: torch.device,
) -> tuple[Trace, Tensor | None]:
    """Arms with given step sizes, a column each; the double loop takes the first throughout."""
    if unknown := set(names) - set(BILEVEL_ARMS):
        raise ValueError(f"arms must be among {', '.join(BILEVEL_ARMS)}, got {sorted(unknown)}")
    problem, T = QuadraticBilevel(), len(rates[0])
    shared: dict[str, Any] = {"seeds": seeds, "chains": recipe.chains, "device": device}
    shared["k"] = recipe.k
    if "double_loop" in names:
        x, y = (column[0] for column in rates)
        return double_loop(
            problem, T, eta_x=x, eta_y=y, inner=recipe.inner, batch=1, **shared
        ), None
    gammas_x = torch.stack([_weights(name, recipe.gamma_x, T, OUTER) for name in names], 1)
    gammas_y = torch.stack([_weights(name, recipe.gamma_y, T, INNER) for name in names], 1)
    return smb(
        problem,
        T,
        gamma=gammas_x,
        gamma_y=gammas_y,
        eta_x=rates[0],
        eta_y=rates[1],
        solver=SOLVER.get(names[0], "neumann"),
        eta_z=1 / problem.C,
        **shared,
    )


SOLVER = {"sbma": "tracked", "exact": "exact"}  # of arms without the Neumann series
OUTER = ("smb", "smb_increasing", "smb_sgd", "sbma")  # arms that average the hypergradient
INNER = ("smb", "smb_increasing", "sbma")  # and the inner gradient


def _weights(name: str, c: float, T: int, averaging: tuple[str, ...]) -> Float[Tensor, " T"]:
    if name not in averaging:
        return torch.ones(T)
    return gamma_schedule("sqrt_t" if name.endswith("increasing") else "sqrt_T", c, T)


# --- all methods at one budget --------------------------------------------------------------------


@dataclass(frozen=True)
class BudgetRecipe(Recipe):
    """Every method at equally many oracle calls, each with its own best pair of step sizes.

    The pair is chosen on tuning seeds by the mean squared gradient over the run, the score itself.
    All methods share one grid.
    """

    arms: tuple[str, ...] = SADDLE_ARMS
    problem: str = "saddle"  # or "bilevel"
    calls: int = 6400  # of the stochastic oracle pair; a multiple of 6,400
    chains: int = 4  # of one seed
    tune: bool = False  # tune here; else take the steps that a tuning chose before
    tuning_seeds: int = 8  # from 10,000 on
    grid_x: tuple[float, ...] = (0.0008, 0.002, 0.005, 0.0125, 0.03, 0.08, 0.2, 0.5, 1.25)  # η_x
    grid_y: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 0.9, 2.7, 8.0)  # η_y


STEPS = {
    "saddle": {
        "pdsm": (0.005, 8.0),
        "pdsm_increasing": (0.002, 0.1),
        "pdsm_sema": (0.005, 8.0),
        "sgda": (0.005, 0.3),
        "sgda_100": (0.5, 0.1),
        "pdada": (0.0125, 8.0),
        "sgd_max": (0.03, 0.3),
    },
    "bilevel": {
        "smb": (0.0125, 0.3),
        "smb_increasing": (0.005, 0.1),
        "smb_sgd": (0.0125, 0.3),
        "sbma": (0.0125, 2.7),
        "plain": (0.0125, 0.3),
        "ttsa": (0.005, 0.1),
        "double_loop": (0.08, 0.1),
        "exact": (0.03, 0.01),
    },
}
"""Both steps of each arm, as the full profile's tuning chose them."""


def run_budget(recipe: BudgetRecipe, seeds: Sequence[int], device: torch.device) -> Results:
    """`"ARM/grad_sq"` over the run at the tuned steps; `"ARM/eta_x"`, `"ARM/eta_y"`, `"ARM/edge"`.

    Raises:
        ValueError: for an unknown problem, or calls that do not divide.
    """
    if recipe.problem not in ("saddle", "bilevel") or recipe.calls % 6400:
        raise ValueError(
            "need problem saddle or bilevel and calls a multiple of 6400, got "
            f"{recipe.problem!r} and {recipe.calls}"
        )
    pairs = {
        name: tune_budget(recipe, name, device) if recipe.tune else STEPS[recipe.problem][name]
        for name in recipe.arms
    }
    bilevel = recipe.problem == "bilevel"
    results: Results = {}
    for names in _together(recipe.arms) if bilevel else [[name] for name in recipe.arms]:
        scores = _at_budget(recipe, [(name, *pairs[name]) for name in names], seeds, device)
        for name, score in zip(names, scores, strict=True):
            results[f"{name}/grad_sq"] = chain_mean(score, recipe.chains)
    ends = [{grid[0], grid[-1]} for grid in (recipe.grid_x, recipe.grid_y)]
    for name, pair in pairs.items():
        edge = float(sum(value in end for value, end in zip(pair, ends, strict=True)))
        for key, value in (("eta_x", pair[0]), ("eta_y", pair[1]), ("edge", edge)):
            results[f"{name}/{key}"] = np.full(len(seeds), value)
    return results


@lru_cache(maxsize=64)
def tune_budget(recipe: BudgetRecipe, name: str, device: torch.device) -> tuple[float, float]:
    """The pair (η_x, η_y) with the least mean squared gradient on seeds from 10,000 on."""
    grid = list(product(recipe.grid_x, recipe.grid_y))
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + recipe.tuning_seeds)
    score = _at_budget(recipe, [(name, *pair) for pair in grid], seeds, device).mean(-1)
    return grid[int(torch.where(torch.isfinite(score), score, torch.inf).argmin())]


def _at_budget(
    recipe: BudgetRecipe,
    runs: list[tuple[str, float, float]],
    seeds: Sequence[int],
    device: torch.device,
) -> Float[Tensor, "E S"]:
    """Mean squared gradient of runs (arm, η_x, η_y), side by side; on the saddle of one arm."""
    columns = [_budget_steps(recipe, *run) for run in runs]
    x, y = (torch.stack(column, 1) for column in zip(*columns, strict=True))
    names = [name for name, _, _ in runs]
    if recipe.problem == "bilevel":
        bilevel = BilevelRecipe(chains=recipe.chains)
        trace, _ = bilevel_trace(bilevel, names, (x, y), seeds, device)
    else:
        saddle = SaddleRecipe(chains=recipe.chains)
        schedule = "sqrt_t" if names[0].endswith("increasing") else "sqrt_T"
        gamma = gamma_schedule(schedule, saddle.gamma, len(x))[:, None].expand_as(x)
        trace, _ = saddle_trace(saddle, names[0], gamma, (x, y), seeds, device)
    return trace.grad_sq.mean(0)


def _budget_steps(recipe: BudgetRecipe, name: str, x: float, y: float) -> tuple[Tensor, Tensor]:
    """Both step sizes of a run; those that decrease have about the mean of the grid's."""
    T = recipe.calls // 100 if name == "sgda_100" else recipe.calls
    t = (torch.arange(T) + 1) / T
    stable = 0.9 if recipe.problem == "bilevel" else 8.0  # below 2 / L of the inner problem
    if name == "ttsa":
        return 0.4 * x * t**-0.6, (0.6 * y * t**-0.4).clamp(max=stable)
    if name.endswith("increasing"):
        return 0.5 * x * t**-0.5, (0.5 * y * t**-0.5).clamp(max=stable)
    return torch.full((T,), x), torch.full((T,), y)
