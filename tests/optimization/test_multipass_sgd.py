"""Multi-pass SGD against torch.optim.SGD, exact moments, empirical minimisers; the contract."""

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data import cifar
from toolkit.learn.distributed import launch
from toolkit.optimization import multipass_sgd as mp
from toolkit.optimization.multipass_sgd import network, scale, sgd, study
from toolkit.optimization.problems import Sample, SineLink, log_spaced_spectrum
from toolkit.runtime import TUNING_SEEDS

CPU = torch.device("cpu")
SEEDS = [3, 11, 5]


def sine_link(dim=4, kappa=8.0, amplitude=0.8, noise=0.2, dtype=torch.float64):
    return SineLink(log_spaced_spectrum(dim, kappa).to(dtype), amplitude, noise)


def by_torch(problem, x, y, etas, batches):
    """One trajectory with autograd and `torch.optim.SGD`; the iterate after every step."""
    w = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0)
    iterates = []
    for step, index in enumerate(batches):
        optimizer.param_groups[0]["lr"] = float(etas[step])
        optimizer.zero_grad()
        (0.5 * (y[index] - problem.link(x[index] @ w)) ** 2).mean().backward()
        optimizer.step()
        iterates.append(w.detach().clone())
    return torch.stack(iterates)


# --- trajectories ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", sgd.SAMPLING)
@pytest.mark.parametrize(("schedule", "batch"), [("constant", 1), ("constant", 4), ("stages", 1)])
def test_trajectories_equal_a_loop_over_torch_sgd(sampling, schedule, batch):
    problem, n, epochs = sine_link(), 10, 4
    data = problem.sample(n, SEEDS)
    etas = torch.tensor([0.05, 0.2], dtype=torch.float64)
    runs = mp.sgd_trajectories(
        problem,
        data,
        etas=etas,
        epochs=epochs,
        seeds=SEEDS,
        sampling=sampling,
        schedule=schedule,
        batch=batch,
    )
    per_epoch = ceil(n / batch)
    total = per_epoch * epochs
    orders = list(mp.visiting_orders(n, epochs, SEEDS, sampling))
    for s in range(len(SEEDS)):
        x, y = data.x[:, s], data.y[:, s]
        batches = [index for order in orders for index in order[:, s].split(batch)]
        for e in range(len(etas)):
            rates = sgd.step_sizes(schedule, etas[e : e + 1], total, per_epoch, 1.0)[:, 0]
            loop = by_torch(problem, x, y, rates, batches)
            for k, epoch in enumerate(runs.epochs):
                done = epoch * per_epoch
                tail = loop[done - ceil(per_epoch / 2) : done].mean(0)
                torch.testing.assert_close(runs.last[k, e, s], loop[done - 1], rtol=0, atol=1e-9)
                torch.testing.assert_close(runs.average[k, e, s], tail, rtol=0, atol=1e-9)


def test_single_precision_agrees_with_torch_to_1e_5():
    problem = sine_link(dtype=torch.float32)
    data = problem.sample(16, SEEDS)
    runs = mp.sgd_trajectories(problem, data, etas=torch.tensor([0.1]), epochs=2, seeds=SEEDS)
    orders = torch.cat(list(mp.visiting_orders(16, 2, SEEDS)))
    for s in range(len(SEEDS)):
        loop = by_torch(problem, data.x[:, s], data.y[:, s], [0.1] * 32, orders[:, s].split(1))
        torch.testing.assert_close(runs.last[-1, 0, s], loop[-1], rtol=1e-5, atol=1e-5)


@given(n=st.integers(1, 40), epochs=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_reshuffling_visits_every_sample_once_a_pass(n, epochs, seed):
    orders = list(mp.visiting_orders(n, epochs, [seed, seed + 1]))
    assert all((order.sort(0).values == torch.arange(n)[:, None]).all() for order in orders)


def test_orders_differ_as_their_names_say():
    n, epochs = 64, 3
    fresh = torch.stack(list(mp.visiting_orders(n, epochs, [1, 2], "reshuffle")))
    once = torch.stack(list(mp.visiting_orders(n, epochs, [1, 2], "shuffle_once")))
    drawn = torch.stack(list(mp.visiting_orders(n, epochs, [1, 2], "replacement")))
    assert (fresh[0] != fresh[1]).any(0).all()
    assert (once[0] == once[1]).all()
    assert (fresh[0] == once[0]).all()  # the first pass is the same
    assert (once[:, :, 0] != once[:, :, 1]).any()
    assert len(drawn[0, :, 0].unique()) < n


def test_a_seed_gives_the_same_run_alone_and_in_a_batch():
    problem = sine_link(dtype=torch.float32)
    for sampling in sgd.SAMPLING:
        run = {}
        for seeds in (SEEDS, SEEDS[1:2]):
            run[len(seeds)] = mp.sgd_trajectories(
                problem,
                problem.sample(12, seeds),
                etas=torch.tensor([0.1, 0.3]),
                epochs=4,
                seeds=seeds,
                sampling=sampling,
            )
        torch.testing.assert_close(run[3].last[:, :, 1:2], run[1].last)
        torch.testing.assert_close(run[3].average[:, :, 1:2], run[1].average)


def test_smaller_k_is_a_snapshot_of_a_longer_run():
    problem = sine_link()
    data = problem.sample(9, SEEDS)
    arguments = {"etas": torch.tensor([0.1], dtype=torch.float64), "seeds": SEEDS}
    long = mp.sgd_trajectories(problem, data, epochs=8, **arguments)
    short = mp.sgd_trajectories(problem, data, epochs=2, **arguments)
    assert long.epochs == (1, 2, 4, 8)
    torch.testing.assert_close(long.last[:2], short.last)
    torch.testing.assert_close(long.average[:2], short.average)


def test_a_diverging_step_size_spoils_its_own_row_only():
    problem = sine_link(dtype=torch.float32)
    data = problem.sample(64, SEEDS)
    arguments = {"epochs": 64, "seeds": SEEDS}
    both = mp.sgd_trajectories(problem, data, etas=torch.tensor([0.1, 50.0]), **arguments)
    alone = mp.sgd_trajectories(problem, data, etas=torch.tensor([0.1]), **arguments)
    assert not torch.isfinite(both.last[-1, 1]).any()
    torch.testing.assert_close(both.last[:, :1], alone.last)


def test_whole_average_is_the_mean_of_all_iterates():
    problem = sine_link()
    data = problem.sample(7, [2])
    etas = torch.tensor([0.1], dtype=torch.float64)
    run = mp.sgd_trajectories(problem, data, etas=etas, epochs=2, seeds=[2], average="whole")
    order = torch.cat(list(mp.visiting_orders(7, 2, [2])))[:, 0]
    loop = by_torch(problem, data.x[:, 0], data.y[:, 0], [0.1] * 14, order.split(1))
    torch.testing.assert_close(run.average[1, 0, 0], loop.mean(0))
    torch.testing.assert_close(run.average[0, 0, 0], loop[:7].mean(0))


def test_schedules():
    eta = torch.tensor([0.5, 0.1])
    t = torch.arange(10)
    pl = sgd.step_sizes("pl", eta, 10, 5, mu=0.7)
    formula = (2 * t + 1) / (2 * 0.7 * (t + 1) ** 2)
    torch.testing.assert_close(pl[:, 0], formula.clamp(max=0.5))
    assert sgd.step_sizes("stages", eta, 10, 5, 1.0)[:, 0].tolist() == [
        0.5 * 0.5 ** (k // 2) for k in range(10)
    ]
    assert sgd.step_sizes("halve_each_epoch", eta, 10, 5, 1.0)[[0, 4, 5, 9], 0].tolist() == [
        0.5,
        0.5,
        0.25,
        0.25,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "random"}, "sampling"),
        ({"schedule": "cosine"}, "schedule"),
        ({"average": "none"}, "average"),
        ({"epochs": 0}, "epochs"),
        ({"batch": 0}, "batch"),
        ({"seeds": [1]}, "seeds"),
        ({"snapshots": [9]}, "snapshots"),
        ({"etas": torch.empty(0)}, "step sizes"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    problem = sine_link(dtype=torch.float32)
    arguments = {"etas": torch.tensor([0.1]), "epochs": 2, "seeds": SEEDS} | change
    with pytest.raises(ValueError, match=message):
        mp.sgd_trajectories(problem, problem.sample(4, SEEDS), **arguments)


# --- exact references -----------------------------------------------------------------------------


@pytest.mark.slow
def test_linear_moments_agree_with_monte_carlo():
    """One pass over fresh Gaussian samples, 4,096 trajectories, ten times, within 4 s.e."""
    dim, n, eta, runs = 4, 200, 0.1, 4096
    lam = log_spaced_spectrum(dim, 10.0).double()
    generator = torch.Generator().manual_seed(0)
    w_star = torch.tensor([1.0, -0.5, 0.8, 0.3], dtype=torch.float64)
    x = torch.randn(n, runs, dim, generator=generator, dtype=torch.float64) * lam.sqrt()
    noise = 0.5 * torch.randn(n, runs, generator=generator, dtype=torch.float64)
    problem = SineLink(lam, amplitude=0.0, noise=0.5)
    exact = mp.linear_moments(lam, eta, 0.5, w_star, n)
    w = torch.zeros(runs, dim, dtype=torch.float64)
    for t in range(n):
        w = w - eta * problem.grad(w, x[t : t + 1], (x[t] @ w_star + noise[t])[None])
        if (t + 1) % 20 == 0:
            squares = (w - w_star) ** 2
            error = squares.std(0) / runs**0.5
            assert ((squares.mean(0) - exact[t + 1]).abs() < 4 * error).all()


def test_linear_moments_start_and_decay_without_noise():
    lam = torch.tensor([1.0, 0.1])
    moments = mp.linear_moments(lam, 0.1, 0.0, torch.tensor([2.0, 1.0]), 400)
    assert moments[0].tolist() == [4.0, 1.0]
    assert (moments.diff(dim=0) < 0).all()


@pytest.mark.slow
def test_reuse_moments_agree_with_simulated_multi_pass_sgd():
    problem = SineLink(log_spaced_spectrum(5, 20.0).double(), amplitude=0.0, noise=0.4)
    data, eta, copies = problem.sample(24, [1, 2]), 0.05, 2000
    exact = mp.reuse_moments(problem, data, eta, doublings=4)
    signal = (data.x * data.w_star).sum(-1)
    noise = data.y - signal
    flipped = data._replace(y=signal - noise)  # the exact parts average over both signs
    many = Sample(
        torch.cat([data.x, flipped.x], 1).repeat_interleave(copies, 1),
        torch.cat([data.y, flipped.y], 1).repeat_interleave(copies, 1),
        torch.cat([data.w_star, flipped.w_star], 0).repeat_interleave(copies, 0),
    )
    runs = mp.sgd_trajectories(
        problem,
        many,
        etas=torch.tensor([eta], dtype=torch.float64),
        epochs=16,
        seeds=range(4 * copies),
        sampling="replacement",
    )
    risk = problem.excess_risk(runs.last, many.w_star)[:, 0].reshape(5, 4, copies)
    error = (risk.var(-1).sum(-1) / copies).sqrt() / 4
    assert ((risk.mean((1, 2)) - exact.total).abs() < 4 * error).all()
    descent = [
        mp.sgd_trajectories(
            problem,
            signed,
            etas=torch.tensor([eta], dtype=torch.float64),
            epochs=24 * 16,
            seeds=[1, 2],
            batch=24,
            snapshots=[24 * 2**k for k in range(5)],
        )
        for signed in (data, flipped)
    ]
    means = [problem.excess_risk(run.last, data.w_star)[:, 0].mean(-1) for run in descent]
    torch.testing.assert_close(exact.bias + exact.statistical, sum(means) / 2)


def test_reuse_moments_refuse_a_non_linear_problem():
    problem = sine_link()
    with pytest.raises(ValueError, match="amplitude 0"):
        mp.reuse_moments(problem, problem.sample(4, [1]), 0.1, 2)


def test_erm_floor_is_the_mean_risk_of_least_squares():
    dim, n = 8, 40
    problem = SineLink(log_spaced_spectrum(dim, 10.0).double(), amplitude=0.0, noise=0.3)
    data = problem.sample(n, range(1500))
    risk = problem.excess_risk(mp.empirical_minimiser(problem, data), data.w_star)
    error = risk.std() / len(risk) ** 0.5
    assert abs(risk.mean() - mp.erm_floor(0.3, dim, n)) < 4 * error
    with pytest.raises(ValueError, match="n > d"):
        mp.erm_floor(0.3, 8, 9)


@pytest.mark.parametrize("amplitude", [0.0, 0.8])
def test_many_passes_with_a_small_step_reach_the_empirical_minimiser(amplitude):
    problem = sine_link(amplitude=amplitude, kappa=4.0)
    data = problem.sample(40, SEEDS)
    fitted = mp.empirical_minimiser(problem, data)
    assert problem.grad(fitted, data.x, data.y).abs().max() < 1e-6
    runs = mp.sgd_trajectories(
        problem,
        data,
        etas=torch.tensor([0.002], dtype=torch.float64),
        epochs=256,
        seeds=SEEDS,
    )
    torch.testing.assert_close(runs.average[-1, 0], fitted, rtol=0, atol=0.01)


def test_one_pass_bound_dominates_sgd_with_bounded_noise():
    """Gradient descent on the exact risk plus noise of variance σ²: the bound's own setting."""
    problem = sine_link(kappa=4.0)
    probe = mp.probe_landscape(problem, probes=400)
    w_star = problem.sample(1, [0]).w_star
    eta, sigma, steps, runs = 0.05, 0.2, 150, 300
    generator = torch.Generator().manual_seed(0)
    w, target = torch.zeros(runs, 4, dtype=torch.float64), w_star.expand(runs, -1)
    simulated = [problem.excess_risk(w, target).mean()]
    for _ in range(steps):
        noise = torch.randn(runs, 4, generator=generator, dtype=torch.float64) * sigma / 2
        w = w - eta * (problem.risk_grad(w, target) + noise)
        simulated.append(problem.excess_risk(w, target).mean())
    mu, smooth = float(probe.ratio.min()), float(probe.largest.max())
    bound = mp.one_pass_bound(float(simulated[0]), eta, mu, smooth, sigma**2, steps)
    assert (torch.stack(simulated) <= bound * 1.05).all()
    with pytest.raises(ValueError, match="1/L"):
        mp.one_pass_bound(1.0, 2.0, 0.1, 1.0, 1.0, 5)


def test_landscape_is_non_convex_but_obeys_the_pl_bound():
    problem = SineLink(log_spaced_spectrum(6, 32.0))
    probe = mp.probe_landscape(problem, probes=600)
    assert probe.ratio.min() > problem.pl_constant_bound() > 0
    assert (probe.smallest < 0).double().mean() > 0.01


# --- effective reuse and tuning -------------------------------------------------------------------


def test_effective_reuse_inverts_a_power_law():
    sizes = np.array([100.0, 200, 400, 800])
    one = np.tile(5 / sizes, (3, 1))
    multi = np.array([[5 / 100, 5 / 300, 5 / 799, 5 / 1600, 1.0]] * 3)
    reuse = mp.effective_reuse(multi, one, sizes, 100)
    np.testing.assert_allclose(reuse[:3], [1, 3, 7.99])
    assert np.isnan(reuse[3:]).all()  # never extrapolated


def test_effective_reuse_takes_the_log_of_the_mean():
    sizes = [100.0, 400.0]
    one = np.array([[1.0, 0.1], [3.0, 0.3]])
    reuse = mp.effective_reuse(np.array([[0.5], [1.5]]), one, sizes, 100)
    exponent = np.log(10) / np.log(4)
    np.testing.assert_allclose(reuse, 2 ** (1 / exponent))


def test_effective_reuse_takes_the_smallest_sample_that_reaches_a_risk():
    reuse = mp.effective_reuse([[1.0, 0.1]], [[1.0, 2.0, 0.1]], [10, 20, 40], 10)
    np.testing.assert_allclose(reuse, [1, 4])


def test_effective_reuse_refuses_unsorted_sizes():
    with pytest.raises(ValueError, match="rising"):
        mp.effective_reuse([[1.0]], [[1.0, 0.5]], [200, 100], 100)


SMALL = mp.SineLinkRecipe(seeds=4, tuning_seeds=4, n=16, passes=(1, 2, 4), dim=4, kappa=8.0)
ALL_ARMS = (*study.ARMS, "erm")


def test_tuning_uses_other_seeds_than_verdicts():
    class Spy(mp.SineLinkRecipe):
        seen: list

        def problem(self, device):
            problem = super().problem(device)
            draw = problem.sample
            object.__setattr__(
                problem, "sample", lambda n, seeds: Spy.seen.append(list(seeds)) or draw(n, seeds)
            )
            return problem

    Spy.seen = []
    mp.experiment(Spy(seeds=2, tuning_seeds=3, n=8, passes=(1,), dim=4), [0, 1], CPU)
    tuning, verdict = Spy.seen
    assert tuning == [TUNING_SEEDS, TUNING_SEEDS + 1, TUNING_SEEDS + 2]
    assert verdict == [0, 1]


def test_tuned_step_is_the_best_of_the_grid():
    tuned = mp.tune_steps(SMALL, "multi_pass", CPU)
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + 4)
    risk = study.excess_risks(SMALL, "multi_pass", seeds, SMALL.etas, CPU).mean(-1)
    assert tuned.etas == tuple(SMALL.etas[i] for i in risk.argmin(1))
    assert tuned.best == int(risk.min(1).values.argmin())


def test_a_diverged_step_size_is_never_chosen_and_edges_are_reported():
    risk = torch.tensor([[[1.0, 1.0], [0.5, 0.5], [0.1, torch.nan]]])
    assert study.choose_steps(risk, (1,), (0.1, 0.2, 0.3)).etas == (0.2,)
    assert study.choose_steps(risk[:, :2], (1,), (0.1, 0.2)).at_edge == (True,)


# --- the contract ---------------------------------------------------------------------------------


def test_a_seed_gives_the_same_numbers_alone_and_in_a_batch():
    recipe = replace(SMALL, arms=ALL_ARMS)
    batch = mp.experiment(recipe, [7, 8, 9], CPU)
    alone = mp.experiment(recipe, 8, CPU)
    assert batch.keys() == alone.keys()
    for name, values in batch.items():
        np.testing.assert_allclose(values[1], alone[name], rtol=1e-5, err_msg=name)


def test_results_are_those_the_docstring_names():
    results = mp.experiment(SMALL, [0, 1], CPU)
    names = {f"multi_pass/{m}@{k}" for m in ("excess", "eta", "edge") for k in (1, 2, 4)}
    assert set(results) == names | {"multi_pass/best", "multi_pass/best_passes"}
    assert all(len(values) == 2 for values in results.values())


def test_one_pass_is_the_first_pass_of_multi_pass():
    one = mp.experiment(replace(SMALL, passes=(1,)), [0, 1], CPU)
    many = mp.experiment(SMALL, [0, 1], CPU)
    np.testing.assert_allclose(one["multi_pass/excess@1"], many["multi_pass/excess@1"])


def test_ridge_beats_nothing_but_is_fitted_and_needs_a_linear_problem():
    linear = replace(SMALL, arms=("ridge", "erm"), amplitude=0.0, n=64)
    results = mp.experiment(linear, [0, 1, 2], CPU)
    assert (results["ridge/best"] < 0.5).all()
    with pytest.raises(ValueError, match="amplitude 0"):
        mp.experiment(replace(SMALL, arms=("ridge",)), 0, CPU)


def test_one_seed_gives_numbers_and_a_list_of_seeds_arrays():
    alone, stacked = mp.experiment(SMALL, 0, CPU), mp.experiment(SMALL, [0, 1], CPU)
    assert all(isinstance(value, float) for value in alone.values())
    assert all(value.shape == (2,) for value in stacked.values())


def test_unknown_names_are_refused():
    with pytest.raises(TypeError, match="recipe of multipass_sgd"):
        mp.experiment(mp.Recipe(), 0, CPU)
    with pytest.raises(ValueError, match="arm must be one of"):
        mp.experiment(replace(SMALL, arms=("adam",)), 0, CPU)
    with pytest.raises(ValueError, match="spectrum"):
        mp.experiment(replace(SMALL, spectrum="flat"), 0, CPU)
    with pytest.raises(ValueError, match="quick or full"):
        mp.studies("paper")


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_studies_cover_the_claims_within_their_budget(profile):
    found = mp.studies(profile)
    assert set(found) == {
        "size", "fresh", "control", "condition", "power_law", "baselines", "network"
    }  # fmt: skip
    for recipe in found["size"] + found["control"] + found["condition"]:
        assert recipe.n * recipe.passes[-1] <= 131_072
    assert {64, 256} <= {recipe.n for recipe in found["size"]}
    assert [recipe.n for recipe in found["control"]] == [1024]
    assert [recipe.kappa for recipe in found["condition"]] == [4, 16, 64, 256, 1024]
    assert mp.PROFILES[profile].seeds == found["size"][0].seeds


# --- the real network -----------------------------------------------------------------------------

TINY = mp.NetworkRecipe(
    seeds=2,
    tuning_seeds=2,
    n=8,
    passes=(1, 2),
    fresh=(8, 12),
    etas=(0.01, 0.1),
    batch=4,
    width=3,
    fixed_at=2,
    test_images=20,
)


@pytest.fixture
def small_images(monkeypatch):
    """Random images in place of Fashion-MNIST: these tests are about the training."""
    generator = torch.Generator().manual_seed(0)

    def images(count):
        x = torch.randn(count, network.PIXELS, generator=generator)
        return x, torch.nn.functional.one_hot(torch.arange(count) % 10, 10).float()

    parts = (*images(60_000), *images(20))
    monkeypatch.setattr(network, "fashion_14", lambda *_: parts)
    network.tune_network.cache_clear()
    yield parts
    network.tune_network.cache_clear()


def test_network_equals_a_single_network_trained_by_torch(small_images):
    x, y, test_x, test_y = small_images
    scores = network._scores(TINY, "multi_pass", [5, 6], [0.05, 0.2], CPU)
    stack = network._networks(TINY, [6], 1)
    layers = [torch.nn.Linear(network.PIXELS, 3), torch.nn.ReLU(), torch.nn.Linear(3, 10)]
    with torch.no_grad():
        for layer, w, b in zip(layers[::2], stack.weights, stack.biases, strict=True):
            layer.weight.copy_(w[0].T)
            layer.bias.copy_(b[0, 0])
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    subset = np.random.default_rng([6, 0]).permutation(60_000)[:8]
    for k, order in enumerate(mp.visiting_orders(8, 2, [6])):
        for index in torch.from_numpy(subset)[order[:, 0]].split(4):
            optimizer.zero_grad()
            (0.5 * (model(x[index]) - y[index]) ** 2).sum(1).mean().backward()
            optimizer.step()
        with torch.no_grad():
            risk = 0.5 * ((model(test_x) - test_y) ** 2).sum(1).mean()
        torch.testing.assert_close(scores[k, 1, 1, 0], risk, rtol=1e-4, atol=1e-6)


def test_network_seed_gives_the_same_numbers_alone_and_in_a_batch(small_images):
    batch, alone = mp.experiment(TINY, [3, 4], CPU), mp.experiment(TINY, 4, CPU)
    assert {f"fixed_step/risk@{k}" for k in (1, 2)} <= set(batch)
    for name, values in batch.items():
        np.testing.assert_allclose(values[1], alone[name], rtol=1e-4, err_msg=name)


def test_network_fresh_samples_are_visited_once():
    stages = list(network._stages(TINY, "one_pass", [1, 2]))
    images = torch.cat([stage[0] for stage in stages])
    assert [len(stage[0]) for stage in stages] == [8, 4]
    assert all(len(images[:, s].unique()) == 12 for s in range(2))


def test_network_refuses_unknown_arms(small_images):
    with pytest.raises(ValueError, match="multi_pass or one_pass"):
        mp.experiment(replace(TINY, arms=("adam",)), 0, CPU)
    with pytest.raises(ValueError, match="fixed_at"):
        mp.experiment(replace(TINY, fixed_at=3), 0, CPU)


# --- the paper's scale ----------------------------------------------------------------------------

SMOKE = mp.CifarRecipe(
    arms=("squared",),
    n=4,
    passes=(2,),
    fresh=(4, 8),
    etas=(0.05,),
    batch=2,
)


def write_cifar(folder, classes=10, images=8):
    """Random bytes in CIFAR's binary layout."""
    rng = np.random.default_rng(0)
    labels = 1 if classes == 10 else 2
    for names in cifar.FILES[classes]:
        for name in names:
            rows = rng.integers(0, 256, (images, labels + 3072), dtype=np.uint8)
            rows[:, :labels] %= classes
            rows.tofile(folder / name)


def smoke_on_rank(folder: str) -> dict:
    torch.manual_seed(torch.distributed.get_rank())
    results = mp.experiment(replace(SMOKE, folder=folder), 0, CPU)
    return {name: torch.as_tensor(values) for name, values in results.items()}


@pytest.mark.slow
def test_cifar_gives_finite_results_in_one_process(tmp_path):
    write_cifar(tmp_path)
    results = mp.experiment(replace(SMOKE, folder=str(tmp_path)), 0, CPU)
    assert {"squared/risk@2", "squared/error@2", "squared_fresh/risk@8", "squared/reuse@2"} <= set(
        results
    )
    assert all(np.isfinite(values).all() for name, values in results.items() if "reuse" not in name)


@pytest.mark.slow
def test_cifar_runs_under_two_processes_that_agree(tmp_path):
    write_cifar(tmp_path)
    first, second = launch(smoke_on_rank, 2, str(tmp_path), timeout=240)
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], rtol=1e-4, equal_nan=True, err_msg=name)


@pytest.mark.parametrize(("chunk", "size"), [(10, 3), (2, 3), (6, 2)])
def test_shares_of_a_batch_weigh_up_to_its_mean(chunk, size, monkeypatch):
    """Averaged over processes, the weighted means equal the mean over the global batch."""
    recipe = replace(SMOKE, batch=ceil(chunk / size))
    images = torch.arange(chunk, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    data = cifar.Cifar(images, torch.arange(chunk), images, torch.arange(chunk))
    total, seen = 0.0, []
    for rank in range(size):
        monkeypatch.setattr(scale, "world", lambda rank=rank: (rank, size))
        for _, labels, weight in scale._batches(recipe, data, chunk, 1, seed=0):
            total += weight * labels.double().mean() / size
            seen += labels.tolist()
    if chunk >= size:
        assert sorted(seen) == list(range(chunk))
        assert total == pytest.approx((chunk - 1) / 2)


def test_cifar_100_reads_the_fine_label(tmp_path):
    write_cifar(tmp_path, classes=100, images=3)
    raw = np.fromfile(tmp_path / "train.bin", np.uint8).reshape(3, 3074)
    data = cifar.load_cifar(100, str(tmp_path), CPU)
    assert data.train_labels.tolist() == raw[:, 1].tolist()
    assert (data.train_images.flatten(1).numpy() == raw[:, 2:]).all()


def test_missing_or_damaged_cifar_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-bin"):
        mp.experiment(replace(SMOKE, folder=str(tmp_path)), 0, CPU)
    write_cifar(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="no binary file"):
        mp.experiment(replace(SMOKE, folder=str(tmp_path)), 0, CPU)
    with pytest.raises(ValueError, match="10 or 100"):
        cifar.load_cifar(20, str(tmp_path), CPU)
    with pytest.raises(ValueError, match="squared or cross_entropy"):
        mp.experiment(replace(SMOKE, arms=("hinge",)), 0, CPU)
