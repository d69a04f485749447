import csv

import numpy as np
import pytest
from PIL import Image

from data_scripts import photos
from toolkit.data.store import DataError, locate


def test_tiles_do_not_overlap_and_start_at_the_top_left():
    pixels = np.random.default_rng(0).integers(0, 256, (450, 680, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    tiles = list(photos.cut(picture))
    assert len(tiles) == 6
    assert np.array_equal(tiles[0], pixels[:224, :224])
    assert np.array_equal(tiles[5], pixels[224:448, 448:672])


def test_photograph_of_another_size_is_refused(tmp_path):
    path = tmp_path / "china.jpg"
    Image.new("RGB", (450, 450)).save(path)
    with pytest.raises(DataError, match=r"china\.jpg gives 4 tiles, expected 6"):
        photos.prepare(tmp_path, {"china": path})


def test_every_photograph_has_licence_author_and_address():
    with locate("photos", "LICENSES.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["photo"] for row in rows} == {
        "china", "coffee", "rocket", "hubble_deep_field", "astronaut", "chelsea", "flower",
    }  # fmt: skip
    assert all(row["licence"] and row["author"] and row["url"] for row in rows)
