r"""Non-convex strongly-concave min-max: single loops that average, and the loops they replace."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.optimization.moving_average.adam_family import check_rule
from toolkit.optimization.moving_average.chains import Scaling, paired_schedules
from toolkit.optimization.moving_average.problems import QuadraticSaddle, moved
from toolkit.optimization.moving_average.streams import Recorder, Trace, draws

DUALS = ("sgd", "sema")


def pdsm(
    problem: QuadraticSaddle,
    T: int,
    *,
    gamma: Float[Tensor, "..."],
    eta_x: Float[Tensor, "..."],
    eta_y: Float[Tensor, "..."],
    seeds: Sequence[int],
    chains: int = 1,
    dual: str = "sgd",
    gamma_y: Float[Tensor, "..."] | None = None,
    adaptive: str | None = None,
    beta2: float = 0.999,
    G0: float = 1e-8,
    bounds: tuple[float, float] | None = None,
    batch: int = 1,
    radius: float | None = None,
    points: int = 16,
    device: torch.device | str = "cpu",
) -> tuple[Trace, Float[Tensor, "points E S"]]:
    r"""Primal-dual stochastic momentum (PDSM), its adaptive form (PDAda), and SGDA.

    $v_{t+1}=(1-\gamma)v_t+\gamma O_x(x_t,y_t)$, $x_{t+1}=x_t-\eta_xv_{t+1}$,
    $y_{t+1}=\Pi_Y[y_t+\eta_yO_y(x_t,y_t)]$. With $\gamma=1$ it is stochastic gradient
    descent-ascent (SGDA). E arms of S chains run in one tensor and share the noise.

    Args:
        problem: gives both gradients, $y^*$ and $\nabla\Phi$.
        T: steps.
        gamma: $\gamma_t\in(0,1]$ of the primal average.
        eta_x: primal step size.
        eta_y: dual step size.
        seeds: each has its own noise.
        chains: of one seed, side by side.
        dual: `"sgd"` steps along the sample, `"sema"` along an average of its own.
        gamma_y: $\gamma_t$ of the dual average (`"sema"`); by default as `gamma`.
        adaptive: rule of a scaling for the primal step, as in `AdamFamily`; None for none.
        beta2: of the scaling.
        G0: of the scaling.
        bounds: of the scaling.
        batch: samples averaged in each oracle call.
        radius: $Y$ is the ball of this radius; None for all of space.
        points: stretches of the trace.
        device: where to compute.

    Returns:
        The trace of $\nabla\Phi$ and its estimate, and the mean $\|y_t-y^*(x_t)\|^2$ of each
        stretch.

    Raises:
        ValueError: for an unknown `dual`, a batch below 1, a radius ≤ 0, or schedules out of range.
    """
    if dual not in DUALS:
        raise ValueError(f"dual must be one of {', '.join(DUALS)}, got {dual!r}")
    if batch < 1 or (radius is not None and not radius > 0):
        raise ValueError(f"need batch >= 1 and a positive radius, got {batch} and {radius}")
    rule = adaptive or "shb"
    check_rule(rule, beta2, G0, bounds, "first")
    weights = gamma if gamma_y is None else gamma_y
    gammas, gammas_y, rates_x, rates_y, arms = paired_schedules(
        T, gamma=gamma, gamma_y=weights, eta_x=eta_x, eta_y=eta_y, device=device
    )
    scaling = Scaling(rule, beta2, G0, bounds)
    problem = moved(problem, device)
    x = problem.start(seeds, chains).to(device).expand(arms, -1, -1).contiguous()
    y, v, w = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    recorder, lag = Recorder(T, points), []
    numbers = draws(seeds, chains, 2 * problem.dim, T, stream=T, device=device)
    for t, sample in enumerate(numbers):
        noise_x, noise_y = (sample / batch**0.5).chunk(2, dim=-1)
        g_x, g_y = problem.grad_x(x, y) + noise_x, problem.grad_y(x, y) + noise_y
        best = problem.best_y(x)
        v = g_x if t == 0 else torch.lerp(v, g_x, gammas[t])
        w = torch.lerp(w, g_y, gammas_y[t]) if dual == "sema" and t else g_y
        new = x - rates_x[t] * scaling(g_x, v)
        recorder.add(problem.grad_x(x, best), v, x, new)
        lag.append((y - best).square_().sum(-1))
        x, y = new, _project(y + rates_y[t] * w, radius)
    distance = torch.stack(lag).unflatten(0, (points, -1)).mean(1)
    return recorder.trace(x), distance


def sgd_max(
    problem: QuadraticSaddle,
    T: int,
    *,
    eta_x: float | Float[Tensor, "..."],
    eta_y: float | Float[Tensor, "..."],
    inner: int,
    seeds: Sequence[int],
    chains: int = 1,
    batch: int = 1,
    points: int = 16,
    device: torch.device | str = "cpu",
) -> Trace:
    r"""Double-loop SGDmax: `inner` ascent steps on y before every descent step on x.

    The loop that PDSM removes. `T` counts oracle pairs, as in `pdsm`, so there are
    $T/(inner+1)$ descent steps; y starts where it ended. Step sizes are numbers, or one for each
    of E arms.

    Raises:
        ValueError: unless `inner` ≥ 1 and T is a multiple of `points × (inner + 1)`.
    """
    if inner < 1 or batch < 1 or T % (points * (inner + 1)):
        raise ValueError(
            f"need inner and batch >= 1 and T a multiple of points * (inner + 1), got {inner}, "
            f"{batch} and T = {T}"
        )
    outer = T // (inner + 1)
    rates_x, rates_y = (torch.as_tensor(e).reshape(-1, 1, 1).to(device) for e in (eta_x, eta_y))
    problem = moved(problem, device)
    x = problem.start(seeds, chains).to(device).expand(len(rates_x), -1, -1)
    y = torch.zeros_like(x)
    recorder = Recorder(outer, points)
    numbers = draws(seeds, chains, problem.dim, T, stream=T, device=device)
    for _ in range(outer):
        for _ in range(inner):
            y = y + rates_y * (problem.grad_y(x, y) + next(numbers) / batch**0.5)
        g_x = problem.grad_x(x, y) + next(numbers) / batch**0.5
        new = x - rates_x * g_x
        recorder.add(problem.grad_phi(x), g_x, x, new)
        x = new
    return recorder.trace(x)


def _project(y: Float[Tensor, "E S d"], radius: float | None) -> Float[Tensor, "E S d"]:
    if radius is None:
        return y
    norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    return y * (radius / norm.clamp(min=radius))
