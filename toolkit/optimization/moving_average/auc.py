r"""Deep AUC maximisation as a min-max problem, on a long-tailed pair of Fashion-MNIST classes.

The pairwise squared surrogate of the area under the ROC curve equals a saddle point in three
extra numbers (Ying, Wen and Lyu 2016; Liu et al. 2020), so that mini-batches of any size give
unbiased gradients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.learn.stacked import StackedMLP
from toolkit.optimization.moving_average.chains import Scaling
from toolkit.optimization.moving_average.recipe import Recipe
from toolkit.optimization.multipass_sgd.network import PIXELS, fashion_14
from toolkit.runtime import TUNING_SEEDS

SHIRT, T_SHIRT = 6, 0


class AUCMinMaxLoss(nn.Module):
    r"""The saddle objective of AUC maximisation: minimise over $(h,a,b)$, maximise over $\alpha$.

    The batch mean of $(1-p)(h-a)^21_++p(h-b)^21_-+2\alpha\{p(1-p)m+p\,h1_--(1-p)h1_+\}
    -p(1-p)\alpha^2$. At the optimum over $a,b,\alpha$ it is $p(1-p)$ times the mean of
    $(m-h_++h_-)^2$ over all pairs, with $p$ the positive rate of that sample.

    Args:
        margin: m > 0.
        pos_rate: p, the share of positives, in (0, 1).
        replicas: None for one model; R for a stack, whose $a,b,\alpha$ have shape [R].

    Raises:
        ValueError: for a margin or rate out of range.
    """

    def __init__(self, margin: float, pos_rate: float, replicas: int | None = None) -> None:
        super().__init__()
        if not margin > 0 or not 0 < pos_rate < 1:
            raise ValueError(f"need margin > 0 and 0 < pos_rate < 1, got {margin} and {pos_rate}")
        self.margin, self.pos_rate = margin, pos_rate
        shape = () if replicas is None else (replicas,)
        self.a, self.b, self.alpha = (nn.Parameter(torch.zeros(shape)) for _ in range(3))

    def forward(
        self, scores: Float[Tensor, "*R batch"], positive: Bool[Tensor, "..."]
    ) -> Float[Tensor, "*R"]:
        """The objective of a batch; one number for each model of a stack.

        Raises:
            ValueError: if the labels do not fit the scores.
        """
        if positive.shape[-1] != scores.shape[-1]:
            raise ValueError(f"{positive.shape[-1]} labels for {scores.shape[-1]} scores")
        p, m, alpha = self.pos_rate, self.margin, self.alpha[..., None]
        plus = positive.to(scores.dtype)
        minus = 1 - plus
        terms = (
            (1 - p) * (scores - self.a[..., None]) ** 2 * plus
            + p * (scores - self.b[..., None]) ** 2 * minus
            + 2 * alpha * (p * (1 - p) * m + scores * (p * minus - (1 - p) * plus))
            - p * (1 - p) * alpha**2
        )
        return terms.mean(-1)


@dataclass(frozen=True)
class AUCRecipe(Recipe):
    """Shirts against T-shirts, 5 % positive, by a perceptron 196-64-1; every value is ours.

    The arms that exist: `pdsm` and `pdada` (batch `batch`), `sgda` (batch `large_batch`, as many
    examples), `ce` and `ce_adam` (cross-entropy, batch `batch`).
    """

    arms: tuple[str, ...] = ("pdsm", "pdada", "sgda", "ce", "ce_adam")
    seeds: int = 8  # subsets of shirts, initialisations and orders
    tune: bool = False  # tune here; else take the rates that a tuning chose before
    tuning_seeds: int = 4  # others, from 10,000 on, scored on held-out training images
    positives: int = 316  # shirts to train on
    batch: int = 32  # examples a step
    large_batch: int = 256  # of sgda
    steps: int = 2000  # of `batch` examples; a multiple of large_batch / batch
    width: int = 64  # hidden units
    gamma: float = 0.1  # weight of the new sample in pdsm and pdada
    margin: float = 1.0  # m


@dataclass(frozen=True)
class Arm:
    """What one method does, and its grid: primal rates × a second number."""

    auc: bool
    rule: str
    etas: tuple[float, ...]
    second: tuple[float, ...]  # dual rates of a min-max arm; weights γ of a cross-entropy arm
    large: bool = False
    averages: bool = True


PLAIN, ADAPTIVE = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
DUAL, WEIGHTS = (0.1, 1.0, 10.0, 100.0), (1.0, 0.3, 0.1, 0.03)
ARMS = {
    "pdsm": Arm(True, "shb", PLAIN, DUAL),
    "pdada": Arm(True, "adam", ADAPTIVE, DUAL),
    "sgda": Arm(True, "shb", PLAIN, DUAL, large=True, averages=False),
    "ce": Arm(False, "shb", PLAIN, WEIGHTS),
    "ce_adam": Arm(False, "adam", ADAPTIVE, WEIGHTS),
}
RATES = {
    "pdsm": (1.0, 1.0),
    "pdada": (3e-4, 1.0),
    "sgda": (10.0, 10.0),
    "ce": (0.3, 1.0),
    "ce_adam": (1e-3, 1.0),
}
"""Primal rate and second number of each arm, as the full profile's tuning chose them."""


def run_auc(recipe: AUCRecipe, seeds: Sequence[int], device: torch.device) -> dict[str, np.ndarray]:
    """Test AUC of every arm after equally many examples.

    Returns:
        `"ARM/auc"`; `"ARM/eta"`, `"ARM/second"` and `"ARM/edge"` say what was chosen, and how
        many of the two lie at an end of their grid.

    Raises:
        ValueError: for an unknown arm, or steps that do not divide.
    """
    for name in recipe.arms:
        if name not in ARMS:
            raise ValueError(f"arms must be among {', '.join(ARMS)}, got {name!r}")
    if recipe.steps % (recipe.large_batch // recipe.batch):
        raise ValueError("steps must be a multiple of large_batch / batch")
    results = {}
    for name in recipe.arms:
        chosen = tune_auc(recipe, name, device) if recipe.tune else RATES[name]
        scores = auc_scores(recipe, name, seeds, [chosen], device, validation=False)[0]
        arm = ARMS[name]
        edges = (chosen[0] in (arm.etas[0], arm.etas[-1])) + (
            chosen[1] in (arm.second[0], arm.second[-1])
        )
        results[f"{name}/auc"] = scores
        for key, value in (("eta", chosen[0]), ("second", chosen[1]), ("edge", float(edges))):
            results[f"{name}/{key}"] = np.full(len(seeds), value)
    return results


@lru_cache(maxsize=32)
def tune_auc(recipe: AUCRecipe, name: str, device: torch.device) -> tuple[float, float]:
    """The pair of rates with the best mean AUC on held-out training images, on tuning seeds."""
    grid = list(product(ARMS[name].etas, ARMS[name].second))
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + recipe.tuning_seeds)
    scores = auc_scores(recipe, name, seeds, grid, device, validation=True).mean(1)
    return grid[int(np.nan_to_num(scores, nan=-1.0).argmax())]


def auc_scores(
    recipe: AUCRecipe,
    name: str,
    seeds: Sequence[int],
    settings: Sequence[tuple[float, float]],
    device: torch.device,
    *,
    validation: bool,
) -> np.ndarray:
    """Train settings × seeds networks side by side; AUC on test or on held-out images.

    In float64: over so many steps, the order of a sum in float32 would decide the third digit, and
    a seed would give another number in other company.

    Returns:
        Shape [settings, seeds]; NaN where a network diverged.
    """
    arm, R = ARMS[name], len(settings) * len(seeds)
    batch = recipe.large_batch if arm.large else recipe.batch
    steps = recipe.steps * recipe.batch // batch
    train, held_out = _split(recipe, seeds, device, validation)
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    model = StackedMLP(len(seeds), (PIXELS, recipe.width, 1), generators).to(device).double()
    model = model.fork(torch.arange(len(seeds)).repeat(len(settings)))
    positives = float(train.positive[0].float().mean())
    loss = AUCMinMaxLoss(recipe.margin, positives, R).to(device).double()
    primal = [*model.parameters(), *((loss.a, loss.b) if arm.auc else ())]
    etas, second = (
        torch.tensor(column, device=device, dtype=torch.float64).repeat_interleave(len(seeds))
        for column in zip(*settings, strict=True)
    )
    weight = 1.0 if not arm.averages else recipe.gamma
    weights = torch.full_like(etas, weight) if arm.auc else second
    step = _Primal(primal, arm.rule, etas, weights)
    for t, (x, positive) in enumerate(_batches(train, seeds, batch, steps)):
        logits = model(x.repeat(len(settings), 1, 1))[..., 0]
        labels = positive.repeat(len(settings), 1)
        if arm.auc:
            value = loss(logits.sigmoid(), labels)
            *gradients, up = torch.autograd.grad(value.sum(), [*primal, loss.alpha])
        else:
            value = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
            gradients = list(torch.autograd.grad(value.mean(-1).sum(), primal))
        cut = 0.1 if t >= 0.75 * steps else 1.0
        step(gradients, cut)
        if arm.auc:
            with torch.no_grad():
                loss.alpha.add_(cut * second * up)
    return _test(model, held_out).reshape(len(settings), len(seeds))


class _Primal:
    """The averaged and scaled step on a stack: every replica has its own rate and weight."""

    def __init__(self, params: list, rule: str, etas: Tensor, weights: Tensor) -> None:
        self.params = params
        self.etas = [_like(etas, p) for p in params]
        self.weights = [_like(weights, p) for p in params]
        self.scalings = [Scaling(rule, 0.99, 1e-8, None) for _ in params]
        self.v: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, gradients: list[Tensor], cut: float) -> None:
        self.v = [
            torch.lerp(v, g, w)
            for v, g, w in zip(self.v or gradients, gradients, self.weights, strict=True)
        ]
        for p, g, v, eta, scaling in zip(
            self.params, gradients, self.v, self.etas, self.scalings, strict=True
        ):
            p -= cut * eta * scaling(g, v)


def _like(values: Float[Tensor, " R"], parameter: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (parameter.ndim - 1))


@dataclass(frozen=True, eq=False)
class _Images:
    """One set of images a seed: rows of the pooled images, and which of them are positive."""

    x: Float[Tensor, "n pixels"]
    rows: Int[Tensor, "S m"]
    positive: Bool[Tensor, "S m"]


def _split(
    recipe: AUCRecipe, seeds: Sequence[int], device: torch.device, validation: bool
) -> tuple[_Images, _Images]:
    """To train on, and to score: the test images, or 1,000 + 1,000 held-out training images."""
    x, y, test_x, test_y = fashion_14(10_000, device)
    x, test_x = x.double(), test_x.double()
    shirts = (y[:, SHIRT] > 0).nonzero()[:, 0].cpu().numpy()
    t_shirts = (y[:, T_SHIRT] > 0).nonzero()[:, 0].cpu().numpy()
    train, held_out = [], []
    for seed in seeds:
        rng = np.random.default_rng([int(seed), 0])
        plus, minus = rng.permutation(shirts), rng.permutation(t_shirts)
        spare = len(minus) // 6 if validation else 0
        keep = recipe.positives * (len(minus) - spare) // len(minus)
        train.append((plus[:keep], minus[spare:]))
        held_out.append((plus[-spare:], minus[:spare]))
    if validation:
        return _images(x, train), _images(x, held_out)
    test = [tuple((test_y[:, c] > 0).nonzero()[:, 0].cpu().numpy() for c in (SHIRT, T_SHIRT))]
    return _images(x, train), _images(test_x, test * len(seeds))


def _images(x: Tensor, pairs: list) -> _Images:
    rows = torch.from_numpy(np.stack([np.concatenate(pair) for pair in pairs])).to(x.device)
    positive = torch.arange(rows.shape[1], device=x.device) < len(pairs[0][0])
    return _Images(x, rows, positive.expand(len(pairs), -1))


def _batches(
    data: _Images, seeds: Sequence[int], size: int, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Uniform batches `[S, size, pixels]`, in an order of each seed's own."""
    n = data.rows.shape[1]
    sources = [np.random.default_rng([int(seed), 1]) for seed in seeds]
    per_epoch = n // size
    for t in range(steps):
        if t % per_epoch == 0:
            order = torch.from_numpy(np.stack([rng.permutation(n) for rng in sources]))
            order = order.to(data.rows.device)
        index = order[:, t % per_epoch * size :][:, :size]
        yield data.x[data.rows.gather(1, index)], data.positive.gather(1, index)


@torch.no_grad()
def _test(model: StackedMLP, data: _Images) -> np.ndarray:
    """AUC of each replica; replicas beyond the seeds see the seeds' images in turn."""
    R, S = len(model.weights[0]), len(data.rows)
    logits = model(data.x[data.rows].repeat(R // S, 1, 1))[..., 0].cpu()
    labels = data.positive.cpu().numpy()
    return np.array(
        [
            roc_auc_score(labels[r % S], logits[r].numpy())
            if torch.isfinite(logits[r]).all()
            else np.nan
            for r in range(R)
        ]
    )
