"""A poster shows its figure whole."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from toolkit.explore.poster import poster


def drawn(names):
    """Opacity of a poster of bars with these names."""
    trace = {"type": "bar", "orientation": "h", "x": np.arange(1.0, 1 + len(names)), "y": names}
    image = Image.open(io.BytesIO(poster({"data": [trace], "layout": {}}, 300)))
    return np.asarray(image.convert("RGBA"))[:, :, 3]


@pytest.mark.parametrize("name", ["a", "frame differences", "a network that was never trained"])
def test_names_of_categories_are_on_the_page(name):
    opacity = drawn([name, "b"])
    assert opacity.any()
    assert not opacity[:, :2].any()


def test_short_names_leave_the_panel_where_it_was():
    assert (drawn(["a", "b"]) > 0).any(axis=0).argmax() > 30


def ink(marker):
    """Opaque pixels of a single marker."""
    trace = {"type": "scatter", "mode": "markers", "x": np.ones(1), "y": np.ones(1)}
    images = [
        Image.open(io.BytesIO(poster({"data": data, "layout": {}}, 300)))
        for data in ([trace | {"marker": marker | {"size": 40}}], [trace | {"marker": {"size": 0}}])
    ]
    full, bare = (np.asarray(image.convert("RGBA"))[:, :, 3] > 100 for image in images)
    return int(full.sum()) - int(bare.sum())


def test_markers_keep_their_shape():
    circle, stroke = ink({}), ink({"symbol": "line-ew-open", "line": {"width": 3}})
    assert 0 < stroke < circle / 4
    assert circle < ink({"symbol": "square"})


def opaque(layout):
    """Where a poster of a line from (0, 0) to (1, 1) has ink."""
    trace = {"type": "scatter", "mode": "lines", "x": np.arange(2.0), "y": np.arange(2.0)}
    image = Image.open(io.BytesIO(poster({"data": [trace], "layout": layout}, 500)))
    return np.asarray(image.convert("RGBA"))[:, :, 3] > 60


def test_named_ticks_stand_where_numbers_would():
    named = {"tickvals": [0, 1], "ticktext": ["a very long name", "another long name"]}
    below = slice(445, None)
    assert opaque({"xaxis": named})[below].any(axis=0).sum() > 100
    none = {"tickvals": [0, 1], "ticktext": ["", ""]}
    assert not opaque({"xaxis": none})[below].any()


def test_a_title_breaks_where_the_figure_breaks_it():
    one, two = (opaque({"xaxis": {"title": text}}) for text in ("one two", "one<br>two"))
    assert two[-50:].any(axis=1).sum() > one[-50:].any(axis=1).sum() + 5


@pytest.mark.parametrize("ref", [{}, {"xref": "paper", "yref": "paper"}])
def test_annotations_in_either_units_are_drawn(ref):
    note = {"text": "note", "x": 0.25, "y": 0.75} | ref
    added = opaque({"annotations": [note]}) & ~opaque({})
    rows, columns = np.nonzero(added)
    assert 100 < rows.mean() < 170
    assert 180 < columns.mean() < 280


PLACES = [0.25, 0.75]


def colours(data, layout):
    """The colours of a poster that cover more than a few pixels."""
    image = Image.open(io.BytesIO(poster({"data": data, "layout": layout}, 300))).convert("RGBA")
    return [np.array(colour) for count, colour in image.getcolors(10**6) if count > 2000]


def near(found, red, green, blue):
    return any(np.abs(colour[:3].astype(int) - (red, green, blue)).max() < 25 for colour in found)


def test_each_bar_has_its_own_colour():
    bar = {"type": "bar", "x": ["a", "b"], "y": np.ones(2)}
    found = colours([bar | {"marker": {"color": ["#ff0000", "rgb(0, 0, 255)"]}, "opacity": 1}], {})
    assert near(found, 255, 0, 0)
    assert near(found, 0, 0, 255)


def test_a_map_that_is_seen_through_shows_the_picture_below():
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), (0, 200, 0), np.uint8)).save(stream, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    picture = {"source": uri, "xref": "x", "yref": "y", "x": 0, "y": 0, "sizex": 1, "sizey": 1}
    layout = {
        "images": [picture | {"sizing": "stretch", "layer": "below"}],
        "xaxis": {"range": [0, 1]},
        "yaxis": {"range": [1, 0]},
    }
    veil = {"type": "heatmap", "z": np.array([[0.0, 1.0]] * 2), "x": PLACES, "y": PLACES}
    scale = [[0, "rgba(255, 0, 0, 1)"], [1, "rgba(255, 0, 0, 0)"]]
    found = colours([veil | {"colorscale": scale}], layout)
    assert near(found, 255, 0, 0)
    assert near(found, 0, 200, 0)
