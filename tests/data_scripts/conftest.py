"""A toy data set: one made-up download, one script, in a data folder of the test alone."""

import hashlib
import json
import sys
from types import ModuleType

import numpy as np
import pytest

from data_scripts import manifest, sources

CONTENT = b"published bytes"


def entry(kind, content=CONTENT, **changes):
    about = {"version": "1.0", "licence": "MIT", "author": "A. Author", "url": "https://a.example"}
    pins = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"kind": kind, **about, **pins, **changes}


class Toy:
    """What a test may look at and change."""

    def __init__(self, folder):
        self.folder = folder
        self.sent = CONTENT
        self.downloads, self.prepared = 0, 0
        self.script = ModuleType("data_scripts.toy")
        self.script.prepare = self.prepare

    def get(self, missing):
        """Stands for the network; leaves a file that `verified` still has to check."""
        self.downloads += 1
        for download in missing:
            path = sources.place(download)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.sent)

    def prepare(self, folder, inputs, size):
        self.prepared += 1
        (path,) = inputs.values()
        np.save(folder / "array.npy", np.frombuffer(path.read_bytes(), np.uint8))
        (folder / "size.txt").write_text(size)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "data"))
    toy = Toy(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "data_scripts.toy", toy.script)
    monkeypatch.setattr(sources, "from_npm", toy.get)
    use_manifest(tmp_path, monkeypatch)
    yield toy
    forget()


def use_manifest(tmp_path, monkeypatch, version=1, **changes):
    about = {"what": "bytes", "licence": "MIT", "version": version, "downloads": ["@toy/bytes"]}
    content = {
        "downloads": {"@toy/bytes": entry("npm", **changes)},
        "datasets": {
            "toy": about,
            "toy_large": {**about, "script": "toy", "size": "large", "default": False},
            "toy_made": {**about, "script": "toy", "size": "made", "needs": ["toy"]},
        },
    }
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content))
    monkeypatch.setattr(manifest, "PATH", path)
    forget()


def forget():
    manifest.downloads.cache_clear()
    manifest.datasets.cache_clear()
