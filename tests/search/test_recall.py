"""Identical recall and reciprocal rank against counts by hand."""

import inspect

import pytest
import torch

from toolkit.search.recall import first_rank, identical_recall, mean_reciprocal_rank

PRODUCT = torch.tensor([7, 7, 8, 9])
FOUND = torch.tensor([[2, 0, 1], [3, -1, -1], [2, 3, 0], [-1, -1, -1]])
WANTED = torch.tensor([7, 9, 5, 7])


def test_first_rank_counts_from_one():
    assert first_rank(FOUND, PRODUCT, WANTED).tolist() == [2, 1, 0, 0]


def test_recall_and_reciprocal_rank():
    assert identical_recall(FOUND, PRODUCT, WANTED, (1, 3)) == {1: 0.25, 3: 0.5}
    assert float(mean_reciprocal_rank(FOUND, PRODUCT, WANTED)) == pytest.approx(1.5 / 4)


def test_empty_places_are_no_hits_of_the_last_listing():
    found = torch.tensor([[-1, -1]])
    assert identical_recall(found, PRODUCT, torch.tensor([9]), (2,)) == {2: 0.0}


def test_an_empty_list_finds_nothing():
    assert first_rank(torch.zeros(2, 0).long(), PRODUCT, torch.tensor([7, 9])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("found", "wanted", "ks", "message"),
    [
        (FOUND, WANTED, (4,), "each K"),
        (FOUND, WANTED, (), "each K"),
        (FOUND + 1, WANTED, (1,), "must hold listings"),
    ],
)
def test_bad_input_is_named(found, wanted, ks, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(identical_recall)(found, PRODUCT, wanted, ks)


def test_each_list_needs_its_query():
    with pytest.raises(ValueError, match="rows"):
        inspect.unwrap(first_rank)(FOUND, PRODUCT, WANTED[:2])
