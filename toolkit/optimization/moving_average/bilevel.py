r"""Stochastic bilevel optimisation without an inverse: SMB and the methods beside it.

$\min_xF(x)=f(x,y^*(x))$ with $y^*(x)=\arg\min_yg(x,y)$, $g$ $\lambda$-strongly convex in y and
$\nabla^2_{yy}g\preceq CI$; $\nabla F=\nabla_xf-\nabla^2_{xy}g[\nabla^2_{yy}g]^{-1}\nabla_yf$.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.optimization.moving_average.chains import paired_schedules
from toolkit.optimization.moving_average.problems import QuadraticBilevel, moved
from toolkit.optimization.moving_average.streams import Recorder, Trace, draws

INNERS, SOLVERS = ("sgd", "sema"), ("neumann", "tracked", "exact")
UNIFORM_STREAM = 80_000_023  # offset of the streams that draw p


@torch.no_grad()
def neumann_hvp(
    hvp: Callable[[Tensor], Tensor],
    v: Float[Tensor, "... d"],
    C: float,
    k: int,
    p: int | Int[Tensor, "..."],
) -> Float[Tensor, "... d"]:
    r"""Randomised truncated Neumann series: $\frac kC\prod_{i\leq p}(I-\frac{H_i}C)\,v$.

    With $p\sim U\{0,\dots,k-1\}$ and fresh unbiased $H_i$ its expectation is
    $H^{-1}[I-(I-H/C)^k]v$ (Ghadimi and Wang 2018, as used in bilevel methods). Costs
    $\max p$ Hessian-vector products, on average $(k-1)/2$ for one chain.

    Args:
        hvp: $z\mapsto H_iz$; each call may use a fresh sample.
        v: right-hand sides.
        C: upper bound of the Hessian's spectrum.
        k: length of the series, at least 1.
        p: number of factors in $0,\dots,k-1$; one integer, or one for each right-hand side.

    Raises:
        ValueError: for C ≤ 0, k < 1 or p outside 0…k−1.
    """
    factors = torch.as_tensor(p, device=v.device)
    if not C > 0 or k < 1:
        raise ValueError(f"need C > 0 and k >= 1, got {C} and {k}")
    if factors.numel() and not 0 <= int(factors.min()) <= int(factors.max()) < k:
        raise ValueError(f"p must lie in 0..{k - 1}, got {p}")
    z = v
    for i in range(int(factors.max()) if factors.numel() else 0):
        step = (i < factors)[..., None].to(v) / C  # 0 where the product has ended
        z = torch.addcmul(z, step, hvp(z), value=-1)
    return k / C * z


def neumann_expected(
    H: Float[Tensor, "d d"], v: Float[Tensor, "... d"], C: float, k: int
) -> Float[Tensor, "... d"]:
    r"""What `neumann_hvp` gives on average: $H^{-1}[I-(I-H/C)^k]v=\frac1C\sum_{i<k}(I-H/C)^iv$."""
    total = z = v / C
    for _ in range(k - 1):
        z = z - z @ H / C
        total = total + z
    return total


def smb(
    problem: QuadraticBilevel,
    T: int,
    *,
    gamma: Float[Tensor, "..."],
    eta_x: Float[Tensor, "..."],
    eta_y: Float[Tensor, "..."],
    seeds: Sequence[int],
    chains: int = 1,
    k: int = 8,
    inner: str = "sema",
    gamma_y: Float[Tensor, "..."] | None = None,
    solver: str = "neumann",
    eta_z: float = 0.1,
    points: int = 16,
    device: torch.device | str = "cpu",
) -> tuple[Trace, Float[Tensor, "points E S"]]:
    r"""Stochastic momentum bilevel (SMB): one loop, averages for both levels, no inverse.

    $y_{t+1}=y_t-\eta_yu_{t+1}$ with $u$ an average of $\nabla_yg$ (or its sample); $z$ from
    `neumann_hvp` applied to a sample of $\nabla_yf$; $o=\nabla_xf-\nabla^2_{xy}g\,z$;
    $v_{t+1}=(1-\gamma)v_t+\gamma o$; $x_{t+1}=x_t-\eta_xv_{t+1}$. With $\gamma=\gamma_y=1$ it is
    the loop without averaging, and with steps $t^{-0.4}$ (inner) and $t^{-0.6}$ (outer) TTSA.

    Args:
        problem: gives the gradients and products.
        T: steps.
        gamma: $\gamma_t\in(0,1]$ of the hypergradient's average.
        eta_x: outer step size.
        eta_y: inner step size.
        seeds: each has its own noise.
        chains: of one seed, side by side.
        k: length of the Neumann series.
        inner: `"sema"` averages the inner gradient, `"sgd"` uses its sample.
        gamma_y: $\gamma_t$ of the inner average; by default as `gamma`.
        solver: `"neumann"`, or `"tracked"`: $z\leftarrow z-\eta_z(\nabla^2_{yy}g\,z-\nabla_yf)$
            (an ablation of ours), or `"exact"`: the oracle that knows $y^*$ and the inverse, so
            that only $\nabla_xf$ is noisy.
        eta_z: step size of the tracked solver.
        points: stretches of the trace.
        device: where to compute.

    Returns:
        The trace of $\nabla F$ and its estimate, and the mean $\|y_t-y^*(x_t)\|^2$ of each stretch.

    Raises:
        ValueError: for an unknown `inner` or `solver`, k < 1, or schedules out of range.
    """
    for name, given, allowed in (("inner", inner, INNERS), ("solver", solver, SOLVERS)):
        if given not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {given!r}")
    if k < 1 or not eta_z > 0:
        raise ValueError(f"need k >= 1 and eta_z > 0, got {k} and {eta_z}")
    weights = gamma if gamma_y is None else gamma_y
    gammas, gammas_y, rates_x, rates_y, arms = paired_schedules(
        T, gamma=gamma, gamma_y=weights, eta_x=eta_x, eta_y=eta_y, device=device
    )
    d, factors = problem.dim, k - 1 if solver == "neumann" else 1
    problem = moved(problem, device)
    x = problem.start(seeds, chains).to(device).expand(arms, -1, -1).contiguous()
    y, z, u, v = (torch.zeros_like(x) for _ in range(4))
    recorder, lag, target = Recorder(T, points), [], _hypergradient(problem)
    numbers = draws(seeds, chains, 3 * d + factors * d * d, T, stream=T, device=device)
    uniform = draws(seeds, chains, 1, T, stream=T + UNIFORM_STREAM, kind="uniform", device=device)
    for t, (sample, chance) in enumerate(zip(numbers, uniform, strict=True)):
        noise_g, noise_fx, noise_fy = sample[:, : 3 * d].split(d, dim=-1)
        gradient, best = target(x)
        g = problem.inner_grad(x, y) + noise_g
        u = torch.lerp(u, g, gammas_y[t]) if inner == "sema" and t else g
        right = problem.outer_y(y) + noise_fy
        if solver == "neumann":
            p = (chance[:, 0] * k).long().clamp(max=k - 1)
            z = neumann_hvp(_sampled_hvp(problem, sample[:, 3 * d :]), right, problem.C, k, p)
        elif solver == "tracked":
            z = z - eta_z * (_sampled_hvp(problem, sample[:, 3 * d :])(z) - right)
        o = gradient if solver == "exact" else problem.outer_x(x) - problem.cross(z)
        o = o + noise_fx
        v = o if t == 0 else torch.lerp(v, o, gammas[t])
        new = x - rates_x[t] * v
        recorder.add(gradient, v, x, new)
        lag.append((y - best).square_().sum(-1))
        x, y = new, y - rates_y[t] * u
    distance = torch.stack(lag).unflatten(0, (points, -1)).mean(1)
    return recorder.trace(x), distance


def double_loop(
    problem: QuadraticBilevel,
    T: int,
    *,
    eta_x: float | Float[Tensor, "..."],
    eta_y: float | Float[Tensor, "..."],
    inner: int,
    batch: int,
    seeds: Sequence[int],
    chains: int = 1,
    k: int = 8,
    points: int = 16,
    device: torch.device | str = "cpu",
) -> Trace:
    r"""Double-loop bilevel SGD with the full Neumann sum, in the manner of stocBiO.

    Per outer step: `inner` batches for y from where it ended, then one batch for the
    hypergradient, $z=\frac1C\sum_{i<k}\prod_{j\leq i}(I-\frac{H_j}C)\nabla_yf$ (all terms, not a
    random one). `T` counts samples of the inner gradient and of the hypergradient alike: an outer
    step costs $(inner+1)\cdot batch$. Step sizes are numbers, or one for each of E arms.

    Raises:
        ValueError: unless inner, batch ≥ 1 and T is a multiple of points × (inner + 1) × batch.
    """
    if inner < 1 or batch < 1 or k < 1 or T % (points * (inner + 1) * batch):
        raise ValueError(
            "need inner, batch, k >= 1 and T a multiple of points * (inner + 1) * batch, got "
            f"{inner}, {batch}, {k} and T = {T}"
        )
    outer, d, scale = T // ((inner + 1) * batch), problem.dim, batch**-0.5
    rates_x, rates_y = (torch.as_tensor(e).reshape(-1, 1, 1).to(device) for e in (eta_x, eta_y))
    problem = moved(problem, device)
    x = problem.start(seeds, chains).to(device).expand(len(rates_x), -1, -1)
    y = torch.zeros_like(x)
    recorder, target = Recorder(outer, points), _hypergradient(problem)
    width = inner * d + 2 * d + (k - 1) * d * d
    for sample in draws(seeds, chains, width, outer, stream=T, device=device):
        sample = sample * scale
        for noise in sample[:, : inner * d].split(d, dim=-1):
            y = y - rates_y * (problem.inner_grad(x, y) + noise)
        noise_fx, noise_fy = sample[:, inner * d : (inner + 2) * d].split(d, dim=-1)
        hvp = _sampled_hvp(problem, sample[:, (inner + 2) * d :])
        total = term = (problem.outer_y(y) + noise_fy) / problem.C
        for _ in range(k - 1):
            term = term - hvp(term) / problem.C
            total = total + term
        o = problem.outer_x(x) + noise_fx - problem.cross(total)
        new = x - rates_x * o
        recorder.add(target(x)[0], o, x, new)
        x = new
    return recorder.trace(x)


def truncation_floor(problem: QuadraticBilevel, k: int, steps: int = 4000) -> float:
    r"""$\|\nabla F\|^2$ where the *expected* truncated estimator vanishes: what k alone costs.

    Gradient descent along the expected hypergradient with exact $y^*(x)$, in float64, from
    $x=0$.
    """
    H, B, y0 = (part.double() for part in (problem.H, problem.B, problem.y0))
    eye = torch.eye(problem.dim, dtype=torch.float64)
    inverse, series = torch.linalg.inv(H), neumann_expected((H + H.T) / 2, eye, problem.C, k)
    x = torch.zeros(problem.dim, dtype=torch.float64)
    for _ in range(steps):
        x = x - 0.2 * (problem.outer_x(x) + (series @ (inverse @ (B @ x) - y0)) @ B)
    gradient = problem.outer_x(x) + (inverse @ (inverse @ (B @ x) - y0)) @ B
    return float(gradient.square().sum())


def _sampled_hvp(
    problem: QuadraticBilevel, numbers: Float[Tensor, "S n"]
) -> Callable[[Tensor], Tensor]:
    r"""$z\mapsto(H+0.2\cdot\frac12(N+N^\top))z$ with the next N of every chain at each call."""
    N = numbers.unflatten(-1, (-1, problem.dim, problem.dim)).transpose(0, 1)
    samples = iter(problem.H + 0.5 * problem.hessian_noise * (N + N.mT))

    def product(z: Float[Tensor, "E S d"]) -> Float[Tensor, "E S d"]:
        return (next(samples) * z[..., None, :]).sum(-1)

    return product


def _hypergradient(problem: QuadraticBilevel) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    r"""$x\mapsto(\nabla F(x),y^*(x))$ with the inverse taken once."""
    inverse = torch.linalg.inv(problem.H)
    forward, back = problem.B.T @ inverse, inverse @ problem.B

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        best = x @ forward
        return problem.outer_x(x) + problem.outer_y(best) @ back, best

    return both
