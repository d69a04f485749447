"""What is measured on the trained networks: final quality, δ along the way, every drop epoch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.learn.stacked import StackedMLP
from toolkit.supervision.label_smoothing.data import Sample, draw_sample, posterior
from toolkit.supervision.label_smoothing.deviation import (
    Deviation,
    gradient_deviation,
    optimal_theta,
    smoothed_deviation,
)
from toolkit.supervision.label_smoothing.network import one_seed, predictions, train
from toolkit.supervision.label_smoothing.quality import (
    mean_nll,
    quality,
    reliability,
    temperatures,
)
from toolkit.supervision.label_smoothing.recipe import (
    READ_OFF,
    DeviationRecipe,
    DropRecipe,
    NetworkRecipe,
    parse_arm,
)

KEPT = 0.8  # of the training images, where the others choose a temperature or an epoch
TEACHER_RATE = 0.02
VERIFY_THETAS = (0.2, 0.4, 0.8)


def run_network(
    recipe: NetworkRecipe, seeds: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """Train every arm and measure it at the end.

    `temperature` is the one-hot network with its logits divided by a temperature, and
    `early_stopping` the one-hot network at another epoch; both numbers are chosen on a fifth of
    the training images by a twin that learnt from the other four fifths.

    Returns:
        For every arm `train_ce` (one-hot, on the labels as given, whatever the arm trained on),
        `accuracy`, `nll`, `ece` on test images, `val_accuracy`, `val_nll`.
    """
    sample = draw_sample(recipe, seeds, device)
    names = [name for name in recipe.arms if name not in READ_OFF]
    arms = [parse_arm(name, recipe.epochs) for name in names]
    kinds = {arm.label for arm in arms} - {"uniform"}
    read_off = [name for name in READ_OFF if name in recipe.arms]
    results: dict[str, np.ndarray] = {}
    scale = stop = None
    if read_off or "self" in kinds:
        scale, stop = _held_out(recipe, sample)
        stopped = _train_once(recipe, sample, stop)
        results |= _read_off(read_off, sample, stopped, scale, stop)
    labels = introduced_labels(recipe, sample, kinds - {"self"})
    if "self" in kinds:
        assert scale is not None
        final = predictions(stopped[recipe.epochs], sample.x)
        labels["self"] = (final / scale[:, None, None]).softmax(-1)
    for name, networks in train(recipe, arms, sample, labels).items():
        results |= _measures(name, networks, sample)
    return results


def introduced_labels(
    recipe: NetworkRecipe, sample: Sample, kinds: set[str]
) -> dict[str, Float[Tensor, "s n k"]]:
    """ŷ of every training image: from a teacher (`pre`) or from the known noise (`posterior`).

    Raises:
        ValueError: for another kind, or if there are no further images for a teacher.
    """
    labels = {}
    if unknown := kinds - {"pre", "posterior"}:
        raise ValueError(f"labels can be pre or posterior, got {sorted(unknown)}")
    if "posterior" in kinds:
        labels["posterior"] = posterior(sample, recipe.noise)
    if "pre" in kinds:
        if not sample.other_x.shape[1]:
            raise ValueError(f"{recipe.data} has no further images for a teacher")
        others = replace(sample, x=sample.other_x, y=sample.other_y, clean=sample.other_y)
        lesson = replace(recipe, epochs=recipe.teacher_epochs, lr=TEACHER_RATE)
        teacher = train(lesson, [parse_arm("ce", lesson.epochs)], others)["ce"]
        labels["pre"] = predictions(teacher, sample.x).softmax(-1)
    return labels


def run_deviation(
    recipe: DeviationRecipe, seeds: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """Measure σ², δ, c and the bias of every label along the training of every arm.

    Returns:
        `ARM/sigma2@EPOCH`, `ARM/LABEL_delta@EPOCH`, `…_cross`, `…_bias2`, `…_best` (the exact best
        θ), and `ARM/LABEL_crossing`: the first checkpoint with δ > 1, epochs + 1 if there is none.
        With `verify`, `ARM/parabola_gap`, the largest relative difference between the parabola and
        torch's own smoothed gradients, and `ARM/bound_share`, the largest share of the bound used.
    """
    sample = draw_sample(recipe, seeds, device)
    arms = [parse_arm(name, recipe.epochs) for name in recipe.arms]
    kinds = {*recipe.labels, *(arm.label for arm in arms)} - {"uniform"}
    labels = introduced_labels(recipe, sample, kinds)
    results: dict[str, np.ndarray] = {}
    checks: dict[str, list[np.ndarray]] = {}

    def watch(epoch: int, networks: dict[str, StackedMLP]) -> None:
        for name, network in networks.items():
            for label in recipe.labels:
                dev = gradient_deviation(network, sample.x, sample.y, labels.get(label))
                results.update(_moments(name, label, epoch, dev))
            if recipe.verify:
                checks.setdefault(name, []).append(_verify(network, sample, recipe.verify))

    train(recipe, arms, sample, labels, watch, recipe.checkpoints)
    for name in recipe.arms:
        for label in recipe.labels:
            deltas = [results[f"{name}/{label}_delta@{e}"] for e in recipe.checkpoints]
            results[f"{name}/{label}_crossing"] = first_above(
                np.stack(deltas, 1), recipe.checkpoints, recipe.epochs + 1
            )
        if recipe.verify:
            gap, share = np.stack(checks[name]).max(0).T
            results |= {f"{name}/parabola_gap": gap, f"{name}/bound_share": share}
    return results


def first_above(
    delta: Float[np.ndarray, "s p"], epochs: Sequence[int], otherwise: float, level: float = 1.0
) -> Float[np.ndarray, " s"]:
    """The first epoch at which each row exceeds the level, `otherwise` where none does."""
    over = delta > level
    return np.where(over.any(1), np.asarray(epochs, float)[over.argmax(1)], float(otherwise))


def run_drops(
    recipe: DropRecipe, seeds: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """Curves and calibration for every θ and every drop epoch.

    Returns:
        For the arm `tsla:θ:s`, at each epoch x: `train_ce@x`, `accuracy@x`, `nll@x`, `ece@x`; at
        the end, by bins of confidence, `said@i`, `right@i`, `share@i`, and `largest@i`, the
        histogram of the largest logit less the mean logit.
    """
    sample = draw_sample(recipe, seeds, device)
    arms = [
        parse_arm(f"tsla:{theta}:{drop}", recipe.epochs)
        for theta in recipe.thetas
        for drop in recipe.drops
    ]
    results: dict[str, np.ndarray] = {}

    def watch(epoch: int, networks: dict[str, StackedMLP]) -> None:
        seen: list[tuple[StackedMLP, dict]] = []
        for name, network in networks.items():
            same = (kept for twin, kept in seen if torch.equal(twin.weights[0], network.weights[0]))
            found = next(same, None)
            if found is None:
                found = _measures("", network, sample)
                seen.append((network, found))
            for key, values in found.items():
                results[f"{name}{key}@{epoch}"] = values

    trained = train(recipe, arms, sample, watch=watch, at=recipe.points)
    for name, networks in trained.items():
        results |= _calibration(name, predictions(networks, sample.test_x), sample.test_y)
    return results


LARGEST_LOGIT_EDGES = np.linspace(0, 40, 41)


def _calibration(name: str, logits: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    found: dict[str, list] = {}
    for f, t in zip(logits, y, strict=True):
        for key, values in zip(("said", "right", "share"), reliability(f, t), strict=True):
            for i, value in enumerate(values):
                found.setdefault(f"{name}/{key}@{i}", []).append(value)
        excess = (f.max(-1).values - f.mean(-1)).cpu().numpy()
        counts = np.histogram(np.clip(excess, 0, 40), LARGEST_LOGIT_EDGES)[0] / len(excess)
        for i, value in enumerate(counts):
            found.setdefault(f"{name}/largest@{i}", []).append(value)
    return {key: np.array(values) for key, values in found.items()}


def _measures(name: str, networks: StackedMLP, sample: Sample) -> dict[str, np.ndarray]:
    """Everything that is reported about an arm at one time."""
    parts = {
        "": (predictions(networks, sample.test_x), sample.test_y),
        "val_": (predictions(networks, sample.val_x), sample.val_y),
    }
    return _scores(name, parts, predictions(networks, sample.x), sample.y)


def _scores(name: str, parts: dict, train_logits: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    results: dict[str, np.ndarray] = {}
    for prefix, (logits, labels) in parts.items():
        found = quality(logits, labels)
        kept = found if not prefix else {k: found[k] for k in ("accuracy", "nll")}
        results |= {f"{name}/{prefix}{key}": value for key, value in kept.items()}
    finite = torch.isfinite(train_logits).all(-1).all(-1)
    risk = mean_nll(train_logits.where(finite[:, None, None], 0.0), y).double()
    return results | {f"{name}/train_ce": risk.where(finite, torch.nan).cpu().numpy()}


def _held_out(recipe: NetworkRecipe, sample: Sample) -> tuple[Tensor, np.ndarray]:
    """Temperature and stopping epoch of each seed, from a twin without a fifth of the images."""
    twin = sample.part(round(KEPT * sample.x.shape[1]))
    nll: list[Tensor] = []
    final: list[Tensor] = []

    def watch(epoch: int, networks: dict[str, StackedMLP]) -> None:
        logits = predictions(networks["ce"], twin.val_x)
        nll.append(mean_nll(logits, twin.val_y))
        final[:] = [logits]

    arm = parse_arm("ce", recipe.epochs)
    train(recipe, [arm], twin, watch=watch, at=range(recipe.epochs + 1))
    risk = torch.stack(nll).nan_to_num(torch.inf)
    return temperatures(final[0], twin.val_y), risk.argmin(0).cpu().numpy()


def _train_once(recipe: NetworkRecipe, sample: Sample, stop: np.ndarray) -> dict[int, StackedMLP]:
    """The one-hot network at every epoch at which some seed stops, and at the end."""
    kept: dict[int, StackedMLP] = {}
    arm = parse_arm("ce", recipe.epochs)
    at = {*stop.tolist(), recipe.epochs}
    train(recipe, [arm], sample, watch=lambda e, nets: kept.update({e: nets["ce"]}), at=tuple(at))
    return kept


def _read_off(
    names: Sequence[str],
    sample: Sample,
    kept: dict[int, StackedMLP],
    scale: Tensor,
    stop: np.ndarray,
) -> dict[str, np.ndarray]:
    results: dict[str, np.ndarray] = {}
    if "temperature" in names:
        final = kept[max(kept)]
        t = scale[:, None, None]
        parts = {
            "": (predictions(final, sample.test_x) / t, sample.test_y),
            "val_": (predictions(final, sample.val_x) / t, sample.val_y),
        }
        results |= _scores("temperature", parts, predictions(final, sample.x) / t, sample.y)
        results["temperature/T"] = scale.cpu().numpy()
    if "early_stopping" in names:
        found = {epoch: _measures("early_stopping", nets, sample) for epoch, nets in kept.items()}
        for key in found[max(kept)]:
            values = [found[int(epoch)][key][i] for i, epoch in enumerate(stop)]
            results[key] = np.array(values)
        results["early_stopping/epoch"] = stop.astype(float)
    return results


def _moments(name: str, label: str, epoch: int, dev: Deviation) -> dict[str, np.ndarray]:
    values = {
        "sigma2": dev.sigma2,
        f"{label}_delta": dev.delta,
        f"{label}_cross": dev.cross,
        f"{label}_bias2": dev.bias2,
        f"{label}_best": optimal_theta(dev)[0],
    }
    return {f"{name}/{key}@{epoch}": value.cpu().numpy() for key, value in values.items()}


def _verify(networks: StackedMLP, sample: Sample, images: int) -> np.ndarray:
    """Largest relative gap to the parabola, and largest share of the bound, for each seed."""
    found = []
    for replica in range(len(sample.seeds)):
        x, y = sample.x[replica, :images], sample.y[replica, :images]
        model = one_seed(networks, replica)
        dev = gradient_deviation(networks.fork(torch.tensor([replica])), x[None], y[None])
        direct = [float(smoothed_deviation(model, x, y, theta)) for theta in VERIFY_THETAS]
        gap = max(abs(d / float(dev.at(t)) - 1) for d, t in zip(direct, VERIFY_THETAS, strict=True))
        share = max(d / float(dev.bound(t)) for d, t in zip(direct, VERIFY_THETAS, strict=True))
        found.append((gap, share))
    return np.array(found)
