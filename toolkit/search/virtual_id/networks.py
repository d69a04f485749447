"""The two networks that Virtual IDs supervise."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class CategoryNetwork(nn.Module):
    """Which virtual category does a photograph show?"""

    def __init__(self, backbone: nn.Module, width: int, categories: int) -> None:
        """Put a linear head on a backbone.

        Args:
            backbone: images to [batch, width].
            width: of what it returns.
            categories: virtual ones.
        """
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(width, categories)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch categories"]:
        """The logits; p is their softmax."""
        return self.head(self.backbone(x))


class FeatureNetwork(nn.Module):
    """A unit feature, and a classifier over Virtual IDs that is used in training only."""

    def __init__(
        self, backbone: nn.Module, width: int, dim: int, ids: int, scale: float = 16.0
    ) -> None:
        """Put a linear projection and a cosine classifier on a backbone.

        Args:
            backbone: images to [batch, width], shared by queries and listings.
            width: of what it returns.
            dim: of the feature.
            ids: rows of the classifier.
            scale: of the cosines, s.
        """
        super().__init__()
        self.backbone, self.project = backbone, nn.Linear(width, dim)
        self.rows = nn.Parameter(torch.randn(ids, dim) / dim**0.5)
        self.scale = scale

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch dim"]:
        """f, of length 1."""
        return F.normalize(self.project(self.backbone(x)), dim=1)

    def classify(self, f: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch ids"]:
        """Logits of the Virtual IDs: s times the cosine with each row."""
        return self.scale * f @ F.normalize(self.rows, dim=1).T
