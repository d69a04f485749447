"""The two networks of the CIFAR recipe: pre-activation ResNet-18 and WRN-28-10."""

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet50

BACKBONES = ("preact_resnet18", "wrn_28_10", "resnet50")


class PreActivationBlock(nn.Module):
    """Norm, ReLU, 3×3 convolution, twice, around a shortcut (He et al. 2016, Figure 1b).

    Where the shape changes, the shortcut is a 1×1 convolution of the activated input.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
        )
        changes = before != after or stride > 1
        self.skip = nn.Conv2d(before, after, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """Return shortcut + body; the side shrinks by the stride."""
        active = self.activate(x)
        return self.body(active) + (x if self.skip is None else self.skip(active))


def preactivation_resnet(
    stem: int, widths: tuple[int, ...], blocks: int, classes: int
) -> nn.Sequential:
    """A 3×3 stem, stages of pre-activation blocks (stride 2 from the second on), mean, linear."""
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, 1, 1, bias=False)]
    before = stem
    for number, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if number and not block else 1
            layers.append(PreActivationBlock(before, width, stride))
            before = width
    head = [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(before, classes))


def backbone(name: str, classes: int) -> nn.Module:
    """A network from images [b, 3, h, w] to logits [b, classes].

    `preact_resnet18` (He et al. 2016) and `wrn_28_10` (Zagoruyko and Komodakis 2016, without
    dropout) for 32×32 images, torchvision's `resnet50` for larger ones.

    Raises:
        ValueError: for another name.
    """
    if name == "preact_resnet18":
        return preactivation_resnet(64, (64, 128, 256, 512), 2, classes)
    if name == "wrn_28_10":
        return preactivation_resnet(16, (160, 320, 640), 4, classes)
    if name == "resnet50":
        return resnet50(weights=None, num_classes=classes)
    raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}; got {name!r}")
