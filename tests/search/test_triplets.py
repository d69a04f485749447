"""Triplets from clicks: what is mined, what is cleaned, and the two losses."""

import inspect

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.shop_clicks import ClickLog
from toolkit.search.triplets import (
    allowed_negatives,
    cleaning_thresholds,
    mine_triplets,
    triplet_click_loss,
    triplet_loss,
)

unchecked = inspect.unwrap  # without the tests' own check of shapes
LOG = ClickLog.from_frame(
    pd.DataFrame(
        {
            "query": [1, 0],
            "shown": [[4, 2, 0, 3], [1, 3, 2, 4]],
            "clicks": [[1], [2, 0]],
            "tab": [0, 0],
            "switched_to": [-1, -1],
        }
    )
)
QUERIES = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
LISTINGS = torch.tensor([[0.0, 1.0], [0.0, 0.1], [1.2, 0.0], [5.0, 0.0], [1.0, 3.0]])


def rows(triplets):
    columns = triplets.visit, triplets.query, triplets.positive, triplets.negative
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_every_click_meets_everything_shown_and_not_clicked():
    assert rows(mine_triplets(LOG)) == [
        (0, 1, 2, 4),
        (0, 1, 2, 0),
        (0, 1, 2, 3),
        (1, 0, 1, 3),
        (1, 0, 1, 4),
        (1, 0, 2, 3),
        (1, 0, 2, 4),
    ]


def test_below_the_lowest_click_nothing_was_examined():
    found = rows(mine_triplets(LOG, examined_only=True))
    assert found == [(0, 1, 2, 4), (1, 0, 1, 3), (1, 0, 2, 3)]


def test_cleaning_drops_far_positives_and_near_negatives():
    found = rows(mine_triplets(LOG, (QUERIES, LISTINGS), eps=1.0, gamma=1.5))
    # click 2 is far from query 0; listing 0 is near query 1
    assert found == [(0, 1, 2, 4), (0, 1, 2, 3), (1, 0, 1, 3), (1, 0, 1, 4)]


def test_a_negative_must_be_far_from_the_positive_too():
    listings = LISTINGS.clone()
    listings[4] = torch.tensor([0.0, -2.0])
    listings[1] = torch.tensor([0.0, -1.0])
    found = rows(mine_triplets(LOG, (QUERIES, listings), eps=1.0, gamma=1.5))
    assert (1, 0, 1, 4) not in found
    assert (1, 0, 1, 3) in found


def test_thresholds_are_quantiles_of_old_distances():
    eps, gamma = cleaning_thresholds(LOG, (QUERIES, LISTINGS), positive=0.5, negative=0.0)
    assert eps == pytest.approx(0.2)  # clicked distances: 0.2, 0.1, 1.2
    assert gamma == pytest.approx(2**0.5)  # query 1 to listing 0


def test_a_clicked_listing_is_no_negative_of_its_own_visit():
    allowed = allowed_negatives(LOG, torch.tensor([0, 1]), torch.tensor([2, 1, 3]))
    assert allowed.tolist() == [[False, True, True], [False, False, True]]


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6))
def test_shared_negatives_equal_a_loop(seed, m, n):
    generator = torch.Generator().manual_seed(seed)
    fq, fp = torch.randn(2, m, 3, generator=generator, dtype=torch.float64)
    fn = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    allowed = torch.rand(m, n, generator=generator) < 0.5
    means = []
    for i in range(m):
        terms = [
            max(0.0, float(0.5 + (fq[i] - fp[i]).norm() ** 2 - (fq[i] - fn[j]).norm() ** 2))
            for j in range(n)
            if allowed[i, j]
        ]
        means += [sum(terms) / len(terms)] if terms else []
    expected = sum(means) / len(means) if means else 0.0
    assert float(triplet_loss(fq, fp, fn, 0.5, allowed)) == pytest.approx(expected, abs=1e-9)


def test_one_query_with_many_negatives_weighs_no_more_than_another():
    fq, fp = torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])
    fn = torch.zeros(3, 1)
    allowed = torch.tensor([[True, True, True], [True, False, False]])
    assert float(triplet_loss(fq, fp, fn, 0.5, allowed)) == pytest.approx((0.5 + 1.5) / 2)


def test_without_allowed_negatives_loss_and_gradient_are_zero():
    fq = torch.randn(2, 3, requires_grad=True)
    loss = triplet_loss(fq, fq.detach() + 1, torch.randn(4, 3), 0.2, torch.zeros(2, 4).bool())
    loss.backward()
    assert loss.item() == 0
    assert fq.grad.abs().sum() == 0


def test_own_negatives_are_the_diagonal_of_shared_ones():
    fq, fp, fn = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    shared = triplet_loss(fq, fp, fn, 0.2, torch.eye(6).bool())
    torch.testing.assert_close(triplet_click_loss(fq, fp, fn, 0.2), shared)


def test_distances_are_squared():
    loss = triplet_click_loss(torch.zeros(1, 1), torch.full((1, 1), 3.0), torch.ones(1, 1), 0.2)
    assert float(loss) == pytest.approx(0.2 + 9 - 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mine_triplets(LOG, None, eps=1.0), "need old features"),
        (lambda: mine_triplets(LOG, (QUERIES, LISTINGS), eps=float("nan")), "at least 0"),
        (lambda: mine_triplets(LOG, (QUERIES[:1], LISTINGS), eps=1.0), "names query 1"),
        (lambda: unchecked(mine_triplets)(LOG, (QUERIES[:, :1], LISTINGS), eps=1.0), "one width"),
        (lambda: cleaning_thresholds(LOG, (QUERIES, LISTINGS), 1.5), "quantiles"),
        (
            lambda: unchecked(triplet_loss)(
                torch.ones(2, 3), torch.ones(2, 3), torch.ones(4, 2), 0.2
            ),
            r"\[n, d\]",
        ),
        (
            lambda: unchecked(triplet_loss)(
                torch.ones(2, 3), torch.ones(2, 3), torch.ones(4, 3), 0.2, torch.ones(4, 2).bool()
            ),
            "queries by negatives",
        ),
        (
            lambda: unchecked(triplet_click_loss)(
                torch.ones(2, 3), torch.ones(2, 3), torch.ones(1, 3), 0.2
            ),
            "one shape",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
