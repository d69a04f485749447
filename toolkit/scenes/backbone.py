"""Where small detectors start: five convolutions trained to tell 100 emoji concepts apart.

They stand in for a network trained on ImageNet. No concept of the scenes is among the 100.
"""

from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from toolkit.data.store import locate

LAYERS = ((3, 24, 2), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1))
"""Input and output channels and stride of each convolution."""


class EmojiBackbone(nn.Module):
    """Five 3×3 convolutions with group norm and ReLU: feature maps of strides 4 and 8."""

    channels = (48, 96)
    """Of the maps of stride 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(conv_block(*layer) for layer in LAYERS[:3]))
        self.deep = nn.Sequential(*(conv_block(*layer) for layer in LAYERS[3:]))

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> tuple[Tensor, Tensor]:
        """Maps [batch, 48, H/4, W/4] and [batch, 96, H/8, W/8]; pixels from 0 to 1."""
        fine = self.stem(x - 0.5)
        return fine, self.deep(fine)


def conv_block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution from He's initial weights, group norm (8 groups) and ReLU."""
    conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(8, after), nn.ReLU())


def pretrained_backbone() -> EmojiBackbone:
    """The backbone with the weights that `data_scripts/backbone.py` trained.

    Raises:
        DataMissing: if they are not prepared; the message names the command.
    """
    backbone = EmojiBackbone()
    backbone.load_state_dict(load_file(locate("scenes", "backbone.safetensors")))
    return backbone
