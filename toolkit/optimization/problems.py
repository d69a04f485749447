"""Test problems whose risk is known exactly, for many random instances at once.

Shapes: `S` is the axis of seeds (one random instance each), `d` the dimension, `n` the sample
size; a leading `...` is free, for instance for step sizes or snapshots. Shared by
`multipass_sgd` and `moving_average`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Sample(NamedTuple):
    """A data set for each seed."""

    x: Float[Tensor, "n S d"]
    y: Float[Tensor, "n S"]
    w_star: Float[Tensor, "S d"]


@dataclass(frozen=True, eq=False)
class SineLink:
    r"""Sine-link regression: non-convex least squares under the Polyak–Łojasiewicz inequality.

    $f(w;x)=\phi(w^\top x)$ with $\phi(z)=z+a\sin z$, $x\sim N(0,\mathrm{diag}\,\lambda)$ and
    $y=\phi(w_*^\top x)+\sigma\xi$, $\xi\sim N(0,1)$. With $a=0$ it is ordinary least squares. The
    minimiser $w_*$ is drawn per seed and scaled so that $\mathrm{Var}(w_*^\top x)=1$.

    Args:
        lam: eigenvalues $\lambda_i>0$ of the covariance, shape `[d]`; its type and device are
            those of all samples.
        amplitude: $a$, with $|a|<1$ so that $\phi'\geq1-|a|>0$.
        noise: $\sigma\geq0$, the standard deviation of the label noise.
        prior: standard deviations of the coordinates of $w_*$ before scaling, shape `[d]`;
            all one if omitted.

    Raises:
        ValueError: if $|a|\geq1$, some $\lambda_i\leq0$, $\sigma<0$, or `prior` has another shape.
    """

    lam: Float[Tensor, " d"]
    amplitude: float = 0.8
    noise: float = 0.1
    prior: Float[Tensor, " _"] | None = None

    def __post_init__(self) -> None:
        if not abs(self.amplitude) < 1:
            raise ValueError(f"amplitude must lie in (-1, 1), got {self.amplitude}")
        if self.lam.ndim != 1 or not bool((self.lam > 0).all()):
            raise ValueError(f"lam must be a vector of positive eigenvalues, got {self.lam}")
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")
        if self.prior is not None and self.prior.shape != self.lam.shape:
            raise ValueError(f"prior must have shape {tuple(self.lam.shape)}")

    @classmethod
    def power_law(cls, dim: int, a: float, b: float, noise: float = 0.5) -> "SineLink":
        r"""Linear regression with $\lambda_i=i^{-a}$ and $\lambda_iE(w_{*,i})^2\propto i^{-b}$."""
        i = torch.arange(1, dim + 1, dtype=torch.float32)
        return cls(i**-a, amplitude=0.0, noise=noise, prior=i ** ((a - b) / 2))

    def link(self, z: Tensor) -> Tensor:
        r"""$\phi(z)=z+a\sin z$, elementwise."""
        return z + self.amplitude * torch.sin(z)

    def link_slope(self, z: Tensor) -> Tensor:
        r"""$\phi'(z)=1+a\cos z$, elementwise."""
        return 1 + self.amplitude * torch.cos(z)

    def sample(self, n: int, seeds: Sequence[int]) -> Sample:
        """Draw a minimiser and `n` labelled examples for each seed.

        A seed has its own random streams: it gives the same data alone, among others, and as the
        beginning of a larger sample.
        """
        if n < 1 or not len(seeds):
            raise ValueError(f"need n >= 1 and at least one seed, got n={n}, {len(seeds)} seeds")
        lam = self.lam.double().cpu()
        w, g, xi = map(torch.from_numpy, _normals(n, len(lam), seeds))
        w = w if self.prior is None else w * self.prior.double().cpu()
        w = w / (lam * w**2).sum(-1, keepdim=True).sqrt()
        x = g * lam.sqrt()
        y = self.link((x * w).sum(-1)) + self.noise * xi
        return Sample(x.to(self.lam), y.to(self.lam), w.to(self.lam))

    def grad(
        self, w: Float[Tensor, "... S d"], x: Float[Tensor, "n S d"], y: Float[Tensor, "n S"]
    ) -> Float[Tensor, "... S d"]:
        r"""Gradient of the mean loss of `n` examples, $\frac1n\sum(\phi(u)-y)\,\phi'(u)\,x$."""
        if len(x) == 1:  # one example: a broadcast product is four times as fast as an einsum
            z = (w * x[0]).sum(-1)
            return ((self.link(z) - y[0]) * self.link_slope(z))[..., None] * x[0]
        z = torch.einsum("...sd,nsd->...ns", w, x)
        return torch.einsum("...ns,nsd->...sd", (self.link(z) - y) * self.link_slope(z), x) / len(x)

    def excess_risk(
        self, w: Float[Tensor, "... S d"], w_star: Float[Tensor, "S d"]
    ) -> Float[Tensor, "... S"]:
        r"""$F(w)-F_*=\frac12E[(\phi(u)-\phi(u_*))^2]$ in closed form, in float64.

        $u=w^\top x$ and $u_*=w_*^\top x$ are jointly Gaussian, so every expectation of a sine
        is an exponential of a variance. The terms are grouped so that nothing cancels
        near $w_*$ and nothing overflows far from it.
        """
        w, w_star, lam = w.double(), w_star.double(), self.lam.double()
        step = w - w_star
        v_star, v_minus = (lam * w_star**2).sum(-1), (lam * step**2).sum(-1)
        v_plus, gap = (lam * (w + w_star) ** 2).sum(-1), (lam * step * (w + w_star)).sum(-1)
        shrink = torch.exp(-v_star / 2)  # and exp(-v_u / 2) is shrink * exp(-gap / 2)
        linear = shrink * (v_minus + (lam * w * step).sum(-1) * torch.expm1(-gap / 2))
        sines = -torch.expm1(-v_minus / 2) * (1 + torch.exp(-v_plus / 2))
        sines = sines - 0.5 * (shrink**2 * torch.expm1(-gap)) ** 2
        return 0.5 * (v_minus + 2 * self.amplitude * linear + self.amplitude**2 * sines)

    def risk_grad(
        self, w: Float[Tensor, "S d"], w_star: Float[Tensor, "S d"]
    ) -> Float[Tensor, "S d"]:
        r"""Gradient of the population risk, $\nabla F(w)$, by automatic differentiation."""
        return torch.func.vmap(torch.func.grad(self._risk_of_one))(w.double(), w_star.double())

    def hessian(
        self, w: Float[Tensor, "S d"], w_star: Float[Tensor, "S d"]
    ) -> Float[Tensor, "S d d"]:
        r"""Hessian of the population risk, $\nabla^2F(w)$, by automatic differentiation."""
        bend = torch.func.jacrev(torch.func.grad(self._risk_of_one))
        return torch.func.vmap(bend)(w.double(), w_star.double())

    def pl_constant_bound(self) -> float:
        r"""A proved lower bound of the PL constant: $\mu\geq c^3\lambda_{\min}/C$.

        $c=1-|a|$ and $C=1+|a|$ bound $\phi'$; the chapter's first exercise is the proof.
        """
        c, C = 1 - abs(self.amplitude), 1 + abs(self.amplitude)
        return c**3 * float(self.lam.min()) / C

    def _risk_of_one(self, w: Tensor, w_star: Tensor) -> Tensor:
        return self.excess_risk(w[None], w_star[None])[0]


def log_spaced_spectrum(dim: int, kappa: float) -> Float[Tensor, " d"]:
    r"""Eigenvalues $\lambda_i=\kappa^{-(i-1)/(d-1)}$, log-spaced from 1 down to $1/\kappa$."""
    if dim < 2 or kappa < 1:
        raise ValueError(f"need dim >= 2 and kappa >= 1, got dim={dim}, kappa={kappa}")
    return kappa ** -(torch.arange(dim) / (dim - 1))


def _normals(n: int, dim: int, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standard normals for the minimiser `[S,d]`, inputs `[n,S,d]` and noise `[n,S]`."""
    streams = [[np.random.default_rng([int(seed), i]) for i in range(3)] for seed in seeds]
    w = np.stack([w.standard_normal(dim) for w, _, _ in streams])
    x = np.stack([x.standard_normal((n, dim)) for _, x, _ in streams], axis=1)
    noise = np.stack([e.standard_normal(n) for _, _, e in streams], axis=1)
    return w, x, noise
