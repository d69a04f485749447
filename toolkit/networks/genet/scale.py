"""The paper's size: GENets on ImageNet under torchrun, and a latency sweep on a GPU."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Float
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.datasets import ImageFolder

from toolkit.learn.distributed import world
from toolkit.learn.loop import warmup_cosine
from toolkit.learn.torchrun import (
    average_buffers,
    load_checkpoint,
    save_checkpoint,
    sum_over_ranks,
    torchrun_group,
)
from toolkit.networks.genet.networks import GENETS, RESOLUTION, fuse_bn, genet
from toolkit.networks.genet.recipe import Recipe
from toolkit.networks.latency import trimmed
from toolkit.networks.structures import count, parse
from toolkit.runtime import race

TASKS = ("train", "latency")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class PaperRecipe(Recipe):
    """ImageNet as the release describes it; "ours" marks what it does not say."""

    arms: tuple[str, ...] = ("small",)  # GENets to train or to time: small, normal, large
    rates: tuple[float, ...] = ()  # not used: one rate for all sizes
    seeds: int = 1
    task: str = "train"  # or "latency"
    data: str = "imagenet"  # folder with train/ and val/, one folder a class
    resolution: int = 0  # side of the images; 0: the paper's 192, 192, 256
    epochs: int = 480  # as the paper
    batch: int = 64  # images a process and step
    rate: float = 0.1  # per 256 images; scaled with processes · batch
    momentum: float = 0.9  # as the paper, Nesterov
    weight_decay: float = 4e-5  # as the paper
    warmup: float = 5.0  # epochs; as the paper
    smoothing: float = 0.1  # of labels; ours
    mixup: float = 0.2  # α of Beta(α, α); ours
    erasing: float = 0.2  # chance that a rectangle is erased; ours
    augment: str = "original"  # AutoAugment's policy; "" for none
    workers: int = 8  # that read images, a process
    folder: str = ""  # of checkpoints; "": none
    max_steps: int = 0  # stop after so many steps; 0: never

    batches: tuple[int, ...] = (1, 8, 32, 64, 128)  # images of a pass in the latency sweep
    rounds: int = 50  # counted passes there

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if self.task not in TASKS:
            raise ValueError(f"task is one of {', '.join(TASKS)}, got {self.task!r}")
        if unknown := set(self.arms) - set(GENETS):
            raise ValueError(f"arms are {', '.join(GENETS)}; got {sorted(unknown)}")
        if min(self.epochs, self.batch, self.rounds, *self.batches) < 1 or self.resolution < 0:
            raise ValueError("epochs, batch, rounds and batches must be at least 1")


def run_scale(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train each GENet, or time it.

    Under torchrun the images of a step are spread over the processes.

    Returns:
        `"NAME/top1"`, a share of 1, and the last `"NAME/loss"`; or `"NAME/ms@SETTING@BATCH"` per
        image.

    Raises:
        FileNotFoundError: if the images are missing.
    """
    if recipe.task == "latency":
        rows = [latency_sweep(recipe, name, device) for name in recipe.arms]
        return {name: value for row in rows for name, value in row.items()}
    results: dict[str, float] = {}
    with torchrun_group(device) as home:
        for name in recipe.arms:
            top1, loss = _train(recipe, name, seed, home)
            results |= {f"{name}/top1": top1, f"{name}/loss": loss}
    return results


# --- training -----------------------------------------------------------------------------------


def images(recipe: PaperRecipe, side: int, split: str) -> ImageFolder:
    """The split with the paper's augmentation, or resized to ⌈side / 0.875⌉ and cut at the centre.

    Raises:
        FileNotFoundError: if the folder is missing.
    """
    place = Path(recipe.data).expanduser() / split
    if not place.is_dir():
        raise FileNotFoundError(
            f"{place} is no folder; --set data=… names one with train/ and val/"
        )
    if split == "train":
        transform = create_transform(
            side,
            is_training=True,
            auto_augment=recipe.augment or None,
            re_prob=recipe.erasing,
            interpolation="bicubic",
        )
    else:
        transform = create_transform(side, crop_pct=0.875, interpolation="bicubic")
    return ImageFolder(place, transform)


def _train(recipe: PaperRecipe, name: str, seed: int, device: torch.device) -> tuple[float, float]:
    side = recipe.resolution or RESOLUTION[name]
    train, val = (images(recipe, side, split) for split in ("train", "val"))
    torch.manual_seed(seed)
    net = genet(name, len(train.classes)).to(device).to(memory_format=torch.channels_last)
    model = DistributedDataParallel(net) if dist.is_initialized() else net
    loader = _loader(recipe, train, device)
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.rate * recipe.batch * world()[1] / 256,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    per_epoch = len(loader)
    warm = round(recipe.warmup * per_epoch)
    schedule = LambdaLR(optimizer, lambda s: warmup_cosine(s, recipe.epochs * per_epoch, warm))
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    mix = Mixup(
        mixup_alpha=recipe.mixup, label_smoothing=recipe.smoothing, num_classes=len(train.classes)
    )
    parts = {"net": net, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    kept = f"genet_{name}"
    loss, steps = torch.tensor(torch.nan), 0
    for epoch in range(load_checkpoint(recipe.folder, kept, parts), recipe.epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        model.train()
        for x, y in loader:
            loss = _step(model, x.to(device), y.to(device), mix, optimizer, scaler)
            schedule.step()
            steps += 1
            if steps == recipe.max_steps:
                return _top1(recipe, net, val, device), float(loss)
        save_checkpoint(recipe.folder, kept, parts, epoch + 1)
    return _top1(recipe, net, val, device), float(loss)


def _step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    mix: Mixup,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Float[Tensor, ""]:
    mixed, soft = mix(x.contiguous(memory_format=torch.channels_last), y)
    with torch.autocast(x.device.type, torch.float16, enabled=x.is_cuda):
        loss = SoftTargetCrossEntropy()(model(mixed), soft)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


@torch.no_grad()
def _top1(recipe: PaperRecipe, net: nn.Module, val: Dataset, device: torch.device) -> float:
    """Each process tests its share, every image once."""
    rank, size = world()
    average_buffers(net)
    net.eval()
    share = torch.utils.data.Subset(val, range(rank, len(val), size))  # type: ignore[arg-type]
    total = torch.zeros(2, device=device)
    for x, y in DataLoader(share, recipe.batch, num_workers=_workers(recipe, device)):
        guess = net(x.to(device)).argmax(dim=1)
        hits = (guess == y.to(device)).sum()
        total += torch.stack([hits, hits.new_tensor(len(y))])
    sum_over_ranks(total)
    return float(total[0] / total[1])


def _loader(recipe: PaperRecipe, data: ImageFolder, device: torch.device) -> DataLoader:
    rank, size = world()
    sampler: DistributedSampler = DistributedSampler(data, size, rank, shuffle=True)
    loader = DataLoader(
        data,
        recipe.batch,
        sampler=sampler,
        num_workers=_workers(recipe, device),
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    if not len(loader) or recipe.batch % 2:
        raise ValueError(
            f"mix-up needs whole batches of even size, got {recipe.batch} of {len(data)} images "
            f"on {size} processes"
        )
    return loader


def _workers(recipe: PaperRecipe, device: torch.device) -> int:
    return recipe.workers if device.type == "cuda" else 0


# --- latency ------------------------------------------------------------------------------------


@torch.no_grad()
def latency_sweep(recipe: PaperRecipe, name: str, device: torch.device) -> dict[str, float]:
    """Milliseconds per image in every precision and memory format, unfused, fused and compiled.

    Half precision and compilation are tried on accelerators only.
    """
    side = recipe.resolution or RESOLUTION[name]
    on_gpu = device.type != "cpu"
    plain = genet(name).to(device).eval()
    results = {"GMACs": count(parse(GENETS[name]), side, num_classes=1000).macs / 1e9}
    results = {f"{name}/{key}": value for key, value in results.items()}
    formats = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
    precisions = PRECISIONS if on_gpu else {"float32": torch.float32}
    for precision, layout in itertools.product(precisions, formats):
        dtype, memory = precisions[precision], formats[layout]
        nets = {"plain": plain, "fused": fuse_bn(plain)}
        if on_gpu:
            nets["compiled"] = torch.compile(fuse_bn(plain))  # type: ignore[assignment]
        ready = {key: net.to(dtype).to(memory_format=memory) for key, net in nets.items()}
        for batch in recipe.batches:
            x = torch.randn(batch, 3, side, side, device=device, dtype=dtype)
            x = x.contiguous(memory_format=memory)
            calls = {key: _Call(net, x) for key, net in ready.items()}
            times = race(rounds=recipe.rounds, warmup=3, **calls)
            for key, centre in zip(times, trimmed(times)[0].tolist(), strict=True):
                setting = f"{precision}-{layout}-{key}"
                results[f"{name}/ms@{setting}@{batch}"] = 1e3 * centre / batch
        plain = plain.float()
    return results


@dataclass(frozen=True)
class _Call:
    """A forward pass as a function without arguments."""

    net: nn.Module
    x: Tensor

    @torch.no_grad()
    def __call__(self) -> None:
        F.softmax(self.net(self.x), dim=1)
