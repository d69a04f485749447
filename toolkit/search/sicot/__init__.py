"""SICoT: words carry knowledge from frequent to rare products (Zhou et al. 2020, arXiv:2102.04652).

`words` and `model` are the method, a reconstruction from the abstract; `longtail` holds the
buckets, the frequencies and the rivals' losses. `shop`, `training`, `text` and `study` are the
small experiment that `recipe` describes, `attributes` a world where the method must work,
`tail_map` what an explorable shows; `scale` trains on folders of products under torchrun.
"""

from typing import Any

import torch

from toolkit.search.sicot.attributes import attribute_task
from toolkit.search.sicot.longtail import (
    BUCKETS,
    LARGE_EDGES,
    SHOP_EDGES,
    SIZES,
    CosineClassifier,
    bucket_accuracy,
    class_accuracy,
    class_balanced_order,
    class_balanced_weights,
    ldam_loss,
    logit_adjust,
    size_accuracy,
    tail_counts,
    tau_normalise,
)
from toolkit.search.sicot.model import SICoT, mutual_kl
from toolkit.search.sicot.recipe import (
    ARMS,
    BASELINES,
    CNN,
    CNN_RATES,
    CNN_TUNED,
    CONTROLS,
    LAMS,
    MAIN,
    OWN_RATES,
    RATES,
    TUNED,
    VARIANTS,
    Arm,
    Recipe,
    studies,
    tuning_grids,
)
from toolkit.search.sicot.scale import PaperRecipe, run_paper
from toolkit.search.sicot.shop import (
    Task,
    Titles,
    draw_titles,
    product_words,
    shop_task,
    training_images,
    unique_share,
)
from toolkit.search.sicot.study import run_small
from toolkit.search.sicot.tail_map import read_map
from toolkit.search.sicot.text import text_only
from toolkit.search.sicot.training import attention_mass, build_sicot, judge, stepper, train_arm
from toolkit.search.sicot.words import (
    BilinearWordAttention,
    MeanPooling,
    Vocabulary,
    WordEncoder,
)

__all__ = [
    "ARMS",
    "BASELINES",
    "BUCKETS",
    "CNN",
    "CNN_RATES",
    "CNN_TUNED",
    "CONTROLS",
    "LAMS",
    "LARGE_EDGES",
    "MAIN",
    "OWN_RATES",
    "PROFILES",
    "RATES",
    "SHOP_EDGES",
    "SIZES",
    "TUNED",
    "VARIANTS",
    "Arm",
    "BilinearWordAttention",
    "CosineClassifier",
    "MeanPooling",
    "PaperRecipe",
    "Recipe",
    "SICoT",
    "Task",
    "Titles",
    "Vocabulary",
    "WordEncoder",
    "attention_mass",
    "attribute_task",
    "bucket_accuracy",
    "build_sicot",
    "class_accuracy",
    "class_balanced_order",
    "class_balanced_weights",
    "draw_titles",
    "experiment",
    "judge",
    "ldam_loss",
    "logit_adjust",
    "mutual_kl",
    "product_words",
    "read_map",
    "run_paper",
    "run_small",
    "shop_task",
    "size_accuracy",
    "stepper",
    "studies",
    "tail_counts",
    "tau_normalise",
    "text_only",
    "train_arm",
    "training_images",
    "tuning_grids",
    "unique_share",
]

PROFILES: dict[str, Any] = {
    "quick": studies("quick")["main"][0],
    "full": studies("full")["main"][0],
    "paper": PaperRecipe(),
}


def experiment(recipe: Any, seed: int, device: torch.device) -> dict[str, float]:
    """Run all arms of a recipe for one seed; see `run_small`, `run_paper`.

    Raises:
        TypeError: for a recipe of another paper.
    """
    if isinstance(recipe, PaperRecipe):
        return run_paper(recipe, seed, device)
    if isinstance(recipe, Recipe):
        return run_small(recipe, seed, device)
    raise TypeError(f"need a recipe of sicot, got {type(recipe).__name__}")
