"""Speed of the generator against a plain copy, a loop over clips and frames, and decoding video.

The loop is what a data set's code does, clip by clip: draw two starts, two lines of positions, one
slice a frame into an empty clip, and a stack at the end. `batch` also mirrors, masks and
standardises: a whole training batch. The output must be written once, so that nothing can beat the
loop by more than `loop / copy`, which is printed as well.
"""

import ctypes
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from _report import report
from toolkit.data import decode, load_emoji_video
from toolkit.representation import mosi
from toolkit.runtime import race, start

SIZES = {
    "4 small images (58 → 40, 8 frames, grey)": (4, 58, 40, 8, 1),
    "32 small images": (32, 58, 40, 8, 1),
    "1 image at the paper's size (320 → 112, 16 frames, RGB)": (1, 320, 112, 16, 3),
    "2 of them": (2, 320, 112, 16, 3),
}
COPIES, LOOP = 2.0, 10.0  # targets: at most so many copies, at least so many times the loop
POOL = mosi.MotionClass()


def main() -> None:
    """Print times and ratios: medians, and quartiles over samples."""
    start()
    keep_memory()
    for name, (count, side, crop, frames, channels) in SIZES.items():
        images = torch.rand(count, channels, side, side)
        check(images[:1], crop, frames)
        clips = generated(images, crop, frames)
        times = fastest(
            copy=clips.clone,
            generator=partial(generated, images, crop, frames),
            loop=partial(looped, images, crop, frames),
            batch=partial(batch, images, crop, frames),
            batch_loop=partial(looped_batch, images, crop, frames),
        )
        print(f"{name}: {len(clips)} clips, {1e3 * times['generator'].median():.2f} ms")
        middle = times.median()
        report("  generator / copy", times["generator"] / middle["copy"], at_most=COPIES)
        report("  loop / generator", times["loop"] / middle["generator"], at_least=LOOP)
        report("  loop / copy, the most that is possible", times["loop"] / middle["copy"])
        report("  training batch, loop / ours", times["batch_loop"] / middle["batch"])
    against_decoding()


def keep_memory() -> None:
    """Let the C library keep freed memory, as the larger heap of a training process does.

    Otherwise each call gets fresh pages, and clearing them takes longer than any of the functions.
    """
    no_trim, no_mmap = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc
    with suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(no_trim, 2**31 - 1)
        libc.mallopt(no_mmap, 0)


def fastest(**steps: Callable[[], Tensor]) -> pd.DataFrame:
    """Seconds; each sample is the fastest of five calls, which leaves out what others cost."""
    seconds = race(rounds=35, warmup=3, **steps)
    return seconds.groupby(seconds.index // 5).min()


def generated(images: Tensor, crop: int, frames: int) -> Tensor:
    """The clips of all images in all classes."""
    generator = torch.Generator().manual_seed(0)
    return mosi.pseudo_motion(images, POOL.factors, crop, frames, generator)[0]


def batch(images: Tensor, crop: int, frames: int) -> Tensor:
    """A training batch: slide, mirror, mask, standardise."""
    generator = torch.Generator().manual_seed(0)
    clips, labels = mosi.pseudo_motion(images, POOL.factors, crop, frames, generator)
    clips, labels = mosi.mirror(clips, labels, POOL, generator=generator)
    return mosi.standardise(mosi.static_mask(clips, generator=generator))


def looped(images: Tensor, crop: int, frames: int, train: bool = True) -> Tensor:
    """The same, clip by clip and frame by frame."""
    draw = random.Random(0) if train else None
    factors = POOL.factors.tolist()
    return torch.stack([one(i, xy, crop, frames, draw) for i in images for xy in factors])


def one(
    image: Tensor, factor: list[float], crop: int, frames: int, draw: random.Random | None
) -> Tensor:
    """One clip of one image."""
    travel = image.shape[-1] - crop
    xs, ys = (positions(share * travel, travel, frames, draw) for share in factor)
    clip = torch.empty(len(image), frames, crop, crop)
    for t, (x, y) in enumerate(zip(xs, ys, strict=True)):
        clip[:, t] = image[:, y : y + crop, x : x + crop]
    return clip


def positions(delta: float, travel: int, frames: int, draw: random.Random | None) -> list[int]:
    """Of the window on one axis; in the middle of the image without a generator."""
    if draw is None:
        first = (travel - delta) // 2
    else:
        first = draw.randint(int(max(0, -delta)), int(min(travel, travel - delta)))
    way = torch.linspace(first, first + delta, frames, dtype=torch.float64)
    return way.long().clamp(0, travel).tolist()


def looped_batch(images: Tensor, crop: int, frames: int) -> Tensor:
    """A training batch, clip by clip."""
    draw = random.Random(0)
    made = []
    for image in images:
        for factor in POOL.factors.tolist():
            clip = one(image, factor, crop, frames, draw)
            if draw.random() < 0.5:
                clip = clip.flip(-1)
            clip = masked(clip, draw)
            made.append((clip - clip.mean()) / (clip.std(correction=0) + 1e-3))
    return torch.stack(made)


def masked(clip: Tensor, draw: random.Random) -> Tensor:
    """A static mask on one clip."""
    _, frames, crop, _ = clip.shape
    side = int(draw.uniform(0.3, 0.5) * crop)
    top, left, frozen = (draw.randint(0, most) for most in (crop - side, crop - side, frames - 1))
    out = clip[:, frozen : frozen + 1].expand_as(clip).clone()
    square = (..., slice(top, top + side), slice(left, left + side))
    out[square] = clip[square]
    return out


def check(images: Tensor, crop: int, frames: int) -> None:
    """Both ways give the same numbers: here for paths in the middle, which need no draws."""
    generator = torch.Generator()
    ours, _ = mosi.pseudo_motion(images, POOL.factors, crop, frames, generator, train=False)
    if not torch.equal(ours, looped(images, crop, frames, train=False)):
        raise AssertionError("the loop and the generator differ")


def against_decoding() -> None:
    """Frames a second: the generator (grey 320×320 → 112×112, three channels) and H.264."""
    path = load_emoji_video("easy", "test", decode=False).path[0]
    images = torch.rand(1, 1, 320, 320).expand(1, 3, 320, 320)
    times = race(
        15, 3, generate=lambda: generated(images, 112, 16), decode=lambda: decode(path)
    ).median()
    made, read = 144 / times["generate"], 48 / times["decode"]
    print(f"frames of 112×112 a second: generator {made:,.0f}, decoding H.264 {read:,.0f}")
    print(f"  generator over decoding: {made / read:.2g} ×")


if __name__ == "__main__":
    main()
