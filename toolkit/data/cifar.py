"""CIFAR as its authors publish it, in binary files; only paper-scale recipes read it."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from toolkit.data.store import root

FILES = {
    10: ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
    100: (["train.bin"], ["test.bin"]),
}
ARCHIVES = {10: "cifar-10-batches-bin", 100: "cifar-100-binary"}


@dataclass(frozen=True, eq=False)
class Cifar:
    """All of CIFAR on one device."""

    train_images: UInt8[Tensor, "n 3 32 32"]
    train_labels: Int64[Tensor, "n"]
    test_images: UInt8[Tensor, "m 3 32 32"]
    test_labels: Int64[Tensor, "m"]


@lru_cache(maxsize=1)
def load_cifar(classes: int, folder: str, device: torch.device) -> Cifar:
    """Read the binary version of CIFAR-10 or CIFAR-100 (fine labels).

    Raises:
        ValueError: if `classes` is neither 10 nor 100, or a file has a wrong length.
        FileNotFoundError: naming the folder and the archive to unpack there.
    """
    if classes not in FILES:
        raise ValueError(f"classes must be 10 or 100, got {classes}")
    place = Path(folder).expanduser() if folder else root() / ARCHIVES[classes]
    parts = []
    for names in FILES[classes]:
        if missing := [name for name in names if not (place / name).is_file()]:
            raise FileNotFoundError(
                f"{place} lacks {', '.join(missing)}; unpack the binary version of "
                f"CIFAR-{classes} ({ARCHIVES[classes]}) there, or name its folder with "
                "--set folder=PATH"
            )
        blocks = [_read(place / name, classes) for name in names]
        parts += [torch.cat(column).to(device) for column in zip(*blocks, strict=True)]
    return Cifar(*parts)


def _read(path: Path, classes: int) -> tuple[Tensor, Tensor]:
    """One file: rows of label bytes (coarse and fine for CIFAR-100) and 3,072 pixels."""
    labels = 1 if classes == 10 else 2
    raw = torch.from_numpy(np.fromfile(path, np.uint8))
    if not len(raw) or len(raw) % (labels + 3072):
        raise ValueError(f"{path} is no binary file of CIFAR-{classes}: {len(raw)} bytes")
    rows = raw.view(-1, labels + 3072)
    return rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1].long()
