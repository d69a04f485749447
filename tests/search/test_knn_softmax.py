"""The parts of KNN softmax against independent references, in one process."""

import math
from itertools import pairwise

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import Lars
from torch import nn

from toolkit.search.knn_softmax import (
    ActiveRowSGD,
    DistributedCrossEntropy,
    Link,
    MicroBatchPipeline,
    ShardedGraph,
    ShardedSoftmax,
    TopKCompressor,
    build_knn_graph,
    divide_and_conquer_topk,
    fccs_schedule,
    neighbours_needed,
    piecewise_schedule,
    select_active,
    select_random,
    shard_bounds,
    timeline,
)
from toolkit.search.knn_softmax.compress import sampled_topk


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(classes=60, d=8, seed=0):
    return (
        torch.randn(classes, d, generator=seeded(seed)) * torch.linspace(0.2, 3, classes)[:, None]
    )


# --- graph --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "size"), [(10, 1), (10, 4), (11, 4), (4, 4)])
def test_shards_are_contiguous_and_the_first_ones_are_larger(classes, size):
    bounds = [shard_bounds(classes, rank, size) for rank in range(size)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == classes
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    lengths = [high - low for low, high in bounds]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


@pytest.mark.parametrize("chunk", [7, 64])
def test_graph_has_the_similarities_of_faiss(chunk):
    W = weights()
    near = build_knn_graph(W, 9, chunk=chunk)
    unit = F.normalize(W, dim=1)
    similarity = (unit[:, None] * unit[near]).sum(dim=2)
    expected, _ = faiss.knn(unit.numpy(), unit.numpy(), 9, metric=faiss.METRIC_INNER_PRODUCT)
    np.testing.assert_allclose(similarity, expected, atol=1e-5)


def test_a_class_is_its_own_first_neighbour_even_among_copies():
    W = torch.ones(6, 3)
    assert build_knn_graph(W, 4, chunk=2)[:, 0].tolist() == list(range(6))


def test_length_of_rows_does_not_matter():
    W = weights()
    scaled = W * torch.rand(len(W), 1, generator=seeded(1)).add(0.1)
    assert torch.equal(build_knn_graph(W, 5), build_knn_graph(scaled, 5))


@pytest.mark.parametrize("backend", ["faiss", "ivf", "hnsw"])
def test_peers_find_the_neighbours_of_a_small_graph(backend):
    W = weights(400, 16)
    exact, peer = build_knn_graph(W, 6), build_knn_graph(W, 6, backend=backend)
    assert torch.equal(peer[:, 0], torch.arange(400))
    same = (exact[:, :, None] == peer[:, None, :]).any(dim=2).float().mean()
    assert same > (0.999 if backend == "faiss" else 0.6)


@pytest.mark.parametrize(("k", "backend"), [(0, "exact"), (60, "exact"), (3, "forest")])
def test_graph_refuses_bad_arguments(k, backend):
    with pytest.raises((ValueError, TypeError)):
        build_knn_graph(weights(), k, backend=backend)


def test_graph_lookup_returns_each_labels_list():
    near = build_knn_graph(weights(), 5)
    graph = ShardedGraph.from_neighbours(near)
    ids, position = graph.lookup(torch.tensor([7, 3]))
    assert ids.tolist() == near[[7, 3]].flatten().tolist()
    assert position.tolist() == [0, 1, 2, 3, 4] * 2
    assert graph.bytes() == 4 * 300 * 2 + 8 * 61


# --- active classes -----------------------------------------------------------------------------


def reference_selection(labels, near, m):
    """Labels, then neighbours by (smallest position, id): plain Python, no shards."""
    best = {}
    for label in labels:
        for position, neighbour in enumerate(near[label]):
            best[neighbour] = min(position, best.get(neighbour, position))
    best |= {label: -1 for label in labels}
    return sorted(sorted(best, key=lambda c: (best[c], c))[:m])


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 59), min_size=1, max_size=12), st.integers(1, 60), st.integers(0, 99)
)
def test_selection_keeps_labels_and_takes_the_smallest_positions(labels, m, seed):
    near = build_knn_graph(weights(), 9)
    graph = ShardedGraph.from_neighbours(near)
    y = torch.tensor(labels)
    if m < len(set(labels)):
        with pytest.raises(ValueError, match="distinct labels"):
            select_active(y, graph, m, seeded(seed))
        return
    active = select_active(y, graph, m, seeded(seed))
    chosen = active.ids[~active.is_fill].tolist()
    assert chosen == reference_selection(labels, near.tolist(), m)
    assert len(active.ids) == m
    assert torch.equal(active.ids, active.ids.unique())
    assert torch.equal(active.ids[active.label_pos], y)


def test_fills_differ_by_seed_and_repeat_for_one():
    graph = ShardedGraph.from_neighbours(build_knn_graph(weights(), 2))
    y = torch.tensor([4, 9])
    draws = [select_active(y, graph, 20, seeded(seed)).ids.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_random_selection_is_uniform_over_the_other_classes():
    generator, counts = seeded(), torch.zeros(10)
    y = torch.tensor([2, 5, 5])
    for _ in range(3000):
        active = select_random(y, 10, 0, 10, 4, generator)
        assert torch.equal(active.ids[~active.is_fill], torch.tensor([2, 5]))
        counts[active.ids[active.is_fill]] += 1
    expected = torch.full((8,), 3000 * 2 / 8)
    others = counts[[0, 1, 3, 4, 6, 7, 8, 9]]
    assert ((others - expected).abs() < 5 * (expected * 0.75).sqrt()).all()


def test_labels_outside_the_classes_are_refused():
    graph = ShardedGraph.from_neighbours(build_knn_graph(weights(), 3))
    for bad in (-1, 60):
        with pytest.raises(ValueError, match="must lie in"):
            select_active(torch.tensor([0, bad]), graph, 10, seeded())
        with pytest.raises(ValueError, match="must lie in"):
            ShardedSoftmax(4, 60).select(torch.tensor([bad]))


def test_default_neighbours_fill_the_places_twice():
    assert neighbours_needed(100, 16) == 13


# --- softmax ------------------------------------------------------------------------------------


def batch(classes=60, d=8, size=12, dtype=torch.float32):
    features = torch.randn(size, d, generator=seeded(3), dtype=dtype)
    return features, torch.randint(0, classes, (size,), generator=seeded(4))


@pytest.mark.parametrize("scale", [None, 12.0])
@pytest.mark.parametrize("mode", ["full", "knn", "random"])
def test_with_all_classes_active_it_is_cross_entropy(mode, scale):
    head = ShardedSoftmax(8, 60, mode=mode, rho=1.0, scale=scale)
    features, y = batch()
    features.requires_grad_()
    head(features, y).backward()
    ours = features.grad.clone(), head.weight.grad.to_dense()
    features.grad, head.weight.grad = None, None
    loss = F.cross_entropy(head.logits(features, head.weight), y)
    loss.backward()
    torch.testing.assert_close(head(features, y), loss)
    torch.testing.assert_close(ours[0], features.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours[1], head.weight.grad, atol=1e-6, rtol=1e-5)


def test_gradient_passes_gradcheck():
    z = torch.randn(5, 7, dtype=torch.float64, generator=seeded(), requires_grad=True)
    position = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda z: DistributedCrossEntropy.apply(z, position), z)


def test_half_precision_logits_do_not_overflow():
    z = torch.tensor([[60_000.0, -60_000.0]], dtype=torch.float16, requires_grad=True)
    loss = DistributedCrossEntropy.apply(z, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(120_000, rel=1e-2)
    assert z.grad.dtype == torch.float16


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.05, 1))
def test_lost_mass_is_all_that_is_lost(seed, rho):
    """L_full − L_A = −log P_A and ‖p − q‖₁ = 2(1 − P_A), per example."""
    z = 4 * torch.randn(6, 40, dtype=torch.float64, generator=seeded(seed))
    y = torch.randint(0, 40, (6,), generator=seeded(seed + 1))
    active = select_random(y, 40, 0, 40, max(6, math.ceil(40 * rho)), seeded(seed)).ids
    p = z.softmax(dim=1)
    q = torch.zeros_like(p)
    q[:, active] = z[:, active].softmax(dim=1)
    P_A = p[:, active].sum(dim=1)
    row = torch.arange(6)
    torch.testing.assert_close(q[row, y].log() - p[row, y].log(), -P_A.log(), atol=1e-12, rtol=0)
    torch.testing.assert_close((p - q).abs().sum(dim=1), 2 * (1 - P_A), atol=1e-12, rtol=0)


def test_coverage_is_the_gap_to_the_full_loss_and_leaves_the_draws_alone():
    head = ShardedSoftmax(8, 60, mode="knn", rho=0.4, scale=10.0, neighbours=2)
    features, y = batch(size=4)
    head.rebuild(4)
    P_A = head.coverage(features, y)
    knn = head(features, y)  # the same draw of fills
    full = F.cross_entropy(head.logits(features, head.weight), y)
    torch.testing.assert_close(full - knn, -P_A.log().mean(), atol=1e-5, rtol=1e-4)


def test_corrected_fills_make_the_sum_of_exponentials_unbiased():
    head = ShardedSoftmax(8, 60, mode="random", rho=0.2, correct_fill=True, scale=3.0)
    features, y = batch(size=3)
    z = head.logits(features, head.weight).detach()
    target = z[torch.arange(3), y]
    draws = []
    for _ in range(1500):
        active = head.select(y)
        logits = z[:, active.ids] + active.is_fill * math.log(
            (60 - int((~active.is_fill).sum())) / int(active.is_fill.sum())
        )
        loss = head.loss(features, y, active)
        torch.testing.assert_close(loss, (logits.logsumexp(dim=1) - target).mean())
        draws.append(logits.exp().sum(dim=1))
    mean = torch.stack(draws).mean(dim=0)
    torch.testing.assert_close(mean, z.exp().sum(dim=1), rtol=0.03, atol=0)


def test_only_active_rows_have_a_gradient():
    head = ShardedSoftmax(8, 60, mode="knn", rho=0.2)
    features, y = batch(size=3)
    active = head.select(y)
    head.loss(features, y, active).backward()
    assert head.weight.grad.is_sparse
    assert torch.equal(head.weight.grad.coalesce().indices()[0], active.ids)


def test_rebuild_from_the_same_weights_restores_the_same_graph():
    head = ShardedSoftmax(8, 60, mode="knn", rho=0.2)
    head.rebuild(4)
    before = head.graph
    head.rebuild(4)
    assert torch.equal(before.ids, head.graph.ids)


def test_active_set_grows_with_a_warning_when_the_labels_need_it():
    head = ShardedSoftmax(8, 60, mode="knn", rho=0.02)
    _, y = batch(size=12)
    with pytest.warns(UserWarning, match="the set grows"):
        assert len(head.select(y).ids) == len(y.unique())


def test_margin_lowers_the_labels_cosine():
    plain, strict = (ShardedSoftmax(8, 60, scale=10.0, margin=m) for m in (0.0, 0.3))
    features, y = batch()
    z = plain.logits(features, plain.weight)
    z = z - 3.0 * F.one_hot(y, 60)
    torch.testing.assert_close(strict(features, y), F.cross_entropy(z, y))


@pytest.mark.parametrize(
    "wrong", [{"rho": 0.0}, {"rho": 1.2}, {"mode": "some"}, {"margin": 0.1}, {"num_classes": 0}]
)
def test_head_refuses_bad_settings(wrong):
    with pytest.raises((ValueError, TypeError)):
        ShardedSoftmax(**({"d": 8, "num_classes": 60} | wrong))


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"expected \[batch, 8\]"):
        ShardedSoftmax(8, 60)(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long))


def test_inactive_rows_stand_still_and_active_ones_follow_sgd():
    start = torch.randn(6, 3, generator=seeded())
    ours, torchs = nn.Parameter(start.clone()), nn.Parameter(start[[1, 4]].clone())
    optimizer, reference = ActiveRowSGD([ours], 0.1, 0.9), torch.optim.SGD([torchs], 0.1, 0.9)
    for step in range(3):
        values = torch.randn(2, 3, generator=seeded(step))
        index = torch.tensor([[1, 4]])
        ours.grad = torch.sparse_coo_tensor(index, values, (6, 3), check_invariants=False)
        torchs.grad = values
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours[[1, 4]], torchs)
    assert torch.equal(ours[[0, 2, 3, 5]], start[[0, 2, 3, 5]])


def test_momentum_of_an_inactive_row_waits_for_its_next_turn():
    start = torch.randn(4, 3, generator=seeded())
    ours, alone = nn.Parameter(start.clone()), nn.Parameter(start[:1].clone())
    optimizer, reference = ActiveRowSGD([ours], 0.1, 0.9), torch.optim.SGD([alone], 0.1, 0.9)
    for step, row in enumerate((0, 2, 3, 0)):
        values = torch.randn(1, 3, generator=seeded(step))
        ours.grad = torch.sparse_coo_tensor([[row]], values, (4, 3), check_invariants=False)
        optimizer.step()
        if row == 0:
            alone.grad = values
            reference.step()
    torch.testing.assert_close(ours[:1], alone)


# --- pipeline -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4])
def test_micro_batches_change_nothing(n):
    x, y = batch(size=8)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    head = ShardedSoftmax(8, 60, mode="knn", rho=0.3, seed=1)
    head.rebuild(8)
    state = head.generator.get_state()
    loss = MicroBatchPipeline(net, head, n).step(x, y)
    ours = [p.grad.to_dense().clone() for p in [*net.parameters(), head.weight]]
    for p in [*net.parameters(), head.weight]:
        p.grad = None
    head.generator.set_state(state)
    expected = head(net(x), y)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for mine, p in zip(ours, [*net.parameters(), head.weight], strict=True):
        torch.testing.assert_close(mine, p.grad.to_dense(), atol=1e-6, rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused():
    pipeline = MicroBatchPipeline(nn.Identity(), ShardedSoftmax(8, 60), 3)
    with pytest.raises(ValueError, match="does not divide"):
        pipeline.step(*batch(size=8))
    with pytest.raises(ValueError, match="at least one"):
        MicroBatchPipeline(nn.Identity(), ShardedSoftmax(8, 60), 0)


def test_transfers_queue_on_a_slow_link():
    link = Link(delay=0.05)
    first, second = link.all_gather(torch.ones(2, 1)), link.reduce_scatter(torch.ones(2, 1))
    assert second.arrival - first.arrival == pytest.approx(0.05)
    assert torch.equal(first.wait(), torch.ones(2, 1))


@given(st.integers(1, 16), st.floats(0, 3), st.floats(0, 3), st.floats(0, 3), st.floats(0, 3))
def test_a_pipelined_step_is_the_longer_part_and_one_micro_batch(
    n, forward, backward, gather, scatter
):
    times = {"forward": forward, "backward": backward, "gather": gather, "scatter": scatter}
    end = max(event.end for event in timeline(n, **times))
    forth = max(forward, gather) + min(forward, gather) / n
    back = max(backward, scatter) + min(backward, scatter) / n
    assert end == pytest.approx(forth + back)


def test_timeline_lanes_do_one_thing_at_a_time():
    events = timeline(4, forward=1, backward=2, gather=1.5, scatter=1, head=0.3, reduce=0.5)
    for lane in ("compute", "wire"):
        busy = [event for event in events if event.lane == lane]
        assert all(a.end <= b.start + 1e-9 for a, b in pairwise(busy))


# --- compressor ---------------------------------------------------------------------------------


def descend(compressor, gradients, lr=0.1):
    """Train two parameters on given gradients; what arrives is followed by plain SGD."""
    W, b = nn.Parameter(torch.zeros(4, 5)), nn.Parameter(torch.zeros(5))
    for grad_W, grad_b in gradients:
        W.grad, b.grad = grad_W.clone(), grad_b.clone()
        compressor.reduce([W, b])
        torch.optim.SGD([W, b], lr).step()
    return W.detach(), b.detach()


def some_gradients(steps=5):
    generator = seeded(8)
    return [
        (torch.randn(4, 5, generator=generator), torch.randn(5, generator=generator))
        for _ in range(steps)
    ]


def test_density_one_is_plain_sgd_when_masked():
    gradients = some_gradients()
    W, _ = descend(TopKCompressor(1.0, 0.9), gradients)
    torch.testing.assert_close(W, -0.1 * sum(g for g, _ in gradients))


def test_density_one_is_momentum_sgd_when_not_masked():
    gradients = some_gradients()
    ours = descend(TopKCompressor(1.0, 0.9, masking=False), gradients)
    W, b = nn.Parameter(torch.zeros(4, 5)), nn.Parameter(torch.zeros(5))
    optimizer = torch.optim.SGD([W, b], 0.1, 0.9)
    for W.grad, b.grad in gradients:
        optimizer.step()
    torch.testing.assert_close(ours[0], W.detach())
    torch.testing.assert_close(ours[1], b.detach())


@pytest.mark.parametrize("select", ["divide", "sampled"])
def test_what_was_sent_and_what_remains_is_all_of_the_gradient(select):
    gradients = some_gradients(9)
    compressor = TopKCompressor(0.1, momentum=0.0, select=select)
    W, _ = descend(compressor, gradients, lr=1.0)
    total = sum(g for g, _ in gradients)
    torch.testing.assert_close(-W + compressor.v[0].view(4, 5), total)


def test_bytes_count_values_places_and_dense_vectors():
    compressor = TopKCompressor(0.1)
    descend(compressor, some_gradients(3))
    assert compressor.bytes_sent == 3 * (8 * 2 + 4 * 5)
    assert compressor.bytes_dense == 3 * 4 * 25


def test_small_layers_merge_into_one_selection():
    compressor = TopKCompressor(0.04, dense_vectors=False, merge_below=100)
    W, b = descend(compressor, some_gradients(1))
    assert int((W != 0).sum() + (b != 0).sum()) == 1
    assert list(compressor.v) == [0]


def test_density_warms_up_exponentially():
    compressor = TopKCompressor(0.001, warmup_epochs=2)
    found = [compressor.density_at(epoch) for epoch in range(5)]
    assert found == pytest.approx([0.1, 0.01, 0.001, 0.001, 0.001])


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 99))
def test_divide_and_conquer_is_exact(n, chunk, seed):
    x = torch.rand(n, generator=seeded(seed))
    k = 1 + seed % n
    found = divide_and_conquer_topk(x, k, chunk)
    assert set(found.tolist()) == set(x.topk(k).indices.tolist())


def test_sampled_selection_comes_close_to_its_target():
    x = torch.randn(200_000, generator=seeded()).abs()
    found = sampled_topk(x, 2000)
    assert 0.8 * 2000 <= len(found) <= 2000
    assert x[found].min() > 2


@pytest.mark.parametrize("wrong", [{"density": 0.0}, {"momentum": 1.0}, {"select": "all"}])
def test_compressor_refuses_bad_settings(wrong):
    with pytest.raises((ValueError, TypeError)):
        TopKCompressor(**({"density": 0.1} | wrong))


# --- FCCS ---------------------------------------------------------------------------------------


def test_fccs_is_continuous_and_ends_at_zero_with_the_largest_update():
    T, Tw = 1000, 100
    rate, size = zip(*(fccs_schedule(t, T, Tw, 2.0, 8) for t in range(T + 1)), strict=True)
    assert (rate[0], rate[Tw], size[0]) == (0.0, 2.0, 1)
    assert rate[T] == pytest.approx(0, abs=1e-12)
    assert size[T] == 8
    assert max(abs(a - b) for a, b in pairwise(rate)) <= 2.0 / Tw + 1e-9
    assert list(size) == sorted(size)
    assert set(np.diff(size)) == {0, 1}


def test_fccs_at_half_of_the_decay_has_half_of_the_rate():
    assert fccs_schedule(55, 100, 10, 1.0, 9) == (pytest.approx(0.5), 5)


def test_piecewise_drops_tenfold_at_its_fractions():
    rates = [piecewise_schedule(t, 100, 1.0) for t in (0, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    "wrong", [(-1, 10, 0, 1, 1), (11, 10, 0, 1, 1), (0, 10, 10, 1, 1), (0, 10, 0, 1, 0)]
)
def test_fccs_refuses_bad_settings(wrong):
    with pytest.raises(ValueError, match=r"need|must be"):
        fccs_schedule(*wrong)


def test_timms_lars_has_the_trust_ratio_of_the_specification():
    """η·c‖w‖/(‖g‖ + β‖w‖) times (g + βw), c = 0.001."""
    w, g = torch.randn(4, 3, generator=seeded(1)), torch.randn(4, 3, generator=seeded(2))
    p = nn.Parameter(w.clone())
    p.grad = g.clone()
    Lars([p], lr=2.0, momentum=0.0, weight_decay=0.01, trust_coeff=0.001).step()
    trust = 0.001 * w.norm() / (g.norm() + 0.01 * w.norm())
    torch.testing.assert_close(p.detach(), w - 2.0 * trust * (g + 0.01 * w), rtol=1e-4, atol=1e-6)
