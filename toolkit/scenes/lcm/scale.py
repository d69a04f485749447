"""The paper's size: ResNet-50 encoders, stills first, then DAVIS and YouTube-VOS, on many GPUs.

Stage 1 makes clips out of stills with masks, by random affine maps; stage 2 trains on videos, with
growing skips; then DAVIS is scored at its own resolution. Folders are laid out as published:
`ROOT/JPEGImages/…/VIDEO/*.jpg`, `ROOT/Annotations/…/VIDEO/*.png` (palette masks) and, for DAVIS,
`ROOT/ImageSets/…/{train,val}.txt`.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.ops import FrozenBatchNorm2d

from toolkit.learn.augment import random_affine
from toolkit.learn.distributed import world
from toolkit.learn.torchrun import load_checkpoint, save_checkpoint, sum_over_ranks, torchrun_group
from toolkit.scenes.lcm.encoders import Encoder, Features
from toolkit.scenes.lcm.metrics import davis_evaluate
from toolkit.scenes.lcm.network import LCM, Memory, soft_aggregate

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels."""


@dataclass(frozen=True)
class PaperRecipe:
    """STM's recipe, which LCM follows in outline. Where no source is named, the choice is ours."""

    davis: str = ""  # root of DAVIS 2016 or 2017
    ytvos: str = ""  # folder of YouTube-VOS's training videos
    stills: str = ""  # folder with images/ and masks/ of equal stems, for stage 1
    year: str = "2017"  # of DAVIS: "2016" merges all objects of a video into one
    weights: str = "imagenet"  # of both encoders: "imagenet", "none" or a file of a state dict
    folder: str = ""  # where checkpoints go; training resumes from there
    masks: str = ""  # where predicted masks go, as palette PNGs
    predict: str = ""  # a folder of videos to segment, such as YouTube-VOS's validation set
    arms: tuple[str, ...] = ("lcm",)  # one network
    modules: tuple[str, ...] = ("grm", "pgm", "orm")
    fuse: str = "add"
    seeds: int = 1
    key_dim: int = 128  # STM's code
    value_dim: int = 512  # STM's code
    width: int = 256  # of the decoder, STM's code
    crop: int = 384  # pixels; STM § 3.5
    frames: int = 3  # STM § 3.5
    max_skip: int = 25  # STM § 3.5: grown from 0 by 5 every 20 epochs
    skip_every: int = 20  # epochs
    skip_step: int = 5  # frames
    objects: int = 3  # at most, of a training clip
    stills_epochs: int = 20
    epochs: int = 240  # a public re-implementation of STM
    batch: int = 1  # clips a process; 4 in all on four GPUs, STM § 3.5
    lr: float = 1e-5  # of Adam, constant; STM § 3.5
    every: int = 5  # frames between two in memory; STM § 3.5
    chunk: int = 0  # cells of memory read at once when testing; 0: all
    workers: int = 4
    max_steps: int = 0  # 0: all; for trials


def run_paper(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train on what is named, score DAVIS, write masks; under torchrun or in one process.

    Returns:
        `"ARM/stills_loss"`, `"ARM/loss"` (means of the last epoch), and `"ARM/J"`, `"ARM/F"`,
        `"ARM/J&F"` and their recall and decay over DAVIS's validation objects.

    Raises:
        ValueError: if no data are named, or more than one arm.
        FileNotFoundError: if a folder holds none.
    """
    if not (recipe.davis or recipe.ytvos or recipe.stills or recipe.predict):
        raise ValueError("name data: --set davis=… --set ytvos=… --set stills=… --set predict=…")
    if len(recipe.arms) != 1:
        raise ValueError(f"this recipe trains one network, named by one arm; got {recipe.arms}")
    stages = [("stills", _stills(recipe, seed)), ("videos", _videos(recipe, seed))]
    with torchrun_group(device) as device:
        torch.manual_seed(seed)
        model = paper_network(recipe).to(device)
        results = {}
        for stage, data in stages:
            if data is not None:
                loss = _train(recipe, model, data, stage, seed, device)
                results["stills_loss" if stage == "stills" else "loss"] = loss
        if recipe.davis:
            results |= evaluate(recipe, model.eval(), device)
        if recipe.predict:
            _predict_folder(recipe, model.eval(), device)
        return {f"{recipe.arms[0]}/{name}": value for name, value in results.items()}


def paper_network(recipe: PaperRecipe) -> LCM:
    """LCM on ResNet-50."""
    encoders = (ResNetEncoder(recipe.weights), ResNetEncoder(recipe.weights, with_masks=True))
    return PaperNetwork(
        recipe.modules,
        recipe.fuse,
        recipe.key_dim,
        recipe.value_dim,
        encoders=encoders,
        width=recipe.width,
    )


class PaperNetwork(LCM):
    """All values of the memory are learnt; the small network puts the mask among them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.memory_value = nn.Conv2d(
            self.query_encoder.channels, self.query_value.out_channels, 3, padding=1
        )

    def memorize(self, frame: Tensor, mask: Tensor, others: Tensor | None = None) -> Memory:
        """As `LCM.memorize`, without the mask's channel."""
        memory = super().memorize(frame, mask, others)
        return replace(memory, values=memory.values[:, :-1])


class ResNetEncoder(Encoder):
    """ResNet-50 up to stride 16, batch norm frozen; masks through 7×7 convolutions at the stem.

    Args:
        weights: `"imagenet"`, `"none"` or a file with torchvision's state dict of ResNet-50.
        with_masks: whether it encodes the memory.
    """

    channels = 1024
    skip_channels = (512, 256)
    divisor = 16
    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: str = "imagenet", with_masks: bool = False) -> None:
        super().__init__()
        net = resnet50(
            weights=ResNet50_Weights.IMAGENET1K_V1 if weights == "imagenet" else None,
            norm_layer=FrozenBatchNorm2d,
        )
        if weights not in ("imagenet", "none"):
            net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.stem, self.after = net.conv1, nn.Sequential(net.bn1, net.relu, net.maxpool)
        self.layers = nn.ModuleList([net.layer1, net.layer2, net.layer3])
        self.mask_stem = nn.Conv2d(2, 64, 7, 2, 3, bias=False) if with_masks else None
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)

    def forward(self, frame: Tensor, masks: Tensor | None = None) -> Features:
        """Features of frames in 0…1 at stride 16, skips at 8 and 4."""
        x = self.stem((frame - self.mean) / self.deviation)
        if self.mask_stem is not None and masks is not None:
            x = x.repeat_interleave(len(masks) // len(x), dim=0) + self.mask_stem(masks)
        x, maps = self.after(x), []
        for layer in self.layers:
            maps.append(x := layer(x))
        fine, middle, grid = maps
        return Features(grid, (middle, fine))


# --- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Video:
    """One video on disk: pictures, and the masks of some of its frames."""

    name: str
    pictures: tuple[Path, ...]
    masks: tuple[Path | None, ...]


def find_videos(root: Path, names: Sequence[str] | None = None) -> list[Video]:
    """All videos below `root`, or those named, with masks where there are any.

    Raises:
        FileNotFoundError: if there is no picture.
    """
    homes: dict[str, Path] = {}
    for picture in sorted((root / "JPEGImages").rglob("*.jpg")):
        homes.setdefault(picture.parent.name, picture.parent)
    videos = []
    for name in sorted(homes) if names is None else names:
        if name not in homes:
            raise FileNotFoundError(f"{root} holds no video {name!r}")
        pictures = tuple(sorted(homes[name].glob("*.jpg")))
        home = root / "Annotations" / homes[name].relative_to(root / "JPEGImages")
        masks = (home / f"{picture.stem}.png" for picture in pictures)
        videos.append(Video(name, pictures, tuple(m if m.is_file() else None for m in masks)))
    if not videos:
        raise FileNotFoundError(f"{root} holds no JPEGImages/VIDEO/*.jpg")
    return videos


def davis_videos(recipe: PaperRecipe, split: str) -> list[Video]:
    """The videos of DAVIS's list."""
    root = Path(recipe.davis).expanduser()
    lists = sorted((root / "ImageSets").rglob(f"{split}.txt"))
    chosen = [p for p in lists if p.parent.name in (recipe.year, "ImageSets", "480p")]
    if not chosen:
        raise FileNotFoundError(f"{root} holds no ImageSets/{recipe.year}/{split}.txt")
    return find_videos(root, chosen[0].read_text("utf-8").split())


def read_picture(path: Path) -> UInt8[Tensor, "3 height width"]:
    """RGB."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def read_mask(path: Path, one: bool = False) -> Int64[Tensor, "height width"]:
    """Numbers of objects from 1, 0 for the background and for pixels to ignore (255)."""
    with Image.open(path) as picture:
        numbers = np.array(picture if picture.mode in ("P", "L") else picture.convert("L"))
    if one:
        return torch.from_numpy(numbers > 0).long()
    return torch.from_numpy(np.where(numbers == 255, 0, numbers)).long()


class VideoClips(Dataset):
    """One clip a video and epoch: ordered frames, one random crop, objects of the first frame."""

    def __init__(self, recipe: PaperRecipe, videos: Sequence[Video], seed: int) -> None:
        self.recipe, self.seed, self.epoch = recipe, seed, 0
        enough = [v for v in videos if sum(m is not None for m in v.masks) >= recipe.frames]
        self.videos = enough
        if not enough:
            raise FileNotFoundError(f"no video has {recipe.frames} frames with masks")

    @property
    def skip(self) -> int:
        """The largest number of frames left out between two, in this epoch."""
        grown = self.recipe.skip_step * (self.epoch // self.recipe.skip_every)
        return min(self.recipe.max_skip, grown)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Frames [frames,3,S,S] in 0…1; one-hot masks [objects,frames,S,S]."""
        rng = np.random.default_rng([self.seed, self.epoch, index])
        video = self.videos[index]
        known = [i for i, mask in enumerate(video.masks) if mask is not None]
        times = draw_times(len(known), self.recipe.frames, self.skip, rng)
        chosen = [known[t] for t in times]
        pictures = torch.stack([read_picture(video.pictures[i]) for i in chosen]).float() / 255
        one = self.recipe.year == "2016"
        numbers = torch.stack([read_mask(Path(str(video.masks[i])), one) for i in chosen])
        pictures, numbers = crop_clip(pictures, numbers, self.recipe.crop, rng)
        return pictures, one_hot(numbers, self.recipe.objects, rng)


class StillClips(Dataset):
    """Clips of stage 1: one still with a mask, seen through random affine maps."""

    def __init__(self, recipe: PaperRecipe, seed: int) -> None:
        self.recipe, self.seed, self.epoch = recipe, seed, 0
        root = Path(recipe.stills).expanduser()
        masks = {p.stem: p for p in sorted((root / "masks").glob("*.png"))}
        images = sorted(p for p in (root / "images").glob("*") if p.stem in masks)
        self.pairs = [(image, masks[image.stem]) for image in images]
        if not self.pairs:
            raise FileNotFoundError(f"{root} holds no images/NAME.* with masks/NAME.png")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """As `VideoClips`."""
        rng = np.random.default_rng([self.seed, self.epoch, index])
        image, mask = self.pairs[index]
        count = self.recipe.frames
        picture = (read_picture(image).float() / 255).expand(count, -1, -1, -1)
        numbers = read_mask(mask).expand(count, -1, -1)
        picture, numbers = crop_clip(picture, numbers, self.recipe.crop, rng)
        masks = one_hot(numbers, self.recipe.objects, rng).transpose(0, 1)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        moved = random_affine(
            torch.cat([picture, masks], dim=1),
            degrees=20,
            scale=0.2,
            shift=0.1,
            flip=False,
            generator=generator,
        )
        return moved[:, :3].clamp(0, 1), (moved[:, 3:] > 0.5).float().transpose(0, 1)


def draw_times(length: int, frames: int, skip: int, rng: np.random.Generator) -> list[int]:
    """Ordered frames with at most `skip` left out between two; fewer where the video is short."""
    skip = min(skip, (length - frames) // max(1, frames - 1))
    gaps = 1 + rng.integers(0, skip + 1, frames - 1)
    first = int(rng.integers(0, length - int(gaps.sum())))
    return [first, *(first + np.cumsum(gaps)).tolist()]


def crop_clip(
    pictures: Float[Tensor, "time 3 height width"],
    numbers: Int64[Tensor, "time height width"],
    side: int,
    rng: np.random.Generator,
) -> tuple[Float[Tensor, "time 3 side side"], Int64[Tensor, "time side side"]]:
    """One square for all frames, from 70 % to all of the short side, mirrored with ½, resized."""
    height, width = numbers.shape[1:]
    cut = round(min(height, width) * rng.uniform(0.7, 1.0))
    top, left = (int(rng.integers(0, n - cut + 1)) for n in (height, width))
    square = (..., slice(top, top + cut), slice(left, left + cut))
    pictures, numbers = pictures[square], numbers[square]
    if rng.random() < 0.5:
        pictures, numbers = pictures.flip(-1), numbers.flip(-1)
    resized = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    masks = F.interpolate(numbers[:, None].float(), (side, side), mode="nearest")[:, 0]
    return resized, masks.long()


def one_hot(
    numbers: Int64[Tensor, "time height width"], most: int, rng: np.random.Generator
) -> Float[Tensor, "objects time height width"]:
    """Masks of up to `most` objects that the first frame shows; none where it shows none."""
    shown = [n for n in numbers[0].unique().tolist() if n]
    chosen = sorted(rng.permutation(shown)[:most].tolist())
    masks = [(numbers == n).float() for n in chosen]
    return torch.stack(masks) if masks else numbers.new_zeros(0, *numbers.shape).float()


def _stills(recipe: PaperRecipe, seed: int) -> StillClips | None:
    return StillClips(recipe, seed) if recipe.stills else None


def _videos(recipe: PaperRecipe, seed: int) -> VideoClips | None:
    videos = davis_videos(recipe, "train") if recipe.davis else []
    if recipe.ytvos:
        videos = videos + find_videos(Path(recipe.ytvos).expanduser())
    return VideoClips(recipe, videos, seed) if videos else None


# --- training -----------------------------------------------------------------------------------


def clip_loss(
    model: Callable[[Tensor, Tensor], Tensor], frames: Tensor, masks: Tensor
) -> Float[Tensor, ""]:
    """Cross-entropy over background and objects of all frames but the first.

    Args:
        model: LCM, wrapped or not.
        frames: [time,3,S,S].
        masks: [objects,time,S,S].
    """
    probs = model(frames[None], masks[None, :, 0])[0, 1:]
    background = 1 - masks.sum(dim=0, keepdim=True).clamp(max=1)
    labels = torch.cat([background, masks])[:, 1:].argmax(dim=0)
    return F.nll_loss(probs.clamp(min=1e-7).log(), labels)


def _train(
    recipe: PaperRecipe, model: LCM, data: Any, stage: str, seed: int, device: torch.device
) -> float:
    """Train one stage; the mean loss of its last epoch over all processes."""
    grouped = dist.is_initialized()
    trained: nn.Module = (
        DistributedDataParallel(model, find_unused_parameters=True) if grouped else model
    )
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr)
    parts = {"model": model, "optimizer": optimizer}
    epochs = recipe.stills_epochs if stage == "stills" else recipe.epochs
    loader, total, steps = _loader(recipe, data, device), torch.zeros(2, device=device), 0
    for epoch in range(load_checkpoint(recipe.folder, f"lcm-{stage}", parts), epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        data.epoch = epoch
        total = torch.zeros(2, device=device)
        trained.train()
        for clips in loader:
            total += _step(trained, clips, optimizer, device)
            steps += 1
            if steps == recipe.max_steps:
                break
        save_checkpoint(recipe.folder, f"lcm-{stage}", parts, epoch + 1)
        if steps == recipe.max_steps:
            break
    sum_over_ranks(total)
    return float(total[0] / total[1].clamp(min=1))


def _step(
    trained: nn.Module, clips: list, optimizer: torch.optim.Optimizer, device: torch.device
) -> Tensor:
    """One step over a process's clips, each with its own objects; (sum of losses, clips)."""
    usable = [clip for clip in clips if first_frame_shows_all(clip[1])]
    shown = usable or [_nothing(clips[0])]  # all processes take part in each step
    weight = 1 / len(usable) if usable else 0.0
    total = torch.zeros(2, device=device)
    optimizer.zero_grad(set_to_none=True)
    for number, (frames, masks) in enumerate(shown, start=1):
        alone = isinstance(trained, DistributedDataParallel) and number < len(shown)
        with trained.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = clip_loss(trained, frames.to(device), masks.to(device))
            (weight * loss).backward()
        if usable:
            total += torch.stack([loss.detach(), loss.new_ones(())])
    optimizer.step()
    return total


def first_frame_shows_all(masks: Float[Tensor, "objects time height width"]) -> bool:
    """Whether there is an object, and no first mask is empty (a crop or a map may lose one)."""
    return len(masks) > 0 and bool(masks[:, 0].flatten(1).any(dim=1).all())


def _nothing(clip: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A stand-in of weight 0 for a process whose clips show no object."""
    frames = clip[0]
    masks = torch.zeros(1, len(frames), *frames.shape[2:])
    masks[..., : frames.shape[2] // 2, :] = 1
    return frames, masks


# --- evaluation ---------------------------------------------------------------------------------


@torch.no_grad()
def segment_video(
    recipe: PaperRecipe, model: LCM, video: Video, device: torch.device
) -> UInt8[Tensor, "time height width"]:
    """Numbers of objects at each pixel of each frame.

    Objects that enter later are followed from the frame that first shows their mask. All that
    enter together are segmented together; groups are then joined by soft aggregation.

    Raises:
        ValueError: if no frame has a mask.
    """
    frames = torch.stack([read_picture(p) for p in video.pictures]).float() / 255
    entries = _entries(video, recipe.year == "2016")
    if not entries:
        raise ValueError(f"no frame of {video.name!r} has the mask of an object")
    time, _, height, width = frames.shape
    numbers, tracks = [], []
    for start, objects in entries.items():
        masks = torch.stack(list(objects.values()))[None].float()
        probs = model.propagate(frames[None, start:].to(device), masks.to(device), recipe.every)
        track = probs.new_zeros(len(objects), time, height, width)
        track[:, start:] = probs[0, :, 1:].transpose(0, 1)
        tracks.append(track.cpu())
        numbers += list(objects)
    labels = soft_aggregate(torch.cat(tracks).transpose(0, 1)).argmax(dim=1)
    return torch.tensor([0, *numbers], dtype=torch.uint8)[labels]


def _entries(video: Video, one: bool) -> dict[int, dict[int, Tensor]]:
    """For each frame that shows new objects: their numbers and masks."""
    seen: set[int] = set()
    entries: dict[int, dict[int, Tensor]] = {}
    for time, path in enumerate(video.masks):
        if path is None:
            continue
        numbers = read_mask(path, one)
        for number in numbers.unique().tolist():
            if number and number not in seen:
                seen.add(number)
                entries.setdefault(time, {})[number] = numbers == number
    return entries


def evaluate(recipe: PaperRecipe, model: LCM, device: torch.device) -> dict[str, float]:
    """DAVIS's validation videos, shared among processes; means over objects, not videos."""
    rank, size = world()
    total: Tensor | None = None
    names: list[str] = []
    for video in davis_videos(recipe, "val")[rank::size]:
        first_only = Video(video.name, video.pictures, (video.masks[0], *[None] * len(video.masks)))
        found = segment_video(recipe, model, first_only, device)
        _write_masks(recipe, video, found)
        truth = torch.stack([read_mask(Path(str(m)), recipe.year == "2016") for m in video.masks])
        objects = [n for n in truth[0].unique().tolist() if n]
        scores = davis_evaluate(
            torch.stack([truth == n for n in objects]), torch.stack([found == n for n in objects])
        )
        names = list(scores)
        row = torch.tensor([*scores.values(), 1.0], dtype=torch.float64) * len(objects)
        total = row if total is None else total + row
    summed = sum_over_ranks((total if total is not None else torch.zeros(8).double()).to(device))
    names = names or ["J", "J-recall", "J-decay", "F", "F-recall", "F-decay", "J&F"]
    return dict(zip(names, (summed[:-1] / summed[-1]).tolist(), strict=True))


def _predict_folder(recipe: PaperRecipe, model: LCM, device: torch.device) -> None:
    """Write the masks of every video of a folder, for a server to judge."""
    if not recipe.masks:
        raise ValueError("name a folder for predicted masks: --set masks=…")
    rank, size = world()
    for video in find_videos(Path(recipe.predict).expanduser())[rank::size]:
        _write_masks(recipe, video, segment_video(recipe, model, video, device))


def _write_masks(recipe: PaperRecipe, video: Video, numbers: UInt8[Tensor, "time h w"]) -> None:
    """One palette PNG a frame, as the benchmarks want them."""
    if not recipe.masks:
        return
    folder = Path(recipe.masks).expanduser() / video.name
    folder.mkdir(parents=True, exist_ok=True)
    for picture, labels in zip(video.pictures, numbers.numpy(), strict=True):
        image = Image.fromarray(labels, mode="P")
        image.putpalette(palette())
        image.save(folder / f"{picture.stem}.png")


def palette() -> list[int]:
    """256 colours that differ in their high bits, as PASCAL VOC and DAVIS colour masks."""
    colours = []
    for number in range(256):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((number >> (3 * bit + channel)) & 1) << (7 - bit)
        colours += rgb
    return colours


# --- helpers ------------------------------------------------------------------------------------


def _loader(recipe: PaperRecipe, data: Dataset, device: torch.device) -> DataLoader:
    rank, size = world()
    loader: DataLoader = DataLoader(
        data,
        recipe.batch,
        sampler=DistributedSampler(data, size, rank),
        num_workers=recipe.workers if device.type == "cuda" else 0,
        collate_fn=list,  # clips differ in their number of objects
        drop_last=True,
    )
    if not len(loader):
        raise ValueError(f"no batch of {recipe.batch} clips for each of {size} processes")
    return loader
