"""Visual search, from click logs to a service (Zhang et al., KDD 2018).

The paper's system in its own parts: `fusion` (which category), `softbox` and `training` (where to
look and what to compare, learnt from clicks), `codes`, `index`, `live`, `shards` (the binary index
engine), `engine` (all of it in a row). `recipe` and `measure` are what the chapter runs, `scale`
the paper's own setting. `adapters` (zvec, Milvus), `remote` (shards over sockets) and `service`
(HTTP) are imported by name.
"""

from toolkit.search.topk import merge_topk, overlap
from toolkit.search.visual_search.codes import (
    BinaryEncoder,
    hamming_topk,
    quantisation_error,
    stacked_rotations,
)
from toolkit.search.visual_search.fusion import ALPHAS, LAMBDAS, CategoryFusion
from toolkit.search.visual_search.index import BinaryRerankIndex, FaissIndex
from toolkit.search.visual_search.live import ClosedIndex, LiveIndex, staleness
from toolkit.search.visual_search.measure import (
    category_draws,
    clothes,
    code_recall,
    dial,
    mixed_stream,
    sharding,
)
from toolkit.search.visual_search.recipe import ARMS, PROFILES, Recipe
from toolkit.search.visual_search.shards import ShardDown, ShardedIndex
from toolkit.search.visual_search.softbox import (
    JointSearchNet,
    SoftBox,
    ordered_box,
    paired_iou,
    saliency_box,
    to_corners,
    to_edges,
)
from toolkit.search.visual_search.store import Found, VisualIndex
from toolkit.search.visual_search.training import (
    build_net,
    embed,
    evaluate,
    experiment,
    first_of_each,
    load_pixels,
    open_world,
    resized,
    train,
)

__all__ = [
    "ALPHAS",
    "ARMS",
    "LAMBDAS",
    "PROFILES",
    "BinaryEncoder",
    "BinaryRerankIndex",
    "CategoryFusion",
    "ClosedIndex",
    "FaissIndex",
    "Found",
    "JointSearchNet",
    "LiveIndex",
    "Recipe",
    "ShardDown",
    "ShardedIndex",
    "SoftBox",
    "VisualIndex",
    "build_net",
    "category_draws",
    "clothes",
    "code_recall",
    "dial",
    "embed",
    "evaluate",
    "experiment",
    "first_of_each",
    "hamming_topk",
    "load_pixels",
    "merge_topk",
    "mixed_stream",
    "open_world",
    "ordered_box",
    "overlap",
    "paired_iou",
    "quantisation_error",
    "resized",
    "saliency_box",
    "sharding",
    "stacked_rotations",
    "staleness",
    "to_corners",
    "to_edges",
    "train",
]
