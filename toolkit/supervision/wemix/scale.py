"""WeMix at the usual scale: CIFAR or a folder of images, one process a GPU under torchrun.

    torchrun --nproc-per-node 8 -m toolkit run wemix --profile paper

The paper's tables could not be read: this recipe is ours. Learning rates, schedule and weight
decay are those of the mixup reference code.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from toolkit.data.cifar import load_cifar
from toolkit.learn.distributed import world
from toolkit.learn.loop import warmup_cosine
from toolkit.learn.torchrun import average_buffers, sum_over_ranks, torchrun_group
from toolkit.supervision.wemix.augment import augmentation, drawing
from toolkit.supervision.wemix.method import PRESETS, WeMixSchedule, wemix_step
from toolkit.supervision.wemix.networks import backbone

CIFAR = {"cifar10": 10, "cifar100": 100}
REESTIMATED = 200  # batches of originals that set the statistics of batch norm before testing


@dataclass(frozen=True)
class PaperRecipe:
    """All methods on CIFAR-10, CIFAR-100 or a folder; the base augmentation is part of "original".

    Base: crop with padding 4 and mirroring (a folder: random resized crop and mirroring). The
    studied augmentation comes on top. From the mixup reference code: rate, schedule, weight decay,
    Beta(1, 1). Ours: the stages, λ, the rest.
    """

    arms: tuple[str, ...] = PRESETS  # methods to run
    seeds: int = 3  # initialisations and orders
    data: str = "cifar10"  # cifar10, cifar100, or a folder with train/ and val/
    folder: str = ""  # of CIFAR's binary files; default: in $TOOLKIT_DATA
    network: str = "preact_resnet18"  # or wrn_28_10, resnet50
    classes: int = 10
    side: int = 224  # pixels, of a folder's images
    augmentation: str = "mixup"  # the studied one
    strength: float = 0.35  # σ, of the label-preserving ones
    alpha: float = 1.0  # of mixup and CutMix
    lam: float = 0.5  # λ
    stage1_fraction: float = 0.75  # inside the last phase of the rate
    epochs: int = 200
    batch: int = 128  # originals a step and process
    lr: float = 0.1  # for the batch of all processes
    schedule: str = "step"  # ×0.1 at half and three quarters; or "cosine"
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4  # of SGD
    max_steps: int = 0  # stop earlier, to try it out; 0 does not


def run_paper(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train every arm, over all processes that torchrun started, and test it.

    Returns:
        The same on every process: for each arm `error` and `loss` on the test images and `images`,
        how many went through the network while learning, in thousands.

    Raises:
        ValueError: for an unknown arm, network, augmentation or schedule, or other classes.
        FileNotFoundError: if CIFAR's files are missing; the message says where to put them.
    """
    _check(recipe)
    results: dict[str, float] = {}
    with torchrun_group(device) as home:
        data = open_images(recipe, home)
        for arm in recipe.arms:
            metrics = _train(recipe, data, arm, seed, home)
            results |= {f"{arm}/{name}": value for name, value in metrics.items()}
    return results


def rate(recipe: PaperRecipe, step: int, total: int) -> float:
    """The learning rate of a step over `lr`: ×0.1 at half and three quarters, or a cosine."""
    if recipe.schedule == "cosine":
        return warmup_cosine(step, total)
    return 0.1 ** ((2 * step >= total) + (4 * step >= 3 * total))


@runtime_checkable
class Images(Protocol):
    """Batches of this process."""

    steps_per_epoch: int

    def train(self, epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Originals after the base augmentation, and classes; equally many on every process."""

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the test images, as they are."""


def open_images(recipe: PaperRecipe, device: torch.device) -> Images:
    """CIFAR by name, or a folder of images."""
    if recipe.data in CIFAR:
        return _Cifar(recipe, device)
    return _Folder(recipe, device)


class _Cifar:
    """All of CIFAR on one device, cropped and mirrored there."""

    def __init__(self, recipe: PaperRecipe, device: torch.device) -> None:
        classes = CIFAR[recipe.data]
        if recipe.classes != classes:
            raise ValueError(f"{recipe.data} has {classes} classes; set classes to that")
        data = load_cifar(classes, recipe.folder, device)
        self.x, self.y = data.train_images, data.train_labels
        self.held_out = data.test_images, data.test_labels
        self.batch = recipe.batch
        self.steps_per_epoch = len(self.x) // (recipe.batch * world()[1])

    def train(self, epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        rank, size = world()
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(self.x)))
        generator = torch.Generator().manual_seed(hash((seed, epoch, rank)) % 2**62)
        for chunk in order[: self.steps_per_epoch * self.batch * size].split(self.batch * size):
            index = chunk[rank::size].to(self.x.device)
            yield crop_and_mirror(_scaled(self.x[index]), 4, generator), self.y[index]

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, size = world()
        x, y = (part[rank::size] for part in self.held_out)
        for begin in range(0, len(x), 500):
            yield _scaled(x[begin : begin + 500]), y[begin : begin + 500]


class _Folder:
    """`ImageFolder` of train/ and val/."""

    def __init__(self, recipe: PaperRecipe, device: torch.device) -> None:
        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        views = {
            "train": [v2.RandomResizedCrop(recipe.side), v2.RandomHorizontalFlip()],
            "val": [v2.Resize(recipe.side * 8 // 7), v2.CenterCrop(recipe.side)],
        }
        rank, size = world()
        self.device = device
        self.loaders: dict[str, DataLoader] = {}
        for split, view in views.items():
            images = ImageFolder(Path(recipe.data, split), v2.Compose(view + finish))
            if len(images.classes) != recipe.classes:
                raise ValueError(
                    f"{recipe.data}/{split} has {len(images.classes)} classes; set classes to that"
                )
            learning = split == "train"
            share = images if learning else Subset(images, range(rank, len(images), size))
            self.loaders[split] = DataLoader(
                share,
                recipe.batch,
                sampler=DistributedSampler(images, size, rank) if learning else None,
                num_workers=min(8, os.cpu_count() or 1) if device.type == "cuda" else 0,
                pin_memory=device.type == "cuda",
                drop_last=learning,
            )
        self.steps_per_epoch = len(self.loaders["train"])

    def train(self, epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.loaders["train"].sampler.set_epoch(1000 * seed + epoch)  # type: ignore[attr-defined]
        yield from self._batches("train")

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._batches("val")

    def _batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.loaders[split]:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


def crop_and_mirror(
    x: Float[Tensor, "b c h w"], padding: int, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Pad with zeros, cut back to the old size anywhere, mirror half; drawn per example."""
    b, c, h, w = x.shape
    corner = torch.randint(2 * padding + 1, (2, b), generator=generator)
    mirrored = torch.rand(b, generator=generator) < 0.5
    rows = corner[0][:, None] + torch.arange(h)
    columns = corner[1][:, None] + torch.arange(w)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(x, (padding,) * 4)
    index = (
        torch.arange(b)[:, None, None, None],
        torch.arange(c)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    )
    return padded[tuple(part.to(x.device) for part in index)]


def _train(
    recipe: PaperRecipe, data: Images, arm: str, seed: int, device: torch.device
) -> dict[str, float]:
    total = recipe.epochs * data.steps_per_epoch
    total = min(total, recipe.max_steps) if recipe.max_steps else total
    if total < 1:
        raise ValueError(f"no batch of {recipe.batch} on each of {world()[1]} processes; use less")
    torch.manual_seed(seed)
    model = backbone(recipe.network, recipe.classes).to(device)
    model = model.to(memory_format=torch.channels_last)
    trained = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    scheduler = LambdaLR(optimizer, lambda step: rate(recipe, step, total))
    schedule = WeMixSchedule.preset(arm, total, recipe.stage1_fraction, recipe.lam)
    change = augmentation(recipe.augmentation, recipe.strength, alpha=recipe.alpha)
    draw = drawing(change, torch.Generator().manual_seed(1000 * seed + world()[0]))
    seen = 0
    trained.train()
    for step, (x, y) in enumerate(_stream(data, total, seed)):
        plan = schedule.at(step)
        target = F.one_hot(y, recipe.classes).to(x.dtype)
        wemix_step(partial(_forward, trained), (x, target), draw, plan, optimizer)
        scheduler.step()
        seen += len(x) * (plan.use_orig + plan.use_aug) * world()[1]
    _reestimate(model, data, seed)
    return _test(model, data) | {"images": seen / 1000}


def _forward(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in float32; the network itself in bfloat16 on a GPU."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
        return model(x).float()


def _stream(data: Images, total: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`total` batches, epoch after epoch."""
    epochs = -(-total // data.steps_per_epoch)
    endless = (batch for epoch in range(epochs) for batch in data.train(epoch, seed))
    return islice(endless, total)


def _reestimate(model: nn.Module, data: Images, seed: int) -> None:
    """Statistics of batch norm from originals alone, then averaged over processes.

    While learning they came from a mixture of originals and augmented images.
    """
    update_bn((x for x, _ in islice(data.train(0, seed), REESTIMATED)), model)
    average_buffers(model)


@torch.no_grad()
def _test(model: nn.Module, data: Images) -> dict[str, float]:
    """Error and loss over the test images of all processes."""
    model.eval()
    total = torch.zeros(3, dtype=torch.float64)
    for x, y in data.test():
        logits = model(x).float()
        wrong = (logits.argmax(1) != y).sum()
        loss = F.cross_entropy(logits, y, reduction="sum")
        total += torch.tensor([float(wrong), float(loss), len(y)], dtype=torch.float64)
    total = sum_over_ranks(total.to(next(model.parameters()).device)).cpu()
    return {"error": float(total[0] / total[2]), "loss": float(total[1] / total[2])}


def _scaled(images: Tensor) -> Float[Tensor, "b 3 h w"]:
    """0…1: what the augmentations expect; batch norm centres inside the network."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def _check(recipe: PaperRecipe) -> None:
    if unknown := set(recipe.arms) - set(PRESETS):
        raise ValueError(f"arms are {', '.join(PRESETS)}; got {sorted(unknown)}")
    if recipe.schedule not in ("step", "cosine"):
        raise ValueError(f"schedule is step or cosine, got {recipe.schedule!r}")
    augmentation(recipe.augmentation, recipe.strength, alpha=recipe.alpha)
    WeMixSchedule(1, recipe.stage1_fraction, recipe.lam)
    if recipe.network == "resnet50" and recipe.data in CIFAR:
        raise ValueError("resnet50 is for a folder of larger images; take preact_resnet18")
