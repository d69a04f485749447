"""What turns pictures into features: two encoders of one shape, and the decoder."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.scenes.backbone import EmojiBackbone

QUIET = 0.2
"""Initial weights of the masks' stem, against the default: masks must not drown the picture, or no
cell of the query looks like one of the memory's object; ours."""


@dataclass(frozen=True)
class Features:
    """Features of one picture: the grid that is matched, and finer ones for the decoder."""

    grid: Float[Tensor, "batch channels height width"]
    skips: tuple[Float[Tensor, "batch _ _ _"], ...]
    """From coarse to fine; each twice as fine as the one before."""

    def repeat(self, times: int) -> "Features":
        """The same features for several objects of each picture."""
        if times == 1:
            return self
        grid, *skips = (x.repeat_interleave(times, dim=0) for x in (self.grid, *self.skips))
        return Features(grid, tuple(skips))


class Encoder(nn.Module):
    """A network from frames, and for the memory from masks too, to features.

    Called with frames [B,3,H,W] in 0…1 and, for the memory, masks [B·K,2,H,W]: each object, and
    all others of its frame.
    """

    channels: int
    """Of the grid."""
    skip_channels: tuple[int, ...]
    """Of the skips, from coarse to fine."""
    divisor: int
    """Sides of frames are multiples of this many pixels."""


class SmallEncoder(Encoder):
    """The shared emoji backbone; strides 4 and 8 are merged into one grid at stride 4.

    Args:
        backbone: five convolutions, trained or not; a copy of it is used.
        with_masks: whether it encodes the memory, and takes masks through a stem of their own.
    """

    channels = 64
    skip_channels = (24,)
    divisor = 8

    def __init__(self, backbone: EmojiBackbone | None = None, with_masks: bool = False) -> None:
        super().__init__()
        self.backbone = deepcopy(backbone) if backbone else EmojiBackbone()
        self.mask_stem = nn.Conv2d(2, 24, 3, 2, 1, bias=False) if with_masks else None
        if self.mask_stem is not None:
            self.mask_stem.weight.data *= QUIET
        fine, deep = self.backbone.channels
        self.lateral = nn.Conv2d(fine, self.channels, 1)
        self.top = nn.Conv2d(deep, self.channels, 1)

    def forward(self, frame: Tensor, masks: Tensor | None = None) -> Features:
        """Features of frames in 0…1; with masks, one set for each object of each frame."""
        first, *rest = self.backbone.stem.children()
        conv, norm, relu = first.children()
        x = conv(frame - 0.5)
        if self.mask_stem is not None and masks is not None:
            x = x.repeat_interleave(len(masks) // len(x), dim=0) + self.mask_stem(masks)
        skip = x = relu(norm(x))
        for block in rest:
            x = block(x)
        coarse = F.interpolate(self.top(self.backbone.deep(x)), scale_factor=2.0)
        return Features(self.lateral(x) + coarse, (skip,))


class Decoder(nn.Module):
    """From what was read and the query's own value to a mask: refine at each skip, enlarge.

    Args:
        value_dim: of v^G and of v^Q.
        skip_channels: of the encoder.
        width: of all its layers; 64 in our network, 256 with ResNet-50 (Oh et al. 2019).
    """

    def __init__(self, value_dim: int, skip_channels: tuple[int, ...], width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(2 * value_dim, width, 3, padding=1)
        self.start = Residual(width)
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1) for c in skip_channels)
        self.stages = nn.ModuleList(Residual(width) for _ in skip_channels)
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(
        self, read: Tensor, value: Tensor, skips: tuple[Tensor, ...], size: tuple[int, int]
    ) -> Float[Tensor, "batch rows columns"]:
        """Logit of the object at each pixel of a frame of the given size."""
        x = self.start(self.first(torch.cat([read, value], dim=1)))
        for skip, lateral, stage in zip(skips, self.laterals, self.stages, strict=True):
            enlarged = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
            x = stage(lateral(skip) + enlarged)
        logits = F.interpolate(self.out(F.relu(x)), size, mode="bilinear", align_corners=False)
        return logits[:, 0]


class Residual(nn.Module):
    """Two convolutions around an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the convolutions add to it."""
        return x + self.body(x)
