"""The large configuration: ResNet-18, DenseNet-121 and a graph network under torchrun."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, UInt8
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import densenet121

from toolkit.data.cifar import Cifar, load_cifar
from toolkit.learn.augment import random_affine
from toolkit.learn.distributed import world
from toolkit.learn.resnet import cifar_resnet18
from toolkit.learn.torchrun import average_buffers, torchrun_group
from toolkit.optimization.moving_average.adam_family import AdamFamily
from toolkit.optimization.moving_average.auc import AUCMinMaxLoss
from toolkit.optimization.moving_average.molecules import (
    GraphNet,
    Molecules,
    collate,
    load_molecules,
)
from toolkit.optimization.moving_average.recipe import Recipe

TASKS = {
    "cifar": ("raised", "constant"),
    "auc_vision": ("pdada", "pdsm", "ce"),
    "auc_molecules": ("pdada", "pdsm", "ce"),
}
"""The arms of each task: β₁ raised at every cut of the rate or constant; AUC or cross-entropy."""


@dataclass(frozen=True)
class LargeRecipe(Recipe):
    r"""Three tasks at the scale of the paper's experiments.

    Which benchmarks the paper ran is known only from summaries, its settings are not: every value
    is ours, but for the advice to raise $\beta_1$ in steps when the learning rate is cut.
    """

    arms: tuple[str, ...] = ()  # by default all of the task
    seeds: int = 3  # initialisations and orders
    task: str = "cifar"  # cifar, auc_vision (imbalanced CIFAR) or auc_molecules
    epochs: int = 200  # passes
    cuts: tuple[int, ...] = (100, 150)  # epochs at which the rate falls to a tenth
    betas: tuple[float, ...] = (0.9, 0.99, 0.999)  # β₁ before, between and after the cuts
    lr: float = 1e-3  # of Adam's rule; `pdsm` takes 100 times as much
    lr_dual: float = 0.1  # of α
    batch: int = 128  # examples a step and process
    classes: int = 10  # 10 or 100: which CIFAR
    pos_rate: float = 0.05  # share of positives kept in auc_vision
    folder: str = ""  # of the data; default: below $TOOLKIT_DATA


def run_large(
    recipe: LargeRecipe, seeds: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """Train every arm; under torchrun all processes call this and get the same numbers.

    Returns:
        `"ARM/error"` (test error, cifar) or `"ARM/auc"` (test AUC).

    Raises:
        ValueError: for an unknown task or arm, betas that do not fit the cuts, or too few examples.
        FileNotFoundError: if the data are missing; the message says where to put them.
    """
    if recipe.task not in TASKS or set(recipe.arms) - set(TASKS.get(recipe.task, ())):
        raise ValueError(f"a task and its arms must be among {TASKS}, got {recipe}")
    if len(recipe.betas) != len(recipe.cuts) + 1:
        raise ValueError(f"need one beta more than cuts, got {recipe.betas} and {recipe.cuts}")
    metric = "error" if recipe.task == "cifar" else "auc"
    results = {}
    with torchrun_group(device) as home:
        for arm in recipe.arms or TASKS[recipe.task]:
            scores = [_train(recipe, arm, int(seed), home) for seed in seeds]
            results[f"{arm}/{metric}"] = np.array(scores)
    return results


def rates(recipe: LargeRecipe, arm: str, epoch: int) -> tuple[float, float]:
    r"""Learning rate and weight $\gamma=1-\beta_1$ of an epoch."""
    stage = sum(epoch >= cut for cut in recipe.cuts)
    beta = recipe.betas[0 if arm == "constant" else stage]
    factor = 100.0 if arm == "pdsm" else 1.0
    return recipe.lr * factor * 0.1**stage, 1 - beta


class Objective(nn.Module):
    """A network and its loss as one module, so that one reduction averages all gradients."""

    def __init__(self, network: nn.Module, saddle: AUCMinMaxLoss | None) -> None:
        super().__init__()
        self.network, self.saddle = network, saddle

    def forward(self, x: object, y: Tensor) -> Float[Tensor, ""]:
        """The loss of a batch: cross-entropy, or the saddle objective of sigmoid scores."""
        outputs = self.network(x)
        if outputs.shape[1] > 1:
            return F.cross_entropy(outputs, y)
        if self.saddle is None:
            return F.binary_cross_entropy_with_logits(outputs[:, 0], y.float())
        return self.saddle(outputs[:, 0].sigmoid(), y)


def _train(recipe: LargeRecipe, arm: str, seed: int, device: torch.device) -> float:
    torch.manual_seed(seed)
    task = _Images(recipe, device) if recipe.task != "auc_molecules" else _Graphs(recipe, device)
    saddle = None
    if arm in ("pdada", "pdsm"):
        saddle = AUCMinMaxLoss(1.0, task.positive_rate)
    objective = Objective(task.network(), saddle).to(device)
    trained = DistributedDataParallel(objective) if dist.is_initialized() else objective
    alpha: Tensor | None = None if saddle is None else saddle.alpha
    primal = [p for p in objective.parameters() if p is not alpha]
    rule = "shb" if arm == "pdsm" else "adam"
    optimizer = AdamFamily(primal, *rates(recipe, arm, 0), rule=rule)
    for epoch in range(recipe.epochs):
        objective.train()
        lr, gamma = rates(recipe, arm, epoch)
        optimizer.param_groups[0].update(lr=lr, gamma=gamma)
        for index in _shares(len(task), recipe.batch, seed, epoch):
            trained.zero_grad(set_to_none=True)
            trained(*task.batch(index, seed, epoch)).backward()
            optimizer.step()
            if alpha is not None and alpha.grad is not None:
                with torch.no_grad():
                    alpha.add_(alpha.grad, alpha=recipe.lr_dual)
    average_buffers(objective)
    return task.score(objective.network.eval())


def _shares(n: int, size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """This process's part of each global batch; a short rest is left out."""
    rank, processes = world()
    if n < size * processes:
        raise ValueError(f"{n} examples are too few for {processes} batches of {size}")
    order = np.random.default_rng([seed, epoch]).permutation(n)
    for begin in range(0, n - size * processes + 1, size * processes):
        yield torch.from_numpy(order[begin : begin + size * processes][rank::processes].copy())


class _Images:
    """CIFAR as it is, or its upper classes as rare positives."""

    def __init__(self, recipe: LargeRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.data: Cifar = load_cifar(recipe.classes, recipe.folder, device)
        self.labels, self.rows = self.data.train_labels, torch.arange(len(self.data.train_labels))
        self.positive_rate = 0.5
        if recipe.task == "auc_vision":
            self.labels = self.labels >= recipe.classes // 2
            self.rows = _thin(self.labels.cpu(), recipe.pos_rate)
            self.positive_rate = float(self.labels[self.rows].float().mean())

    def __len__(self) -> int:
        return len(self.rows)

    def network(self) -> nn.Module:
        """ResNet-18, or DenseNet-121 with a stem for small images."""
        if self.recipe.task == "cifar":
            return cifar_resnet18(self.recipe.classes)
        model = densenet121(num_classes=1)
        model.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.features.pool0 = nn.Identity()
        return model

    def batch(self, index: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Shifted and mirrored images, and their labels."""
        rows = self.rows[index].to(self.device)
        own = np.random.default_rng([seed, epoch, int(index[0])]).integers(2**62)
        generator = torch.Generator().manual_seed(int(own))
        images = _pixels(self.data.train_images[rows])
        images = random_affine(images, shift=0.125, flip=True, generator=generator)
        return images, self.labels[rows]

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        """Test error, or test AUC."""
        chunks = self.data.test_images.split(500)
        outputs = torch.cat([network(_pixels(chunk)) for chunk in chunks]).cpu()
        labels = self.data.test_labels.cpu()
        if self.recipe.task == "cifar":
            return float((outputs.argmax(1) != labels).float().mean())
        positive = labels >= self.recipe.classes // 2
        return float(roc_auc_score(positive.numpy(), outputs[:, 0].numpy()))


class _Graphs:
    """A molecule set whose positives are rare by nature."""

    def __init__(self, recipe: LargeRecipe, device: torch.device) -> None:
        self.device, self.data = device, load_molecules(recipe.folder)
        self.positive_rate = float(self.data.positive[self.data.train].float().mean())

    def __len__(self) -> int:
        return len(self.data.train)

    def network(self) -> nn.Module:
        """One embedding for each category in the files."""
        data: Molecules = self.data
        atoms, bonds = ((t.max(0).values + 1).tolist() for t in (data.atoms, data.bonds))
        return GraphNet(atoms, bonds)

    def batch(self, index: Tensor, seed: int, epoch: int) -> tuple:
        """The molecules and their labels."""
        chosen = self.data.train[index]
        return collate(self.data, chosen, self.device), self.data.positive[chosen].to(self.device)

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        """AUC on the scaffold split's test molecules."""
        chunks = self.data.test.split(256)
        outputs = [network(collate(self.data, chunk, self.device))[:, 0].cpu() for chunk in chunks]
        labels = self.data.positive[self.data.test].numpy()
        return float(roc_auc_score(labels, torch.cat(outputs).numpy()))


def _thin(positive: Bool[Tensor, " n"], rate: float) -> Tensor:
    """All negatives, and as many positives as make up `rate` of the whole."""
    if not 0 < rate < 1:
        raise ValueError(f"pos_rate must lie in (0, 1), got {rate}")
    minus, plus = (~positive).nonzero()[:, 0], positive.nonzero()[:, 0]
    return torch.cat([minus, plus[: max(1, round(len(minus) * rate / (1 - rate)))]])


def _pixels(images: UInt8[Tensor, "b 3 32 32"]) -> Float[Tensor, "b 3 32 32"]:
    return (images.float() / 255 - 0.47) / 0.25
