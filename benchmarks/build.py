"""A warm `toolkit build`, nothing changed: at most 10 s; the peer is jupyter-book alone."""

import subprocess
import sys

from toolkit.press.reader import ROOT
from toolkit.runtime import race

TARGET = 10.0  # seconds
JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"


def main() -> None:
    run("-m", "toolkit", "build")  # warm: everything is executed and built
    times = race(
        rounds=3,
        warmup=1,
        ours=lambda: run("-m", "toolkit", "build"),
        peer=lambda: run("-c", JUPYTER_BOOK, "build", ".", "-q"),
    )
    ours, ratio = times["ours"], times["ours"] / times["peer"]
    print(
        f"warm toolkit build: median {ours.median():.1f} s ({ours.min():.1f}–{ours.max():.1f}), "
        f"target ≤ {TARGET:.0f} s: {'met' if ours.median() <= TARGET else 'missed'}"
    )
    print(
        f"  against jupyter-book alone: {ratio.median():.2f}× ({ratio.min():.2f}–{ratio.max():.2f})"
    )


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)


if __name__ == "__main__":
    main()
