"""Reading a memory against one `scaled_dot_product_attention` of the same size (≤ 1.5×).

Float32, one thread, batched over clips and objects. The peer gets its tensors ready made: cells
before channels, nothing to check. Also: the read in chunks, whose memory does not grow with time;
what position guidance and object relation add to a frame (≤ 25 % at five memory frames or more).
"""

import pandas as pd
import torch
from torch.nn import functional as F

from _report import report
from toolkit.runtime import race, start
from toolkit.scenes import lcm

READ_TARGET, MODULES_TARGET = 1.5, 1.25


def main() -> None:
    """Print each ratio, its spread over rounds, and its target."""
    start()
    generator = torch.Generator().manual_seed(0)
    for batch, time, rows, columns, ck, cv in ((24, 5, 16, 16, 32, 48), (1, 5, 30, 54, 128, 512)):
        mk, mv, qk = (
            torch.randn(batch, *shape, generator=generator)
            for shape in ((ck, time, rows, columns), (cv, time, rows, columns), (ck, rows, columns))
        )
        peer = [x.flatten(2).transpose(1, 2).contiguous() for x in (qk, mk, mv)]
        seconds = fastest(
            read=lambda mk=mk, mv=mv, qk=qk: lcm.memory_read(mk, mv, qk),
            chunked=lambda mk=mk, mv=mv, qk=qk, n=rows * columns: lcm.memory_read(mk, mv, qk, n),
            attention=lambda peer=peer: F.scaled_dot_product_attention(*peer),
        )
        print(f"{batch} × {time} frames of {rows}×{columns}, keys {ck}, values {cv}")
        report("  read / attention", seconds["read"] / seconds["attention"], at_most=READ_TARGET)
        report("  in chunks of a frame / attention", seconds["chunked"] / seconds["attention"])
    frames(generator)


@torch.no_grad()
def frames(generator: torch.Generator) -> None:
    """One frame of inference, memorising included, with five frames in memory."""
    clips = torch.rand(8, 3, 64, 64, generator=generator)
    masks = (torch.rand(8, 1, 64, 64, generator=generator) > 0.5).float()
    steps = {}
    for name, modules in (("global", ("grm",)), ("whole", ("grm", "pgm", "orm"))):
        model = lcm.LCM(modules).eval()
        memory = model.memorize(clips, masks)
        for _ in range(4):
            memory = memory.then(model.memorize(clips, masks), keep_last=True)

        def step(model: lcm.LCM = model, memory: lcm.Memory = memory) -> None:
            model.segment(clips, memory.then(model.memorize(clips, masks), keep_last=False))

        steps[name] = step
    seconds = fastest(**steps)
    print(f"frames a second, 64×64: {8 / seconds['global'].median():.0f} with the global read")
    report(
        "  whole LCM / global read", seconds["whole"] / seconds["global"], at_most=MODULES_TARGET
    )


def fastest(block: int = 3, blocks: int = 6, **steps) -> pd.DataFrame:
    """Seconds; each sample is the fastest of a few rounds, which leaves out what others cost."""
    seconds = race(rounds=block * blocks, warmup=2, **steps)
    return seconds.groupby(seconds.index // block).min()


if __name__ == "__main__":
    main()
