"""What frozen features know of actions and of scenes, a value a test scene."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from sklearn.linear_model import RidgeClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.learn.loop import predict
from toolkit.learn.probes import linear_probe
from toolkit.representation.context_motion.recipe import Recipe
from toolkit.representation.context_motion.transform import MotionTransform
from toolkit.representation.context_motion.videos import (
    MotionVideos,
    clip_frames,
    evaluation_starts,
    load_motion_videos,
)
from toolkit.representation.mosi.clips import STARTS, frozen, shuffled
from toolkit.representation.mosi.network import standardise

PAIRS = {"x": 0, "y": 2, "orbit": 4, "scale": 6}
"""First class of each time-reversal pair; the second is the next one."""
CORRELATION = 0.9
"""Share of a place's training clips that show the class bound to it, in `bias_scores`."""
Split = tuple[MotionVideos, Tensor]
Scores = dict[str, Float[Tensor, "units"]]


def splits(recipe: Recipe) -> tuple[Split, Split]:
    """Gallery and queries: training and test videos, or two parts of the training scenes."""
    train = load_motion_videos(recipe.level, "train", recipe.size)
    if recipe.judge == "test":
        test = load_motion_videos(recipe.level, "test", recipe.size)
        return (train, torch.arange(len(train.label))), (test, torch.arange(len(test.label)))
    last = int(train.scene.max()) + 1
    held = train.scene >= last - max(1, last // 5)
    return (train, (~held).nonzero()[:, 0]), (train, held.nonzero()[:, 0])


def four_windows(split: Split, rows: Tensor) -> Float[Tensor, "n4 1 8 40 40"]:
    """The evaluation clips of some videos, whole and unmirrored."""
    grey = split[0].grey[rows].repeat_interleave(len(STARTS), dim=0)
    frames = clip_frames(grey, evaluation_starts(len(rows)))
    return MotionTransform().pictures(frames, MotionTransform.whole(len(frames)))


def clip_features(
    model: nn.Module, split: Split, view: str = "real", seed: int = 0
) -> Float[Tensor, "n k"]:
    """Features of each video, the mean of its four windows.

    Args:
        model: from standardised clips to rows, in evaluation mode.
        split: videos and the rows to take.
        view: `"real"`, `"shuffled"` (each window in an order of its own) or `"frame"` (its middle).
        seed: of the shuffles.

    Raises:
        ValueError: for another view.
    """
    generator = torch.Generator().manual_seed(seed)
    looks: dict[str, Callable[[Tensor], Tensor]] = {
        "real": lambda clips: clips,
        "shuffled": lambda clips: shuffled(clips, generator),
        "frame": frozen,
    }
    if view not in looks:
        raise ValueError(f"view must be {', '.join(looks)}; got {view!r}")
    device = next(model.parameters()).device
    found = []
    for rows in split[1].split(64):
        clips = looks[view](four_windows(split, rows)).to(device)
        found.append(predict(model, standardise(clips), 256).cpu())
    return torch.cat(found).unflatten(0, (-1, len(STARTS))).mean(dim=1)


def vector_histogram(split: Split, median: bool = True) -> Float[Tensor, "n k"]:
    """Features that nobody trained: a histogram of motion vectors, of each video's four windows.

    Directions in eight bins weighted by speed, and the mean vector on a 3×3 grid.

    Args:
        split: videos and the rows to take.
        median: whether to take the median vector of each frame, the camera, away first.
    """
    videos, rows = split
    found = []
    for start in STARTS:
        mv = videos.mv[rows, start : start + 15]
        if median:
            mv = mv - mv.flatten(3).median(dim=3).values[..., None, None]
        x, y = mv.unbind(dim=2)
        bins = ((torch.atan2(y, x) / (2 * torch.pi) * 8).round().long() % 8).flatten(1)
        speed = mv.norm(dim=2).flatten(1)
        histogram = torch.zeros(len(rows), 8).scatter_add_(1, bins, speed) / speed.shape[1]
        grid = F.adaptive_avg_pool2d(mv.mean(dim=1), 3).flatten(1)
        found.append(torch.cat([histogram, grid], dim=1))
    return torch.stack(found).mean(dim=0)


def thumbnails(split: Split) -> Float[Tensor, "n 100"]:
    """Features that nobody trained: 10×10 pixels of the windows' middles."""
    found = []
    for rows in split[1].split(256):
        middle = frozen(four_windows(split, rows))[:, :, 0]
        found.append(F.adaptive_avg_pool2d(middle, 10).flatten(1))
    return torch.cat(found).unflatten(0, (-1, len(STARTS))).mean(dim=1)


def action_scores(
    features: tuple[Float[Tensor, "n k"], Float[Tensor, "m k"]], gallery: Split, queries: Split
) -> Scores:
    """Ridge probe over the classes, retrieval from the gallery, and pairs: a value a query scene.

    `probe`: 8-way accuracy; `r1`, `r5`: a video of the same class among the nearest by cosine;
    `pair`: the mean over time-reversal pairs of a ridge probe that only ever sees that pair
    (chance ½), `pair_x` … each pair. Features are z-scored on the gallery.
    """
    known, asked = _z_scored(*features)
    y, truth = (split[0].label[split[1]] for split in (gallery, queries))
    scene = queries[0].scene[queries[1]]
    scores = {"probe": by_scene(linear_probe(known, y, asked, "ridge") == truth, scene)}
    near = _similarity(asked, known).topk(5, dim=1).indices
    hit = (y[near] == truth[:, None]).cumsum(dim=1) > 0
    scores |= {"r1": by_scene(hit[:, 0], scene), "r5": by_scene(hit[:, 4], scene)}
    for name, first in PAIRS.items():
        train, test = (labels // 2 == first // 2 for labels in (y, truth))
        guess = linear_probe(known[train], y[train], asked[test], "ridge")
        scores[f"pair_{name}"] = by_scene(guess == truth[test], scene[test])
    pairs = torch.stack([scores[f"pair_{name}"] for name in PAIRS])
    return scores | {"pair": pairs.mean(dim=0)}


def scene_scores(features: Float[Tensor, "m k"], queries: Split) -> Scores:
    """Retrieval of the place among queries of another scene and another class, a value a scene.

    `place_r1`, and `place_chance`: the share of such videos that show the place. Scenes whose place
    no other scene shows are left out.

    Raises:
        ValueError: if that is all of them.
    """
    videos, rows = queries
    asked, _ = _z_scored(features, features)
    place, scene, label = videos.place[rows], videos.scene[rows], videos.label[rows]
    allowed = (scene[:, None] != scene) & (label[:, None] != label)
    same = (place[:, None] == place) & allowed
    findable = same.any(dim=1)
    if not findable.any():
        raise ValueError("some place needs two scenes or more among the queries")
    nearest = _similarity(asked, asked).masked_fill(~allowed, -2).argmax(dim=1)
    hit = (place[nearest] == place)[findable]
    chance = (same.sum(dim=1) / allowed.sum(dim=1))[findable]
    where = scene[findable]
    return {"place_r1": by_scene(hit, where), "place_chance": by_scene(chance, where)}


def bias_scores(features: Float[Tensor, "n k"], gallery: Split) -> Scores:
    """How much a probe falls for the background, a value a held-out scene.

    Each place is bound to a class. A ridge probe is fitted on most scenes, once with all clips
    weighing the same, and once so that 0.9 of a place's weight lies on the class bound to it. Both
    are tested on the other scenes of the same places, where every class is shown equally often.

    `fair`: accuracy of the first; `drop`: how much lower the second is; `lured`: by how much more
    often the second names the class bound to the place, where that is wrong.
    """
    videos, rows = gallery
    label, place, scene = (part[rows] for part in (videos.label, videos.place, videos.scene))
    bound = place.unique(return_inverse=True)[1] % (int(label.max()) + 1)
    held = _last_scene_of_each_place(place, scene)
    x, _ = _z_scored(features, features)
    classes = int(label.max()) + 1
    share = torch.where(label == bound, CORRELATION, (1 - CORRELATION) / (classes - 1))
    guesses = []
    for weight in (torch.ones(len(label)), classes * share):
        probe = RidgeClassifier(alpha=100.0)
        probe.fit(x[~held].numpy(), label[~held].numpy(), sample_weight=weight[~held].numpy())
        guesses.append(torch.from_numpy(np.asarray(probe.predict(x[held].numpy()))))
    truth, tied, where = label[held], bound[held], scene[held]
    fair, biased = (by_scene(guess == truth, where) for guess in guesses)
    wrong = truth != tied
    lured = [by_scene((guess == tied)[wrong], where[wrong]) for guess in guesses]
    return {"fair": fair, "drop": fair - biased, "lured": lured[1] - lured[0]}


@torch.no_grad()
def label_scores(model: nn.Module, queries: Split) -> Float[Tensor, "scenes"]:
    """Accuracy of a network that names classes, logits averaged over four windows."""
    device = next(model.parameters()).device
    logits = []
    for rows in queries[1].split(64):
        clips = standardise(four_windows(queries, rows).to(device))
        logits.append(predict(model, clips, 256).unflatten(0, (-1, len(STARTS))).mean(dim=1))
    right = torch.cat(logits).argmax(dim=1).cpu() == queries[0].label[queries[1]]
    return by_scene(right, queries[0].scene[queries[1]])


def by_scene(values: Tensor, scene: Int64[Tensor, "n"]) -> Float[Tensor, "scenes"]:
    """The mean over each scene's videos, scenes in rising order."""
    _, place = scene.unique(return_inverse=True)
    total = torch.zeros(int(place.max()) + 1).index_add_(0, place, values.float())
    return total / torch.bincount(place)


def _last_scene_of_each_place(place: Tensor, scene: Tensor) -> Bool[Tensor, "n"]:
    held = torch.zeros(len(place), dtype=torch.bool)
    for one in place.unique():
        here = place == one
        held |= here & (scene == scene[here].max())
    return held


def _z_scored(known: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = known.mean(dim=0), known.std(dim=0) + 1e-6
    return (known - mean) / deviation, (asked - mean) / deviation


def _similarity(a: Float[Tensor, "n k"], b: Float[Tensor, "m k"]) -> Float[Tensor, "n m"]:
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
