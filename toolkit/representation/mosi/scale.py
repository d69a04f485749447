"""MoSI at the paper's size: any folder of images or videos, one process a GPU under torchrun.

    torchrun --nproc-per-node 8 -m toolkit run mosi --profile paper --set data=FOLDER

Stills are decoded by the loader's workers; everything else happens on the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.models.video.resnet import (
    BasicBlock,
    BasicStem,
    Conv2Plus1D,
    Conv3DNoTemporal,
    Conv3DSimple,
    R2Plus1dStem,
    VideoResNet,
)

from toolkit.learn.distributed import world
from toolkit.learn.loop import warmup_cosine
from toolkit.learn.torchrun import (
    average_buffers,
    load_checkpoint,
    save_checkpoint,
    sum_over_ranks,
    torchrun_group,
)
from toolkit.representation.mosi.augment import jitter_colours
from toolkit.representation.mosi.generator import (
    MotionClass,
    mirror,
    pseudo_motion,
    static_mask,
)
from toolkit.representation.mosi.network import MoSINet, heads_loss

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
VIDEOS = {".mp4", ".avi", ".mkv", ".webm", ".mov"}
MEAN, DEVIATION = 0.45, 0.225
"""Of every colour, to normalise; the field's habit for video."""


@dataclass(frozen=True)
class PaperRecipe:
    """Pre-train on stills from `data`, then fine-tune and test on the videos of `finetune`."""

    arms: tuple[str, ...] = ("mosi",)  # or "scratch", to fine-tune without pre-training
    seeds: int = 1  # initialisations
    data: str = ""  # folder of images or videos, searched to any depth
    finetune: str = ""  # folder with train/CLASS/VIDEO and test/CLASS/VIDEO; empty: no fine-tuning
    network: str = "r2d3d18"  # or r2plus1d10 (the paper's two), r2plus1d_18, r3d_18, mc3_18
    heads: str = "joint"  # or "separate", one an axis; then all (2K+1)² pairs are classes
    decoupled: bool = True  # paper: 9 classes; else all 25
    K: int = 2  # speed granularity; paper 2
    short: tuple[int, int] = (320, 320)  # short side after resizing; paper 320; a larger upper end
    # keeps the fastest window from spanning the whole image
    source: int = 320  # side L of the source square; paper 320
    crop: int = 112  # side of a clip; paper 112
    frames: int = 16  # paper 16
    mask: bool = True  # the static mask
    ratio: tuple[float, float] = (0.3, 0.5)  # paper the same
    swap: bool = True  # mirror labels with clips; the released generator: False
    strength: float = 0.5  # of brightness, contrast and saturation; paper 0.5
    hue: float = 0.25  # paper 0.25
    grey: float = 0.3  # probability; paper 0.3
    consistent: bool = False  # colours drawn once a clip; paper: in every frame
    epochs: int = 100  # paper 100
    warmup: int = 10  # epochs; paper 10
    repeat: int = 20  # passes over the list in one epoch; paper 20
    batch: int = 10  # images a process, each in all classes; paper 10 (R-2D3D), 5 (R(2+1)D)
    lr: float = 1e-3  # Adam; paper 1e-3
    weight_decay: float = 1e-4  # paper 1e-4
    dropout: float = 0.5  # paper 0.5
    tuned_epochs: int = 300  # paper 300
    tuned_batch: int = 128  # clips a process; paper 1024 in all
    tuned_lr: float = 2e-3  # paper 0.002 (HMDB51), 0.004 (UCF101)
    tuned_weight_decay: float = 1e-3  # paper 1e-3
    tuned_short: tuple[int, int] = (168, 224)  # short side in fine-tuning; paper 168–224
    stride: int = 4  # video frames from one frame of a clip to the next; paper 4
    views: int = 10  # clips a test video, their softmax averaged; ours
    workers: int = 8  # of the loader
    folder: str = ""  # where checkpoints go after each epoch; empty: none
    max_steps: int = 0  # stop each stage earlier, to try it out; 0 does not

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if set(self.arms) - {"mosi", "scratch"} or not self.arms:
            raise ValueError(f"arms are mosi and scratch, got {self.arms}")
        if self.network not in NETWORKS:
            raise ValueError(f"network must be of {', '.join(NETWORKS)}; got {self.network!r}")
        if self.heads not in ("joint", "separate"):
            raise ValueError(f"heads must be joint or separate, got {self.heads!r}")
        if not self.crop < self.source <= min(self.short):
            raise ValueError(
                f"need crop < source ≤ short side, got {self.crop}, {self.source}, {self.short}"
            )


def run_paper(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Pre-train and fine-tune over all processes that torchrun started.

    Returns:
        The same on every process: `mosi/loss` and `mosi/accuracy` of the last epoch of
        pre-training, `ARM/top1` on the test videos, if there are any.

    Raises:
        ValueError: if neither folder is named.
        FileNotFoundError: if a folder holds no image or video.
    """
    if not (recipe.data or recipe.finetune):
        raise ValueError("name a folder of images or videos: --set data=FOLDER")
    results: dict[str, float] = {}
    with torchrun_group(device) as home:
        for arm in recipe.arms:
            torch.manual_seed(seed)
            backbone = NETWORKS[recipe.network]()
            if arm == "mosi":
                found = _pretrain(recipe, backbone, seed, home)
                results |= {f"mosi/{name}": value for name, value in found.items()}
            if recipe.finetune:
                results[f"{arm}/top1"] = _fine_tune(recipe, backbone, seed, home)
    return results


def r2d3d18() -> nn.Module:
    """ResNet-18 with widths 64, 64, 128, 256, 256: convolutions in time only in the last two.

    The stem and the first two stages see one frame at a time; the last two halve the time.
    """
    flat, full = Conv3DNoTemporal, Conv3DSimple
    stem = nn.Sequential(
        nn.Conv3d(3, 64, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
        nn.BatchNorm3d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    )
    stages = [(64, 64, flat, (1, 1, 1)), (64, 128, flat, (1, 2, 2))]
    stages += [(128, 256, full, (2, 2, 2)), (256, 256, full, (2, 2, 2))]
    blocks: list[nn.Module] = [stem]
    for before, after, conv, stride in stages:
        blocks += [_Block(before, after, conv, stride), _Block(after, after, conv, (1, 1, 1))]
    return _with_features(nn.Sequential(*blocks), 256)


def video_resnet(conv: Any, layers: tuple[int, int, int, int], stem: Any) -> nn.Module:
    """Stem and stages of torchvision's video ResNet, up to 512 channels, without its head."""
    convs = conv if isinstance(conv, list) else [conv] * 4
    net = VideoResNet(BasicBlock, convs, list(layers), stem)
    stages = [net.stem, net.layer1, net.layer2, net.layer3, net.layer4]
    return _with_features(nn.Sequential(*stages), 512)


EIGHTEEN = (2, 2, 2, 2)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "r2d3d18": r2d3d18,
    "r2plus1d10": partial(video_resnet, Conv2Plus1D, (1, 1, 1, 1), R2Plus1dStem),
    "r2plus1d_18": partial(video_resnet, Conv2Plus1D, EIGHTEEN, R2Plus1dStem),
    "r3d_18": partial(video_resnet, Conv3DSimple, EIGHTEEN, BasicStem),
    "mc3_18": partial(video_resnet, [Conv3DSimple] + [Conv3DNoTemporal] * 3, EIGHTEEN, BasicStem),
}


class _Block(nn.Module):
    """Two convolutions around an identity, or a 1×1×1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, conv: Any, stride: tuple[int, int, int]) -> None:
        super().__init__()
        kernel, padding = ((3, 3, 3), 1) if conv is Conv3DSimple else ((1, 3, 3), (0, 1, 1))
        self.body = nn.Sequential(
            nn.Conv3d(before, after, kernel, stride, padding, bias=False),
            nn.BatchNorm3d(after),
            nn.ReLU(inplace=True),
            nn.Conv3d(after, after, kernel, 1, padding, bias=False),
            nn.BatchNorm3d(after),
        )
        same = before == after and stride == (1, 1, 1)
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv3d(before, after, 1, stride, bias=False), nn.BatchNorm3d(after)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def _with_features(net: nn.Module, features: int) -> nn.Module:
    net.features = features  # type: ignore[assignment]
    return net


# --- pre-training -------------------------------------------------------------------------------


class Stills(Dataset):
    """One square a file: of an image, or of a random frame of a video; bytes [3, L, L]."""

    def __init__(self, recipe: PaperRecipe, seed: int) -> None:
        self.recipe, self.seed, self.epoch = recipe, seed, 0
        root = Path(recipe.data).expanduser()
        self.files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGES | VIDEOS)
        if not self.files:
            raise FileNotFoundError(f"{root} holds no image or video")

    def __len__(self) -> int:
        return len(self.files) * self.recipe.repeat

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 side side"]:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        file = self.files[index % len(self.files)]
        if file.suffix.lower() in IMAGES:
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        else:
            pixels = random_frame(file, rng)
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        low, high = self.recipe.short
        image = _resize(image[None], int(rng.integers(low, high + 1)))[0]
        side = self.recipe.source
        top, left = (int(rng.integers(0, n - side + 1)) for n in image.shape[1:])
        return image[:, top : top + side, left : left + side]


def random_frame(file: Path, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """A frame of a video at a random time: the next one that can be decoded from there."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        length = stream.duration or 0
        first = stream.start_time or 0
        if length:
            container.seek(first + int(rng.integers(0, length)), stream=stream)
        for frame in container.decode(stream):
            return frame.to_ndarray(format="rgb24")
    raise FileNotFoundError(f"{file} holds no frame")


def pretext_step(
    recipe: PaperRecipe,
    images: UInt8[Tensor, "b 3 side side"],
    pool: MotionClass,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n 3 t h w"], Tensor]:
    """All classes of each image, in the released order: move, colours, mirror, mask."""
    clips, labels = pseudo_motion(
        images.float() / 255, pool.factors, recipe.crop, recipe.frames, generator
    )
    clips = jitter_colours(
        clips, generator, recipe.strength, recipe.hue, recipe.grey, recipe.consistent
    )
    clips = (clips - MEAN) / DEVIATION
    clips, labels = mirror(clips, labels, pool, generator=generator, swap=recipe.swap)
    if recipe.mask:
        clips = static_mask(clips, recipe.ratio, generator=generator)
    return clips, pool.axis_labels(labels) if recipe.heads == "separate" else labels


def _pretrain(
    recipe: PaperRecipe, backbone: nn.Module, seed: int, device: torch.device
) -> dict[str, float]:
    """Train the backbone in place; loss and accuracy over the last epoch, of all processes."""
    separate = recipe.heads == "separate"
    pool = MotionClass(recipe.K, recipe.decoupled and not separate)
    sizes = (2 * recipe.K + 1,) * 2 if separate else pool.n
    model = MoSINet(backbone, sizes, recipe.dropout).to(device)
    trained = DistributedDataParallel(model) if dist.is_initialized() else model
    stills = Stills(recipe, seed)
    loader = _loader(recipe, stills, recipe.batch, device, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    per_epoch = max(1, len(loader))
    schedule = LambdaLR(
        optimizer,
        lambda step: warmup(step, recipe.epochs * per_epoch, recipe.warmup * per_epoch),
    )
    generator = torch.Generator().manual_seed(1000 * seed + world()[0])
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first, steps = load_checkpoint(recipe.folder, "mosi", parts), 0
    total = torch.zeros(3, device=device)
    for epoch in range(first, recipe.epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        stills.epoch = epoch
        total = torch.zeros(3, device=device)
        trained.train()
        for images in loader:
            clips, labels = pretext_step(recipe, images.to(device), pool, generator)
            logits, loss = _step(trained, clips, labels, model.sizes, optimizer)
            schedule.step()
            total += torch.stack([loss, _right(logits, labels, model.sizes), loss.new_ones(())])
            steps += 1
            if steps == recipe.max_steps:
                break
        save_checkpoint(recipe.folder, "mosi", parts, epoch + 1)
        if steps == recipe.max_steps:
            break
    sum_over_ranks(total)
    return {"loss": float(total[0] / total[2]), "accuracy": float(total[1] / total[2])}


def warmup(step: int, total: int, warm: int) -> float:
    """A tenth of the rate rising linearly to all of it, then half a cosine to zero."""
    if step < warm:
        return 0.1 + 0.9 * step / warm
    return warmup_cosine(step - warm, max(1, total - warm))


def _step(
    trained: nn.Module,
    clips: Tensor,
    labels: Tensor,
    sizes: tuple[int, ...],
    optimizer: torch.optim.Optimizer,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=clips.is_cuda):
        logits = trained(clips).float()
    loss = heads_loss(logits, labels, sizes)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return logits.detach(), loss.detach()


def _right(logits: Tensor, labels: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The share of clips with all heads right."""
    columns = labels.view(len(labels), -1).unbind(dim=1)
    hits = [z.argmax(1) == y for z, y in zip(logits.split(sizes, 1), columns, strict=True)]
    return torch.stack(hits).all(dim=0).float().mean()


# --- fine-tuning --------------------------------------------------------------------------------


class Videos(Dataset):
    """Clips of a folder CLASS/VIDEO: random ones to learn from, equally spaced ones to test."""

    def __init__(self, recipe: PaperRecipe, split: str, seed: int) -> None:
        self.recipe, self.split, self.seed, self.epoch = recipe, split, seed, 0
        root = Path(recipe.finetune).expanduser() / split
        self.classes = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        self.files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((root / name).iterdir())
            if file.suffix.lower() in VIDEOS
        ]
        if not self.files:
            raise FileNotFoundError(f"{root} holds no folder of videos")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "v 3 t h w"], int]:
        file, label = self.files[index]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        frames, span = _all_frames(file), self.recipe.stride * (self.recipe.frames - 1)
        last, training = max(0, len(frames) - 1 - span), self.split == "train"
        starts = [int(rng.integers(0, last + 1))] if training else _spaced(last, self.recipe.views)
        steps = self.recipe.stride * torch.arange(self.recipe.frames)
        low, high = self.recipe.tuned_short
        frames = _resize(
            frames, int(rng.integers(low, high + 1)) if training else (low + high) // 2
        )
        room = [n - self.recipe.crop for n in frames.shape[2:]]
        top, left = (int(rng.integers(0, n + 1)) if training else n // 2 for n in room)
        cut = frames[..., top : top + self.recipe.crop, left : left + self.recipe.crop]
        if training and rng.random() < 0.5:
            cut = cut.flip(-1)
        times = torch.tensor(starts)[:, None] + steps
        return cut[times.clamp(max=len(frames) - 1)].transpose(1, 2), label


def _fine_tune(recipe: PaperRecipe, backbone: nn.Module, seed: int, device: torch.device) -> float:
    """Train backbone and a new head on labels; top-1 on the test videos of all processes."""
    train, test = (Videos(recipe, split, seed) for split in ("train", "test"))
    if train.classes != test.classes:
        raise ValueError(f"train and test must have the same classes under {recipe.finetune}")
    model = MoSINet(backbone, len(train.classes), recipe.dropout).to(device)
    trained = DistributedDataParallel(model) if dist.is_initialized() else model
    loader = _loader(recipe, train, recipe.tuned_batch, device, shuffle=True)
    optimizer = torch.optim.Adam(
        model.parameters(), recipe.tuned_lr, weight_decay=recipe.tuned_weight_decay
    )
    total = recipe.tuned_epochs * max(1, len(loader))
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, total))
    generator, steps = torch.Generator().manual_seed(1000 * seed + 1 + world()[0]), 0
    for epoch in range(recipe.tuned_epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        train.epoch = epoch
        trained.train()
        for clips, labels in loader:
            x = clips[:, 0].to(device).float() / 255
            x = jitter_colours(x, generator, recipe.strength, recipe.hue, recipe.grey, True)
            _step(trained, (x - MEAN) / DEVIATION, labels.to(device), model.sizes, optimizer)
            schedule.step()
            steps += 1
            if steps == recipe.max_steps:
                return _top1(recipe, model, test, device)
    return _top1(recipe, model, test, device)


@torch.no_grad()
def _top1(recipe: PaperRecipe, model: MoSINet, test: Videos, device: torch.device) -> float:
    """Each process tests its share, every video once."""
    rank, size = world()
    average_buffers(model)
    model.eval()
    total = torch.zeros(2, device=device)
    for index in range(rank, len(test), size):
        clips, label = test[index]
        x = (clips.to(device).float() / 255 - MEAN) / DEVIATION
        guess = int(model(x).softmax(dim=1).mean(dim=0).argmax())
        total += torch.tensor([float(guess == label), 1.0], device=device)
    sum_over_ranks(total)
    return float(total[0] / total[1])


# --- helpers ------------------------------------------------------------------------------------


def _loader(
    recipe: PaperRecipe, data: Any, batch: int, device: torch.device, shuffle: bool
) -> DataLoader:
    rank, size = world()
    sampler: DistributedSampler = DistributedSampler(data, size, rank, shuffle=shuffle)
    on_gpu = device.type == "cuda"
    loader = DataLoader(
        data,
        batch,
        sampler=sampler,
        num_workers=recipe.workers if on_gpu else 0,
        pin_memory=on_gpu,
        drop_last=True,
    )
    if not len(loader):
        raise ValueError(f"no batch of {batch} on each of {size} processes; use a smaller batch")
    return loader


def _resize(frames: UInt8[Tensor, "t 3 h w"], short: int) -> UInt8[Tensor, "t 3 a b"]:
    height, width = frames.shape[2:]
    scale = short / min(height, width)
    size = (max(short, round(height * scale)), max(short, round(width * scale)))
    small = F.interpolate(frames.float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def _all_frames(file: Path) -> UInt8[Tensor, "t 3 h w"]:
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if not frames:
        raise FileNotFoundError(f"{file} holds no frame")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def _spaced(last: int, views: int) -> list[int]:
    return np.linspace(0, last, views).round().astype(int).tolist()
