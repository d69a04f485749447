"""Stacked training against a plain loop over `torch.optim.SGD`; the methods and their traps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from toolkit.data import LabelledImages
from toolkit.learn.nets import mlp
from toolkit.supervision import noisy_labels as nl
from toolkit.supervision.noisy_labels import baselines, kernel_study, stack, training

CPU = torch.device("cpu")
SMALL = nl.NetworkRecipe(
    n=80, batch=10, rates=(0.0, 0.5), epochs=(0.5, 1.0, 3.0), widths=(16,), test_images=50
)
SEEDS = [3, 11]


@pytest.fixture(autouse=True)
def images(monkeypatch):
    """A world of ten blurred blobs, in the shape of Fashion-MNIST."""
    generator = torch.Generator().manual_seed(1)
    prototypes = torch.rand(10, 28, 28, generator=generator)

    def load(split):
        count = 600 if split == "train" else 200
        g = torch.Generator().manual_seed(len(split))
        label = torch.randint(10, (count,), generator=g)
        noise = torch.rand(count, 28, 28, generator=g)
        pixels = (255 * (0.5 * prototypes[label] + 0.5 * noise)).to(torch.uint8)
        return LabelledImages(pixels[:, None], label, tuple(map(str, range(10))))

    monkeypatch.setattr(stack, "load_fashion_mnist", load)
    stack.seed_data.cache_clear()
    yield
    stack.seed_data.cache_clear()


def run(recipe, seeds=SEEDS):
    return nl.experiment(recipe, seeds, CPU)


# --- the same numbers as a loop -------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_a_replica_equals_a_plain_loop(loss):
    """Seed 11 at rate 0.5: same subset, flips, initialisation and order, by hand."""
    recipe = replace(SMALL, loss=loss)
    side = nl.Stack(recipe, SEEDS, CPU)
    x, y = side.images[1], side.given[1, 1]
    model = mlp(784, 16, 10)
    start = side.networks()
    with torch.no_grad():
        for layer, weight, bias in zip(model[::2], start.weights, start.biases, strict=True):
            layer.weight.copy_(weight[3].T)  # replica (rate 1, seed 1) stands at 1 · 2 + 1
            layer.bias.copy_(bias[3, 0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    orders = np.random.default_rng([11, 3, 1])
    for _ in range(3):
        for index in torch.from_numpy(orders.permutation(80)).split(10):
            logits = model(x[index])
            value = (
                F.cross_entropy(logits, y[index])
                if loss == "cross_entropy"
                else 0.5 * (logits - F.one_hot(y[index], 10)).square().sum(1).mean()
            )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    wrong = (model(side.test_images[1]).argmax(1) != side.test_labels[1]).double().mean()
    history = nl.train_noisy(recipe, side, keep_logits=True)
    torch.testing.assert_close(history.logits[-1, 1, 1], model(x).detach(), rtol=1e-3, atol=1e-4)
    assert float(history.metrics["error"][-1, 1, 1]) == pytest.approx(float(wrong))


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("arm", ["noisy", "small_loss", "redrawn"])
def test_a_seed_gives_the_same_numbers_alone_and_in_a_batch(network, arm):
    recipe = replace(SMALL, network=network, channels=(4, 4), arms=(arm,))
    both, alone = run(recipe), run(recipe, 11)
    assert set(both) == set(alone)
    for name, value in alone.items():
        assert value == pytest.approx(both[name][1], rel=1e-6, nan_ok=True), name


def test_epoch_one_visits_every_example_once_and_rates_share_their_order():
    side = nl.Stack(SMALL, SEEDS, CPU)
    batches = list(side.batches(0, 8))
    assert len(batches) == 8
    seen = torch.cat([x for x, _ in batches], dim=1)  # [replica, 80, 784]
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    for replica in range(4):
        expected = side.images[replica % 2].sum(1).sort().values
        torch.testing.assert_close(seen[replica].sum(1).sort().values, expected)


def test_flips_are_drawn_once_and_are_nested():
    recipe = replace(SMALL, rates=(0.1, 0.3, 0.6))
    side = nl.Stack(recipe, SEEDS, CPU)
    before = side.given.clone()
    nl.train_noisy(recipe, side)
    assert torch.equal(side.given, before)
    low, middle, high = side.flipped
    assert (~low | middle).all()
    assert (~middle | high).all()
    assert torch.equal(side.given[1][low], side.given[2][low])
    assert torch.equal(side.test_labels, nl.Stack(recipe, SEEDS, CPU).test_labels)


def test_instance_noise_is_nested_and_uneven():
    recipe = replace(SMALL, noise="instance", rates=(0.2, 0.5), n=400, batch=10)
    side = nl.Stack(recipe, SEEDS, CPU)
    assert (~side.flipped[0] | side.flipped[1]).all()
    assert side.flipped[1].double().mean() == pytest.approx(0.5, abs=0.08)


# --- the control that cannot memorise -------------------------------------------------------------


def test_labels_redrawn_each_epoch_are_not_memorised():
    """Noise fixed before training is learnt by heart; noise redrawn each epoch is not."""
    recipe = replace(SMALL, rates=(0.4,), epochs=(1.0, 80.0), widths=(64,), lr=0.05)
    fixed = run(recipe)
    fresh = run(replace(recipe, arms=("redrawn",)))
    assert (fixed["noisy/excess_80@0.4"] > 0.7).all()
    assert (np.abs(fresh["redrawn/excess_80@0.4"]) < 0.2).all()
    assert (fresh["redrawn/fit_wrong_80@0.4"] < 0.3).all()


# --- the methods ----------------------------------------------------------------------------------


def test_clean_subset_trains_on_no_wrong_label():
    side = nl.Stack(SMALL, SEEDS, CPU)
    side.keep(~side.flipped)
    for x, given in side.batches(0, 24):
        for replica in range(4):
            q, s = divmod(replica, 2)
            place = (x[replica][:, None] == side.images[s]).all(-1).double().argmax(1)
            assert not side.flipped[q, s, place].any()
            assert torch.equal(given[replica], side.clean[s, place])
    with pytest.raises(ValueError, match="at least one example"):
        side.keep(torch.zeros_like(side.flipped))


def test_every_visit_of_a_subset_comes_before_the_next_pass():
    kept = np.array([True, False, True, True])
    stream = stack.visits(kept, [5, 3, 1])
    first = [next(stream) for _ in range(9)]
    assert all(sorted(first[i : i + 3]) == [0, 2, 3] for i in (0, 3, 6))


def test_small_loss_continues_on_the_least_losses_of_epoch_one():
    recipe = replace(
        SMALL, n=400, batch=20, arms=("noisy", "small_loss"), epochs=(1.0, 40.0), lr=0.05
    )
    results = run(recipe)
    for metric in ("error", "fit_wrong", "auc"):
        np.testing.assert_array_equal(
            results[f"noisy/{metric}_1@0.5"], results[f"small_loss/{metric}_1@0.5"]
        )
    assert (results["small_loss/purity@0.5"] > 0.6).all()
    assert (results["small_loss/fit_wrong_40@0.5"] < results["noisy/fit_wrong_40@0.5"]).all()
    assert (results["small_loss/purity@0"] == 1).all()


def test_forward_correction_equals_nll_of_p_times_t():
    recipe = replace(SMALL, arms=("forward",))
    side = nl.Stack(recipe, SEEDS, CPU)
    x, given = next(side.batches(0, 1))
    model = side.networks()
    logits = model(x)
    expected = 0.0
    for replica in range(4):
        matrix = nl.transition_matrix("symmetric", recipe.rates[replica // 2])
        p_given = logits[replica].softmax(1) @ matrix
        expected = expected + F.nll_loss(p_given.log(), given[replica])
    found = training.forward_loss(recipe, side)(model, (x, given))
    torch.testing.assert_close(found, expected)
    found.backward()  # rate 0 has −∞ in log T: its gradient is finite all the same
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_early_stopping_never_trains_on_its_split_and_sees_no_clean_label():
    recipe = replace(SMALL, arms=("early_stopping",), epochs=(1.0, 2.0, 5.0))
    results = run(recipe)
    stopped, error = results["early_stopping/epoch_stopped@0.5"], []
    for i, epoch in enumerate(stopped):
        assert epoch in recipe.epochs
        error.append(results[f"early_stopping/error_{epoch:g}@0.5"][i])
    np.testing.assert_array_equal(results["early_stopping/error_stopped@0.5"], error)


def test_out_of_fold_probabilities_come_from_networks_that_never_saw_the_example(monkeypatch):
    recipe = replace(SMALL, rates=(0.5,), folds=4, fold_epochs=(1.0, 2.0))
    kept = []
    monkeypatch.setattr(
        baselines,
        "train_noisy",
        lambda r, side, **_: (kept.append(side.kept), nl.train_noisy(r, side, keep_logits=True))[1],
    )
    probs = nl.out_of_fold(recipe, nl.Stack(recipe, SEEDS, CPU))
    assert probs.shape == (1, 2, 80, 10)
    torch.testing.assert_close(probs.sum(-1), torch.ones(1, 2, 80))
    fold = torch.arange(80) % 4
    for f in range(4):
        assert torch.equal(kept[0][f, 0], fold != f)


def test_cleanlab_raises_the_purity():
    recipe = replace(SMALL, n=400, batch=20, arms=("cleanlab",), rates=(0.3,), lr=0.05)
    results = run(replace(recipe, fold_epochs=(1.0, 5.0)))
    assert (results["cleanlab/purity@0.3"] > 0.72).all()
    assert (results["cleanlab/auc_cv@0.3"] > 0.75).all()
    assert (results["cleanlab/kept@0.3"] < 1).all()


def test_a_diverged_run_is_nan_and_spoils_no_other():
    wild = run(replace(SMALL, lr=1e9))
    assert np.isnan(wild["noisy/error_3@0.5"]).all()
    assert np.isnan(wild["noisy/fit_wrong_3@0.5"]).all()
    wild = run(replace(SMALL, lr=1e9, arms=("small_loss",)))
    assert np.isnan(wild["small_loss/error_3@0.5"]).all()
    side = nl.Stack(SMALL, SEEDS, CPU)
    model = side.networks()
    with torch.no_grad():
        model.weights[0][0] = torch.nan
    measured = training._measure(side, model, side.outputs(model, side.images))
    assert torch.isnan(measured["error"][0, 0])
    assert torch.isfinite(measured["error"].flatten()[1:]).all()


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("magic",)}, "arms"),
        ({"arms": ()}, "arms"),
        ({"noise": "uniform"}, "noise"),
        ({"loss": "hinge"}, "loss"),
        ({"network": "vit"}, "network"),
        ({"rates": (0.1, 1.2)}, r"rates must lie in \[0, 1\]"),
        ({"rates": ()}, "rates"),
        ({"batch": 7}, "batch must divide n"),
        ({"epochs": (1.0, 1.01)}, "epochs must rise"),
        ({"epochs": (0.001, 1.0)}, "epochs must rise"),
        ({"noise": "instance", "arms": ("forward",)}, "no transition matrix"),
        ({"arms": ("small_loss",), "epochs": (2.0,)}, "after epoch 1"),
        ({"validation": 1.0}, "validation"),
    ],
)
def test_bad_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_profiles_and_studies_belong_together():
    for profile in ("quick", "full"):
        assert nl.studies(profile)["main"] == nl.PROFILES[profile]
        assert nl.PROFILES[profile].seeds >= 8
    assert {"pair", "instance", "squared", "redrawn", "cnn"} <= set(nl.studies("full"))
    with pytest.raises(ValueError, match="quick or full"):
        nl.studies("paper")
    with pytest.raises(TypeError, match="noisy_labels"):
        nl.experiment(nl.Recipe(), 0, CPU)


def test_keys_leave_out_what_needs_wrong_labels_at_rate_zero():
    names = run(SMALL, 3)
    assert "noisy/error_0.5@0" in names
    assert "noisy/fit_clean_3@0" in names
    assert "noisy/auc_1@0.5" in names
    assert not [name for name in names if name.endswith("@0") and "wrong" in name]


# --- the kernel on images -------------------------------------------------------------------------


def test_kernel_curves_agree_with_their_exact_parts():
    task = nl.fashion_task(60, 40, 0)
    times = torch.logspace(0, 6, 7, dtype=torch.float64)
    curves = nl.kernel_curves(task, times, (0.0, 0.5), draws=3)
    assert curves.error.shape == curves.fit_clean.shape == (2, 7)
    outputs = task.flow.predict(nl.centred_labels(task.labels), times)
    clean_error = (outputs.argmax(-1) != task.test_labels).double().mean(-1)
    torch.testing.assert_close(curves.error[0], clean_error)
    assert torch.isnan(curves.fit_wrong[0]).all()
    assert curves.fit_wrong[1, -1] == 1  # the interpolant repeats every label
    assert curves.fit_clean[1, 0] > curves.fit_wrong[1, 0]


def test_given_labels_are_nested_in_rates_and_fresh_in_draws():
    labels = torch.arange(500) % 10
    given = nl.given_labels(labels, (0.2, 0.6), 2, seed=0)
    wrong = given != labels
    assert (~wrong[:, 0] | wrong[:, 1]).all()
    assert (wrong[0] != wrong[1]).any()


def test_simulated_risk_is_what_the_formula_says_without_noise():
    task = nl.fashion_task(50, 30, 1)
    times = torch.tensor([5.0, 500.0], dtype=torch.float64)
    risk = nl.simulated_risk(task, times, [0.0], draws=2)
    y, y_test = nl.centred_labels(task.labels), nl.centred_labels(task.test_labels)
    bias = task.flow.curves(y, y_test, times)[0].numpy()
    np.testing.assert_allclose(risk[:, 0], np.stack([bias, bias]))
    assert kernel_study.CLASSES == 10


def test_side_by_side_applies_each_network_to_its_own_rows():
    nets = [nn.Linear(4, 2), nn.Linear(4, 2)]
    x = torch.randn(2, 3, 4)
    outputs = stack.SideBySide(nets)(x)
    torch.testing.assert_close(outputs[1], nets[1](x[1]))
