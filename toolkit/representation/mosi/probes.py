"""What frozen features know, scene by scene, and fine-tuning with few labels."""

import copy
from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from toolkit.learn.loop import fit, predict
from toolkit.learn.metrics import recall_at_k
from toolkit.learn.probes import linear_probe
from toolkit.representation.mosi.clips import (
    STARTS,
    VideoSet,
    all_windows,
    frozen,
    load_videos,
    shuffled,
    windows,
)
from toolkit.representation.mosi.network import MoSINet, TinyVideoNet, standardise
from toolkit.representation.mosi.pretext import pretrain_mosi, training_rows
from toolkit.representation.mosi.recipe import Recipe

PAIRS = {"x": 0, "y": 2, "orbit": 4, "scale": 6, "spin": 8}
"""First class of each time-reversal pair; the second is the next one."""
Split = tuple[VideoSet, Tensor]
CHUNK = 16
"""Clips, of four windows each, that go through a network at a time: what fits into caches."""


def splits(recipe: Recipe, level: str) -> tuple[Split, Split]:
    """Gallery and queries: training and test clips, or two parts of the training scenes."""
    train = load_videos(level, "train", recipe.size)
    rows = training_rows(recipe, train.scene)
    if recipe.judge == "test":
        test = load_videos(level, "test", recipe.size)
        return (train, rows), (test, torch.arange(len(test.label)))
    rest = torch.ones(len(train.label), dtype=torch.bool)
    rest[rows] = False
    return (train, rows), (train, rest.nonzero()[:, 0])


@torch.no_grad()
def clip_features(
    model: MoSINet, split: Split, view: str = "real", seed: int = 0
) -> Float[Tensor, "n k"]:
    """Features of each clip, the mean of its four windows.

    Args:
        model: in evaluation mode.
        split: clips and the rows to take.
        view: `"real"`, `"shuffled"` (each window in an order of its own) or `"frame"` (its middle).
        seed: of the shuffles.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    found = []
    for rows in split[1].split(CHUNK):
        clips = seen_as(all_windows(split[0].grey[rows].to(device)), view, generator)
        found.append(model.embed(standardise(clips)))
    return torch.cat(found).unflatten(0, (-1, len(STARTS))).mean(dim=1).cpu()


def seen_as(clips: Tensor, view: str, generator: torch.Generator) -> Tensor:
    """The clips as they are, with their frames shuffled, or their middle only.

    Raises:
        ValueError: for another view.
    """
    if view == "real":
        return clips
    if view == "shuffled":
        return shuffled(clips, generator)
    if view == "frame":
        return frozen(clips)
    raise ValueError(f"view must be real, shuffled or frame, got {view!r}")


def frozen_scores(
    features: tuple[Float[Tensor, "n k"], Float[Tensor, "m k"]], gallery: Split, queries: Split
) -> dict[str, Float[Tensor, "scenes"]]:
    """Probe, nearest neighbour and pairs: one value a query scene.

    Features are z-scored on the gallery. `probe` is a ridge classifier over all classes (its
    penalty by leave-one-out on the gallery), `r1` and `r5` cosine retrieval, `pair` the mean over
    time-reversal pairs of a ridge classifier that only ever sees that pair, `pair_x` … each pair.
    """
    (known, y), (asked, truth) = (
        (part, split[0].label[split[1]])
        for part, split in zip(features, (gallery, queries), strict=True)
    )
    mean, deviation = known.mean(dim=0), known.std(dim=0) + 1e-6
    known, asked = (known - mean) / deviation, (asked - mean) / deviation
    scene = queries[0].scene[queries[1]]
    right = linear_probe(known, y, asked, "ridge") == truth
    scores = {"probe": by_scene(right, scene)}
    for k in (1, 5):
        scores[f"r{k}"] = by_scene(_recalled(asked, known, truth, y, k), scene)
    pairs = {
        name: pair_hits(known, y, asked, truth, scene, first)
        for name, first in PAIRS.items()
        if first < int(y.max())
    }
    scores |= {f"pair_{name}": value for name, value in pairs.items()}
    return scores | {"pair": torch.stack(list(pairs.values())).mean(dim=0)}


def pair_hits(
    known: Tensor, y: Tensor, asked: Tensor, truth: Tensor, scene: Tensor, first: int
) -> Float[Tensor, "scenes"]:
    """Accuracy of a probe that tells one class from its time reversal, chance ½."""
    train, test = (labels // 2 == first // 2 for labels in (y, truth))
    guess = linear_probe(known[train], y[train], asked[test], "ridge")
    return by_scene(guess == truth[test], scene[test])


def by_scene(values: Bool[Tensor, "n"], scene: Int64[Tensor, "n"]) -> Float[Tensor, "scenes"]:
    """The mean over each scene's clips, scenes in rising order."""
    _, place = scene.unique(return_inverse=True)
    total = torch.zeros(int(place.max()) + 1).index_add_(0, place, values.float())
    return total / torch.bincount(place)


def fine_tune(
    recipe: Recipe, arm: str, level: str, per_class: int, seed: int, device: torch.device
) -> dict[str, Float[Tensor, "scenes"]]:
    """Train the whole network on the labels of so many scenes; accuracy a query scene.

    Scenes are drawn, not clips: each gives one clip to every class. All arms see the same scenes
    and the same windows. `scratch` starts untrained; `scratch_shuffled` and `scratch_frame` also
    never see the order of frames.

    Args:
        recipe: steps and rates.
        arm: which network to begin with.
        level: whose classes.
        per_class: labels a class; 0 takes all scenes.
        seed: of scenes, order and the new head.
        device: to train on.

    Raises:
        ValueError: if there are fewer scenes.
    """
    gallery, queries = splits(recipe, level)
    rows = labelled_rows(gallery, per_class, seed)
    classes = int(gallery[0].label.max()) + 1
    torch.manual_seed(seed + 1)
    model = MoSINet(TinyVideoNet(), classes, 0.0)
    if not arm.startswith("scratch"):
        start = pretrain_mosi(recipe, arm, seed, device)
        model.backbone = copy.deepcopy(start.backbone)
    model.to(device)
    view = arm.partition("_")[2] if arm.startswith("scratch") else ""
    rate = recipe.tuned_rate(arm)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = OneCycleLR(optimizer, rate, total_steps=recipe.tuned_steps)
    batches = _labelled(recipe, gallery[0], rows, view or "real", seed, device)
    fit(model, batches, lambda _, batch: model.loss(*batch), optimizer, schedule=schedule)
    return _tested(model, queries, view or "real", seed)


def labelled_rows(gallery: Split, per_class: int, seed: int) -> Int64[Tensor, "m"]:
    """Rows of `per_class` random scenes: that many labels in every class."""
    videos, rows = gallery
    scenes = videos.scene[rows].unique()
    if not 0 <= per_class <= len(scenes):
        raise ValueError(f"{per_class} labels a class need as many scenes; there are {len(scenes)}")
    generator = torch.Generator().manual_seed(seed)
    chosen = scenes[torch.randperm(len(scenes), generator=generator)[: per_class or len(scenes)]]
    return rows[torch.isin(videos.scene[rows], chosen)]


def hand_crafted(name: str, split: Split) -> Float[Tensor, "n k"]:
    """Features that nobody trained, the mean over a clip's windows but for the last two.

    `difference`: change from frame to frame on a 5×5 grid. `flow`: Farneback's optical flow, its
    mean on a 3×3 grid and a histogram of directions. `middle`: a 10×10 thumbnail of the window's
    middle. `first`, `last`: one of the clip's first or last frame, which do give the class away.

    Raises:
        ValueError: for another name.
    """
    grey = split[0].grey[split[1]]
    if name in ("first", "last"):
        return F.adaptive_avg_pool2d(grey[:, 0 if name == "first" else -1].float(), 10).flatten(1)
    clips = all_windows(grey)
    if name == "middle":
        found = F.adaptive_avg_pool2d(frozen(clips)[:, 0, 0], 10).flatten(1)
    elif name == "difference":
        found = F.adaptive_avg_pool2d(clips.diff(dim=2).abs().mean(dim=2)[:, 0], 5).flatten(1)
    elif name == "flow":
        found = torch.stack([_flow(clip[0]) for clip in clips])
    else:
        raise ValueError(f"no features are called {name!r}")
    return found.unflatten(0, (-1, len(STARTS))).mean(dim=1)


def _flow(clip: Float[Tensor, "t h w"]) -> Float[Tensor, "k"]:
    frames = (clip * 255).to(torch.uint8).numpy()
    fields = [
        cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 2, 9, 2, 5, 1.1, 0)  # type: ignore[call-overload]
        for a, b in pairwise(frames)
    ]
    field = torch.from_numpy(np.stack(fields)).mean(dim=0).permute(2, 0, 1)  # [xy, h, w]
    length, angle = field.norm(dim=0), torch.atan2(field[1], field[0])
    bins = ((angle / (2 * torch.pi) * 8).round().long() % 8).flatten()
    histogram = torch.zeros(8).index_add_(0, bins, length.flatten()) / length.numel()
    return torch.cat([F.adaptive_avg_pool2d(field, 3).flatten(), histogram])


def _recalled(q: Tensor, g: Tensor, yq: Tensor, yg: Tensor, k: int) -> Bool[Tensor, "q"]:
    """Query by query what `recall_at_k` averages."""
    nearest = (F.normalize(q, dim=1) @ F.normalize(g, dim=1).T).topk(k, dim=1).indices
    hit = (yg[nearest] == yq[:, None]).any(dim=1)
    assert abs(float(hit.float().mean()) - recall_at_k(q, g, yq, yg, (k,))[k]) < 1e-6
    return hit


def _labelled(
    recipe: Recipe, videos: VideoSet, rows: Tensor, view: str, seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of up to 32 clips, a random window each; every clip once before any comes again."""
    generator = torch.Generator().manual_seed(seed + 2)
    order: list[int] = []
    for _ in range(recipe.tuned_steps):
        while len(order) < min(32, len(rows)):
            order += torch.randperm(len(rows), generator=generator).tolist()
        now, order = order[:32], order[32:]
        index = rows[now]
        start = torch.randint(STARTS[-1] + 1, (len(now),), generator=generator).to(device)
        clips = windows(videos.grey[index].to(device), start)
        yield standardise(seen_as(clips, view, generator)), videos.label[index].to(device)


def _tested(
    model: MoSINet, queries: Split, view: str, seed: int
) -> dict[str, Float[Tensor, "scenes"]]:
    videos, rows = queries
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for some in rows.split(CHUNK):
        clips = seen_as(all_windows(videos.grey[some].to(device)), view, generator)
        parts.append(predict(model, standardise(clips), 64))
    logits = torch.cat(parts).unflatten(0, (-1, len(STARTS))).mean(dim=1).cpu()
    truth, scene = videos.label[rows], videos.scene[rows]
    paired = truth < 2 * (min(int(truth.max()) + 1, 10) // 2)  # the two shakes are no pair
    both = logits[paired].unflatten(1, (-1, 2))[torch.arange(int(paired.sum())), truth[paired] // 2]
    return {
        "acc": by_scene(logits.argmax(dim=1) == truth, scene),
        "pair": by_scene(both.argmax(dim=1) == truth[paired] % 2, scene[paired]),
    }
