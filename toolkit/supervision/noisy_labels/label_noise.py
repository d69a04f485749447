"""What label noise does to the label vector: the signal left, its variance, the threshold D3.

The paper's proofs could not be read. Everything here is derived from the definition of label
noise, and the chapter says so.
"""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression
from torch import Tensor

Rates = Float[Tensor, "*rates"]


def signal(rate: Rates | float, num_classes: int) -> Rates:
    r"""The share of the clean label left, $s=1-\frac{K\rho}{K-1}$, so that $E\tilde Y=sY$.

    Args:
        rate: of wrong labels ρ, each one of the other K−1 classes, uniformly.
        num_classes: K.

    Raises:
        ValueError: for a rate outside [0, 1] or fewer than two classes.
    """
    rho = _rates(rate, num_classes)
    return 1 - num_classes * rho / (num_classes - 1)


def label_variance(rate: Rates | float, num_classes: int) -> Rates:
    r"""Total variance of a given one-hot label, $v=1-(1-\rho)^2-\frac{\rho^2}{K-1}$.

    Args:
        rate: of wrong labels ρ.
        num_classes: K.

    Raises:
        ValueError: as `signal`.
    """
    rho = _rates(rate, num_classes)
    return 1 - (1 - rho) ** 2 - rho**2 / (num_classes - 1)


def noise_to_signal(rate: Rates | float, num_classes: int) -> Rates:
    r"""$N(\rho)=v/s^2$: rises from 0 without noise to ∞ where the labels become useless.

    Args:
        rate: of wrong labels ρ.
        num_classes: K.

    Raises:
        ValueError: as `signal`, and where no signal is left: ρ ≥ (K−1)/K.
    """
    left = signal(rate, num_classes)
    if bool((left <= 0).any()):
        limit = (num_classes - 1) / num_classes
        raise ValueError(f"no signal is left from a rate of {limit:.3g} on, got {rate}")
    return label_variance(rate, num_classes) / left**2


def phase_threshold(
    bias: Float[Tensor, "*batch times"],
    variance: Float[Tensor, "*batch times"],
    i1: int,
    iT: int,
    num_classes: int,
) -> Float[Tensor, "*batch"]:
    r"""The rate below which training on from $t_1$ to $T$ lowers the expected risk (D3).

    With $N^*=\frac{B(t_1)-B(T)}{V(T)-V(t_1)}$ it is
    $\rho^*=\frac{K-1}K\big[1-(1+\frac K{K-1}N^*)^{-1/2}\big]$, and 0 where $N^*\le0$.

    Args:
        bias: B(t), in rising order of time.
        variance: V(t), which no longer training lowers.
        i1: the position of $t_1$ on the last axis.
        iT: that of T, after it.
        num_classes: K.

    Returns:
        ρ*, always below (K−1)/K.

    Raises:
        ValueError: for shapes that differ, $i_1\ge i_T$ or positions outside the times, fewer than
            two classes, or a variance that does not grow between the two times.
    """
    if bias.shape != variance.shape or bias.ndim < 1:
        raise ValueError(f"bias and variance must match, got {bias.shape} and {variance.shape}")
    if not 0 <= i1 < iT < bias.shape[-1]:
        raise ValueError(f"need 0 ≤ i1 < iT < {bias.shape[-1]}, got i1={i1}, iT={iT}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    growth = variance[..., iT] - variance[..., i1]
    if not bool((growth > 0).all()):
        raise ValueError("the variance must grow from t1 to T: V(t) rises with the time")
    ratio = ((bias[..., i1] - bias[..., iT]) / growth).clamp(min=0)
    top = (num_classes - 1) / num_classes
    return top * (1 - (1 + ratio / top).rsqrt())


def crossing(delta: ArrayLike, rates: ArrayLike) -> float:
    """Where the mean of Δ falls through zero: an isotonic fit over the rates, then a line.

    Args:
        delta: error at the end of stage one minus error at the end, shape [seeds, rates].
        rates: rising.

    Returns:
        The rate; the first one if Δ is not positive there, NaN if Δ never falls to zero.

    Raises:
        ValueError: for shapes that do not fit or rates that do not rise.
    """
    mean, x = np.atleast_2d(np.asarray(delta, float)).mean(0), np.asarray(rates, float)
    if mean.shape != x.shape or len(x) < 2 or (np.diff(x) <= 0).any():
        raise ValueError(f"need rising rates, one a column; got {x} for {np.shape(delta)}")
    if not np.isfinite(mean).all():
        return float("nan")
    fall = isotonic_regression(mean, increasing=False).x
    below = np.flatnonzero(fall <= 0)
    if not len(below):
        return float("nan")
    if (j := below[0]) == 0:
        return float(x[0])
    return float(x[j - 1] + (x[j] - x[j - 1]) * fall[j - 1] / (fall[j - 1] - fall[j]))


def _rates(rate: Rates | float, num_classes: int) -> Rates:
    rho = rate if isinstance(rate, Tensor) else torch.tensor(rate, dtype=torch.float64)
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if not bool(((rho >= 0) & (rho <= 1)).all()):
        raise ValueError(f"a rate must be in [0, 1], got {rate}")
    return rho
