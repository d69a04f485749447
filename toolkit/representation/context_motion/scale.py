"""Context and motion decoupling at the paper's size: any folder of videos, a process a GPU.

    torchrun --nproc-per-node 8 -m toolkit run context_motion --profile paper --set data=FOLDER

Every video is encoded once as H.264 with one reference and no B-frames; pictures and motion vectors
then come out of one reading.
"""

import hashlib
import os
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
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.models.resnet import BasicBlock as FlatBlock
from torchvision.models.resnet import ResNet
from torchvision.models.video.resnet import (
    BasicBlock,
    BasicStem,
    Bottleneck,
    Conv2Plus1D,
    Conv3DSimple,
    R2Plus1dStem,
    VideoResNet,
)

from toolkit.data import DataError, encode_h264, read_compressed
from toolkit.learn.distributed import gather_with_grad, world
from toolkit.learn.loop import warmup_cosine
from toolkit.learn.metrics import recall_at_k
from toolkit.learn.torchrun import load_checkpoint, save_checkpoint, torchrun_group
from toolkit.representation.context_motion.loss import pointwise_info_nce
from toolkit.representation.context_motion.network import ContextMotionNet, MotionPredictor
from toolkit.representation.context_motion.pretext import motion_loss
from toolkit.representation.context_motion.transform import MotionTransform
from toolkit.representation.context_motion.videos import (
    MOTION,
    check_clip,
    fill_intra,
    negative_starts,
)
from toolkit.representation.mosi.augment import jitter_colours

VIDEOS = {".mp4", ".avi", ".mkv", ".webm", ".mov"}
MEAN, DEVIATION = 0.45, 0.225
"""Of every colour, to normalise; the field's habit for video."""
MAPS = 56
"""Side of the motion maps: R3D-10 makes 1×7×7 positions of 8×56×56. Our reconstruction."""
RECALLS = (1, 5, 10, 20, 50)


@dataclass(frozen=True)
class PaperRecipe:
    """Pre-train on the videos of `data`, then retrieve and fine-tune on those of `finetune`."""

    arms: tuple[str, ...] = ("both",)  # or context, motion, scratch
    seeds: int = 1  # initialisations
    data: str = ""  # folder of videos, searched to any depth
    finetune: str = ""  # folder with train/CLASS/VIDEO and test/CLASS/VIDEO; empty: none
    cache: str = "build/context_motion"  # where re-encoded videos go
    network: str = "r2plus1d26"  # or r3d26, c3d
    side: int = 112  # of a clip; paper 112
    stored: int = 128  # short side of the re-encoded videos
    frames: int = 16  # of a clip; paper 16
    stride: int = 4  # video frames from one to the next; paper 4
    gap: int = 2  # paper 2
    negatives: int = 3  # paper 3
    near: int = 5  # frames between clip and keyframe; paper 5
    aware: bool = True  # vectors follow flips and crops; released: False
    area: tuple[float, float] = (0.2, 1.0)  # of a crop; paper the same
    tau: float = 0.1  # paper 0.1
    width: int = 512  # of the transformer; paper 512
    layers: tuple[int, int] = (2, 4)  # paper 2, 4
    heads: int = 8  # paper 8
    dropout: float = 0.1  # paper 0.1
    projection: tuple[int, int] = (2048, 512)  # paper the same
    chunk: int = 1024  # rows of logits at a time
    epochs: int = 120  # paper 120
    warmup: int = 5  # epochs, from a hundredth of the rate; paper 5
    batch: int = 8  # videos a process; paper 8 or 16
    lr: float = 5e-4  # times the global batch; paper 5e-4
    weight_decay: float = 1e-3  # released configuration; the model card says 5e-3
    clip: float = 15.0  # norm of the gradient; paper 15
    tuned_epochs: int = 120  # paper 120
    tuned_lr: float = 8e-4  # paper 1e-4 × 8 (UCF101), 2e-4 × 8 (HMDB51)
    tuned_weight_decay: float = 3e-3  # paper 3e-3 (UCF101), 2e-3 (HMDB51)
    tuned_dropout: float = 0.3  # paper 0.3
    views: int = 10  # clips a test video; paper 10
    workers: int = 8  # of the loader
    folder: str = ""  # where the checkpoint goes after each epoch; empty: none
    max_steps: int = 0  # stop each stage earlier, to try it out; 0 does not

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        known = ("both", "context", "motion", "scratch")
        if not self.arms or set(self.arms) - set(known):
            raise ValueError(f"arms must be of {', '.join(known)}; got {self.arms}")
        if self.network not in NETWORKS:
            raise ValueError(f"network must be of {', '.join(NETWORKS)}; got {self.network!r}")
        if self.side > self.stored:
            raise ValueError(f"side {self.side} must fit into stored {self.stored}")

    @property
    def span(self) -> int:
        """Video frames that a clip covers."""
        return self.stride * (self.frames - 1) + 1

    @property
    def needed(self) -> int:
        """Frames that a video must have: clip, gap, motion."""
        return self.span + self.gap + MOTION


def run_paper(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Pre-train, retrieve and fine-tune over all processes that torchrun started.

    Returns:
        The same on every process, for each arm: `loss` of the last epoch; `recall@K` of test
        videos in the training videos by frozen features and `top1` after fine-tuning, where
        `finetune` is named.

    Raises:
        ValueError: if no folder is named.
        FileNotFoundError: if a folder holds no video that is long enough.
    """
    if not (recipe.data or recipe.finetune):
        raise ValueError("name a folder of videos: --set data=FOLDER")
    results: dict[str, float] = {}
    with torchrun_group(device) as home:
        for arm in recipe.arms:
            torch.manual_seed(seed)
            net = paper_network(recipe).to(home)
            if arm != "scratch" and recipe.data:
                results[f"{arm}/loss"] = _pretrain(recipe, arm, net, seed, home)
            if recipe.finetune:
                found = _retrieve(recipe, net, home)
                results |= {f"{arm}/recall@{k}": value for k, value in found.items()}
                results[f"{arm}/top1"] = _fine_tune(recipe, net, seed, home)
    return results


# --- networks -----------------------------------------------------------------------------------


class Decoupled26(nn.Module):
    """A 26-layer video ResNet (bottlenecks 2-2-2-2) that ends in 2×7×7 positions.

    The third stage's even and odd frames become channels, and the fourth stage's map, enlarged to
    7×7, is added. Depths and sizes are the released ones; that the sum is meant is our reading.
    """

    features = 2048

    def __init__(self, conv: Any, stem: Any) -> None:
        super().__init__()
        net = VideoResNet(Bottleneck, [conv] * 4, [2, 2, 2, 2], stem)
        pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.early = nn.Sequential(net.stem, pool, net.layer1, net.layer2, net.layer3)
        self.late = net.layer4

    def forward(self, clips: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 2048 s i j"]:
        """Maps of half as many frames as the third stage has."""
        middle = self.early(clips)
        paired = torch.cat([middle[:, :, 0::2], middle[:, :, 1::2]], dim=1)
        return paired + F.interpolate(self.late(middle), paired.shape[2:], mode="nearest")


class C3D(nn.Sequential):
    """Eight 3×3×3 convolutions with batch norm; the last map is 512×2×7×7."""

    features = 512

    def __init__(self) -> None:
        stages: list[nn.Module] = []
        before = 3
        for after, pool in ((64, 1), (128, 2), (256, 0), (256, 2), (512, 0), (512, 2), (512, 0)):
            stages += _c3d(before, after)
            if pool:
                stages.append(nn.MaxPool3d((pool, 2, 2), (pool, 2, 2)))
            before = after
        super().__init__(*stages, *_c3d(512, 512))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "r2plus1d26": partial(Decoupled26, Conv2Plus1D, R2Plus1dStem),
    "r3d26": partial(Decoupled26, Conv3DSimple, BasicStem),
    "c3d": C3D,
}


def paper_network(recipe: PaperRecipe) -> ContextMotionNet:
    """Backbone, transformer, R3D-10 for motion and R2D-10 for keyframes."""
    backbone = NETWORKS[recipe.network]()
    k = int(backbone.features)  # type: ignore[arg-type]
    cells = -(-recipe.side // 16)
    predictor = MotionPredictor(
        k,
        recipe.width,
        (recipe.frames // 8) * cells**2,
        49,
        recipe.layers,
        recipe.heads,
        recipe.width,
        recipe.dropout,
    )
    motion = VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], _MotionStem)
    keyframe = ResNet(FlatBlock, [1, 1, 1, 1])
    return ContextMotionNet(
        backbone,
        predictor,
        nn.Sequential(motion.stem, motion.layer1, motion.layer2, motion.layer3, motion.layer4),
        nn.Sequential(*list(keyframe.children())[:-2]),
        (k, recipe.width, 512, 512),
        recipe.projection,
    )


class _MotionStem(nn.Sequential):
    """Two channels, stride 1."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(2, 64, 3, 1, 1, bias=False), nn.BatchNorm3d(64), nn.ReLU(inplace=True)
        )


def _c3d(before: int, after: int) -> list[nn.Module]:
    conv = nn.Conv3d(before, after, 3, 1, 1, bias=False)
    return [conv, nn.BatchNorm3d(after), nn.ReLU(inplace=True)]


# --- data ---------------------------------------------------------------------------------------


def recode(path: Path, recipe: PaperRecipe) -> Path:
    """Encode a video once, without B-frames, into the cache; where it then lies.

    Raises:
        DataError: if it cannot be decoded or has too few frames for a clip and its future.
    """
    name = hashlib.sha256(f"{path.resolve()}:{recipe.stored}".encode()).hexdigest()[:24]
    target = Path(recipe.cache).expanduser() / f"{name}.mp4"
    if target.is_file():
        return target
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            scale = recipe.stored / min(stream.height, stream.width)
            height, width = (2 * round(n * scale / 2) for n in (stream.height, stream.width))
            frames = [
                frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
                for frame in container.decode(stream)
            ]
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path} is no video that can be decoded ({error})") from error
    if len(frames) < recipe.needed:
        raise DataError(f"{path} has {len(frames)} frames; {recipe.needed} are needed")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(encode_h264(np.stack(frames)))
    temporary.replace(target)
    return target


class Compressed(Dataset):
    """Videos of a folder, or of its classes, re-encoded; those too short are left out."""

    def __init__(self, recipe: PaperRecipe, root: str, seed: int, split: str = "") -> None:
        self.recipe, self.seed, self.epoch, self.split = recipe, seed, 0, split
        home = Path(root).expanduser() / split
        found = sorted(p for p in home.rglob("*") if p.suffix.lower() in VIDEOS)
        self.classes = sorted({p.parent.name for p in found})
        self.files: list[tuple[Path, int]] = []
        for path in found:
            try:
                self.files.append((recode(path, recipe), self.classes.index(path.parent.name)))
            except DataError:
                continue
        if not self.files:
            raise FileNotFoundError(f"{home} holds no video of {recipe.needed} frames or more")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        path, label = self.files[index]
        generator = torch.Generator().manual_seed(
            int(np.random.default_rng([self.seed, self.epoch, index]).integers(2**62))
        )
        if self.split:
            return (*self._clips(path, generator), torch.tensor(label))
        return pretext_item(self.recipe, path, generator)

    def _clips(self, path: Path, generator: torch.Generator) -> tuple[Tensor]:
        """One random clip to learn from, equally spaced ones to test."""
        recipe, rgb = self.recipe, read_compressed(path, mvs=False).rgb
        assert rgb is not None
        last, training = len(rgb) - recipe.span, self.split == "train"
        starts = torch.linspace(0, last, recipe.views).round().long()
        if training:
            starts = torch.randint(last + 1, (1,), generator=generator)
        area = (recipe.area[0], 1.0) if training else (1.0, 1.0)
        transform = MotionTransform(recipe.side, area=area, mirror=0.5 if training else 0.0)
        return (torch.stack([_clip(recipe, rgb, int(s), transform, generator) for s in starts]),)


def pretext_item(
    recipe: PaperRecipe, path: Path, generator: torch.Generator
) -> tuple[Float[Tensor, "3 t h w"], Float[Tensor, "3 h w"], Tensor, Tensor]:
    """Clip, keyframe, the motion to come [2, 8, 56, 56], and at other times [m, 2, 8, 56, 56].

    Raises:
        DataError: if the file is damaged.
        ValueError: if it is too short, has no vectors, or no keyframe near the clip.
    """
    read = check_clip(read_compressed(path), recipe.needed)
    assert read.rgb is not None
    assert read.mv is not None
    mv = fill_intra(read.mv, read.pict_type)
    start = int(torch.randint(len(mv) - recipe.needed + 1, (), generator=generator))
    near = [
        t
        for t, kind in enumerate(read.pict_type)
        if kind == "I" and start - recipe.near <= t < start + recipe.span + recipe.near
    ]
    if not near:
        raise ValueError(f"{path} has no keyframe within {recipe.near} frames of frame {start}")
    still = near[int(torch.randint(len(near), (), generator=generator))]
    after = start + recipe.span + recipe.gap
    transform = MotionTransform(recipe.side, MAPS, recipe.area, aware=recipe.aware)
    view = transform.draw(1, generator)
    clip = _seen(recipe, read.rgb[start : start + recipe.span : recipe.stride], transform, view)
    key = _seen(recipe, read.rgb[still : still + 1], transform, transform.draw(1, generator))
    positive = transform.vectors(mv[None, after : after + MOTION], view)[0]
    elsewhere = negative_starts(torch.tensor([after]), recipe.negatives, len(mv), generator)[0]
    others = [
        transform.vectors(mv[None, s : s + MOTION], transform.draw(1, generator))[0]
        for s in elsewhere.tolist()
    ]
    clip, key = (_colours(part[None], generator)[0] for part in (clip, key))
    return clip, key[:, 0], positive, torch.stack(others) if others else positive[None, :0]


def _seen(
    recipe: PaperRecipe, rgb: UInt8[Tensor, "t 3 h w"], transform: MotionTransform, view: Any
) -> Float[Tensor, "3 t side side"]:
    seen = transform.pictures(rgb.flatten(0, 1)[None], view)[0, 0]
    return seen.unflatten(0, (-1, 3)).transpose(0, 1)


def _clip(
    recipe: PaperRecipe, rgb: Tensor, start: int, transform: MotionTransform, generator: Any
) -> Float[Tensor, "3 t side side"]:
    frames = rgb[start : start + recipe.span : recipe.stride]
    view = transform.draw(1, generator) if transform.mirror else transform.whole(1)
    return (_seen(recipe, frames, transform, view) - MEAN) / DEVIATION


def _colours(x: Float[Tensor, "1 3 t h w"], generator: torch.Generator) -> Tensor:
    """Blur (½), jitter of 0.4, hue 0.1 (½) and grey (0.2), the same in all frames."""
    if torch.rand((), generator=generator) < 0.5:
        sigma = 0.1 + 1.9 * float(torch.rand((), generator=generator))
        taps = torch.arange(-4.0, 5).div(sigma).square().div(-2).exp()
        taps = (taps / taps.sum()).to(x)
        flat = x.flatten(0, 2)[:, None]
        for shape, pad in (((1, 1, 9, 1), (0, 0, 4, 4)), ((1, 1, 1, 9), (4, 4, 0, 0))):
            flat = F.conv2d(F.pad(flat, pad, mode="replicate"), taps.view(shape))
        x = flat[:, 0].view_as(x)
    strength = 0.4 if torch.rand((), generator=generator) < 0.5 else 0.0
    x = jitter_colours(x, generator, strength, strength / 4, 0.2, True)
    return (x - MEAN) / DEVIATION


# --- training -----------------------------------------------------------------------------------


class PretextLoss(nn.Module):
    """The whole loss as one module, so that gradients are averaged over processes."""

    def __init__(self, recipe: PaperRecipe, arm: str, net: ContextMotionNet) -> None:
        super().__init__()
        self.recipe, self.arm, self.net = recipe, arm, net

    def forward(
        self, clips: Tensor, keyframes: Tensor, positive: Tensor, negative: Tensor
    ) -> Float[Tensor, ""]:
        """L_m + L_i, or one of them."""
        net, recipe = self.net, self.recipe
        maps, loss = net.maps(clips), clips.new_zeros(())
        if self.arm != "context":
            others = negative.flatten(0, 1)
            loss = loss + motion_loss(net, maps, positive, others, recipe.tau, chunk=recipe.chunk)
        if self.arm != "motion":
            q, k = net.context_queries(maps), net.context_keys(keyframes)
            loss = loss + pointwise_info_nce(q, k, tau=recipe.tau)
        return loss


def _pretrain(
    recipe: PaperRecipe, arm: str, net: ContextMotionNet, seed: int, device: torch.device
) -> float:
    """Train in place; the mean loss of the last epoch, over all processes."""
    distributed = dist.is_initialized()
    if distributed and device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    model: nn.Module = PretextLoss(recipe, arm, net)
    if distributed:
        model = DistributedDataParallel(model, find_unused_parameters=arm != "both")
    data = Compressed(recipe, recipe.data, seed)
    loader = _loader(recipe, data, recipe.batch, device)
    rate = recipe.lr * recipe.batch * world()[1]
    optimizer = torch.optim.SGD(
        net.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    schedule = LambdaLR(optimizer, lambda epoch: rate_factor(epoch, recipe.epochs, recipe.warmup))
    steps, total = 0, torch.zeros(2, device=device)
    parts = {"net": net, "optimizer": optimizer, "schedule": schedule}
    first = load_checkpoint(recipe.folder, f"context_motion_{arm}", parts)
    for epoch in range(first, recipe.epochs):
        data.epoch, total = epoch, torch.zeros(2, device=device)
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        model.train()
        for batch in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(*(part.to(device) for part in batch))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
            optimizer.step()
            total += torch.stack([loss.detach(), loss.new_ones(())])
            steps += 1
            if steps == recipe.max_steps:
                break
        schedule.step()
        save_checkpoint(recipe.folder, f"context_motion_{arm}", parts, epoch + 1)
        if steps == recipe.max_steps:
            break
    if distributed:
        dist.all_reduce(total)
    return float(total[0] / total[1].clamp(min=1))


def rate_factor(epoch: int, total: int, warm: int) -> float:
    """A hundredth rising linearly to 1, then half a cosine to 0, epoch by epoch."""
    if epoch < warm:
        return 0.01 + 0.99 * epoch / warm
    return warmup_cosine(epoch - warm, max(1, total - warm))


@torch.no_grad()
def _features(recipe: PaperRecipe, net: ContextMotionNet, split: str, device: torch.device) -> Any:
    """Mean feature of the equally spaced clips of each video, and its label, of all processes."""
    data = Compressed(recipe, recipe.finetune, 0, split)
    data.split = "test"  # equally spaced clips of the training videos, too
    rank, size = world()
    count = -(-len(data) // size)
    rows, labels = [], []
    net.eval()
    for turn in range(count):
        clips, label = data[min(turn * size + rank, len(data) - 1)]
        rows.append(net.embed(clips.to(device)).mean(dim=0))
        labels.append(label.float().to(device))
    found = gather_with_grad(torch.stack(rows)), gather_with_grad(torch.stack(labels))
    order = torch.arange(count * size).view(size, count).T.flatten()[: len(data)]
    return found[0][order].cpu(), found[1][order].long().cpu()


def _retrieve(recipe: PaperRecipe, net: ContextMotionNet, device: torch.device) -> dict[int, float]:
    (q, yq), (g, yg) = (_features(recipe, net, split, device) for split in ("test", "train"))
    return recall_at_k(q, g, yq, yg, [k for k in RECALLS if k <= len(g)])


def _fine_tune(
    recipe: PaperRecipe, net: ContextMotionNet, seed: int, device: torch.device
) -> float:
    """Train backbone and a new head on labels; top-1 on the test videos of all processes."""
    train = Compressed(recipe, recipe.finetune, seed, "train")
    features = int(net.backbone.features)  # type: ignore[arg-type]
    head = nn.Sequential(
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Dropout(recipe.tuned_dropout),
        nn.Linear(features, len(train.classes)),
    )
    model = nn.Sequential(net.backbone, head).to(device)
    trained: nn.Module = model
    if dist.is_initialized():
        trained = DistributedDataParallel(model)
    loader = _loader(recipe, train, recipe.batch, device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.tuned_lr * world()[1],
        momentum=0.9,
        nesterov=True,
        weight_decay=recipe.tuned_weight_decay,
    )
    schedule = LambdaLR(
        optimizer, lambda epoch: rate_factor(epoch, recipe.tuned_epochs, recipe.warmup)
    )
    steps = 0
    for epoch in range(recipe.tuned_epochs):
        train.epoch = epoch
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        trained.train()
        for clips, labels in loader:
            loss = F.cross_entropy(trained(clips[:, 0].to(device)), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps += 1
            if steps == recipe.max_steps:
                break
        schedule.step()
        if steps == recipe.max_steps:
            break
    return _top1(recipe, model, device)


@torch.no_grad()
def _top1(recipe: PaperRecipe, model: nn.Module, device: torch.device) -> float:
    """Each process tests its share, every video once."""
    test = Compressed(recipe, recipe.finetune, 0, "test")
    rank, size = world()
    model.eval()
    total = torch.zeros(2, device=device)
    for index in range(rank, len(test), size):
        clips, label = test[index]
        guess = int(model(clips.to(device)).softmax(dim=1).mean(dim=0).argmax())
        total += torch.tensor([float(guess == int(label)), 1.0], device=device)
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total[0] / total[1])


def _loader(recipe: PaperRecipe, data: Dataset, batch: int, device: torch.device) -> DataLoader:
    rank, size = world()
    on_gpu = device.type == "cuda"
    loader = DataLoader(
        data,
        batch,
        sampler=DistributedSampler(data, size, rank),
        num_workers=recipe.workers if on_gpu else 0,
        pin_memory=on_gpu,
        drop_last=True,
    )
    if not len(loader):
        raise ValueError(f"no batch of {batch} on each of {size} processes; use a smaller batch")
    return loader
