"""Layer-wise top-k sparsification of the backbone's gradients, with nothing lost for good.

What is not sent stays in a local sum and is sent once it has grown (deep gradient compression,
DGC). Song et al. (2020) merge small layers and select by divide and conquer; density and details
follow DGC's public code, as the paper's text was not at hand.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from toolkit.learn.distributed import world


def divide_and_conquer_topk(
    x: Float[Tensor, " n"], k: int, chunk: int = 65_536
) -> Int[Tensor, " k"]:
    """Where the k largest entries are: top k of each chunk, then top k of the winners. Exact.

    Args:
        x: magnitudes.
        k: how many, at most n.
        chunk: entries selected from at a time.
    """
    winners = [
        part.topk(min(k, len(part))).indices + i * chunk for i, part in enumerate(x.split(chunk))
    ]
    candidates = torch.cat(winners)
    return candidates if len(candidates) == k else candidates[x[candidates].topk(k).indices]


def sampled_topk(
    x: Float[Tensor, " n"], k: int, low: float = 0.8, high: float = 1.3, tries: int = 10
) -> Int[Tensor, " found"]:
    """About k of the largest entries, above a threshold estimated on a strided sample (DGC).

    The sample holds 1 % of the entries, or at least 1/density of them. The threshold moves until
    between `low`·k and `high`·k entries pass; the largest k of those are kept.

    Args:
        x: magnitudes.
        k: the target.
        low: least accepted share of k.
        high: largest accepted share of k.
        tries: how often the threshold may move.
    """
    stride = max(1, min(100, k))
    sample = x[::stride]
    threshold = sample.topk(max(1, k * len(sample) // len(x))).values[-1]
    for _ in range(tries):
        found = int((x >= threshold).sum())
        if found < low * k:
            threshold = threshold * low
        elif found > high * k:
            threshold = threshold * high
        else:
            break
    passing = (x >= threshold).nonzero().squeeze(1)
    return passing if len(passing) <= k else passing[x[passing].topk(k).indices]


class TopKCompressor:
    """Sends the largest entries of accumulated gradients instead of all of them.

    Per layer u ← μu + g, v ← v + u; the ⌈density·n⌉ largest |v| are sent, as values and int32
    places; there u and v become 0. Momentum lives here: follow it with plain SGD.

    Args:
        density: share of entries sent, in (0, 1]. DGC's is 0.001.
        momentum: μ.
        warmup_epochs: w; in epoch e < w the density is density^((e+1)/(w+1)).
        dense_vectors: send one-dimensional parameters (biases, norms) whole, as DGC does.
        merge_below: consecutive layers are merged until a bucket holds this many entries.
        masking: set u to 0 where v was sent (momentum factor masking).
        accumulate: keep v; False drops what was not sent, for comparison only.
        select: "divide" is the paper's exact selection, "sampled" DGC's threshold.
        group: the ranks that exchange gradients.

    Attributes:
        bytes_sent: by this rank, since the start.
        bytes_dense: what dense 32-bit gradients would have taken.

    Raises:
        ValueError: for a density outside (0, 1], a momentum outside [0, 1) or an unknown selection.
    """

    def __init__(
        self,
        density: float,
        momentum: float = 0.9,
        warmup_epochs: int = 0,
        *,
        dense_vectors: bool = True,
        merge_below: int = 0,
        masking: bool = True,
        accumulate: bool = True,
        select: Literal["divide", "sampled"] = "divide",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if not 0 < density <= 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"density {density} must be in (0, 1] and momentum {momentum} in [0, 1)"
            )
        if select not in ("divide", "sampled"):
            raise ValueError(f"select is {select!r}; choose divide or sampled")
        self.density, self.momentum, self.warmup_epochs = density, momentum, warmup_epochs
        self.dense_vectors, self.merge_below = dense_vectors, merge_below
        self.masking, self.accumulate = masking, accumulate
        self.find = divide_and_conquer_topk if select == "divide" else sampled_topk
        self.group = group
        self.u: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}
        self.bytes_sent = self.bytes_dense = 0

    def density_at(self, epoch: float) -> float:
        """The density of an epoch, after DGC's exponential warm-up."""
        step = min(math.floor(epoch) + 1, self.warmup_epochs + 1)
        return self.density ** (step / (self.warmup_epochs + 1))

    @torch.no_grad()
    def reduce(self, parameters: Iterable[nn.Parameter], epoch: float = 0.0) -> None:
        """Replace each gradient by the sum over ranks of what the ranks send.

        A sum, not a mean: the global loss already divides by the batch of all ranks. Where the
        loss is a local mean, divide by the number of ranks afterwards.

        Args:
            parameters: of the backbone, in the same order at every call.
            epoch: sets the density during warm-up.
        """
        density = self.density_at(epoch)
        for key, (bucket, sparse) in enumerate(self._buckets(list(parameters))):
            gradients = [_gradient(p) for p in bucket]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            total = self._exchange(key, flat, density) if sparse else self._dense(key, flat)
            for gradient, part in zip(
                gradients, total.split([g.numel() for g in gradients]), strict=True
            ):
                gradient.copy_(part.view_as(gradient))

    def _exchange(self, key: int, g: Tensor, density: float) -> Tensor:
        values, places = self.compress(key, g, density)
        size = world(self.group)[1]
        if size > 1:
            values, places = self._gather(values, size), self._gather(places, size)
        self.bytes_sent += 8 * len(values) // size
        self.bytes_dense += 4 * len(g)
        return torch.zeros_like(g).index_add_(0, places.long(), values)

    def compress(
        self, key: int, g: Float[Tensor, " n"], density: float | None = None
    ) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
        """Add one gradient to u and v, and take the k largest entries of v out.

        Args:
            key: which layer or bucket.
            g: its gradient, flat.
            density: share of entries, by default the final one.

        Returns:
            Values and int32 places, ⌈density·n⌉ of them (a sampled selection that finds fewer is
            filled up with zeros).

        Raises:
            ValueError: if the layer is too long for int32 places.
        """
        if len(g) > torch.iinfo(torch.int32).max:
            raise ValueError(f"{len(g)} entries do not fit int32 places; split the layer")
        k = math.ceil((density or self.density) * len(g))
        u = self.u.setdefault(key, torch.zeros_like(g)).mul_(self.momentum).add_(g)
        v = self.v.setdefault(key, torch.zeros_like(g))
        v.add_(u) if self.accumulate else v.copy_(u)
        places = self.find(v.abs(), k)
        values = v[places]
        v[places] = 0
        if self.masking:
            u[places] = 0
        missing = k - len(places)
        if missing:
            values = nn.functional.pad(values, (0, missing))
            places = nn.functional.pad(places, (0, missing))
        return values, places.int()

    def _dense(self, key: int, g: Tensor) -> Tensor:
        """All of a vector, with the momentum that the sparse layers have in u."""
        if world(self.group)[1] > 1:
            dist.all_reduce(g, group=self.group)
        self.bytes_sent += 4 * len(g)
        self.bytes_dense += 4 * len(g)
        return self.u.setdefault(key, torch.zeros_like(g)).mul_(self.momentum).add_(g).clone()

    def _gather(self, x: Tensor, size: int) -> Tensor:
        out = x.new_empty(size * len(x))
        dist.all_gather_single(out, x, group=self.group)
        return out

    def _buckets(self, parameters: list[nn.Parameter]) -> list[tuple[list[nn.Parameter], bool]]:
        """Layers in order, small neighbours merged; vectors apart if they are sent whole."""
        dense = [p for p in parameters if self.dense_vectors and p.dim() == 1]
        buckets: list[list[nn.Parameter]] = []
        filled = self.merge_below
        for p in parameters:
            if self.dense_vectors and p.dim() == 1:
                continue
            if filled >= self.merge_below:
                buckets.append([])
                filled = 0
            buckets[-1].append(p)
            filled += p.numel()
        return [(bucket, True) for bucket in buckets] + ([(dense, False)] if dense else [])


def _gradient(p: nn.Parameter) -> Tensor:
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad
