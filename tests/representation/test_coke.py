"""Online constrained k-means against independent references: loops, programs, group means."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog
from sklearn.neighbors import NearestCentroid
from torch.nn import functional as F

from toolkit.data import load_digits
from toolkit.representation import coke

CPU = torch.device("cpu")


def features(n, d=16, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_dual_step_by_hand():
    rho = coke.dual_step(torch.tensor([0.0, 0.5, 0.1]), torch.tensor([3, 1, 0]), 0.6, 0.4)
    assert torch.allclose(rho, torch.tensor([0.0, 0.5 - 0.1 + 0.08, 0.18]))


def test_prices_are_clipped_only_below_ratio_one():
    rho, counts = torch.zeros(2), torch.tensor([4, 0])
    assert coke.dual_step(rho, counts, 0.9, 1.0).min() == 0
    assert torch.allclose(coke.dual_step(rho, counts, 1.0, 1.0), torch.tensor([-0.5, 0.5]))


@pytest.mark.parametrize(
    ("counts", "ratio", "step"),
    [([0, 0], 0.4, 1.0), ([1, 1], 1.2, 1.0), ([1, 1], -0.1, 1.0), ([1, 1], 0.4, 0.0)],
)
def test_dual_step_refuses_what_makes_no_step(counts, ratio, step):
    with pytest.raises(ValueError, match=r"empty|ratio|positive"):
        coke.dual_step(torch.zeros(2), torch.tensor(counts), ratio, step)


def test_center_step_against_a_loop():
    x, labels = features(40), torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(1))
    centers, hits = features(7, seed=2), torch.tensor([0, 3, 1, 0, 9, 2, 0])
    moved, total = coke.center_step(centers, hits, x, labels)
    for k in range(7):
        mine = x[labels == k]
        if not len(mine):
            assert torch.equal(moved[k], centers[k])
            assert total[k] == hits[k]
            continue
        m, n = hits[k], len(mine)
        wanted = m / (m + n) * centers[k] + mine.sum(0) / (m + n)
        assert torch.allclose(moved[k], wanted / wanted.norm(), atol=1e-6)
        assert total[k] == m + n


def test_one_batch_an_epoch_gives_the_spherical_means_of_the_groups():
    x, labels = features(200), torch.arange(200) % 6
    centers, _ = coke.center_step(features(6, seed=3), torch.zeros(6, dtype=torch.int64), x, labels)
    means = torch.from_numpy(NearestCentroid().fit(x.numpy(), labels.numpy()).centroids_)
    assert torch.allclose(centers, F.normalize(means.float(), dim=1), atol=1e-5)


def test_batches_are_normalised_on_the_way_so_early_ones_weigh_more():
    x, labels = features(200), torch.zeros(200, dtype=torch.int64)
    centers, hits = features(1, seed=3), torch.zeros(1, dtype=torch.int64)
    plain = centers
    for chunk in x.split(20):
        plain, _ = coke.center_step(plain, hits, chunk, labels[:20], normalise=False)
        centers, hits = coke.center_step(centers, hits, chunk, labels[:20])
    mean = x.mean(0, keepdim=True)
    assert torch.allclose(plain, mean, atol=1e-6)
    assert (centers - F.normalize(mean, dim=1)).norm() > 0.05


@pytest.mark.parametrize("x", [torch.zeros(0, 16), torch.zeros(3, 9)])
def test_center_step_refuses_batches_that_do_not_fit(x):
    with pytest.raises(ValueError, match="width 16"):
        coke.center_step(
            features(4), torch.zeros(4, dtype=torch.int64), x, torch.zeros(len(x)).long()
        )


def test_ratio_zero_is_the_nearest_centre_exactly():
    x = features(500)
    kmeans = coke.OnlineConstrainedKMeans(9, 16, ratio=0.0, dual_lr=5.0)
    for chunk in x.split(50):
        labels = kmeans.assign(chunk)
        assert torch.equal(labels, (chunk @ kmeans.centers.T).argmax(dim=1))
        kmeans.update(chunk, labels)
    assert not kmeans.duals.any()


def test_single_instances_match_a_looped_reference():
    x = features(120, d=5).double().numpy()
    kmeans = coke.OnlineConstrainedKMeans(4, 5, ratio=0.5, dual_lr=0.1)
    centers, rho, hits = kmeans.centers.double().numpy().copy(), np.zeros(4), np.zeros(4)
    for row in x:
        one = torch.from_numpy(row[None]).float()
        k = int(np.argmax(centers @ row + rho))
        label = kmeans.assign(one)
        assert int(label) == k
        kmeans.update(one, label)
        rho = np.maximum(rho + 0.1 * (0.5 / 4 - np.eye(4)[k]), 0)
        centers[k] = row if hits[k] == 0 else (hits[k] * centers[k] + row) / (hits[k] + 1)
        centers[k] /= np.linalg.norm(centers[k])
        hits[k] += 1
    assert np.allclose(kmeans.duals, rho, atol=1e-6)
    assert np.allclose(kmeans.centers, centers, atol=1e-5)
    assert kmeans.sizes.tolist() == hits.tolist()


def test_heads_are_independent():
    x = features(300)
    both = coke.OnlineConstrainedKMeans((5, 8), 16, generator=torch.Generator().manual_seed(4))
    alone = [coke.OnlineConstrainedKMeans(k, 16) for k in (5, 8)]
    for kmeans, span in zip(alone, both.spans(), strict=True):
        kmeans.centers = both.centers[span].clone()
    for chunk in x.split(100):
        labels = both.assign(chunk)
        both.update(chunk, labels)
        for h, kmeans in enumerate(alone):
            assert torch.equal(labels[:, h], kmeans.assign(chunk))
            kmeans.update(chunk, labels[:, h])
    assert torch.allclose(both.centers, torch.cat([kmeans.centers for kmeans in alone]))
    assert torch.allclose(both.duals, torch.cat([kmeans.duals for kmeans in alone]))


def test_an_epoch_ends_with_frozen_centres_counters_at_zero_and_the_same_prices():
    x = features(100)
    kmeans = coke.OnlineConstrainedKMeans(6, 16, ratio=1.0, dual_lr=2.0)
    frozen = kmeans.previous.clone()
    kmeans.update(x, kmeans.assign(x))
    assert torch.equal(kmeans.previous, frozen)
    assert not torch.equal(kmeans.centers, frozen)
    duals = kmeans.duals.clone()
    kmeans.end_epoch()
    assert torch.equal(kmeans.previous, kmeans.centers)
    assert torch.equal(kmeans.duals, duals)
    assert duals.any()
    assert kmeans.sizes.sum() == 0
    labels = kmeans.assign(x)
    hit = int(labels[0])
    kmeans.update(x[:1], labels[:1])
    assert torch.allclose(kmeans.centers[hit], x[0], atol=1e-6)  # the first hit replaces


def test_averaging_assigns_by_frozen_centres_and_blends_epochs_equally():
    kmeans = coke.OnlineConstrainedKMeans(3, 16, ratio=0.0, dual_lr=1.0)
    kmeans.start_averaging()
    first = None
    for epoch in range(3):
        x = features(60, seed=epoch)
        frozen = kmeans.previous.clone()
        labels = torch.cat([kmeans.assign(chunk) for chunk in x.split(20)])
        assert torch.equal(labels, (x @ frozen.T).argmax(dim=1))
        for chunk, y in zip(x.split(20), labels.split(20), strict=True):
            assert torch.equal(kmeans.assign(chunk), y)
            kmeans.update(chunk, y)
        means = torch.stack([x[labels == k].mean(0) for k in range(3)])
        assert torch.allclose(kmeans.centers, means, atol=1e-6)  # not normalised on the way
        assert kmeans.share == pytest.approx(1 / (epoch + 1))
        share, new = kmeans.share, F.normalize(means, dim=1)
        kmeans.end_epoch()
        wanted = F.normalize((1 - share) * frozen + share * new, dim=1)
        assert torch.allclose(kmeans.previous, wanted, atol=1e-6)
        first = new if first is None else first
    assert not torch.allclose(kmeans.previous, first, atol=1e-2)


def test_assignment_stays_in_float32_under_autocast():
    kmeans = coke.OnlineConstrainedKMeans(2, 16)
    kmeans.centers = features(1).repeat(2, 1)  # only the prices tell them apart
    kmeans.duals = torch.tensor([1.0, 1.001])
    with torch.autocast("cpu", torch.bfloat16):
        assert (kmeans.assign(features(9, seed=1)) == 1).all()


@pytest.mark.parametrize(
    "bad", [torch.zeros(0, 16), torch.zeros(3, 4), torch.full((2, 16), torch.nan)]
)
def test_bad_features_are_refused(bad):
    kmeans = coke.OnlineConstrainedKMeans(4, 16)
    with pytest.raises(ValueError, match=r"features must be"):
        kmeans.assign(bad)


@pytest.mark.parametrize(
    "arguments",
    [(1, 16), ((3, 1), 16), ((), 16), (4, 0), (4, 16, -0.1), (4, 16, 1.1), (4, 16, 0.4, 0.0)],
)
def test_bad_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=r"clusters|ratio|dual_lr"):
        coke.OnlineConstrainedKMeans(*arguments)


def test_labels_of_other_heads_are_refused():
    kmeans = coke.OnlineConstrainedKMeans((4, 5), 16)
    with pytest.raises(ValueError, match="2 heads"):
        kmeans.update(features(3), torch.zeros(3, dtype=torch.int64))


def test_a_checkpoint_continues_the_stream():
    x = features(400)
    whole = coke.OnlineConstrainedKMeans((4, 7), 16)
    halves = coke.OnlineConstrainedKMeans((4, 7), 16, generator=torch.Generator().manual_seed(9))
    for step, chunk in enumerate(x.split(50)):
        if step == 4:
            halves.load_state_dict(whole.state_dict())
        for kmeans in (whole,) if step < 4 else (whole, halves):
            kmeans.update(chunk, kmeans.assign(chunk))
            if step == 5:
                kmeans.end_epoch()
    for name, value in whole.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(halves.state_dict()[name]))
    with pytest.raises(ValueError, match="checkpoint"):
        coke.OnlineConstrainedKMeans(4, 16).load_state_dict(whole.state_dict())


# --- the table of labels ------------------------------------------------------------------------


def test_labels_are_found_by_id_not_by_position():
    store = coke.LabelStore(10, (5, 7))
    labels = torch.stack([torch.arange(10) % 5, torch.arange(10) % 7], dim=1)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert (store.get(order) == -1).all()
    for ids in order.split(4):
        store.put(ids, labels[ids])
    assert torch.equal(store.get(torch.arange(10)), labels)
    assert store.labels.dtype == torch.int32


def test_the_table_has_the_size_that_the_plan_says():
    store = coke.LabelStore(1000, (3, 4, 5))
    plan = coke.memory_plan(1000, (3, 4, 5))
    assert store.nbytes() == plan["labels, int32"] == 4 * 1000 * 3
    averaged = coke.LabelStore(1000, (3, 4, 5), slots=5)
    assert averaged.nbytes() == plan["averaged labels and weights"]
    assert coke.memory_plan()["labels, int32"] == pytest.approx(15.4e6, rel=0.01)


def test_averaged_labels_equal_a_dense_running_average_while_slots_last():
    store, dense = coke.LabelStore(6, (4,), slots=4), torch.zeros(6, 4)
    generator = torch.Generator().manual_seed(0)
    for t in range(1, 9):
        labels = torch.randint(0, 4, (6,), generator=generator)
        store.put(torch.arange(6), labels[:, None], share=1 / t)
        dense = (1 - 1 / t) * dense + F.one_hot(labels, 4) / t
    weights = torch.zeros(6, 4).scatter_add_(
        1, store.labels[:, 0].long().clamp(min=0), store.weights[:, 0]
    )
    assert torch.allclose(weights, dense, atol=1e-6)
    soft = torch.where(dense > 1e-7, (dense / 0.5).exp(), 0)
    wanted = soft / soft.sum(1, keepdim=True)
    assert torch.allclose(store.targets(torch.arange(6))[0], wanted, atol=1e-5)
    assert torch.equal(store.get(torch.arange(6))[:, 0], dense.argmax(1))


def test_the_lightest_label_makes_room_and_weights_still_sum_to_one():
    store, ids = coke.LabelStore(1, (9,), slots=2), torch.tensor([0])
    for label, share in ((3, 1.0), (4, 0.25), (7, 0.5)):
        store.put(ids, torch.tensor([[label]]), share=share)
    held = dict(zip(store.labels[0, 0].tolist(), store.weights[0, 0].tolist(), strict=True))
    assert held == pytest.approx({3: 0.5, 7: 0.5})  # 4 has gone, 3 takes what it had


def test_one_stored_label_is_a_hard_target():
    store = coke.LabelStore(4, (5, 6), slots=5)
    labels = torch.tensor([[1, 2], [4, 5]])
    store.put(torch.tensor([2, 0]), labels)
    for h, target in enumerate(store.targets(torch.tensor([2, 0]))):
        assert torch.equal(target, F.one_hot(labels[:, h], (5, 6)[h]).float())


def test_bad_ids_and_labels_are_refused():
    store = coke.LabelStore(4, (5,))
    with pytest.raises(ValueError, match="ids lie in"):
        store.get(torch.tensor([4]))
    with pytest.raises(ValueError, match="ids lie in"):
        store.put(torch.tensor([-1]), torch.tensor([[0]]))
    with pytest.raises(ValueError, match="lie below"):
        store.put(torch.tensor([0]), torch.tensor([[5]]))
    with pytest.raises(ValueError, match="need labels"):
        store.put(torch.tensor([0]), torch.tensor([[1, 1]]))
    with pytest.raises(ValueError, match="several slots"):
        store.targets(torch.tensor([0]))
    with pytest.raises(ValueError, match="≥ 1"):
        coke.LabelStore(0, (5,))


# --- what is learned ----------------------------------------------------------------------------


def test_loss_is_cross_entropy_of_cosines_over_the_temperature():
    p, c, y = features(8), features(5, seed=1), torch.arange(8) % 5
    log_p = (p @ c.T / 0.1).log_softmax(1)
    assert torch.isclose(coke.coke_loss(p, c, y, 0.1), -log_p[torch.arange(8), y].mean())
    soft = torch.rand(8, 5, generator=torch.Generator().manual_seed(2)).softmax(1)
    assert torch.isclose(coke.coke_loss(p, c, soft, 0.1), -(soft * log_p).sum(1).mean())
    with pytest.raises(ValueError, match="temperature"):
        coke.coke_loss(p, c, y, 0.0)


def test_two_view_targets_are_distributions_without_gradient():
    x = features(8).requires_grad_()
    c, y = features(5, seed=1), torch.arange(8) % 5
    target = coke.two_view_targets(y, x, c, 0.05, 0.2)
    assert not target.requires_grad
    assert torch.allclose(target.sum(1), torch.ones(8), atol=1e-6)
    wanted = 0.2 * F.one_hot(y, 5) + 0.8 * (x.detach() @ c.T / 0.05).softmax(1)
    assert torch.allclose(target, wanted, atol=1e-6)
    assert torch.equal(coke.two_view_targets(y, x, c, 0.05, 1.0), F.one_hot(y, 5).float())
    with pytest.raises(ValueError, match="alpha"):
        coke.two_view_targets(y, x, c, 0.05, 1.5)


# --- the exact optimum --------------------------------------------------------------------------


def test_linear_program_equals_slots_in_an_assignment_problem():
    rng = np.random.default_rng(0)
    for _ in range(5):
        s, sizes = rng.normal(size=(40, 4)), [4, 13, 3, 0]
        best = coke.solve_assignment_lp(s, sizes)
        assert (np.bincount(best.labels, minlength=4) >= sizes).all()
        # `sizes[k]` slots that only k fills, and free ones that take the best of the row
        free = np.repeat(s.max(1, keepdims=True), 40 - sum(sizes), axis=1)
        slots = np.hstack([np.repeat(s, sizes, axis=1), free])
        rows, columns = linear_sum_assignment(slots, maximize=True)
        assert best.value == pytest.approx(slots[rows, columns].sum())
        assert coke.dual_value(s, sizes, best.duals) == pytest.approx(best.value)


def test_linear_program_equals_the_whole_program():
    s = coke.long_tail_stream(300, 1, clusters=6, dim=8)
    low = np.full(6, 30)
    whole = linprog(
        -s.ravel(),
        A_ub=-np.tile(np.eye(6), 300),
        b_ub=-low,
        A_eq=np.kron(np.eye(300), np.ones(6)),
        b_eq=np.ones(300),
        method="highs",
    )
    assert coke.solve_assignment_lp(s, low).value == pytest.approx(-whole.fun)


def test_exact_assignment_of_digits_bounds_every_online_one():
    digits = load_digits()
    x = F.normalize(digits.images.flatten(1).float(), dim=1)
    _, centers = coke.offline_kmeans(x, 10, seed=0)
    scores = (x @ centers.T).double().numpy()
    low = np.full(10, 170)
    best = coke.solve_assignment_lp(scores, low)
    assert (np.bincount(best.labels, minlength=10) >= low).all()
    assert best.value == pytest.approx(coke.objective(scores, best.labels))
    assert best.value <= coke.objective(scores, scores.argmax(1))
    online = 0
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(x))
        for eta in (0.01, 0.05, 0.2):
            run = coke.run_stream(scores[order][None], 1.0, eta)
            if (run.sizes[0] >= low).all():
                online += 1
                assert coke.objective(scores[order], run.labels[0]) <= best.value + 1e-9
        assert coke.dual_value(scores, low, run.duals[-1, 0].clip(0)) >= best.value - 1e-9
    assert online >= 5


@pytest.mark.parametrize(
    ("scores", "sizes", "message"),
    [
        (np.zeros((4, 2)), [3, 2], "sum to at most 4"),
        (np.zeros((4, 2)), [-1, 2], "≥ 0"),
        (np.zeros((4, 2)), [1, 1, 1], r"\[n, k\]"),
        (np.full((4, 2), np.nan), [1, 1], "finite"),
    ],
)
def test_bad_programs_are_refused(scores, sizes, message):
    with pytest.raises(ValueError, match=message):
        coke.solve_assignment_lp(scores, sizes)


# --- streams ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 90),
    clusters=st.integers(2, 6),
    batch=st.integers(1, 40),
    ratio=st.floats(0, 1),
    eta=st.floats(0.01, 3),
)
def test_no_cluster_lacks_more_than_its_price(seed, n, clusters, batch, ratio, eta):
    scores = np.random.default_rng(seed).normal(size=(2, n, clusters))
    run = coke.run_stream(scores, ratio, eta, batch)
    assert run.slack().min() >= -1e-9 * max(1, 1 / eta)
    if ratio == 1:
        assert np.abs(run.slack()).max() < 1e-9 * max(1, 1 / eta)
    assert run.sizes.sum() == 2 * n


def test_equality_at_ratio_one_and_over_any_stretch():
    scores = np.random.default_rng(0).normal(size=(1, 640, 5))
    run = coke.run_stream(scores, 1.0, 0.07, batch=64)
    assert np.abs(run.slack()).max() < 1e-9
    got = np.bincount(run.labels[0, 128:448], minlength=5)  # batches 2 to 6
    moved = (run.duals[7, 0] - run.duals[2, 0]) / 0.07
    assert np.allclose(got, 320 / 5 - moved)


def test_a_short_last_batch_breaks_the_identity_of_the_code():
    x = features(1000, d=8)

    def gap(batches):
        kmeans = coke.OnlineConstrainedKMeans(5, 8, ratio=1.0, dual_lr=2.0)
        sizes, seen = torch.zeros(5), 0
        for chunk in batches:
            labels = kmeans.assign(chunk)
            kmeans.update(chunk, labels)
            sizes += torch.bincount(labels, minlength=5)
            seen += len(chunk)
        return (sizes - seen / 5 + kmeans.duals * 64 / 2.0).abs().max()

    assert gap(x[:960].split(64)) < 1e-2
    assert gap(x.split(64)) > 0.5


def test_streams_equal_the_class_with_centres_that_stand_still():
    x = features(96, d=8)
    kmeans = coke.OnlineConstrainedKMeans(5, 8, ratio=0.7, dual_lr=0.8)
    centers = kmeans.centers.clone()
    labels = []
    for chunk in x.split(16):
        kmeans.centers = centers.clone()
        labels.append(kmeans.assign(chunk))
        kmeans.update(chunk, labels[-1])
    scores = (x.double() @ centers.double().T).numpy()
    run = coke.run_stream(scores[None], 0.7, 0.8 / 16, 16)
    assert np.array_equal(run.labels[0], torch.cat(labels).numpy())
    assert np.allclose(run.duals[-1, 0], kmeans.duals, atol=1e-6)


def test_regret_keeps_its_bound_and_a_seed_is_the_same_alone_and_among_others():
    recipe = coke.StreamRecipe(sizes=(400, 1600), clusters=8, dim=8)
    many = coke.experiment(recipe, [0, 1, 2, 3], CPU)
    one = coke.experiment(recipe, 2, CPU)
    assert all(one[name] == many[name][2] for name in one)
    for n in recipe.sizes:
        assert many[f"online/regret@{n}"].mean() <= np.sqrt(n)  # η N
        assert (many[f"online/regret_sizes@{n}"] >= -1e-7).all()
        assert (many[f"online/slack@{n}"] > -1e-9).all()
        assert (many[f"equal/identity@{n}"] < 1e-9).all()
        assert many[f"online/violation@{n}"].mean() < many[f"free/violation@{n}"].mean()


def test_bad_streams_are_refused():
    with pytest.raises(ValueError, match="N ≥ K"):
        coke.StreamRecipe(sizes=(5,))
    with pytest.raises(ValueError, match="arms"):
        coke.StreamRecipe(arms=("offline",))
    with pytest.raises(ValueError, match="step"):
        coke.StreamRecipe(step=0.0)
    with pytest.raises(ValueError, match="batch"):
        coke.run_stream(np.zeros((1, 4, 2)), 0.4, 1.0, 0)


def test_blobs_score_by_distance():
    points, scores = coke.blobs(50, 0)
    nearest = np.square(points[:, None] - coke.BLOB_CENTERS).sum(2).argmin(1)
    assert np.array_equal(scores.argmax(1), nearest)


# --- baselines ----------------------------------------------------------------------------------


def test_sinkhorn_reaches_equal_columns():
    scores = (features(60) @ features(6, seed=1).T) * 0.5
    q = coke.sinkhorn(scores, 0.05, iterations=300)
    assert torch.allclose(q.sum(1), torch.ones(60), atol=1e-5)
    assert torch.allclose(q.sum(0), torch.full((6,), 10.0), atol=1e-2)
    with pytest.raises(ValueError, match="epsilon"):
        coke.sinkhorn(scores, 0.0)


def test_sinkhorn_kmeans_balances_a_batch_and_has_no_prices():
    x = F.normalize(features(300) + 2 * features(1, seed=5), dim=1)
    kmeans = coke.SinkhornKMeans(6, 16, ratio=0.0)
    even = coke.balance(kmeans.assign(x), 6)["effective"]
    greedy = coke.balance((x @ kmeans.centers.T).argmax(1), 6)["effective"]
    assert even > 0.9 > greedy
    kmeans.update(x, kmeans.assign(x))
    assert not kmeans.duals.any()


def test_offline_kmeans_finds_groups():
    means = features(4, d=16, seed=3)
    truth = torch.arange(400) % 4
    x = F.normalize(means[truth] + 0.1 * features(400), dim=1)
    labels, centers = coke.offline_kmeans(x, 4, seed=0)
    assert len({(int(a), int(b)) for a, b in zip(labels, truth, strict=True)}) == 4
    assert torch.allclose(centers.norm(dim=1), torch.ones(4), atol=1e-5)


def test_instance_bank_tells_images_apart_and_moves_towards_them():
    bank = coke.InstanceBank(5, 8, 0.1, generator=torch.Generator().manual_seed(0))
    ids, x = torch.tensor([3, 1]), features(2, d=8, seed=7)
    wanted = F.cross_entropy(x @ bank.bank.T / 0.1, ids)
    assert torch.isclose(bank.loss(ids, x), wanted)
    old = bank.bank.clone()
    bank.update(ids, x)
    assert torch.allclose(bank.bank[ids], F.normalize(0.5 * old[ids] + 0.5 * x, dim=1))
    assert torch.equal(bank.bank[[0, 2, 4]], old[[0, 2, 4]])


def test_balance_of_even_and_of_collapsed_labels():
    assert coke.balance(torch.arange(12) % 4, 4) == pytest.approx(
        {"effective": 1, "nonempty": 1, "smallest": 1, "largest": 1}
    )
    assert coke.balance(torch.zeros(12, dtype=torch.int64), 4) == pytest.approx(
        {"effective": 0.25, "nonempty": 0.25, "smallest": 0, "largest": 4}
    )
