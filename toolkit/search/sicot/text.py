"""What words alone know: the ceiling for everything that learns from titles."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import Tensor


def text_only(
    train: Sequence[Sequence[str]],
    y: Int64[Tensor, " n"],
    test: Sequence[Sequence[str]],
    penalty: float = 0.1,
) -> Int64[Tensor, " m"]:
    """The classes of titles, by logistic regression on tf-idf.

    Args:
        train: titles whose classes are known.
        y: these classes.
        test: titles to classify.
        penalty: of the weights' squares; scikit-learn's 1 / C.
    """
    model = make_pipeline(
        TfidfVectorizer(token_pattern=r"\S+"),
        LogisticRegression(C=1 / penalty, max_iter=60, class_weight="balanced"),
    )
    texts = [[" ".join(title) for title in part] for part in (train, test)]
    model.fit(texts[0], y.cpu().numpy())
    return torch.as_tensor(model.predict(texts[1]), device=y.device)
