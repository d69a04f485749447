"""A two-stage detector that accepts soft labels: Faster R-CNN, small.

A region proposal network (RPN) says where something may be; a head looks at each such region of
interest (RoI) and says what it is, background included, and moves its box.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from toolkit.scenes.anchors import make_anchors
from toolkit.scenes.boxes import (
    check_targets,
    decode_boxes,
    encode_boxes,
    is_box,
    pad_boxes,
    pairwise_iou,
)
from toolkit.scenes.detections import Detections, select
from toolkit.scenes.matching import IGNORED, NEGATIVE, match
from toolkit.scenes.pyramid import EmojiPyramid

BETA = 1 / 9
"""Where the smooth L1 loss turns from square to straight, as in torchvision."""
DELTA_UNITS = (0.1, 0.1, 0.2, 0.2)
"""Units of the RoI head's deltas: shifts, log-ratios; as in Fast R-CNN."""

Losses = dict[str, Float[Tensor, ""]]


@dataclass(frozen=True)
class Anatomy:
    """Sizes and thresholds of a two-stage detector; the defaults are the small one's."""

    sides: tuple[float, ...] = (14.0, 26.0)  # of the anchors of each level, px; Faster R-CNN 32–512
    ratios: tuple[float, ...] = (0.6, 1.0, 1.7)  # height over width
    candidates: int = 50  # of each level, before suppression
    proposals: int = 40  # of an image, after it
    proposal_iou: float = 0.7  # of two that overlap more, the lower score goes
    rpn_samples: int = 64  # anchors of an image that train; release 256
    rpn_iou: tuple[float, float] = (0.3, 0.6)  # negative below, positive from; release .3, .7
    roi_samples: int = 32  # regions of an image that train; release 64
    roi_iou: float = 0.5  # positive from
    pool: int = 5  # side of the pooled features; release 7
    points: int = 1  # that each pooled feature is read from, on each axis
    hidden: int = 128  # of the two layers; release 1024
    pooled: int = 2  # levels that regions pool from; release 4 of 5
    canonical: tuple[int, int] = (24, 3)  # a region of this √area pools from stride 2^level


class RCNN(nn.Module):
    """Pyramid, proposals, and a head of two layers with class-agnostic box regression."""

    units: Tensor

    def __init__(
        self,
        num_classes: int,
        pyramid: nn.Module,
        image_size: int | None,
        anatomy: Anatomy | None = None,
    ):
        """Build it.

        Args:
            num_classes: C, without the background.
            pyramid: gives one map a level; it has `strides` and `width`.
            image_size: side of the square images, or `None` where each batch has its own.
            anatomy: sizes and thresholds.

        Raises:
            ValueError: for no class, or another number of anchor sides than of levels.
        """
        super().__init__()
        self.anatomy = parts = anatomy or Anatomy()
        self.strides: tuple[int, ...] = tuple(pyramid.strides)  # type: ignore[arg-type]
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if len(parts.sides) != len(self.strides):
            raise ValueError(f"need one anchor side a level, got {parts.sides} for {self.strides}")
        self.num_classes, self.image_size, self.pyramid = num_classes, image_size, pyramid
        width: int = pyramid.width  # type: ignore[assignment]
        self.rpn = RPNHead(width, len(parts.ratios))
        scale, level = parts.canonical
        names = [str(number) for number in range(parts.pooled)]
        self.pooler = MultiScaleRoIAlign(
            names, parts.pool, parts.points, canonical_scale=scale, canonical_level=level
        )
        self.trunk = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * parts.pool**2, parts.hidden),
            nn.ReLU(),
            nn.Linear(parts.hidden, parts.hidden),
            nn.ReLU(),
        )
        self.classify = nn.Linear(parts.hidden, num_classes + 1)
        self.regress = nn.Linear(parts.hidden, 4)
        self._initialise()
        self.register_buffer("units", torch.tensor(DELTA_UNITS), persistent=False)
        self._grids: dict = {}

    def features(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """One map a level; pixels from 0 to 1."""
        return self.pyramid(x)

    def proposals(
        self, feats: Sequence[Tensor], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "batch most 4"]:
        """Regions that may hold an object, by falling objectness, padded with NaN; no gradient.

        Args:
            feats: of `features`.
            size: height and width of the images; by default from the finest map.
        """
        size = size or self._size(feats)
        return self._propose(*self._objectness(feats), size)

    def roi_predict(
        self,
        feats: Sequence[Tensor],
        boxes: Float[Tensor, "batch most 4"],
        size: tuple[int, int] | None = None,
    ) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n 4"]]:
        """What the head says of regions.

        Args:
            feats: of `features`.
            boxes: regions of each image, padded with NaN.
            size: height and width of the images; by default from the finest map.

        Returns:
            Logits [n, C + 1], the background last, and deltas [n, 4] in units of `DELTA_UNITS`, of
            the n regions in the order of `is_box(boxes).nonzero()`.
        """
        real = is_box(boxes)
        maps = {str(level): one for level, one in enumerate(feats)}
        regions = [some[mask] for some, mask in zip(boxes, real, strict=True)]
        pooled = self.pooler(maps, regions, [size or self._size(feats)] * len(boxes))
        hidden = self.trunk(pooled)
        return self.classify(hidden), self.regress(hidden)

    def refine(
        self, feats: Sequence[Tensor], boxes: Float[Tensor, "batch most 4"]
    ) -> tuple[Float[Tensor, "batch most 4"], Float[Tensor, "batch most classes"]]:
        """Boxes to which the head moves regions, and their C + 1 probabilities; both padded.

        Where there is no region the box is NaN and every probability 0.
        """
        real = is_box(boxes)
        logits, deltas = self.roi_predict(feats, boxes)
        moved = torch.full_like(boxes, torch.nan)
        moved[real] = decode_boxes(deltas * self.units, boxes[real])
        probabilities = boxes.new_zeros(*real.shape, self.num_classes + 1)
        probabilities[real] = logits.softmax(-1)
        height, width = self._size(feats)
        far = moved.new_tensor([width, height, width, height])
        return moved.clamp(min=0).minimum(far), probabilities

    @torch.no_grad()
    def predict(
        self,
        x: Float[Tensor, "batch 3 height width"],
        threshold: float = 0.001,
        nms_iou: float = 0.5,
        most: int = 100,
    ) -> list[Detections]:
        """Detections of each image; a region may be reported for several classes."""
        feats = self.features(x)
        boxes, scores = self.refine(feats, self.proposals(feats))
        return select(
            boxes,
            scores[..., :-1],
            (x.shape[2], x.shape[3]),
            threshold=threshold,
            nms_iou=nms_iou,
            most=most,
        )

    def loss(
        self,
        x: Float[Tensor, "batch 3 height width"],
        boxes: Sequence[Float[Tensor, "_ 4"]],
        soft_labels: Sequence[Float[Tensor, "_ classes"]],
        generator: torch.Generator | None = None,
    ) -> Losses:
        """The training loss of a batch; an image may have no object.

        A region matched with object i has the target vector y = `soft_labels[i]` and pays
        −Σ_c y_c log p_c; y may sum to less than 1, which is not given to the background. The RPN
        and the box regression know no soft weights (as in the release).

        Args:
            x: pixels from 0 to 1.
            boxes: of each image, x₀, y₀, x₁, y₁ in pixels.
            soft_labels: one vector of C + 1 entries a box, the background last.
            generator: on the CPU; decides which anchors and regions train.

        Returns:
            `rpn_cls`, `rpn_reg`, `roi_cls`, `roi_reg`, and their sum `total`.

        Raises:
            ValueError: for boxes that cannot be right (see `check_targets`), or vectors with
                negative entries, a sum above 1 or another length.
        """
        size = (x.shape[2], x.shape[3])
        check_soft(boxes, soft_labels, size, self.num_classes)
        padded = pad_boxes(boxes)
        soft = padded.new_zeros(*padded.shape[:2], self.num_classes + 1)
        for row, some in zip(soft, soft_labels, strict=True):
            row[: len(some)] = some
        feats = self.features(x)
        objectness, deltas = self._objectness(feats)
        losses = self._rpn_loss(objectness, deltas, padded, size, generator)
        regions = self._propose(objectness, deltas, size)
        losses |= self._roi_loss(feats, regions, padded, soft, generator)
        return {**losses, "total": torch.stack(list(losses.values())).sum()}

    forward = loss  # so that DistributedDataParallel sees the whole loss

    # --------------------------------------------------------------------------- proposals

    def _objectness(
        self, feats: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "batch anchors"], Float[Tensor, "batch anchors 4"]]:
        scores, deltas = self.rpn(list(feats))
        each = len(self.anatomy.ratios)
        flat = [one.permute(0, 2, 3, 1).flatten(1) for one in scores]
        moves = [one.unflatten(1, (each, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for one in deltas]
        return torch.cat(flat, 1).float(), torch.cat(moves, 1).float()

    @torch.no_grad()
    def _propose(self, objectness: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
        parts = self.anatomy
        found = select(
            decode_boxes(deltas, self.anchors(size, deltas.device).expand_as(deltas)),
            objectness.sigmoid()[..., None],
            size,
            levels=[len(parts.ratios) * (size[0] // s) * (size[1] // s) for s in self.strides],
            per_level=parts.candidates,
            nms_iou=parts.proposal_iou,
            most=parts.proposals,
        )
        return pad_boxes([one.boxes for one in found])

    def anchors(self, size: tuple[int, int], device: torch.device) -> Float[Tensor, "anchors 4"]:
        """The anchors of an image of this height and width; kept for the next batch."""
        key = (size, device)
        if key not in self._grids:
            levels = [
                make_anchors([stride], size, (1.0,), self.anatomy.ratios, side / stride)
                for stride, side in zip(self.strides, self.anatomy.sides, strict=True)
            ]
            self._grids[key] = torch.cat(levels).flatten(0, 1).to(device)
        return self._grids[key]

    def _rpn_loss(
        self,
        objectness: Tensor,
        deltas: Tensor,
        boxes: Float[Tensor, "batch most 4"],
        size: tuple[int, int],
        generator: torch.Generator | None,
    ) -> Losses:
        parts, anchors = self.anatomy, self.anchors(size, boxes.device)
        with torch.no_grad():
            low, high = parts.rpn_iou
            matched = match(pairwise_iou(boxes, anchors[None]), boxes, high, low)
            chosen = sample(matched, parts.rpn_samples, 0.5, generator)
        image, anchor = (chosen & (matched >= 0)).nonzero(as_tuple=True)
        target = encode_boxes(boxes[image, matched[image, anchor]], anchors[anchor])
        shift = F.smooth_l1_loss(deltas[image, anchor], target, beta=BETA, reduction="sum")
        wanted = (matched[chosen] >= 0).to(objectness.dtype)
        return {
            "rpn_cls": F.binary_cross_entropy_with_logits(objectness[chosen], wanted),
            "rpn_reg": shift / len(wanted),
        }

    # --------------------------------------------------------------------------- regions

    def _roi_loss(
        self,
        feats: Sequence[Tensor],
        regions: Float[Tensor, "batch proposals 4"],
        boxes: Float[Tensor, "batch most 4"],
        soft: Float[Tensor, "batch most classes"],
        generator: torch.Generator | None,
    ) -> Losses:
        parts = self.anatomy
        regions = torch.cat([regions, boxes], 1)  # a true box is a region, too
        iou = pairwise_iou(boxes, regions.nan_to_num(0))
        matched = match(iou, boxes, parts.roi_iou, parts.roi_iou, force=False)
        matched = matched.masked_fill(~is_box(regions), IGNORED)
        chosen = sample(matched, parts.roi_samples, 0.25, generator)
        logits, deltas = self.roi_predict(
            feats, regions.masked_fill(~chosen[..., None], torch.nan), self._size(feats)
        )
        image, place = chosen.nonzero(as_tuple=True)
        which = matched[image, place]
        hit = which >= 0
        target = encode_boxes(boxes[image[hit], which[hit]], regions[image[hit], place[hit]])
        y = F.one_hot(torch.full_like(which, self.num_classes), self.num_classes + 1).to(soft)
        y[hit] = soft[image[hit], which[hit]]
        return roi_losses(logits, deltas[hit], y, target / self.units)

    def _size(self, feats: Sequence[Tensor]) -> tuple[int, int]:
        height, width = feats[0].shape[2:]
        return self.strides[0] * height, self.strides[0] * width

    def _initialise(self) -> None:
        for layer in [*self.trunk, *self.rpn.conv.modules()]:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for last, deviation in ((self.classify, 0.01), (self.regress, 0.001)):
            nn.init.normal_(last.weight, std=deviation)
            nn.init.zeros_(last.bias)


class TinyRCNN(RCNN):
    """The chapter's detector, 0.4 million parameters: the emoji backbone, strides 4 and 8."""

    def __init__(
        self,
        num_classes: int,
        image_size: int = 64,
        fpn: int = 48,
        *,
        pretrained: bool = True,
        anatomy: Anatomy | None = None,
    ):
        """Build it.

        Args:
            num_classes: C, without the background.
            image_size: side of the images in pixels, a multiple of 8.
            fpn: channels of the pyramid.
            pretrained: start from the shared backbone's weights; else at random.
            anatomy: sizes and thresholds.

        Raises:
            ValueError: for no class, another width, or a side that is no multiple of 8.
            DataMissing: if the weights are not prepared.
        """
        if image_size < 8 or image_size % 8:
            raise ValueError(f"image_size must be a positive multiple of 8, got {image_size}")
        pyramid = EmojiPyramid((4, 8), fpn, pretrained)
        super().__init__(num_classes, pyramid, image_size, anatomy)


def roi_losses(
    logits: Float[Tensor, "n classes"],
    deltas: Float[Tensor, "hits 4"],
    soft: Float[Tensor, "n classes"],
    target: Float[Tensor, "hits 4"],
) -> Losses:
    """Both losses of the head, each divided by the number n of regions.

    With one-hot `soft` they are torchvision's `fastrcnn_loss`.
    """
    count = max(len(logits), 1)
    return {
        "roi_cls": -(soft * logits.log_softmax(-1)).sum() / count,
        "roi_reg": F.smooth_l1_loss(deltas, target, beta=BETA, reduction="sum") / count,
    }


def sample(
    matched: Int64[Tensor, "batch priors"],
    size: int,
    share: float,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "batch priors"]:
    """Choose priors at random: at most `share` of `size` positive ones, negative ones for the rest.

    Args:
        matched: as by `match`: an object's index, −1 (negative) or −2 (ignored).
        size: of each image.
        share: largest share of positive ones.
        generator: on the CPU.
    """
    keys = torch.rand(matched.shape, generator=generator).to(matched.device)
    positive = _lowest(keys, matched >= 0, torch.full_like(matched[:, :1], int(size * share)))
    rest = size - positive.sum(1, keepdim=True)
    return positive | _lowest(keys, matched == NEGATIVE, rest)


def check_soft(
    boxes: Sequence[Float[Tensor, "_ 4"]],
    soft_labels: Sequence[Float[Tensor, "_ classes"]],
    image_size: tuple[int, int],
    num_classes: int,
) -> None:
    """Refuse boxes and soft labels that cannot be right.

    Raises:
        ValueError: as `check_targets`; for vectors of another length than C + 1, with negative
            entries or a sum above 1.
    """
    check_targets(boxes, [some.new_zeros(len(some)).long() for some in soft_labels], image_size, 1)
    for some in soft_labels:
        if some.ndim != 2 or some.shape[1] != num_classes + 1:
            raise ValueError(f"need {num_classes + 1} entries a box, got {tuple(some.shape)}")
    every = torch.cat(list(soft_labels))
    if bool((every < 0).any()) or bool((every.sum(1) > 1 + 1e-5).any()):
        raise ValueError("soft labels must not be negative, and sum to at most 1")


def one_hot(labels: Int64[Tensor, "*batch"], num_classes: int) -> Float[Tensor, "*batch classes"]:
    """Labels as vectors of C + 1 entries; the background, last, stays 0. Padding, −1, is all 0."""
    wide = F.one_hot(labels.clamp(min=0), num_classes + 1).float()
    return wide * (labels >= 0)[..., None]


def _lowest(keys: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """Mark in each row the `count` lowest keys of those in `among`."""
    rank = keys.masked_fill(~among, 2.0).argsort(1).argsort(1)
    return among & (rank < count)
