"""The two experiments: the matcher on one set of clips, and all arms of the networks for a seed."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from toolkit.scenes.lcm.clips import TwinClips, load_twins
from toolkit.scenes.lcm.matcher import Read, Scores, enlarge, score, training_free_propagate
from toolkit.scenes.lcm.metrics import decay_bins
from toolkit.scenes.lcm.network import LCM
from toolkit.scenes.lcm.recipe import MatcherRecipe, Recipe
from toolkit.scenes.lcm.training import train_arm, train_base

JUMP = 5
"""First frame after a teleported target has jumped."""
HIDDEN, BACK = 0.7, 0.8
"""A target counts as occluded below the first share of its first area, as back above the second."""
MEMORY_CLIPS = 8
"""Long clips on which memory intervals are compared."""


def run_matcher(recipe: MatcherRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """All reads of a recipe on its clips. The seed changes nothing.

    Returns:
        `"ARM/METRIC"`, a mean over clips, and `"ARM/METRIC@CLIP"`: `j`, `jf`, `leak` with the area
        of the first mask; `raw_j`, `raw_jf`, `raw_leak`, `raw_empty` above ½; `after_j`,
        `before_j` of frames from the jump on and before it. `"ARM/frame_j@FRAME"`: `j` of each.
    """
    clips = load_twins(recipe.clips).to(device)
    clips = clips.select(slice(recipe.count or None))
    reads = [_read(arm) for arm in recipe.arms]
    soft = training_free_propagate(clips.frames, clips.mask[:, 0], reads, recipe.every or None)
    results: dict[str, float] = {}
    for arm, masks in zip(recipe.arms, soft, strict=True):
        large = enlarge(masks, (clips.frames.shape[3], clips.frames.shape[4]))
        results |= _flat(arm, "", clip_scores(large, clips))
        over_time = score(large, clips).j[:, 1:].nanmean(dim=0).tolist()
        results |= {f"{arm}/frame_j@{t}": j for t, j in enumerate(over_time, start=1)}
    return results


def run_study(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train the base and every arm, score them.

    Returns:
        `"ARM/SET_METRIC"` and `"ARM/SET_METRIC@CLIP"` with the metrics of `run_matcher`; on long
        clips also `decay` (J of the first quarter minus the last) and `back_j` (J after an
        occlusion, clips with one). `"ARM/memory_N@FRAME"`: J of each frame with every N-th frame
        in memory. `"pgm/position_share"`, see `PositionGuidance`.
    """
    base = train_base(recipe, seed, device)
    results: dict[str, float] = {}
    for arm in recipe.arms:
        model = train_arm(base, recipe, arm, seed).eval()
        for name in recipe.sets:
            results |= _flat(arm, f"{name}_", score_set(model, recipe, name, device))
        if arm in recipe.decoded:
            found = score_set(model, recipe, "long", device, decode=True)
            results |= _flat(arm, "decoded_", found)
        for every in recipe.intervals:
            j = memory_curve(model, every, device)
            results |= {f"{arm}/memory_{every}@{t}": float(x) for t, x in enumerate(j, start=1)}
        if model.pgm is not None:
            frames = load_twins("tune").frames[:, 0].to(device)
            r = model.query_encoder(frames).grid
            results[f"{arm}/position_share"] = model.pgm.position_share(r)
    return results


@torch.no_grad()
def score_set(
    model: LCM, recipe: Recipe, name: str, device: torch.device, decode: bool = False
) -> dict[str, Float[Tensor, "clips"]]:
    """Scores of each clip of a set."""
    clips = load_twins(name, decode).to(device)
    probs = model.propagate(clips.frames, clips.mask[:, :1].float(), recipe.every)
    return clip_scores(probs[:, :, 1], clips)


def clip_scores(
    soft: Float[Tensor, "clips time height width"], clips: TwinClips
) -> dict[str, Float[Tensor, "clips"]]:
    """All scores of soft masks, one value a clip."""
    matched, raw = score(soft, clips), score(soft, clips, matched=False)
    found = {name: matched.mean(name) for name in ("j", "jf", "leak")}
    found |= {f"raw_{name}": raw.mean(name) for name in ("j", "jf", "leak", "empty")}
    if soft.shape[1] > 8:
        found["decay"] = decay(raw)
        found["back_j"] = after_occlusion(raw, clips.mask)
    else:
        found["before_j"] = matched.mean("j", slice(0, JUMP))
        found["after_j"] = matched.mean("j", slice(JUMP, None))
    return found


def decay(scores: Scores) -> Float[Tensor, "clips"]:
    """J of the first quarter of the frames after the first, minus that of the last quarter."""
    first, *_, last = decay_bins(scores.j.shape[-1] - 1)
    j = scores.j[..., 1:]
    return j[..., first].nanmean(dim=-1) - j[..., last].nanmean(dim=-1)


def after_occlusion(
    scores: Scores, mask: Bool[Tensor, "clips time height width"]
) -> Float[Tensor, "clips"]:
    """J of frames in which the target is back after an occlusion; NaN for clips without one."""
    area = mask.flatten(2).sum(dim=2)
    share = area / area[:, :1]
    back = ((share < HIDDEN).cumsum(dim=1) > 0) & (share >= BACK)
    return torch.where(back, scores.j, torch.nan).nanmean(dim=1)


@torch.no_grad()
def memory_curve(model: LCM, every: int, device: torch.device) -> Float[Tensor, "frames"]:
    """Mean J of each frame of a few long clips, with every n-th frame in memory (0: none)."""
    clips = load_twins("long").to(device)
    few = clips.select(slice(MEMORY_CLIPS))
    probs = model.propagate(few.frames, few.mask[:, :1].float(), every or None)
    return score(probs[:, :, 1], few).j[:, 1:].nanmean(dim=0)


def _read(arm: str) -> Read:
    """`position_20` and the like."""
    kind, _, strength = arm.partition("_")
    return Read(kind, float(strength or 0))


def _flat(arm: str, prefix: str, scores: dict[str, Tensor]) -> dict[str, float]:
    flat = {}
    for name, values in scores.items():
        flat[f"{arm}/{prefix}{name}"] = float(values.nanmean())
        known = enumerate(values.tolist())
        flat |= {f"{arm}/{prefix}{name}@{clip}": value for clip, value in known}
    return flat
