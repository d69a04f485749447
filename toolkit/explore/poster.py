"""A still sketch of an interactive figure, for paper and for pages without JavaScript."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .figures import COLOURS, theme

WIDTH = 720  # pixels
LEFT, RIGHT = 0.09, 0.97  # of the panels, in widths of the page
BOTTOM, TOP = 0.13, 0.89  # in heights
SYMBOLS = {"square": "s", "diamond": "D", "cross": "P", "x": "X", "line-ew": "_", "line-ns": "|"}
GREY = "#787878"  # about equal contrast on white and on black


def poster(state: dict[str, Any], height: int) -> bytes:
    """A PNG of the figure's lines, points, bars and maps, transparent, the same bytes every time.

    Args:
        state: the figure as plain JSON with numpy arrays.
        height: pixels; the width is 720.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page = Figure(figsize=(WIDTH / 100, height / 100), dpi=100)
    page.patch.set_alpha(0)
    FigureCanvasAgg(page)
    layout = state.get("layout", {})
    panels: dict[tuple[str, str], Any] = {}
    for number, trace in enumerate(state.get("data", [])):
        if trace.get("visible", True) is not True:
            continue
        pair = (trace.get("xaxis", "x"), trace.get("yaxis", "y"))
        if pair not in panels:
            panels[pair] = _panel(page, layout, *pair)
        draw = SKETCHES.get(trace.get("type", "scatter"), _scatter)
        draw(panels[pair], trace, COLOURS[number % len(COLOURS)])
    for (x, y), axes in panels.items():
        _finish(axes, layout, x, y)
    _make_room(page, list(panels.values()))
    _pictures(panels, layout)
    _notes(page, panels, layout)
    buffer = io.BytesIO()
    page.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return _smaller(buffer.getvalue())


def _panel(page: Any, layout: dict, x: str, y: str) -> Any:
    """Axes in the place that plotly's two domains give them."""
    x0, x1 = _axis(layout, x).get("domain", [0, 1])
    y0, y1 = _axis(layout, y).get("domain", [0, 1])
    width, height = RIGHT - LEFT, TOP - BOTTOM
    box = (LEFT + width * x0, BOTTOM + height * y0, width * (x1 - x0), height * (y1 - y0))
    axes = page.add_axes(box)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=GREY, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    return axes


def _make_room(page: Any, panels: list[Any]) -> None:
    """Narrow the panels from the left until long names of categories are on the page."""
    renderer = page.canvas.get_renderer()
    least = min((axes.get_tightbbox(renderer).x0 for axes in panels), default=0.0)
    if least >= 0:
        return
    share = 1 - (4 - least) / WIDTH / (RIGHT - LEFT)
    for axes in panels:
        box = axes.get_position()
        left = RIGHT - (RIGHT - box.x0) * share
        axes.set_position((left, box.y0, box.width * share, box.height))


def _axis(layout: dict, name: str) -> dict:
    """The settings of axis ``"x2"`` stand in the layout under ``"xaxis2"``."""
    return layout.get(f"{name[0]}axis{name[1:]}", {})


def _finish(axes: Any, layout: dict, x: str, y: str) -> None:
    """Scales, ranges and titles of one panel."""
    for name in (x, y):
        settings, letter = _axis(layout, name), name[0]
        if settings.get("type") == "log":
            getattr(axes, f"set_{letter}scale")("log")
        limits = settings.get("range")
        if limits is not None and all(isinstance(v, (int, float)) for v in limits):
            ends = [10.0**v for v in limits] if settings.get("type") == "log" else limits
            getattr(axes, f"set_{letter}lim")(ends)
        elif settings.get("autorange") == "reversed":
            getattr(axes, f"invert_{letter}axis")()
        if "tickvals" in settings:
            places = list(settings["tickvals"])
            texts = settings.get("ticktext", [f"{place:g}" for place in places])
            getattr(axes, f"set_{letter}ticks")([], minor=True)
            getattr(axes, f"set_{letter}ticks")(places, [_text(text) for text in texts])
        title = _text(settings.get("title"))
        getattr(axes, f"set_{letter}label")(title, color=GREY, fontsize=9)
        if settings.get("visible") is False:
            getattr(axes, f"get_{letter}axis")().set_visible(False)
            axes.spines[["bottom" if letter == "x" else "left"]].set_visible(False)
    if (x, y) == ("x", "y") and layout.get("title"):
        axes.set_title(
            _text(layout["title"]).replace("\n", " "), color=GREY, fontsize=10, loc="left", pad=22
        )
    if len(axes.get_legend_handles_labels()[1]) > 1 and layout.get("showlegend", True):
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=4,
            frameon=False,
            fontsize=8,
            labelcolor=GREY,
        )


def _text(title: Any) -> str:
    """A title in lines, without its HTML tags and without dollar signs, which matplotlib reads."""
    text = title.get("text", "") if isinstance(title, dict) else title or ""
    lines = re.sub(r"\s*<br ?/?>\s*", "\n", str(text))
    return re.sub(r"<[^>]+>", "", lines).replace("$", r"\$")


def _scatter(axes: Any, trace: dict, colour: str) -> None:
    x, y = _xy(trace)
    line, marker = trace.get("line", {}), trace.get("marker", {})
    mode = trace.get("mode") or "lines"
    stroke = _colour(line.get("color"), colour)
    points = _colour(marker.get("color"), stroke)
    dashes = {"dash": "--", "dot": ":", "dashdot": "-."}.get(line.get("dash", ""), "-")
    size = marker.get("size", 6)
    symbol = SYMBOLS.get(str(marker.get("symbol", "")).removesuffix("-open"), "o")
    is_stroke = symbol in "_|"
    named = trace.get("name") if trace.get("showlegend", True) else None
    if trace.get("fill") in ("tozeroy", "toself", "tonexty") and len(y):
        tint = _colour(trace.get("fillcolor"), colour)
        if trace["fill"] == "tozeroy":
            axes.fill_between(x, y, color=tint, alpha=0.2, linewidth=0)
        elif trace["fill"] == "toself":
            axes.fill(x, y, color=tint, alpha=0.2, linewidth=0)
    for axis, error in (("xerr", trace.get("error_x")), ("yerr", trace.get("error_y"))):
        if (reach := _reach(error, len(y))) is not None:
            axes.errorbar(x, y, fmt="none", ecolor=stroke, elinewidth=1, **{axis: reach})
    axes.plot(
        x,
        y,
        linestyle=dashes if "lines" in mode else "none",
        color=stroke,
        linewidth=line.get("width", 2) * 0.7,
        marker=symbol if "markers" in mode else "",
        markersize=0.7 * (size if isinstance(size, (int, float)) else 6),
        markerfacecolor=points,
        markeredgecolor=points if is_stroke else "none",
        markeredgewidth=marker.get("line", {}).get("width", 1) if is_stroke else 1,
        alpha=trace.get("opacity", 1),
        label=_text(named) if named else None,
        drawstyle={"hv": "steps-post", "vh": "steps-pre", "hvh": "steps-mid"}.get(
            line.get("shape", ""), "default"
        ),
    )


def _reach(error: dict | None, points: int) -> np.ndarray | None:
    """How far an error bar reaches down and up from each point, if the trace has such bars."""
    if not error or "array" not in error or error.get("visible") is False:
        return None
    up = np.asarray(error["array"], dtype=float)
    down = np.asarray(error.get("arrayminus", up), dtype=float)
    return np.nan_to_num(np.stack([down, up])) if up.shape == down.shape == (points,) else None


def _bar(axes: Any, trace: dict, colour: str) -> None:
    x, y = _xy(trace)
    named = _text(trace.get("name")) or None
    given = trace.get("marker", {}).get("color")
    each = isinstance(given, list | tuple)
    tint = [_colour(one, colour) for one in given] if each else _colour(given, colour)
    shown = {"color": tint, "alpha": trace.get("opacity", 0.85), "label": named}
    if trace.get("orientation") == "h":
        axes.barh(y, x, **shown)
    else:
        axes.bar(x, y, **shown)


def _histogram(axes: Any, trace: dict, colour: str) -> None:
    values = np.asarray(trace.get("x", trace.get("y", [])), dtype=float)
    bins = trace.get("nbinsx") or 30
    axes.hist(values[np.isfinite(values)], bins=bins, color=colour, alpha=0.7)


def _map(axes: Any, trace: dict, colour: str) -> None:
    z = np.asarray(trace["z"], dtype=float)
    if z.ndim != 2:
        return
    rows, columns = z.shape
    x = _centres(trace.get("x"), columns)
    y = _centres(trace.get("y"), rows)
    limits = {"vmin": trace.get("zmin"), "vmax": trace.get("zmax")}
    if trace.get("type") == "contour":
        axes.contourf(x, y, z, levels=12, cmap=_colormap(trace), **limits)
    else:
        axes.pcolormesh(x, y, z, cmap=_colormap(trace), shading="nearest", **limits)


def _colormap(trace: dict) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    scale = trace.get("colorscale")
    if not isinstance(scale, list):
        scale = theme()["colorscale"]["sequential"]
    tints = [(at, _colour(c, GREY, see_through=True)) for at, c in scale]
    colormap = LinearSegmentedColormap.from_list("scale", tints)
    return colormap.reversed() if trace.get("reversescale") else colormap


def _image(axes: Any, trace: dict, colour: str) -> None:
    if isinstance(trace.get("source"), str):
        axes.imshow(_decoded(trace["source"]), aspect="auto")
    elif "z" in trace:
        axes.imshow(np.asarray(trace["z"]).astype(np.uint8), aspect="auto")


def _box(axes: Any, trace: dict, colour: str) -> None:
    values = np.asarray(trace.get("y", trace.get("x", [])), dtype=float)
    if values.size:
        place = len(axes.get_children())
        axes.plot(np.full(values.size, place), values, "o", color=colour, alpha=0.4, markersize=3)


SKETCHES: dict[str, Callable[[Any, dict, str], None]] = {
    "scatter": _scatter,
    "scattergl": _scatter,
    "scatter3d": _scatter,
    "bar": _bar,
    "histogram": _histogram,
    "heatmap": _map,
    "contour": _map,
    "surface": _map,
    "image": _image,
    "box": _box,
    "violin": _box,
}


def _pictures(panels: dict[tuple[str, str], Any], layout: dict) -> None:
    """Images laid over axes."""
    for picture in layout.get("images", []):
        axes = panels.get((picture.get("xref", ""), picture.get("yref", "")))
        if axes is None:
            continue
        pixels = _decoded(picture["source"])
        x, y = picture["x"], picture["y"]
        stretched = picture.get("sizing") == "stretch"
        scale = min(picture["sizex"] / pixels.shape[1], picture["sizey"] / pixels.shape[0])
        width = picture["sizex"] if stretched else pixels.shape[1] * scale
        height = picture["sizey"] if stretched else pixels.shape[0] * scale
        limits = axes.get_xlim(), axes.get_ylim()
        down = (
            -1 if limits[1][0] < limits[1][1] else 1
        )  # what lies below has smaller values, or not
        x, y = x + (picture["sizex"] - width) / 2, y + down * (picture["sizey"] - height) / 2
        axes.imshow(
            pixels,
            extent=(x, x + width, y + down * height, y),
            aspect="auto" if stretched else "equal",
            zorder=-1 if picture.get("layer") == "below" else 0,
        )
        axes.set(xlim=limits[0], ylim=limits[1])


def _notes(page: Any, panels: dict[tuple[str, str], Any], layout: dict) -> None:
    """Annotations in the units of some axes, or in shares of the whole plotting area."""
    for note in layout.get("annotations", []):
        pair = (note.get("xref", "x"), note.get("yref", "y"))
        if not all(isinstance(note.get(k), (int, float)) for k in "xy"):
            continue
        below = "top" if note.get("yanchor") == "top" else "bottom"
        shown = {"color": GREY, "fontsize": 8, "ha": "center", "va": below}
        text = _text(note.get("text"))
        if pair in panels:
            panels[pair].text(note["x"], note["y"], text, **shown)
        elif pair == ("paper", "paper"):
            x, y = LEFT + (RIGHT - LEFT) * note["x"], BOTTOM + (TOP - BOTTOM) * note["y"]
            page.text(x, y, text, **shown)


def _decoded(uri: str) -> np.ndarray:
    from PIL import Image

    png = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def _xy(trace: dict) -> tuple[Any, Any]:
    """Both coordinates; the missing one counts from zero."""
    x, y = trace.get("x"), trace.get("y")
    if x is None:
        x = np.arange(len(y) if y is not None else 0)
    if y is None:
        y = np.arange(len(x))
    return _gaps(x), _gaps(y)


def _gaps(values: Any) -> Any:
    """None becomes NaN among numbers; texts stay."""
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        return ["" if value is None else str(value) for value in values]


def _centres(values: Any, count: int) -> np.ndarray:
    """Coordinates of a map's cells, where they are given as numbers."""
    given = _gaps(values) if values is not None else []
    return given if isinstance(given, np.ndarray) and given.size == count else np.arange(count)


def _colour(value: Any, otherwise: str, see_through: bool = False) -> Any:
    """Matplotlib's reading of one CSS colour, else the fall-back."""
    from matplotlib.colors import is_color_like

    if isinstance(value, str):
        found = re.fullmatch(r"rgba?\(([^)]+)\)", value.replace(" ", ""))
        if found:
            parts = [float(part) for part in found[1].split(",")]
            return *(part / 255 for part in parts[:3]), *(parts[3:] if see_through else ())
        if is_color_like(value):
            return value
    return otherwise


def _smaller(png: bytes) -> bytes:
    """The same picture with a palette of 128 colours, a third of the size."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).quantize(128, method=Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
