"""Small reference networks."""

import itertools

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(*widths: int) -> nn.Sequential:
    """A multi-layer perceptron with ReLU between its layers.

    Args:
        *widths: from input to output, such as `mlp(784, 128, 10)`; inputs are [batch, widths[0]].

    Raises:
        ValueError: for fewer than two widths, or one below 1.
    """
    _positive(widths, least=2)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv_net(*channels: int, in_channels: int = 1, norm: str = "batch") -> nn.Sequential:
    """Stages of 3×3 convolution with stride 2, norm and ReLU; no head.

    Args:
        *channels: of each stage; the output is [batch, channels[-1], H / 2^stages, W / 2^stages].
        in_channels: of the images.
        norm: `"batch"`, `"group"` (8 groups) or `"none"`.

    Raises:
        ValueError: for no stage, a width below 1 or an unknown norm.
    """
    _positive(channels, least=1)
    layers: list[nn.Module] = []
    for before, after in zip((in_channels, *channels), channels, strict=False):
        bias = norm == "none"
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=bias), _norm(norm, after), nn.ReLU()]
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around an identity, or a 1×1 convolution where the shape changes.

    He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2016), Figure 2.
    """

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            _norm(norm, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            _norm(norm, after),
        )
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """Return relu(body(x) + skip(x)); the side shrinks by the stride."""
        return F.relu(self.body(x) + self.skip(x))


def small_resnet(*channels: int, in_channels: int = 3, norm: str = "batch") -> nn.Sequential:
    """A 3×3 stem and one residual block a stage, each but the first with stride 2; no head.

    Args:
        *channels: of each stage; the output is [batch, channels[-1], H / 2^(stages−1), …].
        in_channels: of the images.
        norm: `"batch"`, `"group"` (8 groups) or `"none"`.

    Raises:
        ValueError: for no stage, a width below 1 or an unknown norm.
    """
    _positive(channels, least=1)
    stem = [nn.Conv2d(in_channels, channels[0], 3, 1, 1, bias=False), _norm(norm, channels[0])]
    widths = zip((channels[0], *channels), channels, strict=False)
    blocks = [
        ResidualBlock(before, after, 1 if index == 0 else 2, norm)
        for index, (before, after) in enumerate(widths)
    ]
    return nn.Sequential(*stem, nn.ReLU(), *blocks)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(8, channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm is 'batch', 'group' or 'none', got {kind!r}")


def _positive(widths: tuple[int, ...], least: int) -> None:
    if len(widths) < least or any(width < 1 for width in widths):
        raise ValueError(f"need at least {least} widths, each 1 or more, got {widths}")
