"""The small experiment, the shop and the paper's scale: fairness, honesty, bad input."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from toolkit.data import cifar
from toolkit.data.emoji_shop import EmojiShop, ShopQueries
from toolkit.learn.distributed import launch
from toolkit.runtime import TUNING_SEEDS
from toolkit.supervision import wemix
from toolkit.supervision.wemix import networks, scale, shop, training

CPU = torch.device("cpu")
TINY = wemix.Recipe(images=20, test_images=30, batch=5, steps=8, draws=3)


@pytest.fixture
def _fashion(monkeypatch):
    """Random images in place of Fashion-MNIST: these tests are about the training."""

    def images(split, index, device):
        generator = torch.Generator().manual_seed(int(split == "test"))
        x = torch.rand(200, 1, 28, 28, generator=generator)
        rows = torch.from_numpy(index.copy())
        return x[rows % 200].to(device), rows.to(device) % 10

    monkeypatch.setattr(training, "_fashion", images)


pytestmark = pytest.mark.usefixtures("_fashion")


def test_results_have_every_arm_and_repeat():
    recipe = replace(TINY, arms=(*wemix.PRESETS, "orig_double", "regmixup", "refine"))
    first, again = wemix.experiment(recipe, 3, CPU), wemix.experiment(recipe, 3, CPU)
    for arm in recipe.arms:
        assert 0 <= first[f"{arm}/error"] <= 1
        assert first[f"{arm}/loss"] == again[f"{arm}/loss"]
    assert {"aug/bias", "aug/bias_error", "aug/gap"} <= set(first)
    assert first["aug/bias"] > 0
    shown = {arm: first[f"{arm}/images"] * 1000 for arm in recipe.arms}
    assert shown["orig"] == shown["aug"] == shown["augdrop"] == shown["refine"] == 40
    assert shown["mixloss"] == shown["orig_double"] == 80
    assert shown["wemix"] == 70


def test_every_method_sees_the_same_images_in_the_same_order():
    task = wemix.fashion_task(TINY, 0, CPU)
    orders = [torch.cat([x for x, _ in wemix.batches(TINY, task, arm, 0)]) for arm in wemix.PRESETS]
    assert all(torch.equal(orders[0], order) for order in orders[1:])
    first_pass = orders[0][:20].flatten(1).unique(dim=0)
    assert len(first_pass) == len(task.x.flatten(1).unique(dim=0))


def test_the_learning_rate_is_the_same_for_every_method_and_never_restarts():
    for arm in (*wemix.PRESETS, "orig_double", "regmixup"):
        factors = [wemix.rate_factor(TINY, arm, t) for t in range(TINY.steps + 1)]
        assert factors[0] == 1
        assert factors[-1] == pytest.approx(0)
        assert (np.diff(factors) < 0).all()
    refined = [wemix.rate_factor(TINY, "refine", t) for t in range(TINY.steps)]
    assert refined[6] > refined[5]  # the control with the warm restart


def test_methods_agree_where_their_plans_do():
    task = wemix.fashion_task(TINY, 0, CPU)
    recipe = replace(TINY, stage1_fraction=1.0)
    for one, other in (("augdrop", "aug"), ("wemix", "mixloss")):
        a, b = (wemix.train(recipe, task, arm, 0)[0] for arm in (one, other))
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    whole = replace(TINY, lam=1.0)
    a, b = (wemix.train(whole, task, arm, 0)[0] for arm in ("mixloss", "orig"))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_no_strength_and_no_mirroring_makes_aug_equal_orig():
    task = wemix.fashion_task(TINY, 0, CPU)
    recipe = replace(TINY, strength=0.0, flip=False)
    a, b = (wemix.train(recipe, task, arm, 0)[0] for arm in ("aug", "orig"))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


def test_the_sum_of_losses_is_mixloss_at_twice_the_rate_without_momentum():
    task = wemix.fashion_task(TINY, 0, CPU)
    plain = replace(TINY, momentum=0.0, weight_decay=0.0)
    summed = wemix.train(plain, task, "regmixup", 0)[0]
    doubled = wemix.train(replace(plain, lr=2 * plain.lr), task, "mixloss", 0)[0]
    for p, q in zip(summed.parameters(), doubled.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_augmentation_is_fresh_at_every_step(monkeypatch):
    seen = []
    step = training.wemix_step

    def spy(model, batch, augment, plan, optimizer, **more):
        return step(
            model,
            batch,
            lambda x, t: seen.append(augment(x, t)[0]) or (x, t),
            plan,
            optimizer,
            **more,
        )

    monkeypatch.setattr(training, "wemix_step", spy)
    task = wemix.fashion_task(TINY, 0, CPU)
    wemix.train(replace(TINY, batch=20), task, "aug", 0)
    flat = torch.cat(seen).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)


def test_a_diverged_run_is_reported_as_nan():
    results = wemix.experiment(replace(TINY, arms=("aug",), lr=1e9), 0, CPU)
    assert math.isnan(results["aug/error"])
    assert math.isnan(results["aug/loss"])
    assert math.isnan(results["aug/gap"])


def test_tuning_seeds_never_see_test_images(monkeypatch):
    splits = []
    read = training._fashion

    def spy(split, index, device):
        splits.append((split, set(index.tolist())))
        return read(split, index, device)

    monkeypatch.setattr(training, "_fashion", spy)
    wemix.fashion_task(TINY, TUNING_SEEDS, CPU)
    wemix.fashion_task(TINY, 0, CPU)
    (a, learnt), (b, validated), (c, _), (d, _) = splits
    assert (a, b, c, d) == ("train", "train", "train", "test")
    assert not learnt & validated
    assert len(validated) == TINY.test_images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("mixup",)}, "arms are"),
        ({"augmentation": "cutout"}, "no augmentation"),
        ({"strength": 1.2}, "strength"),
        ({"lam": -0.1}, "lies in"),
        ({"stage1_fraction": 1.1}, "fraction"),
        ({"batch": 21}, "batch"),
        ({"batch": 0}, "batch"),
        ({"steps": 0}, "at least one step"),
        ({"lr": 0.0}, "learning rates"),
        ({"draws": 2}, "draws"),
        ({"images": 59_990, "test_images": 20_000}, "too many"),
        ({"augmentation": "mixup", "alpha": 0.0}, "alpha"),
    ],
)
def test_bad_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        wemix.experiment(replace(TINY, **change), 0, CPU)


def test_other_recipes_are_refused():
    with pytest.raises(TypeError, match="recipe of wemix"):
        wemix.experiment(object(), 0, CPU)
    with pytest.raises(ValueError, match="quick or full"):
        wemix.studies("paper")


def test_studies_hold_what_the_claims_need():
    quick, full = wemix.studies("quick"), wemix.studies("full")
    assert [r.strength for r in quick["strength"]] == [0.35]
    assert [r.strength for r in full["strength"]] == list(wemix.STRENGTHS)
    assert full["originals"][0].seeds >= max(r.seeds for r in full["mixup"] + full["strength"])
    assert full["mixup"][0].seeds == 20
    assert {r.lam for r in full["lam"]} == {0.25, 0.75}
    assert {r.lam for r in full["lam_tuning"]} == {0.25, 0.5, 0.75}
    assert {r.stage1_fraction for r in full["drop"]} == {0.25, 0.5, 0.9}
    kinds = {r.augmentation for r in full["kinds"]}
    assert kinds == {"colour", "rand_augment", "trivial_augment", "cutmix"}
    for recipe in [r for group in full.values() for r in group]:
        recipe.check()
        assert (recipe.steps, recipe.images, recipe.batch) == (600, 500, 50)


# --- the shop ------------------------------------------------------------------------------------


def random_shop(products):
    """A shop of random bytes in the layout of the real one."""
    generator = torch.Generator().manual_seed(0)

    def bytes_(*shape):
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    def queries(per_product, vendors):
        count = per_product * products
        product = torch.arange(products).repeat_interleave(per_product)
        return ShopQueries(
            image=bytes_(count, 3, 64, 64),
            crop=bytes_(count, 3, 48, 48),
            box=torch.zeros(count, 4),
            product=product,
            vendor=vendors[torch.arange(count) % len(vendors)],
            photo=torch.zeros(count, dtype=torch.long),
        )

    six = torch.arange(6)
    return EmojiShop(
        catalogue=bytes_(6 * products, 3, 64, 64),
        product=torch.arange(products).repeat_interleave(6),
        vendor=six.repeat(products),
        leaf=torch.zeros(products, dtype=torch.long),
        department=torch.zeros(products, dtype=torch.long),
        tokens=[["a"]] * products,
        queries={
            "train": queries(7, six),
            "val": queries(2, six),
            "test": queries(10, six[:1] + 6),
        },
        labels=("a",) * products,
        leaves=("a",),
        departments=("a",),
        sprite=torch.zeros(6 * products, dtype=torch.long),
    )


SHOP = wemix.ShopRecipe(products=4, steps=4, batch=5, arms=("aug", "augdrop"))


def test_the_shop_leaves_out_the_vendor_that_it_tests_on(monkeypatch):
    monkeypatch.setattr(shop, "load_emoji_shop", random_shop)
    whole = random_shop(4)
    task = shop.shop_task(SHOP, 8, CPU)
    assert (len(task.x), task.classes) == (20, 4)
    x, label = task.tests["error_catalogue"]
    assert torch.equal(x, shop.ink(whole.catalogue[whole.vendor == 2], 32))
    assert label.tolist() == [0, 1, 2, 3]
    assert len(task.tests["error_photo"][0]) == 40
    seen = whole.queries["train"]
    assert len(task.tests["error_seen"][0]) == int((seen.vendor != 2).sum())
    assert all(x.shape[1:] == (3, 32, 32) for x, _ in task.tests.values())


def test_the_shop_study_runs(monkeypatch):
    monkeypatch.setattr(shop, "load_emoji_shop", random_shop)
    results = wemix.experiment(SHOP, 0, CPU)
    for name in ("photo", "catalogue", "seen"):
        assert 0 <= results[f"augdrop/error_{name}"] <= 1
    with pytest.raises(ValueError, match="batch"):
        wemix.experiment(replace(SHOP, batch=21), 0, CPU)
    with pytest.raises(ValueError, match="2 or more"):
        wemix.experiment(replace(SHOP, products=1), 0, CPU)


def test_white_becomes_zero_ink():
    white = torch.full((2, 3, 48, 48), 255, dtype=torch.uint8)
    assert shop.ink(white, 32).abs().max() == 0
    assert shop.ink(255 - white, 32).min() > 0.99


# --- the usual scale -----------------------------------------------------------------------------

SMOKE = wemix.PaperRecipe(
    arms=("augdrop", "wemix"),
    seeds=1,
    epochs=1,
    batch=2,
    max_steps=2,
    stage1_fraction=0.5,
)


def write_cifar(folder, name="cifar10", count=8):
    """Random bytes in CIFAR's binary layout."""
    rng = np.random.default_rng(0)
    classes = scale.CIFAR[name]
    labels = 1 if classes == 10 else 2
    for file in (file for names in cifar.FILES[classes] for file in names):
        rows = rng.integers(0, 256, (count, labels + 3072), dtype=np.uint8)
        rows[:, :labels] %= classes
        rows.tofile(folder / file)


def narrow(monkeypatch):
    monkeypatch.setattr(
        scale, "backbone", lambda _, classes: networks.preactivation_resnet(4, (4, 8), 1, classes)
    )


def smoke_on_rank(folder):
    torch.manual_seed(torch.distributed.get_rank())
    scale.backbone = lambda _, classes: networks.preactivation_resnet(4, (4, 8), 1, classes)
    return wemix.experiment(replace(SMOKE, folder=folder), 0, CPU)


def test_cifar_runs_in_one_process(tmp_path, monkeypatch):
    narrow(monkeypatch)
    write_cifar(tmp_path)
    results = wemix.experiment(replace(SMOKE, folder=str(tmp_path)), 0, CPU)
    assert all(math.isfinite(value) for value in results.values())
    assert results["augdrop/images"] * 1000 == 4
    assert results["wemix/images"] * 1000 == 6


@pytest.mark.slow
def test_two_processes_agree_and_share_the_work(tmp_path):
    write_cifar(tmp_path)
    first, second = launch(smoke_on_rank, 2, str(tmp_path), timeout=240)
    assert first == pytest.approx(second)
    assert first["wemix/images"] * 1000 == 12


def test_cifar_100_reads_the_fine_label(tmp_path):
    write_cifar(tmp_path, "cifar100", 3)
    raw = np.fromfile(tmp_path / "train.bin", np.uint8).reshape(3, 3074)
    recipe = replace(SMOKE, data="cifar100", classes=100, folder=str(tmp_path))
    data = scale.open_images(recipe, CPU)
    assert data.y.tolist() == raw[:, 1].tolist()
    assert (data.x.flatten(1).numpy() == raw[:, 2:]).all()


def test_a_folder_of_images_is_read(tmp_path, monkeypatch):
    narrow(monkeypatch)
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog", "fox")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (20, 24), (60 * i, 80 * number, 0)).save(folder / f"{i}.png")
    recipe = replace(
        SMOKE, data=str(tmp_path), classes=3, side=14, arms=("mixloss",), augmentation="affine"
    )
    results = wemix.experiment(recipe, 0, CPU)
    assert 0 <= results["mixloss/error"] <= 1
    with pytest.raises(ValueError, match="3 classes"):
        wemix.experiment(replace(recipe, classes=4), 0, CPU)


def test_missing_or_damaged_cifar_is_named(tmp_path):
    recipe = replace(SMOKE, folder=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-bin"):
        wemix.experiment(recipe, 0, CPU)
    write_cifar(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="no binary file"):
        wemix.experiment(recipe, 0, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("refine",)}, "arms are"),
        ({"schedule": "linear"}, "step or cosine"),
        ({"augmentation": "cutout"}, "augmentation"),
        ({"lam": 2.0}, "lies in"),
        ({"network": "resnet50"}, "folder"),
        ({"classes": 11}, "10 classes"),
        ({"network": "vit"}, "backbone"),
    ],
)
def test_bad_paper_recipes_are_refused(change, message, tmp_path):
    write_cifar(tmp_path)
    with pytest.raises(ValueError, match=message):
        wemix.experiment(replace(SMOKE, folder=str(tmp_path), **change), 0, CPU)


def test_rates_of_the_paper_profile():
    recipe = wemix.PROFILES["paper"]
    factors = [scale.rate(recipe, t, 200) for t in (0, 99, 100, 149, 150, 199)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert scale.rate(replace(recipe, schedule="cosine"), 100, 200) == pytest.approx(0.5)
    assert round(recipe.stage1_fraction * 200) >= 150  # the drop lies inside the last phase


def test_networks_have_the_size_of_their_papers():
    def count(name):
        return sum(p.numel() for p in networks.backbone(name, 10).parameters())

    assert abs(count("preact_resnet18") - 11_171_146) < 5_000
    assert abs(count("wrn_28_10") / 36.5e6 - 1) < 0.01
    small = networks.preactivation_resnet(4, (4, 8), 1, 3)
    assert small(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_crop_and_mirror_cuts_what_padding_allows():
    x = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(40, 1, 1, 1)
    y = scale.crop_and_mirror(x, 2, torch.Generator().manual_seed(0))
    padded = F.pad(x[0, 0], (2,) * 4)
    windows = {
        tuple(view.flatten().tolist())
        for top in range(5)
        for left in range(5)
        for view in (
            padded[top : top + 8, left : left + 8],
            padded[top : top + 8, left : left + 8].flip(1),
        )
    }
    assert all(tuple(image.flatten().tolist()) in windows for image in y)
    assert len(y.flatten(1).unique(dim=0)) > 15
