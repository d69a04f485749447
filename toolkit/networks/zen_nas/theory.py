"""The paper's three observations about batch norm, on plain chains: C1, C2 and C3."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolkit.networks.zen_nas.chain import Chain, normal
from toolkit.networks.zen_nas.score import phi_score, zen_score


@dataclass(frozen=True)
class TheoryRecipe:
    """Plain 3×3 networks of equal width."""

    draws: int = 64  # random networks at each batch
    width: int = 16  # channels of every layer
    depths: tuple[int, ...] = (4, 8)  # L
    side: int = 8  # H = W, pixels
    batches: tuple[int, ...] = (1, 4, 16, 64)  # B, images; B·H·W is 64 to 4,096
    batch: int = 16  # images elsewhere
    alpha: float = 1e-2
    overflow_width: int = 64  # of the networks of Fig. 2a–c
    overflow_depths: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 64)
    overflow_side: int = 8  # pixels
    hidden: tuple[int, ...] = (2, 4, 8, 15, 30, 60)  # of the two-layer nets of Fig. 2d–f
    hidden_side: int = 16  # pixels


def plain(width: int, depth: int, in_ch: int = 3) -> str:
    """The string of a plain 3×3 network."""
    rest = f"SuperConvK3BNRELU({width},{width},1,{depth - 1})" if depth > 1 else ""
    return f"SuperConvK3BNRELU({in_ch},{width},1,1){rest}"


def bn_match(recipe: TheoryRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """One draw for each depth and batch: what batch norm's scales give back (Theorem 1).

    The same kernels and images pass without batch norm, with it, and with the proof's that does
    not centre. In float64.

    Returns:
        For each L and B·H·W, `"L/zen@BHW"`: Zen − Φ with the usual batch norm, `"L/zen_uncentred"`
        with the proof's; `"L/ratio"` and `"L/ratio_uncentred"`: log of the ratio of the theorem.
    """
    draws = torch.Generator().manual_seed(seed)
    results: dict[str, float] = {}
    for depth in recipe.depths:
        chain = Chain.of(plain(recipe.width, depth))
        for batch in recipe.batches:
            weights = chain.draw(draws, device, torch.float64)
            shape = (batch, chain.in_ch, recipe.side, recipe.side)
            x, noise = (normal(shape, draws, device, torch.float64) for _ in range(2))
            y = x + recipe.alpha * noise
            bare, _ = chain.features(weights, x, "none")
            phi = _log_length(bare - chain.features(weights, y, "none")[0])
            for name, norm in (("", "centred"), ("_uncentred", "uncentred")):
                first, variances = chain.features(weights, x, norm)
                second, _ = chain.features(weights, y, norm)
                scales = sum(float(v.mean().log()) / 2 for v in variances)
                place = f"@{batch * recipe.side**2}"
                zen = _log_length(first - second) + scales
                ratio = 2 * scales + _log_energy(first) - _log_energy(bare)
                results[f"{depth}/zen{name}{place}"] = zen - phi
                results[f"{depth}/ratio{name}{place}"] = ratio
    return results


def overflow(recipe: TheoryRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Φ without batch norm and Zen, in float32, against depth; not finite becomes NaN."""
    shape, results = (3, recipe.overflow_side, recipe.overflow_side), {}
    for depth in recipe.overflow_depths:
        text = plain(recipe.overflow_width, depth)
        for name, found in (
            ("phi", _quiet_phi(text, shape, recipe, seed)),
            ("zen", zen_score(text, shape, recipe.batch, generator=_generator(seed)).mean),
        ):
            results[f"{name}@{depth}"] = found if math.isfinite(found) else math.nan
    finite = [depth for depth in recipe.overflow_depths if math.isfinite(results[f"phi@{depth}"])]
    results["phi/last finite"] = float(max(finite, default=0))
    zen = np.array([results[f"zen@{depth}"] for depth in recipe.overflow_depths])
    results["zen/R2"] = float(np.corrcoef(recipe.overflow_depths, zen)[0, 1] ** 2)
    return results


def hidden_width(recipe: TheoryRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Φ with batch norm and Zen of two-layer nets, against the hidden width.

    Returns:
        `"phi@WIDTH"`, `"zen@WIDTH"`, and `"phi/rise"`, `"zen/rise"` from the least to the largest.
    """
    results: dict[str, float] = {}
    shape = (3, recipe.hidden_side, recipe.hidden_side)
    for width in recipe.hidden:
        text = f"SuperConvK3BNRELU(3,{width},1,1)SuperConvK3BNRELU({width},{recipe.width},1,1)"
        zen = zen_score(text, shape, recipe.batch, norm="fro", generator=_generator(seed))
        phi = phi_score(text, shape, recipe.batch, bn=True, generator=_generator(seed))
        results |= {f"phi@{width}": phi.mean, f"zen@{width}": zen.mean}
    for name in ("phi", "zen"):
        low, high = (results[f"{name}@{recipe.hidden[place]}"] for place in (0, -1))
        results[f"{name}/rise"] = high - low
    return results


def _quiet_phi(text: str, shape: tuple[int, int, int], recipe: TheoryRecipe, seed: int) -> float:
    chain = Chain.of(text)
    draws = _generator(seed)
    weights = chain.draw(draws)
    x = normal((recipe.batch, *shape), draws, None, torch.float32)
    y = x + recipe.alpha * normal((recipe.batch, *shape), draws, None, torch.float32)
    gap = chain.features(weights, x, "none")[0] - chain.features(weights, y, "none")[0]
    return _log_length(gap) - math.log(recipe.alpha)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _log_length(gap: Tensor) -> float:
    """Log of the mean Frobenius norm of an image's difference, summed in double precision."""
    return float(gap.double().square().sum(dim=(1, 2, 3)).sqrt().mean().log())


def _log_energy(x: Tensor) -> float:
    """Log of the mean over images of ‖x‖²."""
    return float(x.square().sum(dim=(1, 2, 3)).mean().log())
