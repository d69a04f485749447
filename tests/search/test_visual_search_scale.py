"""The paper profile on a small folder, with one process and with two."""

import csv
from dataclasses import replace

import pytest
import torch
from PIL import Image

from toolkit.learn.distributed import launch
from toolkit.search.visual_search.recipe import PROFILES
from toolkit.search.visual_search.scale import read_log, train_at_scale
from toolkit.search.visual_search.training import experiment


@pytest.fixture
def folder(tmp_path):
    """Six photographs, eight listings and a log."""
    generator = torch.Generator().manual_seed(0)
    for kind, count in (("queries", 6), ("listings", 8)):
        (tmp_path / kind).mkdir()
        for n in range(count):
            pixels = torch.randint(0, 256, (40, 40, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / kind / f"{n}.png")
    with (tmp_path / "log.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["query", "shown", "clicks"])
        for n in range(12):
            shown = [f"{(n + j) % 8}.png" for j in range(4)]
            rows.writerow([f"{n % 6}.png", " ".join(shown), str(n % 4)])
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["query", "x0", "y0", "x1", "y1"])
        rows.writerow(["0.png", 0.2, 0.2, 0.8, 0.8])
        rows.writerow(["1.png", 0.1, 0.2, 0.8, 0.9])
    return tmp_path


def small(folder, **changes):
    settings = dict(data=str(folder), backbone="conv", steps=3, batch=4, side=32, box_side=16, d=8)
    return replace(PROFILES["paper"], **(settings | changes))


def run(recipe):
    return train_at_scale(recipe, 0, torch.device("cpu"))


@pytest.mark.slow
def test_two_processes_agree_with_each_other(folder):
    alone = experiment(small(folder), 0, torch.device("cpu"))
    assert 0 < alone["joint/iou"] < 1
    assert alone["joint/loss"] > 0
    first, second = launch(run, 2, small(folder, batch=2))
    assert first["joint/loss"] == second["joint/loss"]
    assert first["joint/iou"] == second["joint/iou"]


@pytest.mark.slow
def test_a_stopped_training_goes_on(folder, tmp_path):
    recipe = small(folder, checkpoint=str(tmp_path / "kept"))
    run(recipe)
    assert (
        run(replace(recipe, steps=3))["joint/loss"] != run(replace(recipe, steps=5))["joint/loss"]
    )


def test_bad_folders_are_named(folder):
    with pytest.raises(ValueError, match="data=FOLDER"):
        run(replace(PROFILES["paper"], data=""))
    with pytest.raises(ValueError, match="backbone"):
        run(small(folder, backbone="vgg"))
    (folder / "log.csv").write_text("query,shown,clicks\n0.png,1.png 2.png,2\n")
    with pytest.raises(ValueError, match="visit 0"):
        read_log(folder)
    (folder / "log.csv").write_text("query,shown,clicks\n../../0.png,1.png 2.png,1\n")
    with pytest.raises(ValueError, match="leaves the folder"):
        read_log(folder)
    (folder / "log.csv").write_text("query,shown\n")
    with pytest.raises(ValueError, match="clicks"):
        read_log(folder)
    (folder / "log.csv").unlink()
    with pytest.raises(ValueError, match=r"no log\.csv"):
        read_log(folder)
