"""Pre-training: batches of pseudo motions (or of another pretext task) and a plain loop."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import update_bn

from toolkit.learn.loop import fit
from toolkit.representation.mosi.clips import (
    FRAMES,
    SIDE,
    load_videos,
    photograph_stills,
    shuffled,
    windows,
)
from toolkit.representation.mosi.generator import (
    MotionClass,
    mirror,
    pseudo_motion,
    static_mask,
)
from toolkit.representation.mosi.network import MoSINet, TinyVideoNet, standardise
from toolkit.representation.mosi.recipe import Recipe

Batch = tuple[Tensor, Tensor]
PRETRAINING = (
    "size",
    "source_levels",
    "K",
    "source",
    "ratio",
    "steps",
    "images",
    "weight_decay",
    "dropout",
    "judge",
)
"""The fields of a recipe that pre-training depends on, beside the rate of the arm."""
PACES = (1, 2, 4)
"""Video frames from one frame of a clip to the next, the classes of pace prediction."""


def pretrain_mosi(recipe: Recipe, arm: str, seed: int, device: torch.device) -> MoSINet:
    """A network pre-trained as an arm of the recipe says; the same arguments give the same object.

    All arms of a seed start from the same backbone. Do not train the result: copy it.
    """
    settings = {name: getattr(recipe, name) for name in PRETRAINING}
    return _pretrained(Recipe(lr=recipe.rate(arm), **settings), arm, seed, device)


@lru_cache(maxsize=32)
def _pretrained(recipe: Recipe, arm: str, seed: int, device: torch.device) -> MoSINet:
    torch.manual_seed(seed)
    backbone = TinyVideoNet()
    model = MoSINet(backbone, head_sizes(recipe, arm), recipe.dropout).to(device)
    batches = pretext_batches(recipe, arm, seed, device)
    if arm == "random":
        update_bn((clips for clips, _ in batches), model)
        return model.eval()
    decay = recipe.weight_decay
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, weight_decay=decay)
    schedule = OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps)
    fit(model, batches, lambda _, batch: model.loss(*batch), optimizer, schedule=schedule)
    return model.eval()


def head_sizes(recipe: Recipe, arm: str) -> int | tuple[int, int]:
    """Classes of the pretext task, or of its two heads."""
    if arm == "separate":
        return (2 * recipe.K + 1, 2 * recipe.K + 1)
    if arm in ("rotation", "pace"):
        return {"rotation": 4, "pace": len(PACES)}[arm]
    return label_pool(recipe, arm).n


def label_pool(recipe: Recipe, arm: str) -> MotionClass:
    """The 9 decoupled classes, or all 25."""
    return MotionClass(recipe.K, decoupled=arm not in ("pairs25", "separate"))


def pretext_batches(recipe: Recipe, arm: str, seed: int, device: torch.device) -> Iterator[Batch]:
    """Standardised clips and labels; every arm sees as many clips a step (25 classes: 2 or 1 more).

    `random` gets batches of `masked`, to calibrate its batch norm.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20 if arm == "random" else recipe.steps):
        clips, labels = _DRAWS.get(arm, mosi_batch)(recipe, arm, generator, device)
        yield standardise(clips), labels


def mosi_batch(recipe: Recipe, arm: str, generator: torch.Generator, device: torch.device) -> Batch:
    """Random stills, each in all classes: move, mirror, (flicker,) mask."""
    pool = label_pool(recipe, arm)
    images = max(1, recipe.images * 9 // pool.n)  # 25 classes: as many clips a step, or nearly
    stills = random_squares(sources(recipe, arm), images, recipe.source, generator).to(device)
    clips, labels = pseudo_motion(
        stills, pool.factors, SIDE, FRAMES, generator, subpixel=arm == "subpixel"
    )
    swap = arm != "flip_wrong"
    clips, labels = mirror(clips, labels, pool, generator=generator, swap=swap)
    if arm == "flicker":
        clips = flicker(clips, 0.5, generator)
    if arm != "unmasked":
        clips = static_mask(clips, recipe.ratio, generator=generator)
    if arm == "shuffled":
        clips = shuffled(clips, generator)
    return clips, pool.axis_labels(labels) if arm == "separate" else labels


def sources(recipe: Recipe, arm: str) -> UInt8[Tensor, "n 72 72"]:
    """Frames of the training videos that may be used for learning, or photographs."""
    return (
        photograph_stills()
        if arm == "stills"
        else _frames_of(
            Recipe(source_levels=recipe.source_levels, size=recipe.size, judge=recipe.judge)
        )
    )


@lru_cache(maxsize=2)
def _frames_of(recipe: Recipe) -> UInt8[Tensor, "n 72 72"]:
    """Put together once, not in every step."""
    parts = []
    for level in recipe.source_levels:
        videos = load_videos(level, "train", recipe.size)
        parts.append(videos.stills[training_rows(recipe, videos.scene)].flatten(0, 1))
    return torch.cat(parts)


def training_rows(recipe: Recipe, scene: Int64[Tensor, "n"]) -> Int64[Tensor, "m"]:
    """Clips to learn from: all, or all but the validation scenes (the last fifth)."""
    last = int(scene.max()) + 1
    kept = last if recipe.judge == "test" else last - max(1, last // 5)
    return (scene < kept).nonzero()[:, 0]


def random_squares(
    stills: UInt8[Tensor, "n side side"], count: int, side: int, generator: torch.Generator
) -> Float[Tensor, "count 1 s s"]:
    """Random squares of random stills, numbers from 0 to 1."""
    chosen = torch.randint(len(stills), (count,), generator=generator)
    corner = torch.randint(stills.shape[-1] - side + 1, (2, count), generator=generator)
    offset = torch.arange(side)
    rows, columns = corner[0][:, None] + offset, corner[1][:, None] + offset
    return stills[chosen[:, None, None], rows[:, :, None], columns[:, None, :]][:, None] / 255


def flicker(
    clips: Float[Tensor, "n 1 t h w"], strength: float, generator: torch.Generator
) -> Float[Tensor, "n 1 t h w"]:
    """Brightness and contrast factors from U(1 − s, 1 + s), anew in every frame."""
    draw = 1 + strength * (
        2 * torch.rand(2, len(clips), 1, clips.shape[2], generator=generator) - 1
    )
    bright, contrast = draw[..., None, None].to(clips.device)
    lit = (clips * bright).clamp(0, 1)
    level = lit.mean(dim=(3, 4), keepdim=True)
    return (level + contrast * (lit - level)).clamp(0, 1)


def rotation_batch(
    recipe: Recipe, arm: str, generator: torch.Generator, device: torch.device
) -> Batch:
    """Windows of training videos, turned by a multiple of 90°: which one?"""
    grey, start = _random_videos(recipe, 48 - 2 * (FRAMES - 1), generator, device)
    clips, labels = windows(grey, start), torch.arange(len(grey), device=device) % 4
    turned = [clips.rot90(int(k), (3, 4)) for k in range(4)]
    rows = torch.arange(len(clips), device=device)
    return torch.stack(turned)[labels, rows], labels


def pace_batch(recipe: Recipe, arm: str, generator: torch.Generator, device: torch.device) -> Batch:
    """Windows of training videos with stride 1, 2 or 4: which one?"""
    grey, start = _random_videos(recipe, 48 - PACES[-1] * (FRAMES - 1), generator, device)
    labels = torch.arange(len(grey), device=device) % len(PACES)
    clips = torch.stack([windows(grey, start, stride) for stride in PACES])
    return clips[labels, torch.arange(len(grey), device=device)], labels


def _random_videos(
    recipe: Recipe, last: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """As many training videos as a step of MoSI has clips, with starts below `last`."""
    count = recipe.images * label_pool(recipe, "masked").n
    pools = []
    for level in recipe.source_levels:
        videos = load_videos(level, "train", recipe.size)
        pools.append((videos.grey, training_rows(recipe, videos.scene)))
    which = torch.randint(sum(len(rows) for _, rows in pools), (count,), generator=generator)
    grey, begin = torch.empty((count, *pools[0][0].shape[1:]), dtype=torch.uint8), 0
    for pictures, rows in pools:
        here = (which >= begin) & (which < begin + len(rows))
        grey[here] = pictures[rows[which[here] - begin]]
        begin += len(rows)
    return grey.to(device), torch.randint(last, (count,), generator=generator).to(device)


_DRAWS: dict[str, Callable[..., Batch]] = {"rotation": rotation_batch, "pace": pace_batch}
