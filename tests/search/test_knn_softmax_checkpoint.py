"""A spread classifier is written whole and read by any number of processes."""

import torch
from torch import nn

from toolkit.learn.distributed import launch, world
from toolkit.search.knn_softmax import ActiveRowSGD, ShardedSoftmax, shard_bounds
from toolkit.search.knn_softmax.checkpoint import WholeHead, gathered


def in_order(total):
    low, high = shard_bounds(total, *world())
    rows = torch.arange(total * 2.0).view(total, 2)
    return torch.equal(gathered(rows[low:high], total), rows)


def test_rows_of_all_processes_come_back_in_order():
    assert launch(in_order, 2, 5) == [True, True]


def trained(steps=1, state=None):
    """A head of five classes after some steps, and its state."""
    model = nn.ModuleDict({"body": nn.Linear(3, 4), "head": ShardedSoftmax(4, 5)})
    optimizer = ActiveRowSGD([model["head"].weight], 0.1, 0.9)
    whole = WholeHead(model, optimizer)
    if state:
        whole.load_state_dict(state)
    x = torch.linspace(-1, 1, 8).view(2, 4)
    for _ in range(steps):
        model.zero_grad()
        model["head"](x, torch.tensor([1, 4])).backward()
        optimizer.step()
    whole.gather()
    return whole.state_dict()


def test_two_processes_write_what_one_goes_on_with():
    written = launch(trained, 2)[0]
    assert written["head.weight"].shape == (5, 4)
    again = trained(0, written)
    for name in ("head.weight", "velocity"):
        assert torch.equal(again[name], written[name]), name
    assert not torch.equal(trained(1, written)["velocity"], written["velocity"])
