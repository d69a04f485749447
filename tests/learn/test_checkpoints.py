"""Checkpoints of long runs."""

import torch
from torch import nn

from toolkit.learn import torchrun


def test_a_training_goes_on_where_it_was(tmp_path):
    torch.manual_seed(0)
    kept, fresh = nn.Linear(2, 2), nn.Linear(2, 2)
    folder = str(tmp_path / "made")
    assert torchrun.load_checkpoint(folder, "net", {"net": fresh}) == 0
    torchrun.save_checkpoint(folder, "net", {"net": kept}, 7)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["net.pt"]
    assert torchrun.load_checkpoint(folder, "net", {"net": fresh}) == 7
    assert torch.equal(fresh.weight, kept.weight)


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torchrun.save_checkpoint("", "net", {"net": nn.Linear(1, 1)}, 1)
    assert torchrun.load_checkpoint("", "net", {"net": nn.Linear(1, 1)}) == 0
    assert not list(tmp_path.iterdir())


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(torchrun, "world", lambda: (1, 2))
    torchrun.save_checkpoint(str(tmp_path), "net", {"net": nn.Linear(1, 1)}, 1)
    assert not list(tmp_path.iterdir())
