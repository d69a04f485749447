"""The paper's size: ResNet-50 encoders, folders of videos and stills, two processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet50

from toolkit.learn.distributed import launch
from toolkit.scenes import lcm
from toolkit.scenes.lcm import scale

CPU = torch.device("cpu")
TINY = lcm.PaperRecipe(
    weights="none",
    key_dim=8,
    value_dim=12,
    width=8,
    crop=32,
    objects=2,
    stills_epochs=1,
    epochs=1,
    max_steps=1,
)


class Small(scale.Encoder):
    """A stand-in for ResNet-50, so that tests of folders take seconds."""

    channels, skip_channels, divisor = 16, (8, 8), 16

    def __init__(self, weights="none", with_masks=False):
        super().__init__()
        self.conv = torch.nn.Conv2d(5 if with_masks else 3, 8, 4, 4)
        self.next = torch.nn.Conv2d(8, 8, 2, 2)
        self.last = torch.nn.Conv2d(8, 16, 2, 2)

    def forward(self, frame, masks=None):
        if masks is not None:
            frame = torch.cat([frame.repeat_interleave(len(masks) // len(frame), 0), masks], 1)
        fine = self.conv(frame).relu()
        middle = self.next(fine).relu()
        return scale.Features(self.last(middle), (middle, fine))


def write_video(root, name, frames=4, objects=(1, 2), size=(48, 60), late=None):
    """Squares that move down; the masks' numbers are those of the objects."""
    for kind in ("JPEGImages/480p", "Annotations/480p"):
        (root / kind / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(name))
    for t in range(frames):
        labels = np.zeros(size, np.uint8)
        for n in objects:
            if late and n == late[0] and t < late[1]:
                continue
            labels[4 + 2 * t : 24 + 2 * t, 28 * (n - 1) + 2 : 28 * n - 2] = n
        picture = rng.integers(0, 90, (*size, 3)).astype(np.uint8)
        picture[labels > 0] += 120
        Image.fromarray(picture).save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg")
        mask = Image.fromarray(labels, mode="P")
        mask.putpalette(scale.palette())
        mask.save(root / f"Annotations/480p/{name}/{t:05d}.png")


@pytest.fixture
def davis(tmp_path):
    root = tmp_path / "DAVIS"
    for name in ("bear", "camel", "dog", "swan"):
        write_video(root, name)
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("bear\ncamel\n")
    (lists / "val.txt").write_text("dog\nswan\n")
    return root


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(scale, "ResNetEncoder", Small)


# --- the network --------------------------------------------------------------------------------


@pytest.mark.slow
def test_encoders_are_resnet50_up_to_stride_16(tmp_path):
    torch.manual_seed(0)
    whole = resnet50()
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    encoder = scale.ResNetEncoder(str(tmp_path / "weights.pt")).eval()
    whole.eval()
    x = torch.rand(1, 3, 32, 48)
    y = (x - torch.tensor(scale.MEAN)[:, None, None]) / torch.tensor(scale.DEVIATION)[:, None, None]
    with torch.no_grad():
        found = encoder(x)
        y = whole.maxpool(whole.relu(whole.bn1(whole.conv1(y))))
        fine = whole.layer1(y)
        middle = whole.layer2(fine)
        grid = whole.layer3(middle)
    for a, b in zip((found.grid, *found.skips), (grid, middle, fine), strict=True):
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-3)
    assert not any("running" in name for name, _ in encoder.named_parameters())


@pytest.mark.slow
def test_the_papers_network_has_stms_sizes():
    model = scale.paper_network(lcm.PaperRecipe(weights="none"))
    assert model.query_key.weight.shape == (128, 1024, 3, 3)
    assert model.memory_value.weight.shape == (512, 1024, 3, 3)
    assert model.memory_encoder.mask_stem.weight.shape == (64, 2, 7, 7)
    frames, mask = torch.rand(1, 2, 3, 40, 50), torch.zeros(1, 2, 40, 50)
    mask[:, 0, 4:20, 4:20] = mask[:, 1, 22:38, 22:48] = 1
    with torch.no_grad():
        assert model.propagate(frames, mask).shape == (1, 2, 3, 40, 50)
        small, masks = frames[:, 0, :, :32, :48], mask[:, :, :32, :48]
        assert model.memorize(small, masks).values.shape == (2, 512, 1, 2, 3)


# --- clips --------------------------------------------------------------------------------------


def test_videos_are_found_with_their_masks(davis):
    videos = scale.davis_videos(replace(TINY, davis=str(davis)), "val")
    assert [video.name for video in videos] == ["dog", "swan"]
    assert all(len(video.pictures) == 4 and None not in video.masks for video in videos)
    assert scale.read_mask(videos[0].masks[0]).unique().tolist() == [0, 1, 2]
    assert scale.read_mask(videos[0].masks[0], one=True).unique().tolist() == [0, 1]
    with pytest.raises(FileNotFoundError, match=r"test\.txt"):
        scale.davis_videos(replace(TINY, davis=str(davis)), "test")
    with pytest.raises(FileNotFoundError, match="cow"):
        scale.find_videos(davis, ["cow"])


def test_skips_grow_to_their_limit(davis):
    data = scale.VideoClips(
        replace(TINY, max_skip=12), scale.davis_videos(replace(TINY, davis=str(davis)), "train"), 0
    )
    skips = []
    for data.epoch in (0, 19, 20, 45, 200):
        skips.append(data.skip)
    assert skips == [0, 0, 5, 10, 12]


@pytest.mark.parametrize("skip", [0, 3, 50])
def test_times_are_ordered_and_within_the_video(skip):
    for number in range(50):
        times = scale.draw_times(9, 3, skip, np.random.default_rng(number))
        gaps = np.diff(times)
        assert times[0] >= 0
        assert times[-1] < 9
        assert gaps.min() >= 1
        assert gaps.max() <= skip + 1


def test_a_clip_keeps_masks_on_their_pictures(davis):
    videos = scale.davis_videos(replace(TINY, davis=str(davis)), "train")
    frames, masks = scale.VideoClips(TINY, videos, 0)[0]
    assert frames.shape == (3, 3, 32, 32)
    assert masks.shape[1:] == (3, 32, 32)
    assert masks.sum(dim=0).max() <= 1
    on = masks.sum(dim=0).bool()
    assert frames.mean(1)[on].mean() > frames.mean(1)[~on].mean() + 0.2


def test_stills_become_clips(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    picture, labels = np.full((50, 60, 3), 30, np.uint8), np.zeros((50, 60), np.uint8)
    picture[15:35, 15:45], labels[15:35, 15:45] = 200, 1
    Image.fromarray(picture).save(tmp_path / "images" / "a.jpg")
    Image.fromarray(labels).save(tmp_path / "masks" / "a.png")
    frames, masks = scale.StillClips(replace(TINY, stills=str(tmp_path)), 0)[0]
    assert frames.shape == (3, 3, 32, 32)
    assert masks.shape == (1, 3, 32, 32)
    assert not torch.equal(masks[0, 0], masks[0, 1])
    on = masks[0].bool()
    assert frames.mean(1)[on].mean() > frames.mean(1)[~on].mean() + 0.3
    with pytest.raises(FileNotFoundError, match="masks"):
        scale.StillClips(replace(TINY, stills=str(tmp_path / "images")), 0)


def test_a_first_frame_without_an_object_is_not_trained_on():
    masks = torch.zeros(2, 3, 8, 8)
    masks[0] = 1
    assert not scale.first_frame_shows_all(masks)
    assert not scale.first_frame_shows_all(masks[:0])
    assert scale.first_frame_shows_all(masks[:1])


# --- runs ---------------------------------------------------------------------------------------


def test_the_papers_recipe_trains_scores_and_writes_masks(davis, small, tmp_path):
    recipe = replace(TINY, davis=str(davis), masks=str(tmp_path / "out"), folder=str(tmp_path))
    found = lcm.experiment(recipe, 0, CPU)
    assert {"lcm/loss", "lcm/J", "lcm/F", "lcm/J&F", "lcm/J-decay"} <= set(found)
    assert 0 <= found["lcm/J&F"] <= 1
    written = Image.open(tmp_path / "out" / "dog" / "00003.png")
    assert written.mode == "P"
    assert written.size == (60, 48)
    again = lcm.experiment(recipe, 0, CPU)  # resumes after its last epoch
    assert again["lcm/J"] == pytest.approx(found["lcm/J"])


def test_objects_may_enter_later(davis, small):
    write_video(davis, "late", late=(2, 2))
    video = scale.find_videos(davis, ["late"])[0]
    found = scale.segment_video(TINY, scale.paper_network(TINY).eval(), video, CPU)
    truth = torch.stack([scale.read_mask(path) for path in video.masks])
    assert torch.equal(found[0], truth[0].byte())
    assert 2 not in found[:2]
    bare = replace(video, masks=(None,) * 4)
    with pytest.raises(ValueError, match="late"):
        scale.segment_video(TINY, scale.paper_network(TINY), bare, CPU)


def test_a_perfect_prediction_scores_one(davis, small, monkeypatch):
    def truth(recipe, model, video, device):
        paths = scale.find_videos(davis, [video.name])[0].masks
        return torch.stack([scale.read_mask(path) for path in paths]).byte()

    monkeypatch.setattr(scale, "segment_video", truth)
    found = scale.evaluate(replace(TINY, davis=str(davis)), scale.paper_network(TINY), CPU)
    assert found["J"] == found["F"] == found["J&F"] == 1


def test_data_must_be_named():
    with pytest.raises(ValueError, match="name data"):
        lcm.experiment(TINY, 0, CPU)
    with pytest.raises(ValueError, match="one arm"):
        lcm.experiment(replace(TINY, davis="x", arms=("a", "b")), 0, CPU)


def test_colours_are_those_of_the_benchmarks():
    assert scale.palette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


def two_processes(root):
    scale.ResNetEncoder = Small
    return scale.run_paper(replace(TINY, davis=root), 0, CPU)


@pytest.mark.slow
def test_two_processes_train_one_network(davis):
    first, second = launch(two_processes, 2, str(davis))
    assert first["lcm/J&F"] == pytest.approx(second["lcm/J&F"])
    assert first["lcm/loss"] == pytest.approx(second["lcm/loss"])
