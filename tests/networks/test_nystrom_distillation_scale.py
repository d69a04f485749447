"""The paper's size: CIFAR's binary files, folders, two processes, resuming."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.learn.distributed import launch
from toolkit.learn.resnet import cifar_resnet18
from toolkit.networks import nystrom_distillation as nd
from toolkit.networks.nystrom_distillation import scale

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Forty made images in CIFAR-10's format, ten to test; tiny networks, three epochs."""
    root = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    for number in range(1, 6):
        rows = rng.integers(0, 256, (8, 3073), dtype=np.uint8)
        rows[:, 0] = (np.arange(8) + 8 * (number - 1)) % 10
        rows.tofile(root / f"data_batch_{number}.bin")
    rows = rng.integers(0, 256, (10, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(10)
    rows.tofile(root / "test_batch.bin")
    return nd.PaperRecipe(
        arms=("kda",),
        data="cifar10",
        folder=str(root),
        classes=10,
        teacher="half_resnet18",
        teacher_file=str(root / "teacher.safetensors"),
        student="half_resnet18",
        epochs=2,
        batch=20,
        warmup=1,
    )


def gathered(steps: int) -> list:
    """The landmarks after each process added its own examples."""
    rank = torch.distributed.get_rank()
    x = torch.arange(24.0).view(8, 3)
    y = torch.tensor([0, 1, 1, 2, 2, 2, 0, 2])
    bank = nd.LandmarkBank(3, 3)
    for step in range(steps):
        bank.update((1 + step) * x[rank::2], y[rank::2])
        centres = bank.end_epoch()
    return [centres.tolist(), bank.counts.tolist()]


def test_landmarks_of_two_processes_are_those_of_one():
    x = torch.arange(24.0).view(8, 3)
    y = torch.tensor([0, 1, 1, 2, 2, 2, 0, 2])
    found = launch(gathered, 2, 2)
    assert found[0] == found[1]
    torch.testing.assert_close(torch.tensor(found[0][0]), 2 * nd.class_landmarks(x, y, 3))
    assert found[0][1] == [2.0, 2.0, 4.0]


def trained(recipe: nd.PaperRecipe) -> list:
    found = nd.run_paper(recipe, 0, CPU)
    return [found["teacher/accuracy"], found["kda/accuracy"]]


def test_training_writes_a_teacher_once_and_two_processes_agree(recipe):
    alone = nd.experiment(recipe, 0, CPU)
    assert set(alone) == {"teacher/accuracy", "kda/accuracy"}
    assert scale.Path(recipe.teacher_file).is_file()
    two = launch(trained, 2, recipe)
    assert two[0] == two[1]
    assert two[0][0] == alone["teacher/accuracy"]


def test_a_resumed_student_ends_where_an_unbroken_one_does(recipe, tmp_path):
    nd.run_paper(recipe, 0, CPU)  # so that the teacher is there
    images = scale.open_images(recipe, CPU)
    teacher = scale.get_teacher(recipe, images, CPU)
    ends = []
    for folder, stops in (("whole", (0,)), ("broken", (1, 0))):
        plan = replace(recipe, checkpoint=str(tmp_path / folder))
        for stop in stops:
            torch.manual_seed(0)
            student = scale.network(recipe.student, 10)
            distiller = nd.Distiller(student, teacher, **scale._sizes(plan, "kda"))
            scale._train(replace(plan, max_epochs=stop), images, distiller, 0, "kda")
        ends.append(distiller.state_dict())
    assert ends[0]["banks.0.centres"].any()
    for name, value in ends[0].items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, ends[1][name], msg=name)


def test_networks_are_the_usual_ones_for_small_images():
    half, whole = (scale.network(name, 10) for name in ("half_resnet18", "resnet18"))
    assert sum(p.numel() for p in whole.parameters()) == sum(
        p.numel() for p in cifar_resnet18(10).parameters()
    )
    assert whole.fc.in_features == 2 * half.fc.in_features == 512
    for name, (width, body) in scale.NETWORKS.items():
        net = scale.network(name, 7).eval()
        taps = nd.Taps(net, "fc", body)
        with torch.no_grad():
            assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
        assert taps.layers["feature"].shape == (1, width)
        assert taps.layers["map"].ndim == 4


def test_crops_are_windows_of_the_padded_image():
    x = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6).to(torch.uint8)
    views = scale.crop_and_mirror(x, 2, torch.Generator().manual_seed(0))
    for image, view in zip(x, views, strict=True):
        padded = torch.nn.functional.pad(image, (2,) * 4)
        windows = [padded[:, i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
        assert any(torch.equal(view, w) or torch.equal(view, w.flip(2)) for w in windows)


def test_folders_are_read_and_their_classes_counted(recipe, tmp_path):
    for split in ("train", "val"):
        for kind in ("a", "b"):
            place = tmp_path / split / kind
            place.mkdir(parents=True)
            Image.new("RGB", (12, 10), (200, 10, 10)).save(place / "0.png")
    plan = replace(recipe, data=str(tmp_path), classes=2, side=8)
    images = scale.open_images(plan, CPU)
    assert images.train_images.shape == (2, 3, 8, 8)
    assert images.test_labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="2 classes"):
        scale.open_images(replace(plan, classes=3), CPU)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        scale.open_images(replace(plan, data=str(tmp_path / "nowhere")), CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("kernel",)}, "arms are"),
        ({"student": "vgg"}, "networks are"),
        ({"classes": 100}, "10 classes"),
    ],
)
def test_impossible_runs_are_refused(recipe, change, message):
    with pytest.raises(ValueError, match=message):
        nd.run_paper(replace(recipe, **change), 0, CPU)


def test_every_arm_of_the_paper_has_terms():
    for arm in scale.TERMS:
        terms = nd.PaperRecipe().terms(arm)
        assert bool(terms) == (arm != "ce")
    assert nd.PaperRecipe().terms("combo") == (("feature", "kda", 0.04), ("logit", "kda", 0.04))
