"""Every number of the experiments, for the profiles `quick` and `full`."""

from dataclasses import dataclass

from toolkit.networks.structures import Space
from toolkit.networks.zen_nas.search import Budget

RES, CLASSES = 28, 10

START = (
    "SuperConvK3BNRELU(1,8,2,1)SuperResK3K3(8,8,2,8,1)SuperResK3K3(8,8,2,8,1)"
    "SuperResK3K3(8,8,1,8,1)SuperConvK1BNRELU(8,64,1,1)"
)
"""Where the small search starts: maps of 14², then 7², 4² and 4² pixels."""

SPACE_FM = Space(
    kinds=("SuperResK3K3", "SuperResK5K5", "SuperResK1K3K1", "SuperResK1K5K1"),
    widths=(4, 6, 8, 12, 16, 24),
    depths=(1, 5),
    split=0,
    fixed=(0, -1),
)
"""Three super-blocks of Space I. Widths come from a list, and kinds are equally likely."""

BUDGET = Budget(RES, CLASSES, params=12_000, layers=14)
"""Of the small search."""

SEARCHED = (
    "zen",
    "closed",
    "params",
    "flops",
    "grad_norm",
    "synflow",
    "naswot",
    "te_nas",
)
"""Proxies that the small search maximises."""

REPEATED = ("zen", "params")
"""Those with several searches; of the others there is one."""


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters; where the paper has one it is in the comment, the others are ours."""

    arms: tuple[str, ...] = SEARCHED  # proxies that a search maximises
    seeds: int = 1
    wide: int = 4  # networks of very different size
    iso: int = 4  # networks of nearly equal size
    steps: int = 150  # of SGD with Nesterov momentum; paper: 1,440 epochs
    batch: int = 256  # images a step; paper: 64 a GPU
    rate: float = 0.2  # learning rate; paper: 0.1 per 256 images
    momentum: float = 0.9  # as the paper
    weight_decay: float = 5e-4  # as the paper
    warmup: float = 0.15  # share of the steps, then a cosine to 0; paper: 5 of 1,440 epochs
    judged: int = 2000  # validation images, at a quarter, a half and all of the training
    structure: str = ""  # of `train_structure` and `score_structure`

    score_batch: int = 16  # images of a score; paper: 64
    repeats: int = 4  # random networks a score; paper: 32
    proxy: str = "zen"  # of `search_structure`
    search_steps: int = 400  # T; paper: 96,000
    population: int = 32  # N; paper: 256
    searches: int = 4  # of each proxy in `REPEATED`, with seeds of their own
    random_nets: int = 12  # within the budget, drawn without a score


QUICK = Recipe()
FULL = Recipe(
    wide=18,
    iso=18,
    steps=300,
    judged=4000,
    repeats=8,
    search_steps=800,
    population=64,
)
