"""KDA: kernels and bounds against brute force, losses against their formulas, landmarks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.kernel_approximation import Nystroem
from torch.nn import functional as F

from toolkit.networks import nystrom_distillation as nd

D = torch.float64


def draw(*shape, seed=0, dtype=D):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labelled(n=120, d=7, classes=5, seed=0):
    """Features about a mean of their class, and labels that name every class."""
    y = torch.arange(n) % classes
    return draw(classes, d, seed=seed + 50)[y] * 2 + draw(n, d, seed=seed), y


# --- the Nyström factor ------------------------------------------------------------------------


def test_factor_is_exact_when_landmarks_span_the_features():
    x = draw(50, 6)
    marks = draw(9, 6, seed=1)
    a = nd.nystrom(x @ marks.T, marks @ marks.T, rcond=1e-12)
    torch.testing.assert_close(a @ a.T, x @ x.T)
    assert nd.nystrom_error(x, marks, rcond=1e-12) < 1e-9 * nd.gram_norm(x)


def test_factor_gives_the_pseudo_inverse_and_scipys_root():
    x, marks = draw(30, 8), draw(4, 8, seed=1)
    c, w = x @ marks.T, marks @ marks.T
    a = nd.nystrom(c, w)
    torch.testing.assert_close(a @ a.T, c @ torch.linalg.pinv(w) @ c.T)
    root = np.linalg.inv(np.real(sqrtm(w.numpy())))
    np.testing.assert_allclose(a.numpy(), c.numpy() @ root, rtol=1e-8)


def test_factor_agrees_with_sklearn_on_the_same_examples():
    x = draw(40, 10).numpy()
    peer = Nystroem("linear", n_components=6, random_state=3).fit(x)
    marks = torch.from_numpy(peer.components_)
    a = nd.nystrom(torch.from_numpy(x) @ marks.T, marks @ marks.T).numpy()
    z = peer.transform(x)
    np.testing.assert_allclose(a @ a.T, z @ z.T, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeated_and_dependent_landmarks_add_nothing(dtype):
    x, marks = draw(30, 8, dtype=dtype), draw(3, 8, seed=1, dtype=dtype)
    singular = torch.cat([marks, marks[:2], (marks[0] + marks[1])[None], torch.zeros_like(marks)])
    a = nd.nystrom(x @ marks.T, marks @ marks.T)
    b = nd.nystrom(x @ singular.T, singular @ singular.T)
    assert torch.isfinite(b).all()
    torch.testing.assert_close(a @ a.T, b @ b.T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(nd.nystrom_error(x, marks), nd.nystrom_error(x, singular))


def test_directions_below_rcond_are_left_out():
    x, marks = draw(30, 8), draw(3, 8, seed=1)
    marks = torch.linalg.qr(marks.T)[0].T * torch.tensor([1.0, 1.0, 1e-2], dtype=D)[:, None]
    for rcond, rank in ((1e-6, 3), (1e-2, 2)):
        a = nd.nystrom(x @ marks.T, marks @ marks.T, rcond)
        assert torch.linalg.matrix_rank(a) == rank
        torch.testing.assert_close(nd.nystrom_error(x, marks, rcond), (x @ x.T - a @ a.T).norm())


def test_a_kernel_of_zeros_gives_a_factor_of_zeros():
    assert not nd.nystrom(torch.zeros(4, 2), torch.zeros(2, 2)).any()
    x = draw(6, 3)
    torch.testing.assert_close(nd.nystrom_error(x, torch.zeros(2, 3, dtype=D)), nd.gram_norm(x))


def test_factor_refuses_what_is_no_kernel():
    c = draw(5, 2)
    with pytest.raises(ValueError, match="symmetric"):
        nd.nystrom(c, torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=D))
    with pytest.raises(ValueError, match="positive semi-definite"):
        nd.nystrom(c, torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=D))
    with pytest.raises(ValueError, match="not finite"):
        nd.nystrom(c, torch.full((2, 2), torch.nan, dtype=D))
    with pytest.raises(ValueError, match="rcond"):
        nd.nystrom(c, torch.eye(2, dtype=D), rcond=1.0)


# --- norms without an n×n matrix ---------------------------------------------------------------


def test_distances_equal_those_of_explicit_kernels():
    xs, xt, marks = draw(500, 5), draw(500, 9, seed=1), draw(4, 9, seed=2)
    explicit = (xs @ xs.T - xt @ xt.T).norm()
    torch.testing.assert_close(nd.gram_distance(xs, xt), explicit)
    torch.testing.assert_close(nd.gram_norm(xs), (xs @ xs.T).norm())
    a = nd.nystrom(xt @ marks.T, marks @ marks.T)
    torch.testing.assert_close(nd.nystrom_error(xt, marks), (xt @ xt.T - a @ a.T).norm())
    assert nd.gram_distance(xs, xs @ torch.linalg.qr(draw(5, 5))[0]) < 1e-5 * nd.gram_norm(xs)


def test_best_error_is_that_of_the_largest_eigenvalues():
    x = draw(60, 8)
    values = torch.linalg.eigvalsh(x @ x.T).flip(0)
    torch.testing.assert_close(nd.best_error(x, 3), values[3:].norm())
    assert nd.best_error(x, 8) == 0
    for seed in range(5):
        assert nd.nystrom_error(x, draw(3, 8, seed=seed)) >= nd.best_error(x, 3)


def test_cka_by_its_definition_and_its_invariances():
    xs, xt = draw(80, 4), draw(80, 6, seed=1)
    centre = torch.eye(80, dtype=D) - 1 / 80
    ks, kt = (centre @ x @ x.T @ centre for x in (xs, xt))
    torch.testing.assert_close(nd.linear_cka(xs, xt), (ks * kt).sum() / (ks.norm() * kt.norm()))
    same = nd.linear_cka(xs, 3 * xs @ torch.linalg.qr(draw(4, 4))[0] + 5)
    torch.testing.assert_close(same, torch.ones((), dtype=D))
    assert torch.isnan(nd.linear_cka(torch.ones(5, 2), draw(5, 2, dtype=torch.float32)))


@pytest.mark.parametrize("function", [nd.gram_distance, nd.linear_cka])
def test_other_examples_are_refused(function):
    with pytest.raises(ValueError, match="same examples"):
        function(draw(5, 2), draw(6, 2))


# --- T1, T2, T3 --------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_t1_and_t2_hold_for_any_features(seed, ds, dt, m):
    xs, xt = draw(40, ds, seed=seed), draw(40, dt, seed=seed + 1)
    averaging = nd.averaging_matrix(torch.arange(40) % m, m).double()
    bound = nd.transfer_bound(xs, xt, averaging)
    assert bound.full <= bound.right * (1 + 1e-6)
    spread = float(torch.linalg.matrix_norm(averaging, 2))
    assert bound.landmark <= spread * bound.partial * (1 + 1e-6)
    assert spread == pytest.approx((40 // m) ** -0.5, rel=1e-5)


def test_equal_partial_kernels_force_equal_nystroem_kernels():
    """T2 with different widths: the student holds the landmark part of the teacher, rotated."""
    xt, y = labelled(d=7, classes=5)
    averaging = nd.averaging_matrix(y, 5).double()
    marks = averaging.T @ xt
    basis = torch.linalg.svd(marks, full_matrices=False)[2]
    xs = torch.cat([xt @ basis.T, torch.zeros(len(xt), 6, dtype=D)], 1)
    bound = nd.transfer_bound(xs, xt, averaging)
    assert bound.partial < 1e-9
    assert bound.landmark < 1e-9
    assert bound.full <= bound.left_out * (1 + 1e-9)
    assert bound.right == pytest.approx(bound.left_out, rel=1e-6)


def test_the_bound_needs_one_matrix_for_all_examples():
    with pytest.raises(ValueError, match="averaging matrix"):
        nd.transfer_bound(draw(6, 2), draw(6, 3), draw(5, 2))


# --- landmarks ---------------------------------------------------------------------------------


def test_class_landmarks_are_class_means():
    x, y = labelled()
    marks = nd.class_landmarks(x, y, 5)
    torch.testing.assert_close(marks[3], x[y == 3].mean(0))
    torch.testing.assert_close(nd.averaging_matrix(y, 5).double().T @ x, marks)
    counts = torch.full((5,), 24.0, dtype=D)
    torch.testing.assert_close(nd.class_landmarks(x, y, 5, counts), marks)


def test_empty_classes_and_wrong_labels_are_refused():
    x, y = labelled()
    with pytest.raises(ValueError, match="no landmark: 5"):
        nd.class_landmarks(x, y, 6)
    with pytest.raises(ValueError, match="0…3"):
        nd.class_landmarks(x, y, 4)
    with pytest.raises(ValueError, match="labels"):
        nd.class_landmarks(x, y[:-1], 5)


@pytest.mark.parametrize("kind", ["kmeans", "random", "gaussian"])
def test_every_kind_of_landmark_is_an_average_by_its_matrix(kind):
    x, _ = labelled()
    choose = getattr(nd, f"{kind}_landmarks")
    source = 0 if kind == "kmeans" else torch.Generator().manual_seed(0)
    marks, averaging = choose(x, 6, source)
    torch.testing.assert_close(averaging.T @ x, marks)
    assert marks.shape == (6, 7)
    if kind == "random":
        assert torch.equal(averaging.sum(0), torch.ones(6, dtype=D))
        assert (averaging.sum(1) <= 1).all()
    with pytest.raises(ValueError, match="1…120"):
        choose(x, 121, source)


def test_bank_gives_the_means_of_the_epoch_that_ended():
    x, y = labelled()
    bank = nd.LandmarkBank(5, 7)
    assert not bank.ready
    for part in torch.arange(120).split(50):
        bank.update(x[part].float(), y[part])
    torch.testing.assert_close(bank.end_epoch(), nd.class_landmarks(x.float(), y, 5))
    assert bank.ready
    bank.update(2 * x.float(), y)
    assert torch.equal(bank.counts, torch.full((5,), 24.0))  # those of the first epoch
    torch.testing.assert_close(bank.end_epoch(), 2 * nd.class_landmarks(x.float(), y, 5))


def test_bank_leaves_out_who_is_in_no_group_and_takes_weights():
    x, y = labelled()
    bank = nd.LandmarkBank(1, 7)
    bank.update(x.float(), torch.where(y == 2, 0, -1))
    torch.testing.assert_close(bank.end_epoch()[0], x[y == 2].float().mean(0))
    weighted = nd.LandmarkBank(3, 7)
    weights = draw(120, 3, seed=8, dtype=torch.float32)
    weighted.update(x.float(), weights)
    torch.testing.assert_close(weighted.end_epoch(), weights.T @ x.float())


def test_bank_resumes_from_its_state():
    x, y = labelled()
    bank, again = nd.LandmarkBank(5, 7), nd.LandmarkBank(5, 7)
    bank.update(x.float(), y)
    bank.end_epoch()
    bank.update(x[:60].float(), y[:60])
    again.load_state_dict(bank.state_dict())
    for each in (bank, again):
        each.update(x[60:].float(), y[60:])
    assert torch.equal(bank.end_epoch(), again.end_epoch())


def test_bank_refuses_empty_groups_and_other_widths():
    bank = nd.LandmarkBank(3, 7)
    with pytest.raises(ValueError, match="no landmark: 0, 1, 2"):
        bank.end_epoch()
    with pytest.raises(ValueError, match="7 wide, got 6"):
        bank.update(torch.zeros(2, 6), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="0…2"):
        bank.update(torch.zeros(2, 7), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="at least one"):
        nd.LandmarkBank(0, 7)


# --- losses ------------------------------------------------------------------------------------


def four(b=6, m=4, ds=3, dt=5):
    return draw(b, ds), draw(b, dt, seed=1), draw(m, ds, seed=2), draw(m, dt, seed=3)


def test_kda_loss_by_its_formula():
    fs, ft, cs, ct = four()
    total = 0.0
    for i in range(6):
        for j in range(4):
            e = abs(float(fs[i] @ cs[j] - ft[i] @ ct[j]))
            total += 0.5 * e * e if e < 1 else e - 0.5
    expected = total / float((ft @ ct.T).square().sum()) ** 0.5
    assert float(nd.kda_loss(fs, ft, cs, ct)) == pytest.approx(expected, rel=1e-12)


def test_kda_loss_and_its_gradient_vanish_at_agreement():
    _, ft, _, ct = four()
    turn = torch.linalg.qr(draw(5, 5, seed=9))[0]
    fs = (ft @ turn).requires_grad_()
    loss = nd.kda_loss(fs, ft, ct @ turn, ct)
    loss.backward()
    assert float(loss.detach()) < 1e-24
    assert fs.grad.abs().max() < 1e-12


def test_kda_loss_does_not_change_when_a_network_is_rotated_with_its_landmarks():
    fs, ft, cs, ct = four()
    turn = torch.linalg.qr(draw(3, 3, seed=9))[0]
    torch.testing.assert_close(
        nd.kda_loss(fs @ turn, ft, cs @ turn, ct), nd.kda_loss(fs, ft, cs, ct)
    )


def test_only_the_student_gets_a_gradient():
    fs, ft, cs, ct = (part.requires_grad_() for part in four())
    nd.kda_loss(fs, ft, cs, ct).backward()
    assert fs.grad is not None
    assert ft.grad is cs.grad is ct.grad is None
    for loss in (nd.gram_loss, nd.sp_loss, nd.rkd_loss):
        ft.grad = None
        loss(fs, ft).backward()
        assert ft.grad is None


def test_batch_gram_passes_gradients_through_one_factor_only():
    fs, ft, _, _ = four()
    fs.requires_grad_()
    nd.gram_loss(fs, ft).backward()
    again = fs.detach().clone().requires_grad_()
    nd.kda_loss(again, ft, fs.detach(), ft).backward()
    assert torch.equal(fs.grad, again.grad)


def test_a_teacher_of_zeros_does_not_divide_by_zero():
    fs, _, cs, ct = four()
    assert torch.isfinite(nd.kda_loss(fs * 0, torch.zeros(6, 5, dtype=D), cs, ct))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda fs, ft, cs, ct: (fs[:5], ft, cs, ct), "different batches"),
        (lambda fs, ft, cs, ct: (fs, ft, cs[:3], ct), "same landmarks"),
        (lambda fs, ft, cs, ct: (fs, ft, ct, ct), "as wide as their features"),
        (lambda fs, ft, cs, ct: (fs, ft, cs, cs), "as wide as their features"),
    ],
)
def test_kda_loss_names_what_does_not_fit(broken, message):
    with pytest.raises(ValueError, match=message):
        nd.kda_loss(*broken(*four()))


def test_sp_loss_by_its_formula():
    fs, ft, _, _ = four()
    gs, gt = (f @ f.T / (f @ f.T).norm(dim=1, keepdim=True) for f in (fs, ft))
    torch.testing.assert_close(nd.sp_loss(fs, ft), (gs - gt).square().sum() / 36)


def test_rkd_loss_by_its_formula():
    fs, ft, _, _ = four()
    parts = []
    for f in (fs, ft):
        distance = torch.cdist(f, f)
        angle = torch.zeros(6, 6, 6, dtype=D)
        for i in range(6):
            for j in range(6):
                for k in range(6):
                    u, v = f[j] - f[i], f[k] - f[i]
                    size = u.norm() * v.norm()
                    angle[i, j, k] = u @ v / size if size > 0 else 0
        parts.append((distance / distance[distance > 0].mean(), angle))
    (ds, angle_s), (dt, angle_t) = parts
    expected = 25 * F.smooth_l1_loss(ds, dt) + 50 * F.smooth_l1_loss(angle_s, angle_t)
    torch.testing.assert_close(nd.rkd_loss(fs, ft), expected)


def test_rkd_gradients_are_finite_for_repeated_examples():
    fs = torch.ones(4, 3, dtype=D)
    fs[3] = 2
    fs.requires_grad_()
    nd.rkd_loss(fs, draw(4, 5)).backward()
    assert torch.isfinite(fs.grad).all()


def test_kd_loss_by_its_formula():
    zs, zt = draw(6, 4), draw(6, 4, seed=1)
    p, q = (z / 4 for z in (zs, zt))
    p, q = p.softmax(1), q.softmax(1)
    torch.testing.assert_close(nd.kd_loss(zs, zt), 16 * (q * (q / p).log()).sum(1).mean())
    assert nd.kd_loss(zt + 3, zt) < 1e-12
    with pytest.raises(ValueError, match="equal logits"):
        nd.kd_loss(zs, draw(6, 5))
    with pytest.raises(ValueError, match="temperature"):
        nd.kd_loss(zs, zt, 0.0)


def test_hints_and_attention_ask_for_equal_shapes():
    maps = draw(2, 3, 4, 4).abs()
    torch.testing.assert_close(nd.attention(maps).norm(dim=1), torch.ones(2, dtype=D))
    assert nd.at_loss(2 * maps, nd.attention(maps)) < 1e-12
    assert nd.at_loss(maps, nd.attention(maps.flip(3))) > 0
    with pytest.raises(ValueError, match="differ in size"):
        nd.at_loss(maps, nd.attention(maps[..., :3]))
    with pytest.raises(ValueError, match="adaptor of the teacher's width"):
        nd.hint_loss(draw(2, 3), draw(2, 4))


def test_other_examples_are_refused_by_every_relation():
    for loss in (nd.gram_loss, nd.sp_loss, nd.rkd_loss):
        with pytest.raises(ValueError, match="different batches"):
            loss(draw(5, 3), draw(6, 3))
