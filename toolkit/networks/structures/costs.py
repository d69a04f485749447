"""What a structure consists of, convolution by convolution, and what it costs."""

from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.networks.structures.blocks import (
    BY_RATIO,
    DOUBLE,
    INVERTED,
    PLAIN,
    BlockSpec,
    Structure,
    check_channels,
)


@dataclass(frozen=True)
class Conv:
    """One convolution and the batch norm after it."""

    in_ch: int
    out_ch: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = False

    def side(self, side: int) -> int:
        """The side of its output map, with padding ⌊k/2⌋."""
        return (side - 1) // self.stride + 1

    @property
    def params(self) -> int:
        """Weights, bias, and the batch norm's γ and β."""
        weights = self.out_ch * self.in_ch // self.groups * self.kernel**2
        return weights + self.out_ch * (2 + self.bias)

    def macs(self, side: int) -> int:
        """Multiply-adds for one image of that side; the batch norm is not counted."""
        taps = self.kernel**2 * self.in_ch // self.groups
        return taps * self.out_ch * self.side(side) ** 2


@dataclass(frozen=True)
class Unit:
    """Convolutions in a row around a shortcut: True is the identity, False none at all."""

    convs: tuple[Conv, ...]
    shortcut: Conv | bool = False


def units(spec: BlockSpec) -> tuple[Unit, ...]:
    """The residual blocks of a super-block, in order; n of them, or 2n for Zen-NAS' bottlenecks."""
    made: list[Unit] = []
    for layer in range(spec.n):
        before = spec.in_ch if layer == 0 else spec.out_ch
        stride = spec.stride if layer == 0 else 1
        for convs in _convs(spec, before, stride):
            made.append(Unit(convs, _shortcut(spec, convs, first=not made)))
    return tuple(made)


def _convs(spec: BlockSpec, before: int, stride: int) -> list[tuple[Conv, ...]]:
    """One layer: the convolutions of each of its residual blocks."""
    out, e, k = spec.out_ch, spec.bottleneck, spec.kernel
    if PLAIN.fullmatch(spec.kind):
        return [(Conv(before, out, k, stride),)]
    if spec.kind == "SuperResKXKX" or DOUBLE.fullmatch(spec.kind):
        return [(Conv(before, e, k, stride), Conv(e, out, k))]
    if spec.kind in BY_RATIO:
        return [_bottleneck(before, e, out, k, stride, spec.kind == "SuperResK1DWK1")]
    if found := INVERTED.fullmatch(spec.kind):
        wide, wider = (to_multiple(int(found[1]) * width, 8) for width in (e, out))
        first = _bottleneck(before, wide, e, k, stride, depthwise=True)
        return [first, _bottleneck(e, wider, out, k, 1, depthwise=True)]
    first = _bottleneck(before, e, out, k, stride, depthwise=False)
    return [first, _bottleneck(out, e, out, k, 1, depthwise=False)]


def _bottleneck(
    before: int, e: int, after: int, k: int, stride: int, depthwise: bool
) -> tuple[Conv, ...]:
    groups = e if depthwise else 1
    return Conv(before, e), Conv(e, e, k, stride, groups), Conv(e, after)


def _shortcut(spec: BlockSpec, convs: tuple[Conv, ...], first: bool) -> Conv | bool:
    if PLAIN.fullmatch(spec.kind):
        return False
    before, after = convs[0].in_ch, convs[-1].out_ch
    stride = max(conv.stride for conv in convs)
    ours = spec.kind in BY_RATIO
    if before == after and stride == 1 and (ours or not first):
        return True
    return Conv(before, after, 1, stride, bias=not ours)


def to_multiple(width: float, multiple: int) -> int:
    """The nearest positive multiple."""
    return max(multiple, round(width / multiple) * multiple)


def walk(specs: Structure, res: int, residual: bool = True) -> Iterator[tuple[Conv, int]]:
    """All convolutions, projections included, with the side of the map that each one reads."""
    check_channels(specs)
    for spec in specs:
        for unit in units(spec):
            if residual and isinstance(unit.shortcut, Conv):
                yield unit.shortcut, res
            for conv in unit.convs:
                yield conv, res
                res = conv.side(res)


@dataclass(frozen=True)
class Cost:
    """What a structure costs for one image.

    Attributes:
        params: trained numbers, batch norm included.
        macs: multiply-adds of convolutions and the classifier.
        layers: Σ n over super-blocks.
        convs: convolutions, projections included.
    """

    params: int
    macs: int
    layers: int
    convs: int


def count(specs: Structure, res: int, *, num_classes: int = 0, residual: bool = True) -> Cost:
    """Exact parameters and multiply-adds, without building the network.

    Args:
        specs: the structure.
        res: side of the square input, in pixels.
        num_classes: of the linear classifier after global average pooling; 0: none.
        residual: count the projections of shortcuts.

    Raises:
        ValueError: for mismatched channels or a side below 1.
    """
    if res < 1:
        raise ValueError(f"res must be at least 1 pixel, got {res}")
    convs = list(walk(specs, res, residual))
    features = specs[-1].out_ch
    return Cost(
        params=sum(conv.params for conv, _ in convs) + num_classes * (features + 1),
        macs=sum(conv.macs(side) for conv, side in convs) + num_classes * features,
        layers=sum(spec.n for spec in specs),
        convs=len(convs),
    )
