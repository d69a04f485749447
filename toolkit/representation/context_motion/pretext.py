"""Pre-training: batches of clips, keyframes and motion windows, and a plain loop."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import update_bn

from toolkit.learn.loop import fit
from toolkit.representation.context_motion.loss import pointwise_info_nce
from toolkit.representation.context_motion.network import ContextMotionNet, tiny_network
from toolkit.representation.context_motion.recipe import TASKS, Recipe
from toolkit.representation.context_motion.transform import MotionTransform
from toolkit.representation.context_motion.videos import (
    LAST,
    WINDOW,
    MotionVideos,
    clip_frames,
    keyframe_near,
    load_motion_videos,
    motion_windows,
    negative_starts,
)
from toolkit.representation.mosi.generator import MotionClass, mirror, pseudo_motion, static_mask
from toolkit.representation.mosi.network import standardise

Batch = tuple[Tensor, ...]
PACES = (1, 2, 4)
"""Video frames from one frame of a clip to the next, the classes of pace prediction."""
MOVING = 0.25
"""Pixels a frame from which on a position counts as moving."""


class TinyModel(nn.Module):
    """The method's networks, and a linear head for the arms that name classes."""

    def __init__(self, recipe: Recipe, arm: str, classes: int) -> None:
        super().__init__()
        self.net: ContextMotionNet = tiny_network(
            recipe.width,
            recipe.layers,
            recipe.heads,
            recipe.dropout,
            recipe.projection,
            linear=arm == "linear",
        )
        self.head = nn.Linear(64, classes)
        self.regress = nn.Linear(recipe.width, 16)  # two components of eight frames

    def forward(self, clips: Float[Tensor, "b 1 t h w"]) -> Float[Tensor, "b classes"]:
        """Logits of the linear head."""
        return self.head(self.net.embed(clips))


def pretrain_context_motion(
    recipe: Recipe, arm: str, seed: int, device: torch.device
) -> ContextMotionNet:
    """A network pre-trained as an arm of the recipe says; the same arguments give the same object.

    All arms of a seed start from the same backbone. Do not train the result: copy it.
    """
    return trained(recipe, arm, seed, device).net


def trained(recipe: Recipe, arm: str, seed: int, device: torch.device) -> TinyModel:
    """The same with its heads, in evaluation mode."""
    return _trained(replace(recipe, arms=("both",), seeds=1), arm, seed, device)


@lru_cache(maxsize=32)
def _trained(recipe: Recipe, arm: str, seed: int, device: torch.device) -> TinyModel:
    videos = load_motion_videos(recipe.level, "train", recipe.size)
    rows = training_rows(recipe, videos, arm, seed)
    torch.manual_seed(seed)
    model = TinyModel(recipe, arm, _classes(arm, videos)).to(device)
    if arm == "random":
        batches = _batches(recipe, arm, videos, rows, 20, seed, device)
        update_bn((standardise(batch[0]) for batch in batches), model)
        return model.eval()
    optimizer = torch.optim.Adam(
        model.parameters(), recipe.rate(arm), weight_decay=recipe.weight_decay
    )
    schedule = OneCycleLR(optimizer, recipe.rate(arm), total_steps=recipe.steps)
    batches = _batches(recipe, arm, videos, rows, recipe.steps, seed, device)
    fit(
        model,
        batches,
        lambda _, batch: arm_loss(recipe, arm, model, batch),
        optimizer,
        schedule=schedule,
        clip=recipe.clip,
    )
    return model.eval()


def arm_loss(recipe: Recipe, arm: str, model: TinyModel, batch: Batch) -> Float[Tensor, ""]:
    """Sum of what an arm asks for: L_i of the first clips, the rest of the others.

    Args:
        recipe: temperature and queries.
        arm: whose tasks.
        model: the networks.
        batch: clips; labels; keyframes of the first clips; the motion after the others, and motion
            at other times of the same videos.
    """
    clips, labels, keyframes, positive, negative = batch
    maps, losses = model.net.maps(standardise(clips)), []
    first, tasks = len(keyframes), TASKS[arm]
    if "context" in tasks:
        k = model.net.context_keys(standardise(keyframes)[:, :, 0])
        q = model.net.context_queries(maps[:first])
        losses.append(pointwise_info_nce(q, k, tau=recipe.tau))
    if "motion" in tasks:
        asked = fastest(positive, recipe.queries)
        losses.append(motion_loss(model.net, maps[first:], positive, negative, recipe.tau, asked))
    if "regression" in tasks:
        guess = model.regress(model.net.predictor(maps[first:])).flatten(0, 1)
        target, asked = regression_target(positive).flatten(0, 1), fastest(positive, recipe.queries)
        losses.append(F.l1_loss(guess[asked], target[asked]))
    if "labels" in tasks:
        losses.append(F.cross_entropy(model.head(maps.mean(dim=(2, 3, 4))), labels))
    return torch.stack(losses).sum()


def motion_loss(
    net: ContextMotionNet,
    maps: Float[Tensor, "b k s h w"],
    positive: Float[Tensor, "b 2 t i j"],
    negative: Float[Tensor, "m 2 t i j"],
    tau: float,
    asked: Int64[Tensor, "n"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """L_m: the motion to come at each position, among other positions, videos and times.

    Args:
        net: the networks.
        maps: of the clips.
        positive: the motion after each clip.
        negative: motion at other times of the same videos.
        tau: temperature.
        asked: rows of (video, position) that are queries; None: all. Keys are always all.
        chunk: see `pointwise_info_nce`.
    """
    keys = net.motion_keys(torch.cat([positive, negative]))
    q = net.motion_queries(maps)
    right, others = keys[: len(q)], keys[len(q) :]
    if asked is not None and len(asked) < len(q):
        rest = torch.ones(len(q), dtype=torch.bool, device=q.device)
        rest[asked] = False
        q, right, others = q[asked], right[asked], torch.cat([right[rest], others])
    return pointwise_info_nce(q, right, others, tau, chunk)


def fastest(windows: Float[Tensor, "b 2 t h w"], count: int) -> Int64[Tensor, "n"]:
    """The positions of each video that move most, as rows of (video, position)."""
    speed = position_speed(windows)
    best = speed.topk(count, dim=1).indices.sort(dim=1).values
    first = torch.arange(len(speed), device=speed.device)[:, None] * speed.shape[1]
    return (first + best).flatten()


def position_speed(windows: Float[Tensor, "b 2 t h w"]) -> Float[Tensor, "b 49"]:
    """Length of the mean vector at each predicted position, in pixels a frame."""
    return 10 * F.avg_pool3d(windows, (8, 2, 2))[:, :, 0].norm(dim=1).flatten(1)


def regression_target(windows: Float[Tensor, "b 2 t h w"]) -> Float[Tensor, "b 49 16"]:
    """Vectors at the predicted positions, in pixels: the mean of 2×2 cells in each frame."""
    return 10 * F.avg_pool3d(windows, (1, 2, 2)).flatten(1, 2).flatten(2).transpose(1, 2)


@torch.no_grad()
def motion_scores(
    recipe: Recipe, model: TinyModel, videos: MotionVideos, rows: Tensor, seed: int
) -> dict[str, Float[Tensor, "batches"]]:
    """How well motion is predicted without augmentation, a value a batch.

    `top1`: the right key among all positions of the batch and the windows beside it; `moving_top1`
    on positions that move; `loss`: L_m; `chance` of top-1.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(90_000 + seed)
    transform = MotionTransform(area=(1.0, 1.0), aspect=(1.0, 1.0), mirror=0.0)
    scores: dict[str, list[Tensor]] = {"top1": [], "moving_top1": [], "loss": [], "chance": []}
    order = rows[torch.randperm(len(rows), generator=generator)]
    for some in order[: len(order) // recipe.videos * recipe.videos].split(recipe.videos):
        batch = _draw(recipe, videos, some, transform, generator)
        clips, _, _, positive, negative = (part.to(device) for part in batch)
        q = model.net.motion_queries(model.net.maps(standardise(clips)))
        keys = model.net.motion_keys(torch.cat([positive, negative]))
        logits, truth = q @ keys.T / recipe.tau, torch.arange(len(q), device=device)
        right = (logits.argmax(dim=1) == truth).float()
        speed = position_speed(positive).flatten()
        scores["top1"].append(right.mean())
        scores["moving_top1"].append(right[speed > MOVING].mean())
        scores["loss"].append(F.cross_entropy(logits, truth))
        scores["chance"].append(torch.tensor(1 / len(keys)))
    return {name: torch.stack(values).cpu() for name, values in scores.items()}


def training_rows(
    recipe: Recipe, videos: MotionVideos, arm: str = "", seed: int = 0
) -> Int64[Tensor, "m"]:
    """Videos to learn from: all, or all but the validation scenes (the last fifth).

    The supervised arms get those of `recipe.labels` random scenes: each gives a label a class.

    Raises:
        ValueError: if there are fewer scenes.
    """
    last = int(videos.scene.max()) + 1
    kept = last if recipe.judge == "test" else last - max(1, last // 5)
    if not arm.startswith("supervised"):
        return (videos.scene < kept).nonzero()[:, 0]
    if recipe.labels > kept:
        raise ValueError(f"{recipe.labels} labels a class need as many scenes; there are {kept}")
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randperm(kept, generator=generator)[: recipe.labels]
    return torch.isin(videos.scene, scenes).nonzero()[:, 0]


def _batches(
    recipe: Recipe,
    arm: str,
    videos: MotionVideos,
    rows: Tensor,
    steps: int,
    seed: int,
    device: torch.device,
) -> Iterator[Batch]:
    """What `arm_loss` takes: clips of different scenes for context, `kin` of a scene for the rest.

    Videos of one scene look alike, so that only motion tells them apart; and for the same reason
    they may not be each other's negatives where keyframes are matched.
    """
    generator = torch.Generator().manual_seed(seed)
    transform = MotionTransform(area=recipe.area, mirror=recipe.mirror, aware=recipe.aware)
    if arm.startswith("supervised"):  # a mirror would change what right and left mean
        transform = replace(transform, mirror=0.0)
    draw = {"mosi": _draw_mosi, "pace": _draw_pace}.get(arm, _draw)
    alone = _kin(rows, videos.scene[rows], 1, generator)
    kin = _kin(rows, videos.scene[rows], recipe.kin, generator)
    tasks = TASKS[arm]
    for _ in range(steps):
        parts: list[tuple[Tensor, ...]] = []
        if "context" in tasks:
            now = torch.cat([next(alone) for _ in range(recipe.videos)])
            clips, labels, keyframes, *_ = _draw(recipe, videos, now, transform, generator)
            parts.append((clips, labels[:0], keyframes))
        if set(tasks) - {"context"}:
            now = torch.cat([next(kin) for _ in range(recipe.videos // recipe.kin)])
            clips, labels, keyframes, *motion = draw(recipe, videos, now, transform, generator)
            parts.append((clips, labels, keyframes[:0], *motion))
        yield tuple(
            torch.cat([part[i] for part in parts if len(part) > i]).to(device)
            if any(len(part) > i for part in parts)
            else torch.empty(0, device=device)
            for i in range(5)
        )


def _kin(
    rows: Tensor, scene: Tensor, count: int, generator: torch.Generator
) -> Iterator[Int64[Tensor, "count"]]:
    """Neighbouring classes of one scene, without end; every video once before any comes again."""
    parts = [part for one in scene.unique() for part in rows[scene == one].split(count)]
    while True:
        for place in torch.randperm(len(parts), generator=generator).tolist():
            yield parts[place]


def _draw(
    recipe: Recipe,
    videos: MotionVideos,
    rows: Tensor,
    transform: MotionTransform,
    generator: torch.Generator,
) -> Batch:
    """Clips, labels, keyframes, the motion after each clip, motion at other times."""
    n, count = len(rows), recipe.negatives
    start = torch.randint(LAST + 1, (n,), generator=generator)
    after = start + WINDOW + recipe.gap
    still = keyframe_near(start, videos.keyframes, generator)
    elsewhere = negative_starts(after, count, videos.mv.shape[1], generator)
    grey, mv = videos.grey[rows], videos.mv[rows]
    view = transform.draw(n, generator)
    clips = transform.pictures(clip_frames(grey, start), view)
    positive = transform.vectors(motion_windows(mv, after), view)
    keyframes = transform.pictures(
        grey[torch.arange(n), still][:, None], transform.draw(n, generator)
    )
    others = transform.draw(n * count, generator)
    if recipe.shared_crop:
        others = view[torch.arange(n).repeat_interleave(count)]
    windows = motion_windows(mv.repeat_interleave(count, dim=0), elsewhere.flatten())
    negative = transform.vectors(windows, others) if count else positive[:0]
    return clips, videos.label[rows], keyframes, positive, negative


def _draw_mosi(
    recipe: Recipe,
    videos: MotionVideos,
    rows: Tensor,
    transform: MotionTransform,
    generator: torch.Generator,
) -> Batch:
    """MoSI: squares of still frames, slid over; about as many clips as videos."""
    pool = MotionClass()
    few = rows[: max(1, round(len(rows) / pool.n))]
    time = torch.randint(videos.grey.shape[1], (len(few),), generator=generator)
    stills = videos.grey[few, time][:, None].float() / 255
    clips, labels = pseudo_motion(stills, pool.factors, transform.side, 8, generator)
    clips, labels = mirror(clips, labels, pool, generator=generator)
    nothing = torch.empty(0)
    return static_mask(clips, generator=generator), labels, nothing, nothing, nothing


def _draw_pace(
    recipe: Recipe,
    videos: MotionVideos,
    rows: Tensor,
    transform: MotionTransform,
    generator: torch.Generator,
) -> Batch:
    """Clips with one, two or four video frames from one picture to the next: which one?"""
    n = len(rows)
    labels = torch.arange(n) % len(PACES)
    start = torch.randint(videos.grey.shape[1] - 7 * PACES[-1], (n,), generator=generator)
    times = start[:, None] + torch.tensor(PACES)[labels, None] * torch.arange(8)
    frames = videos.grey[rows[:, None], times]
    nothing = torch.empty(0)
    return transform.pictures(frames, transform.draw(n, generator)), labels, *(nothing,) * 3


def _classes(arm: str, videos: MotionVideos) -> int:
    if arm in ("mosi", "pace"):
        return MotionClass().n if arm == "mosi" else len(PACES)
    return int(videos.label.max()) + 1
