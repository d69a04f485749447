"""The detector at the paper's size: ResNet-FPN on COCO, one process a GPU under torchrun.

    torchrun --nproc-per-node 8 -m toolkit run semi_anchored --profile paper --set data=FOLDER

`FOLDER` holds COCO as it is published: `train2017/`, `val2017/` and `annotations/`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from toolkit.learn.distributed import world
from toolkit.learn.torchrun import sum_over_ranks, torchrun_group
from toolkit.scenes.boxes import pad_boxes, pad_labels
from toolkit.scenes.detections import Detections
from toolkit.scenes.evaluate import coco_ap
from toolkit.scenes.pyramid import ResNetPyramid
from toolkit.scenes.semi_anchored.detector import OPTIONS, OneStageDetector

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, which the backbone's weights expect."""
MOST = 100
"""Detections of an image that count."""


@dataclass(frozen=True)
class PaperRecipe:
    """Train heads on COCO. The schedule is that of the authors' release of another detector.

    The full text was not at hand: "paper" marks what the abstract says, the rest is the field's
    habit or the release's.
    """

    arms: tuple[str, ...] = ("semi",)  # or "retina", "fcos": heads
    seeds: int = 1  # initialisations
    data: str = ""  # folder of COCO
    train_images: str = "train2017"  # paper: COCO
    train_annotations: str = "annotations/instances_train2017.json"
    test_images: str = "val2017"
    test_annotations: str = "annotations/instances_val2017.json"
    depth: int = 101  # of the ResNet; paper 101
    weights: str = "DEFAULT"  # ImageNet weights by torchvision's name; empty: none
    rule: str = "anchor"  # or "center"
    reg_anchors: str = "all"  # or "iou"
    decode: str = "best"  # or "all", "mean"
    cls_loss: str = "focal"  # or "dr"
    short: tuple[int, int] = (640, 800)  # short side in training; the upper end in testing
    long: int = 1333  # longest side
    batch: int = 2  # images a process; 16 in all on 8 GPUs
    lr: float = 0.01  # SGD, for 16 images
    momentum: float = 0.9
    weight_decay: float = 1e-4
    iterations: int = 180_000
    drops: tuple[int, ...] = (120_000, 160_000)  # iterations after which the rate is a tenth
    warmup: int = 500  # iterations, from a third of the rate
    threshold: float = 0.05  # of scores, in testing
    nms_iou: float = 0.6  # in testing
    workers: int = 8  # of the loader
    folder: str = ""  # where a checkpoint goes every `save_every` iterations; empty: none
    save_every: int = 5_000
    max_steps: int = 0  # stop earlier, to try it out; 0 does not

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if not self.arms or set(self.arms) - set(OPTIONS["head"]):
            raise ValueError(f"arms must be of {', '.join(OPTIONS['head'])}; got {self.arms}")
        if self.depth not in (50, 101):
            raise ValueError(f"depth must be 50 or 101, got {self.depth}")
        if not 0 < self.short[0] <= self.short[1] <= self.long:
            raise ValueError(f"need 0 < short ≤ long, got {self.short} and {self.long}")
        if min(self.batch, self.iterations) < 1:
            raise ValueError("batch and iterations must be at least 1")


def run_paper(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train and test every head over all processes that torchrun started.

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
        for arm in recipe.arms:
            torch.manual_seed(seed)
            train, test = (CocoFolder(recipe, part, seed) for part in ("train", "test"))
            model = build(recipe, arm, len(train.categories)).to(home)
            results[f"{arm}/loss"] = _train(recipe, arm, model, train, seed, home)
            scores = evaluate(recipe, model, test, home)
            results |= {f"{arm}/{name}": value for name, value in scores.items()}
    return results


def build(recipe: PaperRecipe, arm: str, num_classes: int) -> OneStageDetector:
    """The detector of the paper's size: ResNet-FPN on strides 8 to 128, towers of four layers."""
    return OneStageDetector(
        num_classes,
        head=arm,
        rule=recipe.rule if arm != "retina" else "anchor",
        reg_anchors=recipe.reg_anchors,
        decode=recipe.decode,
        cls_loss=recipe.cls_loss,
        base=4.0,
        limit=8.0,
        pyramid=ResNetPyramid(recipe.depth, recipe.weights or None),
        depth=4,
        groups=32,
    )


class CocoFolder(Dataset):
    """Images of a COCO data set, resized; in training some are mirrored."""

    def __init__(self, recipe: PaperRecipe, part: str, seed: int) -> None:
        self.recipe, self.part, self.seed, self.epoch = recipe, part, seed, 0
        root = Path(recipe.data).expanduser()
        self.root = root / getattr(recipe, f"{part}_images")
        content = json.loads((root / getattr(recipe, f"{part}_annotations")).read_text("utf-8"))
        self.categories = sorted(row["id"] for row in content["categories"])
        self.rows: dict[int, list[dict]] = {row["id"]: [] for row in content["images"]}
        for row in content["annotations"]:
            self.rows[row["image_id"]].append(row)
        # images without an object teach nothing about boxes; the field leaves them out
        self.images = [
            row for row in content["images"] if part == "test" or _objects(self.rows[row["id"]])
        ]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """An image, float [3, h, w], with its boxes and labels; crowd regions are left out."""
        about = self.images[index]
        training = self.part == "train"
        rng = np.random.default_rng([self.seed, self.epoch, index])
        with Image.open(self.root / about["file_name"]) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        low, high = self.recipe.short
        short = int(rng.integers(low, high + 1)) if training else high
        image, scale = _resized(pixels, short, self.recipe.long)
        boxes, labels, _ = self.truth(index)
        boxes = boxes * torch.tensor([*scale, *scale])
        if training and rng.random() < 0.5:
            image, boxes = image.flip(2), _mirrored(boxes, image.shape[2])
        return image, boxes, labels

    def truth(self, index: int, crowd: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes clipped to the image as published, labels, and which are crowd regions.

        Annotations whose box has no area are dropped.
        """
        about = self.images[index]
        rows = [r for r in self.rows[about["id"]] if crowd or not r.get("iscrowd", 0)]
        corners = torch.tensor([r["bbox"] for r in rows], dtype=torch.float32).reshape(-1, 4)
        far = torch.tensor([about["width"], about["height"]], dtype=torch.float32)
        low = corners[:, :2].clamp(min=0).minimum(far)
        high = (corners[:, :2] + corners[:, 2:]).clamp(min=0).minimum(far)
        valid = ((high - low) > 0).all(1)
        kinds = [self.categories.index(r["category_id"]) for r in rows]
        labels = torch.tensor(kinds, dtype=torch.int64)
        regions = torch.tensor([bool(r.get("iscrowd", 0)) for r in rows], dtype=torch.bool)
        return torch.cat([low, high], 1)[valid], labels[valid], regions[valid]


def collate(
    rows: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Float[Tensor, "batch 3 height width"], Tensor, Tensor]:
    """Images in the top left of one size, a multiple of 128, with padded boxes and labels."""
    sides = [[image.shape[axis] for image, _, _ in rows] for axis in (1, 2)]
    height, width = (-(-max(lengths) // 128) * 128 for lengths in sides)
    images = torch.zeros(len(rows), 3, height, width)
    for row, (image, _, _) in zip(images, rows, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    boxes, labels = [row[1] for row in rows], [row[2] for row in rows]
    return images, pad_boxes(boxes), pad_labels(labels)


def rate(step: int, recipe: PaperRecipe) -> float:
    """Factor of the learning rate: linear warm-up from a third, a tenth after each drop."""
    if step < recipe.warmup:
        return 1 / 3 + 2 / 3 * step / recipe.warmup
    return 0.1 ** sum(step >= drop for drop in recipe.drops)


def _train(
    recipe: PaperRecipe,
    arm: str,
    model: OneStageDetector,
    train: CocoFolder,
    seed: int,
    device: torch.device,
) -> float:
    """Train in place; the mean loss of the last iterations, over all processes."""
    trained = DistributedDataParallel(model) if dist.is_initialized() else model
    rank, size = world()
    sampler: DistributedSampler = DistributedSampler(train, size, rank, seed=seed)
    loader = _loader(recipe, train, sampler, device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trainable, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = LambdaLR(optimizer, lambda step: rate(step, recipe))
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    step = _resume(recipe, arm, parts)
    last = min(recipe.iterations, step + recipe.max_steps or recipe.iterations)
    losses: list[Tensor] = []
    model.train()
    while step < last:
        train.epoch = step // len(loader)
        sampler.set_epoch(train.epoch)
        for batch in loader:
            losses = [*losses[-99:], _step(model, trained, batch, optimizer, device)]
            schedule.step()
            step += 1
            if step % recipe.save_every == 0 or step == last:
                _save(recipe, arm, parts, step)
            if step == last:
                break
    mean = torch.stack(losses).mean() if losses else torch.zeros((), device=device)
    return float(sum_over_ranks(mean) / size)


def _step(
    model: OneStageDetector,
    trained: torch.nn.Module,
    batch: tuple[Tensor, ...],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> Tensor:
    images, boxes, labels = (one.to(device, non_blocking=True) for one in batch)
    size = (images.shape[2], images.shape[3])
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        out = trained(images)
    targets = model.targets(boxes, labels, size)
    # N₊ is the mean over processes, else a process with few objects counts them too much
    positives = sum_over_ranks((targets.matched >= 0).sum().float()) / world()[1]
    loss = model.sample_loss(out, targets, size, positives)["total"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(
    recipe: PaperRecipe, model: OneStageDetector, test: CocoFolder, device: torch.device
) -> dict[str, float]:
    """`AP`, `AP50`, `AP75`; each process tests its share, and all of them know all detections."""
    rank, size = world()
    found = torch.zeros(len(test), MOST, 6, device=device)
    model.eval()
    for index in range(rank, len(test), size):
        image, _, _ = test[index]
        about = test.images[index]
        images, _, _ = collate([(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))])
        (one,) = model.predict(images.to(device), recipe.threshold, recipe.nms_iou)
        shrink = [about["width"] / image.shape[2], about["height"] / image.shape[1]]
        corners = one.boxes * one.boxes.new_tensor([*shrink, *shrink])
        columns = [corners, one.scores[:, None], one.labels[:, None].float()]
        found[index, : len(corners)] = torch.cat(columns, 1)
    detections = [
        Detections(
            rows[rows[:, 4] > 0, :4], rows[rows[:, 4] > 0, 4], rows[rows[:, 4] > 0, 5].long()
        )
        for rows in sum_over_ranks(found).cpu()
    ]
    truth = [test.truth(index, crowd=True) for index in range(len(test))]
    boxes, labels, crowd = ([row[i] for row in truth] for i in range(3))
    return coco_ap(detections, boxes, labels, crowd=crowd)


def _loader(
    recipe: PaperRecipe, train: CocoFolder, sampler: DistributedSampler, device: torch.device
) -> DataLoader:
    on_gpu = device.type == "cuda"
    loader: DataLoader = DataLoader(
        train,
        recipe.batch,
        sampler=sampler,
        collate_fn=collate,
        num_workers=recipe.workers if on_gpu else 0,
        pin_memory=on_gpu,
        drop_last=True,
    )
    if not len(loader):
        raise ValueError(f"no batch of {recipe.batch} on each process; use a smaller batch")
    return loader


def _objects(rows: Sequence[dict]) -> bool:
    return any(not row.get("iscrowd", 0) and min(row["bbox"][2:]) > 0 for row in rows)


def _resized(pixels: Tensor, short: int, long: int) -> tuple[Tensor, tuple[float, float]]:
    """The image in ImageNet's units, and by what its width and height were multiplied."""
    height, width = pixels.shape[1:]
    factor = min(short / min(height, width), long / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    image = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)[0] / 255
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (image - mean) / deviation, (size[1] / width, size[0] / height)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


def _save(recipe: PaperRecipe, arm: str, parts: dict[str, Any], step: int) -> None:
    """Under a temporary name first; the first process writes."""
    if not recipe.folder or world()[0]:
        return
    path = Path(recipe.folder).expanduser() / f"semi_anchored_{arm}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(
        {name: part.state_dict() for name, part in parts.items()} | {"step": step}, temporary
    )
    temporary.replace(path)


def _resume(recipe: PaperRecipe, arm: str, parts: dict[str, Any]) -> int:
    """Load the last checkpoint, if there is one; the iteration to go on with."""
    path = Path(recipe.folder or ".").expanduser() / f"semi_anchored_{arm}.pt"
    if not recipe.folder or not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
