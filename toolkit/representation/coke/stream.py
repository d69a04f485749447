"""Streams with fixed centres: where the guarantee on regret and violation can be watched.

The theorem could not be read. Proved here, for an i.i.d. stream, one step η throughout and prices
that start at 0: E[ALG] ≥ E[OPT] − η N for single instances; and for any order and batch size

    n_k ≥ r M / K − (ρ_k^end − ρ_k^start) / η      over any stretch of M instances,

with equality at r = 1. The first exercise proves both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from toolkit.representation.coke.assignment import solve_assignment_lp

BLOB_CENTERS = np.array([[0.0, 0.0], [1.5, 0.5], [0.5, 1.6], [-1.3, 0.9], [0.3, -1.5]])
BLOB_SHARES = (0.62, 0.2, 0.1, 0.05, 0.03)


@dataclass(frozen=True)
class StreamRecipe:
    """Online assignment against the exact optimum, for growing streams (claim C2)."""

    arms: tuple[str, ...] = ("online", "free", "equal")  # ratio r, 0 and 1
    seeds: int = 10
    sizes: tuple[int, ...] = (1000, 4000, 16000)  # N
    clusters: int = 20  # K
    dim: int = 32  # d
    power: float = 1.5  # masses of the clusters fall as k^-power
    ratio: float = 0.4  # r of `online`; the paper's value
    step: float = 1.0  # η √N

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if unknown := set(self.arms) - {"online", "free", "equal"}:
            raise ValueError(f"arms are online, free, equal; got {sorted(unknown)}")
        if not self.sizes or min(self.sizes) < self.clusters or self.clusters < 2:
            raise ValueError(f"need N ≥ K ≥ 2, got N={self.sizes}, K={self.clusters}")
        if not 0 <= self.ratio <= 1 or not self.step > 0:
            raise ValueError(f"need ratio in [0, 1], step > 0; got {self.ratio}, {self.step}")


@dataclass(frozen=True, eq=False)
class StreamRun:
    """An online assignment of streams side by side."""

    labels: Int[NDArray, "streams n"]
    duals: Float[NDArray, "batches streams clusters"]
    """Prices before each batch and after the last."""
    eta: float
    ratio: float

    @property
    def sizes(self) -> NDArray:
        """Instances that each cluster got, [streams, clusters]."""
        clusters = self.duals.shape[2]
        return np.stack([np.bincount(row, minlength=clusters) for row in self.labels])

    @property
    def bound(self) -> float:
        """γ = r N / K."""
        return self.ratio * self.labels.shape[1] / self.duals.shape[2]

    def slack(self) -> NDArray:
        """n_k − (γ − ρ_k / η), [streams, clusters]: never negative, and 0 at r = 1."""
        return self.sizes - self.bound + self.duals[-1] / self.eta


def run_stream(
    scores: Float[NDArray, "streams n clusters"], ratio: float, eta: float, batch: int = 1
) -> StreamRun:
    """Assign instances in their order, with prices and fixed centres.

    Args:
        scores: x_iᵀc_k, of streams that do not see each other.
        ratio: r in [0, 1].
        eta: η, the step of a price for one instance.
        batch: instances that see the same prices; a short rest is a batch, too.

    Raises:
        ValueError: if a number lies outside its range.
    """
    if scores.ndim != 3 or not 0 <= ratio <= 1 or not eta > 0 or batch < 1:
        raise ValueError(
            f"need scores [streams, n, k], ratio in [0, 1], eta > 0, batch ≥ 1; got "
            f"{scores.shape}, {ratio}, {eta}, {batch}"
        )
    streams, n, clusters = scores.shape
    labels = np.empty((streams, n), np.int64)
    path, rho = [np.zeros((streams, clusters))], np.zeros((streams, clusters))
    first = np.arange(streams)[:, None] * clusters
    for begin in range(0, n, batch):
        chosen = (scores[:, begin : begin + batch] + rho[:, None]).argmax(axis=2)
        labels[:, begin : begin + batch] = chosen
        hits = np.bincount((chosen + first).ravel(), minlength=rho.size).reshape(rho.shape)
        rho = rho + eta * (chosen.shape[1] * ratio / clusters - hits)
        if ratio < 1:
            rho = np.maximum(rho, 0)
        path.append(rho)
    return StreamRun(labels, np.stack(path), eta, ratio)


def objective(scores: Float[NDArray, "n clusters"], labels: Int[NDArray, " n"]) -> float:
    """The sum of the scores of an assignment."""
    return float(scores[np.arange(len(labels)), labels].sum())


def long_tail_stream(
    n: int, seed: int, clusters: int = 20, dim: int = 32, power: float = 1.5
) -> Float[NDArray, "n clusters"]:
    """Scores of an i.i.d. stream: masses ∝ k^−power, x = normalise(c_z + ε / √d), ε ~ N(0, I)."""
    rng = np.random.default_rng([seed, n])
    centers = _unit(rng.normal(size=(clusters, dim)))
    mass = np.arange(1, clusters + 1) ** -power
    z = rng.choice(clusters, n, p=mass / mass.sum())
    x = _unit(centers[z] + rng.normal(size=(n, dim)) / np.sqrt(dim))
    return x @ centers.T


def blobs(n: int, seed: int) -> tuple[Float[NDArray, "n 2"], Float[NDArray, "n 5"]]:
    """Points of five blobs of very unequal mass, and their scores: −½ distance² to each centre.

    For unit vectors that is the inner product up to a constant; in the plane it can be drawn.
    """
    rng = np.random.default_rng(seed)
    z = rng.choice(5, n, p=BLOB_SHARES)
    points = BLOB_CENTERS[z] + 0.33 * rng.normal(size=(n, 2))
    return points, -0.5 * np.square(points[:, None] - BLOB_CENTERS).sum(axis=2)


def run_streams(recipe: StreamRecipe, seeds: Sequence[int]) -> dict[str, NDArray]:
    """Every arm on every length, all seeds side by side.

    Returns:
        For each arm and N, one value a seed: `ARM/violation@N` (instances that the worst cluster
        lacks), `ARM/regret@N` (OPT − ALG), `ARM/regret_sizes@N` (against the optimum among
        assignments with the same sizes), `ARM/slack@N` (the least over clusters) and
        `ARM/identity@N` (the largest |slack|).
    """
    results: dict[str, NDArray] = {}
    ratios = {"online": recipe.ratio, "free": 0.0, "equal": 1.0}
    for n in recipe.sizes:
        scores = np.stack(
            [long_tail_stream(n, s, recipe.clusters, recipe.dim, recipe.power) for s in seeds]
        )
        best = [_optimum(s, recipe.ratio) for s in scores] if "online" in recipe.arms else []
        for arm in recipe.arms:
            run = run_stream(scores, ratios[arm], recipe.step / np.sqrt(n))
            wanted = recipe.ratio * n / recipe.clusters
            results[f"{arm}/violation@{n}"] = np.maximum(wanted - run.sizes, 0).max(axis=1)
            results[f"{arm}/slack@{n}"] = run.slack().min(axis=1)
            results[f"{arm}/identity@{n}"] = np.abs(run.slack()).max(axis=1)
            if arm == "online":
                results |= _regrets(scores, run, best, n)
    return results


def stream_experiment(
    recipe: StreamRecipe, seed: int | Sequence[int], device: torch.device
) -> dict[str, float] | dict[str, NDArray]:
    """`run_streams` for one seed or several; a seed gives the same numbers alone and among others.

    It runs on the CPU: a stream has no two instances that could be assigned at once.
    """
    if isinstance(seed, Sequence):
        return run_streams(recipe, [int(s) for s in seed])
    return {name: float(value[0]) for name, value in run_streams(recipe, [int(seed)]).items()}


def _regrets(scores: NDArray, run: StreamRun, best: list[float], n: int) -> dict[str, NDArray]:
    reached = [objective(s, labels) for s, labels in zip(scores, run.labels, strict=True)]
    same_sizes = [
        solve_assignment_lp(s, sizes).value for s, sizes in zip(scores, run.sizes, strict=True)
    ]
    return {
        f"online/regret@{n}": np.subtract(best, reached),
        f"online/regret_sizes@{n}": np.subtract(same_sizes, reached),
    }


def _optimum(scores: NDArray, ratio: float) -> float:
    n, clusters = scores.shape
    return solve_assignment_lp(scores, np.full(clusters, ratio * n / clusters)).value


def _unit(x: NDArray) -> NDArray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
