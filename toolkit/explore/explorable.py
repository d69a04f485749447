"""One interactive figure for two places: computed live in a kernel, precomputed in the site."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import HEIGHT, template
from .packing import pack
from .poster import WIDTH, poster

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAX_STATES = 400
MAX_PACKED = 250_000  # characters of base64 in the page
REMEMBERED = 2_000  # results kept in memory
PHONE = 290  # pixels between the axes on a narrow screen
SETTLE = 0.015  # seconds a live slider rests before its figure is computed
PLOTLY = "application/vnd.plotly.v1+json"
EXPLORABLE = "application/vnd.toolkit.explorable+json"  # what the live page listens for
FIGURE = "application/vnd.toolkit.figure+json"


@dataclass(frozen=True)
class Values:
    """What one control may be set to.

    Args:
        values: at least two different numbers (a slider, in this order), or texts or booleans
            (a choice). numpy arrays are welcome; ``compute`` receives plain Python values.
        label: what the reader sees beside the control, with its unit.
        start: the value shown first; by default the first one.
        continuous: ``compute`` also accepts every number between neighbours, so that the live
            page may ask for states the site never stored. Numbers must increase.

    Raises:
        ValueError: fewer than two values, repeated values, no label, a ``start`` outside them.
        TypeError: a value that is neither a finite number, a text nor a boolean.
    """

    values: Sequence[Any]
    label: str
    start: Any = None
    continuous: bool = False

    def __post_init__(self) -> None:
        values = tuple(v.item() if isinstance(v, np.generic) else v for v in self.values)
        object.__setattr__(self, "values", values)
        for value in values:
            _check_value(value)
        if not (isinstance(self.label, str) and self.label.strip()):
            raise ValueError(f"a control needs a label, got {self.label!r}")
        if len(values) < 2 or len(set(values)) < len(values):
            raise ValueError(f"{self.label}: at least two different values, got {values}")
        if self.continuous and not (self.is_numeric and all(a < b for a, b in pairwise(values))):
            raise ValueError(f"{self.label}: continuous values must be increasing numbers")
        self.start_index  # noqa: B018 - raises early where `start` is none of the values

    @property
    def is_numeric(self) -> bool:
        """Whether the values make a slider; otherwise they make a choice."""
        return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values)

    @property
    def start_index(self) -> int:
        """The place of the value shown first."""
        if self.start is None:
            return 0
        for index, value in enumerate(self.values):
            near = self.is_numeric and isinstance(self.start, (int, float, np.number))
            if math.isclose(value, self.start, rel_tol=1e-9) if near else value == self.start:
                return index
        raise ValueError(f"{self.label}: start={self.start!r} is none of {self.values}")

    @property
    def texts(self) -> list[str]:
        """Each value as the reader sees it, in as few digits as tell them apart."""
        if not self.is_numeric:
            return [_word(value) for value in self.values]
        for digits in range(2, 9):
            texts = [_number(value, digits) for value in self.values]
            if len(set(texts)) == len(texts) and _faithful(texts, self.values):
                break
        return texts

    def at(self, position: float) -> Any:
        """The value at a place among the values; between two places where that is allowed."""
        below = int(position)
        share = position - below
        if not self.continuous or share == 0:
            return self.values[round(position)]
        a, b = self.values[below], self.values[below + 1]
        if all(isinstance(v, int) for v in self.values):
            return round(a + (b - a) * share)
        geometric = self.values[0] > 0 and self.values[-1] / self.values[0] > 50
        return a * (b / a) ** share if geometric else a + (b - a) * share


@dataclass(eq=False)
class Explorable:
    """A figure with sliders. Make it the last line of a cell.

    In a kernel it shows widgets that compute. With ``TOOLKIT_STATIC=1``, as the site is built, it
    computes every state and shows one HTML element that the page brings to life by itself.

    Args:
        compute: ``compute(**controls) -> result``; deterministic, its results are remembered.
        controls: the argument's name -> its `Values`; the product has at most 400 states.
        draw: ``draw(result, **controls) -> plotly.graph_objects.Figure``; leave colours and
            fonts to the template or take them from ``COLOURS``, ``INK``, ``MUTED`` and ``faded``.
        alt: what the figure shows, for who cannot see it; also printed as its caption.

    Raises:
        TypeError: an argument of the wrong kind, or ``draw`` returns no plotly figure.
        ValueError: more than 400 states, more than 250 kB packed, or no alt text.
        RuntimeError: ``compute`` or ``draw`` failed; the message names the state.
    """

    compute: Callable[..., Any]
    controls: Mapping[str, Values]
    draw: Callable[..., Figure]
    alt: str
    _results: dict[tuple, Any] = field(default_factory=dict, init=False, repr=False)
    _bundle: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        # Computed here and not when shown: IPython would only print an error raised while showing.
        if _live_page is None:
            self._bundle = static_bundle(self) if static() else live_bundle(self)

    def __repr__(self) -> str:
        ranges = [f"{v.label}: {v.texts[0]} … {v.texts[-1]}" for v in self.controls.values()]
        return f"Explorable: {self.alt}" + "".join(f" [{text}]" for text in ranges)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return self._bundle if _live_page is None else _register(self)

    def figure(self, **state: Any) -> Figure:
        """The figure of one state, given by the values of all controls."""
        key = tuple(state[name] for name in self.controls)
        try:
            if key not in self._results:
                if len(self._results) >= REMEMBERED:
                    self._results.pop(next(iter(self._results)))
                self._results[key] = self.compute(**state)
            figure = self.draw(self._results[key], **state)
        except Exception as error:
            where = ", ".join(f"{name}={value!r}" for name, value in state.items()) or "its figure"
            raise RuntimeError(f"explorable failed at {where}: {error!r}") from error
        if not hasattr(figure, "to_plotly_json"):
            raise TypeError(f"draw must return a plotly Figure, got {type(figure).__name__}")
        return figure

    def start(self) -> dict[str, Any]:
        """The state shown first."""
        return {name: v.values[v.start_index] for name, v in self.controls.items()}

    def states(self) -> Iterator[dict[str, Any]]:
        """All states; the last control changes fastest."""
        for values in product(*(v.values for v in self.controls.values())):
            yield dict(zip(self.controls, values, strict=True))


def show_figure(fig: Figure, alt: str) -> Explorable:
    """One plotly figure without controls, packed, themed and described like an `Explorable`."""
    return Explorable(lambda: None, {}, lambda _: fig, alt)


def static() -> bool:
    """Whether figures are being made for the site."""
    return os.environ.get("TOOLKIT_STATIC") == "1"


# ------------------------------------------------------------------------------------ the site


def static_bundle(explorable: Explorable) -> dict[str, Any]:
    """The element for the page with all states, a still picture, and one line of text."""
    figures = [figure_json(explorable.figure(**state)) for state in explorable.states()]
    height = max(int(figure["layout"].pop("height", HEIGHT)) for figure in figures)
    for figure in figures:
        figure["layout"].pop("width", None)
    first = list(explorable.states()).index(explorable.start())
    picture = base64.b64encode(poster(figures[first], height)).decode()
    blob = pack(figures, MAX_PACKED)
    columns = _columns(figures[0])
    style = f"--height:{height}px;--shape:{height / WIDTH:.2f}"
    style += f";--columns:{columns}" * (columns > 1)
    rows = max(_legend_rows(figure, PHONE) for figure in figures)
    style += f";--rows:{rows - 2}" * (rows > 2)
    style += ";--spare:0rem" * ("images" in figures[0]["layout"])
    return {
        "text/html": _element(explorable, columns, style, blob, picture),
        "image/png": picture,
        "text/plain": repr(explorable),
    }


def _element(explorable: Explorable, columns: int, style: str, blob: str, picture: str) -> str:
    alt = html.escape(explorable.alt)
    spec = {"alt": explorable.alt, "columns": columns, "controls": _controls(explorable)}
    return (
        f'<figure class="explorable" data-spec="{html.escape(json.dumps(spec))}" '
        f'data-blob="{blob}">'
        f'<div class="explorable-figure" role="img" aria-label="{alt}" '
        f'style="{style}">'
        f'<img class="explorable-poster dark-light" alt="" src="data:image/png;base64,{picture}">'
        f"</div><figcaption>{alt}</figcaption></figure>"
    )


def _columns(figure: dict[str, Any]) -> int:
    """How many panels stand in one row, for a phone to stack; 1 where it must not."""
    layout = figure["layout"]
    across = [axis.get("domain", [0, 1]) for name, axis in layout.items() if name[:5] == "xaxis"]
    down = [axis.get("domain", [0, 1]) for name, axis in layout.items() if name[:5] == "yaxis"]
    placed = any("x" in trace.get("colorbar", {}) for trace in figure.get("data", []))
    one_row = all(list(domain) == [0, 1] for domain in down)
    separate = len({start for start, _ in across}) == len(across)
    return max(1, len(across)) if one_row and separate and not placed else 1


def _controls(explorable: Explorable) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "label": values.label,
            "kind": "slider" if values.is_numeric else "choice",
            "texts": values.texts,
            "start": values.start_index,
            "continuous": values.continuous,
        }
        for name, values in explorable.controls.items()
    ]


def figure_json(figure: Figure) -> dict[str, Any]:
    """The figure as plain JSON with numpy arrays, without its template."""
    from plotly.io.json import to_json_plotly

    return _decoded(json.loads(to_json_plotly(_without_template(figure))))


def _without_template(figure: Figure) -> dict[str, Any]:
    """The figure's own part, with room above for its title, its legend and titles of panels."""
    state = figure.to_dict()
    layout = state["layout"]
    layout.pop("template", None)
    notes = layout.get("annotations", [])
    panels = any(note.get("yref") == "paper" and note.get("y", 0) > 0.98 for note in notes)
    if panels:
        layout["legend"] = {"y": 1.1} | layout.get("legend", {})
    if layout.get("title", {}).get("text"):
        lines = 1 + layout["title"]["text"].count("<br>")
        top = 14 + 21 * (lines + _legend_rows(state) + panels)
        if lines > 1:  # plotly draws these 12 pixels higher
            layout["title"] = {"pad": {"t": 20}} | layout["title"]
        layout["margin"] = {"t": top} | layout.get("margin", {})
    return state


def _legend_rows(state: dict[str, Any], width: int = WIDTH - 72) -> int:
    """About how many rows a legend above the figure takes; ``explorable.js`` counts alike."""
    traces = [trace for trace in state["data"] if trace.get("showlegend", True)]
    names = [str(trace["name"]) for trace in traces if trace.get("name")]
    if state["layout"].get("showlegend") is False or len(traces) < 2 or not names:
        return 0
    widest = 52 + 6.5 * max(len(name) for name in names)
    return math.ceil(len(names) / max(1, width // widest))


def _decoded(node: Any) -> Any:
    """Plotly's base64 arrays as numpy arrays."""
    if isinstance(node, list):
        return [_decoded(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "bdata" in node:
        array = np.frombuffer(base64.b64decode(node["bdata"]), node["dtype"])
        shape = node.get("shape", str(array.size))
        return array.reshape([int(n) for n in str(shape).split(",")])
    return {key: _decoded(value) for key, value in node.items()}


# ------------------------------------------------------------------------------------ a kernel


def live_bundle(explorable: Explorable) -> dict[str, Any]:
    """Widgets that compute; only the first state is computed now."""
    first = _plotly_bundle(explorable, explorable.start())
    if not explorable.controls:
        return first
    return _widgets(explorable, first)._repr_mimebundle_() | {"text/plain": repr(explorable)}


def _plotly_bundle(explorable: Explorable, state: dict[str, Any]) -> dict[str, Any]:
    from plotly.io.json import to_json_plotly

    figure = _without_template(explorable.figure(**state))
    look = template()
    # JupyterLab's theme is unknown here: a white card reads on all of them.
    look["layout"] = look["layout"] | {"paper_bgcolor": "#FFFFFF"}
    figure["layout"] = {"height": HEIGHT, "autosize": True} | figure["layout"] | {"template": look}
    figure["config"] = {"responsive": True, "displaylogo": False}
    return {PLOTLY: json.loads(to_json_plotly(figure)), "text/plain": repr(explorable)}


def _widgets(explorable: Explorable, first: dict[str, Any]) -> Any:
    """Sliders and choices above one output, whose content each change replaces."""
    import ipywidgets

    height = first[PLOTLY]["layout"]["height"]
    out = ipywidgets.Output(layout={"min_height": f"{height + 10}px"})
    controls = {name: _control(values) for name, values in explorable.controls.items()}
    pending: asyncio.Task | None = None

    def refresh() -> None:
        state = {name: control.value for name, control in controls.items()}
        try:
            data = _plotly_bundle(explorable, state)
            out.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)
        except Exception as error:
            out.outputs = ({"output_type": "stream", "name": "stderr", "text": f"{error}\n"},)

    async def settle() -> None:
        await asyncio.sleep(SETTLE)
        refresh()

    def changed(_: Any) -> None:
        nonlocal pending
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel loop, as in a test
            return refresh()
        if pending is not None:
            pending.cancel()
        pending = loop.create_task(settle())
        return None

    for control in controls.values():
        control.observe(changed, "value")
    out.outputs = ({"output_type": "display_data", "data": first, "metadata": {}},)
    return ipywidgets.VBox([*controls.values(), out])


def _control(values: Values) -> Any:
    import ipywidgets

    options = list(zip(values.texts, values.values, strict=True))
    shared = {
        "options": options,
        "value": values.values[values.start_index],
        "description": values.label,
        "tooltip": values.label,
        "style": {"description_width": "initial"},
    }
    if not values.is_numeric:
        return ipywidgets.Dropdown(**shared)
    return ipywidgets.SelectionSlider(
        **shared, continuous_update=True, layout={"width": "min(100%, 34rem)"}
    )


# ------------------------------------------------------------------------- the site, with a kernel

_live_page: list[Explorable] | None = None


def bridge() -> None:
    """Begin to serve a page of the site: from now on explorables register and show no widget."""
    global _live_page
    _live_page = []


def _register(explorable: Explorable) -> dict[str, Any]:
    """Tell the page under which number it may ask for this explorable's states."""
    assert _live_page is not None
    if not explorable.controls:
        return {"text/plain": repr(explorable)}
    _live_page.append(explorable)
    ticket = {
        "number": len(_live_page) - 1,
        "alt": explorable.alt,
        "controls": list(explorable.controls),
    }
    return {EXPLORABLE: ticket, "text/plain": repr(explorable)}


def bridge_figure(number: int, positions: dict[str, float]) -> None:
    """Send the page one state; a position between two values asks for a value between them."""
    from IPython.display import publish_display_data
    from plotly.io.json import to_json_plotly

    explorable = (_live_page or [])[number]
    state = {name: v.at(positions[name]) for name, v in explorable.controls.items()}
    figure = json.loads(to_json_plotly(_without_template(explorable.figure(**state))))
    texts = {name: _shown(explorable.controls[name], value) for name, value in state.items()}
    publish_display_data({FIGURE: {"figure": figure, "texts": texts}})


def _shown(values: Values, value: Any) -> str:
    stored = value in values.values
    return values.texts[values.values.index(value)] if stored else _number(value, 3)


# ------------------------------------------------------------------------------------ helpers


def _check(explorable: Explorable) -> None:
    if not callable(explorable.compute) or not callable(explorable.draw):
        raise TypeError("compute and draw must be functions")
    for name, values in explorable.controls.items():
        if not isinstance(values, Values):
            raise TypeError(f"control {name!r} must be Values, got {type(values).__name__}")
    if not (isinstance(explorable.alt, str) and explorable.alt.strip()):
        raise ValueError("alt must say in words what the figure shows")
    count = math.prod(len(values.values) for values in explorable.controls.values())
    if count > MAX_STATES:
        sizes = " × ".join(str(len(v.values)) for v in explorable.controls.values())
        raise ValueError(f"{sizes} = {count} states, allowed are {MAX_STATES}")


def _check_value(value: Any) -> None:
    number = isinstance(value, (int, float))
    if not (isinstance(value, str) or (number and math.isfinite(value))):
        raise TypeError(f"a value must be a finite number, a text or a boolean, got {value!r}")


def _word(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _number(value: float, digits: int) -> str:
    """The number in at most so many significant digits, without needless powers of ten."""
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if 1e-3 <= abs(value) < 1e5 or value == 0:
        text = f"{value:.{max(0, digits - 1 - _exponent(value))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _faithful(texts: list[str], values: Sequence[float]) -> bool:
    """Whether every text is within 1 % of its value, or of its distance from 1 just below 1."""
    errors = [abs(float(t.replace(",", "")) - v) for t, v in zip(texts, values, strict=True)]
    return all(
        error <= 0.01 * (1 - v if 0.5 < v < 1 else abs(v)) + 1e-12
        for error, v in zip(errors, values, strict=True)
    )
