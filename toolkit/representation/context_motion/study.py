"""One seed, all arms: pre-train, then ask for actions, places, the future, and bias."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.representation.context_motion.pretext import motion_scores, trained
from toolkit.representation.context_motion.probes import (
    Scores,
    action_scores,
    bias_scores,
    clip_features,
    label_scores,
    scene_scores,
    splits,
    thumbnails,
    vector_histogram,
)
from toolkit.representation.context_motion.recipe import TASKS, Recipe

HAND_CRAFTED = ("vectors", "vectors_camera", "middle")


def run_study(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """All arms of a recipe for one seed.

    Returns:
        `"ARM/METRIC"`, a mean, and `"ARM/METRIC@UNIT"`, its value for each test scene (for each
        batch where motion is predicted, for each held-out scene where bias is measured). Metrics:
        those of `action_scores`, `scene_scores`, `bias_scores` and `motion_scores`; `shuffled_pair`
        on windows whose frames are shuffled, for `motion`; `accuracy` of the supervised arms.
    """
    gallery, queries = splits(recipe)
    results: dict[str, float] = {}
    for arm in recipe.arms:
        model = trained(recipe, arm, seed, device)
        known, asked = (clip_features(model.net, split) for split in (gallery, queries))
        scores = action_scores((known, asked), gallery, queries)
        if recipe.judge == "test":
            scores |= scene_scores(asked, queries) | bias_scores(known, gallery)
        else:  # too few validation scenes share a place: those of the gallery do
            scores |= scene_scores(known, gallery)
        if arm == "motion" and recipe.judge == "test":
            mixed = [clip_features(model.net, split, "shuffled", seed) for split in splits(recipe)]
            found = action_scores((mixed[0], mixed[1]), gallery, queries)
            scores["shuffled_pair"] = found["pair"]
        if "motion" in TASKS[arm]:
            scores |= motion_scores(recipe, model, *queries, seed)
        if arm.startswith("supervised"):
            scores["accuracy"] = label_scores(model, queries)
        results |= flat(arm, scores)
    return results


def run_references(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """What needs no training; the seed changes nothing.

    Returns:
        As `run_study`, for `vectors` (a histogram of motion vectors without the camera),
        `vectors_camera` (with it) and `middle` (a thumbnail of the windows' middles).
    """
    gallery, queries = splits(recipe)
    makers = {
        "vectors": vector_histogram,
        "vectors_camera": lambda split: vector_histogram(split, median=False),
        "middle": thumbnails,
    }
    results: dict[str, float] = {}
    for name in HAND_CRAFTED:
        known, asked = (makers[name](split) for split in (gallery, queries))
        scores = action_scores((known, asked), gallery, queries)
        scores |= scene_scores(asked, queries) | bias_scores(known, gallery)
        results |= flat(name, scores)
    return results


def flat(arm: str, scores: Scores) -> dict[str, float]:
    """`"ARM/METRIC"` (the mean over units) and `"ARM/METRIC@UNIT"`."""
    results = {f"{arm}/{name}": _mean(values) for name, values in scores.items()}
    return results | {
        f"{arm}/{name}@{unit}": float(value)
        for name, values in scores.items()
        for unit, value in enumerate(values)
    }


def tuning_grid(recipe: Recipe, arm: str, rates: tuple[float, ...]) -> list[Recipe]:
    """Recipes that train one arm at several rates and are judged on validation scenes."""
    alone = replace(recipe, arms=(arm,), seeds=1, judge="validation", rates=())
    return [replace(alone, lr=rate) for rate in rates]


def _mean(values: Float[Tensor, "units"]) -> float:
    return float(values.double().mean())
