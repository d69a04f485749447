"""Structures as torch modules."""

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.networks.structures.blocks import BlockSpec, Structure, check_channels
from toolkit.networks.structures.costs import Conv, Unit, units


class ConvBN(nn.Module):
    """A convolution and its batch norm."""

    def __init__(self, conv: Conv, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            conv.in_ch,
            conv.out_ch,
            conv.kernel,
            conv.stride,
            conv.kernel // 2,
            groups=conv.groups,
            bias=conv.bias,
        )
        self.bn = nn.BatchNorm2d(conv.out_ch, eps=eps)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """The normalised map."""
        return self.bn(self.conv(x))


class Residual(nn.Module):
    """relu(convolutions(x) + shortcut(x)), with a ReLU between any two convolutions."""

    def __init__(self, unit: Unit, eps: float) -> None:
        super().__init__()
        self.shortcut: nn.Module | None = None  # first, as released weights list it first
        if unit.shortcut is True:
            self.shortcut = nn.Identity()
        elif unit.shortcut:
            self.shortcut = ConvBN(unit.shortcut, eps)
        self.convs = nn.ModuleList(ConvBN(conv, eps) for conv in unit.convs)

    @property
    def last(self) -> ConvBN:
        """The convolution before the sum."""
        last = self.convs[-1]
        assert isinstance(last, ConvBN)
        return last

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """The block's output; the side shrinks by the stride."""
        out = x
        for number, conv in enumerate(self.convs):
            out = conv(F.relu(out) if number else out)
        return F.relu(out if self.shortcut is None else out + self.shortcut(x))


class Network(nn.Module):
    """A chain of super-blocks, global average pooling, a linear classifier.

    Attributes:
        blocks: one `nn.Sequential` of `Residual` a super-block.
        head: the classifier.
    """

    def __init__(self, blocks: Sequence[nn.Module], features: int, num_classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(features, num_classes)

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """The last map, before pooling."""
        return self.blocks(x)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        return self.head(self.forward_features(x).mean(dim=(2, 3)))


def block(
    spec: BlockSpec, *, residual: bool = True, zero_last: bool = False, eps: float = 1e-5
) -> nn.Sequential:
    """One super-block as a module of `Residual`; the arguments are those of `build`."""
    made = [unit if residual else replace(unit, shortcut=False) for unit in units(spec)]
    layers = [Residual(unit, eps) for unit in made]
    for layer in layers:
        if zero_last and layer.shortcut is not None:
            nn.init.zeros_(layer.last.bn.weight)
    return nn.Sequential(*layers)


def build(
    specs: Structure,
    num_classes: int,
    *,
    residual: bool = True,
    zero_last: bool = False,
    eps: float = 1e-5,
) -> Network:
    """The network of a structure, with torch's default initialisation.

    Args:
        specs: the structure; the input has as many channels as its first block takes.
        num_classes: of the classifier.
        residual: with shortcuts.
        zero_last: start the last batch norm of every block with a shortcut at γ = 0, so that each
            block begins as its shortcut.
        eps: of batch norm.

    Raises:
        ValueError: for mismatched channels or fewer than one class.
    """
    check_channels(specs)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    blocks = [block(spec, residual=residual, zero_last=zero_last, eps=eps) for spec in specs]
    return Network(blocks, specs[-1].out_ch, num_classes)
