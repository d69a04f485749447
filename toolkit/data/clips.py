"""Four real H.264 clips, as their makers compressed them."""

import csv
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.store import locate


@dataclass(frozen=True)
class RealClip:
    """One compressed clip on disk; `read_compressed(clip.path)` reads pictures and motion."""

    name: str
    path: Path
    """An MP4 file."""
    frames: int
    height: int
    """Pixels of a frame."""
    width: int
    fps: float


def load_clips() -> dict[str, RealClip]:
    """The clips by name: `bikes`, `bigbuckbunny`, `carphone_pristine`, `carphone_distorted`.

    All but `bigbuckbunny` have B-frames, whose vectors also point to later frames: read them with
    `refs="drop-future"`. `bigbuckbunny` has a single keyframe, its first frame.

    Raises:
        DataMissing: if the set is not prepared.
    """
    folder = locate("clips")
    with (folder / "clips.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: _clip(folder, row) for row in csv.DictReader(file)}


def _clip(folder: Path, row: dict[str, str]) -> RealClip:
    frames, height, width = (int(row[column]) for column in ("frames", "height", "width"))
    path = folder / f"{row['name']}.mp4"
    return RealClip(row["name"], path, frames, height, width, float(row["fps"]))
