"""The paper's own scale: ResNet-50, a folder of photographs and listings, a log, torchrun.

The folder has `queries/` and `listings/` with images, and `log.csv`, one visit a row: `query` (a
file name), `shown` (file names, separated by spaces, best first) and `clicks` (positions in
`shown`, from 0, separated by spaces). An optional `boxes.csv` (`query,x0,y0,x1,y1` as shares of the
frame) is only measured against.
"""

import csv
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet50
from torchvision.transforms import v2

from toolkit.learn.distributed import gather_with_grad, world
from toolkit.learn.nets import conv_net
from toolkit.learn.torchrun import load_checkpoint, save_checkpoint, sum_over_ranks, torchrun_group
from toolkit.search.triplets import triplet_loss
from toolkit.search.visual_search.recipe import Recipe
from toolkit.search.visual_search.softbox import JointSearchNet, paired_iou, to_edges

Visit = tuple[str, tuple[str, ...], tuple[int, ...]]


def train_at_scale(recipe: Recipe, seed: int, device: torch.device) -> dict[str, float]:
    """Train the joint network over all ranks that torchrun started.

    Args:
        recipe: with `data`, a folder as the module describes it.
        seed: of weights and batches.
        device: of `cuda`, each rank takes the GPU of its local rank.

    Returns:
        The same on every rank: `joint/loss` and `joint/area` of the last steps, `joint/seconds` a
        step, and `joint/iou` where the folder has boxes.

    Raises:
        ValueError: for a backbone other than "conv" or "resnet50", or a folder that is not as
            described; the message names the first row.
    """
    if not recipe.data:
        raise ValueError("give a folder of photographs, listings and a log: --set data=FOLDER")
    folder = Path(recipe.data).expanduser()
    visits = read_log(folder)
    with torchrun_group(device) as home:
        net = scale_net(recipe, seed).to(home)
        groups = [
            {"params": net.trunk.parameters(), "lr": recipe.lr},
            {"params": _branch(net).parameters(), "lr": recipe.box_lr},
        ]
        optimizer = torch.optim.Adam(groups)
        parts = {"net": net, "optimizer": optimizer}
        done = load_checkpoint(recipe.checkpoint, f"joint-{seed}", parts)
        model = DistributedDataParallel(net) if dist.is_initialized() else net
        on_gpu = home.type == "cuda"
        losses, areas, begin = [], [], time.perf_counter()
        batches = _loader(_Batches(folder, visits, recipe, seed), done, on_gpu)
        for step, (images, clicked, negative) in enumerate(batches, done):
            net.mask.k = _steepness(recipe, step)
            with torch.autocast(home.type, torch.bfloat16, on_gpu):
                features, boxes = model(images.to(home, non_blocking=True))
            loss = _shared_loss(features.float(), clicked, negative, recipe)
            area = ((boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])).mean()
            optimizer.zero_grad(set_to_none=True)
            # DDP averages over ranks; the loss is a mean over the queries of all of them
            (loss + recipe.area * area).backward()
            optimizer.step()
            losses.append(loss.detach())
            areas.append(area.detach())
            if (step + 1) % 1000 == 0:
                save_checkpoint(recipe.checkpoint, f"joint-{seed}", parts, step + 1)
        save_checkpoint(recipe.checkpoint, f"joint-{seed}", parts, recipe.steps)
        steps = max(1, recipe.steps - done)
        results = {
            "joint/loss": _over_ranks(losses[-20:], home),
            "joint/area": _over_ranks(areas[-20:], home),
            "joint/seconds": (time.perf_counter() - begin) / steps,
        }
        if (folder / "boxes.csv").is_file():
            net.mask.k = recipe.k_last
            results["joint/iou"] = _measured_iou(net, folder, recipe, home)
        return results


def read_log(folder: Path) -> list[Visit]:
    """The visits with at least one click and one passed listing.

    Raises:
        ValueError: for a missing column, a position outside the page, or no usable visit.
    """
    path = folder / "log.csv"
    if not path.is_file():
        raise ValueError(f"{folder} has no log.csv")
    visits: list[Visit] = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := {"query", "shown", "clicks"} - set(reader.fieldnames or ()):
            raise ValueError(f"log.csv lacks the columns {sorted(missing)}")
        for number, row in enumerate(reader):
            shown = tuple(row["shown"].split())
            clicks = tuple(int(place) for place in row["clicks"].split())
            if any(
                ".." in Path(name).parts or Path(name).is_absolute()
                for name in (row["query"], *shown)
            ):
                raise ValueError(f"log.csv, visit {number}: a name leaves the folder")
            if not all(0 <= place < len(shown) for place in clicks):
                raise ValueError(f"log.csv, visit {number}: clicks outside 0 … {len(shown) - 1}")
            if 0 < len(clicks) < len(shown):
                visits.append((row["query"], shown, clicks))
    if not visits:
        raise ValueError("log.csv has no visit with a click and a listing that was passed")
    return visits


def scale_net(recipe: Recipe, seed: int) -> JointSearchNet:
    """The network, with the same weights on every rank.

    Raises:
        ValueError: for an unknown backbone.
    """
    if recipe.backbone not in ("conv", "resnet50"):
        raise ValueError(f"backbone is {recipe.backbone!r}; choose conv or resnet50")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe.backbone == "resnet50":
            trunk: nn.Module = resnet50(weights=None, num_classes=recipe.d)
        else:
            pool = nn.AdaptiveAvgPool2d(1)
            stages = conv_net(16, 32, 64, in_channels=3)
            trunk = nn.Sequential(stages, pool, nn.Flatten(), nn.Linear(64, recipe.d))
        side = -(-recipe.box_side // 8)
        looks = conv_net(16, 32, 64, in_channels=3, norm="group")
        branch = nn.Sequential(looks, nn.Flatten(), nn.Linear(64 * side * side, 4))
    return JointSearchNet(trunk, branch, box_size=recipe.box_side, k=recipe.k_first)


class _Batches(Dataset):
    """This rank's batch of each step.

    Images (queries, positives, negatives), the names that each visit clicked, the negatives' names.
    """

    def __init__(self, folder: Path, visits: list[Visit], recipe: Recipe, seed: int) -> None:
        self.folder, self.visits, self.recipe, self.seed = folder, visits, recipe, seed
        self.view, self.world = _view(recipe.side), world()  # a worker knows no group

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> tuple[Tensor, list[tuple[str, ...]], list[str]]:
        (rank, size), batch = self.world, self.recipe.batch
        rows = np.random.default_rng([self.seed, step]).integers(
            len(self.visits), size=batch * size
        )
        queries, liked, others, clicked = [], [], [], []
        for row in rows[rank * batch : (rank + 1) * batch]:
            query, shown, clicks = self.visits[row]
            draw = np.random.default_rng([self.seed, step, int(row)])
            passed = [place for place in range(len(shown)) if place not in clicks]
            queries.append(f"queries/{query}")
            liked.append(f"listings/{shown[draw.choice(clicks)]}")
            others.append(shown[draw.choice(passed)])
            clicked.append(tuple(shown[place] for place in clicks))
        names = [*queries, *liked, *(f"listings/{name}" for name in others)]
        images = torch.stack([self.view(self.folder / name) for name in names])
        return images, clicked, others


def _loader(batches: _Batches, done: int, on_gpu: bool) -> DataLoader:
    """The batches of the steps that are left, read ahead by other processes on a GPU machine."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(done, len(batches)),
        collate_fn=_as_it_is,
        num_workers=min(8, os.cpu_count() or 1) if on_gpu else 0,
        pin_memory=on_gpu,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _shared_loss(
    features: Float[Tensor, "three_m d"],
    clicked: list[tuple[str, ...]],
    negative: list[str],
    recipe: Recipe,
) -> Float[Tensor, ""]:
    """The ranking loss of this rank's queries against the negatives of all ranks."""
    query, positive, other = features.chunk(3)
    everyone = gather_with_grad(other)
    mine = torch.tensor([_number(name) for name in negative], device=query.device)
    theirs = [mine]
    if dist.is_initialized():
        theirs = [torch.empty_like(mine) for _ in range(world()[1])]
        dist.all_gather(theirs, mine)
    passed = torch.cat(theirs)
    liked = [torch.tensor([_number(n) for n in row], device=query.device) for row in clicked]
    allowed = torch.stack([~torch.isin(passed, row) for row in liked])
    return triplet_loss(query, positive, everyone, recipe.margin, allowed)


def _number(name: str) -> int:
    """The same number for a file name on every rank."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())


def _view(side: int) -> Callable[[Path], Float[Tensor, "3 side side"]]:
    resize = v2.Resize((side, side), antialias=True)

    def view(path: Path) -> Float[Tensor, "3 side side"]:
        with Image.open(path) as picture:
            pixels = v2.functional.pil_to_tensor(picture.convert("RGB"))
        return resize(pixels).float() / 255 - 0.5

    return view


def _steepness(recipe: Recipe, step: int) -> float:
    return recipe.k_first + (recipe.k_last - recipe.k_first) * step / recipe.steps


def _branch(net: JointSearchNet) -> nn.Module:
    assert net.box_branch is not None
    return net.box_branch


def _over_ranks(values: list[Tensor], device: torch.device) -> float:
    total = torch.stack(values).mean() if values else torch.tensor(torch.nan, device=device)
    return float(sum_over_ranks(total) / world()[1])


@torch.no_grad()
def _measured_iou(net: JointSearchNet, folder: Path, recipe: Recipe, device: torch.device) -> float:
    with (folder / "boxes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rank, size = world()
    view, hits = _view(recipe.side), torch.zeros(2, device=device)
    net.eval()
    for row in rows[rank::size]:
        box = torch.tensor([[float(row[name]) for name in ("x0", "y0", "x1", "y1")]])
        image = view(folder / "queries" / row["query"])[None].to(device)
        iou = paired_iou(net.boxes(image), to_edges(box).to(device))
        hits += torch.stack([iou.sum(), torch.ones_like(iou.sum())])
    net.train()
    total = sum_over_ranks(hits)
    return float(total[0] / total[1].clamp(min=1))
