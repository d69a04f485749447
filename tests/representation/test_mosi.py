"""The generator, the mask, the maps: against analytic images, plain slicing and OpenCV."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.representation import mosi
from toolkit.representation.mosi.generator import rectangle

POOL = mosi.MotionClass()


def rng(number=0):
    return torch.Generator().manual_seed(number)


def texture(count, side, seed=0, channels=1):
    """Smooth random pictures."""
    noise = torch.rand(count, channels, side, side, generator=rng(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False)


# --- classes ------------------------------------------------------------------------------------


def test_nine_classes_in_the_released_order():
    across = [(-2, 0), (-1, 0), (1, 0), (2, 0)]
    assert [tuple(row) for row in POOL.speeds.tolist()] == [
        *across,
        *[(y, x) for x, y in across],
        (0, 0),
    ]
    assert POOL.n == 9
    assert mosi.MotionClass(2, decoupled=False).n == 25


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 4), st.booleans())
def test_counts_indices_and_symmetries(K, decoupled):
    pool = mosi.MotionClass(K, decoupled)
    assert pool.n == (4 * K + 1 if decoupled else (2 * K + 1) ** 2)
    labels = torch.arange(pool.n)
    for label, (x, y) in enumerate(pool.speeds.tolist()):
        assert pool.index(x, y) == label
        assert pool.speeds[pool.hflip(labels)[label]].tolist() == [-x, y]
        assert pool.speeds[pool.vflip(labels)[label]].tolist() == [x, -y]
        assert pool.speeds[pool.time_reverse(labels)[label]].tolist() == [-x, -y]
        assert pool.axis_labels(labels)[label].tolist() == [x + K, y + K]


def test_a_missing_class_is_named():
    with pytest.raises(ValueError, match=r"\(1, 1\) is no class"):
        POOL.index(1, 1)
    with pytest.raises(ValueError, match="at least 1"):
        mosi.MotionClass(0)


# --- motion -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "crop", "frames"), [(320, 112, 14), (58, 40, 19), (72, 40, 33)])
def test_on_a_ramp_the_change_is_the_windows_velocity(side, crop, frames):
    """I(x, y) = x or y: every pixel changes by the window's velocity, to the pixel's rounding."""
    travel = side - crop
    for axis in (0, 1):
        ramp = torch.arange(side, dtype=torch.float64).expand(side, side)
        image = (ramp if axis == 0 else ramp.T)[None, None].clone()
        whole, _ = mosi.pseudo_motion(image, POOL.factors, crop, frames, rng())
        smooth, labels = mosi.pseudo_motion(image, POOL.factors, crop, frames, rng(), subpixel=True)
        velocity = POOL.factors[:, axis].double() * travel / (frames - 1)
        change = smooth.diff(dim=2)
        assert torch.allclose(change, velocity[labels].view(-1, 1, 1, 1, 1).expand_as(change))
        assert (whole.diff(dim=2) - velocity[labels].view(-1, 1, 1, 1, 1)).abs().max() < 1
        assert torch.equal(
            whole.diff(dim=2)[labels == 8], torch.zeros(1, 1, frames - 1, crop, crop)
        )


def test_a_sine_wave_advances_by_velocity_times_frequency():
    side, crop, frames, frequency = 320, 112, 16, 2 * math.pi / 56
    wave = torch.sin(frequency * torch.arange(side, dtype=torch.float64)).expand(1, 1, side, side)
    clips, _ = mosi.pseudo_motion(wave, POOL.factors[:4], crop, frames, rng(), subpixel=True)
    for clip, factor in zip(clips[:, 0], POOL.factors[:4, 0].tolist(), strict=True):
        spectrum = torch.fft.rfft(clip[:, 0], dim=1)[:, crop // 56]
        advance = torch.angle(spectrum[1:] / spectrum[:-1])
        expected = frequency * factor * (side - crop) / (frames - 1)
        wrapped = (expected + math.pi) % (2 * math.pi) - math.pi
        assert (advance - wrapped).abs().max() < 0.02


def test_phase_correlation_recovers_the_velocity():
    """OpenCV measures how far the content moved: the other way than the window."""
    images = texture(3, 200, seed=1)
    clips, labels = mosi.pseudo_motion(images, POOL.factors, 128, 16, rng(), subpixel=True)
    hanning = cv2.createHanningWindow((128, 128), cv2.CV_32F)
    for clip, label in zip(clips[:, 0].numpy(), labels.tolist(), strict=True):
        moves = [cv2.phaseCorrelate(clip[t], clip[t + 1], hanning)[0] for t in range(15)]
        expected = -POOL.factors[label].numpy() * 72 / 15
        assert np.abs(np.median(moves, axis=0) - expected).max() < 0.2


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("decoupled", [True, False])
def test_one_gather_equals_plain_slicing_bit_by_bit(train, decoupled):
    pool, (side, crop, frames) = mosi.MotionClass(2, decoupled), (29, 16, 6)
    images = torch.rand(3, 3, side, side, generator=rng(3))
    clips, labels = mosi.pseudo_motion(images, pool.factors, crop, frames, rng(4), train)
    distance = pool.factors.repeat(3, 1) * (side - crop)
    path = mosi.window_path(distance, side - crop, frames, rng(4) if train else None).long()
    assert labels.tolist() == list(range(pool.n)) * 3
    for i, clip in enumerate(clips):
        for t in range(frames):
            x, y = path[i, t].tolist()
            frame = images[i // pool.n, :, y : y + crop, x : x + crop]
            assert torch.equal(clip[:, t], frame)


@pytest.mark.parametrize(("side", "crop"), [(320, 112), (58, 40), (300, 100)])
def test_time_reversal_negates_the_label_at_test_time(side, crop):
    images = torch.rand(2, 1, side, side, generator=rng())
    clips, labels = mosi.pseudo_motion(images, POOL.factors, crop, 16, rng(), train=False)
    back = POOL.time_reverse(labels) + 9 * torch.arange(2).repeat_interleave(9)
    assert torch.equal(clips.flip(2), clips[back])


@pytest.mark.parametrize("travel", [17, 19])
def test_time_reversal_is_not_exact_where_half_a_travel_is_not_whole(travel):
    images = torch.rand(1, 1, 40 + travel, 40 + travel, generator=rng())
    clips, labels = mosi.pseudo_motion(images, POOL.factors, 40, 16, rng(), train=False)
    assert not torch.equal(clips.flip(2), clips[POOL.time_reverse(labels)])


def test_starts_are_uniform_and_the_fastest_begin_at_a_border():
    path = mosi.window_path(torch.tensor([[9.0, 0.0]]).repeat(4000, 1), 18, 8, rng())
    counts = torch.bincount(path[:, 0, 0].long(), minlength=10)
    assert len(counts) == 10  # 0 … D − δ
    assert (counts - 400).abs().max() < 5 * 400**0.5
    assert path[:, 0, 1].max() == 18
    fast = mosi.window_path(POOL.factors * 18, 18, 8, rng())
    assert fast[[0, 3], 0, 0].tolist() == [18, 0]
    assert fast[[0, 3], -1, 0].tolist() == [0, 18]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_no_path_leaves_the_image(seed):
    pool = mosi.MotionClass(2, decoupled=False)
    images = torch.rand(2, 1, 31, 31, generator=rng(seed))
    clips, _ = mosi.pseudo_motion(images, pool.factors, 20, 5, rng(seed), jitter=(0.5, 1.4))
    assert torch.isfinite(clips).all()
    distance = 11 * pool.factors
    path = mosi.window_path(distance, 11, 5, rng(seed))
    assert path.min() >= 0
    assert path.max() <= 11
    # ends of half a pixel are cut, as released: the distance may be that much shorter
    assert torch.allclose((path[:, -1] - path[:, 0]).float(), distance, atol=0.5)


def test_jitter_never_goes_beyond_the_travel():
    ramp = torch.arange(60.0).expand(1, 1, 60, 60)
    reach = []
    for seed in range(60):
        clips, _ = mosi.pseudo_motion(
            ramp, POOL.factors, 40, 9, rng(seed), jitter=(0.6, 1.5), subpixel=True
        )
        reach.append((clips[:, 0, -1, 0, 0] - clips[:, 0, 0, 0, 0]) / 20)
    reach = torch.stack(reach)
    assert reach[:, 3].max() <= 1 + 1e-6  # the fastest: never more than the travel
    assert 0.6 <= reach[:, 3].min() < 0.75
    assert 0.7 < reach[:, 2].max() <= 0.75  # half the speed: up to 1.5 times as far
    assert reach[:, 2].min() >= 0.3 - 1e-6


def test_the_same_generator_gives_the_same_clips():
    images = texture(4, 58)
    make = [mosi.pseudo_motion(images, POOL.factors, 40, 8, rng(7))[0] for _ in range(2)]
    assert torch.equal(*make)
    assert not torch.equal(make[0], mosi.pseudo_motion(images, POOL.factors, 40, 8, rng(8))[0])


def test_whole_positions_agree_with_sub_pixel_ones():
    """Travel 14 in 8 frames: every position is whole, and both ways of sampling agree."""
    images = texture(1, 54)
    whole, smooth = (
        mosi.pseudo_motion(images, POOL.factors, 40, 8, rng(1), train=False, subpixel=sub)[0]
        for sub in (False, True)
    )
    assert torch.allclose(whole, smooth, atol=1e-6)
    other = mosi.pseudo_motion(images, POOL.factors, 39, 8, rng(1), train=False)[0]
    between = mosi.pseudo_motion(images, POOL.factors, 39, 8, rng(1), train=False, subpixel=True)[0]
    assert not torch.allclose(other[1], between[1], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(1, 1, 40, 41)}, "square"),
        ({"images": torch.zeros(1, 1, 30, 30)}, "larger than the crop"),
        ({"frames": 1}, "at least 2 frames"),
        ({"factors": torch.tensor([[1.5, 0.0]])}, "factors must lie"),
        ({"jitter": (0.0, 1.0)}, "jitter"),
        ({"jitter": (1.2, 1.1)}, "jitter"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {"images": torch.zeros(1, 1, 40, 40), "factors": POOL.factors, "crop": 30, "frames": 4}
    with pytest.raises(ValueError, match=message):
        mosi.pseudo_motion(**(good | change), generator=rng())


# --- mask and mirror ----------------------------------------------------------------------------


def test_outside_the_rectangle_nothing_changes_and_inside_all_is_as_before():
    clips, _ = mosi.pseudo_motion(texture(5, 58, channels=3), POOL.factors, 40, 8, rng())
    masked, rect = mosi.static_mask(clips, generator=rng(1), return_rect=True)
    top, left, side, frozen = rect.unbind(1)
    inside = rectangle(top, left, side, side, (40, 40))[:, None, None].expand_as(clips)
    assert torch.equal(masked[inside], clips[inside])
    outside = torch.where(inside, 0.0, masked)
    assert outside.var(dim=2).max() == 0
    rows = torch.arange(len(clips))
    assert torch.equal(masked[rows, :, frozen], clips[rows, :, frozen])
    assert not torch.equal(masked, clips)


def test_rectangles_are_where_the_paper_has_them():
    clips = torch.zeros(()).expand(300, 1, 16, 112, 112)
    _, rect = mosi.static_mask(clips, generator=rng(), return_rect=True)
    top, left, side, frozen = rect.unbind(1)
    assert side.min() >= int(0.3 * 112)
    assert side.max() <= int(0.5 * 112)
    assert ((top + side) <= 112).all()
    assert ((left + side) <= 112).all()
    assert set(frozen.tolist()) == set(range(16))
    assert abs(float(side.float().mean()) / 112 - 0.4) < 0.015


def test_the_mask_repeats_and_refuses_a_bad_range():
    clips = torch.rand(4, 1, 5, 20, 20, generator=rng())
    assert torch.equal(
        mosi.static_mask(clips, generator=rng(2)), mosi.static_mask(clips, generator=rng(2))
    )
    for ratio in ((0.0, 0.5), (0.6, 0.5), (0.5, 1.2)):
        with pytest.raises(ValueError, match="range in"):
            mosi.static_mask(clips, ratio, generator=rng())


def test_a_mirrored_clip_is_the_clip_of_the_mirrored_label():
    """Slide to the right and mirror: the same as sliding to the left over the mirrored image."""
    images = torch.rand(1, 1, 58, 58, generator=rng())
    clips, labels = mosi.pseudo_motion(images, POOL.factors, 38, 8, rng(), False, subpixel=True)
    turned, swapped = mosi.mirror(clips, labels, POOL, generator=rng(), p=1.0)
    other, _ = mosi.pseudo_motion(images.flip(-1), POOL.factors, 38, 8, rng(), False, subpixel=True)
    assert torch.allclose(turned, other[swapped], atol=1e-5)
    assert swapped.tolist() == [3, 2, 1, 0, 4, 5, 6, 7, 8]
    _, kept = mosi.mirror(clips, labels, POOL, generator=rng(), p=1.0, swap=False)
    assert torch.equal(kept, labels)


def test_half_of_the_clips_are_mirrored():
    clips = torch.rand(4000, 1, 1, 1, 2, generator=rng())
    turned, _ = mosi.mirror(clips, torch.zeros(4000, dtype=torch.long), POOL, generator=rng())
    share = float((turned != clips).any(dim=-1).float().mean())
    assert abs(share - 0.5) < 0.03


# --- maps ---------------------------------------------------------------------------------------


def test_the_first_of_equal_peaks_counts():
    maps = torch.zeros(2, 3, 3)
    maps[0, 1, 1] = maps[0, 2, 2] = 1
    masks = torch.zeros(2, 3, 3, dtype=torch.bool)
    masks[0, 1, 1] = True
    masks[1, 0, 0] = True  # all equal: the first pixel
    assert mosi.pointing_game(maps, masks).tolist() == [True, True]
    masks = torch.zeros(2, 3, 3, dtype=torch.bool)
    masks[0, 2, 2] = True
    assert mosi.pointing_game(maps, masks).tolist() == [False, False]


def test_a_map_without_a_peak_is_refused():
    masks = torch.zeros(1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="finite"):
        mosi.pointing_game(torch.full((1, 2, 2), torch.nan), masks)
    with pytest.raises(ValueError, match="one mask"):
        mosi.pointing_game(torch.zeros(1, 3, 3), masks)


def test_differences_find_what_moves_and_edges_what_stands_out():
    clips = torch.zeros(1, 1, 4, 40, 40)
    clips[..., 4:8, 4:8] = 1  # stands still
    for t in range(4):
        clips[0, 0, t, 28:32, 20 + 2 * t : 24 + 2 * t] = 0.2  # moves
    moving, still = torch.zeros(2, 1, 112, 112, dtype=torch.bool)
    moving[:, 70:95, 50:90] = True
    still[:, 5:30, 5:30] = True
    assert mosi.pointing_game(mosi.difference_map(clips, (112, 112)), moving).all()
    assert mosi.pointing_game(mosi.edge_map(clips, (112, 112)), still).all()


def test_activation_maps_have_the_size_asked_for_and_no_sign():
    torch.manual_seed(0)
    model = mosi.MoSINet(mosi.TinyVideoNet(), 9)
    clips = torch.rand(3, 1, 8, 40, 40, generator=rng())
    maps = mosi.cam(model, clips, (112, 112), chunk=2)
    assert maps.shape == (3, 112, 112)
    assert maps.min() >= 0
    assert model.training
    model.eval()
    coarse = model.maps(clips).detach().abs().sum(1).mean(1)
    assert coarse.shape == (3, 10, 10)
    assert torch.allclose(maps.mean(), coarse.mean(), rtol=0.1)
