r"""Where Adam comes to rest on `RareEvent`, and why: mean part against covariance."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.optimization.moving_average.problems import RareEvent
from toolkit.optimization.moving_average.streams import draws


@dataclass(frozen=True, eq=False)
class LongRun:
    r"""Late positions of many chains, and the two parts of their mean step.

    $E[s\,v]=E[s]E[v]+\mathrm{Cov}(s,v)$ over chains and late steps. At rest it is zero: the
    chain stops where both parts cancel, and at $x_*$ only if there is no covariance.
    """

    x: Float[Tensor, "E samples"]
    mean_part: Float[Tensor, " E"]
    covariance: Float[Tensor, " E"]


def long_run(
    beta1: Float[Tensor, " E"],
    beta2: Float[Tensor, " E"],
    p: Float[Tensor, " E"],
    *,
    eta: float = 0.01,
    G0: float = 0.1,
    chains: int = 512,
    T: int = 12_000,
    snapshots: int = 4,
    seed: int = 0,
) -> LongRun:
    r"""Run Adam from $x=0$ for every setting at once, with shared randomness.

    Args:
        beta1: $\beta_1$ of each setting, in [0, 1).
        beta2: $\beta_2$ of each setting, in [0, 1).
        p: probability of the rare event.
        eta: step size.
        G0: added to $\sqrt u$.
        chains: of each setting.
        T: steps; the second half counts as late.
        snapshots: late times, equally spaced, at which positions are kept.
        seed: of the noise.

    Raises:
        ValueError: if the settings differ in number or a value is out of range.
    """
    if not beta1.shape == beta2.shape == p.shape:
        raise ValueError("beta1, beta2 and p must have one entry a setting")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not bool(((beta >= 0) & (beta < 1)).all()):
            raise ValueError(f"{name} must lie in [0, 1), got {beta.tolist()}")
    problem = RareEvent(p[:, None])
    new, fresh = 1 - beta1[:, None], 1 - beta2[:, None]
    x, v, u = (torch.zeros(len(p), chains) for _ in range(3))
    sums = torch.zeros(3, len(p))
    kept, late, every = [], T // 2, T // 2 // snapshots
    for t, numbers in enumerate(draws([seed], chains, 1, T, stream=T, kind="uniform")):
        g = problem.oracle(x, x, numbers[:, 0])
        v = g if t == 0 else v.lerp_(g, new)
        u = u.lerp_(g * g, fresh)
        s = u.sqrt().add_(G0).reciprocal_()
        step = s * v
        x = x - eta * step
        if t >= late:
            sums += torch.stack([step.mean(1), s.mean(1), v.mean(1)])
            if (t - late) % every == every - 1:
                kept.append(x)
    product, scale, average = sums / (T - late)
    return LongRun(torch.cat(kept, 1), scale * average, product - scale * average)
