"""Batched augmentation against a loop over images, its share of a step, and one forward for two."""

import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from _report import report
from toolkit.runtime import race, start
from toolkit.supervision import wemix

LOOP_TARGET = 10  # times as fast as one torchvision call an image
SHARE_TARGET = 0.15  # of a step on augmented images
FORWARD_TARGET = 1.1  # times as fast as two forwards, on a CPU
BATCH, STRENGTH = 50, 0.35


def main() -> None:
    """Print each speed, its spread over rounds, and its target."""
    start()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 1, 28, 28, generator=generator)
    target = F.one_hot(torch.arange(BATCH) % 10, 10).float()
    transform = wemix.affine(STRENGTH)
    change = wemix.augmentation("affine", STRENGTH)
    step = {name: stepper(name, x, target, change, generator) for name in wemix.PRESETS}
    two = stepper("mixloss", x, target, change, generator, two_forwards=True)

    seconds = race(
        rounds=60,
        warmup=10,
        batched=lambda: transform(x, generator),
        loop=lambda: by_torchvision(x, generator),
    )
    report(
        "affine, batched against a loop", seconds["loop"] / seconds["batched"], at_least=LOOP_TARGET
    )

    seconds = race(rounds=300, warmup=20, augment=lambda: transform(x, generator), step=step["aug"])
    report("affine, share of a step", seconds["augment"] / seconds["step"], at_most=SHARE_TARGET)

    seconds = race(rounds=300, warmup=20, one=step["mixloss"], two=two, originals=step["orig"])
    report(
        "MixLoss, two forwards against one",
        seconds["two"] / seconds["one"],
        at_least=FORWARD_TARGET,
    )
    report("MixLoss against originals, cost of a step", seconds["one"] / seconds["originals"])


def by_torchvision(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same law as a script would write it: torchvision, image by image."""
    draw = 2 * torch.rand(len(x), 5, generator=generator) - 1
    pixels = 0.15 * STRENGTH * x.shape[-1]  # 0.3 σ of half a side
    moved = []
    for image, (angle, scale, right, down, mirror) in zip(x, draw.tolist(), strict=True):
        image = tv.horizontal_flip(image) if mirror < 0 else image
        moved.append(
            tv.affine(
                image,
                90 * STRENGTH * angle,
                [round(pixels * right), round(pixels * down)],
                1 + 0.4 * STRENGTH * scale,
                [0.0, 0.0],
                v2.InterpolationMode.BILINEAR,
            )
        )
    return torch.stack(moved)


def stepper(name, x, target, change, generator, two_forwards=False):
    """A function that takes one training step of a preset."""
    model = wemix.small_cnn(1, 28, 10, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    plan = wemix.WeMixSchedule.preset(name, 1, stage1_fraction=1.0).at(0)

    def draw(images, labels):
        return change(images, labels, generator)

    def one_forward() -> None:
        wemix.wemix_step(model, (x, target), draw, plan, optimizer)

    def twice() -> None:
        moved, labels = draw(x, target)
        loss = wemix.mix_loss(model(x), target, model(moved), labels, plan.lam)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return twice if two_forwards else one_forward


if __name__ == "__main__":
    main()
