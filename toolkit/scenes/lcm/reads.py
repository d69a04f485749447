"""Reading a memory: by appearance, by appearance and position, inside a window.

A read is attention: each cell of the query frame takes a mean of the memory's values, weighted by
how well its key fits theirs. The softmax runs over the cells of the memory.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

FREQUENCY_BASE = 100.0


def sine_position(dim: int, height: int, width: int) -> Float[Tensor, "dim height width"]:
    """Sine code of a cell's row and column (Hu et al. 2021, e; its form is a reconstruction).

    For each of dim/4 frequencies the sine and cosine of the row, then those of the column. The dot
    product of two codes depends on their offset only; that of a code with itself is dim/2.

    Raises:
        ValueError: if `dim` is no positive multiple of 4, or the grid is empty.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"dim must be a positive multiple of 4, got {dim}")
    if height < 1 or width < 1:
        raise ValueError(f"the grid must have at least one cell, got {height}×{width}")
    bands = dim // 4
    omega = FREQUENCY_BASE ** (-torch.arange(bands) / bands)

    def waves(length: int) -> Tensor:
        phase = omega[:, None] * torch.arange(length)
        return torch.cat([phase.sin(), phase.cos()])

    rows = waves(height)[:, :, None].expand(-1, -1, width)
    columns = waves(width)[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, columns])


def memory_read(
    mk: Float[Tensor, "batch key time height width"],
    mv: Float[Tensor, "_ value _ _ _"],
    qk: Float[Tensor, "_ _ rows columns"],
    chunk: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch value rows columns"]:
    """Space-time memory read: every query cell attends to all cells of all memory frames.

    v_j = Σ_i softmax_i(k_i · k_j scale) v_i (Oh et al. 2019, eq. 1–3; the global retrieval of
    Hu et al. 2021).

    Args:
        mk: keys of the memory.
        mv: its values, of the same cells.
        qk: keys of the query frame, of the same width.
        chunk: memory cells a block. The softmax then keeps a running maximum, and the peak of
            memory does not grow with time.
        scale: of the dot product, by default 1/√key.

    Raises:
        ValueError: for an empty memory, shapes that do not fit, or a chunk below 1.
    """
    _check_memory(mk, mv, qk, chunk)
    keys, values, queries = (x.flatten(2).transpose(1, 2) for x in (mk, mv, qk))
    if chunk is None:
        read = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
    else:
        read = _read_in_chunks(queries, keys, values, chunk, scale or mk.shape[1] ** -0.5)
    return read.transpose(1, 2).unflatten(2, qk.shape[2:])


def position_guided_read(
    kq: Float[Tensor, "batch key height width"],
    km: Float[Tensor, "_ _ _ _"],
    pos: Float[Tensor, "code _ _"],
    vm: Float[Tensor, "batch value height width"],
    alpha: float | Float[Tensor, "batch"],
    scale: float | None = None,
) -> Float[Tensor, "batch value height width"]:
    """Read one frame by appearance and position: the logit of two cells gains α e_i · e_j.

    One attention: the code, times √α, is appended to the keys of both frames.

    Args:
        kq: keys of the query frame.
        km: keys of the frame that is read, the previous one.
        pos: code of each cell, of unit norm, so that α is the logit of staying in place.
        vm: values of that frame.
        alpha: weight of position, at least 0; one for all or one an element of the batch.
        scale: of the appearance's dot product, by default 1/√key.

    Raises:
        ValueError: for a negative α or shapes that do not fit.
    """
    weight = torch.as_tensor(alpha, dtype=kq.dtype, device=kq.device).expand(len(kq))
    if (weight < 0).any():
        raise ValueError(f"alpha must be at least 0, got {float(weight.min()):g}")
    if kq.shape != km.shape or kq.shape[2:] != pos.shape[1:]:
        raise ValueError(
            f"keys and positions must share their grid: {list(kq.shape)}, {list(km.shape)}, "
            f"{list(pos.shape)}"
        )
    strength = (kq.shape[1] ** -0.5 if scale is None else scale) ** 0.5
    code = weight.sqrt()[:, None, None, None] * pos.to(kq)
    query, memory = (torch.cat([strength * k, code], dim=1) for k in (kq, km))
    return memory_read(memory[:, :, None], vm[:, :, None], query, scale=1.0)


def affinity(
    km: Float[Tensor, "batch key memory"],
    kq: Float[Tensor, "batch key query"],
    scale: float,
    allowed: Bool[Tensor, "memory query"] | None = None,
) -> Float[Tensor, "batch memory query"]:
    """The weights of a read: softmax over the memory's cells, zero where not `allowed`."""
    logits = scale * km.transpose(1, 2) @ kq
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.softmax(dim=1)


def window(height: int, width: int, radius: int) -> Bool[Tensor, "cells cells"]:
    """Which pairs of cells lie within `radius` rows and columns of each other.

    Raises:
        ValueError: for a negative radius.
    """
    if radius < 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    near = [(x[:, None] - x[None]).abs() <= radius for x in (rows, columns)]
    return near[0] & near[1]


def _read_in_chunks(
    queries: Tensor, keys: Tensor, values: Tensor, chunk: int, scale: float
) -> Tensor:
    """Softmax with a running maximum: sums are rescaled whenever the maximum grows."""
    peak = queries.new_full((*queries.shape[:2], 1), -torch.inf)
    weight = queries.new_zeros((*queries.shape[:2], 1))
    total = queries.new_zeros((*queries.shape[:2], values.shape[2]))
    for k, v in zip(keys.split(chunk, dim=1), values.split(chunk, dim=1), strict=True):
        logits = scale * queries @ k.transpose(1, 2)
        highest = torch.maximum(peak, logits.amax(dim=2, keepdim=True))
        shrink, terms = (peak - highest).exp(), (logits - highest).exp()
        weight = shrink * weight + terms.sum(dim=2, keepdim=True)
        total = shrink * total + terms @ v
        peak = highest
    return total / weight


def _check_memory(mk: Tensor, mv: Tensor, qk: Tensor, chunk: int | None) -> None:
    if mk.shape[2:].numel() == 0:
        raise ValueError(f"the memory is empty: keys of shape {list(mk.shape)}")
    if mk.shape[0] != mv.shape[0] or mk.shape[2:] != mv.shape[2:] or mk.shape[:2] != qk.shape[:2]:
        raise ValueError(
            f"keys {list(mk.shape)}, values {list(mv.shape)} and query {list(qk.shape)} do not fit"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
