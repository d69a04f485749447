"""Joining torchrun's group; sums and averages over its processes."""

import pytest
import torch
from torch import nn

from toolkit.learn.distributed import launch, world
from toolkit.learn.torchrun import average_buffers, sum_over_ranks, torchrun_group

CPU = torch.device("cpu")


def agree():
    rank, _ = world()
    norm = nn.BatchNorm1d(2)
    norm.running_mean += 2.0 * rank
    average_buffers(norm)
    with torchrun_group(CPU) as device:  # a group that somebody joined already is left alone
        total = sum_over_ranks(torch.tensor([1.0 + rank]))
    return {"mean": norm.running_mean, "total": total, "device": str(device), "size": world()[1]}


def test_a_single_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with torchrun_group(CPU) as device:
        assert (device, world()) == (CPU, (0, 1))
    x = torch.ones(2)
    assert sum_over_ranks(x) is x
    norm = nn.BatchNorm1d(2)
    average_buffers(norm)
    torch.testing.assert_close(norm.running_mean, torch.zeros(2))


def test_a_process_of_torchrun_joins_and_leaves(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    with torchrun_group(CPU):
        assert torch.distributed.is_initialized()
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_processes_add_up_and_agree():
    for result in launch(agree, 2):
        torch.testing.assert_close(result["mean"], torch.ones(2))
        assert (float(result["total"]), result["size"]) == (3.0, 2)
