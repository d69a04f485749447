"""Super-blocks and the strings that they are written in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

BY_RATIO = ("SuperResKXKX", "SuperResK1KXK1", "SuperResK1DWK1")
"""GENet's kinds: XX, BL, DW. Their strings hold a ratio and the kernel size."""

PLAIN = re.compile(r"SuperConvK([1357])BNRELU")
DOUBLE = re.compile(r"SuperResK([357])K\1")
BOTTLENECK = re.compile(r"SuperResK1K([357])K1")
INVERTED = re.compile(r"SuperResIDWE([1246])K([357])")


@dataclass(frozen=True)
class BlockSpec:
    """One super-block.

    Args:
        kind: a name of the package's table; those with a digit say their kernel size.
        in_ch: channels of its input.
        out_ch: channels of its output.
        stride: of the first layer.
        bottleneck: inner width e, in channels; 0 means as many as come out.
        n: layers.
        kernel: side k of the k×k convolutions, odd.

    Raises:
        ValueError: for an unknown kind, a number below 1, an even kernel, or one that contradicts
            the kind's name.
    """

    kind: str
    in_ch: int
    out_ch: int
    stride: int = 1
    bottleneck: int = 0
    n: int = 1
    kernel: int = 0

    def __post_init__(self) -> None:
        named = kernel_of(self.kind)
        object.__setattr__(self, "kernel", self.kernel or named or 3)
        object.__setattr__(self, "bottleneck", self.bottleneck or self.out_ch)
        if named not in (0, self.kernel):
            raise ValueError(f"{self.kind} has kernel size {named}, got {self.kernel}")
        if self.kernel % 2 == 0 or self.kernel < 1:
            raise ValueError(f"kernel must be odd and positive, got {self.kernel}")
        for name in ("in_ch", "out_ch", "stride", "bottleneck", "n"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if PLAIN.fullmatch(self.kind) and self.bottleneck != self.out_ch:
            raise ValueError(f"{self.kind} has no inner width, got {self.bottleneck}")

    @classmethod
    def from_ratio(
        cls, kind: str, in_ch: int, out_ch: int, stride: int, ratio: float, n: int, kernel: int = 3
    ) -> "BlockSpec":
        """The super-block whose inner width is a share of its *output* width.

        Raises:
            ValueError: as above, or if ratio · out_ch is below 1.
        """
        if not ratio * out_ch > 1 - 1e-5:  # a printed ratio has six digits
            raise ValueError(f"ratio · out_ch must be at least 1, got {ratio:g} · {out_ch}")
        return cls(kind, in_ch, out_ch, stride, round(ratio * out_ch), n, kernel)

    @property
    def ratio(self) -> float:
        """Inner width over output width."""
        return self.bottleneck / self.out_ch

    def __str__(self) -> str:
        if PLAIN.fullmatch(self.kind):
            numbers: tuple = (self.stride, self.n)
        elif self.kind in BY_RATIO:
            numbers = (self.kernel, self.stride, f"{self.ratio:.6g}", self.n)
        else:
            numbers = (self.stride, self.bottleneck, self.n)
        return f"{self.kind}({','.join(map(str, (self.in_ch, self.out_ch, *numbers)))})"


Structure = Sequence[BlockSpec]


def kernel_of(kind: str) -> int:
    """The kernel size that a kind's name says; 0 for GENet's kinds, whose names do not.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind in BY_RATIO:
        return 0
    for pattern in (PLAIN, DOUBLE, BOTTLENECK, INVERTED):
        if found := pattern.fullmatch(kind):
            return int(found.groups()[-1])
    raise ValueError(
        f"unknown block {kind!r}; known are {', '.join(BY_RATIO)}, SuperConvK3BNRELU, "
        "SuperResK3K3, SuperResK1K3K1 and SuperResIDWE4K3, the last four also for other kernels"
    )


# --- strings ------------------------------------------------------------------------------------


def parse(text: str) -> tuple[BlockSpec, ...]:
    """Read a structure. The released form `ConvKX(3,32,3,2)BN(32)RELU(32)` is read as well.

    Args:
        text: such as `"SuperConvK3BNRELU(3,8,2,1)SuperResK3K3(8,16,1,8,1)"`; blanks are ignored,
            and so are identifiers `uuid…|` and `AdaptiveAvgPool(…)`.

    Raises:
        ValueError: for an unknown block, a wrong count of numbers, or mismatched channels.
    """
    compact = re.sub(r"\s+|uuid\w+\|", "", text)
    compact = re.sub(r"AdaptiveAvgPool\([^)]*\)", "", compact)
    compact = re.sub(
        r"ConvKX\((\d+),(\d+),(\d+),(\d+)\)BN\(\d+\)RELU\(\d+\)",
        r"SuperConvK\3BNRELU(\1,\2,\4,1)",
        compact,
    )
    found = re.findall(r"(\w+)\(([^()]*)\)", compact)
    if not found or "".join(f"{name}({numbers})" for name, numbers in found) != compact:
        raise ValueError(f"a structure looks like Name(…)Name(…), got {text!r}")
    specs = tuple(_block(name, numbers) for name, numbers in found)
    check_channels(specs)
    return specs


def _block(kind: str, numbers: str) -> BlockSpec:
    kernel_of(kind)
    fields = numbers.split(",")
    expected = 4 if PLAIN.fullmatch(kind) else 6 if kind in BY_RATIO else 5
    try:
        values = [float(x) if kind in BY_RATIO and i == 4 else int(x) for i, x in enumerate(fields)]
    except ValueError:
        raise ValueError(f"{kind} takes whole numbers, got ({numbers})") from None
    if len(values) != expected:
        raise ValueError(f"{kind} takes {expected} numbers, got ({numbers})")
    if kind in BY_RATIO:
        before, after, kernel, stride, ratio, n = values
        return BlockSpec.from_ratio(
            kind, int(before), int(after), int(stride), ratio, int(n), int(kernel)
        )
    whole = [int(value) for value in values]
    if expected == 4:
        return BlockSpec(kind, whole[0], whole[1], whole[2], n=whole[3])
    if whole[3] < 1:
        raise ValueError(f"the inner width must be at least 1, got {kind}({numbers})")
    return BlockSpec(kind, *whole)


def to_text(specs: Structure) -> str:
    """The string that `parse` reads back."""
    return "".join(map(str, specs))


def check_channels(specs: Structure) -> None:
    """Hold that each block takes the channels that the one before it gives.

    Raises:
        ValueError: if not, or without blocks.
    """
    if not specs:
        raise ValueError("a structure needs at least one block")
    for place, (before, after) in enumerate(pairwise(specs)):
        if before.out_ch != after.in_ch:
            raise ValueError(
                f"block {place + 1} takes {after.in_ch} channels, but block {place} gives "
                f"{before.out_ch}: {before} {after}"
            )


def repair(specs: Structure) -> tuple[BlockSpec, ...]:
    """Give each block as input what the one before it puts out; the first keeps its own."""
    repaired = list(specs[:1])
    for spec in specs[1:]:
        repaired.append(replace(spec, in_ch=repaired[-1].out_ch))
    return tuple(repaired)
