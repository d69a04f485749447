"""torch.distributed in a few lines: local gloo processes, and a gather that carries gradients.

Every function works without a process group as well: one process is a world of size 1.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable


def launch(fn: Callable, world_size: int, *args: Any, timeout: float = 120.0) -> list:
    """Call `fn(*args)` in `world_size` local processes joined by gloo.

    Inside `fn`, `torch.distributed` is initialised: `torch.distributed.get_rank()` says who it is.
    If one rank fails or dies, all are ended and the error is raised here.

    Args:
        fn: a function of an importable module, since processes are spawned, not forked.
        world_size: number of processes.
        args: arguments of `fn`, the same for every rank.
        timeout: seconds allowed for everything, process start included.

    Returns:
        What each rank returned, in the order of ranks: tensors, numbers, strings, and lists,
        tuples or dictionaries of them.

    Raises:
        ValueError: if `world_size` is below 1 or `timeout` not positive.
        RuntimeError: if a rank raised (its traceback is in the message) or died.
        TimeoutError: if not all ranks returned in time.
    """
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}; it must be at least 1")
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout} s; it must be positive")
    context = torch.multiprocessing.get_context("spawn")
    with TemporaryDirectory() as place:
        meeting = Path(place, "store").as_uri()
        ends, processes = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            job = (fn, args, rank, world_size, meeting, timeout, sender)
            processes.append(context.Process(target=_rank, args=job, daemon=True))
            ends.append((receiver, sender))
        try:
            for process, (_, sender) in zip(processes, ends, strict=True):
                process.start()
                sender.close()
            return _collect([receiver for receiver, _ in ends], time.monotonic() + timeout)
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
                if process.pid is not None:
                    process.join()


def gather_with_grad(
    x: Shaped[Tensor, "b ..."], group: dist.ProcessGroup | None = None
) -> Shaped[Tensor, "all_b ..."]:
    """Concatenate the tensors of all ranks; the gradient is summed over ranks and cut back.

    Backward is a reduce-scatter with sum: a loss that divides by the global batch needs no further
    factor.

    Args:
        x: this rank's rows; every rank has the same shape.
        group: the process group, by default the whole world; without one, `x` comes back.

    Returns:
        Rows of rank 0, then of rank 1, and so on.
    """
    return x if world(group)[1] == 1 else _Gather.apply(x, group)


def world(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """Rank and number of ranks; (0, 1) without a process group."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        everyone = x.new_empty(world(group)[1] * len(x), *x.shape[1:])
        dist.all_gather_single(everyone, x.contiguous(), group=group)
        return everyone

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        size = world(ctx.group)[1]
        mine = gradient.new_empty(len(gradient) // size, *gradient.shape[1:])
        dist.reduce_scatter_single(mine, gradient.contiguous(), group=ctx.group)
        return mine, None


def _collect(receivers: list[Connection], deadline: float) -> list:
    results: dict[int, Any] = {}
    waiting: dict[Any, int] = {receiver: rank for rank, receiver in enumerate(receivers)}
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {sorted(waiting.values())} did not return in time")
        for receiver in ready:
            rank = waiting.pop(receiver)
            results[rank] = _receive(receiver, rank)
    return [results[rank] for rank in range(len(receivers))]


def _receive(receiver: Any, rank: int) -> Any:
    try:
        message = torch.load(BytesIO(receiver.recv_bytes()), weights_only=True)
    except EOFError:
        raise RuntimeError(f"rank {rank} died without a word") from None
    if "error" in message:
        raise RuntimeError(f"rank {rank} failed:\n{message['error']}")
    return message["result"]


def _rank(
    fn: Callable,
    args: tuple,
    rank: int,
    world_size: int,
    meeting: str,
    timeout: float,
    sender: Connection,
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=meeting,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        _send(sender, {"result": fn(*args)})
        dist.barrier()
    except Exception:
        _send(sender, {"error": traceback.format_exc()})
        sys.exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _send(sender: Connection, message: dict) -> None:
    buffer = BytesIO()
    torch.save(message, buffer)
    sender.send_bytes(buffer.getvalue())
