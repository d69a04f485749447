"""The paper's size: networks, a folder of videos, two processes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.data import DataError, encode_h264, read_compressed
from toolkit.learn.distributed import launch
from toolkit.representation import context_motion as cm
from toolkit.representation.context_motion import scale

CPU = torch.device("cpu")
TINY = cm.PaperRecipe(
    network="c3d",
    side=32,
    stored=32,
    frames=8,
    stride=1,
    negatives=1,
    width=16,
    layers=(1, 1),
    heads=2,
    projection=(16, 8),
    chunk=64,
    batch=2,
    epochs=1,
    warmup=0,
    tuned_epochs=1,
    views=2,
    max_steps=1,
)


def moving(number, frames=30):
    """A bright square that moves, over noise that does not."""
    rng = np.random.default_rng(number)
    ground = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
    clip = np.repeat(ground[None], frames, axis=0)
    for t in range(frames):
        clip[t, 8:20, 2 + t % 30 : 14 + t % 30] = 230
    return encode_h264(clip)


@pytest.fixture
def folders(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for i in range(count):
            path = tmp_path / "videos" / split / f"class{i % 2}" / f"{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(moving(10 * count + i))
    (tmp_path / "videos" / "train" / "class0" / "short.mp4").write_bytes(moving(1, frames=10))
    return tmp_path


def recipe_for(home: Path) -> cm.PaperRecipe:
    return replace(
        TINY,
        data=str(home / "videos" / "train"),
        finetune=str(home / "videos"),
        cache=str(home / "cache"),
        folder=str(home / "saved"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "features"), [("r2plus1d26", 2048), ("r3d26", 2048)])
def test_backbones_end_in_two_by_seven_by_seven_positions(name, features):
    net = scale.NETWORKS[name]().eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 16, 112, 112)).shape == (1, features, 2, 7, 7)


def test_c3d_ends_in_them_too():
    with torch.no_grad():
        assert scale.C3D().eval()(torch.randn(1, 3, 16, 112, 112)).shape == (1, 512, 2, 7, 7)


def test_motion_and_keyframe_networks_fit_the_heads():
    net = scale.paper_network(TINY).eval()
    with torch.no_grad():
        maps = net.maps(torch.randn(2, 3, 8, 32, 32))
        assert net.motion_queries(maps).shape == (98, 8)
        assert net.motion_keys(torch.randn(2, 2, 8, 56, 56)).shape == (98, 8)
        assert net.context_keys(torch.randn(2, 3, 32, 32)).shape == (2, 8)


def test_videos_are_encoded_once_without_b_frames(folders):
    recipe = recipe_for(folders)
    source = folders / "videos" / "train" / "class0" / "0.mp4"
    target = scale.recode(source, recipe)
    read = read_compressed(target)
    assert "B" not in read.pict_type
    assert min(read.rgb.shape[2:]) == 32
    stamp = target.stat().st_mtime_ns
    assert scale.recode(source, recipe).stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="has 10 frames; 18 are needed"):
        scale.recode(source.with_name("short.mp4"), recipe)
    broken = folders / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(DataError, match="no video that can be decoded"):
        scale.recode(broken, recipe)


def test_short_videos_are_left_out_and_empty_folders_refused(folders):
    recipe = recipe_for(folders)
    assert len(scale.Compressed(recipe, recipe.data, 0)) == 4
    with pytest.raises(FileNotFoundError, match="no video of 18 frames"):
        scale.Compressed(recipe, str(folders / "empty"), 0)
    with pytest.raises(ValueError, match="name a folder"):
        cm.run_paper(TINY, 0, CPU)


def test_an_item_is_clip_keyframe_and_motion(folders):
    recipe = recipe_for(folders)
    path = scale.recode(folders / "videos" / "train" / "class1" / "1.mp4", recipe)
    clip, key, positive, negative = scale.pretext_item(
        recipe, path, torch.Generator().manual_seed(0)
    )
    assert clip.shape == (3, 8, 32, 32)
    assert key.shape == (3, 32, 32)
    assert positive.shape == (2, 8, 56, 56)
    assert negative.shape == (1, 2, 8, 56, 56)
    assert positive.abs().max() <= 1


def test_the_rate_rises_then_falls():
    factors = [scale.rate_factor(epoch, 120, 5) for epoch in range(121)]
    assert factors[0] == 0.01
    assert factors[5] == 1 == max(factors)
    assert factors[120] == pytest.approx(0)


def test_wrong_recipes_are_refused():
    for wrong, message in (
        (dict(network="vgg"), "network must be"),
        (dict(arms=("none",)), "arms must be"),
        (dict(side=200), "must fit"),
    ):
        with pytest.raises(ValueError, match=message):
            cm.PaperRecipe(**wrong)


def both_ranks(home):
    return cm.run_paper(recipe_for(Path(home)), 0, CPU)


@pytest.mark.slow
def test_two_processes_train_retrieve_and_fine_tune(folders):
    recipe = recipe_for(folders)
    for split in ("train", "test"):
        scale.Compressed(recipe, recipe.finetune, 0, split)  # encode before the two race for it
    one, other = launch(both_ranks, 2, str(folders), timeout=240)
    assert one == other
    assert {"both/loss", "both/recall@1", "both/top1"} <= set(one)
    assert 0 <= one["both/top1"] <= 1
    assert (folders / "saved" / "context_motion_both.pt").is_file()
