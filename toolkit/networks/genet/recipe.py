"""Every number of the experiments, for the profiles `quick` and `full`."""

from dataclasses import dataclass, replace

from toolkit.networks.genet.llr import SearchSpace
from toolkit.networks.genet.placement import place
from toolkit.networks.structures import parse, to_text

RES, CLASSES = 28, 10
LATENCY_BATCH = 64
"""Images of a pass where latency is measured."""

MASTER = (
    "SuperConvK3BNRELU(1,8,2,1)SuperResKXKX(8,12,3,1,1,1)SuperResK1KXK1(12,24,3,2,0.25,2)"
    "SuperResK1DWK1(24,48,3,2,3,2)SuperConvK1BNRELU(48,96,1,1)"
)
"""GE-mini, the master network: XX, BL, DW from low to high; maps of 14², 7² and 4² pixels."""

SPACE = SearchSpace(parse(MASTER), stages=(1, 2, 3))
"""3 × 4 × 5 options a stage, 45 where the master has one layer: 162,000 structures."""

WIDTHS: dict[str, tuple[int, int, int]] = {
    "XX-BL-DW": (12, 24, 48),
    "XX-XX-DW": (8, 24, 48),
    "XX-XX-XX": (12, 24, 48),
    "BL-BL-BL": (24, 48, 96),
    "DW-DW-DW": (8, 8, 48),
    "DW-BL-XX": (8, 24, 64),
}
"""Output channels of six assignments of types to stages. They make whole networks as fast as the
master, measured on one core of an x86 machine; layer tables proposed them, see `match_latency`."""

PLACEMENTS = {
    arm: to_text(place(parse(MASTER), arm.split("-"), widths)) for arm, widths in WIDTHS.items()
}
"""These six structures; depths are the master's."""

TUNED = (0.2, 0.4, 0.8, 1.6)
"""Learning rates that every placement is tried with, see `tuning_grid`."""


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters; the paper trains on ImageNet, these are ours unless a comment says so."""

    arms: tuple[str, ...] = tuple(PLACEMENTS)  # assignments of block types to stages
    seeds: int = 2
    steps: int = 60  # of SGD with Nesterov momentum; paper: 480 epochs
    batch: int = 128  # images a step
    rates: tuple[float, ...] = (0.4,) * len(PLACEMENTS)  # learning rates of the arms
    rate: float = 0.4  # of the master and of single structures; paper: 0.1 per 256 images
    momentum: float = 0.9  # as the paper
    weight_decay: float = 5e-4  # paper: 4e-5
    warmup: float = 0.15  # share of the steps, then a cosine to 0; paper: 5 of 480 epochs
    structure: str = ""  # of `train_structure`

    variants: int = 4  # M of each stage and type; paper: not stated
    master_steps: int = 120  # of training the master F₀
    distil_steps: int = 10  # D of each variant; paper: not stated
    distil_rate: float = 0.2  # learning rate there
    judged: int = 1000  # validation images on which ΔA is measured

    rank_width: int = 32  # channels of all stages of the net of C3
    rank_steps: int = 1000  # of its training
    rank_batch: int = 64  # images a step there
    rank_rate: float = 0.1  # learning rate there
    init: float = 1.0  # factor of its initial kernels; batch norm hides it from the outputs


FEW = ("XX-BL-DW", "XX-XX-XX", "DW-BL-XX")
QUICK = Recipe(arms=FEW, rates=(0.4,) * len(FEW))
FULL = Recipe(
    seeds=4,
    steps=200,
    variants=8,
    master_steps=200,
    distil_steps=40,
    judged=4000,
)


def tuning_grid(arm: str) -> tuple[Recipe, ...]:
    """The recipes among which `toolkit.runtime.tune` chooses a placement's learning rate."""
    return tuple(replace(FULL, steps=60, arms=(arm,), rates=(rate,)) for rate in TUNED)
