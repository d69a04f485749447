import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from toolkit.data import load_emoji, load_photos, shots

PLACES = range(22)


def draw(count, world=0):
    return [shots.draw_shot(np.random.default_rng([world, i]), PLACES) for i in range(count)]


@pytest.fixture(scope="module")
def sprites():
    return load_emoji().images[3000:3024]


@pytest.fixture(scope="module")
def tiles():
    return load_photos().images


@pytest.fixture(scope="module")
def drawn():
    return draw(24)


@pytest.fixture(scope="module")
def rendered(sprites, drawn, tiles):
    return shots.render_shots(sprites, drawn, tiles)


def test_same_generator_draws_the_same_shot():
    first, second = draw(1)[0], draw(1)[0]
    assert np.array_equal(first.noise, second.noise)
    assert first.background == second.background
    assert (first.side, first.quality) == (second.side, second.quality)


def test_draws_stay_in_their_ranges_and_fill_them():
    many = draw(2000)

    def extremes(of):
        values = [of(shot) for shot in many]
        return min(values), max(values)

    ranges = [
        (lambda s: s.side, 0.45, 0.7),
        (lambda s: s.stretch, -0.1, 0.1),
        (lambda s: s.angle, -10, 10),
        (lambda s: s.spot[1], 0, 1),
        (lambda s: s.contrast, 2**-0.15, 2**0.15),
        (lambda s: s.brightness, -10, 10),
        (lambda s: s.gains[2], 0.95, 1.05),
        (lambda s: s.blur, 0, 0.5),
    ]
    for of, low, high in ranges:
        least, most = extremes(of)
        assert low <= least < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < most <= high
    assert extremes(lambda s: s.quality) == (70, 90)
    assert extremes(lambda s: s.background.side) == (64, 224)
    assert extremes(lambda s: s.background.place) == (0, 21)
    assert {shot.background.flip for shot in many} == {True, False}
    assert all(s.background.left + s.background.side <= 224 for s in many)
    assert np.std([shot.noise for shot in many[:50]]) == pytest.approx(2, abs=0.01)


def test_box_is_inside_and_everywhere(sprites, tiles):
    boxes = torch.cat(
        [shots.render_shots(sprites, draw(24, world), tiles).box for world in range(6)]
    )
    assert boxes.min() == 0
    assert boxes.max() == 64
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_shots_do_not_depend_on_their_neighbours(sprites, drawn, tiles, rendered):
    alone = shots.render_shots(sprites[5:6], drawn[5:6], tiles)
    assert torch.equal(alone.image[0], rendered.image[5])
    assert torch.equal(alone.crop[0], rendered.crop[5])
    assert torch.equal(alone.box[0], rendered.box[5])


def test_background_is_the_tile_outside_the_box(sprites, drawn, tiles, rendered):
    """Up to the camera: every shot's background goes with its own tile best."""
    small = shots.render_backgrounds([shot.background for shot in drawn], tiles, 64)
    for row, (left, top, right, bottom) in enumerate(rendered.box.int().tolist()):
        outside = torch.ones(64, 64, dtype=torch.bool)
        outside[max(top - 3, 0) : bottom + 3, max(left - 3, 0) : right + 3] = False
        seen = rendered.image[row].double()[:, outside] / 255
        error = (small[:, :, outside] - seen).abs().mean((1, 2))
        assert error.argmin() == row
        assert error[row] < 0.08


def test_flip_mirrors_the_window(tiles):
    plain = shots.Background(3, 10, 20, 100, False)
    flipped = shots.Background(3, 10, 20, 100, True)
    small = shots.render_backgrounds([plain, flipped], tiles, 64)
    assert torch.equal(small[0], small[1].flip(2))
    window = tiles[3, :, 20:120, 10:110].double()
    assert small[0].mean() * 255 == pytest.approx(window.mean().item(), abs=1e-6)


def test_crop_is_the_square_around_the_box_with_a_tenth_on_each_side(tiles):
    """Of an opaque black sprite 48 / 1.2 = 40 px remain, in the middle, wherever it stood."""
    black = torch.zeros(40, 4, 64, 64, dtype=torch.uint8)
    black[:, 3] = 255
    still = {"stretch": 0.0, "angle": 0.0, "blur": 0.0, "brightness": 0.0, "contrast": 1.0}
    edges = [{"spot": spot} for spot in ((0.0, 0.0), (0.999, 0.0), (0.0, 0.999))]
    plain = [shots.Shot(**(vars(shot) | still)) for shot in draw(40)]
    plain[:3] = [
        shots.Shot(**(vars(shot) | edge)) for shot, edge in zip(plain, edges, strict=False)
    ]
    rendered = shots.render_shots(black, plain, tiles)
    dark = rendered.crop.float().mean(1) < 100
    inner, outer = dark[:, 6:42, 6:42], dark.clone()
    outer[:, 2:46, 2:46] = False
    assert inner.all()
    assert not outer.any()


def test_crop_is_white_beyond_the_frame():
    shot = shots.draw_shot(np.random.default_rng(1), [0])
    corner = shots.Shot(**(vars(shot) | {"spot": (0.0, 0.0)}))
    grey = torch.full((1, 3, 224, 224), 60, dtype=torch.uint8)
    sprite = torch.full((1, 4, 64, 64), 255, dtype=torch.uint8)
    sprite[:, :3] = 0
    crop = shots.render_shots(sprite, [corner], grey).crop[0]
    assert (crop[:, :2] == 255).all()
    assert (crop[:, :, :2] == 255).all()
    assert crop[:, 4:-4, -1].float().mean() < 240


def test_crop_fades_the_background_by_four_fifths():
    """Over a black tile the crop's margin is 0.8 · 255 = 204, but for noise and JPEG."""
    tile = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    sprite = torch.zeros(1, 4, 64, 64, dtype=torch.uint8)
    sprite[:, :, 16:48, 16:48] = 255
    shot = shots.draw_shot(np.random.default_rng(3), [0])
    still = {"contrast": 1.0, "brightness": 0.0, "gains": (1.0, 1.0, 1.0)}
    crop = shots.render_shots(sprite, [shots.Shot(**(vars(shot) | still))], tile).crop
    assert crop[..., :2].float().mean() == pytest.approx(204, abs=3)
    assert crop[..., 20:28, 20:28].float().mean() == pytest.approx(254, abs=2)


def test_light_changes_as_drawn():
    shot = draw(1)[0]
    plain = {"blur": 0.0, "noise": np.zeros((3, 64, 64), np.float32), "quality": 95}
    shot = shots.Shot(**(vars(shot) | plain))
    seen = shots.photograph(torch.full((1, 3, 64, 64), 0.4, dtype=torch.float64), [shot])
    expected = ((0.4 * 255 - 128) * shot.contrast + 128 + shot.brightness) * np.array(shot.gains)
    np.testing.assert_allclose(seen.mean((0, 1, 2)), expected, atol=1.5)


def test_blur_agrees_with_scipy():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(0, 255, (3, 2, 9, 8)))
    sigma = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64)
    ours = shots.blurred(images, sigma[:, None, None, None]).numpy()
    for image, s, got in zip(images.numpy(), sigma.tolist(), ours, strict=True):
        for channel, blurry in zip(image, got, strict=True):
            expected = gaussian_filter(channel, s, mode="nearest", radius=2) if s else channel
            np.testing.assert_allclose(blurry, expected, atol=1e-9)


def test_counts_must_agree(sprites, drawn, tiles):
    with pytest.raises(ValueError, match="3 sprites for 24 shots"):
        shots.render_shots(sprites[:3], drawn, tiles)
