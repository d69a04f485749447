"""What can be computed instead of simulated: bounds, exact moments, empirical minimisers, reuse."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from torch import Tensor

from toolkit.optimization.problems import Sample, SineLink


def one_pass_bound(
    gap: float, eta: float, mu: float, smoothness: float, noise_variance: float, steps: int
) -> Float[Tensor, " steps_plus_1"]:
    r"""Unroll $\Delta_{t+1}\leq(1-\eta\mu)\Delta_t+\frac{\eta^2L\sigma^2}2$ from $\Delta_0$.

    The recursion follows from the descent lemma for an $L$-smooth risk with PL constant $\mu$,
    gradient noise of variance at most $\sigma^2$ and $\eta\leq1/L$.

    Raises:
        ValueError: if $\eta>1/L$, where the lemma says nothing.
    """
    if eta * smoothness > 1:
        raise ValueError(f"the bound needs eta <= 1/L = {1 / smoothness:.3g}, got {eta}")
    decay = (1 - eta * mu) ** torch.arange(steps + 1, dtype=torch.float64)
    floor = eta * smoothness * noise_variance / (2 * mu)
    return decay * gap + floor * (1 - decay)


def linear_moments(
    lam: Float[Tensor, " d"],
    eta: float,
    noise: float,
    w0_minus_wstar: Float[Tensor, " d"],
    steps: int,
) -> Float[Tensor, "steps_plus_1 d"]:
    r"""Exact $m_i=E(w_t-w_*)_i^2$ of one-pass SGD on linear regression with Gaussian inputs.

    $m_i\leftarrow m_i(1-2\eta\lambda_i+2\eta^2\lambda_i^2)+\eta^2\lambda_i\sum_j\lambda_jm_j
    +\eta^2\sigma^2\lambda_i$; the excess risk is $\frac12\sum_i\lambda_im_i$.
    """
    lam = lam.double()
    moments = [w0_minus_wstar.double() ** 2]
    for _ in range(steps):
        m = moments[-1]
        spread = (lam * m).sum() + noise**2
        moments.append(m * (1 - 2 * eta * lam + 2 * (eta * lam) ** 2) + eta**2 * lam * spread)
    return torch.stack(moments)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Expected excess risk after 1, 2, 4, … passes, in three parts that add up to it."""

    passes: tuple[int, ...]
    bias: Float[Tensor, " P"]
    statistical: Float[Tensor, " P"]
    sgd_noise: Float[Tensor, " P"]

    @property
    def total(self) -> Float[Tensor, " P"]:
        """The excess risk itself."""
        return self.bias + self.statistical + self.sgd_noise


def reuse_moments(problem: SineLink, data: Sample, eta: float, doublings: int) -> Decomposition:
    r"""Where another epoch goes: exact risk of multi-pass SGD on given linear data sets.

    Steps draw from the sample with replacement. Then $\delta_t=E[w_t]-w_*$ follows gradient
    descent on $F_S$, and $M_t=E[(w_t-w_*)(w_t-w_*)^\top]$ obeys a linear recursion as well, so
    $(M_t,\delta_t,1)$ after $nK$ steps is a matrix power, squared once a doubling of $K$.
    *Bias* is what remains of $w_0-w_*$, *statistical* what gradient descent learnt from
    label noise, *SGD noise* the spread around gradient descent. All are means over the data sets,
    each taken with its label noise and with the noise's negative, so that the parts add up.

    Args:
        problem: with amplitude 0.
        data: the samples, kept fixed.
        eta: constant step size.
        doublings: passes go up to $2^{doublings}$.

    Raises:
        ValueError: if the problem is not linear.
    """
    if problem.amplitude != 0:
        raise ValueError("exact moments need the linear problem: amplitude 0")
    n, num_seeds, dim = data.x.shape
    lam = problem.lam.double()
    i, j = torch.triu_indices(dim, dim)
    steps = [_moment_step(x.double(), e.double(), eta) for x, e in _by_seed(data)]
    power = torch.linalg.matrix_power(torch.stack(steps), n)
    start = -data.w_star.double()
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)  # flips the noise, by symmetry
    state = torch.cat(
        [
            (start[:, i] * start[:, j])[..., None].expand(-1, -1, 2),
            start[..., None] * signs,
            torch.ones(num_seeds, 1, 2, dtype=torch.float64),
        ],
        dim=1,
    )
    parts = []
    for _ in range(doublings + 1):
        after = power @ state
        mean = after[:, len(i) : -1]
        risk = 0.5 * (lam[i] * (i == j) * after[:, : len(i)].mean(-1)).sum(-1)
        bias = 0.5 * (lam * ((mean[..., 0] - mean[..., 1]) / 2) ** 2).sum(-1)
        statistical = 0.5 * (lam * mean.mean(-1) ** 2).sum(-1)
        parts.append(torch.stack([bias, statistical, risk - bias - statistical]).mean(-1))
        power = power @ power
    bias, statistical, sgd_noise = torch.stack(parts, dim=1)
    return Decomposition(tuple(2**k for k in range(doublings + 1)), bias, statistical, sgd_noise)


def erm_floor(noise: float, dim: int, n: int) -> float:
    r"""Expected excess risk of least squares, $\frac{\sigma^2d}{2(n-d-1)}$ for Gaussian inputs.

    Raises:
        ValueError: unless $n>d+1$; below, the expectation is infinite.
    """
    if n <= dim + 1:
        raise ValueError(f"the floor needs n > d + 1, got n={n}, d={dim}")
    return noise**2 * dim / (2 * (n - dim - 1))


def empirical_minimiser(problem: SineLink, data: Sample) -> Float[Tensor, "S d"]:
    """Minimise the empirical risk of each seed: `lstsq` if linear, else L-BFGS from 0."""
    if problem.amplitude == 0:
        inputs, labels = data.x.double().transpose(0, 1).cpu(), data.y.double().T[..., None].cpu()
        solution = torch.linalg.lstsq(inputs, labels, driver="gelsd").solution
        return solution[..., 0].to(data.x.device)

    def fitted(x: NDArray, y: NDArray) -> NDArray:
        def loss(w: NDArray) -> tuple[float, NDArray]:
            u = x @ w
            residual = u + problem.amplitude * np.sin(u) - y
            slope = residual * (1 + problem.amplitude * np.cos(u))
            return 0.5 * np.mean(residual**2), slope @ x / len(x)

        return minimize(
            loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"gtol": 1e-9}
        ).x

    x, y = data.x.double().cpu().numpy(), data.y.double().cpu().numpy()
    solutions = [fitted(x[:, s], y[:, s]) for s in range(x.shape[1])]
    return torch.from_numpy(np.stack(solutions)).to(data.x.device)


def effective_reuse(
    risk_multi: ArrayLike, risk_one: ArrayLike, sizes: Sequence[float] | NDArray, n: int
) -> NDArray[np.float64]:
    r"""Effective reuse $E(K,n)$: how many times `n` fresh samples equal $K$ passes over `n`.

    The one-pass curve (of seed means) is inverted by log-log interpolation; it is made to fall
    first, since a larger sample can always be cut.

    Args:
        risk_multi: excess risk after each $K$ passes over `n` samples, shape `[S, K]`.
        risk_one: excess risk of one pass over each of `sizes`, shape `[S, N]`.
        sizes: rising sample sizes.
        n: the size that is reused.

    Returns:
        One value a $K$; NaN where it lies outside the measured sizes.

    Raises:
        ValueError: if shapes do not fit or sizes do not rise.
    """
    multi, one = np.asarray(risk_multi, float), np.asarray(risk_one, float)
    grid = np.asarray(sizes, float)
    if one.shape[-1] != len(grid) or (np.diff(grid) <= 0).any():
        raise ValueError(
            f"need rising sizes, one a column; got {grid.tolist()} for shape {one.shape}"
        )
    target = np.log(np.atleast_2d(multi).mean(0))
    falling = np.minimum.accumulate(np.log(np.atleast_2d(one).mean(0)))
    first = np.append(True, np.diff(falling) < 0)  # the smallest sample of each risk
    size = np.interp(-target, -falling[first], np.log(grid)[first], left=np.nan, right=np.nan)
    return np.exp(size) / n


@dataclass(frozen=True, eq=False)
class Probe:
    """The landscape at many points: PL ratio and smallest and largest Hessian eigenvalue."""

    ratio: Float[Tensor, " P"]
    smallest: Float[Tensor, " P"]
    largest: Float[Tensor, " P"]


def probe_landscape(
    problem: SineLink, probes: int = 4000, radius: float = 6.0, seed: int = 0
) -> Probe:
    r"""Probe $\frac{\|\nabla F\|^2}{2(F-F_*)}$ and $\nabla^2F$ at $w_*+rv$, $r\sim U(0,radius)$.

    Half of the directions $v$ are uniform on the sphere, half are coordinate axes, where the
    small eigenvalues are met.
    """
    dim = len(problem.lam)
    w_star = problem.sample(1, [seed]).w_star.double().cpu()
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(probes, dim, generator=generator, dtype=torch.float64)
    axes = torch.eye(dim, dtype=torch.float64)[torch.arange(probes) % dim]
    v[::2] = (axes * torch.sign(v))[::2]
    r = radius * torch.rand(probes, 1, generator=generator, dtype=torch.float64)
    w = (w_star + r * v / v.norm(dim=1, keepdim=True)).to(problem.lam.device)
    target = w_star.expand_as(w).to(w)
    gradient = problem.risk_grad(w, target)
    ratio = (gradient**2).sum(-1) / (2 * problem.excess_risk(w, target))
    eigenvalues = torch.linalg.eigvalsh(problem.hessian(w, target))
    return Probe(ratio, eigenvalues[:, 0], eigenvalues[:, -1])


def _by_seed(data: Sample) -> list[tuple[Tensor, Tensor]]:
    noise = data.y - (data.x * data.w_star).sum(-1)
    return list(zip(data.x.unbind(1), noise.unbind(1), strict=True))


def _moment_step(
    x: Float[Tensor, "n d"], noise: Float[Tensor, " n"], eta: float
) -> Float[Tensor, "m m"]:
    """One step of SGD with replacement as a matrix on (upper half of M, delta, 1)."""
    n, d = x.shape
    i, j = torch.triu_indices(d, d)
    eye = torch.eye(d, dtype=x.dtype)
    products = x[:, i] * x[:, j]
    covariance, pull = x.T @ x / n, x.T @ noise / n
    shrink = (torch.kron(covariance, eye) + torch.kron(eye, covariance))[i * d + j]
    twice = torch.where(i == j, 1.0, 2.0)  # M is symmetric: M_ij stands for M_ji too
    second = (
        torch.eye(len(i), dtype=x.dtype)
        - eta * (shrink[:, i * d + j] + shrink[:, j * d + i]) * twice / 2
        + eta**2 * products.T @ products / n * twice
    )
    mixed = eye[i] * pull[j, None] + eye[j] * pull[i, None]
    mixed = eta * mixed - 2 * eta**2 * (products * noise[:, None]).T @ x / n
    constant = eta**2 * (products * noise[:, None] ** 2).mean(0)

    m = len(i)
    step = torch.zeros(m + d + 1, m + d + 1, dtype=x.dtype)
    step[:m, :m], step[:m, m:-1], step[:m, -1] = second, mixed, constant
    step[m:-1, m:-1], step[m:-1, -1] = eye - eta * covariance, eta * pull
    step[-1, -1] = 1
    return step
