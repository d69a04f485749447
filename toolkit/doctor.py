"""What this machine lacks for the book, and the command that mends it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LEAST_DISK = 5  # GB, for the data, the executed chapters and the site


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    good: bool
    says: str
    mend: str


def report() -> int:
    """Print every finding; returns 1 if something that the book needs is missing."""
    findings = [check() for check in CHECKS]
    for finding in findings:
        mark = "ok     " if finding.good else "missing"
        print(f"{mark}  {finding.name:<12} {finding.says}")
        if not finding.good:
            print(f"{'':9}{'':<12} → {finding.mend}")
    return int(any(not finding.good for finding in findings))


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding("python", good, sys.version.split()[0], "install Python 3.11 or newer")


def _packages() -> Finding:
    lock = ROOT / "requirements.txt"
    pins = [line.split(";")[0].strip() for line in lock.read_text("utf-8").splitlines()]
    missing = []
    for pin in (
        p for p, line in zip(pins, lock.open(encoding="utf-8"), strict=True) if ";" not in line
    ):
        name, _, wanted = pin.partition("==")
        try:
            if wanted and version(name) != wanted:
                missing.append(f"{name} {version(name)} instead of {wanted}")
        except PackageNotFoundError:
            missing.append(name)
    says = "as locked" if not missing else f"{len(missing)} differ: {', '.join(missing[:4])}"
    return Finding("packages", not missing, says, "make book, or: pip install -r requirements.txt")


def _data() -> Finding:
    done = subprocess.run(
        [sys.executable, "-m", "data_scripts", "list"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    rows = [row for row in done.stdout.splitlines() if "on demand" not in row]
    missing = [row.split()[0] for row in rows if "not prepared" in row or "outdated" in row]
    says = ", ".join(missing) or ("all there" if not done.returncode else done.stderr.strip())
    return Finding(
        "data", not missing and not done.returncode, says, "python -m data_scripts fetch"
    )


def _browser() -> Finding:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    mend = "only the tests need it: apt-get install chromium, or: playwright install chromium"
    return Finding("browser", path is not None, path or "no Chromium on the PATH", mend)


def _disk() -> Finding:
    place = Path(os.environ.get("TOOLKIT_DATA", Path.home() / ".cache"))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    return Finding(
        "disk", free > LEAST_DISK, f"{free:.0f} GB free", f"free {LEAST_DISK} GB at {place}"
    )


def _site() -> Finding:
    page = ROOT / "_build" / "html" / "index.html"
    return Finding(
        "site", page.is_file(), str(page) if page.is_file() else "not built", "make book"
    )


def _device() -> Finding:
    import torch

    count = torch.cuda.device_count()
    says = torch.cuda.get_device_name(0) if count else f"CPU, {os.cpu_count()} cores"
    return Finding("device", True, says, "")


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _packages,
    _device,
    _data,
    _browser,
    _disk,
    _site,
)
