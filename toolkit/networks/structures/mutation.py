"""Random changes of a structure, and their repair."""

from dataclasses import dataclass, replace

import numpy as np

from toolkit.networks.structures.blocks import (
    PLAIN,
    BlockSpec,
    Structure,
    check_channels,
    kernel_of,
    repair,
)
from toolkit.networks.structures.costs import to_multiple


@dataclass(frozen=True)
class Space:
    """What `mutate` may draw.

    Attributes:
        kinds: of residual blocks; a kind listed twice is drawn twice as often.
        widths: output and inner widths are drawn from these; empty: the present width times one of
            `factors`, rounded to `multiple` and clipped to `bounds`.
        factors: of widths.
        multiple: channels.
        bounds: smallest and largest width, in channels.
        steps: added to n.
        depths: smallest and largest n.
        split: a super-block of so many layers or more becomes two, of 3 and n − 3; 0: never.
        fixed: places of blocks that stay as they are; −1 is the last.
    """

    kinds: tuple[str, ...]
    widths: tuple[int, ...] = ()
    factors: tuple[float, ...] = (2.5, 2, 1.5, 1.25, 1, 1 / 1.25, 1 / 1.5, 1 / 2, 1 / 2.5)
    multiple: int = 8
    bounds: tuple[int, int] = (8, 2048)
    steps: tuple[int, ...] = (-2, -1, 0, 1, 2)
    depths: tuple[int, int] = (1, 1000)
    split: int = 6
    fixed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could draw nothing, or no block."""
        for kind in self.kinds:
            kernel_of(kind)
        if not self.kinds or not (self.widths or self.factors) or not self.steps:
            raise ValueError("a space needs kinds, widths or factors, and steps")
        if not 1 <= self.depths[0] <= self.depths[1] or not 1 <= self.bounds[0] <= self.bounds[1]:
            raise ValueError(
                f"depths and bounds must rise from 1, got {self.depths}, {self.bounds}"
            )
        if self.multiple < 1 or self.split < 0 or 1 <= self.split < 4:
            raise ValueError("multiple must be at least 1, split 0 or at least 4")

    def width(self, width: int, rng: np.random.Generator) -> int:
        """A new width, from the list or near the present one."""
        if self.widths:
            return int(rng.choice(self.widths))
        scaled = to_multiple(width * float(rng.choice(self.factors)), self.multiple)
        return int(np.clip(scaled, *self.bounds))


def mutate(
    specs: Structure, space: Space, rng: np.random.Generator, blocks: int = 1
) -> tuple[BlockSpec, ...]:
    """Change random super-blocks: kind, widths and depth at once; then repair channels and split.

    Strides never change; of plain convolutions only the output width does (Zen-NAS' released
    search). A place drawn twice is changed once.

    Args:
        specs: the parent.
        space: what may be drawn.
        rng: NumPy's generator.
        blocks: draws of a place.

    Raises:
        ValueError: if `blocks` is below 1 or every block is fixed.
    """
    check_channels(specs)
    fixed = {place % len(specs) for place in space.fixed}
    free = [place for place in range(len(specs)) if place not in fixed]
    if blocks < 1 or not free:
        raise ValueError(f"need a draw and a block that is not fixed, got {blocks}, {space.fixed}")
    child = list(specs)
    for place in sorted({int(rng.choice(free)) for _ in range(blocks)}):
        child[place] = _changed(child[place], space, rng)
    return tuple(part for spec in repair(child) for part in _split(spec, space.split))


def _changed(spec: BlockSpec, space: Space, rng: np.random.Generator) -> BlockSpec:
    out = space.width(spec.out_ch, rng)
    if PLAIN.fullmatch(spec.kind):
        return replace(spec, out_ch=out, bottleneck=out)
    kind = str(rng.choice(space.kinds))
    n = int(np.clip(spec.n + rng.choice(space.steps), *space.depths))
    e = space.width(spec.bottleneck, rng)
    kernel = kernel_of(kind) or (3 if kernel_of(spec.kind) else spec.kernel)
    return replace(spec, kind=kind, out_ch=out, bottleneck=e, n=n, kernel=kernel)


def _split(spec: BlockSpec, threshold: int) -> tuple[BlockSpec, ...]:
    if not threshold or spec.n < threshold:
        return (spec,)
    rest = replace(spec, in_ch=spec.out_ch, stride=1, n=spec.n - 3)
    return replace(spec, n=3), rest
