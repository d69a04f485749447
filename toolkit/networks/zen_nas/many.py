"""Closed forms of many structures: what a search, or a list of candidates, asks for."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from toolkit.networks.structures import BlockSpec, Structure, check_channels
from toolkit.networks.zen_nas.closed import closed_terms


def closed_forms(
    structures: Iterable[Structure], res: int, alpha: float = 1e-2
) -> NDArray[np.float64]:
    """`zen_closed_form` (ℓ1 norm, batch variance) of each structure.

    A super-block adds the same wherever it stands on a map of the same side, and is computed once:
    mutants share most of theirs.

    Args:
        structures: parsed structures.
        res: side of the square input, in pixels.
        alpha: α, size of the perturbation.

    Raises:
        ValueError: for mismatched channels, α ≤ 0 or a side below 1.
    """
    if not alpha > 0 or res < 1:
        raise ValueError(f"alpha must be positive and res at least 1, got {alpha} and {res}")
    start = math.log(alpha) - math.log(2 * math.pi) / 2 + math.log(2) / 2
    found = []
    for specs in structures:
        total, side, channels = start, res, specs[0].in_ch if specs else 0
        if not specs:
            check_channels(specs)
        for spec in specs:
            if spec.in_ch != channels:
                check_channels(specs)
            gain, side = _super_block(spec, side)
            total, channels = total + gain, spec.out_ch
        found.append(total + math.log(channels * side**2))
    return np.array(found)


@lru_cache(maxsize=2**16)
def _super_block(spec: BlockSpec, side: int) -> tuple[float, int]:
    """Σ ½ log(κ m / 2g) over its convolutions, and the side of what it puts out.

    The first layer reads another width and may have a stride; all later ones are alike.
    """
    first, out = _layer(replace(spec, n=1), side)
    if spec.n == 1:
        return first, out
    later, _ = _layer(replace(spec, in_ch=spec.out_ch, stride=1, n=1), out)
    return first + (spec.n - 1) * later, out


@lru_cache(maxsize=2**16)
def _layer(spec: BlockSpec, side: int) -> tuple[float, int]:
    terms = closed_terms((spec,), side)
    return sum(term.gain for term in terms) - math.log(2) / 2, terms[-1].conv.side(terms[-1].side)
