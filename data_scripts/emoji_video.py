"""Emoji in motion: H.264 clips with the exact mask and the exact motion of what moves.

`easy` and `hard` (`video_actions`) show one sprite in one of 8 or 12 motions; six further sets
(`video_twins`) show a target among its twins. What chance decides about item i of split s is drawn
with `default_rng([3, s, i])`. All sets share these numbers, so each has its own block of them.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_scripts import emoji, manifest, pools, video_actions, video_twins
from data_scripts.jobs import in_parallel
from data_scripts.tables import write_licences
from toolkit.data import EMOJI_VENDORS, Photos, load_photos
from toolkit.data.video import encode_h264

WORLD = 3
SPLITS = {"train": 0, "val": 1, "test": 2}
SIDE = 128
"""Pixels of a sprite as it is drawn."""
CONCEPTS = {"train": slice(0, 200), "test": slice(200, 300)}
"""Ranks in the pool of the shop."""

SCENES = {
    "small": {"train": 25, "test": 15},
    "medium": {"train": 50, "test": 25},
    "large": {"train": 75, "test": 38},
}
"""Of `easy` and of `hard` each, by size."""
BLOCKS = {
    **{f"{level}/small": 1000 * row for row, level in enumerate(("easy", "hard"))},
    **{f"{level}/medium": 1000 * row + 200 for row, level in enumerate(("easy", "hard"))},
    **{f"{level}/large": 1000 * row + 400 for row, level in enumerate(("easy", "hard"))},
    **{name: 2000 + 1000 * row for row, name in enumerate(video_twins.SETS)},
}
"""Where the item numbers of each set begin."""


def prepare(folder: Path, inputs: Mapping[str, Path], size: str = "") -> None:
    """Write every clip as `NAME.mp4`, and per set the masks and motions as `truth.npz`.

    The sets of twins have one size and belong to the small one.
    """
    places, draw = load_photos(), partial(_svg, _icons(inputs), pools.read()["shop"])
    for level in video_actions.PAIRS:
        for split, count in SCENES[size or "small"].items():
            write_actions(folder / level / split, level, split, count, size, places, draw)
    for name in video_twins.SETS if size == "" else ():
        write_twins(folder / name, name, places, draw)
    works = {vendor: emoji.PACKAGES[vendor] for vendor in pools.VENDORS}
    photographs = manifest.datasets()["photos"].downloads
    works |= {Path(download).stem: download for download in photographs}
    write_licences(folder, "work", works)


def write_actions(
    folder: Path, level: str, split: str, count: int, size: str, places: Photos, draw: Any
) -> None:
    """Render and write the clips of a level and split, scene by scene, class by class.

    Args:
        folder: to write into.
        level: `"easy"` or `"hard"`.
        split: `"train"` or `"test"`.
        count: of scenes.
        size: `""`, `"medium"` or `"large"`.
        places: all tiles; the split's own are used.
        draw: gives the SVG of a concept (its rank) by a vendor.
    """
    own = _places(places, split)[: count // 3]  # a place serves three scenes or more
    ranks = range(len(pools.read()["shop"]))[CONCEPTS[split]]
    first, jobs, about = BLOCKS[f"{level}/{size or 'small'}"], [], []
    for number in range(count):
        rng = np.random.default_rng([WORLD, SPLITS[split], first + number])
        scene = video_actions.draw_scene(rng, level, len(ranks), len(pools.VENDORS))
        place, concept = own[number % len(own)], ranks[scene.concept]
        about.append({"scene": number, "place": place, **_work(concept, scene.vendor)})
        (left, top), side = scene.window, video_actions.GROUND
        window = places.images[place, :, top : top + side, left : left + side].numpy()
        jobs.append((scene, level, draw(concept, scene.vendor), window))
    made = in_parallel(make_scene, jobs, f"emoji_video: {level}, {split}")
    names = video_actions.classes(level)
    rows = [row | {"label": label} for row in about for label in range(len(names))]
    paths = [f"{row['scene']:03d}_{names[row['label']]}.mp4" for row in rows]
    _write(folder, paths, rows, [clip for scene in made for clip in scene])


def write_twins(folder: Path, name: str, places: Photos, draw: Any) -> None:
    """Render and write one set of twins, with its frames before encoding (`frames.npy`).

    Args:
        folder: to write into.
        name: of the set.
        places: all tiles; those of the set's split are used.
        draw: gives the SVG of a concept (its rank) by a vendor.
    """
    kind = video_twins.SETS[name]
    own = _places(places, kind.split)
    ranks = range(len(pools.read()["shop"]))[CONCEPTS[kind.concepts]]
    jobs, about = [], []
    for number in range(kind.count):
        rng = np.random.default_rng([WORLD, SPLITS[kind.split], BLOCKS[name] + number])
        twins = video_twins.draw_twins(rng, kind, number, own, len(ranks), len(pools.VENDORS))
        concept, place = ranks[twins.concept], twins.background.place
        row = {"scene": number, "place": place, "label": len(twins.poses) - 1}
        about.append(row | _work(concept, twins.vendor))
        jobs.append((twins, rng, draw(concept, twins.vendor)))
    pieces = [(jobs[start : start + 10],) for start in range(0, len(jobs), 10)]
    made = in_parallel(make_twins, pieces, f"emoji_video: {name}")
    clips = [clip for piece in made for clip in piece]
    _write(folder, [f"{row['scene']:03d}.mp4" for row in about], about, clips)
    np.save(folder / "frames.npy", np.stack([clip["frames"] for clip in clips]))


def make_scene(
    scene: video_actions.Scene, level: str, svg: str, window: np.ndarray
) -> list[dict[str, Any]]:
    """Render and encode one scene in all classes of its level."""
    torch.set_num_threads(1)
    ground = torch.from_numpy(window).float() / 255
    (sprite,) = emoji.raster([svg])
    return [
        _clip(encode_h264(frames), mask, path, camera)
        for frames, mask, path, camera in video_actions.render(scene, level, sprite, ground)
    ]


def make_twins(
    jobs: Sequence[tuple[video_twins.Twins, np.random.Generator, str]],
) -> list[dict[str, Any]]:
    """Render and encode some clips of twins."""
    torch.set_num_threads(1)
    tiles, clips = load_photos().images, []
    for twins, rng, svg in jobs:
        (sprite,) = emoji.raster([svg])
        frames, mask, distractor = video_twins.render(twins, rng, sprite, tiles)
        clip = _clip(encode_h264(frames), mask, twins.poses[0], twins.camera)
        clips.append(clip | {"distractor": np.packbits(distractor), "frames": frames})
    return clips


def _clip(
    mp4: bytes, mask: np.ndarray, path: np.ndarray, camera: Sequence[float]
) -> dict[str, Any]:
    pose, pan = np.asarray(path, np.float32), np.asarray(camera, np.float32)
    return {"mp4": mp4, "mask": np.packbits(mask), "pose": pose, "camera": pan}


def _write(
    folder: Path,
    names: Sequence[str],
    rows: Sequence[Mapping[str, int]],
    clips: Sequence[Mapping[str, Any]],
) -> None:
    """Write the files of a set and `truth.npz`: masks packed to bits, one row a clip."""
    folder.mkdir(parents=True)
    for name, clip in zip(names, clips, strict=True):
        (folder / name).write_bytes(clip["mp4"])
    kinds = [kind for kind in ("mask", "distractor", "pose", "camera") if kind in clips[0]]
    truth = {kind: np.stack([clip[kind] for clip in clips]) for kind in kinds}
    truth |= {column: np.array([row[column] for row in rows]) for column in rows[0]}
    np.savez_compressed(folder / "truth.npz", path=np.array(names), **truth)


def _work(concept: int, vendor: int) -> dict[str, int]:
    return {"concept": concept, "vendor": EMOJI_VENDORS.index(pools.VENDORS[vendor])}


def _places(places: Photos, split: str) -> list[int]:
    return [place for place, name in enumerate(places.split) if name == split]


def _icons(inputs: Mapping[str, Path]) -> dict[str, tuple[emoji.IconSet, dict[str, str]]]:
    """The icons of each vendor with their names by concept."""
    concepts = emoji.read_concepts(inputs["emojibase-data"])
    sets = {vendor: emoji.read_icons(inputs[emoji.PACKAGES[vendor]]) for vendor in pools.VENDORS}
    found = emoji.match(concepts, sets)
    return {vendor: (sets[vendor], found[vendor]) for vendor in pools.VENDORS}


def _svg(icons: Mapping[str, Any], keys: Sequence[str], concept: int, vendor: int) -> str:
    drawn, names = icons[pools.VENDORS[vendor]]
    return emoji.svg(drawn, names[keys[concept]], SIDE)
