"""The paper's own size: the search on CIFAR or ImageNet, and training what it found."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.distributed as dist
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from toolkit.data.cifar import load_cifar
from toolkit.learn.distributed import world
from toolkit.learn.loop import warmup_cosine
from toolkit.learn.torchrun import (
    average_buffers,
    load_checkpoint,
    save_checkpoint,
    sum_over_ranks,
    torchrun_group,
)
from toolkit.networks.structures import Network, build, count, parse, to_text
from toolkit.networks.zen_nas.gates import add_gates
from toolkit.networks.zen_nas.proxies import PROXIES
from toolkit.networks.zen_nas.recipe import Recipe
from toolkit.networks.zen_nas.search import (
    CIFAR_START,
    SPACE_I,
    SPACE_I_PAPER,
    SPACE_II,
    Budget,
    History,
    SearchConfig,
    evolve,
)

TASKS = ("search", "train")
SPACES = {"I": SPACE_I, "I-paper": SPACE_I_PAPER, "II": SPACE_II}
CIFAR = {"cifar10": 10, "cifar100": 100}
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TARGETS: dict[str, tuple[float, float, float]] = {
    "ZenNet 0.1 ms": (30.1, 1.7e3, 77.8),
    "ZenNet 0.5 ms": (118.0, 8.3e3, 82.7),
    "ZenNet 1.2 ms": (180.0, 22.0e3, 83.6),
    "ZenNet 400M-SE": (5.7, 410.0, 78.0),
}
"""Millions of parameters, millions of multiply-adds and ImageNet top-1 in %, as released."""


@dataclass(frozen=True)
class PaperRecipe(Recipe):
    """CIFAR with a million parameters; values are the paper's unless a comment says otherwise.

    ImageNet's: resolution 224, epochs 480, weight decay 4e-5, a teacher at 320 pixels.
    """

    arms: tuple[str, ...] = ("zen",)
    seeds: int = 1
    task: str = "search"  # or "train"
    folder: str = "zen_nas"  # of the found structures and of checkpoints

    space: str = "I"  # or "I-paper" (uniform kernels), "II" (inverted bottlenecks)
    start: str = CIFAR_START  # of the search
    resolution: int = 32  # pixels; ImageNet 224
    params: float = 1e6  # budget; 0: none
    macs: float = 0.0  # budget; 0: none
    layers: int = 18  # budget; 20 for 2e6 parameters
    search_steps: int = 96_000
    population: int = 256
    score_batch: int = 64  # images; the authors say that 16 suffices

    data: str = "cifar10"  # or cifar100, or a folder with train/ and val/
    cifar_folder: str = ""  # of CIFAR's binary files; default: in $TOOLKIT_DATA
    structure: str = ""  # to train; default: what the search wrote into `folder`
    se: bool = False  # squeeze and excitation; only for budgets of multiply-adds
    epochs: int = 1440
    batch: int = 64  # images a process and step
    rate: float = 0.1  # per 256 images; scaled with processes · batch
    weight_decay: float = 5e-4
    warmup: float = 5.0  # epochs
    bn_momentum: float = 0.01
    mixup: float = 0.2  # α of Beta(α, α); ours
    smoothing: float = 0.1  # of labels; ours
    erasing: float = 0.2  # chance that a rectangle is erased; ours
    augment: str = "original"  # AutoAugment's policy on ImageNet; CIFAR has its own; "" for none
    teacher: str = ""  # timm's name; the paper: tf_efficientnet_b3.ns_jft_in1k
    teacher_file: str = ""  # of its weights; default: timm's
    teacher_resolution: int = 320  # pixels
    feature_weight: float = 1.0  # of the squared difference of pooled features
    logit_weight: float = 1.0  # of the cross-entropy to the teacher's probabilities
    workers: int = 8  # that read images, a process
    max_steps: int = 0  # stop after so many steps; 0: never

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if self.task not in TASKS:
            raise ValueError(f"task is one of {', '.join(TASKS)}, got {self.task!r}")
        if self.space not in SPACES:
            raise ValueError(f"space is one of {', '.join(SPACES)}, got {self.space!r}")
        if unknown := set(self.arms) - set(PROXIES):
            raise ValueError(f"arms are {', '.join(PROXIES)}; got {sorted(unknown)}")
        if min(self.epochs, self.batch, self.resolution, self.teacher_resolution) < 1:
            raise ValueError("epochs, batch and resolutions must be at least 1")


def run_scale(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Search with each proxy, or train what was found.

    Under torchrun the images of a step are spread over the processes; the search is one process's.

    Returns:
        `"PROXY/score"`, `"PROXY/params"`, `"PROXY/macs"`; or `"PROXY/top1"`, a share of 1, and the
        last `"PROXY/loss"`.

    Raises:
        FileNotFoundError: if images or a structure are missing.
        ValueError: if no network meets the budget.
    """
    results: dict[str, float] = {}
    if recipe.task == "search":
        for proxy in recipe.arms:
            found = find(recipe, proxy, seed)
            cost = count(found.best, recipe.resolution, num_classes=_classes(recipe))
            results |= {
                f"{proxy}/score": found.score,
                f"{proxy}/params": float(cost.params),
                f"{proxy}/macs": float(cost.macs),
            }
        return results
    with torchrun_group(device) as home:
        for proxy in recipe.arms:
            top1, loss = _train(recipe, proxy, seed, home)
            results |= {f"{proxy}/top1": top1, f"{proxy}/loss": loss}
    return results


# --- search -------------------------------------------------------------------------------------


def find(recipe: PaperRecipe, proxy: str, seed: int) -> History:
    """Search, and write the winner's string into the recipe's folder."""
    budget = Budget(
        recipe.resolution,
        _classes(recipe),
        params=recipe.params or None,
        macs=recipe.macs or None,
        layers=recipe.layers or None,
    )
    found = evolve(
        recipe.start,
        SPACES[recipe.space],
        budget,
        lambda specs, draws: PROXIES[proxy](specs, recipe.resolution, recipe.score_batch, draws),
        SearchConfig(recipe.population, recipe.search_steps, seed=seed),
    )
    path = _structure_file(recipe, proxy)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(to_text(found.best) + "\n", "utf-8")
    os.replace(temporary, path)
    return found


def _structure_file(recipe: PaperRecipe, proxy: str) -> Path:
    return Path(recipe.folder).expanduser() / f"zen_nas_{proxy}.txt"


def _structure(recipe: PaperRecipe, proxy: str) -> str:
    if recipe.structure:
        return recipe.structure
    path = _structure_file(recipe, proxy)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; run --set task=search first, or name a structure with "
            "--set structure=…"
        )
    return path.read_text("utf-8").strip()


# --- training -----------------------------------------------------------------------------------


class Student(nn.Module):
    """The network, and the map from its pooled features to the teacher's."""

    def __init__(self, net: Network, teacher_features: int) -> None:
        super().__init__()
        self.net = net
        width = net.head.in_features
        self.project = nn.Linear(width, teacher_features) if teacher_features else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and the projected features where there is a teacher."""
        pooled = self.net.forward_features(x).mean(dim=(2, 3))
        return self.net.head(pooled), None if self.project is None else self.project(pooled)


def _train(recipe: PaperRecipe, proxy: str, seed: int, device: torch.device) -> tuple[float, float]:
    text = _structure(recipe, proxy)
    data = Images(recipe, device)
    torch.manual_seed(seed)
    student, teacher = _networks(recipe, text, device)
    optimizer = torch.optim.SGD(
        student.parameters(),
        recipe.rate * recipe.batch * world()[1] / 256,
        recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    per_epoch = data.steps(recipe.batch)
    total, warm = recipe.epochs * per_epoch, round(recipe.warmup * per_epoch)
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, total, warm))
    model = DistributedDataParallel(student) if dist.is_initialized() else student
    mix = Mixup(
        mixup_alpha=recipe.mixup, label_smoothing=recipe.smoothing, num_classes=data.classes
    )
    parts = {"student": student, "optimizer": optimizer, "schedule": schedule}
    loss, steps = math.nan, 0
    first = load_checkpoint(recipe.folder, f"zen_nas_{proxy}", parts)
    for epoch in range(first, recipe.epochs):
        model.train()
        for x, y in data.train(recipe, seed, epoch):
            mixed, soft = mix(x, y)
            loss = _step(recipe, model, teacher, mixed, soft, optimizer)
            schedule.step()
            steps += 1
            if steps == recipe.max_steps:
                return _top1(student.net, data, recipe), loss
        save_checkpoint(recipe.folder, f"zen_nas_{proxy}", parts, epoch + 1)
    return _top1(student.net, data, recipe), loss


def _networks(recipe: PaperRecipe, text: str, device: torch.device) -> tuple[Student, Any]:
    net = build(parse(text), _classes(recipe), zero_last=True)
    if recipe.se:
        add_gates(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = recipe.bn_momentum
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
    teacher: Any = None  # a network of timm, whose methods no type describes
    if recipe.teacher:
        teacher = timm.create_model(
            recipe.teacher,
            pretrained=not recipe.teacher_file,
            checkpoint_path=recipe.teacher_file,
            num_classes=_classes(recipe),
        )
        teacher = teacher.to(device).eval().requires_grad_(False)
    features = 0 if teacher is None else teacher.num_features
    return Student(net, features).to(device), teacher


def _step(
    recipe: PaperRecipe,
    model: nn.Module,
    teacher: Any,
    x: Tensor,
    soft: Tensor,
    optimizer: torch.optim.Optimizer,
) -> float:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
        logits, features = model(x)
        loss = SoftTargetCrossEntropy()(logits, soft)
        if teacher is not None:
            wanted, taught = _taught(recipe, teacher, x)
            loss = loss + recipe.feature_weight * F.mse_loss(features, wanted)
            loss = loss + recipe.logit_weight * SoftTargetCrossEntropy()(logits, taught)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _taught(recipe: PaperRecipe, teacher: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's pooled features and probabilities, at its own resolution."""
    side = recipe.teacher_resolution
    x = F.interpolate(x, (side, side), mode="bicubic", antialias=True)
    maps = teacher.forward_features(x)
    pooled = teacher.forward_head(maps, pre_logits=True)
    return pooled, teacher.forward_head(maps).softmax(dim=1)


@torch.no_grad()
def _top1(net: nn.Module, data: "Images", recipe: PaperRecipe) -> float:
    """Each process tests its share, every image once."""
    average_buffers(net)
    net.eval()
    total = torch.zeros(2, dtype=torch.float64)
    for x, y in data.test(recipe):
        right = (net(x).argmax(dim=1) == y).sum()
        total += torch.tensor([float(right), float(len(y))], dtype=torch.float64)
    total = sum_over_ranks(total.to(data.device))
    return float(total[0] / total[1])


# --- images -------------------------------------------------------------------------------------


class Images:
    """CIFAR on the device, or a folder's images read as they come."""

    def __init__(self, recipe: PaperRecipe, device: torch.device) -> None:
        self.device, self.classes = device, _classes(recipe)
        self.small = recipe.data in CIFAR
        if self.small:
            self.cifar = load_cifar(self.classes, recipe.cifar_folder, device)
            self.count = len(self.cifar.train_labels)
            policy = [v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)] if recipe.augment else []
            self.view = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(32, 4), *policy])
            self.erase = v2.RandomErasing(recipe.erasing)
        else:
            self.folders = [_folder(recipe, split) for split in ("train", "val")]
            self.count = len(self.folders[0])

    def steps(self, batch: int) -> int:
        """Whole batches of an epoch, for each process.

        Raises:
            ValueError: if there is none, or mix-up cannot pair its images.
        """
        steps = self.count // (batch * world()[1])
        if not steps or batch % 2:
            raise ValueError(
                f"mix-up needs whole batches of even size, got {batch} of {self.count} images on "
                f"{world()[1]} processes"
            )
        return steps

    def train(self, recipe: PaperRecipe, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of every batch of an epoch, augmented and normalised."""
        rank, size = world()
        order = np.random.default_rng([seed, epoch]).permutation(self.count)
        mine = order[rank::size][: self.steps(recipe.batch) * recipe.batch]
        torch.manual_seed(int(np.random.default_rng([seed, epoch, rank]).integers(2**62)))
        if not self.small:
            yield from self._read(self.folders[0], mine, recipe)
            return
        for chunk in torch.from_numpy(mine).to(self.device).split(recipe.batch):
            views = [self.view(image) for image in self.cifar.train_images[chunk]]
            x = _normalise(torch.stack(views))
            yield torch.stack([self.erase(one) for one in x]), self.cifar.train_labels[chunk]

    def test(self, recipe: PaperRecipe) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the images to test on, each once."""
        rank, size = world()
        if not self.small:
            share = np.arange(rank, len(self.folders[1]), size)
            yield from self._read(self.folders[1], share, recipe)
            return
        x, y = self.cifar.test_images[rank::size], self.cifar.test_labels[rank::size]
        for part, labels in zip(x.split(500), y.split(500), strict=True):
            yield _normalise(part), labels

    def _read(
        self, folder: ImageFolder, index: np.ndarray, recipe: PaperRecipe
    ) -> Iterator[tuple[Tensor, Tensor]]:
        workers = recipe.workers if self.device.type == "cuda" else 0
        loader = DataLoader(Subset(folder, index.tolist()), recipe.batch, num_workers=workers)
        for x, y in loader:
            yield x.to(self.device), y.to(self.device)


def _folder(recipe: PaperRecipe, split: str) -> ImageFolder:
    place = Path(recipe.data).expanduser() / split
    if not place.is_dir():
        raise FileNotFoundError(
            f"{place} is no folder; --set data=… names one with train/ and val/, or CIFAR"
        )
    side = recipe.resolution
    if split == "val":
        return ImageFolder(place, create_transform(side, crop_pct=0.875, interpolation="bicubic"))
    transform = create_transform(
        side,
        is_training=True,
        auto_augment=recipe.augment or None,
        re_prob=recipe.erasing,
        interpolation="bicubic",
    )
    return ImageFolder(place, transform)


def _normalise(x: Tensor) -> Tensor:
    mean, spread = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, SPREAD))
    return (x.float() / 255 - mean) / spread


def _classes(recipe: PaperRecipe) -> int:
    if recipe.data in CIFAR:
        return CIFAR[recipe.data]
    place = Path(recipe.data).expanduser() / "train"
    return sum(one.is_dir() for one in place.iterdir()) if place.is_dir() else 1000
