"""Clips `easy` and `hard`: one sprite, one motion, one panned photograph, 48 frames.

A scene fixes all that is seen: place, concept, vendor, size, middle, angle, camera, speed, profile.
It is rendered once in every class, so that nothing in a picture tells the class. Classes come in
pairs: the second is the first with its frames in reverse order, reversed before encoding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from data_scripts.video_render import sprite_layers, stack, to_frames, view

SIZE, FRAMES = 112, 48
GROUND = 176
"""Side of the window of a tile over which the view pans, in pixels."""
MIDDLE = (FRAMES - 1) / 2
REACH = 12.0
"""The largest |ũ|: no profile covers more than twice this."""
GROWTH = 0.3
"""Natural logarithm of the scale at |ũ| = REACH, for grow and shrink."""

PAIRS = {"easy": 4, "hard": 5}
"""How many of `FIRST_OF_PAIR` a level has."""
FIRST_OF_PAIR = ("right", "down", "cw", "grow", "spin+")
UNPAIRED = {"easy": (), "hard": ("shake-h", "shake-v")}
RANGES = {
    "easy": {"half": (22, 32), "centre": (44, 68), "camera": 0.25},
    "hard": {"half": (15, 24), "centre": (38, 74), "camera": 0.8},
}


@dataclass(frozen=True)
class Scene:
    """All that chance decides about one scene."""

    concept: int
    vendor: int
    half: float
    """Half the side of the sprite, in pixels."""
    centre: tuple[float, float]
    """x, y in pixels of the frame."""
    angle: float
    """Degrees, anticlockwise."""
    camera: tuple[float, float]
    """Velocity of the view over the photograph, in pixels a frame."""
    speed: float
    """Pixels of a motion per unit of ũ."""
    profile: np.ndarray
    """ũ of each frame: how far the motion has come, −12 to 12."""
    window: tuple[int, int]
    """Left and top of the window in the tile."""
    radius: float
    """Of the orbit, in pixels."""
    phase: float
    """Where on the orbit the sprite is at ũ = 0, in radians."""
    spin: float
    """Degrees per unit of ũ."""
    amplitude: float
    """Of the shakes, in pixels."""
    period: int
    """Of the shakes, in frames."""


def draw_scene(rng: np.random.Generator, level: str, concepts: int, vendors: int) -> Scene:
    """Draw a scene.

    Args:
        rng: its state decides.
        level: `"easy"` or `"hard"`.
        concepts: how many there are to choose from.
        vendors: likewise.
    """
    ranges = RANGES[level]
    pan = ranges["camera"]
    return Scene(
        concept=int(rng.integers(concepts)),
        vendor=int(rng.integers(vendors)),
        half=rng.uniform(*ranges["half"]),
        centre=tuple(rng.uniform(*ranges["centre"], 2).tolist()),
        angle=rng.uniform(-15, 15),
        camera=tuple(rng.uniform(-pan, pan, 2).tolist()),
        speed=rng.uniform(1, 1.8),
        profile=draw_profile(rng),
        window=tuple(rng.integers(0, 224 - GROUND + 1, 2).tolist()),
        radius=rng.uniform(12, 18),
        phase=rng.uniform(0, 2 * np.pi),
        spin=rng.uniform(4, 8),
        amplitude=rng.uniform(6, 10),
        period=int(rng.integers(8, 13)),
    )


def draw_profile(rng: np.random.Generator) -> np.ndarray:
    """How a motion proceeds: it runs, slows, rests by turns. Returns ũ of each frame, float64.

    Segments of 6 to 12 frames with factors 0, ½ or 1, no two alike in a row; their running sum,
    rescaled so that it covers at most 24, and centred.
    """
    factors: list[float] = []
    last = None
    while len(factors) < FRAMES:
        last = float(rng.choice([factor for factor in (0, 0.5, 1) if factor != last]))
        factors += [last] * int(rng.integers(6, 13))
    run = np.cumsum(factors[:FRAMES])
    run -= (run[0] + run[-1]) / 2
    return run * min(1, REACH / run[-1])


def classes(level: str) -> tuple[str, ...]:
    """The names of a level's classes; a class's number is its place."""
    pairs = FIRST_OF_PAIR[: PAIRS[level]]
    return (*(name for first in pairs for name in (first, REVERSED[first])), *UNPAIRED[level])


REVERSED = {"right": "left", "down": "up", "cw": "ccw", "grow": "shrink", "spin+": "spin-"}


def poses(scene: Scene, motion: str) -> np.ndarray:
    """The sprite's path: float64 [frames, 4], x, y, natural logarithm of the scale, angle.

    Args:
        scene: whose sprite it is.
        motion: the first class of a pair, or one without a pair.
    """
    u, t = scene.profile, np.arange(FRAMES)
    turn = scene.phase + scene.speed * u / scene.radius
    wave = scene.amplitude * np.sin(2 * np.pi * t / scene.period)
    x, y, scale, angle = {
        "right": (scene.speed * u, 0, 0, 0),
        "down": (0, scene.speed * u, 0, 0),
        "cw": (scene.radius * np.cos(turn), scene.radius * np.sin(turn), 0, 0),
        "grow": (0, 0, GROWTH * u / REACH, 0),
        "spin+": (0, 0, 0, scene.spin * u),
        "shake-h": (wave, 0, 0, 0),
        "shake-v": (0, wave, 0, 0),
    }[motion]
    start = (*scene.centre, 0, scene.angle)
    moves = np.broadcast_arrays(x, y, scale, angle, u)[:4]
    return np.stack(moves, 1) + start


def render(
    scene: Scene, level: str, sprite: np.ndarray, ground: Tensor
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[float]]]:
    """Render a scene in all classes of a level.

    Args:
        scene: what is seen.
        level: `"easy"` or `"hard"`.
        sprite: uint8 [rows, columns, 4], straight alpha.
        ground: float [3, 176, 176], 0 to 1: its window of the tile.

    Yields:
        In the order of `classes`: frames, uint8 [48, 112, 112, 3]; masks, bool [48, 112, 112];
        poses, float64 [48, 4]; the camera's velocity.
    """
    behind = view(ground, scene.camera, FRAMES, SIZE)
    back = tuple(-speed for speed in scene.camera)
    for motion in (*FIRST_OF_PAIR[: PAIRS[level]], *UNPAIRED[level]):
        path = poses(scene, motion)
        pictures, masks = stack([sprite_layers(sprite, path, 2 * scene.half, SIZE)], behind)
        frames, mask = to_frames(pictures), masks[0].numpy()
        yield frames, mask, path, scene.camera
        if motion in REVERSED:
            yield frames[::-1], mask[::-1], path[::-1], back
