"""Two speeds: LLR's search over all structures against a loop, and networks without batch norms.

The loop asks the table and the regression for one structure at a time, as a script would; it is
timed on a part of the space and extrapolated. Looking the layers up once is part of our time.
"""

import numpy as np
import pandas as pd
import torch
from torch import nn

from _report import report
from toolkit.networks import genet
from toolkit.networks.latency import LatencyTable
from toolkit.networks.structures import build
from toolkit.runtime import race, start

SEARCH_MS, LOOP_S = 50.0, 10.0  # targets: at most, and what the loop takes at least
FUSED = 1.1  # times faster than with batch norms
PART = 2_000  # structures that the loop does a round
RES, BATCH, TOPQ = genet.RES, genet.LATENCY_BATCH, 4


def main() -> None:
    """Print times, ratios with their spread over rounds, and the targets."""
    start()
    searching()
    for name, net, x in (
        ("GE-mini, 64 images", build(genet.SPACE.master, 10), torch.randn(64, 1, 28, 28)),
        ("GENet-small, 1 image", genet.genet("small"), torch.randn(1, 3, 192, 192)),
        ("GENet-small, 8 images", genet.genet("small"), torch.randn(8, 3, 192, 192)),
    ):
        fusing(name, net.eval(), x)


def searching() -> None:
    """The whole space at once, and structure by structure."""
    space, table = genet.SPACE, genet.reference_table()
    llr = made_up_regression()
    budget = table.predict(space.master, RES, BATCH)
    choices = space.draw(np.random.default_rng(0), PART)

    def ours() -> list[genet.Found]:
        return llr.search(space, table, budget, TOPQ, res=RES, batch=BATCH)

    def loop() -> list[tuple[float, tuple]]:
        return looped(llr, table, budget, choices)

    for accuracy, choice in loop():
        seconds = table.predict(space.structure(choice), RES, BATCH)
        again = float(llr.predict(space, np.array([choice]))[0])
        if seconds > budget or not np.isclose(again, accuracy):
            raise AssertionError("the loop and the vectorised prediction differ")
    size = int(np.prod([len(space.options(stage)) for stage in space.stages]))
    times = race(rounds=7, warmup=1, ours=ours, loop=loop)
    whole = times["loop"] * size / PART
    print(f"{size:,} structures, the best {TOPQ} within a budget")
    report("search", 1e3 * times["ours"], "ms", at_most=SEARCH_MS)
    report("loop", whole, "s", at_least=LOOP_S)
    report("loop / search", whole / times["ours"])


def made_up_regression() -> genet.LLR:
    """Random coefficients: speed does not depend on them."""
    rng, rows = np.random.default_rng(0), []
    for stage in genet.SPACE.stages:
        for option in genet.SPACE.options(stage):
            rows.append((stage, *option, rng.normal()))
    columns = ["stage", "kind", "depth", "width", "change"]
    return genet.LLR.fit(pd.DataFrame(rows, columns=columns), base=0.8)


def looped(
    llr: genet.LLR, table: LatencyTable, budget: float, choices: np.ndarray
) -> list[tuple[float, tuple]]:
    """One structure after the other: build its string of blocks, add up both predictions."""
    space, kept = genet.SPACE, []
    options = [space.options(stage) for stage in space.stages]
    for choice in choices.tolist():
        accuracy = llr.base
        for stage, places, place in zip(space.stages, options, choice, strict=True):
            option = places[place]
            b0, b1, b2 = llr.beta[stage, option.kind]
            accuracy += b0 + b1 * option.depth + b2 * np.log2(option.width)
        if table.predict(space.structure(choice), RES, BATCH) <= budget:
            kept.append((float(accuracy), tuple(choice)))
    return sorted(kept, reverse=True)[:TOPQ]


def fusing(name: str, net: nn.Module, x: torch.Tensor) -> None:
    """A forward pass with batch norms and without; a sample is the fastest of three rounds."""
    fused = genet.fuse_bn(net)
    with torch.no_grad():
        torch.testing.assert_close(net(x), fused(x), rtol=1e-3, atol=1e-3)
        times = race(rounds=21, warmup=3, plain=lambda: net(x), fused=lambda: fused(x))
    times = times.groupby(times.index // 3).min()
    print(f"{name}: {1e3 * times['plain'].median():.3g} ms with batch norms")
    report("  plain / fused", times["plain"] / times["fused"], at_least=FUSED)


if __name__ == "__main__":
    main()
