r"""Random problems with exact gradients, many chains at once.

A problem for `minimise_chains` has `dim`, `smoothness`, `variance` (of its oracle, summed over
coordinates), `kind` (of the random numbers its oracle eats), `start`, `gradient` and `oracle`.
Shapes: E is the axis of arms, S that of chains, d the dimension.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.optimization.moving_average.streams import draws

P = TypeVar("P")
START = 90_000_019  # the stream of starting points: no horizon is that long


@runtime_checkable
class Problem(Protocol):
    """What `minimise_chains` needs."""

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def dim(self) -> int: ...  # noqa: D102

    def start(self, seeds: Sequence[int], chains: int) -> Tensor: ...  # noqa: D102

    def gradient(self, x: Tensor) -> Tensor: ...  # noqa: D102

    def oracle(self, x: Tensor, gradient: Tensor, numbers: Tensor) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class SaturatingBowl:
    r"""$F(x)=\sum_i\frac{x_i^2}{1+x_i^2}$: smooth with $L=2$, non-convex, flat far out.

    The oracle adds $N(0,\sigma^2I)$. With `rough` the sign of each noise coordinate also depends
    on the cell of the iterate, so that the oracle is as unbiased and as noisy as before, but its
    samples are not smooth in $x$.

    Args:
        dim: d.
        noise: $\sigma$ of each coordinate.
        rough: whether the samples jump.
    """

    dim: int = 8
    noise: float = 1.0
    rough: bool = False
    kind: str = "normal"
    smoothness: float = 2.0

    @property
    def variance(self) -> float:
        r"""$\sigma^2_{tot}$, summed over coordinates."""
        return self.dim * self.noise**2

    def start(self, seeds: Sequence[int], chains: int) -> Float[Tensor, "S d"]:
        """Each coordinate at ±1.5, with random signs."""
        return _signs(seeds, chains, self.dim) * 1.5

    def gradient(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        r"""$2x_i/(1+x_i^2)^2$."""
        return 2 * x / (1 + x * x).square_()

    def oracle(
        self,
        x: Float[Tensor, "... d"],
        gradient: Float[Tensor, "... d"],
        numbers: Float[Tensor, "S d"],
    ) -> Float[Tensor, "... d"]:
        """The gradient and noise from standard normals."""
        if self.rough:
            numbers = numbers * (1 - 2 * torch.floor(x * 1000).remainder(2))
        return gradient + self.noise * numbers


@dataclass(frozen=True)
class Ripple:
    r"""$F(x)=\sum_i x_i^2+3\sin^2x_i$: non-convex, Polyak–Łojasiewicz with $\mu=1/32$, $L=8$.

    Karimi, Nutini and Schmidt (2016), Section 2.2. The oracle adds $N(0,\sigma^2I)$.
    """

    dim: int = 8
    noise: float = 1.0
    kind: str = "normal"
    smoothness: float = 8.0

    def start(self, seeds: Sequence[int], chains: int) -> Float[Tensor, "S d"]:
        """Each coordinate at ±2.5, in a ripple away from the minimum."""
        return _signs(seeds, chains, self.dim) * 2.5

    def value(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
        """$F(x)-F_*$, with $F_*=0$."""
        return (x**2 + 3 * torch.sin(x) ** 2).sum(-1)

    def gradient(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        r"""$2x_i+3\sin 2x_i$."""
        return 2 * x + 3 * torch.sin(2 * x)

    def oracle(
        self,
        x: Float[Tensor, "... d"],
        gradient: Float[Tensor, "... d"],
        numbers: Float[Tensor, "S d"],
    ) -> Float[Tensor, "... d"]:
        """The gradient and noise from standard normals."""
        return gradient + self.noise * numbers


@dataclass(frozen=True, eq=False)
class RareEvent:
    r"""The one-dimensional chain on which Adam runs the wrong way.

    $F(x)=0.11(x+1)^2$, so $x_*=-1$. The oracle is $g=\xi+0.22x$ with $\xi=a$ with probability
    $p$, else −1; $a$ keeps $E\xi=0.22$ (60 at $p=0.02$). A descendant of the examples of Reddi,
    Kale and Kumar (2018).

    Args:
        p: probability of the rare event, one number or a tensor that broadcasts over `[E, S, 1]`.
    """

    p: float | Tensor = 0.02
    dim: int = field(default=1, init=False)
    kind: str = field(default="uniform", init=False)
    smoothness: float = field(default=0.22, init=False)
    minimiser: float = field(default=-1.0, init=False)

    def __post_init__(self) -> None:
        p = torch.as_tensor(self.p)
        if not bool(((p > 0) & (p < 1)).all()):
            raise ValueError(f"the probability of the rare event must lie in (0, 1), got {self.p}")

    def start(self, seeds: Sequence[int], chains: int) -> Float[Tensor, "S 1"]:
        """All chains at 0."""
        return torch.zeros(len(seeds) * chains, 1)

    def gradient(self, x: Float[Tensor, "... 1"]) -> Float[Tensor, "... 1"]:
        """$0.22(1+x)$."""
        return 0.22 * (1 + x)

    def oracle(
        self,
        x: Float[Tensor, "... 1"],
        gradient: Float[Tensor, "... 1"],
        numbers: Float[Tensor, "S 1"],
    ) -> Float[Tensor, "... 1"]:
        r"""$\xi+0.22x$, from uniform numbers."""
        jump = (0.22 + 1) / self.p  # from -1 to a
        return torch.where(numbers < self.p, jump - 1, -1.0) + 0.22 * x


@dataclass(frozen=True, eq=False)
class QuadraticSaddle:
    r"""$F(x,y)=f(x)+y^\top Ax-\frac\mu2\|y\|^2$, $f$ as in `SaturatingBowl`.

    $y^*(x)=Ax/\mu$, $\nabla\Phi(x)=\nabla f(x)+A^\top Ax/\mu$. $A$ is Gaussian times
    $0.5/\sqrt d$, one draw for all chains. Both gradients carry $N(0,I)$.

    Args:
        mu: strong concavity $\mu>0$.
        dim: d, of x and of y.
    """

    mu: float = 0.2
    dim: int = 8
    A: Float[Tensor, "d d"] = field(init=False)

    def __post_init__(self) -> None:
        if not self.mu > 0:
            raise ValueError(f"mu must be positive, got {self.mu}")
        A = np.random.default_rng(0).standard_normal((self.dim, self.dim)) * 0.5 / self.dim**0.5
        object.__setattr__(self, "A", torch.from_numpy(A.astype(np.float32)))

    @property
    def condition_number(self) -> float:
        r"""$\kappa=L/\mu$ with $L$ the Lipschitz constant of $\nabla F$, bounded by its blocks."""
        return (max(2.0, self.mu) + float(torch.linalg.matrix_norm(self.A, 2))) / self.mu

    def start(self, seeds: Sequence[int], chains: int) -> Float[Tensor, "S d"]:
        """X at ±1.5; y starts at 0."""
        return _signs(seeds, chains, self.dim) * 1.5

    def grad_x(
        self, x: Float[Tensor, "... d"], y: Float[Tensor, "... d"]
    ) -> Float[Tensor, "... d"]:
        r"""$\nabla f(x)+A^\top y$."""
        return 2 * x / (1 + x * x).square_() + y @ self.A

    def grad_y(
        self, x: Float[Tensor, "... d"], y: Float[Tensor, "... d"]
    ) -> Float[Tensor, "... d"]:
        r"""$Ax-\mu y$."""
        return x @ self.A.T - self.mu * y

    def best_y(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        r"""$y^*(x)=Ax/\mu$."""
        return x @ self.A.T / self.mu

    def grad_phi(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        r"""$\nabla\Phi(x)=\nabla_xF(x,y^*(x))$ (Danskin)."""
        return self.grad_x(x, self.best_y(x))


@dataclass(frozen=True, eq=False)
class QuadraticBilevel:
    r"""$g=\frac12y^\top Hy-y^\top(Bx+c)$, $f=\frac12\|y-y_0\|^2+0.6\sum_i\frac{x_i^2}{1+x_i^2}$.

    spec(H) lies in [1, 2], B is orthogonal, $c=0$; $H$, $B$ and $y_0\sim N(0,I)$ are drawn once.
    Then $y^*(x)=H^{-1}Bx$ and $\nabla F=\nabla_xf+B^\top H^{-1}(y^*-y_0)$. Gradients carry
    $N(0,I)$; a Hessian sample is $H+0.2\cdot\frac12(N+N^\top)$.

    Args:
        dim: d, of x and of y.
        hessian_noise: 0.2 above; 0 for exact Hessians.
    """

    dim: int = 4
    hessian_noise: float = 0.2
    C: float = 2.5
    lam: float = 1.0
    H: Float[Tensor, "d d"] = field(init=False)
    B: Float[Tensor, "d d"] = field(init=False)
    y0: Float[Tensor, " d"] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(1)
        basis = np.linalg.qr(rng.standard_normal((self.dim, self.dim)))[0]
        spectrum = np.linspace(self.lam, 2.0, self.dim)
        parts = {
            "H": (basis * spectrum) @ basis.T,
            "B": np.linalg.qr(rng.standard_normal((self.dim, self.dim)))[0],
            "y0": rng.standard_normal(self.dim),
        }
        for name, value in parts.items():
            object.__setattr__(self, name, torch.from_numpy(value.astype(np.float32)))

    def start(self, seeds: Sequence[int], chains: int) -> Float[Tensor, "S d"]:
        """X at ±1.5; y starts at 0."""
        return _signs(seeds, chains, self.dim) * 1.5

    def outer_x(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        r"""$\nabla_xf=0.6\cdot2x_i/(1+x_i^2)^2$."""
        return 1.2 * x / (1 + x * x).square_()

    def outer_y(self, y: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        r"""$\nabla_yf=y-y_0$."""
        return y - self.y0

    def inner_grad(
        self, x: Float[Tensor, "... d"], y: Float[Tensor, "... d"]
    ) -> Float[Tensor, "... d"]:
        r"""$\nabla_yg=Hy-Bx$."""
        return y @ self.H - x @ self.B.T

    def inner_hvp(self, z: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        r"""$\nabla^2_{yy}g\,z=Hz$."""
        return z @ self.H

    def cross(self, z: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        r"""$\nabla^2_{xy}g\,z=-B^\top z$ (rows x, columns y)."""
        return -z @ self.B

    def best_y(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        r"""$y^*(x)=H^{-1}Bx$."""
        return x @ torch.linalg.solve(self.H, self.B).T

    def outer_gradient(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        r"""$\nabla F(x)$, the exact hypergradient, as one linear map of x and a constant."""
        inverse = torch.linalg.inv(self.H)
        return self.outer_x(x) + (x @ self.B.T @ inverse - self.y0) @ inverse @ self.B


def moved(problem: P, device: torch.device | str) -> P:
    """The same problem with its tensors on a device."""
    twin = copy(problem)
    for part in fields(twin):  # type: ignore[arg-type]
        if isinstance(value := getattr(problem, part.name), Tensor):
            object.__setattr__(twin, part.name, value.to(device))
    return twin


def _signs(seeds: Sequence[int], chains: int, dim: int) -> Float[Tensor, "S d"]:
    return torch.where(next(draws(seeds, chains, dim, 1, stream=START)) < 0, -1.0, 1.0)
