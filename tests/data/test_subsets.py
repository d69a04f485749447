import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data import long_tail_counts, take_per_class


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.data(),
    st.integers(0, 2**31),
)
def test_each_class_gets_its_count_without_repeats(labels, data, seed):
    y = torch.tensor(labels)
    have = torch.bincount(y)
    counts = [data.draw(st.integers(0, int(n))) for n in have]
    chosen = take_per_class(y, counts, generator=seeded(seed))
    assert len(chosen.unique()) == len(chosen)
    assert torch.bincount(y[chosen], minlength=len(counts)).tolist() == counts


def test_one_number_holds_for_every_class():
    y = torch.arange(3).repeat(10)
    chosen = take_per_class(y, 4, generator=seeded())
    assert torch.bincount(y[chosen]).tolist() == [4, 4, 4]


def test_same_generator_same_examples_and_another_differs():
    y = torch.arange(5).repeat(50)
    first, second, other = (take_per_class(y, 10, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_every_example_is_equally_likely():
    y = torch.zeros(10, dtype=torch.int64)
    generator = seeded()
    hits = torch.zeros(10)
    for _ in range(2000):
        hits[take_per_class(y, 3, generator=generator)] += 1
    assert ((hits / 2000 - 0.3).abs() < 0.05).all()


def test_too_many_examples_of_a_class_are_refused():
    with pytest.raises(ValueError, match="class 1: 3 examples asked for, 0 to 2 possible"):
        take_per_class(torch.tensor([0, 0, 0, 1, 1]), 3, generator=seeded())


def test_too_few_counts_are_refused():
    with pytest.raises(ValueError, match="1 entries for 2 classes"):
        take_per_class(torch.tensor([0, 1]), [1], generator=seeded())


def test_long_tail_falls_geometrically_between_its_ends():
    counts = long_tail_counts(5, 160, 10)
    assert counts.tolist() == [160, 80, 40, 20, 10]


@given(st.integers(2, 50), st.integers(1, 500), st.integers(1, 500))
def test_long_tail_never_rises(num_classes, one, other):
    n_min, n_max = sorted((one, other))
    counts = long_tail_counts(num_classes, n_max, n_min)
    assert (counts[0], counts[-1]) == (n_max, n_min)
    assert (counts.diff() <= 0).all()


@pytest.mark.parametrize("wrong", [(1, 10, 1), (5, 1, 10), (5, 10, 0)])
def test_impossible_long_tails_are_refused(wrong):
    with pytest.raises(ValueError, match=r"at least 2|n_min"):
        long_tail_counts(*wrong)
