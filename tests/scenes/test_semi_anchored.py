import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import (
    box_iou,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from tests.scenes.test_boxes import random_boxes
from toolkit.scenes.anchors import locations, make_anchors
from toolkit.scenes.boxes import encode_boxes, pad_boxes, pad_labels
from toolkit.scenes.semi_anchored.assign import (
    assign_anchors,
    assign_centres,
    assign_locations,
)
from toolkit.scenes.semi_anchored.cost import head_cost
from toolkit.scenes.semi_anchored.detector import OneStageDetector, near_anchors
from toolkit.scenes.semi_anchored.losses import (
    centreness,
    dr_loss,
    focal_loss,
    giou_loss,
    one_hot,
    paired_iou,
)

STRIDES, SIZE = (4, 8, 16), (64, 64)
ANCHORS = make_anchors(STRIDES, SIZE, base=3.0)


def targets(counts=(2, 0, 3), seed=0):
    boxes = [random_boxes(count, seed + i) for i, count in enumerate(counts)]
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(0, 5, (count,), generator=generator) for count in counts]
    return boxes, labels


def detector(seed=0, **options):
    torch.manual_seed(seed)
    return OneStageDetector(5, **options)


# -------------------------------------------------------------------------------- assignment


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_locations_take_the_best_of_their_anchors(seed, count):
    boxes = random_boxes(count, seed)
    iou = box_iou(boxes, ANCHORS.flatten(0, 1)).unflatten(1, (336, 9)).amax(2)
    largest, which = iou.max(0)
    expected = torch.where(largest >= 0.5, which, torch.where(largest < 0.4, -1, -2))
    found = assign_locations(ANCHORS, boxes)
    claimed = found != expected
    assert claimed.sum() <= count  # only objects that claim their best location differ
    assert (found[claimed] >= 0).all()
    for number in range(count):
        best = iou[number].argmax()
        assert found[best] >= 0
        assert iou[found[best], best] >= iou[number, best]


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_one_anchor_a_location_makes_both_rules_one(seed):
    anchors, boxes = ANCHORS[:, 4:5], random_boxes(3, seed)
    assert assign_locations(anchors, boxes).equal(assign_anchors(anchors, boxes)[:, 0])


def test_the_order_of_anchors_does_not_matter():
    boxes = random_boxes(3)
    shuffled = ANCHORS[:, torch.randperm(9, generator=torch.Generator().manual_seed(0))]
    assert assign_locations(shuffled, boxes).equal(assign_locations(ANCHORS, boxes))


def test_no_object_makes_everything_negative():
    none = torch.zeros(0, 4)
    assert (assign_locations(ANCHORS, none) == -1).all()
    assert (assign_anchors(ANCHORS, none) == -1).all()
    points, level = locations(STRIDES, SIZE)
    assert (assign_centres(points, torch.tensor(STRIDES).float()[level], none) == -1).all()


def test_a_positive_location_has_a_positive_anchor_unless_claimed():
    boxes = random_boxes(3, seed=4)
    by_anchor = (assign_anchors(ANCHORS, boxes) >= 0).any(1)
    by_location = assign_locations(ANCHORS, boxes) >= 0
    assert by_anchor.equal(by_location)


@pytest.mark.parametrize("assign", [assign_anchors, assign_locations])
def test_what_cannot_be_assigned_is_refused(assign):
    with pytest.raises(ValueError, match="0 ≤ lo ≤ hi ≤ 1"):
        assign(ANCHORS, random_boxes(1), hi=0.3, lo=0.4)
    with pytest.raises(ValueError, match="a box needs x₁ > x₀"):
        assign(ANCHORS, torch.tensor([[3.0, 4, 3, 9]]))


def test_centre_sampling_is_that_of_torchvisions_fcos(monkeypatch):
    boxes, labels = targets((3, 1, 2), seed=3)

    class Maps(torch.nn.Module):
        out_channels = 32

        def forward(self, x):
            return {str(s): torch.zeros(len(x), 32, 64 // s, 64 // s) for s in STRIDES}

    generator = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * 3)
    peer = FCOS(Maps(), 5, anchor_generator=generator, min_size=64, max_size=64)
    seen = []
    monkeypatch.setattr(
        peer.head, "compute_loss", lambda t, h, a, matched: seen.extend(matched) or {}
    )
    anchors = [generator_anchors()] * 3
    head = {"cls_logits": torch.zeros(3, 336, 5)}
    peer.compute_loss(
        [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)],
        head,
        anchors,
        [256, 64, 16],
    )
    points, level = locations(STRIDES, SIZE)
    stride = torch.tensor(STRIDES).float()[level]
    ours = assign_centres(points, stride, pad_boxes(boxes), limit=8.0)
    assert ours.equal(torch.stack(seen))
    assert (ours >= 0).sum() > 10


def generator_anchors():
    """One square of a stride's side at each cell: how torchvision tells FCOS its points."""
    return make_anchors(STRIDES, SIZE, (1.0,), (1.0,), base=1.0)[:, 0]


# ------------------------------------------------------------------------------------ losses


def test_focal_and_giou_losses_are_torchvisions():
    torch.manual_seed(0)
    logits, labels = torch.randn(30, 5), torch.randint(-1, 5, (30,))
    theirs = sigmoid_focal_loss(logits, one_hot(labels, 5), reduction="sum")
    torch.testing.assert_close(focal_loss(logits, labels), theirs)
    boxes, goals = random_boxes(6)[:, None], random_boxes(6, seed=1)
    theirs = generalized_box_iou_loss(boxes[:, 0], goals, reduction="sum")
    torch.testing.assert_close(giou_loss(boxes, goals, torch.ones(6, 1)), theirs)
    torch.testing.assert_close(paired_iou(boxes, goals)[:, 0], box_iou(boxes[:, 0], goals).diag())


def by_hand(logits, labels, L):
    """DR loss as its release writes it, with classes from 1 and 0 as background."""
    t, classes = (labels + 1)[:, None], torch.arange(1, logits.shape[1] + 1)
    positive, negative = (t == classes), (t != classes)
    p, n = logits[positive].sigmoid(), logits[negative].sigmoid()
    high = (torch.softmax(n / (0.1 / torch.tensor(3.5).log()), 0) * n).sum()
    low = (torch.softmax(-p, 0) * p).sum() if len(p) else 1.0
    return 4 * torch.log(1 + torch.exp(L * (high - low + 0.5))) / L


@pytest.mark.parametrize("positives", [0, 4])
def test_dr_loss_is_that_of_its_release(positives):
    torch.manual_seed(1)
    logits, labels = torch.randn(20, 3), torch.full((20,), -1)
    labels[:positives] = torch.randint(0, 3, (positives,))
    torch.testing.assert_close(dr_loss(logits, labels), by_hand(logits, labels, 6.0))


def test_dr_loss_becomes_a_hinge():
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 3), torch.randint(-1, 3, (40,))
    p = logits.sigmoid()
    positive = one_hot(labels, 3).bool()
    high = (torch.softmax(p[~positive] * torch.tensor(3.5).log() / 0.1, 0) * p[~positive]).sum()
    low = (torch.softmax(-p[positive], 0) * p[positive]).sum()
    expected = 4 * (high - low + 0.5).clamp(min=0)
    torch.testing.assert_close(dr_loss(logits, labels, L=1e4), expected, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="need positive"):
        dr_loss(logits, labels, L=0.0)


def test_centreness_is_one_in_the_middle_and_none_at_the_border():
    box = torch.tensor([[10.0, 20, 30, 60]]).expand(3, 4)
    points = torch.tensor([[20.0, 40], [10, 40], [15, 40]])
    expected = torch.tensor([1.0, 0.0, (5 / 15) ** 0.5])
    torch.testing.assert_close(centreness(points, box), expected)


def test_near_anchors_are_those_of_half_overlap_and_the_best():
    goals = torch.tensor([[0.0, 0, 8, 8], [0, 0, 40, 2]])
    anchors = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 5], [0, 0, 3, 3]]] * 2)
    # of the long object no anchor has half; the middle one has 16/104, the first 16/128
    assert near_anchors(anchors, goals).tolist() == [[1, 1, 0], [0, 1, 0]]


# ---------------------------------------------------------------------------------- detector


def test_only_the_anchor_head_classifies_anchors():
    x = torch.rand(2, 3, 64, 64)
    shapes = {head: detector(head=head)(x) for head in ("semi", "retina", "fcos")}
    assert shapes["semi"]["cls"].shape == (2, 336, 5)
    assert shapes["fcos"]["cls"].shape == (2, 336, 5)
    assert shapes["retina"]["cls"].shape == (2, 336, 9, 5)
    assert shapes["semi"]["boxes"].shape == shapes["retina"]["boxes"].shape == (2, 336, 9, 4)
    assert shapes["fcos"]["boxes"].shape == (2, 336, 1, 4)


def test_semi_with_one_square_prior_is_the_location_head():
    boxes, labels = targets()
    x = torch.rand(3, 3, 64, 64)
    losses = []
    for head in ("semi", "fcos"):
        model = detector(head=head, scales=(1.0,), ratios=(1.0,))
        losses.append(model.loss(model(x), boxes, labels))
    for name in losses[0]:
        assert losses[0][name].equal(losses[1][name])  # to the last bit


def test_the_anchor_heads_losses_are_torchvisions():
    boxes, labels = targets((2, 1, 3))
    x = torch.rand(3, 3, 64, 64)
    model = detector(head="retina")
    out = model(x)
    matched = model.targets(pad_boxes(boxes), pad_labels(labels), SIZE).matched
    peer = RetinaNetHead(8, 9, 5)
    peer.regression_head._loss_type = "giou"
    one = [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)]
    deltas = encode_boxes(out["boxes"].flatten(1, 2), ANCHORS.flatten(0, 1))
    theirs = peer.compute_loss(
        one,
        {"cls_logits": out["cls"].flatten(1, 2), "bbox_regression": deltas},
        [ANCHORS.flatten(0, 1)] * 3,
        list(matched),
    )
    # torchvision divides by the positives of each image, we by those of the batch
    alone = [
        model.padded_loss(
            {name: value[i : i + 1] for name, value in out.items()},
            boxes[i][None],
            labels[i][None],
            SIZE,
        )
        for i in range(3)
    ]
    cls = sum(part["cls"] for part in alone) / 3
    reg = sum(part["reg"] for part in alone) / 3
    assert cls.item() == pytest.approx(theirs["classification"].item(), rel=1e-4)
    assert reg.item() == pytest.approx(theirs["bbox_regression"].item(), rel=1e-3)


@pytest.mark.parametrize("head", ["semi", "retina", "fcos"])
@pytest.mark.parametrize("cls_loss", ["focal", "dr"])
def test_losses_teach_every_parameter(head, cls_loss):
    boxes, labels = targets()
    model = detector(head=head, cls_loss=cls_loss)
    total = model.loss(model(torch.rand(3, 3, 64, 64)), boxes, labels)["total"]
    total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert total.isfinite()
    assert without == []


def test_images_without_objects_are_background():
    boxes, labels = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    for head in ("semi", "retina", "fcos"):
        model = detector(head=head)
        losses = model.loss(model(torch.rand(2, 3, 64, 64)), boxes, labels)
        assert losses["reg"] == losses["quality"] == 0
        assert losses["cls"] > 0
        losses["total"].backward()


def test_all_anchors_are_regressed_and_only_near_ones_with_iou():
    box = torch.tensor([[20.0, 26, 44, 38]])  # wide: upright anchors are far from it
    gradients = {}
    for rule in ("all", "iou"):
        model = detector(reg_anchors=rule)
        out = model(torch.rand(1, 3, 64, 64))
        out["boxes"].retain_grad()
        model.loss(out, [box], [torch.tensor([1])])["reg"].backward()
        gradients[rule] = out["boxes"].grad.abs().sum(3)[0]
    positive = assign_locations(ANCHORS, box) >= 0
    assert (gradients["all"][positive] > 0).all()
    assert (gradients["all"][~positive] == 0).all()
    near = near_anchors(ANCHORS[positive], box.expand(int(positive.sum()), 4)).bool()
    assert (gradients["iou"][positive][~near] == 0).all()
    assert (gradients["iou"][positive][near] > 0).all()
    assert 0 < near.sum() < near.numel()


def test_quality_is_asked_of_all_anchors_without_pulling_at_boxes():
    boxes, labels = targets((2,))
    model = detector(reg_anchors="iou")
    out = model(torch.rand(1, 3, 64, 64))
    out["boxes"].retain_grad()
    out["quality"].retain_grad()
    model.loss(out, boxes, labels)["quality"].backward()
    assert out["boxes"].grad is None
    positive = assign_locations(ANCHORS, boxes[0]) >= 0
    assert (out["quality"].grad[0, positive] != 0).all()
    assert (out["quality"].grad[0, ~positive] == 0).all()


def test_best_anchor_by_constant_quality_is_the_first():
    model = detector()
    out = model(torch.rand(1, 3, 64, 64))
    out["quality"] = torch.zeros_like(out["quality"])
    assert model.report(out).equal(out["boxes"][:, :, 0])


def test_ways_to_decode():
    out = detector()(torch.rand(1, 3, 64, 64))
    out["quality"] = torch.randn_like(out["quality"])
    q = out["quality"].sigmoid()
    best, scores = detector().candidates(out)
    k = q.argmax(2)
    assert best[0, 7].equal(out["boxes"][0, 7, k[0, 7]])
    expected = (out["cls"].sigmoid() * q.amax(2, keepdim=True)).sqrt()
    torch.testing.assert_close(scores, expected)
    mean, _ = detector(decode="mean").candidates(out)
    weights = q[0, 7] / q[0, 7].sum()
    torch.testing.assert_close(mean[0, 7], (weights[:, None] * out["boxes"][0, 7]).sum(0))
    every, shared = detector(decode="all").candidates(out)
    assert every.shape == (1, 3024, 4)
    assert shared[0, 63:72].equal(out["cls"].sigmoid()[0, 7].expand(9, -1))


@pytest.mark.parametrize("head", ["semi", "retina", "fcos"])
def test_predictions_lie_in_the_image(head):
    model = detector(head=head).eval()
    found = model.predict(torch.rand(2, 3, 64, 96))
    assert len(found) == 2
    for one in found:
        assert 0 < len(one.scores) <= 100
        assert one.boxes.min() >= 0
        assert (one.boxes.amax(0) <= torch.tensor([96.0, 64, 96, 64])).all()
        assert (one.scores.diff() <= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "yolo"}, "head must be one of semi, retina, fcos; got 'yolo'"),
        ({"rule": "atss"}, "rule must be one of"),
        ({"decode": "worst"}, "decode must be one of"),
        ({"head": "retina", "rule": "center"}, "centre sampling picks locations"),
        ({"quality": "centreness"}, "it needs head 'fcos'"),
        ({"levels": (8, 16)}, "strides must be"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        detector(**options)


def test_bad_images_and_objects_are_refused():
    model = detector()
    with pytest.raises(ValueError, match="must be multiples of the stride 16"):
        model(torch.rand(1, 3, 64, 72))
    out, label = model(torch.rand(1, 3, 64, 64)), [torch.tensor([1])]
    with pytest.raises(ValueError, match="leaves the image of 64×64 px"):
        model.loss(out, [torch.tensor([[3.0, 3, 70, 9]])], label)
    with pytest.raises(ValueError, match="a box needs x₁ > x₀"):
        model.loss(out, [torch.tensor([[3.0, 3, 3, 9]])], label)
    with pytest.raises(ValueError, match="labels must be 0 to 4, got 7"):
        model.loss(out, [torch.tensor([[3.0, 3, 9, 9]])], [torch.tensor([7])])


# -------------------------------------------------------------------------------------- cost


def test_costs_are_those_of_the_formulas():
    coco = {head: head_cost(head, 80, 9, 256) for head in ("retina", "semi", "fcos")}
    assert coco["retina"]["macs"] == 9 * 256 * (720 + 36)
    assert coco["semi"]["macs"] == 9 * 256 * (80 + 45)
    assert coco["fcos"]["macs"] == 9 * 256 * 85
    assert coco["retina"]["macs"] / coco["semi"]["macs"] == pytest.approx(6.05, abs=0.005)
    whole = head_cost("retina", 80, 9, 256, depth=4)["macs"]
    assert whole / head_cost("semi", 80, 9, 256, depth=4)["macs"] == pytest.approx(1.29, abs=0.005)
    assert head_cost("semi", 80, 9, 256, locations=22_300)["scores"] == 80 * 22_300


@pytest.mark.parametrize("head", ["semi", "fcos"])
def test_costs_are_those_of_the_modules(head):
    model = detector(head=head)
    last = [model.cls_tower.last.weight.numel(), model.reg_tower.last.weight.numel()]
    assert head_cost(head, 5, 9, 48)["macs"] == sum(last)
    with pytest.raises(ValueError, match="head must be one of"):
        head_cost("yolo", 5, 9, 48)
