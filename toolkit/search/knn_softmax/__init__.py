"""KNN softmax for classifiers with up to 100 million classes (Song et al., KDD 2020).

The paper's system in its own parts: `graph` (the KNN graph on a ring of ranks), `softmax` (active
classes and the sharded softmax), `pipeline` (overlapping micro-batches), `compress` (top-k
gradients) and `fccs` (the schedule). `recipe` and `training` are what the chapter runs,
`scale` the paper's own setting under torchrun.
"""

from toolkit.search.knn_softmax.compress import TopKCompressor, divide_and_conquer_topk
from toolkit.search.knn_softmax.fccs import fccs_schedule, piecewise_schedule
from toolkit.search.knn_softmax.graph import ShardedGraph, build_knn_graph, shard_bounds
from toolkit.search.knn_softmax.measure import PipelineRace, shard_errors, softmax_steps
from toolkit.search.knn_softmax.pipeline import (
    Event,
    Link,
    MicroBatchPipeline,
    sum_gradients,
    timeline,
)
from toolkit.search.knn_softmax.recipe import (
    ARMS,
    PROFILES,
    RATES,
    Recipe,
    studies,
    tuning_grid,
)
from toolkit.search.knn_softmax.softmax import (
    Active,
    ActiveRowSGD,
    DistributedCrossEntropy,
    ShardedSoftmax,
    neighbours_needed,
    select_active,
    select_random,
)
from toolkit.search.knn_softmax.training import (
    Probe,
    build,
    experiment,
    glyph_features,
    mass_share,
    neighbour_share,
    run_schedule,
    schedules,
    sparsified,
)

__all__ = [
    "ARMS",
    "PROFILES",
    "RATES",
    "Active",
    "ActiveRowSGD",
    "DistributedCrossEntropy",
    "Event",
    "Link",
    "MicroBatchPipeline",
    "PipelineRace",
    "Probe",
    "Recipe",
    "ShardedGraph",
    "ShardedSoftmax",
    "TopKCompressor",
    "build",
    "build_knn_graph",
    "divide_and_conquer_topk",
    "experiment",
    "fccs_schedule",
    "glyph_features",
    "mass_share",
    "neighbour_share",
    "neighbours_needed",
    "piecewise_schedule",
    "run_schedule",
    "schedules",
    "select_active",
    "select_random",
    "shard_bounds",
    "shard_errors",
    "softmax_steps",
    "sparsified",
    "studies",
    "sum_gradients",
    "timeline",
    "tuning_grid",
]
