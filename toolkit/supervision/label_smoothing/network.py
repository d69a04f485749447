"""Many networks at once: arms that share their past share a replica until they part."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from toolkit.learn.loop import fit, warmup_cosine
from toolkit.learn.stacked import StackedMLP
from toolkit.supervision.label_smoothing.data import Sample
from toolkit.supervision.label_smoothing.loss import smoothed_cross_entropy
from toolkit.supervision.label_smoothing.recipe import Arm, NetworkRecipe

Setting = tuple[float, str, float, bool]
Watch = Callable[[int, dict[str, StackedMLP]], None]
STEP_DROP_AT, STEP_DROP = 0.75, 0.1


def train(
    recipe: NetworkRecipe,
    arms: Sequence[Arm],
    sample: Sample,
    labels: dict[str, Float[Tensor, "s n k"]] | None = None,
    watch: Watch | None = None,
    at: Sequence[int] = (),
) -> dict[str, StackedMLP]:
    """Train every arm for every seed; TSLA forks from the saved state of LSR at its drop epoch.

    All arms of a seed have the same images, initial weights and batch order, one learning-rate
    schedule and one momentum buffer that runs through the switch. A step is one product over all
    replicas that differ so far.

    Args:
        recipe: lengths and rates.
        arms: what to train.
        sample: images of S seeds.
        labels: ŷ for the arms whose label is not uniform.
        watch: called as `(epoch, networks by arm)` at the epochs in `at`, 0 being the start.
        at: those epochs.

    Returns:
        The trained networks, S replicas each.

    Raises:
        ValueError: if an arm's label is missing, or two arms have one name.
    """
    if len({arm.name for arm in arms}) < len(arms):
        raise ValueError(f"arms need different names, got {[arm.name for arm in arms]}")
    if missing := {arm.label for arm in arms} - {"uniform", *(labels or {})}:
        raise ValueError(f"labels are missing for {', '.join(sorted(missing))}")
    if watch is not None and at and len({arm.step_drop for arm in arms}) > 1:
        raise ValueError("two_stage cannot be watched together with other arms")
    trained: dict[str, StackedMLP] = {}
    for step_drop in (False, True):
        chosen = [arm for arm in arms if arm.step_drop == step_drop]
        if chosen:
            trained |= _train_together(recipe, chosen, sample, labels or {}, watch, at)
    return {arm.name: trained[arm.name] for arm in arms}


def initial_networks(recipe: NetworkRecipe, sample: Sample) -> StackedMLP:
    """One network a seed, drawn from that seed."""
    widths = (sample.x.shape[-1], recipe.width, sample.classes)
    generators = [torch.Generator().manual_seed(seed) for seed in sample.seeds]
    return StackedMLP(len(sample.seeds), widths, generators).to(sample.x.device)


def _train_together(
    recipe: NetworkRecipe,
    arms: Sequence[Arm],
    sample: Sample,
    labels: dict[str, Tensor],
    watch: Watch | None,
    at: Sequence[int],
) -> dict[str, StackedMLP]:
    count = len(sample.seeds)
    model = initial_networks(recipe, sample)
    optimizer = _sgd(model, recipe)
    groups: list[list[Arm]] = [list(arms)]  # which arms the g-th block of S replicas stands for

    def networks() -> dict[str, StackedMLP]:
        blocks = torch.arange(len(groups) * count).view(len(groups), count)
        return {
            arm.name: model.fork(blocks[g]) for g, members in enumerate(groups) for arm in members
        }

    orders = visiting_orders(sample)
    for epoch in range(recipe.epochs):
        if watch is not None and epoch in at:
            watch(epoch, networks())
        groups, origin = _part(groups, epoch)
        if origin != list(range(len(origin))):
            index = torch.arange(count) + count * torch.tensor(origin)[:, None]
            model, optimizer = _fork(model, optimizer, recipe, index.flatten())
        settings = [members[0].setting(epoch) for members in groups]
        fit(
            model,
            _batches(sample, next(orders), recipe.batch, labels),
            partial(_loss, settings),
            optimizer,
            schedule=_rates(recipe, optimizer, sample.x.shape[1], epoch, settings[0][-1]),
        )
    if watch is not None and recipe.epochs in at:
        watch(recipe.epochs, networks())
    return networks()


def visiting_orders(sample: Sample) -> Iterator[Tensor]:
    """A new order of the training images for every seed and epoch, [S, n]."""
    generators = [torch.Generator().manual_seed(2**32 + seed) for seed in sample.seeds]
    n = sample.x.shape[1]
    while True:
        yield torch.stack([torch.randperm(n, generator=g) for g in generators])


def _part(groups: list[list[Arm]], epoch: int) -> tuple[list[list[Arm]], list[int]]:
    """Split each group into arms that train alike this epoch; the origin of every new group."""
    parted: list[list[Arm]] = []
    origin = []
    for number, members in enumerate(groups):
        alike: dict[Setting, list[Arm]] = {}
        for arm in members:
            alike.setdefault(arm.setting(epoch), []).append(arm)
        parted += alike.values()
        origin += [number] * len(alike)
    return parted, origin


def _sgd(model: nn.Module, recipe: NetworkRecipe) -> SGD:
    return SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)


def _fork(
    model: StackedMLP, optimizer: SGD, recipe: NetworkRecipe, index: Tensor
) -> tuple[StackedMLP, SGD]:
    """Copies of the chosen replicas with their momentum."""
    twin = model.fork(index)
    copy = _sgd(twin, recipe)
    for old, new in zip(model.parameters(), twin.parameters(), strict=True):
        if old in optimizer.state:
            momentum = optimizer.state[old]["momentum_buffer"]
            copy.state[new]["momentum_buffer"] = momentum[index].clone()
    return twin, copy


def _rates(recipe: NetworkRecipe, optimizer: SGD, n: int, epoch: int, step_drop: bool) -> LambdaLR:
    """The learning rate of this epoch's steps: one schedule over the whole training."""
    per_epoch = math.ceil(n / recipe.batch)
    total, begin = per_epoch * recipe.epochs, per_epoch * epoch

    def factor(step: int) -> float:
        if not step_drop:
            return warmup_cosine(begin + step, total)
        return 1.0 if begin + step < STEP_DROP_AT * total else STEP_DROP

    for group in optimizer.param_groups:
        group["lr"] = recipe.lr
        group.pop("initial_lr", None)
    return LambdaLR(optimizer, factor)


def _batches(
    sample: Sample, order: Tensor, size: int, labels: dict[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    rows = torch.arange(len(order))[:, None]
    for index in order.split(size, dim=1):
        soft = {name: label[rows, index] for name, label in labels.items()}
        yield sample.x[rows, index], sample.y[rows, index], soft


def _loss(
    settings: Sequence[Setting], model: nn.Module, batch: tuple[Tensor, Tensor, dict[str, Tensor]]
) -> Float[Tensor, ""]:
    """The sum over replicas of their mean losses: each gets the gradient it would get alone."""
    x, y, soft = batch
    logits = model(x.repeat(len(settings), 1, 1)).unflatten(0, (len(settings), len(x)))
    total = logits.new_zeros(())
    for label in dict.fromkeys(setting[1] for setting in settings):
        which = [g for g, setting in enumerate(settings) if setting[1] == label]
        theta = logits.new_tensor([settings[g][0] for g in which])[:, None, None]
        each = smoothed_cross_entropy(
            logits[which],
            y.expand(len(which), *y.shape),
            theta,
            None if label == "uniform" else soft[label].expand(len(which), *soft[label].shape),
            reduction="none",
        )
        total = total + each.mean(-1).sum()
    return total - _entropy_bonus(settings, logits)


def _entropy_bonus(settings: Sequence[Setting], logits: Tensor) -> Tensor | float:
    """β times the mean entropy of the predictions, where an arm has a confidence penalty.

    Pereyra, Tucker, Chorowski, Kaiser and Hinton, "Regularizing neural networks by penalizing
    confident output distributions" (2017).
    """
    which = [g for g, setting in enumerate(settings) if setting[2]]
    if not which:
        return 0.0
    log_p = logits[which].log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).mean(-1)
    return (logits.new_tensor([settings[g][2] for g in which])[:, None] * entropy).sum()


def predictions(
    networks: StackedMLP, x: Float[Tensor, "s m d"], size: int = 1000
) -> Float[Tensor, "s m k"]:
    """Logits of every replica on its own images."""
    with torch.no_grad():
        return torch.cat([networks(chunk) for chunk in x.split(size, dim=1)], dim=1)


def one_seed(networks: StackedMLP, replica: int) -> nn.Sequential:
    """One replica as an ordinary torch module, with copies of its weights."""
    layers: list[nn.Module] = []
    for weight, bias in zip(networks.weights, networks.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2]).to(weight.device)
        with torch.no_grad():
            linear.weight.copy_(weight[replica].T)
            linear.bias.copy_(bias[replica, 0])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
