"""Moving averages: batched chains, the step against torch's Adam, products against a solve.

Chains: 2,048 Adam chains in one tensor against one `torch.optim.Adam` a chain (≥ 100×). Step:
`AdamFamily` against `torch.optim.Adam(foreach=True)` on a million parameters (≤ 1.1×). Neumann:
the k = 8 product, whose mean number of Hessian-vector products is 3.5, against
`torch.linalg.solve`, over the dimension.
"""

import torch

from _report import report
from toolkit.optimization.moving_average import (
    AdamFamily,
    SaturatingBowl,
    draws,
    minimise_chains,
    neumann_hvp,
)
from toolkit.runtime import race, start

CHAINS, STEPS, LOOPED = 2048, 128, 4
SHAPES = [(512, 512)] * 3 + [(512, 256), (512,), (512,), (512,), (256,)] * 2
DIMENSIONS = (16, 64, 256, 1024)
TERMS, BOUND = 8, 2.5


def main() -> None:
    """Print the three ratios with their spread over rounds, and the targets."""
    start()
    chains()
    step()
    neumann()


def chains() -> None:
    """Chain-steps per second, stacked and one by one."""
    bowl, gamma = SaturatingBowl(), torch.full((STEPS,), 0.1)
    eta = torch.full((STEPS,), 0.01)

    def batched() -> torch.Tensor:
        return minimise_chains(
            bowl, "adam", STEPS, gamma=gamma, eta=eta, seeds=[0], chains=CHAINS
        ).x

    def loop() -> torch.Tensor:
        return torch.stack([by_optimizer(bowl, chain) for chain in range(LOOPED)])

    seconds = race(batched=batched, loop=loop)
    ratio = (CHAINS / seconds["batched"]) / (LOOPED / seconds["loop"])
    report("chains, times the loop", ratio, at_least=100)


def by_optimizer(bowl: SaturatingBowl, chain: int) -> torch.Tensor:
    """One chain as a script would write it."""
    x = bowl.start([chain], 1)[0].clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.01)
    for numbers in draws([chain], 1, bowl.dim, STEPS, stream=STEPS):
        x.grad = bowl.gradient(x.detach()) + numbers[0]
        optimizer.step()
    return x.detach()


def step() -> None:
    """One step on about a million parameters."""
    optimizers = {}
    for name in ("family", "torch"):
        params = [torch.randn(shape).requires_grad_() for shape in SHAPES]
        for p in params:
            p.grad = torch.randn_like(p)
        optimizers[name] = (
            AdamFamily(params, 1e-3, 0.1)
            if name == "family"
            else torch.optim.Adam(params, 1e-3, foreach=True)
        )
    calls = {name: repeated(optimizer.step) for name, optimizer in optimizers.items()}
    seconds = race(rounds=20, **calls)
    report(
        "AdamFamily step over Adam(foreach=True)",
        seconds["family"] / seconds["torch"],
        at_most=1.1,
    )


def repeated(fn, times: int = 5):
    """A call of several steps, so that one round is long enough to time."""

    def run() -> None:
        for _ in range(times):
            fn()

    return run


def neumann() -> None:
    """Time of a solve over that of the truncated product, and where they cross."""
    for d in DIMENSIONS:
        basis = torch.linalg.qr(torch.randn(d, d)).Q
        H = (basis * torch.linspace(1, 2, d)) @ basis.T
        v, p = torch.randn(d), torch.arange(TERMS)

        def products(H=H, v=v, p=p) -> None:
            for count in p.tolist():  # every p once: the mean cost of one call is an eighth
                neumann_hvp(lambda z: H @ z, v, BOUND, TERMS, count)

        seconds = race(
            rounds=10, products=products, solve=lambda H=H, v=v: torch.linalg.solve(H, v)
        )
        ratio = seconds["solve"] / (seconds["products"] / TERMS)
        report(f"solve over product, d = {d}", ratio)


if __name__ == "__main__":
    main()
