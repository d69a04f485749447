"""The one look of every figure, and figures made of images."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

THEME_FILE = Path(__file__).parent / "static" / "explorable-theme.js"
HEIGHT = 400  # pixels, where a figure does not set its own


@lru_cache
def theme() -> dict[str, Any]:
    """Colours and layout shared by Python and the page, from ``static/explorable-theme.js``."""
    text = THEME_FILE.read_text(encoding="utf-8")
    return json.loads(text[text.index("= {") + 2 : text.rindex(";")])


def template(mode: str = "light") -> dict[str, Any]:
    """The plotly template of one theme: ``"light"`` or ``"dark"``.

    The page builds the same template in ``explorable.js``.
    """
    look, colours = theme(), theme()[mode]
    axis = look["axis"] | {
        "gridcolor": colours["grid"],
        "linecolor": colours["muted"],
        "tickcolor": colours["muted"],
    }
    layout = look["layout"] | {
        "font": look["layout"]["font"] | {"color": colours["ink"]},
        "hoverlabel": {"bgcolor": colours["hover"], "font": {"size": 12, "color": colours["ink"]}},
        "colorway": colours["colours"],
        "colorscale": look["colorscale"],
        "coloraxis": {"colorbar": look["colorbar"]},
        "xaxis": axis,
        "yaxis": axis,
    }
    scale = {"colorscale": look["colorscale"]["sequential"], "colorbar": look["colorbar"]}
    data = {kind: [scale] for kind in look["maps"]}
    errors = {"color": colours["ink"]}
    return {"data": data | {"bar": [{"error_x": errors, "error_y": errors}]}, "layout": layout}


COLOURS: tuple[str, ...] = tuple(theme()["light"]["colours"])
INK: str = theme()["light"]["ink"]
MUTED: str = theme()["light"]["muted"]


def faded(colour: str, alpha: float = 0.2) -> str:
    """The colour ``#RRGGBB`` at opacity ``alpha``, for bands and areas.

    Raises:
        ValueError: ``colour`` is not of the form ``#RRGGBB`` or ``alpha`` is outside [0, 1].
    """
    if not (colour.startswith("#") and len(colour) == 7):
        raise ValueError(f"colour must look like #0072B2, got {colour!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def matplotlib_style() -> None:
    """Set matplotlib's defaults so that its figures read on light and on dark pages.

    Transparent background, grey text of about equal contrast on white and on black, and the
    colours of the interactive figures.
    """
    import matplotlib as mpl
    from cycler import cycler

    grey = "#787878"
    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.facecolor": "none",
            "axes.edgecolor": grey,
            "axes.labelcolor": grey,
            "axes.titlecolor": grey,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.facecolor": "none",
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "grid.color": grey,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "legend.labelcolor": grey,
            "savefig.facecolor": "none",
            "text.color": grey,
            "xtick.color": grey,
            "ytick.color": grey,
        }
    )


def image_grid(images: Sequence[Any], captions: Sequence[str], columns: int) -> Figure:
    """A grid of images with a caption below each, as one plotly figure.

    Args:
        images: arrays or CPU tensors of shape [H, W], [H, W, 3 or 4], or [1, 3 or 4, H, W];
            ``uint8`` in 0…255 or floats in 0…1 (clipped).
        captions: one short text an image; "" for none.
        columns: images in a row; up to 6 stay readable on a phone.

    Raises:
        ValueError: no image, another number of captions, a bad shape, or ``columns`` below 1.
    """
    from plotly.graph_objects import Figure

    if len(images) == 0 or len(images) != len(captions):
        raise ValueError(
            f"one caption an image: got {len(images)} images, {len(captions)} captions"
        )
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    pixels = [_pixels(image) for image in images]
    tallest = max(p.shape[0] / p.shape[1] for p in pixels)
    line = 0.26 if any(captions) else 0.06  # room for the caption, in image widths
    step = tallest + line
    pictures, notes = [], []
    for i, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        x, y = i % columns, -(i // columns) * step
        pictures.append(
            {
                "source": _data_uri(image),
                "xref": "x",
                "yref": "y",
                "x": x + 0.03,
                "y": y,
                "sizex": 0.94,
                "sizey": 0.94 * tallest,
                "sizing": "contain",
                "layer": "above",
            }
        )
        notes.append(
            {
                "text": caption,
                "x": x + 0.5,
                "y": y - 0.94 * tallest - 0.01,
                "yanchor": "top",
                "showarrow": False,
                "font": {"size": 12},
            }
        )
    figure = Figure(
        layout={
            "images": pictures,
            "annotations": [note for note in notes if note["text"]],
            "xaxis": {"visible": False, "range": [0, columns], "fixedrange": True},
            "yaxis": {
                "visible": False,
                "range": [-rows * step, 0],
                "scaleanchor": "x",
                "fixedrange": True,
            },
            "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
            "height": round(min(640, max(120, 720 / columns * step * rows, 110 * rows))),
        }
    )
    # plotly draws the axes, and with them the images, only where there is a trace
    figure.add_scatter(x=[0, columns], y=[0, -rows * step], mode="markers", opacity=0)
    figure.update_traces(hoverinfo="skip", showlegend=False)
    return figure


def _pixels(image: Any) -> np.ndarray:
    """The image as uint8 [H, W, 3 or 4]."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] not in (3, 4) or 0 in array.shape:
        raise ValueError(
            "an image must be [H, W], [H, W, 3 or 4] or [1, 3 or 4, H, W], "
            f"got shape {np.shape(image)}"
        )
    if array.dtype != np.uint8:
        array = (np.clip(np.nan_to_num(array.astype(float)), 0, 1) * 255).round().astype(np.uint8)
    return array


def _data_uri(pixels: np.ndarray) -> str:
    """A PNG whose small images are enlarged by whole pixels, since browsers would blur them."""
    from PIL import Image

    factor = max(1, 112 // max(pixels.shape[:2]))
    enlarged = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(enlarged).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
