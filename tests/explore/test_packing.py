"""The packed states against a decoder written from the format's description alone."""

import base64
import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toolkit.explore.packing import GAP, pack

ROOMY = 10_000_000


def unpack(text, states):
    """Read the format slowly: header length, header, then low and high byte planes."""
    data = gzip.decompress(base64.b64decode(text))
    length = int.from_bytes(data[:4], "little")
    header, body = json.loads(data[4 : 4 + length]), data[4 + length :]
    for entry in header["arrays"]:
        shapes = entry["shape"]
        if not (shapes and isinstance(shapes[0], list)):
            shapes = [shapes] * entry["count"]
        sizes = [int(np.prod(shape)) for shape in shapes]
        total = sum(sizes)
        codes = [
            low + 256 * high
            for low, high in zip(body[:total], body[total : 2 * total], strict=True)
        ]
        body = body[2 * total :]
        starts = set(np.cumsum([0, *sizes]))
        for i in range(total):
            if entry["delta"] == "along" and i not in starts:
                codes[i] = (codes[i] + codes[i - 1]) % 65536
            if entry["delta"] == "across" and i >= sizes[0]:
                codes[i] = (codes[i] + codes[i - sizes[0]]) % 65536
        values = np.array([_value(code, entry) for code in codes])
        parts = np.split(values, np.cumsum(sizes)[:-1])
        entry["pool"] = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    assert not body
    return [_figure(header, state) for state in range(states)]


def _value(code, entry):
    if code == GAP:
        return np.nan
    if not entry.get("log"):
        return entry["low"] + code * entry["step"]
    return 0.0 if code == 0 else np.exp(entry["low"] + (code - 1) * entry["step"])


def _figure(header, state):
    flat = {}
    for entry in header["values"] + header["arrays"]:
        place = entry["index"][state] if entry["index"] else 0
        if place >= 0:
            flat[tuple(entry["path"])] = entry["pool"][place]
    return flat


def curve(y, **more):
    return {"data": [{"type": "scatter", "y": y, **more}], "layout": {"title": {"text": "t"}}}


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.integers(9, 40)),
        elements=st.floats(-1e6, 1e6) | st.just(np.nan),
    )
)
def test_every_value_returns_within_one_step(values):
    back = unpack(pack([curve(row) for row in values], ROOMY), len(values))
    finite = values[np.isfinite(values)]
    spread = np.ptp(finite) if finite.size else 0.0
    for row, figure in zip(values, back, strict=True):
        got = figure["data", 0, "y"]
        np.testing.assert_array_equal(np.isnan(got), np.isnan(row))
        if finite.size and finite.min() >= 0 and (finite > 0).any() and spread > 0:
            positive = row > 0
            relative = np.log(finite.max() / finite[finite > 0].min()) / 65534
            allowed = np.where(positive, np.maximum(spread / 131_000, row * relative), 1e-300)
            known = np.isfinite(row)
            assert (np.abs(got - row)[known] <= allowed[known] + spread / 120_000).all()
        else:
            np.testing.assert_allclose(got, row, rtol=1e-9, atol=spread / 131_000 + 1e-12)


def test_values_over_decades_keep_their_relative_precision():
    values = np.geomspace(1e-9, 1e2, 50)
    back = unpack(pack([curve(values)], ROOMY), 1)[0]["data", 0, "y"]
    np.testing.assert_allclose(back, values, rtol=1e-3)


def test_whole_numbers_are_exact():
    values = np.arange(-500, 500) * 7.0
    back = unpack(pack([curve(values)], ROOMY), 1)[0]["data", 0, "y"]
    np.testing.assert_array_equal(back, values)


def test_maps_keep_their_shape():
    z = np.random.default_rng(0).random((6, 7))
    back = unpack(pack([curve(z), curve(z.T)], ROOMY), 2)
    assert back[0]["data", 0, "y"].shape == (6, 7)
    assert back[1]["data", 0, "y"].shape == (7, 6)


def test_states_may_differ_in_traces_texts_and_lengths():
    one = {"data": [{"y": np.arange(20.0), "name": "a"}], "layout": {"width": 3}}
    two = {
        "data": [{"y": np.arange(30.0), "name": "b"}, {"y": np.arange(9.0)}],
        "layout": {"width": 3, "xaxis": {"range": [0, 1]}},
    }
    first, second = unpack(pack([one, two], ROOMY), 2)
    assert first["data", 0, "name"] == "a"
    assert second["data", 0, "name"] == "b"
    assert ("data", 1, "y") not in first
    assert second["data", 1, "y"].size == 9
    assert ("layout", "xaxis", "range") not in first
    assert first["layout", "width"] == 3


def test_texts_and_short_lists_are_kept_as_they_are():
    figure = curve(np.arange(20.0), text=[0.123456789] * 20, customdata=[[1 / 3]] * 12)
    back = unpack(pack([figure], ROOMY), 1)[0]
    assert back["data", 0, "text"] == [0.123456789] * 20
    assert back["data", 0, "customdata"] == [[1 / 3]] * 12


def test_a_gap_in_a_short_trace_is_null_as_json_has_it():
    """One state's trace is short and has a gap, another's is long: both go into one pool."""
    gap, long = np.array([1.0, np.nan, 3.0]), np.arange(20.0)
    first, second = unpack(pack([curve(gap), curve(long)], ROOMY), 2)
    assert first["data", 0, "y"] == [1.0, None, 3.0]
    assert np.allclose(second["data", 0, "y"], long, atol=1e-3)


def test_equal_arrays_are_stored_once():
    shared = np.random.default_rng(0).random(2000)
    one, many = (len(pack([curve(shared)] * count, ROOMY)) for count in (1, 100))
    assert many < one + 200


def test_the_same_figures_give_the_same_text():
    figures = [curve(np.sin(np.arange(50) * k)) for k in range(5)]
    assert pack(figures, ROOMY) == pack(figures, ROOMY)


def test_a_blob_that_cannot_fit_says_what_to_do():
    noise = np.random.default_rng(0).random((50, 500))
    with pytest.raises(ValueError, match=r"50 states need .* allowed are 20 kB"):
        pack([curve(row) for row in noise], 20_000)


def test_twelve_bits_are_tried_before_giving_up():
    noise = 0.5 + np.random.default_rng(0).random((20, 500))
    figures = [curve(row) for row in noise]
    roomy = len(pack(figures, ROOMY))
    back = unpack(pack(figures, int(roomy * 0.9)), 20)
    np.testing.assert_allclose(back[3]["data", 0, "y"], noise[3], atol=1 / 8180)
