"""The distiller, the small experiment and the stack of tiny students."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from toolkit.networks import nystrom_distillation as nd
from toolkit.networks.nystrom_distillation import stack, study, training

CPU = torch.device("cpu")
TINY = nd.Recipe(
    arms=("ce", "kda_feature"),
    images=64,
    teacher_images=128,
    teacher_epochs=1,
    epochs=3,
    warmup=1,
    batch=32,
    teacher_width=(4, 12),
    student_width=(2, 6),
    test_images=100,
)


def pair(terms, warmup=1, **options):
    """A distiller with a student 6 and a teacher 12 features wide."""
    student = training.seeded_net((2, 6), 10, 0)
    teacher = training.seeded_net((4, 12), 10, 1)
    sizes = {"num_classes": 10, "widths": (6, 12), "body": ("body", "body")} | options
    return nd.Distiller(student, teacher, terms, warmup, **sizes)


def batch(seed=0, n=40):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 28, 28, generator=source), torch.arange(n) % 10


# --- distiller ---------------------------------------------------------------------------------


def test_taps_read_what_goes_into_the_head_and_out_of_it():
    net = training.seeded_net((2, 6), 10, 0)
    taps = nd.Taps(net, "head", "body")
    logits = net(batch()[0])
    assert torch.equal(taps.layers["logit"], logits)
    assert torch.equal(net.head(taps.layers["feature"]), logits)
    assert taps.layers["map"].shape == (40, 6, 4, 4)
    with pytest.raises(ValueError, match="no module 'fc'"):
        nd.Taps(net, "fc")


def test_only_labels_count_in_warm_up_then_the_landmarks_of_the_last_epoch():
    x, y = batch()
    distiller = pair([("feature", "kda", 0.3)])
    distiller.train()
    first = distiller(x, y)
    logits = distiller.student_taps.layers["logit"]
    torch.testing.assert_close(first, F.cross_entropy(logits, y))
    feature = distiller.student_taps.layers["feature"].detach()
    distiller.end_epoch()
    student, teacher = distiller.pairs["feature"]
    torch.testing.assert_close(student.centres, nd.class_landmarks(feature, y, 10))
    second = distiller(x, y)
    now, taught = distiller.student_taps.layers, distiller.teacher_taps.layers
    extra = nd.kda_loss(now["feature"], taught["feature"], student.centres, teacher.centres)
    torch.testing.assert_close(second, F.cross_entropy(now["logit"], y) + 0.3 * extra)


def test_relations_of_the_batch_wait_for_the_end_of_warm_up_too():
    x, y = batch()
    distiller = pair([("feature", "gram", 0.3)])
    losses = []
    for _ in range(2):
        loss = distiller(x, y)
        losses.append(loss - F.cross_entropy(distiller.student_taps.layers["logit"], y))
        distiller.end_epoch()
    assert losses[0] == 0
    assert losses[1] > 0


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("feature", "kda"),
        ("logit", "kda"),
        ("feature", "gram"),
        ("logit", "gram"),
        ("feature", "sp"),
        ("feature", "rkd"),
        ("logit", "kd"),
        ("feature", "fitnet"),
        ("map", "at"),
    ],
)
def test_every_term_trains_the_student_and_never_the_teacher(layer, kind):
    x, y = batch()
    distiller = pair([(layer, kind, 0.5)])
    before = {name: v.clone() for name, v in distiller.teacher.state_dict().items()}
    distiller.train()
    for _ in range(2):
        loss = distiller(x, y)
        distiller.end_epoch()
    loss = distiller(x, y)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in distiller.student.body.parameters())
    for name, value in distiller.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not distiller.teacher.training


def test_soft_labels_take_weight_from_the_labels():
    x, y = batch()
    distiller = pair([("logit", "kd", 0.9)], warmup=0)
    loss = distiller(x, y)
    mine, other = distiller.student_taps.layers["logit"], distiller.teacher_taps.layers["logit"]
    expected = 0.1 * F.cross_entropy(mine, y) + 0.9 * nd.kd_loss(mine, other)
    torch.testing.assert_close(loss, expected)


def test_known_layers_of_the_teacher_give_the_same_loss():
    x, y = batch()
    losses = []
    for known in (False, True):
        distiller = pair([("feature", "kda", 0.3), ("logit", "kd", 0.5)])
        layers = training.layers_of(distiller.teacher, x) if known else None
        for _ in range(2):
            loss = distiller(x, y, None, layers)
            distiller.end_epoch()
        losses.append(loss)
    torch.testing.assert_close(*losses)


def test_a_resumed_distiller_goes_on_with_its_landmarks():
    x, y = batch()
    distiller, again = pair([("feature", "kda", 0.3)]), pair([("feature", "kda", 0.3)])
    distiller(x, y)
    distiller.end_epoch()
    again.load_state_dict(distiller.state_dict())
    assert again.epoch == 1
    assert torch.equal(distiller.eval()(x, y), again.eval()(x, y))


@pytest.mark.parametrize(
    ("terms", "warmup", "message"),
    [
        ([("feature", "kernel", 1.0)], 1, "a term is"),
        ([("pixels", "kda", 1.0)], 1, "a term is"),
        ([("feature", "kda", -1.0)], 1, "0 or more"),
        ([("feature", "kd", 0.5)], 1, "'logit'"),
        ([("feature", "at", 0.5)], 1, "belong together"),
        ([("logit", "kd", 0.7), ("logit", "kd", 0.7)], 1, "more than 1"),
        ([("feature", "kda", 0.5)], 0, "at least 1"),
    ],
)
def test_impossible_terms_are_refused(terms, warmup, message):
    with pytest.raises(ValueError, match=message):
        pair(terms, warmup)


def test_terms_need_a_teacher_and_labels_do_not():
    net = training.seeded_net((2, 6), 10, 0)
    with pytest.raises(ValueError, match="need a teacher"):
        nd.Distiller(net, None, [("logit", "kd", 0.5)], num_classes=10, widths=(6, 6))
    alone = nd.Distiller(net, None, [], num_classes=10, widths=(6, 6)).train()
    assert torch.isfinite(alone(*batch()))


def test_features_of_another_width_than_said_are_refused():
    distiller = pair([("feature", "kda", 0.3)], widths=(7, 12))
    with pytest.raises(ValueError, match="7 wide, got 6"):
        distiller(*batch())


# --- the small experiment ----------------------------------------------------------------------


def test_every_arm_of_the_chapter_has_terms_and_a_weight():
    for arm in nd.ARMS:
        for layer, kind, weight in nd.Recipe(arms=(arm,)).terms(arm):
            assert weight > 0
            assert (layer, kind) != ("", "")
    for recipes in nd.studies("full").values():
        for recipe in recipes:
            assert all(recipe.terms(arm) or arm == "ce" for arm in recipe.arms)


def test_strength_is_kept_when_the_number_of_landmarks_changes():
    recipe = nd.Recipe(weights=(("kda_feature", 0.3),))
    assert recipe.weight("kmeans_feature") == 0.3
    assert recipe.weight("kmeans_feature@40") == pytest.approx(0.15)
    assert recipe.landmarks("kmeans_feature@40") == 40
    assert recipe.landmarks("random_logit") == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("kernel",)}, "arms must be"),
        ({"arms": ()}, "arms must be"),
        ({"data": "cifar"}, "fashion"),
        ({"classes": 9}, "10 classes"),
        ({"images": 60}, "whole batches"),
        ({"images": 256}, "batch ≤ images"),
        ({"warmup": 0}, "warmup"),
        ({"warmup": 3}, "warmup"),
    ],
)
def test_impossible_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_profiles_and_other_recipes():
    with pytest.raises(ValueError, match="quick or full"):
        nd.studies("paper")
    with pytest.raises(TypeError, match="recipe of nystrom"):
        nd.experiment(object(), 0, CPU)


def test_arms_start_alike_and_a_seed_repeats():
    both, alone = (
        nd.run_students(TINY, 3, CPU),
        nd.run_students(replace(TINY, arms=("ce",)), 3, CPU),
    )
    assert both["ce/cka@0"] == both["kda_feature/cka@0"]
    assert both["ce/kernel"] != both["kda_feature/kernel"]
    assert {name: both[name] for name in alone} == alone
    assert nd.experiment(TINY, 4, CPU)["ce/kernel"] != both["ce/kernel"]


def test_every_arm_trains_and_is_judged():
    arms = ("kd_logit", "fitnet_feature", "at_map", "rkd_feature", "sp_feature", "gram_logit")
    arms += ("kda_combo", "kmeans_feature@4", "random_logit", "gaussian_feature@3")
    found = nd.run_students(replace(TINY, arms=arms), 0, CPU)
    for arm in arms:
        assert 0 <= found[f"{arm}/accuracy"] <= 1
        assert found[f"{arm}/push"] > 0
        assert found[f"{arm}/kernel"] <= found[f"{arm}/bound"]
        assert 0 <= found[f"{arm}/cka_logit"] <= 1


def test_tuning_seeds_are_judged_on_images_that_no_verdict_sees():
    verdict, tuning = (training.prepare(TINY, seed, CPU) for seed in (0, 10_000))
    world = training.load_images("fashion", 10, CPU)
    assert torch.equal(verdict.held_out[0], world.test[0][:100])
    assert torch.equal(tuning.held_out[0], world.val[0][:100])
    assert len(world.train[0]) == training.FASHION_HELD_OUT


def test_glyphs_have_more_landmarks_than_a_batch_has_examples():
    recipe = replace(TINY, data="glyphs", classes=40, images=320, teacher_images=320, arms=("ce",))
    lesson = training.prepare(recipe, 0, CPU)
    assert lesson.known["logit"].shape == (320, 40)
    assert recipe.landmarks("kda_feature") > recipe.batch


@pytest.mark.parametrize("arm", ["kmeans_feature", "random_feature"])
def test_groups_name_one_landmark_or_none(arm):
    lesson = training.prepare(TINY, 0, CPU)
    groups = training.grouping(TINY, arm, lesson, 0)
    counts = torch.bincount(groups[groups >= 0], minlength=10)
    assert len(counts) == 10
    assert (counts > 0).all()
    assert arm == "kmeans_feature" or counts.sum() == 10


def test_push_is_the_ratio_of_gradient_norms():
    x, y = batch()
    distiller = pair([("feature", "gram", 0.5)])
    distiller.epoch = 1
    known = training.layers_of(distiller.teacher, x)
    ratio = study.push(distiller, (x, y, y, *known.values()))
    norms = []
    for part in (1, 0):
        distiller.zero_grad()
        student, teacher = distiller.layers(x, known)
        distiller.parts(student, teacher, y)[part].backward()
        grads = [p.grad.flatten() for p in distiller.student.parameters() if p.grad is not None]
        norms.append(torch.cat(grads).norm())
    assert ratio == pytest.approx(float(norms[0] / norms[1]), rel=1e-5)


def test_landmark_study_puts_class_means_between_the_best_and_random_examples():
    recipe = nd.LandmarkRecipe(
        numbers=(2, 10), draws=3, images=400, teacher_images=2000, teacher_epochs=1
    )
    found = nd.experiment(recipe, 0, CPU)
    assert found["best/error"] <= found["class/error"] <= found["random/error"]
    assert found["best/error@10"] == found["best/error"]
    assert found["random/error@10"] < found["random/error@2"]


def test_noise_moves_the_kernel_by_its_level():
    x, y = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 5
    averaging = nd.averaging_matrix(y, 5)
    levels = (0.01, 0.1, 1.0)
    found = [nd.compare(p, x, averaging) for p in nd.perturbed(x, levels, 0)]
    kernels = [entry["kernel"] for entry in found]
    assert kernels == sorted(kernels)
    assert kernels[0] < 0.05 < kernels[2]
    assert all(entry["kernel"] <= entry["bound"] for entry in found)


# --- many tiny students ------------------------------------------------------------------------


def test_stacked_loss_is_the_loss_of_each_student():
    source = torch.Generator().manual_seed(0)
    fs, cs = torch.randn(3, 8, 4, generator=source), torch.randn(3, 5, 4, generator=source)
    ft, ct = torch.randn(8, 6, generator=source), torch.randn(5, 6, generator=source)
    each = torch.stack([nd.kda_loss(f, ft, c, ct) for f, c in zip(fs, cs, strict=True)])
    torch.testing.assert_close(stack.stacked_kda(fs, ft, cs, ct), each)


def test_students_do_not_depend_on_their_company():
    tiny = nd.StackRecipe(replicas=1, images=120, teacher_images=200, epochs=4, alphas=(0.0, 0.1))
    teacher = nd.stack_teacher(tiny)
    both, alphas = nd.train_stack(tiny, teacher)
    alone, _ = nd.train_stack(replace(tiny, alphas=(0.1,)), teacher)
    x, _ = nd.pixels("test", 20)
    assert alphas.tolist() == pytest.approx([0.0, 0.1])
    torch.testing.assert_close(both(x.expand(2, -1, -1))[1][1], alone(x[None])[1][0])
    assert isinstance(both, nn.Module)


def test_impossible_stacks_are_refused():
    with pytest.raises(ValueError, match="layer is"):
        nd.StackRecipe(layer="pixels")
    with pytest.raises(ValueError, match="landmarks are"):
        nd.StackRecipe(landmarks="random")
