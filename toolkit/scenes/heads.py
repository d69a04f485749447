"""The dense head of one-stage detectors: towers of convolutions shared by all pyramid levels."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Tower(nn.Module):
    """3×3 convolutions with group norm and ReLU, then one 3×3 convolution to the outputs."""

    def __init__(self, width: int, outputs: int, depth: int = 2, groups: int = 8):
        """Build it; the last layer starts with weights of σ = .01 and zero bias.

        Args:
            width: channels of the pyramid's maps.
            outputs: numbers at each location.
            depth: convolutions before the last.
            groups: of the group norms; they must divide `width`.

        Raises:
            ValueError: for a negative depth, no output, or groups that do not divide the width.
        """
        super().__init__()
        if depth < 0 or outputs < 1 or width % groups:
            raise ValueError(
                f"need depth ≥ 0, outputs ≥ 1 and groups that divide the width, got {depth=}, "
                f"{outputs=}, {groups=}, {width=}"
            )
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)]
        layers = [(conv, nn.GroupNorm(groups, width), nn.ReLU()) for conv in convs]
        self.body = nn.Sequential(*(one for block in layers for one in block))
        self.last = nn.Conv2d(width, outputs, 3, padding=1)
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.normal_(self.last.weight, std=0.01)
        for conv in [*convs, self.last]:
            nn.init.constant_(conv.bias, 0.0)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "batch locations outputs"]:
        """Outputs at all locations: levels follow each other, rows of cells from the top."""
        rows = [self.last(self.body(one)).flatten(2).transpose(1, 2) for one in maps]
        return torch.cat(rows, 1)


def rare_bias(probability: float = 0.01) -> float:
    """The logit of a class that is rare at first: −log((1 − π)/π).

    Lin et al., "Focal loss for dense object detection" (2017), section 3.3: without it, the loss
    of the many negatives drowns all else in the first steps.
    """
    return -math.log((1 - probability) / probability)
