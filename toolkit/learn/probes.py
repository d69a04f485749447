"""Frozen-feature probes: how much a representation knows."""

import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegressionCV, RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F


def knn_probe(
    train: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    k: int = 20,
    temperature: float = 0.07,
    size: int = 1024,
) -> Int[Tensor, " m"]:
    """Weighted k-nearest-neighbour labels by cosine similarity, weights exp(similarity / τ).

    Wu, Xiong, Yu and Lin, "Unsupervised feature learning via non-parametric instance
    discrimination" (2018), Section 3.4.

    Args:
        train: features that have labels.
        y: their labels.
        test: features to label.
        k: neighbours.
        temperature: τ.
        size: test rows at a time.

    Raises:
        ValueError: if k lies outside 1…n, or the lengths differ.
    """
    if len(train) != len(y) or not 1 <= k <= len(train):
        raise ValueError(f"need 1 ≤ k ≤ n = len(y), got k={k}, n={len(train)}, {len(y)} labels")
    bank, queries = F.normalize(train, dim=1), F.normalize(test, dim=1)
    classes = int(y.max()) + 1
    labels = []
    for chunk in queries.split(size):
        similarity, index = (chunk @ bank.T).topk(k, dim=1)
        weight = ((similarity - 1) / temperature).exp()
        votes = torch.zeros(len(chunk), classes, device=chunk.device, dtype=weight.dtype)
        labels.append(votes.scatter_add_(1, y[index], weight).argmax(dim=1))
    return torch.cat(labels)


def linear_probe(
    train: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    kind: str = "logistic",
) -> Int[Tensor, " m"]:
    """Labels of a linear classifier on z-scored features, its penalty cross-validated.

    Args:
        train: features that have labels.
        y: their labels.
        test: features to label.
        kind: `"logistic"` (cross-entropy) or `"ridge"` (faster).

    Raises:
        ValueError: for another kind, or lengths that differ.
    """
    if len(train) != len(y):
        raise ValueError(f"need one label a row, got {len(train)} rows and {len(y)} labels")
    if kind == "logistic":
        grid = [10.0**power for power in range(-4, 3)]
        head = LogisticRegressionCV(
            Cs=grid,
            l1_ratios=(0,),
            cv=3,
            max_iter=500,
            scoring="neg_log_loss",
            use_legacy_attributes=False,
        )
    elif kind == "ridge":
        head = RidgeClassifierCV(alphas=[10.0**power for power in range(-2, 5)])
    else:
        raise ValueError(f"kind is 'logistic' or 'ridge', got {kind!r}")
    probe = make_pipeline(StandardScaler(), head).fit(train.cpu().numpy(), y.cpu().numpy())
    return torch.as_tensor(probe.predict(test.cpu().numpy()), device=test.device)
