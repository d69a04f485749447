"""The training loop, short enough to read in a minute, and what feeds it."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def fit(
    model: nn.Module,
    batches: Iterable,
    loss: Callable[[nn.Module, tuple], Float[Tensor, ""]],
    optimizer: Optimizer,
    *,
    schedule: LRScheduler | None = None,
    clip: float | None = None,
    amp: torch.dtype | None = None,
) -> Float[Tensor, " steps"]:
    """Take one optimiser step a batch; call it again for the next stage.

    Args:
        model: in the device of the batches.
        batches: tuples of tensors, as from `minibatches`.
        loss: `(model, batch) -> scalar`, differentiable.
        optimizer: over the parameters to train.
        schedule: stepped after each step.
        clip: largest global norm of the gradient.
        amp: `torch.bfloat16` or `torch.float16` for mixed precision on an accelerator.

    Returns:
        The loss of each step, detached, on the model's device.
    """
    model.train()
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)
    losses = []
    for batch in batches:
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            value = loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(value).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        if schedule is not None:
            schedule.step()
        losses.append(value.detach())
    return torch.stack(losses) if losses else torch.empty(0, device=device)


def minibatches(
    *tensors: Shaped[Tensor, "_ ..."], size: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, ...]]:
    """Yield random batches of equal size, in a new order each epoch; a short rest is left out.

    Args:
        *tensors: of one length n.
        size: examples a batch.
        steps: batches in all.
        generator: on the CPU.

    Raises:
        ValueError: if the lengths differ or `size` lies outside 1…n.
    """
    n = len(tensors[0])
    if any(len(tensor) != n for tensor in tensors):
        raise ValueError(f"tensors must share their length, got {[len(t) for t in tensors]}")
    if not 1 <= size <= n:
        raise ValueError(f"the batch size must lie in 1…{n}, got {size}")
    return _batches(tensors, size, steps, generator)


def _batches(
    tensors: tuple[Tensor, ...], size: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, ...]]:
    n, device = len(tensors[0]), tensors[0].device
    per_epoch = n // size
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(n, generator=generator).to(device)
        begin = step % per_epoch * size
        index = order[begin : begin + size]
        yield tuple(tensor[index] for tensor in tensors)


@torch.no_grad()
def predict(model: nn.Module, x: Shaped[Tensor, "n ..."], size: int = 1024) -> Tensor:
    """The model's output for all x, in evaluation mode, in chunks of `size`; shape [n, …]."""
    training = model.training
    model.eval()
    outputs = torch.cat([model(chunk) for chunk in x.split(size)])
    model.train(training)
    return outputs


def warmup_cosine(step: int, total: int, warmup: int = 0) -> float:
    """Linear warm-up to 1, then half a cosine to 0: a factor for `LambdaLR`.

    Args:
        step: from 0.
        total: steps in all.
        warmup: steps of the linear part.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
