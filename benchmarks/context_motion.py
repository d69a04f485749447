"""Reading motion vectors against optical flow, and against decoding alone."""

import numpy as np

from toolkit.data import load_clips
from toolkit.representation import context_motion
from toolkit.runtime import start

TARGETS = {"bikes": 1500, "bigbuckbunny": 500}  # motion maps a second, one core
OVER_DECODING = 1.4  # at most so many times the time of decoding alone
PEERS = ("farneback", "dis")


def main() -> None:
    """Print frames a second and ratios on both clips."""
    start()
    for name, target in TARGETS.items():
        clip = load_clips()[name]
        speeds = context_motion.reading_speeds(name, rounds=5, pairs=4)
        fps = {label: float(np.median(values)) for label, values in speeds.items()}
        met = "met" if fps["vectors"] >= target else "missed"
        print(f"{name} {clip.width}×{clip.height}, {clip.frames} frames, one core:")
        print(f"  motion maps: {fps['vectors']:,.0f} frames a second (target ≥ {target:,}: {met})")
        print(
            f"  time over decoding alone: {fps['decode'] / fps['vectors']:.2f} × "
            f"(target ≤ {OVER_DECODING})"
        )
        for peer in PEERS:
            print(
                f"  over {peer} ({fps[peer]:,.1f} frames a second, decoding not counted): "
                f"{fps['vectors'] / fps[peer]:.3g} ×"
            )


if __name__ == "__main__":
    main()
