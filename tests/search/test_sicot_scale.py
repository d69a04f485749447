"""The paper's size: tables of products, two processes, resuming."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.learn.distributed import launch
from toolkit.search import sicot
from toolkit.search.sicot import scale

CPU = torch.device("cpu")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Five products in single colours, four images each; a tiny run."""
    root = tmp_path_factory.mktemp("products")
    lines = {"train": [], "val": []}
    for c in range(5):
        for number in range(6):
            name = f"{c}-{number}.png"
            Image.fromarray(np.full((24, 24, 3), 40 * c + number, np.uint8)).save(root / name)
            split = "train" if number < 4 else "val"
            lines[split].append(f"{name},Colour number {c},tone|c{c},class{c}")
    for split, rows in lines.items():
        (root / f"{split}.csv").write_text("image,title,tags,class\n" + "\n".join(rows) + "\n")
    return sicot.PaperRecipe(
        data=str(root),
        network="resnet18",
        d=8,
        d_word=6,
        rank=2,
        min_count=1,
        side=24,
        epochs=2,
        batch=4,
        lr=0.5,
    )


def run(recipe, seed=0):
    return sicot.experiment(recipe, seed, CPU)


def test_titles_and_tags_become_words(recipe):
    rows = scale.read_products(scale.Path(recipe.data, "train.csv"))
    assert rows[0].words == ["tone", "c0", "colour", "number", "0"]
    assert rows[0].label == "class0"


def test_one_process_trains_and_tests_every_arm(recipe):
    found = run(recipe)
    assert set(found) == {f"{a}/{b}" for a in ("ce", "sicot") for b in (*sicot.BUCKETS, "all")}
    assert 0 <= found["sicot/few"] <= 1
    assert np.isnan(found["sicot/many"])
    assert np.isfinite(run(replace(recipe, arms=("sicot",), active=0.8))["sicot/all"])


def test_two_processes_agree(recipe):
    first, second = launch(run, 2, replace(recipe, arms=("sicot",), batch=2, epochs=1))
    assert first["sicot/all"] == second["sicot/all"]


def head_rows(folder):
    state = torch.load(folder / "sicot-0.pt", weights_only=True)
    return state["parts"]["model"]["head.weight"]


def test_a_stopped_run_goes_on_with_all_classes(recipe, tmp_path, run_until_a_checkpoint):
    recipe = replace(recipe, arms=("sicot",), checkpoint=str(tmp_path))
    run_until_a_checkpoint(scale, lambda: run(recipe))
    first = head_rows(tmp_path)
    assert first.shape == (5, 8)
    run(recipe)
    state = torch.load(tmp_path / "sicot-0.pt", weights_only=True)
    assert state["done"] == 2
    assert state["parts"]["rate"]["last_epoch"] == 10
    assert not torch.equal(head_rows(tmp_path), first)


def test_what_cannot_run_is_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="arms"):
        run(replace(recipe, arms=("clip",)))
    with pytest.raises(ValueError, match="networks"):
        run(replace(recipe, network="vgg"))
    with pytest.raises(FileNotFoundError, match=r"train\.csv"):
        run(replace(recipe, data=str(tmp_path)))
    (tmp_path / "train.csv").write_text("image,title\na,b\n")
    with pytest.raises(ValueError, match="columns"):
        run(replace(recipe, data=str(tmp_path)))
