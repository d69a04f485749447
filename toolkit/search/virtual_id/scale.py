"""The paper's size: ResNet-50, sharded walks and rows, one process a GPU under torchrun.

    torchrun --nproc-per-node 8 -m toolkit run virtual_id --profile paper --set data=/data/shop

The folder has `items.csv` (item, path, leaf; optionally product), `queries.csv` (query, path), the
log as `log/*.parquet` or `log/*.csv` in the columns of `ClickLog.from_frame` (lists in a CSV are
numbers with spaces between them), and optionally `test.csv` (path, product). Items and queries are
numbered from 0, in the order of their rows. Without a folder it trains on the emoji shop.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from jaxtyping import Float, Float32, Int64
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.models import resnet50
from torchvision.transforms import v2

from toolkit.data import ClickLog, load_emoji_shop, simulate_clicks
from toolkit.learn.distributed import gather_with_grad, world
from toolkit.learn.loop import warmup_cosine
from toolkit.learn.nets import conv_net
from toolkit.learn.torchrun import (
    average_buffers,
    load_checkpoint,
    save_checkpoint,
    torchrun_group,
)
from toolkit.search.knn_softmax import ActiveRowSGD, ShardedSoftmax, sum_gradients
from toolkit.search.knn_softmax.checkpoint import WholeHead
from toolkit.search.recall import identical_recall
from toolkit.search.triplets import mine_triplets, triplet_click_loss
from toolkit.search.virtual_id.clusters import VirtualIDs
from toolkit.search.virtual_id.embedding import random_walks, skip_gram
from toolkit.search.virtual_id.examples import Lists, draw_lists, draw_triplets, first_clicks
from toolkit.search.virtual_id.graph import coclick_graph, covered
from toolkit.search.virtual_id.losses import inverse_propensity, listwise_click_loss

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PaperRecipe:
    """Joint training of the Feature Network at scale; no value of the paper's could be verified."""

    arms: tuple[str, ...] = ("joint",)
    seeds: int = 1
    data: str = ""  # a folder as described above; empty: the emoji shop
    products: int = 600  # of the emoji shop
    network: str = "resnet50"  # or "small"; paper: ResNet-50 (not verified)
    clusters: int = 300  # K; paper: of the order of 10⁵ to 10⁶ (not verified)
    walks: int = 10  # γ
    length: int = 40  # ℓ
    window: int = 5  # w
    negatives: int = 5  # n
    rank: int = 128  # d_g
    walk_epochs: int = 1  # of skip-gram
    dim: int = 512  # of the feature
    scale: float = 16.0  # of the classifier's cosines
    rho: float = 1.0  # share of the classifier's rows that are active; below 1: the KNN softmax
    batch: int = 64  # visits a process
    list_size: int = 8  # items of a list
    epochs: int = 10  # over all visits with a Virtual ID
    lr: float = 0.1  # of SGD for a global batch of 256 visits
    momentum: float = 0.9
    weight_decay: float = 1e-4
    margin: float = 0.2  # δ
    tau: float = 0.1  # τ
    alpha: float = 1.0  # weight of triplets
    beta: float = 1.0  # weight of lists
    side: int = 224  # pixels
    half: bool = True  # bfloat16 on a GPU
    workers: int = 8  # that load pictures, and threads of skip-gram, a process
    max_steps: int = 0  # stop after so many; 0: all
    checkpoint: str = ""  # folder to go on from

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if self.arms != ("joint",):
            raise ValueError(f"the paper profile trains the arm 'joint', got {self.arms}")
        if self.network not in ("resnet50", "small"):
            raise ValueError(f"network is 'resnet50' or 'small', got {self.network!r}")
        if min(self.clusters, self.batch, self.epochs) < 1:
            raise ValueError("clusters, batch and epochs must be at least 1")


@dataclass(frozen=True)
class Source:
    """Logs and pictures, wherever they come from."""

    logs: list[ClickLog]
    leaf: Int64[Tensor, " items"]
    item: Callable[[int], Tensor]
    """The picture of an item, uint8 [3, h, w]."""
    query: Callable[[int], Tensor]
    test: Callable[[int], Tensor]
    product: Int64[Tensor, " items"] | None
    test_product: Int64[Tensor, " test"] | None


def run_paper(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Graph, walks, Virtual IDs and joint training over all processes that torchrun started.

    Returns:
        The same on every process: `joint/loss` of the last steps, `joint/ids` in use,
        `joint/covered`, the share of items with an edge, and `joint/recall` where the truth of a
        test is given.

    Raises:
        FileNotFoundError: if the folder lacks a table.
        ValueError: if a table or visit is not as described, or no batch fits.
    """
    with torchrun_group(device) as home:
        source = open_source(recipe, seed)
        # each visit lies in one shard, so the shards' graphs add up
        graph = sparse.csr_array(sum(coclick_graph(log, leaf=source.leaf) for log in source.logs))
        ids = kept_ids(recipe, graph, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + world()[0])  # of the views, other ones on each process
            net, loss = train(recipe, source, ids, seed, home)
        metrics = {
            "loss": loss,
            "ids": float(len(ids.labels[ids.labels >= 0].unique())),
            "covered": float(covered(graph).mean()),
        }
        if source.product is not None and source.test_product is not None:
            metrics["recall"] = recall(recipe, net, source, home)
    return {f"joint/{name}": value for name, value in metrics.items()}


def open_source(recipe: PaperRecipe, seed: int) -> Source:
    """A folder in the documented schema, or the emoji shop."""
    if not recipe.data:
        shop = load_emoji_shop(recipe.products)
        return Source(
            [simulate_clicks(recipe.products, seed=seed)],
            shop.leaf[shop.product],
            shop.catalogue.__getitem__,
            shop.queries["train"].crop.__getitem__,
            shop.queries["test"].crop.__getitem__,
            shop.product,
            shop.queries["test"].product,
        )
    root = Path(recipe.data).expanduser()
    items, queries = pd.read_csv(root / "items.csv"), pd.read_csv(root / "queries.csv")
    test = pd.read_csv(root / "test.csv") if (root / "test.csv").is_file() else None
    shards = sorted([*root.glob("log/*.parquet"), *root.glob("log/*.csv")])
    if not shards:
        raise FileNotFoundError(f"no log/*.parquet or log/*.csv in {root}")
    product = torch.tensor(items["product"].to_numpy(np.int64)) if "product" in items else None
    return Source(
        [ClickLog.from_frame(_read_shard(path)) for path in shards],
        torch.tensor(items["leaf"].to_numpy(np.int64)),
        _reader(root, items),
        _reader(root, queries),
        _reader(root, queries if test is None else test),
        product,
        None if test is None else torch.tensor(test["product"].to_numpy(np.int64)),
    )


def kept_ids(recipe: PaperRecipe, graph: sparse.csr_array, seed: int) -> VirtualIDs:
    """The Virtual IDs of a run that goes on, else new ones: skip-gram in threads never repeats."""
    if not recipe.checkpoint:
        return virtual_ids(recipe, graph, seed)
    path = Path(recipe.checkpoint).expanduser() / f"ids-{seed}.safetensors"
    if path.is_file():
        return VirtualIDs(load_file(path)["labels"], recipe.clusters)
    ids = virtual_ids(recipe, graph, seed)  # returns when all processes have looked for the file
    if world()[0] == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file({"labels": ids.labels.contiguous()}, temporary)
        temporary.replace(path)
    return ids


def virtual_ids(recipe: PaperRecipe, graph: sparse.csr_array, seed: int) -> VirtualIDs:
    """Every process walks from its own nodes; the first one embeds and clusters for all."""
    rank, size = world()
    with tempfile.TemporaryDirectory() as here:
        shared: list[str] = [here]
        if size > 1:
            dist.broadcast_object_list(shared)
        folder = Path(shared[0])  # of the first process, on a disk that all see
        start = np.flatnonzero(covered(graph))[rank::size]
        paths = random_walks(graph, recipe.walks, recipe.length, seed + 1000 * rank, start=start)
        np.save(folder / f"walks-{rank}.npy", paths.astype(np.int32))
        labels = [np.full(graph.shape[0], -1)]
        if size > 1:
            dist.barrier()
        if rank == 0:
            labels = [_cluster(recipe, _Walks(folder), graph.shape[0], seed)]
        if size > 1:
            dist.broadcast_object_list(labels)
    return VirtualIDs(torch.from_numpy(labels[0]), recipe.clusters).without_small()


def _cluster(
    recipe: PaperRecipe, walks: "_Walks", nodes: int, seed: int
) -> Int64[np.ndarray, " nodes"]:
    """Skip-gram and spherical k-means by faiss, on GPUs where there are any."""
    import faiss

    embedding: Float32[np.ndarray, "nodes rank"] = skip_gram(
        walks,
        nodes,
        recipe.rank,
        recipe.window,
        recipe.negatives,
        seed,
        recipe.walk_epochs,
        max(1, recipe.workers),
    )
    mask = np.linalg.norm(embedding, axis=1) > 0
    if recipe.clusters > mask.sum():
        raise ValueError(f"{recipe.clusters} clusters for {mask.sum()} covered items")
    unit = embedding[mask] / np.linalg.norm(embedding[mask], axis=1, keepdims=True)
    gpus = getattr(faiss, "get_num_gpus", int)()
    means = faiss.Kmeans(
        recipe.rank,
        recipe.clusters,
        spherical=True,
        gpu=bool(gpus),
        seed=seed + 1,
        min_points_per_centroid=1,
    )
    means.train(unit)
    labels = np.full(nodes, -1)
    labels[mask] = means.index.search(unit, 1)[1][:, 0]
    return labels


class _Walks:
    """The walks of all processes as sentences, read from disk again for every epoch."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("walks-*.npy"))

    def __iter__(self) -> Iterator[list[str]]:
        for path in self.paths:
            for walk in np.load(path, mmap_mode="r"):
                yield walk.astype(str).tolist()


# --- training -----------------------------------------------------------------------------------


def train(
    recipe: PaperRecipe, source: Source, ids: VirtualIDs, seed: int, device: torch.device
) -> tuple[nn.Module, float]:
    """CE over Virtual IDs, triplets and lists; returns the network and the last steps' loss.

    A visit brings its photograph, what was clicked first (both of class v(first)) and a list.
    Virtual IDs are split over the processes (`ShardedSoftmax`); the other two losses are means over
    this process's visits, divided by the number of processes, since gradients are summed.
    """
    net = backbone(recipe, seed).to(device)
    head = ShardedSoftmax(
        recipe.dim,
        recipe.clusters,
        mode="full" if recipe.rho == 1 else "knn",
        rho=recipe.rho,
        scale=recipe.scale,
        seed=seed,
    ).to(device)
    model = nn.ModuleDict({"net": net, "head": head})
    rate = recipe.lr * recipe.batch * world()[1] / 256
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.SGD(net.parameters(), rate, recipe.momentum, weight_decay=recipe.weight_decay),
        ActiveRowSGD(head.parameters(), rate, recipe.momentum),
    ]
    visits, losses = _Visits(recipe, source, ids, seed), []
    total = recipe.epochs * len(visits)
    rates = [LambdaLR(one, lambda t: warmup_cosine(t, total, total // 20)) for one in optimizers]
    whole = WholeHead(model, optimizers[1])
    parts = {"encoder": optimizers[0], "model": whole, "rate": rates[0], "head_rate": rates[1]}
    begun = load_checkpoint(recipe.checkpoint, f"joint-{seed}", parts)
    left = (recipe.max_steps or total) - begun * len(visits)
    dtype = torch.bfloat16 if recipe.half and device.type == "cuda" else None
    for epoch in range(begun, recipe.epochs):
        if head.mode == "knn":
            head.rebuild(2 * recipe.batch * world()[1])
        for batch in islice(visits.epoch(epoch), max(0, left)):
            batch = [part.to(device, non_blocking=True) for part in batch]
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                f = net(batch[0].flatten(0, 1)).float()
            loss = _loss(recipe, f.unflatten(0, batch[0].shape[:2]), batch, head)
            model.zero_grad(set_to_none=True)
            loss.backward()
            sum_gradients(net.parameters())
            for optimizer, schedule in zip(optimizers, rates, strict=True):
                optimizer.step()
                schedule.step()
            losses.append(loss.detach())
        left -= len(visits)
        average_buffers(net)
        if left < 0:  # max_steps fell within this epoch
            break
        whole.gather()
        save_checkpoint(recipe.checkpoint, f"joint-{seed}", parts, epoch + 1)
    last = torch.stack(losses[-20:]).mean() if losses else torch.tensor(torch.nan, device=device)
    return net, float(gather_with_grad(last[None]).mean())


def _loss(
    recipe: PaperRecipe, f: Float[Tensor, "visits pictures d"], batch: list[Tensor], head: nn.Module
) -> Tensor:
    _, y, clicked, position, paired = batch
    fq, items = f[:, 0], f[:, 2:]
    classification = head(torch.cat([fq, f[:, 1]]), torch.cat([y, y]))
    ranking = (
        recipe.beta
        * listwise_click_loss(
            fq, items, clicked, tau=recipe.tau, propensity=inverse_propensity(position)
        ).loss
    )
    if paired.any():
        three = fq[paired], items[paired, 0], items[paired, 1]
        ranking = ranking + recipe.alpha * triplet_click_loss(*three, recipe.margin)
    return classification + ranking / world()[1]


def backbone(recipe: PaperRecipe, seed: int) -> nn.Module:
    """Pictures to unit features, with the same weights on every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe.network == "resnet50":
            body: nn.Module = resnet50(weights=None, num_classes=recipe.dim)
        else:
            stages = conv_net(16, 32, 64, in_channels=3, norm="group")
            pool = nn.AdaptiveAvgPool2d(4)
            body = nn.Sequential(stages, pool, nn.Flatten(), nn.Linear(1024, recipe.dim))
    return nn.Sequential(body, _Unit())


class _Unit(nn.Module):
    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return F.normalize(x.float(), dim=1)


class _Pictures(Dataset):
    """One visit: photograph, first click, list; with class, clicks, positions, whether paired."""

    def __init__(
        self, recipe: PaperRecipe, source: Source, log: ClickLog, ids: VirtualIDs, lists: Lists
    ) -> None:
        first, _ = first_clicks(log)
        known = ids.labels[first[lists.visit]] >= 0
        self.source, self.lists, self.log, self.first = source, lists[known], log, first
        self.labels = ids.labels
        self.view = v2.Compose(
            [
                v2.RandomResizedCrop(recipe.side, scale=(0.6, 1.0), antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.lists.visit)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        lists, visit = self.lists, self.lists.visit[index]
        first = int(self.first[visit])
        pictures = [self.source.query(int(self.log.query[visit])), self.source.item(first)]
        pictures += [self.source.item(int(item)) for item in lists.item[index]]
        views = torch.stack([self.view(picture) for picture in pictures])
        rest = (column[index] for column in (lists.clicked, lists.position, lists.has_triplet))
        return views, self.labels[first], *rest


class _Visits:
    """This process's batches, epoch by epoch; lists and triplets are drawn anew each time."""

    def __init__(self, recipe: PaperRecipe, source: Source, ids: VirtualIDs, seed: int) -> None:
        self.recipe, self.source, self.ids, self.seed = recipe, source, ids, seed
        self.log = _whole(source.logs)
        self.mined = mine_triplets(self.log, examined_only=True)
        first, _ = first_clicks(self.log)
        visits = int(((first >= 0) & (ids.labels[first.clamp(min=0)] >= 0)).sum())
        self.batches = visits // world()[1] // recipe.batch
        if self.batches < 1:
            raise ValueError(
                f"no batch of {recipe.batch} visits on {world()[1]} processes in {visits} visits"
            )

    def __len__(self) -> int:
        return self.batches

    def epoch(self, number: int) -> DataLoader:
        """The batches of an epoch."""
        rank, size = world()
        draw = torch.Generator().manual_seed(1000 * self.seed + number)  # the same everywhere
        triplets = draw_triplets(self.mined, draw)
        lists = draw_lists(self.log, self.recipe.list_size, triplets, draw)
        pictures = _Pictures(self.recipe, self.source, self.log, self.ids, lists)
        sampler: DistributedSampler = DistributedSampler(
            pictures, size, rank, shuffle=True, seed=self.seed, drop_last=True
        )
        sampler.set_epoch(number)
        return DataLoader(
            pictures,
            self.recipe.batch,
            sampler=sampler,
            num_workers=self.recipe.workers,
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
        )


@torch.no_grad()
def recall(recipe: PaperRecipe, net: nn.Module, source: Source, device: torch.device) -> float:
    """Identical Recall@1 of the test photographs; every process embeds all of them."""
    assert source.product is not None
    assert source.test_product is not None
    net.eval()
    view = v2.Compose(
        [
            v2.Resize((recipe.side, recipe.side), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def embed(read: Callable[[int], Tensor], count: int) -> Tensor:
        parts = torch.arange(count).split(recipe.batch)
        rows = [torch.stack([view(read(int(i))) for i in part]).to(device) for part in parts]
        return torch.cat([net(x).cpu() for x in rows])

    listings = embed(source.item, len(source.product))
    queries = embed(source.test, len(source.test_product))
    best = (queries @ listings.T).topk(1, dim=1).indices
    return identical_recall(best, source.product, source.test_product, ks=(1,))[1]


def _whole(logs: list[ClickLog]) -> ClickLog:
    columns = zip(*(vars(log).values() for log in logs), strict=True)
    return ClickLog(*(torch.cat(column) for column in columns))


def _reader(root: Path, table: pd.DataFrame) -> Callable[[int], Tensor]:
    def read(number: int) -> Tensor:
        with Image.open(root / table["path"].iloc[number]) as picture:
            return v2.functional.pil_to_tensor(picture.convert("RGB"))

    return read


def _read_shard(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    frame = pd.read_csv(path)
    for name in {"shown", "clicks", "times"} & set(frame):
        texts = frame[name].fillna("").astype(str)
        frame[name] = [[float(x) if name == "times" else int(x) for x in t.split()] for t in texts]
    return frame
