"""Images of the large runs: CIFAR-100 in its binary version, or a folder a class."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from toolkit.data.store import root
from toolkit.learn.distributed import world

CIFAR_FILES = {"train": "train.bin", "test": "test.bin"}
CIFAR_ROW = 2 + 3072  # coarse label, fine label, pixels
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class ImageTask:
    """Training and test images, read by index."""

    classes: int
    train: Dataset
    """`[i] -> (float image, class)`, augmented at random."""
    plain: Dataset
    """The training images without augmentation, for a teacher."""
    test: Dataset
    count: int
    """Training images."""


def cifar_100(folder: str) -> ImageTask:
    """CIFAR-100 with fine labels; random crops of four padded pixels and mirror images.

    Args:
        folder: of the binary version, by default `cifar-100-binary` in `$TOOLKIT_DATA`.

    Raises:
        FileNotFoundError: naming the folder and the archive to unpack there.
        ValueError: if a file has a wrong length.
    """
    place = Path(folder).expanduser() if folder else root() / "cifar-100-binary"
    if missing := [name for name in CIFAR_FILES.values() if not (place / name).is_file()]:
        raise FileNotFoundError(
            f"{place} lacks {', '.join(missing)}; unpack the binary version of CIFAR-100 "
            "(cifar-100-binary) there, or name its folder with --set folder=PATH"
        )
    random = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    train, labels = _read_cifar(place / CIFAR_FILES["train"])
    test, test_labels = _read_cifar(place / CIFAR_FILES["test"])
    return ImageTask(
        100,
        _Tensors(train, labels, _as_float(random)),
        _Tensors(train, labels, _as_float([])),
        _Tensors(test, test_labels, _as_float([])),
        len(train),
    )


def image_folder(folder: str, size: int) -> ImageTask:
    """Images in `folder/train/CLASS/*` and `folder/test/CLASS/*`, cropped to size × size.

    Raises:
        FileNotFoundError: if one of the two is missing.
        ValueError: if they hold different classes.
    """
    places = {split: Path(folder).expanduser() / split for split in ("train", "test")}
    if missing := [str(place) for place in places.values() if not place.is_dir()]:
        raise FileNotFoundError(f"no folder {' nor '.join(missing)}; name it: --set folder=PATH")
    random = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    whole = [v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)]
    train = ImageFolder(str(places["train"]), _as_float([v2.ToImage(), *random]))
    plain = ImageFolder(str(places["train"]), _as_float([v2.ToImage(), *whole]))
    test = ImageFolder(str(places["test"]), _as_float([v2.ToImage(), *whole]))
    if train.classes != test.classes:
        raise ValueError(f"train has the classes {train.classes[:3]}…, test {test.classes[:3]}…")
    return ImageTask(len(train.classes), train, plain, test, len(train))


def shares(count: int, batch: int, seed: int, epoch: int) -> Iterator[tuple[list[int], float]]:
    """This process's share of each global batch, and the weight that makes the mean exact.

    The order depends on seed and epoch only: branches that part see the same batches.

    Args:
        count: images.
        batch: images a step over all processes.
        seed: of the run.
        epoch: from 0.
    """
    rank, size = world()
    order = np.random.default_rng([seed, 1, epoch]).permutation(count)
    for begin in range(0, count, batch):
        chunk = order[begin : begin + batch]
        mine = chunk[np.arange(rank, max(len(chunk), size), size) % len(chunk)]
        yield mine.tolist(), len(mine) * size / max(len(chunk), size)


def loader(images: Dataset, batches: Sequence[list[int]], workers: int) -> DataLoader:
    """Batches of (images, classes) in the given order."""
    return DataLoader(images, batch_sampler=batches, num_workers=workers)


class _Tensors(Dataset):
    """uint8 images in memory."""

    def __init__(
        self, images: UInt8[Tensor, "n 3 32 32"], labels: Tensor, transform: Callable
    ) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def _as_float(steps: list) -> Callable:
    scale = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([*steps, scale, v2.Normalize(MEAN, SPREAD)])


def _read_cifar(path: Path) -> tuple[Tensor, Tensor]:
    raw = torch.from_numpy(np.fromfile(path, np.uint8))
    if not len(raw) or len(raw) % CIFAR_ROW:
        raise ValueError(f"{path} is no binary file of CIFAR-100: {len(raw)} bytes")
    rows = raw.view(-1, CIFAR_ROW)
    return rows[:, 2:].reshape(-1, 3, 32, 32), rows[:, 1].long()
