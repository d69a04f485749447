"""The loop: what is learned from which epoch, every variant, ranks, and the released recipe."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.data.images import FASHION_CLASSES, LabelledImages
from toolkit.learn.distributed import launch, world
from toolkit.learn.loop import fit
from toolkit.representation import coke
from toolkit.representation.coke import clustering, labels, scale, training

CPU = torch.device("cpu")
TINY = coke.Recipe(
    arms=("coke",), images=60, test_images=50, batch=20, epochs=3, heads=(3, 4), stage=1, few=3
)


@pytest.fixture
def _fashion(monkeypatch):
    """Random images in place of Fashion-MNIST: these tests are about the loop."""

    def images(split):
        generator = torch.Generator().manual_seed(int(split == "test"))
        x = torch.randint(0, 256, (400, 1, 28, 28), generator=generator, dtype=torch.uint8)
        return LabelledImages(x, torch.arange(400) % 10, FASHION_CLASSES)

    monkeypatch.setattr(training, "load_fashion_mnist", images)


def features(n, d=8, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def linear_network(seed=0, width=12, d=8):
    """A network without batch norm: two ranks then compute what one process does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return coke.CoKe(nn.Flatten(), nn.Linear(width, d), nn.Linear(d, d))


def clusters(n=40, heads=(3, 5), coupled=False, **settings):
    kmeans = coke.OnlineConstrainedKMeans(heads, 8, dual_lr=1.0, **settings)
    return coke.Clusters(kmeans, n, coupled=coupled)


# --- one step -----------------------------------------------------------------------------------


def test_the_loss_sees_last_epochs_labels_and_frozen_centres_and_no_prices():
    kept, net = clusters(ratio=1.0), linear_network()
    objective = coke.SingleView(kept, 0.1)
    ids, images = torch.arange(10), torch.randn(10, 12, generator=torch.Generator().manual_seed(1))
    objective(net, (ids, images))
    objective.end_epoch()
    stored, frozen = kept.store.get(ids), [c.clone() for c in kept.kmeans.frozen()]
    kept.kmeans.update(features(10, seed=9), kept.kmeans.assign(features(10, seed=9)))
    kept.kmeans.duals += torch.arange(8.0)  # prices decide the new labels, not the loss
    assert not torch.equal(torch.cat(kept.kmeans.running()), torch.cat(frozen))
    p = net(images)[1]
    wanted = torch.stack(
        [F.cross_entropy(p @ frozen[h].T / 0.1, stored[:, h]) for h in range(2)]
    ).mean()
    assert torch.isclose(objective(net, (ids, images)), wanted)
    assert not torch.equal(kept.store.get(ids), stored)


def test_images_without_a_label_learn_the_new_one():
    kept = clusters()
    x, ids = features(6), torch.tensor([4, 0, 9, 33, 2, 7])
    wanted = kept.kmeans.assign(x)
    assert torch.equal(torch.stack(kept.relabel(ids, x), dim=1), wanted)
    later = torch.stack(kept.relabel(ids, features(6, seed=3)), dim=1)
    assert torch.equal(later, wanted)


def test_coupled_training_uses_this_batch_and_moving_centres():
    kept = clusters(coupled=True)
    ids = torch.arange(6)
    kept.relabel(ids, features(6))
    x = features(6, seed=3)
    wanted = kept.kmeans.assign(x)
    assert torch.equal(torch.cat(kept.centers()), kept.kmeans.centers)
    assert torch.equal(torch.stack(kept.relabel(ids, x), dim=1), wanted)
    net = linear_network()
    loss = coke.SingleView(kept, 0.1)(net, (ids, torch.randn(6, 12)))
    loss.backward()  # centres were replaced meanwhile, not overwritten
    assert net.projector.weight.grad.abs().sum() > 0


def test_the_order_within_an_epoch_does_not_mix_labels_up():
    kept = clusters(ratio=0.0)
    x = features(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    found = torch.empty(40, 2, dtype=torch.int64)
    for ids in order.split(10):
        found[ids] = torch.stack(kept.relabel(ids, x[ids]), dim=1)
    kept.end_epoch()
    again = torch.stack(kept.relabel(torch.arange(40), x), dim=1)
    assert torch.equal(again, found)


def test_churn_counts_changed_labels():
    kept = clusters(heads=(3,), ratio=0.0)
    kept.relabel(torch.arange(4), features(4))
    kept.end_epoch()
    assert math.isnan(kept.churn[0])
    kept.store.put(torch.arange(4), (kept.store.get(torch.arange(4)) + 1) % 3)
    fixed = kept.kmeans.assign(features(4)).reshape(4, -1)
    changed = (fixed != kept.store.get(torch.arange(4))).float().mean()
    kept.relabel(torch.arange(4), features(4))
    kept.end_epoch()
    assert kept.churn[1] == pytest.approx(float(changed))


def test_beta_mixes_both_branches():
    kept, net = clusters(heads=(3,)), linear_network()
    ids, images = torch.arange(10), torch.randn(10, 12)
    kept.relabel(ids, net(images)[0])
    kept.end_epoch()
    y, c = kept.store.get(ids)[:, 0], kept.kmeans.frozen()[0]
    x, p = net(images)
    wanted = 0.25 * F.cross_entropy(p @ c.T / 0.1, y) + 0.75 * F.cross_entropy(x @ c.T / 0.1, y)
    assert torch.isclose(coke.SingleView(kept, 0.1, 0.25)(net, (ids, images)), wanted)


def test_two_views_cluster_the_mean_as_it_is_and_send_no_gradient_through_targets(monkeypatch):
    kept, net = clusters(heads=(3,)), linear_network()
    ids = torch.arange(10)
    first, second = torch.randn(10, 12), torch.randn(10, 12)
    seen = []
    assign = kept.kmeans.assign
    monkeypatch.setattr(kept.kmeans, "assign", lambda x: seen.append(x) or assign(x))
    objective = coke.TwoViews(kept, 0.05, 0.2)
    objective(net, (ids, first, second))
    objective.end_epoch()
    (x1, p1), (x2, p2) = net(first), net(second)
    assert torch.allclose(seen[0], (x1 + x2) / 2)
    assert (seen[0].norm(dim=1) < 0.999).any()

    y, c = kept.store.get(ids)[:, 0], kept.kmeans.frozen()[0]
    targets = [coke.two_view_targets(y, x, c, 0.05, 0.2) for x in (x2, x1)]
    parts = [
        F.cross_entropy(out @ c.T / 0.05, target)
        for pair, target in zip(((x1, p1), (x2, p2)), targets, strict=True)
        for out in pair
    ]
    wanted = torch.stack(parts).mean()
    loss = objective(net, (ids, first, second))
    assert torch.isclose(loss, wanted)
    ours = torch.autograd.grad(loss, list(net.parameters()))
    fixed = torch.autograd.grad(wanted, list(net.parameters()))  # targets are constants here
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, fixed, strict=True))


def test_small_crops_learn_the_mean_of_both_targets_at_half_the_weight():
    kept, net = clusters(heads=(3,)), linear_network()
    ids, crops = torch.arange(10), [torch.randn(10, 12) for _ in range(4)]
    objective = coke.TwoViews(kept, 0.05, 0.2)
    objective(net, (ids, *crops))
    objective.end_epoch()
    y, c = kept.store.get(ids)[:, 0], kept.kmeans.frozen()[0]
    (x1, _), (x2, _), *small = [net(crop) for crop in crops]
    target = sum(coke.two_view_targets(y, x, c, 0.05, 0.2) for x in (x1, x2)) / 2
    parts = [F.cross_entropy(out @ c.T / 0.05, target) for pair in small for out in pair]
    state = kept.state_dict()
    large = objective(net, (ids, *crops[:2]))
    kept.load_state_dict(state)
    kept.store.put(ids, y[:, None])
    whole = objective(net, (ids, *crops))
    assert torch.isclose(whole, (large + torch.stack(parts).mean()) / 2)


def test_averaging_turns_targets_soft_and_starts_from_the_stored_labels():
    kept = clusters(n=10, heads=(3,))
    ids = torch.arange(10)
    kept.relabel(ids, features(10))
    kept.end_epoch()
    before = kept.store.get(ids)[:, 0]
    kept.start_averaging()
    first = kept.relabel(ids, features(10, seed=1))[0]
    assert torch.equal(first, F.one_hot(before, 3).float())
    kept.end_epoch()
    second = kept.relabel(ids, features(10, seed=2))[0]  # f = 1: the first averaged epoch alone
    assert torch.equal(second.max(1).values, torch.ones(10))
    kept.end_epoch()
    third = kept.relabel(ids, features(10, seed=3))[0]  # f = 1/2: two epochs
    mixed = third.max(1).values < 1
    assert torch.allclose(third[mixed].max(1).values, torch.full((int(mixed.sum()),), 0.5))
    assert mixed.any()


class Waits(TorchDispatchMode):
    """Notes the operations for which a device would have to catch up with the program."""

    names = ("_local_scalar_dense", "nonzero", "unique", "bincount", "equal", "masked_select")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.names):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("arm", ["one_view", "averaged", "two_views"])
def test_no_step_waits_for_a_device(arm, monkeypatch):
    for module in (clustering, labels):
        monkeypatch.setattr(module, "on_host", lambda x: False)
    kept, net = clusters(), linear_network()
    objective = coke.TwoViews(kept, 0.1) if arm == "two_views" else coke.SingleView(kept, 0.1)
    batch = torch.arange(10), *[torch.randn(10, 12) for _ in range(1 + (arm == "two_views"))]
    objective(net, batch)
    objective.end_epoch()
    if arm == "averaged":
        kept.start_averaging()
    with Waits() as waits:
        objective(net, batch).backward()
    assert not waits.seen
    with Waits() as waits:
        objective.end_epoch()
    assert waits.seen  # the net above does catch what it is for


def test_a_network_that_diverged_is_found_at_the_end_of_the_epoch(monkeypatch):
    monkeypatch.setattr(clustering, "on_host", lambda x: False)
    kept = clusters()
    x = torch.full((3, 8), torch.nan)
    kept.kmeans.update(x, torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="diverged"):
        kept.end_epoch()


def test_state_of_clusters_is_no_module_buffer():
    net = linear_network()
    names = [name for name, _ in net.named_buffers()]
    assert not names
    assert not isinstance(clusters(), nn.Module)


# --- the small experiment -----------------------------------------------------------------------


def test_epoch_zero_clusters_and_does_not_train():
    factors = [coke.rate(step, per_epoch=5, epochs=4, warmup=1) for step in range(20)]
    assert factors[:5] == [0] * 5
    assert factors[5:10] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[10] == 1
    assert all(a >= b for a, b in pairwise(factors[10:]))


@pytest.mark.usefixtures("_fashion")
def test_weights_stay_and_statistics_move_in_epoch_zero(monkeypatch):
    task = coke.fashion_task(TINY, 0, CPU)
    before = coke.build_network("small", 0)[0].state_dict()
    states = []
    coke.pretrain(
        TINY,
        "coke",
        task,
        0,
        CPU,
        watch=lambda model, _: (
            states.append({k: v.clone() for k, v in model.state_dict().items()}) or {}
        ),
    )
    weights = [name for name in before if name.endswith("weight")]
    assert all(torch.equal(before[name], states[0][name]) for name in weights)
    assert not all(torch.equal(before[name], states[1][name]) for name in weights)
    statistics = [name for name in before if name.endswith("running_mean")]
    assert all(not torch.equal(before[name], states[0][name]) for name in statistics)


@pytest.mark.usefixtures("_fashion")
def test_a_short_last_batch_is_left_out_and_its_images_do_not_count():
    recipe, known = replace(TINY, batch=25, epochs=2), []
    task = coke.fashion_task(recipe, 0, CPU)

    def watch(model, kept):
        labelled = int((kept.store.labels[:, 0, 0] >= 0).sum())
        known.append((labelled, coke.cluster_metrics(kept, task.y)["smallest"]))
        return {}

    coke.pretrain(recipe, "coke", task, 0, CPU, watch)
    assert known[0][0] == 50  # of 60: two batches of 25
    assert 0 <= known[0][1] <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("_fashion")
def test_every_arm_runs_and_repeats():
    recipe = replace(TINY, arms=coke.ARMS, lr=0.2)
    first, again = coke.experiment(recipe, 1, CPU), coke.experiment(recipe, 1, CPU)
    assert first == pytest.approx(again, nan_ok=True)
    for arm in coke.ARMS:
        assert 0 <= first[f"{arm}/knn"] <= 1
        assert 0 <= first[f"{arm}/few"] <= 1
        assert (f"{arm}/nmi" in first) == (arm not in ("random", "instance"))
    assert first["balanced/effective"] >= first["free/effective"]
    assert "offline/churn" not in first  # clusters are numbered anew each time
    assert first["coke/churn"] == first["coke/churn@2"]


@pytest.mark.usefixtures("_fashion")
def test_a_long_tail_is_drawn_and_probed_by_a_balanced_bank():
    recipe = replace(TINY, tail=0.7, bank=4)
    task = coke.fashion_task(recipe, 0, CPU)
    counts = torch.bincount(task.y, minlength=10)
    assert counts.sum() == 60
    assert (counts[:-1] >= counts[1:]).all()
    assert counts[0] > 4 * counts[-1]
    assert torch.bincount(task.bank_y).tolist() == [4] * 10
    shares = 0.7 ** torch.arange(10.0)
    paper = torch.round(5000 * shares / shares.sum())
    assert (int(paper[0]), int(paper[-1])) == (1544, 62)


def test_rivals_are_tuned_on_images_that_no_verdict_and_no_training_sees(monkeypatch):
    x = (torch.arange(800) % 256).to(torch.uint8)[:, None, None, None].repeat(1, 1, 28, 28)
    x[:, 0, 0, 0] = torch.arange(800) // 256
    splits = {"train": slice(0, 400), "test": slice(400, 800)}
    monkeypatch.setattr(
        training,
        "load_fashion_mnist",
        lambda split: LabelledImages(x[splits[split]], torch.arange(400) % 10, FASHION_CLASSES),
    )

    def numbers(images):
        first = (images[:, 0, 0, 0] * 255).round() * 256
        return set((first + (images[:, 0, 1, 1] * 255).round()).int().tolist())

    recipe = replace(TINY, validation=True)
    tuned, judged = (coke.fashion_task(r, 0, CPU) for r in (recipe, TINY))
    assert numbers(tuned.x) == numbers(judged.x)
    assert not numbers(tuned.test_x) & numbers(tuned.x)
    assert max(numbers(tuned.test_x)) < 400 <= min(numbers(judged.test_x))


@pytest.mark.parametrize("arm", coke.RATES)
def test_every_arm_takes_its_own_rate_from_inside_one_grid(arm):
    grid = coke.tuning_grid(arm)
    assert all(recipe.arms == (arm,) and recipe.validation for recipe in grid)
    assert [recipe.rate(arm) for recipe in grid] == list(coke.TRIED)
    assert min(coke.TRIED) < replace(TINY, lr=0.0).rate(arm) < max(coke.TRIED)
    assert replace(TINY, lr=0.7).rate(arm) == 0.7


def test_a_rivals_own_number_and_the_rates_of_the_long_tail_lie_inside_their_grids():
    for arm, (name, values) in coke.OWN.items():
        grid = coke.tuning_grid(arm, own=True)
        assert [getattr(recipe, name) for recipe in grid] == list(values)
        assert len({recipe.rate(arm) for recipe in grid}) == 1
        assert min(values) < getattr(TINY, name) < max(values)
    for arm, rate in coke.TAIL_RATES.items():
        assert min(coke.TRIED) < rate < max(coke.TRIED)
        assert all(recipe.tail < 1 for recipe in coke.tuning_grid(arm, tail=0.7))
        assert replace(TINY, tail=0.7, bank=4).rate(arm) == rate
    with pytest.raises(ValueError, match="tuned"):
        coke.tuning_grid("random")
    with pytest.raises(ValueError, match="tuned"):
        coke.tuning_grid("coke", own=True)


@pytest.mark.usefixtures("_fashion")
def test_label_lag_follows_some_images():
    lag = coke.label_lag(TINY, "coke", 0, CPU, shown=15)
    assert lag.points.shape == (3, 15, 2)
    assert lag.sizes.sum(1).tolist() == [60] * 3
    assert 0 <= lag.churn[1] <= 1
    with pytest.raises(ValueError, match="no clusters"):
        coke.label_lag(TINY, "random", 0, CPU)


def test_views_are_the_crops_of_an_affine_grid():
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    draw = torch.rand(5, 6, generator=torch.Generator().manual_seed(3))
    zoom, side = (0.55 + 0.45 * draw[0]).sqrt(), torch.where(draw[1] < 0.5, -1.0, 1.0)
    theta = torch.zeros(6, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side * zoom, zoom
    theta[:, :, 2] = (1 - zoom[:, None]) * (2 * draw[2:4].T - 1)
    grid = F.affine_grid(theta, [6, 1, 28, 28], align_corners=False)
    wanted = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    wanted = wanted * (0.8 + 0.4 * draw[4])[:, None, None, None]
    found = coke.views(x, torch.Generator().manual_seed(3))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_views_crop_within_the_image_and_repeat():
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    first, again = (coke.views(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == x.shape
    assert first.max() <= 1.2 * x.max() + 1e-6
    whole = coke.views(torch.ones(6, 1, 28, 28), torch.Generator().manual_seed(3), smallest=1.0)
    assert torch.allclose(whole.amax((1, 2, 3)), whole.amin((1, 2, 3)))
    assert not torch.allclose(whole[0], whole[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("swav",)}, "arms are"),
        ({"arms": ()}, "arms are"),
        ({"batch": 61}, "batch"),
        ({"epochs": 1}, "epochs"),
        ({"tail": 0.0}, "tail"),
        ({"tail": 0.5}, "balanced bank"),
        ({"arms": ("averaged",), "stage": 3}, "stage"),
    ],
)
def test_bad_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_profiles_and_studies():
    assert coke.studies("quick")["main"] == coke.PROFILES["quick"]
    assert coke.studies("full")["main"] == coke.PROFILES["full"]
    arms = {arm for recipe in coke.studies("full").values() for arm in recipe.arms}
    assert arms == set(coke.ARMS)
    with pytest.raises(ValueError, match="quick or full"):
        coke.studies("paper")
    with pytest.raises(TypeError, match="recipe of coke"):
        coke.experiment(SimpleNamespace(), 0, CPU)
    with pytest.raises(TypeError, match="one seed"):
        coke.experiment(TINY, [0, 1], CPU)


# --- ranks and the released recipe --------------------------------------------------------------


def stream_on_ranks(arm):
    """Train a linear network for three epochs on this rank's part of every global batch."""
    rank, size = world()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(48, 12, generator=generator)
    kept, net = clusters(n=48, heads=(3, 5), ratio=0.8), linear_network()
    model = DistributedDataParallel(net) if dist.is_initialized() else net
    objective = coke.TwoViews(kept, 0.1) if arm == "two_views" else coke.SingleView(kept, 0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    schedule = LambdaLR(optimizer, partial(coke.rate, per_epoch=3, epochs=4))
    for epoch in range(4):
        if arm == "averaged" and epoch == 2:
            kept.start_averaging()
        order = torch.randperm(48, generator=torch.Generator().manual_seed(epoch))
        views = 1 + (arm == "two_views")
        batches = [
            (ids[rank::size], *(images[ids[rank::size]] + 0.1 * v for v in range(views)))
            for ids in order.split(16)
        ]
        fit(model, batches, objective, optimizer, schedule=schedule)
        objective.end_epoch()
    return {
        "duals": kept.kmeans.duals,
        "centers": kept.kmeans.centers,
        "labels": kept.store.labels,
        "weight": net.projector.weight.detach(),
        "churn": torch.tensor(kept.churn[1:]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["one_view", "two_views", "averaged"])
def test_two_ranks_compute_what_one_process_computes(arm):
    alone = stream_on_ranks(arm)
    assert not torch.equal(alone["weight"], linear_network().projector.weight)
    for rank in launch(stream_on_ranks, 2, arm):
        for name, value in alone.items():
            assert torch.allclose(rank[name].float(), value.float(), atol=1e-4), name


def write_folder(place, per_class=6, classes=2):
    for split in ("train", "val"):
        for number in range(classes):
            folder = place / split / f"class{number}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                colour = (40 * i % 256, 200 * number, 30 + 20 * i)
                Image.new("RGB", (30, 26), colour).save(folder / f"{i}.png")


SMOKE = scale.PaperRecipe(
    network="small",
    epochs=3,
    stage=2,
    batch=4,
    warmup=1,
    heads=(2, 3),
    side=32,
    crop_side=16,
    crops=2,
    probe_epochs=1,
)


def paper_on_rank(folder, arm):
    return coke.experiment(replace(SMOKE, data=folder, arms=(arm,)), 0, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("arm", scale.PAPER_ARMS)
def test_the_paper_profile_runs_in_one_process(arm, tmp_path):
    write_folder(tmp_path)
    results = paper_on_rank(str(tmp_path), arm)
    assert set(results) == {
        f"{arm}/{name}"
        for name in ("loss", "effective", "nonempty", "smallest", "largest", "churn", "linear")
    }
    assert all(math.isfinite(value) for value in results.values())


@pytest.mark.slow
def test_the_paper_profile_agrees_on_two_ranks(tmp_path):
    write_folder(tmp_path)
    first, second = launch(paper_on_rank, 2, str(tmp_path), "one_view", timeout=240)
    assert first == pytest.approx(second)
    assert all(math.isfinite(value) for value in first.values())


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    write_folder(tmp_path / "data")
    recipe = replace(SMOKE, data=str(tmp_path / "data"), checkpoint=str(tmp_path / "saved"))
    torch.manual_seed(0)
    scale.pretrain_paper(replace(recipe, epochs=2), "one_view", 0, CPU)
    assert torch.load(tmp_path / "saved" / "one_view.pt", weights_only=True)["epoch"] == 1
    model, metrics = scale.pretrain_paper(recipe, "one_view", 0, CPU)
    state = torch.load(tmp_path / "saved" / "one_view.pt", weights_only=True)
    assert state["epoch"] == 2
    assert len(state["clusters"]["churn"]) == 3
    assert state["clusters"]["average"] is not None
    for name, value in model.state_dict().items():
        assert torch.equal(state["model"][name], value)
    assert 0 <= metrics["churn"] <= 1


def test_lars_leaves_one_dimensional_parameters_alone():
    model, _ = coke.build_network("small", 0, in_channels=3)
    optimizer = scale.lars(model, SMOKE)
    deep, flat = optimizer.param_groups
    assert all(p.ndim > 1 for p in deep["params"])
    assert all(p.ndim <= 1 for p in flat["params"])
    assert (deep["weight_decay"], flat["weight_decay"]) == (SMOKE.weight_decay, 0)
    assert deep["lr"] == SMOKE.lr
    before = {name: p.clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        moved = (before[name] - p).detach().norm() / SMOKE.lr
        if p.ndim > 1:  # trust · |w|, whatever the gradient
            size = float(before[name].detach().norm())
            assert float(moved) == pytest.approx(0.001 * size, rel=0.01)
        else:  # plain SGD
            assert float(moved) == pytest.approx(math.sqrt(p.numel()), rel=0.01)


def test_the_released_numbers():
    recipe = coke.PROFILES["paper"]
    assert (recipe.epochs, recipe.stage, recipe.batch, recipe.lr) == (1001, 801, 1024, 1.6)
    factors = [coke.rate(step, 10, recipe.epochs, recipe.warmup) for step in range(10010)]
    assert factors[9] == 0
    assert factors[109] == 1  # the end of epoch 10
    assert factors[-1] < 1e-4
    with torch.device("meta"):
        model, dim = coke.build_network("resnet50", 0)
    assert dim == 128
    assert model.projector[0].weight.shape == (2048, 2048)
    backbone = sum(p.numel() for p in model.backbone.parameters())
    assert backbone == 25_557_032 - 2_049_000
    assert len(scale.training_views(recipe, "multi_crop")) == 8
    plan = coke.memory_plan()
    assert sum(plan.values()) < 200e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("three_views",)}, "arms are"),
        ({"epochs": 1}, "epochs"),
        ({"arms": ("multi_crop",), "crops": 0}, "small crops"),
    ],
)
def test_bad_paper_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, **change)


def test_missing_folders_and_batches_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--set data"):
        coke.experiment(SMOKE, 0, CPU)
    write_folder(tmp_path, per_class=1)
    with pytest.raises(ValueError, match="use less"):
        coke.experiment(replace(SMOKE, data=str(tmp_path)), 0, CPU)
    with pytest.raises(ValueError, match="network is"):
        coke.build_network("vit", 0)
