"""The small experiment: one draw of the shop, every arm on it."""

import torch
from torch import nn

from toolkit.learn.loop import predict
from toolkit.search.sicot.attributes import attribute_task
from toolkit.search.sicot.longtail import bucket_accuracy, class_accuracy, size_accuracy
from toolkit.search.sicot.model import SICoT
from toolkit.search.sicot.recipe import Recipe
from toolkit.search.sicot.shop import Task, Titles, draw_titles, shop_task, unique_share
from toolkit.search.sicot.text import text_only
from toolkit.search.sicot.training import judge, train_arm


def run_small(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train and judge every arm of a recipe for one seed.

    Seeds from 10,000 on are for choices: they are judged on validation images.

    Returns:
        `"ARM/METRIC"` with the metrics of `judge`; `ARM/size@N`, the accuracy on classes of N
        images or a little more; `ARM/image@C`, the accuracy of class C, with
        `per_class`; `ARM/moved`, for arms with a classifier each, the largest difference of any
        weight of the image branch from the arm `ce`, if that is in the recipe; `data/images`,
        `data/few` (classes), `data/unique` (share of words that name one product),
        `data/count@C` (training images), and `text/few`, `text/all`, a text-only model's accuracy
        on titles, where the arm `devise` runs.

    Raises:
        DataMissing: if the shop is not prepared.
    """
    task = (
        attribute_task(recipe, seed, device)
        if recipe.world == "attributes"
        else shop_task(recipe, seed, device)
    )
    titles: dict[str, Titles] = {}
    results = {
        "data/images": float(len(task.y)),
        "data/few": float((task.counts < 6).sum()),
        "data/unique": unique_share(task.tokens),
    }
    if recipe.per_class:
        results |= {f"data/count@{c}": float(n) for c, n in enumerate(task.counts)}
    reference: nn.Module | None = None
    for name in recipe.arms:
        arm = recipe.arm(name)
        if (arm.words or arm.targets) and arm.titles not in titles:
            titles[arm.titles] = draw_titles(task, recipe, arm.titles)
        words = titles.get(arm.titles)
        model = train_arm(recipe, name, task, words, seed)
        reference = model if name == "ce" else reference
        scores = judge(recipe, name, model, task, words if arm.words else None)
        if not arm.shared and reference is not None:
            scores["moved"] = largest_difference(model, reference)
        scores |= by_size(model, task, recipe.per_class)
        results |= {f"{name}/{metric}": value for metric, value in scores.items()}
        if arm.targets and words is not None:
            pred = text_only(words.texts[0], task.y, words.texts[1])
            found = bucket_accuracy(pred, task.test[1], task.counts)
            results |= {"text/few": found["few"], "text/all": found["all"]}
    return results


def by_size(model: nn.Module, task: Task, per_class: bool) -> dict[str, float]:
    """The accuracy for each class size, and of each class, from images alone."""
    x, y = task.test
    logits = model.predict(x) if isinstance(model, SICoT) else predict(model, x)
    pred = logits.argmax(1)
    sizes = size_accuracy(pred, y, task.counts)
    scores = {f"size@{size}": value for size, value in sizes.items()}
    if per_class:
        each = class_accuracy(pred, y, task.num_classes)
        scores |= {f"image@{c}": float(value) for c, value in enumerate(each)}
    return scores


def largest_difference(model: nn.Module, reference: nn.Module) -> float:
    """Between the image branch of a `SICoT` and a visual-only network, over all weights."""
    assert isinstance(model, SICoT)
    assert isinstance(reference, nn.Sequential)
    mine = [*model.backbone.parameters(), *model.classifier.parameters()]
    theirs = [*reference.parameters()]
    return max(float((a - b).detach().abs().max()) for a, b in zip(mine, theirs, strict=True))
