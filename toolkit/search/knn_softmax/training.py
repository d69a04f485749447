"""What the chapter runs on one core: five softmaxes, sparse gradients, two schedules.

Classes are Chinese characters, inputs 128 principal components of their images, the network is
`mlp(128, 256, 64)`. Training takes one process; what many ranks add is exact (see the tests).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from timm.optim import Lars
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from toolkit.data import load_glyphs
from toolkit.learn.loop import fit, minibatches, warmup_cosine
from toolkit.learn.metrics import accuracy
from toolkit.learn.nets import mlp
from toolkit.search.knn_softmax.compress import TopKCompressor
from toolkit.search.knn_softmax.fccs import fccs_schedule, piecewise_schedule
from toolkit.search.knn_softmax.graph import build_knn_graph
from toolkit.search.knn_softmax.peers import PEERS
from toolkit.search.knn_softmax.recipe import HEADS, Recipe
from toolkit.search.knn_softmax.scale import train_distributed
from toolkit.search.knn_softmax.softmax import ShardedSoftmax


def experiment(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train every arm from the same start on the same batches, or the paper's own scale.

    Args:
        recipe: with `backbone="mlp"` the small experiment; else one distributed training, under
            torchrun or in one process.
        seed: of weights, batches and random classes.
        device: of the training.

    Returns:
        `arm/accuracy` on test images in fonts of the training, `arm/heldout` in brush fonts,
        `arm/val@epoch`; for the arms "full" and "knn" the shares of `Probe`, and `arm/restored`.

    Raises:
        ValueError: for an unknown arm, or not one rate an arm.
    """
    if recipe.backbone != "mlp":
        return train_distributed(recipe, seed, device)
    _check_arms(recipe)
    data = glyph_features(recipe.num_classes, recipe.pca, device)
    results: dict[str, float] = {}
    for arm, rate in zip(recipe.arms, recipe.rates, strict=True):
        metrics = train(recipe, arm, rate, data, seed)
        results |= {f"{arm}/{name}": value for name, value in metrics.items()}
    return results


def train(
    recipe: Recipe, arm: str, rate: float, data: "GlyphFeatures", seed: int
) -> dict[str, float]:
    """One arm: cosine decay, the graph rebuilt before an epoch, plain SGD on the class weights."""
    net, head = build(recipe, arm, seed, data.x.device)
    steps = len(data.x) // recipe.batch
    optimizer = _sgd(recipe, net, head, rate)
    schedule = LambdaLR(optimizer, _cosine(steps * recipe.epochs))
    draw = torch.Generator().manual_seed(seed)
    probe = Probe(net, head, data, recipe) if arm in ("full", "knn") else None
    metrics = probe.measure(0) if probe else {}
    for epoch in range(recipe.epochs):
        _prepare(head, recipe, arm, epoch)
        batches = minibatches(data.x, data.y, size=recipe.batch, steps=steps, generator=draw)
        fit(nn.ModuleList([net, head]), batches, _loss(net, head), optimizer, schedule=schedule)
        metrics[f"val@{epoch + 1}"] = _accuracy(net, head, data.val_x, data.val_y)
        metrics |= probe.measure(epoch + 1) if probe else {}
    metrics["accuracy"], metrics["heldout"] = _test(net, head, data)
    return metrics | (probe.restored() if probe else {})


def build(recipe: Recipe, arm: str, seed: int, device: torch.device) -> tuple[nn.Module, Any]:
    """Network and head of an arm; all arms of a seed start from the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = mlp(recipe.pca, recipe.hidden, recipe.d)
        if arm in PEERS:
            return net.to(device), PEERS[arm](recipe, seed).to(device)
    settings = HEADS[arm]
    if arm == "knn+fill":
        settings = settings | {"neighbours": recipe.fill_neighbours}
    head = ShardedSoftmax(
        recipe.d, recipe.num_classes, rho=recipe.rho, scale=recipe.scale, seed=seed, **settings
    )
    return net.to(device), head.to(device)


class Probe:
    """Where the softmax mass lies, on a fixed sample of train images, epoch by epoch.

    Shares are of the mass beside the target, averaged over images: `own`, the 1 % of classes
    nearest to the label by the present class weights; `stale`, the same by the weights after epoch
    1; `active`, the published rule's active classes of a batch; `random`, as many random ones.
    """

    def __init__(
        self, net: nn.Module, head: ShardedSoftmax, data: "GlyphFeatures", recipe: Recipe
    ) -> None:
        pick = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(1))
        pick = pick[: recipe.probe].to(data.x.device)
        self.x, self.y = data.x[pick], data.y[pick]
        self.net, self.head, self.batch = net, head, recipe.batch
        self.knn = ShardedSoftmax(
            recipe.d, recipe.num_classes, mode="knn", rho=recipe.rho, scale=recipe.scale
        ).to(data.x.device)
        self.near = 1 + max(1, recipe.num_classes // 100)
        self.old: Tensor | None = None

    @torch.no_grad()
    def measure(self, epoch: int) -> dict[str, float]:
        """The shares after an epoch."""
        W = self.head.weight
        fresh = build_knn_graph(W, self.near)
        self.old = fresh if epoch == 1 else self.old
        z = self.head.logits(self.net(self.x), W)
        self.knn.weight.copy_(W)
        self.knn.rebuild(self.batch)
        active = self._active_sets(len(W))
        m = int(active.sum(dim=1).float().mean())
        chance = (m - self.batch) / (len(W) - self.batch)
        shares = {
            "own": neighbour_share(z, self.y, fresh[self.y]),
            "active": mass_share(z, self.y, active),
            "random": torch.tensor(chance),
        }
        if self.old is not None:
            shares["stale"] = neighbour_share(z, self.y, self.old[self.y])
        return {f"{name}@{epoch}": share.mean().item() for name, share in shares.items()}

    @torch.no_grad()
    def restored(self) -> dict[str, float]:
        """Largest difference of coverage between two graphs of the same frozen weights."""
        size = self.batch
        features = self.net(self.x[:size])
        before = self.knn.coverage(features, self.y[:size])
        self.knn.rebuild(size)
        after = self.knn.coverage(features, self.y[:size])
        return {"restored": (after - before).abs().max().item()}

    def _active_sets(self, num_classes: int) -> Bool[Tensor, "probe classes"]:
        """Each image with the active set of the batch that it stands in."""
        member = torch.zeros(len(self.y), num_classes, dtype=torch.bool, device=self.y.device)
        for begin in range(0, len(self.y), self.batch):
            rows = slice(begin, begin + self.batch)
            active = self.knn.select(self.y[rows])
            assert active is not None
            member[rows, active.ids] = True
        return member


def mass_share(
    z: Float[Tensor, "batch classes"],
    y: Int[Tensor, " batch"],
    member: Bool[Tensor, "batch classes"],
) -> Float[Tensor, " batch"]:
    """Share of the softmax mass beside the target that lies on some classes.

    Args:
        z: logits of all classes.
        y: targets; their own mass counts for nothing.
        member: the classes, per example.
    """
    others = z.scatter(1, y[:, None], -math.inf).softmax(dim=1)
    return (others * member).sum(dim=1)


def neighbour_share(
    z: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], near: Int[Tensor, "batch k"]
) -> Float[Tensor, " batch"]:
    """`mass_share` of the classes listed for each example."""
    return mass_share(z, y, torch.zeros_like(z, dtype=torch.bool).scatter(1, near, True))


# --- sparse gradients ---------------------------------------------------------------------------


def sparsified(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Full softmax with the backbone's gradients sent dense, by top-k, and without accumulation.

    Returns:
        For "dense", "topk" and "forgetful": `arm/accuracy` on test; `arm/bytes`, of what 32-bit
        dense gradients take ("dense" itself goes through the same code, places included: 2).
    """
    data = glyph_features(recipe.side_classes, recipe.pca, device)
    total = recipe.sparse_epochs * (len(data.x) // recipe.side_batch)
    results: dict[str, float] = {}
    for arm in ("dense", "topk", "forgetful"):
        net, head = build(_side(recipe), "full", seed, device)
        compressor = _compressor(recipe, arm)
        lr = recipe.dense_lr if arm == "dense" else recipe.sparse_lr
        optimizer = _sgd(replace(recipe, lr=lr, momentum=0.0), net, head, recipe.side_rate)
        optimizer.register_step_pre_hook(_sender(compressor, net))
        schedule = LambdaLR(optimizer, _cosine(total))
        batches = _stream(data, _side(recipe), seed, total)
        fit(nn.ModuleList([net, head]), batches, _loss(net, head), optimizer, schedule=schedule)
        results[f"{arm}/accuracy"], _ = _test(net, head, data)
        results[f"{arm}/bytes"] = compressor.bytes_sent / compressor.bytes_dense
    return results


def _compressor(recipe: Recipe, arm: str) -> TopKCompressor:
    """The momentum of SGD lives in the compressor; at density 1, unmasked, it is momentum SGD."""
    return TopKCompressor(
        1.0 if arm == "dense" else recipe.density,
        recipe.momentum if arm == "dense" else recipe.sparse_momentum,
        masking=arm != "dense",
        accumulate=arm != "forgetful",
        dense_vectors=False,  # 320 biases would be 0.6 % of this small network
        merge_below=1024,
    )


def _sender(compressor: TopKCompressor, net: nn.Module) -> Callable:
    return lambda *_: compressor.reduce(net.parameters())


# --- schedules ----------------------------------------------------------------------------------


def schedules(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """The shortest run of each schedule whose final accuracy on val reaches the baseline's.

    The baseline is piecewise decay of SGD with momentum over `side_epochs`. "fccs" is LARS with
    `fccs_schedule`; "piecewise" and "cosine" are SGD with shorter schedules, which tells how much
    of a gain is FCCS and how much a baseline that was longer than needed.

    Returns:
        `arm/iterations` (batches seen), `arm/updates`, `arm/accuracy` on test, and the baseline's.
        A schedule that never reaches it has the iterations of its longest run.
    """
    data = glyph_features(recipe.side_classes, recipe.pca, device)
    longest = recipe.side_epochs * (len(data.x) // recipe.side_batch)
    target, test, updates = run_schedule(recipe, "piecewise", data, longest, seed)
    results = {
        "baseline/iterations": float(longest),
        "baseline/updates": float(updates),
        "baseline/accuracy": test,
    }
    for arm in recipe.schedules:
        for share in recipe.ladder:
            total = round(share * longest)
            reached, test, updates = run_schedule(recipe, arm, data, total, seed)
            if reached >= target:
                break
        results |= {
            f"{arm}/iterations": float(total),
            f"{arm}/updates": float(updates),
            f"{arm}/accuracy": test,
        }
    return results


def run_schedule(
    recipe: Recipe, arm: str, data: "GlyphFeatures", total: int, seed: int
) -> tuple[float, float, int]:
    """Train for `total` iterations; returns accuracy on val, on test, and the updates taken."""
    net, head = build(_side(recipe), "full", seed, data.x.device)
    parameters = [*net.parameters(), *head.parameters()]
    optimizer = _optimizer(recipe, arm, net, head)
    start = [group["lr"] for group in optimizer.param_groups]
    loss, held, updates = _loss(net, head), 0, 0
    for t, batch in enumerate(_stream(data, _side(recipe), seed, total)):
        factor, size = _factor(recipe, arm, t, total)
        loss(None, batch).backward()
        held += 1
        if held < size and t < total - 1:
            continue
        for p in parameters:
            if p.grad is not None:
                p.grad.div_(held)  # the mean over the batches of the update
        for group, lr in zip(optimizer.param_groups, start, strict=True):
            group["lr"] = lr * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        held, updates = 0, updates + 1
    val = _accuracy(net, head, data.val_x, data.val_y)
    return val, _test(net, head, data)[0], updates


def _optimizer(recipe: Recipe, arm: str, net: nn.Module, head: nn.Module) -> torch.optim.Optimizer:
    if arm == "fccs":
        return Lars(
            [*net.parameters(), *head.parameters()],
            lr=recipe.lars_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            trust_coeff=recipe.trust,
        )
    if arm == "cosine":
        return _sgd(replace(recipe, lr=recipe.cosine_lr), net, head, recipe.cosine_rate)
    return _sgd(recipe, net, head, recipe.piecewise_rate)


def _factor(recipe: Recipe, arm: str, t: int, total: int) -> tuple[float, int]:
    """Factor of the rates and batches per update at iteration t."""
    warmup = int(recipe.warmup * total)
    if arm == "fccs":
        return fccs_schedule(t, total, warmup, 1.0, recipe.accumulate)
    if arm == "cosine":
        return fccs_schedule(t, total, warmup, 1.0, 1)
    return piecewise_schedule(t, total, 1.0), 1


# --- shared -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GlyphFeatures:
    """Principal components of glyph images, and their characters."""

    x: Float[Tensor, "train pca"]
    y: Int[Tensor, " train"]
    val_x: Float[Tensor, "val pca"]
    val_y: Int[Tensor, " val"]
    test_x: Float[Tensor, "test pca"]
    test_y: Int[Tensor, " test"]
    heldout: Bool[Tensor, " test"]


@lru_cache(maxsize=4)
def glyph_features(num_classes: int, pca: int, device: torch.device) -> GlyphFeatures:
    """Glyphs of the first characters, projected; axes and scale come from train alone."""
    train, val, test = (load_glyphs(split, num_classes) for split in ("train", "val", "test"))
    pixels = train.images.flatten(1).float() / 255
    centre = pixels.mean(dim=0)
    _, axes = torch.linalg.eigh((pixels - centre).T @ (pixels - centre))
    axes = axes[:, -pca:]
    scale = ((pixels - centre) @ axes).std(dim=0).mean()

    def project(images: Tensor) -> Tensor:
        return ((images.flatten(1).float() / 255 - centre) @ axes / scale).to(device)

    return GlyphFeatures(
        project(train.images),
        train.label.to(device),
        project(val.images),
        val.label.to(device),
        project(test.images),
        test.label.to(device),
        test.heldout.to(device),
    )


def _sgd(recipe: Recipe, net: nn.Module, head: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [
            {
                "params": list(net.parameters()),
                "lr": recipe.lr,
                "momentum": recipe.momentum,
                "fused": True,
            },
            {"params": list(head.parameters()), "lr": rate},  # sparse gradients: no momentum
        ]
    )


def _side(recipe: Recipe) -> Recipe:
    return replace(recipe, num_classes=recipe.side_classes, batch=recipe.side_batch)


def _check_arms(recipe: Recipe) -> None:
    known = (*HEADS, *PEERS)
    if unknown := [arm for arm in recipe.arms if arm not in known]:
        raise ValueError(f"no arm is called {unknown[0]!r}; there are {', '.join(known)}")
    if len(recipe.rates) != len(recipe.arms):
        raise ValueError(f"{len(recipe.rates)} rates for the {len(recipe.arms)} arms")


def _prepare(head: Any, recipe: Recipe, arm: str, epoch: int) -> None:
    if arm == "warm+knn" and epoch >= recipe.warm_share * recipe.epochs:
        head.mode = "knn"
    if getattr(head, "mode", "") == "knn" and epoch % recipe.rebuild_every == 0:
        head.rebuild(recipe.batch)


def _loss(net: nn.Module, head: nn.Module) -> Callable:
    return lambda _, batch: head(net(batch[0]), batch[1])


def _cosine(total: int) -> Callable[[int], float]:
    return lambda t: warmup_cosine(t, total)


def _stream(data: GlyphFeatures, recipe: Recipe, seed: int, steps: int) -> Iterator:
    draw = torch.Generator().manual_seed(seed)
    return minibatches(data.x, data.y, size=recipe.batch, steps=steps, generator=draw)


def _test(net: nn.Module, head: Any, data: GlyphFeatures) -> tuple[float, float]:
    """Accuracy on test images in fonts of the training, and in brush fonts."""
    known = ~data.heldout
    right = _accuracy(net, head, data.test_x[known], data.test_y[known])
    return right, _accuracy(net, head, data.test_x[data.heldout], data.test_y[data.heldout])


@torch.no_grad()
def _accuracy(net: nn.Module, head: Any, x: Tensor, y: Tensor) -> float:
    return accuracy(head.scores(net(x)), y).item()
