"""How long a structure takes: measured layer by layer and added up, or from a roofline.

A layer's time depends on its kind, channels, stride, inner width, kernel, resolution and batch, so
a `LatencyTable` measures each such layer once and predicts any structure made of them by a sum
(Lin et al. 2020, arXiv:2006.14090, after the released latency predictor of the group). A `Roofline`
needs no measurement: three numbers of a machine (Williams, Waterman and Patterson 2009).
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from toolkit.networks.structures import (
    BlockSpec,
    Conv,
    Structure,
    block,
    check_channels,
    parse,
    walk,
)
from toolkit.runtime import race

KEPT = slice(2, 8)
"""Of ten sorted times, the third to the eighth are averaged (the rule of the Zen-NAS release)."""


@dataclass(frozen=True)
class Layer:
    """One layer (a super-block with n = 1) at one side of its input, in pixels, and batch size."""

    spec: BlockSpec
    res: int
    batch: int

    def __str__(self) -> str:
        return f"{self.spec}@{self.res}x{self.batch}"


def layers(specs: Structure, res: int, batch: int) -> Iterator[Layer]:
    """The layers of a structure in order, each with what it reads.

    Raises:
        ValueError: for mismatched channels, or a side or batch below 1.
    """
    check_channels(specs)
    if res < 1 or batch < 1:
        raise ValueError(f"res and batch must be at least 1, got {res} and {batch}")
    for spec in specs:
        yield Layer(replace(spec, n=1), res, batch)
        res = (res - 1) // spec.stride + 1
        for _ in range(spec.n - 1):
            yield Layer(replace(spec, in_ch=spec.out_ch, stride=1, n=1), res, batch)


def trimmed(seconds: ArrayLike) -> tuple[NDArray, NDArray]:
    """Centre and spread of repeated times: the mean of the middle, and the median deviation.

    Of ten sorted rounds the third to the eighth count, of other numbers the same share.

    Args:
        seconds: [rounds, …].

    Returns:
        Both of shape […]: the mean of the kept rounds, and the median absolute deviation from the
        median of all rounds.
    """
    ordered = np.sort(np.asarray(seconds, float), axis=0)
    rounds = len(ordered)
    low, high = (round(rounds * end / 10) for end in (KEPT.start, KEPT.stop))
    centre = ordered[low : max(high, low + 1)].mean(axis=0)
    spread = np.median(np.abs(ordered - np.median(ordered, axis=0)), axis=0)
    return np.asarray(centre), np.asarray(spread)


def measure(
    specs: Sequence[Structure] | Sequence[BlockSpec],
    res: int | Sequence[int],
    batch: int,
    *,
    rounds: int = 10,
    warmup: int = 3,
    device: str | torch.device = "cpu",
) -> pd.DataFrame:
    """Seconds of forward passes in evaluation mode, interleaved, synchronised, after a warm-up.

    Args:
        specs: structures or single super-blocks.
        res: side of the input, in pixels; one for all, or one each.
        batch: images.
        rounds: counted passes of each.
        warmup: passes before them.
        device: where to.

    Returns:
        One column for each of `specs`, numbered; one row a round.

    Raises:
        ValueError: for nothing to measure, or as many sides as there are not structures.
    """
    chains = [(spec,) if isinstance(spec, BlockSpec) else tuple(spec) for spec in specs]
    sides = [res] * len(chains) if isinstance(res, int) else list(res)
    if not chains or len(sides) != len(chains):
        raise ValueError(f"need one side each, got {len(chains)} structures and {len(sides)} sides")
    passes = {
        str(number): _Pass(chain, side, batch, torch.device(device))
        for number, (chain, side) in enumerate(zip(chains, sides, strict=True))
    }
    with _kept_memory():
        times = race(rounds=rounds, warmup=warmup, **passes)
    return times.rename(columns=int)


@contextmanager
def _kept_memory() -> Iterator[None]:
    """Let the C library keep freed memory, as in a process that has served for a while.

    Otherwise it depends on the process's history whether a large map gets fresh pages in every
    pass, and clearing them can double a time.
    """
    no_trim, no_mmap, usual = -1, -4, {-1: 128 * 1024, -4: 65_536}  # glibc's M_… and defaults
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        yield
        return
    adjust(no_trim, 2**31 - 1)
    adjust(no_mmap, 0)
    try:
        yield
    finally:
        for option, value in usual.items():
            adjust(option, value)


class _Pass:
    """A forward pass without gradients, of random images, as a function without arguments."""

    def __init__(self, specs: Structure, res: int, batch: int, device: torch.device) -> None:
        check_channels(specs)
        self.net = nn.Sequential(*map(block, specs)).to(device).eval()
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, specs[0].in_ch, res, res, generator=draw).to(device)

    @torch.no_grad()
    def __call__(self) -> None:
        self.net(self.x)


@dataclass
class LatencyTable:
    """Seconds of single layers; a structure takes their sum.

    Attributes:
        seconds: of a forward pass of the whole batch.
    """

    seconds: dict[Layer, float] = field(default_factory=dict)

    def profile(
        self,
        structures: Sequence[Structure],
        res: int,
        batch: int,
        *,
        rounds: int = 10,
        device: str | torch.device = "cpu",
    ) -> "LatencyTable":
        """Measure every layer of the structures that the table does not have yet.

        Args:
            structures: what should be predictable.
            res: side of their input, in pixels.
            batch: images.
            rounds: counted passes of each layer.
            device: where to.
        """
        wanted = dict.fromkeys(layer for specs in structures for layer in layers(specs, res, batch))
        missing = [layer for layer in wanted if layer not in self.seconds]
        if missing:
            specs, sides = [layer.spec for layer in missing], [layer.res for layer in missing]
            times = measure(specs, sides, batch, rounds=rounds, device=device)
            self.seconds |= dict(zip(missing, trimmed(times)[0].tolist(), strict=True))
        return self

    def predict(self, specs: Structure, res: int, batch: int) -> float:
        """Seconds of a forward pass: the sum over layers.

        Raises:
            ValueError: if a layer was never measured; the message names it.
        """
        total = 0.0
        for layer in layers(specs, res, batch):
            if layer not in self.seconds:
                raise ValueError(f"the table has no {layer}; call profile first")
            total += self.seconds[layer]
        return total

    def to_text(self) -> str:
        """One line a layer: the layer, and its time in microseconds."""
        return "\n".join(f"{layer} {1e6 * t:.4g}" for layer, t in self.seconds.items())

    @classmethod
    def from_text(cls, text: str) -> "LatencyTable":
        """Read what `to_text` wrote.

        Raises:
            ValueError: for a line of another form.
        """
        seconds = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            try:
                layer, microseconds = line.split()
                name, sizes = layer.split("@")
                res, batch = map(int, sizes.split("x"))
                seconds[Layer(parse(name)[0], res, batch)] = float(microseconds) / 1e6
            except ValueError as error:
                raise ValueError(f"not a line of a latency table: {line!r} ({error})") from error
        return cls(seconds)


@dataclass(frozen=True)
class Roofline:
    """A machine in three numbers; each operation is bound by arithmetic or by memory, not by both.

    Attributes:
        peak: multiply-adds per second.
        bandwidth: bytes per second.
        overhead: seconds to start one operation.
    """

    peak: float
    bandwidth: float
    overhead: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a machine that cannot be."""
        if not (self.peak > 0 and self.bandwidth > 0 and self.overhead >= 0):
            raise ValueError(f"need peak > 0, bandwidth > 0, overhead ≥ 0, got {self}")

    @property
    def ridge(self) -> float:
        """Multiply-adds per byte at which both bounds meet."""
        return self.peak / self.bandwidth

    def time(self, macs: ArrayLike, traffic: ArrayLike) -> NDArray:
        """Seconds of one operation: `max(macs / peak, bytes / bandwidth) + overhead`."""
        work = np.asarray(macs, float) / self.peak
        return np.maximum(work, np.asarray(traffic, float) / self.bandwidth) + self.overhead

    def predict(self, specs: Structure, res: int, batch: int, *, width: int = 2) -> float:
        """Seconds of a structure: the sum over its convolutions.

        Args:
            specs: the structure.
            res: side of its input, in pixels.
            batch: images.
            width: bytes of a number; 2 is half precision.
        """
        work = np.array([conv_work(conv, side, batch, width) for conv, side in walk(specs, res)])
        return float(self.time(work[:, 0], work[:, 1]).sum())


def conv_work(conv: Conv, side: int, batch: int, width: int = 2) -> tuple[float, float]:
    """Multiply-adds and bytes of one convolution: input read, output written, weights read once."""
    elements = conv.in_ch * side**2 + conv.out_ch * conv.side(side) ** 2
    weights = conv.out_ch * conv.in_ch // conv.groups * conv.kernel**2
    return float(conv.macs(side)) * batch, float(width * (batch * elements + weights))
