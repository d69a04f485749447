"""Many small perceptrons in one batched product: seeds and settings side by side."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class StackedMLP(nn.Module):
    """R independent ReLU perceptrons of one shape, advanced by one `baddbmm` a layer.

    Each replica is initialised as `torch.nn.Linear` would be. The loss to minimise is the *sum*
    over replicas of their mean losses: then every replica gets the gradient it would get alone.
    """

    def __init__(
        self,
        replicas: int,
        widths: Sequence[int],
        generators: Sequence[torch.Generator] | None = None,
    ) -> None:
        """Draw the weights.

        Args:
            replicas: R.
            widths: from input to output.
            generators: one a replica, on the CPU, so that a replica's weights do not depend on its
                company; by default torch's global generator.

        Raises:
            ValueError: if there are no replicas, fewer than two widths, or too few generators.
        """
        super().__init__()
        if replicas < 1 or len(widths) < 2:
            raise ValueError(f"need replicas ≥ 1 and two widths, got {replicas} and {widths}")
        if generators is not None and len(generators) != replicas:
            raise ValueError(f"need {replicas} generators, got {len(generators)}")
        drawn = [
            _linear_layers(widths, generators[r] if generators else None) for r in range(replicas)
        ]
        layers = range(len(widths) - 1)
        self.weights = nn.ParameterList(torch.stack([d[i][0] for d in drawn]) for i in layers)
        self.biases = nn.ParameterList(torch.stack([d[i][1] for d in drawn]) for i in layers)

    def forward(
        self, x: Float[Tensor, "replicas batch inputs"]
    ) -> Float[Tensor, "replicas batch k"]:
        """Apply replica r to x[r]."""
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if index < last:
                x = x.relu()
        return x

    def fork(self, index: Int[Tensor, " chosen"]) -> "StackedMLP":
        """A stack of copies of the chosen replicas, in that order; an index may repeat."""
        twin = StackedMLP.__new__(StackedMLP)
        nn.Module.__init__(twin)
        twin.weights = nn.ParameterList(w.detach()[index].clone() for w in self.weights)
        twin.biases = nn.ParameterList(b.detach()[index].clone() for b in self.biases)
        return twin


def _linear_layers(
    widths: Sequence[int], generator: torch.Generator | None
) -> list[tuple[Tensor, Tensor]]:
    layers = []
    for before, after in itertools.pairwise(widths):
        bound = 1 / math.sqrt(before)
        weight = torch.empty(before, after).uniform_(-bound, bound, generator=generator)
        layers.append((weight, torch.empty(1, after).uniform_(-bound, bound, generator=generator)))
    return layers
