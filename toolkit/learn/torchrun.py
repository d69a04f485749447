"""What a training under torchrun needs beside DistributedDataParallel.

Every function works in a single process as well.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def save_checkpoint(folder: str, name: str, parts: Mapping[str, Any], done: int) -> None:
    """Keep what a training needs to go on; only the first process writes.

    The file appears whole, since it is written under a temporary name first.

    Args:
        folder: where to; empty: nowhere.
        name: of the file, without its ending.
        parts: models, optimizers, schedules: whatever has a `state_dict`.
        done: steps or epochs.
    """
    if not folder or world()[0]:
        return
    path = _checkpoint(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    states = {part: value.state_dict() for part, value in parts.items()}
    torch.save({"parts": states, "done": done}, temporary)
    temporary.replace(path)


def load_checkpoint(folder: str, name: str, parts: Mapping[str, Any]) -> int:
    """Load what `save_checkpoint` kept, if it is there; how much was done, else 0."""
    if not folder or not _checkpoint(folder, name).is_file():
        return 0
    state = torch.load(_checkpoint(folder, name), map_location="cpu", weights_only=True)
    for part, value in parts.items():
        value.load_state_dict(state["parts"][part])
    return int(state["done"])


def _checkpoint(folder: str, name: str) -> Path:
    return Path(folder).expanduser() / f"{name}.pt"
