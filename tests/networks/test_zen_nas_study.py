"""The studies' networks, their determinism, rank statistics, and the paper's size in small."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kendalltau

from toolkit.learn.distributed import launch
from toolkit.networks import zen_nas as zn
from toolkit.networks.structures import count, parse
from toolkit.networks.zen_nas import scale, study

CPU = torch.device("cpu")
FEW = replace(zn.QUICK, steps=4, batch=16, judged=20, repeats=2, search_steps=30, population=6)
STRUCTURE = "SuperConvK3BNRELU(1,8,2,1)SuperResK3K3(8,8,2,4,1)SuperConvK1BNRELU(8,16,1,1)"


# --- networks of the ranking study --------------------------------------------------------------


def test_wide_networks_fill_every_interval_of_sizes():
    sizes = [cost(specs) for specs in zn.wide_structures(9, np.random.default_rng(0))]
    assert sizes == sorted(sizes)
    low = cost(study._least())
    edges = np.geomspace(low, 40_000, 10)
    assert all(a <= size <= b for size, a, b in zip(sizes, edges, edges[1:], strict=False))


def test_iso_networks_have_one_size_and_every_depth():
    nets = zn.iso_structures(6, np.random.default_rng(0))
    assert all(9_000 <= cost(specs) <= 12_000 for specs in nets)
    depths = [len(zn.Chain.of(specs).convs) for specs in nets]
    assert depths == sorted(depths)
    assert (depths[0], depths[-1]) == (8, 40)


def cost(specs):
    return count(specs, zn.RES, num_classes=zn.CLASSES).params


# --- training, scores, searches -----------------------------------------------------------------


def test_training_repeats_and_reads_accuracy_three_times(small_data):
    recipe = replace(FEW, structure=STRUCTURE)
    one, two = (zn.train_structure(recipe, 3, CPU) for _ in range(2))
    assert one == two != zn.train_structure(recipe, 4, CPU)
    assert {name for name in one if "@" in name} == {"val@0.25", "val@0.5", "val@1"}
    assert one["params"] == cost(parse(STRUCTURE))
    assert one["convs"] == 4


def test_residual_blocks_start_as_their_shortcuts():
    net = study._fresh(parse(STRUCTURE), 0, CPU)
    assert not net.blocks[1][0].last.bn.weight.any()
    assert net.blocks[0][0].last.bn.weight.all()
    assert net.blocks[1][0].last.conv.weight.any()


def test_scores_repeat_and_every_proxy_is_there():
    recipe = replace(FEW, structure=STRUCTURE, score_batch=8)
    one, two = (zn.score_structure(recipe, 1, CPU) for _ in range(2))
    assert {name for name in one if "/" not in name} == set(zn.PROXIES)
    assert all(one[name] == two[name] for name in zn.PROXIES)


@pytest.mark.parametrize("proxy", ["zen", "params"])
def test_a_search_repeats_and_meets_the_budget(proxy):
    recipe = replace(FEW, proxy=proxy)
    one, two = (zn.experiment(recipe, 5, CPU) for _ in range(2))
    one.pop("seconds")
    two.pop("seconds")
    assert one == two
    found = zn.structure_of(one)
    assert not zn.BUDGET.broken(found)
    assert one["score"] == max(value for name, value in one.items() if name.startswith("trace"))


def test_random_search_scores_as_many():
    found = zn.random_search(FEW, 0, CPU)
    assert not zn.BUDGET.broken(zn.structure_of(found))
    assert found["score"] > zn.zen_closed_form(zn.START, zn.RES)


# --- rank statistics ----------------------------------------------------------------------------


def test_partial_tau_is_the_formula_of_three_taus():
    rng = np.random.default_rng(0)
    z = rng.normal(size=40)
    x, y = z + rng.normal(size=40), z + rng.normal(size=40)
    xy, xz, yz = (kendalltau(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    x, y, z = x.tolist(), y.tolist(), z.tolist()
    assert zn.partial_tau(x, y, z) == pytest.approx(expected)
    assert zn.partial_tau(x, y, z) < xy
    assert np.isnan(zn.partial_tau(x, y, x))


def test_what_only_follows_size_has_little_partial_tau():
    rng = np.random.default_rng(1)
    size = rng.normal(size=2000)
    x, y = ((size + 0.5 * rng.normal(size=2000)).tolist() for _ in range(2))
    assert kendalltau(x, y).statistic > 0.5
    assert abs(zn.partial_tau(x, y, size.tolist())) < 0.25


def test_recorded_networks_are_those_of_the_full_profile():
    table = zn.recorded_networks()
    rng = np.random.default_rng(0)
    nets = [*zn.wide_structures(zn.FULL.wide, rng), *zn.iso_structures(zn.FULL.iso, rng)]
    assert len(table) == len(nets) == 36
    for specs, row in zip(nets, table.itertuples(), strict=True):
        assert parse(row.structure) == specs
        assert row.params == cost(specs)
        assert row.closed == pytest.approx(zn.zen_closed_form(specs, zn.RES), rel=1e-3)
        assert 0.1 < row.accuracy < 1
    assert set(zn.PROXIES) <= set(table)


# --- the paper's size ---------------------------------------------------------------------------

TINY = zn.PaperRecipe(
    task="train",
    structure="SuperConvK3BNRELU(3,8,2,1)SuperResK1K3K1(8,8,2,4,1)SuperConvK1BNRELU(8,16,1,1)",
    resolution=32,
    epochs=1,
    batch=2,
    warmup=0,
    max_steps=1,
    workers=0,
    folder="",
)


def write_images(folder, number=4):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for place in range(number):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{place}.png")
    return str(folder)


def write_cifar(folder):
    rng = np.random.default_rng(0)
    for number in range(1, 6):
        rng.integers(0, 10, (8, 3073), dtype=np.uint8).tofile(folder / f"data_batch_{number}.bin")
    rng.integers(0, 10, (10, 3073), dtype=np.uint8).tofile(folder / "test_batch.bin")
    return str(folder)


def ranks_run(folder):
    return zn.experiment(replace(TINY, data=folder), 0, CPU)


@pytest.mark.slow
def test_two_processes_train_and_agree(tmp_path):
    one, two = launch(ranks_run, 2, write_images(tmp_path))
    assert one["zen/top1"] == two["zen/top1"]
    assert 0 <= one["zen/top1"] <= 1
    assert np.isfinite(one["zen/loss"])


def test_cifar_is_trained_with_gates_and_resumes(tmp_path):
    recipe = replace(
        TINY,
        cifar_folder=write_cifar(tmp_path),
        folder=str(tmp_path / "kept"),
        batch=8,
        max_steps=0,
        se=True,
    )
    first = zn.experiment(recipe, 0, CPU)
    assert (tmp_path / "kept" / "zen_nas_zen.pt").is_file()
    assert zn.experiment(recipe, 0, CPU)["zen/top1"] == first["zen/top1"]


@pytest.mark.slow
def test_a_teacher_adds_its_features_and_probabilities(tmp_path, monkeypatch):
    create = scale.timm.create_model

    def untrained(name, **kwargs):
        return create(name, num_classes=kwargs["num_classes"])

    monkeypatch.setattr(scale.timm, "create_model", untrained)
    recipe = replace(
        TINY, data=write_images(tmp_path), teacher="efficientnet_b0", teacher_resolution=40
    )
    alone = zn.experiment(replace(recipe, teacher=""), 0, CPU)
    assert zn.experiment(recipe, 0, CPU)["zen/loss"] > alone["zen/loss"]


def test_the_search_writes_what_training_reads(tmp_path):
    recipe = replace(
        TINY,
        task="search",
        structure="",
        arms=("closed",),
        folder=str(tmp_path),
        search_steps=40,
        population=8,
    )
    found = zn.experiment(recipe, 0, CPU)
    text = (tmp_path / "zen_nas_closed.txt").read_text("utf-8").strip()
    assert found["closed/score"] == pytest.approx(zn.zen_closed_form(text, 32))
    assert found["closed/params"] <= 1e6
    assert scale._structure(recipe, "closed") == text


def test_paper_recipes_refuse_what_cannot_run(tmp_path):
    for changes in (dict(task="dance"), dict(space="III"), dict(arms=("taste",)), dict(epochs=0)):
        with pytest.raises(ValueError, match=r"one of|arms are|at least 1"):
            replace(TINY, **changes)
    with pytest.raises(FileNotFoundError, match="task=search"):
        zn.experiment(replace(TINY, structure="", folder=str(tmp_path)), 0, CPU)
    with pytest.raises(FileNotFoundError, match="train"):
        zn.experiment(replace(TINY, data=str(tmp_path)), 0, CPU)
    with pytest.raises(ValueError, match="even size"):
        zn.experiment(replace(TINY, data=write_images(tmp_path / "few"), batch=3), 0, CPU)
