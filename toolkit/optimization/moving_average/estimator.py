r"""The stochastic estimator by moving average (SEMA) and what can be said about its error exactly.

$z_{t+1}=(1-\gamma_t)z_t+\gamma_tO_h(x_t)$ tracks $h(x_t)$ through an unbiased oracle $O_h$. Here
$\gamma$ is always the weight of the *new* sample: torch's `beta1` is $1-\gamma$.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

SCHEDULES = ("const", "sqrt_T", "sqrt_t", "stagewise")


def ema(
    z: Float[Tensor, "..."], sample: Float[Tensor, "..."], gamma: float | Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    r"""One step of SEMA, $z_{t+1}=(1-\gamma_t)z_t+\gamma_tO_h(x_t)$.

    Args:
        z: the average so far, of any shape.
        sample: the oracle's new value, of the same shape.
        gamma: weight of the new sample, a number or a tensor that broadcasts against `z`.

    Raises:
        ValueError: if the shapes differ, or a number `gamma` lies outside (0, 1].
    """
    if z.shape != sample.shape:
        raise ValueError(f"z has shape {tuple(z.shape)}, the sample {tuple(sample.shape)}")
    if not isinstance(gamma, Tensor):
        check_gamma(gamma)
    return torch.lerp(z, sample, gamma)


def check_gamma(gamma: float) -> None:
    """Refuse a weight outside (0, 1].

    Raises:
        ValueError: naming the weight.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma, the weight of the new sample, must lie in (0, 1], got {gamma}")


def rate_schedule(kind: str, c: float, T: int, *, first: int = 64) -> Float[Tensor, " T"]:
    r"""A step size for each of `T` steps, in float32.

    Args:
        kind: `"const"` is $c$; `"sqrt_T"` is $c/\sqrt T$ (constant, chosen for the horizon);
            `"sqrt_t"` is $c/\sqrt{t+1}$; `"stagewise"` halves $c$ from stage to stage while
            stages double in length.
        c: positive factor.
        T: number of steps.
        first: length of the first stage.

    Raises:
        ValueError: for an unknown kind, c ≤ 0, or fewer than one step.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"a schedule is one of {', '.join(SCHEDULES)}, got {kind!r}")
    if not (c > 0 and math.isfinite(c)) or T < 1 or first < 1:
        raise ValueError(f"need c > 0, T >= 1 and first >= 1, got {c}, {T} and {first}")
    t = torch.arange(T, dtype=torch.float64)
    factor = {
        "const": torch.ones_like(t),
        "sqrt_T": torch.full_like(t, T**-0.5),
        "sqrt_t": (t + 1) ** -0.5,
        "stagewise": 0.5 ** torch.floor(torch.log2(t / first + 1)),
    }[kind]
    return (c * factor).float()


def gamma_schedule(kind: str, c: float, T: int, *, first: int = 64) -> Float[Tensor, " T"]:
    r"""Weights $\gamma_t=\min(1,\cdot)$ of the new sample; see `rate_schedule`.

    `"sqrt_T"` and `"sqrt_t"` are the two choices of the theorem: fixed for the horizon, or
    decreasing, that is with *increasing momentum* $\beta_{1,t}=1-\gamma_t$.

    Raises:
        ValueError: as `rate_schedule`.
    """
    return rate_schedule(kind, c, T, first=first).clamp(max=1)


def recursion_bound(
    previous: Float[Tensor, "..."],
    move: Float[Tensor, "..."],
    gamma: Float[Tensor, "..."],
    *,
    noise: float,
    lipschitz: float,
    factor: float = 2.0,
) -> Float[Tensor, "..."]:
    r"""The right-hand side of the variance recursion.

    $(1-\gamma_t)\|z_t-h(x_{t-1})\|^2+f\gamma_t^2\sigma^2+\frac{L^2}{\gamma_t}\|x_t-x_{t-1}\|^2$.
    Published with the factor $f=2$; the chapter's first exercise proves $f=1$.

    Args:
        previous: $\|z_t-h(x_{t-1})\|^2$.
        move: $\|x_t-x_{t-1}\|^2$.
        gamma: $\gamma_t$.
        noise: $\sigma^2$, the variance of the oracle summed over coordinates.
        lipschitz: $L$ of $h$.
        factor: $f$.
    """
    return (1 - gamma) * previous + factor * gamma**2 * noise + lipschitz**2 / gamma * move


def tracking_error(gamma: float, noise: float, drift: float) -> tuple[float, float]:
    r"""Steady-state error of SEMA against a target that moves by `drift` a step: (variance, lag²).

    $h_t=h_{t-1}+\delta$ and independent noise of variance $\sigma^2$ give
    $E\|z_{t+1}-h_t\|^2\to\frac{\gamma}{2-\gamma}\sigma^2+\frac{(1-\gamma)^2}{\gamma^2}\|\delta\|^2$:
    the variance falls with $\gamma$, the lag grows.

    Args:
        gamma: weight of the new sample.
        noise: $\sigma^2\geq0$.
        drift: $\|\delta\|\geq0$ per step.

    Raises:
        ValueError: for `gamma` outside (0, 1], or a negative noise or drift.
    """
    check_gamma(gamma)
    if noise < 0 or drift < 0:
        raise ValueError(f"noise and drift must not be negative, got {noise} and {drift}")
    return gamma / (2 - gamma) * noise, ((1 - gamma) / gamma * drift) ** 2


def best_gamma(noise: float, drift: float) -> float:
    r"""The weight at the bottom of the valley of `tracking_error`, by bisection of its slope.

    For a slow drift it is close to $(2\|\delta\|/\sigma)^{2/3}$.

    Raises:
        ValueError: unless noise and drift are positive.
    """
    if not (noise > 0 and drift > 0):
        raise ValueError(f"need positive noise and drift, got {noise} and {drift}")
    low, high = 1e-9, 1.0
    for _ in range(80):
        gamma = math.sqrt(low * high)
        slope = 2 * noise / (2 - gamma) ** 2 - 2 * (1 - gamma) / gamma**3 * drift**2
        low, high = (low, gamma) if slope > 0 else (gamma, high)
    return gamma
