"""How far the gradients of two labels stray from the true one: σ², δ, and the best θ."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from toolkit.learn.stacked import StackedMLP

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class Deviation:
    """Second moments of per-example gradients around ∇F; scalars, or one entry a replica."""

    sigma2: Float[Tensor, "..."]
    """σ² = mean ‖∇ℓ(y) − ∇F‖², the variance of the one-hot gradient."""
    introduced: Float[Tensor, "..."]
    """δσ² = mean ‖∇ℓ(ŷ) − ∇F‖², variance *plus squared bias* of the introduced label's gradient."""
    cross: Float[Tensor, "..."]
    """c = mean ⟨∇ℓ(y) − ∇F, ∇ℓ(ŷ) − ∇F⟩."""
    bias2: Float[Tensor, "..."]
    """‖mean ∇ℓ(ŷ) − ∇F‖², the part of δσ² that no averaging removes."""

    @property
    def delta(self) -> Float[Tensor, "..."]:
        """δ; infinite where the one-hot gradients agree exactly."""
        return self.introduced / self.sigma2

    def at(self, theta: float) -> Float[Tensor, "..."]:
        """The deviation of the smoothed gradient, exactly: a parabola in θ."""
        rest = 1 - theta
        return rest**2 * self.sigma2 + theta**2 * self.introduced + 2 * theta * rest * self.cross

    def bound(self, theta: float) -> Float[Tensor, "..."]:
        """The paper's bound by convexity, (1 − θ) σ² + θ δ σ²: the chord above the parabola."""
        return (1 - theta) * self.sigma2 + theta * self.introduced


def gradient_deviation(
    model: nn.Module,
    x: Float[Tensor, "..."],
    y: Int[Tensor, "..."],
    soft: Float[Tensor, "..."] | None = None,
    chunk: int = 256,
) -> Deviation:
    """Measure σ², δσ², their cross term and the bias on the given examples.

    ∇F is the mean one-hot gradient over the same examples. A `StackedMLP` is measured in closed
    form (a layer's gradient of one example is an outer product), any other module through
    `torch.func.vmap(grad)`. Batch normalisation in training mode has no per-example gradient.

    Args:
        model: a network [N, …] -> [N, K], or a stack [R, N, D] -> [R, N, K].
        x: inputs, [N, …] or [R, N, D].
        y: classes, [N] or [R, N].
        soft: ŷ, [N, K] or [R, N, K]; uniform where left out.
        chunk: examples at a time (vmap only: memory is chunk × parameters).

    Returns:
        Scalars, or one entry a replica, in double precision.

    Raises:
        ValueError: for shapes that do not fit, fewer than one example, or chunk < 1.
    """
    stacked = isinstance(model, StackedMLP)
    if chunk < 1 or x.shape[int(stacked)] < 1:
        raise ValueError("need at least one example and a chunk of at least one")
    if y.shape != x.shape[: 1 + stacked]:
        raise ValueError(f"y of shape {tuple(y.shape)} does not fit x {tuple(x.shape)}")
    if isinstance(model, StackedMLP):
        return _closed_form(model, x, y, soft)
    return _by_vmap(model, x, y, soft, chunk)


def smoothed_deviation(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    theta: float,
    soft: Float[Tensor, "n k"] | None = None,
    chunk: int = 256,
) -> Float[Tensor, ""]:
    """The mean ‖∇ℓ(y^LS) − ∇F‖², taken directly from the gradients of torch's own smoothed loss.

    Nothing of `gradient_deviation` enters: the parabola is checked against this.

    Args:
        model: a network [N, …] -> [N, K].
        x: inputs.
        y: classes.
        theta: θ.
        soft: ŷ; uniform where left out.
        chunk: examples at a time.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    truth = torch.autograd.grad(F.cross_entropy(model(x), y), params)
    loss, total = _built_in_loss(theta, soft is None), x.new_zeros((), dtype=torch.float64)
    for xs, ys, labels in _chunks(x, y, soft, chunk):
        for g, t in zip(_per_example(model, xs, ys, labels, loss), truth, strict=True):
            total += (g.double() - t.double()).square().sum()
    return total / len(x)


def optimal_theta(
    dev: Deviation,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """The θ of least deviation, and the paper's 1 / (1 + δ).

    The parabola's minimiser is (σ² − c) / (σ² (1 + δ) − 2c), which may lie outside [0, 1] and is
    clipped. The paper's value minimises a bound instead; the two agree where c = 0 or δ = 1.

    Returns:
        Exact, paper's.
    """
    curvature = dev.sigma2 + dev.introduced - 2 * dev.cross  # mean ‖∇ℓ(y) − ∇ℓ(ŷ)‖² ≥ 0
    free = torch.where(curvature > 0, (dev.sigma2 - dev.cross) / curvature, 0.0)
    return free.clamp(0, 1), 1 / (1 + dev.delta)


# --- a stack of perceptrons, in closed form -------------------------------------------------------


def _closed_form(
    model: StackedMLP,
    x: Float[Tensor, "r n d"],
    y: Int[Tensor, "r n"],
    soft: Float[Tensor, "r n k"] | None,
) -> Deviation:
    with torch.no_grad():
        inputs, logits = _forward(model, x)
        probs = logits.softmax(-1)
        given = probs.scatter_add(-1, y[..., None], -torch.ones_like(probs[..., :1]))
        introduced = probs - (1 / probs.shape[-1] if soft is None else soft)
        moments = torch.zeros(3, len(x), dtype=torch.float64, device=x.device)
        means = torch.zeros_like(moments)
        for h, d, e in _layers(model, inputs, given, introduced):
            size = torch.linalg.vector_norm(h, dim=-1).square() + 1  # the bias has the input 1
            moments += _products(d, e, lambda product, size=size: size * product.sum(-1))
            width, both = d.shape[-1], torch.cat([d, e], dim=-1)
            weight, bias = torch.bmm(h.transpose(1, 2), both), both.sum(1, keepdim=True)
            for mean in (weight, bias):
                means += _products(mean[..., :width], mean[..., width:], lambda m: m.sum(-1))
    return _collect(moments / len(y[0]), means / len(y[0]) ** 2)


def _products(a: Tensor, b: Tensor, total: Callable) -> Float[Tensor, "3 r"]:
    """Sums of a·a, b·b and a·b over all but the first axis, in double precision."""
    rows = [total(product).double().flatten(1).sum(1) for product in (a * a, b * b, a * b)]
    return torch.stack(rows)


def _collect(moments: Float[Tensor, "3 ..."], means: Float[Tensor, "3 ..."]) -> Deviation:
    """From mean ⟨∇ℓ, ∇ℓ⟩ and the products of mean gradients; 0: one-hot, 1: introduced, 2: both."""
    truth2, mean2, both = means
    return Deviation(
        sigma2=(moments[0] - truth2).clamp(min=0),
        introduced=(moments[1] - 2 * both + truth2).clamp(min=0),
        cross=moments[2] - both,
        bias2=(mean2 - 2 * both + truth2).clamp(min=0),
    )


def _forward(model: StackedMLP, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The input of every layer, and the logits."""
    inputs = []
    for index, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        inputs.append(x)
        x = torch.baddbmm(bias, x, weight)
        if index < len(model.weights) - 1:
            x = x.relu()
    return inputs, x


def _layers(
    model: StackedMLP, inputs: list[Tensor], d: Tensor, e: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """From the last layer to the first: its input, and both losses' gradients at its output."""
    for index in reversed(range(len(inputs))):
        yield inputs[index], d, e
        if index:
            active = inputs[index].sign()  # 1 or 0 behind a ReLU; a product beats masked_fill
            back = model.weights[index].transpose(1, 2)
            d, e = (torch.bmm(g, back).mul_(active) for g in (d, e))


# --- any module, by vmap --------------------------------------------------------------------------


def _by_vmap(model: nn.Module, x: Tensor, y: Tensor, soft: Tensor | None, chunk: int) -> Deviation:
    params = [p for p in model.parameters() if p.requires_grad]
    truth = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    mean = [torch.zeros_like(t) for t in truth]
    moments = torch.zeros(3, dtype=torch.float64, device=x.device)
    one_hot, other = _built_in_loss(0.0, uniform=True), _built_in_loss(1.0, soft is None)
    for xs, ys, labels in _chunks(x, y, soft, chunk):
        given = _per_example(model, xs, ys, None, one_hot)
        introduced = _per_example(model, xs, ys, labels, other)
        for index, (g, e) in enumerate(zip(given, introduced, strict=True)):
            moments += _products(g[None], e[None], lambda product: product.flatten(2).sum(2))[:, 0]
            truth[index] += g.sum(0)
            mean[index] += e.sum(0)
    pairs = ((truth, truth), (mean, mean), (truth, mean))
    means = [
        torch.stack([(a * b).sum() for a, b in zip(u, v, strict=True)]).sum() for u, v in pairs
    ]
    return _collect(moments / len(x), torch.stack(means) / len(x) ** 2)


def _per_example(
    model: nn.Module, x: Tensor, y: Tensor, soft: Tensor | None, loss: Loss
) -> list[Tensor]:
    """Gradients of every example, [N, …] for each trainable parameter."""
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= dict(model.named_buffers())

    def one(params: dict, x: Tensor, y: Tensor, label: Tensor | None) -> Tensor:
        logits = functional_call(model, params | fixed, (x[None],))
        return loss(logits, y[None], None if label is None else label[None])

    axes = (None, 0, 0, None if soft is None else 0)
    return list(vmap(grad(one), in_dims=axes)(params, x, y, soft).values())


def _built_in_loss(theta: float, uniform: bool) -> Loss:
    """The loss that torch has for the smoothed label (θ = 1 is the introduced label alone)."""
    if uniform:
        return lambda logits, y, _: F.cross_entropy(logits, y, label_smoothing=theta)

    def mixed(logits: Tensor, y: Tensor, soft: Tensor | None) -> Tensor:
        assert soft is not None
        return (1 - theta) * F.cross_entropy(logits, y) + theta * F.cross_entropy(logits, soft)

    return mixed


def _chunks(
    x: Tensor, y: Tensor, soft: Tensor | None, chunk: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    for begin in range(0, len(x), chunk):
        part = slice(begin, begin + chunk)
        yield x[part], y[part], None if soft is None else soft[part]
