"""The smoothed loss against torch, the meter against autograd, schedules and theory."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from toolkit.learn.nets import mlp
from toolkit.learn.stacked import StackedMLP
from toolkit.supervision import label_smoothing as ls
from toolkit.supervision.label_smoothing import loss as loss_file
from toolkit.supervision.label_smoothing.network import one_seed


def example(n=7, k=5, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=g, dtype=dtype) * 3
    return logits, torch.randint(k, (n,), generator=g)


def gradient_of(loss, logits):
    f = logits.clone().requires_grad_()
    value = loss(f)
    (grad,) = torch.autograd.grad(value, f)
    return value.detach(), grad


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradient_equal_torch(theta, reduction):
    logits, y = example()
    y[2] = -100
    ours = gradient_of(
        lambda f: ls.smoothed_cross_entropy(f, y, theta, reduction=reduction), logits
    )
    theirs = gradient_of(
        lambda f: F.cross_entropy(f, y, label_smoothing=theta, reduction=reduction), logits
    )
    torch.testing.assert_close(ours, theirs)


def test_rows_equal_torch_without_reduction_and_in_stacks():
    logits, y = example(12)
    theirs = F.cross_entropy(logits, y, label_smoothing=0.3, reduction="none")
    rows = ls.smoothed_cross_entropy(logits, y, 0.3, reduction="none")
    stacked = ls.smoothed_cross_entropy(
        logits.view(3, 4, 5), y.view(3, 4), torch.full((3, 1), 0.3), reduction="none"
    )
    torch.testing.assert_close(rows, theirs)
    torch.testing.assert_close(stacked.flatten(), theirs)


def test_soft_labels_equal_the_mixture():
    logits, y = example()
    soft = torch.rand(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    soft /= soft.sum(1, keepdim=True)
    theta = torch.linspace(0, 1, 7, dtype=torch.float64)
    label = (1 - theta[:, None]) * F.one_hot(y, 5) + theta[:, None] * soft
    ours = gradient_of(lambda f: ls.smoothed_cross_entropy(f, y, theta, soft), logits)
    theirs = gradient_of(lambda f: F.cross_entropy(f, label), logits)
    torch.testing.assert_close(ours, theirs)
    dense = gradient_of(
        lambda f: ls.smoothed_cross_entropy(f, F.one_hot(y, 5).double(), theta, soft), logits
    )
    torch.testing.assert_close(dense, theirs)


@given(
    n=st.integers(1, 6),
    k=st.integers(1, 9),
    theta=st.floats(0, 1),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_gradient_is_p_minus_label_and_sums_to_zero(n, k, theta, seed):
    logits, y = example(n, k, seed=seed)
    _, grad = gradient_of(lambda f: ls.smoothed_cross_entropy(f, y, theta, reduction="sum"), logits)
    label = (1 - theta) * F.one_hot(y, k).double() + theta / k
    torch.testing.assert_close(grad, logits.softmax(1) - label)
    torch.testing.assert_close(grad.sum(1), torch.zeros(n, dtype=torch.float64))
    torch.testing.assert_close(label.sum(1), torch.ones(n, dtype=torch.float64))


@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(soft):
    logits, y = example(4, 3)
    y[0] = -100
    labels = logits.softmax(1).detach() if soft else None
    f = logits.clone().requires_grad_()
    weight = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda f: weight * ls.smoothed_cross_entropy(f, y, 0.3, labels, reduction="none"), f
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_large_logits_stays_finite(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]], dtype=dtype)
    value, grad = gradient_of(
        lambda f: ls.smoothed_cross_entropy(f, torch.tensor([1, 2]), 0.1), logits
    )
    reference = F.cross_entropy(logits.float(), torch.tensor([1, 2]), label_smoothing=0.1)
    assert grad.dtype == dtype
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-3)


def test_autocast_computes_in_single_precision():
    logits, y = example(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ls.smoothed_cross_entropy(logits.bfloat16(), y, 0.1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value, F.cross_entropy(logits.bfloat16().float(), y, label_smoothing=0.1)
    )


def test_one_class_costs_nothing_and_ignored_rows_do_not_count():
    assert ls.smoothed_cross_entropy(torch.randn(3, 1), torch.zeros(3).long(), 0.5) == 0
    logits, y = example()
    part = ls.smoothed_cross_entropy(logits[:3], y[:3], 0.2)
    y[3:] = 255
    whole = ls.smoothed_cross_entropy(logits, y, 0.2, ignore_index=255)
    torch.testing.assert_close(whole, part)
    assert ls.smoothed_cross_entropy(logits, torch.full((7,), 255), 0.2, ignore_index=255).isnan()


class BigTensors(TorchDispatchMode):
    """Counts how many tensors of a size an expression makes."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.made = numel, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.numel() >= self.numel:
                self.made.add(leaf.untyped_storage().data_ptr())
                self.kept = [*getattr(self, "kept", []), leaf]  # no address is used twice
        return out


def test_no_label_of_n_times_k_numbers_is_made():
    """Forward and backward make two big tensors beside the logits: probabilities and gradient."""
    logits, y = example(64, 300, torch.float32)
    f = logits.clone().requires_grad_()
    with BigTensors(f.numel()) as mode:
        torch.autograd.grad(ls.smoothed_cross_entropy(f, y, 0.1), f)
    assert len(mode.made - {f.untyped_storage().data_ptr()}) == 2
    with BigTensors(f.numel()) as dense:
        F.cross_entropy(f, 0.9 * F.one_hot(y, 300) + 0.1 / 300).backward()
    assert len(dense.made) > 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theta": 1.2}, ValueError, "theta"),
        ({"theta": -0.1}, ValueError, "theta"),
        ({"theta": math.nan}, ValueError, "theta"),
        ({"theta": torch.tensor([0.1, 0.2])}, ValueError, "theta of shape"),
        ({"soft": torch.full((7, 5), 0.3, dtype=torch.float64)}, ValueError, "sum to 1"),
        ({"soft": torch.full((7, 4), 0.25, dtype=torch.float64)}, ValueError, "shape"),
        ({"target": torch.tensor([0, 1, 2, 3, 4, 5, 0])}, ValueError, "classes must lie"),
        ({"target": torch.tensor([0, 1, 2, -1, 4, 0, 0])}, ValueError, "classes must lie"),
        ({"target": torch.tensor([0, 1])}, ValueError, "does not fit"),
        ({"target": torch.full((7, 5), 0.3, dtype=torch.float64)}, ValueError, "sum to 1"),
        ({"reduction": "max"}, ValueError, "reduction"),
    ],
)
def test_bad_input_of_the_loss_is_refused(change, error, message):
    logits, y = example()
    with pytest.raises(error, match=message):
        ls.smoothed_cross_entropy(**({"logits": logits, "target": y, "theta": 0.1} | change))


def test_the_other_convention_is_another_theta():
    """1 − θ' on the true class and θ'/(K − 1) on the others is θ = θ' K / (K − 1) here."""
    logits, y = example()
    wrong = torch.full((7, 5), 0.2 / 4, dtype=torch.float64).scatter_(1, y[:, None], 0.8)
    torch.testing.assert_close(
        F.cross_entropy(logits, wrong), ls.smoothed_cross_entropy(logits, y, 0.2 * 5 / 4)
    )
    assert loss_file.ROW_SUM_TOLERANCE == 1e-4


def test_single_example_optimum_has_the_logit_gap():
    for theta, k in ((0.1, 4), (0.4, 10)):
        gap = ls.logit_gap(theta, k)
        logits = torch.zeros(1, k, dtype=torch.float64)
        logits[0, 2] = gap
        _, grad = gradient_of(
            lambda f, theta=theta: ls.smoothed_cross_entropy(f, torch.tensor([2]), theta), logits
        )
        assert grad.abs().max() < 1e-12
    assert ls.logit_gap(0, 3) == math.inf
    assert ls.logit_gap(1, 3) == 0


# --- the schedule ---------------------------------------------------------------------------------


def test_schedules_do_what_their_names_say():
    theta = {kind: ls.TwoStageSchedule(0.4, 10, kind).theta for kind in ls.schedule.KINDS}
    assert [theta["drop"](e) for e in (0, 9, 9.9, 10, 30)] == [0.4, 0.4, 0.4, 0, 0]
    assert [theta["reverse"](e) for e in (0, 9, 10)] == [0, 0, 0.4]
    assert [theta["linear"](e) for e in (0, 5, 10, 11)] == [0.4, 0.2, 0, 0]
    np.testing.assert_allclose([theta["cosine"](e) for e in (0, 5, 10)], [0.4, 0.2, 0], atol=1e-12)
    assert theta["constant"](1000) == 0.4
    assert ls.TwoStageSchedule(0.4, 0).theta(0) == 0


def test_schedule_survives_a_checkpoint():
    kept = ls.TwoStageSchedule(0.3, 7.0, "linear")
    other = ls.TwoStageSchedule(0.0, 0.0)
    other.load_state_dict(kept.state_dict())
    assert other == kept
    with pytest.raises(ValueError, match="theta"):
        other.load_state_dict(kept.state_dict() | {"strength": 2})


@pytest.mark.parametrize("bad", [(1.1, 3), (-0.1, 3), (0.1, -1), (0.1, 3, "step")])
def test_bad_schedules_are_refused(bad):
    with pytest.raises(ValueError, match=r"theta|drop_at|kind"):
        ls.TwoStageSchedule(*bad)


# --- the meter ------------------------------------------------------------------------------------


def measured(model, x, y, soft):
    """Moments from a loop of autograd over examples: the reference."""
    params = list(model.parameters())

    def flat(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, params)])

    given = torch.stack(
        [flat(F.cross_entropy(model(a[None]), b[None])) for a, b in zip(x, y, strict=True)]
    )
    other = torch.stack(
        [flat(F.cross_entropy(model(a[None]), b[None])) for a, b in zip(x, soft, strict=True)]
    )
    truth = given.mean(0)
    return {
        "sigma2": (given - truth).square().sum(1).mean(),
        "introduced": (other - truth).square().sum(1).mean(),
        "cross": ((given - truth) * (other - truth)).sum(1).mean(),
        "bias2": (other.mean(0) - truth).square().sum(),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["uniform", "soft"])
def test_both_meters_equal_a_loop_of_autograd(kind):
    g = torch.Generator().manual_seed(3)
    stack = StackedMLP(2, (6, 5, 4, 3), [g, g]).double()
    x, y = torch.randn(2, 9, 6, generator=g).double(), torch.randint(3, (2, 9), generator=g)
    soft = None if kind == "uniform" else torch.randn(2, 9, 3, generator=g).double().softmax(-1)
    closed = ls.gradient_deviation(stack, x, y, soft)
    for r in range(2):
        model = one_seed(stack, r).double()
        labels = torch.full((9, 3), 1 / 3).double() if soft is None else soft[r]
        vmapped = ls.gradient_deviation(model, x[r], y[r], None if soft is None else soft[r], 4)
        for name, value in measured(model, x[r], y[r], labels).items():
            torch.testing.assert_close(getattr(closed, name)[r], value)
            torch.testing.assert_close(getattr(vmapped, name), value)


@pytest.mark.parametrize("theta", [0.0, 0.3, 0.9, 1.0])
def test_the_parabola_is_exact_and_lies_under_the_bound(theta):
    g = torch.Generator().manual_seed(0)
    model = mlp(6, 8, 4).double()
    x, y = torch.randn(20, 6, generator=g).double(), torch.randint(4, (20,), generator=g)
    soft = torch.randn(20, 4, generator=g).double().softmax(-1)
    for labels in (None, soft):
        dev = ls.gradient_deviation(model, x, y, labels)
        direct = ls.smoothed_deviation(model, x, y, theta, labels, chunk=6)
        torch.testing.assert_close(dev.at(theta), direct, rtol=1e-12, atol=1e-12)
        assert direct <= dev.bound(theta) * (1 + 1e-12)


def test_optimal_theta_minimises_the_parabola():
    grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    for sigma2, introduced, cross in (
        (1.0, 0.2, 0.0),
        (1.0, 4.0, 0.5),
        (1.0, 0.3, -0.4),
        (2.0, 1.0, 1.2),
    ):
        dev = ls.Deviation(
            *(torch.tensor(v, dtype=torch.float64) for v in (sigma2, introduced, cross, 0.0))
        )
        values = torch.stack([dev.at(float(t)) for t in grid])
        exact, paper = ls.optimal_theta(dev)
        assert abs(float(exact) - float(grid[values.argmin()])) < 2e-4
        if cross == 0:
            torch.testing.assert_close(exact, paper)
    one = ls.Deviation(*(torch.tensor(v, dtype=torch.float64) for v in (1.0, 1.0, 0.3, 0.0)))
    torch.testing.assert_close(*ls.optimal_theta(one))  # delta = 1: one half, whatever c


def test_bad_input_of_the_meter_is_refused():
    model = mlp(3, 2)
    with pytest.raises(ValueError, match="does not fit"):
        ls.gradient_deviation(model, torch.randn(4, 3), torch.zeros(3).long())
    with pytest.raises(ValueError, match="chunk"):
        ls.gradient_deviation(model, torch.randn(4, 3), torch.zeros(4).long(), chunk=0)


# --- theory ---------------------------------------------------------------------------------------


def test_plan_follows_from_the_derivation():
    gap, smooth, mu, sigma2, delta, eps2 = 3.0, 2.0, 0.5, 0.4, 0.1, 0.2
    plan = ls.tsla_plan(gap, smooth, mu, sigma2, delta, eps2)
    assert plan.steps2 == pytest.approx(16 * smooth * delta * sigma2**2 / (mu * eps2**2))
    assert plan.ratio == pytest.approx(2 * delta * sigma2 / (mu * gap))
    # Stage 1: after T1 steps, (1 - eta mu)^T F plus the floor is 2 delta sigma^2 / mu.
    decay = math.exp(-plan.eta1 * mu * plan.steps1) * gap
    assert decay + delta * sigma2 / mu == pytest.approx(2 * delta * sigma2 / mu)
    # Stage 2: 2 F / (eta T) + eta L sigma^2 = eps^2 with F = 2 delta sigma^2 / mu.
    start = 2 * delta * sigma2 / mu
    reached = 2 * start / (plan.eta2 * plan.steps2) + plan.eta2 * smooth * sigma2
    assert reached == pytest.approx(eps2)
    assert ls.tsla_plan(0.01, smooth, mu, sigma2, delta, eps2).steps1 == 0
    with pytest.raises(ValueError, match="epsilon2"):
        ls.tsla_plan(gap, smooth, mu, sigma2, delta, 1.0)
    with pytest.raises(ValueError, match="positive"):
        ls.lsr_bound(0.0, 0.1, 10, 1.0)


def test_lsr_bound_has_a_floor():
    values = [ls.lsr_bound(1.0, 0.5, t, 0.05) for t in (10, 1000, 10**9)]
    assert values[0] > values[1] > values[2] > 0.1
    assert values[2] == pytest.approx(0.1, rel=1e-6)
