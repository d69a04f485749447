"""The paper's own setting: an image backbone, classes over all ranks, every part of the system.

Start it with torchrun, or alone for one process:

    torchrun --nproc-per-node 8 -m toolkit run knn_softmax --profile paper

Per iteration: micro-batches through `MicroBatchPipeline`; per update: `TopKCompressor` on the
backbone's gradients, LARS under the FCCS schedule, and SGD on the active rows of the class weights.
The graph is rebuilt before every epoch, on the ring of all ranks.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from timm.optim import Lars
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.models import resnet50
from torchvision.transforms import v2

from toolkit.data import load_glyphs
from toolkit.learn.distributed import gather_with_grad, world
from toolkit.learn.nets import conv_net
from toolkit.learn.torchrun import average_buffers, torchrun_group
from toolkit.search.knn_softmax.compress import TopKCompressor
from toolkit.search.knn_softmax.fccs import fccs_schedule
from toolkit.search.knn_softmax.pipeline import MicroBatchPipeline, sum_gradients
from toolkit.search.knn_softmax.recipe import HEADS, Recipe
from toolkit.search.knn_softmax.softmax import ActiveRowSGD, ShardedSoftmax

GB2312 = 6763
"""Characters of the glyphs that eight fonts draw; more classes come from the size "20k"."""


def train_distributed(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train each arm ("full", "knn", "random" …) over all ranks that torchrun started.

    Args:
        recipe: a recipe with an image backbone, "conv" or "resnet50".
        seed: of weights, batches and random classes.
        device: of `cuda`, each rank takes the GPU of its local rank.

    Returns:
        The same on every rank: `arm/accuracy` on val, `arm/loss` of the last iterations,
        `arm/seconds` per iteration, `arm/seconds_graph` per graph, `arm/bytes` of the backbone's
        gradients as a share of dense, `arm/coverage` of the last batch.

    Raises:
        ValueError: for an unknown backbone or arm, or a folder with another number of classes.
    """
    if unknown := [arm for arm in recipe.arms if arm not in HEADS]:
        raise ValueError(f"no arm is called {unknown[0]!r}; there are {', '.join(HEADS)}")
    results: dict[str, float] = {}
    with torchrun_group(device) as home:
        data = open_data(recipe, home)
        for arm, rate in zip(recipe.arms, recipe.rates, strict=True):
            settings = HEADS[arm] | (
                {"neighbours": recipe.fill_neighbours} if arm == "knn+fill" else {}
            )
            head = ShardedSoftmax(
                recipe.d,
                recipe.num_classes,
                rho=recipe.rho,
                scale=recipe.scale,
                seed=seed,
                **settings,
            ).to(home)
            net = image_backbone(recipe, seed).to(home)
            metrics = _train(recipe, net, head, data, rate, seed)
            results |= {f"{arm}/{name}": value for name, value in metrics.items()}
    return results


def image_backbone(recipe: Recipe, seed: int) -> nn.Module:
    """The backbone, with the same weights on every rank.

    Raises:
        ValueError: for an unknown name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe.backbone == "conv":
            stages = conv_net(16, 32, 64, in_channels=1, norm="group")
            return nn.Sequential(stages, nn.Flatten(), nn.Linear(64 * 4 * 4, recipe.d))
        if recipe.backbone == "resnet50":
            return resnet50(weights=None, num_classes=recipe.d)
    raise ValueError(f"backbone is {recipe.backbone!r}; choose mlp, conv or resnet50")


@runtime_checkable
class Data(Protocol):
    """Batches of this rank."""

    batches_per_epoch: int

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, equally many on every rank."""

    def val(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's part of val, equally many batches of equal size on every rank."""


def open_data(recipe: Recipe, device: torch.device) -> Data:
    """Glyphs, or a folder of images such as ImageNet-21k, iNaturalist or Glint360K."""
    if recipe.data == "glyphs":
        return _Glyphs(recipe, device)
    return _Folder(recipe, device)


class _Glyphs:
    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        size = "" if recipe.num_classes <= GB2312 else "20k"
        self.recipe, self.device = recipe, device
        self.parts = {
            split: load_glyphs(split, recipe.num_classes, size=size) for split in ("train", "val")
        }
        count = len(self.parts["train"].images)
        self.batches_per_epoch = count // (recipe.batch * world()[1])

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch)  # the same order on every rank
        order = torch.randperm(len(self.parts["train"].images), generator=generator)
        yield from self._batches("train", order)

    def val(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._batches("val", torch.arange(len(self.parts["val"].images)))

    def _batches(self, split: str, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        rank, size = world()
        part, b = self.parts[split], self.recipe.batch
        for begin in range(0, len(order) - b * size + 1, b * size):
            index = order[begin + rank * b : begin + (rank + 1) * b]
            x = part.images[index].to(self.device).float() / 255 - 0.5
            x = x.expand(-1, 3, -1, -1) if self.recipe.backbone == "resnet50" else x
            yield x, part.label[index].to(self.device)


class _Folder:
    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        if recipe.backbone != "resnet50":
            raise ValueError(f"a folder of images needs backbone=resnet50, not {recipe.backbone}")
        self.device = device
        finish = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
        views = {
            "train": [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()],
            "val": [v2.Resize(256), v2.CenterCrop(224)],
        }
        self.loaders: dict[str, DataLoader] = {}
        for split, view in views.items():
            images = ImageFolder(Path(recipe.data, split), v2.Compose(view + finish))
            if len(images.classes) != recipe.num_classes:
                raise ValueError(
                    f"{recipe.data}/{split} has {len(images.classes)} classes; "
                    f"set num_classes to that, it is {recipe.num_classes}"
                )
            rank, size = world()
            sampler: DistributedSampler = DistributedSampler(
                images, num_replicas=size, rank=rank, shuffle=split == "train", drop_last=True
            )
            self.loaders[split] = DataLoader(
                images,
                recipe.batch,
                sampler=sampler,
                num_workers=min(8, os.cpu_count() or 1),
                pin_memory=device.type == "cuda",
                drop_last=True,
            )
        self.batches_per_epoch = len(self.loaders["train"])

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.loaders["train"].sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from self._batches("train")

    def val(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._batches("val")

    def _batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.loaders[split]:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


def _train(
    recipe: Recipe, net: nn.Module, head: ShardedSoftmax, data: Data, rate: float, seed: int
) -> dict[str, float]:
    total = recipe.epochs * data.batches_per_epoch
    total = min(total, recipe.max_steps) if recipe.max_steps else total
    if total < 1:
        raise ValueError(f"no batch of {recipe.batch} on each of {world()[1]} ranks; use less")
    pipeline = MicroBatchPipeline(_in_half(net) if recipe.half else net, head, recipe.micro_batches)
    update = _Update(recipe, net, head, rate)
    losses, graphs, begin = [], [], time.perf_counter()
    for t, (epoch, x, y) in enumerate(_stream(data, total)):
        if head.mode == "knn" and t % (recipe.rebuild_every * data.batches_per_epoch) == 0:
            started = time.perf_counter()
            head.rebuild(len(y) * world()[1])
            graphs.append(time.perf_counter() - started)
        lr, size = fccs_schedule(t, total, int(recipe.warmup * total), 1.0, recipe.accumulate)
        losses.append(pipeline.step(x, y))
        update.add(lr, size, epoch, last=t == total - 1)
    seconds = (time.perf_counter() - begin - sum(graphs)) / total
    with torch.no_grad():
        everyone = gather_with_grad(net(x)), gather_with_grad(y)
    return {
        "accuracy": validate(net, head, data),
        "loss": torch.stack(losses[-20:]).mean().item(),
        "seconds": seconds,
        "seconds_graph": sum(graphs) / max(1, len(graphs)),
        "bytes": update.bytes_share(),
        "coverage": head.coverage(*everyone).mean().item(),
    }


class _Update:
    """Accumulates batches; then compresses, reduces and steps."""

    def __init__(self, recipe: Recipe, net: nn.Module, head: ShardedSoftmax, rate: float) -> None:
        self.recipe, self.net, self.held = recipe, net, 0
        sparse = recipe.density < 1
        self.compressor = (
            TopKCompressor(recipe.density, recipe.momentum, recipe.density_warmup, group=head.group)
            if sparse
            else None
        )
        backbone = Lars(
            net.parameters(),
            lr=recipe.lr,
            momentum=0.0 if sparse else recipe.momentum,  # the compressor has its own
            weight_decay=recipe.weight_decay,
            trust_coeff=recipe.trust,
        )
        self.parameters = [*net.parameters(), head.weight]
        self.optimizers = [backbone, ActiveRowSGD([head.weight], rate, recipe.momentum)]
        self.rates = [recipe.lr, rate]

    def add(self, factor: float, size: int, epoch: int, last: bool) -> None:
        """Count one batch; after `size` of them, update with rates times `factor`."""
        self.held += 1
        if self.held < size and not last:
            return
        for p in self.parameters:
            if p.grad is not None:
                p.grad.div_(self.held)  # the mean over the batches of the update
        if self.compressor is None:
            sum_gradients(self.net.parameters())
        else:
            self.compressor.reduce(self.net.parameters(), epoch)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.held = 0

    def bytes_share(self) -> float:
        """Bytes sent for the backbone, as a share of dense 32-bit gradients."""
        if self.compressor is None:
            return 1.0
        return self.compressor.bytes_sent / self.compressor.bytes_dense


@torch.no_grad()
def validate(net: nn.Module, head: ShardedSoftmax, data: Data) -> float:
    """Accuracy over the val parts of all ranks and the classes of all ranks."""
    net.eval()
    average_buffers(net)
    right = seen = 0
    for x, y in data.val():
        features, labels = gather_with_grad(net(x)), gather_with_grad(y)
        right += int((predict_sharded(head, features) == labels).sum())
        seen += len(labels)
    net.train()
    return right / max(1, seen)


@torch.no_grad()
def predict_sharded(
    head: ShardedSoftmax, features: Float[Tensor, "batch d"]
) -> Int[Tensor, " batch"]:
    """The class of largest logit over all ranks: each sends its best value and its id."""
    value, index = head.scores(features).float().max(dim=1)
    values = gather_with_grad(value[None], head.group)
    classes = gather_with_grad((index + head.low)[None], head.group)
    return classes.gather(0, values.argmax(dim=0, keepdim=True)).squeeze(0)


def _stream(data: Data, total: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(epoch, x, y) for `total` iterations, the same number on every rank."""
    epochs = -(-total // data.batches_per_epoch)
    batches = ((epoch, *batch) for epoch in range(epochs) for batch in data.train(epoch))
    for _, item in zip(range(total), batches, strict=False):
        yield item


def _in_half(net: nn.Module) -> nn.Module:
    """The backbone under bfloat16 autocast, whose range needs no loss scaling."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16):
                return self.net(x).float()

    return Half()
