"""What else ranks untrained networks, as the paper compares it: higher is better everywhere.

All of them see the same random network as the Zen-score: standard normal weights, no residual
links, batch norm on batch statistics (eps 1e-3), Gaussian images.
"""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn import functional as F

from toolkit.networks.structures import count
from toolkit.networks.zen_nas.chain import EPS, Chain, Specs, as_specs, normal, own_generator
from toolkit.networks.zen_nas.closed import zen_closed_form
from toolkit.networks.zen_nas.score import zen_score

Parameters = dict[str, Tensor]
POINTS = 64
"""Inputs on a circle among which `linear_regions` counts."""


def zen(specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None) -> float:
    """One shot of the Zen-score, ℓ1 norm and batch variance."""
    shape = (as_specs(specs)[0].in_ch, res, res)
    return zen_score(specs, shape, batch, generator=draws).mean


def closed(specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None) -> float:
    """The Zen-score's closed form."""
    return zen_closed_form(specs, res)


def flops(specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None) -> float:
    """Multiply-adds of the network that is trained, residual links included."""
    return float(count(as_specs(specs), res, num_classes=10).macs)


def params(specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None) -> float:
    """Parameters of the network that is trained."""
    return float(count(as_specs(specs), res, num_classes=10).params)


def depth(specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None) -> float:
    """Convolutions on the way from the image to the last map."""
    return float(len(Chain.of(specs).convs))


def random(specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None) -> float:
    """A uniform random number: what a proxy has to beat."""
    return float(torch.rand((), generator=own_generator(draws)))


def grad_norm(
    specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None
) -> float:
    """ℓ2 norm of all gradients of the cross-entropy of random labels."""
    chain, source = Chain.of(specs), own_generator(draws)
    parameters = {k: p.requires_grad_() for k, p in draw_parameters(chain, source).items()}
    x = normal((batch, chain.in_ch, res, res), source, None, torch.float32)
    y = torch.randint(10, (batch,), generator=source, device=source.device)
    loss = F.cross_entropy(logits(chain, parameters, x), y)
    squares = [g.square().sum() for g in torch.autograd.grad(loss, list(parameters.values()))]
    return float(torch.stack(squares).sum().sqrt())


def synflow(specs: Specs, res: int, batch: int = 1, draws: torch.Generator | None = None) -> float:
    """Negated sum over layers of the mean over output channels of Σ |w · ∂R/∂w|.

    R is the sum of the outputs for one image of ones with |w| for w, in double precision, batch
    norm active. The released comparison negates the sum, and so does this.
    """
    chain, source = Chain.of(specs), own_generator(draws)
    parameters = {
        k: p.double().abs().requires_grad_() for k, p in draw_parameters(chain, source).items()
    }
    ones = torch.ones(1, chain.in_ch, res, res, dtype=torch.float64, device=source.device)
    kernels = [p for k, p in parameters.items() if k.startswith("weight")]
    found = torch.autograd.grad(logits(chain, parameters, ones).sum(), kernels)
    saliency = [
        (w * g).abs().flatten(1).sum(dim=1).mean() for w, g in zip(kernels, found, strict=True)
    ]
    return -float(torch.stack(saliency).sum().detach())


@torch.no_grad()
def naswot(specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None) -> float:
    """Log |det K|, K = Σ over ReLUs of h hᵀ + (1 − h)(1 − h)ᵀ, h the signs of what enters."""
    chain, source = Chain.of(specs), own_generator(draws)
    weights = chain.draw(source)
    x = normal((batch, chain.in_ch, res, res), source, None, torch.float32)
    kernel = torch.zeros(batch, batch, dtype=torch.float64, device=x.device)
    for conv, weight in zip(chain.convs, weights, strict=True):
        x = torch.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, conv.groups)
        x = torch.native_batch_norm(x, None, None, None, None, True, 0.0, EPS)[0].relu_()
        kernel += agreement(x.flatten(1) > 0)
    score = float(torch.linalg.slogdet(kernel).logabsdet)
    if score == -torch.inf:
        warnings.warn("two images switch all units alike: NASWOT is −∞", stacklevel=2)
    return score


def agreement(on: Tensor) -> Float[Tensor, "b b"]:
    """How many units two images switch alike, for all pairs: on [b, units] is boolean."""
    h = on.float() * 2 - 1  # one product instead of two: hhᵀ + (1−h)(1−h)ᵀ = (n + ssᵀ) / 2
    return ((h @ h.T).double() + on.shape[1]) / 2


def te_nas(specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None) -> float:
    """Minus the condition number of the neural tangent kernel, as the release compares it."""
    values = torch.linalg.eigvalsh(ntk(specs, res, batch, draws))
    floor = torch.finfo(values.dtype).eps * values[-1]
    return -float(values[-1] / values[0].clamp(min=floor))


def te_nas_regions(
    specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None
) -> float:
    """Linear regions minus that condition number: TE-NAS as the paper describes it."""
    source = own_generator(draws)
    return linear_regions(specs, res, source) + te_nas(specs, res, batch, source)


def ntk(
    specs: Specs, res: int, batch: int = 16, draws: torch.Generator | None = None
) -> Float[Tensor, "b b"]:
    """Neural tangent kernel: products of the gradients of Σ logits, one image with another.

    All images go through the network once, and through its transpose in one batched call. The
    gradients are those of kernels, batch norms' scales and the classifier's weights.
    """
    chain, source = Chain.of(specs), own_generator(draws)
    parameters = draw_parameters(chain, source)
    x = normal((batch, chain.in_ch, res, res), source, None, torch.float32)
    biases = {k: p for k, p in parameters.items() if k.startswith(("beta", "bias"))}
    learnt = {k: p for k, p in parameters.items() if k not in biases}
    pull: Callable = vjp(lambda p: logits(chain, p | biases, x).sum(dim=1), learnt)[1]
    (jacobian,) = vmap(pull)(torch.eye(batch, device=x.device))
    rows = torch.cat([part.flatten(1) for part in jacobian.values()], dim=1).double()
    return rows @ rows.T


@torch.no_grad()
def linear_regions(
    specs: Specs, res: int, draws: torch.Generator | None = None, points: int = POINTS
) -> float:
    """Patterns of ReLUs met on a circle through two random images.

    TE-NAS counts patterns over many small images; with images of this size every Gaussian one
    falls into a region of its own, so a circle of neighbouring points is counted instead.
    """
    chain, source = Chain.of(specs), own_generator(draws)
    weights = chain.draw(source)
    ends = normal((2, chain.in_ch * res * res), source, None, torch.float32)
    angle = torch.linspace(0, 2 * torch.pi, points + 1, device=ends.device)[:-1]
    x = torch.stack([angle.cos(), angle.sin()], dim=1) @ ends
    x = x.view(points, chain.in_ch, res, res)
    patterns = []
    for conv, weight in zip(chain.convs, weights, strict=True):
        x = torch.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, conv.groups)
        x = torch.native_batch_norm(x, None, None, None, None, True, 0.0, EPS)[0].relu_()
        patterns.append(x.flatten(1) > 0)
    return float(len(torch.cat(patterns, dim=1).unique(dim=0)))


def draw_parameters(chain: Chain, draws: torch.Generator, classes: int = 10) -> Parameters:
    """Standard normal weights (the classifier's as well), γ = 1, β = 0, bias 0."""
    parameters = {}
    for place, (conv, weight) in enumerate(zip(chain.convs, chain.draw(draws), strict=True)):
        parameters[f"weight{place}"] = weight
        parameters[f"gamma{place}"] = torch.ones(conv.out_ch, device=weight.device)
        parameters[f"beta{place}"] = torch.zeros(conv.out_ch, device=weight.device)
    parameters["weight_head"] = normal((classes, chain.out_ch), draws, None, torch.float32)
    parameters["bias_head"] = torch.zeros(classes, device=draws.device)
    return parameters


def logits(
    chain: Chain, parameters: Parameters, x: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b classes"]:
    """The chain with batch norm, global average pooling and the classifier."""
    for place, conv in enumerate(chain.convs):
        weight, gamma, beta = (parameters[f"{k}{place}"] for k in ("weight", "gamma", "beta"))
        x = torch.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, conv.groups)
        x = F.batch_norm(x, None, None, gamma, beta, True, 0.0, EPS).relu()
    return F.linear(x.mean(dim=(2, 3)), parameters["weight_head"], parameters["bias_head"])


Proxy = Callable[..., float]
PROXIES: dict[str, Proxy] = {
    "zen": zen,
    "closed": closed,
    "flops": flops,
    "params": params,
    "depth": depth,
    "grad_norm": grad_norm,
    "synflow": synflow,
    "naswot": naswot,
    "te_nas": te_nas,
    "te_nas_regions": te_nas_regions,
    "random": random,
}
"""Each takes (structure, side in pixels, images, generator) and returns a number."""
