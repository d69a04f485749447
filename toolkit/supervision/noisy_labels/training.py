"""Plain SGD on labels of which some are wrong, measured at fixed times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.learn.loop import fit
from toolkit.supervision.noisy_labels.memorisation import memorisation, small_loss_select
from toolkit.supervision.noisy_labels.recipe import NetworkRecipe
from toolkit.supervision.noisy_labels.stack import CLASSES, Stack

METRICS = ("error", "fit_clean", "fit_wrong", "excess", "auc")
Loss = Callable[[nn.Module, tuple], Float[Tensor, ""]]


@dataclass(frozen=True, eq=False)
class History:
    """What was measured at each checkpoint, by setting (rate) and seed."""

    epochs: tuple[float, ...]
    metrics: dict[str, Float[Tensor, "p q s"]]
    """`error` on clean test labels, and what `memorisation` returns."""
    logits: Float[Tensor, "p q s n k"] | None = None
    """Of the training images, where they were asked for."""


def train_noisy(
    recipe: NetworkRecipe, stack: Stack, arm: str = "noisy", keep_logits: bool = False
) -> History:
    """Train every replica of a stack with momentum SGD and measure it after each of the epochs.

    No augmentation, weight decay, dropout or label smoothing.

    Args:
        recipe: rates, epochs and the loss.
        stack: data, labels, and which examples are kept; `small_loss` and `redrawn` change them.
        arm: `forward`, `small_loss` and `redrawn` train in their own way, others plainly.
        keep_logits: also return the outputs on all training images at each checkpoint.
    """
    model = stack.networks()
    loss = forward_loss(recipe, stack) if arm == "forward" else plain_loss(recipe.loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    measured, kept, done = [], [], 0
    for epoch, step in zip(recipe.epochs, recipe.steps(recipe.epochs), strict=True):
        fit(model, stack.batches(done, step, redraw=arm == "redrawn"), loss, optimizer)
        done = step
        logits = stack.outputs(model, stack.images)
        measured.append(_measure(stack, model, logits))
        if keep_logits:
            kept.append(logits)
        if arm == "small_loss" and epoch == 1:
            stack.keep(_selected(stack, logits))
    metrics = {name: torch.stack([row[name] for row in measured]) for name in METRICS}
    return History(recipe.epochs, metrics, torch.stack(kept) if keep_logits else None)


def plain_loss(name: str) -> Loss:
    """The sum over replicas of their mean losses: each gets the gradient it would get alone.

    Args:
        name: `"cross_entropy"`, or `"squared"`: half the squared distance to the one-hot label.
    """

    def loss(model: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        x, given = batch
        logits = model(x)
        if name == "squared":
            each = 0.5 * (logits - F.one_hot(given, CLASSES)).square().sum(-1)
        else:
            each = _cross_entropy(logits, given)
        return each.mean(1).sum()

    return loss


def forward_loss(recipe: NetworkRecipe, stack: Stack) -> Loss:
    """Cross-entropy of p·T, the model's prediction of the *given* label: forward correction.

    Patrini et al., "Making deep neural networks robust to label noise: a loss correction approach"
    (2017); T is known here.
    """
    matrices = [transition_matrix(recipe.noise, rate) for rate in stack.rates]
    log_t = torch.stack(matrices).log().repeat_interleave(len(stack.seeds), dim=0)
    towards = log_t.transpose(1, 2).to(stack.device)  # [replica, given, clean]

    def loss(model: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        x, given = batch
        log_p = model(x).log_softmax(-1)
        column = towards.gather(1, given[..., None].expand(-1, -1, CLASSES))
        return -(log_p + column).logsumexp(-1).mean(1).sum()

    return loss


def transition_matrix(noise: str, rate: float) -> Float[Tensor, "clean given"]:
    """T[i, j] = P(given = j | clean = i) of symmetric or pair noise.

    Raises:
        ValueError: for another kind of noise.
    """
    eye = torch.eye(CLASSES)
    if noise == "symmetric":
        return (1 - rate) * eye + rate / (CLASSES - 1) * (1 - eye)
    if noise == "pair":
        return (1 - rate) * eye + rate * eye.roll(1, dims=1)
    raise ValueError(f"{noise} noise has no transition matrix")


def columns(
    name: str, values: Float[Tensor, "q s"], rates: Sequence[float]
) -> dict[str, np.ndarray]:
    """One array over seeds for each rate, under the key `NAME@RATE`."""
    array = values.double().cpu().numpy()
    return {f"{name}@{rate:g}": array[i] for i, rate in enumerate(rates)}


def history_columns(arm: str, history: History, rates: Sequence[float]) -> dict[str, np.ndarray]:
    """A history as `"ARM/METRIC_EPOCH@RATE"`; what needs wrong labels is left out at rate 0."""
    results: dict[str, np.ndarray] = {}
    for metric, values in history.metrics.items():
        for p, epoch in enumerate(history.epochs):
            found = columns(f"{arm}/{metric}_{epoch:g}", values[p], rates)
            results |= {
                key: column
                for key, column in found.items()
                if metric in ("error", "fit_clean") or not key.endswith("@0")
            }
    return results


def given_losses(stack: Stack, logits: Float[Tensor, "q s n k"]) -> Float[Tensor, "q s n"]:
    """Cross-entropy of each training example against its given label."""
    return _cross_entropy(logits.flatten(0, 1), stack.given.flatten(0, 1)).view_as(stack.given)


def _selected(stack: Stack, logits: Float[Tensor, "q s n k"]) -> Bool[Tensor, "q s n"]:
    """The 1 − ρ of least loss; a diverged replica keeps all it has."""
    losses = given_losses(stack, logits)
    kept = (~torch.isfinite(losses).all(-1, keepdim=True)).repeat(1, 1, losses.shape[-1])
    for q, rate in enumerate(stack.rates):
        for s in range(len(stack.seeds)):
            if not kept[q, s, 0]:
                kept[q, s, small_loss_select(losses[q, s], 1 - rate)] = True
    return kept


def _measure(
    stack: Stack, model: nn.Module, logits: Float[Tensor, "q s n k"]
) -> dict[str, Float[Tensor, "q s"]]:
    outputs = stack.outputs(model, stack.test_images)
    error = (outputs.argmax(-1) != stack.test_labels).double().mean(-1).cpu()
    finite = torch.isfinite(outputs).flatten(2).all(-1).cpu()
    rows = [
        [
            memorisation(
                logits[q, s],
                stack.labels(q, s),
                generator=torch.Generator().manual_seed(seed),  # of the control labels
            )
            for s, seed in enumerate(stack.seeds)
        ]
        for q in range(len(stack.rates))
    ]
    learnt = {
        name: torch.tensor([[cell[name] for cell in row] for row in rows], dtype=torch.float64)
        for name in METRICS[1:]
    }
    return {"error": torch.where(finite, error, torch.nan)} | learnt


def _cross_entropy(
    logits: Float[Tensor, "r b k"], given: Int64[Tensor, "r b"]
) -> Float[Tensor, "r b"]:
    return F.cross_entropy(logits.flatten(0, 1), given.flatten(), reduction="none").view_as(given)
