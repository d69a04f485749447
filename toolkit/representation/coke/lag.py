"""Labels over epochs: what a stored label is worth one epoch later."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from toolkit.learn.loop import predict
from toolkit.representation.coke.network import CoKe
from toolkit.representation.coke.objective import Clusters
from toolkit.representation.coke.recipe import Recipe
from toolkit.representation.coke.training import fashion_task, pretrain


@dataclass(frozen=True, eq=False)
class Lag:
    """A run of one arm, watched after each epoch, on its first head."""

    points: Float[Tensor, "epochs shown 2"]
    """Features of some images in the plane of the two largest variances over all epochs."""
    labels: Int64[Tensor, "epochs shown"]
    """Their stored labels."""
    sizes: Int64[Tensor, "epochs clusters"]
    """Images of each cluster."""
    churn: Float[Tensor, "epochs"]
    """Share of all labels of the head that changed in the epoch; NaN in epoch 0."""


def label_lag(recipe: Recipe, arm: str, seed: int, device: torch.device, shown: int = 200) -> Lag:
    """Train one arm and watch the labels of its first head.

    Args:
        recipe: the settings.
        arm: one that clusters.
        seed: of all draws.
        device: of all.
        shown: images to draw.

    Raises:
        ValueError: for an arm without clusters.
    """
    if arm in ("random", "instance"):
        raise ValueError(f"{arm} has no clusters to watch")
    task = fashion_task(recipe, seed, device)

    def watch(model: CoKe, clusters: Clusters) -> dict[str, Tensor]:
        features = predict(torch.nn.Sequential(model.backbone, model.projector), task.x[:shown])
        labels = clusters.store.labels[:, 0, 0].long()
        return {
            "x": torch.nn.functional.normalize(features, dim=1).cpu(),
            "labels": labels.cpu(),
        }

    trace = pretrain(recipe, arm, task, seed, device, watch).trace
    labels = torch.stack([state["labels"] for state in trace])
    changed = (labels[1:] != labels[:-1]).float().mean(dim=1)
    clusters = recipe.heads[0]
    return Lag(
        points=_plane(torch.stack([state["x"] for state in trace])),
        labels=labels[:, :shown],
        sizes=torch.stack([torch.bincount(row, minlength=clusters) for row in labels]),
        churn=torch.cat([torch.full((1,), torch.nan), changed]),
    )


def _plane(x: Float[Tensor, "epochs shown d"]) -> Float[Tensor, "epochs shown 2"]:
    """One principal plane for all epochs, so that points can be followed."""
    flat = x.flatten(0, 1)
    centred = flat - flat.mean(dim=0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    return (centred @ axes[:2].T).unflatten(0, x.shape[:2])
