"""Indexes: exact against brute force, through shards, changes, crashes and dead machines."""

import inspect
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from toolkit.search import visual_search as vs
from toolkit.search.topk import overlap
from toolkit.search.visual_search.journal import DamagedLog, Journal
from toolkit.search.visual_search.remote import RemoteIndex, ShardServer, replica_processes
from toolkit.search.visual_search.store import Items, Positions, check_features

D = 16


def unit(n, seed=0):
    return normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)))


X, Q = unit(3000), unit(20, seed=1)
IDS = np.arange(3000)
ENCODER = vs.BinaryEncoder("rotation", 64).fit(X)


def flat(n=3000):
    index = vs.FaissIndex(D)
    index.add(IDS[:n], X[:n])
    return index


def binary(candidates=100, **options):
    return vs.BinaryRerankIndex(ENCODER, candidates, **options)


def best(features, ids, k=10):
    """Brute force in float64, ties by id."""
    scores = Q.double() @ features.double().T
    order = np.lexsort((np.broadcast_to(ids, scores.shape), -scores.numpy()), axis=-1)[:, :k]
    return torch.from_numpy(ids[order])


# --- one machine --------------------------------------------------------------------------------


def test_flat_is_brute_force_and_faiss_knn():
    found = flat().search(Q, 10)
    assert torch.equal(found.ids, best(X, IDS))
    scores, ids = faiss.knn(Q.numpy(), X.numpy(), 10, metric=faiss.METRIC_INNER_PRODUCT)
    np.testing.assert_array_equal(found.ids.numpy(), ids)
    np.testing.assert_allclose(found.scores.numpy(), scores, rtol=1e-5)
    assert not found.partial


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "ivfpq"])
def test_approximate_kinds_find_most(kind):
    index = vs.FaissIndex(D, kind, lists=16, probe=None if kind == "hnsw" else 12)
    index.add(IDS, X)
    share = overlap(index.search(Q, 10).ids, best(X, IDS)).mean()
    assert share > (0.5 if kind == "ivfpq" else 0.9)


@pytest.mark.parametrize("coarse", ["flat", "ivf", "hnsw"])
def test_codes_and_fine_rank_find_most_and_score_exactly(coarse):
    index = binary(600, coarse=coarse, lists=8, probe=8)
    index.add(IDS, X)
    found = index.search(Q, 10)
    assert overlap(found.ids, best(X, IDS)).mean() > 0.9
    exact = (X[found.ids[0]] * Q[0]).sum(1)
    torch.testing.assert_close(found.scores[0], exact)


def test_all_candidates_make_codes_exact():
    index = binary(3000)
    index.add(IDS, X)
    assert torch.equal(index.search(Q, 10).ids, best(X, IDS))


@pytest.mark.parametrize("make", [lambda: vs.FaissIndex(D), lambda: binary(3000)])
def test_removed_items_are_gone_and_filters_come_first(make):
    index = make()
    index.add(IDS, X)
    index.remove(IDS[::2])
    odd = IDS[1::2]
    assert torch.equal(index.search(Q, 10).ids, best(X[1::2], odd))
    rare = np.array([5, 7, 11, 8, 10**6])  # 8 is gone, the last unknown
    found = index.search(Q, 4, rare)
    assert torch.equal(found.ids[:, :3].sort(1).values, torch.tensor([[5, 7, 11]] * len(Q)))
    assert (found.ids[:, 3] == -1).all()
    assert (found.scores[:, 3] == -torch.inf).all()
    assert (index.search(Q, 3, []).ids == -1).all()
    assert len(index) == 1500


def test_many_tombstones_still_leave_a_full_list():
    index = binary(50)
    index.add(IDS, X)
    index.remove(IDS[:2900])
    found = index.search(Q, 20)
    assert (found.ids >= 2900).all()


def test_an_id_may_come_back_with_another_feature():
    index = flat(100)
    index.remove([7])
    index.add([7], Q[:1])
    assert index.search(Q[:1], 1).ids.tolist() == [[7]]
    assert len(index) == 100


def test_equal_scores_go_to_the_smaller_id():
    index = vs.FaissIndex(D)
    index.add(np.array([9, 2, 5]), Q[:1].repeat(3, 1))
    assert index.search(Q[:1], 3).ids.tolist() == [[2, 5, 9]]


@pytest.mark.parametrize("make", [lambda: vs.FaissIndex(D), binary])
def test_short_and_empty_indexes_pad(make):
    index = make()
    assert index.search(Q, 3).ids.tolist() == [[-1] * 3] * len(Q)
    index.add([4], X[:1])
    assert index.search(Q[:1], 3).ids.tolist() == [[4, -1, -1]]
    assert index.search(Q[:0], 3).ids.shape == (0, 3)


BAD = [
    (lambda i: i.add([1], X[:1]), "already"),
    (lambda i: i.add([5000, 5000], X[:2]), "twice"),
    (lambda i: i.add([5000], X[:2]), "1 ids for 2"),
    (lambda i: i.add([-2], X[:1]), "negative"),
    (lambda i: i.add(np.array([0.5]), X[:1]), "whole numbers"),
    (lambda i: i.add([5000], X[:1, :4]), r"\[n, 16\]"),
    (lambda i: i.add([5000], X[:1] * torch.nan), "row 0 is not"),
    (lambda i: i.add([5000], 2 * X[:1]), "unit length"),
    (lambda i: i.remove([5000]), "5000 is not in"),
    (lambda i: i.search(Q[:, :3], 1), r"\[n, 16\]"),
    (lambda i: i.search(Q * torch.inf, 1), "finite"),
    (lambda i: i.search(Q, 0), "at least 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
@pytest.mark.parametrize("kind", ["flat", "live", "sharded"])
def test_bad_input_is_named_and_changes_nothing(call, message, kind):
    index = {
        "flat": lambda: vs.FaissIndex(D),
        "live": lambda: vs.LiveIndex(lambda: vs.FaissIndex(D)),
        "sharded": lambda: vs.ShardedIndex([[vs.FaissIndex(D)], [vs.FaissIndex(D)]]),
    }[kind]()
    index.add(IDS[:50], X[:50])
    with pytest.raises(ValueError, match=message):
        call(index)
    assert len(index) == 50
    assert torch.equal(index.search(Q, 5).ids, best(X[:50], IDS[:50], 5))


def test_constructors_name_bad_settings():
    with pytest.raises(ValueError, match="kind"):
        inspect.unwrap(vs.FaissIndex.__init__)(object.__new__(vs.FaissIndex), D, "pq")
    with pytest.raises(ValueError, match="fit the encoder"):
        vs.BinaryRerankIndex(vs.BinaryEncoder())
    with pytest.raises(ValueError, match="candidates"):
        binary(0)
    with pytest.raises(ValueError, match="delta_limit"):
        vs.LiveIndex(binary, delta_limit=0)
    with pytest.raises(ValueError, match="at least one shard"):
        vs.ShardedIndex([[]])
    with pytest.raises(TypeError, match="tensor or an array"):
        inspect.unwrap(check_features)([[1.0]], D, True)


def test_positions_survive_the_merge_of_their_table(monkeypatch):
    table, expected = Positions(), {}
    rng = np.random.default_rng(0)
    place = 0
    for _ in range(40):
        ids = rng.choice(500, 30, replace=False)
        table.put(ids, place)
        expected |= dict(zip(ids.tolist(), range(place, place + 30), strict=True))
        place += 30
        if rng.random() < 0.4:
            table._merge()
    asked = np.arange(600)
    assert table.find(asked).tolist() == [expected.get(one, -1) for one in range(600)]


def test_items_of_an_empty_store():
    assert Items(4).positions(np.array([3])).tolist() == [-1]


# --- shards -------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(1, 9))
@settings(deadline=None, max_examples=20)
def test_shards_are_one_index_to_the_last_bit(seed, shards):
    rng = np.random.default_rng(seed)
    rows = rng.choice(3000, 300, replace=False)
    rows[:3] = rows[3]  # equal features under different ids
    ids = np.sort(rng.choice(10**6, 300, replace=False))
    single = vs.FaissIndex(D)
    single.add(ids, X[rows])
    index = vs.ShardedIndex([[vs.FaissIndex(D)] for _ in range(shards)])
    index.add(ids, X[rows])
    expected, found = single.search(Q, 25), index.search(Q, 25)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.scores, expected.scores)
    index.close()


def test_replicas_take_turns():
    class Counting(vs.FaissIndex):
        asked = 0

        def search(self, *arguments):
            self.asked += 1
            return super().search(*arguments)

    replicas = [Counting(D) for _ in range(3)]
    index = vs.ShardedIndex([replicas])
    index.add(IDS, X)
    for _ in range(12):
        index.search(Q, 1)
    assert [replica.asked for replica in replicas] == [4, 4, 4]


class Mortal:
    """A replica that can be switched off."""

    def __init__(self):
        self.index, self.dead = vs.FaissIndex(D), False

    def __len__(self):
        return len(self.index)

    def __getattr__(self, name):
        if self.dead:
            raise ConnectionError("gone")
        return getattr(self.index, name)


def test_a_dead_replica_is_replaced_and_a_dead_shard_makes_results_partial():
    replicas = [[Mortal(), Mortal()], [Mortal(), Mortal()]]
    index = vs.ShardedIndex(replicas)
    index.add(IDS, X)
    replicas[1][0].dead = True
    for _ in range(3):
        found = index.search(Q, 10)
        assert torch.equal(found.ids, best(X, IDS))
        assert not found.partial
    index.add([5001], Q[:1])  # the living replica keeps it
    assert index.search(Q[:1], 1).ids.tolist() == [[5001]]
    replicas[1][1].dead = True
    found = index.search(Q, 10)
    assert found.partial
    assert torch.equal(found.ids, best(X[::2], IDS[::2]))
    before = len(replicas[0][0])
    with pytest.raises(vs.ShardDown, match="nothing was written"):
        index.add([6000, 6001], X[:2])
    assert len(replicas[0][0]) == before
    for shard in replicas:
        for replica in shard:
            replica.dead = True
    with pytest.raises(vs.ShardDown, match="no shard answers"):
        index.search(Q, 10)
    fresh = Mortal()
    fresh.add(IDS[1::2], X[1::2])
    index.revive(1, 0, fresh)
    assert index.search(Q, 5).partial


def test_a_remote_shard_answers_as_the_index_itself():
    server = ShardServer(vs.LiveIndex(lambda: vs.FaissIndex(D)))
    server.start()
    remote = RemoteIndex(server.address, timeout=5)
    remote.add(IDS, X)
    remote.update([3], Q[:1])
    remote.remove([4])
    assert len(remote) == 2999
    assert remote.search(Q[:1], 1).ids.tolist() == [[3]]
    assert remote.search(Q[:1], 2, [8, 9]).ids.sort().values.tolist() == [[8, 9]]
    with pytest.raises(ValueError, match="already"):
        remote.add([3], Q[:1])
    server.close()
    remote.close()
    with pytest.raises(ConnectionError, match="does not answer"):
        RemoteIndex(server.address, timeout=1).search(Q, 1)


# --- changes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: vs.FaissIndex(D), lambda: binary(3000)])
def test_a_random_stream_equals_an_index_built_anew(make):
    rng, index = np.random.default_rng(0), vs.LiveIndex(make, least=60, background=False)
    state = {}
    for step in range(60):
        if step % 3 == 0 or not state:
            new = np.setdiff1d(rng.choice(3000, 40, replace=False), list(state))
            index.add(new, X[new])
            state |= {int(one): X[one] for one in new}
        elif step % 3 == 1:
            old = rng.choice(list(state), 10, replace=False)
            index.update(old, Q[:10])
            state |= {int(one): Q[n] for n, one in enumerate(old)}
        else:
            gone = rng.choice(list(state), 15, replace=False)
            index.remove(gone)
            for one in gone:
                state.pop(int(one))
        ids = np.array(sorted(state))
        anew = make()
        anew.add(ids, torch.stack([state[int(one)] for one in ids]))
        expected, found = anew.search(Q, 10), index.search(Q, 10)
        assert torch.equal(found.ids, expected.ids), f"step {step}"
        torch.testing.assert_close(found.scores, expected.scores)
    assert index.rebuilds > 2
    assert len(index) == len(state)


def test_searches_and_changes_go_on_while_a_rebuild_runs():
    started, go = threading.Event(), threading.Event()

    class Slow(vs.FaissIndex):
        def add(self, ids, features):
            if len(ids) >= 1000:
                started.set()
                go.wait(10)
            super().add(ids, features)

    index = vs.LiveIndex(lambda: Slow(D), make_delta=lambda: vs.FaissIndex(D), least=500)
    index.add(IDS[:1000], X[:1000])
    assert started.wait(10)
    index.add([2000], Q[:1])
    index.remove([0, 1])
    index.update([2], Q[1:2])
    during = index.search(Q, 20)
    assert during.ids[0, 0] == 2000
    assert not np.isin(during.ids.numpy(), [0, 1]).any()
    go.set()
    index.wait()
    after = index.search(Q, 20)
    assert torch.equal(after.ids, during.ids)
    assert index.rebuilds == 1
    assert len(index) == 999
    index.close()
    with pytest.raises(vs.ClosedIndex):
        index.search(Q, 1)


def test_a_failed_rebuild_is_told_and_loses_nothing():
    class Broken(vs.FaissIndex):
        def add(self, ids, features):
            raise MemoryError("no room")

    index = vs.LiveIndex(lambda: Broken(D), make_delta=lambda: vs.FaissIndex(D), least=100)
    index.add(IDS[:200], X[:200])
    with pytest.raises(RuntimeError, match="goes on as it was"):
        index.wait()
    assert torch.equal(index.search(Q, 5).ids, best(X[:200], IDS[:200], 5))


def test_no_search_sees_a_deleted_item_or_misses_one_that_is_only_updated():
    index = vs.LiveIndex(lambda: vs.FaissIndex(D), least=200)
    index.add(IDS[:1000], X[:1000])
    index.add([5000], Q[:1])
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            ids = index.search(Q[:1], 5).ids[0].tolist()
            if ids[0] != 5000 or len(set(ids)) < 5:
                wrong.append(ids)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for step in range(60):
        index.update([5000], Q[:1])
        index.add(3000 + IDS[10 * step : 10 * step + 10], X[10 * step : 10 * step + 10])
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
    index.close()


def test_a_new_item_is_found_at_once():
    index = vs.LiveIndex(lambda: binary(50))
    index.add(IDS[:500], X[:500])
    assert vs.staleness(index, 9000, Q[:1]) < 1


# --- crashes ------------------------------------------------------------------------------------


def test_a_folder_opens_as_it_was_closed(tmp_path):
    def opened():
        return vs.LiveIndex(lambda: vs.FaissIndex(D), folder=tmp_path, least=300)

    index = opened()
    with pytest.raises(RuntimeError, match="another process"):
        opened()
    for begin in range(0, 1000, 100):
        index.add(IDS[begin : begin + 100], X[begin : begin + 100])
    index.remove(IDS[:50])
    index.update(IDS[50:60], Q[:10])
    index.wait()
    assert index.rebuilds
    expected = index.search(Q, 10)
    index.close()
    again = opened()
    assert len(again) == 950
    assert torch.equal(again.search(Q, 10).ids, expected.ids)
    assert len(list(tmp_path.glob("state-*"))) == 1
    again.close()


def test_a_torn_last_record_is_dropped_and_the_log_goes_on(tmp_path):
    index = vs.LiveIndex(lambda: vs.FaissIndex(D), folder=tmp_path)
    index.add([1], X[:1])
    index.add([2], X[1:2])
    index.close()
    log = tmp_path / "log-0"
    whole = log.read_bytes()
    log.write_bytes(whole[:-7])
    index = vs.LiveIndex(lambda: vs.FaissIndex(D), folder=tmp_path)
    assert len(index) == 1
    index.add([3], X[2:3])
    index.close()
    index = vs.LiveIndex(lambda: vs.FaissIndex(D), folder=tmp_path)
    assert index.contains([1, 2, 3]).tolist() == [True, False, True]
    index.close()


def test_damage_in_the_middle_is_an_error_that_names_the_file(tmp_path):
    log = Journal(tmp_path / "log-0")
    for number in range(3):
        log.append("add", np.array([number]), X[number : number + 1].numpy())
    log.close()
    blob = bytearray((tmp_path / "log-0").read_bytes())
    blob[60] ^= 1
    (tmp_path / "log-0").write_bytes(blob)
    with pytest.raises(DamagedLog, match="log-0"):
        vs.LiveIndex(lambda: vs.FaissIndex(D), folder=tmp_path)
    (tmp_path / "log-0").write_bytes(b"PK" + struct.pack("<Q", 5) * 9)
    with pytest.raises(DamagedLog, match="no record begins"):
        Journal(tmp_path / "log-0")


def test_a_damaged_snapshot_is_refused(tmp_path):
    index = vs.LiveIndex(lambda: vs.FaissIndex(D), folder=tmp_path)
    index.add(IDS[:10], X[:10])
    index.rebuild()
    index.close()
    path = tmp_path / "state-1.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    with pytest.raises(ValueError, match="checksum"):
        vs.LiveIndex(lambda: vs.FaissIndex(D), folder=tmp_path)


@pytest.mark.slow
def test_replicas_in_processes_answer_like_one_index():
    index = vs.FaissIndex(D)
    index.add(np.arange(len(X)), X)
    with replica_processes(X, 2) as replicas:
        shards = vs.ShardedIndex([replicas])
        for _ in range(2):  # each replica once
            assert torch.equal(shards.search(Q, 7).ids, index.search(Q, 7).ids)
        shards.close()
    with pytest.raises(ConnectionError):
        replicas[0].search(Q, 7)


WRITER = """
import sys
import numpy as np, torch
from toolkit.search.visual_search import FaissIndex, LiveIndex
torch.manual_seed(0)
x = torch.nn.functional.normalize(torch.randn(100_000, 16))
index = LiveIndex(lambda: FaissIndex(16), folder=sys.argv[1], least=200)
n = 0
while True:
    index.add(np.arange(n, n + 20), x[n : n + 20])
    print("added", n, n + 20, flush=True)
    index.remove(np.array([n]))
    print("removed", n, flush=True)
    n += 20
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 40, 90])
def test_a_killed_process_keeps_all_that_it_acknowledged(tmp_path, after):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    lines = [process.stdout.readline() for _ in range(after)]
    time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    lines += process.stdout.readlines()
    process.wait()
    alive, removed, last = set(), set(), 0
    for line in lines:
        if not line.endswith("\n"):
            continue
        what, *numbers = line.split()
        if what == "added":
            last = int(numbers[0])
            alive |= set(range(last, int(numbers[1])))
        else:
            removed.add(int(numbers[0]))
    index = vs.LiveIndex(lambda: vs.FaissIndex(D), folder=tmp_path)
    kept = np.array(sorted(alive - removed - {last}))  # its removal may lack its line
    assert index.contains(kept).all()
    assert not index.contains(np.array(sorted(removed))).any()
    assert len(kept) <= len(index) <= len(kept) + 21  # at most one more addition
    index.close()
