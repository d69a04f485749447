"""Train one detector on made scenes."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from toolkit.data import SCENE_CLASSES, Scenes
from toolkit.learn.loop import fit, minibatches, warmup_cosine
from toolkit.scenes.boxes import check_targets, pad_boxes, pad_labels
from toolkit.scenes.semi_anchored.detector import OneStageDetector
from toolkit.scenes.semi_anchored.recipe import ARMS, Recipe


def train_detector(
    recipe: Recipe, arm: str, scenes: Scenes, seed: int, device: torch.device
) -> tuple[OneStageDetector, Float[Tensor, "steps"]]:
    """Train one arm; the seed decides initial weights, order and flips, alike for all arms.

    Args:
        recipe: steps, rates, sizes.
        arm: of `ARMS`.
        scenes: to train on.
        seed: any.
        device: where to train.

    Returns:
        The detector, in evaluation mode, and the loss of each step.

    Raises:
        ValueError: for boxes or labels that cannot be right.
        DataMissing: if the backbone is not prepared.
    """
    size = (scenes.images.shape[2], scenes.images.shape[3])
    check_targets(scenes.boxes, scenes.labels, size, len(SCENE_CLASSES))
    torch.manual_seed(seed)
    model = OneStageDetector(len(SCENE_CLASSES), base=recipe.base, **ARMS[arm]).to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate(arm))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, recipe.steps, recipe.warmup)
    )
    tensors = scenes.images, pad_boxes(scenes.boxes), pad_labels(scenes.labels)
    batches = minibatches(
        *(one.to(device) for one in tensors),
        size=recipe.batch,
        steps=recipe.steps,
        generator=generator,
    )

    def loss(_: nn.Module, batch: tuple[Tensor, ...]) -> Float[Tensor, ""]:
        images, boxes, labels = batch
        flip = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
        images, boxes = flipped(images, boxes, flip)
        out = model(images.float() / 255)
        return model.padded_loss(out, boxes, labels, size)["total"]

    losses = fit(model, batches, loss, optimizer, schedule=schedule, clip=recipe.clip)
    return model.eval(), losses


def flipped(
    images: UInt8[Tensor, "batch 3 height width"],
    boxes: Float[Tensor, "batch most 4"],
    flip: Bool[Tensor, "batch"],
) -> tuple[Tensor, Tensor]:
    """Mirror some images left to right, with their boxes."""
    width = images.shape[3]
    mirrored = torch.stack(
        [width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], -1
    )
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    return images, torch.where(flip[:, None, None], mirrored, boxes)


@torch.no_grad()
def outputs(
    model: OneStageDetector, images: UInt8[Tensor, "n 3 height width"], size: int = 50
) -> dict[str, Tensor]:
    """What the network says of all images, in chunks."""
    device = next(model.parameters()).device
    parts: Sequence[dict[str, Tensor]] = [
        model(chunk.to(device).float() / 255) for chunk in images.split(size)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
