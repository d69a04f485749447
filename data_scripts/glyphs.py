"""Glyphs: every character of GB2312 in eight fonts, then small distorted images of it.

`clean.npy` holds the characters as the fonts draw them, 48×48, white on black. From it come 8
train, 2 val and 4 test images a class, 32×32. Image i of split s is drawn with
`default_rng([4, s, i])`, so any one of them can be made again alone.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_scripts.archives import read_member
from data_scripts.jobs import in_parallel
from data_scripts.tables import write_licences, write_table
from toolkit.data import GLYPH_FONTS, HELD_OUT_FONTS
from toolkit.data.store import DataError

WORLD = 4
SPLITS = {"train": 0, "val": 1, "test": 2}
PER_CLASS = {"train": 8, "val": 2, "test": 4}

LEVEL_1, LEVEL_2 = 3755, 3008
"""Characters of the two levels of GB2312: the common ones, and the others."""
UNIFIED = 20_976
"""Characters from U+4E00 to U+9FFF that both Noto fonts draw."""

EM, CANVAS = 160, 400
"""Pixels of the em square and of the sheet on which a character is first drawn."""
CLEAN, SMALL, INK = 48, 32, 0.8
"""Sides of the clean and of the final image in pixels; the share of the side that ink spans."""

FILES = {
    "noto-sans-sc": "400Regular/NotoSansSC_400Regular.ttf",
    "noto-serif-sc": "400Regular/NotoSerifSC_400Regular.ttf",
    "zcool-xiaowei": "400Regular/ZCOOLXiaoWei_400Regular.ttf",
    "zcool-qingke-huangyou": "400Regular/ZCOOLQingKeHuangYou_400Regular.ttf",
    "zcool-kuaile": "400Regular/ZCOOLKuaiLe_400Regular.ttf",
    "ma-shan-zheng": "400Regular/MaShanZheng_400Regular.ttf",
    "zhi-mang-xing": "400Regular/ZhiMangXing_400Regular.ttf",
    "liu-jian-mao-cao": "LiuJianMaoCao_400Regular.ttf",
}


def prepare(folder: Path, inputs: Mapping[str, Path], size: str = "") -> None:
    """Write the clean characters, the three splits and, for the usual size, the look-alikes.

    Raises:
        DataError: if a font does not draw all the characters that it should.
    """
    fonts = _fonts(inputs)
    chars = _shuffled(unified_characters(fonts)) if size == "20k" else gb2312_characters()
    clean = draw_all(fonts, chars)
    np.save(folder / "clean.npy", clean)
    (folder / "chars.txt").write_text("\n".join(chars) + "\n", "utf-8")
    write_licences(folder, "font", {name: f"@expo-google-fonts/{name}" for name in fonts})
    held_out = () if size == "20k" else HELD_OUT_FONTS
    for split in SPLITS:
        images, font = distort_all(clean, split, held_out)
        np.save(folder / f"{split}.npy", images)
        np.save(folder / f"{split}_font.npy", font)
    if size != "20k":
        write_lookalikes(folder / "lookalikes.csv", clean[:LEVEL_1, 0], chars)


def gb2312_characters() -> list[str]:
    """The 6,763 characters of GB2312: level 1, then level 2, each in a fixed random order."""
    level_1 = list(_gb2312_rows(0xB0, 0xD7))
    level_2 = list(_gb2312_rows(0xD8, 0xF7))
    if (len(level_1), len(level_2)) != (LEVEL_1, LEVEL_2):
        raise DataError(f"GB2312 has {len(level_1)} + {len(level_2)} characters in this Python")
    return _shuffled(level_1) + _shuffled(level_2)


def unified_characters(fonts: Mapping[str, bytes]) -> list[str]:
    """The characters from U+4E00 to U+9FFF that every given font draws, in code order."""
    codes = set(range(0x4E00, 0xA000))
    for content in fonts.values():
        codes &= _drawn_codes(content)
    if len(codes) != UNIFIED:
        raise DataError(f"the fonts share {len(codes):,} characters, expected {UNIFIED:,}")
    return [chr(code) for code in sorted(codes)]


def draw_all(fonts: Mapping[str, bytes], chars: Sequence[str]) -> np.ndarray:
    """Draw every character in every font: uint8 [characters, fonts, 48, 48].

    Raises:
        DataError: if a font lacks a character.
    """
    for name, content in fonts.items():
        if lacking := {ord(char) for char in chars} - _drawn_codes(content):
            raise DataError(f"the font {name} lacks {len(lacking)} of {len(chars)} characters")
    pieces = np.array_split(np.asarray(chars), 4)
    jobs = [(content, piece) for content in fonts.values() for piece in pieces]
    drawn = in_parallel(draw, jobs, "glyphs: fonts")
    by_font = [np.concatenate(drawn[start : start + 4]) for start in range(0, len(drawn), 4)]
    return np.stack(by_font, axis=1)


def draw(font: bytes, chars: Iterable[str]) -> np.ndarray:
    """Draw characters in one font: uint8 [characters, 48, 48], white on black.

    The box of the ink is centred; its longer side spans 80 % of the image.
    """
    face = ImageFont.truetype(io.BytesIO(font), EM)
    return np.stack([_draw_one(face, char) for char in chars])


def distort_all(
    clean: np.ndarray, split: str, held_out: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Make all images of a split, class by class.

    Args:
        clean: uint8 [characters, fonts, 48, 48].
        split: `"train"`, `"val"` or `"test"`.
        held_out: fonts that only the last test image of a class may show.

    Returns:
        Images, uint8 [characters · variants, 32, 32], and their fonts, uint8.
    """
    pieces = np.array_split(np.arange(len(clean)), 16)
    jobs = [(clean[piece], split, int(piece[0]), held_out) for piece in pieces if len(piece)]
    images, fonts = zip(*in_parallel(distort, jobs, f"glyphs: {split}"), strict=True)
    return np.concatenate(images), np.concatenate(fonts)


def distort(
    clean: np.ndarray, split: str, first: int, held_out: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Make the images of some consecutive classes, of which `first` is the number of the first."""
    per_class = PER_CLASS[split]
    images = np.empty((len(clean) * per_class, SMALL, SMALL), np.float32)
    fonts = np.empty(len(images), np.uint8)
    sigma, noise = np.empty(len(images), np.float32), np.empty_like(images)
    for row in range(len(images)):
        label, variant = first + row // per_class, row % per_class
        rng = np.random.default_rng([WORLD, SPLITS[split], label * per_class + variant])
        fonts[row] = _choose_font(rng, split, label, variant, clean.shape[1], held_out)
        images[row] = _turn_and_shrink(clean[row // per_class, fonts[row]], rng)
        sigma[row] = rng.uniform(0, 0.6)
        noise[row] = rng.normal(0, 8, (SMALL, SMALL))
    noisy = blur(images, sigma) + noise
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), fonts


def blur(images: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Gaussian blur of float images [n, H, W], each with its own σ in pixels (below 1; 5 taps)."""
    offsets = np.arange(-2, 3, dtype=np.float32)
    taps = np.exp(-(offsets**2) / (2 * np.maximum(sigma, 1e-3)[:, None] ** 2))
    taps = (taps / taps.sum(1, keepdims=True)).astype(np.float32)
    for axis in (1, 2):
        padding = [(2, 2) if axis == one else (0, 0) for one in range(3)]
        padded, length = np.pad(images, padding, "edge"), images.shape[axis]
        images = sum(
            taps[:, tap, None, None] * padded.take(range(tap, tap + length), axis)
            for tap in range(5)
        )
    return images


def write_lookalikes(
    path: Path, images: np.ndarray, chars: Sequence[str], count: int = 500
) -> None:
    """List the characters nearest to another one, nearest first, by pixels at 16×16.

    Args:
        path: of the table: class, char, nearest class, its char, root-mean-square distance (0–1).
        images: uint8 [characters, 48, 48] in one font.
        chars: of these images.
        count: how many to list.
    """
    small = images.reshape(len(images), 16, 3, 16, 3).mean((2, 4)).reshape(len(images), 256) / 255
    norms = (small**2).sum(1)
    squared = norms[:, None] + norms[None] - 2 * small @ small.T
    np.fill_diagonal(squared, np.inf)
    nearest = squared.argmin(1)
    distance = np.sqrt(squared.min(1).clip(0) / 256)
    order = np.argsort(distance, kind="stable")[:count]
    rows = [
        (one, chars[one], nearest[one], chars[nearest[one]], f"{distance[one]:.4f}")
        for one in order
    ]
    columns = ["class", "char", "nearest_class", "nearest_char", "distance"]
    write_table(path, columns, rows)


def _choose_font(
    rng: np.random.Generator,
    split: str,
    label: int,
    variant: int,
    num_fonts: int,
    held_out: Sequence[int],
) -> int:
    seen = num_fonts - len(held_out)
    if split == "train":  # each font once, then as many again as fit, other ones in each class
        return variant % seen if variant < seen else (label + variant) % seen
    if held_out and split == "test" and variant == PER_CLASS["test"] - 1:
        return int(rng.choice(held_out))
    return int(rng.integers(seen))


def _turn_and_shrink(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle, across, down = rng.uniform(-8, 8), *rng.uniform(-2, 2, 2)
    turned = Image.fromarray(image).rotate(
        angle, Image.Resampling.BICUBIC, translate=(across, down)
    )
    return np.asarray(turned.resize((SMALL, SMALL), Image.Resampling.BOX))


def _draw_one(face: ImageFont.FreeTypeFont, char: str) -> np.ndarray:
    sheet = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(sheet).text((CANVAS / 2, CANVAS / 2), char, 255, face, anchor="mm")
    ink = sheet.getbbox()
    if ink is None:
        raise DataError(f"the font {face.getname()[0]} draws nothing for {char} ({ord(char):X})")
    left, top, right, bottom = ink
    half = max(right - left, bottom - top) / INK / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    box = (x - half, y - half, x + half, y + half)
    return np.asarray(sheet.resize((CLEAN, CLEAN), Image.Resampling.BOX, box))


def _fonts(inputs: Mapping[str, Path]) -> dict[str, bytes]:
    names = {name: f"@expo-google-fonts/{name}" for name in GLYPH_FONTS}
    return {
        name: read_member(inputs[package], FILES[name])
        for name, package in names.items()
        if package in inputs
    }


def _drawn_codes(font: bytes) -> set[int]:
    """The code points that a font's character map holds."""
    from fontTools.ttLib import TTFont

    return set(TTFont(io.BytesIO(font), lazy=True).getBestCmap())


def _gb2312_rows(first: int, last: int) -> Iterable[str]:
    for high in range(first, last + 1):
        for low in range(0xA1, 0xFF):
            try:
                yield bytes([high, low]).decode("gb2312")
            except UnicodeDecodeError:  # the five unused places at the end of level 1
                continue


def _shuffled(chars: Sequence[str]) -> list[str]:
    return [chars[place] for place in np.random.default_rng(WORLD).permutation(len(chars))]
