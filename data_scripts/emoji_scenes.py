"""Scenes for detectors: two or three emoji before a photograph, with boxes and masks, in COCO form.

`square` keeps the sprites' shapes; `stretched` gives every object a width and a height of its own,
so that boxes of many shapes occur; `stretched_aspect1` is the same world with width = height, the
control. Scene i of split s is drawn with `default_rng([2, s, i])`; kinds have blocks of numbers of
their own, but the two stretched ones share theirs: they are drawn alike but for the shapes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data_scripts import emoji, manifest, pools
from data_scripts.jobs import in_parallel
from data_scripts.tables import write_licences
from toolkit.data import (
    EMOJI_VENDORS,
    SCENE_CLASSES,
    SCENE_VENDORS,
    Emoji,
    Photos,
    load_emoji,
    load_photos,
)
from toolkit.data.compose import (
    average,
    boxes_of,
    over,
    placement,
    premultiply,
    shrink,
    to_bytes,
    warp,
)
from toolkit.data.shots import Background, draw_background, render_backgrounds

WORLD = 2
SIZE = 64
"""Side of a scene in pixels."""
ROOM = 96
"""Side of the sheet on which a sprite is turned: its diagonal fits."""
NOISE = 6.0
"""Standard deviation in levels of 255."""
TRIES, OVERLAP = 50, 0.1
"""Places tried for an object, and the largest IoU of its box with one that is there already."""
LONGEST = 60.0
"""Longest side of a stretched object, in pixels."""

SPLITS = {"train": 0, "val": 1, "test": 2, "unlabelled": 3}
COUNTS = {
    "square": {"unlabelled": 600, "train": 160, "val": 100, "test": 200},
    "stretched": {"train": 600, "val": 100, "test": 150},
    "stretched_aspect1": {"train": 600, "val": 100, "test": 150},
}
BLOCKS = {"square": 0, "stretched": 10_000, "stretched_aspect1": 10_000}
"""Where the numbers of a kind's scenes begin."""
ASPECT = {"stretched": 3.0, "stretched_aspect1": 1.0}
"""Largest ratio of the sides of an object."""
PIECE = 50
"""Scenes that are rendered together."""


@dataclass(frozen=True)
class Thing:
    """What chance decides about one object, before it is known whether it finds a place."""

    label: int
    """Class: a place in `pools.SCENE_CLASSES`."""
    vendor: int
    """A place in `SCENE_VENDORS`."""
    width: float
    """Of the sprite (`square`) or of the box, a whole number (`stretched`), in pixels."""
    height: float
    rotation: float
    """Degrees, anticlockwise."""
    gain: float
    """Factor of its brightness."""


@dataclass(frozen=True)
class Placed:
    """An object in a scene."""

    thing: Thing
    layer: Tensor
    """float64 [4, 64, 64], premultiplied."""
    box: tuple[float, float, float, float]
    """Before occlusion: x₀, y₀, x₁, y₁ in pixels, half-open."""


def prepare(folder: Path, inputs: Mapping[str, Path], size: str = "") -> None:
    """Write every kind and split: `images.npy`, the same as PNG, `annotations.json`, licences."""
    sprites, places = class_sprites(load_emoji()), load_photos()
    for kind, counts in COUNTS.items():
        for split, count in counts.items():
            write_split(folder / kind / split, kind, split, count, sprites, places)
    works = {vendor: emoji.PACKAGES[vendor] for vendor in SCENE_VENDORS}
    photographs = manifest.datasets()["photos"].downloads
    works |= {Path(download).stem: download for download in photographs}
    write_licences(folder, "work", works)


def class_sprites(pictures: Emoji) -> np.ndarray:
    """The classes as the vendors draw them: uint8 [5, 5, 4, 64, 64], straight alpha."""
    pairs = zip(pictures.concept.tolist(), pictures.vendor.tolist(), strict=True)
    row = {pair: number for number, pair in enumerate(pairs)}
    concepts = [pictures.keys.index(key) for key in pools.SCENE_CLASSES]
    vendors = [EMOJI_VENDORS.index(vendor) for vendor in SCENE_VENDORS]
    rows = [[row[concept, vendor] for vendor in vendors] for concept in concepts]
    return pictures.images[torch.tensor(rows)].numpy()


def write_split(
    folder: Path, kind: str, split: str, count: int, sprites: np.ndarray, places: Photos
) -> None:
    """Render a split and write it. What `unlabelled` shows goes to `truth.json`, apart.

    Args:
        folder: to make and fill.
        kind: `"square"`, `"stretched"` or `"stretched_aspect1"`.
        split: `"train"`, `"val"`, `"test"` or `"unlabelled"`, which has photographs of `train`.
        count: of scenes.
        sprites: as `class_sprites` has them.
        places: all tiles; the split's own are used.
    """
    photographs = "train" if split == "unlabelled" else split
    own = [place for place, name in enumerate(places.split) if name == photographs]
    pieces = [range(first, min(first + PIECE, count)) for first in range(0, count, PIECE)]
    jobs = [(sprites, kind, split, numbers, own) for numbers in pieces]
    made = in_parallel(make_scenes, jobs, f"emoji_scenes: {kind}, {split}")
    images = np.concatenate([part for part, _ in made])
    annotations = [rows for _, part in made for rows in part]
    (folder / "images").mkdir(parents=True)
    np.save(folder / "images.npy", images)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / _file_name(number), compress_level=1)
    hidden = split == "unlabelled"
    nothing: list[list] = [[] for _ in images]
    _write_coco(folder / "annotations.json", nothing if hidden else annotations)
    if hidden:
        _write_coco(folder / "truth.json", annotations)


def make_scenes(
    sprites: np.ndarray, kind: str, split: str, numbers: Sequence[int], places: Sequence[int]
) -> tuple[np.ndarray, list[list[dict[str, Any]]]]:
    """Draw and render some scenes of a split.

    Args:
        sprites: as `class_sprites` has them.
        kind: of the world.
        split: likewise.
        numbers: of the scenes in the split.
        places: rows of the tiles that may be behind them.

    Returns:
        uint8 [scenes, 64, 64, 3], and the annotations of each scene, COCO's fields without ids.
    """
    torch.set_num_threads(1)
    tiles, images, annotations = load_photos().images, [], []
    for number in numbers:
        rng = np.random.default_rng([WORLD, SPLITS[split], BLOCKS[kind] + number])
        background, objects = draw_scene(rng, kind, sprites, places)
        images.append(render(rng, background, objects, tiles))
        annotations.append(annotate(objects))
    return np.stack(images), annotations


def draw_scene(
    rng: np.random.Generator, kind: str, sprites: np.ndarray, places: Sequence[int]
) -> tuple[Background, list[Placed]]:
    """Draw a background and two or three objects; one that finds no place in 50 tries is left out.

    Args:
        rng: its state decides.
        kind: of the world.
        sprites: as `class_sprites` has them.
        places: rows of the tiles to choose from.
    """
    background = draw_background(rng, places, SIZE)
    objects: list[Placed] = []
    for _ in range(int(rng.integers(2, 4))):
        thing = draw_thing(rng, kind)
        sprite = torch.from_numpy(sprites[thing.label, thing.vendor])
        whole = sized_square(sprite, thing) if kind == "square" else cut_out(sprite, thing)
        spot = find_spot(rng, _extent(whole, thing, kind), [one.box for one in objects])
        if spot is not None:
            put = put_square if kind == "square" else put_stretched
            objects.append(put(whole, thing, spot))
    return background, objects


def draw_thing(rng: np.random.Generator, kind: str) -> Thing:
    """Draw class, vendor, size, rotation and brightness of an object."""
    label, vendor = int(rng.integers(len(pools.SCENE_CLASSES))), int(rng.integers(5))
    if kind == "square":
        width = height = rng.uniform(16, 30)
    else:
        width, height = _draw_sides(rng, ASPECT[kind])
    return Thing(label, vendor, width, height, rng.uniform(-15, 15), rng.uniform(0.85, 1.15))


def find_spot(
    rng: np.random.Generator, extent: tuple[int, int], boxes: Sequence[Sequence[float]]
) -> tuple[int, int] | None:
    """Draw the top left corner of a box in the frame until it overlaps no other by more than .1.

    Args:
        rng: its state decides.
        extent: width and height of the box in pixels.
        boxes: those that are there.

    Returns:
        x, y; or `None` after 50 tries.
    """
    for _ in range(TRIES):
        x, y = (int(rng.integers(SIZE - side + 1)) for side in extent)
        here = (x, y, x + extent[0], y + extent[1])
        if all(_iou(here, other) <= OVERLAP for other in boxes):
            return x, y
    return None


def sized_square(sprite: Tensor, thing: Thing) -> Tensor:
    """A sprite at its size, turned, in the middle of an empty frame: float64 [1, 4, 64, 64]."""
    side = torch.tensor([thing.width], dtype=torch.float64)
    small = shrink(premultiply(sprite[None], torch.float64), side, side, SIZE)
    return _turned(small, thing.rotation, SIZE)


def put_square(whole: Tensor, thing: Thing, spot: tuple[int, int]) -> Placed:
    """Shift a sprite by whole pixels, so that its tight box begins at the spot."""
    box = boxes_of(whole[:, 3] > 0.5)[0]
    left, top = (SIZE + int(box[axis]) - spot[axis] for axis in (0, 1))
    layer = F.pad(whole[0], [SIZE] * 4)[:, top : top + SIZE, left : left + SIZE]
    width, height = (box[2:] - box[:2]).tolist()
    return Placed(thing, layer, (*map(float, spot), spot[0] + width, spot[1] + height))


def cut_out(sprite: Tensor, thing: Thing) -> Tensor:
    """A sprite turned and cut to its tight box: float64 [1, 4, rows, columns]."""
    wide = F.pad(premultiply(sprite[None], torch.float64), [(ROOM - SIZE) // 2] * 4)
    turned = _turned(wide, thing.rotation, ROOM)
    x0, y0, x1, y1 = (int(edge) for edge in boxes_of(turned[:, 3] > 0.5)[0])
    return turned[:, :, y0:y1, x0:x1]


def put_stretched(whole: Tensor, thing: Thing, spot: tuple[int, int]) -> Placed:
    """Resize a cut sprite to exactly its width and height, at the spot: bicubic up, area down."""
    rows, columns = whole.shape[2:]
    width, height = int(thing.width), int(thing.height)
    grown = max(rows, height), max(columns, width)
    if grown != (rows, columns):
        whole = _bounded(F.interpolate(whole, grown, mode="bicubic", align_corners=False))
    (x, y), (rows, columns) = spot, grown
    across, down = columns / width, rows / height
    window = [-x * across, -y * down, (SIZE - x) * across, (SIZE - y) * down]
    layer = average(whole, torch.tensor([window], dtype=torch.float64), SIZE)[0]
    return Placed(thing, layer, (float(x), float(y), float(x + width), float(y + height)))


def render(
    rng: np.random.Generator, background: Background, objects: Sequence[Placed], tiles: Tensor
) -> np.ndarray:
    """Lay the objects over the photograph, the later ones on top, and add noise.

    Args:
        rng: draws the noise.
        background: a window of a tile.
        objects: from the lowest to the highest.
        tiles: uint8 [places, 3, 224, 224].

    Returns:
        uint8 [64, 64, 3].
    """
    picture = render_backgrounds([background], tiles, SIZE)
    for one in objects:
        lit = (one.layer[:3] * one.thing.gain).minimum(one.layer[3:])
        picture = over(torch.cat([lit, one.layer[3:]])[None], picture)
    noise = torch.from_numpy(rng.normal(0, NOISE / 255, (1, 3, SIZE, SIZE)))
    return to_bytes(picture + noise)[0].permute(1, 2, 0).numpy()


def annotate(objects: Sequence[Placed]) -> list[dict[str, Any]]:
    """COCO's annotations of a scene, without ids; a mask shows what no later object hides."""
    masks = [(one.layer[3] > 0.5).numpy() for one in objects]
    rows = []
    for place, one in enumerate(objects):
        hidden = np.any([np.zeros((SIZE, SIZE), bool), *masks[place + 1 :]], axis=0)
        visible = masks[place] & ~hidden
        code = rle.encode(np.asfortranarray(visible.astype(np.uint8)))
        x0, y0, x1, y1 = one.box
        rows.append(
            {
                "category_id": one.thing.label,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": {"size": [SIZE, SIZE], "counts": code["counts"].decode()},
                "area": int(visible.sum()),
                "iscrowd": 0,
                "vendor": SCENE_VENDORS[one.thing.vendor],
                "rotation": round(one.thing.rotation, 3),
            }
        )
    return rows


def _write_coco(path: Path, annotations: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    images = [
        {"id": number, "file_name": _file_name(number), "width": SIZE, "height": SIZE}
        for number in range(len(annotations))
    ]
    flat = [(number, row) for number, rows in enumerate(annotations) for row in rows]
    listed = [{"id": 1 + i, "image_id": number, **row} for i, (number, row) in enumerate(flat)]
    classes = [
        {"id": number, "name": name, "supercategory": "emoji"}
        for number, name in enumerate(SCENE_CLASSES)
    ]
    content = {"images": images, "annotations": listed, "categories": classes}
    path.write_text(json.dumps(content) + "\n", "utf-8")


def _file_name(number: int) -> str:
    return f"images/{number:06d}.png"


def _draw_sides(rng: np.random.Generator, aspect: float) -> tuple[float, float]:
    """Whole width and height: √area log-uniform in 9…34, their ratio log-uniform in 1/a…a."""
    while True:
        root = np.exp(rng.uniform(np.log(9), np.log(34)))
        ratio = np.exp(rng.uniform(-1, 1) * np.log(aspect))
        width, height = root * np.sqrt(ratio), root / np.sqrt(ratio)
        if max(width, height) <= LONGEST:
            return float(round(width)), float(round(height))


def _extent(whole: Tensor, thing: Thing, kind: str) -> tuple[int, int]:
    if kind != "square":
        return int(thing.width), int(thing.height)
    box = boxes_of(whole[:, 3] > 0.5)[0]
    return int(box[2] - box[0]), int(box[3] - box[1])


def _turned(sprite: Tensor, degrees: float, size: int) -> Tensor:
    centre = torch.full((1, 2), size / 2, dtype=torch.float64)
    angle, scale = torch.tensor([degrees], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    theta = placement(centre, angle, scale, (size, size), (size, size))
    return warp(sprite, theta, size, size)


def _bounded(layer: Tensor) -> Tensor:
    """Bicubic interpolation overshoots: alpha back to 0…1, colours to 0…alpha."""
    alpha = layer[:, 3:].clamp(0, 1)
    return torch.cat([torch.minimum(layer[:, :3].clamp(min=0), alpha), alpha], 1)


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return across * down / (areas - across * down)
