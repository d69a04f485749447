"""A shard in another process: length-prefixed messages over a socket, arrays as safetensors."""

import json
import os
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from toolkit.search.visual_search.journal import pack, unpack
from toolkit.search.visual_search.store import Found, Ids

HEAD = struct.Struct("<IQ")
LARGEST = 1 << 30
"""Bytes of a message; a longer one is refused."""
METHODS = ("add", "update", "remove", "search", "len")


class RemoteIndex:
    """An index on the other end of a socket; the same methods, the same errors.

    Args:
        address: host and port of `ShardServer`.
        timeout: seconds to wait for an answer; then the shard counts as gone.

    Raises:
        ConnectionError: from any method, if nobody answers.
    """

    def __init__(self, address: tuple[str, int], timeout: float = 10.0) -> None:
        self.address, self.timeout = address, timeout
        self._free: list[socket.socket] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._call("len", {})["count"][0])

    def add(self, ids: Ids, features: Float[Tensor, "n d"] | NDArray) -> None:
        """Add items."""
        self._call("add", {"ids": np.asarray(ids), "features": np.asarray(features)})

    def update(self, ids: Ids, features: Float[Tensor, "n d"] | NDArray) -> None:
        """Give items new features."""
        self._call("update", {"ids": np.asarray(ids), "features": np.asarray(features)})

    def remove(self, ids: Ids) -> None:
        """Take items out."""
        self._call("remove", {"ids": np.asarray(ids)})

    def search(
        self,
        features: Float[Tensor, "b d"],
        k: int,
        filter: Ids | None = None,
    ) -> Found:
        """The k best of the shard."""
        arrays = {"features": np.asarray(features), "k": np.array([k])}
        if filter is not None:
            arrays["filter"] = np.asarray(filter)
        answer = self._call("search", arrays)
        return Found(torch.from_numpy(answer["scores"]), torch.from_numpy(answer["ids"]))

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            while self._free:
                self._free.pop().close()

    def _call(self, method: str, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
        with self._lock:
            line = self._free.pop() if self._free else None
        try:
            line = line or socket.create_connection(self.address, self.timeout)
            _send(line, {"method": method}, arrays)
            head, answer = _receive(line)
        except OSError as error:  # a socket in an unknown state is not used again
            if line is not None:
                line.close()
            raise ConnectionError(f"the shard at {self.address} does not answer") from error
        with self._lock:
            self._free.append(line)
        if "error" in head:
            kind = {"ValueError": ValueError, "TypeError": TypeError}.get(
                head["kind"], RuntimeError
            )
            raise kind(head["error"])
        return answer


class ShardServer:
    """Serve an index to other processes, one thread a connection.

    Args:
        index: with add, update, remove and search; it must allow concurrent calls.
        address: host and port; port 0 takes a free one, see `address` afterwards.
    """

    def __init__(self, index: Any, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                _serve(self.request, index)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(address, Handler)
        self.address: tuple[str, int] = self._server.server_address[:2]  # type: ignore[assignment]

    def start(self) -> None:
        """Serve in a thread."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def run(self) -> None:
        """Serve until the process ends."""
        self._server.serve_forever()

    def close(self) -> None:
        """Accept no more connections."""
        self._server.shutdown()
        self._server.server_close()


def _serve(line: socket.socket, index: Any) -> None:
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        try:
            head, arrays = _receive(line)
        except OSError:
            return
        try:
            answer: dict[str, NDArray] = _answer(index, head.get("method"), arrays)
            _send(line, {}, answer)
        except OSError:
            return
        except Exception as error:
            _send(line, {"error": str(error), "kind": type(error).__name__}, {})


def _answer(index: Any, method: str | None, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    if method not in METHODS:
        raise ValueError(f"a shard answers to {', '.join(METHODS)}, got {method!r}")
    if method == "len":
        return {"count": np.array([len(index)])}
    if method == "search":
        features = torch.from_numpy(arrays["features"])
        found = index.search(features, int(arrays["k"][0]), arrays.get("filter"))
        return {"scores": found.scores.numpy(), "ids": found.ids.numpy()}
    getattr(index, method)(**arrays)
    return {}


def _send(line: socket.socket, head: dict[str, str], arrays: dict[str, NDArray]) -> None:
    about, body = json.dumps(head).encode(), pack(**arrays) if arrays else b""
    line.sendall(HEAD.pack(len(about), len(body)) + about + body)


def _receive(line: socket.socket) -> tuple[dict[str, str], dict[str, NDArray]]:
    about, body = HEAD.unpack(_exactly(line, HEAD.size))
    if about + body > LARGEST:
        raise ConnectionError(f"a message of {about + body} bytes is too long")
    head = json.loads(_exactly(line, about))
    blob = _exactly(line, body)
    return head, unpack(blob) if blob else {}


def _exactly(line: socket.socket, count: int) -> bytes:
    parts, missing = [], count
    while missing:
        part = line.recv(min(missing, 1 << 20))
        if not part:
            raise ConnectionError("the other end closed the connection")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


# --- replicas as processes ----------------------------------------------------------------------


@contextmanager
def replica_processes(items: Float[Tensor, "n d"], count: int) -> Iterator[list[RemoteIndex]]:
    """So many processes that serve the same items; ended on leaving.

    Each stands for a machine of one core: where the system allows it, it keeps to a core.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, items.numpy())
        command = [sys.executable, "-m", "toolkit.search.visual_search.replica", str(path)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | threads)
            for _ in range(count)
        ]
        try:
            yield [RemoteIndex(("127.0.0.1", _port(process))) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.strip().isdigit():
        raise ConnectionError(f"a shard did not start: it said {line!r}")
    return int(line)
