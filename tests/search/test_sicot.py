"""SICoT against independent references: attention, loss, long tails, the shop's frequencies."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from toolkit.data import load_emoji_shop
from toolkit.learn.nets import mlp
from toolkit.search import sicot
from toolkit.search.sicot import attributes, training
from toolkit.search.sicot.longtail import check_counts
from toolkit.search.sicot.shop import varied
from toolkit.search.sicot.training import order, seeded, stream

CPU = torch.device("cpu")
TITLES = [["red", "shoe", "new!"], ["red", "hat"], ["blue", "shoe"], ["zzz"]]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def bags(batch=5, length=4, width=6, seed=0):
    """Words, contexts and a mask in float64; the last bag is empty."""
    words = torch.randn(batch, length, width, dtype=torch.float64, generator=rng(seed))
    context = torch.randn(batch, 3, dtype=torch.float64, generator=rng(seed + 1))
    mask = torch.rand(batch, length, generator=rng(seed + 2)) < 0.7
    mask[:, 0], mask[-1] = True, False
    return words, context, mask


def attention(**settings):
    with seeded(0, 1):
        return sicot.BilinearWordAttention(6, 3, **settings).double()


# --- words --------------------------------------------------------------------------------------


def test_a_vocabulary_counts_training_titles_only():
    vocabulary = sicot.Vocabulary.fit(TITLES[:3])
    assert vocabulary.words == ("red", "shoe", "blue", "hat", "new!")
    tokens, mask = vocabulary.encode([["hat", "zzz", "red"], []], 4)
    assert tokens.tolist() == [[5, 1, 2, 0], [0, 0, 0, 0]]
    assert mask.tolist() == [[True, False, True, False], [False] * 4]
    assert len(vocabulary) == 7


def test_a_vocabulary_drops_rare_words_and_keeps_the_most_frequent():
    assert sicot.Vocabulary.fit(TITLES, min_count=2).words == ("red", "shoe")
    assert sicot.Vocabulary.fit(TITLES, max_size=1).words == ("red",)
    with pytest.raises(ValueError, match="no word"):
        sicot.Vocabulary.fit(TITLES, min_count=9)
    with pytest.raises(ValueError, match="min_count"):
        sicot.Vocabulary.fit(TITLES, min_count=0)
    with pytest.raises(ValueError, match="length"):
        sicot.Vocabulary.fit(TITLES).encode(TITLES, 0)


def test_low_rank_attention_equals_the_full_bilinear_form():
    words, context, mask = bags()
    module = attention(rank=2, temperature=0.7)
    B = module.query.weight.T @ module.context.weight
    scores = torch.einsum("btw,wd,bd->bt", words, B, context) / (math.sqrt(2) * 0.7)
    expected = scores.masked_fill(~mask, -torch.inf).softmax(1)
    pooled, weights = module(words, context, mask)
    assert torch.allclose(weights[:-1], expected[:-1])
    assert torch.allclose(pooled[:-1], torch.einsum("bt,btw->bw", expected, words)[:-1])


def test_masked_words_weigh_nothing_and_empty_bags_give_the_learnt_vector():
    words, context, mask = bags()
    module = attention()
    with torch.no_grad():
        module.empty.copy_(torch.arange(6.0))
    pooled, weights = module(words, context, mask)
    assert (weights[~mask] == 0).all()
    assert torch.allclose(weights[:-1].sum(1), torch.ones(4, dtype=torch.float64))
    assert torch.equal(pooled[-1], torch.arange(6.0, dtype=torch.float64))
    assert torch.isfinite(pooled).all()


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 99))
def test_attention_does_not_see_the_order_of_words(places, seed):
    words, context, mask = bags(seed=seed)
    module = attention()
    pooled, weights = module(words, context, mask)
    again, moved = module(words[:, places], context, mask[:, places])
    assert torch.allclose(pooled, again)
    assert torch.allclose(weights[:, places], moved)


def test_without_U_attention_is_the_mean_and_a_single_word_has_weight_one():
    words, context, mask = bags()
    module = attention()
    nn.init.zeros_(module.context.weight)
    mean = sicot.MeanPooling(6).double()
    for mine, its in zip(module(words, context, mask), mean(words, context, mask), strict=True):
        assert torch.allclose(mine, its)
    alone = attention()(words[:, :1], context, torch.ones(5, 1, dtype=torch.bool))[1]
    assert torch.equal(alone, torch.ones(5, 1, dtype=torch.float64))


def test_gradients_of_attention_are_right():
    words, context, mask = bags(batch=3)
    module = attention(rank=2)
    inputs = (words.requires_grad_(), context.requires_grad_())
    assert torch.autograd.gradcheck(lambda w, c: module(w, c, mask), inputs)


def test_attention_and_encoder_refuse_what_does_not_fit():
    words, context, mask = bags()
    with pytest.raises(ValueError, match="mask"):
        attention()(words, context, mask[:, :2])
    with pytest.raises(ValueError, match="temperature"):
        sicot.BilinearWordAttention(6, 3, temperature=0)
    encoder = sicot.WordEncoder(5, 6, 3, sicot.MeanPooling(6))
    with pytest.raises(ValueError, match=r"0…4"):
        encoder(torch.tensor([[5]]), torch.ones(1, 1, dtype=torch.bool), context[:1].float())
    with pytest.raises(ValueError, match="mask"):
        encoder(torch.tensor([[2]]), torch.ones(1, 2, dtype=torch.bool), context[:1].float())


def test_the_context_words_steers_by_the_mean_word():
    module = sicot.BilinearWordAttention(6, 3)
    encoder = sicot.WordEncoder(9, 6, 3, module, word_context=True)
    tokens = torch.tensor([[2, 3, 0], [4, 4, 5]])
    mask = tokens > 1
    steer = torch.zeros(2, 3)
    same = encoder(tokens, mask, steer + 5)[1]
    assert torch.equal(encoder(tokens, mask, steer)[1], same)
    e = encoder.embedding(tokens)
    mean = (e * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    assert torch.allclose(module(e, encoder.mean_context(mean), mask)[1], same)


# --- model --------------------------------------------------------------------------------------


def model(**settings):
    with seeded(0, 1):
        encoder = sicot.WordEncoder(9, 6, 4, sicot.BilinearWordAttention(6, 4))
    with seeded(0, 0):
        return sicot.SICoT(mlp(7, 4), encoder, 5, **settings)


def batch(n=8):
    x = torch.randn(n, 7, generator=rng(1))
    tokens = torch.randint(0, 9, (n, 3), generator=rng(2))
    return x, tokens, tokens > 1, torch.randint(0, 5, (n,), generator=rng(3))


def gradient(net, *parts):
    net.zero_grad()
    x, tokens, mask, y = batch()
    out = net(x, tokens, mask, y)
    sum(F.cross_entropy(out[part], y) for part in parts).backward()
    return net.classifier.weight.grad.clone()


def test_the_shared_classifier_gets_the_sum_of_both_branches_gradients():
    net = model()
    x, tokens, mask, y = batch()
    net.loss(net(x, tokens, mask), y).backward()
    both = net.classifier.weight.grad.clone()
    assert torch.allclose(both, gradient(net, "z_v") + gradient(net, "z_s"), atol=1e-6)


def test_stop_gradient_keeps_words_from_the_image_branch():
    for stop in (True, False):
        net = model(shared_classifier=False, stop_gradient=stop)
        x, tokens, mask, y = batch()
        F.cross_entropy(net(x, tokens, mask)["z_s"], y).backward()
        grads = [p.grad for p in net.backbone.parameters()]
        assert all(g is None or not g.any() for g in grads) == stop


def test_couplings_equal_their_formulas():
    x, tokens, mask, y = batch()
    plain = model()
    out = plain(x, tokens, mask)
    base = F.cross_entropy(out["z_v"], y) + F.cross_entropy(out["z_s"], y)
    assert torch.equal(plain.loss(out, y), base)
    p, q = out["z_v"].softmax(1), out["z_s"].softmax(1)
    kl = (q * (q / p).log()).sum(1).mean() + (p * (p / q).log()).sum(1).mean()
    loss = model(coupling="kl", lam=0.5).loss(out, y)
    assert torch.allclose(loss, base + 0.5 * kl, atol=1e-6)
    f, s = (out[k] / out[k].norm(dim=1, keepdim=True) for k in "fs")
    l2 = ((f - s) ** 2).sum(1).mean()
    assert torch.allclose(model(coupling="l2", lam=2.0).loss(out, y), base + 2 * l2, atol=1e-6)


def test_the_teacher_of_each_kl_term_is_held_constant():
    z_v, z_s = torch.randn(2, 4, 5, generator=rng()).unbind()
    z_v.requires_grad_()
    sicot.mutual_kl(z_v, z_s).backward()
    p, q = z_v.detach().softmax(1), z_s.softmax(1)
    assert torch.allclose(z_v.grad, (p - q) / 4, atol=1e-6)


def test_predictions_by_mode():
    net = model()
    x, tokens, mask, _ = batch()
    out = net(x, tokens, mask)
    v, s = out["z_v"].softmax(1), out["z_s"].softmax(1)
    assert torch.allclose(net.predict(x), v, atol=1e-6)
    assert torch.allclose(net.predict(x, tokens, "words", size=3), s, atol=1e-6)
    assert torch.allclose(net.predict(x, tokens, "fused"), (v + s) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="tokens"):
        net.predict(x, mode="fused")
    with pytest.raises(ValueError, match="mode"):
        net.predict(x, tokens, "text")


def test_labels_may_steer_in_training_only():
    net = model(context="class")
    x, tokens, mask, y = batch()
    assert net(x, tokens, mask, y)["weights"].shape == (8, 3)
    with pytest.raises(ValueError, match="labels"):
        net(x, tokens, mask)
    with pytest.raises(ValueError, match="labels"):
        net.predict(x, tokens, "words")


def test_a_model_refuses_unknown_settings():
    for bad in ({"coupling": "js"}, {"context": "title"}, {"lam": -1.0}):
        with pytest.raises(ValueError, match="got"):
            model(**bad)


# --- long tails ---------------------------------------------------------------------------------


def test_frequencies_follow_the_specification():
    counts = sicot.tail_counts(600, 60, 2, seed=3)
    place = torch.arange(600) / 599
    assert torch.equal(counts.sort(descending=True).values, (60 * (2 / 60) ** place).round().long())
    assert not torch.equal(counts, sicot.tail_counts(600, 60, 2, seed=4))
    assert counts.max() == 60
    assert counts.min() == 2


def test_buckets_are_means_over_classes():
    counts = torch.tensor([2, 5, 6, 19, 20, 60])
    y = torch.arange(6).repeat_interleave(2)
    pred = y.clone()
    pred[0] = pred[2] = pred[3] = pred[9] = 0
    pred[0] = 1
    found = sicot.bucket_accuracy(pred, y, counts)
    assert found == {"few": 0.25, "medium": 1.0, "many": 0.75, "all": pytest.approx(4 / 6)}
    large = sicot.bucket_accuracy(pred, y, counts, sicot.LARGE_EDGES)
    assert math.isnan(large["many"])
    assert sicot.size_accuracy(pred, y, counts)[4] == 0.0
    with pytest.raises(ValueError, match="edges"):
        sicot.bucket_accuracy(pred, y, counts, (20, 6))


def test_logit_adjustment_with_equal_counts_is_cross_entropy():
    z, y = torch.randn(6, 4, generator=rng()), torch.tensor([0, 1, 2, 3, 0, 1])
    even = sicot.logit_adjust(z, torch.full((4,), 7))
    assert torch.allclose(F.cross_entropy(even, y), F.cross_entropy(z, y))
    counts = torch.tensor([1, 2, 3, 4])
    balanced = (counts * z.exp() / (counts * z.exp()).sum(1, keepdim=True)).log()
    assert torch.allclose(sicot.logit_adjust(z, counts).log_softmax(1), balanced, atol=1e-6)
    with pytest.raises(ValueError, match="training image"):
        sicot.logit_adjust(z, torch.tensor([1, 0, 1, 1]))


def test_class_balanced_weights_follow_the_closed_form():
    counts, beta = torch.tensor([1, 10, 1000]), 0.99
    expected = (1 - beta) / (1 - beta ** counts.double())
    expected = expected / expected.mean()
    assert torch.allclose(sicot.class_balanced_weights(counts, beta), expected.float())
    assert torch.allclose(sicot.class_balanced_weights(counts, 0.0), torch.ones(3))
    with pytest.raises(ValueError, match="beta"):
        sicot.class_balanced_weights(counts, 1.0)


def test_a_balanced_order_shows_all_classes_alike():
    y = torch.tensor([0] * 90 + [1] * 10)
    drawn = y[sicot.class_balanced_order(y, 4000, rng())]
    assert abs(float(drawn.float().mean()) - 0.5) < 0.04


def test_ldam_puts_the_largest_margin_on_the_rarest_class():
    z, counts = torch.zeros(2, 2), torch.tensor([16, 1])
    loss = sicot.ldam_loss(z, torch.tensor([0, 1]), counts, margin=0.5, scale=2.0)
    expected = [math.log(1 + math.exp(2.0 * m)) for m in (0.25, 0.5)]
    assert float(loss) == pytest.approx(np.mean(expected))
    head = sicot.CosineClassifier(3, 2, scale=5.0)
    assert float(head(head.weight * 7).diagonal().min()) == pytest.approx(5.0)


def test_tau_normalisation():
    W = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert torch.equal(sicot.tau_normalise(W, 0.0), W)
    assert torch.allclose(sicot.tau_normalise(W, 1.0).norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="every class"):
        check_counts(torch.tensor([], dtype=torch.int64))


# --- the shop as a long tail --------------------------------------------------------------------

SMALL = sicot.Recipe(products=30, steps=20, arms=("ce", "sicot"))


@pytest.fixture(scope="module")
def task():
    return sicot.shop_task(SMALL, 0, CPU)


def test_the_difficulty_is_the_one_that_was_frozen():
    """The world's constants: what the chapter promises not to tune."""
    recipe = sicot.PROFILES["full"]
    assert (recipe.n_max, recipe.n_min, recipe.noise_words, recipe.length) == (60, 2, 5, 16)
    assert (attributes.SPREAD, attributes.OWN) == (2.0, 0.5)
    assert sicot.SHOP_EDGES == (6, 20)


def test_training_images_alternate_listings_and_photographs():
    shop = load_emoji_shop(30)
    counts = sicot.tail_counts(30, 60, 2, 0)
    images, y = sicot.training_images(shop, counts, 0)
    assert images.shape == (int(counts.sum()), 3, 32, 32)
    assert torch.equal(torch.bincount(y), counts)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    again, _ = sicot.training_images(shop, counts, 0)
    assert torch.equal(images, again)


def test_an_unmoved_image_is_only_averaged():
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=rng())
    middle = torch.tensor([[0.5, 0.5, 0.6, 0.5, 0.5]])
    expected = F.avg_pool2d(image.float() / 255, 2)
    assert torch.allclose(varied(image, middle), expected, atol=1e-5)
    right = varied(image, torch.tensor([[1.0, 0.5, 0.6, 0.5, 0.5]]))
    assert (right[:, :, :, :3] == 1).all()  # white comes in from the left


def test_tests_are_balanced_and_by_a_vendor_never_trained_on(task):
    assert torch.equal(torch.bincount(task.test[1]), torch.full((30,), 10))
    assert torch.equal(torch.bincount(task.val[1]), torch.full((30,), 2))
    shop = load_emoji_shop(30)
    assert (shop.queries["test"].vendor == 6).all()
    assert (shop.queries["train"].vendor < 6).all()
    assert (shop.queries["val"].vendor < 6).all()


def test_tuning_seeds_see_no_test_image():
    tuning = sicot.shop_task(SMALL, 10_000, CPU)
    assert torch.equal(tuning.test[0], tuning.val[0])


def test_the_vocabulary_holds_words_of_training_titles_only(task):
    titles = sicot.draw_titles(task, SMALL, "own")
    assert set(titles.vocabulary.words) == {w for text in titles.texts[0] for w in text}
    row, place = titles.informative.nonzero()[0]
    assert titles.texts[1][row][place] in task.tokens[int(task.test[1][row])]
    assert not titles.informative[titles.test <= 1].any()


def test_shared_and_renamed_words(task):
    shared = sicot.product_words(task.tokens, "shared")
    assert sicot.unique_share(task.tokens) > 0
    assert sicot.unique_share(shared) == 0
    renamed = sicot.product_words(task.tokens, "renamed")
    assert sicot.unique_share(renamed) == 1
    with pytest.raises(ValueError, match="kind"):
        sicot.product_words(task.tokens, "none")


# --- training -----------------------------------------------------------------------------------


def test_separate_classifiers_leave_the_image_branch_bit_identical():
    recipe = replace(SMALL, arms=("ce", "separate", "leaky", "sicot", "separate_kl"))
    found = sicot.experiment(recipe, 0, CPU)
    assert found["separate/moved"] == 0
    assert found["leaky/moved"] > 1e-4
    assert found["separate_kl/moved"] > 1e-4
    assert found["separate/all"] == found["ce/all"]


def test_every_arm_runs_and_a_seed_repeats():
    recipe = replace(SMALL, arms=tuple(sicot.ARMS), steps=4, per_class=True)
    first, second = (sicot.experiment(recipe, 1, CPU) for _ in range(2))
    assert first.keys() == second.keys()
    assert np.array_equal(list(first.values()), list(second.values()), equal_nan=True)
    each = [first[f"sicot/image@{c}"] for c in range(30)]
    assert first["sicot/all"] == pytest.approx(np.mean(each))


def test_images_train_end_to_end():
    recipe = replace(SMALL, inputs="images", d=16, steps=3)
    assert np.isfinite(sicot.experiment(recipe, 0, CPU)["sicot/all"])


def test_all_samplers_give_the_same_number_of_steps(task):
    for arm in (sicot.Arm(), sicot.Arm(sampler="class")):
        batches = list(order(SMALL, arm, task, 0))
        assert len(batches) == SMALL.steps
        assert all(len(index) == SMALL.batch for index in batches)


def test_embeddings_of_words_are_not_decayed(task, monkeypatch):
    seen = []

    class Spy(torch.optim.SGD):
        def __init__(self, groups, **settings):
            seen.extend(groups)
            super().__init__(groups, **settings)

    monkeypatch.setattr(training.torch.optim, "SGD", Spy)
    titles = sicot.draw_titles(task, SMALL, "own")
    sicot.train_arm(replace(SMALL, steps=1), "sicot", task, titles, 0)
    free = [group for group in seen if group["weight_decay"] == 0]
    assert [p.shape for p in free[0]["params"]] == [(len(titles.vocabulary), 32)]


@pytest.mark.slow
def test_the_word_branch_agrees_with_logistic_regression_on_mean_embeddings():
    """Within two points, on titles of a small shop, both regularised as they are here."""
    recipe = sicot.Recipe(products=30, n_max=40, n_min=10, steps=1500, arms=("mean",))
    task = sicot.shop_task(recipe, 0, CPU)
    titles = sicot.draw_titles(task, recipe, "own")
    model = sicot.train_arm(recipe, "mean", task, titles, 0)
    encoder = model.words

    def means(tokens):
        mask = (tokens > 1).float()
        with torch.no_grad():
            e = encoder.embedding(tokens)
        return ((e * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)).numpy()

    peer = LogisticRegression(C=100.0, max_iter=500).fit(means(titles.train), task.y.numpy())
    theirs = peer.score(means(titles.test), task.test[1].numpy())
    mine = model.predict(task.test[0], titles.test, "words").argmax(1)
    assert abs(float((mine == task.test[1]).float().mean()) - theirs) < 0.02


@pytest.mark.slow
def test_words_help_where_images_are_made_of_what_they_name():
    recipe = sicot.Recipe(
        world="attributes", products=100, steps=400, arms=("ce", "sicot", "shuffled"), lr=0.1
    )
    runs = [sicot.experiment(recipe, seed, CPU) for seed in range(2)]
    few = {arm: np.mean([run[f"{arm}/few"] for run in runs]) for arm in recipe.arms}
    assert few["sicot"] > few["ce"] > few["shuffled"]


def test_a_step_can_be_timed(task):
    titles = sicot.draw_titles(task, SMALL, "own")
    for name in ("ce", "sicot"):
        sicot.stepper(SMALL, name, task, titles, 0)()


def test_streams_of_arms_are_shared_and_differ_by_purpose():
    assert torch.equal(torch.rand(3, generator=stream(0, 2)), torch.rand(3, generator=stream(0, 2)))
    assert not torch.equal(
        torch.rand(3, generator=stream(0, 2)), torch.rand(3, generator=stream(0, 3))
    )


# --- recipes ------------------------------------------------------------------------------------


def test_recipes_refuse_what_cannot_run():
    for bad in (
        {"arms": ()},
        {"arms": ("clip",)},
        {"arms": ("sicot@0.1",)},
        {"arms": ("ce+random",)},
        {"inputs": "video"},
        {"world": "moon"},
        {"world": "attributes", "inputs": "images"},
        {"n_min": 9, "n_max": 3},
        {"steps": 0},
    ):
        with pytest.raises(ValueError, match=r"got|must|need"):
            sicot.Recipe(**bad)
    with pytest.raises(ValueError, match="quick or full"):
        sicot.studies("paper")
    with pytest.raises(TypeError, match="recipe of sicot"):
        sicot.experiment(object(), 0, CPU)


def test_names_of_arms_carry_lambda_sampler_and_rate():
    recipe = sicot.Recipe(arms=("kl@1.0+class",), rates=(("sicot", 0.2), ("ce", 0.05)))
    arm = recipe.arm("kl@1.0+class")
    assert (arm.lam, arm.sampler, arm.coupling) == (1.0, "class", "kl")
    assert recipe.rate("kl@1.0+class") == 0.2
    assert recipe.rate("separate") == recipe.rate("crt") == 0.05
    assert recipe.rate("ldam") == recipe.lr
