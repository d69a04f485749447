"""Colours, the template, grids of images and posters."""

import base64
import io
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from toolkit.explore import COLOURS, INK, faded, image_grid, matplotlib_style
from toolkit.explore.explorable import figure_json
from toolkit.explore.figures import template, theme
from toolkit.explore.poster import poster


def contrast(one, other):
    """WCAG 2.1's ratio of two #RRGGBB colours."""

    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("mode", "page"), [("light", "#FFFFFF"), ("dark", "#121212")])
def test_colours_stand_out_from_the_page(mode, page):
    look = theme()[mode]
    assert all(contrast(colour, page) >= 3 for colour in look["colours"])
    assert contrast(look["ink"], page) >= 7
    assert contrast(look["muted"], page) >= 4.5


def test_both_themes_have_a_partner_for_every_colour():
    light, dark = theme()["light"], theme()["dark"]
    assert light.keys() == dark.keys()
    assert len(light["colours"]) == len(dark["colours"]) == len(set(COLOURS))
    assert light["ink"] == INK


def test_plotly_accepts_the_template():
    for mode in ("light", "dark"):
        go.layout.Template(template(mode))


def test_faded_keeps_the_colour():
    assert faded("#0072B2", 0.25) == "rgba(0,114,178,0.25)"
    with pytest.raises(ValueError, match="#0072B2"):
        faded("blue")
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        faded("#0072B2", 2)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (3, 5, 7), (1, 5, 7), (4, 5, 7), (5, 7, 4)])
def test_images_of_every_layout_keep_their_pixels(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    figure = image_grid([array], ["one"], 1)
    uri = figure.layout.images[0].source
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    pixels = np.asarray(image)
    scale = pixels.shape[1] // 7
    assert pixels.shape[:2] == (5 * scale, 7 * scale)
    wanted = array if shape[0] == 5 else np.moveaxis(array, 0, -1)
    wanted = np.broadcast_to(wanted.reshape(5, 7, -1), pixels[::scale, ::scale].shape)
    np.testing.assert_array_equal(pixels[::scale, ::scale], wanted)


def test_float_images_are_clipped_to_the_unit_interval():
    figure = image_grid([np.array([[-1.0, 0.5, 2.0]])], [""], 1)
    uri = figure.layout.images[0].source
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert sorted(set(pixels.ravel())) == [0, 128, 255]


def test_a_grid_counts_rows_and_captions():
    figure = image_grid([np.zeros((4, 4))] * 5, [*"abcd", ""], 2)
    assert len({image.y for image in figure.layout.images}) == 3
    assert [note.text for note in figure.layout.annotations] == list("abcd")


@pytest.mark.parametrize(
    ("images", "captions", "columns"),
    [
        ([], [], 1),
        ([np.zeros((2, 2))], [], 1),
        ([np.zeros((2, 2))], ["a"], 0),
        ([np.zeros(3)], ["a"], 1),
    ],
)
def test_bad_grids_are_refused(images, captions, columns):
    with pytest.raises(ValueError, match=r"images|columns|image must be"):
        image_grid(images, captions, columns)


TRACES = {
    "line": go.Scatter(y=[1, None, 3], name="$a$"),
    "markers": go.Scatter(x=["a", "b"], y=[1, 2], mode="markers", marker={"size": [3, 9]}),
    "band": go.Scatter(x=[0, 1, 1, 0], y=[0, 1, 2, 1], fill="toself", fillcolor="rgba(0,0,9,.2)"),
    "bar": go.Bar(x=["a", "b"], y=[1, 2]),
    "sideways": go.Bar(x=[1, 2], y=["a", "b"], orientation="h"),
    "histogram": go.Histogram(x=[1, 1, 2, 3]),
    "heatmap": go.Heatmap(z=np.eye(12), colorscale="Viridis"),
    "words": go.Heatmap(z=np.eye(2), x=["a", "b"], y=["c", "d"]),
    "contour": go.Contour(z=np.eye(12)),
    "surface": go.Surface(z=np.eye(12)),
    "box": go.Box(y=[1, 2, 3]),
    "image": go.Image(z=np.zeros((3, 3, 3), np.uint8)),
}


@pytest.mark.parametrize("kind", TRACES)
def test_every_kind_of_trace_leaves_a_mark_on_the_poster(kind):
    state = figure_json(go.Figure([TRACES[kind]]))
    png = poster(state, 300)
    alpha = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[..., 3]
    frame = poster({"data": [], "layout": {}}, 300)
    empty = np.asarray(Image.open(io.BytesIO(frame)).convert("RGBA"))[..., 3]
    assert alpha.shape == (300, 720)
    assert (alpha > 0).sum() > (empty > 0).sum() + 100
    assert png == poster(state, 300)


def test_a_grid_of_images_is_on_its_poster():
    state = figure_json(image_grid([np.full((8, 8), 0.5)] * 3, ["a", "b", "c"], 3))
    pixels = np.asarray(Image.open(io.BytesIO(poster(state, 300))).convert("RGBA"))
    assert (np.abs(pixels[..., :3].astype(int) - 128).max(-1) < 6)[
        pixels[..., 3] > 200
    ].sum() > 9000


def test_matplotlib_figures_are_transparent():
    import matplotlib as mpl

    with mpl.rc_context():
        matplotlib_style()
        assert mpl.rcParams["figure.facecolor"] == "none"
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, toolkit.explore\n"
        "heavy = {'torch', 'plotly', 'matplotlib', 'ipywidgets', 'IPython', 'pandas', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_poster_shows_points_as_points_and_their_error_bars():
    """Markers alone are not joined; bars reach above and below, also where they differ."""

    def ink(**trace):
        bare = {"type": "scatter", "mode": "markers", "x": [0, 1, 2], "y": [0, 9, 0]}
        png = poster({"data": [bare | trace]}, 300)
        return int((np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[..., 3] > 0).sum())

    points = ink()
    assert points < 0.8 * ink(mode="lines+markers")
    one_sided = ink(error_y={"array": [0, 0, 9]})
    assert points < one_sided < ink(error_y={"array": [9, 0, 9], "arrayminus": [0, 9, 0]})
    assert points == ink(error_y={"array": [9, 9, 9], "visible": False})
