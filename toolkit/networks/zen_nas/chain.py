"""A structure as zero-shot scores see it: convolution, batch norm, ReLU, one after the other.

Residual links, their projections and the classifier are left out (the paper's *vanilla*
convolutional network, VCNN); they come back for training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.networks.structures import BlockSpec, Conv, check_channels, parse, units

EPS = 1e-3
"""Added to the variance in batch norm, as in the released code."""

Specs = Sequence[BlockSpec] | str
"""A structure, or the string of one."""


@dataclass(frozen=True)
class Chain:
    """Convolutions in a row; after each follow batch norm and ReLU.

    Attributes:
        convs: in order, without projections.
    """

    convs: tuple[Conv, ...]

    @classmethod
    def of(cls, specs: Specs) -> "Chain":
        """The chain of a structure.

        Raises:
            ValueError: for an unknown block, mismatched channels, or nothing.
        """
        blocks = as_specs(specs)
        return cls(tuple(conv for spec in blocks for unit in units(spec) for conv in unit.convs))

    @property
    def in_ch(self) -> int:
        """Channels of the input."""
        return self.convs[0].in_ch

    @property
    def out_ch(self) -> int:
        """Channels of the last map."""
        return self.convs[-1].out_ch

    def draw(
        self,
        generator: torch.Generator,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """Kernels of standard normal numbers, all drawn at once.

        Args:
            generator: decides the device of the draw.
            device: where to; by default the generator's.
            dtype: of the kernels.
        """
        shapes = [(c.out_ch, c.in_ch // c.groups, c.kernel, c.kernel) for c in self.convs]
        sizes = [math.prod(shape) for shape in shapes]
        flat = normal((sum(sizes),), generator, device, dtype)
        return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]

    @torch.no_grad()
    def features(
        self,
        weights: Sequence[Tensor],
        x: Float[Tensor, "b c h w"],
        norm: str = "centred",
    ) -> tuple[Float[Tensor, "b k i j"], list[Tensor]]:
        """The last map, after its ReLU, and the variance of every channel entering batch norm t.

        Args:
            weights: a kernel for each convolution.
            x: the input.
            norm: `"centred"`: batch norm as usual; `"uncentred"`: divided by the root mean square,
                as in the proof of Theorem 1, where the second moment stands for the variance;
                `"none"`: without batch norm, and so without variances.
        """
        variances = []
        if x.device.type == "cpu" and x.dtype == torch.float32:
            x = x.contiguous(memory_format=torch.channels_last)  # up to twice as fast there
        for conv, weight in zip(self.convs, weights, strict=True):
            x = torch.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, conv.groups)
            if norm == "centred":
                x, _, inverse = torch.native_batch_norm(x, None, None, None, None, True, 0.0, EPS)
                variances.append(inverse)
            elif norm == "uncentred":
                moment = x.square().mean(dim=(0, 2, 3), keepdim=True)
                x = x * (moment + EPS).rsqrt()
                variances.append((moment + EPS).rsqrt().flatten())
            x.relu_()
        sizes = [len(inverse) for inverse in variances]
        if not sizes:
            return x, []
        found = torch.cat(variances).double().pow(-2).sub(EPS).clamp(min=0)
        return x, list(found.split(sizes))


def as_specs(specs: Specs) -> tuple[BlockSpec, ...]:
    """The blocks of a structure or of its string, their channels checked."""
    blocks = parse(specs) if isinstance(specs, str) else tuple(specs)
    check_channels(blocks)
    return blocks


def normal(
    shape: tuple[int, ...],
    generator: torch.Generator,
    device: torch.device | None,
    dtype: torch.dtype,
) -> Tensor:
    """Standard normal numbers, drawn where the generator lives, then moved."""
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    return drawn if device is None else drawn.to(device)


def own_generator(generator: torch.Generator | None) -> torch.Generator:
    """The given one, or a new one with seed 0: the global generator is never touched."""
    return torch.Generator().manual_seed(0) if generator is None else generator
