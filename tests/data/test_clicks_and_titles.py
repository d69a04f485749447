"""The shop's visitors and sellers, on the prepared data."""

from collections import Counter
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import data
from toolkit.data import draw_title, simulate_clicks


@pytest.fixture(scope="module")
def shop():
    return data.load_emoji_shop(50)


@pytest.fixture(scope="module")
def queries(shop):
    return shop.queries["train"]


@pytest.fixture(scope="module")
def log():
    return simulate_clicks(50)


def columns(log):
    return vars(log).values()


def test_every_train_query_comes_three_times_in_turn(queries, log):
    assert len(log.query) == 1050
    assert torch.equal(log.query, torch.arange(1050) % 350)
    assert len(queries.product) == 350


def test_shown_listings_are_thirty_different_ones_of_the_shop(log):
    assert log.shown.shape == (1050, 30)
    assert (log.shown.sort(1).values.diff(dim=1) > 0).all()
    assert log.shown.min() >= 0
    assert log.shown.max() < 300


def test_the_querys_own_listing_is_never_shown(queries):
    for affinity in (0.0, 0.5, 5.0):
        log = simulate_clicks(50, affinity=affinity)
        own = 6 * queries.product[log.query] + queries.vendor[log.query]
        assert not (log.shown == own[:, None]).any()


def test_nothing_of_val_and_test_enters_a_log(log, monkeypatch):
    """The log stays the same when these splits hold something else."""
    whole = data.load_emoji_shop(50)
    only_train = type(whole)(**(vars(whole) | {"queries": {"train": whole.queries["train"]}}))
    monkeypatch.setattr(data.shop_clicks, "load_emoji_shop", lambda products: only_train)
    data.shop_clicks._old_engine.cache_clear()
    again = simulate_clicks(50)
    assert all(torch.equal(one, other) for one, other in zip(columns(log), columns(again)))  # noqa: B905


def test_a_seed_gives_one_log_and_another_seed_another(log):
    again, other = simulate_clicks(50), simulate_clicks(50, seed=1)
    assert all(torch.equal(*pair) for pair in zip(columns(log), columns(again), strict=True))
    assert not torch.equal(log.clicked, other.clicked)
    assert not torch.equal(log.shown, other.shown)
    assert not torch.equal(log.tab, other.tab)


def test_longer_logs_begin_with_the_shorter_ones(log):
    few = simulate_clicks(50, visits=501)
    for short, long in zip(columns(few), columns(log), strict=True):
        assert torch.equal(short, long[:501])


def test_engine_without_noise_shows_the_best_by_its_score(shop, queries):
    log = simulate_clicks(50, visits=350, noise=0.0)
    score = data.old_engine(shop) + 0.5 * (queries.product[:, None] == shop.product)
    own = 6 * queries.product + queries.vendor
    for query in range(0, 350, 29):
        ranked = [int(one) for one in score[query].argsort(descending=True) if one != own[query]]
        assert log.shown[query].tolist() == ranked[:30]


def test_engine_is_the_cosine_in_principal_components(shop, queries):
    """Against components from a plain singular value decomposition."""
    thumbnails = torch.nn.functional.interpolate(
        shop.catalogue.double() / 255, size=32, mode="area"
    )
    listings = thumbnails.flatten(1)
    mean = listings.mean(0)
    basis = torch.linalg.svd(listings - mean, full_matrices=False).Vh[:128]
    crop = torch.nn.functional.interpolate(queries.crop[:5].double() / 255, size=32, mode="area")
    found, sought = ((x - mean) @ basis.T for x in (listings, crop.flatten(1)))
    expected = torch.cosine_similarity(sought[:, None], found[None], dim=2)
    torch.testing.assert_close(data.old_engine(shop)[:5].double(), expected, atol=1e-4, rtol=0)


def test_another_engine_takes_its_place(queries):
    wanted = torch.zeros(350, 300)
    wanted[:, 100:140] = torch.linspace(2, 1, 40)
    log = simulate_clicks(50, visits=350, affinity=0.0, noise=0.0, similarity=wanted)
    own = 6 * queries.product + queries.vendor
    far = (own < 100) | (own >= 140)
    assert (log.shown[far] == torch.arange(100, 130)).all()


def test_clicks_follow_examination_and_relevance(shop, queries):
    log = simulate_clicks(50, visits=20_000)
    product = queries.product[log.query][:, None]
    same = shop.product[log.shown] == product
    leaf = shop.leaf[shop.product[log.shown]] == shop.leaf[product]
    kinds = {0.6: same, 0.15: leaf & ~same, 0.05: ~leaf}
    for rank in (0, 1, 4, 12):
        for p, kind in kinds.items():
            clicked = log.clicked[:, rank][kind[:, rank]].double()
            expected = p / np.log2(rank + 2)
            error = (expected * (1 - expected) / len(clicked)) ** 0.5
            assert abs(clicked.mean() - expected) < 4 * error, (rank, p)


def test_certain_clicks_are_the_examined_ones():
    log = simulate_clicks(50, visits=20_000, p=(1.0, 1.0, 1.0))
    examined = 1 / np.log2(np.arange(1, 31) + 1)
    assert log.clicked[:, 0].all()
    np.testing.assert_allclose(log.clicked.double().mean(0), examined, atol=0.015)
    assert not simulate_clicks(50, p=(0.0, 0.0, 0.0)).clicked.any()


def test_click_order_numbers_the_clicks_of_a_visit(log):
    assert torch.equal(log.click_order >= 0, log.clicked)
    for order, clicked in zip(log.click_order, log.clicked, strict=True):
        assert sorted(order[clicked].tolist()) == list(range(int(clicked.sum())))


def test_seventy_percent_of_visitors_click_the_right_product_first(shop, queries):
    log = simulate_clicks(50, visits=20_000)
    same = shop.product[log.shown] == queries.product[log.query][:, None]
    eager = by_position = 0
    for order, right, clicked in zip(log.click_order, same, log.clicked, strict=True):
        positions = order[clicked].argsort()
        kinds = right[clicked]
        if bool(kinds.any()) and bool((~kinds).any()) and not bool(kinds[0]):
            by_position += positions.tolist() == list(range(len(positions)))
            eager += bool(kinds[positions][: int(kinds.sum())].all())
            right_first = torch.cat([kinds.nonzero()[:, 0], (~kinds).nonzero()[:, 0]])
            assert positions.tolist() in (right_first.tolist(), list(range(len(positions))))
    assert eager / (eager + by_position) == pytest.approx(0.7, abs=0.03)


def test_tabs_are_right_in_three_visits_of_four_and_switched_as_said():
    shop = data.load_emoji_shop(300)
    log = simulate_clicks(300, visits=10_000)
    true = shop.leaf[shop.queries["train"].product[log.query]]
    right = log.tab == true
    assert right.double().mean() == pytest.approx(0.75, abs=0.01)
    department = dict(zip(shop.leaf.tolist(), shop.department.tolist(), strict=True))
    assert all(
        department[tab] == department[leaf]
        for tab, leaf in zip(log.tab.tolist(), true.tolist(), strict=True)
    )
    switched = log.switched_to >= 0
    assert switched[~right].double().mean() == pytest.approx(0.5, abs=0.02)
    assert switched[right].double().mean() == pytest.approx(0.03, abs=0.008)
    assert torch.equal(log.switched_to[switched & ~right], true[switched & ~right])
    assert (log.switched_to[switched & right] != true[switched & right]).all()
    assert len(log.switched_to[switched & right].unique()) > 30


def test_leaf_alone_in_its_department_is_mistaken_for_any_other():
    shop = data.load_emoji_shop(6)
    log = simulate_clicks(6, visits=2000)
    alone = [
        leaf
        for leaf, department in zip(shop.leaf, shop.department, strict=True)
        if len(shop.leaf[shop.department == department].unique()) == 1
    ]
    true = shop.leaf[shop.queries["train"].product[log.query]]
    for leaf in alone:
        tabs = set(log.tab[true == leaf].tolist())
        assert tabs == set(shop.leaf.tolist())
    assert alone


def pair_purity(product, log):
    """Share of co-click weight, 1 / (clicks − 1) a pair, that joins listings of one product."""
    joined = total = 0.0
    for shown, clicked in zip(log.shown, log.clicked, strict=True):
        products = product[shown[clicked]].tolist()
        for one, other in combinations(products, 2):
            total += 1 / (len(products) - 1)
            joined += (one == other) / (len(products) - 1)
    return joined / total


@pytest.mark.slow
@pytest.mark.parametrize(("affinity", "several", "purity"), [(0.0, 0.20, 0.19), (0.5, 0.60, 0.59)])
def test_a_mature_engine_is_needed_for_pure_pairs(affinity, several, purity):
    """Of 6,000 visits in the shop of 300 products."""
    shop = data.load_emoji_shop(300)
    log = simulate_clicks(300, visits=6000, affinity=affinity)
    assert (log.clicked.sum(1) > 1).double().mean() == pytest.approx(several, abs=0.03)
    assert pair_purity(shop.product, log) == pytest.approx(purity, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"products": 5}, "at least 6 products, got 5"),
        ({"products": 601}, "1 to 600, got 601"),
        ({"products": 50, "visits": 0}, "at least 1, got 0"),
        ({"products": 50, "p": (0.6, 0.15, 1.5)}, "three probabilities"),
        ({"products": 50, "noise": -0.1}, "not be negative"),
        ({"products": 50, "similarity": torch.zeros(350, 299)}, r"shape \(350, 300\)"),
    ],
)
def test_impossible_simulations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_clicks(**options)


def test_log_survives_being_a_table(log):
    again = data.ClickLog.from_frame(log.to_frame())
    assert all(torch.equal(*pair) for pair in zip(columns(log), columns(again), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clicks": [[0], [3]]}, "visit 1: clicks must be different positions from 0 to 2"),
        ({"clicks": [[0, 0], []]}, "visit 0: clicks must be different"),
        ({"clicks": [[-1], []]}, "visit 0: clicks"),
        ({"shown": [[1, 2], [1, 2, 3]]}, r"equally many listings, got \[2, 3\]"),
        ({"times": [[2.0, 1.0], []]}, "visit 0: times must rise"),
        ({"times": [[2.0], []]}, "visit 0: times must rise, one for each of 2"),
    ],
)
def test_logs_that_cannot_be_are_refused(changes, message):
    good = {
        "query": [0, 1],
        "shown": [[4, 5, 6], [7, 8, 9]],
        "clicks": [[2, 0], []],
        "tab": [3, 3],
        "switched_to": [-1, 4],
    }
    assert data.ClickLog.from_frame(pd.DataFrame(good)).click_order.tolist()[0] == [1, -1, 0]
    with pytest.raises(ValueError, match=message):
        data.ClickLog.from_frame(pd.DataFrame(good | changes))


def test_log_without_a_column_is_refused(log):
    with pytest.raises(ValueError, match=r"missing: \['tab'\]"):
        data.ClickLog.from_frame(log.to_frame().drop(columns="tab"))


def titles(tokens, count=4000, p=0, **options):
    return [
        draw_title(tokens, p, np.random.default_rng([6, 0, i]), **options) for i in range(count)
    ]


def test_no_product_has_a_sellers_word():
    real = {word for words in data.load_emoji_shop().tokens for word in words}
    assert len(set(data.SELLER_WORDS)) == 40
    assert not real & set(data.SELLER_WORDS)


def test_clean_titles_are_the_products_words(shop):
    for product, words in enumerate(shop.tokens):
        rng = np.random.default_rng(product)
        title = draw_title(shop.tokens, product, rng, keep=1, swap=0, noise=0, max_len=99)
        assert sorted(title) == words


def test_words_are_kept_swapped_and_joined_by_noise_as_often_as_said():
    tokens = [["a", "b", "c", "d"], ["x", "y"], ["z"]]
    drawn = titles(tokens)
    counts = Counter(word for title in drawn for word in title)
    swapped = sum(counts[word] for word in "xyz") / 4000
    assert swapped == pytest.approx(0.15, abs=0.02)
    assert counts["z"] == pytest.approx(counts["x"] + counts["y"], rel=0.2)
    assert sum(counts[word] for word in "abcd") / 4000 == pytest.approx(4 * 0.85 - 0.15, abs=0.04)
    assert all(sum(word.endswith("!") for word in title) == 5 for title in drawn)
    harmonic = sum(1 / k for k in range(1, 41))
    for k in (1, 2, 10):
        share = counts[data.SELLER_WORDS[k - 1]] / 20_000
        assert share == pytest.approx(1 / k / harmonic, abs=0.01)


def test_at_least_one_word_stays():
    for title in titles([["a", "b"], ["x"]], 200, keep=0, swap=0):
        assert sum(word in ("a", "b") for word in title) == 1


def test_words_are_shuffled():
    first = Counter(title[0] for title in titles([["a", "b"], ["x"]], 600, keep=1, swap=0, noise=1))
    assert 150 < first["a"] < 250
    assert 150 < first["b"] < 250


@given(
    keep=st.floats(0, 1), swap=st.floats(0, 1), noise=st.integers(0, 40),
    max_len=st.integers(1, 64), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_titles_have_known_words_and_a_bounded_length(keep, swap, noise, max_len, seed):
    tokens = [["a", "b", "c"], ["x", "y"], []]
    for product, words in enumerate(tokens):
        options = {"keep": keep, "swap": swap, "noise": noise, "max_len": max_len}
        title = draw_title(tokens, product, np.random.default_rng(seed), **options)
        again = draw_title(tokens, product, np.random.default_rng(seed), **options)
        assert title == again
        assert min(max_len, noise + bool(words)) <= len(title) <= min(max_len, noise + len(words))
        assert set(title) <= {*"abcxy", *data.SELLER_WORDS}


@pytest.mark.parametrize("wrong", [{"keep": 1.1}, {"swap": -1}, {"noise": -1}, {"max_len": 0}])
def test_impossible_titles_are_refused(shop, wrong):
    with pytest.raises(ValueError, match="keep and swap must be from 0 to 1"):
        draw_title(shop.tokens, 0, np.random.default_rng(0), **wrong)


def test_swap_needs_another_product_with_words():
    with pytest.raises(ValueError, match="no other product"):
        draw_title([["a"], []], 0, np.random.default_rng(0), swap=1)


def test_shared_words_name_two_products_at_least():
    assert data.shared_only([["a", "b"], ["b", "c"], ["d"]]) == [["b"], ["b"], []]
    shop = data.load_emoji_shop()
    counts = Counter(word for words in data.shared_only(shop.tokens) for word in words)
    assert min(counts.values()) >= 2
