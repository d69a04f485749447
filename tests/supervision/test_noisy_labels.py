"""The solvable model and the measures against independent references; the closed form D1–D3."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from sklearn.isotonic import IsotonicRegression
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from toolkit.data import NoisyLabels, instance_noise, matrix_noise, pair_noise, symmetric_noise
from toolkit.supervision import noisy_labels as nl
from toolkit.supervision.noisy_labels.memorisation import another_wrong_label

K = 10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_flow(n=40, m=25, seed=0):
    """Random rows, their kernels, labels: (flow, k_train, k_test, Y, Y_test)."""
    g = generator(seed)
    x, z = nl.unit_rows(torch.randn(n, 6, generator=g), torch.randn(m, 6, generator=g))
    k_train, k_test = nl.relu_ntk(x, x), nl.relu_ntk(z, x)
    y, y_test = (centred(torch.randint(K, (size,), generator=g)) for size in (n, m))
    return nl.KernelFlow(k_train, k_test), k_train, k_test, y, y_test


def centred(labels):
    return F.one_hot(labels, K).double() - 1 / K


# --- label noise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.35, 0.8, 0.9, 1.0])
def test_signal_and_variance_are_those_of_sampled_flips(rate):
    clean = torch.arange(40_000) % K
    noisy = symmetric_noise(clean, rate, K, generator=generator())
    y, given_ = centred(clean), centred(noisy.given)
    left = (given_ * y).sum() / (y * y).sum()
    assert abs(left - nl.signal(rate, K)) < 0.01
    spread = (given_ - nl.signal(rate, K) * y).square().sum(1).mean()
    assert abs(spread - nl.label_variance(rate, K)) < 0.01
    s = nl.signal(rate, K)
    torch.testing.assert_close(nl.label_variance(rate, K), (1 - s**2) * (K - 1) / K)


def test_the_rate_counts_wrong_labels_only():
    """Not "uniform over all K classes", where a rate of ρ would leave ρ/K of the labels right."""
    noisy = symmetric_noise(torch.zeros(50_000, dtype=torch.int64), 1.0, K, generator=generator())
    assert noisy.flipped.all()
    assert (noisy.given != 0).all()
    shares = torch.bincount(noisy.given, minlength=K)[1:] / 50_000
    assert (shares - 1 / (K - 1)).abs().max() < 4 * (0.111 * 0.889 / 50_000) ** 0.5


@pytest.mark.parametrize("kind", ["symmetric", "pair", "matrix", "instance"])
def test_flips_are_nested_in_the_rate(kind):
    """What is wrong at a low rate is wrong in the same way at a higher one."""
    clean = torch.arange(3000) % K
    x = torch.randn(3000, 5, generator=generator(4))

    def draw(rate):
        g = generator(7)
        if kind == "symmetric":
            return symmetric_noise(clean, rate, K, generator=g)
        if kind == "pair":
            return pair_noise(clean, rate, K, generator=g)
        if kind == "matrix":
            transition = nl.transition_matrix("pair", rate)
            return matrix_noise(clean, transition, generator=g)
        return instance_noise(x, clean, rate, K, generator=g)

    low, high = draw(0.2), draw(0.5)
    assert (~low.flipped | high.flipped | torch.tensor(kind == "matrix")).all()
    both = low.flipped & high.flipped
    assert torch.equal(low.given[both], high.given[both])
    assert high.flipped.sum() > low.flipped.sum() > 0


@pytest.mark.parametrize("noise", ["symmetric", "pair"])
def test_flips_follow_the_transition_matrix(noise):
    rate, per_class = 0.3, 4000
    clean = torch.arange(K).repeat_interleave(per_class)
    draw = symmetric_noise if noise == "symmetric" else pair_noise
    given_ = draw(clean, rate, K, generator=generator()).given
    counts = torch.zeros(K, K).index_put_((clean, given_), torch.ones(len(clean)), accumulate=True)
    expected = nl.transition_matrix(noise, rate)
    error = (expected * (1 - expected) / per_class).sqrt()
    assert ((counts / per_class - expected).abs() <= 4.5 * error + 1e-9).all()
    torch.testing.assert_close(expected.sum(1), torch.ones(K))


@given(rate=st.floats(0, 0.899), classes=st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_the_threshold_inverts_the_noise_to_signal_ratio(rate, classes):
    rate = rate * (classes - 1) / classes
    ratio = nl.noise_to_signal(rate, classes)
    bias = torch.stack([ratio, torch.zeros((), dtype=torch.float64)])
    variance = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = nl.phase_threshold(bias, variance, 0, 1, classes)
    assert abs(float(found) - rate) < 1e-10


def test_noise_to_signal_rises_from_zero_to_the_useless_rate():
    rates = torch.linspace(0, 0.89, 90, dtype=torch.float64)
    ratio = nl.noise_to_signal(rates, K)
    assert ratio[0] == 0
    assert (ratio.diff() > 0).all()
    with pytest.raises(ValueError, match=r"no signal is left"):
        nl.noise_to_signal(0.9, K)
    with pytest.raises(ValueError, match=r"no signal"):
        nl.noise_to_signal(torch.tensor([0.1, 0.95]), K)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rates_outside_the_unit_interval_are_refused(rate):
    for function in (nl.signal, nl.label_variance, nl.noise_to_signal):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\]"):
            function(rate, K)
    with pytest.raises(ValueError, match="at least 2"):
        nl.signal(0.1, 1)


def test_threshold_special_cases_and_batches():
    bias = torch.tensor([[0.5, 0.4, 0.3], [0.2, 0.4, 0.3]], dtype=torch.float64)
    variance = torch.tensor([[0.1, 0.2, 0.5], [0.1, 0.2, 0.5]], dtype=torch.float64)
    found = nl.phase_threshold(bias, variance, 0, 2, 2)
    ratio = 0.2 / 0.4
    assert found[0] == pytest.approx(0.5 * (1 - (1 + 2 * ratio) ** -0.5))
    assert found[1] == 0  # no bias left to lose: training on can only hurt
    assert (nl.phase_threshold(1e9 * bias, variance, 0, 2, K) < 0.9).all()


@pytest.mark.parametrize(
    ("variance", "i1", "i_end", "message"),
    [
        ([0.1, 0.2, 0.3], 1, 1, "i1 < iT"),
        ([0.1, 0.2, 0.3], 2, 0, "i1 < iT"),
        ([0.1, 0.2, 0.3], 0, 3, "i1 < iT"),
        ([0.3, 0.2, 0.1], 0, 2, "variance must grow"),
    ],
)
def test_threshold_refuses_bad_input(variance, i1, i_end, message):
    with pytest.raises(ValueError, match=message):
        nl.phase_threshold(torch.tensor([0.5, 0.4, 0.3]), torch.tensor(variance), i1, i_end, K)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_d1_the_expected_gradient_is_affine_in_the_label(loss):
    """E over noisy labels = s × gradient at the clean label + (1−s) × gradient at 1/K."""
    rate, clean = 0.37, 3
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, K))
    model, x = model.double(), torch.randn(1, 5, generator=generator(1)).double()

    def gradient(target):
        logits = model(x)
        value = (
            F.cross_entropy(logits, target[None])
            if loss == "cross_entropy"
            else 0.5 * (logits - target).square().sum()
        )
        grads = torch.autograd.grad(value, list(model.parameters()))
        return torch.cat([part.flatten() for part in grads])

    labels = torch.eye(K, dtype=torch.float64)
    probability = nl.transition_matrix("symmetric", rate)[clean].double()
    expected = sum(p * gradient(label) for p, label in zip(probability, labels, strict=True))
    s = nl.signal(rate, K)
    mixed = s * gradient(labels[clean]) + (1 - s) * gradient(torch.full((K,), 1 / K).double())
    torch.testing.assert_close(expected, mixed, atol=1e-6, rtol=1e-6)


# --- the kernel -----------------------------------------------------------------------------------


def test_relu_ntk_is_the_kernel_of_a_wide_network():
    """Empirical NTK of √(2/M) aᵀrelu(Wx) at width 4096, by autograd, within 5 %."""
    width, g = 4096, generator(2)
    x, z = nl.unit_rows(torch.randn(5, 4, generator=g), torch.randn(3, 4, generator=g))
    a = torch.randn(width, generator=g, dtype=torch.float64)
    w = torch.randn(width, 4, generator=g, dtype=torch.float64)

    def network(a, w, x):
        return (2 / width) ** 0.5 * (x @ w.T).relu() @ a

    def jacobian(rows):
        parts = torch.func.jacrev(network, argnums=(0, 1))(a, w, rows)
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    empirical = jacobian(x) @ jacobian(z).T
    assert ((empirical - nl.relu_ntk(x, z)).abs() < 0.05 * 2).all()
    torch.testing.assert_close(nl.relu_ntk(x, x).diagonal(), torch.full((5,), 2.0).double())


def test_kernels_ask_for_rows_of_unit_length():
    with pytest.raises(ValueError, match="rows of x must have length 1"):
        nl.relu_ntk(torch.ones(2, 3), torch.eye(3))
    with pytest.raises(ValueError, match="rows of z must have length 1"):
        nl.relu_ntk(torch.eye(3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="no direction"):
        nl.unit_rows(torch.ones(3, 2), torch.eye(2))


def test_kernel_flow_refuses_what_is_no_kernel():
    with pytest.raises(ValueError, match="symmetric"):
        nl.KernelFlow(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.ones(1, 2))
    with pytest.raises(ValueError, match="semi-definite"):
        nl.KernelFlow(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.ones(1, 2))
    flow, *_, y, _ = small_flow(8, 3)
    with pytest.raises(ValueError, match="negative"):
        flow.predict(y, torch.tensor([-1.0]))


def test_flow_equals_small_step_gradient_descent():
    flow, k_train, _, y, _ = small_flow()
    step, steps, outputs = 0.002, 4000, torch.zeros_like(y)
    for _ in range(steps):
        outputs = outputs + step * k_train @ (y - outputs) / len(y)
    fitted = flow.fitted(y, torch.tensor([step * steps]))[0]
    torch.testing.assert_close(fitted, outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("time", [0.3, 5.0, 80.0])
def test_flow_equals_the_matrix_exponential(time):
    flow, k_train, k_test, y, _ = small_flow()
    decay = expm(-k_train.numpy() / len(y) * time)
    expected = (np.eye(len(y)) - decay) @ y.numpy()
    np.testing.assert_allclose(flow.fitted(y, torch.tensor([time]))[0], expected, atol=1e-9)
    through = k_test.numpy() @ np.linalg.solve(k_train.numpy(), expected)
    np.testing.assert_allclose(flow.predict(y, torch.tensor([time]))[0], through, atol=1e-7)


def test_flow_ends_at_the_kernel_interpolant():
    flow, k_train, k_test, y, _ = small_flow()
    model = KernelRidge(alpha=0, kernel="precomputed").fit(k_train.numpy(), y.numpy())
    end = torch.tensor([1e12], dtype=torch.float64)
    np.testing.assert_allclose(flow.predict(y, end)[0], model.predict(k_test.numpy()), atol=1e-6)
    torch.testing.assert_close(flow.fitted(y, end)[0], y, atol=1e-8, rtol=0)


def test_a_kernel_of_low_rank_keeps_the_limit_of_its_zero_eigenvalues():
    x = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]
    flow = nl.KernelFlow(x @ x.T, x @ x.T)
    y = torch.tensor([[1.0], [3.0], [5.0]], dtype=torch.float64)
    outputs = flow.predict(y, torch.tensor([1e9], dtype=torch.float64))[0]
    torch.testing.assert_close(outputs[:, 0], torch.tensor([2.0, 2.0, 5.0]).double())


def test_risk_is_bias_plus_ratio_times_variance():
    """Monte Carlo over flips of the risk of A Ỹ / s: within 4.5 s.e. at every time."""
    flow, _, _, _, y_test = small_flow(60, 30, seed=3)
    clean = torch.arange(60) % K
    rate, draws, times = 0.3, 400, torch.tensor([0.5, 5.0, 50.0, 5000.0])
    bias, variance = flow.curves(centred(clean), y_test, times)
    g = generator(5)
    given_ = torch.stack(
        [centred(symmetric_noise(clean, rate, K, generator=g).given) for _ in range(draws)]
    )
    missed = flow.predict(given_, times) / nl.signal(rate, K) - y_test
    risk = missed.square().sum(-1).mean(-1)
    error = risk.std(0) / draws**0.5
    expected = bias + nl.noise_to_signal(rate, K) * variance
    assert ((risk.mean(0) - expected).abs() < 4.5 * error).all()
    clean_only = flow.predict(centred(clean), times) - y_test
    torch.testing.assert_close(bias, clean_only.square().sum(-1).mean(-1))


def test_the_study_sees_centred_labels():
    """Rows sum to zero, and the mean given label is s times the clean one."""
    clean = torch.arange(5000) % K
    assert nl.centred_labels(clean).sum(1).abs().max() < 1e-12
    given_ = nl.centred_labels(nl.given_labels(clean, [0.5], 8, seed=1)[:, 0])
    mean = torch.stack([given_[:, clean == label].mean((0, 1)) for label in range(K)])
    expected = nl.signal(0.5, K) * nl.centred_labels(torch.arange(K))
    assert (mean - expected).abs().max() < 0.04


def test_variance_and_self_influence_only_rise():
    flow, *_, y, y_test = small_flow()
    times = torch.logspace(-2, 8, 40, dtype=torch.float64)
    assert (flow.curves(y, y_test, times)[1].diff() >= -1e-12).all()
    influence = flow.self_influence(times)
    assert (influence.diff() >= -1e-12).all()
    assert 0 < influence[0] < influence[-1] <= 1 + 1e-9
    own = flow.fitted(torch.eye(40).double(), times).diagonal(dim1=1, dim2=2).mean(1)
    torch.testing.assert_close(own, influence)


def test_batches_of_labels_equal_single_ones():
    flow, *_, y, _ = small_flow()
    times = torch.tensor([1.0, 30.0])
    many = torch.stack([torch.stack([y, 2 * y]), torch.stack([y.flip(0), -y])])
    together = flow.predict(many, times)
    assert together.shape == (2, 2, 2, 25, K)
    torch.testing.assert_close(together[1, 0], flow.predict(y.flip(0), times))
    assert flow.fitted(many, times).shape == (2, 2, 2, 40, K)


# --- what was memorised ---------------------------------------------------------------------------


def labels(n=600, rate=0.4, seed=0):
    clean = torch.randint(K, (n,), generator=generator(seed))
    return symmetric_noise(clean, rate, K, generator=generator(seed + 1))


def logits_for(target, noise=0.0):
    random = torch.randn(len(target), K, generator=generator(9))
    return 5.0 * F.one_hot(target, K) + noise * random


def test_a_model_that_knows_the_truth_memorises_nothing():
    noisy = labels()
    found = nl.memorisation(logits_for(noisy.clean), noisy, generator=generator())
    assert found == {"fit_clean": 1, "fit_wrong": 0, "excess": 0, "auc": 1}


def test_a_model_that_repeats_its_labels_memorises_everything():
    noisy = labels()
    found = nl.memorisation(logits_for(noisy.given), noisy, generator=generator())
    assert (found["fit_clean"], found["fit_wrong"], found["excess"]) == (1, 1, 1)
    assert found["auc"] == pytest.approx(0.5)


def test_class_confusion_is_not_counted_as_memory():
    """Random guesses meet a wrong label as often as its control: fit > 0, excess about 0."""
    noisy = labels(20_000)
    guesses = torch.randint(K, (20_000,), generator=generator(3))
    found = nl.memorisation(logits_for(guesses), noisy, generator=generator())
    assert found["fit_wrong"] == pytest.approx(0.1, abs=0.015)
    assert abs(found["excess"]) < 0.015


def test_auc_is_sklearns():
    noisy = labels()
    logits = logits_for(noisy.clean, noise=3.0)
    losses = -logits.log_softmax(1)[torch.arange(600), noisy.given]
    found = nl.memorisation(logits, noisy, generator=generator())["auc"]
    assert found == pytest.approx(roc_auc_score(noisy.flipped, losses), abs=1e-6)


def test_control_labels_are_neither_clean_nor_given():
    noisy = labels(5000)
    control = another_wrong_label(noisy, K, generator())
    assert (control != noisy.clean).all()
    assert (control != noisy.given)[noisy.flipped].all()
    first = NoisyLabels(
        torch.full((9000,), 4), torch.full((9000,), 2), torch.ones(9000, dtype=torch.bool)
    )
    shares = torch.bincount(another_wrong_label(first, K, generator()), minlength=K) / 9000
    assert shares[[2, 4]].sum() == 0
    assert (shares[[0, 1, 3, 5, 6, 7, 8, 9]] - 1 / 8).abs().max() < 0.02


def test_divergence_and_missing_noise_are_reported_as_nan():
    noisy = labels()
    bad = logits_for(noisy.clean)
    bad[3, 2] = torch.nan
    assert all(np.isnan(v) for v in nl.memorisation(bad, noisy, generator=generator()).values())
    clean = labels(rate=0.0)
    found = nl.memorisation(logits_for(clean.clean), clean, generator=generator())
    assert found["fit_clean"] == 1
    assert np.isnan([found["fit_wrong"], found["excess"], found["auc"]]).all()


def test_memorisation_refuses_two_classes():
    two = symmetric_noise(torch.tensor([0, 1, 0]), 0.5, 2, generator=generator())
    with pytest.raises(ValueError, match="three classes"):
        nl.memorisation(torch.zeros(3, 2), two, generator=generator())


def test_small_loss_keeps_the_least():
    loss = torch.tensor([3.0, 0.1, 2.0, 0.2])
    assert nl.small_loss_select(loss, 0.5).tolist() == [1, 3]
    assert nl.small_loss_select(loss, 1.0).tolist() == [0, 1, 2, 3]
    for keep in (0.0, 1.2, float("nan")):
        with pytest.raises(ValueError, match="keep must be"):
            nl.small_loss_select(loss, keep)
    with pytest.raises(ValueError, match="finite"):
        nl.small_loss_select(torch.tensor([1.0, torch.inf]), 0.5)


# --- where Δ changes its sign ---------------------------------------------------------------------


def test_crossing_interpolates_the_mean():
    delta = np.array([[0.2, 0.05, -0.05], [0.0, 0.15, -0.15]])
    assert nl.crossing(delta, [0.0, 0.2, 0.4]) == pytest.approx(0.3)


def test_crossing_pools_what_does_not_fall():
    """0.1, 0.3 pool to 0.2; then 0.2 → −0.2 crosses half way."""
    assert nl.crossing(np.array([[0.1, 0.3, -0.2]]), [0.0, 0.1, 0.2]) == pytest.approx(0.15)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=9))
@settings(max_examples=40, deadline=None)
def test_crossing_follows_sklearns_isotonic_fit(gains):
    rates = np.linspace(0, 0.8, len(gains))
    fall = IsotonicRegression(increasing=False).fit_transform(rates, gains)
    found = nl.crossing(np.array([gains]), rates)
    if fall[0] <= 0 or fall[-1] > 0:
        assert found == 0 or np.isnan(found)
    else:
        assert np.interp(found, rates, fall) == pytest.approx(0, abs=1e-9)


def test_crossing_at_the_ends():
    assert nl.crossing(np.array([[-0.1, -0.2]]), [0.0, 0.5]) == 0
    assert np.isnan(nl.crossing(np.array([[0.2, 0.1]]), [0.0, 0.5]))
    assert np.isnan(nl.crossing(np.array([[0.2, np.nan]]), [0.0, 0.5]))
    with pytest.raises(ValueError, match="rising rates"):
        nl.crossing(np.array([[0.2, 0.1]]), [0.5, 0.5])


def test_delta_curve_is_a_difference_of_errors():
    runs = {
        "noisy/error_1@0.1": np.array([0.3, 0.4]),
        "noisy/error_60@0.1": np.array([0.2, 0.1]),
        "noisy/error_1@0.4": np.array([0.3, 0.3]),
        "noisy/error_60@0.4": np.array([0.5, 0.6]),
    }
    found = nl.delta_curve(runs, [0.1, 0.4], 1, 60)
    np.testing.assert_allclose(found, [[0.1, -0.2], [0.3, -0.3]])
    with pytest.raises(ValueError, match="before training does"):
        nl.delta_curve(runs, [0.1], 60, 1)
