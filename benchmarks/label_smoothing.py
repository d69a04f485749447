"""The smoothed loss against torch's own, stacked training against a loop, the meter's price."""

import torch
from torch.nn import functional as F

from _report import report
from toolkit.learn.nets import mlp
from toolkit.learn.stacked import StackedMLP
from toolkit.runtime import race, start
from toolkit.supervision.label_smoothing import gradient_deviation, smoothed_cross_entropy

LOSS_TARGETS = {1_000: 1.05, 100_000: 1.0}  # at most this share of torch's time
ROWS = {1_000: 1024, 100_000: 64}
THETA = 0.1
REPLICAS, BATCH, WIDTHS = 24, 32, (196, 128, 10)
STACK_TARGET = 2.0  # times faster than one network after another
METER_EXAMPLES, METER_STEPS = 512, 10


def main() -> None:
    """Print every ratio with its spread over rounds, and the target."""
    start()
    for classes, target in LOSS_TARGETS.items():
        losses(classes, target)
    stacked_training()
    meter()


def losses(classes: int, target: float) -> None:
    """Forward and backward of the mean loss, ours against torch.nn.functional.cross_entropy."""
    logits = torch.randn(ROWS[classes], classes)
    y = torch.randint(classes, (len(logits),))

    def ours() -> torch.Tensor:
        f = logits.detach().requires_grad_()
        smoothed_cross_entropy(f, y, THETA).backward()
        return f.grad

    def theirs() -> torch.Tensor:
        f = logits.detach().requires_grad_()
        F.cross_entropy(f, y, label_smoothing=THETA).backward()
        return f.grad

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-7)
    seconds = race(rounds=30, ours=ours, theirs=theirs)
    report(
        f"loss, K = {classes:,}: time / torch's",
        seconds["ours"] / seconds["theirs"],
        at_most=target,
    )


def stacked_training() -> None:
    """One SGD step with momentum of 24 networks: one stack against 24 modules in turn."""
    x, y = torch.randn(REPLICAS, BATCH, WIDTHS[0]), torch.randint(WIDTHS[-1], (REPLICAS, BATCH))
    stack = StackedMLP(REPLICAS, WIDTHS)
    single = [mlp(*WIDTHS) for _ in range(REPLICAS)]
    together = torch.optim.SGD(stack.parameters(), lr=0.01, momentum=0.9)
    apart = [torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9) for net in single]

    def stacked() -> None:
        together.zero_grad()
        each = smoothed_cross_entropy(stack(x), y, THETA, reduction="none")
        each.mean(-1).sum().backward()
        together.step()

    def loop() -> None:
        for net, optimizer, inputs, labels in zip(single, apart, x, y, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), labels, label_smoothing=THETA).backward()
            optimizer.step()

    seconds = race(rounds=30, stacked=stacked, loop=loop)
    ratio = seconds["loop"] / seconds["stacked"]
    report(f"{REPLICAS} stacked networks: times faster", ratio, at_least=STACK_TARGET)


def meter() -> None:
    """δ on 512 examples, in closed form and by vmap, against ten training steps.

    By matrix products alone the meter costs 3 × 512 rows of the first layer (forward, and the mean
    gradients of two labels), ten steps cost 2 × 320 (forward and one gradient): 2.4 times as much.
    """
    x, y = torch.randn(METER_EXAMPLES, WIDTHS[0]), torch.randint(WIDTHS[-1], (METER_EXAMPLES,))
    stack, net = StackedMLP(REPLICAS, WIDTHS), mlp(*WIDTHS)
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.01, momentum=0.9)
    xs, ys = x.expand(REPLICAS, -1, -1).contiguous(), y.expand(REPLICAS, -1).contiguous()
    batch, labels = xs[:, :BATCH].contiguous(), ys[:, :BATCH].contiguous()

    def steps() -> None:
        for _ in range(METER_STEPS):
            optimizer.zero_grad()
            each = smoothed_cross_entropy(stack(batch), labels, THETA, reduction="none")
            each.mean(-1).sum().backward()
            optimizer.step()

    seconds = race(
        rounds=15,
        steps=steps,
        closed=lambda: gradient_deviation(stack, xs, ys),
        vmap=lambda: gradient_deviation(net, x, y),
    )
    report("meter, closed form: time / 10 steps", seconds["closed"] / seconds["steps"], at_most=1)
    per_network = seconds["vmap"] * REPLICAS / seconds["steps"]
    print(f"  meter by vmap, any network: {per_network.median():.3g} times 10 steps, no target")


if __name__ == "__main__":
    main()
