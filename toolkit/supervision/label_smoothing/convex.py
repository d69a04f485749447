"""A strongly convex problem whose optimum is known: SGD chains by the thousand."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor

from toolkit.supervision.label_smoothing.deviation import Deviation
from toolkit.supervision.label_smoothing.recipe import Recipe

LABELS = ("uniform", "teacher", "posterior")
START, OPTIMUM = "start", "optimum"


@dataclass(frozen=True)
class ConvexRecipe(Recipe):
    """Multinomial logistic regression with a ridge; sizes are ours, the algorithm is the paper's.

    The arms that exist: `small` and `large` (one-hot SGD with η₂ or η₁ throughout), `two_stage`
    (one-hot, η₁ then η₂), and for every ŷ and θ `lsr:LABEL:θ` (η₁ throughout) and `tsla:LABEL:θ`
    (smoothed with η₁, then one-hot with η₂).
    """

    arms: tuple[str, ...] = ("small", "large", "two_stage", "lsr", "tsla")
    seeds: int = 32  # problems
    chains: int = 2  # runs of SGD on each problem
    n: int = 500  # examples
    dim: int = 8  # d
    classes: int = 3  # K
    ridge: float = 0.02  # of ‖W‖²/2, in F and in the smoothed risk: μ
    labels: tuple[str, ...] = LABELS  # ŷ
    thetas: tuple[float, ...] = (0.1, 0.4, 0.8)  # θ
    eta1: float = 0.2  # step size of stage 1
    eta2: float = 0.01  # step size of stage 2
    steps1: int = 1000  # T₁
    steps2: int = 3000  # T₂
    every: int = 100  # steps between measurements of ‖∇F‖²


@dataclass(frozen=True, eq=False)
class Problems:
    """P problems: inputs, labels drawn once from the posterior, and three introduced labels."""

    seeds: tuple[int, ...]
    x: Float[Tensor, "p n d"]
    y: Float[Tensor, "p n k"]
    """One-hot."""
    soft: dict[str, Float[Tensor, "p n k"]]
    """ŷ: uniform; the true posterior softmax(W_*ᵀ x); a teacher with noise in its logits."""
    ridge: float


def draw_problems(recipe: ConvexRecipe, seeds: Sequence[int], device: torch.device) -> Problems:
    """Inputs x ~ N(0, I), W_* ~ N(0, I), labels from softmax(W_*ᵀ x), in double precision."""
    parts: list[list[Tensor]] = []
    for seed in seeds:
        g = torch.Generator().manual_seed(int(seed))
        x = torch.randn(recipe.n, recipe.dim, generator=g, dtype=torch.float64)
        logits = x @ torch.randn(recipe.dim, recipe.classes, generator=g, dtype=torch.float64)
        noise = torch.randn(logits.shape, generator=g, dtype=torch.float64)
        label = torch.multinomial(logits.softmax(1), 1, generator=g)
        y = torch.zeros_like(logits).scatter_(1, label, 1.0)
        parts.append([x, y, logits.softmax(1), (logits + noise).softmax(1)])
    x, y, posterior, teacher = (
        torch.stack(column).to(device) for column in zip(*parts, strict=True)
    )
    soft = {
        "uniform": torch.full_like(y, 1 / recipe.classes),
        "teacher": teacher,
        "posterior": posterior,
    }
    return Problems(tuple(int(s) for s in seeds), x, y, soft, recipe.ridge)


def risk(problems: Problems, w: Float[Tensor, "p d k"], labels: Tensor) -> Float[Tensor, " p"]:
    """Mean cross-entropy with the given labels, ridge included."""
    log_p = (problems.x @ w).log_softmax(-1)
    return -(labels * log_p).sum(-1).mean(-1) + problems.ridge / 2 * w.square().sum((1, 2))


def risk_gradient(
    problems: Problems, w: Float[Tensor, "p d m"], labels: Float[Tensor, "p n k"]
) -> Float[Tensor, "p d m"]:
    """∇F at several points a problem: the last axis of w holds (…, K)."""
    k = labels.shape[-1]
    logits = (problems.x @ w).unflatten(-1, (-1, k))
    error = (logits.softmax(-1) - labels[:, :, None]).flatten(-2)
    return problems.x.transpose(1, 2) @ error / problems.x.shape[1] + problems.ridge * w


def minimiser(problems: Problems, labels: Float[Tensor, "p n k"]) -> Float[Tensor, "p d k"]:
    """The least risk for these labels, by L-BFGS on each problem.

    Raises:
        RuntimeError: if L-BFGS does not reach a gradient of 1e-6.
    """
    found = []
    for index in range(len(problems.x)):
        one = Problems((0,), problems.x[[index]], problems.y[[index]], {}, problems.ridge)
        target, shape = labels[[index]], (1, problems.x.shape[2], labels.shape[2])

        result = minimize(
            _risk_and_gradient,
            np.zeros(shape[1] * shape[2]),
            args=(one, target),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 2000, "ftol": 1e-16, "gtol": 1e-9},
        )
        if np.abs(result.jac).max() > 1e-6:
            raise RuntimeError(f"L-BFGS stopped at a gradient of {np.abs(result.jac).max():.2g}")
        found.append(torch.from_numpy(result.x).view(shape[1:]))
    return torch.stack(found)


def _risk_and_gradient(flat: np.ndarray, one: Problems, labels: Tensor) -> tuple[float, np.ndarray]:
    w = torch.from_numpy(flat).to(one.x).view(1, one.x.shape[2], labels.shape[2])
    gradient = risk_gradient(one, w, labels)
    return float(risk(one, w, labels)), gradient.flatten().cpu().numpy()


def convex_deviation(
    problems: Problems, w: Float[Tensor, "p d k"], soft: Float[Tensor, "p n k"]
) -> Deviation:
    """σ², δσ², c and bias² at w; a gradient is an outer product, and the ridge cancels."""
    probs = (problems.x @ w).softmax(-1)
    size = problems.x.square().sum(-1)
    g, e = probs - problems.y, probs - soft
    mean_g, mean_e = (problems.x.transpose(1, 2) @ d / problems.x.shape[1] for d in (g, e))
    moments = [(size * (a * b).sum(-1)).mean(-1) for a, b in ((g, g), (e, e), (g, e))]
    truth, mean, both = (
        (a * b).sum((1, 2)) for a, b in ((mean_g, mean_g), (mean_e, mean_e), (mean_g, mean_e))
    )
    return Deviation(
        sigma2=moments[0] - truth,
        introduced=moments[1] - 2 * both + truth,
        cross=moments[2] - both,
        bias2=mean - 2 * both + truth,
    )


@dataclass(frozen=True)
class Chain:
    """One arm's label, θ and step size before and after the switch."""

    name: str
    label: str
    theta: tuple[float, float]
    eta: tuple[float, float]


def chains(recipe: ConvexRecipe) -> list[Chain]:
    """Every arm that the recipe asks for.

    Raises:
        ValueError: for an unknown arm.
    """
    large, small = recipe.eta1, recipe.eta2
    found = []
    for arm in recipe.arms:
        if arm in ("small", "large", "two_stage"):
            eta = {"small": (small, small), "large": (large, large), "two_stage": (large, small)}
            found.append(Chain(arm, "uniform", (0.0, 0.0), eta[arm]))
        elif arm in ("lsr", "tsla"):
            for label in recipe.labels:
                for theta in recipe.thetas:
                    after, eta2 = (theta, large) if arm == "lsr" else (0.0, small)
                    name = f"{arm}:{label}:{theta:g}"
                    found.append(Chain(name, label, (theta, after), (large, eta2)))
        else:
            raise ValueError(f"arms are small, large, two_stage, lsr and tsla; got {arm!r}")
    return found


def run_chains(
    problems: Problems,
    arms: Sequence[Chain],
    steps: tuple[int, int],
    copies: int,
    every: int,
) -> tuple[list[int], Float[Tensor, "points arms p copies"], Float[Tensor, "arms p copies d k"]]:
    """SGD with one example a step, from W = 0: all arms, problems and copies in one tensor.

    All arms of a copy see the same examples in the same order.

    Returns:
        Steps at which ‖∇F‖² (one-hot) was measured, its values, and the last iterates.
    """
    x, k = problems.x, problems.y.shape[-1]
    count, n, d = x.shape
    w = x.new_zeros(len(arms), count, copies, d, k)
    drawn = [_draws(seed, sum(steps), copies, n) for seed in problems.seeds]
    index = torch.stack(drawn, 1).to(x.device)  # [T, P, copies]
    rows = torch.arange(count, device=x.device)[:, None]
    soft = torch.stack([problems.soft[arm.label] for arm in arms])
    measured, values = [], []
    for step in range(sum(steps) + 1):
        if step % every == 0 or step == sum(steps):
            measured.append(step)
            values.append(_squared_gradient(problems, w))
        if step == sum(steps):
            break
        stage = int(step >= steps[0])
        theta, eta = (
            x.new_tensor([getattr(arm, name)[stage] for arm in arms])[:, None, None, None]
            for name in ("theta", "eta")
        )
        chosen = index[step]
        inputs, given = x[rows, chosen], problems.y[rows, chosen]
        label = (1 - theta) * given + theta * soft[:, rows, chosen]
        error = (w * inputs[..., None]).sum(-2).softmax(-1) - label
        gradient = inputs[..., None] * error[..., None, :] + problems.ridge * w
        w = w - eta[..., None] * gradient
    return measured, torch.stack(values), w


def run_convex(
    recipe: ConvexRecipe, seeds: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """‖∇F‖² of every arm along its run, and δ of every label at the start and at the optimum.

    Returns:
        One value a problem: `ARM/grad2@t` (mean over chains), `ARM/log_final` (mean over chains of
        log ‖∇F‖² at the last step), `ARM/floor` (mean ‖∇F‖² over the second half of stage 1) and
        `ARM/stage2` (mean over stage 2: E‖∇F(w_R)‖²); `LABEL/delta_start`, `LABEL/delta_optimum`,
        `LABEL/introduced` (largest δσ² of the two), and `problem/gap`, `/sigma2`, `/smoothness`.
    """
    problems = draw_problems(recipe, seeds, device)
    arms = chains(recipe)
    steps = (recipe.steps1, recipe.steps2)
    at, values, _ = run_chains(problems, arms, steps, recipe.chains, recipe.every)
    points = np.array(at)
    results: dict[str, np.ndarray] = {}
    first = (points > recipe.steps1 / 2) & (points <= recipe.steps1)
    for index, arm in enumerate(arms):
        grad2 = values[:, index].cpu().numpy()  # [points, problems, chains]
        mean = grad2.mean(-1)
        results |= {f"{arm.name}/grad2@{t}": row for t, row in zip(at, mean, strict=True)}
        results[f"{arm.name}/log_final"] = np.log(grad2[-1]).mean(-1)
        results[f"{arm.name}/floor"] = mean[first].mean(0)
        results[f"{arm.name}/stage2"] = mean[points > recipe.steps1].mean(0)
    return results | _constants(problems, recipe)


def _constants(problems: Problems, recipe: ConvexRecipe) -> dict[str, np.ndarray]:
    best = minimiser(problems, problems.y).to(problems.x)
    origin = torch.zeros_like(best)
    results: dict[str, Tensor] = {}
    sigma2 = []
    for label in recipe.labels:
        devs = [convex_deviation(problems, w, problems.soft[label]) for w in (origin, best)]
        for place, dev in zip((START, OPTIMUM), devs, strict=True):
            results[f"{label}/delta_{place}"] = dev.delta
        results[f"{label}/introduced"] = torch.maximum(devs[0].introduced, devs[1].introduced)
        sigma2 = [dev.sigma2 for dev in devs]
    results["problem/sigma2"] = torch.maximum(*sigma2)
    results["problem/gap"] = risk(problems, origin, problems.y) - risk(problems, best, problems.y)
    covariance = problems.x.transpose(1, 2) @ problems.x / problems.x.shape[1]
    results["problem/smoothness"] = torch.linalg.eigvalsh(covariance)[:, -1] / 2 + problems.ridge
    return {name: value.cpu().numpy() for name, value in results.items()}


def _draws(seed: int, steps: int, copies: int, n: int) -> Int[Tensor, "t copies"]:
    return torch.from_numpy(np.random.default_rng([seed, 2]).integers(n, size=(steps, copies)))


def _squared_gradient(problems: Problems, w: Tensor) -> Tensor:
    arms, count, copies, d, k = w.shape
    points = w.permute(1, 3, 0, 2, 4).reshape(count, d, arms * copies * k)
    gradient = risk_gradient(problems, points, problems.y)
    return gradient.view(count, d, arms, copies, k).square().sum((1, 4)).transpose(0, 1)
