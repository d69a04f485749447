"""The Zen-score without a network: its closed form, and the release's way to count costs."""

import math
from dataclasses import dataclass

from toolkit.networks.structures import Conv, walk
from toolkit.networks.zen_nas.chain import Chain, Specs, as_specs
from toolkit.networks.zen_nas.score import BN_STATS, MOMENTUM, NORMS


@dataclass(frozen=True)
class Term:
    """What one convolution adds to the Zen-score.

    Attributes:
        conv: the convolution.
        side: of the map that it reads, in pixels.
        gain: ½ log(κ m / g), half of it lost to the ReLU before it (the first has none).
        shrink: what the release's running variance takes away, ≤ 0; 0 for the batch variance.
    """

    conv: Conv
    side: int
    gain: float
    shrink: float


def zen_closed_form(
    specs: Specs, res: int, norm: str = "l1", bn_stat: str = "batch", alpha: float = 1e-2
) -> float:
    """The expected Zen-score, in O(L) and without any draw.

    log α + log(m_L H_L W_L) − ½ log 2π + ½ Σₜ log(κₜ mₜ₋₁ / gₜ) − ½ (L − 1) log 2 for the ℓ1 norm;
    for Frobenius the first three terms are log α + ½ log(m_L H_L W_L) − ½ log 2. Each ReLU halves
    ‖Δ‖², and the scales of batch norm cancel. Too large where a network is narrow and deep.

    Args:
        specs: a structure or its string.
        res: side of the square input, in pixels.
        norm: `"l1"` or `"fro"`.
        bn_stat: `"batch"` or `"ema"`.
        alpha: α, size of the perturbation.

    Raises:
        ValueError: for an unknown option, α ≤ 0 or a side below 1.
    """
    if norm not in NORMS:
        raise ValueError(f"norm is one of {', '.join(NORMS)}, got {norm!r}")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    terms = closed_terms(specs, res, bn_stat)
    last = terms[-1]
    size = last.conv.out_ch * last.conv.side(last.side) ** 2
    start = math.log(alpha) + (
        math.log(size) - math.log(2 * math.pi) / 2
        if norm == "l1"
        else math.log(size) / 2 - math.log(2) / 2
    )
    return start + sum(term.gain + term.shrink for term in terms)


def closed_terms(specs: Specs, res: int, bn_stat: str = "batch") -> list[Term]:
    """The sum of the closed form, convolution by convolution.

    Raises:
        ValueError: for an unknown statistic or a side below 1.
    """
    if bn_stat not in BN_STATS:
        raise ValueError(f"bn_stat is one of {', '.join(BN_STATS)}, got {bn_stat!r}")
    if res < 1:
        raise ValueError(f"res must be at least 1 pixel, got {res}")
    terms = []
    for place, conv in enumerate(Chain.of(specs).convs):
        fan_in = taps(conv, res) * conv.in_ch / conv.groups
        variance = fan_in if place == 0 else fan_in / 2
        shrink = _ema_loss(variance) if bn_stat == "ema" else 0.0
        terms.append(Term(conv, res, math.log(variance) / 2, shrink))
        res = conv.side(res)
    return terms


def taps(conv: Conv, side: int) -> float:
    """κ: the mean number of kernel taps per output pixel that do not fall on zero padding."""
    reach = conv.kernel // 2
    inside = [
        min(side, place * conv.stride + reach + 1) - max(0, place * conv.stride - reach)
        for place in range(conv.side(side))
    ]
    return (sum(inside) / len(inside)) ** 2


def official_count(specs: Specs, res: int, num_classes: int = 10) -> dict[str, int]:
    """Parameters and multiply-adds as the released code counts them.

    A batch norm has one parameter a channel, the classifier one bias in all, and a projection
    none; batch norm costs one operation an element; a projection's cost is divided by the squared
    stride twice.

    Args:
        specs: a structure or its string.
        res: side of the square input, in pixels.
        num_classes: of the classifier.

    Returns:
        `"params"` and `"macs"`.
    """
    blocks = as_specs(specs)
    params = macs = 0
    for conv, side in walk(blocks, res):
        weights = conv.out_ch * conv.in_ch // conv.groups * conv.kernel**2
        area = conv.side(side) ** 2
        work = (weights + conv.out_ch) * area
        params += weights + conv.out_ch
        macs += work // conv.stride**2 if conv.bias else work  # only projections have a bias
    features = blocks[-1].out_ch
    return {
        "params": params + features * num_classes + 1,
        "macs": macs + features * num_classes,
    }


def _ema_loss(variance: float) -> float:
    """½ log of the running variance over the variance, after two passes of a fresh network."""
    kept = (1 - MOMENTUM) ** 2
    return math.log(kept / variance + 1 - kept) / 2
