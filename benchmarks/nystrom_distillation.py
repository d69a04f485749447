"""Partial kernels against full ones, norms without an n×n matrix, and what KDA adds to a step."""

import numpy as np
import torch

from _report import report
from toolkit.networks import nystrom_distillation as nd
from toolkit.networks.nystrom_distillation.training import seeded_net
from toolkit.runtime import race, start

SLOPE_TARGET = 1.1  # of the seconds of the Nyström loss over the number of examples, log-log
LOSS_TARGET = 10  # times as fast as the full Gram loss at n = 8,192
NORM_TARGET = 50  # times as fast as the explicit difference of kernels at n = 4,000
STEP_TARGET = 1.2  # times a step on labels alone
UPDATE_TARGET = 0.02  # of a step
STUDENT, TEACHER, CLASSES = 32, 96, 10  # widths, and landmarks


def main() -> None:
    """Print each speed, its spread over rounds, and its target."""
    start()
    linear()
    full_gram(8192)
    norms(4000)
    steps()


def linear() -> None:
    """The slope of the Nyström loss, its landmarks and gradient included, over n (best round)."""
    sizes = [2**power for power in range(12, 18)]
    seconds = [race(7, 2, one=partial_loss(n))["one"].min() for n in sizes]
    for n, value in zip(sizes, seconds, strict=True):
        print(f"Nyström loss and gradient, n = {n:7,}: {1e3 * value:8.2f} ms")
    slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    verdict = "met" if slope <= SLOPE_TARGET else "MISSED"
    print(f"slope of seconds over n: {slope:.2f}  target ≤ {SLOPE_TARGET}: {verdict}")


def full_gram(n: int) -> None:
    """The Nyström loss against the same loss on the whole n×n matrix."""
    seconds = race(3, 1, partial=partial_loss(n), full=full_loss(n))
    report(
        f"full Gram / Nyström loss, n = {n:,}",
        seconds["full"] / seconds["partial"],
        at_least=LOSS_TARGET,
    )


def norms(n: int) -> None:
    """Distance of two kernels and Nyström error: d×d products against the matrices themselves."""
    xs, xt, y = features(n)
    marks = nd.class_landmarks(xt, y, CLASSES)

    def explicit_error() -> torch.Tensor:
        factor = nd.nystrom(xt @ marks.T, marks @ marks.T)
        return (xt @ xt.T - factor @ factor.T).norm()

    seconds = race(
        5,
        1,
        distance=lambda: nd.gram_distance(xs, xt),
        explicit=lambda: (xs @ xs.T - xt @ xt.T).norm(),
        error=lambda: nd.nystrom_error(xt, marks),
        explicit_error=explicit_error,
    )
    gain = seconds["explicit"] / seconds["distance"]
    report(f"explicit / d×d kernel distance, n = {n:,}", gain, at_least=NORM_TARGET)
    gain = seconds["explicit_error"] / seconds["error"]
    report(f"explicit / d×d Nyström error, n = {n:,}", gain, at_least=NORM_TARGET)


def steps() -> None:
    """A step of training with and without KDA, the teacher's layers known; the landmarks' share."""
    x, y = torch.randn(64, 1, 28, 28), torch.arange(64) % CLASSES
    known = {"feature": torch.randn(64, TEACHER), "logit": torch.randn(64, CLASSES)}
    plans = {"labels": (), "kda": (("feature", "kda", 0.2),), "gram": (("feature", "gram", 0.2),)}
    bank, feature = nd.LandmarkBank(CLASSES, STUDENT), torch.randn(64, STUDENT)
    seconds = race(
        200,
        20,
        update=lambda: bank.update(feature, y),
        **{name: stepper(terms, x, y, known) for name, terms in plans.items()},
    )
    report("KDA / labels, a step", seconds["kda"] / seconds["labels"], at_most=STEP_TARGET)
    report("batch Gram / labels, a step", seconds["gram"] / seconds["labels"])
    share = seconds["update"] / seconds["labels"]
    report("landmark update / step", share, at_most=UPDATE_TARGET)


def features(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random features of a student and a teacher, and labels."""
    return torch.randn(n, STUDENT), torch.randn(n, TEACHER), torch.arange(n) % CLASSES


def partial_loss(n: int):
    """Landmarks of both networks, the loss over all n examples, its gradient."""
    xs, xt, y = features(n)
    xs.requires_grad_()

    def run() -> torch.Tensor:
        marks = (nd.class_landmarks(x.detach(), y, CLASSES) for x in (xs, xt))
        return torch.autograd.grad(nd.kda_loss(xs, xt, *marks), xs)[0]

    return run


def full_loss(n: int):
    """The same loss on the n×n kernels: every example is a landmark."""
    xs, xt, _ = features(n)
    xs.requires_grad_()
    return lambda: torch.autograd.grad(nd.gram_loss(xs, xt), xs)[0]


def stepper(terms: tuple, x: torch.Tensor, y: torch.Tensor, known: dict):
    """One step of SGD on a batch."""
    distiller = nd.Distiller(
        seeded_net((6, STUDENT), CLASSES, 0),
        seeded_net((24, TEACHER), CLASSES, 1) if terms else None,
        terms,
        warmup=1,
        num_classes=CLASSES,
        widths=(STUDENT, TEACHER),
    ).train()
    optimizer = torch.optim.SGD(
        [p for p in distiller.parameters() if p.requires_grad], 1e-6, 0.9, fused=True
    )
    distiller(x, y, None, known)
    distiller.end_epoch()

    def step() -> None:
        loss = distiller(x, y, None, known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
