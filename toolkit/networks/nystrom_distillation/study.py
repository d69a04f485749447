"""What the chapter measures: kernels and accuracy of students, and landmarks of teachers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from toolkit.learn.metrics import accuracy
from toolkit.networks.nystrom_distillation.distiller import Distiller
from toolkit.networks.nystrom_distillation.kernels import (
    best_error,
    gram_distance,
    gram_norm,
    linear_cka,
    nystrom_error,
    transfer_bound,
)
from toolkit.networks.nystrom_distillation.landmarks import (
    averaging_matrix,
    class_landmarks,
    gaussian_landmarks,
    kmeans_landmarks,
    random_landmarks,
)
from toolkit.networks.nystrom_distillation.recipe import Recipe
from toolkit.networks.nystrom_distillation.training import (
    Lesson,
    SmallNet,
    distil,
    generator,
    layers_of,
    load_images,
    prepare,
    seeded_net,
    teach,
)

CURVE_IMAGES = 1_000
CHECKPOINTS = (0, 2, 4, 8, 16, 30)
"""Epochs of the alignment curves."""


def run_students(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train every arm of a recipe for one seed, and judge it on images that nobody learnt.

    Returns:
        `"ARM/METRIC"` with the metrics of `judge`; `push`, the gradient of the distillation terms
        over that of the labels after warm-up; `cka@EPOCH` and `kernel@EPOCH` of the feature; and
        the accuracy of the `teacher`.

    Raises:
        DataMissing: if the images are not prepared.
    """
    lesson = prepare(recipe, seed, device)
    results = {"teacher/accuracy": float(accuracy(lesson.judged["logit"], lesson.held_out[1]))}
    for arm in recipe.arms:
        student, scores = train_arm(recipe, arm, lesson, seed)
        scores |= judge(student, lesson)
        results |= {f"{arm}/{name}": value for name, value in scores.items()}
    return results


def train_arm(
    recipe: Recipe, arm: str, lesson: Lesson, seed: int
) -> tuple[SmallNet, dict[str, float]]:
    """Train one arm; the student, and what was measured on the way."""
    scores: dict[str, float] = {}
    student = seeded_net(recipe.student_width, recipe.classes, seed).to(lesson.x.device)
    for epoch, (distiller, tensors) in enumerate(distil(student, recipe, arm, lesson, seed)):
        if epoch == recipe.warmup and distiller.terms:
            scores["push"] = push(distiller, tuple(part[: recipe.batch] for part in tensors))
        if epoch in CHECKPOINTS:
            x, known = lesson.held_out[0][:CURVE_IMAGES], lesson.judged["feature"][:CURVE_IMAGES]
            feature = layers_of(student, x)["feature"]
            scores[f"cka@{epoch}"] = float(linear_cka(feature, known))
            scores[f"kernel@{epoch}"] = float(gram_distance(feature, known) / gram_norm(known))
    return student, scores


def judge(student: SmallNet, lesson: Lesson) -> dict[str, float]:
    """Accuracy and kernels on the images held out.

    `kernel`: ‖K_S − K_T‖_F / ‖K_T‖_F; `cka`; `partial`: the same ratio for partial kernels with the
    class means of these images; `left_out`: ε_S + ε_T over ‖K_T‖; `bound`: the right side of T1
    over ‖K_T‖; all of the feature, and with the suffix `_logit` after the last layer.
    """
    x, y = lesson.held_out
    mine = layers_of(student, x)
    averaging = averaging_matrix(y, int(y.max()) + 1)
    scores = {"accuracy": float(accuracy(mine["logit"], y))}
    for layer, suffix in (("feature", ""), ("logit", "_logit")):
        kernels = compare(mine[layer], lesson.judged[layer], averaging)
        scores |= {f"{name}{suffix}": value for name, value in kernels.items()}
    return scores


def compare(
    xs: Float[Tensor, "n ds"], xt: Float[Tensor, "n dt"], averaging: Float[Tensor, "n m"]
) -> dict[str, float]:
    """`kernel`, `cka`, `partial`, `left_out`, `bound` of two layers, as in `judge`."""
    bound, size = transfer_bound(xs, xt, averaging), float(gram_norm(xt))
    marks = averaging.double().T @ xt.double()
    return {
        "kernel": bound.full / size,
        "cka": float(linear_cka(xs, xt)),
        "partial": bound.partial / float((xt.double() @ marks.T).norm()),
        "left_out": bound.left_out / size,
        "bound": bound.right / size,
    }


def push(distiller: Distiller, batch: tuple[Tensor, ...]) -> float:
    """The norm of the gradient of the distillation terms over that of the labels' loss."""
    x, y, _, *known = batch
    student, teacher = distiller.layers(
        x, dict(zip(("feature", "logit", "map"), known, strict=True))
    )
    labels, transfer = distiller.parts(student, teacher, y)
    if transfer is None:
        return 0.0
    learnt = [*distiller.student.parameters()]
    norms = [
        torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for p, g in zip(
                    learnt,
                    torch.autograd.grad(part, learnt, retain_graph=True, allow_unused=True),
                    strict=True,
                )
            ]
        ).norm()
        for part in (transfer, labels)
    ]
    return float(norms[0] / norms[1])


# --- landmarks of a teacher ---------------------------------------------------------------------


@dataclass(frozen=True)
class LandmarkRecipe:
    """How well few landmarks approximate the kernel of a teacher; one seed, one teacher."""

    arms: tuple[str, ...] = ("class", "kmeans", "random", "gaussian", "best")
    seeds: int = 1  # teachers
    numbers: tuple[int, ...] = (1, 2, 3, 5, 7, 10, 14, 20, 30, 40, 60, 80)  # m
    draws: int = 20  # of random landmarks
    images: int = 2_000  # test images
    teacher_images: int = 15_000
    teacher_epochs: int = 4


def run_landmarks(recipe: LandmarkRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """The relative Nyström error ‖K − K̂‖_F / ‖K‖_F of a teacher's features, by kind of landmark.

    Returns:
        `"KIND/error@m"`, the mean over draws for random and Gaussian landmarks; `"class/error"` and
        the like for one landmark a class, and `"class/centred"` for features without their mean.
    """
    x, y = features_of_teacher(recipe, seed, device)
    found: dict[str, float] = {}
    for kind in recipe.arms:
        for m in recipe.numbers if kind != "class" else ():
            found[f"{kind}/error@{m}"] = landmark_error(x, y, kind, m, recipe.draws, seed)
        found[f"{kind}/error"] = landmark_error(x, y, kind, 10, recipe.draws, seed)
        found[f"{kind}/centred"] = landmark_error(x - x.mean(0), y, kind, 10, recipe.draws, seed)
    return found


def features_of_teacher(
    recipe: LandmarkRecipe, seed: int, device: torch.device
) -> tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]:
    """Features and labels of test images, of the teacher with that seed."""
    plan = Recipe(
        teacher_images=recipe.teacher_images,
        teacher_epochs=recipe.teacher_epochs,
        teacher_seed=seed,
    )
    x, y = (part[: recipe.images] for part in load_images("fashion", 10, device).test)
    return layers_of(teach(plan, device), x)["feature"], y


def landmark_error(
    x: Float[Tensor, "n d"], y: Int64[Tensor, " n"], kind: str, m: int, draws: int, seed: int
) -> float:
    """The relative error of one kind of landmarks; `best` is the best matrix of rank m."""
    size = gram_norm(x)
    if kind == "best":
        return float(best_error(x, m) / size)
    if kind == "class":
        return float(nystrom_error(x, class_landmarks(x, y, 10)) / size)
    if kind == "kmeans":
        return float(nystrom_error(x, kmeans_landmarks(x, m, seed)[0]) / size)
    draw = {"random": random_landmarks, "gaussian": gaussian_landmarks}[kind]
    source = generator(seed, 3)
    errors = [nystrom_error(x, draw(x, m, source)[0]) / size for _ in range(draws)]
    return float(torch.stack(errors).mean())


def perturbed(
    x: Float[Tensor, "n d"], levels: Sequence[float], seed: int
) -> list[Float[Tensor, "n d"]]:
    """Features with Gaussian noise of so many times their root mean square."""
    noise = torch.randn(x.shape, generator=generator(seed, 4)).to(x)
    scale = x.square().mean().sqrt()
    return [x + level * scale * noise for level in levels]
