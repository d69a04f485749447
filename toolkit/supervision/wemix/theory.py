"""What can be proved about the bias of augmentation, in closed form and by simulation.

D1 to D3 hold for smooth risks under the Polyak–Łojasiewicz inequality with constant μ; D4 and the
two bowls are quadratic. The derivations are the chapter's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F


def bias_floor(delta: ArrayLike, mu: ArrayLike, lam: ArrayLike = 0.0) -> NDArray:
    """D1 (λ = 0) and D2: the excess risk at a stationary point of λF + (1 − λ)F̃ is at most this.

    Args:
        delta: δ = ‖∇F − ∇F̃‖ there.
        mu: the PL constant of F.
        lam: λ, the weight of the originals.

    Raises:
        ValueError: if λ lies outside [0, 1], μ is not positive, or δ is negative.
    """
    lam, mu, delta = (np.asarray(v, float) for v in (lam, mu, delta))
    if (lam < 0).any() or (lam > 1).any() or (mu <= 0).any() or (delta < 0).any():
        raise ValueError("need 0 ≤ lam ≤ 1, mu > 0 and delta ≥ 0")
    return np.asarray(((1 - lam) * delta) ** 2 / (2 * mu))


def augdrop_bound(delta: ArrayLike, mu: float, eta: float, steps: ArrayLike) -> NDArray:
    """D3: the excess risk after T₂ exact gradient steps on F from a stationary point of F̃.

    Args:
        delta: δ, the norm of the difference of gradients.
        mu: the PL constant of F.
        eta: step size, at most 1/L; so η μ ≤ 1.
        steps: T₂.

    Raises:
        ValueError: unless 0 < η μ ≤ 1.
    """
    if not 0 < eta * mu <= 1:
        raise ValueError(f"need 0 < eta · mu ≤ 1 (eta ≤ 1/L), got {eta * mu}")
    return np.asarray((1 - eta * mu) ** np.asarray(steps) * bias_floor(delta, mu))


# --- D4: the isotropic sequence model ------------------------------------------------------------


def isotropic_risk(
    lam: ArrayLike, bias2: ArrayLike, var_orig: ArrayLike, var_aug: ArrayLike
) -> NDArray:
    """D4: E‖λ ŵ_o + (1 − λ) ŵ_a − w*‖² = λ² V_n + (1 − λ)² (‖b‖² + V_m).

    Args:
        lam: λ; for AugDrop by gradient flow of time τ, 1 − e^(−τ).
        bias2: ‖b‖².
        var_orig: V_n = σ² d / n.
        var_aug: V_m = σ² d / m.
    """
    lam = np.asarray(lam, float)
    augmented = np.asarray(bias2, float) + np.asarray(var_aug, float)
    return np.asarray(lam**2 * np.asarray(var_orig, float) + (1 - lam) ** 2 * augmented)


def optimal_lambda(bias2: ArrayLike, var_orig: ArrayLike, var_aug: ArrayLike) -> NDArray:
    """D4: the λ of least risk, D / (D + V_n) with D = ‖b‖² + V_m; the risk there is V_n times it.

    Raises:
        ValueError: for a negative argument, or where all are zero.
    """
    bias2, var_orig, var_aug = (np.asarray(v, float) for v in (bias2, var_orig, var_aug))
    both = bias2 + var_aug + var_orig
    if min(bias2.min(), var_orig.min(), var_aug.min()) < 0 or (both == 0).any():
        raise ValueError("bias2 and the variances must be 0 or more, and not all 0")
    return np.asarray((bias2 + var_aug) / both)


def simulate_sequence_model(
    lams: Sequence[float] | NDArray,
    *,
    n: int,
    m: int,
    dim: int,
    sigma: float,
    bias: float,
    draws: int,
    generator: torch.Generator,
) -> Float[Tensor, "draws lams"]:
    """Squared errors of MixLoss in the Gaussian sequence model, one row a draw.

    ŵ_o = w* + ξ_n and ŵ_a = w* + b + ξ_m with independent noise of variance σ²/n and σ²/m a
    coordinate; b has norm `bias`. (A random design would have a larger variance: it is not this
    model.)
    """
    shift = torch.full((dim,), bias / dim**0.5, dtype=torch.float64)
    noise = torch.randn(2, draws, dim, generator=generator, dtype=torch.float64) * sigma
    original, augmented = noise[0] / n**0.5, shift + noise[1] / m**0.5
    weight = torch.as_tensor(lams, dtype=torch.float64)[:, None, None]
    return (weight * original + (1 - weight) * augmented).square().sum(-1).T


# --- two bowls: the same, with curvature ---------------------------------------------------------


class Bowls(NamedTuple):
    """Two quadratic risks of the same curvature h, one of them with its minimum moved by b.

    The minimum of the originals' sample has variance σ²/(n h_i) along axis i, that of the augmented
    sample σ²/(m h_i).
    """

    curvature: NDArray
    bias: NDArray
    n: int
    m: int
    sigma: float

    def risk(self, weight: NDArray) -> NDArray:
        """E Σ h_i (ŵ_i − w*_i)², twice the excess risk, of estimators c ŵ_o + (1 − c) ŵ_a.

        Args:
            weight: c, the share of the originals along each axis, [..., d].
        """
        h, noise = self.curvature, self.sigma**2
        originals = weight**2 * noise / self.n
        augmented = (1 - weight) ** 2 * (h * self.bias**2 + noise / self.m)
        return np.asarray((originals + augmented).sum(-1))


def mixloss_weights(lam: ArrayLike, bowls: Bowls) -> NDArray:
    """MixLoss: the minimiser of λF_o + (1 − λ)F_a takes the share λ along every axis, [..., d]."""
    return np.asarray(lam, float)[..., None] * np.ones_like(bowls.curvature)


def augdrop_weights(time: ArrayLike, bowls: Bowls) -> NDArray:
    """AugDrop: gradient flow on F_o for time τ from ŵ_a has gone 1 − e^(−h_i τ) of the way."""
    return -np.expm1(-np.asarray(time, float)[..., None] * bowls.curvature)


# --- D2 on a risk that is not quadratic ----------------------------------------------------------


class LogisticPath(NamedTuple):
    """Exact minimisers of λF + (1 − λ)F̃ of a logistic regression, by rising λ."""

    lam: NDArray
    excess: NDArray  # F(w_λ) − F*
    bound: NDArray  # D2 at w_λ


def logistic_path(
    lams: Sequence[float] | NDArray,
    *,
    n: int = 400,
    dim: int = 6,
    ridge: float = 0.02,
    seed: int = 0,
) -> LogisticPath:
    """D2 without noise: both risks are finite sums, the augmentation rotates and shifts the inputs.

    The bound uses δ at w_λ and, for μ, the least curvature on the segment from there to the
    minimum, which is all that the proof needs for a convex risk.

    Args:
        lams: λ in [0, 1).
        n: examples.
        dim: inputs.
        ridge: added to both risks as ridge/2 ‖w‖².
        seed: of the examples.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim)) * np.linspace(1.5, 0.5, dim)
    chance = 1 / (1 + np.exp(-2 * x[:, 0] - x[:, 1]))
    y = np.where(rng.random(n) < chance, 1.0, -1.0)[:, None]
    turn, _ = np.linalg.qr(np.eye(dim) + 0.25 * rng.normal(size=(dim, dim)))
    augmented = x @ (turn * np.sign(np.diag(turn))) + 0.2
    signed, moved = torch.from_numpy(x * y), torch.from_numpy(augmented * y)
    best = _newton([(1.0, signed)], ridge)
    least = _logistic(best, signed, ridge)[0]
    excess, bound = [], []
    for lam in lams:
        w = _newton([(lam, signed), (1 - lam, moved)], ridge)
        value, gradient, _ = _logistic(w, signed, ridge)
        delta = float((gradient - _logistic(w, moved, ridge)[1]).norm())
        segment = [best + t * (w - best) for t in np.linspace(0, 1, 21)]
        mu = min(float(torch.linalg.eigvalsh(_logistic(v, signed, ridge)[2])[0]) for v in segment)
        excess.append(float(value - least))
        bound.append(float(bias_floor(delta, mu, lam)))
    return LogisticPath(np.asarray(lams, float), np.array(excess), np.array(bound))


def _logistic(w: Tensor, signed: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss log(1 + exp(−y wᵀx)) with ridge, its gradient and its Hessian."""
    margin = signed @ w
    p = torch.sigmoid(-margin)
    value = F.softplus(-margin).mean() + ridge / 2 * w @ w
    gradient = -(signed * p[:, None]).mean(0) + ridge * w
    curved = signed.T @ (signed * (p * (1 - p))[:, None]) / len(signed)
    return value, gradient, curved + ridge * torch.eye(len(w), dtype=w.dtype)


def _newton(parts: list[tuple[float, Tensor]], ridge: float, steps: int = 30) -> Tensor:
    """The minimiser of a weighted sum of logistic risks, from zero, to machine precision."""
    w = torch.zeros(parts[0][1].shape[1], dtype=torch.float64)
    for _ in range(steps):
        terms = [(share, _logistic(w, signed, ridge)) for share, signed in parts]
        gradient = sum(share * term[1] for share, term in terms)
        hessian = sum(share * term[2] for share, term in terms)
        w = w - torch.linalg.solve(hessian, gradient)
    return w
