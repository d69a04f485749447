"""The chapter's studies on a small shop: every arm learns what it is told, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from toolkit.data import simulate_clicks
from toolkit.search import virtual_id
from toolkit.search.virtual_id import sides, study, training

CPU = torch.device("cpu")
SMALL = replace(
    virtual_id.Recipe(), products=40, visits=840, clusters=40, rank=48, steps=60, hidden=64
)
GRID = virtual_id.GridRecipe(products=40, visits=840, clusters=40, rank=48)


@pytest.fixture(scope="module")
def shop():
    return virtual_id.shop_inputs(40, "components", CPU)


@pytest.fixture(scope="module")
def clicks():
    return virtual_id.clicks_of(study._clicks_key(SMALL), 0)


def test_test_photographs_are_the_first_two_of_each_product(shop):
    assert shop.test_product.tolist() == np.repeat(np.arange(40), 2).tolist()
    assert len(shop.queries) == 280
    assert shop.listings.shape == (240, 128)


def test_a_seed_repeats_and_arms_do_not_depend_on_their_company():
    both = virtual_id.experiment(replace(SMALL, arms=("leaf", "virtual")), 3, CPU)
    alone = virtual_id.experiment(replace(SMALL, arms=("virtual",)), 3, CPU)
    assert {name: both[name] for name in alone} == alone
    assert virtual_id.experiment(replace(SMALL, arms=("virtual",)), 4, CPU) != alone


def test_every_arm_trains_with_as_many_pictures_a_step(shop, clicks):
    for arm in virtual_id.FEATURE_ARMS:
        classes = virtual_id.arm_classes(arm, clicks.log, shop, clicks.ids, clicks.content, 0)
        batches, _ = training._arm(
            SMALL, arm, clicks.log, shop, classes, virtual_id.old_features(shop), torch.Generator()
        )
        assert len(next(batches)[0]) == 126, arm


@pytest.mark.parametrize("arm", virtual_id.FEATURE_ARMS)
def test_every_arm_lowers_its_loss(arm, shop, clicks):
    classes = virtual_id.arm_classes(arm, clicks.log, shop, clicks.ids, clicks.content, 0)
    torch.manual_seed(0)
    net = virtual_id.feature_network(SMALL, classes.count, 0, (128,))
    old = virtual_id.old_features(shop)
    draw = torch.Generator().manual_seed(0)
    batches, loss = training._arm(SMALL, arm, clicks.log, shop, classes, old, draw)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    losses = []
    for _ in range(60):
        value = loss(net, next(batches))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_truth_is_for_evaluation_only(clicks, shop):
    """Another truth changes nothing in what the clicks arms are told, but the bound's classes."""
    other = replace(
        shop,
        product=shop.product.flip(0),
        query_product=shop.query_product.flip(0),
        test_product=shop.test_product.flip(0),
    )
    for arm in virtual_id.FEATURE_ARMS:
        told = [
            virtual_id.arm_classes(arm, clicks.log, s, clicks.ids, clicks.content, 0)
            for s in (shop, other)
        ]
        same = torch.equal(told[0].listing, told[1].listing)
        assert same == (arm != "truth"), arm


def test_permuted_keeps_the_click_and_random_does_not(shop, clicks):
    first, _ = virtual_id.first_clicks(clicks.log)
    some = first >= 0

    def follows(arm):
        c = virtual_id.arm_classes(arm, clicks.log, shop, clicks.ids, clicks.content, 0)
        return float((c.visit[some] == c.listing[first[some]]).float().mean())

    assert follows("virtual") == follows("permuted") == 1
    assert follows("random") < 0.3
    ids = virtual_id.arm_classes("virtual", clicks.log, shop, clicks.ids, clicks.content, 0)
    permuted = virtual_id.arm_classes("permuted", clicks.log, shop, clicks.ids, clicks.content, 0)
    assert torch.equal(ids.listing.sort().values, permuted.listing.sort().values)
    assert (ids.listing == permuted.listing).float().mean() < 0.2


def test_no_cluster_of_one_is_a_class(shop, clicks):
    classes = virtual_id.arm_classes("virtual", clicks.log, shop, clicks.ids, clicks.content, 0)
    assert torch.bincount(classes.listing[classes.listing >= 0]).ne(1).all()


def test_both_clusterings_are_judged_on_the_same_listings(clicks, shop):
    quality = study.cluster_quality(clicks, shop.product)
    assert 0.5 < quality["clusters/covered"] <= 1
    assert quality["clusters/coclick"] > quality["clusters/content"] > 0
    perfect = replace(clicks, ids=replace(clicks.ids, labels=shop.product))
    assert study.cluster_quality(perfect, shop.product)["clusters/coclick"] == 1


def test_dirty_clicks_spoil_the_clusters():
    clean, dirty = (virtual_id.experiment(replace(GRID, p_other=p), 0, CPU) for p in (0.01, 0.3))
    assert clean["clusters/purity"] > dirty["clusters/purity"] + 0.2
    assert clean["clusters/coclick"] > dirty["clusters/coclick"] + 0.2


@pytest.mark.slow
def test_all_methods_cluster_the_same_graph():
    found = virtual_id.experiment(replace(GRID, methods=virtual_id.METHODS), 0, CPU)
    for method in virtual_id.METHODS[1:]:
        assert -0.1 <= found[f"clusters/{method}"] <= 1
    assert abs(found["clusters/sgns"] - found["clusters/coclick"]) < 0.2


# --- the side studies ---------------------------------------------------------------------------


def test_categories_report_all_arms_and_two_stages():
    recipe = virtual_id.CategoryRecipe(products=40, categories=6, steps=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sides, "Recipe", lambda **_: SMALL)
        found = virtual_id.experiment(recipe, 0, CPU)
    for arm in recipe.arms:
        assert 0.2 < found[f"{arm}/accuracy"] <= 1
    assert {"search/all", "search/top1", "search/top3"} < set(found)


def test_switch_term_moves_mass_to_the_tab_that_was_chosen(shop, clicks):
    category = virtual_id.virtual_categories(clicks.log, shop, 6, 0)
    left, entered = virtual_id.switches(clicks.log, category)
    some = left >= 0
    assert 0.02 < some.float().mean() < 0.3

    def satisfied(arm, switch):
        recipe = virtual_id.CategoryRecipe(categories=6, steps=80, switch=switch)
        net = virtual_id.train_category(recipe, arm, 0.004, clicks.log, shop, category, 0)
        with torch.no_grad():
            log_p = net(shop.queries[clicks.log.query[some]]).log_softmax(1)
        rows = torch.arange(len(log_p))
        return float((log_p[rows, entered[some]] - log_p[rows, left[some]] > 1).float().mean())

    assert satisfied("first+switch", 4.0) > satisfied("first", 4.0) + 0.02


def test_look_alikes_are_a_third_of_the_categories(shop, clicks):
    category = virtual_id.virtual_categories(clicks.log, shop, 6, 0)
    assert virtual_id.look_alikes(shop, category, 6).sum() == 2


def test_without_bias_all_positions_are_looked_at_equally(shop):
    log = simulate_clicks(40, visits=4000, p=(0.5, 0.5, 0.5))
    fair = virtual_id.without_position_bias(log, shop, (0.5, 0.5, 0.5), 0)
    rate = fair.clicked.double().mean(0)
    assert rate.std() < 0.02
    assert float(rate.mean()) == pytest.approx(float(log.clicked.double().mean()), rel=0.05)
    assert torch.equal(fair.click_order >= 0, fair.clicked)
    counted = fair.click_order[0][fair.clicked[0]].sort().values
    assert counted.tolist() == list(range(len(counted)))


def test_budget_labels_so_many_pictures(shop, clicks):
    truth = virtual_id.arm_classes("truth", clicks.log, shop, clicks.ids, clicks.content, 0)
    some = sides.labelled(truth, clicks.log, shop, 100, 0)
    assert (some.listing >= 0).sum() == 50
    assert len(clicks.log.query[some.visit >= 0].unique()) == 50


@pytest.mark.slow
def test_side_studies_run():
    bias = virtual_id.experiment(virtual_id.BiasRecipe(base=SMALL), 0, CPU)
    assert all(-1 <= bias[f"{arm}/copies"] <= 1 for arm in ("biased", "corrected", "unbiased"))
    labels = virtual_id.experiment(
        virtual_id.BudgetRecipe(budgets=(60, 400), rates=(0.004, 0.004), base=SMALL), 0, CPU
    )
    assert labels["labels/recall@400"] > labels["labels/recall@60"]
    traffic = virtual_id.experiment(virtual_id.TrafficRecipe(base=SMALL), 0, CPU)
    assert traffic["old/clicks"] > traffic["old/right"] > 0


@pytest.mark.parametrize(
    ("recipe", "error"),
    [
        (replace(SMALL, arms=("best",)), ValueError),
        (replace(SMALL, rates=(1.0,)), ValueError),
        (object(), TypeError),
    ],
)
def test_experiment_refuses_bad_recipes(recipe, error):
    with pytest.raises(error, match=r"arm|rates|need a recipe"):
        virtual_id.experiment(recipe, 0, CPU)


def test_studies_know_two_profiles():
    assert len(virtual_id.studies("full")["phase"]) == 16
    with pytest.raises(ValueError, match="quick or full"):
        virtual_id.studies("paper")
