"""The Zen-score and the Φ-score it stands for (Lin et al. 2021, arXiv:2102.01063, Algorithm 1)."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from toolkit.networks.structures import Residual
from toolkit.networks.zen_nas.chain import Chain, Specs, normal, own_generator

NORMS = ("l1", "fro")
BN_STATS = ("batch", "ema")
MOMENTUM = 0.1
"""Of batch norm's running variance, in the released code."""

Draw = tuple[float, Float[Tensor, " L"]]
"""log Δ and the logarithms of σ̄ₜ of one random network."""


@dataclass(frozen=True)
class ZenResult:
    """Scores of freshly drawn networks.

    Attributes:
        mean: over repeats; −∞ where Δ vanished or was not finite.
        sd: standard deviation over repeats; NaN for a single one.
        sem: of the mean; NaN for a single repeat.
        log_delta: mean of log Δ.
        log_sigma: mean of log σ̄ₜ for each batch norm, [L]; empty for Φ.
        scores: of each repeat.
    """

    mean: float
    sd: float
    sem: float
    log_delta: float
    log_sigma: tuple[float, ...]
    scores: tuple[float, ...]


def zen_score(
    net_or_specs: nn.Module | Specs,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    batch_size: int = 16,
    alpha: float = 1e-2,
    repeat: int = 1,
    norm: str = "l1",
    bn_stat: str = "batch",
    generator: torch.Generator | None = None,
    device: str | torch.device | None = None,
) -> ZenResult:
    """Zen-score: expressivity of a random network, Algorithm 1 of the paper.

    Zen = log Δ + Σₜ log σ̄ₜ with Δ the mean over images of ‖f(x) − f(x + αε)‖, kernels, x and ε
    standard normal, batch norm on batch statistics, no residual links, f the map before pooling.

    Args:
        net_or_specs: a structure, its string, or a module. A module is copied; a network of
            `structures.build` loses its shortcuts in the copy, of any other module all links stay.
            `forward_features` is used where there is one, else the output has to be a map.
        input_shape: channels, height and width in pixels.
        batch_size: B, images.
        alpha: α, size of the perturbation.
        repeat: networks drawn, each with its own x and ε.
        norm: `"l1"`, the sum of absolute values (the released code), or `"fro"`, Frobenius (the
            paper's text).
        bn_stat: σ̄ₜ² is the mean over channels of the `"batch"` variance of x (the paper), or the
            running variance after both passes of a fresh network, `"ema"` (the released code):
            0.81 + 0.09 v₁ + 0.10 v₂.
        generator: of all draws; by default a new one with seed 0. The global one stays untouched.
        device: where to compute; by default the generator's, or that of the module.

    Raises:
        ValueError: for an unknown option, α ≤ 0, a size below 1, channels that do not fit, or a
            module without batch norm.
    """
    _check_options(norm, bn_stat, alpha, repeat, batch_size, input_shape)
    draws = own_generator(generator)
    if isinstance(net_or_specs, nn.Module):
        once = _module_draw(net_or_specs, bn_stat, device)
    else:
        chain = _fitting(net_or_specs, input_shape)
        home = None if device is None else torch.device(device)
        once = partial(_chain_draw, chain, bn_stat, home)
    shape = (batch_size, *input_shape)
    return _summary([once(shape, alpha, norm, draws) for _ in range(repeat)])


def phi_score(
    specs: Specs,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    batch_size: int = 16,
    alpha: float = 1e-2,
    repeat: int = 1,
    norm: str = "fro",
    bn: bool = False,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> ZenResult:
    """Φ-score: log of the mean norm of f(x) − f(x + αε) over α, an estimate of log E‖∇ₓf‖.

    E‖∇f·ε‖² over ε is ‖∇f‖² in the Frobenius norm. Without batch norm it overflows in deep
    networks; with it (`bn=True`) the widths vanish from it.

    Args:
        specs: a structure or its string.
        input_shape: channels, height and width in pixels.
        batch_size: images.
        alpha: α, size of the perturbation.
        repeat: networks drawn.
        norm: `"fro"` or `"l1"`.
        bn: with batch norm, whose scales are *not* added back.
        generator: of all draws; by default a new one with seed 0.
        dtype: of the arithmetic.

    Raises:
        ValueError: as `zen_score`.
    """
    _check_options(norm, "batch", alpha, repeat, batch_size, input_shape)
    chain, draws = _fitting(specs, input_shape), own_generator(generator)
    found = []
    for _ in range(repeat):
        weights = chain.draw(draws, dtype=dtype)
        x = normal((batch_size, *input_shape), draws, None, dtype)
        y = x + alpha * normal((batch_size, *input_shape), draws, None, dtype)
        first, second = (chain.features(weights, z, "centred" if bn else "none")[0] for z in (x, y))
        found.append((_log_distance(first, second, norm) - math.log(alpha), torch.zeros(0)))
    return _summary(found)


# --- one random network -------------------------------------------------------------------------


def _chain_draw(
    chain: Chain,
    bn_stat: str,
    device: torch.device | None,
    shape: tuple[int, ...],
    alpha: float,
    norm: str,
    draws: torch.Generator,
) -> Draw:
    weights = chain.draw(draws, device)
    x = normal(shape, draws, device, torch.float32)
    y = x + alpha * normal(shape, draws, device, torch.float32)
    first, variances = chain.features(weights, x)
    second, others = chain.features(weights, y)
    sizes = [shape[0] * side[0] * side[1] for side in _sides(chain, shape[2:])]
    return _log_distance(first, second, norm), _log_sigma(variances, others, sizes, bn_stat)


def _module_draw(
    module: nn.Module, bn_stat: str, device: str | torch.device | None
) -> Callable[[tuple[int, ...], float, str, torch.Generator], Draw]:
    """The same for a module: hooks read the variances of what enters each batch norm."""
    net = copy.deepcopy(module).train()
    if device is not None:
        net = net.to(device)
    for part in net.modules():
        if isinstance(part, Residual):
            part.shortcut = None
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    if not norms:
        raise ValueError("the Zen-score reads batch norms, and this module has none")
    seen: list[tuple[Tensor, int]] = []
    for part in norms:
        part.momentum, part.eps = 0.0, 1e-3
        part.register_forward_pre_hook(lambda _, args: seen.append(_variance(args[0])))
    forward = getattr(net, "forward_features", net)

    @torch.no_grad()
    def once(shape: tuple[int, ...], alpha: float, norm: str, draws: torch.Generator) -> Draw:
        _randomise(net, draws)
        home = next(net.parameters()).device
        x = normal(shape, draws, home, torch.float32)
        y = x + alpha * normal(shape, draws, home, torch.float32)
        found = []
        for z in (x, y):
            seen.clear()
            found.append((_as_map(forward(z)).clone(), list(seen)))
        (first, one), (second, two) = found
        sizes = [size for _, size in one]
        sigma = _log_sigma([v for v, _ in one], [v for v, _ in two], sizes, bn_stat)
        return _log_distance(first, second, norm), sigma

    return once


@torch.no_grad()
def _randomise(net: nn.Module, draws: torch.Generator) -> None:
    """Weights standard normal, biases 0, batch norms the identity."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.weight.copy_(normal(tuple(part.weight.shape), draws, None, part.weight.dtype))
        elif isinstance(part, nn.BatchNorm2d) and part.affine:
            part.weight.fill_(1)
        bias = getattr(part, "bias", None)
        if isinstance(bias, Tensor):
            bias.zero_()


def _variance(x: Tensor) -> tuple[Tensor, int]:
    return x.double().var(dim=(0, 2, 3), correction=0), x.numel() // x.shape[1]


def _as_map(x: Tensor) -> Tensor:
    if x.ndim != 4:
        raise ValueError(f"the module must return a map [b, c, h, w], got shape {tuple(x.shape)}")
    return x


# --- arithmetic ---------------------------------------------------------------------------------


def _log_distance(
    first: Float[Tensor, "b c h w"], second: Float[Tensor, "b c h w"], norm: str
) -> float:
    """Log of the mean over images of the norm of the difference."""
    order = 1 if norm == "l1" else 2
    lengths = torch.linalg.vector_norm((first - second).flatten(1), order, dim=1)
    return float(lengths.mean().log())


def _log_sigma(
    first: list[Tensor], second: list[Tensor], sizes: list[int], bn_stat: str
) -> Float[Tensor, " L"]:
    """Log σ̄ₜ from the biased variances of both passes; sizes: numbers a channel."""
    if bn_stat == "batch":
        means = [v.mean() for v in first]
    else:
        means = [
            (1 - MOMENTUM) ** 2 + MOMENTUM * ((1 - MOMENTUM) * a + b).mean() * (n / max(n - 1, 1))
            for a, b, n in zip(first, second, sizes, strict=True)
        ]
    return torch.stack(means).log().cpu() / 2


def _sides(chain: Chain, side: tuple[int, ...]) -> list[tuple[int, int]]:
    sides, (height, width) = [], side
    for conv in chain.convs:
        height, width = conv.side(height), conv.side(width)
        sides.append((height, width))
    return sides


def _summary(found: list[Draw]) -> ZenResult:
    scores = [delta + float(sigma.sum()) for delta, sigma in found]
    if not all(map(math.isfinite, scores)):
        warnings.warn("Δ or a variance vanished or overflowed: the score is −∞", stacklevel=3)
        scores = [score if math.isfinite(score) else -math.inf for score in scores]
    values = torch.tensor(scores, dtype=torch.float64)
    spread = float(values.std()) if len(scores) > 1 else math.nan
    sigma = torch.stack([sigma for _, sigma in found]).mean(dim=0)
    return ZenResult(
        mean=float(values.mean()),
        sd=spread,
        sem=spread / math.sqrt(len(scores)),
        log_delta=sum(delta for delta, _ in found) / len(found),
        log_sigma=tuple(sigma.tolist()),
        scores=tuple(scores),
    )


def _fitting(specs: Specs, input_shape: tuple[int, int, int]) -> Chain:
    chain = Chain.of(specs)
    if chain.in_ch != input_shape[0]:
        raise ValueError(
            f"the structure takes {chain.in_ch} channels, but the input has {input_shape[0]}"
        )
    return chain


def _check_options(
    norm: str,
    bn_stat: str,
    alpha: float,
    repeat: int,
    batch_size: int,
    input_shape: tuple[int, int, int],
) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm is one of {', '.join(NORMS)}, got {norm!r}")
    if bn_stat not in BN_STATS:
        raise ValueError(f"bn_stat is one of {', '.join(BN_STATS)}, got {bn_stat!r}")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if len(input_shape) != 3 or min(repeat, batch_size, *input_shape) < 1:
        raise ValueError(
            f"repeat, batch_size and (channels, height, width) must be at least 1, got {repeat}, "
            f"{batch_size}, {input_shape}"
        )
