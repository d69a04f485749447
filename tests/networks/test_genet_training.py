"""Grafted stages, the studies' determinism and results, and the paper's size in small."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from toolkit.learn.distributed import launch
from toolkit.networks import genet
from toolkit.networks.genet import training
from toolkit.networks.structures import build

CPU = torch.device("cpu")
FEW = replace(
    genet.QUICK,
    arms=("BL-BL-BL",),
    rates=(0.4,),
    steps=2,
    batch=16,
    master_steps=2,
    variants=1,
    distil_steps=2,
    judged=50,
    rank_steps=2,
    rank_batch=8,
)


def teacher_of(stage, small_data):
    net = build(genet.SPACE.master, 10).eval().requires_grad_(False)
    return training.Teacher.of(net, stage, FEW, 0, small_data[1])


# --- LLR's variants -----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", genet.SPACE.stages)
def test_a_grafted_net_keeps_the_rest_of_the_master_frozen(stage, small_data):
    teacher = teacher_of(stage, small_data)
    before = {name: value.clone() for name, value in teacher.net.state_dict().items()}
    value = genet.distil(teacher, genet.Option("XX", 1, 1.5), FEW, 0)
    assert 0 <= value <= 1
    after = teacher.net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None for p in teacher.net.parameters())
    assert not any(m.training for m in teacher.net.modules())


def test_only_the_stage_and_the_layer_after_it_are_new(small_data):
    teacher = teacher_of(2, small_data)
    new, after, rest = training._grafted(teacher, genet.Option("DW", 0, 1.5))
    assert sum(p.numel() for p in new.parameters()) > 0
    assert after.convs[0].conv.in_channels == 36
    kept = {id(p) for p in teacher.net.parameters()}
    assert all(id(p) in kept for p in rest.parameters())
    assert not any(id(p) in kept for p in (*new.parameters(), *after.parameters()))


def test_the_masters_own_weights_grafted_back_are_the_master(small_data):
    teacher = teacher_of(2, small_data)
    new, after, rest = training._grafted(teacher, genet.Option("BL", 0, 1.0))
    new.load_state_dict(teacher.net.blocks[2].state_dict())
    after.load_state_dict(teacher.net.blocks[3][0].state_dict())
    inner, _, wanted = teacher.batches[0]
    with torch.no_grad():
        out = after.eval()(new.eval()(inner))
    torch.testing.assert_close(out, wanted)
    x = small_data[1].x
    with torch.no_grad():
        logits = rest(after(new(teacher.judged)))
        torch.testing.assert_close(logits, teacher.net(x), atol=1e-5, rtol=1e-4)


def test_every_variant_sees_the_same_batches(small_data):
    one, two = (teacher_of(1, small_data) for _ in range(2))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(one.batches, two.batches, strict=True))


def test_variants_are_drawn_without_replacement():
    drawn = genet.draw_variants(genet.SPACE, 1, 15, np.random.default_rng(0))
    assert len(set(drawn)) == 45
    with pytest.raises(ValueError, match="has 15 options"):
        genet.draw_variants(genet.SPACE, 1, 16, np.random.default_rng(0))


@pytest.mark.slow
def test_the_llr_study_repeats_and_names_its_variants(small_data):
    one, two = (genet.llr_study(FEW, 3, CPU) for _ in range(2))
    assert one == two
    records = genet.variant_records(pd.Series(one))
    assert len(records) == 9
    assert set(records["kind"]) == set(genet.TYPES)


# --- placements and ranks -----------------------------------------------------------------------


def test_placements_and_structures_repeat(small_data):
    one, two = (genet.experiment(FEW, 1, CPU) for _ in range(2))
    assert one == two
    assert set(one) == {"BL-BL-BL/accuracy", "BL-BL-BL/val"}
    single = genet.train_structure(
        replace(FEW, structure=genet.PLACEMENTS["BL-BL-BL"], rate=0.4), 1, CPU
    )
    assert single["accuracy"] == one["BL-BL-BL/accuracy"]
    with pytest.raises(ValueError, match="arms are"):
        genet.experiment(replace(FEW, arms=("XX",)), 1, CPU)
    with pytest.raises(ValueError, match="one rate an arm"):
        genet.experiment(replace(FEW, rates=()), 1, CPU)


def test_ranks_are_those_over_the_start(small_data):
    usual, small = (genet.rank_study(replace(FEW, init=init), 0, CPU) for init in (1.0, 0.1))
    assert usual["stage1/entropy_init"] == pytest.approx(small["stage1/entropy_init"], rel=1e-4)
    unmoved = genet.rank_study(replace(FEW, rank_rate=0.0), 0, CPU)
    assert unmoved["stage3/entropy"] == 1


# --- the paper's size ---------------------------------------------------------------------------

TINY = genet.PaperRecipe(
    resolution=32, epochs=1, batch=2, warmup=0, max_steps=1, workers=0, batches=(1, 2), rounds=1
)


def write_images(folder, count=4):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return str(folder)


def ranks_run(folder):
    return genet.experiment(replace(TINY, data=folder), 0, CPU)


@pytest.mark.slow
def test_two_processes_train_and_agree(tmp_path):
    folder = write_images(tmp_path)
    one, two = launch(ranks_run, 2, folder)
    assert one["small/top1"] == two["small/top1"]
    assert 0 <= one["small/top1"] <= 1
    assert np.isfinite(one["small/loss"])


@pytest.mark.slow
def test_a_checkpoint_is_written_and_read(tmp_path):
    folder = write_images(tmp_path / "images")
    recipe = replace(TINY, data=folder, folder=str(tmp_path / "kept"), max_steps=0)
    first = genet.experiment(recipe, 0, CPU)
    assert (tmp_path / "kept" / "genet_small.pt").is_file()
    assert genet.experiment(recipe, 0, CPU)["small/top1"] == first["small/top1"]


@pytest.mark.slow
def test_the_latency_sweep_names_every_setting():
    times = genet.experiment(replace(TINY, task="latency"), 0, CPU)
    assert {name for name in times if "@" in name} == {
        f"small/ms@float32-{layout}-{net}@{batch}"
        for layout in ("nchw", "nhwc")
        for net in ("plain", "fused")
        for batch in (1, 2)
    }
    assert min(times.values()) > 0


def test_paper_recipes_refuse_what_cannot_run(tmp_path):
    for changes in (dict(task="dance"), dict(arms=("huge",)), dict(epochs=0)):
        with pytest.raises(ValueError, match=r"one of|arms are|at least 1"):
            replace(TINY, **changes)
    with pytest.raises(FileNotFoundError, match="train"):
        genet.experiment(replace(TINY, data=str(tmp_path)), 0, CPU)
    with pytest.raises(ValueError, match="even size"):
        genet.experiment(replace(TINY, data=write_images(tmp_path), batch=3), 0, CPU)


def test_batch_norms_of_a_fresh_stage_follow_the_few_steps(small_data):
    new, after, _ = training._grafted(teacher_of(1, small_data), genet.Option("XX", 0, 1.0))
    fresh = [m for m in (*new.modules(), *after.modules()) if isinstance(m, nn.BatchNorm2d)]
    assert {m.momentum for m in fresh} == {0.25}
