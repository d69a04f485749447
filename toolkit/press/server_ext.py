"""Serve the built site from the Jupyter server, so that its pages may compute live.

The pages lie at `<base url>/book/`. They share the server's origin, hence its login, and its
content security policy lets them load and call nothing but this server.
"""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import url_path_join
from tornado import web


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "toolkit.press.server_ext"}]


def _load_jupyter_server_extension(server: Any) -> None:
    """Add the book's pages to a running Jupyter server whose root is the checkout."""
    site = Path(server.root_dir) / "_build" / "html"
    base = url_path_join(server.base_url, "book")
    server.web_app.add_handlers(
        ".*",
        [
            (base, web.RedirectHandler, {"url": f"{base}/", "permanent": False}),
            (rf"{base}/(.*)", BookHandler, {"path": str(site), "default_filename": "index.html"}),
        ],
    )
    server.web_app.settings["page_config_hook"] = _without_news
    # jupyter hides a token here that somebody chose, and shows one that it made
    address = urlsplit(server.local_url)._replace(path=f"{base}/").geturl()
    server.log.info("the book with live figures: %s", address)


def _without_news(handler: Any, page_config: dict[str, Any]) -> dict[str, Any]:
    """Even with its news turned off, JupyterLab would ask each new reader about them."""
    page_config.setdefault("disabledExtensions", []).append(
        "@jupyterlab/apputils-extension:announcements"
    )
    return page_config


class BookHandler(JupyterHandler, web.StaticFileHandler):
    """The site's files, for who is logged in."""

    @property
    def content_security_policy(self) -> str:
        """Everything comes from this server; the kernel's socket too."""
        host = self.request.host
        return (
            "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
            f"connect-src 'self' ws://{host} wss://{host} data: blob:; frame-ancestors 'self'"
        )

    @web.authenticated
    async def get(self, path: str, include_body: bool = True) -> None:  # type: ignore[override]
        """Send one file, or say that nothing is built yet."""
        if not (Path(self.root) / "index.html").is_file():
            self.set_status(404)
            self.finish("The book is not built yet; run: make book")
            return
        self.xsrf_token  # noqa: B018 - reading it sets the cookie that live.js sends back
        await web.StaticFileHandler.get(self, path, include_body)

    def compute_etag(self) -> str | None:
        """The file's own hash; JupyterHandler would send none."""
        return web.StaticFileHandler.compute_etag(self)
