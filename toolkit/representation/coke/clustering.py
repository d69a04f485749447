"""Online constrained k-means: assignment under prices, the dual update, the centre update.

Qian, Xu, Hu, Li and Jin, "Unsupervised visual representation learning by online constrained
k-means" (2021). With fixed features x_i and centres c_k the problem is

    max Σ_ik μ_ik x_iᵀc_k   s.t.  μ_ik ∈ {0, 1},  Σ_k μ_ik = 1,  Σ_i μ_ik ≥ γ_k = r N / K.

A price ρ_k for each lower bound turns it into one maximum per instance. The order of the steps is
that of the authors' public code.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F


def dual_step(
    rho: Float[Tensor, "... clusters"],
    counts: Shaped[Tensor, "... clusters"],
    ratio: float,
    dual_lr: float,
) -> Float[Tensor, "... clusters"]:
    """Lower the price of what was hit, raise the others: ρ ← ρ − (dual_lr / b) n + dual_lr r / K.

    A lower bound has a price that is never negative, so the result is clipped at 0; at r = 1 the
    bounds hold with equality and prices of either sign are allowed.

    Args:
        rho: prices, in units of similarity.
        counts: n_k, instances of the batch that each cluster got; b is their sum.
        ratio: r in [0, 1].
        dual_lr: the step for one whole batch; one instance moves a price by η = dual_lr / b.

    Raises:
        ValueError: for a ratio outside [0, 1], a step that is not positive or, on the CPU, an
            empty batch (elsewhere its prices become NaN: a check would stop the device).
    """
    _check_dual(ratio, dual_lr)
    batch = counts.sum(-1, keepdim=True)
    if on_host(counts) and not batch.all():
        raise ValueError("the batch is empty: prices move with the instances of a batch")
    moved = rho + dual_lr * (ratio / rho.shape[-1] - counts / batch)
    return moved.clamp(min=0) if ratio < 1 else moved


def center_step(
    centers: Float[Tensor, "clusters d"],
    hits: Int64[Tensor, " clusters"],
    x: Float[Tensor, "batch width"],
    labels: Int[Tensor, " batch"],
    normalise: bool = True,
) -> tuple[Float[Tensor, "clusters d"], Int64[Tensor, " clusters"]]:
    """Move each centre that was hit to the mean of its instances of this epoch.

    c_k ← normalise(m_k / (m_k + n_k) c_k + 1 / (m_k + n_k) Σ x_i), where m_k instances were there
    before: at m_k = 0 the old centre is replaced. The centre is normalised after each batch, so
    the result is *not* the normalised mean of the epoch: what came earlier weighs a little more.

    Args:
        centers: one row a cluster.
        hits: m_k, instances that each cluster got earlier in this epoch.
        x: features of the batch.
        labels: the cluster of each.
        normalise: to unit length; without, centres are plain running means.

    Returns:
        New centres and m_k + n_k; rows that were not hit stay as they are. Sums are formed over
        the batch, not over all clusters, most of which a batch does not hit.

    Raises:
        ValueError: for an empty batch, or widths that differ.
    """
    if len(x) == 0 or x.shape[1] != centers.shape[1] or len(labels) != len(x):
        raise ValueError(
            f"need a batch of width {centers.shape[1]} with its labels, got "
            f"{list(x.shape)} and {list(labels.shape)}"
        )
    labels = labels.long()
    total = hits.index_add(0, labels, torch.ones_like(labels))
    speaker = labels.new_empty(len(centers))  # of each cluster that was hit, one of its instances
    speaker[labels] = torch.arange(len(x), device=x.device)
    speaker = speaker[labels]
    x = x.to(centers.dtype)
    sums = torch.zeros_like(x).index_add_(0, speaker, x)[speaker]
    moved = (hits[labels, None] * centers[labels] + sums) / total[labels, None]
    if normalise:
        moved = F.normalize(moved, dim=1)
    return centers.index_put((labels,), moved), total


class OnlineConstrainedKMeans:
    """Spherical k-means over a stream of batches in which no cluster starves.

    Several heads cluster the same features into different numbers of clusters; their centres lie
    below each other, so that one matrix product serves all heads.

    The state is no module buffer: under `DistributedDataParallel` every rank computes the same
    state from the gathered batch, and nothing need be sent.

    Args:
        num_clusters: K, or the K of each head.
        dim: width d of the features.
        ratio: r; each cluster should get at least r N / K of the N instances. 0 is plain k-means,
            1 asks for equal sizes.
        dual_lr: step of the prices for one batch. The released value is 20 for batches of 1,024
            out of 1.28 million; keep dual_lr / batch near 1 / √N elsewhere.
        generator: of the first centres, on the CPU; by default seeded with 0.
        device: of the state.

    Raises:
        ValueError: if a number lies outside its range.
    """

    def __init__(
        self,
        num_clusters: int | Sequence[int],
        dim: int,
        ratio: float = 0.4,
        dual_lr: float = 20.0,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.single = isinstance(num_clusters, int)
        heads = (num_clusters,) if isinstance(num_clusters, int) else tuple(num_clusters)
        if not heads or min(heads) < 2 or dim < 1:
            raise ValueError(f"need at least 2 clusters a head and dim ≥ 1, got {heads}, {dim}")
        _check_dual(ratio, dual_lr)
        self.heads, self.dim, self.ratio, self.dual_lr = heads, dim, ratio, dual_lr
        self.ends = tuple(accumulate(heads))
        generator = generator or torch.Generator().manual_seed(0)
        first = F.normalize(torch.randn(sum(heads), dim, generator=generator), dim=1)
        self.centers = first.to(device)
        self.previous = self.centers.clone()
        self.duals = torch.zeros(sum(heads), device=device)
        self.sizes = torch.zeros(sum(heads), dtype=torch.int64, device=device)
        self.averaged = -1
        self._first = torch.tensor((0, *self.ends[:-1]), device=device)

    @torch.no_grad()
    def assign(self, x: Float[Tensor, "... d"]) -> Int64[Tensor, "batch ..."]:
        """The cluster of each feature under the present prices: argmax_k x_iᵀc_k + ρ_k.

        Args:
            x: finite features; unit length is the method's, but not needed.

        Returns:
            [batch], or [batch, heads] where several heads were asked for.

        Raises:
            ValueError: if x is not [batch ≥ 1, dim] or, on the CPU, not finite (elsewhere
                `end_epoch` finds it: a look at the values of every batch would stop the device).
        """
        self._check(x)
        with torch.autocast(x.device.type, enabled=False):  # prices differ by little: no fp16
            labels = self._choose(x.float())
        return labels[:, 0] if self.single else labels

    @torch.no_grad()
    def update(self, x: Float[Tensor, "... d"], labels: Int[Tensor, "batch ..."]) -> None:
        """Move prices, then centres, after the batch of *all* ranks was assigned.

        Raises:
            ValueError: if x is not [batch ≥ 1, dim] or labels do not fit; if, on the CPU, x is not
                finite.
        """
        self._check(x)
        columns = labels.reshape(len(x), -1)
        if columns.shape[1] != len(self.heads):
            raise ValueError(f"need labels of {len(self.heads)} heads, got {list(labels.shape)}")
        rows = (columns + self._first).T.flatten()  # of all heads' clusters, head by head
        centers, sizes = center_step(
            self.centers, self.sizes, x.float().repeat(len(self.heads), 1), rows, self.averaged < 0
        )
        parts = [
            dual_step(self.duals[span], (sizes - self.sizes)[span], self.ratio, self.dual_lr)
            for span in self.spans()
        ]
        # New tensors: the old ones may wait in a graph for their backward pass.
        self.duals, self.centers, self.sizes = torch.cat(parts), centers, sizes

    def start_averaging(self) -> None:
        """Begin variance reduction 1: from now on centres are averaged over epochs.

        Instances are assigned by the averaged centres, which stand still within an epoch.
        """
        self.averaged = 0

    def end_epoch(self) -> None:
        """Freeze the centres for the loss of the next epoch, and count from 0 again; prices stay.

        While averaging, the frozen centres become normalise((1 − f) C^pre + f normalise(C^cur)).

        Raises:
            ValueError: if centres or prices are no longer finite.
        """
        if not torch.isfinite(self.centers.sum() + self.duals.sum()):
            raise ValueError("centres or prices are not finite; has the network diverged?")
        if self.averaged >= 0:
            old, new = self.previous, F.normalize(self.centers, dim=1)
            self.centers = F.normalize(torch.lerp(old, new, self.share), dim=1)
            self.averaged += 1
        self.previous = self.centers.clone()
        self.sizes = torch.zeros_like(self.sizes)

    @property
    def share(self) -> float:
        """f: the present epoch's weight in the average, 1 / its number; 1 without averaging."""
        return 1.0 / (1 + max(0, self.averaged))

    def spans(self) -> list[slice]:
        """Where each head's clusters stand in `centers`, `duals` and `sizes`."""
        return [slice(end - k, end) for end, k in zip(self.ends, self.heads, strict=True)]

    def frozen(self) -> list[Float[Tensor, "clusters d"]]:
        """C^pre of each head: the centres that the loss sees."""
        return [self.previous[span] for span in self.spans()]

    def running(self) -> list[Float[Tensor, "clusters d"]]:
        """C^cur of each head: the centres that the assignment sees."""
        return [self.centers[span] for span in self.spans()]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: tensors and one number."""
        names = ("centers", "previous", "duals", "sizes")
        return {name: getattr(self, name) for name in names} | {"averaged": self.averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, on the present device.

        Raises:
            ValueError: if it belongs to other heads or another width.
        """
        if state["centers"].shape != self.centers.shape:
            raise ValueError(
                f"the checkpoint holds centres {list(state['centers'].shape)}, "
                f"not {list(self.centers.shape)}"
            )
        for name in ("centers", "previous", "duals", "sizes"):
            setattr(self, name, state[name].to(self.centers.device))
        self.averaged = state["averaged"]

    def _choose(self, x: Float[Tensor, "batch d"]) -> Int64[Tensor, "batch heads"]:
        centers = self.previous if self.averaged >= 0 else self.centers
        scores = torch.addmm(self.duals, x, centers.T)
        return torch.stack([part.argmax(dim=1) for part in scores.split(self.heads, dim=1)], dim=1)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or len(x) == 0 or x.shape[1] != self.dim:
            raise ValueError(f"features must be [batch ≥ 1, {self.dim}], got {list(x.shape)}")
        if on_host(x) and not torch.isfinite(x.sum()):
            raise ValueError("features must be finite; has the network diverged?")


def on_host(x: Tensor) -> bool:
    """Whether values can be looked at in passing: elsewhere the device would have to catch up."""
    return x.device.type == "cpu"


def _check_dual(ratio: float, dual_lr: float) -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio lies in [0, 1], got {ratio}")
    if not dual_lr > 0:
        raise ValueError(f"dual_lr must be positive, got {dual_lr}")
