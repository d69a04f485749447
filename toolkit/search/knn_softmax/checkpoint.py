"""Checkpoints of a model whose classifier is spread over processes.

The first process writes for all (`toolkit.learn.torchrun`), so it needs everyone's classes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.learn.distributed import gather_with_grad, world
from toolkit.search.knn_softmax.softmax import shard_bounds


class WholeHead:
    """A model whose state holds the classifier's rows, and their velocity, of every process.

    It may be read by another number of processes than wrote it.

    Args:
        model: with a `ShardedSoftmax` as its `head`.
        optimizer: `ActiveRowSGD` of the head's weight, with momentum.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.head: Any = model.get_submodule("head")
        self.rows: dict[str, Tensor] = {}

    def gather(self) -> None:
        """Collect the rows; every process must call it before one calls `state_dict`."""
        velocity = self.optimizer.state[self.head.weight]["velocity"]
        self.rows = {
            name: gathered(rows.detach(), self.head.num_classes)
            for name, rows in (("head.weight", self.head.weight), ("velocity", velocity))
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything, with all classes."""
        return self.model.state_dict() | self.rows

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this process's classes."""
        own = slice(self.head.low, self.head.low + self.head.num_local)
        velocity = state["velocity"][own].to(self.head.weight.device, copy=True)
        self.optimizer.state[self.head.weight] = {"velocity": velocity}
        kept = {name: value for name, value in state.items() if name != "velocity"}
        self.model.load_state_dict(kept | {"head.weight": kept["head.weight"][own]})


def gathered(rows: Float[Tensor, "own d"], total: int) -> Float[Tensor, "total d"]:
    """The rows of all processes in order, on the CPU; the shares may differ by one row."""
    _, size = world()
    bounds = [shard_bounds(total, rank, size) for rank in range(size)]
    longest = max(high - low for low, high in bounds)
    padded = gather_with_grad(F.pad(rows, (0, 0, 0, longest - len(rows)))).split(longest)
    return torch.cat(
        [part[: high - low] for part, (low, high) in zip(padded, bounds, strict=True)]
    ).cpu()
