"""The small experiment: burn in, teach, measure detection and the labels that were believed."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice, pairwise

import torch
from torch import Tensor, nn

from toolkit.data import SCENE_CLASSES, Scenes, load_emoji_scenes
from toolkit.data.emoji_scenes import FOLDS
from toolkit.learn.loop import fit, minibatches, warmup_cosine
from toolkit.scenes.boxes import pad_boxes, pad_labels
from toolkit.scenes.detections import Detections
from toolkit.scenes.evaluate import coco_ap
from toolkit.scenes.instant_teaching.detector import RCNN, TinyRCNN
from toolkit.scenes.instant_teaching.labels import co_rectify, pseudo_label
from toolkit.scenes.instant_teaching.quality import (
    judge_labels,
    label_ap,
    precision_at_recall,
    precision_recall,
)
from toolkit.scenes.instant_teaching.recipe import ARMS, Recipe
from toolkit.scenes.instant_teaching.teaching import Batch, InstantTeacher, padded

CLASSES = len(SCENE_CLASSES)
LOWEST = 0.05
"""The smallest score of a label that is looked at afterwards."""
POOLED = 0.3
"""The smallest score of labels that co-rectify is judged on."""
TAUS = (0.3, 0.5, 0.7, 0.9)
"""Thresholds to choose from."""


@dataclass(frozen=True)
class Lesson:
    """Where an arm stands: its networks after some steps, the labels it learnt from so far."""

    step: int
    models: list[RCNN]
    boxes: float
    """Pseudo labels a picture, mean over the steps since the last lesson."""


def run_study(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Burn in, run every arm of a recipe for one seed, and measure.

    Returns:
        `"ARM/AP"`, `"ARM/AP50"`, also of the arm `burn_in`. If the recipe judges on `val`,
        `"burn_in/f1@τ"`, how well the burn-in labels the validation scenes. If on `test`, what the
        hidden truth says of labels: `"ARM/precision"` and `"ARM/recall"` of those that the network
        would write at τ; `"ARM/matched"`, their precision at the recall that the burn-in's have at
        τ, and `"ARM/reached"`, whether there is such a recall; `"ARM/boxes"`, labels a picture
        while training; `"burn_in/precision@τ"`, `"burn_in/recall@τ"`; and `"own/label_ap"`,
        `"rectified/label_ap"`, AP of the burn-in's labels down to a score of .3 without and with
        co-rectify.
    """
    models = burn_ins(recipe, seed, device)
    final = recipe.judge == "test"
    results = {f"burn_in/{name}": v for name, v in detection(recipe, models[0]).items()}
    results |= burn_in_labels(recipe, models) if final else validation_f1(models[0])
    for arm in recipe.arms:
        *_, end = lessons(recipe, arm, models, seed, device)
        found = detection(recipe, end.models[0])
        if final:
            goal = results[f"burn_in/recall@{recipe.tau:g}"]
            found |= labelling(recipe, end.models[0], goal) | {"boxes": end.boxes}
        results |= {f"{arm}/{name}": value for name, value in found.items()}
    return results


def burn_ins(recipe: Recipe, seed: int, device: torch.device) -> list[TinyRCNN]:
    """Networks trained on the labelled pictures alone: two that began apart, if an arm needs two.

    Raises:
        DataMissing: if scenes or backbone are not prepared.
    """
    two = any(ARMS[arm].get("networks") == 2 for arm in recipe.arms)
    settings = recipe.burn_in, recipe.batch, recipe.lr_burn_in, recipe.clip
    return [
        deepcopy(_burn_in(*settings, seed % FOLDS, 2 * seed + number, device))
        for number in range(1 + two)
    ]


def lessons(
    recipe: Recipe,
    arm: str,
    models: Sequence[RCNN],
    seed: int,
    device: torch.device,
    stops: Sequence[int] = (),
) -> Iterator[Lesson]:
    """Teach copies of burnt-in networks, and stop to look.

    Args:
        recipe: steps, rates, sizes.
        arm: of `ARMS`.
        models: of `burn_ins`; they stay as they are.
        seed: decides order, views and mixtures; also the fold.
        device: where to train.
        stops: steps at which to stop, beside the end.

    Yields:
        One lesson a stop. Its networks go on learning afterwards: use them at once.
    """
    options = {"tau": recipe.tau, "mix_prob": recipe.mix_prob} | ARMS[arm]
    kind, networks = options.pop("unlabelled", "instant"), options.pop("networks", 1)
    learners = [deepcopy(model) for model in models[:networks]]
    generator = torch.Generator().manual_seed(seed)
    teacher = InstantTeacher(learners, generator=generator, **options)
    batches = _batches(recipe, kind, models[0], seed, generator, device)
    every = nn.ModuleList(learners)
    optimizer = torch.optim.AdamW(every.parameters(), lr=recipe.rate(arm))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, recipe.steps)
    )
    seen: list[Tensor] = []

    def loss(_: nn.Module, batch: tuple[Batch, Batch | None]) -> Tensor:
        out = teacher.step(*batch)
        seen.append(out.get("boxes", torch.zeros(())))
        return out["total"]

    # the bound on the gradient is one network's
    clip = recipe.clip * networks**0.5
    for begin, end in pairwise([0, *sorted({*stops, recipe.steps})]):
        seen.clear()
        fit(every, islice(batches, end - begin), loss, optimizer, schedule=schedule, clip=clip)
        yield Lesson(end, [one.eval() for one in learners], float(torch.stack(seen).mean()))


def detection(recipe: Recipe, model: RCNN) -> dict[str, float]:
    """`AP` and `AP50` on the scenes that judge."""
    scenes = load_emoji_scenes("square", recipe.judge)
    count = recipe.test_images
    found = in_chunks(model.predict, scenes.images[:count], _home(model))
    scores = coco_ap(found, scenes.boxes[:count], scenes.labels[:count])
    return {name: scores[name] for name in ("AP", "AP50")}


def labelling(recipe: Recipe, model: RCNN, goal: float) -> dict[str, float]:
    """How good the labels are that a network writes: at τ, and at a recall to compare."""
    judged = judge_labels(
        write_labels(model, recipe.unlabelled, LOWEST), *hidden(recipe.unlabelled), CLASSES
    )
    precision, recall = precision_recall(judged, recipe.tau)
    matched, reached = precision_at_recall(judged, goal)
    return {
        "precision": precision,
        "recall": recall,
        "matched": matched,
        "reached": float(reached),
    }


def validation_f1(model: RCNN) -> dict[str, float]:
    """The harmonic mean of precision and recall of labels on the validation scenes, by τ."""
    scenes = load_emoji_scenes("square", "val")
    found = in_chunks(lambda x: pseudo_label(model, x, LOWEST), scenes.images, _home(model))
    judged = judge_labels(found, scenes.boxes, scenes.labels, CLASSES)
    results = {}
    for tau in TAUS:
        precision, recall = precision_recall(judged, tau)
        f1 = 2 * precision * recall / (precision + recall) if recall else 0.0
        results[f"burn_in/f1@{tau:g}"] = f1
    return results


def burn_in_labels(recipe: Recipe, models: Sequence[RCNN]) -> dict[str, float]:
    """The burn-in's labels at several thresholds, and what co-rectify makes of them."""
    truth = hidden(recipe.unlabelled)
    judged = judge_labels(write_labels(models[0], recipe.unlabelled, LOWEST), *truth, CLASSES)
    results: dict[str, float] = {}
    for tau in sorted({*TAUS, recipe.tau}):
        precision, recall = precision_recall(judged, tau)
        results |= {f"burn_in/precision@{tau:g}": precision, f"burn_in/recall@{tau:g}": recall}
    if len(models) == 2:
        for name, found in rectified_labels(models, recipe.unlabelled).items():
            results[f"{name}/label_ap"] = label_ap(judge_labels(found, *truth, CLASSES))
    return results


def rectified_labels(models: Sequence[RCNN], count: int = 600) -> dict[str, list[Detections]]:
    """Labels down to a score of .3 for network 1: its `own`, and those `rectified` by network 2."""
    images = load_emoji_scenes("square", "unlabelled").images[:count]
    first, second = models
    return {
        "own": write_labels(first, count, POOLED),
        "rectified": in_chunks(
            lambda x: co_rectify(first, second, x, POOLED)[0], images, _home(first)
        ),
    }


def write_labels(model: RCNN, count: int, tau: float) -> list[Detections]:
    """Pseudo labels of the first unlabelled pictures, as they are, without a view."""
    images = load_emoji_scenes("square", "unlabelled").images[:count]
    return in_chunks(lambda x: pseudo_label(model, x, tau), images, _home(model))


def hidden(count: int = 600) -> tuple[list[Tensor], list[Tensor]]:
    """True boxes and classes of the first unlabelled pictures, to judge by."""
    truth = load_emoji_scenes("square", "unlabelled", hidden_truth=True)
    return truth.boxes[:count], truth.labels[:count]


def in_chunks(
    label: Callable[[Tensor], list[Detections]],
    images: Tensor,
    device: torch.device,
    size: int = 50,
) -> list[Detections]:
    """What a function of pictures from 0 to 1 finds in all of them, chunk by chunk."""
    parts = (label(chunk.to(device).float() / 255) for chunk in images.split(size))
    return list(chain.from_iterable(parts))


@lru_cache(maxsize=16)  # settings that differ after the burn-in share it
def _burn_in(
    steps: int, batch: int, lr: float, clip: float, fold: int, seed: int, device: torch.device
) -> TinyRCNN:
    torch.manual_seed(seed)  # initial weights
    model = TinyRCNN(CLASSES).to(device)
    generator = torch.Generator().manual_seed(seed)
    teacher = InstantTeacher([model], 0.5, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, steps, 10)
    )
    scenes = load_emoji_scenes("square", "train", fold=fold)
    batches = minibatches(*_tensors(scenes, device), size=batch, steps=steps, generator=generator)
    fit(
        model,
        batches,
        lambda _, batch: teacher.step(Batch(*batch), None)["total"],
        optimizer,
        schedule=schedule,
        clip=clip,
    )
    return model.eval()


def _batches(
    recipe: Recipe,
    kind: str,
    model: RCNN,
    seed: int,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[tuple[Batch, Batch | None]]:
    """Labelled and unlabelled batches; the latter with what the arm knows of them."""
    draw = partial(minibatches, size=recipe.batch, steps=recipe.steps, generator=generator)
    scenes = load_emoji_scenes("square", "train", fold=seed % FOLDS)
    known = draw(*_tensors(scenes, device))
    if kind == "none":
        return ((Batch(*one), None) for one in known)
    images = load_emoji_scenes("square", "unlabelled").images[: recipe.unlabelled].to(device)
    extra: tuple[Tensor, ...] = ()
    if kind == "frozen":
        extra = padded(write_labels(model, recipe.unlabelled, recipe.tau))
    elif kind == "true":
        boxes, labels = hidden(recipe.unlabelled)
        extra = pad_boxes(boxes).to(device), pad_labels(labels).to(device)
    others = draw(images, *extra)
    return ((Batch(*a), Batch(*b)) for a, b in zip(known, others, strict=True))


def _tensors(scenes: Scenes, device: torch.device) -> tuple[Tensor, ...]:
    tensors = scenes.images, pad_boxes(scenes.boxes), pad_labels(scenes.labels)
    return tuple(one.to(device) for one in tensors)


def _home(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
