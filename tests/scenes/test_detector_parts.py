import pytest
import torch
from torchvision.ops import batched_nms

from tests.scenes.test_boxes import random_boxes
from toolkit.data import DataMissing
from toolkit.scenes.backbone import EmojiBackbone, pretrained_backbone
from toolkit.scenes.detections import select
from toolkit.scenes.heads import Tower, rare_bias
from toolkit.scenes.pyramid import EmojiPyramid, ResNetPyramid


@pytest.mark.parametrize("strides", [(4, 8), (4, 8, 16)])
def test_pyramid_has_one_map_a_stride(strides):
    maps = EmojiPyramid(strides)(torch.rand(2, 3, 64, 96))
    assert [one.shape for one in maps] == [(2, 48, 64 // s, 96 // s) for s in strides]


def test_pyramid_starts_from_the_shared_weights():
    pyramid = EmojiPyramid()
    shared = pretrained_backbone().state_dict()
    for name, weights in pyramid.backbone.state_dict().items():
        assert weights.equal(shared[name])
    torch.manual_seed(0)
    fresh = EmojiPyramid(pretrained=False).backbone.state_dict()
    assert not fresh["stem.0.0.weight"].equal(shared["stem.0.0.weight"])


def test_missing_weights_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match="python -m data_scripts fetch scenes"):
        EmojiPyramid()


def test_backbone_has_the_five_convolutions_of_the_book():
    convolutions = [m for m in EmojiBackbone().modules() if isinstance(m, torch.nn.Conv2d)]
    shapes = [(one.in_channels, one.out_channels, one.stride[0]) for one in convolutions]
    assert shapes == [(3, 24, 2), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1)]


@pytest.mark.slow
def test_resnet_pyramid_is_torchvisions():
    body = ResNetPyramid(weights=None).eval()
    with torch.no_grad():
        maps = body(torch.rand(1, 3, 128, 128))
    assert [one.shape for one in maps] == [(1, 256, 128 // s, 128 // s) for s in body.strides]
    with pytest.raises(ValueError, match="depth must be 50 or 101, got 18"):
        ResNetPyramid(18)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EmojiPyramid((8, 16)), "strides must be"),
        (lambda: EmojiPyramid(width=20), "multiple of 8"),
        (lambda: Tower(48, 0), "outputs ≥ 1"),
        (lambda: Tower(48, 4, groups=7), "groups that divide the width"),
    ],
)
def test_impossible_parts_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_towers_are_shared_by_levels_whose_outputs_follow_each_other():
    torch.manual_seed(0)
    tower = Tower(16, 5)
    torch.nn.init.normal_(tower.last.weight)
    maps = [torch.rand(2, 16, 8, 12), torch.rand(2, 16, 4, 6)]
    out = tower(maps)
    assert out.shape == (2, 96 + 24, 5)
    whole = tower.last(tower.body(maps[1]))
    torch.testing.assert_close(out[1, 96 + 6 + 2], whole[1, :, 1, 2])


def test_rare_classes_start_at_their_probability():
    assert torch.sigmoid(torch.tensor(rare_bias(0.01))).item() == pytest.approx(0.01)


# ------------------------------------------------------------------------------- selection


def one_by_one(boxes, scores, threshold, nms_iou, most):
    """Selection of one image by plain torchvision calls."""
    place, label = (scores > threshold).nonzero(as_tuple=True)
    box, value = boxes[place].clamp(0, 64), scores[place, label]
    keep = batched_nms(box, value, label, nms_iou)[:most]
    return box[keep], value[keep], label[keep]


def test_selection_of_a_batch_is_that_of_its_images():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.stack([random_boxes(60, seed) + 3 for seed in range(4)])
    scores = torch.rand(4, 60, 3, generator=generator)
    scores[2] = 0.0
    found = select(boxes, scores, (64, 64), levels=(40, 20), threshold=0.2, most=20)
    for number, one in enumerate(found):
        box, value, label = one_by_one(boxes[number], scores[number], 0.2, 0.5, 20)
        torch.testing.assert_close(one.boxes, box)
        torch.testing.assert_close(one.scores, value)
        assert one.labels.equal(label)
    assert len(found[2].scores) == 0


def test_a_level_keeps_its_best_only():
    boxes = torch.tensor([[[0.0, 0, 4, 4], [10, 10, 14, 14], [20, 20, 24, 24]]])
    scores = torch.tensor([[[0.3], [0.9], [0.5]]])
    found = select(boxes, scores, (64, 64), levels=(2, 1), per_level=1)[0]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.5]))


def test_boxes_are_clipped_to_the_image():
    found = select(torch.tensor([[[-5.0, 2, 90, 70]]]), torch.tensor([[[0.9]]]), (48, 64))[0]
    assert found.boxes.tolist() == [[0, 2, 64, 48]]
