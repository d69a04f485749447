import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from toolkit.scenes.anchors import OCTAVE, locations, make_anchors
from toolkit.scenes.boxes import (
    check_targets,
    decode_boxes,
    encode_boxes,
    is_box,
    pad_boxes,
    pad_labels,
    pairwise_iou,
)


def random_boxes(count, seed=0, size=64.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size * 0.7
    side = 1 + torch.rand(count, 2, generator=generator) * (size * 0.3 - 1)
    return torch.cat([corner, corner + side], 1)


def test_padding_makes_ragged_lists_one_tensor():
    padded = pad_boxes([random_boxes(2), random_boxes(0), random_boxes(3)])
    assert padded.shape == (3, 3, 4)
    assert is_box(padded).sum(1).tolist() == [2, 0, 3]
    assert pad_labels([torch.tensor([4]), torch.tensor([], dtype=torch.int64)]).tolist() == [
        [4],
        [-1],
    ]


def test_a_batch_without_objects_has_one_empty_column():
    assert pad_boxes([torch.zeros(0, 4)] * 2).shape == (2, 1, 4)
    assert not is_box(pad_boxes([torch.zeros(0, 4)] * 2)).any()
    assert pad_labels([torch.zeros(0, dtype=torch.int64)] * 2).tolist() == [[-1], [-1]]


def test_iou_is_torchvisions_in_batches():
    priors, boxes = random_boxes(20), [random_boxes(3, seed=1), random_boxes(1, seed=2)]
    iou = pairwise_iou(pad_boxes(boxes), priors[None])
    torch.testing.assert_close(iou[0], box_iou(boxes[0], priors))
    torch.testing.assert_close(iou[1, :1], box_iou(boxes[1], priors))
    assert (iou[1, 1:] == 0).all()


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_decoding_inverts_encoding(seed):
    priors, boxes = random_boxes(8, seed), random_boxes(8, seed + 1)
    torch.testing.assert_close(
        decode_boxes(encode_boxes(boxes, priors), priors), boxes, atol=1e-4, rtol=1e-5
    )


def test_coding_is_torchvisions():
    priors, boxes = random_boxes(12), random_boxes(12, seed=1)
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    deltas = encode_boxes(boxes, priors)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, priors))
    wild = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)) * 8  # some are clamped
    torch.testing.assert_close(decode_boxes(wild, priors), coder.decode_single(wild, priors))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([5.0, 5.0, 5.0, 9.0], "needs x₁ > x₀"),
        ([5.0, 9.0, 8.0, 7.0], "needs x₁ > x₀"),
        ([5.0, 5.0, float("nan"), 9.0], "needs x₁ > x₀"),
        ([-1.0, 5.0, 8.0, 9.0], "leaves the image of 64×48 px"),
        ([5.0, 5.0, 8.0, 49.0], "leaves the image of 64×48 px"),
    ],
)
def test_boxes_that_cannot_be_right_are_refused(box, message):
    with pytest.raises(ValueError, match=message):
        check_targets([torch.tensor([box])], [torch.tensor([0])], (48, 64), 5)


def test_targets_of_wrong_shape_or_class_are_refused():
    one, none = torch.tensor([[1.0, 1, 5, 5]]), torch.zeros(0, 4)
    with pytest.raises(ValueError, match="labels must be 0 to 4, got 5"):
        check_targets([one], [torch.tensor([5])], (64, 64), 5)
    with pytest.raises(ValueError, match="boxes of 1 images, but labels of 2"):
        check_targets([one], [torch.tensor([0])] * 2, (64, 64), 5)
    with pytest.raises(ValueError, match="image 1: need boxes"):
        check_targets([none, one], [torch.zeros(0, dtype=torch.int64)] * 2, (64, 64), 5)
    check_targets([none, one], [torch.zeros(0, dtype=torch.int64), torch.tensor([4])], (5, 5), 5)


# ---------------------------------------------------------------------------------- anchors


def test_anchors_are_torchvisions_but_for_its_rounding():
    strides, size = (4, 8, 16), (64, 96)
    ours = make_anchors(strides, size, base=3)
    sizes = tuple(tuple(3 * s * scale for scale in OCTAVE) for s in strides)
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    maps = [torch.zeros(1, 8, size[0] // s, size[1] // s) for s in strides]
    (theirs,) = generator(ImageList(torch.zeros(1, 3, *size), [size]), maps)
    # torchvision lets scales run fastest, rounds to pixels and puts anchors on cells' corners
    theirs = theirs.reshape(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 9, 4)
    cells = [len(m[0, 0].flatten()) for m in maps]
    half = torch.tensor(strides).repeat_interleave(torch.tensor(cells)) / 2
    assert (ours - half[:, None, None] - theirs).abs().max() <= 0.5 + 1e-4


def test_anchors_have_the_area_and_ratio_asked_for():
    anchors = make_anchors((8,), (16, 16), scales=(1.0, 2.0), ratios=(0.5, 3.0), base=2.0)
    assert anchors.shape == (4, 4, 4)
    side = anchors[..., 2:] - anchors[..., :2]
    torch.testing.assert_close(side.prod(-1)[0], torch.tensor([256.0, 256.0, 1024.0, 1024.0]))
    torch.testing.assert_close(side[0, :, 1] / side[0, :, 0], torch.tensor([0.5, 3.0, 0.5, 3.0]))
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    expected = torch.tensor([[4.0, 4], [12, 4], [4, 12], [12, 12]])
    torch.testing.assert_close(centre, expected[:, None].expand(-1, 4, -1))


def test_locations_follow_the_anchors():
    strides, size = (4, 8), (16, 24)
    points, level = locations(strides, size)
    anchors = make_anchors(strides, size)
    torch.testing.assert_close((anchors[..., :2] + anchors[..., 2:])[:, 4] / 2, points)
    assert level.tolist() == [0] * 24 + [1] * 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": (64, 60)}, "must be multiples of the stride 16"),
        ({"scales": (0.0,)}, "need positive numbers"),
        ({"ratios": ()}, "at least one"),
    ],
)
def test_impossible_anchors_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        make_anchors(**{"strides": (4, 16), "image_size": (64, 64), **given})
