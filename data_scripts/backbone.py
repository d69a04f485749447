"""The backbone of the small detectors: trained to tell 100 emoji concepts apart, then kept.

Its pictures are real shots of the pool `backbone`, whose concepts no scene shows, by seven vendors
over training photographs, cut out around their boxes to 32×32 pixels.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from data_scripts import emoji, manifest, pools
from data_scripts.jobs import in_parallel
from data_scripts.tables import write_licences
from toolkit.data import EMOJI_VENDORS, Emoji, load_emoji, load_photos
from toolkit.data.compose import average
from toolkit.data.shots import draw_shot, render_shots
from toolkit.learn.loop import fit, minibatches, predict, warmup_cosine
from toolkit.scenes.backbone import EmojiBackbone

WORLD, SPLIT = 2, 3
FIRST = 20_000
"""Where the numbers of its shots begin: `default_rng([2, 3, 20000 + i])`."""
SIDE = 32
"""Pixels of a crop: the square around the box of the object."""
SHOTS = 4
"""Of each concept by each vendor; the last of them is for validation."""
STEPS, BATCH, RATE = 260, 64, 4e-3
HEAD_RATE = 10 * RATE
"""Of the last layer, which is thrown away: features that are means differ little at first."""


def prepare(folder: Path, inputs: Mapping[str, Path], size: str = "") -> None:
    """Write `backbone.safetensors`, what it was trained on, its accuracy and the licences."""
    pictures = load_emoji()
    images, label = make_crops(pictures)
    held_out = torch.arange(len(label)) % SHOTS == SHOTS - 1
    model, accuracy = train(images, label, held_out, seed=0)
    weights = {name: tensor.contiguous() for name, tensor in model[0].state_dict().items()}
    (folder / "backbone.safetensors").write_bytes(save(weights))
    concepts = [pictures.labels[pictures.keys.index(key)] for key in pools.read()["backbone"]]
    about = {"concepts": concepts, "steps": STEPS, "crops": len(label), "accuracy": accuracy}
    (folder / "backbone.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    works = {vendor: emoji.PACKAGES[vendor] for vendor in pools.VENDORS}
    photographs = manifest.datasets()["photos"].downloads
    works |= {Path(download).stem: download for download in photographs}
    write_licences(folder, "work", works)


def make_crops(
    pictures: Emoji,
) -> tuple[UInt8[Tensor, "crops 3 32 32"], Int64[Tensor, "crops"]]:
    """Crops of real shots and the rank of their concept; shots of one drawing follow each other."""
    pairs = zip(pictures.concept.tolist(), pictures.vendor.tolist(), strict=True)
    row = {pair: number for number, pair in enumerate(pairs)}
    concepts = [pictures.keys.index(key) for key in pools.read()["backbone"]]
    vendors = [EMOJI_VENDORS.index(vendor) for vendor in pools.VENDORS]
    own = [place for place, split in enumerate(load_photos().split) if split == "train"]
    jobs = []
    for rank, concept in enumerate(concepts):
        sprites = pictures.images[[row[concept, vendor] for vendor in vendors]].numpy()
        jobs.append((sprites, FIRST + rank * len(vendors) * SHOTS, own))
    made = in_parallel(crop_shots, jobs, "scenes: crops")
    label = torch.arange(len(concepts)).repeat_interleave(len(vendors) * SHOTS)
    return torch.from_numpy(np.concatenate(made)), label


def crop_shots(sprites: np.ndarray, first: int, places: Sequence[int]) -> np.ndarray:
    """Shots of some drawings, cut out: uint8 [drawings · 4, 3, 32, 32].

    Args:
        sprites: uint8 [drawings, 4, 64, 64], straight alpha.
        first: number of the first shot.
        places: rows of the tiles that may be behind them.
    """
    torch.set_num_threads(1)
    layers = torch.from_numpy(sprites).repeat_interleave(SHOTS, dim=0)
    numbers = range(first, first + len(layers))
    shots = [draw_shot(np.random.default_rng([WORLD, SPLIT, number]), places) for number in numbers]
    done = render_shots(layers, shots, load_photos().images)
    low, high = done.box[:, :2], done.box[:, 2:]
    half = (high - low).amax(1, keepdim=True) / 2
    middle = (low + high) / 2
    square = torch.cat([middle - half, middle + half], 1).clamp(0, done.image.shape[-1])
    return average(done.image.float(), square, SIDE).round().to(torch.uint8).numpy()


def train(
    images: UInt8[Tensor, "crops 3 32 32"],
    label: Int64[Tensor, "crops"],
    held_out: Tensor,
    seed: int,
    steps: int = STEPS,
) -> tuple[nn.Sequential, float]:
    """Train the backbone under a mean pool and a linear layer; one thread, so that bytes repeat.

    Args:
        images: pixels.
        label: classes from 0.
        held_out: bool [crops]; these measure the accuracy only.
        seed: of initial weights, batches and flips.
        steps: of AdamW.

    Returns:
        The model, whose first part is the backbone, and its accuracy on the crops held out.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    backbone, head = EmojiBackbone(), nn.Linear(EmojiBackbone.channels[-1], int(label.max()) + 1)
    model = nn.Sequential(backbone, _MeanOfDeepest(), head)
    rates = ((backbone, RATE), (head, HEAD_RATE))
    optimizer = torch.optim.AdamW([{"params": p.parameters(), "lr": rate} for p, rate in rates])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: warmup_cosine(i, steps))
    batches = minibatches(
        images[~held_out], label[~held_out], size=BATCH, steps=steps, generator=generator
    )

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Float[Tensor, ""]:
        pixels, wanted = batch
        flip = torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5
        return F.cross_entropy(model(torch.where(flip, pixels.flip(3), pixels) / 255), wanted)

    fit(model, batches, loss, optimizer, schedule=schedule)
    right = predict(model, images[held_out] / 255).argmax(1) == label[held_out]
    return model, round(float(right.double().mean()), 4)


class _MeanOfDeepest(nn.Module):
    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return maps[-1].mean((2, 3))
