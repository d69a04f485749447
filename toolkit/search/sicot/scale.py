"""The paper's own size: photographs with titles and tags, up to a million classes, under torchrun.

    torchrun --nproc-per-node 8 -m toolkit run sicot --profile paper --set data=/data/products

The folder holds `train.csv` and `val.csv` with the columns `image` (a path inside the folder),
`title`, `tags` (joined by `|`) and `class`. ImageNet-LT or WebVision fit once the words of a
class's gloss stand in `title`.

The paper's settings could not be read: this recipe is ours. Classes are spread over all processes
(`ShardedSoftmax`); feature and semantic embedding go through W together, as one batch of 2B rows.
"""

import csv
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.models import resnet18, resnet50
from torchvision.transforms import v2

from toolkit.learn.distributed import gather_with_grad, world
from toolkit.learn.loop import warmup_cosine
from toolkit.learn.torchrun import (
    average_buffers,
    load_checkpoint,
    save_checkpoint,
    torchrun_group,
)
from toolkit.search.knn_softmax import (
    ActiveRowSGD,
    ShardedSoftmax,
    sum_gradients,
)
from toolkit.search.knn_softmax.checkpoint import WholeHead
from toolkit.search.sicot.longtail import LARGE_EDGES, bucket_accuracy
from toolkit.search.sicot.words import UNKNOWN, BilinearWordAttention, Vocabulary, WordEncoder

NETWORKS = {"resnet50": resnet50, "resnet18": resnet18}
PAPER_ARMS = ("ce", "sicot")
WORD = re.compile(r"\w+")
MEAN, SPREAD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class PaperRecipe:
    """Visual-only training and SICoT on a folder of products; all values are ours."""

    arms: tuple[str, ...] = PAPER_ARMS
    seeds: int = 1
    data: str = ""  # folder with train.csv, val.csv and the images
    network: str = "resnet50"  # or resnet18
    d: int = 512  # of visual feature and semantic embedding
    d_word: int = 300  # of a word
    rank: int = 32  # k, of the bilinear form
    length: int = 16  # T, words
    min_count: int = 2  # rarer words are unknown
    max_words: int = 200_000  # of the vocabulary
    side: int = 224  # pixels
    epochs: int = 90
    batch: int = 256  # images a step and process
    lr: float = 0.1  # for 256 images a step; grows with all processes' batch
    warmup: float = 0.05  # share of the steps
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4  # of the encoders, not of the words' embeddings
    active: float = 0.0  # ρ of the KNN softmax; 0: all classes below 100,000, a tenth from there on
    half: bool = True  # encoders in bfloat16 on a GPU
    checkpoint: str = ""  # folder to go on from
    max_steps: int = 0  # stop earlier, to try it out; 0 does not


def run_paper(recipe: PaperRecipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train every arm over all processes that torchrun started, and test it on images alone.

    Returns:
        The same on every process: for each arm `few`, `medium`, `many`, `all` on val, with the
        buckets of large sets (below 20 images, to 100, above).

    Raises:
        ValueError: for an unknown arm or network, or a table without the columns.
        FileNotFoundError: if the folder has no train.csv and val.csv.
    """
    if unknown := set(recipe.arms) - set(PAPER_ARMS):
        raise ValueError(f"arms are {', '.join(PAPER_ARMS)}; got {sorted(unknown)}")
    if recipe.network not in NETWORKS:
        raise ValueError(f"networks are {', '.join(NETWORKS)}; got {recipe.network!r}")
    tables = {split: read_products(Path(recipe.data, f"{split}.csv")) for split in ("train", "val")}
    classes = sorted({row.label for row in tables["train"]})
    if unseen := {row.label for row in tables["val"]} - set(classes):
        raise ValueError(f"{len(unseen)} classes of val.csv are not in train.csv")
    vocabulary = Vocabulary.fit(
        [row.words for row in tables["train"]], recipe.min_count, recipe.max_words
    )
    sets = {
        split: Products(recipe, rows, classes, vocabulary, split == "train")
        for split, rows in tables.items()
    }
    results: dict[str, float] = {}
    with torchrun_group(device) as home:
        for arm in recipe.arms:
            model = _Model(recipe, len(classes), vocabulary, seed, arm == "sicot").to(home)
            _train(recipe, arm, model, sets["train"], seed)
            scores = _test(recipe, model, sets["val"], sets["train"].counts())
            results |= {f"{arm}/{name}": value for name, value in scores.items()}
    return results


# --- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of a table of products."""

    image: str
    words: list[str]
    label: str


def read_products(path: Path) -> list[Row]:
    """The lines of a table; title and tags become lower-case words, tags first.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing, or there is no line.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; set data to a folder with train.csv, val.csv"
        )
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        if missing := {"image", "title", "tags", "class"} - set(lines.fieldnames or ()):
            raise ValueError(f"{path} lacks the columns {sorted(missing)}")
        rows = [
            Row(
                line["image"],
                WORD.findall(f"{line['tags'].replace('|', ' ')} {line['title']}".lower()),
                line["class"],
            )
            for line in lines
        ]
    if not rows:
        raise ValueError(f"{path} holds no product")
    return rows


class Products(Dataset):
    """Images, words, class, and the line's number."""

    def __init__(
        self,
        recipe: PaperRecipe,
        rows: list[Row],
        classes: list[str],
        vocabulary: Vocabulary,
        learning: bool,
    ) -> None:
        self.folder, self.rows = Path(recipe.data), rows
        number = {name: index for index, name in enumerate(classes)}
        self.y = torch.tensor([number[row.label] for row in rows])
        self.tokens, _ = vocabulary.encode([row.words for row in rows], recipe.length)
        self.num_classes = len(classes)
        crop: list[Any] = [v2.Resize(recipe.side * 8 // 7), v2.CenterCrop(recipe.side)]
        if learning:
            crop = [v2.RandomResizedCrop(recipe.side), v2.RandomHorizontalFlip()]
        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, SPREAD)]
        self.view = v2.Compose(crop + finish)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, int]:
        with Image.open(self.folder / self.rows[index].image) as file:
            image = self.view(file.convert("RGB"))
        return image, self.tokens[index], self.y[index], index

    def counts(self) -> Int64[Tensor, " classes"]:
        """Images of each class."""
        return torch.bincount(self.y, minlength=self.num_classes)


def _loader(
    recipe: PaperRecipe, data: Products, device: torch.device, learning: bool
) -> DataLoader:
    rank, size = world()
    sampler: DistributedSampler = DistributedSampler(
        data, size, rank, shuffle=learning, drop_last=learning
    )
    on_gpu = device.type == "cuda"
    return DataLoader(
        data,
        recipe.batch,
        sampler=sampler,
        num_workers=min(8, os.cpu_count() or 1) if on_gpu else 0,
        pin_memory=on_gpu,
        drop_last=learning,
    )


# --- model and training -------------------------------------------------------------------------


class _Model(nn.Module):
    """Two encoders, alike on every process, and this process's share of the classifier."""

    def __init__(
        self, recipe: PaperRecipe, classes: int, vocabulary: Vocabulary, seed: int, words: bool
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = NETWORKS[recipe.network](weights=None, num_classes=recipe.d)
            attention = BilinearWordAttention(recipe.d_word, recipe.d, recipe.rank)
            encoder = WordEncoder(vocabulary, recipe.d_word, recipe.d, attention)
        self.words = encoder if words else None
        few = classes < 100_000
        rho = recipe.active or (1.0 if few else 0.1)
        self.head = ShardedSoftmax(
            recipe.d, classes, mode="knn" if rho < 1 else "full", rho=rho, seed=seed
        )

    def encoders(self) -> list[nn.Parameter]:
        """What every process has alike."""
        return [p for name, p in self.named_parameters() if not name.startswith("head.")]

    def loss(
        self, x: Tensor, tokens: Tensor, y: Tensor, half: torch.autocast | nullcontext
    ) -> Float[Tensor, ""]:
        """CE of the images, plus CE of the words; W is passed over once for both."""
        with half:
            f = self.backbone(x)
            if self.words is None:
                features = [f]
            else:
                s, _ = self.words(tokens, tokens > UNKNOWN, f.detach())
                features = [f, s]
        rows = torch.cat([part.float() for part in features])
        # The head's loss is a mean over rows; ours is a sum of one mean a branch.
        return len(features) * self.head(rows, y.repeat(len(features)))


def _train(recipe: PaperRecipe, arm: str, model: _Model, data: Products, seed: int) -> None:
    device = model.head.weight.device
    loader = _loader(recipe, data, device, learning=True)
    total = recipe.epochs * len(loader)
    if total < 1:
        raise ValueError(f"no batch of {recipe.batch} on each of {world()[1]} processes; use less")
    optimizers = _optimizers(recipe, model)
    rise = round(recipe.warmup * total)
    rates = [LambdaLR(one, lambda step: warmup_cosine(step, total, rise)) for one in optimizers]
    whole = WholeHead(model, optimizers[1])
    parts = {"encoders": optimizers[0], "model": whole, "rate": rates[0], "head_rate": rates[1]}
    begun = load_checkpoint(recipe.checkpoint, f"{arm}-{seed}", parts)
    step = begun * len(loader)
    half = partial(
        torch.autocast, device.type, torch.bfloat16, recipe.half and device.type == "cuda"
    )
    model.train()
    for epoch in range(begun, recipe.epochs):
        loader.sampler.set_epoch(1000 * seed + epoch)  # type: ignore[attr-defined]
        if model.head.mode == "knn":
            model.head.rebuild(2 * recipe.batch * world()[1])
        for x, tokens, y, _ in _moved(loader, device):
            model.zero_grad(set_to_none=True)
            model.loss(x, tokens, y, half()).backward()
            sum_gradients(model.encoders())  # the head's loss already divides by all images
            for optimizer, schedule in zip(optimizers, rates, strict=True):
                optimizer.step()
                schedule.step()
            step += 1
            if step == recipe.max_steps:
                return
        average_buffers(model.backbone)
        whole.gather()
        save_checkpoint(recipe.checkpoint, f"{arm}-{seed}", parts, epoch + 1)


def _optimizers(recipe: PaperRecipe, model: _Model) -> list[torch.optim.Optimizer]:
    """SGD for both encoders, and for the classifier the one that leaves inactive rows alone."""
    rate = recipe.lr * recipe.batch * world()[1] / 256
    spared = [] if model.words is None else [model.words.embedding.weight]
    decayed = [p for p in model.encoders() if not any(p is s for s in spared)]
    encoders = torch.optim.SGD(
        [{"params": decayed}] + [{"params": spared, "weight_decay": 0.0}] * bool(spared),
        lr=rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    return [encoders, ActiveRowSGD([model.head.weight], rate, recipe.momentum)]


def _moved(loader: DataLoader, device: torch.device) -> Iterator[list[Tensor]]:
    for batch in loader:
        yield [part.to(device, non_blocking=True) for part in batch]


@torch.no_grad()
def _test(
    recipe: PaperRecipe, model: _Model, data: Products, counts: Int64[Tensor, " classes"]
) -> dict[str, float]:
    """Buckets over the val images of all processes and the classes of all processes."""
    device = model.head.weight.device
    average_buffers(model.backbone)
    model.eval()
    pred = torch.full((len(data),), -1)
    for x, _, _, index in _moved(_loader(recipe, data, device, learning=False), device):
        everywhere = gather_with_grad(model.backbone(x).float())
        value, place = model.head.scores(everywhere).max(dim=1)
        values = gather_with_grad(value[None])
        classes = gather_with_grad((place + model.head.low)[None])
        best = classes.gather(0, values.argmax(dim=0, keepdim=True))[0]
        pred[gather_with_grad(index).cpu()] = best.cpu()
    return bucket_accuracy(pred, data.y, counts, LARGE_EDGES)
