"""Training the Feature Network: one loop for every arm, equal pictures a step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from toolkit.data import ClickLog
from toolkit.learn.loop import fit, predict, warmup_cosine
from toolkit.learn.nets import conv_net, mlp
from toolkit.search.triplets import (
    Triplets,
    cleaning_thresholds,
    mine_triplets,
    triplet_click_loss,
)
from toolkit.search.virtual_id.clusters import VirtualIDs
from toolkit.search.virtual_id.examples import draw_lists, draw_triplets, first_clicks
from toolkit.search.virtual_id.losses import inverse_propensity, listwise_click_loss
from toolkit.search.virtual_id.networks import FeatureNetwork
from toolkit.search.virtual_id.recipe import Recipe
from toolkit.search.virtual_id.shop import Shop, recall_at_1

Batch = tuple[Tensor, ...]
Batches = Iterator[Batch]


@dataclass(frozen=True)
class Classes:
    """A class for every listing and for the photograph of every visit; −1: takes no part."""

    listing: Int64[Tensor, "listings"]
    visit: Int64[Tensor, "visits"]
    count: int


def click_classes(log: ClickLog, listing: Int64[Tensor, " listings"], count: int) -> Classes:
    """Each visit's photograph takes the class of the listing that was clicked first."""
    first, _ = first_clicks(log)
    return Classes(listing, torch.where(first < 0, -1, listing[first]), count)


def arm_classes(
    arm: str, log: ClickLog, shop: Shop, ids: VirtualIDs, content: VirtualIDs, seed: int
) -> Classes:
    """The classes of a classifying arm.

    "virtual": Virtual IDs; "leaf": leaf categories; "content": clusters of the pictures; "truth":
    true products, the upper bound; "permuted": Virtual IDs on random listings, the photograph still
    follows its click; "random": the same, and photographs permuted as well.
    """
    if arm == "leaf":
        return click_classes(log, shop.leaf, int(shop.leaf.max()) + 1)
    if arm == "truth":
        wanted = shop.query_product[log.query]
        return Classes(shop.product, wanted, int(shop.product.max()) + 1)
    labels = (content if arm == "content" else ids).without_small()
    if arm in ("permuted", "random"):
        labels = labels.permuted(seed)
    classes = click_classes(log, labels.labels, labels.k)
    if arm == "random":
        order = torch.randperm(len(log.query), generator=torch.Generator().manual_seed(seed))
        return Classes(classes.listing, classes.visit[order], classes.count)
    return classes


def train_feature(
    recipe: Recipe,
    arm: str,
    rate: float,
    log: ClickLog,
    shop: Shop,
    classes: Classes,
    old: tuple[Tensor, Tensor],
    seed: int,
) -> FeatureNetwork:
    """Train one arm: `recipe.steps` steps of Adam with a cosine schedule, 126 pictures a step.

    Args:
        recipe: sizes and weights of the losses.
        arm: `"joint"`, `"triplet"`, `"list"`, `"raw_list"` (without propensities), `"infonce"`; any
            other name classifies only.
        rate: of Adam.
        log: what the arm may know of the visitors.
        shop: the pictures.
        classes: of the classifying arms and of `"joint"`.
        old: older features of queries and listings, which clean the triplets.
        seed: of weights and batches.
    """
    device = shop.listings.device
    net = feature_network(recipe, classes.count, seed, shop.listings.shape[1:]).to(device)
    draw = torch.Generator().manual_seed(seed)
    batches, loss = _arm(recipe, arm, log, shop, classes, old, draw)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    schedule = LambdaLR(optimizer, lambda t: warmup_cosine(t, recipe.steps))
    fit(net, _first(batches, recipe.steps), loss, optimizer, schedule=schedule)
    return net


def feature_network(
    recipe: Recipe, count: int, seed: int, shape: torch.Size | tuple[int, ...]
) -> FeatureNetwork:
    """The network of a recipe; its backbone and projection depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe.backbone == "mlp":
            backbone: nn.Module = nn.Sequential(mlp(shape[0], recipe.hidden), nn.ReLU())
            return FeatureNetwork(backbone, recipe.hidden, recipe.dim, count, recipe.scale)
        stages = conv_net(*recipe.channels, in_channels=3, norm="group")
        width = recipe.channels[-1] * (32 // 2 ** len(recipe.channels)) ** 2
        backbone = nn.Sequential(stages, nn.Flatten())
        return FeatureNetwork(backbone, width, recipe.dim, count, recipe.scale)


@torch.no_grad()
def evaluate(net: FeatureNetwork, shop: Shop) -> dict[str, float]:
    """Identical Recall@1 of val and test queries against all listings."""
    listings = predict(net, shop.listings)
    return {
        "recall": recall_at_1(predict(net, shop.test), listings, shop.test_product, shop.product),
        "val": recall_at_1(predict(net, shop.val), listings, shop.val_product, shop.product),
    }


def clean_triplets(recipe: Recipe, log: ClickLog, old: tuple[Tensor, Tensor]) -> Triplets:
    """All triplets whose negative was examined and that older features do not speak against."""
    eps, gamma = cleaning_thresholds(log, old, recipe.keep_near, recipe.drop_near)
    return mine_triplets(log, old, eps, gamma, examined_only=True)


def _arm(
    recipe: Recipe,
    arm: str,
    log: ClickLog,
    shop: Shop,
    classes: Classes,
    old: tuple[Tensor, Tensor],
    draw: torch.Generator,
) -> tuple[Batches, Callable]:
    """Endless batches of an arm, and its loss."""
    pictures = recipe.visits_a_step * (1 + recipe.list_size)
    if arm == "triplet":
        source = clean_triplets(recipe, log, old)
        return _triplet_batches(source, shop, pictures // 3, draw), _triplet_loss(recipe)
    if arm in ("list", "raw_list", "joint"):
        source = clean_triplets(recipe, log, old)
        batches = _list_batches(recipe, log, shop, classes, source, draw)
        if arm == "joint":
            return batches, _joint_loss(recipe)
        return batches, _list_loss(recipe, weighted=arm == "list")
    if arm == "infonce":
        return _pair_batches(log, shop, pictures // 2, draw), _infonce(recipe)
    return _class_batches(log, shop, classes, pictures, draw), _class_loss


# --- classification -----------------------------------------------------------------------------


def _class_batches(
    log: ClickLog, shop: Shop, classes: Classes, pictures: int, draw: torch.Generator
) -> Batches:
    """Half listings, half photographs of visits."""
    listing, visit = ((column >= 0).nonzero()[:, 0] for column in (classes.listing, classes.visit))
    listings, visits = (_endless(rows, pictures // 2, draw) for rows in (listing, visit))
    for one, other in zip(listings, visits, strict=False):
        x = torch.cat([shop.listings[one], shop.queries[log.query[other]]])
        yield x, torch.cat([classes.listing[one], classes.visit[other]]).to(x.device)


def _class_loss(net: FeatureNetwork, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(net.classify(net(x)), y)


# --- ranking ------------------------------------------------------------------------------------


def _triplet_batches(source: Triplets, shop: Shop, size: int, draw: torch.Generator) -> Batches:
    while True:
        epoch = draw_triplets(source, draw)
        for rows in torch.randperm(len(epoch), generator=draw).split(size):
            if len(rows) == size:
                part = epoch[rows]
                yield (
                    torch.cat(
                        [
                            shop.queries[part.query],
                            shop.listings[part.positive],
                            shop.listings[part.negative],
                        ]
                    ),
                )


def _triplet_loss(recipe: Recipe) -> Callable:
    def loss(net: FeatureNetwork, batch: Batch) -> Tensor:
        fq, fp, fn = net(batch[0]).chunk(3)
        return triplet_click_loss(fq, fp, fn, recipe.margin)

    return loss


def _list_batches(
    recipe: Recipe,
    log: ClickLog,
    shop: Shop,
    classes: Classes,
    source: Triplets,
    draw: torch.Generator,
) -> Batches:
    """Photographs, then their lists; with classes, clicks and positions."""
    while True:
        lists = draw_lists(log, recipe.list_size, draw_triplets(source, draw), draw)
        for rows in torch.randperm(len(lists.visit), generator=draw).split(recipe.visits_a_step):
            if len(rows) < recipe.visits_a_step:
                continue
            part = lists[rows]
            x = torch.cat([shop.queries[log.query[part.visit]], shop.listings[part.item.flatten()]])
            y = torch.cat([classes.visit[part.visit], classes.listing[part.item.flatten()]])
            rest = (y, part.clicked, part.position, part.has_triplet)
            yield x, *(column.to(x.device) for column in rest)


def _list_loss(recipe: Recipe, weighted: bool) -> Callable:
    def loss(net: FeatureNetwork, batch: Batch) -> Tensor:
        x, _, clicked, position, _ = batch
        fq, items = _query_and_items(net(x), clicked.shape)
        propensity = inverse_propensity(position) if weighted else None
        return listwise_click_loss(fq, items, clicked, tau=recipe.tau, propensity=propensity).loss

    return loss


def _joint_loss(recipe: Recipe) -> Callable:
    def loss(net: FeatureNetwork, batch: Batch) -> Tensor:
        x, y, clicked, position, paired = batch
        f = net(x)
        fq, items = _query_and_items(f, clicked.shape)
        has = y >= 0
        total = F.cross_entropy(net.classify(f[has]), y[has])
        if paired.any():
            three = fq[paired], items[paired, 0], items[paired, 1]
            total = total + recipe.alpha * triplet_click_loss(*three, recipe.margin)
        ranking = listwise_click_loss(
            fq, items, clicked, tau=recipe.tau, propensity=inverse_propensity(position)
        )
        return total + recipe.beta * ranking.loss

    return loss


def _query_and_items(
    f: Float[Tensor, "pictures d"], shape: torch.Size
) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch items d"]]:
    return f[: shape[0]], f[shape[0] :].view(*shape, -1)


# --- contrast -----------------------------------------------------------------------------------


def _pair_batches(log: ClickLog, shop: Shop, size: int, draw: torch.Generator) -> Batches:
    """Two different pictures of one visit each: its photograph or anything that was clicked."""
    count = len(shop.listings)
    pictures = torch.cat([shop.listings, shop.queries])
    some = log.clicked.any(dim=1).nonzero()[:, 0]
    rows = torch.cat([log.shown, count + log.query[:, None]], dim=1)
    member = torch.cat([log.clicked, torch.ones(len(rows), 1, dtype=torch.bool)], dim=1)
    while True:
        for visit in some[torch.randperm(len(some), generator=draw)].split(size):
            if len(visit) == size:
                key = torch.rand(size, rows.shape[1], generator=draw) + member[visit]
                pair = rows[visit].gather(1, key.topk(2, dim=1).indices).T.flatten()
                yield pictures[pair], pair.to(pictures.device)


def _infonce(recipe: Recipe) -> Callable:
    def loss(net: FeatureNetwork, batch: Batch) -> Tensor:
        x, row = batch
        one, other = net(x).chunk(2)
        a, b = row.chunk(2)
        score = one @ other.T / recipe.tau
        same = (b[:, None] == b) & ~torch.eye(len(b), dtype=torch.bool, device=b.device)
        back = (a[:, None] == a) & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
        target = torch.arange(len(a), device=a.device)
        there = F.cross_entropy(score.masked_fill(same, -torch.inf), target)
        return (there + F.cross_entropy(score.T.masked_fill(back, -torch.inf), target)) / 2

    return loss


def _endless(rows: Int64[Tensor, " n"], size: int, draw: torch.Generator) -> Iterator[Tensor]:
    while True:
        for part in rows[torch.randperm(len(rows), generator=draw)].split(size):
            if len(part) == size or len(rows) < size:
                yield part


def _first(batches: Batches, steps: int) -> Batches:
    for _, batch in zip(range(steps), batches, strict=False):
        yield batch
