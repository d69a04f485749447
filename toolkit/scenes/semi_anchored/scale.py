"""The detector at the paper's size: ResNet-FPN on COCO, one process a GPU under torchrun.

    torchrun --nproc-per-node 8 -m toolkit run semi_anchored --profile paper --set data=FOLDER

`FOLDER` holds COCO as it is published: `train2017/`, `val2017/` and `annotations/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from toolkit.learn.distributed import world
from toolkit.learn.torchrun import load_checkpoint, save_checkpoint, sum_over_ranks, torchrun_group
from toolkit.scenes.boxes import pad_boxes, pad_labels
from toolkit.scenes.coco import CocoFolder, ap_over_ranks
from toolkit.scenes.detections import Detections
from toolkit.scenes.pyramid import ResNetPyramid
from toolkit.scenes.semi_anchored.detector import OPTIONS, OneStageDetector

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, which the backbone's weights expect."""


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
            train, test = (CocoImages(recipe, part, seed) for part in ("train", "test"))
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


class CocoImages(CocoFolder):
    """Images of a COCO data set, resized; in training some are mirrored."""

    def __init__(self, recipe: PaperRecipe, part: str, seed: int) -> None:
        self.recipe, self.part, self.seed, self.epoch = recipe, part, seed, 0
        images, annotations = (
            getattr(recipe, f"{part}_{kind}") for kind in ("images", "annotations")
        )
        super().__init__(recipe.data, images, annotations)
        if part == "train":  # without an object nothing is learnt about boxes; the field drops it
            self.images = [row for row in self.images if _objects(self.rows[row["id"]])]

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
    train: CocoImages,
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
    step = load_checkpoint(recipe.folder, f"semi_anchored_{arm}", parts)
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
                save_checkpoint(recipe.folder, f"semi_anchored_{arm}", parts, step)
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


def evaluate(
    recipe: PaperRecipe, model: OneStageDetector, test: CocoImages, device: torch.device
) -> dict[str, float]:
    """`AP`, `AP50`, `AP75` over all processes."""
    model.eval()

    def detect(index: int) -> Detections:
        (image, _, _), about = test[index], test.images[index]
        images, _, _ = collate([(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))])
        (one,) = model.predict(images.to(device), recipe.threshold, recipe.nms_iou)
        shrink = [about["width"] / image.shape[2], about["height"] / image.shape[1]]
        boxes = one.boxes * one.boxes.new_tensor([*shrink, *shrink])
        return Detections(boxes, one.scores, one.labels)

    return ap_over_ranks(detect, test, device)


def _loader(
    recipe: PaperRecipe, train: CocoImages, sampler: DistributedSampler, device: torch.device
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
