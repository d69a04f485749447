"""The paper's size on one and two processes, on the shop and on a folder in the schema."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from toolkit.data import load_emoji_shop, simulate_clicks
from toolkit.learn.distributed import launch
from toolkit.search import virtual_id
from toolkit.search.virtual_id import scale

CPU = torch.device("cpu")
TINY = virtual_id.PaperRecipe(
    products=10,
    network="small",
    clusters=10,
    walks=4,
    length=10,
    rank=16,
    dim=16,
    batch=8,
    epochs=1,
    side=32,
    workers=0,
    max_steps=2,
)


@pytest.mark.slow
def test_trains_on_the_shop_and_repeats():
    one, two = (virtual_id.experiment(TINY, 0, CPU) for _ in range(2))
    assert one == two
    assert 0 < one["joint/recall"] <= 1
    assert np.isfinite(one["joint/loss"])
    assert 5 <= one["joint/ids"] <= 10


def _on_a_rank() -> dict[str, float]:
    return scale.run_paper(replace(TINY, batch=4), 0, CPU)


@pytest.mark.slow
def test_two_processes_agree_with_each_other():
    one, other = launch(_on_a_rank, 2)
    assert one == other
    assert np.isfinite(one["joint/loss"])


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch, run_until_a_checkpoint):
    recipe = replace(TINY, epochs=2, max_steps=0, rho=0.5, checkpoint=str(tmp_path))
    run_until_a_checkpoint(scale, lambda: virtual_id.experiment(recipe, 0, CPU))
    first = torch.load(tmp_path / "joint-0.pt", weights_only=True)
    monkeypatch.setattr(scale, "virtual_ids", None)  # the kept ones serve
    assert np.isfinite(virtual_id.experiment(recipe, 0, CPU)["joint/loss"])
    second = torch.load(tmp_path / "joint-0.pt", weights_only=True)
    assert (first["done"], second["done"]) == (1, 2)
    steps = [state["parts"]["rate"]["last_epoch"] for state in (first, second)]
    assert steps[1] == 2 * steps[0]
    rows = [state["parts"]["model"]["head.weight"] for state in (first, second)]
    assert rows[0].shape == (10, 16)
    assert not torch.equal(*rows)


def write_folder(root):
    """The shop's first products in the documented schema, the log in two shards."""
    shop, log = load_emoji_shop(10), simulate_clicks(10).to_frame()
    (root / "log").mkdir()
    pictures = {
        "items": shop.catalogue,
        "queries": shop.queries["train"].crop,
        "test": shop.queries["test"].crop[:6],
    }
    for name, images in pictures.items():
        (root / name).mkdir()
        paths = [f"{name}/{i}.png" for i in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / path)
        table = pd.DataFrame({"path": paths})
        if name == "items":
            table["leaf"], table["product"] = shop.leaf[shop.product], shop.product
        if name == "test":
            table["product"] = shop.queries["test"].product[:6]
        table.to_csv(root / f"{name}.csv", index_label=name)
    for column in ("shown", "clicks"):
        log[column] = [" ".join(map(str, row)) for row in log[column]]
    log[:100].to_csv(root / "log" / "a.csv", index=False)
    log[100:].to_csv(root / "log" / "b.csv", index=False)


@pytest.mark.slow
def test_folder_in_the_schema_is_read_like_the_shop(tmp_path):
    write_folder(tmp_path)
    folder = scale.open_source(replace(TINY, data=str(tmp_path)), 0)
    shop = scale.open_source(TINY, 0)
    one, other = scale._whole(folder.logs), scale._whole(shop.logs)
    assert len(folder.logs) == 2
    for name, column in vars(one).items():
        assert torch.equal(column, getattr(other, name)), name
    assert torch.equal(folder.item(7), shop.item(7))
    assert torch.equal(folder.test(3), shop.test(3))
    found = virtual_id.experiment(replace(TINY, data=str(tmp_path)), 0, CPU)
    assert 0 <= found["joint/recall"] <= 1


def test_graph_of_shards_is_the_graph_of_the_log():
    log = simulate_clicks(10)
    leaf = load_emoji_shop(10).leaf.repeat_interleave(6)
    whole = virtual_id.coclick_graph(log, leaf=leaf)
    shards = [
        type(log)(*(c[part] for c in vars(log).values())) for part in (slice(90), slice(90, None))
    ]
    added = sum(virtual_id.coclick_graph(shard, leaf=leaf) for shard in shards)
    assert abs(whole - added).max() < 1e-9


@pytest.mark.parametrize("wrong", [{"arms": ("leaf",)}, {"network": "vit"}, {"batch": 0}])
def test_recipe_refuses_what_cannot_run(wrong):
    with pytest.raises(ValueError, match=r"arm|network|batch"):
        replace(TINY, **wrong)


def test_folder_without_a_log_is_refused(tmp_path):
    for name in ("items", "queries"):
        pd.DataFrame({"path": [], "leaf": []}).to_csv(tmp_path / f"{name}.csv")
    with pytest.raises(FileNotFoundError, match="no log"):
        scale.open_source(replace(TINY, data=str(tmp_path)), 0)


def test_too_large_a_batch_is_refused():
    with pytest.raises(ValueError, match="no batch of 9999"):
        virtual_id.experiment(replace(TINY, batch=9999), 0, CPU)
