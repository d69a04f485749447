"""Min-max, bilevel, deep AUC and hyper-cleaning against closed forms, autograd and plain loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from toolkit.optimization import moving_average as ma
from toolkit.optimization.moving_average import auc, hyperclean, study_pairs
from toolkit.optimization.moving_average.bilevel import _sampled_hvp
from toolkit.optimization.moving_average.hyperclean import HyperClean
from toolkit.runtime import TUNING_SEEDS

CPU = torch.device("cpu")
F64 = torch.float64


def const(value, T):
    return torch.full((T,), value)


# --- min-max --------------------------------------------------------------------------------------


def test_saddle_gradients_are_those_of_autograd():
    problem = ma.QuadraticSaddle(0.3)
    x, y = (torch.randn(8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    x.requires_grad_()
    y.requires_grad_()
    value = (x**2 / (1 + x**2)).sum() + y @ problem.A @ x - 0.15 * y @ y
    g_x, g_y = torch.autograd.grad(value, (x, y))
    torch.testing.assert_close(problem.grad_x(x, y).detach(), g_x)
    torch.testing.assert_close(problem.grad_y(x, y).detach(), g_y)
    z = x.detach()
    torch.testing.assert_close(problem.grad_y(z, problem.best_y(z)), torch.zeros(8))
    phi = lambda x: (x**2 / (1 + x**2)).sum() + (problem.A @ x).square().sum() / 0.6  # noqa: E731
    torch.testing.assert_close(problem.grad_phi(z), torch.func.grad(phi)(z))
    with pytest.raises(ValueError, match="mu"):
        ma.QuadraticSaddle(0.0)


@pytest.mark.parametrize("dual", ["sgd", "sema"])
def test_pdsm_is_its_four_lines(dual):
    problem, T, seeds = ma.QuadraticSaddle(), 20, [3]
    trace, lag = ma.pdsm(
        problem,
        T,
        gamma=const(0.3, T),
        eta_x=const(0.05, T),
        eta_y=const(0.2, T),
        gamma_y=const(0.5, T),
        dual=dual,
        seeds=seeds,
        points=T,
        radius=0.4,
    )
    x, y = problem.start(seeds, 1)[0], torch.zeros(8)
    for t, numbers in enumerate(ma.draws(seeds, 1, 16, T, stream=T)):
        assert float(lag[t, 0, 0]) == pytest.approx(
            float((y - problem.best_y(x)).square().sum()), rel=1e-4
        )
        g_x, g_y = problem.grad_x(x, y) + numbers[0, :8], problem.grad_y(x, y) + numbers[0, 8:]
        v = g_x if t == 0 else 0.7 * v + 0.3 * g_x
        w = g_y if t == 0 or dual == "sgd" else 0.5 * w + 0.5 * g_y
        x, y = x - 0.05 * v, y + 0.2 * w
        y = y * min(1.0, 0.4 / float(y.norm()))
    torch.testing.assert_close(trace.x[0, 0], x, rtol=1e-4, atol=1e-5)


def test_pdsm_with_full_weight_is_sgda_and_a_batch_divides_the_noise():
    problem, T = ma.QuadraticSaddle(), 64
    shared = {"eta_x": const(1e-6, T), "eta_y": const(1e-6, T), "seeds": range(32), "chains": 8}
    noisy, _ = ma.pdsm(problem, T, gamma=const(1.0, T), **shared)
    quiet, _ = ma.pdsm(problem, T, gamma=const(1.0, T), batch=100, **shared)
    # nothing moves: the error is the dual's lag and the noise, 8 or 8 / 100
    lag = problem.grad_phi(problem.start([0], 1)) - problem.grad_x(
        problem.start([0], 1), 0 * noisy.x[0, :1]
    )
    assert float(noisy.est_err.mean() - quiet.est_err.mean()) == pytest.approx(7.92, rel=0.05)
    assert float(lag.square().sum()) > 1


def test_sgd_max_is_its_double_loop():
    problem, seeds, T = ma.QuadraticSaddle(), [4], 12
    trace = ma.sgd_max(problem, T, eta_x=0.1, eta_y=0.3, inner=2, seeds=seeds, points=4)
    numbers = iter(ma.draws(seeds, 1, 8, T, stream=T))
    x, y = problem.start(seeds, 1)[0], torch.zeros(8)
    for _ in range(4):
        for _ in range(2):
            y = y + 0.3 * (problem.grad_y(x, y) + next(numbers)[0])
        x = x - 0.1 * (problem.grad_x(x, y) + next(numbers)[0])
    torch.testing.assert_close(trace.x[0, 0], x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dual": "adam"}, "dual"),
        ({"batch": 0}, "batch"),
        ({"radius": 0.0}, "radius"),
        ({"adaptive": "adam", "G0": 0.0}, "G0"),
        ({"adaptive": "lion"}, "rule"),
        ({"gamma": torch.zeros(16)}, r"\(0, 1\]"),
        ({"eta_y": torch.ones(15)}, "shape"),
    ],
)
def test_bad_min_max_runs_are_refused(change, message):
    ones = torch.ones(16)
    arguments = {"gamma": ones, "eta_x": ones, "eta_y": ones, "seeds": [1]} | change
    with pytest.raises(ValueError, match=message):
        ma.pdsm(ma.QuadraticSaddle(), 16, **arguments)
    with pytest.raises(ValueError, match="multiple"):
        ma.sgd_max(ma.QuadraticSaddle(), 17, eta_x=1.0, eta_y=1.0, inner=1, seeds=[1])


# --- bilevel --------------------------------------------------------------------------------------


def test_neumann_mean_is_the_truncated_inverse():
    H, v, k = ma.QuadraticBilevel().H.double(), torch.randn(9, 4, dtype=F64), 7
    H = (H + H.T) / 2  # rounded to float32, it is symmetric to 1e-7 only
    every = torch.stack([ma.neumann_hvp(lambda z: z @ H, v, 2.5, k, p) for p in range(k)]).mean(0)
    rest = torch.linalg.matrix_power(torch.eye(4, dtype=F64) - H / 2.5, k)
    expected = torch.linalg.solve(H, (torch.eye(4, dtype=F64) - rest) @ v.T).T
    torch.testing.assert_close(every, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(ma.neumann_expected(H, v, 2.5, k), expected)
    assert (expected - torch.linalg.solve(H, v.T).T).norm(dim=1).le(0.6**k * v.norm(dim=1)).all()


def test_neumann_with_fresh_noise_is_unbiased():
    """200,000 chains with their own p and their own Hessian samples."""
    problem, k, S = ma.QuadraticBilevel(), 5, 200_000
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(S, (k - 1) * 16, generator=generator)
    p = torch.randint(0, k, (S,), generator=generator)
    v = torch.tensor([1.0, -0.5, 0.3, 2.0]).expand(1, S, 4)
    z = ma.neumann_hvp(_sampled_hvp(problem, numbers), v, problem.C, k, p)[0]
    error = z.std(0) / S**0.5
    expected = ma.neumann_expected(problem.H, v[0, :1], problem.C, k)[0]
    assert ((z.mean(0) - expected).abs() < 4.5 * error).all()


def test_neumann_rows_have_their_own_p_and_stop_where_they_should():
    v, p = torch.randn(5, 3, dtype=F64), torch.tensor([0, 3, 1, 1, 2])
    calls = []
    H = torch.diag(torch.tensor([1.0, 1.5, 2.0], dtype=F64))

    def hvp(z):
        calls.append(1)
        return z @ H

    z = ma.neumann_hvp(hvp, v, 2.5, 4, p)
    assert len(calls) == 3
    shrink = 1 - torch.diagonal(H) / 2.5
    torch.testing.assert_close(z, 4 / 2.5 * shrink ** p[:, None] * v)
    torch.testing.assert_close(ma.neumann_hvp(hvp, v, 2.5, 1, 0), v / 2.5)
    assert not ma.neumann_hvp(hvp, v.requires_grad_(), 2.5, 4, p).requires_grad
    for bad in ({"C": 0.0}, {"k": 0}, {"p": 4}, {"p": -1}):
        with pytest.raises(ValueError, match=r"need C|must lie"):
            ma.neumann_hvp(hvp, v, **({"C": 2.5, "k": 4, "p": 1} | bad))


def test_hypergradient_agrees_with_autograd_and_finite_differences():
    problem = ma.QuadraticBilevel()
    H, B, y0 = problem.H.double(), problem.B.double(), problem.y0.double()

    def outer(x):
        y = torch.linalg.solve(H, B @ x)
        return 0.5 * (y - y0).square().sum() + 0.6 * (x**2 / (1 + x**2)).sum()

    x = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=F64)
    gradient = torch.func.grad(outer)(x)
    torch.testing.assert_close(
        problem.outer_gradient(x.float()).double(), gradient, rtol=1e-4, atol=1e-5
    )
    h = 1e-5
    slopes = [(outer(x + h * e) - outer(x - h * e)) / (2 * h) for e in torch.eye(4, dtype=F64)]
    torch.testing.assert_close(gradient, torch.stack(slopes), rtol=1e-6, atol=1e-8)
    spectrum = torch.linalg.eigvalsh(H)
    assert spectrum.min() > 1 - 1e-5
    assert spectrum.max() < 2 + 1e-5 < problem.C


@pytest.mark.parametrize(
    ("inner", "solver"),
    [("sema", "neumann"), ("sgd", "neumann"), ("sgd", "tracked"), ("sgd", "exact")],
)
def test_smb_without_noise_is_its_lines(inner, solver, monkeypatch):
    """All noise replaced by zeros; p stays random."""
    monkeypatch.setattr(
        "toolkit.optimization.moving_average.bilevel.draws",
        lambda *a, kind="normal", **k: (
            n * 0 if kind == "normal" else n for n in ma.draws(*a, kind=kind, **k)
        ),
    )
    problem, T, seeds, k = ma.QuadraticBilevel(), 12, [6], 3
    shared = {"eta_x": const(0.05, T), "eta_y": const(0.3, T), "seeds": seeds, "k": k}
    trace, lag = ma.smb(
        problem,
        T,
        gamma=const(0.4, T),
        gamma_y=const(0.6, T),
        inner=inner,
        solver=solver,
        eta_z=0.2,
        points=T,
        **shared,
    )
    x, y, z = problem.start(seeds, 1)[0], torch.zeros(4), torch.zeros(4)
    chance = ma.draws(seeds, 1, 1, T, stream=T + 80_000_023, kind="uniform")
    for t, c in enumerate(chance):
        best = torch.linalg.solve(problem.H, problem.B @ x)
        assert float(lag[t, 0, 0]) == pytest.approx(float((y - best).square().sum()), rel=1e-3)
        g = problem.H @ y - problem.B @ x
        u = 0.4 * u + 0.6 * g if t and inner == "sema" else g
        if solver == "neumann":
            z = y - problem.y0
            for _ in range(int(c[0, 0] * k)):
                z = z - problem.H @ z / problem.C
            z = k / problem.C * z
        elif solver == "exact":
            z = torch.linalg.solve(problem.H, best - problem.y0)
        else:
            z = z - 0.2 * (problem.H @ z - (y - problem.y0))
        o = 1.2 * x / (1 + x**2) ** 2 + problem.B.T @ z
        v = 0.6 * v + 0.4 * o if t else o
        x, y = x - 0.05 * v, y - 0.3 * u
    torch.testing.assert_close(trace.x[0, 0], x, rtol=1e-4, atol=1e-5)


def test_the_double_loop_uses_the_whole_sum(monkeypatch):
    monkeypatch.setattr(
        "toolkit.optimization.moving_average.bilevel.draws",
        lambda *a, **k: (n * 0 for n in ma.draws(*a, **k)),
    )
    problem, seeds = ma.QuadraticBilevel(), [2]
    trace = ma.double_loop(
        problem, 12, eta_x=0.1, eta_y=0.4, inner=2, batch=1, seeds=seeds, k=4, points=4
    )
    x, y = problem.start(seeds, 1)[0], torch.zeros(4)
    for _ in range(4):
        for _ in range(2):
            y = y - 0.4 * (problem.H @ y - problem.B @ x)
        z = ma.neumann_expected(problem.H, y - problem.y0, problem.C, 4)
        x = x - 0.1 * (1.2 * x / (1 + x**2) ** 2 + problem.B.T @ z)
    torch.testing.assert_close(trace.x[0, 0], x, rtol=1e-4, atol=1e-5)


def test_the_floor_falls_geometrically():
    floors = [ma.truncation_floor(ma.QuadraticBilevel(), k) for k in (4, 6, 8)]
    assert floors[1] < 0.6**4 * floors[0] * 1.2
    assert floors[2] < 0.6**4 * floors[1] * 1.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": "adam"}, "inner"),
        ({"solver": "cg"}, "solver"),
        ({"k": 0}, "k >= 1"),
        ({"eta_z": 0.0}, "eta_z"),
    ],
)
def test_bad_bilevel_runs_are_refused(change, message):
    ones = torch.ones(16)
    arguments = {"gamma": ones, "eta_x": ones, "eta_y": ones, "seeds": [1]} | change
    with pytest.raises(ValueError, match=message):
        ma.smb(ma.QuadraticBilevel(), 16, **arguments)
    with pytest.raises(ValueError, match="multiple"):
        ma.double_loop(ma.QuadraticBilevel(), 17, eta_x=1.0, eta_y=1.0, inner=1, batch=1, seeds=[1])


META = {
    "minimise": lambda c, d: ma.minimise_chains(
        ma.RareEvent(torch.tensor([0.1])), "adam", 16, gamma=c, eta=c, seeds=[1], device=d
    ),
    "storm": lambda c, d: ma.storm_chains(
        ma.SaturatingBowl(), 16, gamma=c, eta=c, seeds=[1], device=d
    ),
    "pdsm": lambda c, d: ma.pdsm(
        ma.QuadraticSaddle(), 16, gamma=c, eta_x=c, eta_y=c, seeds=[1], radius=1.0, device=d
    )[0],
    "sgd_max": lambda c, d: ma.sgd_max(
        ma.QuadraticSaddle(), 32, eta_x=0.1, eta_y=0.1, inner=1, seeds=[1], device=d
    ),
    "smb": lambda c, d: ma.smb(
        ma.QuadraticBilevel(),
        16,
        gamma=c,
        eta_x=c,
        eta_y=c,
        seeds=[1],
        solver="tracked",
        device=d,
    )[0],
    "double_loop": lambda c, d: ma.double_loop(
        ma.QuadraticBilevel(), 32, eta_x=0.1, eta_y=0.1, inner=1, batch=1, seeds=[1], device=d
    ),
}


@pytest.mark.parametrize("engine", META)
def test_engines_compute_where_they_are_told(engine):
    """A forgotten tensor on the CPU would not mix with those of the meta device."""
    trace = META[engine](const(0.1, 16), torch.device("meta"))
    assert trace.x.device.type == trace.est_err.device.type == "meta"


# --- deep AUC -------------------------------------------------------------------------------------


def test_the_saddle_equals_the_pairs():
    """At the best a, b, α it is p(1-p) times the mean of (m - h+ + h-)² over all pairs."""
    generator = torch.Generator().manual_seed(0)
    h = torch.rand(40, generator=generator, dtype=F64)
    positive = torch.rand(40, generator=generator) < 0.2
    p, m = float(positive.double().mean()), 0.7
    loss = ma.AUCMinMaxLoss(m, p).double()
    plus, minus = h[positive], h[~positive]
    with torch.no_grad():
        loss.a.copy_(plus.mean())
        loss.b.copy_(minus.mean())
        loss.alpha.copy_(m + minus.mean() - plus.mean())
    pairs = (m - plus[:, None] + minus[None]).square().mean()
    torch.testing.assert_close(loss(h, positive).detach(), p * (1 - p) * pairs)
    gradients = torch.autograd.grad(loss(h, positive), list(loss.parameters()))
    assert all(g.abs() < 1e-12 for g in gradients)  # all three are stationary there
    with torch.no_grad():
        best = float(loss(h, positive))
        for parameter, sign in ((loss.a, 1), (loss.b, 1), (loss.alpha, -1)):
            parameter += 0.3
            assert sign * (float(loss(h, positive)) - best) > 0
            parameter -= 0.3


def test_a_stack_of_losses_is_the_losses_one_by_one():
    scores, positive = torch.rand(3, 10), torch.arange(10) < 3
    stack = ma.AUCMinMaxLoss(1.0, 0.3, replicas=3)
    with torch.no_grad():
        stack.alpha.copy_(torch.tensor([0.1, 0.5, 1.0]))
    single = ma.AUCMinMaxLoss(1.0, 0.3)
    with torch.no_grad():
        single.alpha.fill_(0.5)
    torch.testing.assert_close(stack(scores, positive)[1], single(scores[1], positive))
    with pytest.raises(ValueError, match="labels"):
        single(scores[0], positive[:5])
    for margin, rate in ((0.0, 0.5), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match="pos_rate"):
            ma.AUCMinMaxLoss(margin, rate)


TINY_AUC = ma.AUCRecipe(
    seeds=2, tune=True, tuning_seeds=2, positives=12, batch=8, large_batch=16, steps=12, width=4
)


@pytest.fixture
def small_images(monkeypatch):
    """Random images in place of Fashion-MNIST: these tests are about the training."""
    generator = torch.Generator().manual_seed(0)

    def images(count):
        y = torch.arange(count) % 10
        x = torch.randn(count, auc.PIXELS, generator=generator) + 0.3 * (y == auc.SHIRT)[:, None]
        return x, F.one_hot(y, 10).float()

    parts = (*images(1200), *images(200))
    monkeypatch.setattr(auc, "fashion_14", lambda *_: parts)
    auc.tune_auc.cache_clear()
    yield parts
    auc.tune_auc.cache_clear()


def test_auc_training_equals_a_single_network_with_the_family_optimiser(small_images):
    recipe, seeds = replace(TINY_AUC, steps=10), [5, 6]
    train, test = auc._split(recipe, seeds, CPU, False)
    assert train.rows.shape == (2, 12 + 120)
    model = torch.nn.Sequential(
        torch.nn.Linear(auc.PIXELS, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)
    )
    stack = auc.StackedMLP(1, (auc.PIXELS, 4, 1), [torch.Generator().manual_seed(6)])
    with torch.no_grad():
        for layer, w, b in zip(model[::2], stack.weights, stack.biases, strict=True):
            layer.weight.copy_(w[0].T)
            layer.bias.copy_(b[0, 0])
    model, loss = model.double(), ma.AUCMinMaxLoss(1.0, 12 / 132).double()
    params = [*model.parameters(), loss.a, loss.b]
    optimizer = ma.AdamFamily(params, 0.01, 0.1, beta2=0.99)
    for t, (x, positive) in enumerate(auc._batches(train, seeds, 8, 10)):
        optimizer.param_groups[0]["lr"] = 0.01 if t < 7.5 else 0.001
        optimizer.zero_grad()
        loss.alpha.grad = None
        loss(model(x[1])[:, 0].sigmoid(), positive[1]).backward()
        optimizer.step()
        with torch.no_grad():
            loss.alpha += (0.5 if t < 7.5 else 0.05) * loss.alpha.grad
    with torch.no_grad():
        logits = model(test.x[test.rows[1]])[:, 0]
    expected = auc.roc_auc_score(test.positive[1], logits)
    found = auc.auc_scores(recipe, "pdada", seeds, [(0.3, 2.0), (0.01, 0.5)], CPU, validation=False)
    assert found.shape == (2, 2)
    assert found[1, 1] == pytest.approx(expected, abs=1e-9)


def test_auc_tuning_holds_images_out_and_uses_other_seeds(small_images, monkeypatch):
    train, held_out = auc._split(TINY_AUC, [1], CPU, True)
    assert not set(train.rows[0].tolist()) & set(held_out.rows[0].tolist())
    assert held_out.positive[0].float().mean() == 0.5
    share = train.positive[0].float().mean()
    assert share == pytest.approx(12 / 132, abs=0.02)
    seen = []
    scores = auc.auc_scores
    monkeypatch.setattr(
        auc,
        "auc_scores",
        lambda recipe, name, seeds, *a, **k: (
            seen.append((list(seeds), k["validation"])) or scores(recipe, name, seeds, *a, **k)
        ),
    )
    ma.experiment(replace(TINY_AUC, arms=("ce",)), [0, 1], CPU)
    assert seen == [([TUNING_SEEDS, TUNING_SEEDS + 1], True), ([0, 1], False)]


def test_auc_arms_share_the_size_of_their_grids_and_kept_rates_are_in_them():
    sizes = {len(arm.etas) * len(arm.second) for arm in auc.ARMS.values()}
    assert len(sizes) == 1
    for name, (eta, second) in auc.RATES.items():
        assert eta in auc.ARMS[name].etas
        assert second in auc.ARMS[name].second


# --- hyper-cleaning -------------------------------------------------------------------------------


def tiny_problem():
    generator = torch.Generator().manual_seed(0)

    def rows(n):
        x = torch.randn(1, n, 3, generator=generator, dtype=F64)
        labels = torch.randint(0, 2, (1, n), generator=generator)
        return x, F.one_hot(labels, 2).double()

    return HyperClean(*rows(12), *rows(7), ridge=0.1)


def inner_loss(problem, x, y):
    """g as its formula, for E = S = 1."""
    logits = problem.x[0] @ y.reshape(3, 2)
    losses = -(problem.labels[0] * logits.log_softmax(-1)).sum(-1)
    return (torch.sigmoid(x) * losses).mean() + 0.05 * y.square().sum()


def test_hyperclean_products_are_those_of_autograd():
    problem, everything = tiny_problem(), torch.arange(12)[None]
    generator = torch.Generator().manual_seed(2)
    x, y, z = (torch.randn(n, generator=generator, dtype=F64) for n in (12, 6, 6))
    wide = [t[None, None] for t in (x, y, z)]
    g = lambda x, y: inner_loss(problem, x, y)  # noqa: E731
    inner = torch.func.grad(g, argnums=1)
    torch.testing.assert_close(problem.inner_grad(*wide[:2], everything)[0, 0], inner(x, y))
    H = torch.func.jacrev(inner, argnums=1)(x, y)
    torch.testing.assert_close(problem.inner_hvp(*wide[:2], everything)(wide[2])[0, 0], H @ z)
    mixed = torch.func.jacrev(inner, argnums=0)(x, y)  # [6, 12]
    torch.testing.assert_close(problem.cross(*wide, everything)[0, 0], mixed.T @ z)
    assert torch.linalg.eigvalsh(H).max() <= problem.C
    assert torch.linalg.eigvalsh(H).min() >= 0.1 - 1e-9


def test_hyperclean_hypergradient_agrees_with_finite_differences_of_the_solved_problem():
    problem, everything = tiny_problem(), torch.arange(12)[None]
    clean = torch.arange(7)[None]

    def solve(x):
        y = torch.zeros(6, dtype=F64)
        gradient = torch.func.grad(lambda y: inner_loss(problem, x, y))
        for _ in range(30):
            y = y - torch.linalg.solve(torch.func.jacrev(gradient)(y), gradient(y))
        return y

    def outer(x):
        logits = problem.clean_x[0] @ solve(x).reshape(3, 2)
        return -(problem.clean_labels[0] * logits.log_softmax(-1)).sum(-1).mean()

    x = torch.linspace(-1, 1, 12, dtype=F64)
    y = solve(x)
    hvp = problem.inner_hvp(x[None, None], y[None, None], everything)
    H = torch.stack([hvp(e[None, None])[0, 0] for e in torch.eye(6, dtype=F64)])
    z = torch.linalg.solve(H, problem.outer_grad(y[None, None], clean)[0, 0])
    gradient = -problem.cross(x[None, None], y[None, None], z[None, None], everything)[0, 0]
    h = 1e-5
    for i in (0, 5, 11):
        e = torch.zeros(12, dtype=F64)
        e[i] = h
        slope = (outer(x + e) - outer(x - e)) / (2 * h)
        torch.testing.assert_close(gradient[i], slope, rtol=1e-5, atol=1e-8)


def test_batches_of_the_products_average_to_the_whole():
    problem = tiny_problem()
    x, y, z = (torch.randn(1, 1, n, dtype=F64) for n in (12, 6, 6))
    halves = [torch.arange(6)[None], torch.arange(6, 12)[None]]
    whole = torch.arange(12)[None]
    mean = sum(problem.cross(x, y, z, half) for half in halves) / 2
    torch.testing.assert_close(mean, problem.cross(x, y, z, whole))
    with pytest.raises(ValueError, match="ridge"):
        replace(problem, ridge=0.0)
    with pytest.raises(ValueError, match="labels"):
        replace(problem, labels=problem.labels[:, :5])
    with pytest.raises(ValueError, match="bound"):
        replace(problem, C=0.2)


def test_digits_are_split_without_overlap_and_the_test_digits_are_fixed():
    recipe = ma.CleaningRecipe()
    a, b = (hyperclean.split_digits(recipe, [seed], CPU, False) for seed in (0, 1))
    torch.testing.assert_close(a.score_x, b.score_x)
    tuning = hyperclean.split_digits(recipe, [0], CPU, True)
    rows = {tuple(row.tolist()) for row in a.score_x[0]}
    sizes = [part.shape[1] for part in (a.problem.x, a.problem.clean_x, a.score_x, tuning.score_x)]
    assert sizes == [1000, 200, 400, 197]
    assert len(rows & {tuple(row.tolist()) for row in tuning.score_x[0]}) == 0
    wrong = a.flipped.float().mean()
    assert wrong == pytest.approx(0.4, abs=0.05)


@pytest.mark.slow
def test_weights_find_wrong_labels():
    recipe = ma.CleaningRecipe(arms=("smb", "all", "oracle"), steps=300)
    results = ma.experiment(recipe, [0, 1], CPU)
    assert results["smb/auc"].mean() > 0.75
    assert (results["oracle/auc"] == 1).all()
    assert (results["all/auc"] == 0.5).all()


# --- the contract ---------------------------------------------------------------------------------

SMALL = {
    "saddle": ma.SaddleRecipe(arms=ma.SADDLE_ARMS, T=256, chains=2),
    "bilevel": ma.BilevelRecipe(arms=ma.BILEVEL_ARMS, T=256, chains=2),
    "cleaning": ma.CleaningRecipe(steps=20),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_seed_gives_the_same_numbers_alone_and_in_a_batch(name):
    batch, alone = ma.experiment(SMALL[name], [7, 8], CPU), ma.experiment(SMALL[name], 8, CPU)
    assert batch.keys() == alone.keys()
    for key, values in batch.items():
        np.testing.assert_allclose(values[1], alone[key], rtol=1e-3, atol=1e-5, err_msg=key)


def test_auc_seed_gives_the_same_numbers_alone_and_in_a_batch(small_images):
    recipe = replace(TINY_AUC, tune=False)
    batch, alone = ma.experiment(recipe, [3, 4], CPU), ma.experiment(recipe, 4, CPU)
    for key, values in batch.items():
        np.testing.assert_allclose(values[1], alone[key], rtol=1e-3, err_msg=key)


@pytest.mark.slow
def test_budgets_are_tuned_on_their_own_seeds_from_one_grid():
    recipe = ma.BudgetRecipe(
        arms=("sgd_max", "sgda_100"), tune=True, seeds=2, tuning_seeds=1, grid_x=(0.01, 0.1)
    )
    results = ma.experiment(recipe, [0, 1], CPU)
    assert set(results["sgd_max/eta_x"]) <= {0.01, 0.1}
    assert np.isfinite(results["sgda_100/grad_sq"]).all()
    for problem, arms in (("saddle", ma.SADDLE_ARMS), ("bilevel", ma.BILEVEL_ARMS)):
        assert set(study_pairs.STEPS[problem]) == set(arms)
        for x, y in study_pairs.STEPS[problem].values():
            assert x in ma.BudgetRecipe().grid_x
            assert y in ma.BudgetRecipe().grid_y


def test_unknown_arms_are_refused():
    for recipe in (
        ma.SaddleRecipe(arms=("x",)),
        ma.BilevelRecipe(arms=("x",)),
        ma.AUCRecipe(arms=("x",)),
        ma.CleaningRecipe(arms=("x",)),
    ):
        with pytest.raises(ValueError, match="arm"):
            ma.experiment(recipe, 0, CPU)
    with pytest.raises(ValueError, match="saddle or bilevel"):
        ma.experiment(ma.BudgetRecipe(problem="x"), 0, CPU)
    with pytest.raises(ValueError, match="multiple"):
        ma.experiment(ma.AUCRecipe(steps=7), 0, CPU)
