"""AugDrop, MixLoss and WeMix: one loss, one schedule of two stages, one step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

PRESETS = ("orig", "aug", "augdrop", "mixloss", "wemix")


def mix_loss(
    logits_orig: Float[Tensor, "b k"],
    target_orig: Shaped[Tensor, "..."],
    logits_aug: Float[Tensor, "a k"],
    target_aug: Shaped[Tensor, "..."],
    lam: float,
) -> Float[Tensor, ""]:
    """MixLoss: λ ℓ(f(x), y) + (1 − λ) ℓ(f(x̃), ỹ), each ℓ the mean cross-entropy of its half.

    Xu et al. 2020 (arXiv:2010.01267): stochastic gradient descent on λF + (1 − λ)F̃.

    Args:
        logits_orig: of the original half; half precision is computed in float32.
        target_orig: classes [b] or probabilities [b, k].
        logits_aug: of the augmented half.
        target_aug: classes [a] or probabilities [a, k].
        lam: λ, the weight of the *original* half.

    Raises:
        ValueError: if λ lies outside [0, 1], or targets do not fit their logits.
    """
    return _weighted(logits_orig, target_orig, logits_aug, target_aug, lam)[0]


def additive_loss(
    logits_orig: Float[Tensor, "b k"],
    target_orig: Shaped[Tensor, "..."],
    logits_aug: Float[Tensor, "a k"],
    target_aug: Shaped[Tensor, "..."],
    eta: float = 1.0,
) -> Float[Tensor, ""]:
    """The loss of RegMixup: ℓ(f(x), y) + η ℓ(f(x̃), ỹ) (Pinto et al. 2022).

    It is (1 + η) times MixLoss at λ = 1 / (1 + η): the same direction, a larger step.

    Raises:
        ValueError: if η is negative, or targets do not fit their logits.
    """
    if not eta >= 0:
        raise ValueError(f"eta must be 0 or more, got {eta}")
    halves = (logits_orig, target_orig, logits_aug, target_aug)
    return (1 + eta) * mix_loss(*halves, lam=1 / (1 + eta))


def stage(step: int, total: int, fraction: float) -> int:
    """Which stage a step belongs to: 1 for the first round(fraction · total) steps, then 2.

    Args:
        step: from 0.
        total: steps in all.
        fraction: T₁ / T.

    Raises:
        ValueError: if the step is none of the run's, or the fraction lies outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction of stage 1 lies in [0, 1], got {fraction}")
    if not 0 <= step < total:
        raise ValueError(f"step must lie in 0…{total - 1}, got {step}")
    return 1 if step < round(fraction * total) else 2


class Plan(NamedTuple):
    """What one step learns from."""

    use_orig: bool
    use_aug: bool
    lam: float


@dataclass(frozen=True)
class WeMixSchedule:
    """Two stages: MixLoss with weight λ for T₁ steps, then the originals alone for T₂.

    Attributes:
        total: T = T₁ + T₂, steps.
        stage1_fraction: T₁ / T; steps 0 … round(stage1_fraction · total) − 1 are stage 1.
        lam: λ of stage 1; 0 is AugDrop.

    Raises:
        ValueError: for a λ or fraction outside [0, 1], or no steps.
    """

    total: int
    stage1_fraction: float = 0.75
    lam: float = 0.5

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ValueError(f"a schedule needs at least one step, got {self.total}")
        stage(0, self.total, self.stage1_fraction)
        _check_lam(self.lam)

    def at(self, step: int) -> Plan:
        """The plan of a step.

        Raises:
            ValueError: if the step is none of the run's.
        """
        lam = self.lam if stage(step, self.total, self.stage1_fraction) == 1 else 1.0
        return Plan(use_orig=lam > 0, use_aug=lam < 1, lam=lam)

    @classmethod
    def preset(
        cls, name: str, total: int, stage1_fraction: float = 0.75, lam: float = 0.5
    ) -> "WeMixSchedule":
        """The schedule of `"orig"`, `"aug"`, `"augdrop"`, `"mixloss"` or `"wemix"`.

        Raises:
            ValueError: for another name.
        """
        limits = {
            "orig": (0.0, lam),
            "aug": (1.0, 0.0),
            "augdrop": (stage1_fraction, 0.0),
            "mixloss": (1.0, lam),
            "wemix": (stage1_fraction, lam),
        }
        if name not in limits:
            raise ValueError(f"a preset is one of {', '.join(PRESETS)}; got {name!r}")
        return cls(total, *limits[name])


def wemix_step(
    model: Callable[[Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    *,
    gain: float = 1.0,
) -> dict[str, Tensor]:
    """One step of WeMix: augment the batch, one forward of what the plan uses, descend.

    Where both halves are used they pass the network together, so that `DistributedDataParallel`
    synchronises once. Batch norm then mixes the statistics of both halves: re-estimate them on
    originals before testing.

    Args:
        model: from x to logits [b, k].
        batch: originals x [b, …] and targets, probabilities [b, k] or classes [b].
        augment: `(x, target) -> (x, target)`, drawn afresh at every call.
        plan: from `WeMixSchedule.at`.
        optimizer: of the model.
        gain: factor of the loss: 2 makes MixLoss at λ = ½ RegMixup's sum.

    Returns:
        `loss`, and the cross-entropies `loss_orig` and `loss_aug`, NaN where not used; detached.
    """
    x, target = batch
    views = [batch] if plan.use_orig else []
    if plan.use_aug:
        views.append(augment(x, target))
    logits = model(torch.cat([view for view, _ in views]) if len(views) > 1 else views[0][0])
    halves = logits.split([len(view) for view, _ in views])
    first, last = (halves[0], views[0][1]), (halves[-1], views[-1][1])
    lam = plan.lam if len(views) > 1 else float(plan.use_orig)
    loss, loss_orig, loss_aug = _weighted(*first, *last, lam)
    optimizer.zero_grad()
    (gain * loss).backward()
    optimizer.step()
    return {"loss": loss.detach(), "loss_orig": loss_orig.detach(), "loss_aug": loss_aug.detach()}


def _weighted(
    logits_orig: Tensor, target_orig: Tensor, logits_aug: Tensor, target_aug: Tensor, lam: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted loss and its two parts; a part of weight 0 is NaN and takes no gradient."""
    _check_lam(lam)
    absent = logits_orig.new_full((), float("nan"), dtype=torch.float32)
    loss_orig = _cross_entropy(logits_orig, target_orig) if lam > 0 else absent
    loss_aug = _cross_entropy(logits_aug, target_aug) if lam < 1 else absent
    if lam in (0, 1):
        return loss_orig if lam else loss_aug, loss_orig, loss_aug
    return lam * loss_orig + (1 - lam) * loss_aug, loss_orig, loss_aug


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    soft = target.is_floating_point()
    if target.shape != (logits.shape if soft else logits.shape[:1]):
        raise ValueError(
            f"targets are classes [b] or probabilities [b, k]: got {list(target.shape)} "
            f"{target.dtype} for logits {list(logits.shape)}"
        )
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return F.cross_entropy(logits, target.to(logits.dtype) if soft else target)


def _check_lam(lam: float) -> None:
    if not 0 <= lam <= 1:
        raise ValueError(f"lam, the weight of the originals, lies in [0, 1]; got {lam}")
