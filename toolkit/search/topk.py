"""Top-k lists of several sources: merging them, and how far two of them agree."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def merge_topk(
    scores: Float[Tensor, "sources batch found"], ids: Int[Tensor, "sources batch found"], k: int
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """Merge the top lists of several shards into one per row.

    Args:
        scores: larger is better.
        ids: what was found; −1 marks an empty place, whatever its score.
        k: length of the merged list.

    Returns:
        Scores and ids by falling score, ties by rising id; empty places are −∞ and −1, at the end.

    Raises:
        ValueError: if shapes differ or `k` is below 1.
    """
    if scores.shape != ids.shape or scores.dim() != 3:
        raise ValueError(
            f"scores {tuple(scores.shape)} and ids {tuple(ids.shape)} "
            "must both be [sources, batch, found]"
        )
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    sources, batch, found = scores.shape
    scores = scores.masked_fill(ids < 0, -torch.inf).transpose(0, 1).reshape(batch, sources * found)
    ids = ids.transpose(0, 1).reshape(batch, sources * found)
    by_id = torch.where(ids < 0, torch.iinfo(ids.dtype).max, ids).argsort(dim=1)
    scores, ids = scores.gather(1, by_id), ids.gather(1, by_id)
    best, order = scores.sort(dim=1, descending=True, stable=True)
    best, ids = best[:, :k], ids.gather(1, order[:, :k])
    missing = k - best.shape[1]
    if missing > 0:
        best = torch.nn.functional.pad(best, (0, missing), value=-torch.inf)
        ids = torch.nn.functional.pad(ids, (0, missing), value=-1)
    return best, ids


def overlap(
    found: Int[Tensor, "batch k"], truth: Int[Tensor, "batch k"]
) -> Float[Tensor, " batch"]:
    """Share of each row's true neighbours that were found (recall@k of an approximate index).

    Args:
        found: ids, −1 for an empty place.
        truth: ids of the exact search; −1 places do not count.

    Raises:
        ValueError: if the numbers of rows differ.
    """
    if len(found) != len(truth):
        raise ValueError(f"found has {len(found)} rows and truth {len(truth)}; they must agree")
    hits = ((truth[:, :, None] == found[:, None, :]) & (truth >= 0)[:, :, None]).any(dim=2)
    return hits.sum(dim=1) / (truth >= 0).sum(dim=1).clamp(min=1)
