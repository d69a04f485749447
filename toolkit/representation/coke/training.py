"""The small experiment: train every arm on the same images, then probe the frozen features."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.data import load_fashion_mnist
from toolkit.data.images import LabelledImages
from toolkit.data.subsets import take_per_class
from toolkit.learn.loop import fit, predict, warmup_cosine
from toolkit.learn.probes import knn_probe, linear_probe
from toolkit.representation.coke.baselines import InstanceBank, SinkhornKMeans
from toolkit.representation.coke.clustering import OnlineConstrainedKMeans
from toolkit.representation.coke.network import CoKe, build_network
from toolkit.representation.coke.objective import (
    Clusters,
    Instances,
    OfflineKMeans,
    SingleView,
    TwoViews,
)
from toolkit.representation.coke.recipe import RATIOS, Recipe

CLASSES = 10


@dataclass(frozen=True, eq=False)
class Task:
    """Images of one seed. Labels are for measuring only."""

    x: Float[Tensor, "n 1 28 28"]
    y: Int64[Tensor, "n"]
    bank_x: Float[Tensor, "m 1 28 28"]
    bank_y: Int64[Tensor, "m"]
    test_x: Float[Tensor, "t 1 28 28"]
    test_y: Int64[Tensor, "t"]


@dataclass(frozen=True, eq=False)
class Trained:
    """A network, and what clustered beside it where anything did."""

    model: CoKe
    clusters: Clusters | None = None
    trace: list[dict[str, Tensor]] = field(default_factory=list)


def fashion_task(recipe: Recipe, seed: int, device: torch.device) -> Task:
    """Draw training, labelled and test images; no training image is tested on.

    While tuning, test images come from what is left of the training split: validation data.
    """
    generator = torch.Generator().manual_seed(seed)
    share = recipe.tail ** np.arange(CLASSES)
    counts = np.rint(recipe.images * share / share.sum()).astype(int)
    counts[0] += recipe.images - counts.sum()
    data, held_out = load_fashion_mnist("train"), load_fashion_mnist("test")
    rows = take_per_class(data.label, counts.tolist(), generator=generator)
    bank = take_per_class(data.label, recipe.bank, generator=generator) if recipe.bank else rows
    each = recipe.test_images // CLASSES
    if recipe.validation:
        rest = torch.ones(len(data.label), dtype=torch.bool)
        rest[rows] = False
        left = rest.nonzero()[:, 0]
        held_out, test = data, left[take_per_class(data.label[left], each, generator=generator)]
    else:
        test = take_per_class(held_out.label, each, generator=generator)
    parts = [_load(source, where, device) for source, where in ((data, rows), (data, bank))]
    return Task(*parts[0], *parts[1], *_load(held_out, test, device))


def views(
    x: Float[Tensor, "b c h w"], generator: torch.Generator, smallest: float = 0.55
) -> Float[Tensor, "b c h w"]:
    """One random crop of each image, mirrored half of the time, brighter or darker.

    The crop's area is uniform in [smallest, 1] of the image's, its place anywhere inside it;
    brightness is multiplied by a factor uniform in [0.8, 1.2].
    """
    draw = torch.rand(5, len(x), generator=generator).to(x.device, x.dtype)
    zoom = (smallest + (1 - smallest) * draw[0]).sqrt()
    mirror = torch.where(draw[1] < 0.5, -1.0, 1.0)
    across = _line(x.shape[3], mirror * zoom, (1 - zoom) * (2 * draw[2] - 1))
    down = _line(x.shape[2], zoom, (1 - zoom) * (2 * draw[3] - 1))
    grid = torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), dim=-1)
    cut = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return cut * (0.8 + 0.4 * draw[4])[:, None, None, None]


def pretrain(
    recipe: Recipe,
    arm: str,
    task: Task,
    seed: int,
    device: torch.device,
    watch: Callable[[CoKe, Clusters], dict[str, Tensor]] | None = None,
) -> Trained:
    """Train one arm without labels. Epoch 0 has learning rate 0: it only clusters.

    Args:
        recipe: the settings.
        arm: which method.
        task: the images.
        seed: of weights, first centres, order and augmentation.
        device: of all.
        watch: called after each epoch; what it returns is kept as the trace.
    """
    network, dim = build_network("small", seed)
    # Channels last: the convolutions of this network take a quarter less time on a CPU.
    model = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if arm == "random":
        return Trained(_with_statistics(model, task.x))
    objective, clusters = _objective(recipe, arm, task, dim, seed, device)
    epochs = recipe.epochs // 2 if arm == "two_views" else recipe.epochs
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.rate(arm),
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    per_epoch = recipe.images // recipe.batch
    schedule = LambdaLR(optimizer, partial(rate, per_epoch=per_epoch, epochs=epochs))
    generator = torch.Generator().manual_seed(seed)
    trace = []
    for epoch in range(epochs):
        if arm == "averaged" and epoch == recipe.stage and clusters is not None:
            clusters.start_averaging()
        objective.begin_epoch(model)
        stream = _batches(task.x, recipe.batch, 1 + (arm == "two_views"), generator)
        fit(model, stream, objective, optimizer, schedule=schedule)
        objective.end_epoch()
        if watch is not None and clusters is not None:
            trace.append(watch(model, clusters))
    return Trained(model, clusters, trace)


def rate(step: int, per_epoch: int, epochs: int, warmup: int = 0) -> float:
    """The learning rate of a step over `lr`: 0 in epoch 0, then warm-up (epochs) and half a cosine.

    The released schedule warms up from epoch 1 to 11.
    """
    if step < per_epoch:
        return 0.0
    return warmup_cosine(step - per_epoch, (epochs - 1) * per_epoch, warmup * per_epoch)


def run_small(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Every arm of a recipe on the same images.

    Returns:
        For each arm `knn`, `ridge` and `few` (accuracies of probes on the frozen backbone); for
        arms with clusters also `nmi`, `effective` (exp(entropy) / K), `nonempty`, `smallest` and
        `largest` (sizes times K / N), all means over heads, `churn` of the last epoch and
        `churn@EPOCH`.
    """
    task = fashion_task(recipe, seed, device)
    results: dict[str, float] = {}
    for arm in recipe.arms:
        trained = pretrain(recipe, arm, task, seed, device)
        metrics = probe(trained.model, task, recipe.few, recipe.few_draws, seed)
        if trained.clusters is not None:
            metrics |= cluster_metrics(trained.clusters, task.y)
        results |= {f"{arm}/{name}": value for name, value in metrics.items()}
    return results


def probe(model: CoKe, task: Task, few: int, draws: int, seed: int) -> dict[str, float]:
    """Accuracies on the test images: weighted kNN, ridge, logistic with few labels a class.

    The last is averaged over `draws` of the labelled images.
    """
    bank = predict(model.backbone, task.bank_x)
    test = predict(model.backbone, task.test_x)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        rows = take_per_class(task.bank_y, few, generator=generator)
        guess = linear_probe(bank[rows], task.bank_y[rows], test, kind="logistic")
        found.append(_accuracy(guess, task.test_y))
    return {
        "knn": _accuracy(knn_probe(bank, task.bank_y, test, k=20), task.test_y),
        "ridge": _accuracy(linear_probe(bank, task.bank_y, test, kind="ridge"), task.test_y),
        "few": float(np.mean(found)),
    }


def cluster_metrics(clusters: Clusters, y: Int64[Tensor, " n"]) -> dict[str, float]:
    """Balance and agreement with the classes of the stored labels, means over heads; churn.

    Images that no full batch has held yet have no label and do not count.
    """
    labels = clusters.store.labels[..., 0].long().cpu()
    known = (labels >= 0).all(dim=1)
    labels, classes = labels[known], y.cpu()[known].numpy()
    rows = [
        balance(labels[:, h], k)
        | {"nmi": float(normalized_mutual_info_score(classes, labels[:, h].numpy()))}
        for h, k in enumerate(clusters.kmeans.heads)
    ]
    metrics = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    churn = {f"churn@{t}": value for t, value in enumerate(clusters.churn) if np.isfinite(value)}
    last = {"churn": clusters.churn[-1]} if churn else {}
    return metrics | last | churn


def balance(labels: Int64[Tensor, " n"], clusters: int) -> dict[str, float]:
    """How even a clustering is: `effective`, `nonempty`, `smallest`, `largest`, each 1 if even.

    `effective` is exp(H) / K, where H is the entropy of the sizes.
    """
    share = torch.bincount(labels, minlength=clusters).double() / len(labels)
    entropy = -torch.xlogy(share, share).sum()
    return {
        "effective": float(entropy.exp() / clusters),
        "nonempty": float((share > 0).double().mean()),
        "smallest": float(share.min() * clusters),
        "largest": float(share.max() * clusters),
    }


def _objective(
    recipe: Recipe, arm: str, task: Task, dim: int, seed: int, device: torch.device
) -> tuple[SingleView | Instances, Clusters | None]:
    generator = torch.Generator().manual_seed(seed)
    n = len(task.x)
    if arm == "instance":
        bank = InstanceBank(n, dim, recipe.bank_temperature, generator=generator, device=device)
        return Instances(bank), None
    kind = SinkhornKMeans if arm == "sinkhorn" else OnlineConstrainedKMeans
    kmeans = kind(
        recipe.heads,
        dim,
        0.0 if arm == "sinkhorn" else RATIOS.get(arm, recipe.ratio),
        recipe.dual_lr,
        generator=generator,
        device=device,
    )
    if isinstance(kmeans, SinkhornKMeans):
        kmeans.epsilon = recipe.epsilon
    clusters = Clusters(kmeans, n, coupled=arm == "coupled")
    if arm == "two_views":
        return TwoViews(clusters, recipe.two_view_temperature, recipe.alpha), clusters
    if arm == "offline":
        return OfflineKMeans(clusters, task.x, recipe.temperature, seed), clusters
    return SingleView(clusters, recipe.temperature, recipe.beta), clusters


def _line(side: int, scale: Float[Tensor, " b"], shift: Float[Tensor, " b"]) -> Tensor:
    """Where each pixel of a cut side lies in the image: from −1 to 1, as `grid_sample` counts."""
    pixel = (2 * torch.arange(side, device=scale.device) + 1) / side - 1
    return scale[:, None] * pixel + shift[:, None]


def _batches(
    x: Tensor, size: int, count: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, ...]]:
    """One epoch of (ids, view, …) in a new order; the short last batch is left out.

    With it the step for one instance, dual_lr / b, would grow and the identity of the violation
    would break.
    """
    order = torch.randperm(len(x), generator=generator)
    for ids in order[: len(x) // size * size].split(size):
        index = ids.to(x.device)
        yield index, *(views(x[index], generator) for _ in range(count))


@torch.no_grad()
def _with_statistics(model: CoKe, x: Tensor) -> CoKe:
    """First weights, but statistics of batch norm that fit the images."""
    model.train()
    for chunk in x.split(250):
        model(chunk)
    return model


def _load(
    data: LabelledImages, rows: Int64[Tensor, " n"], device: torch.device
) -> tuple[Float[Tensor, "n 1 28 28"], Int64[Tensor, " n"]]:
    return data.images[rows].to(device).float() / 255, data.label[rows].to(device)


def _accuracy(guess: Tensor, y: Tensor) -> float:
    return float((guess == y).double().mean())
