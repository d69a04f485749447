import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from toolkit.evidence import (
    bootstrap,
    difference,
    exact,
    loglog_curvature,
    loglog_slope,
    mean,
    paired_difference,
    proportion,
    ratio,
)

RNG = np.random.default_rng(0)
SAMPLE = RNG.normal(1, 2, 30)


def test_a_mean_agrees_with_scipy():
    reference = stats.ttest_1samp(SAMPLE, 0).confidence_interval(0.95)
    found = mean(SAMPLE)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert found.n == 30


def test_a_paired_difference_agrees_with_scipy():
    other = SAMPLE + RNG.normal(0.5, 0.1, 30)
    reference = stats.ttest_rel(SAMPLE, other).confidence_interval(0.99)
    assert paired_difference(SAMPLE, other).interval(0.99) == pytest.approx(tuple(reference))


def test_a_difference_agrees_with_welch():
    other = RNG.normal(0, 5, 12)
    reference = stats.ttest_ind(SAMPLE, other, equal_var=False).confidence_interval(0.95)
    found = difference(SAMPLE, other)
    assert (found.low, found.high) == pytest.approx(tuple(reference))


def test_a_proportion_agrees_with_wilson():
    assert proportion(8, 10).low == pytest.approx(0.4902, abs=1e-4)


@given(st.floats(0.1, 10), st.integers(0, 99))
def test_a_ratio_covers_a_constant_factor(factor, seed):
    base = np.random.default_rng(seed).lognormal(size=20)
    found = ratio(base * factor, base)
    assert found.value == pytest.approx(factor)
    assert found.low == pytest.approx(factor)


def test_a_ratio_covers_the_truth_at_its_level():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        a, b = rng.lognormal(0.3, 0.5, 40), rng.lognormal(0, 0.5, 40)
        found = ratio(a, b)
        hits += found.low < np.exp(0.3) < found.high
    assert 0.91 < hits / 400 < 0.985


def test_a_slope_is_found_on_the_log_of_the_mean():
    x = np.array([1, 2, 4, 8.0])
    y = np.exp(RNG.normal(0, 0.05, (40, 4))) * x**-1.5
    found = loglog_slope(x, y)
    assert found.low < -1.5 < found.high
    assert loglog_curvature(x, y).low < 0 < loglog_curvature(x, y).high
    assert loglog_curvature(x, np.exp(np.log(x) ** 2) * np.ones((9, 1))).low > 0.9


def test_the_bootstrap_resamples_pairs_together():
    twin = bootstrap(lambda a, b: (a - b).mean(), SAMPLE, SAMPLE - 1)
    assert (twin.low, twin.high) == pytest.approx((1, 1))


def test_a_statistic_of_few_values_gets_percentiles():
    found = bootstrap(lambda sample: np.round(sample.mean() / 5), np.arange(20.0))
    assert np.isfinite([found.low, found.high]).all()
    assert found.low <= found.value <= found.high


def test_the_bootstrap_repeats():
    first, second = (bootstrap(np.median, SAMPLE) for _ in range(2))
    assert first == second


def test_the_bootstrap_never_claims_more_than_its_resamples_can_tell():
    assert bootstrap(np.median, SAMPLE).interval(1 - 1e-9) == (-np.inf, np.inf)


def test_a_diverged_seed_leaves_no_interval_and_is_named():
    broken = np.where(np.arange(30) == 4, np.inf, SAMPLE)
    for found in (
        mean(broken),
        paired_difference(broken, SAMPLE),
        ratio(abs(broken), abs(SAMPLE)),
        bootstrap(np.mean, broken),
    ):
        assert np.isnan(found.low)
        assert "positions 4" in found.method


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean([1.0]),
        lambda: paired_difference([1, 2], [1, 2, 3]),
        lambda: ratio([1, -1], [1, 1]),
        lambda: proportion(3, 2),
        lambda: bootstrap(np.mean, np.ones(7)),
        lambda: bootstrap(lambda a, b: 0, np.ones(8), np.ones(9)),
        lambda: loglog_slope([1, 2], np.ones((9, 3))),
        lambda: loglog_slope([0, 2], np.ones((9, 2))),
        lambda: mean(SAMPLE).interval(1.5),
    ],
)
def test_bad_samples_are_refused(call):
    with pytest.raises(ValueError, match=r"\w"):
        call()


def test_an_exact_number_has_no_width():
    assert exact(3).interval(0.999) == (3, 3)
