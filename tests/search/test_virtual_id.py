"""Graphs, walks, embeddings, clusters and losses against independent references."""

import itertools
from collections import Counter

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional as F

from toolkit.data import ClickLog
from toolkit.search import virtual_id
from toolkit.search.triplets import mine_triplets, triplet_click_loss
from toolkit.search.virtual_id import VirtualIDs, coclick_embedding, coclick_graph


def log_of(*clicks, shown=None, slots=6):
    """A log with one visit a list of clicked positions; visit v shows listings v … v + 5."""
    visits = len(clicks)
    return ClickLog.from_frame(
        pd.DataFrame(
            {
                "query": range(visits),
                "shown": shown or [list(range(slots))] * visits,
                "clicks": list(clicks),
                "tab": [0] * visits,
                "switched_to": [-1] * visits,
            }
        )
    )


def random_log(seed, visits=40, items=30, slots=8):
    rng = np.random.default_rng(seed)
    shown = [rng.permutation(items)[:slots].tolist() for _ in range(visits)]
    clicks = [rng.permutation(slots)[: rng.integers(0, 6)].tolist() for _ in range(visits)]
    return log_of(*clicks, shown=shown, slots=slots)


def leaf(items=6):
    return torch.arange(items) // 2


# --- graph --------------------------------------------------------------------------------------


def slow_graph(log, items, normalise=True, most=20):
    dense = np.zeros((items, items))
    for shown, clicked in zip(log.shown, log.clicked, strict=True):
        chosen = sorted(set(shown[clicked].tolist()))
        if 1 < len(chosen) <= most:
            for i, j in itertools.permutations(chosen, 2):
                dense[i, j] += 1 / (len(chosen) - 1) if normalise else 1
    return dense


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(2, 6))
def test_graph_is_the_sum_over_pairs(seed, normalise, most):
    log = random_log(seed)
    graph = coclick_graph(log, leaf=leaf(30), normalise=normalise, max_clicks=most)
    np.testing.assert_allclose(graph.toarray(), slow_graph(log, 30, normalise, most), atol=1e-12)
    assert abs(graph - graph.T).max() == 0
    assert not graph.diagonal().any()


def test_every_click_of_a_visit_has_mass_one():
    graph = coclick_graph(log_of([0, 2, 3, 5]), leaf=leaf())
    assert graph.sum(axis=1).tolist() == pytest.approx([1, 0, 1, 1, 0, 1])


def test_a_listing_shown_twice_counts_once():
    twice = log_of([0, 1, 2], shown=[[4, 4, 5, 0, 1, 2]])
    graph = coclick_graph(twice, leaf=leaf()).toarray()
    assert graph[4, 5] == graph[5, 4] == 1
    assert graph.sum() == 2


def test_category_graph_joins_leaves_without_loops():
    graph = coclick_graph(log_of([0, 1, 2], [0, 1]), "category", leaf=leaf()).toarray()
    assert graph.shape == (3, 3)
    assert graph[0, 1] == graph[1, 0] == 1  # the second visit stays inside leaf 0
    assert graph.sum() == 2


def test_light_edges_are_dropped_and_groups_of_queries_pooled():
    log = log_of([0, 1], [0, 1], [0, 2], [3], [4])
    assert coclick_graph(log, leaf=leaf(), min_weight=1.5).nnz == 2
    pooled = coclick_graph(log, leaf=leaf(), query_group=torch.tensor([0, 1, 2, 3, 3]))
    assert pooled[3, 4] == 1


@pytest.mark.parametrize(
    "wrong",
    [{"node": "user"}, {"max_clicks": 1}, {"min_weight": -1.0}, {"min_weight": float("nan")}],
)
def test_graph_refuses_bad_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        coclick_graph(log_of([0, 1]), **({"leaf": leaf()} | wrong))


def test_graph_refuses_listings_without_a_leaf():
    with pytest.raises(ValueError, match="outside the 4"):
        coclick_graph(log_of([0, 1]), leaf=leaf(4))


def test_purity_is_the_share_of_weight_inside_products():
    graph = sparse.csr_array(np.array([[0, 3.0, 1], [3, 0, 0], [1, 0, 0]]))
    assert virtual_id.pair_purity(graph, torch.tensor([0, 0, 1])) == pytest.approx(0.75)


# --- walks and embeddings -----------------------------------------------------------------------


def ring_of_cliques(cliques=3, size=4, bridge=0.0, weight=1.0):
    n = cliques * size
    dense = np.zeros((n, n))
    for c in range(cliques):
        block = slice(c * size, (c + 1) * size)
        dense[block, block] = weight
        if bridge:
            a, b = c * size, ((c + 1) % cliques) * size + 1
            dense[a, b] = dense[b, a] = bridge
    np.fill_diagonal(dense, 0)
    return sparse.csr_array(dense)


def test_walks_step_with_the_graphs_probabilities():
    """Chi-square over 10⁵ steps."""
    rng = np.random.default_rng(0)
    dense = rng.random((6, 6)) * (rng.random((6, 6)) < 0.7)
    dense = dense + dense.T
    np.fill_diagonal(dense, 0)
    walks = virtual_id.random_walks(sparse.csr_array(dense), 200, 85, seed=1)
    counts = np.zeros((6, 6))
    np.add.at(counts, (walks[:, :-1].ravel(), walks[:, 1:].ravel()), 1)
    assert counts.sum() > 1e5
    expected = dense / dense.sum(1, keepdims=True) * counts.sum(1, keepdims=True)
    assert not counts[dense == 0].any()
    used = dense > 0
    statistic = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert stats.chi2.sf(statistic, used.sum() - 6) > 1e-3


def test_node2vec_walks_step_with_their_bias():
    """The second step after 0 → 1, against the formula."""
    graph = sparse.csr_array(nx.to_numpy_array(nx.Graph([(0, 1), (1, 2), (1, 3), (0, 2)])))
    walks = virtual_id.random_walks(graph, 20_000, 3, seed=0, back=4.0, away=0.5)
    after = Counter(walks[(walks[:, 0] == 0) & (walks[:, 1] == 1), 2].tolist())
    bias = {0: 1 / 4, 2: 1.0, 3: 2.0}  # back; a neighbour of both; away
    total = sum(after.values())
    for node, b in bias.items():
        assert after[node] / total == pytest.approx(b / 3.25, abs=0.02)


def test_walks_start_everywhere_but_at_lonely_nodes():
    graph = ring_of_cliques(2, 3)
    graph = sparse.csr_array(sparse.block_diag([graph, np.zeros((2, 2))]))
    walks = virtual_id.random_walks(graph, 2, 5, seed=0)
    assert Counter(walks[:, 0].tolist()) == dict.fromkeys(range(6), 2)
    embedded = coclick_embedding(graph, 6, "netmf", negatives=1)
    assert not embedded[6:].any()
    assert embedded[:6].any(axis=1).all()


def test_closed_form_equals_its_definition_dense_and_sparse(monkeypatch):
    rng = np.random.default_rng(3)
    dense = np.triu(rng.random((12, 12)) * (rng.random((12, 12)) < 0.6), 1)
    dense += dense.T
    degree = dense.sum(1)
    P = dense / degree[:, None]
    powers = sum(np.linalg.matrix_power(P, t) for t in range(1, 4))
    expected = np.log(np.maximum(degree.sum() / (3 * 2) * powers / degree, 1))
    graph = sparse.csr_array(dense)
    np.testing.assert_allclose(virtual_id.closed_form(graph, 3, 2), expected, atol=1e-9)
    embedded = virtual_id.factorise(expected, 12)
    spectrum = np.linalg.svd(expected, compute_uv=False)
    np.testing.assert_allclose((embedded**2).sum(0), spectrum, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(virtual_id.embedding, "DENSE_LIMIT", 5)
    np.testing.assert_allclose(virtual_id.closed_form(graph, 3, 2).toarray(), expected, atol=1e-9)
    thin = coclick_embedding(graph, 3, "netmf", window=3, negatives=2)
    np.testing.assert_allclose((thin**2).sum(0), spectrum[:3], rtol=1e-2)


@pytest.mark.parametrize("method", ["netmf", "sgns"])
def test_two_cliques_give_two_ids(method):
    graph = ring_of_cliques(2, 6)
    embedded = coclick_embedding(graph, 12, method, negatives=1, epochs=10)
    ids = VirtualIDs.fit(embedded, 2)
    assert adjusted_rand_score(np.arange(12) // 6, ids.labels) == 1


def test_one_noisy_bridge_merges_components_but_not_embeddings():
    graph = ring_of_cliques(4, 6, bridge=0.3)
    truth = np.arange(24) // 6
    whole = virtual_id.community_labels(graph, "components", 4)
    assert len(whole.unique()) == 1
    ids = VirtualIDs.fit(coclick_embedding(graph, 24, "netmf", negatives=1), 4)
    assert adjusted_rand_score(truth, ids.labels) == 1


def test_embedding_repeats_and_depends_on_its_seed():
    graph = ring_of_cliques(3, 5, bridge=0.5)
    one, again, other = (coclick_embedding(graph, 8, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert abs(one - other).max() > 1e-3


@pytest.mark.parametrize("method", ["louvain", "spectral", "components", "rows"])
def test_rivals_find_separate_cliques(method):
    graph = ring_of_cliques(3, 6)
    labels = virtual_id.community_labels(graph, method, 3)
    assert adjusted_rand_score(np.arange(18) // 6, labels) == 1


@pytest.mark.parametrize(
    ("graph", "match"),
    [
        (sparse.csr_array(np.array([[0, 1.0], [0, 0]])), "symmetric"),
        (sparse.csr_array(np.array([[0, np.nan], [np.nan, 0]])), "finite"),
        (sparse.csr_array(np.array([[0, -1.0], [-1.0, 0]])), "negative"),
        (sparse.csr_array(np.ones((2, 3))), "square"),
    ],
)
def test_embedding_refuses_what_is_no_graph(graph, match):
    with pytest.raises(ValueError, match=match):
        coclick_embedding(graph, 2)


@pytest.mark.parametrize("wrong", [{"method": "lsa"}, {"dim": 0}, {"length": 1}, {"negatives": 0}])
def test_embedding_refuses_bad_settings(wrong):
    with pytest.raises(ValueError, match="method is"):
        coclick_embedding(ring_of_cliques(), **wrong)


# --- Virtual IDs --------------------------------------------------------------------------------


def clouds(n=30, groups=3, seed=0):
    rng = np.random.default_rng(seed)
    return np.eye(groups)[np.arange(n) % groups] + 0.05 * rng.standard_normal((n, groups))


def test_ids_ignore_the_length_of_vectors():
    x = clouds() * np.random.default_rng(1).uniform(0.01, 100, (30, 1))
    ids = VirtualIDs.fit(x, 3)
    assert adjusted_rand_score(np.arange(30) % 3, ids.labels) == 1


def test_uncovered_nodes_have_no_id_until_assigned():
    x = clouds()
    mask = np.ones(30, bool)
    mask[[4, 9]] = False
    ids = VirtualIDs.fit(x, 3, mask)
    assert ids.labels[[4, 9]].tolist() == [-1, -1]
    full = ids.assign(torch.from_numpy(x))
    assert full.labels[4] == ids.labels[1]
    assert full.labels[9] == ids.labels[0]
    assert torch.equal(full.labels[torch.from_numpy(mask)], ids.labels[torch.from_numpy(mask)])


def test_matching_keeps_the_numbers_of_old_clusters():
    old = VirtualIDs(torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, -1, -1]), 3)
    new = VirtualIDs(torch.tensor([2, 2, 2, 0, 0, 1, 3, 3, 1, -1]), 4)
    matched = new.match_to(old)
    assert matched.labels.tolist() == [0, 0, 0, 1, 1, 3, 2, 2, 3, -1]
    assert matched.k == 4
    assert torch.equal(old.match_to(old).labels, old.labels)


def test_clusters_of_one_are_no_classes():
    ids = VirtualIDs(torch.tensor([0, 0, 1, 2, 2, -1]), 3).without_small()
    assert ids.labels.tolist() == [0, 0, -1, 2, 2, -1]


def test_permuted_ids_keep_their_sizes():
    ids = VirtualIDs(torch.tensor([0, 0, 0, 1, 1, -1, 2, 2, 2, 2]), 3)
    shuffled = ids.permuted(3)
    assert torch.equal(ids.labels.sort().values, shuffled.labels.sort().values)
    assert shuffled.labels[5] == -1
    assert not torch.equal(ids.labels, shuffled.labels)


def test_silhouette_finds_the_number_of_clouds():
    assert virtual_id.best_k(clouds(60, 4), (2, 4, 8))[0] == 4


@pytest.mark.parametrize("k", [0, 31])
def test_ids_refuse_more_clusters_than_nodes(k):
    with pytest.raises(ValueError, match="k must lie"):
        VirtualIDs.fit(clouds(), k)


def test_ids_refuse_broken_rows():
    x = clouds()
    x[0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        VirtualIDs.fit(x, 3)


# --- losses -------------------------------------------------------------------------------------


def unit(*shape, seed=0):
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_list_loss_with_one_click_is_cross_entropy():
    fq, items = unit(5, 8), unit(5, 7, 8, seed=1)
    target = torch.tensor([0, 3, 6, 2, 2])
    clicked = F.one_hot(target, 7).bool()
    found = virtual_id.listwise_click_loss(fq, items, clicked, tau=0.2)
    logits = torch.einsum("bd,bld->bl", fq, items) / 0.2
    torch.testing.assert_close(found.loss, F.cross_entropy(logits, target))
    assert found.skipped == 0


def test_list_loss_weighs_clicks_by_propensity_over_the_clicked():
    fq, items = unit(1, 4), unit(1, 3, 4, seed=1)
    clicked, weight = torch.tensor([[True, False, True]]), torch.tensor([[1.0, 9.0, 3.0]])
    log_p = (torch.einsum("bd,bld->bl", fq, items) / 0.1).log_softmax(1)[0]
    expected = -(0.25 * log_p[0] + 0.75 * log_p[2])
    found = virtual_id.listwise_click_loss(fq, items, clicked, propensity=weight)
    torch.testing.assert_close(found.loss, expected)
    graded = virtual_id.listwise_click_loss(fq, items, torch.tensor([[1.0, 0.0, 3.0]]))
    torch.testing.assert_close(graded.loss, expected)


def test_list_without_click_is_skipped_and_counted():
    fq, items = unit(3, 4), unit(3, 5, 4, seed=1)
    clicked = torch.zeros(3, 5, dtype=torch.bool)
    clicked[1, 2] = True
    found = virtual_id.listwise_click_loss(fq, items, clicked)
    alone = virtual_id.listwise_click_loss(fq[1:2], items[1:2], clicked[1:2])
    assert found.skipped == 2
    torch.testing.assert_close(found.loss, alone.loss)
    fq.requires_grad_()
    nothing = virtual_id.listwise_click_loss(fq, items, torch.zeros_like(clicked))
    nothing.loss.backward()
    assert nothing == (0, 3)
    assert not fq.grad.any()


def test_masked_places_of_a_list_take_no_part():
    fq, items = unit(2, 4), unit(2, 5, 4, seed=1)
    clicked = torch.tensor([[True, False, False, False, False]] * 2)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    found = virtual_id.listwise_click_loss(fq, items, clicked, mask)
    short = virtual_id.listwise_click_loss(fq, items[:, :3], clicked[:, :3])
    torch.testing.assert_close(found.loss, short.loss)


def test_first_click_loss_is_a_weighted_cross_entropy():
    logits, first = torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
    weight = torch.tensor([1.0, 2.0, 1.0, 4.0])
    found = virtual_id.first_click_loss(logits, first, weight)
    each = F.cross_entropy(logits, first, reduction="none")
    torch.testing.assert_close(found, (weight * each).sum() / 8 * 1.0)
    same = virtual_id.first_click_loss(logits, first, 7 * torch.ones(4))
    torch.testing.assert_close(same, F.cross_entropy(logits, first))


def test_switch_loss_is_a_hinge_on_the_log_odds():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [5.0, 5.0, 5.0]], requires_grad=True)
    left, entered = torch.tensor([0, 0, -1]), torch.tensor([1, 1, -1])
    found = virtual_id.switch_click_loss(logits, left, entered)
    assert found.item() == pytest.approx((3 + 0) / 2)
    found.backward()
    assert logits.grad[0].tolist() == pytest.approx([0.5, -0.5, 0.0])
    assert not logits.grad[1:].any()
    none = torch.full((3,), -1)
    assert virtual_id.switch_click_loss(logits, none, none).item() == 0


def test_triplets_squared_by_hand_and_against_torch():
    fq, fp, fn = (unit(6, 4, seed=s) for s in range(3))
    hand = [
        max(0.0, 0.2 + float(((q - p) ** 2).sum()) - float(((q - n) ** 2).sum()))
        for q, p, n in zip(fq, fp, fn, strict=True)
    ]
    assert triplet_click_loss(fq, fp, fn, 0.2).item() == pytest.approx(np.mean(hand), abs=1e-6)
    squared = torch.nn.TripletMarginWithDistanceLoss(
        distance_function=lambda a, b: (a - b).square().sum(-1), margin=0.2
    )
    torch.testing.assert_close(triplet_click_loss(fq, fp, fn, 0.2), squared(fq, fp, fn))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: virtual_id.first_click_loss(
                torch.zeros(2, 3), torch.zeros(2).long(), torch.tensor([1.0, torch.nan])
            ),
            "finite",
        ),
        (
            lambda: virtual_id.first_click_loss(
                torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2)
            ),
            "zero",
        ),
        (
            lambda: virtual_id.switch_click_loss(
                torch.zeros(1, 3), torch.tensor([1]), torch.tensor([1])
            ),
            "inside",
        ),
        (
            lambda: virtual_id.switch_click_loss(
                torch.zeros(1, 3), torch.tensor([1]), torch.tensor([-1])
            ),
            "same visits",
        ),
        (
            lambda: virtual_id.listwise_click_loss(
                unit(2, 4), unit(2, 3, 4), torch.ones(2, 3), tau=0
            ),
            "τ",
        ),
        (
            lambda: virtual_id.listwise_click_loss(unit(2, 4), unit(2, 3, 4), -torch.ones(2, 3)),
            "negative",
        ),
        (lambda: virtual_id.inverse_propensity(torch.tensor([0])), "from 1"),
    ],
)
def test_losses_refuse_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# --- examples -----------------------------------------------------------------------------------


def test_majority_goes_to_the_earlier_click_on_a_tie():
    log = log_of([4, 0, 1], [0, 4], [4, 0], [])
    category = torch.tensor([0, 0, 1, 1, 2, 2])
    assert virtual_id.majority_category(log, category).tolist() == [0, 0, 2, -1]
    unknown = torch.tensor([-1, -1, 1, 1, 2, 2])
    assert virtual_id.majority_category(log, unknown).tolist() == [2, 2, 2, -1]


def test_first_click_is_first_in_time():
    listing, position = virtual_id.first_clicks(log_of([4, 0], [2], []))
    assert listing.tolist() == [4, 2, -1]
    assert position.tolist() == [5, 3, -1]


def test_switches_inside_a_cluster_or_without_click_tell_nothing():
    log = log_of([0], [0], [0], [], [1])
    log.tab[:] = torch.tensor([0, 0, 1, 0, 2])
    log.switched_to[:] = torch.tensor([2, 1, -1, 2, 0])
    left, entered = virtual_id.switches(log, torch.tensor([0, 0, 1]))
    assert left.tolist() == [0, -1, -1, -1, 1]
    assert entered.tolist() == [1, -1, -1, -1, 0]


def test_lists_hold_all_clicks_their_triplet_first_and_no_listing_twice():
    log = random_log(5, visits=200)
    generator = torch.Generator().manual_seed(0)
    triplets = virtual_id.draw_triplets(mine_triplets(log, examined_only=True), generator)
    lists = virtual_id.draw_lists(log, 6, triplets, generator)
    assert torch.equal(lists.visit, log.clicked.any(1).nonzero()[:, 0])
    assert (lists.clicked.sum(1) == log.clicked[lists.visit].sum(1)).all()
    assert all(len(set(row)) == 6 for row in lists.item.tolist())
    assert torch.equal(log.shown[lists.visit].gather(1, lists.position - 1), lists.item)
    chosen = lists[lists.has_triplet]
    assert torch.equal(chosen.visit, triplets.visit)
    assert torch.equal(chosen.item[:, 0], triplets.positive)
    assert torch.equal(chosen.item[:, 1], triplets.negative)
    assert (chosen.clicked[:, 0] & ~chosen.clicked[:, 1]).all()
    again = log_of([0, 1], shown=[[3, 3, 1, 2, 4, 5]])
    twice = virtual_id.draw_lists(
        again, 5, virtual_id.draw_triplets(mine_triplets(again), generator), generator
    )
    assert sorted(twice.item[0].tolist()) == [1, 2, 3, 4, 5]


def test_one_triplet_a_visit_uniformly():
    log = log_of([1, 3], [0], [2])
    triplets = mine_triplets(log, examined_only=True)
    drawn = Counter()
    generator = torch.Generator().manual_seed(0)
    for _ in range(4000):
        one = virtual_id.draw_triplets(triplets, generator)
        assert one.visit.tolist() == [0, 2]
        drawn[int(one.positive[0]), int(one.negative[0])] += 1
    assert set(drawn) == {(1, 0), (1, 2), (3, 0), (3, 2)}
    assert all(abs(count - 1000) < 130 for count in drawn.values())
