"""Squeeze and excitation for the networks with a budget of multiply-adds.

Only those have it in the paper, and only where they are trained: scores and budgets never see it.
Where it stands and how narrow it is could not be verified; both are the usual choice.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from toolkit.networks.structures import Network, Residual


class Gate(nn.Module):
    """x · σ(W₂ relu(W₁ mean x)): each channel is weighted by what the whole map holds."""

    def __init__(self, channels: int, share: float = 0.25) -> None:
        super().__init__()
        inner = max(1, round(share * channels))
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.excite = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The weighted map."""
        weights = self.excite(self.squeeze(x.mean(dim=(2, 3), keepdim=True)).relu())
        return x * torch.sigmoid(weights)


class Gated(nn.Module):
    """A gate before a convolution with its batch norm."""

    def __init__(self, channels: int, conv: nn.Module) -> None:
        super().__init__()
        self.gate, self.body = Gate(channels), conv

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """Gate, convolution, batch norm."""
        return self.body(self.gate(x))


def add_gates(net: Network) -> Network:
    """Put a gate before the last convolution of every block of three, in place.

    There the map is widest: after the k×k convolution of a bottleneck, plain or inverted.
    """
    for block in net.modules():
        if isinstance(block, Residual) and len(block.convs) == 3:
            channels = block.last.conv.in_channels
            block.convs[2] = Gated(channels, block.last)
    return net
