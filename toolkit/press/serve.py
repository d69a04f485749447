"""`toolkit serve`: the site as plain files. `toolkit lab`: JupyterLab with the live pages."""

import errno
import os
import socket
import threading
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
HOST = "127.0.0.1"


def serve(port: int = 8000, open_browser: bool = True, site: Path = SITE) -> None:
    """Serve the built site on this machine until interrupted.

    Args:
        port: 0 takes any free port.
        open_browser: also open the first page.
        site: the folder with `index.html`.

    Raises:
        FileNotFoundError: nothing is built yet.
        OSError: the port is in use.
    """
    with site_server(port, site) as server:
        address = f"http://{HOST}:{server.server_port}/"
        print(f"the book: {address}  (Ctrl-C stops it)", flush=True)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def site_server(port: int = 0, site: Path = SITE) -> ThreadingHTTPServer:
    """A server of the site's files, not yet running; `server_port` says where.

    Raises:
        FileNotFoundError: nothing is built yet.
        OSError: the port is in use.
    """
    _require_site(site)
    _require_port(port, "serve")
    return ThreadingHTTPServer((HOST, port), partial(_Quiet, directory=str(site)))


def lab(port: int = 8888, open_browser: bool = True, root: Path = ROOT) -> None:
    """Run JupyterLab on the checkout until interrupted, with the live pages at `/book/`.

    Args:
        port: of the Jupyter server.
        open_browser: also open JupyterLab.
        root: the folder with `book/` and `_build/html/`.

    Raises:
        OSError: the port is in use.
    """
    from jupyterlab.labapp import LabApp

    _require_port(port, "lab")
    if not (root / "_build" / "html" / "index.html").is_file():
        print("the live pages are not built yet; run: make book")
    os.environ.pop("TOOLKIT_STATIC", None)  # kernels inherit it, and these are live
    LabApp.launch_instance(
        [
            f"--ServerApp.root_dir={root}",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.ip={HOST}",
            f"--ServerApp.open_browser={open_browser}",
            "--ServerApp.allow_root=True",  # as in a container; a token and this machine only
            "--ServerApp.jpserver_extensions={'toolkit.press.server_ext': True}",
            # JupyterLab would look for news and for new versions of itself
            "--LabApp.news_url=None",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            # nor is its extension manager offered: it lists a package index
            "--LabApp.extension_manager=readonly",
        ]
    )


class _Quiet(SimpleHTTPRequestHandler):
    """Files without a line of log each."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass


def _require_site(site: Path) -> None:
    if not (site / "index.html").is_file():
        raise FileNotFoundError("the book is not built yet; run: make book")


def _require_port(port: int, command: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise OSError(
                f"port {port} is in use; choose another: toolkit {command} --port {port + 1}"
            ) from error
