r"""Hyper-cleaning: learn from wrong labels by weighing every example, a bilevel problem.

The inner problem trains a softmax regression on weighted, partly mislabelled digits; the outer
one asks for weights whose regression does well on a few clean digits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import load_digits, symmetric_noise
from toolkit.optimization.moving_average.bilevel import neumann_hvp
from toolkit.optimization.moving_average.recipe import Recipe
from toolkit.runtime import TUNING_SEEDS

CLASSES, FEATURES = 10, 65  # 64 pixels and a constant
VALIDATION, SPARE, TEST = 200, 197, 400  # clean digits; SPARE scores the tuning


@dataclass(frozen=True, eq=False)
class HyperClean:
    r"""$\min_xf(y^*(x))$, $y^*(x)=\arg\min_y\frac1n\sum_i\sigma(x_i)\ell_i(y)+\frac\rho2\|y\|^2$.

    $\ell_i$ is the cross-entropy of a softmax regression $y$ (flattened `[D·K]`) on the possibly
    wrong label of example i, $f$ that on clean validation examples. All products are in closed
    form. S problems (seeds) and E settings run side by side; a batch is an index `[S, b]`.

    Args:
        x: training inputs.
        labels: their given labels, one-hot.
        clean_x: validation inputs.
        clean_labels: their labels, one-hot.
        ridge: $\rho$, which makes the inner problem strongly convex ($\lambda\geq\rho$).
        C: bound of $\nabla^2_{yy}g$. The Hessian of a softmax is at most ½, a weight at most 1:
            half the largest eigenvalue of $X^\top X/n$, plus $\rho$, is enough.

    Raises:
        ValueError: if the numbers of inputs and labels differ, ridge is not positive, or C is no
            bound.
    """

    x: Float[Tensor, "S n D"]
    labels: Float[Tensor, "S _ K"]
    clean_x: Float[Tensor, "S m D"]
    clean_labels: Float[Tensor, "S _ K"]
    ridge: float = 0.01
    C: float = 6.0

    def __post_init__(self) -> None:
        for inputs, labels in ((self.x, self.labels), (self.clean_x, self.clean_labels)):
            if inputs.shape[:2] != labels.shape[:2]:
                raise ValueError(f"{list(inputs.shape)} inputs, {list(labels.shape)} labels")
        if not self.ridge > 0:
            raise ValueError(f"ridge must be positive, got {self.ridge}")
        gram = self.x.mT @ self.x / self.x.shape[1]
        bound = 0.5 * float(torch.linalg.eigvalsh(gram).max()) + self.ridge
        if bound > self.C:
            raise ValueError(f"C must bound the inner Hessian: at least {bound:.3g}, got {self.C}")

    def inner_grad(
        self, x: Float[Tensor, "E S n"], y: Float[Tensor, "E S DK"], batch: Int[Tensor, "S b"]
    ) -> Float[Tensor, "E S DK"]:
        r"""$\nabla_yg$ on a batch."""
        inputs, labels = _rows(self.x, batch), _rows(self.labels, batch)
        residual = self._probabilities(inputs, y) - labels
        weights = torch.sigmoid(_entries(x, batch))[..., None]
        return self._back(inputs, weights * residual) + self.ridge * y

    def inner_hvp(
        self, x: Float[Tensor, "E S n"], y: Float[Tensor, "E S DK"], batch: Int[Tensor, "S b"]
    ) -> Callable[[Tensor], Tensor]:
        r"""$z\mapsto\nabla^2_{yy}g\,z$ on a batch."""
        inputs = _rows(self.x, batch)
        P = self._probabilities(inputs, y)
        weights = torch.sigmoid(_entries(x, batch))[..., None]

        def product(z: Float[Tensor, "E S DK"]) -> Float[Tensor, "E S DK"]:
            Q = inputs @ self._matrix(z)
            change = P * (Q - (P * Q).sum(-1, keepdim=True))
            return self._back(inputs, weights * change) + self.ridge * z

        return product

    def cross(
        self,
        x: Float[Tensor, "E S n"],
        y: Float[Tensor, "E S DK"],
        z: Float[Tensor, "E S DK"],
        batch: Int[Tensor, "S b"],
    ) -> Float[Tensor, "E S n"]:
        r"""$\nabla^2_{xy}g\,z$: entry i is $\sigma'(x_i)\langle\nabla\ell_i(y),z\rangle/n$.

        On a batch: zero elsewhere, with 1/b for 1/n, so that the mean over batches is exact.
        """
        inputs, labels = _rows(self.x, batch), _rows(self.labels, batch)
        residual = self._probabilities(inputs, y) - labels
        s = torch.sigmoid(_entries(x, batch))
        values = s * (1 - s) * (residual * (inputs @ self._matrix(z))).sum(-1) / batch.shape[1]
        return torch.zeros_like(x).scatter_add_(-1, batch.expand(len(x), -1, -1), values)

    def outer_grad(
        self, y: Float[Tensor, "E S DK"], batch: Int[Tensor, "S b"]
    ) -> Float[Tensor, "E S DK"]:
        r"""$\nabla_yf$ on a batch of clean examples."""
        inputs, labels = _rows(self.clean_x, batch), _rows(self.clean_labels, batch)
        return self._back(inputs, self._probabilities(inputs, y) - labels)

    def _matrix(self, y: Float[Tensor, "E S DK"]) -> Float[Tensor, "E S D K"]:
        return y.unflatten(-1, (self.x.shape[-1], -1))

    def _probabilities(
        self, inputs: Float[Tensor, "S b D"], y: Float[Tensor, "E S DK"]
    ) -> Float[Tensor, "E S b K"]:
        return (inputs @ self._matrix(y)).softmax(-1)

    def _back(
        self, inputs: Float[Tensor, "S b D"], change: Float[Tensor, "E S b K"]
    ) -> Float[Tensor, "E S DK"]:
        return (inputs.mT @ change).flatten(-2) / inputs.shape[1]


@dataclass(frozen=True)
class CleaningRecipe(Recipe):
    """Digits with 40 % wrong labels; every value is ours.

    The arms that exist: `smb`, `smb_sgd` (inner gradient not averaged), `sbma` (tracked solver,
    ours), `ttsa`, `double_loop` (10 inner steps, full Neumann sum), and without weights `all`
    (every given label) and `oracle` (the wrong labels left out).
    """

    arms: tuple[str, ...] = ("smb", "smb_sgd", "sbma", "ttsa", "double_loop", "all", "oracle")
    seeds: int = 16  # splits, wrong labels, batches
    tune: bool = False  # tune here; else take the rates that a tuning chose before
    tuning_seeds: int = 3  # others, from 10,000 on, scored on clean digits of their own
    noise_rate: float = 0.4  # share of wrong labels
    ridge: float = 0.01  # of the inner problem
    steps: int = 2000  # batches of the inner gradient
    batch: int = 64  # examples a batch
    k: int = 8  # length of the Neumann series, at least 2
    inner: int = 10  # inner steps of double_loop, which takes steps / inner outer ones
    gamma: float = 0.1  # weights γ of the new sample, inner and outer


ARMS = ("smb", "smb_sgd", "sbma", "ttsa", "double_loop", "all", "oracle")
GRID_X, GRID_Y = (100.0, 300.0, 1000.0, 3000.0, 10_000.0), (0.03, 0.1, 0.3, 1.0)
RATES = {
    "smb": (300.0, 0.1),
    "smb_sgd": (300.0, 0.1),
    "sbma": (1000.0, 0.1),
    "ttsa": (3000.0, 0.3),
    "double_loop": (1000.0, 0.1),
    "all": (100.0, 0.3),
    "oracle": (100.0, 0.1),
}
"""Outer and inner step size of each arm, as the full profile's tuning chose them."""


def run_cleaning(
    recipe: CleaningRecipe, seeds: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """Clean test accuracy of every arm, and how well its weights find the wrong labels.

    Returns:
        `"ARM/accuracy"`, `"ARM/auc"` (of the weights against the truth about the labels),
        `"ARM/eta_x"` and `"ARM/eta_y"`.

    Raises:
        ValueError: for an unknown arm.
    """
    if unknown := set(recipe.arms) - set(ARMS):
        raise ValueError(f"arms must be among {', '.join(ARMS)}, got {sorted(unknown)}")
    results = {}
    for arm in recipe.arms:
        chosen = tune_cleaning(recipe, arm, device) if recipe.tune else RATES[arm]
        accuracy, auc = _scores(recipe, arm, seeds, [chosen], device, tuning=False)
        results[f"{arm}/accuracy"], results[f"{arm}/auc"] = accuracy[0], auc[0]
        for name, value in zip(("eta_x", "eta_y"), chosen, strict=True):
            results[f"{arm}/{name}"] = np.full(len(seeds), value)
    return results


@lru_cache(maxsize=32)
def tune_cleaning(recipe: CleaningRecipe, arm: str, device: torch.device) -> tuple[float, float]:
    """The pair of step sizes with the best mean accuracy on spare clean digits, on tuning seeds."""
    grid_x = GRID_X if arm not in ("all", "oracle") else GRID_X[:1]  # their weights stay
    grid = list(product(grid_x, GRID_Y))
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + recipe.tuning_seeds)
    accuracy, _ = _scores(recipe, arm, seeds, grid, device, tuning=True)
    return grid[int(accuracy.mean(1).argmax())]


@dataclass(frozen=True, eq=False)
class Digits:
    """The problem of each seed, which labels are wrong, and clean digits to score on."""

    problem: HyperClean
    flipped: Bool[Tensor, "S n"]
    score_x: Float[Tensor, "S m D"]
    score_y: Int[Tensor, "S m"]


def split_digits(
    recipe: CleaningRecipe, seeds: Sequence[int], device: torch.device, tuning: bool
) -> Digits:
    """Split the digits of each seed; the test digits are the same for all and never tuned on."""
    data = load_digits()
    pixels = data.images.flatten(1).float() / 16
    inputs = torch.cat([pixels, torch.ones(len(pixels), 1)], dim=1)
    order = np.random.default_rng(0).permutation(len(inputs))
    test, rest = torch.from_numpy(order[:TEST]), order[TEST:]
    columns: list[tuple] = []
    for seed in seeds:
        own = torch.from_numpy(np.random.default_rng([int(seed), 0]).permutation(rest))
        clean, spare, train = own.split([VALIDATION, SPARE, len(own) - VALIDATION - SPARE])
        noisy = symmetric_noise(
            data.label[train],
            recipe.noise_rate,
            CLASSES,
            generator=torch.Generator().manual_seed(int(seed)),
        )
        score = spare if tuning else test
        columns.append(
            (
                inputs[train],
                F.one_hot(noisy.given, CLASSES).float(),
                inputs[clean],
                F.one_hot(data.label[clean], CLASSES).float(),
                noisy.flipped,
                inputs[score],
                data.label[score],
            )
        )
    x, labels, clean_x, clean_labels, flipped, score_x, score_y = (
        torch.stack(column).to(device) for column in zip(*columns, strict=True)
    )
    problem = HyperClean(x, labels, clean_x, clean_labels, recipe.ridge)
    return Digits(problem, flipped, score_x, score_y)


def _scores(
    recipe: CleaningRecipe,
    arm: str,
    seeds: Sequence[int],
    settings: Sequence[tuple[float, float]],
    device: torch.device,
    *,
    tuning: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and AUC of the weights, each of shape [settings, seeds]."""
    data = split_digits(recipe, seeds, device, tuning)
    x, y = clean(recipe, arm, data, seeds, settings)
    guess = (data.score_x @ data.problem._matrix(y)).argmax(-1)
    accuracy = (guess == data.score_y).float().mean(-1).cpu().numpy()
    weights, right = x.cpu().numpy(), (~data.flipped).cpu().numpy()
    auc = [[roc_auc_score(right[s], w[s]) for s in range(len(seeds))] for w in weights]
    return accuracy, np.array(auc)


def clean(
    recipe: CleaningRecipe,
    arm: str,
    data: Digits,
    seeds: Sequence[int],
    settings: Sequence[tuple[float, float]],
) -> tuple[Float[Tensor, "E S n"], Float[Tensor, "E S DK"]]:
    r"""Run one arm for all settings and seeds; weight logits and regression at the end."""
    problem = data.problem
    S, n, D = problem.x.shape
    device = problem.x.device
    x = torch.zeros(len(settings), S, n, device=device)
    y = torch.zeros(len(settings), S, D * problem.labels.shape[-1], device=device)
    if arm == "oracle":
        x = torch.where(data.flipped, -30.0, 0.0).expand_as(x)
    rates = torch.tensor(settings, device=device)[:, :, None, None].unbind(1)
    sources = [np.random.default_rng([int(seed), 1]) for seed in seeds]
    averages, frozen = arm in ("smb", "smb_sgd", "sbma"), arm in ("all", "oracle")
    u = z = torch.zeros_like(y)
    v = torch.zeros_like(x)
    for t in range(recipe.steps):
        slow, fast = (1.0, 1.0) if arm != "ttsa" else ((t + 1) ** -0.6, (t + 1) ** -0.4)
        g = problem.inner_grad(x, y, _batch(sources, n, recipe.batch, device))
        u = torch.lerp(u, g, recipe.gamma) if t and arm in ("smb", "sbma") else g
        if not frozen and not (arm == "double_loop" and t % recipe.inner):
            z, o = _outer(recipe, arm, problem, x, y, z, sources)
            v = torch.lerp(v, o, recipe.gamma) if averages and t else o
            x = x - slow * rates[0] * v
        y = y - fast * rates[1] * u
    return x, y


def _outer(
    recipe: CleaningRecipe,
    arm: str,
    problem: HyperClean,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    sources: list,
) -> tuple[Tensor, Tensor]:
    """The linear system's solution by the arm's own means, and the hypergradient's sample."""
    n, m, device = x.shape[-1], problem.clean_x.shape[1], x.device
    right = problem.outer_grad(y, _batch(sources, m, recipe.batch, device))

    batches = iter(  # all drawn at once: how many are used depends on p, and so on the company
        _batch(sources, n, (recipe.k - 1) * recipe.batch, device).split(recipe.batch, dim=1)
    )

    def fresh(vector: Tensor) -> Tensor:
        return problem.inner_hvp(x, y, next(batches))(vector)

    if arm == "sbma":
        z = z - (fresh(z) - right) / problem.C
    elif arm == "double_loop":
        z = term = right / problem.C
        for _ in range(recipe.k - 1):
            term = term - fresh(term) / problem.C
            z = z + term
    else:
        p = torch.from_numpy(np.array([rng.integers(recipe.k) for rng in sources])).to(device)
        z = neumann_hvp(fresh, right, problem.C, recipe.k, p.expand(len(x), -1))
    return z, -problem.cross(x, y, z, _batch(sources, n, recipe.batch, device))


def _batch(sources: list, n: int, size: int, device: torch.device) -> Int[Tensor, "S b"]:
    """Examples drawn with replacement, from each seed's own stream."""
    rows = [rng.integers(n, size=size) for rng in sources]
    return torch.from_numpy(np.stack(rows)).to(device)


def _rows(values: Float[Tensor, "S n D"], batch: Int[Tensor, "S b"]) -> Float[Tensor, "S b D"]:
    return values.gather(1, batch[..., None].expand(-1, -1, values.shape[-1]))


def _entries(x: Float[Tensor, "E S n"], batch: Int[Tensor, "S b"]) -> Float[Tensor, "E S b"]:
    return x.gather(-1, batch.expand(len(x), -1, -1))
