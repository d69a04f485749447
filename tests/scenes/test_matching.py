import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from tests.scenes.test_boxes import random_boxes
from toolkit.scenes.anchors import make_anchors
from toolkit.scenes.boxes import pad_boxes
from toolkit.scenes.matching import IGNORED, NEGATIVE, best_iou, match


def one_by_one(iou, hi, lo):
    """The rule with loops, of one image: iou[objects][priors]."""
    out = []
    for row in iou.T.tolist():
        best = max(row, default=0.0)
        if best >= hi:
            out.append(row.index(best))
        else:
            out.append(NEGATIVE if best < lo else IGNORED)
    claims = {}
    for number, column in enumerate(iou.tolist()):
        top = max(column)
        prior = column.index(top)
        if top > 0 and top > claims.get(prior, (0.0, None))[0]:
            claims[prior] = (top, number)
    for prior, (_, number) in claims.items():
        out[prior] = number
    return out


@given(st.integers(0, 10**6), st.lists(st.integers(0, 4), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_batch_is_matched_as_its_images_one_by_one(seed, counts):
    anchors = make_anchors((8, 16), (64, 64), base=2.0)
    boxes = [random_boxes(count, seed + i) for i, count in enumerate(counts)]
    found = match(best_iou(anchors, pad_boxes(boxes)), pad_boxes(boxes), 0.5, 0.4)
    for row, some in zip(found, boxes, strict=True):
        iou = box_iou(some, anchors.flatten(0, 1)).reshape(len(some), *anchors.shape[:2]).amax(2)
        assert row.tolist() == one_by_one(iou, 0.5, 0.4)


def test_without_claims_it_is_torchvisions_matcher():
    priors, boxes = random_boxes(200), random_boxes(4, seed=5)
    iou = box_iou(boxes, priors)
    theirs = Matcher(0.5, 0.3, allow_low_quality_matches=False)(iou)
    ours = match(iou[None], boxes[None], 0.5, 0.3, force=False)[0]
    assert ours.equal(theirs)  # both write −1 for negative and −2 for ignored


def test_thresholds_belong_to_the_upper_side():
    iou = torch.tensor([[[0.9, 0.5, 0.4999, 0.4, 0.3999]]])
    found = match(iou, random_boxes(1)[None], 0.5, 0.4)
    assert found.tolist() == [[0, 0, IGNORED, IGNORED, NEGATIVE]]


def test_an_object_no_prior_fits_claims_its_best_one():
    priors = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [40, 40, 44, 44]])
    boxes = torch.tensor([[0.0, 0, 30, 30]])
    found = match(box_iou(boxes, priors)[None], boxes[None], 0.5, 0.4)[0]
    assert found.tolist() == [0, NEGATIVE, NEGATIVE]  # the first on ties


def test_of_two_objects_that_claim_a_prior_the_larger_iou_wins():
    iou = torch.tensor([[[0.1, 0.0], [0.2, 0.0], [0.2, 0.05]]])
    boxes = random_boxes(3)[None]
    assert match(iou, boxes, 0.5, 0.4).tolist() == [[1, NEGATIVE]]


def test_an_object_that_overlaps_nothing_claims_nothing():
    boxes = random_boxes(1)[None]
    assert match(torch.zeros(1, 1, 5), boxes, 0.5, 0.4).tolist() == [[NEGATIVE] * 5]


def test_padding_claims_nothing():
    padded = pad_boxes([random_boxes(0), random_boxes(2)])
    found = match(best_iou(make_anchors((8,), (64, 64)), padded), padded, 0.5, 0.4)
    assert (found[0] == NEGATIVE).all()
    assert found[1].max() <= 1


@pytest.mark.parametrize(("hi", "lo"), [(0.4, 0.5), (1.2, 0.4), (0.5, -0.1)])
def test_impossible_thresholds_are_refused(hi, lo):
    with pytest.raises(ValueError, match="0 ≤ lo ≤ hi ≤ 1"):
        match(torch.zeros(1, 1, 5), random_boxes(1)[None], hi, lo)
