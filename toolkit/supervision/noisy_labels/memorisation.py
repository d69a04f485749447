"""What has been learned, and from which labels: fit, excess memorisation, ranking by loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import NoisyLabels


def memorisation(
    logits: Float[Tensor, "n k"], noisy: NoisyLabels, *, generator: torch.Generator
) -> dict[str, float]:
    """How far a model follows its training labels, the clean and the wrong ones.

    Args:
        logits: of the training examples.
        noisy: the labels they were trained on.
        generator: a CPU generator, for the control label of each wrong one.

    Returns:
        `fit_clean` and `fit_wrong`: agreement with the given label where that is clean or wrong;
        `excess`: agreement with the given wrong label minus agreement with another wrong label
        that was never given; `auc`: of the loss as a detector of wrong labels. NaN where there are
        no wrong (or no clean) labels, or where a logit is not finite: a diverged run.

    Raises:
        ValueError: for fewer than three classes (no other wrong label exists) or lengths that
            differ.
    """
    if len(logits) != len(noisy.given) or logits.shape[1] < 3:
        raise ValueError(f"need one row a label and three classes, got {tuple(logits.shape)}")
    wrong = noisy.flipped
    if not bool(torch.isfinite(logits).all()):
        return dict.fromkeys(("fit_clean", "fit_wrong", "excess", "auc"), float("nan"))
    guess = logits.argmax(1)
    agrees = (guess == noisy.given).double()
    fit_clean, fit_wrong = agrees[~wrong].mean(), agrees[wrong].mean()
    control = (guess == another_wrong_label(noisy, logits.shape[1], generator))[wrong].double()
    losses = F.cross_entropy(logits, noisy.given, reduction="none")
    return {
        "fit_clean": float(fit_clean),
        "fit_wrong": float(fit_wrong),
        "excess": float(fit_wrong - control.mean()),
        "auc": _auc(wrong, losses),
    }


def another_wrong_label(
    noisy: NoisyLabels, num_classes: int, generator: torch.Generator
) -> Int64[Tensor, "n"]:
    """A class that is neither the clean nor the given one, uniformly: what memory cannot know.

    Where the given label is clean it is one of the others all the same.
    """
    shape = noisy.given.shape
    label = torch.randint(num_classes - 2, shape, generator=generator).to(noisy.given.device)
    other = torch.where(noisy.flipped, noisy.given, (noisy.clean + 1) % num_classes)
    low, high = torch.minimum(noisy.clean, other), torch.maximum(noisy.clean, other)
    label = label + (label >= low)
    return label + (label >= high)


def small_loss_select(loss: Float[Tensor, "n"], keep: float) -> Int64[Tensor, "kept"]:
    """The examples of least loss: small-loss selection.

    Args:
        loss: of each example against its given label.
        keep: the share to keep, in (0, 1]; 1 − ρ keeps as many as there are clean labels.

    Returns:
        Positions in rising order, round(keep · n) of them.

    Raises:
        ValueError: for a share outside (0, 1], or a loss that is not finite.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    if not bool(torch.isfinite(loss).all()):
        raise ValueError("every loss must be finite; the run has diverged")
    count = max(1, round(keep * len(loss)))
    return loss.argsort(stable=True)[:count].sort().values


def delta_curve(
    runs: Mapping[str, Any], rates: Sequence[float], start: float, end: float, arm: str = "noisy"
) -> np.ndarray:
    r"""$\Delta_{start}(\rho)$: test error after `start` epochs minus that after `end` epochs.

    Args:
        runs: what `experiment` returned, or its table from `sweep`.
        rates: ρ.
        start: the epoch that ends stage one.
        end: the epoch that ends training.
        arm: the method.

    Returns:
        Shape [seeds, rates]; positive where training on helped.

    Raises:
        ValueError: if `start` is not before `end`.
    """
    if not start < end:
        raise ValueError(f"stage one must end before training does, got {start} and {end}")
    columns = [
        np.asarray(runs[f"{arm}/error_{start:g}@{rate:g}"], float)
        - np.asarray(runs[f"{arm}/error_{end:g}@{rate:g}"], float)
        for rate in rates
    ]
    return np.stack(columns, axis=-1)


def _auc(wrong: Tensor, losses: Tensor) -> float:
    if bool(wrong.all()) or not bool(wrong.any()):
        return float("nan")
    return float(roc_auc_score(wrong.cpu().numpy(), losses.cpu().numpy()))
