"""The paper's own scale: ResNet-18 on subsets of CIFAR, one process a GPU under torchrun."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from toolkit.data.cifar import Cifar, load_cifar
from toolkit.learn.distributed import world
from toolkit.learn.loop import fit, predict, warmup_cosine
from toolkit.learn.resnet import cifar_resnet18
from toolkit.learn.torchrun import average_buffers, torchrun_group
from toolkit.optimization.multipass_sgd.study import Recipe, Tuned, choose_steps, doublings
from toolkit.optimization.multipass_sgd.theory import effective_reuse
from toolkit.runtime import TUNING_SEEDS


@dataclass(frozen=True)
class CifarRecipe(Recipe):
    """K passes over n images against one pass over more images, for two losses.

    The set-up of the paper's experiments could not be confirmed: every value here is ours. The
    arms are the losses: `squared` (the paper's class) and `cross_entropy`.
    """

    arms: tuple[str, ...] = ("squared", "cross_entropy")  # losses
    seeds: int = 3  # subsets, initialisations and orders
    tuning_seeds: int = 1  # from 10,000 on; scored on the other half of the test images
    n: int = 5000  # images that are reused: 5,000, 10,000, 25,000 or 50,000
    passes: tuple[int, ...] = doublings(256)  # K
    fresh: tuple[int, ...] = (5000, 10_000, 25_000, 50_000)  # images of one pass
    etas: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)  # learning rates to try
    batch: int = 128  # images a step and process
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # of SGD
    classes: int = 10  # 10 or 100: which CIFAR
    folder: str = ""  # of the binary files; default: cifar-10-batches-bin in $TOOLKIT_DATA


def run_cifar(
    recipe: CifarRecipe, seeds: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """Test risk and error after K passes and after one pass over N images, and the reuse E(K, n).

    Under torchrun every process calls this and gets the same numbers; alone, one process does all.

    Returns:
        `"LOSS/risk@K"`, `"LOSS/error@K"`, `"LOSS/reuse@K"`, and `"LOSS_fresh/risk@N"`,
        `"LOSS_fresh/error@N"`.

    Raises:
        FileNotFoundError: if the images are missing; the message says where to put them.
        ValueError: for an unknown loss, or a sample larger than CIFAR.
    """
    if unknown := set(recipe.arms) - {"squared", "cross_entropy"}:
        raise ValueError(f"arms must be squared or cross_entropy, got {sorted(unknown)}")
    results: dict[str, np.ndarray] = {}
    with torchrun_group(device) as home:
        data = load_cifar(recipe.classes, recipe.folder, home)
        if max(recipe.n, *recipe.fresh) > len(data.train_images):
            raise ValueError(f"CIFAR has {len(data.train_images)} training images")
        for loss in recipe.arms:
            for name, budgets in _budgets(recipe, loss).items():
                tuned = _tune(recipe, data, loss, budgets)
                for (x, (n, k)), eta in zip(budgets.items(), tuned.etas, strict=True):
                    scores = [_train(recipe, data, loss, n, k, eta, s)[1] for s in seeds]
                    results[f"{name}/risk@{x}"], results[f"{name}/error@{x}"] = np.array(scores).T
            results |= _reuse(recipe, loss, results)
    return results


def _budgets(recipe: CifarRecipe, loss: str) -> dict[str, dict[int, tuple[int, int]]]:
    """What to train on, (images, passes): by the name of the curve and its abscissa."""
    return {
        loss: {k: (recipe.n, k) for k in recipe.passes},
        f"{loss}_fresh": {n: (n, 1) for n in recipe.fresh},
    }


def _tune(
    recipe: CifarRecipe, data: Cifar, loss: str, budgets: dict[int, tuple[int, int]]
) -> Tuned:
    """The learning rate for each budget: seeds from 10,000 on, the first half of the test set."""
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + recipe.tuning_seeds)
    risk = [
        [[_train(recipe, data, loss, n, k, eta, s)[0][0] for s in seeds] for eta in recipe.etas]
        for n, k in budgets.values()
    ]
    return choose_steps(torch.tensor(risk), tuple(budgets), recipe.etas)


def _train(
    recipe: CifarRecipe, data: Cifar, loss: str, n: int, passes: int, eta: float, seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Train one network; (risk, error) on the first and on the second half of the test images."""
    device = data.train_images.device
    torch.manual_seed(seed)
    model = cifar_resnet18(recipe.classes).to(device).to(memory_format=torch.channels_last)
    trained = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=eta,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    steps = passes * ceil(n / (recipe.batch * world()[1]))
    fit(
        trained,
        _batches(recipe, data, n, passes, seed),
        lambda model, batch: batch[2] * _loss(loss, model(batch[0]), batch[1]).mean(),
        optimizer,
        schedule=LambdaLR(optimizer, lambda step: warmup_cosine(step, steps)),
        amp=torch.bfloat16 if device.type == "cuda" else None,
    )
    average_buffers(model)
    return _test(loss, model, data)


def _batches(
    recipe: CifarRecipe, data: Cifar, n: int, passes: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """This process's share of each global batch, and the weight that makes the mean exact."""
    rank, size = world()
    subset = np.random.default_rng([seed, 0]).permutation(len(data.train_images))[:n]
    orders = np.random.default_rng([seed, 1])
    for epoch in range(passes):
        order = torch.from_numpy(subset if epoch == 0 else orders.permutation(subset))
        for chunk in order.split(recipe.batch * size):
            share = torch.arange(rank, max(len(chunk), size), size) % len(chunk)
            mine = chunk[share].to(data.train_images.device)
            weight = len(share) * size / max(len(chunk), size)
            yield _pixels(data.train_images[mine]), data.train_labels[mine], weight


def _pixels(images: UInt8[Tensor, "b 3 32 32"]) -> Float[Tensor, "b 3 32 32"]:
    """Centred to about [-2, 2]; no augmentation, which would make reused images half fresh."""
    scaled = (images.float() / 255 - 0.47) / 0.25
    return scaled.contiguous(memory_format=torch.channels_last)


def _loss(name: str, outputs: Float[Tensor, "b k"], labels: Tensor) -> Float[Tensor, " b"]:
    if name == "cross_entropy":
        return F.cross_entropy(outputs, labels, reduction="none")
    return 0.5 * ((outputs - F.one_hot(labels, outputs.shape[1])) ** 2).sum(1)


@torch.no_grad()
def _test(
    loss: str, model: nn.Module, data: Cifar
) -> tuple[tuple[float, float], tuple[float, float]]:
    chunks = data.test_images.split(1000)
    outputs = torch.cat([predict(model, _pixels(chunk)) for chunk in chunks]).float()
    risk = _loss(loss, outputs, data.test_labels)
    wrong = (outputs.argmax(1) != data.test_labels).float()
    half = len(risk) // 2
    return (
        (float(risk[:half].mean()), float(wrong[:half].mean())),
        (float(risk[half:].mean()), float(wrong[half:].mean())),
    )


def _reuse(recipe: CifarRecipe, loss: str, results: dict) -> dict[str, np.ndarray]:
    """E(K, n) of each seed; NaN where one pass over all of CIFAR is still better or worse."""
    multi = np.stack([results[f"{loss}/risk@{k}"] for k in recipe.passes], axis=1)
    one = np.stack([results[f"{loss}_fresh/risk@{n}"] for n in recipe.fresh], axis=1)
    reuse = [effective_reuse(m, o, recipe.fresh, recipe.n) for m, o in zip(multi, one, strict=True)]
    columns = zip(recipe.passes, np.stack(reuse, axis=1), strict=True)
    return {f"{loss}/reuse@{k}": column for k, column in columns}
