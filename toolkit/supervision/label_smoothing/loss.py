"""Cross-entropy with smoothed labels, without ever building the smoothed label."""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

ROW_SUM_TOLERANCE = 1e-4


def smoothed_cross_entropy(
    logits: Float[Tensor, "... classes"],
    target: Shaped[Tensor, "..."],
    theta: float | Float[Tensor, "..."],
    soft: Shaped[Tensor, "..."] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy with the label (1 − θ) y + θ ŷ, where ŷ is uniform unless `soft` is given.

    Xu et al., "Towards Understanding Label Smoothing" (2020), the loss of LSR and of TSLA's first
    stage. For uniform ŷ it is logsumexp(f) − (1 − θ) f_y − (θ / K) Σ f_i: no label of N × K
    numbers is made. The gradient p − y^LS is one fused pass over the probabilities.

    Args:
        logits: f, [N, K] or, for stacked networks, [S, N, K]; half precision is computed in single.
        target: classes [N] (or [S, N]), or label distributions of the shape of `logits`.
        theta: θ in [0, 1], one number or one a row (anything that broadcasts to the rows).
        soft: ŷ, distributions of the shape of `logits`; a constant, as `target` is.
        ignore_index: rows of this class cost nothing and do not count in the mean.
        reduction: `"mean"` over the kept rows, `"sum"` or `"none"`.

    Returns:
        A scalar, or the loss of each row, in nats.

    Raises:
        TypeError: for logits that are no floating-point tensor, or a target of another kind.
        ValueError: for θ outside [0, 1], rows of `soft` or `target` that do not sum to 1, a class
            outside 0…K−1, shapes that do not fit, or an unknown reduction.
    """
    rows, classes = logits.shape[:-1], logits.shape[-1]
    strength = _checked_theta(theta, logits)
    hard = _checked_target(logits, target, ignore_index)
    if soft is not None:
        _check_rows("soft", soft, logits)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
    with torch.autocast(logits.device.type, enabled=False):  # half precision would overflow
        each = _SmoothedCrossEntropy.apply(
            logits.reshape(-1, classes),
            target.reshape(-1) if hard else target.reshape(-1, classes),
            strength.expand(rows).reshape(-1),
            None if soft is None else soft.reshape(-1, classes),
            ignore_index,
        ).view(rows)
    if reduction == "none":
        return each
    if reduction == "sum":
        return each.sum()
    return each.sum() / ((target != ignore_index).sum() if hard else each.numel())


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Row losses; keeps the probabilities, and turns them into the gradient in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "n k"],
        target: Shaped[Tensor, "n ..."],
        theta: Float[Tensor, " n"],
        soft: Float[Tensor, "n k"] | None,
        ignore_index: int,
    ) -> Float[Tensor, " n"]:
        f = logits if logits.dtype == torch.float64 else logits.float()
        probs = f.softmax(dim=1)
        # The largest logit has the largest probability, which is at least 1/K: no underflow.
        lse = f.amax(dim=1) - probs.amax(dim=1).log()
        smooth = f.mean(dim=1) if soft is None else _row_dot(soft.to(f.dtype), f)
        keep = torch.ones_like(lse)
        if target.ndim == 1:
            keep = (target != ignore_index).to(f.dtype)
            target = target.clamp(min=0) * (target != ignore_index)
            given = f.gather(1, target[:, None])[:, 0]
        else:
            given = _row_dot(target.to(f.dtype), f)
        ctx.save_for_backward(probs, target, theta, soft, keep)
        ctx.dtype = logits.dtype
        return (lse - (1 - theta) * given - theta * smooth) * keep

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Float[Tensor, " n"]) -> tuple:
        probs, target, theta, soft, keep = ctx.saved_tensors
        weight = (weight * keep)[:, None]
        given, introduced = (1 - theta)[:, None] * weight, theta[:, None] * weight
        if soft is None:
            grad = torch.addcmul(-introduced / probs.shape[1], probs, weight)
        else:
            grad = (probs * weight).addcmul_(soft.to(probs.dtype), introduced, value=-1)
        if target.ndim == 1:
            grad.scatter_add_(1, target[:, None], -given)
        else:
            grad.addcmul_(target.to(probs.dtype), given, value=-1)
        return grad.to(ctx.dtype), None, None, None, None


def _row_dot(a: Float[Tensor, "n k"], b: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """⟨a_i, b_i⟩ by a batched product, which makes no third matrix."""
    return torch.bmm(a[:, None], b[:, :, None])[:, 0, 0]


def _checked_theta(theta: float | Tensor, logits: Tensor) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    strength = torch.as_tensor(theta, dtype=dtype, device=logits.device).detach()
    if not bool(((strength >= 0) & (strength <= 1)).all()):
        raise ValueError(f"theta must lie in [0, 1], got {theta}")
    try:
        strength.expand(logits.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"theta of shape {tuple(strength.shape)} does not fit rows {tuple(logits.shape[:-1])}"
        ) from None
    return strength


def _checked_target(logits: Tensor, target: Tensor, ignore_index: int) -> bool:
    """Whether the target holds classes; False for distributions."""
    if not logits.is_floating_point() or logits.ndim < 2:
        raise TypeError(f"logits must be floating point [N, K], got {logits.dtype} {logits.shape}")
    if target.is_floating_point():
        _check_rows("target", target, logits)
        return False
    if target.shape != logits.shape[:-1] or target.dtype == torch.bool:
        raise ValueError(
            f"target of shape {tuple(target.shape)} ({target.dtype}) does not fit logits "
            f"{tuple(logits.shape)}: one class a row"
        )
    _check_classes(target, logits.shape[-1], ignore_index)
    return True


def _check_classes(target: Int[Tensor, "..."], classes: int, ignore_index: int) -> None:
    if not target.numel() or (target.min() >= 0 and target.max() < classes):
        return
    wrong = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bool(wrong.any()):
        found = target[wrong].unique().tolist()[:5]
        raise ValueError(f"classes must lie in 0…{classes - 1}, or be {ignore_index}; got {found}")


def _check_rows(name: str, rows: Tensor, logits: Tensor) -> None:
    if rows.shape != logits.shape or not rows.is_floating_point():
        raise ValueError(
            f"{name} must be distributions of the logits' shape {tuple(logits.shape)}, "
            f"got {rows.dtype} {tuple(rows.shape)}"
        )
    sums = rows.sum(dim=-1, dtype=torch.float32)
    if rows.numel() and not bool(((sums - 1).abs() <= ROW_SUM_TOLERANCE).all()):
        worst = float(sums.flatten()[(sums - 1).abs().argmax()])
        raise ValueError(f"rows of {name} must sum to 1, got a row that sums to {worst:.4g}")
