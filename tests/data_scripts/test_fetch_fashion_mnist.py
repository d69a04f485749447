import gzip
import http.server
import struct
import threading

import numpy as np
import pytest

from data_scripts import fashion_mnist, sources
from data_scripts.manifest import Download
from tests.data_scripts.conftest import entry
from toolkit.data import store

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
IDX = b"\x00\x00\x08\x03" + struct.pack(">3I", 2, 3, 4) + PIXELS.tobytes()
WANTED = Download(name="few-idx3-ubyte", **entry("idx", IDX))


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No official address, no installed package, no apt: a test puts back what it needs."""
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(fashion_mnist, "OFFICIAL", "http://127.0.0.1:9")
    monkeypatch.setattr(fashion_mnist, "FOLDER", tmp_path / "installed")
    monkeypatch.setattr(fashion_mnist, "run", refuse)
    return tmp_path


def refuse(command, **_):
    raise sources.FetchError(f"{command[0]} is not installed")


def put(folder, content):
    folder.mkdir(parents=True)
    (folder / "few-idx3-ubyte.gz").write_bytes(gzip.compress(content))


@pytest.fixture
def official(monkeypatch):
    """A web server on this machine in place of the official address."""
    reply = {"content": gzip.compress(IDX)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply["content"])

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(fashion_mnist, "OFFICIAL", address)
    yield reply
    server.shutdown()
    server.server_close()


def test_official_address_comes_first(nowhere, official):
    put(nowhere / "installed", b"never read")
    fashion_mnist.download([WANTED])
    assert sources.verified(WANTED).read_bytes() == IDX


def test_installed_package_is_the_next(nowhere):
    put(nowhere / "installed", IDX)
    fashion_mnist.download([WANTED])
    assert sources.verified(WANTED).read_bytes() == IDX


def test_the_archive_s_package_is_the_last(nowhere, monkeypatch):
    asked = []

    def apt(command, cwd=None, timeout=None):
        asked.append(command[-1])
        if "download" in command:
            (cwd / "dataset.deb").touch()
        if command[0] == "dpkg-deb":
            put(fashion_mnist.Path(command[-1]) / "unpacked", IDX)
        return ""

    monkeypatch.setattr(fashion_mnist, "run", apt)
    monkeypatch.setattr(fashion_mnist, "FOLDER", fashion_mnist.Path("unpacked"))
    fashion_mnist.download([WANTED])
    assert sources.verified(WANTED).read_bytes() == IDX
    assert "dataset-fashion-mnist" in asked
    assert list(store.root().glob(".debian*")) == []


def test_three_failures_are_named_with_advice(nowhere):
    with pytest.raises(sources.FetchError) as caught:
        fashion_mnist.download([WANTED])
    message = str(caught.value)
    assert "http://127.0.0.1:9 does not answer" in message
    assert "few-idx3-ubyte.gz is not there" in message
    assert "apt-get is not installed" in message
    assert "Go online and run `python -m data_scripts fetch fashion_mnist` again" in message
    assert not sources.place(WANTED).exists()


@pytest.mark.parametrize(
    "content",
    [b"<html>", gzip.compress(IDX)[:-9], gzip.compress(IDX[:-1] + b"?")],
    ids=["page", "cut", "replaced"],
)
def test_damaged_reply_falls_through_to_the_next_source(nowhere, official, content):
    official["content"] = content
    put(nowhere / "installed", IDX)
    fashion_mnist.download([WANTED])
    assert sources.verified(WANTED).read_bytes() == IDX


def test_endless_reply_is_cut_off(nowhere, official, monkeypatch):
    official["content"] = gzip.compress(IDX + bytes(2**24))
    with pytest.raises(sources.FetchError, match="SHA-256"):
        fashion_mnist.download([WANTED])


def test_idx_is_read_with_its_shape():
    assert np.array_equal(fashion_mnist.read_idx(IDX), PIXELS)


@pytest.mark.parametrize(
    ("content", "message"), [(b"GIF8" + IDX, "not an IDX"), (IDX[:-1], "do not fill"), (b"", "not")]
)
def test_other_bytes_are_no_idx(content, message):
    with pytest.raises(ValueError, match=message):
        fashion_mnist.read_idx(content)


def test_another_shape_is_refused(tmp_path):
    path = tmp_path / "few"
    path.write_bytes(IDX)
    with pytest.raises(store.DataError, match=r"shape \(2, 3, 4\), expected \(60000, 28, 28\)"):
        fashion_mnist.prepare(tmp_path, dict.fromkeys(fashion_mnist.FILES.values(), path))
