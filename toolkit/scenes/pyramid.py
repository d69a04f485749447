"""Feature pyramids: the small one on emoji features, and torchvision's ResNet-FPN at full scale."""

from collections import OrderedDict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from toolkit.scenes.backbone import EmojiBackbone, conv_block, pretrained_backbone


class EmojiPyramid(nn.Module):
    """The emoji backbone under a feature pyramid, one map a stride, all of one width.

    Lin et al., "Feature pyramid networks for object detection" (2017). Each output map has group
    norm and ReLU, without which detectors this small learn little.
    """

    def __init__(
        self, strides: Sequence[int] = (4, 8, 16), width: int = 48, pretrained: bool = True
    ):
        """Build it.

        Args:
            strides: (4, 8) or (4, 8, 16); the last comes from a convolution that is new.
            width: channels of every map, a multiple of 8.
            pretrained: start from the shared weights; else at random.

        Raises:
            ValueError: for other strides or another width.
            DataMissing: if the weights are not prepared.
        """
        super().__init__()
        if tuple(strides) not in ((4, 8), (4, 8, 16)):
            raise ValueError(f"strides must be (4, 8) or (4, 8, 16), got {tuple(strides)}")
        if width < 8 or width % 8:
            raise ValueError(f"width must be a positive multiple of 8, got {width}")
        self.strides, self.width = tuple(strides), width
        self.backbone = pretrained_backbone() if pretrained else EmojiBackbone()
        channels = [*EmojiBackbone.channels]
        self.coarse = nn.Sequential()
        if len(strides) == 3:
            self.coarse = conv_block(channels[-1], channels[-1], 2)
            channels.append(channels[-1])
        self.pyramid = FeaturePyramidNetwork(channels, width)
        norms = [nn.Sequential(nn.GroupNorm(8, width), nn.ReLU()) for _ in channels]
        self.norms = nn.ModuleList(norms)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Maps [batch, width, H/s, W/s] for every stride s; pixels from 0 to 1."""
        fine, middle = self.backbone(x)
        maps = [fine, middle, self.coarse(middle)][: len(self.strides)]
        named = OrderedDict((str(level), one) for level, one in enumerate(maps))
        out = self.pyramid(named).values()
        return [norm(one) for norm, one in zip(self.norms, out, strict=True)]


class ResNetPyramid(nn.Module):
    """torchvision's ResNet under a pyramid of strides 8 to 128, as RetinaNet and FCOS have it."""

    strides = (8, 16, 32, 64, 128)
    width = 256

    def __init__(self, depth: int = 50, weights: str | None = "DEFAULT", trainable_layers: int = 3):
        """Build it.

        Args:
            depth: 50 or 101.
            weights: ImageNet weights by torchvision's name, which it downloads, or `None`.
            trainable_layers: stages counted from the last that are trained, 0 to 5.

        Raises:
            ValueError: for another depth.
        """
        super().__init__()
        if depth not in (50, 101):
            raise ValueError(f"depth must be 50 or 101, got {depth}")
        self.body = resnet_fpn_backbone(
            backbone_name=f"resnet{depth}",
            weights=weights,
            trainable_layers=trainable_layers,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(self.width, self.width),
        )

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Maps [batch, 256, H/s, W/s] for strides 8 to 128; pixels normalised as for ImageNet."""
        return list(self.body(x).values())
