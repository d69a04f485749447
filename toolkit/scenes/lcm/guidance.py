"""The paper's two modules: guidance by the previous frame, relation to the first object."""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from toolkit.scenes.lcm.reads import memory_read, sine_position

FUSIONS = ("add", "gate", "concat")
RELATIONS = ("attn", "pool")
STAY, GRID = 20.0, 16
"""Initial logit of staying in place, and the grid on which it is measured; both are ours."""


_code = lru_cache(maxsize=8)(sine_position)


class PositionGuidance(nn.Module):
    """Position guidance module: read the adjacent previous frame with position-sensitive keys.

    k_L = φ(r + e) for the query and for the previous frame, B = softmax over the cells of the
    previous frame, v^L = Σ B v^M (Hu et al. 2021, § 3.2; the formula is a reconstruction).
    Global keys stay free of position. The output starts at zero: a new module changes nothing.

    Args:
        channels: of the embeddings r; a multiple of 4.
        key_dim: of the local keys.
        value_dim: of the values.
        fuse: `"add"`: v^G + W v^L. `"gate"`: v^G ⊙ 2σ(W v^L), which is v^G at W = 0. `"concat"`:
            v^G + W [v^G, v^L].
        position: False leaves out the code e, as a control.

    Raises:
        ValueError: for an unknown fusion.
    """

    def __init__(
        self,
        channels: int,
        key_dim: int,
        value_dim: int,
        fuse: str = "add",
        position: bool = True,
    ) -> None:
        super().__init__()
        if fuse not in FUSIONS:
            raise ValueError(f"fuse must be one of {', '.join(FUSIONS)}; got {fuse!r}")
        self.fuse, self.position = fuse, position
        self.query_key = nn.Conv2d(channels, key_dim, 3, padding=1)
        self.memory_key = nn.Conv2d(channels, key_dim, 3, padding=1)
        self.memory_key.load_state_dict(self.query_key.state_dict())  # like attends to like
        self._begin_local(channels)
        width = 2 * value_dim if fuse == "concat" else value_dim
        self.out = nn.Conv2d(width, value_dim, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def local_key(
        self, r: Float[Tensor, "batch channels height width"], memory: bool
    ) -> Float[Tensor, "batch key height width"]:
        """φ(r + e) of the query frame, or of the previous one if `memory`."""
        conv = self.memory_key if memory else self.query_key
        return conv(r + _code(*r.shape[1:]).to(r) if self.position else r)

    def forward(
        self,
        retrieved: Float[Tensor, "batch value height width"],
        query_key: Float[Tensor, "batch key height width"],
        previous_key: Float[Tensor, "batch key height width"],
        previous_value: Float[Tensor, "batch value height width"],
    ) -> Float[Tensor, "batch value height width"]:
        """The globally retrieved values, guided by the location response of the previous frame."""
        response = memory_read(previous_key[:, :, None], previous_value[:, :, None], query_key)
        if self.fuse == "gate":
            return retrieved * 2 * self.out(response).sigmoid()
        if self.fuse == "concat":
            response = torch.cat([retrieved, response], dim=1)
        return retrieved + self.out(response)

    @torch.no_grad()
    def _begin_local(self, channels: int) -> None:
        """Scale the keys so that the code alone gives the logit `STAY` to staying in place.

        Default weights give about 1, a read of everything at once, from which training is slow.
        """
        code = sine_position(channels, GRID, GRID)[None]
        keys = nn.functional.conv2d(code, self.query_key.weight, padding=1)
        stay = keys.square().sum(dim=1).mean() * keys.shape[1] ** -0.5
        for conv in (self.query_key, self.memory_key):
            conv.weight *= (STAY / stay).sqrt()

    @torch.no_grad()
    def position_share(self, r: Float[Tensor, "batch channels height width"]) -> float:
        """Variance over cells of the code's part of the query's local keys, over that of r's."""
        code = sine_position(*r.shape[1:]).to(r)[None]
        parts = [nn.functional.conv2d(x, self.query_key.weight, padding=1) for x in (code, r)]
        code_part, look = (x.flatten(2).var(dim=2).sum(dim=1).mean() for x in parts)
        return float(code_part / look)


class ObjectRelation(nn.Module):
    """Object relation module: relate each cell to the object as the exact first mask shows it.

    u'_j = u_j + W_o Σ_{i∈F₀} R_ij v^M_{0,i}, R = softmax over the cells F₀ of the first frame that
    the object fills (Hu et al. 2021, § 3.3; the formula is a reconstruction).

    Args:
        value_dim: of the values.
        key_dim: of the relation's keys.
        mode: `"attn"` as above; `"pool"` replaces R by the mean over F₀, one prototype for all.

    Raises:
        ValueError: for an unknown mode.
    """

    def __init__(self, value_dim: int, key_dim: int, mode: str = "attn") -> None:
        super().__init__()
        if mode not in RELATIONS:
            raise ValueError(f"mode must be one of {', '.join(RELATIONS)}; got {mode!r}")
        self.mode = mode
        self.key = nn.Conv2d(value_dim, key_dim, 1, bias=False)
        self.query = nn.Conv2d(value_dim, key_dim, 1, bias=False)
        self.out = nn.Conv2d(value_dim, value_dim, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        u: Float[Tensor, "batch value height width"],
        first_value: Float[Tensor, "batch value height width"],
        cells: Bool[Tensor, "batch height width"],
    ) -> Float[Tensor, "batch value height width"]:
        """Each cell with what the first frame's object says about it."""
        inside, values = cells.flatten(1), first_value.flatten(2)
        if self.mode == "pool":
            prototype = (values * inside[:, None]).sum(2) / inside.sum(1, keepdim=True)
            return u + self.out(prototype[:, :, None, None].expand_as(u))
        keys, queries = self.key(first_value).flatten(2), self.query(u).flatten(2)
        logits = keys.shape[1] ** -0.5 * queries.transpose(1, 2) @ keys
        weights = logits.masked_fill(~inside[:, None], -torch.inf).softmax(dim=2)
        related = weights @ values.transpose(1, 2)
        return u + self.out(related.transpose(1, 2).unflatten(2, u.shape[2:]))


def object_cells(mask: Float[Tensor, "batch height width"]) -> Bool[Tensor, "batch height width"]:
    """F₀: cells that the object fills by more than half; if none, the one it fills most."""
    full = mask > 0.5
    fullest = mask == mask.amax(dim=(1, 2), keepdim=True)
    return torch.where(full.any(dim=(1, 2))[:, None, None], full, fullest)
