"""Many tiny students side by side, so that a reader can turn every knob at once.

Perceptrons on 14×14 pixels learn from a perceptron teacher: one `baddbmm` a layer trains them all.
They serve the interactive figure only; no claim rests on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.learn.loop import fit, minibatches, warmup_cosine
from toolkit.learn.stacked import StackedMLP
from toolkit.networks.nystrom_distillation.landmarks import averaging_matrix
from toolkit.networks.nystrom_distillation.training import generator, load_images

CLASSES = 10


@dataclass(frozen=True)
class StackRecipe:
    """Students at every strength α, for one layer and one kind of landmarks."""

    alphas: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6)
    layer: str = "feature"  # or logit, combo
    landmarks: str = "class"  # or batch
    replicas: int = 3  # seeds at each α, averaged
    teacher_width: tuple[int, int] = (128, 48)  # hidden, feature
    student_width: tuple[int, int] = (16, 8)
    teacher_images: int = 6_000
    images: int = 600
    epochs: int = 30
    batch: int = 60
    lr: float = 0.02
    warmup: int = 2  # epochs

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if self.layer not in ("feature", "logit", "combo"):
            raise ValueError(f"layer is feature, logit or combo, got {self.layer!r}")
        if self.landmarks not in ("class", "batch"):
            raise ValueError(f"landmarks are class or batch, got {self.landmarks!r}")


class StackedStudents(nn.Module):
    """R perceptrons with a hidden layer, a rectified feature and logits."""

    def __init__(self, generators: Sequence[torch.Generator], widths: tuple[int, ...]) -> None:
        """One generator a replica; widths of input, hidden layer, feature, logits."""
        super().__init__()
        replicas = len(generators)
        self.body = StackedMLP(replicas, widths[:3], generators)
        self.head = StackedMLP(replicas, widths[2:], generators)

    def forward(self, x: Float[Tensor, "r b i"]) -> tuple[Tensor, Tensor]:
        """The features [r, b, d] and logits [r, b, k]."""
        feature = self.body(x).relu()
        return feature, self.head(feature)


def pixels(split: str, count: int) -> tuple[Float[Tensor, "n 196"], Int64[Tensor, " n"]]:
    """Fashion-MNIST at 14×14, normalised."""
    x, y = getattr(load_images("fashion", CLASSES, torch.device("cpu")), split)
    return F.avg_pool2d(x[:count], 2).flatten(1), y[:count]


def stack_teacher(recipe: StackRecipe, seed: int = 0) -> StackedStudents:
    """One perceptron, trained on labels."""
    x, y = pixels("train", recipe.teacher_images)
    widths = (x.shape[1], *recipe.teacher_width, CLASSES)
    model = StackedStudents([generator(seed, 5)], widths)
    steps = 8 * (len(x) // 100)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
    rate = LambdaLR(optimizer, lambda step: warmup_cosine(step, steps))
    batches = minibatches(x, y, size=100, steps=steps, generator=generator(seed, 6))
    fit(model, batches, _labels_only, optimizer, schedule=rate)
    return model.requires_grad_(False).eval()


def train_stack(
    recipe: StackRecipe, teacher: StackedStudents, seed: int = 0
) -> tuple[StackedStudents, Float[Tensor, " r"]]:
    """Train `replicas` students at every α; all see the same batches.

    Returns:
        The students, and α of each.
    """
    x, y = pixels("train", recipe.images)
    alphas = torch.tensor(recipe.alphas).repeat_interleave(recipe.replicas)
    seeds = list(range(recipe.replicas)) * len(recipe.alphas)
    widths = (x.shape[1], *recipe.student_width, CLASSES)
    model = StackedStudents([generator(seed + s, 7) for s in seeds], widths)
    known = [part[0] for part in teacher(x[None])]
    per_epoch = recipe.images // recipe.batch
    total, warm = recipe.epochs * per_epoch, recipe.warmup * per_epoch
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, 0.9, weight_decay=5e-4)
    rate = LambdaLR(optimizer, lambda step: warmup_cosine(step, total, warm))
    average = averaging_matrix(y, CLASSES)
    fixed = [average.T @ part for part in known]  # the teacher does not change, nor do its means
    tensors, order = (x, y, average, *known), generator(seed, 8)
    marks: list[tuple[Tensor, Tensor]] | None = None
    for epoch in range(recipe.epochs):
        sums = [torch.zeros(len(alphas), CLASSES, width) for width in widths[2:]]
        batches = minibatches(*tensors, size=recipe.batch, steps=per_epoch, generator=order)
        for images, labels, weights, *taught in batches:
            own = model(images.expand(len(alphas), -1, -1))
            loss = _cross_entropy(own[1], labels)
            if epoch >= recipe.warmup:
                loss = loss + alphas * _transfer(recipe, own, taught, marks)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            rate.step()
            sums = [old + weights.T @ new.detach() for old, new in zip(sums, own, strict=True)]
        marks = list(zip(sums, fixed, strict=True))
    return model.requires_grad_(False), alphas


def _transfer(
    recipe: StackRecipe,
    own: Sequence[Tensor],
    taught: Sequence[Tensor],
    marks: Sequence[tuple[Tensor, Tensor]] | None,
) -> Float[Tensor, " r"]:
    """The terms of the recipe's layers, with `marks` or the batch itself as landmarks."""
    total = torch.zeros(len(own[0]))
    for i, name in enumerate(("feature", "logit")):
        if recipe.layer in (name, "combo"):
            batch = (own[i].detach(), taught[i])
            pair = batch if recipe.landmarks == "batch" or marks is None else marks[i]
            total = total + stacked_kda(own[i], taught[i], *pair)
    return total


def stacked_kda(
    fs: Float[Tensor, "r b ds"],
    ft: Float[Tensor, "b dt"],
    cs: Float[Tensor, "r m ds"],
    ct: Float[Tensor, "m dt"],
) -> Float[Tensor, " r"]:
    """`kda_loss` of every student in a stack, with one teacher."""
    teacher = ft @ ct.T
    student = fs @ cs.transpose(1, 2)
    error = F.smooth_l1_loss(student, teacher.expand_as(student), reduction="none")
    return error.sum((1, 2)) / teacher.norm().clamp(min=1e-12)


def _cross_entropy(logits: Float[Tensor, "r b k"], y: Int64[Tensor, " b"]) -> Float[Tensor, " r"]:
    every = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)), reduction="none")
    return every.view(len(logits), -1).mean(1)


def _labels_only(model: nn.Module, batch: tuple[Tensor, ...]) -> Float[Tensor, ""]:
    return _cross_entropy(model(batch[0][None])[1], batch[1]).sum()
