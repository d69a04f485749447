"""Speed of the generator against a plain copy, plain slicing and decoding video."""

import torch

from toolkit.data import decode, load_emoji_video
from toolkit.representation import mosi
from toolkit.runtime import race, start

SIZES = {
    "small (58 → 40, 8 frames, grey)": (58, 40, 8, 1),
    "paper (320 → 112, 16)": (320, 112, 16, 3),
}
COPY, SLICES = 2.0, 20.0  # targets: at most so many copies, at least so many times plain slicing


def main() -> None:
    """Print times and ratios; 32 images at the small size, 2 at the paper's."""
    start()
    factors = mosi.MotionClass().factors
    for name, (side, crop, frames, channels) in SIZES.items():
        images = torch.rand(32 if channels == 1 else 2, channels, side, side)
        generator = torch.Generator().manual_seed(0)
        clips, _ = mosi.pseudo_motion(images, factors, crop, frames, generator)
        times = race(
            5,
            2,
            gather=lambda i=images, c=crop, f=frames: mosi.pseudo_motion(
                i, factors, c, f, torch.Generator().manual_seed(0)
            ),
            copy=clips.clone,
            slices=lambda i=images, c=crop, f=frames: sliced(i, factors, c, f),
        ).median()
        print(f"{name}: {len(clips)} clips, {1e3 * times['gather']:.1f} ms")
        print(f"  copies of the output: {times['gather'] / times['copy']:.2g} (target ≤ {COPY})")
        print(
            f"  over plain slicing: {times['slices'] / times['gather']:.2g} × (target ≥ {SLICES})"
        )
    against_decoding()


def sliced(images: torch.Tensor, factors: torch.Tensor, crop: int, frames: int) -> torch.Tensor:
    """The same clips, one slice a frame."""
    travel = images.shape[-1] - crop
    path = mosi.window_path(
        factors.repeat(len(images), 1) * travel,
        travel,
        frames,
        torch.Generator().manual_seed(0),
    )
    corners = path.long().tolist()
    count = len(factors)
    return torch.stack(
        [
            torch.stack([images[i // count, :, y : y + crop, x : x + crop] for x, y in way], dim=1)
            for i, way in enumerate(corners)
        ]
    )


def against_decoding() -> None:
    """Frames a second: the generator (bytes, grey 112×112) and H.264."""
    path = load_emoji_video("easy", "test", decode=False).path[0]
    images = torch.randint(0, 256, (1, 1, 320, 320), dtype=torch.uint8).float()
    factors = mosi.MotionClass().factors
    times = race(
        5,
        2,
        generate=lambda: mosi.pseudo_motion(
            images.expand(1, 3, 320, 320), factors, 112, 16, torch.Generator().manual_seed(0)
        ),
        decode=lambda: decode(path),
    ).median()
    made, read = 144 / times["generate"], 48 / times["decode"]
    print(f"frames of 112×112 a second: generator {made:,.0f}, decoding H.264 {read:,.0f}")
    print(f"  generator over decoding: {made / read:.2g} ×")


if __name__ == "__main__":
    main()
