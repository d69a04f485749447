"""The paper's size: networks, colours, folders of images and videos, two processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18
from torchvision.transforms.v2 import functional as V

from toolkit.data import encode_h264
from toolkit.learn.distributed import launch
from toolkit.representation import mosi
from toolkit.representation.mosi import scale
from toolkit.representation.mosi.augment import jitter_colours, luma, shift_hue

CPU = torch.device("cpu")
TINY = mosi.PaperRecipe(
    network="r2plus1d10",
    short=(40, 48),
    source=40,
    crop=16,
    frames=4,
    batch=1,
    repeat=2,
    epochs=1,
    warmup=0,
    tuned_epochs=1,
    tuned_batch=2,
    tuned_short=(20, 24),
    stride=2,
    views=2,
    max_steps=1,
)


def rng(number=0):
    return torch.Generator().manual_seed(number)


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


# --- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "whole"), [("r3d_18", r3d_18), ("r2plus1d_18", r2plus1d_18), ("mc3_18", mc3_18)]
)
def test_backbones_are_torchvisions(name, whole):
    net = scale.NETWORKS[name]()
    assert parameters(net) + 512 * 400 + 400 == parameters(whole(num_classes=400))
    if name == "r3d_18":
        assert parameters(net) + 512 * 400 + 400 == 33_371_472


def test_r2d3d_convolves_in_time_in_its_last_two_stages_only():
    net = scale.r2d3d18()
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv3d)]
    in_time = [conv.out_channels for conv in convs if conv.kernel_size[0] == 3]
    assert in_time == [256] * 8
    assert next(c.out_channels for c in convs if c.kernel_size[0] == 1) == 64
    assert len([conv for conv in convs if conv.kernel_size != (1, 1, 1)]) == 17  # and the head: 18
    with torch.no_grad():
        maps = net.eval()(torch.zeros(1, 3, 16, 112, 112))
    assert maps.shape == (1, 256, 4, 4, 4)
    assert net.features == 256


def test_r2plus1d10_has_one_block_a_stage_and_512_channels():
    net = scale.NETWORKS["r2plus1d10"]()
    assert net.features == 512
    assert [len(stage) for stage in net[1:]] == [1, 1, 1, 1]
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 8, 32, 32)).shape[1] == 512


# --- colours ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [-0.25, 0.1, 0.5])
def test_the_hue_turns_as_in_torchvision(turns):
    picture = torch.rand(3, 12, 12, generator=rng())
    mine = shift_hue(picture[None, :, None], torch.full((1, 1, 1, 1, 1), turns))[0, :, 0]
    assert torch.allclose(mine, V.adjust_hue(picture, turns), atol=1e-5)


def test_colours_change_in_every_frame_or_once_a_clip():
    clips = torch.rand(6, 3, 1, 8, 8, generator=rng()).expand(6, 3, 5, 8, 8)
    released = jitter_colours(clips, rng(1), grey=0.0)
    assert (released.diff(dim=2).abs().amax(dim=(1, 2, 3, 4)) > 1e-3).all()
    consistent = jitter_colours(clips, rng(1), grey=0.0, consistent=True)
    assert consistent.diff(dim=2).abs().max() == 0
    assert (consistent != clips).any()
    assert torch.equal(jitter_colours(clips, rng(1), 0.0, 0.0, 0.0), clips)


def test_grey_is_grey_and_hue_on_grey_does_nothing():
    clips = torch.rand(4, 3, 2, 6, 6, generator=rng())
    grey = jitter_colours(clips, rng(), grey=1.0)
    assert grey.std(dim=1).max() < 1e-6
    flat = luma(clips).expand_as(clips)
    assert torch.allclose(shift_hue(flat, torch.rand(4, 1, 1, 1, 1, generator=rng())), flat)
    with pytest.raises(ValueError, match="hue"):
        jitter_colours(clips, rng(), hue=0.7)


# --- folders ------------------------------------------------------------------------------------


def write_folders(root):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("left", "right"):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(2):
                frames = random.integers(0, 256, (9, 32, 40, 3), dtype=np.uint8)
                (place / f"{i}.mp4").write_bytes(encode_h264(frames))
    Image.fromarray(random.integers(0, 256, (60, 50, 3), dtype=np.uint8)).save(root / "still.png")
    return replace(TINY, data=str(root), finetune=str(root))


def test_stills_come_from_images_and_from_random_frames(tmp_path):
    recipe = write_folders(tmp_path)
    stills = scale.Stills(recipe, 0)
    assert len(stills.files) == 9
    assert len(stills) == 18
    for index in range(9):
        assert stills[index].shape == (3, 40, 40)
        assert stills[index].dtype == torch.uint8
        assert torch.equal(stills[index], stills[index])
    assert not torch.equal(stills[0], stills[9])  # the same file again: another square or frame


def test_one_step_makes_all_classes_of_every_image(tmp_path):
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=rng())
    pool = mosi.MotionClass()
    clips, labels = scale.pretext_step(TINY, images, pool, rng())
    assert clips.shape == (18, 3, 4, 16, 16)
    assert labels.bincount().sum() == 18
    full = mosi.MotionClass(2, decoupled=False)
    clips, labels = scale.pretext_step(replace(TINY, heads="separate"), images, full, rng())
    assert clips.shape == (50, 3, 4, 16, 16)
    assert labels.shape == (50, 2)


def test_the_rate_rises_from_a_tenth_and_falls_to_zero():
    assert scale.warmup(0, 100, 10) == pytest.approx(0.1)
    assert scale.warmup(10, 100, 10) == 1
    assert scale.warmup(55, 100, 10) == pytest.approx(0.5)
    assert scale.warmup(100, 100, 10) == pytest.approx(0)


def rank_runs(recipe):
    results = mosi.experiment(recipe, 0, CPU)
    return {name: float(value) for name, value in results.items()}


@pytest.mark.slow
@pytest.mark.parametrize("network", ["r2plus1d10", "r2d3d18"])
def test_two_processes_pre_train_fine_tune_and_agree(tmp_path, network):
    recipe = replace(write_folders(tmp_path), network=network)
    first, second = launch(rank_runs, 2, recipe)
    assert first == second
    assert first.keys() == {"mosi/loss", "mosi/accuracy", "mosi/top1"}
    assert all(np.isfinite(value) for value in first.values())
    assert 0 <= first["mosi/top1"] <= 1


@pytest.mark.slow
def test_a_checkpoint_is_taken_up_again(tmp_path):
    recipe = replace(write_folders(tmp_path), finetune="", folder=str(tmp_path / "kept"), epochs=2)
    recipe = replace(recipe, heads="separate", max_steps=0, repeat=1, network="r3d_18")
    once = mosi.experiment(recipe, 0, CPU)
    assert (tmp_path / "kept" / "mosi.pt").is_file()
    assert not list((tmp_path / "kept").glob("*.tmp"))
    again = mosi.experiment(replace(recipe, epochs=3), 0, CPU)  # one more epoch only
    assert np.isfinite(again["mosi/loss"])
    assert again != once


def test_what_cannot_run_is_refused(tmp_path):
    for change, message in (
        ({"network": "resnet"}, "network"),
        ({"arms": ("rotation",)}, "arms"),
        ({"heads": "two"}, "heads"),
        ({"source": 400}, "source"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(mosi.PaperRecipe(), **change)
    with pytest.raises(ValueError, match="name a folder"):
        mosi.experiment(mosi.PaperRecipe(), 0, CPU)
    with pytest.raises(FileNotFoundError, match="no image or video"):
        mosi.experiment(replace(TINY, data=str(tmp_path)), 0, CPU)
    with pytest.raises(FileNotFoundError, match="folder of videos"):
        mosi.experiment(replace(TINY, arms=("scratch",), finetune=str(tmp_path)), 0, CPU)
