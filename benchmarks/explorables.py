"""From a moved slider to the drawn figure: in the site, in the live page, in JupyterLab.

The times are the reader's: a key is pressed in a real browser, and the clock stops at the first
frame that shows another figure. The peer of the packed states is plotly's own way, frames that it
animates, with the same states in the same page.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the browser helpers live with the tests

from tests.book.browser import (
    TOKEN,
    chromium,
    draw_all,
    lab_server,
    opened,
    served,
)
from tests.book.test_lab import await_status, chapters, run_all_cells
from toolkit.press.reader import ROOT

MOVES = 25
TARGETS = {"site": 40, "live page": 100, "JupyterLab": 150}  # milliseconds, at the median

# Both scripts move the first slider there and back, one value at a time, and give milliseconds.
MOVE = """async (moves) => {
  const element = document.querySelector('.explorable:has(input[type=range])');
  const input = element.querySelector('input[type=range]');
  const times = [];
  for (let i = 0; i < moves + 3; i++) {
    const top = Number(input.max), step = Number(input.step);
    const place = (i + 1) % (2 * top);
    input.value = (place <= top ? place : 2 * top - place) - (step < 1 ? 0.25 : 0);
    const begin = performance.now();
    const drawn = new Promise((done) =>
      element.addEventListener('explorable:drawn', done, { once: true }));
    input.dispatchEvent(new Event('input', { bubbles: true }));
    await drawn;
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - begin);
    await new Promise((done) => setTimeout(done, 60));
  }
  return times.slice(3);
}"""
FRAMES = """async (moves) => {
  const { explorable } = document.querySelector('.explorable:has(input[type=range])');
  const [first] = explorable.spec.controls;
  const others = explorable.spec.controls.slice(1);
  const stride = others.reduce((product, { texts }) => product * texts.length, 1);
  const offset = others.reduce((at, { texts, start }) => at * texts.length + start, 0);
  const states = first.texts.map((_, i) => explorable.figureOf(i * stride + offset));
  const plot = document.createElement('div');
  plot.style.height = `${explorable.frame.clientHeight}px`;
  explorable.element.append(plot);
  const frames = states.map(({ data, layout }, i) => ({ name: String(i), data, layout }));
  const { template } = explorable.plot.layout;
  await Plotly.newPlot(plot, states[0].data, { ...states[0].layout, template });
  await Plotly.addFrames(plot, frames);
  const times = [];
  const now = { mode: 'immediate', transition: { duration: 0 }, frame: { duration: 0 } };
  for (let i = 0; i < moves + 3; i++) {
    const begin = performance.now();
    await Plotly.animate(plot, [String((i + 1) % frames.length)], now);
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - begin);
    await new Promise((done) => setTimeout(done, 60));
  }
  plot.remove();
  return times.slice(3);
}"""
WATCH = """() => {
  const plot = () => document.querySelector('.jupyter-widgets.widget-output .js-plotly-plot');
  const shown = () => plot()?.data && JSON.stringify([plot().data, plot().layout.title]);
  addEventListener('keydown', () => {
    const begin = performance.now(), before = shown();
    const look = () => {
      const now = shown();
      if (now && now !== before) globalThis.waited = performance.now() - begin;
      else requestAnimationFrame(look);
    };
    globalThis.waited = null;
    requestAnimationFrame(look);
  }, { capture: true });
}"""


def main() -> None:
    """Print median and 95th percentile of each place beside its target."""
    name = chapters()[0]
    print(f"{name}, {MOVES} moves of its first slider; milliseconds")
    print(f"{'':12}{'median':>8}{'p95':>8}{'target':>8}")
    with chromium() as browser:
        site, frames = in_the_site(browser, name)
        report("site", site)
        report("plotly's own", frames)
        with tempfile.TemporaryDirectory() as folder, lab(Path(folder)) as address:
            report("live page", in_the_live_page(browser, address, name))
            report("JupyterLab", in_jupyterlab(browser, address, name))
    ratio = statistics.median(frames) / statistics.median(site)
    print(f"packed states against plotly's frames: {ratio:.2f} times as fast")


def report(place: str, times: list[float]) -> None:
    median, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    target = TARGETS.get(place)
    verdict = f"{target:8}  {'met' if median <= target else 'MISSED'}" if target else ""
    print(f"{place:12}{median:8.0f}{p95:8.0f}{verdict}")


def lab(folder: Path):
    """JupyterLab on a copy of the book, since it saves what it opens."""
    root, jupyter = folder / "checkout", folder / "jupyter"
    jupyter.mkdir()
    shutil.copytree(ROOT / "book", root / "book")
    (root / "_build").symlink_to(ROOT / "_build")
    return lab_server(root, jupyter)


def in_the_site(browser, name: str) -> tuple[list[float], list[float]]:
    with served() as address, opened(browser) as page:
        page.goto(f"{address}/{name}.html")
        draw_all(page)
        page.locator(".explorable").first.scroll_into_view_if_needed()
        return page.evaluate(MOVE, MOVES), page.evaluate(FRAMES, MOVES)


def in_the_live_page(browser, address: str, name: str) -> list[float]:
    with opened(browser) as page:
        page.goto(f"{address}/book/{name}.html?token={TOKEN}")
        draw_all(page)
        page.get_by_role("button", name="Compute live").click()
        await_status(page, "Live")
        times = page.evaluate(MOVE, MOVES)
        page.get_by_role("button", name="Stop").click()
        return times


def in_jupyterlab(browser, address: str, name: str) -> list[float]:
    with opened(browser, own=False) as page:
        page.goto(f"{address}/lab/tree/{name}.ipynb?token={TOKEN}")
        run_all_cells(page)
        handle = page.locator(".widget-slider .noUi-handle").first
        handle.wait_for(timeout=120_000)
        page.locator(".jupyter-widgets.widget-output .js-plotly-plot").first.wait_for()
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)
        handle.focus()
        page.evaluate(WATCH)
        times = []
        for i in range(MOVES + 3):
            page.keyboard.press("ArrowRight" if i % 8 < 4 else "ArrowLeft")
            page.wait_for_function("globalThis.waited", timeout=20_000)
            times.append(page.evaluate("globalThis.waited"))
            page.wait_for_timeout(100)
        return times[3:]


if __name__ == "__main__":
    main()
