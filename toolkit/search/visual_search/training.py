"""Learning where to look and how to compare from one click log (method B).

An arm is a source of triplets and a source of boxes; everything else is equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.data import (
    CATALOGUE_VENDORS,
    ClickLog,
    EmojiShop,
    ShopQueries,
    load_emoji_shop,
    simulate_clicks,
)
from toolkit.learn.loop import fit, minibatches
from toolkit.learn.nets import conv_net
from toolkit.search.recall import identical_recall, mean_reciprocal_rank
from toolkit.search.triplets import (
    Triplets,
    allowed_negatives,
    cleaning_thresholds,
    mine_triplets,
    triplet_loss,
)
from toolkit.search.visual_search.recipe import ARMS, Recipe
from toolkit.search.visual_search.softbox import (
    JointSearchNet,
    mean_area,
    paired_iou,
    saliency_box,
    to_edges,
)


@dataclass(frozen=True)
class World:
    """The shop, its log, and old features of its train queries and listings."""

    shop: EmojiShop
    log: ClickLog
    old: tuple[Float[Tensor, "queries d"], Float[Tensor, "listings d"]]

    @property
    def train(self) -> ShopQueries:
        """The photographs in the log."""
        return self.shop.queries["train"]


@lru_cache(maxsize=2)
def open_world(products: int) -> World:
    """The first products of the shop with the default log."""
    shop = load_emoji_shop(products)
    return World(shop, simulate_clicks(products), old_features(shop))


def old_features(
    shop: EmojiShop,
) -> tuple[Float[Tensor, "queries d"], Float[Tensor, "listings d"]]:
    """Unit-length features of the shop's first engine: 128 principal components of 32×32 pixels."""
    from sklearn.decomposition import PCA

    thumbnails = [
        (F.interpolate(images.float(), size=32, mode="area") / 255).flatten(1).numpy()
        for images in (shop.catalogue, shop.queries["train"].crop)
    ]
    components = min(128, len(thumbnails[0]) - 1)
    pca = PCA(components, svd_solver="arpack", random_state=0).fit(thumbnails[0])
    found, sought = (F.normalize(torch.from_numpy(pca.transform(t)).float()) for t in thumbnails)
    return sought, found


def build_net(recipe: Recipe, seed: int, learn_box: bool = True) -> JointSearchNet:
    """Trunk conv 16-32-64, pooled, and a linear layer; box branch conv 8-16 and a linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = conv_net(16, 32, 64, in_channels=3)
        trunk = nn.Sequential(stages, MeanAndMax(), nn.Linear(128, recipe.d))
        branch = None
        if learn_box:
            side = -(-recipe.box_side // 4)
            looks = conv_net(8, 16, in_channels=3, norm="group")
            branch = nn.Sequential(looks, nn.Flatten(), nn.Linear(16 * side * side, 4))
    return JointSearchNet(trunk, branch, box_size=recipe.box_side, k=recipe.k_first)


class MeanAndMax(nn.Module):
    """The mean and the largest value of each channel: a feature that does not ask where.

    A mask leaves the object where it is, so a feature must not depend on its place.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b twice"]:
        """Return [b, 2 c]."""
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


def resized(images: Tensor, side: int) -> Float[Tensor, "n 3 side side"]:
    """Bytes of any size as numbers around zero, averaged over areas."""
    return F.interpolate(images.float(), size=side, mode="area") / 255 - 0.5


# --- triplets -----------------------------------------------------------------------------------


def triplets_of(arm: str, recipe: Recipe, world: World, seed: int) -> Triplets:
    """The triplets that an arm learns from; a query and its positive never share a vendor."""
    generator = torch.Generator().manual_seed(90_000 + seed)
    if arm == "raw":
        mined = mine_triplets(world.log)
    else:
        eps, gamma = cleaning_thresholds(world.log, world.old, recipe.eps, recipe.gamma)
        mined = mine_triplets(world.log, world.old, eps, gamma)
    shop, train = world.shop, world.train
    mined = mined[shop.vendor[mined.positive] != train.vendor[mined.query]]
    if arm.startswith("noise"):
        return _noisy(mined, world, float(arm.removeprefix("noise")), generator)
    if arm == "random":
        positive = torch.randint(len(shop.product), (len(mined),), generator=generator)
        return Triplets(mined.visit, mined.query, positive, mined.negative)
    if arm == "category":
        return _by_category(mined, world, generator)
    return mined


def _noisy(mined: Triplets, world: World, rate: float, generator: torch.Generator) -> Triplets:
    """Replace a share of the positives by any listing of their page."""
    slots = world.log.shown.shape[1]
    anything = torch.randint(slots, (len(mined),), generator=generator)
    flip = torch.rand(len(mined), generator=generator) < rate
    other = world.log.shown[mined.visit, anything]
    return Triplets(
        mined.visit, mined.query, torch.where(flip, other, mined.positive), mined.negative
    )


def _by_category(mined: Triplets, world: World, generator: torch.Generator) -> Triplets:
    """Positives from the query's leaf category, negatives from the others: labels, no clicks."""
    shop = world.shop
    leaf = shop.leaf[shop.product]
    wanted = shop.leaf[world.train.product[mined.query]]
    order = leaf.argsort(stable=True)
    count = torch.bincount(leaf)
    start = count.cumsum(0) - count
    chance = torch.rand(2, len(mined), generator=generator)
    inside = (chance[0] * count[wanted]).long() + start[wanted]
    rest = (chance[1] * (len(leaf) - count[wanted])).long()
    outside = rest + torch.where(rest >= start[wanted], count[wanted], 0)
    return Triplets(mined.visit, mined.query, order[inside], order[outside])


def real_shots(triplets: Triplets, world: World) -> tuple[Triplets, Int64[Tensor, "n"]]:
    """Triplets whose negative was photographed on the tile behind the query, and that photograph.

    A train photograph shows one listing (its product, by its vendor) on one tile: it is a real shot
    of that listing. A background that stands behind a query and its negative alike tells nothing,
    so ignoring it pays. Positives stay on white.
    """
    shop, train = world.shop, world.train
    on_tile = torch.full((len(shop.product), int(train.photo.max()) + 1), -1)
    on_tile[_listing(train), train.photo] = torch.arange(len(train.product))
    shot = on_tile[triplets.negative, train.photo[triplets.query]]
    return triplets[shot >= 0], shot[shot >= 0]


def _listing(queries: ShopQueries) -> Int64[Tensor, "n"]:
    """What a photograph shows; −1 where its vendor is not in the catalogue."""
    vendors = len(CATALOGUE_VENDORS)
    return torch.where(queries.vendor < vendors, vendors * queries.product + queries.vendor, -1)


# --- training -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels:
    """Everything an arm may look at, at the side of its trunk, with the boxes it is given."""

    listings: Float[Tensor, "listings 3 side side"]
    queries: dict[str, Float[Tensor, "n 3 side side"]]
    boxes: dict[str, Float[Tensor, "n 4"]]
    """Of real shots, by split: true boxes as (x_l, x_r, y_t, y_b)."""


@lru_cache(maxsize=2)
def load_pixels(products: int, side: int) -> Pixels:
    """All images of the shop, resized; of the test photographs the first two of each product."""
    shop = load_emoji_shop(products)
    queries, boxes = {}, {}
    for split, part in shop.queries.items():
        rows = first_of_each(part, 2) if split == "test" else torch.arange(len(part.product))
        queries[split] = resized(part.image[rows], side)
        boxes[split] = to_edges(part.box[rows], part.image.shape[-1])
    return Pixels(resized(shop.catalogue, side), queries, boxes)


def first_of_each(queries: ShopQueries, count: int) -> Int64[Tensor, "n"]:
    """Rows of the first photographs of each product."""
    per_product = len(queries.product) // len(queries.product.unique())
    return (torch.arange(len(queries.product)) % per_product < count).nonzero()[:, 0]


def centred_box(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "4"]:
    """The box in the middle of the frame with the mean width and height of these."""
    size = torch.stack([boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]], 1).mean(0)
    return torch.stack([0.5 - size / 2, 0.5 + size / 2], 1).flatten()


def given_boxes(arm: str, pixels: Pixels, split: str) -> Float[Tensor, "n 4"] | None:
    """The boxes of real shots that an arm is given; NaN rows are whole images, None is learnt."""
    truth = pixels.boxes[split]
    if arm == "whole":
        return torch.full_like(truth, torch.nan)
    if arm == "centred":
        return centred_box(pixels.boxes["train"]).expand_as(truth)
    return truth if arm == "truth" else None


def train(arm: str, recipe: Recipe, seed: int, device: torch.device) -> JointSearchNet:
    """Train one arm of the study.

    Args:
        arm: one of `ARMS`.
        recipe: steps, rates, sizes.
        seed: of the first weights and of the batches.
        device: of the network.

    Raises:
        ValueError: for an unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"no arm is called {arm!r}; there are {', '.join(ARMS)}")
    world, pixels = open_world(recipe.products), load_pixels(recipe.products, recipe.side)
    triplets, shots = real_shots(triplets_of(arm, recipe, world, seed), world)
    boxes = given_boxes(arm, pixels, "train")
    net = build_net(recipe, seed, learn_box=boxes is None).to(device)
    groups = [{"params": net.trunk.parameters(), "lr": recipe.lr}]
    if net.box_branch is not None:
        groups.append({"params": net.box_branch.parameters(), "lr": recipe.box_lr})
    optimizer = torch.optim.Adam(groups)

    def loss(_: nn.Module, batch: tuple) -> Tensor:
        step, rows = batch
        net.mask.k = recipe.k_first + (recipe.k_last - recipe.k_first) * step / recipe.steps
        part = triplets[rows]
        views = (
            pixels.queries["train"][part.query],
            pixels.queries["train"][shots[rows]],
            pixels.listings[part.positive],
            pixels.listings[part.negative],
        )
        given = None
        if boxes is not None:
            whole = torch.full((2 * len(rows), 4), torch.nan)
            given = torch.cat([boxes[part.query], boxes[shots[rows]], whole]).to(device)
        features, found = net(torch.cat(views).to(device), given)
        query, shot, positive, negative = features.chunk(4)
        allowed = allowed_negatives(world.log, part.visit, part.negative).to(device)
        ranking = triplet_loss(
            query, positive, torch.cat([negative, shot]), recipe.margin, allowed.repeat(1, 2)
        )
        return ranking + recipe.area * mean_area(found[: 2 * len(rows)])

    fit(net, _steps(triplets, recipe, seed), loss, optimizer)
    net.mask.k = recipe.k_last
    return net


def _steps(triplets: Triplets, recipe: Recipe, seed: int) -> Iterator[tuple[int, Tensor]]:
    """The number of each step and the rows of its batch, no visit twice."""
    generator = torch.Generator().manual_seed(50_000 + seed)
    for step in range(recipe.steps):
        order = torch.randperm(len(triplets), generator=generator)[: 4 * recipe.batch]
        _, first = np.unique(triplets.visit[order].numpy(), return_index=True)
        yield step, order[np.sort(first)[: recipe.batch]]


@torch.no_grad()
def evaluate(
    net: JointSearchNet, arm: str, recipe: Recipe, split: str, device: torch.device
) -> dict[str, float]:
    """Identical recall, reciprocal rank and boxes of one split; IoU is that of the box in use."""
    shop, pixels = load_emoji_shop(recipe.products), load_pixels(recipe.products, recipe.side)
    part = shop.queries[split]
    wanted = part.product[first_of_each(part, 2)] if split == "test" else part.product
    listings, _ = embed(net, pixels.listings, whole_if(net, pixels.listings), device)
    features, boxes = embed(net, pixels.queries[split], given_boxes(arm, pixels, split), device)
    found = (features @ listings.T).topk(10, dim=1).indices
    return _recalls(found, shop, wanted) | box_metrics(boxes, pixels.boxes[split])


def whole_if(net: JointSearchNet, images: Tensor) -> Float[Tensor, "n 4"] | None:
    """Whole-image boxes for a network without a box branch: listings fill their frame."""
    return None if net.box_branch is not None else images.new_full((len(images), 4), torch.nan)


@torch.no_grad()
def embed(
    net: JointSearchNet,
    images: Float[Tensor, "n 3 side side"],
    boxes: Float[Tensor, "n 4"] | None,
    device: torch.device,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n 4"]]:
    """Features and boxes of many images, on the CPU."""
    given = [None] * len(images) if boxes is None else boxes.split(256)
    net.eval()
    outputs = [
        net(part.to(device), None if box is None else box.to(device))
        for part, box in zip(images.split(256), given, strict=False)
    ]
    net.train()
    features, found = (torch.cat(column).cpu() for column in zip(*outputs, strict=True))
    return features, found


# --- the study ----------------------------------------------------------------------------------


def experiment(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train each arm and measure it on the photographs of the held-out vendor.

    Beside the trained arms there are `"pca"` (128 components of the whole image), `"saliency"` (the
    boxes of `saliency_box`) and `"supervised"` (the box branch trained on true boxes).

    Returns:
        `arm/recall@1`, `arm/recall@10`, `arm/mrr` of the features, and `arm/iou`, `arm/iou.5`,
        `arm/iou.7`, `arm/area` of the boxes, where the arm has them; `arm/val@10` for tuning.
    """
    if recipe.data or recipe.backbone != "conv":
        from toolkit.search.visual_search.scale import train_at_scale

        return train_at_scale(recipe, seed, device)
    results: dict[str, float] = {}
    for arm in recipe.arms:
        if arm == "pca":
            found = _principal(recipe)
        elif arm == "saliency":
            pixels = load_pixels(recipe.products, recipe.side)
            found = box_metrics(saliency_box(pixels.queries["test"]), pixels.boxes["test"])
        elif arm == "supervised":
            found = _supervised(recipe, seed, device)
        else:
            net = train(arm, recipe, seed, device)
            found = evaluate(net, arm, recipe, "test", device)
            found["val@10"] = evaluate(net, arm, recipe, "val", device)["recall@10"]
        results |= {f"{arm}/{name}": value for name, value in found.items()}
    return results


def box_metrics(boxes: Float[Tensor, "n 4"], truth: Float[Tensor, "n 4"]) -> dict[str, float]:
    """Mean IoU, the shares above .5 and .7, and the mean area, of boxes (x_l, x_r, y_t, y_b)."""
    iou = paired_iou(boxes, truth)
    return {
        "iou": float(iou.mean()),
        "iou.5": float((iou > 0.5).double().mean()),
        "iou.7": float((iou > 0.7).double().mean()),
        "area": float(mean_area(boxes)),
    }


def _principal(recipe: Recipe) -> dict[str, float]:
    """Identical recall of principal components of whole images."""
    from sklearn.decomposition import PCA

    shop = load_emoji_shop(recipe.products)
    queries = shop.queries["test"]
    rows = first_of_each(queries, 2)
    listings, sought = (
        resized(images, 32).flatten(1).numpy() for images in (shop.catalogue, queries.image[rows])
    )
    pca = PCA(128, svd_solver="arpack", random_state=0).fit(listings)
    g, q = (F.normalize(torch.from_numpy(pca.transform(x)).float()) for x in (listings, sought))
    return _recalls((q @ g.T).topk(10, dim=1).indices, shop, queries.product[rows])


def _supervised(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """The box branch alone, trained with the true boxes: mean absolute error of the edges."""
    pixels = load_pixels(recipe.products, recipe.side)
    net = build_net(recipe, seed).to(device)
    assert net.box_branch is not None
    optimizer = torch.optim.Adam(net.box_branch.parameters(), lr=recipe.lr)
    data = pixels.queries["train"].to(device), pixels.boxes["train"].to(device)
    draw = torch.Generator().manual_seed(60_000 + seed)
    fit(
        net,
        minibatches(*data, size=2 * recipe.batch, steps=recipe.steps, generator=draw),
        lambda _, batch: (net.boxes(batch[0]) - batch[1]).abs().mean(),
        optimizer,
    )
    with torch.no_grad():
        boxes = net.boxes(pixels.queries["test"].to(device)).cpu()
    return box_metrics(boxes, pixels.boxes["test"])


def _recalls(
    found: Int64[Tensor, "queries k"], shop: EmojiShop, wanted: Int64[Tensor, " queries"]
) -> dict[str, float]:
    recall = identical_recall(found, shop.product, wanted, (1, 10))
    rank = mean_reciprocal_rank(found, shop.product, wanted)
    return {"recall@1": recall[1], "recall@10": recall[10], "mrr": float(rank)}
