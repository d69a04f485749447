"""FCCS, the fast continuous convergence strategy: rate and update size change continuously.

The idea is the paper's (Song et al. 2020): a learning-rate scheduler and a large-batch optimiser
that let training end in far fewer iterations. The formula is ours, as the text was not at hand.
"""

import math


def fccs_schedule(t: int, T: int, Tw: int, lr0: float, amax: int) -> tuple[float, int]:
    """Learning rate η(t) and number of batches accumulated per update a(t).

    Linear warm-up, then with τ = (t − T_w)/(T − T_w) a cosine decay of the rate,
    η₀·½(1 + cos πτ), while the update grows: 1 + ⌊(a_max − 1)·½(1 − cos πτ)⌋.

    Args:
        t: iteration, 0 ≤ t ≤ T; one iteration is one pass over a batch.
        T: all iterations.
        Tw: iterations of warm-up.
        lr0: highest rate η₀.
        amax: batches per update at the end.

    Raises:
        ValueError: if not 0 ≤ t ≤ T, 0 ≤ Tw < T, lr0 ≥ 0 and amax ≥ 1.
    """
    if not (0 <= t <= T and 0 <= Tw < T):
        raise ValueError(f"t={t}, Tw={Tw}, T={T}: need 0 ≤ t ≤ T and 0 ≤ Tw < T")
    if lr0 < 0 or amax < 1:
        raise ValueError(f"lr0={lr0} must be ≥ 0 and amax={amax} at least 1")
    if t < Tw:
        return lr0 * t / Tw, 1
    tau = (t - Tw) / (T - Tw)
    decay = (1 + math.cos(math.pi * tau)) / 2
    return lr0 * decay, 1 + math.floor((amax - 1) * (1 - decay))


def piecewise_schedule(
    t: int, T: int, lr0: float, drops: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1
) -> float:
    """The baseline: a constant rate that is multiplied by `factor` at fractions of the run.

    Args:
        t: iteration.
        T: all iterations.
        lr0: first rate.
        drops: fractions of T at which the rate drops. [our decision]
        factor: of each drop.
    """
    return lr0 * factor ** sum(t >= drop * T for drop in drops)
