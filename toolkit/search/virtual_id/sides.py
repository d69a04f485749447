"""Four smaller studies on frozen components: categories, position bias, labels, live traffic."""

from dataclasses import fields, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.data import ClickLog, simulate_clicks
from toolkit.learn.loop import fit, minibatches, predict, warmup_cosine
from toolkit.learn.nets import mlp
from toolkit.search.virtual_id.clusters import VirtualIDs
from toolkit.search.virtual_id.embedding import coclick_embedding
from toolkit.search.virtual_id.examples import first_clicks, majority_category, switches
from toolkit.search.virtual_id.graph import coclick_graph
from toolkit.search.virtual_id.losses import (
    MOST_WEIGHT,
    first_click_loss,
    inverse_propensity,
    switch_click_loss,
)
from toolkit.search.virtual_id.networks import CategoryNetwork, FeatureNetwork
from toolkit.search.virtual_id.recipe import (
    RATES,
    BiasRecipe,
    BudgetRecipe,
    CategoryRecipe,
    Recipe,
    TrafficRecipe,
)
from toolkit.search.virtual_id.shop import Shop, shop_inputs
from toolkit.search.virtual_id.study import (
    Clicks,
    _clicks_key,
    click_rates,
    clicks_of,
    old_features,
)
from toolkit.search.virtual_id.training import (
    Classes,
    arm_classes,
    click_classes,
    evaluate,
    train_feature,
)

# --- categories (C4) ----------------------------------------------------------------------------


def virtual_categories(
    log: ClickLog, shop: Shop, categories: int, seed: int
) -> Int64[Tensor, " leaves"]:
    """Clusters of the co-click graph of leaf categories; −1 for a leaf without an edge.

    One negative sample: with five, hardly a pair of so few, well-joined nodes would stay above the
    closed form's zero.
    """
    graph = coclick_graph(log, "category", leaf=shop.leaf)
    embedding = coclick_embedding(graph, graph.shape[0], "netmf", negatives=1)
    return VirtualIDs.fit(embedding, categories, seed=seed).labels


def run_categories(recipe: CategoryRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """The Category Network with and without its regularisers, and a search in two stages.

    Returns:
        `arm/accuracy` on test photographs, `arm/val`, `arm/idle` and `arm/idle_active` of
        `idle_switches`; `arm/alike`, on the third of the categories
        that look most like another one. With the last arm's categories and a Feature Network on
        Virtual IDs: `search/all`, `search/top1`, `search/top3`: identical Recall@1 over all
        listings and within the 1 or 3 most probable categories.
    """
    base = Recipe(products=recipe.products)
    clicks = clicks_of(_clicks_key(base), seed)
    shop = shop_inputs(recipe.products, "components", device)
    category = virtual_categories(clicks.log, shop, recipe.categories, seed)
    alike = look_alikes(shop, category, recipe.categories)
    results: dict[str, float] = {}
    for arm, rate in zip(recipe.arms, recipe.rates, strict=True):
        net = train_category(recipe, arm, rate, clicks.log, shop, category, seed)
        wanted = category[shop.product_leaf[shop.test_product]]
        right = predict(net, shop.test).argmax(dim=1) == wanted
        known = wanted >= 0
        results |= {
            f"{arm}/{name}": value
            for name, value in idle_switches(recipe, net, clicks.log, shop, category).items()
        }
        results[f"{arm}/accuracy"] = float(right[known].double().mean())
        results[f"{arm}/alike"] = float(right[known & alike[wanted]].double().mean())
        wanted = category[shop.product_leaf[shop.val_product]]
        right = predict(net, shop.val).argmax(dim=1) == wanted
        results[f"{arm}/val"] = float(right[wanted >= 0].double().mean())
    return results | _two_stages(base, clicks, shop, category, predict(net, shop.test), seed)


def train_category(
    recipe: CategoryRecipe,
    arm: str,
    rate: float,
    log: ClickLog,
    shop: Shop,
    category: Int64[Tensor, " leaves"],
    seed: int,
) -> CategoryNetwork:
    """L_cat = CE(p, v_c) + λ₁ L_first + λ₂ L_switch; the arm's name says which terms there are."""
    target = majority_category(log, category[shop.leaf])
    listing, position = first_clicks(log)
    first = torch.where(listing < 0, -1, category[shop.leaf[listing]])
    weight = inverse_propensity(position.clamp(min=1)).clamp(max=MOST_WEIGHT)
    rows = ((target >= 0) & (first >= 0)).nonzero()[:, 0]
    columns = (log.query, target, first, weight, *switches(log, category))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = shop.queries.shape[1]
        backbone = torch.nn.Sequential(mlp(width, recipe.hidden), torch.nn.ReLU())
        net = CategoryNetwork(backbone, recipe.hidden, recipe.categories)
    net.to(shop.queries.device)

    def loss(model: torch.nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        query, target, first, weight, left, entered = batch
        logits = model(shop.queries[query])
        total = F.cross_entropy(logits, target)
        if "first" in arm:
            total = total + recipe.first * first_click_loss(logits, first, weight)
        if "switch" in arm:
            switched = switch_click_loss(logits, left, entered, recipe.margin)
            total = total + recipe.switch * switched
        return total

    draw = torch.Generator().manual_seed(seed)
    visits = [column[rows].to(shop.queries.device) for column in columns]
    batches = minibatches(*visits, size=recipe.batch, steps=recipe.steps, generator=draw)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    schedule = LambdaLR(optimizer, lambda t: warmup_cosine(t, recipe.steps))
    fit(net, batches, loss, optimizer, schedule=schedule)
    return net


def idle_switches(
    recipe: CategoryRecipe,
    net: CategoryNetwork,
    log: ClickLog,
    shop: Shop,
    category: Int64[Tensor, " leaves"],
) -> dict[str, float]:
    """Who drives the switch term?

    Returns:
        `idle`, the share of switches to a category that is not the true one, and `idle_active`, the
        same among those whose hinge is above 0.
    """
    left, entered = switches(log, category)
    rows = left >= 0
    log_p = predict(net, shop.queries[log.query[rows]]).log_softmax(dim=1)
    apart = log_p.gather(1, entered[rows, None]) - log_p.gather(1, left[rows, None])
    active = (apart < recipe.margin)[:, 0]
    idle = entered[rows] != category[shop.product_leaf[shop.query_product[log.query[rows]]]]
    return {
        "idle": float(idle.double().mean()),
        "idle_active": float(idle[active].double().mean()),
    }


def look_alikes(
    shop: Shop, category: Int64[Tensor, " leaves"], categories: int
) -> Bool[Tensor, " categories"]:
    """The third of the virtual categories whose pictures have the nearest other category.

    Nearness is the cosine of the categories' mean components, as the listings have them.
    """
    kind = category[shop.leaf]
    known = kind >= 0
    centre = torch.zeros(categories, shop.listings.shape[1])
    centre.index_add_(0, kind[known], shop.listings[known])
    unit = F.normalize(centre, dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-1).amax(dim=1)
    alike = torch.zeros(categories, dtype=torch.bool)
    alike[nearest.topk(categories // 3).indices] = True
    return alike


def _two_stages(
    base: Recipe,
    clicks: Clicks,
    shop: Shop,
    category: Int64[Tensor, " leaves"],
    logits: Float[Tensor, "test categories"],
    seed: int,
) -> dict[str, float]:
    net = _feature_net(base, "virtual", clicks, clicks.log, shop, seed)
    listings, test = predict(net, shop.listings), predict(net, shop.test)
    score = test @ listings.T
    kind = category[shop.leaf]

    def recall(allowed: Tensor) -> float:
        best = score.masked_fill(~allowed, -torch.inf).argmax(dim=1)
        return float((shop.product[best] == shop.test_product).double().mean())

    found = {"search/all": recall(torch.ones_like(score, dtype=torch.bool))}
    for top in (1, 3):
        chosen = logits.topk(top, dim=1).indices
        found[f"search/top{top}"] = recall((kind[None, :, None] == chosen[:, None]).any(dim=2))
    return found


# --- position bias (C6) -------------------------------------------------------------------------


def run_bias(recipe: BiasRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """The list loss on clicks with position bias, on the same with propensities, and without bias.

    Returns:
        `arm/recall` and `arm/val`; `arm/copies`: over lists of the log, the mean rank correlation
        of the new score with the old order among listings of other products.
    """
    base = recipe.base
    clicks = clicks_of(_clicks_key(base), seed)
    shop = shop_inputs(base.products, "components", device)
    fair = without_position_bias(clicks.log, shop, click_rates(base.p_other), seed)
    results: dict[str, float] = {}
    for arm, rate in zip(recipe.arms, recipe.rates, strict=True):
        log = fair if arm == "unbiased" else clicks.log
        loss = "list" if arm == "corrected" else "raw_list"
        net = _feature_net(base, loss, clicks, log, shop, seed, rate)
        metrics = evaluate(net, shop) | {"copies": copied_order(net, clicks.log, shop)}
        results |= {f"{arm}/{name}": value for name, value in metrics.items()}
    return results


def without_position_bias(
    log: ClickLog, shop: Shop, p: tuple[float, float, float], seed: int
) -> ClickLog:
    """The same lists, looked at evenly: every position with the mean probability of the real ones.

    What the visitors click once they look is as before, so the number of looks is, too.
    """
    generator = torch.Generator().manual_seed(seed)
    product = shop.query_product[log.query][:, None]
    same = shop.product[log.shown] == product
    alike = shop.leaf[log.shown] == shop.product_leaf[product]
    rate = torch.where(same, p[0], torch.where(alike, p[1], p[2]))
    look = (1 / torch.log2(torch.arange(log.shown.shape[1]) + 2.0)).mean()
    clicked = torch.rand(rate.shape, generator=generator) < rate * look
    order = torch.where(clicked, clicked.cumsum(dim=1) - 1, -1).to(log.click_order.dtype)
    return replace(log, clicked=clicked, click_order=order)


@torch.no_grad()
def copied_order(net: FeatureNetwork, log: ClickLog, shop: Shop, visits: int = 2000) -> float:
    """Spearman's correlation of new score and old order among shown listings of other products."""
    queries, listings = predict(net, shop.queries), predict(net, shop.listings)
    rows = slice(0, visits)
    shown, query = log.shown[rows], log.query[rows]
    score = torch.einsum("vd,vsd->vs", queries[query], listings[shown])
    other = shop.product[shown] != shop.query_product[query][:, None]
    correlations = []
    for new, keep in zip(score, other, strict=True):
        rank = new[keep].argsort(descending=True).argsort().float()
        old = torch.arange(len(rank)).float()
        if len(rank) > 2:
            correlations.append(torch.corrcoef(torch.stack([rank, old]))[0, 1])
    return float(torch.stack(correlations).mean())


# --- labels (C5) --------------------------------------------------------------------------------


def run_budgets(recipe: BudgetRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Clicks alone, and supervised networks on n pictures whose product is known.

    Half of the n are listings, half photographs, drawn at random.

    Returns:
        `clicks/recall`, `labels/recall@n`, and `val` likewise.
    """
    base = recipe.base
    clicks = clicks_of(_clicks_key(base), seed)
    shop = shop_inputs(base.products, "components", device)
    net = _feature_net(base, base.arms[0], clicks, clicks.log, shop, seed)
    results = {f"clicks/{name}": value for name, value in evaluate(net, shop).items()}
    truth = arm_classes("truth", clicks.log, shop, clicks.ids, clicks.content, seed)
    for budget, rate in zip(recipe.budgets, recipe.rates, strict=True):
        classes = labelled(truth, clicks.log, shop, budget, seed)
        net = train_feature(
            base, "truth", rate, clicks.log, shop, classes, old_features(shop), seed
        )
        found = evaluate(net, shop)
        results |= {f"labels/{name}@{budget}": value for name, value in found.items()}
    return results


def labelled(truth: Classes, log: ClickLog, shop: Shop, budget: int, seed: int) -> Classes:
    """The truth of `budget` random pictures, half of them listings; −1 for all others."""
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for count in (len(shop.listings), len(shop.queries)):
        mask = torch.zeros(count, dtype=torch.bool)
        mask[torch.randperm(count, generator=generator)[: budget // 2]] = True
        kept.append(mask)
    listing = torch.where(kept[0], truth.listing, -1)
    return Classes(listing, torch.where(kept[1][log.query], truth.visit, -1), truth.count)


# --- traffic (C7) -------------------------------------------------------------------------------


def run_traffic(recipe: TrafficRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train on some photographs' visits, then let the shop answer the others with the new feature.

    Old and new engine meet the same visitors: what they look at and whom they like is drawn from
    the same numbers. Both get the same help from text and sales (`affinity`).

    Returns:
        `old/clicks`, `new/clicks`: clicks a visit; `old/right`, `new/right`: those on the right
        product; all on photographs that no training has seen.
    """
    base = recipe.base
    clicks = clicks_of(_clicks_key(base), seed)
    shop = shop_inputs(base.products, "components", device)
    held = torch.arange(len(shop.queries)) % 7 >= 7 - recipe.held_out
    seen = rows_of(clicks.log, ~held[clicks.log.query])
    known = _train_on(base, recipe.arm, clicks, seen, shop, seed)
    similarity = predict(known, shop.queries) @ predict(known, shop.listings).T
    p = click_rates(base.p_other)
    results: dict[str, float] = {}
    for name, engine in (("old", None), ("new", similarity.cpu())):
        log = simulate_clicks(base.products, len(held), seed + NEW_VISITORS, p, similarity=engine)
        log = rows_of(log, held[log.query])
        right = shop.product[log.shown] == shop.query_product[log.query][:, None]
        results[f"{name}/clicks"] = float(log.clicked.sum(dim=1).double().mean())
        results[f"{name}/right"] = float((log.clicked & right).sum(dim=1).double().mean())
    return results


NEW_VISITORS = 5000
"""Added to the seed of a log for visitors that no training has seen."""


def rows_of(log: ClickLog, mask: Bool[Tensor, " visits"]) -> ClickLog:
    """Some visits of a log."""
    return ClickLog(*(getattr(log, field.name)[mask] for field in fields(log)))


def _train_on(
    base: Recipe, arm: str, clicks: Clicks, log: ClickLog, shop: Shop, seed: int
) -> FeatureNetwork:
    """The whole chain on a part of the log: graph, embedding, Virtual IDs, network."""
    graph = coclick_graph(log, leaf=shop.leaf)
    embedding = coclick_embedding(graph, base.rank, "netmf")
    ids = VirtualIDs.fit(embedding, base.clusters, seed=seed)
    return _feature_net(base, arm, replace(clicks, ids=ids, graph=graph), log, shop, seed)


def _feature_net(
    base: Recipe,
    arm: str,
    clicks: Clicks,
    log: ClickLog,
    shop: Shop,
    seed: int,
    rate: float | None = None,
) -> FeatureNetwork:
    ids = clicks.ids.without_small()
    classes = click_classes(log, ids.labels, ids.k)
    rate = RATES[base.backbone][arm] if rate is None else rate
    return train_feature(base, arm, rate, log, shop, classes, old_features(shop), seed)
