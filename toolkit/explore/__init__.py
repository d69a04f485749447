"""Interactive figures that live in a kernel and in a page without one.

In a chapter (the figure is the last line of its cell)::

    from toolkit.explore import COLOURS, INK, MUTED, Explorable, Values, faded
    import plotly.graph_objects as go

    def compute(lr, momentum):              # plain Python values in, anything out; deterministic
        return trajectory(lr, momentum)     # seeded and quick: it runs once a state

    def draw(result, lr, momentum):         # the result and the same controls
        fig = go.Figure(go.Scatter(x=result.steps, y=result.loss, name="loss"))
        return fig.update_layout(xaxis_title="Step", yaxis_title="Loss")

    Explorable(
        compute,
        dict(
            lr=Values(np.geomspace(0.01, 1, 20), "Learning rate", start=0.01),
            momentum=Values([0, 0.5, 0.9], "Momentum"),
        ),
        draw,
        alt="Loss against steps: a high learning rate diverges.",
    )

- ``Values(values, label, start=None)``: numbers make a slider, texts (``["SGD", "Adam"]``) or
  booleans a choice. ``start`` is one of the values, by default the first. ``continuous=True`` says
  that ``compute`` also accepts numbers in between; the live page then offers them. Leave it out
  where ``compute`` looks a value up.
- The site stores every state: at most 400 (the product of the controls), at most 250 kB packed.
  As a guide, 100 states of one line of 200 points need 30 kB, of a noisy 28 × 28 heatmap 200 kB.
  Prefer 20-60 states; what no control changes is computed outside ``compute``.
- A kernel of ``toolkit run`` computes the first state only.
- Colours: set none and get the colour-blind-safe cycle; else ``COLOURS[i]``, ``INK`` (text,
  reference lines), ``MUTED`` (secondary), ``faded(colour, 0.2)`` (bands). These change with the
  page's theme; other colours stay. Use ``plotly.graph_objects``: ``plotly.express`` writes its
  own colours.
- Fix the axes' ranges (``range=[…]``), or the picture jumps while the slider moves. Titles carry
  units. Labels are plain text or HTML (``m<sub>t</sub>``), no LaTeX. The legend is on top.
  ``layout.height`` is 400 pixels unless set; leave the width free. On a phone panels side by side
  (one row of ``make_subplots``) stand below each other by themselves.
- ``alt`` is read out and printed as the caption: say what is plotted and the one thing to notice.

Further:

- ``show_figure(fig, alt)``: any plotly figure without controls. Never leave a bare figure.
- ``image_grid(images, captions, columns)``: a plotly figure of images ([H, W], [H, W, 3] or
  [3, H, W]; uint8 or floats in 0…1); wrap it in ``show_figure``, or return it from ``draw``.
- ``show(obj)``: the source of a function or class with its file and line.
- ``Prediction(question, options, answer, because)``: predict first, then reveal; ``answer`` is the
  right option's text or place; ``$…$`` is mathematics.
- ``matplotlib_style()``: call once before matplotlib figures; they then read on light and dark
  pages. Prefer plotly; matplotlib is for what plotly cannot draw.
"""

from .explorable import Explorable, Values, show_figure
from .figures import COLOURS, INK, MUTED, faded, image_grid, matplotlib_style
from .prediction import Prediction
from .show import show

__all__ = [
    "COLOURS",
    "INK",
    "MUTED",
    "Explorable",
    "Prediction",
    "Values",
    "faded",
    "image_grid",
    "matplotlib_style",
    "show",
    "show_figure",
]
