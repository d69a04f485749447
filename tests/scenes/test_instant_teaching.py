"""The detector, views, mixing, pseudo labels, co-rectify and the training step."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import batched_nms, box_iou

from tests.scenes.test_boxes import random_boxes
from toolkit.scenes.boxes import decode_boxes, is_box, pad_boxes
from toolkit.scenes.instant_teaching.augment import (
    View,
    clip_boxes,
    map_boxes,
    original,
    photometric,
    strong_augment,
    warp,
    weak_augment,
)
from toolkit.scenes.instant_teaching.detector import TinyRCNN, one_hot, roi_losses, sample
from toolkit.scenes.instant_teaching.labels import (
    co_rectify,
    keep_sure,
    pseudo_label,
    rectify,
)
from toolkit.scenes.instant_teaching.mixing import Example, mix, mixup_pair, mosaic_pair
from toolkit.scenes.instant_teaching.teaching import Batch, InstantTeacher

CLASSES = 5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def detector(seed=0, sure=0.0):
    """A detector from random heads; `sure` makes it believe in things."""
    torch.manual_seed(seed)
    model = TinyRCNN(CLASSES)
    if sure:
        torch.nn.init.normal_(model.classify.weight, std=sure)
        torch.nn.init.normal_(model.regress.weight, std=0.05)
    return model.eval()


def pictures(count=3, seed=0):
    return torch.rand(count, 3, 64, 64, generator=rng(seed))


def example(count=2, seed=0):
    labels = torch.randint(0, CLASSES, (count,), generator=rng(seed))
    return Example(pictures(1, seed)[0], random_boxes(count, seed), one_hot(labels, CLASSES))


def targets(counts=(2, 0, 3), seed=0):
    boxes = [random_boxes(count, seed + i) for i, count in enumerate(counts)]
    labels = [torch.randint(0, CLASSES, (count,), generator=rng(seed)) for count in counts]
    return boxes, [one_hot(some, CLASSES) for some in labels]


# ------------------------------------------------------------------------------------ detector


def test_it_is_small():
    assert 0.35e6 < sum(p.numel() for p in detector().parameters()) < 0.45e6


def test_one_hot_labels_make_torchvisions_head_loss():
    generator = rng(1)
    logits = torch.randn(12, CLASSES + 1, generator=generator)
    deltas, wanted = torch.randn(2, 12, 4, generator=generator)
    labels = torch.tensor([5, 5, 0, 1, 5, 2, 2, 5, 4, 5, 5, 3])  # 5: background, ours last
    hit = labels < CLASSES
    y = F.one_hot(labels, CLASSES + 1).float()
    ours = roi_losses(logits, deltas[hit], y, wanted[hit])
    theirs = fastrcnn_loss(
        logits.roll(1, 1),  # background first
        deltas.repeat(1, CLASSES + 1),
        [(labels + 1) % (CLASSES + 1)],
        [wanted],
    )
    assert torch.allclose(ours["roi_cls"], theirs[0], atol=1e-6)
    assert torch.allclose(ours["roi_reg"], theirs[1], atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_missing_mass_scales_the_cross_entropy(lam):
    logits = torch.randn(1, CLASSES + 1, generator=rng()).double().requires_grad_()
    y = lam * one_hot(torch.tensor([2]), CLASSES).double()
    empty = torch.zeros(0, 4).double()
    loss = roi_losses(logits, empty, y, empty)["roi_cls"]
    assert torch.allclose(loss, lam * F.cross_entropy(logits, torch.tensor([2])), atol=1e-9)
    loss.backward()
    assert torch.allclose(logits.grad, lam * logits.softmax(1) - y, atol=1e-9)


def test_soft_weights_do_not_reach_the_proposals():
    model, x = detector(), pictures()
    boxes, soft = targets()
    whole = model.loss(x, boxes, soft, rng(3))
    half = model.loss(x, boxes, [0.5 * some for some in soft], rng(3))
    for name in ("rpn_cls", "rpn_reg", "roi_reg"):
        assert whole[name].equal(half[name])
    assert half["roi_cls"] < whole["roi_cls"]


def test_a_batch_without_objects_has_a_finite_loss_and_gradient():
    model, x = detector(), pictures(2)
    losses = model.loss(x, [torch.zeros(0, 4)] * 2, [torch.zeros(0, CLASSES + 1)] * 2, rng())
    losses["total"].backward()
    assert losses["rpn_reg"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@given(st.integers(0, 10**6), st.integers(0, 30), st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_samples_are_balanced_as_torchvisions(seed, positives, negatives):
    matched = torch.full((1, 260), -2)
    matched[0, :positives], matched[0, 40 : 40 + negatives] = 0, -1
    found = sample(matched, 64, 0.25, rng(seed))[0]
    labels = matched[0].clamp(min=-2).add(1).clamp(max=1)  # theirs: 1 positive, 0 negative, −1
    theirs = BalancedPositiveNegativeSampler(64, 0.25)([labels])
    assert (found & (matched[0] >= 0)).sum() == theirs[0][0].sum()
    assert (found & (matched[0] == -1)).sum() == theirs[1][0].sum()
    assert not (found & (matched[0] == -2)).any()


def test_samples_differ_with_the_generator_only():
    matched = torch.where(torch.rand(2, 300, generator=rng()) < 0.5, 0, -1)
    assert sample(matched, 64, 0.5, rng(1)).equal(sample(matched, 64, 0.5, rng(1)))
    assert not sample(matched, 64, 0.5, rng(1)).equal(sample(matched, 64, 0.5, rng(2)))


def test_anchors_have_the_sides_of_their_levels():
    anchors = detector().anchors((64, 64), torch.device("cpu"))
    assert anchors.shape == (3 * (16**2 + 8**2), 4)
    area = (anchors[:, 2:] - anchors[:, :2]).prod(1)
    assert torch.allclose(area[:768], torch.tensor(14.0**2))
    assert torch.allclose(area[768:], torch.tensor(26.0**2))


def test_rpn_outputs_meet_their_anchors():
    model = detector()
    feats = [torch.zeros(1, 48, 16, 16), torch.zeros(1, 48, 8, 8)]
    with torch.no_grad():
        model.rpn.bbox_pred.bias[:] = torch.arange(12.0)
        model.rpn.cls_logits.bias[:] = torch.tensor([5.0, 6, 7])
    objectness, deltas = model._objectness(feats)
    assert objectness[0, :6].tolist() == [5, 6, 7, 5, 6, 7]
    assert deltas[0, :4].tolist() == [*torch.arange(12.0).view(3, 4).tolist(), [0, 1, 2, 3]]
    with torch.no_grad():
        model.rpn.cls_logits.weight[0, 0] = 1.0
    feats[0][0, 0, 2, 5] = 100.0  # one cell of the fine level stands out
    model.rpn.conv = torch.nn.Identity()
    assert int(model._objectness(feats)[0].argmax()) == 3 * (2 * 16 + 5)


def test_proposals_are_inside_and_do_not_overlap():
    model = detector()
    found = model.proposals(model.features(pictures()))
    assert found.shape[1] <= 40
    for some in found:
        boxes = some[is_box(some)]
        iou = box_iou(boxes, boxes).fill_diagonal_(0)
        assert iou.max() <= 0.7
        assert boxes.min() >= 0
        assert boxes.max() <= 64


def test_each_region_is_seen_in_its_own_picture():
    model, x = detector(sure=0.1), pictures(2)
    boxes = [random_boxes(3, 1), random_boxes(2, 2)]
    both, _ = model.roi_predict(model.features(x), pad_boxes(boxes))
    for image, rows in ((0, slice(0, 3)), (1, slice(3, 5))):
        feats = model.features(x[image : image + 1])
        alone, _ = model.roi_predict(feats, boxes[image][None])
        assert torch.allclose(both[rows], alone, atol=1e-4)


@pytest.mark.slow
def test_the_head_learns_to_move_a_box_onto_its_object():
    model = detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    x = torch.full((2, 3, 64, 64), 0.5)
    boxes = [torch.tensor([[10.0, 12, 30, 32]]), torch.tensor([[34.0, 30, 54, 50]])]
    for picture, box, colour in zip(x, boxes, ((1, 0, 0), (0, 0, 1)), strict=True):
        x0, y0, x1, y1 = box[0].int().tolist()
        picture[:, y0:y1, x0:x1] = torch.tensor(colour)[:, None, None]
    soft = [one_hot(torch.tensor([kind]), CLASSES) for kind in (0, 3)]
    for step in range(100):
        loss = model.loss(x, boxes, soft, rng(step))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for found, box, kind in zip(model.eval().predict(x), boxes, (0, 3), strict=True):
        assert found.labels[0] == kind
        assert found.scores[0] > 0.7
        assert box_iou(found.boxes[:1], box) > 0.75


@pytest.mark.parametrize(
    ("boxes", "soft", "message"),
    [
        ([[5.0, 5, 5, 9]], [[1.0, 0, 0, 0, 0, 0]], "x₁ > x₀"),
        ([[50.0, 5, 70, 9]], [[1.0, 0, 0, 0, 0, 0]], "leaves the image"),
        ([[5.0, 5, 15, 9]], [[1.0, 0, 0]], "need 6 entries"),
        ([[5.0, 5, 15, 9]], [[-0.1, 0, 0, 0, 0, 0]], "not be negative"),
        ([[5.0, 5, 15, 9]], [[0.7, 0.7, 0, 0, 0, 0]], "at most 1"),
    ],
)
def test_impossible_targets_are_refused(boxes, soft, message):
    with pytest.raises(ValueError, match=message):
        detector().loss(pictures(1), [torch.tensor(boxes)], [torch.tensor(soft)], rng())


def test_impossible_detectors_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        TinyRCNN(5, 60)
    with pytest.raises(ValueError, match="at least 1"):
        TinyRCNN(0)


# --------------------------------------------------------------------------------------- views


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_boxes_go_to_another_view_and_back(seed):
    boxes = torch.stack([random_boxes(4, seed), random_boxes(4, seed + 1)])
    _, a = weak_augment(pictures(2), rng(seed))
    _, b = strong_augment(pictures(2), rng(seed + 1))
    there = map_boxes(boxes, a, b)
    assert torch.allclose(map_boxes(there, b, a), boxes, atol=1e-4)
    assert (there[..., 2:] > there[..., :2]).all()
    back = map_boxes(map_boxes(boxes, original(2), a), a, original(2))
    assert torch.allclose(back, boxes, atol=1e-4)


@pytest.mark.parametrize("mirror", [-1.0, 1.0])
def test_boxes_move_with_what_they_surround(mirror):
    x = torch.full((1, 3, 64, 64), 0.5)
    x[:, :, 20:36, 10:30] = 1.0
    scale = torch.tensor([[mirror * 1.1, 1.1]])
    view = View(scale, (1 - scale) * 32)
    moved = map_boxes(torch.tensor([[[10.0, 20, 30, 36]]]), original(1), view)[0, 0]
    bright = (warp(x, view)[0, 0] > 0.75).nonzero()
    low, high = bright.amin(0).flip(0), bright.amax(0).flip(0) + 1
    assert torch.allclose(moved, torch.cat([low, high]).float(), atol=1.0)


def test_a_mirrored_view_of_the_same_size_is_exact():
    x = pictures(1)
    view = View(torch.tensor([[-1.0, 1.0]]), torch.tensor([[64.0, 0.0]]))
    assert torch.allclose(warp(x, view), x.flip(3), atol=1e-5)


def test_padding_stays_and_slivers_vanish():
    boxes = pad_boxes([torch.tensor([[60.0, 10, 64, 20]]), torch.zeros(0, 4)])
    view = View(torch.full((2, 2), 1.1), torch.full((2, 2), -3.2))
    moved = map_boxes(boxes, original(2), view)
    assert moved[1].isnan().all()
    assert moved[0, 0].tolist() == pytest.approx([62.8, 7.8, 67.2, 18.8])
    assert clip_boxes(moved, (64, 64))[0, 0].tolist() == pytest.approx([62.8, 7.8, 64, 18.8])
    assert clip_boxes(moved + 0.5, (64, 64)).isnan().all()


def test_each_picture_has_its_own_view():
    _, view = weak_augment(pictures(40), rng())
    assert 10 < (view.scale[:, 0] < 0).sum() < 30
    zoom = view.scale[:, 1]
    assert zoom.min() >= 0.9
    assert zoom.max() <= 1.1
    assert zoom.unique().numel() == 40


def test_strong_views_change_colours_and_cut_holes():
    x = torch.full((60, 3, 64, 64), 0.6)
    out = photometric(x, rng())
    black = (out == 0).all(1).flatten(1).sum(1)
    assert 15 < (black > 0).sum() < 45
    assert black.max() <= 2 * 8 * 8
    assert 15 < (out.amax((1, 2, 3)) - 0.6).abs().gt(1e-6).sum() < 45
    assert (x == 0.6).all()


# -------------------------------------------------------------------------------------- mixing


def test_mixup_with_all_weight_is_the_unlabelled_picture():
    first, second = example(2, 1), example(3, 2)
    mixed = mixup_pair(first, second, 1.0)
    assert mixed.image.equal(first.image)
    assert mixed.boxes.equal(torch.cat([first.boxes, second.boxes]))
    assert mixed.soft[:2].equal(first.soft)
    assert (mixed.soft[2:] == 0).all()


def test_mixup_gives_missing_mass_to_nobody():
    mixed = mixup_pair(example(2, 1), example(3, 2), 0.3)
    assert torch.allclose(mixed.soft.sum(1), torch.tensor([0.3, 0.3, 0.7, 0.7, 0.7]))
    assert (mixed.soft[:, -1] == 0).all()


def test_mosaic_keeps_a_box_only_above_a_quarter_of_both_sides():
    image = torch.zeros(3, 64, 64)
    soft = one_hot(torch.tensor([0, 1, 2]), CLASSES)
    cut = 32
    upper = Example(
        image,
        torch.tensor([[0.0, 22, 10, 62], [0.0, 21.9, 10, 62], [0.0, 40, 10, 60]]),
        soft,
    )  # a quarter is left, a little more, nothing
    lower = Example(
        image + 1,
        torch.tensor([[0.0, 2, 10, 42], [0.0, 2.1, 10, 42.1], [50.0, 2, 60, 30]]),
        soft,
    )
    mixed = mosaic_pair(upper, lower, 0, cut)
    assert mixed.boxes.tolist() == [
        [0, pytest.approx(21.9), 10, 32],
        [0, 32, 10, pytest.approx(42.1)],
    ]
    assert mixed.soft.argmax(1).tolist() == [1, 1]
    assert (mixed.image[:, :cut] == 0).all()
    assert (mixed.image[:, cut:] == 1).all()


def test_mosaic_of_columns_is_that_of_rows_turned():
    def turned(one):
        return Example(one.image.transpose(1, 2), one.boxes[:, [1, 0, 3, 2]], one.soft)

    first, second = example(4, 3), example(4, 4)
    rows = mosaic_pair(first, second, 0, 24)
    columns = mosaic_pair(turned(first), turned(second), 1, 24)
    assert turned(columns).image.equal(rows.image)
    assert turned(columns).boxes.equal(rows.boxes)


def test_mixing_changes_no_input_and_shares_no_memory():
    first, second = example(2, 1), example(2, 2)
    kept = deepcopy((first, second))
    for mixed in (mixup_pair(first, second, 1.0), mosaic_pair(first, second, 0, 64)):
        for part in mixed:
            part.zero_()
    assert all(a.equal(b) for one, old in zip((first, second), kept) for a, b in zip(one, old))  # noqa: B905


def test_mixing_without_objects_is_fine():
    none = Example(pictures(1)[0], torch.zeros(0, 4), torch.zeros(0, CLASSES + 1))
    assert mosaic_pair(none, none, 1, 30).boxes.shape == (0, 4)
    assert mixup_pair(none, none, 0.5).soft.shape == (0, CLASSES + 1)


def test_random_mixtures_are_of_both_kinds_and_cut_in_the_middle():
    first = Example(torch.zeros(3, 64, 64), torch.zeros(0, 4), torch.zeros(0, 6))
    second = first._replace(image=torch.ones(3, 64, 64))
    generator, blends, cuts = rng(), 0, []
    for _ in range(300):
        image = mix(first, second, generator).image[0]
        if image.unique().numel() == 1 and 0 < image[0, 0] < 1:
            blends += 1
        else:
            cuts.append(int((image[0] == 0).sum() if image[0].max() else (image[:, 0] == 0).sum()))
    assert 120 < blends < 180
    assert min(cuts) >= 16
    assert max(cuts) < 48


def test_impossible_mixtures_are_refused():
    first, small = example(), example()._replace(image=torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match="of one size"):
        mixup_pair(first, small, 0.5)
    with pytest.raises(ValueError, match="lam must lie"):
        mixup_pair(first, first, 1.2)
    with pytest.raises(ValueError, match="axis must be"):
        mosaic_pair(first, first, 2, 10)
    with pytest.raises(ValueError, match="cut must lie"):
        mosaic_pair(first, first, 0, 65)


# ------------------------------------------------------------------------------- pseudo labels


def test_labels_are_each_regions_best_class_above_the_threshold():
    model, x, tau = detector(1, sure=0.3), pictures(), 0.4
    found = pseudo_label(model, x, tau)
    feats = model.features(x)
    regions = model.proposals(feats)
    logits, deltas = model.roi_predict(feats, regions)
    real = is_box(regions)
    image = real.nonzero()[:, 0]
    moved = decode_boxes(deltas * model.units, regions[real]).clamp(0, 64)
    best, kind = logits.softmax(1)[:, :-1].max(1)
    sure = best >= tau
    assert 0 < sure.sum() < len(sure)
    for number, labels in enumerate(found):
        own = sure & (image == number)
        keep = batched_nms(moved[own], best[own], kind[own], 0.5)
        assert torch.allclose(labels.boxes, moved[own][keep], atol=1e-5)
        assert labels.labels.equal(kind[own][keep])
        assert labels.scores.min() >= tau


def test_labelling_takes_no_gradient_and_leaves_the_mode():
    model = detector(1, sure=0.3).train()
    found = pseudo_label(model, pictures(), 0.4)
    assert model.training
    assert not any(one.boxes.requires_grad or one.scores.requires_grad for one in found)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5, -0.1])
def test_impossible_thresholds_are_refused(tau):
    for call in (
        lambda: pseudo_label(detector(), pictures(), tau),
        lambda: co_rectify(detector(), detector(), pictures(), tau),
        lambda: InstantTeacher([detector()], tau, generator=rng()),
    ):
        with pytest.raises(ValueError, match="tau must lie"):
            call()


class Echo(torch.nn.Module):
    """A second opinion that says what it was told to say."""

    def __init__(self, boxes, scores):
        super().__init__()
        self.boxes, self.scores = boxes, scores

    def refine(self, feats, boxes):
        return self.boxes, self.scores


def rectified(boxes, scores, other, opinion, **options):
    # around the run-time check of types: the second opinion is a stand-in
    call = getattr(rectify, "__wrapped__", rectify)
    return call(Echo(other, opinion), [], boxes, scores, **options)


def test_agreement_leaves_a_box_where_it_is():
    boxes = random_boxes(3)[None]
    s, o = torch.rand(2, 1, 3, CLASSES + 1, generator=rng()) / 6
    moved, mean = rectified(boxes, s, boxes, o)
    assert torch.allclose(moved, boxes, atol=1e-5)
    assert torch.allclose(mean, (s + o) / 2)


def test_equal_scores_give_the_plain_mean_of_boxes():
    boxes, other = random_boxes(3, 1)[None], random_boxes(3, 2)[None]
    s = torch.rand(1, 3, CLASSES + 1, generator=rng())
    moved, _ = rectified(boxes, s, other, s.roll(1, -1))  # only the largest entry counts
    assert torch.allclose(moved, (boxes + other) / 2, atol=1e-5)


def test_a_sure_background_pulls_the_box_as_hard():
    boxes, other = random_boxes(1, 1)[None], random_boxes(1, 2)[None]
    s = torch.tensor([[[0.6, 0, 0, 0, 0, 0]]])
    o = torch.tensor([[[0.1, 0, 0, 0, 0, 0.9]]])
    moved, mean = rectified(boxes, s, other, o)
    assert torch.allclose(moved, (0.6 * boxes + 0.9 * other) / 1.5, atol=1e-5)
    assert torch.allclose(mean[0, 0], torch.tensor([0.35, 0, 0, 0, 0, 0.45]))
    again, _ = rectified(boxes, s, other, o, averaged=True)
    assert torch.allclose(again, (0.6 * boxes + 0.45 * other) / 1.05, atol=1e-5)


@pytest.mark.parametrize("passes", [1, 2])
def test_two_equal_networks_give_equal_labels(passes):
    model = detector(1, sure=0.3)
    first, second = co_rectify(model, deepcopy(model), pictures(), 0.4, passes)
    assert sum(len(one.boxes) for one in first) > 0
    for a, b in zip(first, second, strict=True):
        assert torch.allclose(a.boxes, b.boxes, atol=1e-4)
        assert a.labels.equal(b.labels)


def test_co_rectify_follows_the_release_step_by_step():
    m1, m2, x, tau = detector(1, sure=0.4), detector(2, sure=0.4), pictures(1), 0.35
    own = [pseudo_label(model, x, tau)[0] for model in (m1, m2)]
    feats = [model.features(x) for model in (m1, m2)]
    t = torch.cat([one.boxes for one in own])
    s = torch.cat([one_hot(one.labels, CLASSES) * one.scores[:, None] for one in own])

    def second_look(number, boxes):
        logits, deltas = (m1, m2)[number].roi_predict(feats[number], boxes[None])
        moved = decode_boxes(deltas * m1.units, boxes).clamp(0, 64)
        return moved, logits.softmax(1)

    def R(number, t, s, averaged=False):
        box, score = second_look(number, t)
        mean = (s + score) / 2
        a = s.amax(1, keepdim=True)
        b = (mean if averaged else score).amax(1, keepdim=True)
        return (t * a + box * b) / (a + b), mean

    wide = [R(0, t, s), R(1, t, s), (t, s)]
    boxes, scores = torch.cat([b for b, _ in wide]), torch.cat([c for _, c in wide])
    expected = [
        keep_sure(*(part[None] for part in R(number, boxes, scores, averaged=True)), tau, (64, 64))
        for number in (1, 0)
    ]
    for ours, (theirs,) in zip(co_rectify(m1, m2, x, tau), expected, strict=True):
        assert len(ours[0].boxes) == len(theirs.boxes) > 0
        assert torch.allclose(ours[0].boxes, theirs.boxes, atol=1e-3)
        assert torch.allclose(ours[0].scores, theirs.scores, atol=1e-5)


def test_one_pass_corrects_each_network_by_the_other():
    m1, m2, x, tau = detector(1, sure=0.4), detector(2, sure=0.4), pictures(1), 0.35
    (own,) = pseudo_label(m1, x, tau)
    s = one_hot(own.labels, CLASSES) * own.scores[:, None]
    boxes, scores = rectify(m2, m2.features(x), own.boxes[None], s[None])
    (expected,) = keep_sure(boxes, scores, tau, (64, 64))
    found = co_rectify(m1, m2, x, tau, passes=1)[0][0]
    assert torch.allclose(found.boxes, expected.boxes, atol=1e-4)


def test_an_empty_pool_gives_empty_labels():
    found = co_rectify(detector(1), detector(2), pictures(), 0.99)
    assert [len(one.boxes) for side in found for one in side] == [0] * 6


def test_other_numbers_of_passes_are_refused():
    with pytest.raises(ValueError, match="1 or 2"):
        co_rectify(detector(1), detector(2), pictures(), 0.5, passes=3)


# --------------------------------------------------------------------------------- teaching


def batches(count=3, seed=0):
    images = (pictures(count, seed) * 255).to(torch.uint8)
    boxes = torch.stack([random_boxes(2, seed + i) for i in range(count)])
    labels = torch.randint(0, CLASSES, (count, 2), generator=rng(seed))
    return Batch(images, boxes, labels), Batch((pictures(count, seed + 1) * 255).to(torch.uint8))


def test_instant_labels_come_from_the_current_weights():
    model = detector(1, sure=0.3)
    teacher = InstantTeacher([model], 0.4, generator=rng())
    labelled, unlabelled = batches()
    before = teacher.step(labelled, unlabelled)["boxes"]
    assert before > 0
    with torch.no_grad():
        model.classify.weight.zero_()
        model.classify.bias[-1] = 9.0
    assert teacher.step(labelled, unlabelled)["boxes"] == 0


def test_refresh_keeps_older_weights_for_that_many_steps():
    model = detector(1, sure=0.3)
    teacher = InstantTeacher([model], 0.4, refresh=2, generator=rng())
    labelled, unlabelled = batches()
    counts = []
    for step in range(3):
        counts.append(float(teacher.step(labelled, unlabelled)["boxes"]))
        if step == 0:
            with torch.no_grad():
                model.classify.weight.zero_()
                model.classify.bias[-1] = 9.0
    assert counts[0] > 0
    assert counts[1] > 0
    assert counts[2] == 0


def test_a_moving_average_labels_later():
    model = detector(1, sure=0.3)
    teacher = InstantTeacher([model], 0.4, ema=0.5, generator=rng())
    start = model.classify.bias.detach().clone()
    with torch.no_grad():
        model.classify.bias += 1
    teacher.step(*batches())
    assert torch.allclose(teacher.labellers[0].classify.bias, start + 0.5)
    assert not teacher.labellers[0].classify.bias.equal(model.classify.bias)


def test_frozen_labels_ask_no_network():
    model = detector(1)
    labelled, other = batches()
    teacher = InstantTeacher([model], 0.5, mix_prob=0, generator=rng())
    found, view = teacher._labels(Batch(other.images, labelled.boxes, labelled.labels))
    assert found[0][0] is labelled.boxes
    assert (view.scale == 1).all()


def test_weights_of_the_unlabelled_loss_follow_the_release():
    labelled, unlabelled = batches()
    frozen = Batch(unlabelled.images, labelled.boxes, labelled.labels)

    def total(weight):
        teacher = InstantTeacher([detector(1)], 0.5, weight, 0.0, generator=rng(5))
        return float(teacher.step(labelled, frozen)["total"].detach())

    none, half, double = total(0.0), total(0.5), total(2.0)
    assert double - none == pytest.approx(4 * (half - none), rel=1e-4)


def test_gradients_reach_the_learner_but_not_through_the_labels():
    models = [detector(1, sure=0.4), detector(2, sure=0.4)]
    teacher = InstantTeacher(models, 0.35, generator=rng())
    out = teacher.step(*batches())
    out["total"].backward()
    assert out["boxes"] > 0
    assert all(p.grad is not None for model in models for p in model.parameters())


def test_supervised_steps_need_no_unlabelled_pictures():
    out = InstantTeacher([detector()], 0.5, generator=rng()).step(batches()[0], None)
    assert out.keys() == {"total"}
    assert math.isfinite(out["total"].detach())


def test_a_seed_decides_a_step():
    def total(seed):
        teacher = InstantTeacher([detector(1, sure=0.3)], 0.4, generator=rng(seed))
        return float(teacher.step(*batches())["total"].detach())

    assert total(3) == total(3) != total(4)


def test_boxes_reach_the_strong_view_in_its_own_frame(monkeypatch):
    """With perfect labels of a bright square, the square in the strong view lies in its box."""
    images = torch.full((4, 3, 64, 64), 100, dtype=torch.uint8)
    images[:, :, 20:40, 8:28] = 250
    boxes = torch.tensor([[8.0, 20, 28, 40]]).expand(4, 1, 4).contiguous()
    seen = []

    def loss(number, examples):
        seen.extend(examples)
        return torch.zeros(())

    teacher = InstantTeacher([detector()], 0.5, mix_prob=0, generator=rng(2), strong=weak_augment)
    monkeypatch.setattr(teacher, "_loss", loss)
    _, view = weak_augment(images.float() / 255, rng(7))
    moved = map_boxes(boxes, original(4), view)
    teacher._lesson(0, [], images, moved, torch.zeros(4, 1, dtype=torch.int64), view)
    assert len(seen) == 4
    for picture, box, _ in seen:
        bright = (picture[0] > 0.75).nonzero()
        low, high = bright.amin(0).flip(0), bright.amax(0).flip(0) + 1
        assert torch.allclose(box[0], torch.cat([low, high]).float(), atol=1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mix_prob": 1.2}, "mix_prob"),
        ({"ema": 1.0}, "ema"),
        ({"refresh": 0}, "refresh"),
        ({"lambda_u": -1.0}, "lambda_u"),
    ],
)
def test_impossible_teachers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        InstantTeacher([detector()], 0.5, generator=rng(), **change)


def test_batches_of_different_size_are_refused():
    labelled, _ = batches(3)
    with pytest.raises(ValueError, match="of one size"):
        InstantTeacher([detector()], 0.5, generator=rng()).step(labelled, batches(2)[1])
    with pytest.raises(ValueError, match="need boxes"):
        InstantTeacher([detector()], 0.5, generator=rng()).step(Batch(labelled.images), None)
    with pytest.raises(ValueError, match="one model or two"):
        InstantTeacher([], 0.5, generator=rng())
