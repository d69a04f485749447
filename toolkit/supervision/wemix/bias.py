"""Two measures of the data bias of an augmentation, taken before any result is read."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FOLDS = 5


def gradient_bias(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    draws: int = 20,
) -> tuple[float, float]:
    """‖∇F − ∇F̃‖ at the model's weights over all of `data`, without the bias of few draws.

    With d_k the difference of full-batch gradients for draw k and d̄ their mean, ‖d̄‖² is too large
    by tr cov(d) / draws; what remains is the mean of d_j · d_k over j ≠ k.

    Args:
        model: to logits.
        data: x [n, …] and targets [n, k] (probabilities) or [n] (classes).
        augment: `(x, target) -> (x, target)`, drawn afresh at every call.
        draws: of the augmentation, at least 3.

    Returns:
        The norm (0 where the estimate of its square is negative), and its standard error by the
        jackknife over draws.

    Raises:
        ValueError: for fewer than three draws.
    """
    if draws < 3:
        raise ValueError(f"gradient_bias needs at least 3 draws, got {draws}")
    original = _gradient(model, *data)
    difference = torch.stack([original - _gradient(model, *augment(*data)) for _ in range(draws)])
    gram = (difference @ difference.T).double()
    gram.fill_diagonal_(0)
    total, rows = gram.sum(), gram.sum(1)
    norm = _norm(total / (draws * (draws - 1)))
    left_out = _norm((total - 2 * rows) / ((draws - 1) * (draws - 2)))
    error = ((draws - 1) * left_out.var(correction=0)).sqrt()
    return float(norm), float(error)


def domain_gap(
    features_a: Float[Tensor, "n d"], features_b: Float[Tensor, "m e"], seed: int = 0
) -> float:
    """How well a logistic classifier tells two sets of features apart: AUC of 5-fold predictions.

    ½ says that it cannot. Row i of both sets lies in the same fold, so that an image and its
    augmentation are never on both sides of a split.

    Raises:
        ValueError: if the widths differ, a set has fewer rows than folds, or a value is not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    a, b = (part.detach().cpu().double().numpy() for part in (features_a, features_b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < FOLDS:
        raise ValueError(f"need features [n ≥ {FOLDS}, d] and [m, d], got {a.shape} and {b.shape}")
    x = np.concatenate([a, b])
    if not np.isfinite(x).all():
        raise ValueError("features must be finite; did the network diverge?")
    y = np.repeat([0, 1], [len(a), len(b)])
    order = np.random.default_rng(seed).permutation(max(len(a), len(b)))
    groups = np.concatenate([order[: len(a)], order[: len(b)]])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    score = cross_val_predict(
        model, x, y, groups=groups, cv=GroupKFold(FOLDS), method="decision_function"
    )
    return float(roc_auc_score(y, score))


def _gradient(model: nn.Module, x: Tensor, target: Tensor) -> Float[Tensor, " p"]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = F.cross_entropy(model(x), target)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def _norm(square: Tensor) -> Tensor:
    return square.clamp(min=0).sqrt()
