"""Landmarks: a few averages of the features that stand for all examples.

Every kind is X̄ = MᵀX for an averaging matrix M [n, m]. The same M must make the landmarks of
student and teacher: only then does agreement of the partial kernels force agreement of the full
ones (T2).
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from sklearn.cluster import KMeans
from torch import Tensor, nn

from toolkit.learn.distributed import world

Landmarks = Float[Tensor, "m d"]
Averaging = Float[Tensor, "n m"]


def class_landmarks(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " _"],
    num_classes: int,
    counts: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, "classes d"]:
    """The mean feature of every class: the paper's landmarks.

    Args:
        features: X.
        labels: 0 to num_classes − 1.
        num_classes: L, the number of landmarks.
        counts: examples of each class, where they are known; else counted here.

    Raises:
        ValueError: if the lengths differ, a label lies outside, or a class has no example.
    """
    _check_labels(features, labels, num_classes)
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    if counts is None:
        counts = torch.bincount(labels, minlength=num_classes).to(features.dtype)
    _none_empty(counts)
    return sums / counts[:, None]


def averaging_matrix(labels: Int64[Tensor, " n"], num_classes: int) -> Averaging:
    """M for the means of groups: 1/n_l where example i is of group l; a label −1 is in none.

    Its largest singular value is 1/√n_min.

    Raises:
        ValueError: if a group has no example.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=num_classes).to(torch.float32)
    _none_empty(counts)
    member = labels[:, None] == torch.arange(num_classes, device=labels.device)
    return member / counts


def kmeans_landmarks(
    features: Float[Tensor, "n d"], m: int, seed: int = 0
) -> tuple[Landmarks, Averaging]:
    """The centres of m clusters of the features, and the averaging matrix.

    Raises:
        ValueError: unless 1 ≤ m ≤ n, or if fewer than m examples differ.
    """
    _check_number(features, m)
    found = KMeans(m, n_init=2, random_state=seed).fit_predict(features.cpu().numpy())
    labels = torch.from_numpy(found).long().to(features.device)
    averaging = averaging_matrix(labels, m).to(features.dtype)
    return averaging.T @ features, averaging


def random_landmarks(
    features: Float[Tensor, "n d"], m: int, generator: torch.Generator
) -> tuple[Landmarks, Averaging]:
    """Take m different examples themselves, and the matrix that picks them.

    Raises:
        ValueError: unless 1 ≤ m ≤ n.
    """
    _check_number(features, m)
    chosen = torch.randperm(len(features), generator=generator)[:m]
    averaging = torch.zeros(len(features), m, dtype=features.dtype)
    averaging[chosen, torch.arange(m)] = 1
    averaging = averaging.to(features.device)
    return averaging.T @ features, averaging


def gaussian_landmarks(
    features: Float[Tensor, "n d"], m: int, generator: torch.Generator
) -> tuple[Landmarks, Averaging]:
    """Draw m random combinations of all examples (a Gaussian sketch), and their weights.

    Raises:
        ValueError: unless 1 ≤ m ≤ n.
    """
    _check_number(features, m)
    averaging = torch.randn(len(features), m, generator=generator) / len(features) ** 0.5
    averaging = averaging.to(features)
    return averaging.T @ features, averaging


class LandmarkBank(nn.Module):
    """The landmarks of one network, gathered while it trains and fixed for a whole epoch.

    Every epoch adds up the features of each group; at its end sums over counts become the landmarks
    of the next one. Counts are those of the first epoch. Nothing here carries a gradient. All state
    is in `state_dict`, so that training can resume.

    Qian, Li and Hu (2022) and their code: groups are the classes.
    """

    sums: Float[Tensor, "m d"]
    counts: Float[Tensor, " m"]
    centres: Float[Tensor, "m d"]
    epochs: Int64[Tensor, ""]

    def __init__(self, num_classes: int, dim: int) -> None:
        """Start with nothing seen.

        Args:
            num_classes: m, the number of landmarks.
            dim: d, the width of the features.

        Raises:
            ValueError: if either is below 1.
        """
        super().__init__()
        if min(num_classes, dim) < 1:
            raise ValueError(f"need at least one landmark and feature, got {num_classes}, {dim}")
        self.register_buffer("sums", torch.zeros(num_classes, dim))
        self.register_buffer("counts", torch.zeros(num_classes))
        self.register_buffer("centres", torch.zeros(num_classes, dim))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    @property
    def ready(self) -> bool:
        """Whether a first epoch has ended, so that there are landmarks."""
        return bool(self.epochs > 0)

    @torch.no_grad()
    def update(self, features: Float[Tensor, "b d"], labels: Tensor) -> None:
        """Add a batch.

        Args:
            features: of this network; no gradient is kept.
            labels: the group of each example [b], −1 for none; or its weights [b, m].

        Raises:
            ValueError: if the features have another width, or a label lies outside.
        """
        m, dim = self.sums.shape
        if features.shape[1] != dim:
            raise ValueError(f"the bank holds features {dim} wide, got {features.shape[1]}")
        features = features.to(self.sums.dtype)
        if labels.is_floating_point():
            self.sums += labels.T.to(features.dtype) @ features
            return
        grouped = labels >= 0
        if not grouped.all():
            features, labels = features[grouped], labels[grouped]
        _check_labels(features, labels, m)
        self.sums.index_add_(0, labels, features)
        if not self.ready:
            self.counts += torch.bincount(labels, minlength=m)

    @torch.no_grad()
    def end_epoch(self, process_group: dist.ProcessGroup | None = None) -> Landmarks:
        """Make the landmarks of the next epoch from this one's sums, over all processes.

        Weights are not divided by counts: they bring their own scale.

        Args:
            process_group: whose sums are added; by default the whole world, if there is one.

        Returns:
            The landmarks, the same on every process.

        Raises:
            ValueError: if a group had no example in the first epoch, or nothing was added.
        """
        if world(process_group)[1] > 1:
            dist.all_reduce(self.sums, group=process_group)
            if not self.ready:
                dist.all_reduce(self.counts, group=process_group)
        weighted = bool(self.sums.any()) and not self.counts.any()
        if not weighted:
            _none_empty(self.counts)
        self.centres.copy_(self.sums if weighted else self.sums / self.counts[:, None])
        self.sums.zero_()
        self.epochs += 1
        return self.centres


def _check_labels(features: Tensor, labels: Tensor, num_classes: int) -> None:
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} features but {len(labels)} labels")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"labels must lie in 0…{num_classes - 1}, got {int(labels.min())}…{int(labels.max())}"
        )


def _check_number(features: Tensor, m: int) -> None:
    if not 1 <= m <= len(features):
        raise ValueError(f"the number of landmarks must lie in 1…{len(features)}, got {m}")


def _none_empty(counts: Tensor) -> None:
    if len(empty := (counts == 0).nonzero().flatten().tolist()):
        shown = ", ".join(map(str, empty[:8]))
        raise ValueError(f"these groups have no example, so no landmark: {shown}")
