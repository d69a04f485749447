"""A process that serves the rows of a file as one exact shard, and prints its port.

python -m toolkit.search.visual_search.replica rows.npy
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from toolkit.search.visual_search.index import FaissIndex
from toolkit.search.visual_search.remote import ShardServer


def main(arguments: list[str] | None = None) -> None:
    """Serve rows until the process is ended."""
    parser = argparse.ArgumentParser(description="Serve the rows of an .npy file as a shard.")
    parser.add_argument("rows", type=Path, help="float32 features, [n, d], of unit length")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--core", type=int, help="keep to this core, counted among those allowed")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.core is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[chosen.core % len(cores)]})
    rows = torch.from_numpy(np.load(chosen.rows, allow_pickle=False))
    index = FaissIndex(rows.shape[1])
    index.add(np.arange(len(rows)), rows)
    server = ShardServer(index, ("127.0.0.1", chosen.port))
    print(server.address[1], flush=True)
    server.run()


if __name__ == "__main__":
    main()
