"""Instant-Teaching at the paper's size: Faster R-CNN on COCO, one process a GPU under torchrun.

    torchrun --nproc-per-node 8 -m toolkit run instant_teaching --profile paper --set data=FOLDER

`FOLDER` holds COCO as it is published: `train2017/`, `val2017/` and `annotations/`. Every picture
lies in the middle of a square canvas, so that views, mixtures and boxes are those of the chapter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

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
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.transforms.v2 import functional as V

from toolkit.learn.distributed import world
from toolkit.learn.torchrun import load_checkpoint, save_checkpoint, sum_over_ranks, torchrun_group
from toolkit.scenes.boxes import pad_boxes, pad_labels
from toolkit.scenes.coco import CocoFolder, ap_over_ranks
from toolkit.scenes.detections import Detections
from toolkit.scenes.instant_teaching.augment import View, holes, weak_augment
from toolkit.scenes.instant_teaching.detector import RCNN, Anatomy
from toolkit.scenes.instant_teaching.teaching import Batch, InstantTeacher

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, which the backbone's weights expect."""
NETWORKS = {"supervised": 1, "instant": 1, "co_rectify": 2}
FASTER = Anatomy(
    sides=(32.0, 64.0, 128.0, 256.0, 512.0),
    ratios=(0.5, 1.0, 2.0),
    candidates=1000,
    proposals=1000,
    rpn_samples=256,
    rpn_iou=(0.3, 0.7),
    roi_samples=64,
    pool=7,
    points=2,
    hidden=1024,
    pooled=4,
    canonical=(224, 4),
)
"""Faster R-CNN; box regression does not depend on the class here, in the release it does."""


@dataclass(frozen=True)
class PaperRecipe:
    """COCO with few labels, with the settings of the authors' release for 10 % of them."""

    arms: tuple[str, ...] = ("instant",)  # or "supervised", "co_rectify"
    seeds: int = 1  # seed k draws its own labelled pictures; the field averages five such folds
    data: str = ""  # folder of COCO
    train_images: str = "train2017"
    train_annotations: str = "annotations/instances_train2017.json"
    test_images: str = "val2017"
    test_annotations: str = "annotations/instances_val2017.json"
    share: float = 0.1  # of the pictures that keep their labels; paper .01, .02, .05, .1
    depth: int = 50  # of the ResNet
    weights: str = "DEFAULT"  # ImageNet weights by torchvision's name; empty: none
    anatomy: Anatomy = FASTER  # of proposals and head
    short: tuple[int, int] = (500, 800)  # short side of a view in pixels
    canvas: int = 1024  # longest side; a multiple of 64
    batch: int = 1  # labelled pictures a process, and as many unlabelled
    tau: float = 0.9
    lambda_u: float = 1.0
    mix_prob: float = 0.5
    passes: int = 2  # of co-rectify
    lr: float = 0.01  # SGD, for 8 processes
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float = 35.0  # largest norm of the gradient
    epochs: int = 120  # of the labelled pictures
    drops: tuple[int, ...] = (80, 110)  # epochs after which the rate is a tenth
    warmup: int = 200  # iterations, from a third of the rate
    workers: int = 8  # of each loader
    folder: str = ""  # where a checkpoint goes every `save_every` iterations; empty: none
    save_every: int = 5_000
    max_steps: int = 0  # stop earlier, to try it out; 0 does not

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if not self.arms or set(self.arms) - set(NETWORKS):
            raise ValueError(f"arms must be of {', '.join(NETWORKS)}; got {self.arms}")
        if self.depth not in (50, 101):
            raise ValueError(f"depth must be 50 or 101, got {self.depth}")
        if not 0 < self.short[0] <= self.short[1] <= self.canvas or self.canvas % 64:
            raise ValueError(
                f"need 0 < short ≤ canvas, a multiple of 64, got {self.short} and {self.canvas}"
            )
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share}")
        if min(self.batch, self.epochs) < 1:
            raise ValueError("batch and epochs must be at least 1")


def run_paper(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train and test every arm over all processes that torchrun started.

    Returns:
        The same on every process: `ARM/loss`, `ARM/AP`, `ARM/AP50`, `ARM/AP75`.

    Raises:
        ValueError: if no folder is named.
        FileNotFoundError: if it holds no annotations.
    """
    if not recipe.data:
        raise ValueError("name the folder of COCO: --set data=FOLDER")
    results: dict[str, float] = {}
    with torchrun_group(device) as home:
        train, test = (CocoCanvas(recipe, part) for part in ("train", "test"))
        for arm in recipe.arms:
            torch.manual_seed(seed)
            models = [build(recipe, len(train.categories)).to(home) for _ in range(NETWORKS[arm])]
            results[f"{arm}/loss"] = _train(recipe, arm, models, train, seed, home)
            scores = evaluate(recipe, models[0], test, home)
            results |= {f"{arm}/{name}": value for name, value in scores.items()}
    return results


class FasterPyramid(nn.Module):
    """torchvision's ResNet under a pyramid of strides 4 to 64, as Faster R-CNN has it."""

    strides = (4, 8, 16, 32, 64)
    width = 256
    mean: Tensor
    deviation: Tensor

    def __init__(self, depth: int, weights: str | None) -> None:
        super().__init__()
        self.body = resnet_fpn_backbone(
            backbone_name=f"resnet{depth}", weights=weights, trainable_layers=3
        )
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Maps [batch, 256, H/s, W/s]; pixels from 0 to 1."""
        return list(self.body((x - self.mean) / self.deviation).values())


def build(recipe: PaperRecipe, num_classes: int) -> RCNN:
    """Faster R-CNN with soft labels."""
    pyramid = FasterPyramid(recipe.depth, recipe.weights or None)
    return RCNN(num_classes, pyramid, None, recipe.anatomy)


class CocoCanvas(CocoFolder):
    """Pictures of a COCO data set, each resized into the middle of a square canvas."""

    def __init__(self, recipe: PaperRecipe, part: str) -> None:
        images, annotations = (
            getattr(recipe, f"{part}_{kind}") for kind in ("images", "annotations")
        )
        super().__init__(recipe.data, images, annotations)
        self.canvas, self.short = recipe.canvas, recipe.short[1]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """A canvas, uint8 [3, s, s], with its boxes and classes; crowd regions are left out."""
        with Image.open(self.root / self.images[index]["file_name"]) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        view, (height, width) = self.placed(index)
        image = V.resize(pixels, [height, width], antialias=True)
        canvas = torch.full((3, self.canvas, self.canvas), 128, dtype=torch.uint8)
        left, top = (round(float(shift)) for shift in view.shift[0])
        canvas[:, top : top + height, left : left + width] = image
        boxes, labels, _ = self.truth(index)
        return canvas, boxes * view.scale.repeat(1, 2) + view.shift.repeat(1, 2), labels

    def placed(self, index: int) -> tuple[View, tuple[int, int]]:
        """How published coordinates become those of the canvas, and the picture's size there."""
        about = self.images[index]
        sides = (about["height"], about["width"])
        factor = min(self.short / min(sides), self.canvas / max(sides))
        height, width = (max(1, round(side * factor)) for side in sides)
        scale = torch.tensor([[width / sides[1], height / sides[0]]])
        left, top = (self.canvas - width) // 2, (self.canvas - height) // 2
        return View(scale, torch.tensor([[float(left), float(top)]])), (height, width)


class Pairs(Dataset):
    """Labelled picture i with a random unlabelled picture of block i, as in the release."""

    def __init__(self, pictures: CocoCanvas, share: float, seed: int) -> None:
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
        count = max(1, round(share * len(pictures)))
        self.pictures, self.seed, self.epoch = pictures, seed, 0
        self.labelled, self.unlabelled = order[:count].tolist(), order[count:].tolist()

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """A labelled picture with its objects, an unlabelled one without."""
        rng = np.random.default_rng([self.seed, self.epoch, index])
        low = index * len(self.unlabelled) // len(self)
        high = max(low + 1, (index + 1) * len(self.unlabelled) // len(self))
        other = self.unlabelled[int(rng.integers(low, high))]
        return self.pictures[self.labelled[index]], self.pictures[other][0]


def collate(rows: list) -> tuple[Batch, Batch]:
    """A labelled and an unlabelled batch of one size."""
    known, others = zip(*rows, strict=True)
    images, boxes, labels = (list(column) for column in zip(*known, strict=True))
    batch = Batch(torch.stack(images), pad_boxes(boxes), pad_labels(labels))
    return batch, Batch(torch.stack(others))


def strong_view(
    x: Float[Tensor, "batch 3 height width"],
    generator: torch.Generator,
    zoom: tuple[float, float],
) -> tuple[Tensor, View]:
    """A weak view of its own, then the release's colours and eight holes."""
    moved, view = weak_augment(x, generator, zoom)
    coloured = torch.stack([_colours(picture, generator) for picture in moved])
    covered = torch.rand(len(x), generator=generator).to(x.device) < 0.5
    return coloured * ~(holes(x, 8, generator) & covered[:, None, None, None]), view


def _colours(
    picture: Float[Tensor, "3 height width"], generator: torch.Generator
) -> Float[Tensor, "3 height width"]:
    """Brightness and contrast, a colour shift, JPEG, channel order, blur: each with probability .2.

    Brightness and contrast change by .1 to .3 of the range.
    """
    r = torch.rand(16, generator=generator).tolist()
    if r[0] < 0.2:
        shift, factor = ((0.1 + 0.2 * r[i]) * (1 if r[i + 1] < 0.5 else -1) for i in (1, 3))
        picture = (picture * (1 + factor) + shift).clamp(0, 1)
    if r[5] < 0.1:
        amounts = picture.new_tensor(r[6:9]).sub(0.5).mul(20 / 255)
        picture = (picture + amounts[:, None, None]).clamp(0, 1)
    elif r[5] < 0.2:  # 20 of 180 steps of hue, 30 of saturation, 20 of value
        picture = V.adjust_hue(picture, (2 * r[6] - 1) * 20 / 180)
        picture = V.adjust_saturation(picture, 1 + (2 * r[7] - 1) * 30 / 255)
        picture = (picture + (2 * r[8] - 1) * 20 / 255).clamp(0, 1)
    if r[9] < 0.2:
        coded = encode_jpeg(_bytes(picture), quality=85 + int(11 * r[10]))
        picture = decode_jpeg(coded).to(picture) / 255
    if r[11] < 0.2:
        picture = picture[torch.randperm(3, generator=generator).to(picture.device)]
    if r[12] < 0.1:
        return F.avg_pool2d(picture, 3, 1, 1, count_include_pad=False)
    return _median(picture) if r[12] < 0.2 else picture


def rate(step: int, recipe: PaperRecipe, per_epoch: int) -> float:
    """Factor of the learning rate: linear warm-up from a third, a tenth after each drop."""
    warm = min(1.0, 1 / 3 + 2 / 3 * step / max(1, recipe.warmup))
    return warm * 0.1 ** sum(step >= drop * per_epoch for drop in recipe.drops)


def evaluate(
    recipe: PaperRecipe, model: RCNN, test: CocoCanvas, device: torch.device
) -> dict[str, float]:
    """`AP`, `AP50`, `AP75` over all processes."""
    model.eval()

    def detect(index: int) -> Detections:
        image, _, _ = test[index]
        (one,) = model.predict(image[None].to(device).float() / 255)
        view, _ = test.placed(index)
        shift, scale = (x.repeat(1, 2).to(device) for x in (view.shift, view.scale))
        return Detections((one.boxes - shift) / scale, one.scores, one.labels)

    return ap_over_ranks(detect, test, device)


def _train(
    recipe: PaperRecipe,
    arm: str,
    models: list[RCNN],
    pictures: CocoCanvas,
    seed: int,
    device: torch.device,
) -> float:
    """Train in place; the mean loss of the last iterations, over all processes."""
    rank, size = world()
    pairs = Pairs(pictures, recipe.share, seed)
    per_epoch = len(pairs) // (recipe.batch * size)
    if not per_epoch:
        raise ValueError(f"{len(pairs)} labelled pictures make no batch of {recipe.batch} × {size}")
    teacher = _teacher(recipe, models, seed + 1000 * rank)
    every = nn.ModuleList(models)
    trainable = [p for p in every.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trainable, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = LambdaLR(optimizer, lambda step: rate(step, recipe, per_epoch))
    parts = {"models": every, "optimizer": optimizer, "schedule": schedule}
    step = load_checkpoint(recipe.folder, f"instant_teaching_{arm}", parts)
    total = recipe.epochs * per_epoch
    last = min(total, step + recipe.max_steps or total)
    losses: list[Tensor] = []
    every.train()
    for known, others in _stream(recipe, pairs, step, last, per_epoch, device):
        loss = teacher.step(known, None if arm == "supervised" else others)["total"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for model in models:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        losses = [*losses[-99:], loss.detach()]
        step += 1
        if step % recipe.save_every == 0 or step == last:
            save_checkpoint(recipe.folder, f"instant_teaching_{arm}", parts, step)
    mean = torch.stack(losses).mean() if losses else torch.zeros((), device=device)
    return float(sum_over_ranks(mean) / size)


def _teacher(recipe: PaperRecipe, models: list[RCNN], seed: int) -> InstantTeacher:
    zoom = (recipe.short[0] / recipe.short[1], 1.0)
    wrapped = [DistributedDataParallel(m) if dist.is_initialized() else m for m in models]
    return InstantTeacher(
        models,
        recipe.tau,
        recipe.lambda_u,
        recipe.mix_prob,
        passes=recipe.passes,
        generator=torch.Generator().manual_seed(seed),
        weak=partial(weak_augment, zoom=zoom),
        strong=partial(strong_view, zoom=zoom),
        trained=wrapped,
    )


def _stream(
    recipe: PaperRecipe, pairs: Pairs, step: int, last: int, per_epoch: int, device: torch.device
) -> Iterator[tuple[Batch, Batch]]:
    """This process's share of every epoch, in a new order each."""
    rank, size = world()
    on_gpu = device.type == "cuda"
    while step < last:
        pairs.epoch = step // per_epoch
        generator = torch.Generator().manual_seed(pairs.seed + pairs.epoch)
        order = torch.randperm(len(pairs), generator=generator)[rank::size]
        own = order[: per_epoch * recipe.batch][(step % per_epoch) * recipe.batch :]
        loader = DataLoader(
            pairs,
            recipe.batch,
            sampler=own.tolist(),
            collate_fn=collate,
            num_workers=recipe.workers if on_gpu else 0,
            pin_memory=on_gpu,
        )
        for known, others in loader:
            yield _moved(known, device), _moved(others, device)
            step += 1
            if step == last:
                return


def _moved(batch: Batch, device: torch.device) -> Batch:
    there = [part if part is None else part.to(device, non_blocking=True) for part in batch]
    return Batch._make(there)


def _bytes(picture: Float[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
    return (picture * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def _median(picture: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 height width"]:
    """The median over 3×3 pixels; borders repeat."""
    wide = F.pad(picture[None], (1, 1, 1, 1), mode="replicate")
    return wide.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(4).values[0]
