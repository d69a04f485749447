"""Shared by the tests of the architecture chapters."""

import pytest
import torch

from toolkit.networks.genet import training
from toolkit.networks.images import Split
from toolkit.networks.zen_nas import study


@pytest.fixture
def small_data(monkeypatch):
    """A few random images instead of Fashion-MNIST."""
    draw = torch.Generator().manual_seed(0)

    def split(n):
        return Split(
            torch.randn(n, 1, 28, 28, generator=draw), torch.randint(0, 10, (n,), generator=draw)
        )

    splits = split(64), split(60), split(40)
    for module in (training, study):
        monkeypatch.setattr(module, "load_splits", lambda device: splits)
    return splits
