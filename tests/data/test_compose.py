import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import masks_to_boxes

from toolkit.data import compose, load_emoji


@pytest.fixture(scope="module")
def sprites():
    return load_emoji().images[3000:3004]


def on_photo(sprites, photo=0.5, **pose):
    """Paste the same way on a plain ground of 96×80 pixels."""
    count = len(sprites)
    ground = torch.full((count, 3, 80, 96), photo)
    given = {"centres": torch.tensor([[48.0, 40.0]]), "angles": torch.zeros(1), **pose}
    given = {"scales": torch.ones(1), **given}
    given = {name: value.expand(count, *value.shape[1:]) for name, value in given.items()}
    theta = compose.placement(**given, sprite_size=sprites.shape[2:], photo_size=(80, 96))
    return compose.paste(ground, compose.premultiply(sprites), theta)


def test_pasting_in_place_is_plain_alpha_blending(sprites):
    images, masks, boxes = on_photo(sprites)
    colour, alpha = sprites[:, :3] / 255, sprites[:, 3:] / 255
    expected = colour * alpha + 0.5 * (1 - alpha)
    torch.testing.assert_close(images[:, :, 8:72, 16:80], expected, atol=1e-5, rtol=0)
    assert (images[:, :, :8] == 0.5).all()
    assert torch.equal(masks[:, 8:72, 16:80], alpha[:, 0] > 0.5)
    inclusive = masks_to_boxes(masks)
    assert torch.equal(boxes, inclusive + torch.tensor([0, 0, 1, 1]))


def test_whole_pixel_shift_moves_mask_and_box(sprites):
    still = on_photo(sprites)
    moved = on_photo(sprites, centres=torch.tensor([[51.0, 35.0]]))
    assert torch.equal(moved[1][:, :-5, 3:], still[1][:, 5:, :-3])
    assert torch.equal(moved[2], still[2] + torch.tensor([3, -5, 3, -5]))


@pytest.mark.parametrize("angle", [-40.0, 10.0, 90.0])
def test_rotation_is_anticlockwise_as_in_pillow(sprites, angle):
    layer = compose.premultiply(sprites)
    theta = compose.placement(
        torch.full((4, 2), 32.0), torch.full((4,), angle), torch.ones(4), (64, 64), (64, 64)
    )
    turned = compose.warp(layer, theta, 64, 64)[:, 3].numpy()
    for alpha, ours in zip(sprites[:, 3].numpy(), turned, strict=True):
        theirs = Image.fromarray(alpha).rotate(angle, Image.Resampling.BICUBIC)
        error = np.abs(np.asarray(theirs) / 255 - ours)
        assert error.mean() < 0.01


def test_scale_doubles_the_box(sprites):
    boxes = on_photo(sprites[:, :, 16:48, 16:48])[2]
    doubled = on_photo(sprites[:, :, 16:48, 16:48], scales=torch.full((1,), 2.0))[2]
    sides, twice = (box[:, 2:] - box[:, :2] for box in (boxes, doubled))
    assert ((twice - 2 * sides).abs() <= 2).all()


def test_transparent_colour_never_shows():
    sprite = torch.zeros(1, 4, 64, 64, dtype=torch.uint8)
    sprite[:, 0] = 255  # red everywhere, but seen only in the middle, where it is blue
    sprite[:, :, 20:44, 20:44] = torch.tensor([0, 0, 255, 255], dtype=torch.uint8)[:, None, None]
    small = compose.shrink(
        compose.premultiply(sprite), torch.tensor([30.0]), torch.tensor([30.0]), 64
    )
    theta = compose.placement(
        torch.tensor([[31.7, 32.4]]), torch.tensor([23.0]), torch.ones(1), (64, 64), (64, 64)
    )
    layer = compose.warp(small, theta, 64, 64)
    assert layer[:, 0].max() == 0
    assert layer[:, 2].max() > 0.99


def test_layers_stay_premultiplied(sprites):
    theta = compose.placement(
        torch.full((4, 2), 30.3), torch.full((4,), 17.0), torch.full((4,), 1.3), (64, 64), (64, 64)
    )
    layer = compose.warp(compose.premultiply(sprites), theta, 64, 64)
    assert layer.min() >= 0
    assert layer[:, 3].max() <= 1
    assert (layer[:, :3] <= layer[:, 3:]).all()


def test_average_of_whole_blocks_is_pillows_box_filter():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 48, 48))).double()
    box = torch.tensor([[0, 0, 48, 48], [6, 12, 42, 48]])
    ours = compose.average(pixels, box, 12)
    for image, corners, small in zip(pixels, box.tolist(), ours, strict=True):
        for channel, got in zip(image, small, strict=True):
            picture = Image.fromarray(channel.numpy().astype(np.float32))
            theirs = picture.resize((12, 12), Image.Resampling.BOX, corners)
            assert np.abs(np.asarray(theirs) - got.numpy()).max() < 1e-3


@given(
    x=st.floats(-3, 10), y=st.floats(-3, 10), wide=st.floats(1, 20), tall=st.floats(1, 20),
    size=st.integers(1, 9),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_average_keeps_the_sum_over_the_box(x, y, wide, tall, size):
    pixels = torch.arange(80, dtype=torch.float64).reshape(1, 1, 8, 10)
    box = torch.tensor([[x, y, x + wide, y + tall]], dtype=torch.float64)
    total = compose.average(pixels, box, size).sum() * wide * tall / size**2
    cover = [
        (min(high, n + 1) - max(low, n)) * (min(high, n + 1) > max(low, n))
        for low, high, length in ((y, y + tall, 8), (x, x + wide, 10))
        for n in range(length)
    ]
    weights = torch.tensor(cover, dtype=torch.float64)
    expected = weights[:8] @ pixels[0, 0] @ weights[8:]
    assert total.item() == pytest.approx(expected.item(), abs=1e-8)


def test_shrunk_sprites_are_centred_with_the_given_sides():
    opaque = torch.ones(2, 4, 64, 64)
    small = compose.shrink(opaque, torch.tensor([32.0, 20.5]), torch.tensor([48.0, 64.0]), 64)
    torch.testing.assert_close(small[:, 3].sum((1, 2)), torch.tensor([32 * 48.0, 20.5 * 64]))
    assert compose.boxes_of(small[:, 3] > 0.5).tolist() == [[16, 8, 48, 56], [22, 0, 42, 64]]
    torch.testing.assert_close(small, small.flip(2))
    torch.testing.assert_close(small, small.flip(3))


def test_nothing_grows_by_averages():
    with pytest.raises(ValueError, match="would grow to 65×3 px"):
        compose.shrink(torch.ones(1, 4, 64, 64), torch.tensor([65.0]), torch.tensor([3.0]), 64)


def test_empty_boxes_are_refused():
    with pytest.raises(ValueError, match="x1 > x0"):
        compose.average(torch.ones(1, 1, 4, 4), torch.tensor([[2, 0, 2, 3]]), 2)


def test_box_of_an_empty_mask_is_all_zero():
    masks = torch.zeros(2, 5, 7, dtype=torch.bool)
    masks[1, 4, 6] = True
    assert compose.boxes_of(masks).tolist() == [[0, 0, 0, 0], [6, 4, 7, 5]]


def test_on_white_leaves_opaque_pixels_and_whitens_the_rest(sprites):
    white = compose.on_white(sprites)
    opaque, clear = sprites[:, 3] == 255, sprites[:, 3] == 0
    assert torch.equal(white.movedim(1, 3)[opaque], sprites[:, :3].movedim(1, 3)[opaque])
    assert (white.movedim(1, 3)[clear] == 255).all()
