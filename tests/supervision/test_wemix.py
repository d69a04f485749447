"""WeMix's augmentations, losses, schedule and step against torchvision and autograd."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from toolkit.supervision import wemix
from toolkit.supervision.wemix import augment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(b=6, c=1, h=28, w=28, seed=0):
    """Smooth images in 0…1: interpolation schemes agree on them."""
    coarse = torch.rand(b, c, 5, 5, generator=seeded(seed))
    return F.interpolate(coarse, (h, w), mode="bicubic", align_corners=False).clamp(0, 1)


def one_hot(b=6, k=10):
    return F.one_hot(torch.arange(b) % k, k).float()


# --- affine --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "scale", "right", "down"),
    [(30.0, 1.0, 0, 0), (-45.0, 1.2, 3, -2), (0.0, 0.8, 0, 5), (17.0, 1.1, -4, 1)],
)
def test_affine_agrees_with_torchvision(degrees, scale, right, down):
    x = images(2, 3)
    peer = tv.affine(x, degrees, [right, down], scale, [0.0, 0.0], v2.InterpolationMode.BILINEAR)
    one = torch.ones(2)
    theta = augment.affine_matrices(
        one * math.radians(degrees),
        one * scale,
        torch.tensor([[2 * right / 28, 2 * down / 28]]).repeat(2, 1),
        one,
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    ours = F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
    inside = ours[..., 4:-4, 4:-4] - peer[..., 4:-4, 4:-4]
    assert inside.abs().mean() < 0.02
    assert (ours - x).abs().mean() > 0.03  # the test would notice if nothing moved


def test_affine_keeps_shapes_on_images_that_are_not_square():
    x = torch.zeros(1, 1, 20, 40)
    x[:, :, 8:12, 16:24] = 1  # 4 high, 8 wide, in the middle
    one = torch.ones(1)
    theta = augment.affine_matrices(one * math.pi / 2, one, torch.zeros(1, 2), one, 20 / 40)
    grid = F.affine_grid(theta, [1, 1, 20, 40], align_corners=False)
    turned = F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
    expected = torch.zeros_like(x)
    expected[:, :, 6:14, 18:22] = 1
    assert (turned - expected).abs().mean() < 1e-3


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (3, 3, 12, 20)])
def test_the_sampling_grid_is_that_of_torch(shape):
    theta = torch.randn(shape[0], 2, 3, generator=seeded())
    ours = augment._sampling_grid(theta, *shape[2:])
    torch.testing.assert_close(ours, F.affine_grid(theta, list(shape), align_corners=False))


def test_strength_zero_without_mirroring_changes_nothing():
    x = images(c=3)
    torch.testing.assert_close(wemix.affine(0.0, flip=False)(x, seeded()), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(wemix.colour(0.0)(x, seeded()), x, atol=1e-6, rtol=0)


def test_mirroring_alone_mirrors_about_half():
    x = images(64)
    y = wemix.affine(0.0)(x, seeded(1))
    kept = (y - x).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (y - x.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (kept ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_zeros_come_in_from_outside():
    x = torch.ones(32, 1, 28, 28)
    assert wemix.affine(1.0)(x, seeded()).min() == 0


def test_examples_get_draws_of_their_own_and_runs_repeat():
    x = images(1).repeat(8, 1, 1, 1)
    for transform in (wemix.affine(0.5), wemix.colour(0.5), wemix.rand_augment(0.5)):
        first, again = transform(x, seeded(3)), transform(x, seeded(3))
        assert torch.equal(first, again)
        assert len(first.flatten(1).unique(dim=0)) > 3


@pytest.mark.parametrize("strength", [-0.1, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("make", [wemix.affine, wemix.colour, wemix.rand_augment])
def test_a_strength_outside_0_to_1_is_refused(make, strength):
    with pytest.raises(ValueError, match=r"strength lies in \[0, 1\]"):
        make(strength)


# --- colour, RandAugment, TrivialAugment ---------------------------------------------------------


def test_colour_is_torchvisions_adjustments_in_a_row():
    x = images(5, 3)
    ours = wemix.colour(0.8)(x, seeded(2))
    factor = 2 ** (0.8 * (2 * torch.rand(3, 5, generator=seeded(2)) - 1))
    for i in range(5):
        y = tv.adjust_brightness(x[i], float(factor[0, i]))
        y = tv.adjust_contrast(y, float(factor[1, i]))
        y = tv.adjust_saturation(y, float(factor[2, i]))
        torch.testing.assert_close(ours[i], y, atol=2e-3, rtol=0)


def test_colour_leaves_grey_images_grey_and_in_range():
    y = wemix.colour(1.0)(images(c=1), seeded())
    assert y.shape == (6, 1, 28, 28)
    assert 0 <= y.min() <= y.max() <= 1


def test_rand_augment_has_torchvisions_operations_at_its_largest_magnitudes():
    space = v2.RandAugment._AUGMENTATION_SPACE
    names = {name.lower() for name in space}
    assert names == {name.replace("_", "") for name in augment.OPERATIONS}
    for name, (magnitudes, signed) in space.items():
        ours = next(
            op for key, op in augment.OPERATIONS.items() if key.replace("_", "") == name.lower()
        )
        assert ours[1] == signed
        if (levels := magnitudes(31, 28, 28)) is None:
            continue
        x, most = images(2, 3), float(levels[-1])
        if name in ("Posterize", "Solarize"):
            most = int(most) if name == "Posterize" else most
        peer = v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)
        expected = peer._apply_image_or_video_transform(
            x, name, most, interpolation=v2.InterpolationMode.BILINEAR, fill={type(x): None}
        )
        torch.testing.assert_close(ours[0](x, 1.0), expected, atol=2e-2, rtol=0, msg=name)


def test_trivial_augment_draws_per_image_and_spares_the_global_generator():
    x = images(1, 3).repeat(12, 1, 1, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    y = wemix.trivial_augment(x, seeded(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(y, wemix.trivial_augment(x, seeded(1)))
    assert len(y.flatten(1).unique(dim=0)) > 4
    assert 0 <= y.min() <= y.max() <= 1


# --- mixing --------------------------------------------------------------------------------------


def test_mixup_blends_images_and_targets_by_the_same_weight():
    x = torch.arange(6.0)[:, None, None, None].expand(6, 1, 4, 4)
    mixed, target = wemix.mixup(x, one_hot(6, 6), 1.0, generator=seeded())
    torch.testing.assert_close(mixed[:, 0, 0, 0], target @ torch.arange(6.0))
    torch.testing.assert_close(target.sum(1), torch.ones(6))
    assert (target > 0).sum() > 6


def test_cutmix_targets_are_the_area_kept():
    x = torch.arange(8.0)[:, None, None, None].expand(8, 1, 16, 16)
    mixed, target = wemix.cutmix(x, one_hot(8, 8), 1.0, generator=seeded(4))
    for i in range(8):
        share = torch.stack([(mixed[i] == k).float().mean() for k in range(8)])
        torch.testing.assert_close(target[i], share, atol=1e-5, rtol=0)
    assert (target > 0).sum() > 8


@pytest.mark.parametrize("peer", [v2.MixUp(alpha=1.0, num_classes=10), v2.CutMix(num_classes=10)])
def test_mixed_targets_have_the_law_of_torchvision(peer):
    """Moments of the largest target over many draws agree: 200 batches of torchvision, ours."""
    torch.manual_seed(0)
    ours = wemix.mixup if isinstance(peer, v2.MixUp) else wemix.cutmix
    x = torch.rand(2, 1, 28, 28)
    theirs = torch.stack([peer(x, torch.tensor([0, 1]))[1].max() for _ in range(600)])
    many = torch.rand(4000, 1, 28, 28)
    labels = F.one_hot(torch.arange(4000) % 2, 10).float()
    target = ours(many, labels, 1.0, generator=seeded())[1]
    mixed = target[(target > 0).sum(1) == 2].max(1).values
    # v2 draws one weight a batch, so the two images of a batch are mixed with each other
    theirs = theirs[(theirs < 1)]
    assert abs(float(theirs.mean() - mixed.mean())) < 0.025
    assert abs(float(theirs.std() - mixed.std())) < 0.025


@pytest.mark.parametrize("mix", [wemix.mixup, wemix.cutmix])
def test_mixing_refuses_bad_arguments(mix):
    with pytest.raises(ValueError, match="alpha"):
        mix(images(), one_hot(), 0.0, generator=seeded())
    with pytest.raises(ValueError, match="targets"):
        mix(images(), one_hot(5), 1.0, generator=seeded())


@pytest.mark.parametrize("name", [*augment.LABEL_PRESERVING, *augment.LABEL_MIXING])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_keeps_shapes_and_probabilities(name, channels):
    x, target = images(6, channels), one_hot()
    y, mixed = wemix.augmentation(name, 0.5)(x, target, seeded())
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    torch.testing.assert_close(mixed.sum(1), torch.ones(6))
    assert (y - x).abs().max() > 0.01
    assert torch.equal(x, images(6, channels))  # the originals are not touched
    assert torch.equal(mixed, target) == (name in augment.LABEL_PRESERVING)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="one of affine"):
        wemix.augmentation("cutout")
    with pytest.raises(ValueError, match="alpha"):
        wemix.augmentation("mixup", alpha=-1)


# --- loss and schedule ---------------------------------------------------------------------------


def test_mix_loss_is_the_weighted_sum_of_torchs_cross_entropies():
    logits, other = torch.randn(2, 5, 4, generator=seeded()).unbind()
    hard, soft = torch.tensor([0, 1, 2, 3, 0]), torch.rand(5, 4, generator=seeded()).softmax(1)
    loss = wemix.mix_loss(logits, hard, other, soft, 0.3)
    expected = 0.3 * F.cross_entropy(logits, hard) + 0.7 * F.cross_entropy(other, soft)
    torch.testing.assert_close(loss, expected)
    as_soft = wemix.mix_loss(logits, F.one_hot(hard, 4).float(), other, soft, 0.3)
    torch.testing.assert_close(as_soft, expected)


def test_mix_loss_weighs_halves_of_different_size_by_lambda_alone():
    a, b = torch.randn(2, 4, generator=seeded()), torch.randn(6, 4, generator=seeded(1))
    y, z = torch.tensor([0, 1]), torch.arange(6) % 4
    expected = 0.5 * (F.cross_entropy(a, y) + F.cross_entropy(b, z))
    torch.testing.assert_close(wemix.mix_loss(a, y, b, z, 0.5), expected)


def test_limits_of_lambda_ignore_the_other_half():
    good, bad = torch.randn(3, 4), torch.full((3, 4), math.nan)
    y = torch.tensor([0, 1, 2])
    torch.testing.assert_close(wemix.mix_loss(good, y, bad, y, 1), F.cross_entropy(good, y))
    torch.testing.assert_close(wemix.mix_loss(bad, y, good, y, 0.0), F.cross_entropy(good, y))


def test_half_precision_stays_finite():
    logits = torch.tensor([[60_000.0, -60_000.0]], dtype=torch.float16)
    loss = wemix.mix_loss(logits, torch.tensor([1]), logits, torch.tensor([[0.5, 0.5]]).half(), 0.5)
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32


@given(lam=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_gradient_is_the_mixture_of_gradients(lam, seed):
    g = seeded(seed)
    model = nn.Linear(5, 3).double()
    x, xa = torch.randn(2, 7, 5, generator=g, dtype=torch.float64).unbind()
    y, ya = torch.randint(3, (7,), generator=g), torch.rand(7, 3, generator=g).double().softmax(1)

    def gradient(loss):
        return torch.cat([p.flatten() for p in torch.autograd.grad(loss, [*model.parameters()])])

    mixed = gradient(wemix.mix_loss(model(x), y, model(xa), ya, lam))
    f, fa = gradient(F.cross_entropy(model(x), y)), gradient(F.cross_entropy(model(xa), ya))
    torch.testing.assert_close(mixed, lam * f + (1 - lam) * fa, atol=1e-6, rtol=0)


def test_the_additive_loss_is_mixloss_with_a_longer_step():
    a, b = torch.randn(2, 5, 4, generator=seeded()).unbind()
    y = torch.arange(5) % 4
    expected = F.cross_entropy(a, y) + 0.7 * F.cross_entropy(b, y)
    torch.testing.assert_close(wemix.additive_loss(a, y, b, y, 0.7), expected)
    with pytest.raises(ValueError, match="eta"):
        wemix.additive_loss(a, y, b, y, -1.0)


@pytest.mark.parametrize("lam", [-0.01, 1.01, math.nan])
def test_lambda_outside_0_to_1_is_refused(lam):
    y = torch.tensor([0])
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        wemix.mix_loss(torch.zeros(1, 2), y, torch.zeros(1, 2), y, lam)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        wemix.WeMixSchedule(10, lam=lam)


@pytest.mark.parametrize("target", [torch.zeros(3, dtype=torch.long), torch.zeros(2, 5)])
def test_targets_that_do_not_fit_are_refused(target):
    logits = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="targets are classes"):
        wemix.mix_loss(logits, target, logits, torch.tensor([0, 1]), 0.5)


def test_the_boundary_step_belongs_to_stage_2():
    assert [wemix.stage(t, 8, 0.75) for t in (0, 5, 6, 7)] == [1, 1, 2, 2]
    assert wemix.stage(0, 4, 0.0) == 2
    assert wemix.stage(3, 4, 1.0) == 1
    for bad in ((8, 8, 0.5), (-1, 8, 0.5), (0, 8, 1.5), (0, 8, math.nan)):
        with pytest.raises(ValueError, match=r"step must|fraction"):
            wemix.stage(*bad)


def test_presets_and_their_limits():
    plans = {
        name: [wemix.WeMixSchedule.preset(name, 4).at(t) for t in (0, 3)] for name in wemix.PRESETS
    }
    original, augmented, both = (True, False, 1.0), (False, True, 0.0), (True, True, 0.5)
    assert plans == {
        "orig": [original, original],
        "aug": [augmented, augmented],
        "augdrop": [augmented, original],
        "mixloss": [both, both],
        "wemix": [both, original],
    }
    same = wemix.WeMixSchedule.preset
    assert same("augdrop", 4, stage1_fraction=1.0) == same("aug", 4)
    assert same("wemix", 4, stage1_fraction=1.0) == same("mixloss", 4)
    assert same("mixloss", 4, lam=1.0).at(0) == original
    with pytest.raises(ValueError, match="preset"):
        same("mixup", 4)
    with pytest.raises(ValueError, match="at least one"):
        wemix.WeMixSchedule(0)


# --- the step ------------------------------------------------------------------------------------


def negated(x, target):
    return -x, target.roll(1, 1)


@pytest.mark.parametrize("name", ["orig", "aug", "mixloss"])
def test_a_step_descends_on_the_planned_loss(name):
    g = seeded()
    model = nn.Linear(4, 3)
    twin = nn.Linear(4, 3)
    twin.load_state_dict(model.state_dict())
    x, target = torch.randn(6, 4, generator=g), F.one_hot(torch.arange(6) % 3, 3).float()
    plan = wemix.WeMixSchedule.preset(name, 1, lam=0.3).at(0)
    out = wemix.wemix_step(
        model, (x, target), negated, plan, torch.optim.SGD(model.parameters(), 0.1)
    )
    xa, ta = negated(x, target)
    loss = wemix.mix_loss(twin(x), target, twin(xa), ta, plan.lam)
    loss.backward()
    torch.optim.SGD(twin.parameters(), 0.1).step()
    torch.testing.assert_close(model.weight, twin.weight)
    torch.testing.assert_close(out["loss"], loss.detach())
    assert out["loss_orig"].isnan() == (name == "aug")
    assert out["loss_aug"].isnan() == (name == "orig")


def test_both_halves_share_one_forward():
    calls = []

    class Counting(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    model = Counting(4, 3)
    batch = torch.randn(6, 4), F.one_hot(torch.arange(6) % 3, 3).float()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for name in ("orig", "aug", "mixloss"):
        plan = wemix.WeMixSchedule.preset(name, 1).at(0)
        wemix.wemix_step(model, batch, negated, plan, optimizer)
    assert calls == [6, 6, 12]


def test_a_step_on_originals_draws_no_augmentation():
    model = nn.Linear(4, 3)
    batch = torch.randn(6, 4), F.one_hot(torch.arange(6) % 3, 3).float()

    def never(x, target):
        raise AssertionError("drawn for nothing")

    plan = wemix.WeMixSchedule.preset("augdrop", 4).at(3)
    wemix.wemix_step(model, batch, never, plan, torch.optim.SGD(model.parameters(), 0.1))


def test_mixloss_on_least_squares_is_weighted_least_squares():
    """Stack the rows of both halves scaled by √λ and √(1 − λ): numpy's answer is the minimiser."""
    rng, lam = np.random.default_rng(0), 0.3
    x, xa = rng.normal(size=(2, 30, 4))
    y, ya = rng.normal(size=(2, 30))
    a, b = np.sqrt(lam), np.sqrt(1 - lam)
    stacked = np.linalg.lstsq(np.vstack([a * x, b * xa]), np.concatenate([a * y, b * ya]))[0]
    w = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    tensors = [torch.from_numpy(v) for v in (x, y, xa, ya)]

    def loss():
        optimizer.zero_grad()
        f, fa = ((tensors[i] @ w - tensors[i + 1]).square().mean() for i in (0, 2))
        value = lam * f + (1 - lam) * fa
        value.backward()
        return value

    optimizer.step(loss)
    np.testing.assert_allclose(w.detach().numpy(), stacked, atol=1e-6)


# --- bias ----------------------------------------------------------------------------------------


def test_gradient_bias_of_an_exact_shift_is_its_norm():
    """A linear model with squared-free loss: without randomness in the draw, all draws agree."""
    model = nn.Linear(3, 2)
    x, target = torch.randn(20, 3, generator=seeded()), one_hot(20, 2)
    norm, error = wemix.gradient_bias(model, (x, target), lambda a, t: (a + 1, t), 3)
    loss = F.cross_entropy(model(x), target) - F.cross_entropy(model(x + 1), target)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])
    assert norm == pytest.approx(float(exact.norm()), rel=1e-4)
    assert error < 1e-3 * norm


def test_gradient_bias_takes_off_the_noise_of_few_draws():
    """At a bias of zero the plain norm of few draws stays large; the estimate is near zero."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x, target = torch.zeros(40, 3), one_hot(40, 2)
    g = seeded(3)

    def noise(a, t):
        return a + 0.5 * torch.randn(a.shape, generator=g) @ torch.eye(3), t

    few, error = wemix.gradient_bias(model, (x, target), noise, 20)
    many, _ = wemix.gradient_bias(model, (x, target), noise, 400)
    assert abs(few - many) < 4 * error + 0.02
    with pytest.raises(ValueError, match="at least 3"):
        wemix.gradient_bias(model, (x, target), noise, 2)


def test_gradient_bias_is_the_formula_of_the_chapter():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x, target = torch.randn(30, 4), one_hot(30, 3)
    draws = [torch.randn(30, 4, generator=seeded(k)) for k in range(20)]
    stream = iter(draws)
    norm, _ = wemix.gradient_bias(model, (x, target), lambda a, t: (a + next(stream), t), 20)

    def gradient(inputs):
        loss = F.cross_entropy(model(inputs), target)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])

    d = torch.stack([gradient(x) - gradient(x + draw) for draw in draws]).double()
    squared = d.mean(0).square().sum() - d.T.cov().trace() / 20
    assert norm == pytest.approx(float(squared.clamp(min=0).sqrt()), rel=1e-4)


def test_domain_gap_of_equal_and_of_moved_features():
    features = torch.randn(200, 6, generator=seeded())
    other = torch.randn(200, 6, generator=seeded(1))
    assert 0.35 < wemix.domain_gap(features, other) < 0.65
    assert wemix.domain_gap(features, other + 3) > 0.99
    assert 0.7 < wemix.domain_gap(features, other[:120] + 0.8) < 0.95
    with pytest.raises(ValueError, match="features"):
        wemix.domain_gap(features, other[:, :3])
    with pytest.raises(ValueError, match="finite"):
        wemix.domain_gap(features, other * math.nan)


# --- theory --------------------------------------------------------------------------------------


def test_d1_and_d2_are_equalities_on_equal_isotropic_quadratics():
    """F = μ/2 ‖w − w*‖², F̃ the same around w* + b: excess = (1 − λ)² δ² / 2μ, to 1e-8."""
    mu, b = 0.7, torch.tensor([0.3, -1.2, 0.4], dtype=torch.float64)
    delta = mu * float(b.norm())
    for lam in (0.0, 0.25, 0.9):
        w = ((1 - lam) * b).requires_grad_()
        f, fa = mu / 2 * w.square().sum(), mu / 2 * (w - b).square().sum()
        (gradient,) = torch.autograd.grad(lam * f + (1 - lam) * fa, w)
        assert gradient.norm() < 1e-12  # stationary
        assert float(f.detach()) == pytest.approx(float(wemix.bias_floor(delta, mu, lam)), rel=1e-8)


def test_d3_is_an_equality_there_and_a_bound_for_stretched_bowls():
    mu, eta, steps = 0.5, 0.4, 7
    b = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    for curvature in (torch.full((3,), mu).double(), torch.tensor([mu, 1.0, 2.0]).double()):
        w = b.clone()
        for _ in range(steps):
            w = w - eta * curvature * w
        excess = float((curvature * w.square()).sum() / 2)
        bound = float(wemix.augdrop_bound(float((curvature * b).norm()), mu, eta, steps))
        assert excess <= bound * (1 + 1e-9)
        if len(curvature.unique()) == 1:  # each step multiplies w by 1 − ημ, its risk by the square
            assert excess == pytest.approx(bound * (1 - eta * mu) ** steps, rel=1e-8)


@given(bias2=st.floats(0, 10), vo=st.floats(1e-3, 10), va=st.floats(1e-3, 10), lam=st.floats(0, 1))
def test_d4_the_best_risk_is_harmonic_and_below_all_others(bias2, vo, va, lam):
    best = wemix.optimal_lambda(bias2, vo, va)
    risk = wemix.isotropic_risk(best, bias2, vo, va)
    d = bias2 + va
    assert risk == pytest.approx(d * vo / (d + vo))
    assert risk <= wemix.isotropic_risk(lam, bias2, vo, va) * (1 + 1e-12)
    assert risk < min(d, vo)
    assert risk <= max(d, vo) / 2 * (1 + 1e-12)


def test_d4_by_simulation():
    lams = [0.0, 0.4, 0.438, 1.0]
    errors = wemix.simulate_sequence_model(
        lams, n=60, m=2000, dim=20, sigma=1.0, bias=0.5, draws=4000, generator=seeded()
    )
    law = wemix.isotropic_risk(lams, 0.25, 20 / 60, 20 / 2000)
    z = (errors.mean(0).numpy() - law) / (errors.std(0).numpy() / 4000**0.5)
    assert (abs(z) < 3).all()
    np.testing.assert_allclose(law[[0, 1, 3]], [0.260, 0.147, 0.333], atol=6e-4)
    assert wemix.optimal_lambda(0.25, 20 / 60, 20 / 2000) == pytest.approx(0.438, abs=1e-3)


def test_both_paths_coincide_on_round_bowls_only():
    times = np.linspace(0, 5, 11)
    round_ = wemix.Bowls(np.ones(2), np.array([0.5, 0.0]), 60, 2000, 1.0)
    lam = 1 - np.exp(-times)
    drop, mix = wemix.augdrop_weights(times, round_), wemix.mixloss_weights(lam, round_)
    np.testing.assert_allclose(round_.risk(drop), round_.risk(mix))
    law = wemix.isotropic_risk(lam, 0.25, 2 / 60, 2 / 2000)
    np.testing.assert_allclose(round_.risk(mix), law)
    stretched = round_._replace(curvature=np.array([1.8, 0.2]))
    gap = stretched.risk(wemix.augdrop_weights(times, stretched)) - stretched.risk(mix)
    assert abs(gap).max() > 1e-3


def test_augdrop_weights_are_those_of_small_gradient_steps():
    h, start, end = np.array([1.8, 0.2]), np.array([1.0, 1.0]), np.zeros(2)
    w = start.copy()
    for _ in range(20_000):
        w = w - 1e-4 * h * (w - end)
    bowls = wemix.Bowls(h, start, 10, 100, 1.0)
    np.testing.assert_allclose(1 - w, wemix.augdrop_weights(2.0, bowls), atol=1e-3)


def test_d2_bounds_logistic_regression_with_slope_two():
    lams = 1 - np.geomspace(0.4, 0.025, 5)
    path = wemix.logistic_path(lams)
    assert (path.excess <= path.bound).all()
    assert (path.excess > 0).all()
    slope = np.polyfit(np.log(1 - path.lam), np.log(path.excess), 1)[0]
    assert 1.7 < slope < 2.3


@pytest.mark.parametrize(
    "call",
    [
        partial(wemix.bias_floor, 1.0, 0.0),
        partial(wemix.bias_floor, -1.0, 1.0),
        partial(wemix.bias_floor, 1.0, 1.0, 1.5),
        partial(wemix.augdrop_bound, 1.0, 2.0, 1.0, 3),
        partial(wemix.optimal_lambda, -1.0, 1.0, 1.0),
        partial(wemix.optimal_lambda, 0.0, 0.0, 0.0),
    ],
)
def test_theory_refuses_impossible_constants(call):
    with pytest.raises(ValueError, match=r"need|must"):
        call()
