"""How good predictions are: accuracy, likelihood, calibration; temperature scaling."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from toolkit.learn.metrics import accuracy, calibration_error

METRICS = ("accuracy", "nll", "ece")
LOG_TEMPERATURES = (-4.0, 4.0)


def quality(
    logits: Float[Tensor, "s m k"], y: Int[Tensor, "s m"], bins: int = 15
) -> dict[str, np.ndarray]:
    """Accuracy and expected calibration error in per cent, negative log-likelihood in nats.

    A replica with a non-finite logit has diverged: all its numbers are NaN.

    Args:
        logits: of S networks.
        y: true classes.
        bins: of the confidence.
    """
    finite = torch.isfinite(logits).all(-1).all(-1)
    safe = logits.where(finite[:, None, None], 0.0).double()
    found = {
        "accuracy": 100 * accuracy(safe, y).double(),
        "nll": mean_nll(safe, y),
        "ece": 100 * torch.stack(
            [calibration_error(p, t, bins) for p, t in zip(safe.softmax(-1), y, strict=True)]
        ),
    }  # fmt: skip
    return {name: value.where(finite, torch.nan).cpu().numpy() for name, value in found.items()}


def mean_nll(logits: Float[Tensor, "s m k"], y: Int[Tensor, "s m"]) -> Float[Tensor, " s"]:
    """Mean negative log-likelihood of each replica, in nats."""
    return (
        F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
    )


def temperatures(logits: Float[Tensor, "s h k"], y: Int[Tensor, "s h"]) -> Float[Tensor, " s"]:
    """The temperature of each replica that makes held-out labels most likely.

    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks" (2017).

    Returns:
        T > 0 for logits / T; NaN for a replica that diverged.
    """
    found = []
    for f, t in zip(logits.double().cpu(), y.cpu(), strict=True):
        if not torch.isfinite(f).all():
            found.append(torch.nan)
            continue
        best = minimize_scalar(
            lambda log_t, f=f, t=t: float(F.cross_entropy(f / np.exp(log_t), t)),
            bounds=LOG_TEMPERATURES,
            method="bounded",
            options={"xatol": 1e-4},
        )
        found.append(float(np.exp(best.x)))
    return torch.tensor(found, dtype=logits.dtype, device=logits.device)


def reliability(
    logits: Float[Tensor, "m k"], y: Int[Tensor, " m"], bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A reliability diagram: what a network says, and what happens, by bins of its confidence.

    Returns:
        Mean confidence, accuracy (NaN in an empty bin) and share of the predictions, each [bins].
    """
    confidence, guess = logits.softmax(-1).max(-1)
    which = (confidence * bins).long().clamp(max=bins - 1).cpu().numpy()
    hit = (guess == y).double().cpu().numpy()
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        said = np.bincount(which, confidence.double().cpu().numpy(), bins) / count
        right = np.bincount(which, hit, bins) / count
    return said, right, count / len(y)
