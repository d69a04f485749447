"""Train one base network, then several arms from it, all for the same number of steps."""

from collections.abc import Iterator
from copy import deepcopy

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.learn.loop import fit, warmup_cosine
from toolkit.scenes.backbone import pretrained_backbone
from toolkit.scenes.lcm.clips import TwinClips, load_twins, training_clips
from toolkit.scenes.lcm.network import EPSILON, LCM, small_encoders
from toolkit.scenes.lcm.recipe import Recipe

FIT = 10.0


def mask_loss(
    probs: Float[Tensor, "batch time 2 height width"], mask: Bool[Tensor, "batch time height width"]
) -> Float[Tensor, ""]:
    """`overlap_loss` of the predicted frames (the first one was given)."""
    return overlap_loss(probs[:, 1:, 1], mask[:, 1:].float())


def matching_loss(
    carried: Float[Tensor, "batch later rows columns"],
    mask: Bool[Tensor, "batch time height width"],
) -> Float[Tensor, ""]:
    """`overlap_loss` of the masks that the global read carries from the memory; ours.

    Without it, a few hundred steps teach a small network to segment whatever looks like an object:
    the decoder learns that long before the keys learn to match.
    """
    rows, columns = carried.shape[2:]
    cells = F.adaptive_avg_pool2d(mask[:, 1:].float(), (rows, columns))
    return overlap_loss(carried.clamp(EPSILON, 1 - EPSILON), cells)


def overlap_loss(
    p: Float[Tensor, "batch later rows columns"], y: Float[Tensor, "batch later rows columns"]
) -> Float[Tensor, ""]:
    """4 · binary cross-entropy + soft Dice."""
    overlap, total = (x.flatten(2).sum(dim=2) for x in (p * y, p + y))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    return 4 * F.binary_cross_entropy(p, y) + dice.mean()


def train(
    model: LCM,
    recipe: Recipe,
    clips: TwinClips,
    steps: int,
    lr: float,
    generator: torch.Generator,
) -> Float[Tensor, " steps"]:
    """Train on random short clips; predicted masks are fed back; the loss of each step."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=recipe.weight_decay)
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, recipe.warmup))
    batches = _batches(clips.to(device), recipe, steps, generator)
    return fit(model, batches, _loss, optimizer, schedule=schedule, clip=recipe.clip)


def train_base(recipe: Recipe, seed: int, device: torch.device) -> LCM:
    """The global read alone, on clips without twins, which it could not tell apart anyway."""
    torch.manual_seed(seed)
    encoders = small_encoders(pretrained_backbone() if recipe.backbone else None)
    model = LCM(
        ("grm",),
        key_dim=recipe.key_dim,
        value_dim=recipe.value_dim,
        encoders=encoders,
        width=recipe.width,
    ).to(device)
    clips = load_twins("train").select(load_twins("train").distractors == 0)
    sharpen(model, clips.frames[:32, 0].to(device))
    train(model, recipe, clips, recipe.base_steps, recipe.lr, _rng(seed, 0))
    return model


@torch.no_grad()
def sharpen(model: LCM, frames: Float[Tensor, "batch 3 height width"]) -> None:
    """Scale the keys so that a cell of these frames fits itself with a logit of about `FIT`; ours.

    With default weights all logits are near 0, and the first reads are means of everything.
    """
    keys = model.query_key(model.query_encoder(frames).grid)
    centred = keys - keys.mean(dim=(0, 2, 3), keepdim=True)
    fit_now = centred.square().sum(dim=1).mean() * keys.shape[1] ** -0.5
    for conv in (model.query_key, model.memory_key):
        conv.weight *= (FIT / fit_now).sqrt()


def train_arm(base: LCM, recipe: Recipe, arm: str, seed: int) -> LCM:
    """A copy of the base with the arm's modules, trained further on the same clips as all arms."""
    torch.manual_seed(100_000 + seed)
    device = next(base.parameters()).device
    modules, options = ARMS[arm]
    model = deepcopy(base).extend(modules, **options).to(device)
    train(model, recipe, load_twins("train"), recipe.arm_steps, recipe.arm_lr, _rng(seed, 1))
    return model


ARMS: dict[str, tuple[tuple[str, ...], dict]] = {
    "grm": (("grm",), {}),
    "pgm": (("grm", "pgm"), {}),
    "orm": (("grm", "orm"), {}),
    "lcm": (("grm", "pgm", "orm"), {}),
    "pgm_blind": (("grm", "pgm"), {"position": False}),
    "pgm_gate": (("grm", "pgm"), {"fuse": "gate"}),
    "pgm_concat": (("grm", "pgm"), {"fuse": "concat"}),
    "orm_pool": (("grm", "orm"), {"orm": "pool"}),
}


def _batches(
    clips: TwinClips, recipe: Recipe, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """The largest skip grows from 0 to the recipe's, in equal parts of the run."""
    for step in range(steps):
        skip = step * (recipe.max_skip + 1) // steps
        yield training_clips(
            clips, recipe.batch, recipe.frames, skip, generator, strangers=recipe.strangers
        )


def _loss(model: nn.Module, batch: tuple) -> Tensor:
    frames, mask = batch
    assert isinstance(model, LCM)
    carried: list[Tensor] = []
    probs = model.propagate(frames, mask[:, :1].float(), carried=carried)
    return mask_loss(probs, mask) + matching_loss(torch.stack(carried, dim=1), mask)


def _rng(seed: int, stage: int) -> torch.Generator:
    return torch.Generator().manual_seed(10 * seed + stage)
