"""Category, box, loss world and codes, each against an independent reference."""

import inspect
from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn.functional import normalize
from torchvision.ops import box_iou

from toolkit.search import visual_search as vs
from toolkit.search.visual_search import codes, measure, training
from toolkit.search.visual_search.fusion import posterior
from toolkit.search.visual_search.softbox import LEAST_SIDE


def unit(n, d=16, seed=0):
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


# --- A: category --------------------------------------------------------------------------------


def test_the_search_votes_as_a_weighted_neighbour_classifier():
    x, q = unit(300), unit(40, seed=1)
    y = torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(2))
    fusion = vs.CategoryFusion(x, y, 5)
    fusion.lam = 7.0
    peer = KNeighborsClassifier(
        30, weights=lambda distance: np.exp(-7.0 * distance**2), algorithm="brute"
    )
    peer.fit(x.numpy(), y.numpy())
    expected = torch.from_numpy(peer.predict_proba(q.numpy())).float()
    torch.testing.assert_close(fusion.search_proba(q), expected, atol=1e-4, rtol=1e-3)


def test_a_large_lambda_does_not_underflow():
    p = posterior(torch.tensor([[1.0, 1.5]]), torch.tensor([[2, 0]]), 1e4, 3)
    assert p.tolist() == [[0.0, 0.0, 1.0]]


def test_fusion_prefers_the_part_that_is_right():
    x = torch.cat([unit(50) + 2 * torch.eye(16)[0], unit(50, seed=1) - 2 * torch.eye(16)[0]])
    x, y = normalize(x), torch.arange(2).repeat_interleave(50)
    fusion = vs.CategoryFusion(x, y, 2, k=10)
    wrong = torch.eye(2)[1 - y]
    assert fusion.fit(x, 0.9 * wrong + 0.05, y).alpha <= 0.5
    assert (fusion.predict_proba(x, 0.9 * wrong + 0.05).argmax(1) == y).all()
    assert fusion.alpha in vs.ALPHAS
    assert fusion.lam in vs.LAMBDAS


def test_fusion_names_bad_input():
    x, y = unit(40), torch.zeros(40).long()
    with pytest.raises(ValueError, match="logits"):
        vs.CategoryFusion(x, y, 2).predict_proba(x, torch.randn(40, 2))
    with pytest.raises(ValueError, match="lie in"):
        vs.CategoryFusion(x, y + 2, 2)
    with pytest.raises(ValueError, match="k must"):
        vs.CategoryFusion(x, y, 2, k=41)
    with pytest.raises(ValueError, match="unit length"):
        vs.CategoryFusion(2 * x, y, 2)


# --- B: box -------------------------------------------------------------------------------------


def test_a_steep_mask_is_a_hard_crop():
    image = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    masked, mask = vs.SoftBox(1e5)(image, torch.tensor([[0.2, 0.6, 0.3, 0.9]]))
    expected = image.mean((2, 3), keepdim=True).expand_as(image).clone()
    expected[:, :, 6:18, 4:12] = image[:, :, 6:18, 4:12]
    torch.testing.assert_close(masked, expected)
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_the_gradient_of_each_edge_is_that_of_finite_differences():
    image = torch.rand(
        1, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    box = torch.tensor([[0.2, 0.7, 0.3, 0.8]], dtype=torch.float64, requires_grad=True)
    mask = inspect.unwrap(vs.SoftBox.forward)
    assert torch.autograd.gradcheck(
        lambda b: mask(vs.SoftBox(20), image, b)[0].square().sum(), (box,), atol=1e-6
    )


def test_a_steep_edge_feels_nothing_far_away():
    def pull(k):
        image = torch.zeros(1, 3, 40, 40)
        image[:, :, 18:22, 18:22] = 1
        box = torch.tensor([[0.1, 0.9, 0.1, 0.9]], requires_grad=True)
        vs.SoftBox(k)(image, box)[1][:, :, 18:22, 18:22].sum().backward()
        return float(box.grad.abs().max())

    assert pull(100) < 1e-6 < 1e-2 < pull(8)


@given(st.lists(st.floats(-30, 30), min_size=4, max_size=4))
@settings(deadline=None)
def test_boxes_are_ordered_and_inside_the_frame(raw):
    left, right, top, bottom = vs.ordered_box(torch.tensor([raw]))[0].tolist()
    for low, high in ((left, right), (top, bottom)):
        assert -1e-6 <= low < high <= 1 + 1e-6
        assert high - low >= LEAST_SIDE - 1e-5


def small_net(k=20.0):
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8))
    branch = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    return vs.JointSearchNet(trunk, branch, box_size=8, k=k)


def test_the_first_box_is_centred_and_wide():
    features, box = small_net()(torch.rand(5, 3, 16, 16))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    width = LEAST_SIDE + (1 - LEAST_SIDE) / (1 + float(np.exp(-2)))
    assert width == pytest.approx(0.893, abs=1e-3)
    torch.testing.assert_close(box, torch.tensor([[0.5 - width / 2, 0.5 + width / 2] * 2] * 5))


def test_ranking_moves_the_box():
    net = small_net()
    features, _ = net(torch.rand(4, 3, 16, 16))
    (features[:2] - features[2:]).square().sum().backward()
    assert net.box_branch[-1].bias.grad.abs().min() > 0


def test_a_row_of_nan_reads_the_whole_image():
    net, images = small_net().eval(), torch.rand(2, 3, 16, 16)
    given = torch.tensor([[torch.nan] * 4, [0.2, 0.8, 0.2, 0.8]])
    features, box = net(images, given)
    torch.testing.assert_close(features[0], normalize(net.trunk(images[:1]))[0])
    assert box[0].tolist() == [0, 1, 0, 1]
    assert not torch.allclose(features[1], normalize(net.trunk(images[1:]))[0])


def test_paired_iou_is_that_of_torchvision():
    boxes = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0))
    a, b = (vs.ordered_box(10 * part - 5) for part in boxes)
    expected = box_iou(vs.to_corners(a), vs.to_corners(b)).diagonal()
    torch.testing.assert_close(vs.paired_iou(a, b), expected)
    torch.testing.assert_close(vs.to_edges(vs.to_corners(a)), a)


def test_saliency_finds_a_square_before_a_calm_wall():
    image = torch.zeros(1, 3, 40, 40)
    image[:, :, 10:30, 4:20] = 200
    torch.testing.assert_close(
        vs.saliency_box(image), torch.tensor([[0.1, 0.5, 0.25, 0.75]]), atol=0.03, rtol=0
    )


def test_softbox_names_bad_input():
    with pytest.raises(ValueError, match="positive"):
        vs.SoftBox(0)
    with pytest.raises(ValueError, match="four outputs"):
        vs.JointSearchNet(nn.Flatten(), nn.Sequential(nn.Linear(3, 5)))


# --- B: training world --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return vs.open_world(60)


TINY = replace(vs.PROFILES["quick"], products=60, steps=3, batch=8)


@pytest.mark.slow
def test_negatives_are_shot_on_the_tile_of_their_query(world):
    mined = training.triplets_of("joint", TINY, world, 0)
    triplets, shots = training.real_shots(mined, world)
    assert len(triplets) > 20
    queries, shop = world.train, world.shop
    assert torch.equal(queries.photo[shots], queries.photo[triplets.query])
    listing = 6 * queries.product[shots] + queries.vendor[shots]
    assert torch.equal(listing, triplets.negative)
    assert (shop.vendor[triplets.positive] != queries.vendor[triplets.query]).all()


@pytest.mark.slow
def test_arms_differ_in_their_positives_only_as_they_say(world):
    shop, train = world.shop, world.train

    def purity(arm):
        t = training.triplets_of(arm, TINY, world, 0)
        return float((shop.product[t.positive] == train.product[t.query]).float().mean())

    assert purity("joint") > purity("raw")
    assert purity("joint") > purity("noise.2") > purity("noise.4") > purity("random")
    t = training.triplets_of("category", TINY, world, 0)
    leaf = shop.leaf[shop.product]
    wanted = shop.leaf[train.product[t.query]]
    assert torch.equal(leaf[t.positive], wanted)
    assert (leaf[t.negative] != wanted).all()


@pytest.mark.slow
def test_an_experiment_repeats_and_knows_all_arms(world):
    recipe = replace(TINY, arms=("joint", "truth", "whole", "supervised", "saliency", "pca"))
    one, two = (vs.experiment(recipe, 3, torch.device("cpu")) for _ in range(2))
    assert one == two
    assert one["truth/iou"] == pytest.approx(1)
    assert {"joint/recall@1", "pca/mrr", "saliency/iou.5", "supervised/iou"} <= one.keys()
    with pytest.raises(ValueError, match="no arm"):
        vs.train("best", TINY, 0, torch.device("cpu"))


# --- C: codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "bits"), [("rotation", 40), ("itq", 16), ("learned", 24)])
def test_codes_are_the_signs_of_projections(kind, bits):
    x = unit(400)
    encoder = vs.BinaryEncoder(kind, bits).fit(x)
    codes = encoder.encode(x)
    assert codes.shape == (400, bits // 8)
    signs = np.unpackbits(codes.numpy(), axis=1)
    np.testing.assert_array_equal(signs, (encoder.project(x) > 0).numpy())


def test_a_rotation_is_orthonormal_and_blocks_are_independent():
    r = vs.stacked_rotations(16, 40, 0, torch.float64)
    torch.testing.assert_close(r[:, :16].T @ r[:, :16], torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(r[:, 16:32].T @ r[:, 16:32], torch.eye(16, dtype=torch.float64))
    assert (r[:, :16].T @ r[:, 16:32]).abs().max() < 0.9


def test_itq_reaches_the_objective_of_faiss():
    x = unit(2000, 32) * torch.linspace(0.2, 2, 32)
    ours = vs.BinaryEncoder("itq", 16).fit(x)
    peer = faiss.ITQTransform(32, 16, True)
    peer.train((x - x.mean(0)).numpy())
    # faiss rotates components of unit spread or not; compare on ours, rotated by either
    theirs = torch.from_numpy(peer.apply((x - x.mean(0)).numpy()))
    start = vs.BinaryEncoder("rotation", 16).fit(x)
    scale = theirs.norm() / ours.project(x).norm()
    own = vs.quantisation_error(scale * ours.project(x))
    assert own <= vs.quantisation_error(theirs) * 1.05
    assert vs.quantisation_error(ours.project(x)) < vs.quantisation_error(start.project(x))


def test_an_encoder_names_bad_input():
    with pytest.raises(ValueError, match="multiple of 8"):
        vs.BinaryEncoder("rotation", 12)
    with pytest.raises(ValueError, match="choose"):
        inspect.unwrap(vs.BinaryEncoder.__init__)(object.__new__(vs.BinaryEncoder), "pq", 16)
    with pytest.raises(ValueError, match="at most as many bits"):
        vs.BinaryEncoder("itq", 24).fit(unit(10))
    with pytest.raises(ValueError, match="fitted"):
        vs.BinaryEncoder().encode(unit(2))
    with pytest.raises(ValueError, match="finite"):
        vs.BinaryEncoder().fit(unit(2) * torch.nan)
    with pytest.raises(ValueError, match="width 8"):
        vs.BinaryEncoder("rotation", 8).fit(unit(9)).encode(unit(2, 8))


@given(st.integers(0, 1000), st.integers(1, 80), st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_hamming_search_is_that_of_faiss(seed, n, chunk):
    rng = np.random.default_rng(seed)
    db, q = rng.integers(0, 8, (n, 4), np.uint8), rng.integers(0, 8, (3, 4), np.uint8)
    index = faiss.IndexBinaryFlat(32)
    index.add(db)
    k = min(n, 12)
    distance, rows = vs.hamming_topk(torch.from_numpy(q), torch.from_numpy(db), k, chunk)
    np.testing.assert_array_equal(distance.numpy(), index.search(q, k)[0])
    every = np.bitwise_count(q[:, None] ^ db).sum(2).astype(int)
    order = np.lexsort((np.broadcast_to(np.arange(n), every.shape), every), axis=-1)[:, :k]
    np.testing.assert_array_equal(rows.numpy(), order)


def test_hamming_search_pads_and_refuses():
    code = torch.zeros(2, 4, dtype=torch.uint8)
    distance, rows = vs.hamming_topk(code, code, 4)
    assert rows[0].tolist() == [0, 1, -1, -1]
    assert distance[0].tolist() == [0, 0, -1, -1]
    with pytest.raises(ValueError, match="bytes"):
        inspect.unwrap(vs.hamming_topk)(code, code[:, :2], 1)
    with pytest.raises(ValueError, match="at least 1"):
        vs.hamming_topk(code, code, 0)


def test_more_candidates_never_lose_recall_and_all_of_them_lose_nothing():
    x, q = unit(500), unit(20, seed=1)
    encoder = vs.BinaryEncoder("rotation", 32).fit(x)
    recall = vs.code_recall(encoder, x, q, (10, 50, 500), k=10)
    means = [float(recall[c].mean()) for c in (10, 50, 500)]
    assert means[0] < means[1] <= means[2] == 1.0
    both = vs.code_recall(encoder, x, q, (500,), k=10, shards=3)
    assert float(both[500].mean()) == 1.0


def test_clustered_items_lie_near_their_source():
    x = unit(30)
    many = measure.clustered(x, 100, 0, spread=0.25)
    nearest = (many @ x.T).max(1).values
    assert nearest.mean() > 0.95
    torch.testing.assert_close(many.norm(dim=1), torch.ones(100))


@pytest.mark.parametrize("width", [1, 7, 8, 32])
def test_both_ways_to_a_hamming_distance_agree(width):
    q, db = (torch.randint(256, (n, width), dtype=torch.uint8) for n in (5, 40))
    expected = np.bitwise_count(q.numpy()[:, None] ^ db.numpy()).sum(2)
    assert np.array_equal(codes._by_popcount(q, db), expected)
    assert np.array_equal(codes._by_product(q, db), expected)
