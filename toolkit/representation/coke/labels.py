"""What every image was called in the last epoch, by its id."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from toolkit.representation.coke.clustering import on_host

TARGET_TEMPERATURE = 0.5
"""Of the averaged targets: exp(weight / 0.5), normalised."""


class LabelStore:
    """A table of labels by dataset id, which shuffling cannot disturb.

    With one slot it holds one label a head: 4 N H bytes. With more it holds a running average of
    one-hot labels as that many (label, weight) pairs: variance reduction 1.

    Args:
        num_instances: N.
        heads: clusters of each head.
        slots: labels kept a head; the released code keeps 5 while averaging.
        dtype: of the labels.
        device: of the table.

    Raises:
        ValueError: for fewer than one instance, head or slot.
    """

    def __init__(
        self,
        num_instances: int,
        heads: Sequence[int],
        slots: int = 1,
        dtype: torch.dtype = torch.int32,
        device: torch.device | str | None = None,
    ) -> None:
        if num_instances < 1 or not heads or slots < 1:
            raise ValueError(f"need N, heads, slots ≥ 1, got {num_instances}, {heads}, {slots}")
        self.heads = tuple(heads)
        shape = (num_instances, len(self.heads), slots)
        self.labels = torch.full(shape, -1, dtype=dtype, device=device)
        self.weights = torch.zeros(shape, device=device) if slots > 1 else None
        self._tops = torch.tensor(self.heads, device=device)

    def get(self, ids: Int[Tensor, " batch"]) -> Int64[Tensor, "batch heads"]:
        """The heaviest label of each head; −1 for an image that has none yet.

        Raises:
            ValueError: for an id outside the table (on the CPU).
        """
        self._check(ids)
        rows = self.labels[ids].long()
        if self.weights is None:
            return rows[..., 0]
        return rows.gather(-1, self.weights[ids].argmax(-1, keepdim=True))[..., 0]

    def put(
        self, ids: Int[Tensor, " batch"], labels: Int[Tensor, "batch heads"], share: float = 1.0
    ) -> None:
        """Store labels: the average becomes (1 − share) old + share · one-hot(new).

        Where all slots hold other labels, the lightest makes room and the rest is rescaled.

        Args:
            ids: of the batch's images; where one stands twice, one of its labels is kept.
            labels: new ones.
            share: 1 forgets what was there.

        Raises:
            ValueError: for an id or label outside the table, or another number of heads.
        """
        self._check(ids)
        if labels.shape != (len(ids), len(self.heads)):
            raise ValueError(f"need labels {[len(ids), len(self.heads)]}, got {list(labels.shape)}")
        if on_host(labels) and ((labels < 0) | (labels >= self._tops)).any():
            raise ValueError(f"labels of the heads lie below {self.heads}")
        labels = labels.to(self.labels.dtype)
        if self.weights is None:
            self.labels[ids] = labels[..., None]
            return
        self.labels[ids], self.weights[ids] = blend(
            self.labels[ids], self.weights[ids], labels, share
        )

    def targets(self, ids: Int[Tensor, " batch"]) -> list[Float[Tensor, "batch clusters"]]:
        """Soft targets of each head from the averaged labels: exp(weight / 0.5), normalised.

        Raises:
            ValueError: for an id outside the table, or a table with one slot.
        """
        self._check(ids)
        if self.weights is None:
            raise ValueError("soft targets need a table with several slots")
        weights, labels = self.weights[ids], self.labels[ids].long().clamp(min=0)
        held = torch.where(weights > 0, (weights / TARGET_TEMPERATURE).exp(), 0)
        held = held / held.sum(-1, keepdim=True).clamp(min=1e-12)
        return [
            held.new_zeros(len(ids), k).scatter_add_(1, labels[:, h], held[:, h])
            for h, k in enumerate(self.heads)
        ]

    def nbytes(self) -> int:
        """Bytes of the table."""
        weights = 0 if self.weights is None else self.weights.nbytes
        return self.labels.nbytes + weights

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"labels": self.labels, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, on the present device.

        Raises:
            ValueError: if it belongs to other images, heads or slots.
        """
        if state["labels"].shape != self.labels.shape:
            raise ValueError(
                f"the checkpoint holds labels {list(state['labels'].shape)}, "
                f"not {list(self.labels.shape)}"
            )
        self.labels.copy_(state["labels"])
        if self.weights is not None:
            self.weights.copy_(state["weights"])

    def _check(self, ids: Tensor) -> None:
        """On a device, indexing itself refuses what lies outside; looking here would stop it."""
        if len(ids) and on_host(ids) and not 0 <= ids.min() <= ids.max() < len(self.labels):
            raise ValueError(f"ids lie in 0…{len(self.labels) - 1}, got {int(ids.max())}")


def blend(
    labels: Int[Tensor, "batch heads slots"],
    weights: Float[Tensor, "batch heads slots"],
    new: Int[Tensor, "batch heads"],
    share: float,
) -> tuple[Int[Tensor, "batch heads slots"], Float[Tensor, "batch heads slots"]]:
    """One step of a sparse running average of one-hot labels.

    The new label goes to the slot that holds it, else to the lightest one. The other weights are
    scaled to sum to 1 minus its weight: a label that had to go leaves its weight to them.

    Args:
        labels: of the slots; −1 or weight 0 is a free slot.
        weights: summing to 1, or to 0 where nothing is stored.
        new: labels that get the weight `share`.
        share: in (0, 1].
    """
    old = weights * (1 - share)
    same = (labels == new[..., None]) & (weights > 0)
    slot = torch.where(same.any(-1), same.int().argmax(-1), weights.argmin(-1))[..., None]
    kept = torch.where(same, old, 0).sum(-1, keepdim=True)
    empty = weights.sum(-1, keepdim=True) == 0
    mine = torch.where(empty, 1.0, share + kept)
    others = old.scatter(-1, slot, 0.0)
    others = others * (1 - mine) / others.sum(-1, keepdim=True).clamp(min=1e-12)
    return labels.scatter(-1, slot, new[..., None]), others.scatter(-1, slot, mine)
