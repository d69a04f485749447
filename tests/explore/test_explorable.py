"""One figure in three places: the site, a kernel, and the site with a kernel."""

import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest

from toolkit.explore import Explorable, Values, explorable, show_figure
from toolkit.explore.explorable import EXPLORABLE, FIGURE, PLOTLY

X = np.linspace(0, 1, 30)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("TOOLKIT_STATIC", "1")


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.delenv("TOOLKIT_STATIC", raising=False)


@pytest.fixture
def live_page(monkeypatch):
    monkeypatch.setattr(explorable, "_live_page", None)
    explorable.bridge()


def power(k, sign):
    power.calls += 1
    return X**k * (1 if sign == "plus" else -1)


power.calls = 0


def line(y, k, sign):
    return go.Figure(go.Scatter(x=X, y=y, name=sign), layout={"title": f"k = {k}"})


def powers(compute=power, draw=line, **controls):
    controls = controls or {
        "k": Values([1, 2, 3], "Exponent", start=2),
        "sign": Values(["plus", "minus"], "Sign"),
    }
    return Explorable(compute, controls, draw, alt='Powers of x, "signed"')


def bundle(figure):
    return figure._repr_mimebundle_()


def test_the_site_gets_one_element_without_a_script(site):
    data = bundle(powers())
    assert set(data) == {"text/html", "image/png", "text/plain"}
    page = data["text/html"]
    assert "<script" not in page
    assert 'role="img"' in page
    assert "http" not in page
    spec = json.loads(re.search(r'data-spec="([^"]*)"', page)[1].replace("&quot;", '"'))
    assert [c["kind"] for c in spec["controls"]] == ["slider", "choice"]
    assert spec["controls"][0]["start"] == 1
    assert spec["alt"] == 'Powers of x, "signed"'
    assert data["text/plain"].startswith("Explorable: Powers")


def test_the_site_gets_the_same_bytes_every_time(site):
    assert bundle(powers()) == bundle(powers())


def test_a_figure_without_controls_is_packed_the_same_way(site):
    data = bundle(show_figure(go.Figure(go.Bar(y=[1, 2])), alt="Two bars"))
    assert 'class="explorable"' in data["text/html"]


def test_a_kernel_computes_the_first_state_only(kernel):
    power.calls = 0
    data = bundle(powers())
    assert power.calls == 1
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "text/html" not in data


def test_a_kernel_shows_a_plain_figure_without_widgets(kernel):
    data = bundle(show_figure(go.Figure(go.Bar(y=[1, 2])), alt="Two bars"))
    assert set(data) == {PLOTLY, "text/plain"}
    assert data[PLOTLY]["layout"]["template"]["layout"]["colorway"]


def test_a_moved_widget_draws_the_new_state_and_results_are_remembered(kernel):
    from ipywidgets import Widget, widgets

    before = set(widgets.widget._instances)
    power.calls = 0
    figure = powers()
    made = [w for k, w in widgets.widget._instances.items() if k not in before]
    slider = next(w for w in made if type(w).__name__ == "SelectionSlider")
    out = next(w for w in made if type(w).__name__ == "Output")
    slider.value = 3
    title = out.outputs[0]["data"][PLOTLY]["layout"]["title"]
    assert (title["text"] if isinstance(title, dict) else title) == "k = 3"
    slider.value = 2
    assert power.calls == 2
    assert isinstance(slider, Widget)
    assert figure.start() == {"k": 2, "sign": "plus"}


def test_a_state_that_fails_is_named(site):
    def broken(k, sign):
        raise ZeroDivisionError("no such power")

    with pytest.raises(RuntimeError, match=r"k=1, sign='plus'.*no such power"):
        powers(compute=broken)


def test_a_failing_widget_state_is_shown_and_does_not_end_the_kernel(kernel):
    from ipywidgets import widgets

    def picky(k, sign):
        if k == 3:
            raise ValueError("not three")
        return X

    before = set(widgets.widget._instances)
    powers(compute=picky)
    made = [w for k, w in widgets.widget._instances.items() if k not in before]
    next(w for w in made if type(w).__name__ == "SelectionSlider").value = 3
    out = next(w for w in made if type(w).__name__ == "Output")
    assert "k=3" in out.outputs[0]["text"]
    assert "not three" in out.outputs[0]["text"]


def test_draw_must_return_a_figure(site):
    with pytest.raises(TypeError, match="plotly Figure, got ndarray"):
        powers(draw=lambda y, k, sign: y)


def test_more_than_400_states_are_refused(kernel):
    controls = {
        "k": Values(range(30), "K"),
        "sign": Values([str(i) for i in range(20)], "Sign"),
    }
    with pytest.raises(ValueError, match="30 × 20 = 600 states, allowed are 400"):
        powers(**controls)


def test_more_than_250_kilobytes_are_refused(site):
    noise = np.random.default_rng(0)
    with pytest.raises(ValueError, match="allowed are 250 kB"):
        Explorable(
            lambda k: noise.random((64, 64)),
            {"k": Values(range(100), "K")},
            lambda z, k: go.Figure(go.Heatmap(z=z)),
            alt="Noise",
        )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1], "One"), ValueError, "at least two"),
        (([1, 1], "Twice"), ValueError, "at least two different"),
        (([1, 2], " "), ValueError, "label"),
        (([1, 2], "L", 3), ValueError, "start=3 is none of"),
        (([1, None], "L"), TypeError, "got None"),
        (([1, float("nan")], "L"), TypeError, "finite"),
        (([2, 1], "L", None, True), ValueError, "increasing"),
    ],
)
def test_bad_values_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Values(*arguments)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.1 + 0.2, 0.5], ["0.3", "0.5"]),
        (np.geomspace(1e-5, 1, 6), ["1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]),
        ([10, 20_000], ["10", "20,000"]),
        ([0.9, 0.99, 0.999], ["0.9", "0.99", "0.999"]),
        ([False, True], ["no", "yes"]),
        ([1, "all"], ["1", "all"]),
        ([-1.5, 0.0], ["-1.5", "0"]),
    ],
)
def test_values_are_written_in_few_digits(values, texts):
    assert Values(values, "L").texts == texts


def test_compute_receives_plain_python_values(site):
    kinds = set()

    def note(k):
        kinds.add(type(k))
        return k

    controls = {"k": Values(np.linspace(0, 1, 3), "K")}
    Explorable(note, controls, lambda r, k: go.Figure(go.Bar(y=[k])), alt="One bar")
    assert kinds == {float}


def test_positions_between_values():
    linear = Values([0.0, 1.0, 3.0], "L", continuous=True)
    assert linear.at(1.5) == 2.0
    assert Values([1e-4, 1e-2, 1.0], "L", continuous=True).at(0.5) == pytest.approx(1e-3)
    assert Values([1, 5, 9], "L", continuous=True).at(0.25) == 2
    assert Values([0.0, 1.0], "L").at(0.4) == 0.0


def test_a_live_page_gets_numbers_and_then_figures(live_page, kernel, monkeypatch):
    sent = []
    monkeypatch.setattr("IPython.display.publish_display_data", sent.append)
    power.calls = 0
    first = bundle(powers())
    second = bundle(powers())
    assert power.calls == 0
    assert first[EXPLORABLE]["number"] == 0
    assert second[EXPLORABLE] == {
        "number": 1,
        "alt": 'Powers of x, "signed"',
        "controls": ["k", "sign"],
    }
    explorable.bridge_figure(1, {"k": 2, "sign": 1})
    answer = sent[0][FIGURE]
    assert answer["texts"] == {"k": "3", "sign": "minus"}
    assert answer["figure"]["layout"]["title"]["text"] == "k = 3"
    assert "template" not in answer["figure"]["layout"]


def rows_above(figure):
    state = explorable._without_template(figure)
    return state["layout"]


def test_a_title_and_a_legend_of_several_rows_get_their_room():
    lines = [go.Scatter(y=[1], name=f"setting {i}") for i in range(9)]
    bare = rows_above(go.Figure(lines[:1], {"title": "One line"}))["margin"]["t"]
    legend = rows_above(go.Figure(lines, {"title": "One line"}))["margin"]["t"]
    broken = rows_above(go.Figure(lines, {"title": "Two<br>lines"}))
    own = rows_above(go.Figure(lines, {"title": "One line", "margin": {"t": 7}}))["margin"]["t"]
    assert bare < legend < broken["margin"]["t"]
    assert broken["title"]["pad"]["t"] == 20
    assert own == 7
    assert "margin" not in rows_above(go.Figure(lines))


def test_panels_in_one_row_are_counted_for_the_phone():
    from plotly.subplots import make_subplots

    def columns(figure):
        return explorable._columns(explorable.figure_json(figure))

    row = make_subplots(1, 3, subplot_titles=("a", "b", "c"))
    row.add_scatter(y=[1], row=1, col=2)
    assert columns(row) == 3
    assert rows_above(row)["legend"]["y"] > 1.05
    assert columns(make_subplots(2, 2)) == 1
    assert columns(make_subplots(2, 1)) == 1
    assert columns(make_subplots(specs=[[{"secondary_y": True}]])) == 1
    assert columns(go.Figure(go.Bar(y=[1]))) == 1
    bar_placed = make_subplots(1, 2)
    bar_placed.add_heatmap(z=[[1, 2]], colorbar={"x": 0.4}, row=1, col=1)
    assert columns(bar_placed) == 1
