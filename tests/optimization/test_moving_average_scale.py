"""The large configuration on a handful of examples, in one process and in two; the molecules."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.optimization.test_multipass_sgd import write_cifar
from toolkit.learn.distributed import launch
from toolkit.optimization import moving_average as ma
from toolkit.optimization.moving_average import molecules, scale

CPU = torch.device("cpu")
SMOKE = ma.LargeRecipe(epochs=3, cuts=(1, 2), batch=2)


def write_molecules(folder, count=12):
    """Random small molecules in OGB's raw layout; every third is positive."""
    rng = np.random.default_rng(0)
    nodes = rng.integers(2, 5, count)
    edges = nodes - 1  # chains of atoms
    ends = np.concatenate([np.stack([np.arange(n - 1), np.arange(1, n)], 1) for n in nodes])
    tables = {
        "raw/node-feat.csv.gz": rng.integers(0, 4, (nodes.sum(), 3)),
        "raw/edge-feat.csv.gz": rng.integers(0, 3, (edges.sum(), 2)),
        "raw/edge.csv.gz": ends,
        "raw/num-node-list.csv.gz": nodes[:, None],
        "raw/num-edge-list.csv.gz": edges[:, None],
        "raw/graph-label.csv.gz": (np.arange(count) % 3 == 0).astype(int)[:, None],
        "split/scaffold/train.csv.gz": np.arange(count // 2)[:, None],
        "split/scaffold/test.csv.gz": np.arange(count // 2, count)[:, None],
    }
    for name, rows in tables.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            np.savetxt(file, rows, fmt="%d", delimiter=",")


def test_betas_rise_when_the_rate_is_cut():
    recipe = ma.LargeRecipe()
    assert scale.rates(recipe, "raised", 0) == pytest.approx((1e-3, 0.1))
    assert scale.rates(recipe, "raised", 100) == pytest.approx((1e-4, 0.01))
    assert scale.rates(recipe, "raised", 199) == pytest.approx((1e-5, 0.001))
    assert scale.rates(recipe, "constant", 199) == pytest.approx((1e-5, 0.1))


def test_shares_of_all_processes_make_up_the_epoch(monkeypatch):
    seen = []
    for rank in range(3):
        monkeypatch.setattr(scale, "world", lambda rank=rank: (rank, 3))
        seen += [i for share in scale._shares(14, 2, 0, 1) for i in share.tolist()]
    assert len(seen) == len(set(seen)) == 12
    with pytest.raises(ValueError, match="too few"):
        list(scale._shares(5, 2, 0, 0))


def test_thinning_keeps_all_negatives():
    positive = torch.arange(1000) < 500
    rows = scale._thin(positive, 0.05)
    assert (~positive[rows]).sum() == 500
    assert float(positive[rows].float().mean()) == pytest.approx(0.05, abs=0.002)


def run_on_rank(task: str, folder: str) -> dict:
    torch.manual_seed(torch.distributed.get_rank())
    recipe = replace(SMOKE, task=task, folder=folder, epochs=1, cuts=(1,), betas=(0.9, 0.99))
    results = ma.experiment(recipe, 0, CPU)
    return {name: torch.as_tensor(value) for name, value in results.items()}


@pytest.mark.slow
def test_cifar_trains_in_one_process(tmp_path):
    write_cifar(tmp_path)
    results = ma.experiment(
        replace(SMOKE, folder=str(tmp_path), epochs=2, cuts=(1,), betas=(0.9, 0.99)), 0, CPU
    )
    assert set(results) == {"raised/error", "constant/error"}
    assert all(0 <= value <= 1 for value in results.values())


@pytest.mark.slow
def test_imbalanced_vision_trains_in_one_process(tmp_path):
    write_cifar(tmp_path)
    recipe = replace(
        SMOKE,
        task="auc_vision",
        folder=str(tmp_path),
        epochs=1,
        cuts=(1,),
        betas=(0.9, 0.99),
        pos_rate=0.3,
        arms=("pdada",),
    )
    results = ma.experiment(recipe, 0, CPU)
    assert 0 <= results["pdada/auc"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cifar", "auc_molecules"])
def test_two_processes_agree(task, tmp_path):
    (write_cifar if task == "cifar" else write_molecules)(tmp_path)
    first, second = launch(run_on_rank, 2, task, str(tmp_path), timeout=400)
    assert set(first) == {
        f"{arm}/{'error' if task == 'cifar' else 'auc'}" for arm in scale.TASKS[task]
    }
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6)


def test_molecules_train_in_one_process(tmp_path):
    write_molecules(tmp_path)
    results = ma.experiment(replace(SMOKE, task="auc_molecules", folder=str(tmp_path)), 0, CPU)
    assert set(results) == {"pdada/auc", "pdsm/auc", "ce/auc"}
    assert all(0 <= value <= 1 for value in results.values())


def test_a_batch_of_molecules_is_the_molecules_one_by_one(tmp_path):
    write_molecules(tmp_path)
    data = molecules.load_molecules(str(tmp_path))
    torch.manual_seed(0)
    network = molecules.GraphNet([4, 4, 4], [3, 3], width=6, depth=2).eval()
    index = torch.tensor([7, 0, 3])
    with torch.no_grad():
        together = network(molecules.collate(data, index, CPU))
        alone = torch.cat([network(molecules.collate(data, i[None], CPU)) for i in index])
    torch.testing.assert_close(together, alone)
    graphs = molecules.collate(data, index, CPU)
    both_ways = set(zip(graphs.source.tolist(), graphs.target.tolist(), strict=True))
    assert both_ways == {(b, a) for a, b in both_ways}
    assert (graphs.owner[graphs.source] == graphs.owner[graphs.target]).all()


def test_missing_data_and_bad_recipes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="ogbg-molhiv"):
        ma.experiment(replace(SMOKE, task="auc_molecules", folder=str(tmp_path)), 0, CPU)
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-bin"):
        ma.experiment(replace(SMOKE, folder=str(tmp_path)), 0, CPU)
    with pytest.raises(ValueError, match="task"):
        ma.experiment(replace(SMOKE, task="speech"), 0, CPU)
    with pytest.raises(ValueError, match="task"):
        ma.experiment(replace(SMOKE, arms=("ce",)), 0, CPU)
    with pytest.raises(ValueError, match="one beta more"):
        ma.experiment(replace(SMOKE, betas=(0.9,)), 0, CPU)
    with pytest.raises(ValueError, match="pos_rate"):
        scale._thin(torch.tensor([True, False]), 0.0)
