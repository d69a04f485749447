"""zvec and Milvus answer as faiss does."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from toolkit.search import visual_search as vs
from toolkit.search.visual_search.adapters import MilvusIndex, ZvecIndex

D, N = 12, 120
X = normalize(torch.randn(N, D, generator=torch.Generator().manual_seed(0)))
Q = normalize(torch.randn(5, D, generator=torch.Generator().manual_seed(1)))
IDS = np.arange(N)


def open_zvec(folder):
    pytest.importorskip("zvec")
    return ZvecIndex(folder / "items", D)


def open_milvus(folder):
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    return MilvusIndex(folder / "items.db", D)


@pytest.fixture(params=[open_zvec, open_milvus], ids=["zvec", "milvus"])
def opened(request, tmp_path):
    return lambda: request.param(tmp_path)


@pytest.mark.slow
def test_an_adapter_is_faiss_with_other_means(opened):
    index, exact = opened(), vs.FaissIndex(D)
    index.add(IDS, X, IDS % 3)
    exact.add(IDS, X)
    found, expected = index.search(Q, 10), exact.search(Q, 10)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-4)
    third = IDS[IDS % 3 == 1]
    of_category = index.search(Q, 8, category=1)
    assert torch.equal(of_category.ids, exact.search(Q, 8, third).ids)
    few = index.search(Q, 4, [3, 5, 8])
    assert torch.equal(few.ids, exact.search(Q, 4, [3, 5, 8]).ids)
    assert (index.search(Q, 2, []).ids == -1).all()
    index.remove([int(one) for one in expected.ids[0, :3]])
    exact.remove(expected.ids[0, :3])
    assert torch.equal(index.search(Q, 10).ids, exact.search(Q, 10).ids)
    assert len(index) == N - 3
    bad = [
        (lambda: index.add([5], X[:1]), "already"),
        (lambda: index.add([999], X[:1] * torch.nan), "finite"),
        (lambda: index.add([999], X[:1, :3]), "12"),
        (lambda: index.add([999], X[:1], [1, 2]), "categories"),
        (lambda: index.remove([998]), "998 is not in"),
        (lambda: index.search(Q, 0), "at least 1"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()
    index.close()
    with pytest.raises(RuntimeError, match="closed"):
        index.search(Q, 1)
    again = opened()
    assert len(again) == N - 3
    assert torch.equal(again.search(Q, 10).ids, exact.search(Q, 10).ids)
    again.close()


@pytest.mark.slow
def test_an_adapter_may_be_a_shard(opened):
    other, own = opened(), vs.FaissIndex(D)
    sharded, single = vs.ShardedIndex([[own], [other]]), vs.FaissIndex(D)
    sharded.add(IDS, X)
    single.add(IDS, X)
    assert torch.equal(sharded.search(Q, 12).ids, single.search(Q, 12).ids)
    sharded.close()
    other.close()


@pytest.mark.slow
def test_zvec_walks_a_graph_once_it_is_built(tmp_path):
    pytest.importorskip("zvec")
    index, exact = ZvecIndex(tmp_path / "items", D, "hnsw"), vs.FaissIndex(D)
    index.add(IDS, X)
    exact.add(IDS, X)
    index.optimize()
    share = vs.overlap(index.search(Q, 10).ids, exact.search(Q, 10).ids).mean()
    assert share > 0.9
    index.close()
    with pytest.raises(ValueError, match="width 12"):
        ZvecIndex(tmp_path / "items", 4)
    with pytest.raises(ValueError, match="kind"):
        ZvecIndex(tmp_path / "others", D, "ivf")
