"""The paper profile runs: in one process, on two ranks, and from a folder of images."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from toolkit.data.store import DataMissing
from toolkit.learn.distributed import launch
from toolkit.search.knn_softmax import PROFILES, experiment

pytestmark = pytest.mark.slow

SMALL = replace(
    PROFILES["paper"],
    num_classes=120,
    batch=8,
    epochs=1,
    d=32,
    micro_batches=2,
    max_steps=12,
    density=0.05,
    density_warmup=0,
)


@pytest.fixture(autouse=True)
def _glyphs():
    try:
        from toolkit.data import load_glyphs

        load_glyphs("train", 1)
    except DataMissing as missing:
        pytest.skip(str(missing))


def run(recipe):
    return experiment(recipe, 0, torch.device("cpu"))


def test_one_process_trains_all_parts():
    metrics = run(replace(SMALL, arms=("knn", "full"), rates=(1.0, 1.0), half=True))
    assert metrics["knn/loss"] < 30
    assert 0 < metrics["knn/coverage"] <= 1
    assert metrics["full/coverage"] == pytest.approx(1)
    assert 0.05 < metrics["knn/bytes"] < 0.25
    assert 0 <= metrics["knn/accuracy"] <= 1


def test_two_ranks_agree_on_every_metric():
    first, second = launch(run, 2, SMALL)
    assert {k: v for k, v in first.items() if "seconds" not in k} == pytest.approx(
        {k: v for k, v in second.items() if "seconds" not in k}
    )


def test_ranks_learn_what_one_process_learns():
    dense = replace(SMALL, arms=("full",), density=1.0, max_steps=6, micro_batches=1)
    alone = run(replace(dense, batch=16))
    together = launch(run, 2, dense)[0]
    assert together["full/loss"] == pytest.approx(alone["full/loss"], rel=1e-3)


def test_a_folder_of_images_is_read(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog", "fox"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(folder / f"{i}.png")
    recipe = replace(
        SMALL,
        backbone="resnet50",
        data=str(tmp_path),
        num_classes=3,
        batch=4,
        rho=1.0,
        max_steps=1,
        density=1.0,
    )
    with pytest.raises(ValueError, match="has 3 classes"):
        run(replace(recipe, num_classes=4))
    with pytest.raises(ValueError, match="resnet50"):
        run(replace(recipe, backbone="conv"))
    assert 0 <= run(recipe)["knn/accuracy"] <= 1


def test_unknown_arms_and_backbones_are_refused():
    with pytest.raises(ValueError, match="no arm"):
        run(replace(SMALL, arms=("hashed",)))
    with pytest.raises(ValueError, match="backbone"):
        run(replace(SMALL, backbone="vit"))
