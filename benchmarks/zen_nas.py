"""Three speeds: the Zen-score against the released procedure, its closed form, and two rivals.

The released code is no package, so its procedure is written out here: a module with a classifier,
batch norms that keep running statistics, weights drawn one layer after the other, two forward
passes. Building the module is not timed. `PEER_MS` are that code's own times in its reference
table, on another machine. A sample is the fastest of three rounds.
"""

import math

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from _report import report
from toolkit.networks import zen_nas
from toolkit.networks.structures import Space, build, count, mutate, parse
from toolkit.networks.zen_nas import many
from toolkit.networks.zen_nas.chain import EPS
from toolkit.networks.zen_nas.proxies import draw_parameters
from toolkit.runtime import race, start

FASTER, CLOSED, RANK = 1.3, 1_000.0, 0.99  # targets
BATCH, NETS, SHOTS = 16, 200, 8
STRUCTURES = {
    "A": ("SuperConvK3BNRELU(3,8,1,1)", 32),
    "B": (
        "SuperConvK3BNRELU(3,16,2,1)SuperResK3K3(16,16,1,16,1)SuperResK3K3(16,32,2,32,1)"
        "SuperConvK1BNRELU(32,64,1,1)",
        28,
    ),
    "C": (
        "SuperConvK3BNRELU(3,16,2,1)SuperResK1K3K1(16,32,1,16,1)SuperResK1K3K1(32,64,2,16,2)"
        "SuperConvK1BNRELU(64,128,1,1)",
        28,
    ),
    "D": (
        "SuperConvK3BNRELU(3,16,2,1)SuperResIDWE4K3(16,24,1,24,1)SuperResIDWE4K5(24,40,2,40,1)"
        "SuperConvK1BNRELU(40,128,1,1)",
        28,
    ),
    "E": (zen_nas.CIFAR_START, 32),
    "F": (
        "SuperConvK3BNRELU(3,88,1,1)SuperResK1K7K1(88,120,1,16,1)SuperResK1K7K1(120,192,2,16,3)"
        "SuperResK1K5K1(192,224,1,24,4)SuperResK1K5K1(224,96,2,24,2)SuperResK1K3K1(96,168,2,40,3)"
        "SuperResK1K3K1(168,112,1,48,3)SuperConvK1BNRELU(112,512,1,1)",
        32,
    ),
}
PEER_MS = {"A": 2.8, "B": 4.0, "C": 12.1, "D": 33.0, "E": 18.7, "F": 238.0}


def main() -> None:
    """Print times, ratios with their spread over rounds, and the targets."""
    start()
    scoring()
    closed_form()
    rivals()


def scoring() -> None:
    """One score of each structure of the reference table, at equal batch."""
    ratios = []
    for name, (text, side) in STRUCTURES.items():
        peer = Released(text, side)
        check(text, side, peer)
        rounds = 6 if name == "F" else 21
        times = race(
            rounds=rounds,
            warmup=1,
            ours=lambda text=text, side=side: zen_nas.zen_score(text, (3, side, side), BATCH),
            released=peer,
        )
        times = times.groupby(times.index // 3).min()
        ratios.append((times["released"] / times["ours"]).median())
        print(
            f"{name}: {1e3 * times['ours'].median():.3g} ms, the released procedure "
            f"{1e3 * times['released'].median():.3g} ms ({PEER_MS[name]:g} ms recorded elsewhere)"
        )
        report("  released / ours", times["released"] / times["ours"], at_least=FASTER)
    mean = math.exp(float(np.mean(np.log(ratios))))
    report("geometric mean over structures", pd.Series([mean]), at_least=FASTER)


class Released:
    """The released procedure for one structure."""

    def __init__(self, text: str, side: int) -> None:
        self.net = build(parse(text), 10, residual=False, eps=EPS).train()
        self.shape = (BATCH, 3, side, side)

    @torch.no_grad()
    def __call__(self) -> float:
        for module in self.net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        x = torch.empty(self.shape).normal_()
        noise = torch.empty(self.shape).normal_()
        first = self.net.forward_features(x)
        second = self.net.forward_features(x + 0.01 * noise)
        score = torch.log((first - second).abs().sum(dim=(1, 2, 3)).mean())
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                score += torch.log(torch.sqrt(module.running_var.mean()))
        return float(score)


def check(text: str, side: int, peer: Released) -> None:
    """Both give the score with the running variance, up to its spread."""
    ours = zen_nas.zen_score(text, (3, side, side), BATCH, repeat=4, bn_stat="ema")
    theirs = np.mean([peer() for _ in range(4)])
    if abs(ours.mean - theirs) > max(4 * ours.sd, 0.02 * ours.mean):
        raise AssertionError(f"scores differ: {ours.mean} and {theirs}")


def closed_form() -> None:
    """Agreement over random networks; and the time of a structure among the mutants of a search."""
    rng, side = np.random.default_rng(0), zen_nas.RES
    nets = [zen_nas.random_structure(zen_nas.START, zen_nas.SPACE_FM, rng) for _ in range(NETS)]
    measured = [
        zen_nas.zen_score(
            specs, (1, side, side), repeat=SHOTS, generator=torch.Generator().manual_seed(place)
        ).mean
        for place, specs in enumerate(nets)
    ]
    rank = spearmanr(zen_nas.closed_forms(nets, side), measured).statistic
    print(f"closed form against the mean of {SHOTS} draws, {NETS} random networks:")
    print(f"  Spearman {rank:.4f}, target ≥ {RANK}: {'met' if rank >= RANK else 'MISSED'}")
    for name, first, space, res in (
        ("small space", zen_nas.START, zen_nas.SPACE_FM, side),
        ("Space I, CIFAR", zen_nas.CIFAR_START, zen_nas.SPACE_I, 32),
    ):
        mutants = chain_of_mutants(first, space, 2_000)
        few, channels = mutants[::500], mutants[0][0].in_ch
        times = race(
            rounds=6,
            warmup=0,
            formula=lambda mutants=mutants, res=res: fresh_forms(mutants, res),
            draws=lambda few=few, shape=(channels, res, res): [
                zen_nas.zen_score(specs, shape, BATCH) for specs in few
            ],
        )
        formula, draw = times["formula"] / len(mutants), times["draws"] / len(few)
        print(f"  {name}: {1e6 * formula.median():.3g} µs a structure, first sights included")
        report("  one draw / closed form", draw / formula, at_least=1)
        report(f"  mean of {SHOTS} draws / closed form", SHOTS * draw / formula, at_least=CLOSED)


def fresh_forms(mutants: list, res: int) -> np.ndarray:
    """From nothing: no super-block is known yet."""
    many._super_block.cache_clear()
    many._layer.cache_clear()
    return zen_nas.closed_forms(mutants, res)


def chain_of_mutants(first: str, space: Space, number: int) -> list:
    """A walk of mutations within a million parameters, as a search meets them."""
    rng, specs, found = np.random.default_rng(0), parse(first), []
    while len(found) < number:
        child = mutate(specs, space, rng, 2)
        if count(child, 32, num_classes=10).params <= 1e6:
            specs = child
            found.append(child)
    return found


def rivals() -> None:
    """NASWOT and the tangent kernel, each against image by image."""
    text, side = STRUCTURES["C"]
    ours = zen_nas.ntk(text, side, BATCH, torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours, looped_ntk(text, side), rtol=1e-3, atol=1.0)
    times = race(
        rounds=9,
        warmup=1,
        kernel=lambda: zen_nas.ntk(text, side, BATCH),
        loop=lambda: looped_ntk(text, side),
        zen=lambda: zen_nas.zen_score(text, (3, side, side), BATCH),
        naswot=lambda: zen_nas.PROXIES["naswot"](text, side, BATCH),
        pairs=lambda: looped_agreement(text, side),
    )
    times = times.groupby(times.index // 3).min()
    report("tangent kernel: image by image / batched", times["loop"] / times["kernel"], at_least=1)
    report("tangent kernel / Zen", times["kernel"] / times["zen"], at_least=5)
    report("NASWOT: pair by pair / batched", times["pairs"] / times["naswot"], at_least=1)
    report("NASWOT / Zen", times["naswot"] / times["zen"])


def looped_ntk(text: str, side: int) -> torch.Tensor:
    """One backward pass for each image."""
    chain, draws = zen_nas.Chain.of(text), torch.Generator().manual_seed(0)
    parameters = {k: p.requires_grad_() for k, p in draw_parameters(chain, draws).items()}
    x = torch.randn(BATCH, 3, side, side, generator=draws)
    learnt = [p for k, p in parameters.items() if not k.startswith(("beta", "bias"))]
    sums = zen_nas.logits(chain, parameters, x).sum(dim=1)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(one, learnt, retain_graph=True)])
        for one in sums
    ]
    jacobian = torch.stack(rows).double()
    return jacobian @ jacobian.T


@torch.no_grad()
def looped_agreement(text: str, side: int) -> float:
    """NASWOT's kernel counted pair by pair, as its definition reads."""
    chain, draws = zen_nas.Chain.of(text), torch.Generator().manual_seed(0)
    weights = chain.draw(draws)
    x = torch.randn(BATCH, 3, side, side, generator=draws)
    kernel = torch.zeros(BATCH, BATCH, dtype=torch.float64)
    for conv, weight in zip(chain.convs, weights, strict=True):
        x = torch.conv2d(x, weight, None, conv.stride, conv.kernel // 2, 1, conv.groups)
        x = F.batch_norm(x, None, None, training=True, eps=EPS).relu()
        on = x.flatten(1) > 0
        for one in range(BATCH):
            for other in range(BATCH):
                kernel[one, other] += float((on[one] == on[other]).sum())
    torch.testing.assert_close(kernel.diag(), kernel.diag()[:1].expand(BATCH))
    return float(torch.linalg.slogdet(kernel).logabsdet)


if __name__ == "__main__":
    main()
