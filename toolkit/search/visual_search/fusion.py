"""Which category? A classifier and a search vote (method A)."""

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.search.visual_search.index import FaissIndex

LAMBDAS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))


class CategoryFusion:
    """p = α p_model + (1 − α) p_search, with λ and α chosen on validation images.

    The search part is p(c) ∝ Σ_{i ≤ k, y_i = c} exp(−λ ‖f − f_i‖²) over the k nearest references.

    Args:
        reference: features of labelled images, unit length.
        labels: their categories, 0 … C − 1.
        num_classes: C.
        k: how many neighbours vote; paper: 30.

    Raises:
        ValueError: for labels outside 0 … C − 1, k outside 1 … n, or features without unit length.
    """

    def __init__(
        self,
        reference: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        num_classes: int,
        k: int = 30,
    ) -> None:
        if len(labels) != len(reference):
            raise ValueError(f"{len(labels)} labels for {len(reference)} reference images")
        if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(f"labels must lie in 0 … {num_classes - 1}, and there must be some")
        if not 1 <= k <= len(reference):
            raise ValueError(f"k must lie in 1 … {len(reference)}, got {k}")
        self.index = FaissIndex(reference.shape[1])
        self.index.add(np.arange(len(reference)), reference)
        self.labels, self.num_classes, self.k = labels, num_classes, k
        self.lam, self.alpha = 32.0, 0.5

    def neighbours(
        self, features: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
        """Squared distances and categories of the k nearest references."""
        found = self.index.search(features, self.k)
        return (2 - 2 * found.scores).clamp(min=0), self.labels[found.ids]

    def fit(
        self,
        features: Float[Tensor, "b d"],
        model: Float[Tensor, "b classes"],
        labels: Int[Tensor, " b"],
    ) -> "CategoryFusion":
        """Choose λ by the likelihood of the search alone, then α by accuracy, and return itself.

        Equal accuracies go to the α nearest ½.

        Args:
            features: of validation images, in neither the reference nor the test set.
            model: probabilities of the classifier on them.
            labels: their categories.

        Raises:
            ValueError: if the rows of `model` do not sum to 1.
        """
        self._check(features, model)
        distance, votes = self.neighbours(features)
        searched = [posterior(distance, votes, lam, self.num_classes) for lam in LAMBDAS]
        likelihood = [_log_likelihood(p, labels) for p in searched]
        best = int(np.argmax(likelihood))
        self.lam = LAMBDAS[best]
        right = [_right(fused(model, searched[best], alpha), labels) for alpha in ALPHAS]
        order = sorted(
            range(len(ALPHAS)), key=lambda place: (-right[place], abs(ALPHAS[place] - 0.5))
        )
        self.alpha = ALPHAS[order[0]]
        return self

    def search_proba(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """What the search alone says."""
        return posterior(*self.neighbours(features), self.lam, self.num_classes)

    def predict_proba(
        self, features: Float[Tensor, "b d"], model: Float[Tensor, "b classes"]
    ) -> Float[Tensor, "b classes"]:
        """α p_model + (1 − α) p_search.

        Raises:
            ValueError: if the rows of `model` do not sum to 1.
        """
        self._check(features, model)
        return fused(model, self.search_proba(features), self.alpha)

    def _check(self, features: Tensor, model: Tensor) -> None:
        if model.shape != (len(features), self.num_classes):
            raise ValueError(
                f"model must be [{len(features)}, {self.num_classes}], got {tuple(model.shape)}"
            )
        if not bool(((model.sum(1) - 1).abs() < 1e-3).all()) or bool((model < 0).any()):
            raise ValueError(
                "model must hold probabilities, rows summing to 1; were logits passed?"
            )


def posterior(
    distance: Float[Tensor, "b k"], votes: Int[Tensor, "b k"], lam: float, num_classes: int
) -> Float[Tensor, "b classes"]:
    """p(c) ∝ Σ_{i, y_i = c} exp(−λ distance_i), normalised without underflow."""
    weight = (-lam * distance).softmax(1)
    return weight.new_zeros(len(weight), num_classes).scatter_add_(1, votes, weight)


def fused(
    model: Float[Tensor, "b classes"], search: Float[Tensor, "b classes"], alpha: float
) -> Float[Tensor, "b classes"]:
    """The weighted average of two distributions."""
    return alpha * model + (1 - alpha) * search


def _log_likelihood(p: Float[Tensor, "b classes"], labels: Int[Tensor, " b"]) -> float:
    """Mean log-probability; a category without a vote counts as one in a thousand."""
    return float(p.gather(1, labels[:, None]).clamp(min=1e-3).log().mean())


def _right(p: Float[Tensor, "b classes"], labels: Int[Tensor, " b"]) -> int:
    return int((p.argmax(1) == labels).sum())
