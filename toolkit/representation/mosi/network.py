"""Small and large video networks for motion classes, and where they look."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TinyVideoNet(nn.Sequential):
    """Three 3D convolutions with batch norm: [b, 1, 8, 40, 40] to maps [b, 64, 2, 10, 10]."""

    features = 64

    def __init__(self, channels: int = 1) -> None:
        super().__init__(
            *_stage(channels, 16, (3, 5, 5), (1, 2, 2)),
            *_stage(16, 32, (3, 3, 3), (2, 2, 2)),
            *_stage(32, 64, (3, 3, 3), (2, 1, 1)),
        )


class MoSINet(nn.Module):
    """A backbone, global average pooling, dropout and a linear head, or one head an axis."""

    def __init__(
        self, backbone: nn.Module, n_classes: int | Sequence[int], dropout: float = 0.5
    ) -> None:
        """Put heads on a backbone.

        Args:
            backbone: from clips to maps [b, features, time, height, width]; its attribute
                `features` says how many.
            n_classes: of the joint head, or of each of several heads.
            dropout: before the heads.

        Raises:
            ValueError: for fewer than two classes.
        """
        super().__init__()
        sizes = (n_classes,) if isinstance(n_classes, int) else tuple(n_classes)
        if not sizes or min(sizes) < 2:
            raise ValueError(f"each head needs two classes or more, got {n_classes}")
        self.backbone, self.sizes = backbone, sizes
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(int(backbone.features), sum(sizes))  # type: ignore[arg-type]

    def maps(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k s i j"]:
        """Activations of the last stage."""
        return self.backbone(clips)

    def embed(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """Their mean over time and space: the features that probes see."""
        return self.maps(clips).mean(dim=(2, 3, 4))

    def forward(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b logits"]:
        """Logits; those of several heads stand side by side."""
        return self.head(self.dropout(self.embed(clips)))

    def loss(self, clips: Float[Tensor, "b c t h w"], labels: Tensor) -> Float[Tensor, ""]:
        """`heads_loss` of a batch."""
        return heads_loss(self(clips), labels, self.sizes)


def heads_loss(
    logits: Float[Tensor, "b logits"], labels: Tensor, sizes: Sequence[int]
) -> Float[Tensor, ""]:
    """Cross-entropy, the mean over clips and the sum over heads.

    Args:
        logits: of all heads, side by side.
        labels: [b], or [b, heads] for several heads.
        sizes: how many classes each head has.
    """
    columns = labels.view(len(labels), -1).unbind(dim=1)
    losses = [
        nn.functional.cross_entropy(part, column)
        for part, column in zip(logits.split(list(sizes), dim=1), columns, strict=True)
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def cam(
    model: MoSINet, clips: Float[Tensor, "b c t h w"], size: tuple[int, int], chunk: int = 64
) -> Float[Tensor, "b height width"]:
    """Where the last stage is active: |activation| summed over channels, averaged over time.

    No label is needed, so it can be read before any fine-tuning.

    Args:
        model: its maps are used, in evaluation mode.
        clips: as the model takes them.
        size: height and width to interpolate to, bilinearly.
        chunk: clips at a time.
    """
    training = model.training
    model.eval()
    coarse = [model.maps(part).abs().sum(dim=1).mean(dim=1) for part in clips.split(chunk)]
    model.train(training)
    return nn.functional.interpolate(torch.cat(coarse)[:, None], size, mode="bilinear")[:, 0]


def standardise(clips: Float[Tensor, "*batch c t h w"]) -> Float[Tensor, "*batch c t h w"]:
    """Each clip to mean 0 and deviation 1; a constant clip becomes 0."""
    dims = (-4, -3, -2, -1)
    centred = clips - clips.mean(dim=dims, keepdim=True)
    return centred / (centred.square().mean(dim=dims, keepdim=True).sqrt() + 1e-3)


def _stage(
    before: int, after: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> list[nn.Module]:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(before, after, kernel, stride, padding, bias=False)
    return [conv, nn.BatchNorm3d(after), nn.ReLU(inplace=True)]
