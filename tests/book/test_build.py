"""The one build: plain jupyter-book makes the same site, and nothing is executed twice."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.press import build, reader

START = "from jupyter_book.cli.main import main; main()"
# Sphinx writes these anew at each build, with dates or in another order.
VOLATILE = {".buildinfo", "searchindex.js", "objects.inv"}
# It versions an asset only if the file is there already, from an earlier build.
ASSET_VERSION = re.compile(rb"\?(?:v|digest)=[0-9a-f]+")


def test_a_warm_build_executes_nothing():
    assert build.stale(build.in_contents()) == []


@pytest.mark.slow
def test_plain_jupyter_book_makes_the_same_site(tmp_path):
    command = [sys.executable, "-c", START, "build", ".", "-q", "--path-output", str(tmp_path)]
    done = subprocess.run(command, cwd=reader.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, plain = files(build.SITE), files(tmp_path / "_build" / "html")
    assert ours.keys() == plain.keys()
    assert [name for name in ours if ours[name] != plain[name]] == []


def files(site: Path) -> dict[str, bytes]:
    return {
        path.relative_to(site).as_posix(): ASSET_VERSION.sub(b"", path.read_bytes())
        for path in site.rglob("*")
        if path.is_file() and path.name not in VOLATILE
    }
