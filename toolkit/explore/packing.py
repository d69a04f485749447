"""Many similar figures in one small text.

What all states share is stored once. Numeric arrays that vary become 16-bit codes over their common
range, coded as differences where that helps, low bytes before high bytes, then gzip and base64.
``static/explorable.js`` is the reader. The error of a value is at most 1/131,000 of the range
(1/8,190 where only 12 bits fit the budget; relative instead where the values span decades).
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

BITS = (16, 12)
EXACT_KEYS = {"text", "texttemplate", "hovertext", "customdata", "tickvals", "ids", "labels"}
SHORT = 8  # arrays up to this length (ranges, domains) are stored as they are
GAP = 65535  # the code of NaN

Path = tuple[str | int, ...]


def pack(figures: Sequence[dict[str, Any]], limit: int) -> str:
    """The figures (plain JSON, arrays as numpy) in at most ``limit`` characters of base64.

    The same figures always give the same text.

    Raises:
        ValueError: they do not fit, even with 12 bits a number.
    """
    size = 0
    for bits in BITS:
        text = base64.b64encode(_packed(figures, bits)).decode()
        if len(text) <= limit:
            return text
        size = len(text)
    raise ValueError(
        f"{len(figures)} states need {size / 1000:.0f} kB packed, allowed are "
        f"{limit / 1000:.0f} kB: use fewer points, traces, or values of a control"
    )


def _packed(figures: Sequence[dict[str, Any]], bits: int) -> bytes:
    """A header in JSON, its length in four bytes before it, the arrays after it; gzipped."""
    leaves = [dict(_leaves(figure)) for figure in figures]
    header: dict[str, list] = {"values": [], "arrays": []}
    body = b""
    for path in dict.fromkeys(path for state in leaves for path in state):
        pool, index = _pool([state.get(path) for state in leaves])
        entry = {"path": path, "index": index if len(pool) > 1 or -1 in index else None}
        if all(isinstance(value, np.ndarray) for value in pool):
            code, raw = _encode(pool, bits)
            header["arrays"].append(entry | code)
            body += raw
        else:
            header["values"].append(entry | {"pool": [_plain(value) for value in pool]})
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return gzip.compress(len(head).to_bytes(4, "little") + head + body, 9, mtime=0)


def _leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf with its path; a list of numbers is one leaf, a list of objects is not."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        for key, value in enumerate(node):
            yield from _leaves(value, (*path, key))
    else:
        yield path, node if EXACT_KEYS.intersection(path) else _numbers(node)


def _plain(value: Any) -> Any:
    """The value as JSON has it: arrays as lists, NaN, which JSON lacks, as null."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _numbers(leaf: Any) -> Any:
    """The leaf as a float array where it is a longer list of numbers, else unchanged."""
    if isinstance(leaf, np.ndarray):
        return leaf.astype(float) if leaf.size > SHORT else leaf.tolist()
    if not isinstance(leaf, list) or not _all_numbers(leaf):
        return leaf
    try:
        array = np.array(leaf, dtype=float)  # None becomes NaN
    except ValueError:  # ragged
        return leaf
    return array if array.size > SHORT else leaf


def _all_numbers(items: list) -> bool:
    return all(
        _all_numbers(item)
        if isinstance(item, list)
        else item is None or (isinstance(item, (int, float)) and not isinstance(item, bool))
        for item in items
    )


def _pool(column: list[Any]) -> tuple[list[Any], list[int]]:
    """The distinct values in order, and each state's place among them; -1 where it has none."""
    pool: dict[Any, int] = {}
    values: list[Any] = []
    index: list[int] = []
    for value in column:
        if value is None:
            index.append(-1)
            continue
        if isinstance(value, np.ndarray):
            key: Any = (value.shape, value.tobytes())
        else:
            key = json.dumps(value)
        if key not in pool:
            pool[key] = len(values)
            values.append(value)
        index.append(pool[key])
    return values, index


def _encode(arrays: list[np.ndarray], bits: int) -> tuple[dict[str, Any], bytes]:
    """Codes of equally treated arrays, and what the reader must know to undo them."""
    values = np.concatenate([array.ravel() for array in arrays])
    scale, codes = _quantise(values, 2**bits - 2)
    shapes = [list(array.shape) for array in arrays]
    same = all(shape == shapes[0] for shape in shapes)
    candidates = {"none": codes, "along": _along(codes, arrays)}
    if same and len(arrays) > 1:
        rows = codes.reshape(len(arrays), -1)
        candidates["across"] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1])).ravel()
    planes = {
        name: (code & 255).astype(np.uint8).tobytes() + (code >> 8).astype(np.uint8).tobytes()
        for name, code in candidates.items()
    }
    delta = min(planes, key=lambda name: len(zlib.compress(planes[name], 6)))
    shape = shapes[0] if same else shapes
    return scale | {"delta": delta, "shape": shape, "count": len(arrays)}, planes[delta]


def _along(codes: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
    """Differences of neighbours, beginning afresh with each array (modulo 2^16)."""
    ends = np.cumsum([array.size for array in arrays])[:-1]
    parts = np.split(codes, ends)
    return np.concatenate([np.diff(part, prepend=np.uint16(0)) for part in parts])


def _quantise(values: np.ndarray, top: int) -> tuple[dict[str, Any], np.ndarray]:
    """Codes 0…top over the range of the finite values; whole numbers stay exact where they fit."""
    finite = np.isfinite(values)
    codes = np.full(values.shape, GAP, np.uint16)
    if not finite.any():
        return {"low": 0.0, "step": 1.0}, codes
    known = values[finite]
    positive = known[known > 0]
    low, high = float(known.min()), float(known.max())
    if (known == known.round()).all() and high - low <= top:
        codes[finite] = known - low
        return {"low": low, "step": 1.0}, codes
    if low >= 0 and high > 1000 * positive.min():  # decades: equal relative steps, 0 apart
        low = float(np.log(positive.min()))
        step = (float(np.log(high)) - low) / (top - 1)
        logs = np.log(np.where(known > 0, known, 1.0))
        codes[finite] = np.where(known > 0, 1 + np.rint((logs - low) / step), 0)
        return {"low": low, "step": step, "log": True}, codes
    step = (high - low) / top or 1.0
    codes[finite] = np.rint((known - low) / step)
    return {"low": low, "step": step}, codes
