"""A teacher, and the students that it trains."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.data import load_fashion_mnist, load_glyphs
from toolkit.learn.loop import fit, minibatches, warmup_cosine
from toolkit.learn.nets import conv_net
from toolkit.networks.nystrom_distillation.distiller import Distiller
from toolkit.networks.nystrom_distillation.losses import attention
from toolkit.networks.nystrom_distillation.recipe import Recipe
from toolkit.runtime import TUNING_SEEDS

Layers = dict[str, Tensor]
FASHION_HELD_OUT = 50_000
"""Training images from here on are for choices: no network learns them."""


class SmallNet(nn.Module):
    """Three 3×3 convolutions of stride 2, a mean over places (the feature), one linear layer."""

    def __init__(self, width: tuple[int, int], num_classes: int) -> None:
        """Draw the weights: `width` is the channels of the first layer, and of the feature."""
        super().__init__()
        first, features = width
        self.body = conv_net(first, 2 * first, features)
        self.head = nn.Linear(features, num_classes)

    def forward(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b classes"]:
        """The logits."""
        return self.head(self.body(x).mean((2, 3)))


@dataclass(frozen=True, eq=False)
class Images:
    """Normalised images and labels, by split."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@lru_cache(maxsize=2)
def load_images(data: str, classes: int, device: torch.device) -> Images:
    """Fashion-MNIST or `glyphs`: to train, to choose, to judge.

    Raises:
        DataMissing: if the set is not prepared.
    """
    if data == "fashion":
        learn, test = load_fashion_mnist("train"), load_fashion_mnist("test")
        pieces = [
            (learn.images[:FASHION_HELD_OUT], learn.label[:FASHION_HELD_OUT]),
            (learn.images[FASHION_HELD_OUT:], learn.label[FASHION_HELD_OUT:]),
            (test.images, test.label),
        ]
        centre, spread = 0.286, 0.353
    else:
        sets = [load_glyphs(split, classes) for split in ("train", "val", "test")]
        pieces = [(part.images, part.label) for part in sets]
        centre, spread = 0.2, 0.3

    def normal(x: Tensor) -> Tensor:
        return (x.to(device).float() / 255 - centre) / spread

    return Images(*((normal(x), y.to(device)) for x, y in pieces))


def teach(recipe: Recipe, device: torch.device) -> SmallNet:
    """The trained teacher of a recipe; the same one is trained once a process."""
    return _teacher(
        recipe.data,
        recipe.classes,
        recipe.teacher_images,
        recipe.teacher_epochs,
        recipe.teacher_width,
        recipe.teacher_seed,
        device,
    )


@lru_cache(maxsize=4)
def _teacher(
    data: str,
    classes: int,
    images: int,
    epochs: int,
    width: tuple[int, int],
    seed: int,
    device: torch.device,
) -> SmallNet:
    x, y = (part[:images] for part in load_images(data, classes, device).train)
    model = seeded_net(width, classes, seed).to(device)
    steps = epochs * (len(x) // 64)
    optimizer = _sgd(model, 0.1, 0.9, 5e-4)
    rate = LambdaLR(optimizer, lambda step: warmup_cosine(step, steps))
    batches = minibatches(x, y, size=64, steps=steps, generator=generator(seed, 1))
    fit(model, batches, lambda net, b: F.cross_entropy(net(b[0]), b[1]), optimizer, schedule=rate)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def layers_of(model: SmallNet, x: Float[Tensor, "n 1 h w"], size: int = 1024) -> Layers:
    """`feature`, `logit` and `map` (its attention) for all x, in evaluation mode."""
    training = model.training
    model.eval()
    found: dict[str, list[Tensor]] = {"feature": [], "logit": [], "map": []}
    for chunk in x.split(size):
        maps = model.body(chunk)
        feature = maps.mean((2, 3))
        for name, value in zip(found, (feature, model.head(feature), attention(maps)), strict=True):
            found[name].append(value)
    model.train(training)
    return {name: torch.cat(values) for name, values in found.items()}


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one seed's students learn from, and what they are judged on."""

    x: Float[Tensor, "n 1 h w"]
    y: Int64[Tensor, " n"]
    known: Layers
    """The teacher's layers for x."""
    held_out: tuple[Tensor, Tensor]
    judged: Layers
    """The teacher's layers for the images held out."""


def prepare(recipe: Recipe, seed: int, device: torch.device) -> Lesson:
    """A seed's subset of the teacher's images; seeds from 10,000 on are judged on validation."""
    world, teacher = load_images(recipe.data, recipe.classes, device), teach(recipe, device)
    order = np.random.default_rng([seed, 0]).permutation(recipe.teacher_images)
    index = torch.from_numpy(np.sort(order[: recipe.images])).to(device)
    x, y = (part[index] for part in world.train)
    held_out = world.val if seed >= TUNING_SEEDS else world.test
    held_out = (held_out[0][: recipe.test_images], held_out[1][: recipe.test_images])
    return Lesson(x, y, layers_of(teacher, x), held_out, layers_of(teacher, held_out[0]))


def distil(
    student: SmallNet, recipe: Recipe, arm: str, lesson: Lesson, seed: int
) -> Iterator[tuple[Distiller, tuple[Tensor, ...]]]:
    """Train a student, and yield its distiller and all tensors before every epoch and at the end.

    The order of batches depends on the seed alone, not on the arm. The teacher's layers are known:
    there is no augmentation.
    """
    device = lesson.x.device
    distiller = Distiller(
        student,
        teach(recipe, device),
        recipe.terms(arm),
        recipe.warmup,
        num_classes=recipe.classes,
        widths=(recipe.student_width[1], recipe.teacher_width[1]),
        landmarks=recipe.landmarks(arm),
        body=("body", "body"),
    ).to(device)
    groups = grouping(recipe, arm, lesson, seed)
    per_epoch = recipe.images // recipe.batch
    total, warm = recipe.epochs * per_epoch, recipe.warmup * per_epoch
    optimizer = _sgd(distiller, recipe.lr, recipe.momentum, recipe.weight_decay)
    rate = LambdaLR(optimizer, lambda step: warmup_cosine(step, total, warm))
    order = generator(seed, 1)
    tensors = (lesson.x, lesson.y, groups, *lesson.known.values())
    for _ in range(recipe.epochs):
        yield distiller, tensors
        batches = minibatches(*tensors, size=recipe.batch, steps=per_epoch, generator=order)
        fit(distiller, batches, loss_of, optimizer, schedule=rate)
        distiller.end_epoch()
    yield distiller, tensors


def loss_of(distiller: nn.Module, batch: tuple[Tensor, ...]) -> Float[Tensor, ""]:
    """The distiller's loss of a batch of `distil`."""
    x, y, groups, *known = batch
    return distiller(x, y, groups, dict(zip(("feature", "logit", "map"), known, strict=True)))


def grouping(recipe: Recipe, arm: str, lesson: Lesson, seed: int) -> Tensor:
    """Of which landmark each image is part: its class, a cluster of the teacher, itself, all."""
    kind, number, n = arm.partition("_")[0], recipe.landmarks(arm), len(lesson.y)
    if kind == "kmeans":
        found = KMeans(number, n_init=2, random_state=seed)
        labels = found.fit_predict(lesson.known["feature"].cpu().numpy())
        return torch.from_numpy(labels).long().to(lesson.y.device)
    if kind == "random":
        groups = torch.full((n,), -1)
        groups[torch.randperm(n, generator=generator(seed, 2))[:number]] = torch.arange(number)
        return groups.to(lesson.y.device)
    if kind == "gaussian":
        weights = torch.randn(n, number, generator=generator(seed, 2)) / n**0.5
        return weights.to(lesson.y.device)
    return lesson.y


def seeded_net(width: tuple[int, int], classes: int, seed: int) -> SmallNet:
    """A new network whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNet(width, classes)


def generator(seed: int, purpose: int) -> torch.Generator:
    """On the CPU; one for the order (1), one for landmarks (2)."""
    state = int(np.random.default_rng([seed, purpose]).integers(2**62))
    return torch.Generator().manual_seed(state)


def _sgd(model: nn.Module, lr: float, momentum: float, decay: float) -> torch.optim.SGD:
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # The fused step wants a gradient for all, but adaptors get none during warm-up.
    fused = not (isinstance(model, Distiller) and len(model.adaptors))
    return torch.optim.SGD(learnt, lr, momentum, weight_decay=decay, fused=fused)
