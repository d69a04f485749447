"""Latency tables add up, rooflines bound, and both refuse what they do not know."""

import numpy as np
import pytest

from toolkit.networks import latency
from toolkit.networks.latency import LatencyTable, Layer, Roofline, layers, measure, trimmed
from toolkit.networks.structures import BlockSpec, Conv, count, parse

NET = parse("SuperConvK3BNRELU(1,8,2,1)SuperResKXKX(8,12,3,2,1,3)SuperConvK1BNRELU(12,16,1,1)")


def test_layers_say_what_each_one_reads():
    found = [(str(layer.spec), layer.res) for layer in layers(NET, 28, 4)]
    assert found == [
        ("SuperConvK3BNRELU(1,8,2,1)", 28),
        ("SuperResKXKX(8,12,3,2,1,1)", 14),
        ("SuperResKXKX(12,12,3,1,1,1)", 7),
        ("SuperResKXKX(12,12,3,1,1,1)", 7),
        ("SuperConvK1BNRELU(12,16,1,1)", 7),
    ]


def test_a_prediction_is_the_sum_of_its_layers():
    times = {layer: 2.0**i for i, layer in enumerate(dict.fromkeys(layers(NET, 28, 4)))}
    assert LatencyTable(times).predict(NET, 28, 4) == 1 + 2 + 4 + 4 + 8
    with pytest.raises(ValueError, match=r"@28x8; call profile"):
        LatencyTable(times).predict(NET, 28, 8)


def test_a_table_measures_each_layer_once_and_survives_its_text():
    table = LatencyTable().profile([NET, NET[:2]], 12, 2, rounds=2)
    assert len(table.seconds) == 4
    known = dict(table.seconds)
    assert table.profile([NET], 12, 2, rounds=2).seconds == known
    again = LatencyTable.from_text(table.to_text())
    assert again.predict(NET, 12, 2) == pytest.approx(table.predict(NET, 12, 2), rel=1e-3)
    with pytest.raises(ValueError, match="not a line"):
        LatencyTable.from_text("SuperResKXKX(8,12,3,2,1,1)@14 3")


def test_trimmed_means_of_ten_keep_the_third_to_the_eighth():
    centre, spread = trimmed(np.array([[9.0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [5, 0], [6, 0],
                                       [7, 0], [8, 0], [99, 0]]))  # fmt: skip
    assert centre.tolist() == [5.5, 0]
    assert spread.tolist() == [2.5, 0]
    assert trimmed([3.0])[0] == 3


def test_every_pass_is_warmed_up_interleaved_and_in_evaluation_mode(monkeypatch):
    calls = []

    class Spy(latency._Pass):
        def __call__(self):
            assert not self.net.training
            calls.append(len(self.x))
            super().__call__()

    monkeypatch.setattr(latency, "_Pass", Spy)
    times = measure([NET, NET[0]], 12, 3, rounds=2, warmup=1)
    assert list(times) == [0, 1]
    assert len(calls) == 2 * (1 + 2)
    assert (times > 0).all(axis=None)
    with pytest.raises(ValueError, match="one side each"):
        measure([NET], [12, 14], 3)
    with pytest.raises(ValueError, match="one side each"):
        measure([], 12, 3)


def test_layers_refuse_impossible_sizes():
    with pytest.raises(ValueError, match="at least 1"):
        list(layers(NET, 0, 4))


def test_a_roofline_is_bound_by_the_slower_of_two():
    machine = Roofline(peak=10.0, bandwidth=2.0, overhead=1.0)
    assert machine.ridge == 5
    assert machine.time([100, 10], [10, 10]).tolist() == [11, 6]
    with pytest.raises(ValueError, match="peak"):
        Roofline(0.0, 1.0)


def test_a_rooflines_structure_is_the_sum_of_its_convolutions():
    block = [BlockSpec.from_ratio("SuperResK1KXK1", 8, 8, 1, 0.25, 1)]
    slow_memory, slow_units = Roofline(1e30, 1.0), Roofline(1.0, 1e30)
    elements = (8 + 2) + (2 + 2) + (2 + 8)
    weights = 8 * 2 + 2 * 2 * 9 + 2 * 8
    expected = 2 * (4 * 36 * elements + weights)
    assert slow_memory.predict(block, 6, 4) == pytest.approx(expected)
    assert slow_units.predict(block, 6, 4) == pytest.approx(4 * count(block, 6).macs)
    assert latency.conv_work(Conv(8, 8, 3, 2, groups=8), 6, 1, 1) == (
        9 * 8 * 9,
        8 * 36 + 8 * 9 + 72,
    )


def test_layers_are_keys():
    assert Layer(NET[0], 28, 1) == Layer(parse(str(NET[0]))[0], 28, 1)
