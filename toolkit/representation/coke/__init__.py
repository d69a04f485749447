"""CoKe: unsupervised visual representation learning by online constrained k-means.

Qian, Xu, Hu, Li and Jin (2021), arXiv:2105.11527. `clustering` holds assignment, prices and
centres, `labels` the table by image id, `loss` and `objective` what a step learns; `assignment` is
the exact optimum and `stream` the online rule against it; `training` runs the small experiment that
`recipe` describes, with `baselines`; `lag` watches labels over epochs; `scale` is ImageNet.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from toolkit.representation.coke.assignment import Assignment, dual_value, solve_assignment_lp
from toolkit.representation.coke.baselines import (
    InstanceBank,
    SinkhornKMeans,
    offline_kmeans,
    sinkhorn,
)
from toolkit.representation.coke.clustering import (
    OnlineConstrainedKMeans,
    center_step,
    dual_step,
)
from toolkit.representation.coke.labels import LabelStore
from toolkit.representation.coke.lag import Lag, label_lag
from toolkit.representation.coke.loss import coke_loss, two_view_targets
from toolkit.representation.coke.network import CoKe, build_network
from toolkit.representation.coke.objective import (
    Clusters,
    Instances,
    OfflineKMeans,
    SingleView,
    TwoViews,
)
from toolkit.representation.coke.recipe import (
    ARMS,
    OWN,
    RATES,
    RATIOS,
    TAIL_RATES,
    TRIED,
    Recipe,
    small_studies,
    tuning_grid,
)
from toolkit.representation.coke.scale import PaperRecipe, memory_plan, run_paper
from toolkit.representation.coke.stream import (
    BLOB_CENTERS,
    StreamRecipe,
    StreamRun,
    blobs,
    long_tail_stream,
    objective,
    run_stream,
    stream_experiment,
)
from toolkit.representation.coke.training import (
    balance,
    cluster_metrics,
    fashion_task,
    pretrain,
    probe,
    rate,
    run_small,
    views,
)

__all__ = [
    "ARMS",
    "BLOB_CENTERS",
    "OWN",
    "PROFILES",
    "RATES",
    "RATIOS",
    "STREAMS",
    "TAIL_RATES",
    "TRIED",
    "Assignment",
    "Clusters",
    "CoKe",
    "InstanceBank",
    "Instances",
    "LabelStore",
    "Lag",
    "OfflineKMeans",
    "OnlineConstrainedKMeans",
    "PaperRecipe",
    "Recipe",
    "SingleView",
    "SinkhornKMeans",
    "StreamRecipe",
    "StreamRun",
    "TwoViews",
    "balance",
    "blobs",
    "build_network",
    "center_step",
    "cluster_metrics",
    "coke_loss",
    "dual_step",
    "dual_value",
    "experiment",
    "fashion_task",
    "label_lag",
    "long_tail_stream",
    "memory_plan",
    "objective",
    "offline_kmeans",
    "pretrain",
    "probe",
    "rate",
    "run_paper",
    "run_small",
    "run_stream",
    "sinkhorn",
    "small_studies",
    "solve_assignment_lp",
    "stream_experiment",
    "studies",
    "tuning_grid",
    "two_view_targets",
    "views",
]

PROFILES: dict[str, Any] = {
    "quick": small_studies("quick")["main"],
    "full": small_studies("full")["main"],
    "paper": PaperRecipe(),
}
STREAMS = {
    "quick": StreamRecipe(),
    "full": StreamRecipe(sizes=(1000, 4000, 16000, 64000), seeds=20),
}
"""The streams of claim C2."""


def studies(profile: str) -> dict[str, Recipe]:
    """Every setting of the chapter's networks, by the study it belongs to.

    Args:
        profile: `"quick"` or `"full"`.

    Raises:
        ValueError: for another profile.
    """
    if profile not in ("quick", "full"):
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    return small_studies(profile)


def experiment(
    recipe: Any, seed: int | Sequence[int], device: torch.device
) -> dict[str, float] | dict[str, np.ndarray]:
    """Run all arms of a recipe for one seed; streams also take several seeds at once.

    See `run_small`, `stream_experiment` and `run_paper`.

    Raises:
        TypeError: for a recipe of another paper, or several seeds where a recipe takes one.
    """
    if isinstance(recipe, StreamRecipe):
        return stream_experiment(recipe, seed, device)
    if isinstance(seed, Sequence):
        raise TypeError(f"{type(recipe).__name__} takes one seed at a time, got {seed}")
    if isinstance(recipe, PaperRecipe):
        return run_paper(recipe, seed, device)
    if isinstance(recipe, Recipe):
        return run_small(recipe, seed, device)
    raise TypeError(f"need a recipe of coke, got {type(recipe).__name__}")
