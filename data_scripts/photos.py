"""Photographs: seven real ones that installed packages carry, cut into tiles for backgrounds.

A tile is a place. No photograph is in two splits.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_scripts.tables import write_licences, write_table
from toolkit.data.store import DataError

SHORT_SIDE, TILE = 450, 224
"""Pixels: photographs are resized to this short side, then cut into square tiles of this one."""

SPLITS = {
    "train": {"china.jpg": 6, "coffee.png": 6, "rocket.jpg": 6, "hubble_deep_field.jpg": 4},
    "val": {"astronaut.png": 4},
    "test": {"chelsea.png": 6, "flower.jpg": 6},
}
"""Photographs of each split, with the number of tiles that fit."""


def prepare(folder: Path, inputs: Mapping[str, Path], size: str = "") -> None:
    """Write the tiles, uint8 [38, 224, 224, 3], the table of places and the licences.

    Raises:
        DataError: if a photograph gives another number of tiles.
    """
    paths = {path.name: path for path in inputs.values()}
    tiles, places = [], []
    for split, photographs in SPLITS.items():
        for name, count in photographs.items():
            found = list(cut(Image.open(paths[name])))
            if len(found) != count:
                raise DataError(f"{name} gives {len(found)} tiles, expected {count}")
            tiles += found
            places += [(Path(name).stem, split)] * count
    np.save(folder / "tiles.npy", np.stack(tiles))
    write_table(folder / "tiles.csv", ["photo", "split"], places)
    write_licences(folder, "photo", {path.stem: download for download, path in inputs.items()})


def cut(photograph: Image.Image) -> Iterator[np.ndarray]:
    """The whole tiles of a photograph, from the top left, row by row: uint8 [224, 224, 3]."""
    scale = SHORT_SIDE / min(photograph.size)
    width, height = (round(side * scale) for side in photograph.size)
    resized = photograph.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(resized)
    for top in range(0, height - TILE + 1, TILE):
        for left in range(0, width - TILE + 1, TILE):
            yield pixels[top : top + TILE, left : left + TILE]
