"""What online constrained k-means is compared with: Sinkhorn, offline k-means, instances."""

import torch
from jaxtyping import Float, Int, Int64
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from toolkit.representation.coke.clustering import OnlineConstrainedKMeans


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "batch clusters"], epsilon: float = 0.05, iterations: int = 3
) -> Float[Tensor, "batch clusters"]:
    """Soft assignment with equal cluster sizes inside the batch, by Sinkhorn's iterations.

    Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, "Unsupervised learning of visual features
    by contrasting cluster assignments" (2020), Eq. 3–5: SwAV's online assignment.

    Args:
        scores: x_iᵀc_k.
        epsilon: entropy; smaller is harder.
        iterations: over rows and columns.

    Returns:
        Probabilities; each row sums to 1, each column to about batch / clusters.

    Raises:
        ValueError: if epsilon is not positive or there is no iteration.
    """
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"need epsilon > 0 and iterations ≥ 1, got {epsilon}, {iterations}")
    q = ((scores - scores.max()) / epsilon).exp()
    for _ in range(iterations):
        q = q / q.sum(dim=0, keepdim=True).clamp(min=1e-30)
        q = q / q.sum(dim=1, keepdim=True).clamp(min=1e-30)
    return q


class SinkhornKMeans(OnlineConstrainedKMeans):
    """Online k-means whose assignment is Sinkhorn's on the batch; there are no prices."""

    epsilon = 0.05

    def _choose(self, x: Float[Tensor, "batch d"]) -> Int64[Tensor, "batch heads"]:
        parts = (x @ self.centers.T).split(self.heads, dim=1)
        return torch.stack([sinkhorn(part, self.epsilon).argmax(1) for part in parts], dim=1)


def offline_kmeans(
    x: Float[Tensor, "n d"], num_clusters: int, seed: int, iterations: int = 20
) -> tuple[Int64[Tensor, " n"], Float[Tensor, "clusters d"]]:
    """k-means over all features at once, k-means++ start: the clustering step of DeepCluster.

    Caron, Bojanowski, Joulin and Douze, "Deep clustering for unsupervised learning of visual
    features" (2018).

    Returns:
        Labels, and the centres scaled to unit length.
    """
    means = KMeans(num_clusters, n_init=1, max_iter=iterations, random_state=seed)
    labels = torch.from_numpy(means.fit_predict(x.cpu().numpy())).long().to(x.device)
    centers = torch.from_numpy(means.cluster_centers_).to(x)
    return labels, F.normalize(centers, dim=1)


class InstanceBank:
    """Every image is its own class: a bank of features, updated as images come by.

    Wu, Xiong, Yu and Lin, "Unsupervised feature learning via non-parametric instance
    discrimination" (2018), with the full softmax, which a small data set allows.

    Args:
        num_instances: N.
        dim: width of the features.
        temperature: τ.
        momentum: share of the old feature that stays.
        generator: of the first features.
    """

    def __init__(
        self,
        num_instances: int,
        dim: int,
        temperature: float,
        momentum: float = 0.5,
        *,
        generator: torch.Generator,
        device: torch.device | str | None = None,
    ) -> None:
        first = torch.randn(num_instances, dim, generator=generator)
        self.bank = F.normalize(first, dim=1).to(device)
        self.temperature, self.momentum = temperature, momentum

    def loss(self, ids: Int[Tensor, " batch"], pred: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Cross-entropy of telling each image from all others."""
        return F.cross_entropy(pred @ self.bank.T / self.temperature, ids)

    @torch.no_grad()
    def update(self, ids: Int[Tensor, " batch"], x: Float[Tensor, "batch d"]) -> None:
        """Move the features of the batch towards the new ones, and back to unit length."""
        moved = F.normalize(torch.lerp(x.detach(), self.bank[ids], self.momentum), dim=1)
        self.bank = self.bank.index_copy(0, ids, moved)  # the old one waits for its backward pass
