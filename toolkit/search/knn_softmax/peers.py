"""Other ways not to compute a full softmax, with the interface of `ShardedSoftmax`."""

from collections.abc import Callable

import faiss
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from toolkit.search.knn_softmax.recipe import Recipe
from toolkit.search.knn_softmax.softmax import (
    Active,
    ShardedSoftmax,
    neighbours_needed,
    select_candidates,
)


class HashedSoftmax(ShardedSoftmax):
    """Active classes near the *features*, found by hashing the class weights.

    HF-softmax (Zhang et al. 2018) searches a forest of hash trees with each feature; here random
    hyperplanes (`faiss.IndexLSH`) stand for the forest. KNN softmax needs no search in a step.
    One process only.

    Args:
        bits: hyperplanes; 8 a dimension by default.
        settings: as of `ShardedSoftmax`.
    """

    def __init__(self, d: int, num_classes: int, *, bits: int = 0, **settings: object) -> None:
        super().__init__(d, num_classes, mode="knn", **settings)  # type: ignore[arg-type]
        self.bits = bits or 8 * d
        self.index: faiss.Index | None = None

    def forward(
        self, features: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The loss over labels and the classes that hash near the features."""
        if self.index is None:
            self.rebuild(len(labels))
        assert self.index is not None
        query = nn.functional.normalize(features.detach(), dim=1).cpu().numpy()
        found = torch.from_numpy(self.index.search(query, self.wanted)[1]).to(labels.device)
        position = torch.arange(self.wanted, device=labels.device).expand_as(found)
        active: Active = select_candidates(
            labels,
            found.flatten(),
            position.flatten().int(),
            self.wanted,
            self.num_classes,
            self._room_for(labels),
            self.generator,
        )
        return self.loss(features, labels, active)

    @torch.no_grad()
    def rebuild(self, batch: int) -> None:
        """Hash the present class weights."""
        self.wanted = neighbours_needed(self.num_active, batch)
        self.index = faiss.IndexLSH(self.d, self.bits)
        self.index.add(nn.functional.normalize(self.weight, dim=1).cpu().numpy())


class AdaptiveSoftmax(nn.Module):
    """`torch.nn.AdaptiveLogSoftmaxWithLoss` (Grave et al. 2017): rare classes get fewer dimensions.

    Its premise is a long tail; classes are taken in the order of their ids, so where they are
    equally frequent its clusters are arbitrary.

    Args:
        d: width of the features.
        num_classes: classes, C.
        seed: of the weights.
    """

    def __init__(self, d: int, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            cutoffs = [num_classes // 10, num_classes // 2]
            self.softmax = nn.AdaptiveLogSoftmaxWithLoss(d, num_classes, cutoffs, div_value=2.0)

    def forward(
        self, features: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The mean negative log-likelihood."""
        return self.softmax(features, labels).loss

    def scores(self, features: Float[Tensor, "batch d"]) -> Float[Tensor, "batch classes"]:
        """Log-probabilities of all classes."""
        return self.softmax.log_prob(features)


def _hashed(recipe: Recipe, seed: int) -> nn.Module:
    return HashedSoftmax(
        recipe.d, recipe.num_classes, rho=recipe.rho, scale=recipe.scale, seed=seed
    )


def _adaptive(recipe: Recipe, seed: int) -> nn.Module:
    return AdaptiveSoftmax(recipe.d, recipe.num_classes, seed)


PEERS: dict[str, Callable[[Recipe, int], nn.Module]] = {"hashed": _hashed, "adaptive": _adaptive}
"""Arms beside those of `ShardedSoftmax`."""
