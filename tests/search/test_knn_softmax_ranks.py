"""KNN softmax on 2 and 4 real gloo processes equals one process."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from toolkit.learn.distributed import launch
from toolkit.search.knn_softmax import (
    MicroBatchPipeline,
    ShardedGraph,
    ShardedSoftmax,
    TopKCompressor,
    build_knn_graph,
    select_active,
    shard_bounds,
    sum_gradients,
)

pytestmark = pytest.mark.slow  # starting processes takes seconds

C, D, B = 61, 8, 16  # 61 divides by neither 2 nor 4


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def world_data():
    W = torch.randn(C, D, generator=seeded(0))
    x = torch.randn(B, 6, generator=seeded(1))
    y = torch.randint(0, C, (B,), generator=seeded(2))
    return W, x, y


def backbone():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, D))


def sharded_step(mode, scale, rho, micro_batches):
    """Loss, backbone gradients and this rank's dW of one step over the ranks of the world."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    W, x, y = world_data()
    low, high = shard_bounds(C, rank, size)
    head = ShardedSoftmax(D, C, mode=mode, rho=rho, scale=scale, neighbours=4)
    head.weight.data = W[low:high].clone()
    mine = slice(rank * B // size, (rank + 1) * B // size)
    net = backbone()
    if micro_batches:
        loss = MicroBatchPipeline(net, head, micro_batches).step(x[mine], y[mine])
    else:
        loss = head(net(x[mine]), y[mine])
        loss.backward()
    sum_gradients(net.parameters())
    return loss.detach(), [p.grad for p in net.parameters()], head.weight.grad.to_dense()


def everything_at_once():
    """All that the tests below compare, in one world: starting processes is what costs."""
    rank, size = dist.get_rank(), dist.get_world_size()
    W, _, y = world_data()
    low, high = shard_bounds(C, rank, size)
    near = build_knn_graph(W[low:high], 7, chunk=5)
    graph = ShardedGraph.from_neighbours(near)
    roomy = select_active(y, graph, high - low, seeded(rank))
    tight = select_active(y, ShardedGraph.from_neighbours(near[:, :3]), 11, seeded(rank))
    compressor = TopKCompressor(0.25, 0.0)
    p = nn.Parameter(torch.zeros(4, 5))
    p.grad = torch.randn(4, 5, generator=seeded(rank))
    compressor.reduce([p])
    head = ShardedSoftmax(D, C, mode="knn", rho=0.5, scale=5.0, neighbours=2)
    head.weight.data = W[low:high].clone()
    features = F.normalize(torch.randn(B, D, generator=seeded(3)), dim=1)
    return {
        "full": [sharded_step("full", 6.0, 1.0, n) for n in (0, 1, 2)],
        "plain": [sharded_step("full", None, 1.0, n) for n in (0, 2)],
        "knn": [sharded_step("knn", 6.0, 1.0, n) for n in (0, 2)],
        "near": near,
        "chosen": roomy.ids[~roomy.is_fill] + low,
        "tight": len(tight.ids),
        "fills": tight.ids[tight.is_fill] + low,
        "owned": roomy.label_pos >= 0,
        "sum": p.grad,
        "rest": compressor.v[0],
        "entries": len(graph.ids),
        "coverage": head.coverage(features, y),
        "weight": head.weight.detach(),
    }


def unequal_batches():
    head = ShardedSoftmax(D, C)
    size = 3 + dist.get_rank()
    head(torch.zeros(size, D), torch.zeros(size, dtype=torch.long))


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request):
    return launch(everything_at_once, request.param)


@pytest.mark.parametrize(
    ("mode", "scale", "key"), [("full", 6.0, "full"), ("full", None, "plain"), ("knn", 6.0, "knn")]
)
def test_loss_and_gradients_are_those_of_one_process(ranks, mode, scale, key):
    W, x, y = world_data()
    W.requires_grad_()
    net = backbone()
    f = net(x)
    z = f @ W.T if scale is None else scale * F.normalize(f, dim=1) @ F.normalize(W, dim=1).T
    loss = F.cross_entropy(z, y)  # at rho = 1 the KNN softmax is the full softmax
    loss.backward()
    for variant in range(len(ranks[0][key])):
        steps = [rank[key][variant] for rank in ranks]
        for got, gradients, _ in steps:
            torch.testing.assert_close(got, loss.detach(), atol=1e-5, rtol=0)
            for g, p in zip(gradients, net.parameters(), strict=True):
                torch.testing.assert_close(g, p.grad, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.cat([s[2] for s in steps]), W.grad, atol=1e-5, rtol=0)


def test_ring_builds_the_graph_of_one_process(ranks):
    W, _, _ = world_data()
    assert torch.equal(torch.cat([rank["near"] for rank in ranks]), build_knn_graph(W, 7))


def test_selection_does_not_depend_on_ranks_when_nothing_is_cut(ranks):
    W, _, y = world_data()
    graph = ShardedGraph.from_neighbours(build_knn_graph(W, 7))
    alone = select_active(y, graph, C, seeded(0))
    assert torch.equal(torch.cat([r["chosen"] for r in ranks]), alone.ids[~alone.is_fill])
    assert torch.equal(torch.stack([r["owned"] for r in ranks]).sum(dim=0), torch.ones(B).long())


def test_each_rank_has_exactly_m_active_classes_and_own_fills(ranks):
    _, _, y = world_data()
    assert all(rank["tight"] == 11 for rank in ranks)
    fills = torch.cat([rank["fills"] for rank in ranks])
    assert len(fills) == len(fills.unique())
    assert not torch.isin(fills, y).any()


def test_each_rank_holds_its_share_of_the_graph(ranks):
    assert sum(rank["entries"] for rank in ranks) == 7 * C
    assert max(rank["entries"] for rank in ranks) < 2 * 7 * C / len(ranks)


def test_compressed_gradients_are_summed_not_averaged(ranks):
    gradients = [torch.randn(4, 5, generator=seeded(rank)) for rank in range(len(ranks))]
    for rank in ranks:
        torch.testing.assert_close(rank["sum"], ranks[0]["sum"])
    left = sum(rank["rest"].view(4, 5) for rank in ranks)
    torch.testing.assert_close(ranks[0]["sum"] + left, sum(gradients))


def test_coverage_sums_over_ranks(ranks):
    for rank in ranks:
        torch.testing.assert_close(rank["coverage"], ranks[0]["coverage"])
    assert (ranks[0]["coverage"] > 0).all()
    assert (ranks[0]["coverage"] <= 1 + 1e-6).all()


def test_unequal_batches_raise_before_they_hang():
    with pytest.raises(RuntimeError, match="unequal batches"):
        launch(unequal_batches, 2, timeout=60)
