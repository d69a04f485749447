"""The whole search: category, box, feature, index, re-rank (the online path of the paper)."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.search.visual_search.codes import BinaryEncoder
from toolkit.search.visual_search.fusion import CategoryFusion
from toolkit.search.visual_search.recipe import Recipe
from toolkit.search.visual_search.shards import ShardedIndex
from toolkit.search.visual_search.softbox import JointSearchNet, to_corners
from toolkit.search.visual_search.training import build_net, embed, open_world, resized, train


@dataclass(frozen=True)
class Hit:
    """One line of a result."""

    id: int
    score: float
    label: str
    category: str


@dataclass(frozen=True)
class Answer:
    """What a search returns, and how long each stage took."""

    box: tuple[float, float, float, float]
    """x₀, y₀, x₁, y₁ as shares of the picture."""
    categories: tuple[tuple[str, float], ...]
    """The likeliest categories with their probabilities."""
    searched: str
    """The category that was searched; empty for all."""
    hits: tuple[Hit, ...]
    partial: bool
    """True if a shard did not answer."""
    milliseconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """Items ready for the index."""

    features: Float[Tensor, "n d"]
    categories: tuple[int, ...]


class SearchEngine:
    """Finds products in pictures.

    Args:
        net: boxes and features.
        recipe: its sizes.
        encoder: of the index, kept with the network.
        fusion: of leaf categories, fitted.
        head: linear layer from features to categories, weights [C, d] and biases [C].
        categories: names of the categories.
        index: holds the listings.
        rerank: may reorder the ids and scores of a result by other signals, such as sales.
    """

    def __init__(
        self,
        net: JointSearchNet,
        recipe: Recipe,
        encoder: BinaryEncoder,
        fusion: CategoryFusion,
        head: tuple[Tensor, Tensor],
        categories: Sequence[str],
        index: ShardedIndex,
        rerank: Callable[[NDArray, NDArray], NDArray] | None = None,
    ) -> None:
        self.net, self.recipe, self.encoder, self.fusion = net.eval(), recipe, encoder, fusion
        self.head, self.categories, self.index, self.rerank = head, tuple(categories), index, rerank
        self.about: dict[int, tuple[str, int]] = {}
        """Label and category of each item."""

    def feature(
        self, images: UInt8[Tensor, "n 3 h w"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n 4"]]:
        """Unit features and boxes (x_l, x_r, y_t, y_b) of pictures.

        Raises:
            ValueError: for pictures without content: a single colour shows no product.
        """
        spread = images.flatten(1).float().std(1)
        if bool((spread < 1).any()):
            raise ValueError("the picture is empty: all its pixels have one colour")
        return embed(self.net, resized(images, self.recipe.side), None, torch.device("cpu"))

    def prepare(
        self, images: UInt8[Tensor, "n 3 h w"], categories: Sequence[int] | None = None
    ) -> Prepared:
        """Features of new items, and their categories: given, or predicted.

        Raises:
            ValueError: for an empty picture, or an unknown category.
        """
        features, _ = self.feature(images)
        if categories is None:
            p = self.fusion.predict_proba(features, self.model_proba(features))
            categories = p.argmax(1).tolist()
        if len(categories) != len(images):
            raise ValueError(f"{len(categories)} categories for {len(images)} pictures")
        if not all(0 <= c < len(self.categories) for c in categories):
            raise ValueError(f"categories are 0 … {len(self.categories) - 1}, got {categories}")
        return Prepared(features, tuple(int(c) for c in categories))

    def add(self, ids: Sequence[int], items: Prepared, labels: Sequence[str]) -> None:
        """Make new items searchable.

        Raises:
            ValueError: for known ids, or other numbers of ids, items and labels.
        """
        self._store("add", ids, items, labels)

    def update(self, ids: Sequence[int], items: Prepared, labels: Sequence[str]) -> None:
        """Give known items new features, categories and labels.

        Raises:
            ValueError: for unknown ids, or other numbers of ids, items and labels.
        """
        self._store("update", ids, items, labels)

    def remove(self, ids: Sequence[int]) -> None:
        """Take items out.

        Raises:
            ValueError: for unknown ids.
        """
        self.index.remove(np.asarray(ids))
        for one in ids:
            self.about.pop(int(one), None)

    def search(
        self, image: UInt8[Tensor, "3 h w"], k: int = 12, category: int | None = None
    ) -> Answer:
        """Find the items most like the product in a picture.

        Args:
            image: red, green, blue.
            k: how many.
            category: search only this one; −1 the likeliest, None all.

        Raises:
            ValueError: for an empty picture, an unknown category, or k below 1.
        """
        if category is not None and not -1 <= category < len(self.categories):
            raise ValueError(f"categories are 0 … {len(self.categories) - 1}, got {category}")
        clock = _Clock()
        feature, box = self.feature(image[None])
        clock.stop("box and feature")
        p = self.fusion.predict_proba(feature, self.model_proba(feature))[0]
        likely = p.argsort(descending=True)[:3].tolist()
        clock.stop("category")
        where = likely[0] if category == -1 else category
        allowed = None
        if where is not None:
            allowed = np.array(
                [i for i, (_, c) in list(self.about.items()) if c == where], np.int64
            )
        found = self.index.search(feature, max(k, 60 if self.rerank else 0), allowed)
        clock.stop("index")
        ids, scores = found.ids[0].numpy(), found.scores[0].numpy()
        ids, scores = ids[ids >= 0], scores[ids >= 0]
        if self.rerank is not None:
            order = self.rerank(ids, scores)
            ids, scores = ids[order], scores[order]
            clock.stop("re-rank")
        hits = tuple(self._hit(int(i), float(s)) for i, s in zip(ids[:k], scores[:k], strict=True))
        edges = [float(v) for v in to_corners(box)[0]]
        return Answer(
            (edges[0], edges[1], edges[2], edges[3]),
            tuple((self.categories[c], float(p[c])) for c in likely),
            "" if where is None else self.categories[where],
            hits,
            found.partial,
            clock.times,
        )

    def model_proba(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """What the classifier says."""
        weight, bias = self.head
        return (features @ weight.T + bias).softmax(1)

    def _hit(self, item: int, score: float) -> Hit:
        label, category = self.about.get(item, (str(item), -1))
        return Hit(item, score, label, self.categories[category] if category >= 0 else "")

    def _store(self, what: str, ids: Sequence[int], items: Prepared, labels: Sequence[str]) -> None:
        if not len(ids) == len(items.categories) == len(labels):
            raise ValueError(f"{len(ids)} ids, {len(items.categories)} items, {len(labels)} labels")
        getattr(self.index, what)(np.asarray(ids), items.features)
        for one, label, category in zip(ids, labels, items.categories, strict=True):
            self.about[int(one)] = (label, category)


class _Clock:
    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self._begin = time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self.times[stage] = 1e3 * (now - self._begin)
        self._begin = now


# --- a model on disk ----------------------------------------------------------------------------


def train_model(folder: Path, recipe: Recipe, seed: int = 0) -> None:
    """Train network, classifier and fusion on the emoji shop, and keep them in a folder.

    The file appears whole, since it is written under a temporary name first.
    """
    from sklearn.linear_model import LogisticRegression

    device = torch.device("cpu")
    net = train("joint", recipe, seed, device)
    shop = open_world(recipe.products).shop
    listings, _ = embed(net, resized(shop.catalogue, recipe.side), None, device)
    leaf = shop.leaf[shop.product]
    seen, answer = (
        embed(net, resized(shop.queries[split].image, recipe.side), None, device)[0]
        for split in ("train", "val")
    )
    wanted = {s: shop.leaf[shop.queries[s].product] for s in ("train", "val")}
    model = LogisticRegression(C=10.0, max_iter=300).fit(
        torch.cat([listings, seen]).numpy(), torch.cat([leaf, wanted["train"]]).numpy()
    )
    weight, bias = torch.zeros(len(shop.leaves), recipe.d), torch.full((len(shop.leaves),), -30.0)
    weight[model.classes_] = torch.from_numpy(model.coef_).float()
    bias[model.classes_] = torch.from_numpy(model.intercept_).float()
    fusion = CategoryFusion(listings, leaf, len(shop.leaves))
    fusion.fit(answer, (answer @ weight.T + bias).softmax(1), wanted["val"])
    encoder = BinaryEncoder("rotation", 256).fit(listings)
    assert encoder.mean is not None
    assert encoder.matrix is not None
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()} | {
        "head.weight": weight,
        "head.bias": bias,
        "fusion.reference": listings,
        "fusion.labels": leaf,
        "code.mean": encoder.mean,
        "code.matrix": encoder.matrix,
    }
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "products": recipe.products,
        "side": recipe.side,
        "box_side": recipe.box_side,
        "d": recipe.d,
        "k": net.mask.k,
        "lam": fusion.lam,
        "alpha": fusion.alpha,
        "bits": encoder.bits,
        "categories": list(shop.leaves),
    }
    temporary = folder / "model.tmp"
    save_file(tensors, temporary, metadata={"about": json.dumps(about)})
    temporary.replace(folder / "model.safetensors")


def load_engine(folder: Path, make_index: Callable[[BinaryEncoder], ShardedIndex]) -> SearchEngine:
    """Open a model of `train_model`.

    Args:
        folder: where it is.
        make_index: the index to search, given the encoder.

    Raises:
        FileNotFoundError: if there is no model.
    """
    from safetensors import safe_open

    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no model in {folder}; train_model makes one")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    recipe = Recipe(**{name: about[name] for name in ("products", "side", "box_side", "d")})
    net = build_net(recipe, 0)
    net.load_state_dict(
        {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}
    )
    net.mask.k = about["k"]
    fusion = CategoryFusion(
        tensors["fusion.reference"], tensors["fusion.labels"], len(about["categories"])
    )
    fusion.lam, fusion.alpha = about["lam"], about["alpha"]
    encoder = BinaryEncoder("rotation", about["bits"])
    encoder.mean, encoder.matrix = tensors["code.mean"], tensors["code.matrix"]
    head = tensors["head.weight"], tensors["head.bias"]
    return SearchEngine(
        net, recipe, encoder, fusion, head, about["categories"], make_index(encoder)
    )
