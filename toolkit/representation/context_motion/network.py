"""One video backbone, a motion network, a keyframe network, and what predicts between them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.representation.mosi.network import TinyVideoNet

POSITIONS = (1, 7, 7)
"""Of the predicted motion features: time, rows, columns."""


class ProjectionHead(nn.Sequential):
    """Linear, batch norm, ReLU, linear, batch norm; then unit length. Huang et al. 2021."""

    def __init__(self, features: int, hidden: int, out: int) -> None:
        super().__init__(
            nn.Linear(features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out, bias=False),
            nn.BatchNorm1d(out),
        )

    def forward(self, x: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Project rows onto the unit sphere."""
        return F.normalize(super().forward(x), dim=1)


class MotionPredictor(nn.Module):
    """A small transformer that asks a clip's memory for the motion at every future position.

    Huang et al. 2021. Memory: the backbone's map, one token a position, with learned positions as
    part of the keys. Queries: one learned vector a predicted position; the decoder's input is zero.
    """

    def __init__(
        self,
        features: int,
        width: int = 512,
        tokens: int = 98,
        queries: int = 49,
        layers: tuple[int, int] = (2, 4),
        heads: int = 8,
        hidden: int = 512,
        dropout: float = 0.1,
    ) -> None:
        """Make a predictor.

        Args:
            features: channels of the backbone's map.
            width: of the transformer.
            tokens: positions of the map.
            queries: positions to predict.
            layers: of encoder and decoder.
            heads: of attention.
            hidden: width of the feed-forward parts.
            dropout: in all layers.

        Raises:
            ValueError: if the width is no multiple of the heads.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of {heads} heads")
        self.inward = nn.Linear(features, width)
        self.place = nn.Parameter(torch.randn(tokens, width))
        self.query = nn.Parameter(torch.randn(queries, width))
        shape = (width, heads, hidden, dropout)
        self.encoder = nn.ModuleList(_Layer(*shape, cross=False) for _ in range(layers[0]))
        self.decoder = nn.ModuleList(_Layer(*shape, cross=True) for _ in range(layers[1]))

    def forward(self, maps: Float[Tensor, "b k t h w"]) -> Float[Tensor, "b queries width"]:
        """Predicted features, a row a position.

        Raises:
            ValueError: if the map has another number of positions than the learned ones.
        """
        memory = maps.flatten(2).transpose(1, 2)
        if memory.shape[1] != len(self.place):
            raise ValueError(f"need {len(self.place)} positions, got {memory.shape[1]}")
        memory = self.inward(memory)
        for layer in self.encoder:
            memory = layer(memory, self.place)
        found = torch.zeros_like(self.query).expand(len(memory), -1, -1)
        for layer in self.decoder:
            found = layer(found, self.query, memory, self.place)
        return found


class LinearPredictor(nn.Module):
    """The same without attention: each future position sees the map at its own place only."""

    def __init__(self, features: int, width: int, size: tuple[int, int] = POSITIONS[1:]) -> None:
        super().__init__()
        self.size, self.inward = size, nn.Linear(features, width)

    def forward(self, maps: Float[Tensor, "b k t h w"]) -> Float[Tensor, "b queries width"]:
        """Predicted features, a row a position."""
        here = F.interpolate(maps.mean(dim=2), self.size, mode="bilinear", align_corners=False)
        return self.inward(here.flatten(2).transpose(1, 2))


class _Layer(nn.Module):
    """Self-attention, attention to a memory where there is one, feed-forward; norms come last."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, cross: bool) -> None:
        super().__init__()
        count = 2 if cross else 1
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(width, heads, dropout, batch_first=True) for _ in range(count)
        )
        self.forward_part = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(count + 1))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, place: Tensor, memory: Tensor | None = None, there: Tensor | None = None
    ) -> Tensor:
        asked = x + place
        seen, _ = self.attention[0](asked, asked, x, need_weights=False)
        x = self.norms[0](x + self.dropout(seen))
        if memory is not None and there is not None:
            seen, _ = self.attention[1](x + place, memory + there, memory, need_weights=False)
            x = self.norms[1](x + self.dropout(seen))
        return self.norms[-1](x + self.dropout(self.forward_part(x)))


class ContextMotionNet(nn.Module):
    """All networks of the method around one backbone; only the backbone is used afterwards."""

    def __init__(
        self,
        backbone: nn.Module,
        predictor: nn.Module,
        motion: nn.Module,
        keyframe: nn.Module,
        features: Sequence[int],
        projection: tuple[int, int],
        pool: tuple[int, int, int] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            backbone: from clips to maps.
            predictor: from maps to features at future positions, `MotionPredictor`.
            motion: g_m, from motion windows to maps of as many positions.
            keyframe: g_i, from pictures to maps.
            features: widths of the maps of backbone, predictor, g_m and g_i.
            projection: hidden and final width of the four heads.
            pool: positions of the backbone's map that the predictor sees; None: all.
        """
        super().__init__()
        self.backbone, self.predictor, self.motion, self.keyframe = (
            backbone, predictor, motion, keyframe,
        )  # fmt: skip
        self.pool = pool
        clip, predicted, moved, still = features
        self.q_motion, self.k_motion, self.q_context, self.k_context = (
            ProjectionHead(width, *projection) for width in (predicted, moved, clip, still)
        )

    def maps(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k s i j"]:
        """The backbone's map, pooled to the predictor's positions."""
        found = self.backbone(clips)
        return found if self.pool is None else F.adaptive_avg_pool3d(found, self.pool)

    def embed(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """Its mean over time and space: the features that probes see."""
        return self.maps(clips).mean(dim=(2, 3, 4))

    forward = embed

    def motion_queries(self, maps: Float[Tensor, "b k s i j"]) -> Float[Tensor, "n d"]:
        """q_m at every predicted position, videos one after the other."""
        return self.q_motion(self.predictor(maps).flatten(0, 1))

    def motion_keys(self, windows: Float[Tensor, "b 2 t h w"]) -> Float[Tensor, "n d"]:
        """k_m at every position of motion windows."""
        found = self.motion(windows).flatten(2).transpose(1, 2)
        return self.k_motion(found.flatten(0, 1))

    def context_queries(self, maps: Float[Tensor, "b k s i j"]) -> Float[Tensor, "b d"]:
        """q_i of clips."""
        return self.q_context(maps.mean(dim=(2, 3, 4)))

    def context_keys(self, pictures: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """k_i of keyframes."""
        return self.k_context(self.keyframe(pictures).mean(dim=(2, 3)))


def tiny_network(
    width: int,
    layers: tuple[int, int],
    heads: int,
    dropout: float,
    projection: tuple[int, int],
    linear: bool = False,
) -> ContextMotionNet:
    """The small experiment's networks: grey clips [b, 1, 8, 40, 40], motion [b, 2, 8, 14, 14].

    The backbone's map is pooled to 2×5×5 = 50 tokens; 7×7 positions are predicted.
    """
    k = TinyVideoNet.features
    predictor = (
        LinearPredictor(k, width)
        if linear
        else MotionPredictor(k, width, 50, 49, layers, heads, 2 * width, dropout)
    )
    motion = nn.Sequential(
        *_stage3(2, 16, (1, 1, 1)), *_stage3(16, 32, (2, 2, 2)), *_stage3(32, 64, (4, 1, 1))
    )
    keyframe = nn.Sequential(*_stage2(1, 16), *_stage2(16, 32), *_stage2(32, 64))
    return ContextMotionNet(
        TinyVideoNet(), predictor, motion, keyframe, (k, width, 64, 64), projection, (2, 5, 5)
    )


def _stage3(before: int, after: int, stride: tuple[int, int, int]) -> list[nn.Module]:
    """A 3D convolution; a stride of 4 in time takes all four frames that are left."""
    kernel, padding = ((4, 3, 3), (0, 1, 1)) if stride[0] == 4 else ((3, 3, 3), (1, 1, 1))
    conv = nn.Conv3d(before, after, kernel, stride, padding, bias=False)
    return [conv, nn.BatchNorm3d(after), nn.ReLU(inplace=True)]


def _stage2(before: int, after: int) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, 3, 2, 1, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
