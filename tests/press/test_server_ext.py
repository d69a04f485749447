"""The site inside a Jupyter server: behind its login, under its policy; and as plain files."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from http.cookiejar import CookieJar

import pytest

from tests.book.browser import TOKEN, await_server, end_tree, free_port, psutil, served
from toolkit.press.serve import lab, serve, site_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    pages = root / "_build" / "html" / "book"
    pages.mkdir(parents=True)
    (root / "secret.txt").write_text("not for readers")
    (pages.parent / "index.html").write_text("<h1>The book</h1>")
    (pages / "intro.html").write_text("<h1>Intro</h1>")
    return root


@pytest.fixture(scope="module")
def server(checkout, tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("jupyter"), free_port()
    command = [
        *(sys.executable, "-m", "jupyter_server", f"--ServerApp.root_dir={checkout}"),
        *(f"--ServerApp.port={port}", "--ServerApp.open_browser=False", "--allow-root"),
        *("--ServerApp.base_url=/user/ann/", "--ServerApp.ip=127.0.0.1"),
        "--ServerApp.jpserver_extensions={'toolkit.press.server_ext': True}",
    ]
    places = {f"JUPYTER_{kind}_DIR": str(folder) for kind in ("CONFIG", "RUNTIME")}
    with open(folder / "log", "w") as log:
        environment = os.environ | places | {"JUPYTER_TOKEN": TOKEN}
        process = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            await_server(process, port, folder / "log", "/user/ann/login")
            yield f"http://127.0.0.1:{port}/user/ann/book"
        finally:
            end_tree(process)


def fetch(address):
    jar = CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    with opener.open(address) as answer:
        return answer, answer.read().decode(), {cookie.name for cookie in jar}


def test_a_page_is_served_below_the_base_address_with_its_policy(server):
    answer, text, cookies = fetch(f"{server}/book/intro.html?token={TOKEN}")
    assert text == "<h1>Intro</h1>"
    policy = answer.headers["Content-Security-Policy"]
    host = server.split("/")[2]
    assert "default-src 'self'" in policy
    assert f"connect-src 'self' ws://{host} wss://{host} data: blob:" in policy
    assert "sandbox" not in policy
    assert "_xsrf" in cookies


def test_the_folder_leads_to_the_first_page(server):
    for address in (server, f"{server}/"):
        assert fetch(f"{address}?token={TOKEN}")[1] in ("<h1>The book</h1>",)


def test_without_the_token_there_is_only_the_login(server):
    answer, text, _ = fetch(f"{server}/book/intro.html")
    assert "/user/ann/login" in answer.url
    assert "<h1>Intro</h1>" not in text


@pytest.mark.parametrize("path", ["book/none.html", "../../secret.txt", "%2e%2e/%2e%2e/secret.txt"])
def test_what_is_not_of_the_site_is_not_found(server, path):
    with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
        fetch(f"{server}/{path}?token={TOKEN}")


def test_a_site_that_is_not_built_says_so(server, checkout):
    index = checkout / "_build" / "html" / "index.html"
    text = index.read_text()
    index.unlink()
    try:
        with pytest.raises(urllib.error.HTTPError) as error:
            fetch(f"{server}/book/intro.html?token={TOKEN}")
        assert error.value.code == 404
        assert "make book" in error.value.read().decode()
    finally:
        index.write_text(text)


def test_plain_serving_gives_the_files(checkout):
    with served(checkout / "_build" / "html") as address:
        assert fetch(f"{address}/book/intro.html")[1] == "<h1>Intro</h1>"


def test_serving_nothing_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="make book"):
        serve(0, open_browser=False, site=tmp_path)


def test_a_port_in_use_names_the_next(checkout):
    site = checkout / "_build" / "html"
    with site_server(0, site) as first:
        port = first.server_port
        with pytest.raises(OSError, match=rf"port {port} is in use.*serve --port {port + 1}"):
            serve(port, open_browser=False, site=site)
        with pytest.raises(OSError, match=rf"port {port} is in use.*lab --port {port + 1}"):
            lab(port, open_browser=False, root=checkout)
