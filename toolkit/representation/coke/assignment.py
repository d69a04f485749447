"""The exact assignment by linear programming: what the online rule is measured against."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import OptimizeResult, linprog, minimize
from scipy.sparse import csr_array
from scipy.special import logsumexp


@dataclass(frozen=True, eq=False)
class Assignment:
    """An optimal assignment."""

    labels: NDArray
    """The cluster of each instance, [n]."""
    duals: NDArray
    """The price ρ_k ≥ 0 of each lower bound, [clusters]."""
    value: float
    """Sum of the scores: the optimum."""


def solve_assignment_lp(scores: ArrayLike, min_sizes: ArrayLike) -> Assignment:
    """Maximise the sum of scores such that every cluster gets its minimal size: exact, by HiGHS.

    The constraints are those of a transportation problem, so the linear program has an integral
    optimum. Few pairs (instance, cluster) can matter: it is solved over those whose score plus
    estimated price comes close to the best of their row, and accepted if its prices prove by
    duality that no other pair would help; else more pairs enter.

    Args:
        scores: s_ik = x_iᵀc_k, [n, clusters].
        min_sizes: γ_k, non-negative, summing to at most n. Fractions are rounded up.

    Raises:
        ValueError: if shapes differ, scores are not finite, or the sizes cannot be met.
    """
    s, low = _checked(scores, min_sizes)
    estimate = _smoothed_prices(s, low)
    offered = s + estimate
    margin = offered.max(axis=1, keepdims=True) - offered
    width = 0.05 * float(np.ptp(s))
    while True:
        pairs = margin <= width
        found = _restricted(s, low, pairs)
        if found.status == 0:
            duals = np.maximum(-found.ineqlin.marginals, 0)
            if dual_value(s, low, duals) + found.fun <= 1e-9 * max(1.0, abs(found.fun)):
                return _integral(s, pairs, found, duals)
        if pairs.all():
            raise RuntimeError(f"HiGHS found no optimum: {found.message}")
        width *= 3


def dual_value(scores: NDArray, min_sizes: ArrayLike, duals: ArrayLike) -> float:
    """Σ_i max_k (s_ik + ρ_k) − Σ_k ρ_k γ_k: for any ρ ≥ 0 an upper bound of the optimum."""
    rho = np.asarray(duals, float)
    return float((scores + rho).max(axis=1).sum() - rho @ np.asarray(min_sizes, float))


def _checked(scores: ArrayLike, min_sizes: ArrayLike) -> tuple[NDArray, NDArray]:
    s, low = np.asarray(scores, float), np.ceil(np.asarray(min_sizes, float) - 1e-9)
    if s.ndim != 2 or low.shape != s.shape[1:] or not len(s):
        raise ValueError(f"need scores [n, k] and sizes [k], got {s.shape} and {low.shape}")
    if not np.isfinite(s).all():
        raise ValueError("scores must be finite")
    if (low < 0).any() or low.sum() > len(s):
        raise ValueError(f"sizes must be ≥ 0 and sum to at most {len(s)}, got {low.sum():g}")
    return s, low


def _smoothed_prices(s: NDArray, low: NDArray, temperature: float = 0.01) -> NDArray:
    """Prices that minimise the dual with a soft maximum: a good guess, no more."""

    def smoothed(rho: NDArray) -> tuple[float, NDArray]:
        offered = (s + rho) / temperature
        total = logsumexp(offered, axis=1)
        shares = np.exp(offered - total[:, None]).sum(axis=0)
        return temperature * total.sum() - rho @ low, shares - low

    start, bounds = np.zeros(s.shape[1]), [(0, None)] * s.shape[1]
    return minimize(smoothed, start, jac=True, method="L-BFGS-B", bounds=bounds).x


def _restricted(s: NDArray, low: NDArray, pairs: NDArray) -> OptimizeResult:
    """The linear program over some pairs only."""
    n, clusters = s.shape
    row, column = np.nonzero(pairs)
    which, one = np.arange(len(row)), np.ones(len(row))
    return linprog(
        -s[row, column],
        A_ub=csr_array((-one, (column, which)), shape=(clusters, len(row))),
        b_ub=-low,
        A_eq=csr_array((one, (row, which)), shape=(n, len(row))),
        b_eq=np.ones(n),
        bounds=(0, None),
        method="highs",
    )


def _integral(s: NDArray, pairs: NDArray, found: OptimizeResult, duals: NDArray) -> Assignment:
    row, column = np.nonzero(pairs)
    chosen = found.x > 0.5
    labels = np.empty(len(s), int)
    labels[row[chosen]] = column[chosen]
    return Assignment(labels, duals, float(-found.fun))
