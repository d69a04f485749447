"""The index engine against faiss called by hand, exact float search, and its own promises.

At a million items, one query at a time, 256 learnt bits and 2,000 candidates in a binary inverted
file: recall@10 ≥ .98 at ≥ 10× the queries per second of exact float search. Our layers cost at most
20 % over the same two stages written with faiss alone; the coarse filter alone, which ranks nothing
exactly, stands beside them. A flat scan of codes reads an eighth of the bytes, so it cannot be 10×
as fast. ≥ 20,000 adds a second while serving. Features: Fashion-MNIST, 64 principal components,
with noise of their own. One thread. `python benchmarks/visual_search.py 10000000` adds the largest
point (10 GB).
"""

import sys
import tempfile
import threading
import time

import faiss
import numpy as np
import pandas as pd
import torch

from _report import report
from toolkit.runtime import race, start
from toolkit.search import visual_search
from toolkit.search.topk import overlap
from toolkit.search.visual_search import measure

MILLION, K = 1_000_000, 10
CANDIDATES = 2000
BURST = 16  # queries of one engine in a row: another engine's turn empties the caches
COARSE = {"flat": {}, "ivf": {"lists": 1024, "probe": 48}}


def main(largest: int = MILLION) -> None:
    start()
    faiss.omp_set_num_threads(1)
    data = visual_search.clothes()
    queries = measure.clustered(data.test, 64, 1).numpy()
    encoder = visual_search.BinaryEncoder("learned", 256).fit(data.train)
    items = measure.clustered(data.train, MILLION, 0)
    against_raw(items, queries, encoder)
    real_time(items, queries, encoder)
    by_size(data, queries, encoder, largest)
    in_torch(encoder, items[:100_000], queries)
    peers(items[:20_000], queries)
    replicas(items[:300_000], queries)
    plan()


def against_raw(items, queries, encoder) -> None:
    """Recall and speed of codes and fine rank, of exact search, and of faiss called directly."""
    ids = np.arange(len(items))
    exact = faiss.IndexFlatIP(items.shape[1])
    exact.add(items.numpy())
    truth = torch.from_numpy(exact.search(queries, K)[1])
    for coarse, options in COARSE.items():
        index = visual_search.BinaryRerankIndex(encoder, CANDIDATES, coarse=coarse, **options)
        index.add(ids, items)
        one_race(coarse, index, exact, items.numpy(), queries, truth)


def one_race(coarse, index, exact, items, queries, truth) -> None:
    """Exact search, the codes alone, both stages by hand, and the live index around ours."""
    make = lambda: visual_search.BinaryRerankIndex(index.encoder, CANDIDATES)  # noqa: E731
    live = visual_search.LiveIndex(make)
    live._parts = (index, live._parts[-1])  # a million items are not added twice
    asked, turn = torch.from_numpy(queries), iter(range(10**9))

    def by_hand(query, k):
        codes = index.encoder.encode(torch.from_numpy(query)).numpy()
        _, places = index.core.search(codes, CANDIDATES)
        scores = np.empty(places.shape, np.float32)
        pointers = [faiss.swig_ptr(x) for x in (scores, query, items, places)]
        faiss.fvec_inner_products_by_idx(*pointers, query.shape[1], *places.shape)
        best = np.argpartition(-scores[0], k)[:k]
        return places[0][best[np.argsort(-scores[0][best])]]

    def one(search, table, k):
        for _ in range(BURST):
            place = next(turn) % len(table)
            search(table[place : place + 1], k)

    codes = index.codes(queries)
    seconds = race(
        rounds=20,
        warmup=2,
        exact=lambda: one(exact.search, queries, K),
        coarse=lambda: one(index.core.search, codes, CANDIDATES),
        by_hand=lambda: one(by_hand, queries, K),
        live=lambda: one(live.search, asked, K),
    )
    recall = float(overlap(live.search(asked, K).ids, truth).mean())
    name = f"{coarse} codes, {len(index) / 1e6:g} M items"
    faster = 10 if coarse == "ivf" else None
    report(f"{name}: recall@{K}", pd.Series([recall]), "", at_least=0.98)
    report(f"{name}: exact float / live", seconds["exact"] / seconds["live"], at_least=faster)
    report(f"{name}: live / by hand", seconds["live"] / seconds["by_hand"], at_most=1.2)
    report(f"{name}: live / coarse alone", seconds["live"] / seconds["coarse"])
    report(f"{name}: a query", 1e3 * seconds["live"] / BURST, "ms")
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
        report(
            f"durable adds while {len(latency)} searches ran",
            pd.Series([rate]),
            "/s",
            at_least=20_000,
        )
        stop, latency = threading.Event(), []
        reader = threading.Thread(target=serve, args=(0.01,))
        reader.start()
        for first in range(400_000, 410_000, 100):
            live.add(np.arange(first, first + 100), items[first : first + 100])
            time.sleep(0.09)
        stop.set()
        reader.join()
        for share in (0.5, 0.95, 0.99):
            report(
                f"100 queries/s and 1,000 adds/s: p{100 * share:.0f}",
                pd.Series([1e3 * np.quantile(latency, share)]),
                "ms",
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
    )
    slower = seconds["torch"] / seconds["faiss"]
    report("hamming_topk / faiss, 64 queries, 100,000 codes", slower, at_most=4)


def peers(items, queries) -> None:
    """Other indexes of faiss, and zvec where installed, on 20,000 items."""
    exact = faiss.IndexFlatIP(items.shape[1])
    exact.add(items.numpy())
    truth = torch.from_numpy(exact.search(queries, K)[1])
    asked = torch.from_numpy(queries)
    for kind in ("flat", "ivf", "hnsw", "ivfpq"):
        index = visual_search.FaissIndex(items.shape[1], kind)
        index.add(np.arange(len(items)), items)
        rival(kind, lambda q, k, i=index: i.search(torch.from_numpy(q), k), asked, truth)
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
                rival(f"zvec {kind}", search, asked, truth)
                index.close()
    except ImportError:
        print("  zvec is not installed")


def rival(name, search, asked, truth) -> None:
    """Milliseconds a query and recall of another index."""
    times = measure.seconds_per_query(search, asked.numpy(), K)
    recall = overlap(search(asked.numpy(), K).ids, truth).mean()
    print(f"  {name}: {1e3 * np.median(times):.3f} ms, recall@{K} {recall:.3f}")


def replicas(items, queries) -> None:
    """Queries per second of one and of two replicas, each a process of its own."""
    seconds = measure.replica_seconds(items, torch.from_numpy(queries))
    report("two replicas over one, over sockets", pd.Series(seconds["one"] / seconds["two"]))


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


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else MILLION)
