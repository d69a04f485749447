"""Estimates with intervals: what a sample of seeds says about a number.

Every function takes one value a seed and returns an `Estimate` with its 95 % interval. A sample
that holds a non-finite value (a diverged run) gives an interval of NaN: nothing is dropped.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
RESAMPLES = 4999
MIN_UNITS = 8


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: the point estimate, in the unit of the sample.
        low: lower end of the interval.
        high: upper end.
        n: how many independent units (seeds) stand behind it.
        method: how the interval was made, in words.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    at: Callable[[float], tuple[float, float]] | None = field(
        default=None, repr=False, compare=False
    )

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval at another level, such as 0.99.

        Raises:
            ValueError: if the level lies outside (0, 1), or the estimate came from a file, where
                only the 95 % interval is kept.
        """
        if not 0 < level < 1:
            raise ValueError(f"a level lies between 0 and 1, got {level}")
        if self.at is not None:
            return self.at(level)
        if level != LEVEL:
            raise ValueError("only the 95 % interval of a recorded estimate is known")
        return self.low, self.high

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean(x: ArrayLike) -> Estimate:
    """The mean of one value a seed, with Student's t interval.

    Raises:
        ValueError: for fewer than two values.
    """
    sample = _sample(x)
    if not np.isfinite(sample).all():
        return _undecidable(sample, "t")
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    return _estimate(
        sample.mean(), len(sample), "t", _t_interval(sample.mean(), error, len(sample) - 1)
    )


def paired_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """The mean of `a - b` over seeds that both arms share, with Student's t interval.

    Raises:
        ValueError: if the two differ in length or hold fewer than two values.
    """
    first, second = _pair(a, b)
    difference_ = first - second
    if not np.isfinite(difference_).all():
        return _undecidable(difference_, "paired t")
    result = mean(difference_)
    return _estimate(result.value, result.n, "paired t", result.interval)


def difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """The difference of two means over unrelated seeds, with Welch's t interval.

    Raises:
        ValueError: for fewer than two values in either.
    """
    first, second = _sample(a), _sample(b)
    n = min(len(first), len(second))
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return _undecidable(np.append(first, second), "Welch's t")
    va, vb = first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)
    freedom = (
        (va + vb) ** 2 / (va**2 / (len(first) - 1) + vb**2 / (len(second) - 1)) if va + vb else 1
    )
    centre = first.mean() - second.mean()
    return _estimate(centre, n, "Welch's t", _t_interval(centre, np.sqrt(va + vb), freedom))


def ratio(a: ArrayLike, b: ArrayLike) -> Estimate:
    """The ratio of means of paired positive samples, by the delta method on the log means.

    Raises:
        ValueError: if the lengths differ, there are fewer than two, or a value is not positive.
    """
    top, bottom = _pair(a, b)
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        return _undecidable(np.append(top, bottom), "delta method")
    if (top <= 0).any() or (bottom <= 0).any():
        raise ValueError("a ratio needs positive values in both samples")
    centre = np.log(top.mean()) - np.log(bottom.mean())
    influence = top / top.mean() - bottom / bottom.mean()
    error = influence.std(ddof=1) / np.sqrt(len(top))
    log_interval = _t_interval(centre, error, len(top) - 1)

    def at(level: float) -> tuple[float, float]:
        with np.errstate(over="ignore"):  # few seeds and a level near 1: infinity is right
            low, high = np.exp(log_interval(level))
        return float(low), float(high)

    return _estimate(np.exp(centre), len(top), "delta method on log means, paired", at)


def proportion(hits: int, n: int) -> Estimate:
    """A share of successes with Wilson's interval.

    Raises:
        ValueError: unless 0 ≤ hits ≤ n and n ≥ 1.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"hits must lie in 0…n with n ≥ 1, got {hits} of {n}")
    test = stats.binomtest(int(hits), int(n))

    def at(level: float) -> tuple[float, float]:
        found = test.proportion_ci(level, method="wilson")
        return found.low, found.high

    return _estimate(hits / n, n, "Wilson", at)


def exact(value: float) -> Estimate:
    """A number without sampling error: a deterministic check, a count."""
    return Estimate(float(value), float(value), float(value), 1, "exact", lambda _: (value, value))


def loglog_slope(x: ArrayLike, y: ArrayLike) -> Estimate:
    """The exponent p of y ∝ x^p: least squares on the log of the seed mean, seeds resampled.

    The mean is taken before the log (Jensen: the mean of logs is another number).

    Args:
        x: positive abscissae, shape [P], P ≥ 2.
        y: positive values, shape [S, P], one curve a seed, S ≥ 8.

    Raises:
        ValueError: for shapes that do not fit, or values that are not positive.
    """
    abscissa, curves = _curves(x, y, 2)
    return bootstrap(lambda sample: _fit(abscissa, sample, 1), curves)


def loglog_curvature(x: ArrayLike, y: ArrayLike) -> Estimate:
    """The quadratic term of the log-log fit; an interval without 0 says that the slope is local.

    Args:
        x: positive abscissae, shape [P], P ≥ 3.
        y: positive values, shape [S, P], one curve a seed, S ≥ 8.

    Raises:
        ValueError: for shapes that do not fit, or values that are not positive.
    """
    abscissa, curves = _curves(x, y, 3)
    return bootstrap(lambda sample: _fit(abscissa, sample, 2), curves)


def bootstrap(statistic: Callable[..., float], *samples: ArrayLike) -> Estimate:
    """Any statistic of the seeds, with a bias-corrected accelerated bootstrap interval.

    One resample of the index of axis 0 is used for all samples, so pairs and whole curves stay
    together.

    Args:
        statistic: takes the resampled samples and returns one number.
        *samples: arrays that share the length of axis 0, at least 8.

    Raises:
        ValueError: if the lengths differ or are below 8.
    """
    arrays = [np.asarray(sample, float) for sample in samples]
    n = len(arrays[0]) if arrays and arrays[0].ndim else 0
    if n < MIN_UNITS or any(a.ndim == 0 or len(a) != n for a in arrays):
        raise ValueError(
            f"the bootstrap needs at least {MIN_UNITS} seeds, the same for all samples"
        )
    if not all(np.isfinite(a).all() for a in arrays):
        return _undecidable(np.concatenate([a.reshape(n, -1) for a in arrays], axis=1), "bootstrap")
    value = float(statistic(*arrays))
    result = _resample(statistic, arrays, n, LEVEL, None)
    draws = result.bootstrap_distribution
    if np.ptp(draws) <= 1e-12 * abs(value):  # BCa divides by this spread
        return _estimate(value, n, "bootstrap (all draws agree)", lambda _: (value, value))

    def at(level: float) -> tuple[float, float]:
        if not np.isfinite(draws).all():
            return np.nan, np.nan
        if level > 1 - 1 / (RESAMPLES + 1):  # beyond what so many resamples can tell
            return -np.inf, np.inf
        found = _resample(statistic, arrays, n, level, result).confidence_interval
        if np.isnan(found.low):  # leaving out any one seed changes nothing: percentiles instead
            return tuple(np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist())
        return float(found.low), float(found.high)

    return _estimate(value, n, "BCa bootstrap over seeds", at)


def _resample(statistic: Callable, arrays: list, n: int, level: float, previous: Any) -> Any:
    def on_index(index: NDArray) -> float:
        return float(statistic(*(array[index] for array in arrays)))

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.bootstrap(
            (np.arange(n),),
            on_index,
            n_resamples=RESAMPLES if previous is None else 0,
            confidence_level=level,
            method="BCa",
            vectorized=False,
            bootstrap_result=previous,
            rng=np.random.default_rng(0),
        )


def _fit(x: NDArray, curves: NDArray, degree: int) -> float:
    return float(np.polyfit(np.log(x), np.log(curves.mean(axis=0)), degree)[0])


def _curves(x: ArrayLike, y: ArrayLike, least: int) -> tuple[NDArray, NDArray]:
    abscissa, curves = np.asarray(x, float), np.asarray(y, float)
    if abscissa.ndim != 1 or len(abscissa) < least or curves.shape[1:] != abscissa.shape:
        raise ValueError(
            f"need x[P] with P ≥ {least} and y[S, P], got {abscissa.shape} and {curves.shape}"
        )
    if (abscissa <= 0).any() or (curves <= 0).any():
        raise ValueError("a log-log fit needs positive numbers")
    return abscissa, curves


def _sample(x: ArrayLike) -> NDArray:
    sample = np.asarray(x, float)
    if sample.ndim != 1 or len(sample) < 2:
        raise ValueError(f"need one value a seed, at least two, got shape {sample.shape}")
    return sample


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray, NDArray]:
    first, second = _sample(a), _sample(b)
    if len(first) != len(second):
        raise ValueError(f"paired samples need equal lengths, got {len(first)} and {len(second)}")
    return first, second


def _t_interval(centre: float, error: float, freedom: float) -> Callable[[float], tuple]:
    def at(level: float) -> tuple[float, float]:
        half = stats.t.ppf((1 + level) / 2, freedom) * error
        return float(centre - half), float(centre + half)

    return at


def _estimate(value: float, n: int, method: str, at: Callable[[float], tuple]) -> Estimate:
    low, high = at(LEVEL)
    return Estimate(float(value), float(low), float(high), n, method, at)


def _undecidable(sample: NDArray, method: str) -> Estimate:
    """What a diverged run leaves: a value, no interval, and the seeds that did it."""
    bad = np.flatnonzero(~np.isfinite(sample.reshape(len(sample), -1)).all(axis=1))
    reason = f"{method}; not finite at positions {', '.join(map(str, bad[:8]))}"
    return Estimate(np.nan, np.nan, np.nan, len(sample), reason, lambda _: (np.nan, np.nan))
