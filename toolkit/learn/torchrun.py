"""What a training under torchrun needs beside DistributedDataParallel.

Every function works in a single process as well.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn

from toolkit.learn.distributed import world


@contextmanager
def torchrun_group(device: torch.device) -> Iterator[torch.device]:
    """Join torchrun's group, if there is one and nobody has joined it yet.

    Args:
        device: of the run; `cuda` becomes this process's own.

    Yields:
        This process's device.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield device
        return
    if on_gpu := device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def sum_over_ranks(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Add the tensors of all processes, in place; `x` itself comes back."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def average_buffers(model: nn.Module) -> None:
    """Average the running statistics of batch norm, which each process kept for itself."""
    for statistic in model.buffers():
        if dist.is_initialized() and statistic.is_floating_point():
            sum_over_ranks(statistic).div_(world()[1])
