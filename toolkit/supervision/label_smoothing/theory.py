"""What the paper's theorems promise, as functions of measured constants."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Step sizes and lengths of TSLA's two stages, and what one-hot SGD would need."""

    eta1: float
    """Step size of stage 1, 1/L."""
    steps1: float
    """T₁; 0 where the start is already as good as stage 1 is guaranteed to get."""
    eta2: float
    """Step size of stage 2."""
    steps2: float
    """T₂."""
    sgd_steps: float
    """Steps of one-hot SGD from the start, at the step size of stage 2."""

    @property
    def ratio(self) -> float:
        """T₂ over the steps of one-hot SGD, 2 δ σ² / (μ F(w₀)): below 1 is a promised gain."""
        return self.steps2 / self.sgd_steps


def lsr_bound(gap: float, eta: float, steps: int, deviation: float) -> float:
    """Bound on the mean ‖∇F‖² over T steps of LSR with θ = 1 / (1 + δ).

    2 F(w₀) / (η T) + 2 δ σ²: fast, down to a floor. Xu et al. (2020), theorem on LSR; derived
    again from smoothness, unbiased one-hot gradients and η ≤ 1/L.

    Args:
        gap: F(w₀) − F_*.
        eta: step size, at most 1/L.
        steps: T.
        deviation: δ σ², mean squared distance of the introduced-label gradient from ∇F.

    Raises:
        ValueError: if a number is not positive.
    """
    _positive(gap=gap, eta=eta, steps=steps, deviation=deviation)
    return 2 * gap / (eta * steps) + 2 * deviation


def tsla_plan(
    gap: float, smoothness: float, mu: float, sigma2: float, delta: float, epsilon2: float
) -> Plan:
    """TSLA's stages for E‖∇F(w_R)‖² ≤ ε², under the Polyak–Łojasiewicz inequality.

    η₁ = 1/L, T₁ = log(μ F(w₀) / (δ σ²)) / (η₁ μ); then η₂ = ε² / (2 L σ²) and
    T₂ = 8 δ σ² / (μ η₂ ε²). One-hot SGD from w₀ needs 8 L F(w₀) σ² / ε⁴. Xu et al. (2020), theorem
    on TSLA; derived again.

    Args:
        gap: F(w₀) − F_*.
        smoothness: L.
        mu: μ of the Polyak–Łojasiewicz inequality.
        sigma2: σ², variance of the one-hot gradient.
        delta: δ.
        epsilon2: ε², at most 2 σ².

    Raises:
        ValueError: if a number is not positive, or ε² exceeds 2 σ².
    """
    _positive(gap=gap, smoothness=smoothness, mu=mu, sigma2=sigma2, delta=delta, epsilon2=epsilon2)
    if epsilon2 > 2 * sigma2:
        raise ValueError(f"the theorem needs epsilon2 ≤ 2 sigma2 = {2 * sigma2:.3g}")
    eta1, eta2 = 1 / smoothness, epsilon2 / (2 * smoothness * sigma2)
    steps1 = max(0.0, math.log(mu * gap / (delta * sigma2))) / (eta1 * mu)
    steps2 = 8 * delta * sigma2 / (mu * eta2 * epsilon2)
    return Plan(eta1, steps1, eta2, steps2, 8 * smoothness * gap * sigma2 / epsilon2**2)


def logit_gap(theta: float, classes: int) -> float:
    """Distance of the true logit from the others where one example's smoothed loss is least.

    log((1 − θ + θ/K) / (θ/K)) for uniform ŷ; infinite without smoothing.

    Raises:
        ValueError: for θ outside [0, 1] or fewer than one class.
    """
    if not 0 <= theta <= 1 or classes < 1:
        raise ValueError(f"need theta in [0, 1] and a class, got {theta} and {classes}")
    if theta == 0 and classes > 1:
        return math.inf
    return math.log((1 - theta) * classes / theta + 1) if theta else 0.0


def _positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
