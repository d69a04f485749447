"""Shared by all tests: shapes checked at run time, one thread, a private build folder."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401 — the hook looks it up by name

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ["TQDM_DISABLE"] = "1"

# Shapes and types of every annotated function of these packages are checked while testing.
CHECKED = ["runtime", "learn", "data"]
CHECKED += ["optimization", "supervision", "representation", "scenes", "networks", "search"]
install_import_hook([f"toolkit.{name}" for name in CHECKED], "tests.shapes.check")

# The same examples every time; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def build_folder(tmp_path, monkeypatch):
    """A build folder of this test alone: sweeps and twins."""
    monkeypatch.setenv("TOOLKIT_BUILD", str(tmp_path / "build"))
    for name in ("TOOLKIT_SWEEP", "TOOLKIT_STATIC", "DASK_SCHEDULER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "build"
