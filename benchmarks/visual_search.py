"""The index engine against raw faiss, exact float search, and its own promises.

Targets: at a million items, 256 bits, one query at a time: recall@10 ≥ .98 of exact search at ≥ 10×
its queries per second, and ≥ 1 / 1.2 of those of raw faiss (our layers cost at most 20 %); ≥ 20,000
adds a second while serving. Features: Fashion-MNIST, 64 principal components, with noise of their
own. One thread. `python -m benchmarks.visual_search 10000000` adds the largest point (10 GB).
"""

import os
import subprocess
import sys
import tempfile
import threading
import time

import faiss
import numpy as np
import torch

from toolkit.runtime import race
from toolkit.search import visual_search
from toolkit.search.topk import overlap
from toolkit.search.visual_search import measure
from toolkit.search.visual_search.remote import RemoteIndex

MILLION, K = 1_000_000, 10
COARSE = {"flat": {}, "ivf": {"lists": 1024, "probe": 48}}


def main(largest: int = MILLION) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    data = visual_search.clothes()
    queries = measure.clustered(data.test, 64, 1).numpy()
    encoder = visual_search.BinaryEncoder("rotation", 256).fit(data.train)
    items = measure.clustered(data.train, MILLION, 0)
    against_raw(items, queries, encoder)
    real_time(items, queries, encoder)
    by_size(data, queries, encoder, largest)
    in_torch(encoder, items[:100_000], queries)
    peers(items[:20_000], queries)
    replicas(items[:200_000].numpy(), queries)
    plan()


def against_raw(items, queries, encoder) -> None:
    """Recall and speed of codes and fine rank, of exact search, and of faiss called directly."""
    ids = np.arange(len(items))
    exact = faiss.IndexFlatIP(items.shape[1])
    exact.add(items.numpy())
    truth = torch.from_numpy(exact.search(queries, K)[1])
    for coarse, options in COARSE.items():
        index = visual_search.BinaryRerankIndex(encoder, 200, coarse=coarse, **options)
        index.add(ids, items)
        one_race(coarse, index, exact, queries, truth)


def one_race(coarse, index, exact, queries, truth) -> None:
    live = visual_search.LiveIndex(lambda: visual_search.BinaryRerankIndex(index.encoder, 200))
    live._parts = (index, live._parts[-1])
    codes, asked = index.codes(queries), torch.from_numpy(queries)
    turn = iter(range(10**9))

    def one(search, table, k):
        place = next(turn) % len(table)
        return search(table[place : place + 1], k)

    seconds = race(
        rounds=40,
        warmup=5,
        exact=lambda: one(exact.search, queries, K),
        raw=lambda: one(index.core.search, codes, 200),
        ours=lambda: one(index.search, asked, K),
        live=lambda: one(live.search, asked, K),
    ).median()
    recall = float(overlap(live.search(asked, K).ids, truth).mean())
    faster, layers = seconds["exact"] / seconds["live"], seconds["live"] / seconds["raw"]
    times = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in seconds.items())
    print(f"binary {coarse}, {len(index):,} items, 256 bits, 200 candidates; ms a query: {times}")
    show(f"recall@{K} {recall:.3f}", "≥ 0.98", recall >= 0.98)
    show(f"{faster:.1f}× the queries of exact float search", "≥ 10×", faster >= 10)
    show(f"our layers cost {100 * (layers - 1):.0f} % over raw faiss", "≤ 20 %", layers <= 1.2)
    live.close()


def real_time(items, queries, encoder) -> None:
    """Durable adds in batches of a thousand while a thread searches; then latency under load."""
    with tempfile.TemporaryDirectory() as folder:
        live = visual_search.LiveIndex(
            lambda: visual_search.BinaryRerankIndex(encoder, 200), folder=folder
        )
        live.add(np.arange(200_000), items[:200_000])
        live.rebuild()
        asked, stop, latency = torch.from_numpy(queries), threading.Event(), []

        def serve(pause: float) -> None:
            place = 0
            while not stop.is_set():
                begin = time.perf_counter()
                live.search(asked[place % 64 : place % 64 + 1], K)
                latency.append(time.perf_counter() - begin)
                place += 1
                time.sleep(max(0.0, pause - latency[-1]))

        reader = threading.Thread(target=serve, args=(0.0,))
        reader.start()
        begin = time.perf_counter()
        for first in range(200_000, 400_000, 1000):
            live.add(np.arange(first, first + 1000), items[first : first + 1000])
        rate = 200_000 / (time.perf_counter() - begin)
        stop.set()
        reader.join()
        live.wait()
        show(f"{rate:,.0f} durable adds/s, {len(latency)} searches", "≥ 20,000", rate >= 20_000)
        stop, latency = threading.Event(), []
        reader = threading.Thread(target=serve, args=(0.01,))
        reader.start()
        for first in range(400_000, 410_000, 100):
            live.add(np.arange(first, first + 100), items[first : first + 100])
            time.sleep(0.09)
        stop.set()
        reader.join()
        p50, p95, p99 = 1e3 * np.quantile(latency, (0.5, 0.95, 0.99))
        print(
            f"  100 queries/s and 1,000 adds/s on {len(live):,} items: "
            f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms"
        )
        live.close()


def by_size(data, queries, encoder, largest: int) -> None:
    """Cost a query against the size of the index."""
    print("ms a query by size (flat codes / binary IVF), bytes an item")
    for count in (10_000, 100_000, 1_000_000, 10_000_000):
        if count > largest:
            break
        row = []
        for coarse in COARSE:
            lists = int(max(16, 4 * count**0.5 / 4))
            index = visual_search.BinaryRerankIndex(
                encoder, 200, coarse=coarse, lists=min(4096, lists), probe=max(8, lists // 20)
            )
            for part in range(0, count, MILLION):
                size = min(MILLION, count)
                index.add(np.arange(part, part + size), measure.clustered(data.train, size, part))
            search = lambda q, k, index=index: index.search(torch.from_numpy(q), k)  # noqa: E731
            times = measure.seconds_per_query(search, queries[:43], K)
            row.append(1e3 * np.median(times))
            size_of = index.bytes_per_item
            del index
        print(f"  {count:>10,}: {row[0]:.2f} / {row[1]:.2f} ms, {size_of:.0f} bytes")


def in_torch(encoder, items, queries) -> None:
    """`hamming_topk` against faiss, ≤ 4×."""
    codes, asked = encoder.encode(items), encoder.encode(torch.from_numpy(queries))
    peer = faiss.IndexBinaryFlat(256)
    peer.add(codes.numpy())
    seconds = race(
        rounds=3,
        warmup=1,
        faiss=lambda: peer.search(asked.numpy(), 60),
        torch=lambda: visual_search.hamming_topk(asked, codes, 60),
    ).median()
    slower = seconds["torch"] / seconds["faiss"]
    show(f"hamming_topk, 64 queries, 100,000 codes: {slower:.1f}× faiss", "≤ 4×", slower <= 4)


def peers(items, queries) -> None:
    """Other indexes of faiss, and zvec where installed, on 20,000 items."""
    exact = faiss.IndexFlatIP(items.shape[1])
    exact.add(items.numpy())
    truth = torch.from_numpy(exact.search(queries, K)[1])
    asked = torch.from_numpy(queries)
    for kind in ("flat", "ivf", "hnsw", "ivfpq"):
        index = visual_search.FaissIndex(items.shape[1], kind)
        index.add(np.arange(len(items)), items)
        report(kind, lambda q, k, i=index: i.search(torch.from_numpy(q), k), asked, truth)
    lsh = faiss.IndexLSH(items.shape[1], 256)
    lsh.train(items.numpy())
    lsh.add(items.numpy())
    times = measure.seconds_per_query(lsh.search, queries, K)
    recall = overlap(torch.from_numpy(lsh.search(queries, K)[1]), truth).mean()
    print(f"  lsh, 256 bits: {1e3 * np.median(times):.3f} ms, recall@{K} {recall:.3f}")
    try:
        from toolkit.search.visual_search.adapters import ZvecIndex

        with tempfile.TemporaryDirectory() as folder:
            for kind in ("flat", "hnsw"):
                index = ZvecIndex(f"{folder}/{kind}", items.shape[1], kind)
                index.add(np.arange(len(items)), items)
                index.optimize()
                search = lambda q, k, i=index: i.search(torch.from_numpy(q), k)  # noqa: E731
                report(f"zvec {kind}", search, asked, truth)
                index.close()
    except ImportError:
        print("  zvec is not installed")


def report(name, search, asked, truth) -> None:
    times = measure.seconds_per_query(search, asked.numpy(), K)
    recall = overlap(search(asked.numpy(), K).ids, truth).mean()
    print(f"  {name}: {1e3 * np.median(times):.3f} ms, recall@{K} {recall:.3f}")


SHARD = """
import sys, numpy as np, torch
from toolkit.search import visual_search
from toolkit.search.visual_search.remote import ShardServer
torch.set_num_threads(1)
rows = torch.from_numpy(np.load(sys.argv[1]))
index = visual_search.FaissIndex(rows.shape[1])
index.add(np.arange(len(rows)), rows)
server = ShardServer(index)
print(server.address[1], flush=True)
server.run()
"""


def replicas(items, queries) -> None:
    """Queries per second of one and of two replicas, each a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/items.npy"
        np.save(path, items)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", SHARD, path],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for _ in range(2)
        ]
        try:
            ports = [int(process.stdout.readline()) for process in processes]
            remotes = [RemoteIndex(("127.0.0.1", port)) for port in ports]
            rates = [throughput(remotes[:count], queries) for count in (1, 2)]
        finally:
            for process in processes:
                process.terminate()
                process.wait()
    gain = rates[1] / rates[0]
    print(f"replicas over sockets: {rates[0]:.0f} and {rates[1]:.0f} queries/s, {gain:.2f}×")


def throughput(remotes, queries, count: int = 300) -> float:
    index = visual_search.ShardedIndex([remotes])
    todo = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                place = next(todo, None)
            if place is None:
                return
            index.search(torch.from_numpy(queries[place % 64 : place % 64 + 1]), K)

    threads = [threading.Thread(target=work) for _ in range(4)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.perf_counter() - begin)


def plan(count: float = 3e9, d: int = 512, bits: int = 512, ram: float = 256e9) -> None:
    """Three billion images on paper: memory, machines, bytes a query."""
    item = bits / 8 + 2 * d + 8
    shards = int(np.ceil(count * item / ram))
    scan = count / shards * bits / 8
    print(
        f"{count:.0e} images, {d} half floats, {bits} bits: {item:.0f} bytes an item, "
        f"{count * item / 1e12:.1f} TB, {shards} shards of {ram / 1e9:.0f} GB; a flat scan reads "
        f"{scan / 1e9:.0f} GB a query and shard, 1 % of the cells {scan / 1e8:.1f} × 100 MB"
    )


def show(what: str, target: str, met: bool) -> None:
    print(f"  {what}, target {target}: {'met' if met else 'missed'}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else MILLION)
