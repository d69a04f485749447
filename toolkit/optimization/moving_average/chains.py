"""Adam-style minimisation for thousands of chains at once, each with its own noise."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.optimization.moving_average.adam_family import check_rule
from toolkit.optimization.moving_average.problems import Problem, moved
from toolkit.optimization.moving_average.streams import Recorder, Trace, draws


def minimise_chains(
    problem: Problem,
    rule: str,
    T: int,
    *,
    gamma: Float[Tensor, "..."],
    eta: Float[Tensor, "..."],
    seeds: Sequence[int],
    chains: int = 1,
    beta2: float | Float[Tensor, " E"] = 0.999,
    G0: float = 1e-8,
    bounds: tuple[float, float] | None = None,
    init: str = "first",
    points: int = 16,
    device: torch.device | str = "cpu",
) -> Trace:
    r"""Run the Adam-style algorithm of `AdamFamily` for E arms and S chains in one tensor.

    Arms share a rule and the noise; they differ in $\gamma_t$, $\eta_t$ and $\beta_2$. Runs of
    different length have different noise. A chain that diverges stays in the trace as inf or NaN.

    Args:
        problem: gives start, gradient and oracle.
        rule: one of `RULES`.
        T: steps.
        gamma: $\gamma_t\in(0,1]$, for all arms or for each.
        eta: $\eta_t>0$, likewise.
        seeds: each has its own noise.
        chains: of one seed, side by side.
        beta2: weight of the old second moment, for all arms or for each.
        G0: added to $\sqrt u$.
        bounds: $(c_l,c_u)$ of adabound.
        init: `"first"` starts the average at $v_1=g_0$, `"zero"` at 0.
        points: stretches of the trace.
        device: where to compute.

    Raises:
        ValueError: as `check_rule`, for weights outside (0, 1], rates ≤ 0 or shapes that differ.
    """
    gammas, etas, arms = paired_schedules(T, gamma=gamma, eta=eta, device=device)
    for value in torch.as_tensor(beta2).reshape(-1).tolist():
        check_rule(rule, value, G0, bounds, init)
    scaling = Scaling(rule, _per_arm(beta2, device), G0, bounds)
    problem = moved(problem, device)
    x = problem.start(seeds, chains).to(device).expand(arms, -1, -1).contiguous()
    v = torch.zeros_like(x)
    recorder = Recorder(T, points)
    numbers = draws(seeds, chains, problem.dim, T, stream=T, kind=problem.kind, device=device)
    for t, sample in enumerate(numbers):
        gradient = problem.gradient(x)
        g = problem.oracle(x, gradient, sample)
        v = g if t == 0 and init == "first" else torch.lerp(v, g, gammas[t])
        new = x - etas[t] * scaling(g, v)
        recorder.add(gradient, v, x, new)
        x = new
    return recorder.trace(x)


class Scaling:
    r"""The step $s_t\circ v_{t+1}$ of one rule; keeps $u$ from step to step.

    $u_{t+1}$ includes the newest gradient: leaving it out would hide the correlation of $s$
    with $g$ that misleads Adam.
    """

    def __init__(
        self,
        rule: str,
        beta2: float | Tensor,
        G0: float,
        bounds: tuple[float, float] | None,
    ) -> None:
        self.rule, self.beta2, self.G0, self.bounds = rule, beta2, G0, bounds
        self.steps = 0
        self.u: Tensor | None = None
        self.largest: Tensor | None = None

    def __call__(self, g: Float[Tensor, "..."], v: Float[Tensor, "..."]) -> Tensor:
        """Take in the gradient, and divide the average."""
        self.steps += 1
        if self.rule == "shb":
            return v
        if self.rule == "adam_plus":
            return v / (torch.linalg.vector_norm(v, dim=-1, keepdim=True).sqrt() + self.G0)
        old = 1 - 1 / self.steps if self.rule == "adafom" else self.beta2
        u = torch.zeros_like(g) if self.u is None else self.u
        self.u = u = torch.lerp(g * g, u, old)
        if self.rule == "adabound":
            low, high = self.bounds or (0.0, 0.0)
            return v * u.clamp(high**-2, low**-2).rsqrt_()
        if self.rule == "amsgrad":
            self.largest = u = u if self.largest is None else torch.maximum(self.largest, u)
        return v / u.sqrt().add_(self.G0)


def storm_chains(
    problem: Problem,
    T: int,
    *,
    gamma: Float[Tensor, "..."],
    eta: Float[Tensor, "..."],
    seeds: Sequence[int],
    chains: int = 1,
    points: int = 16,
    device: torch.device | str = "cpu",
) -> Trace:
    r"""STORM: every sample is evaluated at two iterates, so that the drift cancels.

    $v_{t+1}=g(x_t;\xi_t)+(1-\gamma_t)(v_t-g(x_{t-1};\xi_t))$ (Cutkosky and Orabona 2019). It
    needs samples that are smooth in $x$, more than an unbiased oracle. Arguments as
    `minimise_chains`.

    Raises:
        ValueError: for weights outside (0, 1], rates ≤ 0 or shapes that differ.
    """
    gammas, etas, arms = paired_schedules(T, gamma=gamma, eta=eta, device=device)
    problem = moved(problem, device)
    x = problem.start(seeds, chains).to(device).expand(arms, -1, -1).contiguous()
    v, before, gradient_before = torch.zeros_like(x), x, problem.gradient(x)
    recorder = Recorder(T, points)
    numbers = draws(seeds, chains, problem.dim, T, stream=T, kind=problem.kind, device=device)
    for t, sample in enumerate(numbers):
        gradient = problem.gradient(x)
        g = problem.oracle(x, gradient, sample)
        correction = v - problem.oracle(before, gradient_before, sample)
        v = g if t == 0 else g + (1 - gammas[t]) * correction
        new = x - etas[t] * v
        recorder.add(gradient, v, x, new)
        before, gradient_before, x = x, gradient, new
    return recorder.trace(x)


def paired_schedules(
    T: int, *, device: torch.device | str = "cpu", **schedules: Float[Tensor, "..."]
) -> tuple:
    """Schedules as lists of T tensors `[E, 1, 1]`, in the given order, and the number of arms.

    Names that begin with `gamma` must lie in (0, 1]; all others must be positive.

    Raises:
        ValueError: naming the schedule, for a wrong length, other arms, or a value out of range.
    """
    arms = max(s.shape[1] if s.ndim == 2 else 1 for s in schedules.values())
    lists = []
    for name, s in schedules.items():
        if s.ndim not in (1, 2) or len(s) != T or (s.ndim == 2 and s.shape[1] not in (1, arms)):
            raise ValueError(f"{name} must have shape [{T}] or [{T}, {arms}], got {list(s.shape)}")
        if not bool((s > 0).all()) or (name.startswith("gamma") and bool((s > 1).any())):
            allowed = "(0, 1]" if name.startswith("gamma") else "(0, inf)"
            raise ValueError(f"{name} must lie in {allowed}, got {s.min():.3g} to {s.max():.3g}")
        lists.append(s.reshape(T, -1, 1, 1).float().to(device).unbind(0))
    return (*lists, arms)


def _per_arm(value: float | Tensor, device: torch.device | str) -> float | Tensor:
    return value.reshape(-1, 1, 1).to(device) if isinstance(value, Tensor) else value
