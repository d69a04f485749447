"""Merging top-k lists of shards equals the top-k of all of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.search.topk import merge_topk, overlap


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6), st.integers(1, 9))
def test_merged_lists_are_the_lists_of_the_union(seed, sources, found, k):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (3, sources * found), generator=generator).float()  # many ties
    ids = torch.stack([torch.randperm(sources * found, generator=generator) for _ in range(3)])
    shards = [t.view(3, sources, found).transpose(0, 1) for t in (scores, ids)]
    best, best_ids = merge_topk(*shards, k)
    for row in range(3):
        expected = sorted(zip((-scores[row]).tolist(), ids[row].tolist(), strict=True))[:k]
        expected += [(float("inf"), -1)] * (k - len(expected))
        assert list(zip((-best[row]).tolist(), best_ids[row].tolist(), strict=True)) == expected


def test_empty_places_lose_against_everything():
    scores = torch.tensor([[[9.0, 1.0]], [[0.5, 7.0]]])
    ids = torch.tensor([[[-1, 4]], [[2, -1]]])
    best, best_ids = merge_topk(scores, ids, 3)
    assert best_ids.tolist() == [[4, 2, -1]]
    assert best.tolist() == [[1.0, 0.5, -torch.inf]]


def test_refuses_k_below_one():
    with pytest.raises(ValueError, match="at least 1"):
        merge_topk(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long), 0)


def test_overlap_counts_true_neighbours_in_any_order():
    found = torch.tensor([[3, 1, 9], [5, -1, -1]])
    truth = torch.tensor([[1, 2, 3], [5, 6, -1]])
    torch.testing.assert_close(overlap(found, truth), torch.tensor([2 / 3, 1 / 2]))
