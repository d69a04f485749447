"""The small experiment: all methods on the same images, in the same order, for the same steps."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.data import load_fashion_mnist
from toolkit.learn.loop import minibatches, predict, warmup_cosine
from toolkit.learn.metrics import accuracy
from toolkit.runtime import TUNING_SEEDS
from toolkit.supervision.wemix.augment import augmentation, drawing
from toolkit.supervision.wemix.bias import domain_gap, gradient_bias
from toolkit.supervision.wemix.method import WeMixSchedule, wemix_step
from toolkit.supervision.wemix.recipe import Recipe

FASHION_TRAIN, FASHION_TEST = 60_000, 10_000


@dataclass(frozen=True, eq=False)
class Task:
    """What one seed learns and is tested on; images in 0…1, never augmented."""

    x: Float[Tensor, "n c h w"]
    label: Int64[Tensor, "n"]
    classes: int
    tests: dict[str, tuple[Float[Tensor, "m c h w"], Int64[Tensor, "m"]]]
    """By the name of the metric, such as `"error"`."""

    @property
    def target(self) -> Float[Tensor, "n k"]:
        """One-hot targets."""
        return F.one_hot(self.label, self.classes).float()


def run_small(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train every arm of a recipe on `images` of Fashion-MNIST, and test on images as they are.

    Seeds from 10,000 on are for choices: they are tested on training images that they did not
    learn, so that no choice sees a test image.

    Returns:
        For each arm `error` and `loss` (NaN where the run diverged), `images` (how many went
        through the network while learning, in thousands) and `seconds`; for `aug` with `draws` also
        `bias`, `bias_error` and `gap` of the augmentation at its solution.

    Raises:
        ValueError: if the recipe cannot be run.
        DataMissing: if Fashion-MNIST is not prepared.
    """
    recipe.check()
    return run_arms(recipe, fashion_task(recipe, seed, device), seed)


def fashion_task(recipe: Recipe, seed: int, device: torch.device) -> Task:
    """The n training images and the test images of one seed.

    Raises:
        ValueError: if more images are asked for than there are.
    """
    tuning = seed >= TUNING_SEEDS
    room = FASHION_TRAIN - recipe.images if tuning else FASHION_TEST
    if not 0 < recipe.test_images <= room or recipe.images > FASHION_TRAIN:
        raise ValueError(
            f"{recipe.images} training and {recipe.test_images} test images are too many"
        )
    order = np.random.default_rng([seed, 0]).permutation(FASHION_TRAIN)
    held_out = order[recipe.images :] if tuning else None
    if held_out is None:
        held_out = np.random.default_rng([seed, 1]).permutation(FASHION_TEST)
    x, label = _fashion("train", order[: recipe.images], device)
    test = _fashion("train" if tuning else "test", held_out[: recipe.test_images], device)
    return Task(x, label, 10, {"error": test})


def run_arms(recipe: Recipe, task: Task, seed: int) -> dict[str, float]:
    """Train and test every arm on one task; the metrics of `run_small`."""
    results: dict[str, float] = {}
    for arm in recipe.arms:
        began = time.perf_counter()
        model, seen = train(recipe, task, arm, seed)
        results[f"{arm}/seconds"] = time.perf_counter() - began
        results[f"{arm}/images"] = seen / 1000
        results |= {f"{arm}/{name}": value for name, value in test(model, task).items()}
        if arm == "aug" and recipe.draws:
            results |= {f"aug/{k}": v for k, v in measure_bias(recipe, task, model, seed).items()}
    return results


def train(recipe: Recipe, task: Task, arm: str, seed: int) -> tuple[nn.Sequential, int]:
    """One arm from its seed's initialisation; the network, and how many images it was shown.

    Initialisation, the order of the originals and the draws of the augmentation have a generator
    each, so that they agree between arms.
    """
    model = small_cnn(task.x.shape[1], task.x.shape[2], task.classes, seed).to(task.x.device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    rate = LambdaLR(optimizer, lambda step: rate_factor(recipe, arm, step))
    schedule = arm_schedule(recipe, arm)
    draw = _drawing(recipe, _generator(seed, 1))
    gain, seen = 2.0 if arm == "regmixup" else 1.0, 0
    for step, (x, target) in enumerate(batches(recipe, task, arm, seed)):
        plan = schedule.at(step)
        wemix_step(model, (x, target), draw, plan, optimizer, gain=gain)
        rate.step()
        seen += len(x) * (plan.use_orig + plan.use_aug)
    return model, seen


def arm_schedule(recipe: Recipe, arm: str) -> WeMixSchedule:
    """The two stages of an arm; controls are presets in other clothes."""
    preset = {"orig_double": "orig", "regmixup": "mixloss", "refine": "augdrop"}.get(arm, arm)
    return WeMixSchedule.preset(preset, recipe.steps, recipe.stage1_fraction, recipe.lam)


def rate_factor(recipe: Recipe, arm: str, step: int) -> float:
    """The learning rate of a step over `lr`: one cosine over all steps, but two in `refine`."""
    if arm != "refine":
        return warmup_cosine(step, recipe.steps)
    first = round(recipe.stage1_fraction * recipe.steps)
    if step < first:
        return warmup_cosine(step, first)
    restart = recipe.refine_lr / recipe.lr
    return restart * warmup_cosine(step - first, recipe.steps - first)


def batches(recipe: Recipe, task: Task, arm: str, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Originals and one-hot targets in a new order each pass, the same for all arms."""
    size = recipe.batch * (2 if arm == "orig_double" else 1)
    return minibatches(
        task.x, task.target, size=size, steps=recipe.steps, generator=_generator(seed, 0)
    )


def test(model: nn.Module, task: Task) -> dict[str, float]:
    """The error of every test set, and the loss of the first; NaN where an output is not finite."""
    scores: dict[str, float] = {}
    for name, (x, label) in task.tests.items():
        logits = predict(model, x)
        broken = not torch.isfinite(logits).all()
        scores[name] = math.nan if broken else 1 - float(accuracy(logits, label))
        scores.setdefault("loss", math.nan if broken else float(F.cross_entropy(logits, label)))
    return scores


def measure_bias(recipe: Recipe, task: Task, model: nn.Sequential, seed: int) -> dict[str, float]:
    """Both measures of `bias` at a network: of gradients, and of penultimate features."""
    draw = _drawing(recipe, _generator(seed, 2))
    norm, error = gradient_bias(model, (task.x, task.target), draw, recipe.draws)
    body = model[:-1]
    features = predict(body, task.x), predict(body, draw(task.x, task.target)[0])
    finite = all(bool(torch.isfinite(part).all()) for part in features)
    gap = domain_gap(*features) if finite else math.nan
    return {"bias": norm, "bias_error": error, "gap": gap}


def small_cnn(channels: int, side: int, classes: int, seed: int) -> nn.Sequential:
    """Two 3×3 convolutions of stride 2 (16, 32 channels), 64 hidden units, no normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * math.ceil(side / 4) ** 2, 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )


def _drawing(
    recipe: Recipe, generator: torch.Generator
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    change = augmentation(
        recipe.augmentation, recipe.strength, alpha=recipe.alpha, flip=recipe.flip
    )
    return drawing(change, generator)


def _generator(seed: int, purpose: int) -> torch.Generator:
    """On the CPU; one for the order (0), the augmentation (1) and its measurement (2)."""
    state = int(np.random.default_rng([seed, 10 + purpose]).integers(2**62))
    return torch.Generator().manual_seed(state)


def _fashion(split: str, index: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    data = load_fashion_mnist(split)
    rows = torch.from_numpy(np.sort(index))
    return data.images[rows].to(device).float() / 255, data.label[rows].to(device)
