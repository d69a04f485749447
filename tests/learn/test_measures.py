import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from toolkit.learn.augment import random_affine
from toolkit.learn.metrics import accuracy, calibration_error, recall_at_k
from toolkit.learn.probes import knn_probe, linear_probe


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_accuracy_keeps_leading_axes():
    logits = torch.eye(3).expand(2, 3, 3)
    y = torch.stack([torch.arange(3), torch.tensor([0, 0, 0])])
    assert accuracy(logits, y).tolist() == pytest.approx([1, 1 / 3])


def test_calibration_error_of_a_constant_confidence():
    probs = torch.tensor([[0.8, 0.2]]).expand(10, 2)
    y = torch.tensor([0] * 5 + [1] * 5)
    assert calibration_error(probs, y) == pytest.approx(0.3, abs=1e-6)
    with pytest.raises(ValueError, match="logits"):
        calibration_error(torch.full((10, 2), 3.0), y)


def test_calibration_error_agrees_with_a_loop():
    probs = torch.softmax(torch.randn(500, 4, generator=seeded()), dim=1)
    y = torch.randint(4, (500,), generator=seeded(1))
    confidence, guess = probs.max(dim=1)
    total = 0.0
    for b in range(10):
        inside = (confidence >= b / 10) & (confidence < (b + 1) / 10)
        if inside.any():
            gap = (guess[inside] == y[inside]).float().mean() - confidence[inside].mean()
            total += inside.float().mean() * gap.abs()
    assert calibration_error(probs, y, bins=10) == pytest.approx(float(total), abs=1e-5)


def test_recall_counts_queries_with_a_hit_among_the_first_k():
    gallery = torch.eye(4)
    queries = torch.tensor([[1.0, 0.5, 0, 0], [0, 0, 1.0, 0.5]])
    found = recall_at_k(queries, gallery, torch.tensor([1, 2]), torch.arange(4), ks=(1, 2))
    assert found == {1: 0.5, 2: 1.0}
    with pytest.raises(ValueError, match=r"1…4"):
        recall_at_k(queries, gallery, torch.tensor([1, 2]), torch.arange(4), ks=(5,))


def test_the_knn_probe_with_one_neighbour_agrees_with_scikit_learn(digits):
    x, y = digits
    x = F.normalize(x, dim=1)
    reference = KNeighborsClassifier(1).fit(x[:1000].numpy(), y[:1000].numpy())
    found = knn_probe(x[:1000], y[:1000], x[1000:], k=1)
    assert (found.numpy() == reference.predict(x[1000:].numpy())).mean() > 0.995


def test_probes_read_digits(digits):
    x, y = digits
    for labels in (
        knn_probe(x[:1000], y[:1000], x[1000:]),
        linear_probe(x[:1000], y[:1000], x[1000:], kind="ridge"),
    ):
        assert (labels == y[1000:]).float().mean() > 0.88


def test_the_logistic_probe_reads_digits(digits):
    x, y = digits
    labels = linear_probe(x[:500], y[:500], x[1000:])
    assert (labels == y[1000:]).float().mean() > 0.85


def test_bad_probes_are_refused(digits):
    x, y = digits
    with pytest.raises(ValueError, match="k=0"):
        knn_probe(x, y, x, k=0)
    with pytest.raises(ValueError, match="kind"):
        linear_probe(x, y, x, kind="svm")


def test_no_amounts_leave_the_images_alone():
    x = torch.rand(3, 2, 5, 7, generator=seeded())
    torch.testing.assert_close(random_affine(x, generator=seeded()), x)


def test_every_example_gets_its_own_draw():
    x = torch.rand(1, 1, 9, 9, generator=seeded()).expand(4, 1, 9, 9)
    turned = random_affine(x, degrees=30, shift=0.1, generator=seeded())
    assert all((turned[0] - turned[i]).abs().max() > 0.05 for i in range(1, 4))


def test_a_rotation_keeps_the_shape_of_a_wide_image():
    x = torch.zeros(1, 1, 21, 41)
    x[0, 0, 10, 20] = 1
    spun = random_affine(x, degrees=90, generator=seeded(3))
    assert spun[0, 0, 10, 20] > 0.9


def test_flips_mirror_about_half_of_the_images():
    x = torch.arange(8.0).expand(200, 1, 1, 8)
    flipped = random_affine(x, flip=True, generator=seeded())[:, 0, 0, 0] > 4
    assert 70 < int(flipped.sum()) < 130


def test_negative_amounts_are_refused():
    with pytest.raises(ValueError, match="degrees"):
        random_affine(torch.zeros(1, 1, 2, 2), degrees=-1, generator=seeded())
