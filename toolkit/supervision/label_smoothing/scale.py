"""The paper's own scale: a ResNet on CIFAR-100 or a folder of images, one process a GPU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from toolkit.learn.distributed import world
from toolkit.learn.loop import fit
from toolkit.learn.torchrun import average_buffers, sum_over_ranks, torchrun_group
from toolkit.supervision.label_smoothing.branches import train_branches
from toolkit.supervision.label_smoothing.images import (
    ImageTask,
    cifar_100,
    image_folder,
    loader,
    shares,
)
from toolkit.supervision.label_smoothing.loss import smoothed_cross_entropy
from toolkit.supervision.label_smoothing.quality import quality
from toolkit.supervision.label_smoothing.recipe import Recipe, parse_arm

NETWORKS = ("resnet18", "resnet34", "resnet50")
TEST_BATCH = 500


@dataclass(frozen=True)
class ScaleRecipe(Recipe):
    """A ResNet with SGD and a step-wise learning rate; values are ours where not confirmed.

    The abstract says: ResNets on benchmark data. Every arm's name is read by `parse_arm`, with the
    drop epoch where it has one; `lsr_pre` and `tsla_pre` need a teacher.
    """

    arms: tuple[str, ...] = (
        *("ce", "lsr:0.1"),
        *(f"tsla:0.1:{s}" for s in (120, 140, 160, 180)),
    )  # methods
    seeds: int = 3  # initialisations and orders
    data: str = "cifar100"  # or "folder": one folder a class below train/ and test/
    folder: str = ""  # where; default for cifar100: cifar-100-binary in $TOOLKIT_DATA
    network: str = "resnet18"  # or "resnet34", "resnet50"
    small_images: bool = True  # a 3×3 stem without pooling, for 32×32 pixels
    size: int = 224  # pixels a side (folder)
    weights: str = ""  # safetensors file to start from; the last layer is new if it does not fit
    teacher: str = ""  # safetensors file of the network that gives ŷ to `_pre` arms
    epochs: int = 200  # E
    batch: int = 128  # images a step over all processes
    lr: float = 0.1  # of the last layer; and of the body times body_rate
    body_rate: float = 1.0  # 0.1 where the network starts from weights
    milestones: tuple[int, ...] = (100, 150)  # epochs at which lr falls to a tenth
    momentum: float = 0.9  # of SGD, never reset
    weight_decay: float = 5e-4  # of SGD
    workers: int = 4  # processes that read images; 0 reads in this one


def run_scale(
    recipe: ScaleRecipe, seeds: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """Test accuracy, likelihood and calibration of every arm; branches share their beginning.

    Under torchrun every process calls this and gets the same numbers; alone, one does all.

    Returns:
        `ARM/accuracy` (%), `ARM/nll` (nats), `ARM/ece` (%), `ARM/train_loss` (the last epoch's mean
        training loss, on the labels that this arm trains on).

    Raises:
        FileNotFoundError: if images or weights are missing; the message says where to put them.
        ValueError: for an unknown data set, network or arm.
    """
    if recipe.network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {recipe.network!r}")
    arms = {name: parse_arm(name, recipe.epochs) for name in recipe.arms}
    kinds = {arm.label for arm in arms.values()}
    if kinds - {"uniform", "pre"} or any(a.entropy or a.step_drop for a in arms.values()):
        raise ValueError("at this scale the arms are ce, lsr, tsla, reverse, linear, cosine, _pre")
    if "pre" in kinds and not recipe.teacher:
        raise ValueError("arms with _pre need --set teacher=FILE.safetensors")
    with torchrun_group(device) as home:
        task = _task(recipe)
        soft = _teacher_labels(recipe, task, home) if "pre" in kinds else None
        rows = [_one_seed(recipe, task, soft, seed, home) for seed in seeds]
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def _task(recipe: ScaleRecipe) -> ImageTask:
    if recipe.data == "cifar100":
        return cifar_100(recipe.folder)
    if recipe.data == "folder":
        return image_folder(recipe.folder, recipe.size)
    raise ValueError(f"data must be cifar100 or folder, got {recipe.data!r}")


def _one_seed(
    recipe: ScaleRecipe,
    task: ImageTask,
    soft: Float[Tensor, "n k"] | None,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    torch.manual_seed(seed)
    model = build_network(recipe, task.classes, recipe.weights).to(device)
    optimizer = _sgd(recipe, model)
    trained = DistributedDataParallel(model) if dist.is_initialized() else model
    results: dict[str, float] = {}
    for label in ("uniform", "pre"):
        arms = {name: parse_arm(name, recipe.epochs) for name in recipe.arms}
        schedules = {name: arm.schedule for name, arm in arms.items() if arm.label == label}
        if not schedules:
            continue
        losses: list[float] = []

        def advance(epoch: int, theta: float, label: str = label, losses: list = losses) -> None:
            labels = soft if label == "pre" and theta else None
            losses[:] = [_epoch(recipe, task, trained, optimizer, labels, theta, seed, epoch)]

        def finish(name: str, losses: list = losses) -> None:
            average_buffers(model)
            results.update({f"{name}/{k}": v for k, v in _test(recipe, task, model).items()})
            results[f"{name}/train_loss"] = losses[-1]

        if results:  # the second kind of label starts again from the same weights
            torch.manual_seed(seed)
            model.load_state_dict(build_network(recipe, task.classes, recipe.weights).state_dict())
            optimizer.state.clear()
        train_branches(schedules, recipe.epochs, model, optimizer, advance, finish)
    return results


def build_network(recipe: ScaleRecipe, classes: int, weights: str = "") -> nn.Module:
    """A torchvision ResNet, with the stem for small images if asked for.

    Raises:
        FileNotFoundError: if the weights are not there.
        ValueError: if more than the last layer does not fit them.
    """
    model = getattr(torchvision.models, recipe.network)(num_classes=classes)
    if recipe.small_images:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    if not weights:
        return model
    if not Path(weights).expanduser().is_file():
        raise FileNotFoundError(f"no weights at {weights}")
    state, own = load_file(str(Path(weights).expanduser())), model.state_dict()
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape]
    if body := [name for name in wrong if not name.startswith("fc.")]:
        raise ValueError(f"{weights} does not fit {recipe.network}: {', '.join(body[:3])} …")
    model.load_state_dict({k: own[k] if k in wrong else state[k] for k in own})
    return model


def _sgd(recipe: ScaleRecipe, model: nn.Module) -> torch.optim.SGD:
    head = [p for name, p in model.named_parameters() if name.startswith("fc.")]
    body = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
    rates = (recipe.lr, recipe.lr * recipe.body_rate)
    groups = [{"params": p, "lr": lr} for p, lr in zip((head, body), rates, strict=True)]
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def _epoch(
    recipe: ScaleRecipe,
    task: ImageTask,
    model: nn.Module,
    optimizer: torch.optim.SGD,
    soft: Float[Tensor, "n k"] | None,
    theta: float,
    seed: int,
    epoch: int,
) -> float:
    """One pass over the images; the mean loss over all processes."""
    tenths = 0.1 ** sum(epoch >= milestone for milestone in recipe.milestones)
    for group, rate in zip(optimizer.param_groups, (1.0, recipe.body_rate), strict=True):
        group["lr"] = recipe.lr * rate * tenths
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"

    def loss(net: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        images, target, label, weight = batch
        return weight * smoothed_cross_entropy(net(images), target, theta, label)

    losses = fit(
        model,
        _batches(recipe, task, soft, device, seed, epoch),
        loss,
        optimizer,
        amp=torch.bfloat16 if on_gpu else None,
    )
    total = losses.mean()
    sum_over_ranks(total)
    return float(total) / world()[1]


def _batches(
    recipe: ScaleRecipe,
    task: ImageTask,
    soft: Tensor | None,
    device: torch.device,
    seed: int,
    epoch: int,
) -> Iterator[tuple]:
    torch.manual_seed(int(np.random.default_rng([seed, 2, epoch, world()[0]]).integers(2**62)))
    mine = list(shares(task.count, recipe.batch, seed, epoch))
    batches = loader(task.train, [index for index, _ in mine], recipe.workers)
    for (images, target), (index, weight) in zip(batches, mine, strict=True):
        label = None if soft is None else soft[index].to(device)
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        yield images, target.to(device, non_blocking=True), label, weight


@torch.no_grad()
def _logits(
    recipe: ScaleRecipe, model: nn.Module, images: torch.utils.data.Dataset, count: int
) -> tuple[Tensor, Tensor]:
    """Predictions and classes, on the CPU, in the order of the images."""
    device = next(model.parameters()).device
    model.eval()
    rows = [list(range(b, min(b + TEST_BATCH, count))) for b in range(0, count, TEST_BATCH)]
    found = [
        (model(x.to(device)).float().cpu(), y) for x, y in loader(images, rows, recipe.workers)
    ]
    model.train()
    logits, labels = (torch.cat(column) for column in zip(*found, strict=True))
    return logits, labels


def _test(recipe: ScaleRecipe, task: ImageTask, model: nn.Module) -> dict[str, float]:
    logits, labels = _logits(recipe, model, task.test, len(task.test))  # type: ignore[arg-type]
    return {name: float(v[0]) for name, v in quality(logits[None], labels[None]).items()}


def _teacher_labels(
    recipe: ScaleRecipe, task: ImageTask, device: torch.device
) -> Float[Tensor, "n k"]:
    """ŷ of every training image, once, without augmentation."""
    teacher = build_network(recipe, task.classes, recipe.teacher).to(device)
    return _logits(recipe, teacher, task.plain, task.count)[0].softmax(-1)
