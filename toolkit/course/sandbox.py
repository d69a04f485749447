"""Untrusted code in a process tree of its own: no network, no files but its own, hard limits.

Linux namespaces hold it: a mount namespace with a root made of the few folders that Python needs
(read-only), and process, network and IPC namespaces. Where the machine refuses them, `available`
says why, and nothing runs unless the teacher insists (`isolate=False`: limits alone).

The program inside talks through its standard input and output, a line at a time.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

ENTER = Path(__file__).with_name("enter.py")
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/fonts", "/etc/mime.types")
"""What Python and its libraries read of the system; no password file, no home."""
LINE_LIMIT = 32 * 2**20
"""Bytes of one line, and of the error output, that a sandbox may write."""


@dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    cpu: int = 300  # seconds of all processor time of a process
    wall: float = 600.0  # seconds for everything
    memory: int = 6 * 2**30  # bytes that a process may allocate
    file: int = 64 * 2**20  # bytes of a file
    processes: int = 64  # processes and threads at once
    open_files: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name} is {value}; a limit must be positive")


class Stopped(RuntimeError):
    """The sandbox ended before it answered: a limit, a crash, or its own doing."""


class NoIsolation(RuntimeError):
    """The machine has no namespaces for untrusted code."""


@dataclass
class Sandbox:
    """A program in its sandbox; use it in a `with` statement.

    Args:
        program: a Python file; it runs with `python -I`.
        readable: files and folders that it may read, beside Python and its packages.
        environment: all the variables that it sees, but for `HOME` and `PATH`.
        limits: what it may use.
        isolate: False runs it without namespaces: limits alone.

    Raises:
        NoIsolation: if the machine allows no namespaces and `isolate` is true.
    """

    program: Path
    readable: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    isolate: bool = True

    def __enter__(self) -> Self:
        if self.isolate and (reason := unavailable()):
            raise NoIsolation(
                f"this machine cannot isolate submissions ({reason}); grade on a Linux machine "
                "with namespaces, or accept that they can read your files: --no-isolation"
            )
        self._home = TemporaryDirectory(prefix="sandbox-")
        self._deadline = time.monotonic() + self.limits.wall
        self._buffer = b""
        plan = {
            "program": str(self.program),
            "home": self._home.name,
            "isolate": self.isolate,
            "readable": [str(path) for path in (*_python(), self.program, *self.readable)],
            "limits": asdict(self.limits),
            "environment": dict(self.environment),
        }
        self._errors = Path(self._home.name, "errors").open("w+b")
        os.chmod(self._home.name, 0o711)
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(ENTER), json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={},
            cwd="/",
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._home.cleanup()

    def kill(self) -> None:
        """End the whole tree. The namespace's first process takes all others with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def send(self, message: object) -> None:
        """Write one message.

        Raises:
            Stopped: if nobody reads any more.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Stopped(self._reason()) from None

    def receive(self, seconds: float | None = None) -> object:
        """Read one message.

        Args:
            seconds: to wait; by default what is left of the wall-clock limit.

        Raises:
            Stopped: at the end of the time, of the program, or of its patience (too long a line).
        """
        until = self._deadline
        if seconds is not None:
            until = min(until, time.monotonic() + seconds)
        while b"\n" not in self._buffer:
            self._fill(until)
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise Stopped("it wrote what is no message") from None

    def _fill(self, until: float) -> None:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, until - time.monotonic())):
                raise Stopped("its time was over")
        chunk = os.read(self._process.stdout.fileno(), 2**16)
        if not chunk:
            raise Stopped(self._reason())
        self._buffer += chunk
        if len(self._buffer) > LINE_LIMIT:
            raise Stopped(f"it wrote more than {LINE_LIMIT // 2**20} MiB")

    def _reason(self) -> str:
        code = self._process.wait()
        if code == 128 + signal.SIGXCPU or code == 128 + signal.SIGKILL:
            return f"it was ended by a limit ({self.limits.cpu} s of processor time, or memory)"
        last = self.errors().strip().splitlines()[-1:]
        return ": ".join([f"it ended with code {code}", *last])

    def errors(self) -> str:
        """What the program wrote to its error output, at most 100 kB."""
        self._errors.seek(0)
        return self._errors.read(100_000).decode(errors="replace")


@cache
def unavailable() -> str:
    """Why this machine cannot isolate; empty if it can (asked once)."""
    if sys.platform != "linux":
        return f"namespaces are Linux's, this is {sys.platform}"
    with TemporaryDirectory() as folder:
        probe = Path(folder, "probe.py")
        probe.write_text("print('1')\n")
        plan = {
            "program": str(probe),
            "home": folder,
            "isolate": True,
            "readable": [str(path) for path in (*_python(), probe)],
            "limits": asdict(Limits()),
            "environment": {},
        }
        done = subprocess.run(
            [sys.executable, "-I", str(ENTER), json.dumps(plan)],
            capture_output=True,
            env={},
            cwd="/",
            timeout=60,
            check=False,
        )
    if done.returncode == 0 and done.stdout.strip() == b"1":
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the probe ended with code {done.returncode}"


def _python() -> list[Path]:
    """This Python, its packages, and the system's libraries."""
    places = [Path(place) for place in SYSTEM] + [Path(sys.base_prefix), Path(sys.prefix)]
    real = Path(os.path.realpath(sys.executable)).parents[1]
    return [place for place in dict.fromkeys([*places, real]) if place.exists()]
