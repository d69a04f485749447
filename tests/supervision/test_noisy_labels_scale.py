"""ResNet-18 on CIFAR files: cells over processes, reading, the schedule; on a handful of images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from toolkit.data import cifar
from toolkit.learn.distributed import launch
from toolkit.supervision import noisy_labels as nl
from toolkit.supervision.noisy_labels import scale

CPU = torch.device("cpu")
TINY = nl.ScaleRecipe(seeds=2, rates=(0.0, 0.5), n=20, batch=2, epochs=2, constant=1, lr=0.01)


def write_cifar(folder, classes=10, count=30):
    rng = np.random.default_rng(0)
    labels = 1 if classes == 10 else 2
    for name in [name for names in cifar.FILES[classes] for name in names]:
        rows = rng.integers(0, 256, (count // 5 or 1, labels + 3072), dtype=np.uint8)
        rows[:, :labels] = rng.integers(0, classes, (len(rows), labels))
        rows.tofile(folder / name)
    return str(folder)


def ranks_run(folder):
    results = nl.experiment(replace(TINY, folder=folder), 0, CPU)
    return {name: float(value) for name, value in results.items()}


def test_missing_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1.bin.*cifar-10-batches-bin"):
        nl.experiment(replace(TINY, folder=str(tmp_path)), 0, CPU)
    with pytest.raises(ValueError, match="10 or 100"):
        cifar.load_cifar(20, str(tmp_path), CPU)
    write_cifar(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"too short")
    with pytest.raises(ValueError, match="no binary file"):
        cifar.load_cifar(10, str(tmp_path), CPU)


def test_both_cifars_are_read(tmp_path):
    ten = cifar.load_cifar(10, write_cifar(tmp_path), CPU)
    assert ten.train_images.shape == (30, 3, 32, 32)
    raw = np.fromfile(tmp_path / "data_batch_1.bin", np.uint8).reshape(-1, 3073)
    assert ten.train_labels[:6].tolist() == raw[:, 0].tolist()
    assert (ten.train_images[2].flatten().numpy() == raw[2, 1:]).all()
    hundred = cifar.load_cifar(100, write_cifar(tmp_path, 100), CPU)
    raw = np.fromfile(tmp_path / "train.bin", np.uint8).reshape(-1, 3074)
    assert hundred.train_labels.tolist() == raw[:, 1].tolist()


@pytest.mark.slow
def test_two_processes_share_the_cells_and_agree_with_one(tmp_path):
    """Four (rate, seed) cells over one process and over two gloo processes: the same numbers."""
    folder = write_cifar(tmp_path)
    cifar.load_cifar.cache_clear()
    one = launch(ranks_run, 1, folder)[0]
    first, second = launch(ranks_run, 2, folder)
    assert first.keys() == second.keys() == one.keys()
    assert "noisy/error_0.1@0.5" in one
    assert "seed1/error_2@0.5" in one
    assert "seed0/fit_wrong_2@0" not in one
    for name in one:
        np.testing.assert_allclose(
            [first[name], second[name]], one[name], rtol=1e-4, atol=1e-6, err_msg=name
        )
    mean = np.mean([one["seed0/error_2@0.5"], one["seed1/error_2@0.5"]])
    assert one["noisy/error_2@0.5"] == pytest.approx(mean)


@pytest.mark.slow
def test_a_list_of_seeds_gives_one_value_each(tmp_path):
    recipe = replace(TINY, rates=(0.5,), noise="pair", augment=True, folder=write_cifar(tmp_path))
    cifar.load_cifar.cache_clear()
    results = nl.experiment(recipe, [4], CPU)
    assert results["noisy/error_2@0.5"].shape == (1,)
    assert len([name for name in results if name.startswith("noisy/error_")]) == 11


@pytest.mark.slow
def test_a_diverged_model_is_reported(tmp_path):
    recipe = replace(TINY, rates=(0.5,), seeds=1, lr=1e30, folder=write_cifar(tmp_path))
    cifar.load_cifar.cache_clear()
    results = nl.experiment(recipe, 0, CPU)
    assert np.isnan(results["noisy/error_2@0.5"])


def test_the_schedule_is_constant_and_then_half_a_cosine():
    recipe = nl.ScaleRecipe(epochs=200, constant=60)
    factors = [scale._factor(recipe, step, 10) for step in (0, 600, 1300, 2000)]
    assert factors == pytest.approx([1, 1, 0.5, 0])
    assert scale._factor(nl.ScaleRecipe(epochs=5, constant=5), 50, 10) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": "instance"}, "symmetric or pair"),
        ({"arms": ("forward",)}, "one arm"),
        ({"rates": (1.5,)}, "rates"),
        ({"constant": 9, "epochs": 3}, "constant"),
        ({"n": 100, "batch": 128}, "ten points"),
    ],
)
def test_bad_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(nl.ScaleRecipe(), **change)


def test_more_images_than_cifar_has_are_refused(tmp_path):
    folder = write_cifar(tmp_path)
    cifar.load_cifar.cache_clear()
    with pytest.raises(ValueError, match="30 training images"):
        nl.experiment(replace(TINY, n=400, folder=folder), 0, CPU)
