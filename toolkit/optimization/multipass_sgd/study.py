"""The chapter's experiments: recipes, step sizes tuned on seeds of their own, one run a seed."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.optimization.multipass_sgd.sgd import sgd_trajectories
from toolkit.optimization.multipass_sgd.theory import empirical_minimiser
from toolkit.optimization.problems import Sample, SineLink, log_spaced_spectrum
from toolkit.runtime import TUNING_SEEDS, pick_best


def log_grid(low: float, high: float, count: int) -> tuple[float, ...]:
    """Numbers from low to high in equal ratios."""
    return tuple(float(f"{eta:.4g}") for eta in np.geomspace(low, high, count))


def doublings(most: int) -> tuple[int, ...]:
    """1, 2, 4, … up to `most`."""
    return tuple(2**k for k in range(most.bit_length()))


STEP_SIZES = log_grid(0.00125, 0.32, 12)
LOW_STEP_SIZES = log_grid(0.0003, 0.32, 14)  # well-conditioned problems like small steps
LOWER_STEP_SIZES = log_grid(0.00001, 0.06, 18)  # and many passes over noisy labels smaller ones
HIGH_STEP_SIZES = log_grid(0.02, 2.56, 12)  # a fast-decaying spectrum and full batches, large ones


@dataclass(frozen=True)
class Recipe:
    """What every experiment of the chapter has: K passes over n examples, tuned and repeated."""

    arms: tuple[str, ...] = ("multi_pass",)  # methods to run
    seeds: int = 32  # runs behind a verdict; paper: not stated
    tuning_seeds: int = 32  # others, from 10,000 on, that choose step sizes and passes
    n: int = 256  # sample size; paper: not stated
    passes: tuple[int, ...] = doublings(64)  # K, powers of two; paper: not stated
    etas: tuple[float, ...] = STEP_SIZES  # grid of step sizes; paper: not stated
    batch: int = 1  # examples a step; paper: not stated


@dataclass(frozen=True)
class SineLinkRecipe(Recipe):
    """One setting of the synthetic study; the problem is ours, so no value is the paper's.

    The arms that exist: `multi_pass` (reshuffled, averaged output; its first pass is one-pass
    SGD), `multi_pass_last` (last iterate), `shuffle_once`, `replacement`, `one_pass_stages` and
    `one_pass_pl` (decaying step sizes, last iterate), `full_batch` (early-stopped gradient
    descent), `erm` (the empirical minimiser), `ridge` (penalty by cross-validation; linear
    problems only).
    """

    dim: int = 16  # d
    spectrum: str = "log_spaced"  # of the inputs' covariance; or "power_law"
    kappa: float = 100.0  # largest over smallest eigenvalue (log_spaced)
    a: float = 3.0  # decay of the eigenvalues, i**-a (power_law)
    b: float = 1.6  # decay of the signal, i**-b (power_law)
    noise: float = 0.1  # sigma, standard deviation of the labels' noise
    amplitude: float = 0.8  # of the sine in the link; 0 is linear

    def problem(self, device: torch.device) -> SineLink:
        """The random problem that this recipe describes.

        Raises:
            ValueError: for an unknown spectrum.
        """
        if self.spectrum == "power_law":
            problem = SineLink.power_law(self.dim, self.a, self.b, self.noise)
            lam, prior = problem.lam, problem.prior
        elif self.spectrum == "log_spaced":
            lam, prior = log_spaced_spectrum(self.dim, self.kappa), None
        else:
            raise ValueError(f"spectrum must be log_spaced or power_law, got {self.spectrum!r}")
        prior = None if prior is None else prior.to(device)
        return SineLink(lam.to(device), self.amplitude, self.noise, prior)


@dataclass(frozen=True)
class Arm:
    """How one method runs SGD."""

    sampling: str = "reshuffle"
    schedule: str = "constant"
    output: str = "average"
    one_pass: bool = False
    full_batch: bool = False


ARMS = {
    "multi_pass": Arm(),
    "multi_pass_last": Arm(output="last"),
    "shuffle_once": Arm(sampling="shuffle_once"),
    "replacement": Arm(sampling="replacement"),
    "one_pass_stages": Arm(schedule="stages", output="last", one_pass=True),
    "one_pass_pl": Arm(schedule="pl", output="last", one_pass=True),
    "full_batch": Arm(output="last", full_batch=True),
}
FITS = ("erm", "ridge")
FULL_BATCH_PASSES = doublings(512)


@dataclass(frozen=True)
class Tuned:
    """What the tuning seeds chose: a step size for each number of passes, and the best K."""

    passes: tuple[int, ...]
    etas: tuple[float, ...]
    at_edge: tuple[bool, ...]  # whether the step size is the end of the grid
    best: int  # index of the best number of passes


def run_synthetic(
    recipe: SineLinkRecipe, seeds: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """Excess risk of every arm on the random problem of each seed.

    Returns:
        `"ARM/excess@K"` for each number of passes K, `"ARM/best"` at the K that the tuning seeds
        preferred, and what they chose: `"ARM/best_passes"`, `"ARM/eta@K"`, `"ARM/edge@K"`.
    """
    results: dict[str, np.ndarray] = {}
    for name in recipe.arms:
        if name in FITS:
            results[f"{name}/best"] = _fitted_risk(recipe, name, seeds, device).cpu().numpy()
            continue
        tuned = tune_steps(replace(recipe, arms=(name,), seeds=0), name, device)
        risk = _tuned_risk(recipe, name, tuned, seeds, device).cpu().numpy()
        for k, passes in enumerate(tuned.passes):
            results[f"{name}/excess@{passes}"] = risk[k]
            results[f"{name}/eta@{passes}"] = np.full(len(seeds), tuned.etas[k])
            results[f"{name}/edge@{passes}"] = np.full(len(seeds), float(tuned.at_edge[k]))
        results[f"{name}/best"] = risk[tuned.best]
        results[f"{name}/best_passes"] = np.full(len(seeds), float(tuned.passes[tuned.best]))
    return results


@lru_cache(maxsize=1024)
def tune_steps(recipe: SineLinkRecipe, name: str, device: torch.device) -> Tuned:
    """Choose the step size for each number of passes, and the best number, on tuning seeds."""
    grid = step_size_grid(recipe, name)
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + recipe.tuning_seeds)
    risk = excess_risks(recipe, name, seeds, grid, device)
    return choose_steps(risk, _passes(recipe, _arm(name)), grid)


def choose_steps(
    risk: Float[Tensor, "P E S"], passes: tuple[int, ...], etas: tuple[float, ...]
) -> Tuned:
    """The step size of least mean risk for each number of passes; a diverged run counts as +∞."""
    with warnings.catch_warnings():  # a best step at the edge is reported in the results
        warnings.simplefilter("ignore", UserWarning)
        chosen = [pick_best(of_k) for of_k in risk]
        best = pick_best(torch.stack([of_k[i] for of_k, i in zip(risk, chosen, strict=True)]))
    edges = tuple(i in (0, len(etas) - 1) for i in chosen)
    return Tuned(passes, tuple(etas[i] for i in chosen), edges, best)


def step_size_grid(recipe: SineLinkRecipe, name: str) -> tuple[float, ...]:
    """The step sizes to try; full-batch steps may be larger."""
    return HIGH_STEP_SIZES if _arm(name).full_batch else recipe.etas


def excess_risks(
    recipe: SineLinkRecipe,
    name: str,
    seeds: Sequence[int],
    etas: Sequence[float],
    device: torch.device,
) -> Float[Tensor, "P E S"]:
    """Excess risk after each number of passes, for each step size and seed."""
    arm, problem = _arm(name), recipe.problem(device)
    data = problem.sample(recipe.n, seeds)
    passes = _passes(recipe, arm)
    runs = sgd_trajectories(
        problem,
        data,
        etas=torch.tensor(etas, device=device),
        epochs=passes[-1],
        seeds=seeds,
        sampling=arm.sampling,
        schedule=arm.schedule,
        batch=recipe.n if arm.full_batch else recipe.batch,
        snapshots=passes,
        mu=float(problem.lam.min()),
    )
    return problem.excess_risk(getattr(runs, arm.output), data.w_star)


def _tuned_risk(
    recipe: SineLinkRecipe, name: str, tuned: Tuned, seeds: Sequence[int], device: torch.device
) -> Float[Tensor, "P S"]:
    """Excess risk at the tuned step sizes; only those are run."""
    etas = sorted(set(tuned.etas))
    risk = excess_risks(recipe, name, seeds, etas, device)
    return torch.stack([risk[k, etas.index(eta)] for k, eta in enumerate(tuned.etas)])


def _fitted_risk(
    recipe: SineLinkRecipe, name: str, seeds: Sequence[int], device: torch.device
) -> Float[Tensor, " S"]:
    problem = recipe.problem(device)
    data = problem.sample(recipe.n, seeds)
    w = empirical_minimiser(problem, data) if name == "erm" else _ridge(problem, data)
    return problem.excess_risk(w, data.w_star)


def _ridge(problem: SineLink, data: Sample) -> Float[Tensor, "S d"]:
    from sklearn.linear_model import RidgeCV

    if problem.amplitude != 0:
        raise ValueError("ridge regression is a baseline of the linear problem: amplitude 0")
    x, y = data.x.double().cpu().numpy(), data.y.double().cpu().numpy()
    model = RidgeCV(alphas=np.geomspace(1e-6, 1e3, 28), fit_intercept=False)
    fits = [model.fit(x[:, s], y[:, s]).coef_.copy() for s in range(x.shape[1])]
    return torch.from_numpy(np.stack(fits)).to(data.x.device)


def _arm(name: str) -> Arm:
    if name not in ARMS:
        raise ValueError(f"arm must be one of {', '.join((*ARMS, *FITS))}; got {name!r}")
    return ARMS[name]


def _passes(recipe: SineLinkRecipe, arm: Arm) -> tuple[int, ...]:
    if arm.one_pass:
        return (1,)
    return FULL_BATCH_PASSES if arm.full_batch else recipe.passes


def affordable(n: int, most: int, budget: int) -> tuple[int, ...]:
    """Passes 1, 2, 4, … with at most `budget` steps in all."""
    return tuple(k for k in doublings(most) if n * k <= budget)


def synthetic_studies(profile: str) -> dict[str, list[SineLinkRecipe]]:
    """The settings behind the claims, by name.

    Args:
        profile: `"quick"` or `"full"`.

    Returns:
        `size` (C2, C6), `fresh` (C6: one pass over more data), `control` (C3), `condition` (C4),
        `power_law` (C5), `baselines` (every method at n = 256).
    """
    quick = profile == "quick"
    seeds, most, budget = (32, 64, 32_768) if quick else (256, 128, 131_072)
    base = SineLinkRecipe(seeds=seeds, tuning_seeds=seeds)
    control = replace(base, kappa=1.0, noise=1.0, n=1024, etas=LOWER_STEP_SIZES)
    power_law = SineLinkRecipe(
        arms=("multi_pass", "ridge"),
        etas=HIGH_STEP_SIZES,
        spectrum="power_law",
        dim=256,
        noise=0.5,
        amplitude=0.0,
        seeds=32 if quick else 128,
        tuning_seeds=32 if quick else 128,
    )
    sampling = () if quick else ("shuffle_once", "replacement")
    decaying = ("one_pass_stages", "one_pass_pl")
    arms = ("multi_pass", "multi_pass_last", *sampling, *decaying, "full_batch", "erm")
    return {
        "size": [
            replace(base, n=n, passes=affordable(n, most, budget))
            for n in ((32, 64, 128, 256) if quick else (32, 64, 128, 256, 1024, 4096))
        ],
        "fresh": [replace(base, n=n, passes=(1,)) for n in (512, 1024, 2048, 4096)],
        "control": [replace(control, passes=affordable(1024, most, budget))],
        "condition": [
            replace(base, kappa=kappa, etas=LOW_STEP_SIZES)
            for kappa in (4.0, 16.0, 64.0, 256.0, 1024.0)
        ],
        "power_law": [
            replace(power_law, n=n, passes=doublings(32 if quick else 64))
            for n in ((16, 32, 64, 128) if quick else (16, 32, 64, 128, 256, 512))
        ],
        "baselines": [replace(base, arms=arms, passes=doublings(most))],
    }
