"""The solvable model on Fashion-MNIST: exact curves, and what only simulated flips can tell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import symmetric_noise
from toolkit.supervision.noisy_labels.kernel_flow import KernelFlow, relu_ntk, unit_rows
from toolkit.supervision.noisy_labels.label_noise import signal
from toolkit.supervision.noisy_labels.stack import CLASSES, noise_generator, seed_data


@dataclass(frozen=True, eq=False)
class KernelTask:
    """A kernel flow with the labels of its rows."""

    flow: KernelFlow
    labels: Int64[Tensor, "n"]
    test_labels: Int64[Tensor, "m"]


@dataclass(frozen=True, eq=False)
class KernelCurves:
    """What happens over time at each corruption rate."""

    times: Float[Tensor, " times"]
    rates: tuple[float, ...]
    bias: Float[Tensor, " times"]
    """B(t): exact."""
    variance: Float[Tensor, " times"]
    """V(t): exact."""
    influence: Float[Tensor, " times"]
    """h(t): exact."""
    error: Float[Tensor, "rates times"]
    """Clean test error, mean over draws of the flips."""
    fit_clean: Float[Tensor, "rates times"]
    """Agreement with the given label of training rows whose label is clean."""
    fit_wrong: Float[Tensor, "rates times"]
    """… and of those whose label is wrong; NaN without any."""


def fashion_task(n: int, m: int, seed: int) -> KernelTask:
    """The two-layer ReLU tangent kernel on n training and m test images, of unit length, centred.

    Raises:
        DataMissing: if Fashion-MNIST is not prepared.
        ValueError: if the set has fewer images.
    """
    images, labels, test_images, test_labels = seed_data(n, m, seed)
    x, z = unit_rows(images, test_images)
    return KernelTask(KernelFlow(relu_ntk(x, x), relu_ntk(z, x)), labels, test_labels)


def centred_labels(labels: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch k"]:
    """One-hot labels minus 1/K: uncentred ones break E Ỹ = sY."""
    return F.one_hot(labels, CLASSES).double() - 1 / CLASSES


def given_labels(
    labels: Int64[Tensor, "n"], rates: Sequence[float], draws: int, seed: int
) -> Int64[Tensor, "draws rates n"]:
    """Symmetric noise, independent between draws and nested between rates."""
    return torch.stack(
        [
            torch.stack(
                [
                    symmetric_noise(
                        labels, rate, CLASSES, generator=noise_generator(seed, draw)
                    ).given
                    for rate in rates
                ]
            )
            for draw in range(draws)
        ]
    )


def kernel_curves(
    task: KernelTask,
    times: Float[Tensor, " times"],
    rates: Sequence[float],
    draws: int = 4,
    seed: int = 0,
) -> KernelCurves:
    """Exact and simulated curves at all times and rates, from one decomposition.

    Args:
        task: the kernel and its labels.
        times: rising.
        rates: corruption rates.
        draws: of the flips, for the errors and the fits.
        seed: of the flips.
    """
    y, y_test = centred_labels(task.labels), centred_labels(task.test_labels)
    bias, variance = task.flow.curves(y, y_test, times)
    given = given_labels(task.labels, rates, draws, seed)
    rows = [_simulated(task, times, given[:, i]) for i in range(len(rates))]
    error, fit_clean, fit_wrong = (torch.stack(column) for column in zip(*rows, strict=True))
    influence = task.flow.self_influence(times)
    return KernelCurves(times, tuple(rates), bias, variance, influence, error, fit_clean, fit_wrong)


def simulated_risk(
    task: KernelTask,
    times: Float[Tensor, " times"],
    rates: Sequence[float],
    draws: int,
    seed: int = 0,
) -> np.ndarray:
    r"""The risk of $A(t)\tilde Y/s$ against the clean targets, draw by draw: what D2 predicts.

    Args:
        task: the kernel and its labels.
        times: t ≥ 0.
        rates: corruption rates below (K−1)/K.
        draws: of the flips.
        seed: of the flips.

    Returns:
        Shape [draws, rates, times].
    """
    y_test = centred_labels(task.test_labels)
    given = given_labels(task.labels, rates, draws, seed)
    columns = []
    for i, rate in enumerate(rates):
        outputs = task.flow.predict(centred_labels(given[:, i]), times) / signal(rate, CLASSES)
        columns.append((outputs - y_test).square().sum(-1).mean(-1))
    return torch.stack(columns, dim=1).numpy()


def _simulated(
    task: KernelTask, times: Tensor, given: Int64[Tensor, "draws n"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Test error and fits over time at one rate, mean over draws."""
    targets, single = centred_labels(given), torch.float32
    guesses = task.flow.predict(targets, times, single).argmax(-1)
    error = (guesses != task.test_labels).double().mean((0, 2))
    agrees = (task.flow.fitted(targets, times, single).argmax(-1) == given[:, None]).double()
    wrong = (given != task.labels)[:, None].double()
    fit_clean = (agrees * (1 - wrong)).sum((0, 2)) / (1 - wrong).sum()
    fit_wrong = (agrees * wrong).sum((0, 2)) / wrong.sum()
    return error, fit_clean, fit_wrong
