"""Training on Fashion-MNIST: placements, single structures, LLR's variants, the rank study."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.learn.loop import fit, minibatches, predict, warmup_cosine
from toolkit.learn.metrics import accuracy
from toolkit.networks.genet.llr import Option, SearchSpace
from toolkit.networks.genet.networks import typed
from toolkit.networks.genet.rank import stage_ranks
from toolkit.networks.genet.recipe import CLASSES, PLACEMENTS, RES, SPACE, Recipe
from toolkit.networks.images import Split, load_splits
from toolkit.networks.structures import (
    Network,
    Structure,
    block,
    build,
    count,
    parse,
)


def train(
    specs: Structure, recipe: Recipe, rate: float, seed: int, device: torch.device
) -> Network:
    """Train a structure from scratch.

    Args:
        specs: the structure.
        recipe: steps, batch, momentum, weight decay, warm-up.
        rate: the largest learning rate.
        seed: of initialisation and order.
        device: where to.
    """
    torch.manual_seed(seed)
    net = _to(build(specs, CLASSES, zero_last=True), device)
    data, _, _ = load_splits(device)
    draw = torch.Generator().manual_seed(seed)
    batches = minibatches(data.x, data.y, size=recipe.batch, steps=recipe.steps, generator=draw)
    optimizer, schedule = _sgd(net.parameters(), recipe, rate, recipe.steps)
    fit(net, batches, _cross_entropy, optimizer, schedule=schedule)
    return net


def placements(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train each placement with its own learning rate.

    Returns:
        `"ARM/accuracy"` on the test images and `"ARM/val"` on the held-out ones, shares of 1.

    Raises:
        ValueError: for an unknown arm, or as many learning rates as there are not arms.
    """
    if len(recipe.rates) != len(recipe.arms):
        raise ValueError(f"need one rate an arm, got {recipe.rates} for {recipe.arms}")
    if unknown := set(recipe.arms) - set(PLACEMENTS):
        raise ValueError(f"arms are {', '.join(PLACEMENTS)}; got {sorted(unknown)}")
    results: dict[str, float] = {}
    for arm, rate in zip(recipe.arms, recipe.rates, strict=True):
        net = train(parse(PLACEMENTS[arm]), recipe, rate, seed, device)
        results |= {f"{arm}/{name}": value for name, value in _judge(net, device).items()}
    return results


def train_structure(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train `recipe.structure`: `"accuracy"` on test, `"val"`, and its `"macs"`, `"params"`."""
    specs = parse(recipe.structure)
    cost = count(specs, RES, num_classes=CLASSES)
    net = train(specs, recipe, recipe.rate, seed, device)
    return _judge(net, device) | {"macs": float(cost.macs), "params": float(cost.params)}


def _judge(net: Network, device: torch.device) -> dict[str, float]:
    _, val, test = load_splits(device)
    return {
        "accuracy": float(accuracy(predict(net, test.x), test.y)),
        "val": float(accuracy(predict(net, val.x), val.y)),
    }


# --- LLR: variants of one stage -----------------------------------------------------------------


def llr_study(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train the master, then distil M variants of each stage and block type.

    Returns:
        `"master/val"`: A₀ on the judged images; `"change@STAGE:KIND:DEPTH:WIDTH"`: ΔA of a variant.
    """
    net = train(SPACE.master, recipe, recipe.rate, seed, device)
    net.eval().requires_grad_(False)
    _, val, _ = load_splits(device)
    judged = Split(val.x[: recipe.judged], val.y[: recipe.judged])
    base = float(accuracy(predict(net, judged.x), judged.y))
    results = {"master/val": base}
    for stage in SPACE.stages:
        teacher = Teacher.of(net, stage, recipe, seed, judged)
        rng = np.random.default_rng([seed, stage])
        for option in draw_variants(SPACE, stage, recipe.variants, rng):
            change = distil(teacher, option, recipe, seed) - base
            name = f"{stage}:{option.kind}:{option.depth}:{option.width}"
            results[f"change@{name}"] = change
    return results


def variant_records(results: pd.Series) -> pd.DataFrame:
    """The rows of `LLR.fit` from one row of `llr_study`'s results."""
    rows = []
    for name, value in results.items():
        if str(name).startswith("change@"):
            stage, kind, depth, width = str(name).removeprefix("change@").split(":")
            rows.append((int(stage), kind, int(depth), float(width), float(value)))
    return pd.DataFrame(rows, columns=["stage", "kind", "depth", "width", "change"])


def draw_variants(
    space: SearchSpace, stage: int, variants: int, rng: np.random.Generator
) -> list[Option]:
    """M options of each block type, without replacement.

    Raises:
        ValueError: if a type has fewer options.
    """
    options, drawn = space.options(stage), []
    for kind in space.kinds:
        own = [option for option in options if option.kind == kind]
        if variants > len(own):
            raise ValueError(f"stage {stage} has {len(own)} options of {kind}, not {variants}")
        drawn += [own[place] for place in rng.permutation(len(own))[:variants]]
    return drawn


@dataclass(frozen=True)
class Teacher:
    """The master around one stage, and what it shows all variants of that stage.

    Attributes:
        net: the master, frozen.
        stage: the place of the block that varies.
        batches: for each step, the stage's input, the label, and the output of the first layer
            of the next stage in the master.
        judged: the stage's input on the validation images.
        labels: of those.
    """

    net: Network
    stage: int
    batches: list[tuple[Tensor, Tensor, Tensor]]
    judged: Tensor
    labels: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, net: Network, stage: int, recipe: Recipe, seed: int, judged: Split) -> "Teacher":
        """Run the master once over the batches that every variant will see, in their order."""
        before = net.blocks[:stage].eval()  # a slice is a new module, in training mode
        following = _layers(net.blocks[stage + 1])[0]
        data, _, _ = load_splits(judged.y.device)
        draw = torch.Generator().manual_seed(seed + 1)
        batches = []
        for x, y in minibatches(
            data.x, data.y, size=recipe.batch, steps=recipe.distil_steps, generator=draw
        ):
            inner = before(x.contiguous(memory_format=torch.channels_last))
            batches.append((inner, y, following(net.blocks[stage](inner))))
        return cls(net, stage, batches, predict(before, judged.x), judged.y)


def distil(teacher: Teacher, option: Option, recipe: Recipe, seed: int) -> float:
    """Replace the stage, train it and the layer after it, and return the new net's accuracy.

    The loss is the cross-entropy, plus the mean squared difference between the outputs of the layer
    after the stage in both nets. All else is frozen, its batch norm in evaluation mode.
    """
    device = teacher.labels.device
    torch.manual_seed(seed)
    new, after, rest = _grafted(teacher, option)
    trained = _to(nn.ModuleList([new, after]), device)
    optimizer, schedule = _sgd(
        trained.parameters(), recipe, recipe.distil_rate, recipe.distil_steps
    )

    def loss(_: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        inner, y, wanted = batch
        out = after(new(inner))
        return F.cross_entropy(rest(out), y) + F.mse_loss(out, wanted)

    fit(trained, teacher.batches, loss, optimizer, schedule=schedule)
    student = nn.Sequential(new, after, rest).eval()
    return float(accuracy(predict(student, teacher.judged), teacher.labels))


def _grafted(teacher: Teacher, option: Option) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The fresh stage, the fresh layer after it, and the master's rest, frozen."""
    net, stage = teacher.net, teacher.stage
    specs = SPACE.vary(stage, option)
    new, after = (block(spec, zero_last=True) for spec in specs[stage : stage + 2])
    for module in [*new.modules(), *after.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.25  # D steps are few: 0.1 would keep much of the start's statistics
    rest = nn.Sequential(
        _layers(net.blocks[stage + 1])[1:], net.blocks[stage + 2 :], _Mean(), net.head
    ).eval()
    return new, after[0], rest


class _Mean(nn.Module):
    """Global average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


# --- C3: the rank of kernels --------------------------------------------------------------------


def rank_study(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train a net of XX blocks of equal width; ranks of its kernels per stage.

    Returns:
        `"stageS/STATISTIC"` over its value at initialisation, `"stageS/STATISTIC_init"`, and
        `"accuracy"` on the test images.
    """
    width = recipe.rank_width
    stages = [typed("XX", width, width, stride, 2) for stride in (1, 2, 2)]
    specs = (*parse(f"SuperConvK3BNRELU(1,{width},2,1)"), *stages)
    torch.manual_seed(seed)
    net = build(specs, CLASSES, zero_last=True)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= recipe.init
    start = stage_ranks(list(net.blocks)[1:])
    net = _to(net, device)
    data, _, test = load_splits(device)
    draw = torch.Generator().manual_seed(seed)
    batches = minibatches(
        data.x, data.y, size=recipe.rank_batch, steps=recipe.rank_steps, generator=draw
    )
    optimizer, schedule = _sgd(net.parameters(), recipe, recipe.rank_rate, recipe.rank_steps)
    fit(net, batches, _cross_entropy, optimizer, schedule=schedule)
    results = {"accuracy": float(accuracy(predict(net, test.x), test.y))}
    for number, (before, now) in enumerate(
        zip(start, stage_ranks(list(net.blocks)[1:]), strict=True), 1
    ):
        results |= {f"stage{number}/{name}": now[name] / before[name] for name in now}
        results |= {f"stage{number}/{name}_init": before[name] for name in before}
    return results


# --- helpers ------------------------------------------------------------------------------------


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)


def _sgd(
    parameters: Any, recipe: Recipe, rate: float, steps: int
) -> tuple[torch.optim.SGD, LambdaLR]:
    optimizer = torch.optim.SGD(
        parameters,
        lr=rate,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    warm = max(1, round(recipe.warmup * steps))
    return optimizer, LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, warm))


def _layers(module: nn.Module) -> nn.Sequential:
    assert isinstance(module, nn.Sequential)  # as `build` makes every super-block
    return module


def _to(module: Any, device: torch.device) -> Any:
    """Channels last: on a CPU these small nets then train about 1.5 times as fast."""
    return module.to(device).to(memory_format=torch.channels_last)
