"""The structure language of the architecture chapters: strings, blocks, networks, exact costs.

A network is a chain of super-blocks, written `Name(…)Name(…)…` with the names of the two releases.
A super-block is n layers of one kind; only its first layer has the stride. The kinds:

| name | numbers in brackets | a layer |
|---|---|---|
| `SuperConvK3BNRELU` | in, out, stride, n | k×k |
| `SuperResKXKX` (XX) | in, out, kernel, stride, ratio, n | k×k →e, k×k |
| `SuperResK1KXK1` (BL) | the same | 1×1 →e, k×k, 1×1 |
| `SuperResK1DWK1` (DW) | the same | 1×1 →e, depthwise k×k, 1×1 |
| `SuperResK3K3` | in, out, stride, e, n | k×k →e, k×k |
| `SuperResK1K3K1` | the same | two bottlenecks: 1×1 →e, k×k, 1×1 |
| `SuperResIDWE4K3` | the same | two inverted bottlenecks of widths 4e →e, then 4·out →out |

XX, BL and DW are those of GENet (Lin et al. 2020, arXiv:2006.14090): e = round(ratio · out), and a
shortcut projects only where the shape changes. The others are those of Zen-NAS (Lin et al. 2021,
arXiv:2102.01063): e is absolute, and the first shortcut of a super-block always projects. Batch
norm follows every convolution, ReLU all of them but the last of a residual block; it also follows
the sum.
"""

from toolkit.networks.structures.blocks import (
    BY_RATIO,
    BlockSpec,
    Structure,
    check_channels,
    kernel_of,
    parse,
    repair,
    to_text,
)
from toolkit.networks.structures.costs import (
    Conv,
    Cost,
    Unit,
    count,
    to_multiple,
    units,
    walk,
)
from toolkit.networks.structures.modules import (
    ConvBN,
    Network,
    Residual,
    block,
    build,
)
from toolkit.networks.structures.mutation import (
    Space,
    mutate,
)

__all__ = [
    "BY_RATIO",
    "BlockSpec",
    "Conv",
    "ConvBN",
    "Cost",
    "Network",
    "Residual",
    "Space",
    "Structure",
    "Unit",
    "block",
    "build",
    "check_channels",
    "count",
    "kernel_of",
    "mutate",
    "parse",
    "repair",
    "to_multiple",
    "to_text",
    "units",
    "walk",
]
