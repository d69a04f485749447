"""The service: what it finds, what it refuses, what it keeps when it is killed."""

import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
from toolkit.data import load_emoji_shop
from toolkit.search.visual_search import engine as engines
from toolkit.search.visual_search import service
from toolkit.search.visual_search.recipe import PROFILES
from toolkit.search.visual_search.service import BadPicture, decode_picture

PRODUCTS = 30


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model of a few steps."""
    folder = tmp_path_factory.mktemp("shop")
    engines.train_model(folder, replace(PROFILES["quick"], products=PRODUCTS, steps=3, batch=4))
    return folder


class Server:
    """The service in a process of its own."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "toolkit.search.visual_search.service"]
        command += ["--folder", str(folder), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--products", str(PRODUCTS)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.ask("GET", "/health")
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError("the service did not start")

    def ask(self, method, path, body=None):
        """Status and body of a reply."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(model):
    running = Server(model)
    yield running
    running.kill()


def json_of(reply):
    import json

    return json.loads(reply[1])


QUERY = "/search?k=5"


@pytest.mark.slow
def test_a_photograph_is_answered_with_box_categories_times_and_items(server):
    shop = load_emoji_shop(PRODUCTS)
    status, _ = server.ask("GET", "/")
    assert status == 200
    answer = json_of(server.ask("POST", QUERY, png(shop.queries["test"].image[0])))
    x0, y0, x1, y1 = answer["box"]
    assert 0 <= x0 < x1 <= 1
    assert 0 <= y0 < y1 <= 1
    assert len(answer["hits"]) == 5
    assert answer["partial"] is False
    assert {"box and feature", "category", "index"} <= answer["milliseconds"].keys()
    assert sum(p for _, p in answer["categories"]) <= 1.001
    own = json_of(server.ask("POST", QUERY, png(shop.catalogue[8])))
    assert own["hits"][0]["id"] == 8
    assert own["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
    leaf = int(shop.leaf[1])
    within = json_of(server.ask("POST", f"{QUERY}&category={leaf}", png(shop.catalogue[8])))
    assert {hit["category"] for hit in within["hits"]} == {shop.leaves[leaf]}
    assert server.ask("GET", "/items/8")[1].startswith(b"\x89PNG")
    assert server.ask("GET", "/examples/0")[0] == 200


@pytest.mark.slow
def test_items_come_change_and_go(server):
    rng = np.random.default_rng(0)
    picture, other = (
        png(torch.from_numpy(rng.integers(0, 255, (3, 64, 64), np.uint8))) for _ in range(2)
    )
    assert server.ask("POST", "/items/7001?label=noise&category=2", picture)[0] == 201
    assert server.ask("POST", "/items/7001", picture)[0] == 409
    hit = json_of(server.ask("POST", QUERY, picture))["hits"][0]
    assert (hit["id"], hit["label"]) == (7001, "noise")
    assert server.ask("PUT", "/items/7001?label=other", other)[0] == 200
    assert server.ask("PUT", "/items/7002", other)[0] == 404
    hit = json_of(server.ask("POST", QUERY, other))["hits"][0]
    assert (hit["id"], hit["label"]) == (7001, "other")
    assert server.ask("DELETE", "/items/7001")[0] == 200
    assert server.ask("DELETE", "/items/7001")[0] == 404
    assert server.ask("GET", "/items/7001")[0] == 404
    ids = [hit["id"] for hit in json_of(server.ask("POST", QUERY, other))["hits"]]
    assert 7001 not in ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (QUERY, b"", 415, "no bytes"),
        (QUERY, b"not a picture", 415, "PNG"),
        (QUERY, png(torch.zeros(3, 64, 64, dtype=torch.uint8)), 422, "one colour"),
        (QUERY, b"\0" * (service.LARGEST_BODY + 1), 413, "bytes"),
        ("/search?k=0", b"x", 422, "greater"),
        ("/search?k=61", b"x", 422, "less"),
        (f"{QUERY}&category=999", None, 422, "categories are"),
        ("/items/-4", None, 422, "negative"),
    ],
)
def test_bad_requests_are_named(server, path, body, status, message):
    if body is None:
        body = png(load_emoji_shop(PRODUCTS).catalogue[0])
    reply = server.ask("POST", path, body)
    assert reply[0] == status, reply
    assert message in reply[1].decode()
    assert json_of(server.ask("GET", "/health"))["items"] == 6 * PRODUCTS


@pytest.mark.slow
def test_a_killed_service_knows_all_that_it_acknowledged(server, model):
    rng = np.random.default_rng(1)
    pictures = {
        8000 + n: png(torch.from_numpy(rng.integers(0, 255, (3, 64, 64), np.uint8)))
        for n in range(6)
    }
    for item, picture in pictures.items():
        assert server.ask("POST", f"/items/{item}?label=kept", picture)[0] == 201
    assert server.ask("DELETE", "/items/8000")[0] == 200
    assert server.ask("DELETE", "/items/3")[0] == 200
    server.kill()
    again = Server(model)
    try:
        assert json_of(again.ask("GET", "/health"))["items"] == 6 * PRODUCTS + 4
        for item, picture in list(pictures.items())[1:]:
            hit = json_of(again.ask("POST", QUERY, picture))["hits"][0]
            assert (hit["id"], hit["label"]) == (item, "kept")
        assert again.ask("GET", "/items/8000")[0] == 404
        assert again.ask("POST", "/items/3?label=back", pictures[8001])[0] == 201
    finally:
        again.kill()


def test_pictures_are_guarded():
    with pytest.raises(BadPicture, match="no bytes"):
        decode_picture(b"")
    with pytest.raises(BadPicture, match="PNG, JPEG, WEBP"):
        decode_picture(b"GIF89a" + b"\0" * 100)
    whole = png(torch.full((3, 64, 64), 7, dtype=torch.uint8))
    with pytest.raises(BadPicture):
        decode_picture(whole[: len(whole) // 2])
    stream = io.BytesIO()
    Image.new("1", (service.LARGEST_SIDE + 1, 9)).save(stream, "PNG")
    with pytest.raises(BadPicture, match="pixels a side"):
        decode_picture(stream.getvalue())
    stream = io.BytesIO()
    Image.new("RGBA", (40, 80), (255, 0, 0, 0)).save(stream, "PNG")
    assert (decode_picture(stream.getvalue()) == 255).all()


def test_the_page_asks_for_nothing_outside():
    from toolkit.search.visual_search.page import PAGE

    assert "http://" not in PAGE
    assert "https://" not in PAGE
