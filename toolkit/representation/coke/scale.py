"""The released recipe: ImageNet, ResNet-50, LARS, one process a GPU under torchrun.

    torchrun --nproc-per-node 8 -m toolkit run coke --profile paper --set data=/data/imagenet

Settings are those of the authors' public code. The folder has train/ and val/, one folder a class
in each; classes are read by the linear probe only.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from toolkit.data.store import atomic_write
from toolkit.learn.distributed import world
from toolkit.learn.loop import fit, warmup_cosine
from toolkit.learn.torchrun import sum_over_ranks, torchrun_group
from toolkit.representation.coke.clustering import OnlineConstrainedKMeans
from toolkit.representation.coke.network import CoKe, build_network
from toolkit.representation.coke.objective import Clusters, SingleView, TwoViews
from toolkit.representation.coke.training import cluster_metrics, rate

PAPER_ARMS = ("one_view", "two_views", "multi_crop")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PaperRecipe:
    """CoKe as released, on a folder of images; every value is the released one unless it says so.

    The arms that exist: `one_view`, `two_views` (λ = 0.05, soft targets) and `multi_crop` (two
    views and `crops` small ones). The released multi-crop run has 800 epochs.
    """

    arms: tuple[str, ...] = ("one_view",)  # variants to train
    seeds: int = 1  # of verdicts; the paper profile records none
    data: str = ""  # a folder with train/ and val/
    network: str = "resnet50"  # or resnet18, small
    epochs: int = 1001  # passes, the first at learning rate 0
    stage: int = 801  # first epoch of averaged centres and labels (one view)
    batch: int = 1024  # images a step, over all processes
    lr: float = 1.6  # of LARS
    momentum: float = 0.9  # of LARS
    trust: float = 0.001  # of LARS
    weight_decay: float = 1e-6  # not on 1-D parameters
    warmup: int = 10  # epochs after epoch 0
    heads: tuple[int, ...] = (3000, 4000, 5000)  # K
    ratio: float = 0.4  # r
    dual_lr: float = 20.0  # for one batch
    temperature: float = 0.1  # λ of one view
    two_view_temperature: float = 0.05  # λ of two views
    alpha: float = 0.2  # α of two views
    beta: float = 1.0  # of one view
    side: int = 224  # pixels
    crops: int = 6  # small ones, of multi_crop
    crop_side: int = 96  # pixels
    half: bool = True  # fp16 on a GPU; clustering stays in fp32
    probe_epochs: int = 90  # of the linear probe
    probe_lr: float = 0.2  # of one view; two views 0.4
    workers: int = 8  # processes that load images, for each GPU; ours
    checkpoint: str = ""  # a folder to continue from and write to after each epoch; ours
    max_steps: int = 0  # steps an epoch at most, to try it out; 0 takes all

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if not self.arms or set(self.arms) - set(PAPER_ARMS):
            raise ValueError(f"arms are {', '.join(PAPER_ARMS)}; got {self.arms}")
        if self.epochs < 2 or self.stage < 1 or self.probe_epochs < 1:
            raise ValueError(
                f"need epochs ≥ 2, stage ≥ 1, probe_epochs ≥ 1; got {self.epochs}, {self.stage}, "
                f"{self.probe_epochs}"
            )
        if "multi_crop" in self.arms and self.crops < 1:
            raise ValueError(f"multi_crop needs small crops, got {self.crops}")


def run_paper(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Pre-train every arm over all processes that torchrun started, then probe it.

    Returns:
        The same on every process: for each arm `loss` of the last epoch, `churn`, the balance of
        the stored labels (see `run_small`, without `nmi`) and `linear`, the accuracy of a linear
        classifier on frozen features of val/.

    Raises:
        ValueError: if the batch cannot be split over the processes or exceeds the images.
        FileNotFoundError: if the folder has no train/ and val/.
    """
    results: dict[str, float] = {}
    with torchrun_group(device) as home:
        for arm in recipe.arms:
            model, metrics = pretrain_paper(recipe, arm, seed, home)
            metrics["linear"] = linear_accuracy(recipe, model, arm, home)
            results |= {f"{arm}/{name}": value for name, value in metrics.items()}
    return results


def pretrain_paper(
    recipe: PaperRecipe, arm: str, seed: int, device: torch.device
) -> tuple[CoKe, dict[str, float]]:
    """Pre-train one arm; continues from a checkpoint where there is one."""
    images = _open(recipe, "train", training_views(recipe, arm))
    loader = _loader(recipe, images, device, shuffle=True)
    per_epoch = min(len(loader), recipe.max_steps or len(loader))
    if per_epoch < 1:
        raise ValueError(f"no batch of {recipe.batch} in {len(images)} images; use less")
    model, dim = build_network(recipe.network, seed, in_channels=3)
    net = _spread(model, device)
    clusters = _clusters(recipe, len(images), dim, seed, device)
    objective = _objective(recipe, arm, clusters)
    optimizer = lars(model, recipe)
    schedule = LambdaLR(
        optimizer,
        partial(rate, per_epoch=per_epoch, epochs=recipe.epochs, warmup=recipe.warmup),
    )
    saved = _Checkpoint(recipe, arm, model, optimizer, schedule, clusters)
    amp = torch.float16 if recipe.half and device.type == "cuda" else None
    loss = float("nan")
    for epoch in range(saved.load(device), recipe.epochs):
        if arm == "one_view" and epoch == recipe.stage:
            clusters.start_averaging()
        loader.sampler.set_epoch(1000 * seed + epoch)  # type: ignore[attr-defined]
        stream = islice(_moved(loader, device), per_epoch)
        loss = float(fit(net, stream, objective, optimizer, schedule=schedule, amp=amp).mean())
        objective.end_epoch()
        saved.save(epoch)
    everyone = torch.tensor([loss], device=device)
    sum_over_ranks(everyone)
    metrics = cluster_metrics(clusters, images.labels)
    kept = ("effective", "nonempty", "smallest", "largest", "churn")
    return model, {"loss": float(everyone) / world()[1]} | {name: metrics[name] for name in kept}


def lars(model: nn.Module, recipe: PaperRecipe) -> Lars:
    """LARS; 1-D parameters (biases, batch norm) have no decay and are not adapted."""
    flat = [p for p in model.parameters() if p.ndim <= 1]
    deep = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        dict(params=deep, weight_decay=recipe.weight_decay),
        dict(params=flat, weight_decay=0.0),
    ]
    return Lars(groups, lr=recipe.lr, momentum=recipe.momentum, trust_coeff=recipe.trust)


def training_views(recipe: PaperRecipe, arm: str) -> list[Callable]:
    """The augmentations of an arm: one view, a pair as in MoCo v3, or a pair and small crops."""
    if arm == "one_view":
        return [augmentation(recipe.side, (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), blur=0.5)]
    jitter = (0.4, 0.4, 0.2, 0.1)
    pair = [
        augmentation(recipe.side, (0.2, 1.0), jitter, blur=1.0),
        augmentation(recipe.side, (0.2, 1.0), jitter, blur=0.1, solarise=0.2),
    ]
    if arm == "two_views":
        return pair
    small = augmentation(recipe.crop_side, (0.05, 0.2), jitter, blur=0.5)
    return [*pair, *[small] * recipe.crops]


def augmentation(
    side: int,
    area: tuple[float, float],
    jitter: tuple[float, float, float, float],
    *,
    blur: float,
    solarise: float = 0.0,
) -> v2.Compose:
    """Random crop, colour jitter (p = 0.8), grey (0.2), blur, solarise, mirror, standardise."""
    kernel = max(3, side // 20 * 2 + 1)  # a tenth of the side, odd: 23 at 224
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(side, scale=area, antialias=True),
            v2.RandomApply([v2.ColorJitter(*jitter)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p=blur),
            v2.RandomSolarize(128, p=solarise),
            v2.RandomHorizontalFlip(),
            *_finish(),
        ]
    )


def memory_plan(
    num_instances: int = 1_281_167,
    heads: tuple[int, ...] = (3000, 4000, 5000),
    dim: int = 128,
    batch: int = 1024,
    processes: int = 8,
    slots: int = 5,
) -> dict[str, int]:
    """Bytes of what CoKe adds to a process, by part; nothing grows with N but the label tables.

    Args:
        num_instances: N.
        heads: K of each.
        dim: d.
        batch: B over all processes.
        processes: that share the batch.
        slots: labels a head while averaging.
    """
    clusters, own = sum(heads), batch // processes
    return {
        "labels, int32": 4 * num_instances * len(heads),
        "averaged labels and weights": 8 * num_instances * len(heads) * slots,
        "centres, running and frozen": 2 * 4 * clusters * dim,
        "prices and sizes": (4 + 8) * clusters,
        "gathered features and ids": (4 * dim + 8) * batch,
        "scores of the own batch": 4 * own * clusters,
    }


def linear_accuracy(recipe: PaperRecipe, model: CoKe, arm: str, device: torch.device) -> float:
    """Accuracy on val/ of a linear classifier on frozen features: SGD, half a cosine."""
    crop = v2.Compose(
        [v2.ToImage(), v2.RandomResizedCrop(recipe.side), v2.RandomHorizontalFlip(), *_finish()]
    )
    images = _open(recipe, "train", [crop])
    loader = _loader(recipe, images, device, shuffle=True)
    model.eval()
    for p in model.parameters():
        p.requires_grad_(False)
    classes = int(images.labels.max()) + 1
    torch.manual_seed(0)
    head = nn.Linear(_width(model, recipe, device), classes).to(device)
    net = DistributedDataParallel(head) if dist.is_initialized() else head
    lr = recipe.probe_lr * (1 if arm == "one_view" else 2)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=lr, momentum=0.9, weight_decay=recipe.weight_decay
    )
    per_epoch = min(len(loader), recipe.max_steps or len(loader))
    total = recipe.probe_epochs * per_epoch
    schedule = LambdaLR(optimizer, partial(warmup_cosine, total=total))

    def loss(classifier: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        ids, x = batch
        with torch.no_grad():
            features = model.backbone(x)
        return F.cross_entropy(classifier(features), images.labels[ids.cpu()].to(device))

    for epoch in range(recipe.probe_epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        fit(net, islice(_moved(loader, device), per_epoch), loss, optimizer, schedule=schedule)
    return _validate(recipe, nn.Sequential(model.backbone, head), device)


@torch.no_grad()
def _validate(recipe: PaperRecipe, net: nn.Module, device: torch.device) -> float:
    """Accuracy over the val parts of all processes."""
    resize = [v2.Resize(recipe.side * 8 // 7, antialias=True), v2.CenterCrop(recipe.side)]
    images = _open(recipe, "val", [v2.Compose([v2.ToImage(), *resize, *_finish()])])
    rank, size = world()
    own = torch.utils.data.Subset(images, range(rank, len(images), size))
    tally = torch.zeros(2, device=device)
    net.eval()
    for ids, x in DataLoader(
        own, max(1, recipe.batch // size), num_workers=_workers(recipe, device)
    ):
        right = net(x.to(device)).argmax(dim=1).cpu() == images.labels[ids]
        tally += torch.tensor([float(right.sum()), len(ids)], device=device)
    sum_over_ranks(tally)
    return float(tally[0] / tally[1])


class _Views(Dataset):
    """(id, view, …) of an image: the id, not the position in a shuffled epoch, finds its label."""

    def __init__(self, images: ImageFolder, views: list[Callable]) -> None:
        self.images, self.views = images, views
        self.labels: Int64[Tensor, " n"] = torch.tensor(images.targets)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        image = self.images[index][0]
        return index, *(view(image) for view in self.views)


class _Checkpoint:
    """Everything of one arm after each epoch, in one file that is whole or not there."""

    def __init__(
        self,
        recipe: PaperRecipe,
        arm: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LambdaLR,
        clusters: Clusters,
    ) -> None:
        self.path = Path(recipe.checkpoint, f"{arm}.pt") if recipe.checkpoint else None
        self.parts: dict[str, Any] = {
            "model": model,
            "optimizer": optimizer,
            "schedule": schedule,
            "clusters": clusters,
        }

    def load(self, device: torch.device) -> int:
        """The epoch to go on with: 0 without a checkpoint."""
        if self.path is None or not self.path.is_file():
            return 0
        state = torch.load(self.path, map_location=device, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state["epoch"] + 1

    def save(self, epoch: int) -> None:
        """Write it on the first process."""
        if self.path is None or world()[0] != 0:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_write(self.path) as temporary:
            torch.save(state | {"epoch": epoch}, temporary)


def _clusters(
    recipe: PaperRecipe, num_instances: int, dim: int, seed: int, device: torch.device
) -> Clusters:
    kmeans = OnlineConstrainedKMeans(
        recipe.heads,
        dim,
        recipe.ratio,
        recipe.dual_lr,
        generator=torch.Generator().manual_seed(seed),
        device=device,
    )
    return Clusters(kmeans, num_instances)


def _objective(recipe: PaperRecipe, arm: str, clusters: Clusters) -> SingleView:
    if arm == "one_view":
        return SingleView(clusters, recipe.temperature, recipe.beta)
    return TwoViews(clusters, recipe.two_view_temperature, recipe.alpha)


def _spread(model: CoKe, device: torch.device) -> nn.Module:
    """The model on its device, in DDP where there are processes.

    Buffers are not broadcast: SyncBN keeps statistics equal, and a second forward before backward
    would find them changed.
    """
    model.to(device)
    if not dist.is_initialized():
        return model
    if device.type == "cuda":
        for name, child in model.named_children():
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
    return DistributedDataParallel(model, broadcast_buffers=False)


def _open(recipe: PaperRecipe, split: str, views: list[Callable]) -> _Views:
    place = Path(recipe.data, split)
    if not recipe.data or not place.is_dir():
        raise FileNotFoundError(
            f"there is no {split}/ in {recipe.data!r}; name a folder with train/ and val/ by "
            "--set data=PATH"
        )
    return _Views(ImageFolder(place), views)


def _loader(recipe: PaperRecipe, images: _Views, device: torch.device, shuffle: bool) -> DataLoader:
    """Equal batches on every process; what does not fill one is dropped.

    A repeated image would be counted twice by the prices, a short batch would break their step.
    """
    rank, size = world()
    if recipe.batch % size:
        raise ValueError(f"batch {recipe.batch} cannot be split over {size} processes")
    sampler: DistributedSampler = DistributedSampler(
        images, size, rank, shuffle=shuffle, drop_last=True
    )
    return DataLoader(
        images,
        recipe.batch // size,
        sampler=sampler,
        num_workers=_workers(recipe, device),
        pin_memory=device.type == "cuda",
        drop_last=True,
    )


def _workers(recipe: PaperRecipe, device: torch.device) -> int:
    return min(recipe.workers, os.cpu_count() or 1) if device.type == "cuda" else 0


def _moved(loader: DataLoader, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    for batch in loader:
        yield tuple(part.to(device, non_blocking=True) for part in batch)


def _width(model: CoKe, recipe: PaperRecipe, device: torch.device) -> int:
    with torch.no_grad():
        return model.backbone(torch.zeros(2, 3, recipe.side, recipe.side, device=device)).shape[1]


def _finish() -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
