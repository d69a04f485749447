import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data import instance_noise, matrix_noise, pair_noise, symmetric_noise


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


LABELS = torch.arange(5).repeat(8000)
PAIRS = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])


@given(st.floats(0, 1), st.integers(2, 20), st.integers(0, 2**31), st.booleans())
def test_flipped_is_where_given_and_clean_differ(rate, num_classes, seed, pairs):
    y = torch.randint(num_classes, (50,), generator=seeded(seed))
    noise = pair_noise if pairs else symmetric_noise
    noisy = noise(y, rate, num_classes, generator=seeded(seed))
    assert torch.equal(noisy.clean, y)
    assert torch.equal(noisy.flipped, noisy.given != y)
    assert 0 <= noisy.given.min() <= noisy.given.max() < num_classes


def test_symmetric_noise_flips_at_its_rate_to_all_other_classes_alike():
    noisy = symmetric_noise(LABELS, 0.4, 5, generator=seeded())
    table = torch.zeros(5, 5).index_put_(
        (noisy.clean, noisy.given), torch.tensor(1 / 8000), accumulate=True
    )
    expected = torch.full((5, 5), 0.1) + 0.5 * torch.eye(5)
    assert (table - expected).abs().max() < 0.02


def test_pair_noise_flips_at_its_rate_to_the_next_class():
    noisy = pair_noise(LABELS, 0.3, 5, generator=seeded())
    assert abs(noisy.flipped.float().mean() - 0.3) < 0.01
    assert torch.equal(noisy.given[noisy.flipped], (LABELS[noisy.flipped] + 1) % 5)


@pytest.mark.parametrize("noise", [symmetric_noise, pair_noise])
def test_rates_zero_and_one_flip_nothing_and_everything(noise):
    assert not noise(LABELS, 0, 5, generator=seeded()).flipped.any()
    assert noise(LABELS, 1, 5, generator=seeded()).flipped.all()


def test_matrix_noise_draws_from_the_rows():
    y = torch.arange(3).repeat(10_000)
    noisy = matrix_noise(y, PAIRS, generator=seeded())
    table = torch.zeros(3, 3).index_put_((y, noisy.given), torch.tensor(1e-4), accumulate=True)
    assert (table - PAIRS).abs().max() < 0.02
    assert (table[PAIRS == 0] == 0).all()
    assert torch.equal(noisy.flipped, noisy.given != y)


@pytest.mark.parametrize("noise", [symmetric_noise, pair_noise])
def test_same_generator_same_noise(noise):
    first, second = (noise(LABELS, 0.3, 5, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first.given, second.given)


@pytest.mark.parametrize("noise", [symmetric_noise, pair_noise])
@pytest.mark.parametrize(
    ("rate", "num_classes", "message"),
    [(1.1, 5, "rate"), (-0.1, 5, "rate"), (float("nan"), 5, "rate"), (0.1, 1, "at least 2"),
     (0.1, 4, "labels must be 0 to 3, got 0 to 4")],
)  # fmt: skip
def test_bad_input_is_refused(noise, rate, num_classes, message):
    with pytest.raises(ValueError, match=message):
        noise(LABELS, rate, num_classes, generator=seeded())


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(2, 3) / 3, "square"),
        (torch.tensor([[0.5, 0.6], [0.0, 1.0]]), "sum to 1"),
        (torch.tensor([[1.5, -0.5], [0.0, 1.0]]), "non-negative"),
        (torch.full((2, 2), float("nan")), "non-negative"),
    ],
)
def test_bad_matrices_are_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        matrix_noise(torch.tensor([0, 1]), matrix, generator=seeded())


def test_label_outside_the_matrix_is_refused():
    with pytest.raises(ValueError, match="labels must be 0 to 2"):
        matrix_noise(torch.tensor([3]), PAIRS, generator=seeded())


def test_instance_noise_has_its_rate_and_depends_on_the_image():
    x = torch.randn(20_000, 12, generator=seeded())
    y = torch.randint(0, 5, (20_000,), generator=seeded())
    noisy = instance_noise(x, y, 0.3, 5, generator=seeded())
    assert noisy.flipped.float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert torch.equal(noisy.flipped, noisy.given != noisy.clean)
    wrong = noisy.flipped & (y == 0)
    centres = torch.stack([x[wrong & (noisy.given == k)].mean(0) for k in range(1, 5)])
    assert centres.norm(dim=1).min() > 0.3  # symmetric noise: about 0.1


def test_instance_noise_of_rate_zero_without_spread_changes_nothing():
    y = torch.arange(50) % 5
    noisy = instance_noise(torch.randn(50, 3), y, 0.0, 5, spread=0.0, generator=seeded())
    assert torch.equal(noisy.given, y)
    assert not noisy.flipped.any()


def test_instance_noise_refuses_bad_input():
    with pytest.raises(ValueError, match="one row a label"):
        instance_noise(torch.randn(4, 3), torch.arange(5) % 5, 0.1, 5, generator=seeded())
    with pytest.raises(ValueError, match="spread"):
        instance_noise(torch.randn(5, 3), LABELS[:5], 0.1, 5, spread=-1.0, generator=seeded())
    with pytest.raises(ValueError, match="rate"):
        instance_noise(torch.randn(5, 3), LABELS[:5], 1.1, 5, generator=seeded())
