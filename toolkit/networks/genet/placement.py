"""Assignments of block types to stages, made equally fast."""

from collections.abc import Sequence
from itertools import combinations_with_replacement

from toolkit.networks.genet.networks import typed
from toolkit.networks.latency import LatencyTable
from toolkit.networks.structures import BlockSpec, Structure, repair, to_text

WIDTHS = (8, 16, 24, 32, 40, 48, 64, 80, 96)
"""Widths that `match_latency` tries: a CPU's vector units want multiples of eight channels."""


def place(
    master: Structure, kinds: Sequence[str], widths: Sequence[int] | None = None
) -> tuple[BlockSpec, ...]:
    """The master with other block types in its middle blocks.

    Args:
        master: its first and last block, depths and strides stay.
        kinds: `"XX"`, `"BL"` or `"DW"` for each block between the first and the last.
        widths: their output channels; by default the master's.

    Raises:
        ValueError: for another number of kinds or widths, or an unknown kind.
    """
    middle = master[1:-1]
    widths = [spec.out_ch for spec in middle] if widths is None else widths
    if not len(kinds) == len(widths) == len(middle):
        raise ValueError(f"need {len(middle)} block types and widths, got {kinds} and {widths}")
    blocks = [
        typed(kind, 1, width, spec.stride, spec.n)
        for kind, width, spec in zip(kinds, widths, middle, strict=True)
    ]
    return repair([master[0], *blocks, master[-1]])


def match_latency(
    master: Structure,
    kinds: Sequence[str],
    target: float,
    table: LatencyTable,
    *,
    res: int,
    batch: int,
    widths: Sequence[int] = WIDTHS,
    tolerance: float = 0.03,
) -> tuple[BlockSpec, ...]:
    """The placement whose predicted latency is nearest to a target; depths stay the master's.

    Args:
        master: see `place`.
        kinds: see `place`.
        target: seconds of a forward pass.
        table: layers that it lacks are measured.
        res: side of the input, in pixels.
        batch: images of the pass.
        widths: of the stages, which never narrow.
        tolerance: allowed relative distance from the target.

    Raises:
        ValueError: if no placement comes that near.
    """
    rising = combinations_with_replacement(sorted(widths), len(kinds))
    candidates = [place(master, kinds, chosen) for chosen in rising]
    table.profile(candidates, res, batch)
    distance = [abs(table.predict(specs, res, batch) / target - 1) for specs in candidates]
    nearest = min(range(len(candidates)), key=lambda i: distance[i])
    if distance[nearest] > tolerance:
        raise ValueError(
            f"no {'-'.join(kinds)} takes {1e3 * target:.3g} ms within {tolerance:.1%}; "
            f"the nearest is {distance[nearest]:.1%} away: {to_text(candidates[nearest])}"
        )
    return candidates[nearest]
