"""Reading motion, seeing it through crops and mirrors, the networks and the losses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from toolkit.data import CompressedClip, DataError, encode_h264, load_emoji_video, read_compressed
from toolkit.data.motion_vectors import VECTOR
from toolkit.learn.distributed import gather_with_grad, launch, world
from toolkit.representation import context_motion as cm
from toolkit.representation.context_motion import codec, videos


def rng(number=0):
    return torch.Generator().manual_seed(number)


# --- motion -------------------------------------------------------------------------------------


def test_keyframes_get_the_mean_of_their_neighbours():
    mv = torch.arange(5.0)[:, None, None, None].expand(5, 2, 3, 3).clone()
    mv[[0, 3]] = 0
    filled = cm.fill_intra(mv, "IPPIP")
    assert filled[:, 0, 0, 0].tolist() == [1, 1, 2, 3, 4]
    assert mv[3].abs().max() == 0
    assert torch.equal(cm.fill_intra(mv, "IPPII")[3], mv[2])


def test_filling_refuses_what_has_no_motion():
    with pytest.raises(ValueError, match="all are I-frames"):
        cm.fill_intra(torch.zeros(2, 2, 1, 1), "II")
    with pytest.raises(ValueError, match="one kind a frame"):
        cm.fill_intra(torch.zeros(2, 2, 1, 1), "IPP")


def test_negative_windows_never_touch_the_positive_one():
    positive = torch.arange(17, 41).repeat(20)
    starts = cm.negative_starts(positive, 3, 48, rng())
    assert (starts - positive[:, None]).abs().min() == 8
    assert set(starts[positive == 20].flatten().tolist()) <= {*range(13), *range(28, 41)}
    assert len(starts[positive == 20].unique()) > 15
    with pytest.raises(ValueError, match="no window of 8 frames is free"):
        cm.negative_starts(torch.tensor([4]), 1, 15, rng())


def test_keyframes_are_drawn_near_the_clip():
    keyframes = torch.tensor([0, 12, 24, 36])
    found = cm.keyframe_near(torch.full((200,), 8), keyframes, rng())
    assert set(found.tolist()) == {12, 24}  # clip 8…22, keyframes of 3…27
    with pytest.raises(ValueError, match=r"no keyframe within 5 frames of the clips at \[20\]"):
        cm.keyframe_near(torch.tensor([0, 20]), torch.tensor([0]), rng())


def test_clips_and_motion_must_fit_into_their_video():
    grey, mv = torch.zeros(1, 48, 4, 4, dtype=torch.uint8), torch.zeros(1, 48, 2, 2, 2)
    assert videos.clip_frames(grey, torch.tensor([33])).shape == (1, 8, 4, 4)
    assert videos.motion_windows(mv, torch.tensor([40])).shape == (1, 8, 2, 2, 2)
    with pytest.raises(ValueError, match="leaves the 48"):
        videos.clip_frames(grey, torch.tensor([34]))
    with pytest.raises(ValueError, match="leaves the 48 frames"):
        videos.motion_windows(mv, torch.tensor([41]))


def intra_only():
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    return encode_h264(frames, g=1)


def test_short_intra_only_and_broken_videos_are_refused():
    with pytest.raises(ValueError, match="no motion vectors"):
        videos.check_clip(read_compressed(intra_only(), rgb=False), 6)
    moving = read_compressed(encode_h264(np.zeros((6, 32, 32, 3), np.uint8)), rgb=False)
    assert isinstance(videos.check_clip(moving, 6), CompressedClip)
    with pytest.raises(ValueError, match="need 7 frames or more, the video has 6"):
        videos.check_clip(moving, 7)
    with pytest.raises(DataError, match="damaged"):
        read_compressed(intra_only()[:400], rgb=False)


def test_exact_motion_of_a_turning_growing_object():
    """Against the map itself: a point of the object, moved by hand."""
    pose = torch.tensor([[10.0, 10, 0, 0], [12, 9, 0.1, 30]])
    mask = torch.ones(2, 20, 20, dtype=torch.bool)
    truth = cm.exact_motion(pose, torch.tensor([0.5, -0.25]), mask)
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    source = np.array([13.0, 8.0])
    target = pose[1, :2].numpy() + np.exp(0.1) * turn @ (source - pose[0, :2].numpy())
    column, row = np.floor(target).astype(int)
    assert np.allclose(truth[1, :, row, column], target - source, atol=0.25)
    assert truth[0].abs().max() == 0
    still = cm.exact_motion(pose, torch.tensor([0.5, -0.25]), ~mask)
    assert torch.allclose(still[1], torch.tensor([-0.5, 0.25])[:, None, None].expand(2, 20, 20))


def test_vectors_lie_near_the_exact_motion_of_rendered_clips():
    clips = load_emoji_video("easy", "test", decode=False)
    errors = cm.vector_errors(clips, torch.arange(0, 40, 5))
    assert errors["object"].mean() < 0.5 * errors["object_zero"].mean()
    assert errors["object"].mean() < 0.2


def test_regions_keep_away_from_the_border():
    mask = torch.zeros(2, 48, 48, dtype=torch.bool)
    mask[:, 6:34, 6:34] = True
    found = codec.regions(mask)
    assert found["object"][1].nonzero().tolist() == [[i, j] for i in (1, 2, 3) for j in (1, 2, 3)]
    assert not found["ground"][1, :5, :5].any()
    assert found["ground"][1, 5, 5]


# --- crops and mirrors --------------------------------------------------------------------------


def translation(u, v, cells=14):
    mv = torch.zeros(1, 8, 2, cells, cells)
    mv[:, :, 0], mv[:, :, 1] = u, v
    return mv


@pytest.mark.parametrize("aware", [True, False])
def test_vectors_follow_mirrors_and_crops_only_where_they_should(aware):
    transform = cm.MotionTransform(aware=aware)
    view = cm.View(torch.tensor([[0.25, 0.5, 0.5, 0.25]]), torch.tensor([True]))
    seen = transform.vectors(translation(2.0, 1.0), view)
    assert seen.shape == (1, 2, 8, 14, 14)
    expected = (-4.0, 4.0) if aware else (2.0, 1.0)
    assert torch.allclose(10 * seen[0, :, 0, 3, 3], torch.tensor(expected))


def test_vectors_are_cut_and_scaled():
    seen = cm.MotionTransform().vectors(translation(25.0, -40.0), cm.MotionTransform.whole(1))
    assert seen[0, :, 0, 0, 0].tolist() == [1, -1]


def test_pictures_and_vectors_are_cut_and_mirrored_alike():
    """A bright square and the motion at its place stay together under every view."""
    frames, mv = torch.zeros(1, 8, 56, 56, dtype=torch.uint8), torch.zeros(1, 8, 2, 14, 14)
    frames[:, :, 8:24, 28:44], mv[:, :, 1, 2:6, 7:11] = 255, 1.0
    transform = cm.MotionTransform(side=14, area=(0.5, 1.0))
    for number in range(10):
        view = transform.draw(1, rng(number))
        picture = transform.pictures(frames, view)[0, 0, 0]
        moving = transform.vectors(mv, view)[0, 1, 0]
        assert (picture / picture.max() - moving / moving.max()).abs().mean() < 0.06


def test_views_lie_inside_the_frame_and_use_the_whole_range():
    box = cm.MotionTransform().draw(500, rng()).box
    assert box.min() >= 0
    assert (box[:, :2] + box[:, 2:]).max() <= 1 + 1e-6
    area = box[:, 2] * box[:, 3]
    assert area.min() < 0.25 < 0.9 < area.max()


def test_a_whole_view_changes_nothing():
    frames = torch.randint(0, 256, (2, 8, 40, 40), dtype=torch.uint8, generator=rng())
    seen = cm.MotionTransform().pictures(frames, cm.MotionTransform.whole(2))
    assert torch.allclose(seen[:, 0], frames / 255, atol=1e-6)


def test_real_motion_flips_with_the_pictures():
    """Encoding a mirrored clip gives the mirrored field: the encoder is the reference."""
    clips = load_emoji_video("easy", "test", decode=False)
    read = read_compressed(clips.path[0])
    pictures = read.rgb.flip(-1).permute(0, 2, 3, 1).numpy()
    again = read_compressed(encode_h264(pictures), rgb=False).mv
    transform = cm.MotionTransform(limit=1e3)
    view = cm.View(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([True]))
    aware = 1e3 * transform.vectors(read.mv[None], view)[0].transpose(0, 1)
    plain = aware * torch.tensor([-1.0, 1])[:, None, None]
    assert (aware - again).abs().mean() < 0.6 * (plain - again).abs().mean()


# --- losses -------------------------------------------------------------------------------------


def unit(n, d, number=0):
    return F.normalize(torch.randn(n, d, generator=rng(number)), dim=1)


def test_info_nce_equals_its_formula():
    q, k, others = unit(5, 8), unit(5, 8, 1), unit(7, 8, 2)
    keys = torch.cat([k, others])
    expected = 0.0
    for i in range(5):
        scores = [float(q[i] @ key) / 0.2 for key in keys]
        expected -= scores[i] - np.log(np.exp(scores).sum())
    assert float(cm.pointwise_info_nce(q, k, others, 0.2)) == pytest.approx(expected / 5, rel=1e-5)


def test_info_nce_of_orthogonal_features_has_a_closed_form():
    eye = torch.eye(6)
    assert float(cm.pointwise_info_nce(eye, eye, tau=0.5)) == pytest.approx(
        np.log(1 + 5 * np.exp(-2)), rel=1e-6
    )


def test_chunks_change_neither_loss_nor_gradient():
    results = []
    for chunk in (None, 2):
        q, k = unit(5, 8).requires_grad_(), unit(5, 8, 1).requires_grad_()
        loss = cm.pointwise_info_nce(q, k, unit(4, 8, 2), 0.1, chunk)
        loss.backward()
        results.append((loss.detach(), q.grad, k.grad))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert results[0][2].abs().max() > 0  # both sides learn


def test_info_nce_refuses_unequal_rows_and_temperatures():
    with pytest.raises(ValueError, match="one key a query"):
        cm.pointwise_info_nce(unit(3, 4), unit(2, 4))
    with pytest.raises(ValueError, match="temperature must be positive"):
        cm.pointwise_info_nce(unit(3, 4), unit(3, 4), tau=0)


def sharded_loss():
    """Loss and gradient of this process's half of the rows."""
    rank, size = world()
    q, k, others = (part.chunk(size)[rank] for part in (unit(6, 8), unit(6, 8, 1), unit(4, 8, 2)))
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    loss = cm.pointwise_info_nce(q, k, others)
    loss.backward()
    mean = gather_with_grad(loss.detach()[None]).mean()
    return mean, q.grad / size, k.grad / size


def test_two_processes_equal_one():
    (one,) = launch(sharded_loss, 1)
    both = launch(sharded_loss, 2)
    assert torch.allclose(both[0][0], one[0], atol=1e-6)
    for part in (1, 2):
        assert torch.allclose(torch.cat([rank[part] for rank in both]), one[part], atol=1e-6)


# --- networks -----------------------------------------------------------------------------------


def tiny(linear=False):
    torch.manual_seed(0)
    return cm.tiny_network(32, (1, 1), 4, 0.0, (32, 16), linear)


@pytest.mark.parametrize("linear", [False, True])
def test_shapes_of_the_tiny_network(linear):
    net = tiny(linear)
    maps = net.maps(torch.randn(3, 1, 8, 40, 40))
    assert maps.shape == (3, 64, 2, 5, 5)
    assert net.embed(torch.randn(3, 1, 8, 40, 40)).shape == (3, 64)
    assert net.motion_queries(maps).shape == (3 * 49, 16)
    assert net.motion_keys(torch.randn(3, 2, 8, 14, 14)).shape == (3 * 49, 16)
    assert net.context_queries(maps).shape == net.context_keys(torch.randn(3, 1, 40, 40)).shape
    assert torch.allclose(net.motion_queries(maps).norm(dim=1), torch.ones(147), atol=1e-5)


def test_the_released_transformer_has_the_released_shapes():
    predictor = cm.MotionPredictor(256, 64, layers=(2, 4), heads=8, hidden=64)
    assert predictor(torch.randn(2, 256, 2, 7, 7)).shape == (2, 49, 64)
    with pytest.raises(ValueError, match="need 98 positions, got 50"):
        predictor(torch.randn(2, 256, 2, 5, 5))
    with pytest.raises(ValueError, match="multiple of 5 heads"):
        cm.MotionPredictor(8, 64, heads=5)


def test_predicted_positions_differ_and_depend_on_the_whole_clip():
    predictor = tiny().predictor.eval()
    maps = torch.randn(1, 64, 2, 5, 5)
    found = predictor(maps)
    assert found[0].std(dim=0).mean() > 0.05
    far = maps.clone()
    far[..., 4, 4] += 5
    assert (predictor(far) - found)[0, 0].abs().max() > 1e-4
    linear = tiny(linear=True).predictor.eval()
    assert (linear(far) - linear(maps))[0, 0].abs().max() == 0


def test_keys_of_unlike_motion_are_negatives_of_every_query():
    net = tiny()
    maps, windows = torch.randn(2, 64, 2, 5, 5), torch.randn(2, 2, 8, 14, 14)
    alone = cm.motion_loss(net, maps, windows, windows[:0], 0.1)
    more = cm.motion_loss(net, maps, windows, torch.randn(6, 2, 8, 14, 14), 0.1)
    assert more > alone


def test_questions_are_asked_where_it_moves():
    windows = torch.zeros(2, 2, 8, 14, 14)
    windows[0, 0, :, 4:6, 6:8], windows[1, 1, :, 0:2, 0:2] = 0.1, 0.2
    assert cm.fastest(windows, 1).tolist() == [2 * 7 + 3, 49]
    net, maps = tiny().eval(), torch.randn(2, 64, 2, 5, 5)
    every = cm.motion_loss(net, maps, windows, windows, 0.1, torch.arange(98))
    assert torch.allclose(every, cm.motion_loss(net, maps, windows, windows, 0.1))


def test_rasterising_is_the_shared_one():
    mv, valid = cm.rasterize_mvs([np.empty(0, VECTOR)], 16, 16)
    assert mv.shape == (1, 2, 2, 2)
    assert not valid.any()
