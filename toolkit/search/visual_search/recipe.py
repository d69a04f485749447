"""Every number of the experiments, for the three profiles."""

from dataclasses import dataclass

ARMS = (
    "joint",
    "whole",
    "centred",
    "truth",
    "random",
    "raw",
    "category",
    "noise.1",
    "noise.2",
    "noise.4",
)
"""What trains the network: cleaned clicks with a learnt box; the whole image; a centred box of the
mean size; the true box; positives at random; raw clicks; the leaf category; clicks of which a share
is replaced by any shown item."""


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters. "Not verified" marks what is believed of the paper but was not at hand."""

    arms: tuple[str, ...] = ARMS
    seeds: int = 1
    products: int = 300  # of the shop; paper: billions of items (not verified)
    steps: int = 400  # of the optimiser; ours
    batch: int = 32  # triplets a step, m; their negatives make m² (the number: not verified)
    side: int = 48  # pixels of what the trunk sees; paper: 227 crops of 256
    box_side: int = 24  # pixels of what the box branch sees; ours
    d: int = 64  # feature width; paper: 512 (not verified)
    lr: float = 4e-3  # Adam, trunk; paper: not stated
    box_lr: float = 1e-3  # Adam, box branch; ours
    margin: float = 0.2  # δ of squared distances; ours
    k_first: float = 20.0  # steepness of the mask at the start; paper: "large enough"
    k_last: float = 60.0  # and at the end; ours
    area: float = 0.01  # η of the area term, of {0, .01, .05}; ours
    eps: float = 0.6  # quantile of old distances of clicked pairs; ours
    gamma: float = 0.1  # quantile of old distances of other shown pairs; ours
    checkpoint: str = ""  # folder of the paper profile's training; empty: keep nothing
    data: str = ""  # folder of images for the paper profile; empty: the emoji shop
    backbone: str = "conv"  # conv or resnet50; paper: GoogLeNet V1
    rerank: int = 600  # candidates of the fine rank, c; paper: not stated
    bits: int = 256  # of a code; paper: 512 (not verified)
    items: int = 20_000  # of Fashion-MNIST in the code experiments, at most 60,000; ours
    draws: int = 5  # label draws of the category experiment; ours


PROFILES = {
    "quick": Recipe(rerank=200),
    "full": Recipe(seeds=5, items=60_000, draws=10),
    "paper": Recipe(
        arms=("joint",),
        steps=100_000,
        batch=64,
        side=224,
        box_side=64,
        d=512,
        backbone="resnet50",
    ),
}
