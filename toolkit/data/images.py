"""Prepared image sets as plain tensors: digits, Fashion-MNIST, emoji, glyphs, photographs.

Images are uint8 as stored, channels first. Large arrays are memory-mapped: only the rows that are
read are loaded. The maps are copy-on-write, so nothing that is done to a tensor reaches the disk.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from toolkit.data.store import locate

FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

EMOJI_VENDORS = (
    "noto",
    "noto-v1",
    "twemoji",
    "openmoji",
    "fluent-flat",
    "emojione",
    "emojione-v1",
    "fxemoji",
)
"""Who drew an emoji image; the place in this tuple is the vendor's id."""

GLYPH_FONTS = (
    "noto-sans-sc",
    "noto-serif-sc",
    "zcool-xiaowei",
    "zcool-qingke-huangyou",
    "zcool-kuaile",
    "ma-shan-zheng",
    "zhi-mang-xing",
    "liu-jian-mao-cao",
)
"""Fonts of the glyphs; the place in this tuple is the font's id. The last three are held out."""

HELD_OUT_FONTS = (5, 6, 7)
"""Ids of the brush fonts, which no training image shows."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with one class each."""

    images: UInt8[Tensor, "n 1 height width"]
    label: Int64[Tensor, "n"]
    classes: tuple[str, ...]
    """The name of each class."""


@dataclass(frozen=True)
class Emoji:
    """Emoji concepts, each drawn by up to eight vendors: 64×64 pixels, straight alpha."""

    images: UInt8[Tensor, "n 4 64 64"]
    """Red, green, blue, alpha. The colours are not multiplied by alpha."""
    concept: Int64[Tensor, "n"]
    """What is drawn: an index into `keys`, `labels`, `groups`, `subgroups`, `tags`."""
    vendor: Int64[Tensor, "n"]
    """Who drew it: an index into `EMOJI_VENDORS`."""
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    subgroups: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...]
    """The code points, such as `"1F34E"`, joined by hyphens, without the variation selector."""


@dataclass(frozen=True)
class Glyphs:
    """Chinese characters, white on black, slightly rotated, shifted, blurred and noisy."""

    images: UInt8[Tensor, "n 1 32 32"]
    label: Int64[Tensor, "n"]
    """The class: an index into `chars`."""
    font: Int64[Tensor, "n"]
    """The font: an index into `GLYPH_FONTS`."""
    heldout: Bool[Tensor, "n"]
    """Whether the font is one that no training image shows."""
    chars: tuple[str, ...]


@dataclass(frozen=True)
class Photos:
    """Tiles of real photographs, used as backgrounds. A tile is a place."""

    images: UInt8[Tensor, "n 3 224 224"]
    photo: tuple[str, ...]
    """The photograph that each tile was cut from."""
    split: tuple[str, ...]
    """`"train"`, `"val"` or `"test"`; no photograph is in two."""


def load_digits() -> LabelledImages:
    """The 1,797 handwritten digits that come with scikit-learn: 8×8 pixels, values 0 to 16.

    They need no download, and have no fixed split.
    """
    from sklearn.datasets import load_digits as embedded

    digits = embedded()
    images = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return LabelledImages(images, labels, tuple("0123456789"))


def load_fashion_mnist(split: str = "train") -> LabelledImages:
    """Fashion-MNIST (Xiao et al. 2017): articles of clothing, 28×28 grey values, ten classes.

    Args:
        split: `"train"` (60,000 images) or `"test"` (10,000).

    Raises:
        ValueError: for another split.
        DataMissing: if the set is not prepared.
    """
    _check_split(split, ("train", "test"))
    images = _mapped(locate("fashion_mnist", f"{split}_images.npy"))
    labels = _mapped(locate("fashion_mnist", f"{split}_labels.npy"))
    return LabelledImages(images[:, None], labels.long(), FASHION_CLASSES)


def load_emoji() -> Emoji:
    """All emoji images: 11,199 of 1,945 concepts, in the order of the Unicode emoji list.

    Raises:
        DataMissing: if the set is not prepared.
    """
    folder = locate("emoji")
    index, concepts = _rows(folder / "index.csv"), _rows(folder / "concepts.csv")
    column = {name: tuple(row[name] for row in concepts) for name in concepts[0]}
    position = {key: number for number, key in enumerate(column["key"])}
    return Emoji(
        images=_mapped(folder / "images.npy").permute(0, 3, 1, 2),
        concept=torch.tensor([position[row["concept"]] for row in index]),
        vendor=torch.tensor([EMOJI_VENDORS.index(row["vendor"]) for row in index]),
        labels=column["label"],
        groups=column["group"],
        subgroups=column["subgroup"],
        tags=tuple(tuple(tags.split("|")) if tags else () for tags in column["tags"]),
        keys=column["key"],
    )


def load_glyphs(
    split: str = "train", num_classes: int = 200, *, lookalikes: bool = False, size: str = ""
) -> Glyphs:
    """Images of Chinese characters: the class is the character, the font is the nuisance.

    The common characters (GB2312 level 1, 3,755) come first, then level 2 (3,008), each in a fixed
    random order: `num_classes` takes a prefix. Train has 8 images a class in five fonts, val 2 in
    the same fonts, test 4, of which the last is in one of three brush fonts that train never shows.

    Args:
        split: `"train"`, `"val"` or `"test"`.
        num_classes: how many characters: 1 to 6,763 (to 20,976 in the size `"20k"`).
        lookalikes: take instead the 500 common characters that look most like another one, or
            the `num_classes` nearest of them where that is fewer (at most 500).
        size: `""`, or `"20k"` for every character from U+4E00 to U+9FFF that is drawn by both
            Noto fonts, and by these only, so that nothing is held out.

    Raises:
        ValueError: for an unknown split or size, or more classes than there are.
        DataMissing: if the set is not prepared.
    """
    _check_split(split, ("train", "val", "test"))
    if size not in ("", "20k"):
        raise ValueError(f"size must be '' or '20k', got {size!r}")
    if lookalikes and size:
        raise ValueError("the look-alikes are characters of the size ''; leave size out")
    folder = locate("glyphs", size=size)
    chars = tuple((folder / "chars.txt").read_text("utf-8").split())
    available = _lookalike_classes(folder) if lookalikes else np.arange(len(chars))
    if not 1 <= num_classes <= len(available):
        raise ValueError(f"num_classes must be 1 to {len(available)}, got {num_classes}")
    images, fonts = _mapped(folder / f"{split}.npy"), _mapped(folder / f"{split}_font.npy")
    per_class = len(images) // len(chars)
    classes = torch.from_numpy(available[:num_classes])
    if lookalikes:
        rows = (classes[:, None] * per_class + torch.arange(per_class)).flatten()
        images, fonts = images[rows], fonts[rows]
    else:
        images, fonts = images[: num_classes * per_class], fonts[: num_classes * per_class]
    return Glyphs(
        images=images[:, None],
        label=torch.arange(num_classes).repeat_interleave(per_class),
        font=fonts.long(),
        heldout=torch.isin(fonts, torch.tensor(HELD_OUT_FONTS, dtype=fonts.dtype)),
        chars=tuple(chars[number] for number in classes.tolist()),
    )


def load_photos(split: str | None = None) -> Photos:
    """Tiles of seven photographs, 224×224: 38 places, or those of one split.

    Args:
        split: `"train"`, `"val"`, `"test"`, or `None` for all.

    Raises:
        ValueError: for another split.
        DataMissing: if the set is not prepared.
    """
    if split is not None:
        _check_split(split, ("train", "val", "test"))
    folder = locate("photos")
    rows = _rows(folder / "tiles.csv")
    keep = [number for number, row in enumerate(rows) if split in (None, row["split"])]
    return Photos(
        images=_mapped(folder / "tiles.npy").permute(0, 3, 1, 2)[keep],
        photo=tuple(rows[number]["photo"] for number in keep),
        split=tuple(rows[number]["split"] for number in keep),
    )


def _lookalike_classes(folder: Path) -> np.ndarray:
    return np.array([int(row["class"]) for row in _rows(folder / "lookalikes.csv")])


def _mapped(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _check_split(split: str, allowed: tuple[str, ...]) -> None:
    if split not in allowed:
        raise ValueError(f"split must be one of {', '.join(allowed)}; got {split!r}")
