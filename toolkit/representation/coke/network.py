"""The network: a backbone, a projection that is clustered, a prediction that is trained."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18, resnet50

from toolkit.learn.nets import conv_net


class CoKe(nn.Module):
    """Backbone, projection head and prediction head; both heads give unit vectors.

    Args:
        backbone: images to features [batch, width].
        projector: to x, which is clustered.
        predictor: from the projection to p, which learns last epoch's labels.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector, self.predictor = backbone, projector, predictor

    def forward(
        self, images: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"]]:
        """The projection x and the prediction p of each image, of unit length, in float32."""
        z = self.projector(self.backbone(images))
        return F.normalize(z.float(), dim=1), F.normalize(self.predictor(z).float(), dim=1)


def head(*widths: int, last_norm: bool) -> nn.Sequential:
    """Linear-BN-ReLU layers; the last has no ReLU, and BN only for a projection."""
    layers: list[nn.Module] = []
    pairs = list(itertools.pairwise(widths))
    for before, after in pairs[:-1]:
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    before, after = pairs[-1]
    layers.append(nn.Linear(before, after, bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(after))
    return nn.Sequential(*layers)


def build_network(name: str, seed: int, in_channels: int = 1) -> tuple[CoKe, int]:
    """A network by name, and the width d of what is clustered.

    Args:
        name: `"small"` (three stride-2 convolutions, 256 features; d = 64), `"resnet18"` or
            `"resnet50"` with the released heads (projection 2048-2048-2048-128 on 2,048 features,
            prediction 128-2048-128).
        seed: of the weights; the same on every rank.
        in_channels: of the images; the ResNets take 3.

    Raises:
        ValueError: for another name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "small":
            stages = conv_net(16, 32, 64, in_channels=in_channels)
            backbone = nn.Sequential(stages, nn.AdaptiveAvgPool2d(2), nn.Flatten())
            projector = head(256, 128, 64, last_norm=True)
            return CoKe(backbone, projector, head(64, 128, 64, last_norm=False)), 64
        if name in ("resnet18", "resnet50"):
            resnet = resnet50() if name == "resnet50" else resnet18()
            width = resnet.fc.in_features
            resnet.fc = nn.Identity()
            projector = head(width, 2048, 2048, 128, last_norm=True)
            return CoKe(resnet, projector, head(128, 2048, 128, last_norm=False)), 128
    raise ValueError(f"network is 'small', 'resnet18' or 'resnet50', got {name!r}")
