import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from toolkit import runtime
from toolkit.runtime import pick_best, race, start, sweep, tune


@dataclass(frozen=True)
class Recipe:
    rate: float = 1.0
    arms: tuple[str, ...] = ("a", "b")
    log: str = ""


def draw(recipe, seed, device):
    """Two arms; writes down that it ran."""
    note(recipe, seed)
    rng = np.random.default_rng(seed)
    return {"a/x": recipe.rate * rng.normal(), "b/x": float(seed), "b/seconds": os.times().elapsed}


def stacked(recipe, seeds, device):
    many = [seeds] if isinstance(seeds, int) else seeds
    note(recipe, many)
    return {"a/x": np.array([recipe.rate * seed for seed in many])}


def fragile(recipe, seed, device):
    if seed == 2:
        raise ValueError("two is not welcome")
    return {"a/x": 1.0}


def note(recipe, what):
    if recipe.log:
        with open(recipe.log, "a") as file:
            file.write(f"{what}\n")


def calls(path):
    return path.read_text().splitlines() if path.exists() else []


def test_a_sweep_has_one_row_a_setting_and_seed(build_folder):
    runs = sweep(draw, [Recipe(1.0), Recipe(2.0)], range(3), jobs=1)
    assert list(runs.columns) == ["setting", "seed", "rate", "a/x", "b/x", "b/seconds", "error"]
    assert runs["seed"].tolist() == [0, 1, 2, 0, 1, 2]
    assert np.allclose(runs["a/x"][3:], 2 * runs["a/x"][:3].to_numpy())


def test_parallel_and_serial_sweeps_agree(build_folder):
    parallel = sweep(draw, Recipe(), range(4), jobs=2)["a/x"]
    serial = [draw(Recipe(), seed, "cpu")["a/x"] for seed in range(4)]
    assert parallel.tolist() == serial


def test_a_second_sweep_reads_what_the_first_kept(build_folder, tmp_path):
    recipe = Recipe(log=str(tmp_path / "log"))
    first = sweep(draw, recipe, range(3), jobs=1)
    again = sweep(draw, recipe, range(4), jobs=1)
    assert calls(tmp_path / "log") == ["0", "1", "2", "3"]
    assert again["a/x"][:3].tolist() == first["a/x"].tolist()


def test_changed_code_computes_anew(build_folder, tmp_path, monkeypatch):
    recipe = Recipe(log=str(tmp_path / "log"))
    sweep(draw, recipe, [0], jobs=1)
    monkeypatch.setattr(runtime, "_code_key", lambda experiment, recipe: "other")
    sweep(draw, recipe, [0], jobs=1)
    assert calls(tmp_path / "log") == ["0", "0"]


def test_a_damaged_cache_file_is_computed_again(build_folder):
    first = sweep(draw, Recipe(), [0], jobs=1)
    (file,) = (build_folder / "sweeps").rglob("*.json")
    file.write_text('{"a/x": 1')
    assert sweep(draw, Recipe(), [0], jobs=1)["a/x"].tolist() == first["a/x"].tolist()


def test_seeds_travel_in_batches(build_folder, tmp_path):
    recipe = Recipe(log=str(tmp_path / "log"))
    runs = sweep(stacked, recipe, range(5), batch=2, jobs=1)
    assert runs["a/x"].tolist() == [0, 1, 2, 3, 4]
    assert calls(tmp_path / "log") == ["[0, 1]", "[2, 3]", "[4]"]


def test_a_failed_cell_keeps_its_row_and_the_others(build_folder):
    with pytest.warns(UserWarning, match=r"'seed': 2.*two is not welcome"):
        runs = sweep(fragile, Recipe(), range(4), jobs=1)
    assert runs["a/x"].isna().tolist() == [False, False, True, False]
    assert "two is not welcome" in runs["error"][2]


def test_a_sweep_in_which_all_fails_says_so(build_folder):
    with (
        pytest.warns(UserWarning, match="a cell failed"),
        pytest.raises(RuntimeError, match="every cell failed"),
    ):
        sweep(fragile, Recipe(), [2], jobs=1)


def test_check_accepts_what_repeats(build_folder, monkeypatch):
    sweep(draw, Recipe(), range(2), jobs=1)
    monkeypatch.setenv("TOOLKIT_SWEEP", "check")
    assert len(sweep(draw, Recipe(), range(2), jobs=1)) == 2


def test_check_refuses_what_does_not_repeat(build_folder, monkeypatch):
    sweep(draw, Recipe(), range(2), jobs=1)
    for file in (build_folder / "sweeps").rglob("*.json"):
        file.write_text('{"a/x": 7.0, "b/x": 0.0}')
    monkeypatch.setenv("TOOLKIT_SWEEP", "check")
    with pytest.raises(RuntimeError, match="does not repeat"):
        sweep(draw, Recipe(), range(2), jobs=1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((draw, Recipe(), []), ValueError),
        ((draw, Recipe(), [1, 1]), ValueError),
        ((draw, {"rate": 1}, [0]), TypeError),
        ((draw, [], [0]), TypeError),
    ],
)
def test_bad_sweeps_are_refused(build_folder, arguments, error):
    with pytest.raises(error):
        sweep(*arguments)


@pytest.mark.slow
def test_the_same_call_runs_on_a_dask_cluster(build_folder, monkeypatch):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        runs = sweep(draw, [Recipe(1.0), Recipe(3.0)], range(4))
    serial = [draw(Recipe(), seed, "cpu")["a/x"] for seed in range(4)]
    assert runs["a/x"][:4].tolist() == serial


def test_tune_uses_seeds_that_no_verdict_sees(build_folder, tmp_path):
    grid = [Recipe(rate, log=str(tmp_path / "log")) for rate in (3.0, 0.5, 2.0)]
    best = tune(stacked, grid, "a/x", seeds=2)
    assert best.rate == 0.5
    assert set(calls(tmp_path / "log")) == {"[10000]", "[10001]"}


def test_tune_names_the_metrics_it_has(build_folder):
    with pytest.raises(ValueError, match="a/x"):
        tune(stacked, [Recipe()], "a/y", seeds=2)


def test_the_best_has_the_least_mean_and_divergence_counts_as_infinite():
    risk = torch.tensor([[3.0, 3.0], [0.1, float("nan")], [1.0, 2.0], [5.0, 5.0]])
    assert pick_best(risk) == 2


def test_a_best_at_the_grid_edge_warns():
    with pytest.warns(UserWarning, match="grid edge"):
        assert pick_best(torch.tensor([[1.0], [2.0], [3.0]])) == 0


def test_a_grid_that_diverged_everywhere_is_refused():
    with pytest.raises(ValueError, match="diverged"):
        pick_best(torch.full((3, 2), float("inf")))


def test_a_race_times_all_functions_in_turn():
    order = []
    times = race(rounds=3, warmup=1, a=lambda: order.append("a"), b=lambda: order.append("b"))
    assert order == ["a", "b"] * 4
    assert times.shape == (3, 2)
    assert (times > 0).all().all()


def test_start_seeds_and_uses_one_thread():
    assert start(3, "cpu") == torch.device("cpu")
    first = torch.rand(2)
    start(3, "cpu")
    assert torch.equal(torch.rand(2), first)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta:"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=name):
        start(device=name)
