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
from toolkit.scenes.lcm.network import LCM, small_encoders
from toolkit.scenes.lcm.recipe import Recipe


def mask_loss(
    probs: Float[Tensor, "batch time 2 height width"], mask: Bool[Tensor, "batch time height width"]
) -> Float[Tensor, ""]:
    """4 · binary cross-entropy + soft Dice of the predicted frames (the first one was given)."""
    p, y = probs[:, 1:, 1], mask[:, 1:].float()
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
    train(model, recipe, clips, recipe.base_steps, recipe.lr, _rng(seed, 0))
    return model


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
    return mask_loss(model(frames, mask[:, :1].float()), mask)


def _rng(seed: int, stage: int) -> torch.Generator:
    return torch.Generator().manual_seed(10 * seed + stage)
