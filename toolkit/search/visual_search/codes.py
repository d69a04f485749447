"""Binary codes of features, and Hamming search without an index (method C).

A code keeps the signs of some projections. The number of signs in which two codes differ grows
with the angle between their features: for one random projection the chance is angle / π.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, UInt8
from torch import Tensor

Kind = Literal["rotation", "itq", "learned"]


class BinaryEncoder:
    """Codes sign(R (f − mean)), packed eight to a byte, most significant bit first.

    - `"rotation"`: R is a random orthonormal matrix; for more bits than d, independent d×d blocks
      are stacked.
    - `"itq"`: R is rotated until codes and projections agree best (Gong and Lazebnik, "Iterative
      quantization", CVPR 2011): alternately B = sgn(V R) and R from the SVD of BᵀV.
    - `"learned"`: R is trained so that cosines of the codes tanh(β R f) follow those of the
      features, β rising.

    Args:
        kind: how R is found.
        bits: a multiple of 8.
        seed: of the random matrix.

    Raises:
        ValueError: for an unknown kind or bits that are no positive multiple of 8.
    """

    def __init__(self, kind: Kind = "rotation", bits: int = 256, seed: int = 0) -> None:
        if kind not in ("rotation", "itq", "learned"):
            raise ValueError(f"kind is {kind!r}; choose 'rotation', 'itq' or 'learned'")
        if bits < 8 or bits % 8:
            raise ValueError(f"bits must be a positive multiple of 8, got {bits}")
        self.kind, self.bits, self.seed = kind, bits, seed
        self.mean: Tensor | None = None
        self.matrix: Tensor | None = None

    def fit(self, features: Float[Tensor, "n d"]) -> "BinaryEncoder":
        """Learn the centre and R from features, and return the encoder itself.

        Raises:
            ValueError: for no or non-finite features, or for ITQ with more bits than d.
        """
        if len(features) == 0 or not bool(torch.isfinite(features).all()):
            raise ValueError("an encoder is fitted on at least one row of finite features")
        d = features.shape[1]
        if self.kind == "itq" and self.bits > d:
            raise ValueError(f"ITQ has at most as many bits as the {d} features, got {self.bits}")
        self.mean = features.mean(0)
        centred = features - self.mean
        start = stacked_rotations(d, self.bits, self.seed, features.dtype)
        if self.kind == "itq":
            self.matrix = iterative_quantisation(centred, self.bits, self.seed)
        elif self.kind == "learned":
            self.matrix = _learn(centred, start, self.seed)
        else:
            self.matrix = start
        return self

    def project(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """R (f − mean): the numbers whose signs are the code.

        Raises:
            ValueError: before `fit`, or for another width.
        """
        if self.mean is None or self.matrix is None:
            raise ValueError("the encoder must be fitted before it encodes")
        if features.shape[1] != len(self.mean):
            raise ValueError(
                f"features have width {features.shape[1]}, the encoder knows {len(self.mean)}"
            )
        return (features - self.mean) @ self.matrix

    def encode(self, features: Float[Tensor, "n d"]) -> UInt8[Tensor, "n bytes"]:
        """The codes, bits / 8 bytes each."""
        signs = (self.project(features) > 0).numpy()
        return torch.from_numpy(np.packbits(signs, axis=1))


def stacked_rotations(
    d: int, bits: int, seed: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "d bits"]:
    """Independent random orthonormal d×d blocks side by side, cut to so many columns."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [
        torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        for _ in range(-(-bits // d))
    ]
    return torch.cat(blocks, 1)[:, :bits].to(dtype).contiguous()


def iterative_quantisation(
    centred: Float[Tensor, "n d"], bits: int, seed: int, rounds: int = 50
) -> Float[Tensor, "d bits"]:
    """The rotation of the principal components whose signs lose least: min ‖B − V R‖²."""
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    basis = components[:bits].T
    v = centred @ basis
    rotation = stacked_rotations(bits, bits, seed, centred.dtype)
    for _ in range(rounds):
        signs = torch.where(v @ rotation > 0, 1.0, -1.0).to(v)
        left, _, right = torch.linalg.svd(signs.T @ v, full_matrices=False)
        rotation = (left @ right).T
    return basis @ rotation


def quantisation_error(
    projected: Float[Tensor, "n bits"],
) -> Float[Tensor, ""]:
    """ITQ's objective, per entry: the mean of (sgn(v) − v)²."""
    return (torch.where(projected > 0, 1.0, -1.0) - projected).square().mean()


def _learn(
    centred: Float[Tensor, "n d"],
    start: Float[Tensor, "d bits"],
    seed: int,
    steps: int = 200,
    size: int = 256,
) -> Float[Tensor, "d bits"]:
    """Train H so that tanh(β H f) keeps cosines; β rises from 1 to 10 in units of 1 / spread."""
    generator = torch.Generator().manual_seed(seed + 1)
    unit = torch.nn.functional.normalize(centred)
    h = start.clone().requires_grad_()
    spread = (centred @ start).std()
    optimizer = torch.optim.Adam([h], lr=3e-3)
    for step in range(steps):
        beta = 10 ** (step / steps) / spread
        rows = torch.randint(len(centred), (size,), generator=generator)
        code = torch.tanh(beta * centred[rows] @ h)
        # cosines c of features belong to agreements 1 − 2 arccos(c) / π of ideal codes
        wanted = 1 - 2 * torch.arccos((unit[rows] @ unit[rows].T).clamp(-0.9999, 0.9999)) / torch.pi
        loss = (code @ code.T / code.shape[1] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return h.detach()


def hamming_topk(
    q: UInt8[Tensor, "queries bytes"],
    db: UInt8[Tensor, "items bytes"],
    k: int,
    chunk: int = 65_536,
) -> tuple[Int[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The k codes of least Hamming distance, on any device.

    torch has no popcount. On the CPU numpy's counts bits, 64 at a time; elsewhere a matrix product
    of signs ±1 does it: Hamming = (bits − dot) / 2.

    Args:
        q: codes to look for.
        db: codes to look in.
        k: how many; ties go to the smaller row of `db`.
        chunk: rows of `db` at a time; bounds the memory to chunk · (bits + queries) numbers.

    Returns:
        Distances and rows of `db`; −1 and −1 where `db` has fewer than k.

    Raises:
        ValueError: if widths differ, or k or chunk is below 1.
    """
    if q.shape[1] != db.shape[1]:
        raise ValueError(f"codes have {q.shape[1]} and {db.shape[1]} bytes; they must agree")
    if min(k, chunk) < 1:
        raise ValueError(f"k and chunk must be at least 1, got {k} and {chunk}")
    chunk = min(chunk, (2**31 - 1) // (8 * q.shape[1] + 1))  # distance and row fit one int32
    distances = _by_popcount if q.device.type == "cpu" else _by_product
    best = torch.empty(len(q), 0, dtype=torch.int64, device=q.device)
    for begin in range(0, len(db), chunk):
        part = db[begin : begin + chunk]
        row = torch.arange(len(part), dtype=torch.int32, device=q.device)
        key = _least(distances(q, part).int().mul_(len(part)).add_(row), k).long()
        distance, row = key // len(part), key % len(part) + begin
        best = torch.cat([best, distance * len(db) + row], 1)
        best = best.topk(min(k, best.shape[1]), dim=1, largest=False).values
    short = max(0, k - best.shape[1])
    distance, row = best // max(1, len(db)), best % max(1, len(db))
    pad = torch.nn.functional.pad
    return pad(distance, (0, short), value=-1), pad(row, (0, short), value=-1)


def _least(key: Int32[Tensor, "queries items"], k: int) -> Int32[Tensor, "queries kept"]:
    """The k smallest of each row, in any order; numpy selects faster than torch, and in place."""
    if k >= key.shape[1]:
        return key
    if key.device.type == "cpu":
        key.numpy().partition(k, axis=1)
        return key[:, :k]
    return key.topk(k, dim=1, largest=False).values


def _by_product(
    q: UInt8[Tensor, "queries bytes"], db: UInt8[Tensor, "items bytes"]
) -> Int[Tensor, "queries items"]:
    """Hamming distances from inner products of signs, which float32 holds exactly."""
    return ((8 * q.shape[1] - _signs(q) @ _signs(db).T) / 2).round().int()


def _by_popcount(
    q: UInt8[Tensor, "queries bytes"], db: UInt8[Tensor, "items bytes"]
) -> Int[Tensor, "queries items"]:
    """Hamming distances by counting bits, one query and one word of 64 bits at a time."""
    sought, words = (
        np.pad(codes.numpy(), ((0, 0), (0, -codes.shape[1] % 8))).view(np.uint64)
        for codes in (q, db)
    )
    words = np.ascontiguousarray(words.T)  # [words, items]
    counts = np.zeros((len(q), len(db)), np.int16)
    differ, ones = np.empty(len(db), np.uint64), np.empty(len(db), np.uint8)
    for count, code in zip(counts, sought, strict=True):
        for word, column in zip(code, words, strict=True):
            np.bitwise_count(np.bitwise_xor(word, column, out=differ), out=ones)
            np.add(count, ones, out=count)
    return torch.from_numpy(counts)


def _signs(codes: UInt8[Tensor, "n bytes"]) -> Float[Tensor, "n bits"]:
    shift = torch.arange(7, -1, -1, device=codes.device, dtype=torch.uint8)
    return ((codes[:, :, None] >> shift) & 1).flatten(1).float() * 2 - 1
