"""Sine-link regression against Monte-Carlo, finite differences and automatic differentiation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.optimization.problems import SineLink, log_spaced_spectrum


@pytest.fixture
def problem():
    return SineLink(log_spaced_spectrum(6, 32.0).double(), amplitude=0.8, noise=0.3)


def some_points(problem, seeds, scale=1.5):
    w_star = problem.sample(1, seeds).w_star
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(w_star.shape, generator=generator, dtype=torch.float64)
    return w_star + scale * noise, w_star


def test_excess_risk_agrees_with_monte_carlo(problem):
    w, w_star = some_points(problem, range(5))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(200_000, 6, generator=generator, dtype=torch.float64) * problem.lam.sqrt()
    gap = problem.link(x @ w.T) - problem.link(x @ w_star.T)
    losses = 0.5 * gap**2
    error = losses.std(0) / len(x) ** 0.5
    assert ((losses.mean(0) - problem.excess_risk(w, w_star)).abs() < 4 * error).all()


def test_excess_risk_is_the_textbook_formula(problem):
    """The stable grouping equals the plain one where the plain one is accurate."""
    w, w_star = some_points(problem, range(20))

    def e(v):
        return torch.exp(-v / 2)

    lam, a = problem.lam, problem.amplitude
    v_u, v_star, q = (lam * w * w).sum(-1), (lam * w_star**2).sum(-1), (lam * w * w_star).sum(-1)
    v_minus, v_plus = v_u + v_star - 2 * q, v_u + v_star + 2 * q
    linear = (v_u - q) * e(v_u) - (q - v_star) * e(v_star)
    sines = (1 - e(4 * v_u)) / 2 + (1 - e(4 * v_star)) / 2 - e(v_minus) + e(v_plus)
    plain = 0.5 * (v_minus + 2 * a * linear + a**2 * sines)
    torch.testing.assert_close(problem.excess_risk(w, w_star), plain, rtol=1e-10, atol=1e-12)


def test_excess_risk_is_zero_at_the_minimiser_and_accurate_beside_it(problem):
    w_star = problem.sample(1, range(4)).w_star
    assert (problem.excess_risk(w_star, w_star) == 0).all()
    step = torch.full_like(w_star, 1e-9)
    quadratic = 0.5 * torch.einsum(
        "si,sij,sj->s", step, problem.hessian(w_star + 1e-6, w_star), step
    )
    torch.testing.assert_close(
        problem.excess_risk(w_star + step, w_star), quadratic, rtol=1e-4, atol=0
    )


def test_excess_risk_far_away_is_half_the_quadratic_form(problem):
    _, w_star = some_points(problem, range(3))
    w = w_star + 1e15
    expected = 0.5 * (problem.lam * (w - w_star) ** 2).sum(-1)
    torch.testing.assert_close(problem.excess_risk(w, w_star), expected, rtol=1e-3, atol=0)


@given(scale=st.floats(1e-6, 1e4), amplitude=st.floats(-0.95, 0.95), seed=st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_excess_risk_lies_between_the_bounds_of_the_slope(scale, amplitude, seed):
    """(1−|a|)² and (1+|a|)² times the linear excess risk enclose it."""
    problem = SineLink(log_spaced_spectrum(6, 32.0).double(), amplitude=amplitude)
    w, w_star = some_points(problem, [seed], scale)
    linear = 0.5 * (problem.lam * (w - w_star) ** 2).sum(-1)
    risk = problem.excess_risk(w, w_star)
    assert ((1 - abs(amplitude)) ** 2 * linear * (1 - 1e-9) <= risk).all()
    assert (risk <= (1 + abs(amplitude)) ** 2 * linear * (1 + 1e-9)).all()


def test_excess_risk_without_sine_is_the_quadratic_form():
    problem = SineLink(log_spaced_spectrum(6, 32.0).double(), amplitude=0.0)
    w, w_star = some_points(problem, range(3))
    expected = 0.5 * (problem.lam * (w - w_star) ** 2).sum(-1)
    torch.testing.assert_close(problem.excess_risk(w, w_star), expected)


def test_stochastic_gradient_is_the_gradient_of_the_loss(problem):
    w, _ = some_points(problem, range(3))
    data = problem.sample(7, range(3))

    def loss(w, x, y):
        return 0.5 * (y - problem.link(x @ w)) ** 2

    per_sample = torch.func.vmap(torch.func.vmap(torch.func.grad(loss)), in_dims=(None, 0, 0))(
        w, data.x, data.y
    )
    torch.testing.assert_close(problem.grad(w, data.x, data.y), per_sample.mean(0))
    torch.testing.assert_close(problem.grad(w, data.x[:1], data.y[:1]), per_sample[0])


def test_stochastic_gradient_is_unbiased(problem):
    w, w_star = some_points(problem, [3])
    data = problem.sample(200_000, [3])
    y = data.y[:, 0]
    samples = problem.grad(w.expand(len(y), -1), data.x.transpose(0, 1), y[None])
    error = samples.std(0) / len(y) ** 0.5
    assert ((samples.mean(0) - problem.risk_grad(w, w_star)[0]).abs() < 4.5 * error).all()


def test_risk_gradient_and_hessian_agree_with_finite_differences(problem):
    w, w_star = some_points(problem, range(2))
    h = 1e-5
    for i in range(6):
        shift = torch.zeros(6, dtype=torch.float64)
        shift[i] = h
        forward, back = w + shift, w - shift
        slope = (problem.excess_risk(forward, w_star) - problem.excess_risk(back, w_star)) / (2 * h)
        torch.testing.assert_close(problem.risk_grad(w, w_star)[:, i], slope, rtol=1e-6, atol=1e-8)
        bend = (problem.risk_grad(forward, w_star) - problem.risk_grad(back, w_star)) / (2 * h)
        torch.testing.assert_close(problem.hessian(w, w_star)[:, i], bend, rtol=1e-6, atol=1e-8)


def test_signal_has_unit_variance_and_labels_the_stated_noise(problem):
    data = problem.sample(20_000, range(3))
    torch.testing.assert_close(
        (problem.lam * data.w_star**2).sum(-1), torch.ones(3, dtype=torch.float64)
    )
    residual = data.y - problem.link((data.x * data.w_star).sum(-1))
    assert residual.std(0).sub(0.3).abs().max() < 0.01
    assert data.x.var(0).div(problem.lam).sub(1).abs().max() < 0.06


def test_a_seed_gives_the_same_data_alone_and_within_a_larger_sample(problem):
    many, alone = problem.sample(32, [4, 9, 2]), problem.sample(8, [9])
    torch.testing.assert_close(many.x[:8, 1:2], alone.x, rtol=0, atol=0)
    torch.testing.assert_close(many.y[:8, 1:2], alone.y, rtol=0, atol=0)
    torch.testing.assert_close(many.w_star[1:2], alone.w_star, rtol=0, atol=0)


def test_power_law_has_the_stated_spectrum_and_source():
    problem = SineLink.power_law(5, a=3.0, b=1.6)
    i = torch.arange(1.0, 6)
    torch.testing.assert_close(problem.lam, i**-3)
    torch.testing.assert_close(problem.lam * problem.prior**2, i**-1.6)


def test_spectrum_is_log_spaced():
    lam = log_spaced_spectrum(5, 16.0)
    torch.testing.assert_close(lam, torch.tensor([1, 0.5, 0.25, 0.125, 0.0625]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": torch.ones(3), "amplitude": 1.0}, "amplitude"),
        ({"lam": torch.tensor([1.0, 0.0])}, "positive"),
        ({"lam": torch.ones(3), "noise": -1.0}, "noise"),
        ({"lam": torch.ones(3), "prior": torch.ones(2)}, "prior"),
    ],
)
def test_bad_problems_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SineLink(**arguments)


def test_bad_samples_and_spectra_are_refused(problem):
    with pytest.raises(ValueError, match="n >= 1"):
        problem.sample(0, [1])
    with pytest.raises(ValueError, match="kappa"):
        log_spaced_spectrum(4, 0.5)
