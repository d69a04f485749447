"""Thousands of SGD trajectories in one tensor, against one `torch.optim.SGD` a trajectory."""

import torch

from _report import report
from toolkit.optimization.multipass_sgd import sgd_trajectories, visiting_orders
from toolkit.optimization.problems import SineLink, log_spaced_spectrum
from toolkit.runtime import race, start

TARGET = 100  # times the trajectory-steps per second of the loop
DIM, EXAMPLES = 16, 64
ETAS = torch.logspace(-2.9, -0.5, 8)
SEEDS = range(64)  # 8 × 64 = 512 trajectories
LOOPED = 4  # trajectories that the loop does a round: its cost is the same for each


def main() -> None:
    """Print both speeds, their ratio with its spread over rounds, and the target."""
    start()
    problem = SineLink(log_spaced_spectrum(DIM, 100.0))
    data = problem.sample(EXAMPLES, SEEDS)
    orders = next(visiting_orders(EXAMPLES, 1, SEEDS))

    def batched() -> torch.Tensor:
        return sgd_trajectories(problem, data, etas=ETAS, epochs=1, seeds=SEEDS).last[-1]

    def loop() -> torch.Tensor:
        return torch.stack(
            [by_optimizer(problem, data.x[:, s], data.y[:, s], orders[:, s]) for s in range(LOOPED)]
        )

    torch.testing.assert_close(batched()[0, :LOOPED], loop(), rtol=1e-4, atol=1e-5)
    seconds = race(batched=batched, loop=loop)
    steps = {"batched": len(ETAS) * len(SEEDS) * EXAMPLES, "loop": LOOPED * EXAMPLES}
    speed = {name: steps[name] / seconds[name] for name in steps}
    ratio = speed["batched"] / speed["loop"]
    for name in steps:
        print(f"{name:8} {speed[name].median():12,.0f} trajectory-steps per second")
    report("batched / loop", ratio, at_least=TARGET)


def by_optimizer(
    problem: SineLink, x: torch.Tensor, y: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """One trajectory as a script would write it: autograd, an optimiser, a loop over examples."""
    w = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=float(ETAS[0]))
    for i in order.tolist():
        optimizer.zero_grad()
        (0.5 * (y[i] - problem.link(x[i] @ w)) ** 2).backward()
        optimizer.step()
    return w.detach()


if __name__ == "__main__":
    main()
