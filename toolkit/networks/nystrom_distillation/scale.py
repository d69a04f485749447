"""KDA at the paper's size: CIFAR-100 or a folder of small images, under torchrun.

    torchrun --nproc-per-node 4 -m toolkit run nystrom_distillation --profile paper

Schedule, α and augmentation of CIFAR-100 are those of the official code (idstcv/KDA). That other
data sets took the same could not be checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet34, shufflenet_v2_x1_0
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

from toolkit.data.cifar import load_cifar
from toolkit.data.store import atomic_write
from toolkit.learn.distributed import world
from toolkit.learn.loop import warmup_cosine
from toolkit.learn.resnet import cifar_resnet18
from toolkit.learn.torchrun import (
    average_buffers,
    load_checkpoint,
    save_checkpoint,
    sum_over_ranks,
    torchrun_group,
)
from toolkit.networks.nystrom_distillation.distiller import Distiller, Term
from toolkit.runtime import build_folder

CIFAR = {"cifar10": 10, "cifar100": 100}
MEAN, SPREAD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
NETWORKS = {  # name: (width of the feature, module before pooling)
    "resnet34": (512, "layer4"),
    "resnet18": (512, "layer4"),
    "half_resnet18": (256, "layer4"),
    "shufflenet": (1024, "conv5"),
}
TERMS: dict[str, tuple[tuple[str, str], ...]] = {
    "ce": (),
    "at": (("map", "at"),),
    "rkd": (("feature", "rkd"),),
    "sp": (("feature", "sp"),),
    "fitnet": (("feature", "fitnet"),),
    "gram": (("feature", "gram"),),
    "kd": (("logit", "kd"),),
    "kda": (("feature", "kda"),),
    "kda_logit": (("logit", "kda"),),
    "combo": (("feature", "kda"), ("logit", "kda")),
}


@dataclass(frozen=True)
class PaperRecipe:
    """A teacher, and one student for each arm, with random crops and mirroring.

    The paper's comparison takes `at`, `rkd` and `kda` before the last layer, `kd` and `kda_logit`
    after it, and `combo`. Values without a remark are those of the official code.
    """

    arms: tuple[str, ...] = ("ce", "kd", "kda", "kda_logit", "combo")
    seeds: int = 3
    data: str = "cifar100"  # or cifar10, or a folder with train/ and val/
    folder: str = ""  # of CIFAR's binary files; default: in $TOOLKIT_DATA
    classes: int = 100
    side: int = 64  # pixels, of a folder's images; Tiny-ImageNet has 64
    teacher: str = "resnet34"
    teacher_file: str = ""  # safetensors; trained and kept where it is missing
    student: str = "resnet18"  # or half_resnet18, shufflenet (torchvision's v2 ×1: ours)
    epochs: int = 120  # of teacher and student
    batch: int = 256  # of all processes together
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: int = 5  # epochs
    weights: tuple[tuple[str, float], ...] = (
        ("kda", 0.04),
        ("kda_logit", 0.04),  # ours: the code has no such option
        ("combo", 0.04),  # ours
        ("gram", 0.04),  # ours
        ("kd", 0.9),  # ours, and all below: usual values
        ("rkd", 1.0),
        ("at", 1000.0),
        ("sp", 3000.0),
        ("fitnet", 100.0),
    )
    padding: int = 4  # of the random crop
    checkpoint: str = ""  # folder of students in training: resumed from, written every epoch
    max_epochs: int = 0  # stop earlier, to try it out; 0 does not

    def terms(self, arm: str) -> tuple[Term, ...]:
        """What an arm asks of the student beside the labels."""
        return tuple((layer, kind, dict(self.weights)[arm]) for layer, kind in TERMS[arm])


@dataclass(frozen=True, eq=False)
class SmallImages:
    """All images on one device."""

    train_images: UInt8[Tensor, "n 3 side side"]
    train_labels: Int64[Tensor, "n"]
    test_images: UInt8[Tensor, "m 3 side side"]
    test_labels: Int64[Tensor, "m"]


def run_paper(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train the teacher if it is not there, then every arm, over all of torchrun's processes.

    Returns:
        The same on every process: `teacher/accuracy` and `ARM/accuracy` on the test images.

    Raises:
        ValueError: for an unknown arm or network, other classes, or a batch that does not divide.
        FileNotFoundError: if the images are missing; the message says where to put them.
    """
    _check(recipe)
    with torchrun_group(device) as home:
        images = open_images(recipe, home)
        teacher = get_teacher(recipe, images, home)
        results = {"teacher/accuracy": evaluate(teacher, images)}
        for arm in recipe.arms:
            results[f"{arm}/accuracy"] = _distil(recipe, images, teacher, arm, seed)
    return results


def open_images(recipe: PaperRecipe, device: torch.device) -> SmallImages:
    """All images on one device: CIFAR by name, or a folder's, resized to `side`.

    Raises:
        ValueError: if the data have other classes than the recipe.
        FileNotFoundError: if they are missing.
    """
    if recipe.data in CIFAR:
        if recipe.classes != CIFAR[recipe.data]:
            raise ValueError(f"{recipe.data} has {CIFAR[recipe.data]} classes; set classes to that")
        data = load_cifar(recipe.classes, recipe.folder, device)
        return SmallImages(data.train_images, data.train_labels, data.test_images, data.test_labels)
    parts = [_read_folder(recipe, split) for split in ("train", "val")]
    return SmallImages(*(tensor.to(device) for part in parts for tensor in part))


def network(name: str, classes: int) -> nn.Module:
    """A network for small images: a 3×3 stem without stride, and no first pooling.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"networks are {', '.join(NETWORKS)}; got {name!r}")
    if name == "resnet18":
        return cifar_resnet18(classes)
    if name == "shufflenet":
        model = shufflenet_v2_x1_0(num_classes=classes)
        model.conv1[0] = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        return model
    if name == "half_resnet18":
        return half_resnet18(classes)
    model = resnet34(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def get_teacher(recipe: PaperRecipe, images: SmallImages, device: torch.device) -> nn.Module:
    """The teacher from its file; where there is none it is trained, and the file written.

    Every process returns the same weights.
    """
    epochs = recipe.max_epochs or recipe.epochs
    name = f"{Path(recipe.data).name}-{recipe.teacher}-{epochs}"
    path = Path(recipe.teacher_file or build_folder("teachers") / f"{name}.safetensors")
    if not path.is_file():
        torch.manual_seed(0)
        model = network(recipe.teacher, recipe.classes).to(device)
        lone = Distiller(model, None, **_sizes(recipe, "ce"))
        _train(recipe, images, lone, 0, name)
        if world()[0] == 0:
            with atomic_write(path) as temporary:
                save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary)
        if dist.is_initialized():
            dist.barrier()
    model = network(recipe.teacher, recipe.classes)
    model.load_state_dict(load_file(path))
    return model.to(device).eval()


def _distil(
    recipe: PaperRecipe, images: SmallImages, teacher: nn.Module, arm: str, seed: int
) -> float:
    """Train one student; its accuracy."""
    torch.manual_seed(seed)
    student = network(recipe.student, recipe.classes)
    distiller = Distiller(student, teacher if recipe.terms(arm) else None, **_sizes(recipe, arm))
    _train(recipe, images, distiller.to(images.train_labels.device), seed, f"{arm}-{seed}")
    return evaluate(student, images)


def _train(
    recipe: PaperRecipe, images: SmallImages, distiller: Distiller, seed: int, name: str
) -> None:
    """All epochs; every process has its share of each batch, and the same landmarks.

    A checkpoint of this name holds everything that a resumed run needs, landmarks included.
    """
    wrapped: nn.Module = distiller
    if dist.is_initialized():
        # sums of landmarks are each process's own until the epoch ends
        wrapped = DistributedDataParallel(
            distiller,
            broadcast_buffers=False,
            find_unused_parameters=bool(len(distiller.adaptors)),
        )
    per_epoch = len(images.train_labels) // recipe.batch
    learnt = [p for p in distiller.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        learnt, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    total, warm = recipe.epochs * per_epoch, recipe.warmup * per_epoch
    rate = LambdaLR(optimizer, lambda step: warmup_cosine(step, total, warm))
    parts = {"distiller": distiller, "optimizer": optimizer, "rate": rate}
    load_checkpoint(recipe.checkpoint, name, parts)
    last = recipe.max_epochs or recipe.epochs
    while distiller.epoch < min(last, recipe.epochs):
        distiller.train()
        for x, y in _epoch(recipe, images, distiller.epoch, seed):
            optimizer.zero_grad(set_to_none=True)
            wrapped(x, y).backward()  # in float32: kernels differ in their last digits
            optimizer.step()
            rate.step()
        distiller.end_epoch()
        save_checkpoint(recipe.checkpoint, name, parts, distiller.epoch)
    average_buffers(distiller.student)


def _epoch(
    recipe: PaperRecipe, images: SmallImages, epoch: int, seed: int
) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]]:
    """This process's share of every batch of an epoch, cropped and mirrored."""
    rank, size = world()
    n = len(images.train_labels)
    order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))
    state = int(np.random.default_rng([seed, epoch, rank]).integers(2**62))
    source = torch.Generator().manual_seed(state)
    for chunk in order[: n // recipe.batch * recipe.batch].split(recipe.batch):
        index = chunk[rank::size].to(images.train_labels.device)
        x = crop_and_mirror(images.train_images[index], recipe.padding, source)
        yield normalise(x), images.train_labels[index]


def crop_and_mirror(
    x: UInt8[Tensor, "b 3 h w"], padding: int, source: torch.Generator
) -> UInt8[Tensor, "b 3 h w"]:
    """Shift every image by up to `padding` pixels each way, over black, and mirror half."""
    b, _, h, w = x.shape
    down, right = torch.randint(2 * padding + 1, (2, b, 1), generator=source)
    rows, columns = down + torch.arange(h), right + torch.arange(w)
    columns = torch.where(torch.rand(b, 1, generator=source) < 0.5, columns.flip(1), columns)
    padded = F.pad(x, (padding,) * 4).permute(0, 2, 3, 1)
    every = torch.arange(b)[:, None, None]
    picked = padded[
        every.to(x.device), rows[:, :, None].to(x.device), columns[:, None].to(x.device)
    ]
    return picked.permute(0, 3, 1, 2)


def normalise(x: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes to numbers about 0, by CIFAR-100's mean and spread."""
    mean, spread = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, SPREAD))
    return ((x.float() / 255 - mean) / spread).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def evaluate(model: nn.Module, images: SmallImages) -> float:
    """The accuracy on the test images, over all processes."""
    model.eval()
    rank, size = world()
    x, y = images.test_images[rank::size], images.test_labels[rank::size]
    hits = torch.zeros(2, dtype=torch.float64, device=y.device)
    for part, labels in zip(x.split(500), y.split(500), strict=True):
        right = (model(normalise(part)).argmax(1) == labels).sum()
        hits += torch.stack([right, right.new_tensor(len(labels))]).double()
    hits = sum_over_ranks(hits)
    return float(hits[0] / hits[1])


def _sizes(recipe: PaperRecipe, arm: str) -> dict:
    """The arguments of a Distiller beside its networks."""
    return {
        "terms": recipe.terms(arm),
        "warmup": recipe.warmup,
        "num_classes": recipe.classes,
        "widths": (NETWORKS[recipe.student][0], NETWORKS[recipe.teacher][0]),
        "head": "fc",
        "body": (NETWORKS[recipe.student][1], NETWORKS[recipe.teacher][1]),
    }


def half_resnet18(classes: int) -> nn.Module:
    """`cifar_resnet18` with half the channels everywhere."""
    model: Any = cifar_resnet18(classes)
    model.inplanes = 32
    model.conv1, model.bn1 = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
    for stage, width in enumerate((32, 64, 128, 256), 1):
        blocks = model._make_layer(BasicBlock, width, 2, stride=1 if stage == 1 else 2)
        setattr(model, f"layer{stage}", blocks)
    model.fc = nn.Linear(256, classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _read_folder(recipe: PaperRecipe, split: str) -> tuple[Tensor, Tensor]:
    place = Path(recipe.data, split)
    if not place.is_dir():
        raise FileNotFoundError(f"{place} is not there; data is cifar100 or a folder with train/")
    view = v2.Compose([v2.ToImage(), v2.Resize(recipe.side), v2.CenterCrop(recipe.side)])
    folder = ImageFolder(place, view)
    if len(folder.classes) != recipe.classes:
        raise ValueError(f"{place} has {len(folder.classes)} classes; set classes to that")
    batches = list(DataLoader(folder, 256, num_workers=4 if len(folder) > 10_000 else 0))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _check(recipe: PaperRecipe) -> None:
    if unknown := set(recipe.arms) - set(TERMS):
        raise ValueError(f"arms are {', '.join(TERMS)}; got {sorted(unknown)}")
    for name in (recipe.teacher, recipe.student):
        if name not in NETWORKS:
            raise ValueError(f"networks are {', '.join(NETWORKS)}; got {name!r}")
    size = world()[1]
    if recipe.batch % size:
        raise ValueError(f"a batch of {recipe.batch} does not divide by {size} processes")
