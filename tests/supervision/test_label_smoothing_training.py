"""Stacked training against one torch module, forks, the convex lab, the large recipe."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F
from torchvision.utils import save_image

from toolkit.learn.distributed import launch
from toolkit.learn.loop import warmup_cosine
from toolkit.supervision import label_smoothing as ls
from toolkit.supervision.label_smoothing import convex, data, images, network, recipe, scale
from toolkit.supervision.label_smoothing.data import Sample

CPU = torch.device("cpu")
TINY = ls.NetworkRecipe(n=30, epochs=4, batch=8, width=6, lr=0.1, val_images=12, test_images=20)


def sample(seeds=(3, 8), n=30, d=7, k=4):
    """Random images: these tests are about the training."""

    def draw(seed, count):
        g = torch.Generator().manual_seed(100 * seed + count)
        return torch.randn(count, d, generator=g), torch.randint(k, (count,), generator=g)

    parts = [[torch.stack(c) for c in zip(*(draw(s, m) for s in seeds), strict=True)]
             for m in (n, 12, 20, 16)]  # fmt: skip
    (x, y), (vx, vy), (tx, ty), (ox, oy) = parts
    return Sample(tuple(seeds), k, x, y, y, vx, vy, tx, ty, ox, oy)


def arms(*names, epochs=4):
    return [ls.parse_arm(name, epochs) for name in names]


def weights(networks):
    return torch.cat([p.detach().flatten(1) for p in networks.parameters()], 1)


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ce", "tsla:0.4:2", "tsla_pre:0.4:2", "penalty:0.3", "two_stage"])
def test_a_replica_equals_one_module_trained_by_torch(name):
    drawn = sample()
    soft = {"pre": torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)}
    stack = ls.train(TINY, arms(name, "lsr:0.9"), drawn, soft)[name]
    arm = arms(name)[0]
    model = network.one_seed(network.initial_networks(TINY, drawn), 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=TINY.lr, momentum=0.9)
    orders, step = network.visiting_orders(drawn), 0
    for epoch in range(4):
        theta = arm.schedule.theta(epoch)
        for index in next(orders)[1].split(8):
            done = step / 16
            factor = warmup_cosine(step, 16) if not arm.step_drop else (0.1 if done >= 0.75 else 1)
            optimizer.param_groups[0]["lr"] = TINY.lr * factor
            logits, y = model(drawn.x[1, index]), drawn.y[1, index]
            label = (1 - theta) * F.one_hot(y, 4)
            label = label + theta * (soft["pre"][1, index] if arm.label == "pre" else 0.25)
            log_p = logits.log_softmax(1)
            penalty = arm.entropy * (log_p.exp() * log_p).sum(1).mean()
            optimizer.zero_grad()
            (-(label * log_p).sum(1).mean() + penalty).backward()
            optimizer.step()
            step += 1
    order = [0, 2, 1, 3]  # the stack keeps weights first, then biases
    parts = [p.detach().t().flatten() for p in model.parameters()]
    single = torch.cat([parts[i] for i in order])
    torch.testing.assert_close(weights(stack)[1], single, rtol=1e-4, atol=1e-5)


def test_tsla_at_the_ends_is_one_hot_and_lsr_bit_for_bit():
    names = ("ce", "lsr:0.4", "tsla:0.4:0", "tsla:0.4:4", "tsla:0.4:2", "reverse:0.4:0")
    together = ls.train(TINY, arms(*names), sample())
    apart = {name: ls.train(TINY, arms(name), sample())[name] for name in names}
    for name in names:
        assert torch.equal(weights(together[name]), weights(apart[name])), name
    assert torch.equal(weights(apart["tsla:0.4:0"]), weights(apart["ce"]))
    assert torch.equal(weights(apart["tsla:0.4:4"]), weights(apart["lsr:0.4"]))
    assert torch.equal(weights(apart["reverse:0.4:0"]), weights(apart["lsr:0.4"]))
    assert not torch.equal(weights(apart["tsla:0.4:2"]), weights(apart["ce"]))


def test_momentum_runs_through_the_switch():
    """Forgetting it at the drop epoch gives another network."""
    drawn = sample()
    kept = ls.train(TINY, arms("tsla:0.4:2", "lsr:0.4"), drawn)["tsla:0.4:2"]
    original = network._fork

    def forgetful(model, optimizer, *rest):
        optimizer.state.clear()
        return original(model, optimizer, *rest)

    network._fork, saved = forgetful, network._fork
    try:
        lost = ls.train(TINY, arms("tsla:0.4:2", "lsr:0.4"), drawn)["tsla:0.4:2"]
    finally:
        network._fork = saved
    assert (weights(kept) - weights(lost)).abs().max() > 1e-3


def test_a_seed_gives_the_same_network_alone_and_in_a_stack():
    names = ("ce", "tsla:0.4:1", "linear:0.4", "penalty:0.1")
    both, alone = ls.train(TINY, arms(*names), sample()), ls.train(TINY, arms(*names), sample((8,)))
    for name in names:
        assert torch.equal(weights(both[name])[1:], weights(alone[name])), name


def test_shared_beginnings_are_trained_once(monkeypatch):
    """CE, LSR and three drop epochs: never more replicas than futures that differ so far."""
    widths = []
    real = network._loss

    def spy(settings, *rest):
        widths.append(len(settings))
        return real(settings, *rest)

    monkeypatch.setattr(network, "_loss", spy)
    ls.train(TINY, arms("ce", "lsr:0.4", "tsla:0.4:1", "tsla:0.4:3"), sample())
    assert widths[::4] == [2, 3, 3, 4]


def test_watch_sees_every_arm_at_its_epochs():
    seen = {}
    final = ls.train(
        TINY,
        arms("ce", "tsla:0.4:2"),
        sample(),
        watch=lambda epoch, nets: seen.update({epoch: nets}),
        at=(0, 2, 4),
    )
    assert sorted(seen) == [0, 2, 4]
    assert torch.equal(weights(seen[0]["ce"]), weights(seen[0]["tsla:0.4:2"]))
    assert torch.equal(weights(seen[4]["ce"]), weights(final["ce"]))


@pytest.mark.parametrize(
    "name", ["sgd", "lsr", "lsr:x", "tsla:2", "ce:1", "lsr_best:0.1", "lsr:1:2"]
)
def test_unknown_arms_are_refused(name):
    with pytest.raises(ValueError, match=r"method|theta"):
        ls.parse_arm(name, 40)


def test_missing_labels_and_double_names_are_refused():
    with pytest.raises(ValueError, match="labels are missing"):
        ls.train(TINY, arms("lsr_pre:0.4"), sample())
    with pytest.raises(ValueError, match="different names"):
        ls.train(TINY, arms("ce", "ce"), sample())


# --- experiments ----------------------------------------------------------------------------------


@pytest.fixture
def small_images(monkeypatch):
    monkeypatch.setattr(ls.experiments, "draw_sample", lambda _, seeds, __: sample(tuple(seeds)))


def test_network_experiment_is_the_same_alone_and_in_a_stack(small_images):
    every = (*recipe.CLEAN, *recipe.RIVALS, "lsr_posterior:0.4")
    asked = replace(TINY, arms=tuple(a for a in every if ":10" not in a and ":20" not in a))
    both, alone = ls.experiment(asked, [3, 8], CPU), ls.experiment(asked, 8, CPU)
    assert {f"{arm}/{metric}" for arm in asked.arms for metric in ("accuracy", "nll", "ece")} <= {
        *both
    }
    for name, values in both.items():
        np.testing.assert_allclose(values[1], alone[name], rtol=1e-6, err_msg=name)
    assert (both["temperature/accuracy"] == both["ce/accuracy"]).all()
    assert (both["temperature/T"] > 0).all()


def test_a_diverged_run_is_reported_as_nan(small_images):
    wild = ls.experiment(replace(TINY, lr=1e30, arms=("ce",)), [3, 8], CPU)
    assert np.isnan(wild["ce/nll"]).all()
    assert np.isnan(wild["ce/accuracy"]).all()
    assert np.isnan(wild["ce/train_ce"]).all()


def test_deviation_experiment_checks_its_own_parabola(small_images):
    asked = ls.DeviationRecipe(
        **{**TINY.__dict__, "arms": ("ce", "lsr:0.4"), "checkpoints": (0, 2, 4), "verify": 10,
           "labels": ("uniform", "pre", "posterior"), "noise": 0.2}
    )  # fmt: skip
    found = ls.experiment(asked, [3, 8], CPU)
    assert (found["ce/parabola_gap"] < 1e-4).all()
    assert (found["lsr:0.4/bound_share"] <= 1 + 1e-6).all()
    assert set(found["ce/uniform_crossing"]) <= {0.0, 2.0, 4.0, 5.0}
    assert {"ce/posterior_delta@2", "ce/pre_best@4", "ce/sigma2@0"} <= set(found)


def test_drop_experiment_gives_every_curve(small_images):
    asked = ls.DropRecipe(
        **{**ls.DropRecipe().__dict__, **TINY.__dict__, "thetas": (0.4,), "drops": (0, 2, 4),
           "points": (0, 2, 4)}
    )  # fmt: skip
    found = ls.experiment(asked, [3], CPU)
    assert {"tsla:0.4:2/nll@4", "tsla:0.4:0/ece@0", "tsla:0.4:4/right@9"} <= set(found)
    assert sum(found[f"tsla:0.4:2/share@{i}"][0] for i in range(10)) == pytest.approx(1)
    assert sum(found[f"tsla:0.4:2/largest@{i}"][0] for i in range(40)) == pytest.approx(1)


def test_first_above_counts_never_as_one_more():
    delta = np.array([[0.5, 1.5, 0.2], [0.1, 0.2, 0.3], [2.0, 0.0, 0.0]])
    assert ls.first_above(delta, [0, 4, 8], 9).tolist() == [4, 9, 0]


def test_temperature_undoes_a_scale():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4000, 5, generator=g).double() * 2
    y = torch.multinomial(logits[0].softmax(1), 1, generator=g)[:, 0][None]
    assert float(ls.temperatures(3 * logits, y)[0]) == pytest.approx(3, rel=0.1)
    assert ls.temperatures(logits * torch.nan, y).isnan().all()


def test_reliability_of_a_calibrated_network():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 4, generator=g) * 2
    y = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    said, right, share = ls.reliability(logits, y)
    full = share > 0.02
    assert np.abs(said - right)[full].max() < 0.05
    assert np.isnan(said[0])  # with four classes no confidence lies below a quarter


def test_unknown_recipes_and_data_are_refused():
    with pytest.raises(TypeError, match="recipe of label_smoothing"):
        ls.experiment(ls.Recipe(), 0, CPU)
    with pytest.raises(ValueError, match="data must be"):
        data.draw_sample(replace(TINY, data="mnist"), [0], CPU)
    with pytest.raises(ValueError, match="quick or full"):
        ls.studies("paper")
    with pytest.raises(ValueError, match="fashion and uniform"):
        ls.experiment(ls.CnnRecipe(arms=("lsr_pre:0.4",)), 0, CPU)


def test_studies_share_grids_and_give_every_arm_its_rates():
    for profile in ("quick", "full"):
        for study in ls.studies(profile).values():
            wanted = {arm: [study.rates[0], study.rates[-1]] for arm in study.recipe.arms}
            first = study.recipe.arms[0]
            wanted[first] = [study.rates[1]]
            by_rate = {r.lr: r.arms for r in study.at_rates(wanted)}
            assert by_rate[study.rates[1]] == (first,)
            assert first not in by_rate[study.rates[0]]


def test_quick_knows_a_rate_of_the_grid_for_every_arm():
    quick, full = ls.studies("quick"), ls.studies("full")
    for name, study in quick.items():
        for rates in ls.TUNED_RATES[name].values():
            assert set(rates) == set(study.recipe.arms)
            assert set(rates.values()) <= set(full[name].rates)


def test_rates_are_chosen_on_validation_and_never_a_diverged_one():
    study = ls.Study(replace(TINY, arms=("ce",)), (0.1, 0.2, 0.4), 2)
    frame = pd.DataFrame(
        {"ce/val_accuracy": [50, 52, 60, 70, 99, np.nan], "ce/val_nll": [3, 1, 2, 1, 1, 5.0]}
    )
    assert study.choose(frame, "accuracy") == {"ce": 0.2}
    assert study.choose(frame, "nll") == {"ce": 0.2}
    with pytest.raises(ValueError, match="accuracy or nll"):
        study.choose(frame, "ece")
    assert [r.lr for r in study.grid()] == [0.1, 0.2, 0.4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion", "emoji_faces", "glyphs"])
def test_real_samples_are_as_described(name):
    asked = ls.NetworkRecipe(data=name, n=200, val_images=50, test_images=100, noise=0.3)
    drawn, again = data.draw_sample(asked, [1, 2], CPU), data.draw_sample(asked, [2], CPU)
    assert torch.equal(drawn.x[1:], again.x)
    assert torch.equal(drawn.y[1:], again.y)
    assert drawn.x.mean(1).abs().max() < 1e-4
    assert 0.15 < float((drawn.y != drawn.clean).float().mean()) < 0.45
    assert drawn.test_y.max() < drawn.classes
    soft = data.posterior(drawn, 0.3)
    torch.testing.assert_close(soft.sum(-1), torch.ones(drawn.y.shape))
    torch.testing.assert_close(soft.max(-1).values, torch.full(drawn.y.shape, 0.7))


@pytest.mark.slow
def test_cnn_forks_as_the_stack_does():
    asked = ls.CnnRecipe(n=40, epochs=2, channels=(2, 3), val_images=10, test_images=10)
    asked = replace(asked, arms=("ce", "lsr:0.4", "tsla:0.4:0", "tsla:0.4:2", "tsla:0.4:1"))
    found = ls.experiment(asked, [1], CPU)
    assert found["tsla:0.4:0/train_ce"] == found["ce/train_ce"]
    assert found["tsla:0.4:2/train_ce"] == found["lsr:0.4/train_ce"]
    alone = ls.experiment(replace(asked, arms=("tsla:0.4:1",)), 1, CPU)
    assert alone["tsla:0.4:1/nll"] == found["tsla:0.4:1/nll"][0]


# --- the convex lab -------------------------------------------------------------------------------

LAB = ls.ConvexRecipe(n=40, dim=3, chains=3, steps1=20, steps2=20, every=10, thetas=(0.4,))


def problems(seeds=(0, 1), asked=LAB):
    return convex.draw_problems(asked, seeds, CPU)


def test_convex_chain_equals_autograd():
    drawn = problems()
    arm = convex.Chain("x", "posterior", (0.4, 0.0), (0.2, 0.05))
    _, values, last = convex.run_chains(drawn, [arm], (5, 4), 2, every=3)
    w = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    for step, row in enumerate(convex._draws(1, 9, 2, 40)[:, 0]):
        theta, eta = (0.4, 0.2) if step < 5 else (0.0, 0.05)
        label = (1 - theta) * drawn.y[1, row] + theta * drawn.soft["posterior"][1, row]
        value = F.cross_entropy((drawn.x[1, row] @ w)[None], label[None])
        (grad,) = torch.autograd.grad(value + 0.01 * w.square().sum(), w)
        w = (w - eta * grad).detach().requires_grad_()
    torch.testing.assert_close(last[0, 1, 0], w.detach())
    mean = F.cross_entropy(drawn.x[1] @ w, drawn.y[1]) + 0.01 * w.square().sum()
    (full,) = torch.autograd.grad(mean, w)
    torch.testing.assert_close(values[-1, 0, 1, 0], full.square().sum())


def test_lsr_stops_where_both_gradients_balance():
    """(1 − θ) ∇F + θ ∇F̂ = 0 at the smoothed optimum, so ‖∇F‖ = θ/(1 − θ) ‖∇F̂‖."""
    drawn, theta = problems(), 0.3
    soft = drawn.soft["uniform"]
    w = convex.minimiser(drawn, (1 - theta) * drawn.y + theta * soft)
    truth = convex.risk_gradient(drawn, w, drawn.y).square().sum((1, 2)).sqrt()
    other = convex.risk_gradient(drawn, w, soft).square().sum((1, 2)).sqrt()
    torch.testing.assert_close(truth, theta / (1 - theta) * other, rtol=1e-4, atol=1e-7)
    best = convex.minimiser(drawn, drawn.y)
    assert convex.risk_gradient(drawn, best, drawn.y).abs().max() < 1e-6


def test_small_steps_reach_the_smoothed_optimum_and_tsla_the_true_one():
    asked = replace(LAB, n=20, dim=2, ridge=0.1)
    drawn = problems((4,), asked)
    label = 0.5 * drawn.y + 0.5 * drawn.soft["uniform"]
    arms_ = [
        convex.Chain("lsr", "uniform", (0.5, 0.5), (0.05, 0.005)),
        convex.Chain("tsla", "uniform", (0.5, 0.0), (0.05, 0.005)),
    ]
    _, _, last = convex.run_chains(drawn, arms_, (500, 6000), 4, every=6500)
    smoothed, best = convex.minimiser(drawn, label), convex.minimiser(drawn, drawn.y)
    assert (last[0].mean(1) - smoothed).abs().max() < 0.06
    assert (last[1].mean(1) - best).abs().max() < 0.06
    assert (smoothed - best).abs().max() > 0.2


def test_convex_deviation_equals_the_general_meter():
    drawn = problems()
    w = convex.minimiser(drawn, drawn.y)
    model = torch.nn.Linear(3, 3, bias=False).double()
    for label, soft in drawn.soft.items():
        found = convex.convex_deviation(drawn, w, soft)
        with torch.no_grad():
            model.weight.copy_(w[1].T)
        other = ls.gradient_deviation(model, drawn.x[1], drawn.y[1].argmax(-1), soft[1])
        for name in ("sigma2", "introduced", "cross", "bias2"):
            value = getattr(found, name)[1]
            torch.testing.assert_close(value, getattr(other, name), msg=f"{label} {name}")


def test_posterior_labels_have_no_bias_in_the_mean():
    """Over redraws of the labels E ∇ℓ(ŷ) = ∇F: the bias falls as 1/n, and δ stays below 1."""
    bias = []
    for n in (50, 5000):
        drawn = problems(range(20), replace(LAB, n=n))
        w = torch.zeros(20, 3, 3, dtype=torch.float64)
        dev = convex.convex_deviation(drawn, w, drawn.soft["posterior"])
        bias.append(float(dev.bias2.mean()))
    assert bias[1] < bias[0] / 20
    assert (dev.delta < 1).all()


def test_convex_experiment_is_the_same_alone_and_in_a_stack():
    both, alone = ls.experiment(LAB, [5, 6], CPU), ls.experiment(LAB, 6, CPU)
    assert {"tsla:posterior:0.4/log_final", "lsr:uniform:0.4/floor", "small/grad2@40"} <= set(both)
    for name, values in both.items():
        np.testing.assert_allclose(values[1], alone[name], rtol=1e-9, err_msg=name)
    with pytest.raises(ValueError, match="arms are"):
        ls.experiment(replace(LAB, arms=("adam",)), 0, CPU)


# --- the paper's scale ----------------------------------------------------------------------------

SMOKE = ls.ScaleRecipe(
    arms=("ce", "lsr:0.1", "tsla:0.1:1"), epochs=2, batch=4, milestones=(1,), workers=0, lr=0.01
)


def write_cifar(folder, count=6):
    rng = np.random.default_rng(0)
    for name in images.CIFAR_FILES.values():
        rows = rng.integers(0, 256, (count, images.CIFAR_ROW), dtype=np.uint8)
        rows[:, :2] %= 20
        rows.tofile(folder / name)


def smoke_on_rank(folder: str) -> dict:
    torch.manual_seed(torch.distributed.get_rank())
    results = ls.experiment(replace(SMOKE, folder=folder), 0, CPU)
    return {name: torch.as_tensor(values) for name, values in results.items()}


@pytest.mark.slow
def test_cifar_100_runs_in_one_process(tmp_path):
    write_cifar(tmp_path)
    found = ls.experiment(replace(SMOKE, folder=str(tmp_path)), 0, CPU)
    assert {
        f"{a}/{m}" for a in SMOKE.arms for m in ("accuracy", "nll", "ece", "train_loss")
    } == set(found)
    assert all(np.isfinite(value) for value in found.values())
    assert found["ce/nll"] != found["tsla:0.1:1/nll"] != found["lsr:0.1/nll"]


@pytest.mark.slow
def test_cifar_100_runs_under_two_processes_that_agree(tmp_path):
    write_cifar(tmp_path)
    first, second = launch(smoke_on_rank, 2, str(tmp_path), timeout=240)
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_a_folder_of_images_and_a_teacher(tmp_path):
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                save_image(torch.rand(3, 40, 40, generator=g), tmp_path / split / name / f"{i}.png")
    asked = replace(
        SMOKE, data="folder", folder=str(tmp_path), size=32, small_images=False, body_rate=0.1
    )
    teacher = scale.build_network(replace(asked, network="resnet18"), 2)
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    file = str(tmp_path / "teacher.safetensors")
    asked = replace(asked, arms=("ce", "tsla_pre:0.4:1"), teacher=file, weights=file)
    found = ls.experiment(asked, 0, CPU)
    assert {"ce/accuracy", "tsla_pre:0.4:1/ece"} <= set(found)
    with pytest.raises(ValueError, match="does not fit"):
        scale.build_network(replace(asked, network="resnet50"), 2, file)
    with pytest.raises(FileNotFoundError, match="no weights"):
        scale.build_network(asked, 2, str(tmp_path / "none"))
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "cow")
    with pytest.raises(ValueError, match="classes"):
        ls.experiment(asked, 0, CPU)


@pytest.mark.parametrize(("count", "size"), [(10, 3), (2, 3), (6, 2)])
def test_shares_of_a_batch_weigh_up_to_its_mean(count, size, monkeypatch):
    total, seen = 0.0, []
    for rank in range(size):
        monkeypatch.setattr(images, "world", lambda rank=rank: (rank, size))
        for index, weight in images.shares(count, count, seed=0, epoch=0):
            total += weight * np.mean(index) / size
            seen += index
    if count >= size:
        assert sorted(seen) == list(range(count))
        assert total == pytest.approx((count - 1) / 2)


def test_bad_large_recipes_are_refused(tmp_path):
    for change, error, message in (
        ({"network": "vgg"}, ValueError, "network"),
        ({"data": "imagenet"}, ValueError, "cifar100 or folder"),
        ({"arms": ("lsr_pre:0.1",)}, ValueError, "teacher"),
        ({"arms": ("penalty:0.1",)}, ValueError, "arms are"),
        ({}, FileNotFoundError, "cifar-100-binary"),
        ({"data": "folder"}, FileNotFoundError, "no folder"),
    ):
        with pytest.raises(error, match=message):
            ls.experiment(replace(SMOKE, folder=str(tmp_path), **change), 0, CPU)
    (tmp_path / "train.bin").write_bytes(b"x" * 100)
    (tmp_path / "test.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="no binary file"):
        ls.experiment(replace(SMOKE, folder=str(tmp_path)), 0, CPU)
