"""LCM: memorise frames with their masks, read them for each new one, segment, go on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.scenes.backbone import EmojiBackbone
from toolkit.scenes.lcm.encoders import Decoder, Encoder, SmallEncoder
from toolkit.scenes.lcm.guidance import ObjectRelation, PositionGuidance, object_cells
from toolkit.scenes.lcm.reads import memory_read

MODULES = ("grm", "pgm", "orm")
EPSILON = 1e-7
MASK_GAIN = 4.0
"""Of the mask among the values of the memory; ours."""


@dataclass(frozen=True)
class Memory:
    """What is known of past frames, for each of n = batch · objects.

    All frames kept so far stand in `keys` and `values`, the first before the others; the last of
    them is the previous frame, whether it will be kept or not.
    """

    keys: Float[Tensor, "n key time height width"]
    values: Float[Tensor, "n value time height width"]
    """The last channel is the mask of each cell, times `MASK_GAIN`; the others are learnt."""
    previous_key: Float[Tensor, "n key height width"] | None
    """Position-sensitive key of the last frame; None without position guidance."""
    cells: Bool[Tensor, "n height width"]
    """Of the memory's first frame: which cells the object fills."""

    def then(self, frame: "Memory", keep_last: bool) -> "Memory":
        """This memory and one more frame; the last one before it stays only if `keep_last`."""
        kept = self.keys.shape[2] - (not keep_last)
        return replace(
            frame,
            keys=torch.cat([self.keys[:, :, :kept], frame.keys], dim=2),
            values=torch.cat([self.values[:, :, :kept], frame.values], dim=2),
            cells=self.cells,
        )


class LCM(nn.Module):
    """Space-time memory with position guidance and object relation (Hu et al. 2021).

    With `modules=("grm",)` it is the Space-Time Memory network of Oh et al. (2019).

    Args:
        modules: of `"grm"` (always), `"pgm"`, `"orm"`.
        fuse: how position guidance joins the global read: `"add"`, `"gate"`, `"concat"`.
        key_dim: channels of keys; paper 128.
        value_dim: channels of values; paper 512.
        orm: `"attn"` or `"pool"`, see `ObjectRelation`.
        position: False takes the position code from the local keys, as a control.
        encoders: of the query and of the memory; by default two `SmallEncoder`.
        width: of the decoder.

    Raises:
        ValueError: for unknown modules or fusions.
    """

    def __init__(
        self,
        modules: Sequence[str] = MODULES,
        fuse: str = "add",
        key_dim: int = 32,
        value_dim: int = 48,
        *,
        orm: str = "attn",
        position: bool = True,
        encoders: tuple[Encoder, Encoder] | None = None,
        width: int = 32,
    ) -> None:
        super().__init__()
        if "grm" not in modules or set(modules) - set(MODULES):
            raise ValueError(f"modules must hold grm, and else pgm, orm; got {tuple(modules)}")
        query, memory = encoders or small_encoders()
        self.query_encoder, self.memory_encoder = query, memory
        channels = query.channels
        self.divisor = query.divisor
        self.query_key, self.memory_key = (
            nn.Conv2d(channels, key_dim, 3, padding=1) for _ in range(2)
        )
        self.query_value = nn.Conv2d(channels, value_dim, 3, padding=1)
        self.memory_value = nn.Conv2d(channels, value_dim - 1, 3, padding=1)
        self.memory_key.load_state_dict(self.query_key.state_dict())  # like attends to like
        self.decoder = Decoder(value_dim, query.skip_channels, width)
        self.pgm: PositionGuidance | None = None
        self.orm: ObjectRelation | None = None
        self.extend(modules, fuse, orm, position)

    def extend(
        self,
        modules: Sequence[str],
        fuse: str = "add",
        orm: str = "attn",
        position: bool = True,
    ) -> "LCM":
        """Add new modules, whose outputs start at zero: the masks stay what they were."""
        key_dim, channels = self.query_key.weight.shape[:2]
        value_dim = self.query_value.out_channels
        if "pgm" in modules:
            self.pgm = PositionGuidance(channels, key_dim, value_dim, fuse, position)
        if "orm" in modules:
            self.orm = ObjectRelation(value_dim, key_dim, orm)
        return self

    def forward(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        mask0: Float[Tensor, "_ objects _ _"],
    ) -> Float[Tensor, "batch time classes height width"]:
        """`propagate` with its defaults, for DistributedDataParallel."""
        return self.propagate(frames, mask0)

    def memorize(
        self,
        frame: Float[Tensor, "batch 3 height width"],
        mask: Float[Tensor, "_ objects _ _"],
        others: Float[Tensor, "_ objects _ _"] | None = None,
    ) -> Memory:
        """Keys and values of a frame with the (soft) masks of its objects.

        Args:
            frame: in 0…1.
            mask: of each object, in 0…1.
            others: of all other objects; by default their sum, at most 1.

        Raises:
            ValueError: if sizes differ or the stride does not divide them.
        """
        check_masks(frame, mask, self.divisor)
        if others is None:
            others = (mask.sum(dim=1, keepdim=True) - mask).clamp(0, 1)
        masks = torch.stack([mask, others], dim=2).flatten(0, 1)
        r = self.memory_encoder(frame, masks).grid
        pooled = F.adaptive_avg_pool2d(mask.flatten(0, 1)[:, None], r.shape[2:])
        values = torch.cat([self.memory_value(r), MASK_GAIN * pooled], dim=1)
        return Memory(
            keys=self.memory_key(r)[:, :, None],
            values=values[:, :, None],
            previous_key=self.pgm.local_key(r, memory=True) if self.pgm else None,
            cells=object_cells(pooled[:, 0]),
        )

    def segment(
        self,
        frame: Float[Tensor, "batch 3 height width"],
        memory: Memory,
        carried: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch objects height width"]:
        """Probability of each object alone at each pixel; `soft_aggregate` joins them.

        Args:
            frame: in 0…1.
            memory: of its past.
            carried: gets the mask [n,rows,columns] that the global read alone carries over.

        Raises:
            ValueError: if the memory is empty, or belongs to other frames.
        """
        objects, rest = divmod(len(memory.keys), len(frame))
        if rest or not objects:
            raise ValueError(f"{len(memory.keys)} memories do not belong to {len(frame)} frames")
        features = self.query_encoder(frame)
        r = features.grid
        key, value = self.query_key(r), self.query_value(r)
        local = self.pgm.local_key(r, memory=False) if self.pgm else None
        key, value, skips = (
            key.repeat_interleave(objects, 0),
            value.repeat_interleave(objects, 0),
            features.repeat(objects).skips,
        )
        u = memory_read(memory.keys, memory.values, key)
        if carried is not None:
            carried.append(u[:, -1] / MASK_GAIN)
        if self.pgm is not None and local is not None and memory.previous_key is not None:
            local = local.repeat_interleave(objects, 0)
            u = self.pgm(u, local, memory.previous_key, memory.values[:, :, -1])
        if self.orm is not None:
            u = self.orm(u, memory.values[:, :, 0], memory.cells)
        logits = self.decoder(u, value, skips, frame.shape[2:])
        return logits.sigmoid().unflatten(0, (len(frame), objects))

    def propagate(
        self,
        frames: Float[Tensor, "batch time 3 height width"],
        mask0: Float[Tensor, "_ objects _ _"],
        every: int | None = 5,
        carried: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch time classes height width"]:
        """Segment a clip from the masks of its first frame; gradients flow through all frames.

        Frame t reads the first frame, the previous one and every `every`-th before it, each with
        its predicted soft masks.

        Args:
            frames: in 0…1.
            mask0: of each object in frame 0; objects do not overlap, and none is empty.
            every: frames between two that stay in memory; None keeps the first only.
            carried: see `segment`.

        Returns:
            Probabilities of the background (class 0) and of each object; frame 0 as given.

        Raises:
            ValueError: for masks that are not binary, empty, overlapping or of the wrong size, no
                object or no frame, or `every` below 1.
        """
        check_first_masks(frames, mask0, self.divisor)
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1 or None, got {every}")
        height, width = frames.shape[3:]
        frames, first = pad(frames, self.divisor), pad(mask0, self.divisor)
        probs = [torch.cat([1 - first.sum(dim=1, keepdim=True), first], dim=1)]
        memory = self.memorize(frames[:, 0], first)
        for t in range(1, frames.shape[1]):
            if t > 1:
                last = t - 2  # the frame that was "previous" until now
                keep = last == 0 or (every is not None and last % every == 0)
                memory = memory.then(self.memorize(frames[:, t - 1], probs[-1][:, 1:]), keep)
            logits = soft_aggregate(self.segment(frames[:, t], memory, carried))
            probs.append(logits.softmax(dim=1))
        return torch.stack(probs, dim=1)[..., :height, :width]


def small_encoders(backbone: EmojiBackbone | None = None) -> tuple[Encoder, Encoder]:
    """Encoders of the query and of the memory that begin with the same weights."""
    query, memory = SmallEncoder(backbone), SmallEncoder(backbone, with_masks=True)
    memory.load_state_dict(query.state_dict(), strict=False)  # all but the stem of the masks
    return query, memory


def soft_aggregate(
    probs: Float[Tensor, "*batch objects height width"],
) -> Float[Tensor, "*batch classes height width"]:
    """Join objects that were segmented alone: logits of the background and of each object.

    p₀ = Π (1 − p_o); logit log p/(1 − p), p kept away from 0 and 1 by 10⁻⁷ (Oh et al. 2019, § 3.6).

    Raises:
        ValueError: without objects.
    """
    if probs.shape[-3] == 0:
        raise ValueError("there is no object to segment")
    background = (1 - probs).prod(dim=-3, keepdim=True)
    p = torch.cat([background, probs], dim=-3).clamp(EPSILON, 1 - EPSILON)
    return p.log() - (-p).log1p()


def pad(x: Float[Tensor, "*batch height width"], stride: int) -> Tensor:
    """Zeros on the right and below, up to a multiple of the stride."""
    height, width = x.shape[-2:]
    if height % stride == 0 and width % stride == 0:
        return x
    return F.pad(x, (0, -width % stride, 0, -height % stride))


def check_masks(frame: Tensor, mask: Tensor, stride: int) -> None:
    """Refuse masks that do not lie on their frame, and frames that the stride does not divide."""
    if mask.shape[1] == 0:
        raise ValueError("there is no object to segment: the masks hold none")
    if mask.shape[0] != frame.shape[0] or mask.shape[2:] != frame.shape[2:]:
        raise ValueError(f"masks {list(mask.shape)} do not lie on frames {list(frame.shape)}")
    if any(n % stride for n in frame.shape[2:]):
        raise ValueError(f"frames must be multiples of {stride} pixels, got {list(frame.shape)}")


def check_first_masks(frames: Tensor, mask0: Tensor, stride: int) -> None:
    """Refuse a clip that cannot be propagated."""
    if frames.shape[1] == 0:
        raise ValueError("the clip has no frame")
    check_masks(pad(frames[:, 0], stride), pad(mask0, stride), stride)
    if mask0.shape[2:] != frames.shape[3:]:
        raise ValueError(f"masks {list(mask0.shape)} do not lie on clips {list(frames.shape)}")
    if not ((mask0 == 0) | (mask0 == 1)).all():
        raise ValueError("first masks must be binary, 0 or 1")
    if not mask0.flatten(2).any(dim=2).all():
        raise ValueError("a first mask is empty: there is no object to follow")
    if (mask0.sum(dim=1) > 1).any():
        raise ValueError("first masks must not overlap")
