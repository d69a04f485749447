"""Clips of twins: a target among identical sprites that move, bounce and wobble, 64×64.

Nothing but where it was tells the target from its twins.
"""

from dataclasses import dataclass

import numpy as np
import torch

from data_scripts.video_render import sprite_layers, stack, to_frames, view
from toolkit.data.shots import Background, draw_background, render_backgrounds

SIZE = 64
PANNED = 96
"""Side of the ground where the camera pans, in pixels."""
JUMP, JUMP_AFTER = 32, 4
"""Pixels by which a teleported target moves, on both axes, and the last frame before it does."""
NOISE = 4.0
"""Standard deviation in levels of 255."""


@dataclass(frozen=True)
class TwinSet:
    """One set of clips."""

    count: int
    split: str
    """Whose photographs it uses."""
    concepts: str
    """Whose concepts: `"train"` or `"test"`."""
    distractors: tuple[int, ...] = (1, 2)
    """Of clips 0, 1, 2 …, again and again; empty: drawn from 0, 1, 2."""
    frames: int = 8
    teleport: bool = False
    pan: float = 0.0
    """The largest speed of the camera per axis, in pixels a frame."""


SETS = {
    "tune": TwinSet(20, "val", "test"),
    "judge": TwinSet(40, "test", "test"),
    "alone": TwinSet(20, "test", "test", distractors=(0,)),
    "teleport": TwinSet(40, "test", "test", distractors=(1,), teleport=True),
    "train": TwinSet(400, "train", "train", distractors=()),
    "long": TwinSet(40, "test", "test", frames=24, pan=0.8),
}


@dataclass(frozen=True)
class Twins:
    """All that chance decides about one clip, the noise apart."""

    concept: int
    vendor: int
    background: Background
    camera: tuple[float, float]
    """Velocity of the view over the photograph, in pixels a frame."""
    side: float
    """Of every sprite, in pixels."""
    poses: np.ndarray
    """float64 [sprites, frames, 4] as `sprite_layers` takes them; the target is the first."""
    order: tuple[int, ...]
    """The sprites from the lowest to the highest."""


def draw_twins(
    rng: np.random.Generator,
    kind: TwinSet,
    number: int,
    places: list[int],
    concepts: int,
    vendors: int,
) -> Twins:
    """Draw clip `number` of a set, all but its noise.

    Args:
        rng: its state decides.
        kind: the set.
        number: of the clip in the set.
        places: rows of the tiles that may be behind it.
        concepts: how many there are to choose from.
        vendors: likewise.
    """
    ways = kind.distractors
    sprites = 1 + (ways[number % len(ways)] if ways else int(rng.integers(3)))
    concept, vendor = int(rng.integers(concepts)), int(rng.integers(vendors))
    background = draw_background(rng, places, PANNED if kind.pan else SIZE)
    camera = tuple(rng.uniform(-kind.pan, kind.pan, 2).tolist())
    side = rng.uniform(14, 20)
    paths = draw_paths(rng, sprites, side, kind.frames, kind.teleport)
    phase = rng.uniform(0, 2 * np.pi, sprites)
    poses = np.zeros((sprites, kind.frames, 4))
    poses[..., :2] = paths
    poses[..., 3] = 4 * np.sin(phase[:, None] + 0.8 * np.arange(kind.frames))
    order = tuple(rng.permutation(sprites).tolist())
    return Twins(concept, vendor, background, camera, side, poses, order)


def draw_paths(
    rng: np.random.Generator, sprites: int, side: float, frames: int, teleport: bool
) -> np.ndarray:
    """Straight paths that bounce half a side from the border: float64 [sprites, frames, 2].

    Args:
        rng: its state decides.
        sprites: how many; they start at least a side apart.
        side: of a sprite in pixels.
        frames: how many.
        teleport: whether sprite 0 jumps after frame 4.
    """
    low, high = side / 2, SIZE - side / 2
    where = _apart(rng, sprites, side, low, high)
    way = rng.uniform(0, 2 * np.pi, sprites)
    speed = rng.uniform(1.5, 3.5, sprites)
    velocity = speed[:, None] * np.stack([np.cos(way), np.sin(way)], 1)
    path = [where]
    for frame in range(1, frames):
        where = where + velocity
        outside = (where < low) | (where > high)
        where = np.where(where < low, 2 * low - where, where)
        where = np.where(where > high, 2 * high - where, where)
        velocity = np.where(outside, -velocity, velocity)
        if teleport and frame == JUMP_AFTER + 1:
            where[0] = np.clip((where[0] + JUMP) % SIZE, low, high)
        path.append(where)
    return np.stack(path, 1)


def render(
    twins: Twins, rng: np.random.Generator, sprite: np.ndarray, tiles: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render a clip.

    Args:
        twins: what is seen.
        rng: draws the noise.
        sprite: uint8 [rows, columns, 4], straight alpha.
        tiles: uint8 [places, 3, 224, 224].

    Returns:
        Frames, uint8 [frames, 64, 64, 3]; what is seen of the target and of the others, bool
        [frames, 64, 64].
    """
    frames, moving = twins.poses.shape[1], any(twins.camera)
    ground = render_backgrounds([twins.background], tiles, PANNED if moving else SIZE)[0].float()
    behind = view(ground, twins.camera, frames, SIZE)
    layers = [sprite_layers(sprite, path, twins.side, SIZE) for path in twins.poses]
    pictures, masks = stack([layers[number] for number in twins.order], behind)
    noise = rng.normal(0, NOISE / 255, tuple(pictures.shape)).astype(np.float32)
    seen = dict(zip(twins.order, masks.numpy(), strict=True))
    others = [mask for number, mask in seen.items() if number]
    distractor = np.any(others, axis=0) if others else np.zeros_like(seen[0])
    return to_frames(pictures + torch.from_numpy(noise)), seen[0], distractor


def _apart(
    rng: np.random.Generator, sprites: int, side: float, low: float, high: float
) -> np.ndarray:
    """Places drawn again, all of them, until any two are at least a side apart: [sprites, 2]."""
    while True:
        where = rng.uniform(low, high, (sprites, 2))
        gaps = np.linalg.norm(where[:, None] - where[None], axis=2)
        if (gaps + side * np.eye(sprites) >= side).all():
            return where
