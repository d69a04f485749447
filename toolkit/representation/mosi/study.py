"""One seed, all arms: pre-train, then measure the pretext, the looks, the features, fine-tuning."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from toolkit.learn.loop import predict
from toolkit.representation.mosi.clips import (
    FRAMES,
    SIDE,
    all_windows,
    frozen,
    load_videos,
    shuffled,
)
from toolkit.representation.mosi.generator import mirror, pseudo_motion, static_mask
from toolkit.representation.mosi.network import MoSINet, cam, standardise
from toolkit.representation.mosi.pointing import difference_map, edge_map, pointing_game
from toolkit.representation.mosi.pretext import label_pool, pretrain_mosi, random_squares
from toolkit.representation.mosi.probes import (
    CHUNK,
    by_scene,
    clip_features,
    fine_tune,
    frozen_scores,
    hand_crafted,
    splits,
)
from toolkit.representation.mosi.recipe import Recipe

Scores = dict[str, Float[Tensor, "units"]]
NINE = ("random", "masked", "unmasked", "flip_wrong", "stills", "flicker", "subpixel", "shuffled")
"""Arms whose head names the nine classes."""
DRAWS = 2
"""Sets of nine clips made from one scene's still, to measure the pretext."""
HAND_CRAFTED = ("middle", "first", "last", "difference", "flow")


def run_study(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """All arms of a recipe for one seed.

    Returns:
        `"ARM/METRIC"`, a mean, and `"ARM/METRIC@UNIT"`, its value for each test scene. Metrics:
        those of `pretext_scores`; `hit_LEVEL` and `change_hit_LEVEL`, see `look_scores`;
        `probe_LEVEL`, `r1_LEVEL`, `r5_LEVEL`, `pair_LEVEL`, `pair_x_LEVEL` … of frozen features,
        `shuffled_pair_LEVEL` and `frame_probe_LEVEL` … of the same network on shuffled windows and
        on their middle; `tuned_LEVEL_LABELS` and `tuned_pair_LEVEL_LABELS` after fine-tuning.
        Without units: `probe` and `tuned`, means of the accuracies that rates are chosen by.
    """
    results: dict[str, float] = {}
    for arm in recipe.arms:
        model = pretrain_mosi(recipe, arm, seed, device)
        scores: Scores = {}
        if arm in NINE and recipe.judge == "test":
            scores |= pretext_scores(recipe, model, arm, seed)
        for level in recipe.look_levels:
            scores |= look_scores(recipe, model, level)
        for level in recipe.levels:
            scores |= feature_scores(recipe, model, arm, level, seed)
        results |= flat(arm, scores)
        if recipe.levels:
            over_levels = [results[f"{arm}/probe_{level}"] for level in recipe.levels]
            results[f"{arm}/probe"] = sum(over_levels) / len(over_levels)
    for arm in recipe.tuned_arms:
        scores = {}
        for level in recipe.tuned_levels:
            for labels in recipe.labels:
                found = fine_tune(recipe, arm, level, labels, seed, device)
                scores[f"tuned_{level}_{labels}"] = found["acc"]
                scores[f"tuned_pair_{level}_{labels}"] = found["pair"]
        results |= flat(arm, scores)
        accuracies = [value.mean() for name, value in scores.items() if "pair" not in name]
        if accuracies:
            results[f"{arm}/tuned"] = float(torch.stack(accuracies).double().mean())
    return results


def run_references(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """What needs no training: hand-crafted features and maps. The seed changes nothing.

    Returns:
        As `run_study`, for `middle first last difference flow` (features), `difference edges`
        (`hit_LEVEL`) and `area` (`hit_LEVEL`: the share of the frame that counts as a hit).
    """
    results: dict[str, float] = {}
    for level in recipe.levels:
        gallery, queries = splits(recipe, level)
        for name in HAND_CRAFTED:
            features = hand_crafted(name, gallery), hand_crafted(name, queries)
            scores = frozen_scores(features, gallery, queries)
            results |= flat(name, {f"{key}_{level}": value for key, value in scores.items()})
    for level in recipe.look_levels:
        videos = load_videos(level, "test", recipe.size)
        clips = standardise(all_windows(videos.grey))
        masks = videos.seen.flatten(0, 1)
        for name, make in (("difference", difference_map), ("edges", edge_map)):
            hits = pointing_game(make(clips, (112, 112)), masks)
            results |= flat(name, {f"hit_{level}": _windows_by_scene(hits, videos.scene)})
        results[f"area/hit_{level}"] = float(masks.float().mean())
    return results


def pretext_scores(recipe: Recipe, model: MoSINet, arm: str, seed: int) -> Scores:
    """Accuracy over nine classes on stills of test scenes, one value a scene.

    `real`; `still` (one frame repeated) and `shuffled`; of the shuffled, moving clips `axis` (the
    right axis) and `sign` (the right direction among the two of its speed), which is also given for
    real ones by axis, `sign_x` and `sign_y`; `flipped`: mirrored with probability ½, labels kept;
    `noise` and `constant`: sources without edges to hold on to. `resampled`: clips sampled in the
    other way than in training, between pixels or at whole ones.
    """
    device = next(model.parameters()).device
    pool = label_pool(recipe, arm)
    generator = torch.Generator().manual_seed(70_000 + seed)
    videos = load_videos("easy", "test", recipe.size)
    scene, first = videos.scene.unique(), len(videos.label) // int(videos.scene.max() + 1)
    stills = videos.stills[::first].repeat_interleave(DRAWS, dim=0)
    time = torch.randint(stills.shape[1], (len(stills),), generator=generator)
    squares = random_squares_of_each(stills[torch.arange(len(stills)), time], recipe, generator)
    unit = scene.repeat_interleave(DRAWS * pool.n)

    def clips_of(images: Tensor, subpixel: bool) -> tuple[Tensor, Tensor]:
        clips, labels = pseudo_motion(
            images.to(device), pool.factors, SIDE, FRAMES, generator, subpixel=subpixel
        )
        if arm != "unmasked":
            clips = static_mask(clips, recipe.ratio, generator=generator)
        return clips, labels

    clips, labels = clips_of(squares, arm == "subpixel")
    moving = labels < pool.n - 1
    across = labels < 2 * recipe.K
    noise, plain = torch.rand(squares.shape, generator=generator), torch.full_like(squares, 0.5)
    mixed, _ = mirror(clips, labels, pool, generator=generator, swap=False)
    logits = {
        "real": predict(model, standardise(clips), 64),
        "still": predict(model, standardise(clips[:, :, :1].expand_as(clips)), 64),
        "shuffled": predict(model, standardise(shuffled(clips, generator)), 64),
        "flipped": predict(model, standardise(mixed), 64),
    }
    scores = {name: by_scene((z.argmax(1) == labels).cpu(), unit) for name, z in logits.items()}
    signed = {
        name: sign_hits(logits[name], labels, pool.hflip(pool.vflip(labels)))
        for name in ("real", "shuffled")
    }
    guess = logits["shuffled"].argmax(1)
    on_axis = (guess < pool.n - 1) & ((guess < 2 * recipe.K) == across)
    for name, hits, where in (
        ("shuffled_axis", on_axis, moving),
        ("shuffled_sign", signed["shuffled"], moving),
        ("sign_x", signed["real"], across),
        ("sign_y", signed["real"], moving & ~across),
    ):
        scores[name] = by_scene(hits[where].cpu(), unit[where.cpu()])
    for name, images, subpixel in (
        ("noise", noise, arm == "subpixel"),
        ("constant", plain, arm == "subpixel"),
        ("resampled", squares, arm != "subpixel"),
    ):
        some, truth = clips_of(images, subpixel)
        right = predict(model, standardise(some), 64).argmax(1) == truth
        scores[name] = by_scene(right.cpu(), unit)
    return scores


def sign_hits(
    logits: Float[Tensor, "n classes"], labels: Int64[Tensor, "n"], opposite: Int64[Tensor, "n"]
) -> Bool[Tensor, "n"]:
    """Whether the class scores above the one of opposite direction and equal speed."""
    rows = torch.arange(len(labels), device=labels.device)
    return logits[rows, labels] > logits[rows, opposite]


def random_squares_of_each(
    stills: Tensor, recipe: Recipe, generator: torch.Generator
) -> Float[Tensor, "n 1 s s"]:
    """One random square of each still."""
    parts = [random_squares(still[None], 1, recipe.source, generator) for still in stills]
    return torch.cat(parts)


def look_scores(recipe: Recipe, model: MoSINet, level: str) -> Scores:
    """Hits of the pointing game on test windows, one value a scene.

    `hit`: the peak of the activation map. `change_hit`: the peak of the difference between the map
    of the clip and that of its frozen middle, which takes away what a still picture excites.
    """
    videos = load_videos(level, "test", recipe.size)
    device = next(model.parameters()).device
    hits: dict[str, list[Tensor]] = {"hit": [], "change_hit": []}
    for rows in torch.arange(len(videos.label)).split(CHUNK):
        clips = standardise(all_windows(videos.grey[rows].to(device)))
        moving, still = (cam(model, x, (112, 112)).cpu() for x in (clips, frozen(clips)))
        masks = videos.seen[rows].flatten(0, 1)
        hits["hit"].append(pointing_game(moving, masks))
        hits["change_hit"].append(pointing_game((moving - still).abs(), masks))
    return {
        f"{name}_{level}": _windows_by_scene(torch.cat(parts), videos.scene)
        for name, parts in hits.items()
    }


def feature_scores(recipe: Recipe, model: MoSINet, arm: str, level: str, seed: int) -> Scores:
    """Frozen features of clips; those of `masked` also without the order of frames."""
    gallery, queries = splits(recipe, level)
    views = {"real": ""}
    if arm == "masked" and recipe.judge == "test":
        views |= {"shuffled": "shuffled_", "frame": "frame_"}
    scores: Scores = {}
    for view, prefix in views.items():
        features = (
            clip_features(model, gallery, view, seed),
            clip_features(model, queries, view, seed + 1),
        )
        found = frozen_scores(features, gallery, queries)
        scores |= {f"{prefix}{name}_{level}": value for name, value in found.items()}
    return scores


def flat(arm: str, scores: Scores) -> dict[str, float]:
    """`"ARM/METRIC"` (the mean over units) and `"ARM/METRIC@UNIT"`."""
    results = {f"{arm}/{name}": float(values.double().mean()) for name, values in scores.items()}
    return results | {
        f"{arm}/{name}@{unit}": float(value)
        for name, values in scores.items()
        for unit, value in enumerate(values)
    }


def tuning_grid(recipe: Recipe, arm: str, rates: tuple[float, ...]) -> list[Recipe]:
    """Recipes that pre-train one arm at several rates and are judged on validation scenes."""
    alone = replace(
        recipe, arms=(arm,), seeds=1, look_levels=(), tuned_arms=(), labels=(), judge="validation"
    )
    return [replace(alone, lr=rate, rates=()) for rate in rates]


def fine_tuning_grid(
    recipe: Recipe, arm: str, rates: tuple[float, ...], labels: int
) -> list[Recipe]:
    """Recipes that fine-tune one arm at several rates and are judged on validation scenes."""
    alone = replace(
        recipe,
        arms=(),
        seeds=1,
        labels=(labels,),
        tuned_arms=(arm,),
        judge="validation",
    )
    return [replace(alone, tuned_lr=rate, tuned_rates=()) for rate in rates]


def _windows_by_scene(hits: Bool[Tensor, "windows"], scene: Int64[Tensor, "clips"]) -> Tensor:
    return by_scene(hits, scene.repeat_interleave(len(hits) // len(scene)))
