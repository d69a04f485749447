"""A real browser for the tests. What would leave this machine is stopped and fails the test."""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from playwright.sync_api import Browser, Error, Page, Request, sync_playwright

from toolkit.press.build import SITE
from toolkit.press.serve import site_server

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "the browser tests need Chromium: as root `apt-get install -y chromium`, "
    "or `.venv/bin/playwright install chromium`"
)
ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
]
TOKEN = "test"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium: one on the PATH, else Playwright's own.

    Raises:
        RuntimeError: there is none; the message says how to install one.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    arguments = ARGUMENTS + ["--no-sandbox"] * (os.geteuid() == 0)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=arguments)
        except Error as error:
            raise RuntimeError(MISSING) from error
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, *, own: bool = True, **options) -> Iterator[Page]:
    """A page in a fresh context; on leaving, the test fails if it complained or reached out.

    `page.problems` collects requests that would leave this machine and, where the page is our
    `own` and not JupyterLab's, console errors, exceptions and failed requests.
    """
    context = browser.new_context(**(DESKTOP | options))
    page = context.new_page()
    problems = page.problems = []
    context.route("**/*", functools.partial(_only_here, problems))
    page.on("websocket", lambda s: _is_here(s.url) or problems.append(f"outside socket: {s.url}"))
    if own:
        page.on("console", lambda m: m.type == "error" and problems.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
        page.on("response", lambda r: r.status >= 400 and problems.append(f"{r.status}: {r.url}"))
    try:
        yield page
        assert not page.problems, "\n".join(page.problems)
    finally:
        context.close()


def _only_here(problems: list[str], route, request: Request) -> None:
    if _is_here(request.url):
        return route.continue_()
    problems.append(f"outside request: {request.url}")
    return route.abort()


def _is_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("file", "data", "blob") or parts.hostname in ("127.0.0.1", "localhost")


@contextmanager
def served(site: Path = SITE) -> Iterator[str]:
    """The site over plain HTTP; gives its address without a slash at the end."""
    server = site_server(0, site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def lab_server(root: Path, folder: Path) -> Iterator[str]:
    """JupyterLab with the live pages on the checkout ``root``; gives its address.

    On leaving, the server is asked to end and must take its kernels with it.

    Args:
        root: with ``book/`` and ``_build/html/``.
        folder: an empty one, for Jupyter's own settings.
    """
    port = free_port()
    code = (
        "from pathlib import Path; from toolkit.press.serve import lab; "
        f"lab({port}, open_browser=False, root=Path({str(root)!r}))"
    )
    kinds = ("CONFIG", "RUNTIME", "DATA")
    places = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in kinds}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(folder), "JUPYTERLAB_WORKSPACES_DIR": str(folder)}
    with open(folder / "server.log", "w") as log:
        server = psutil.Popen(
            [sys.executable, "-c", code],
            env=os.environ | places | {"JUPYTER_TOKEN": TOKEN},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            await_server(server, port, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            end_tree(server)


def await_server(server: psutil.Popen, port: int, log: Path, path: str = "/login") -> None:
    for _ in range(240):
        if server.poll() is not None:
            break
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}"):
            return
        time.sleep(0.25)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def end_tree(server: psutil.Popen) -> None:
    """Terminate the server; whatever of its tree outlives it by 30 s is killed and reported."""
    tree = [server, *server.children(recursive=True)] if server.poll() is None else []
    if tree:
        server.terminate()
    _, left = psutil.wait_procs(tree, timeout=30)
    commands = [" ".join(process.cmdline()) for process in left if process.is_running()]
    for process in left:
        process.kill()
    assert not left, f"outlived the server: {commands}"


def sessions(address: str) -> list[dict]:
    """The server's running sessions."""
    with urllib.request.urlopen(f"{address}/api/sessions?token={TOKEN}") as answer:
        return json.load(answer)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --------------------------------------------------------------------------------- explorables


def draw_all(page: Page) -> int:
    """Scroll to every figure and wait until it is drawn; how many there are."""
    figures = page.locator(".explorable")
    for i in range(figures.count()):
        figures.nth(i).scroll_into_view_if_needed()
        page.wait_for_function(
            "i => document.querySelectorAll('.explorable')[i].matches('.is-drawn')", arg=i
        )
    return figures.count()


def drawn(page: Page, number: int) -> str:
    """What plotly holds of one figure: its data and the parts of the layout that may change."""
    return page.evaluate(
        """number => {
          const plot = document.querySelectorAll('.explorable')[number]
            .querySelector('.explorable-plot');
          const plain = (key, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
          const { template, ...layout } = plot.layout;
          return JSON.stringify([plot.data, layout], plain);
        }""",
        number,
    )


def settled(page: Page, number: int) -> None:
    """Wait until the figure shows what its controls say."""
    page.wait_for_function(
        """number => {
          const element = document.querySelectorAll('.explorable')[number];
          const { busy, positions } = element.explorable;
          return !busy && element.dataset.drawn === JSON.stringify(positions);
        }""",
        arg=number,
    )


def font_colours(page: Page) -> list[str]:
    """The text colour of every drawn figure."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.explorable.is-drawn .explorable-plot')]
          .map((plot) => plot._fullLayout.font.color)"""
    )
