"""One one-stage detector with three heads that differ in their samples, and in nothing else.

`retina` classifies and regresses every anchor, `fcos` classifies every location and regresses one
box from it, `semi` classifies every location and regresses several anchors from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.scenes.anchors import OCTAVE, locations, make_anchors
from toolkit.scenes.boxes import check_targets, decode_boxes, pad_boxes, pad_labels
from toolkit.scenes.detections import Detections, select
from toolkit.scenes.heads import Tower, rare_bias
from toolkit.scenes.pyramid import EmojiPyramid, ResNetPyramid
from toolkit.scenes.semi_anchored.assign import (
    HI,
    assign_anchors,
    assign_centres,
    assign_locations,
)
from toolkit.scenes.semi_anchored.losses import (
    centreness,
    dr_loss,
    focal_loss,
    giou_loss,
    paired_iou,
)

OPTIONS = {
    "head": ("semi", "retina", "fcos"),
    "rule": ("anchor", "center"),
    "reg_anchors": ("all", "iou"),
    "decode": ("best", "all", "mean"),
    "cls_loss": ("focal", "dr"),
    "quality": ("iou", "centreness"),
}
REGRESSION_WEIGHT, QUALITY_WEIGHT = 2.0, 0.5

Output = dict[str, Tensor]


@dataclass(frozen=True)
class Targets:
    """What a batch asks of the head: one row a positive sample."""

    matched: Int64[Tensor, "batch samples"]
    """Index of the object, −1 (negative) or −2 (ignored), of each sample of the classifier."""
    labels: Int64[Tensor, "batch samples"]
    """Class of its object; −1 for background; −2 where it does not count."""
    boxes: Float[Tensor, "positives 4"]
    """The object of each positive sample, in the order of `(matched >= 0).nonzero()`."""


class OneStageDetector(nn.Module):
    """A feature pyramid, two towers that all levels share, and one of three heads."""

    def __init__(
        self,
        num_classes: int,
        head: str = "semi",
        rule: str = "anchor",
        reg_anchors: str = "all",
        decode: str = "best",
        cls_loss: str = "focal",
        levels: Sequence[int] = (4, 8, 16),
        *,
        quality: str = "iou",
        scales: Sequence[float] = OCTAVE,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        base: float = 3.0,
        limit: float = 3.0,
        pyramid: EmojiPyramid | ResNetPyramid | None = None,
        depth: int = 2,
        groups: int = 8,
    ):
        """Build it.

        Args:
            num_classes: C.
            head: `"semi"`, `"retina"` or `"fcos"`.
            rule: which locations are positive: `"anchor"`, by the best IoU of their anchors, or
                `"center"`, by FCOS's centre sampling (not for `"retina"`).
            reg_anchors: of a positive location, regress `"all"` anchors or those of an `"iou"` ≥ ½.
            decode: what a location of `"semi"` reports: the box of its `"best"` anchor by predicted
                quality, `"all"` boxes with one score, or their quality-weighted `"mean"`.
            cls_loss: `"focal"` or `"dr"`.
            levels: strides of the pyramid.
            quality: what the quality branch predicts: the `"iou"` of the decoded box, or FCOS's
                `"centreness"` (only for `"fcos"`).
            scales: of the anchors.
            ratios: of the anchors, height over width.
            base: side of an anchor at scale 1, in strides; the one prior of `"fcos"` has it, too.
            limit: of centre sampling, in strides.
            pyramid: gives one map a level; by default `EmojiPyramid(levels)`. It has `strides` and
                `width`.
            depth: convolutions of a tower before its last layer.
            groups: of the towers' group norms.

        Raises:
            ValueError: for an unknown option, one that does not go with the head, or no class.
            DataMissing: if the emoji backbone is not prepared.
        """
        super().__init__()
        _check_options(
            num_classes,
            head=head,
            rule=rule,
            reg_anchors=reg_anchors,
            decode=decode,
            cls_loss=cls_loss,
            quality=quality,
        )
        self.num_classes, self.head, self.rule = num_classes, head, rule
        self.reg_anchors, self.decode, self.cls_loss = reg_anchors, decode, cls_loss
        self.quality_kind, self.limit = quality, limit
        self.scales, self.ratios, self.base = tuple(scales), tuple(ratios), base
        self.pyramid = EmojiPyramid(levels) if pyramid is None else pyramid
        self.strides: tuple[int, ...] = tuple(self.pyramid.strides)
        self.K = 1 if head == "fcos" else len(scales) * len(ratios)
        per_location = self.K if head == "retina" else 1
        width = self.pyramid.width
        self.cls_tower = Tower(width, per_location * num_classes, depth, groups)
        self.reg_tower = Tower(width, 5 * self.K, depth, groups)
        nn.init.constant_(self.cls_tower.last.bias, rare_bias())  # type: ignore[arg-type]
        self._grids: dict = {}

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Output:
        """Run the network.

        Args:
            x: pixels from 0 to 1; sides are multiples of the coarsest stride.

        Returns:
            `cls`: logits [batch, N, C], of `"retina"` [batch, N, K, C]; `boxes`: decoded
            [batch, N, K, 4] in pixels; `quality`: logits [batch, N, K].

        Raises:
            ValueError: for sides that are no multiples of the coarsest stride.
        """
        size = (x.shape[2], x.shape[3])
        grid = self.grid(size, x.device)
        maps = self.pyramid(x)
        cls, reg = self.cls_tower(maps).float(), self.reg_tower(maps).float()
        if self.head == "retina":
            cls = cls.unflatten(2, (self.K, self.num_classes))
        reg = reg.unflatten(2, (self.K, 5))
        boxes = decode_boxes(reg[..., :4], grid["priors"])
        return {"cls": cls, "boxes": boxes, "quality": reg[..., 4]}

    def loss(
        self,
        out: Output,
        boxes: Sequence[Float[Tensor, "_ 4"]],
        labels: Sequence[Int64[Tensor, "_"]],
        image_size: tuple[int, int] = (64, 64),
    ) -> Output:
        """The training loss of a batch; an image may have no object.

        Args:
            out: of `forward`.
            boxes: of each image, in pixels.
            labels: their classes.
            image_size: height and width in pixels.

        Returns:
            `cls`, `reg`, `quality`, and their weighted sum `total`.

        Raises:
            ValueError: for boxes or labels that cannot be right, see `check_targets`.
        """
        check_targets(boxes, labels, image_size, self.num_classes)
        return self.padded_loss(out, pad_boxes(boxes), pad_labels(labels), image_size)

    def padded_loss(
        self,
        out: Output,
        boxes: Float[Tensor, "batch most 4"],
        labels: Int64[Tensor, "batch most"],
        image_size: tuple[int, int],
    ) -> Output:
        """The same with padded objects, unchecked."""
        return self.sample_loss(out, self.targets(boxes, labels, image_size), image_size)

    def sample_loss(
        self,
        out: Output,
        targets: Targets,
        image_size: tuple[int, int],
        positives: Float[Tensor, ""] | None = None,
    ) -> Output:
        """The same from targets; `positives` is N₊ where it is more than this batch's (ranks)."""
        count = (targets.matched >= 0).sum() if positives is None else positives
        count = count.clamp(min=1)
        cls, counted = out["cls"].flatten(1, -2), targets.labels > -2
        if self.cls_loss == "dr":
            classification = dr_loss(cls[counted], targets.labels[counted])
        else:
            classification = focal_loss(cls[counted], targets.labels[counted]) / count
        regression, quality = self._box_losses(out, targets, image_size)
        parts = {"cls": classification, "reg": regression / count, "quality": quality / count}
        weighted = REGRESSION_WEIGHT * parts["reg"] + QUALITY_WEIGHT * parts["quality"]
        return {**parts, "total": parts["cls"] + weighted}

    @torch.no_grad()
    def targets(
        self,
        boxes: Float[Tensor, "batch most 4"],
        labels: Int64[Tensor, "batch most"],
        image_size: tuple[int, int],
    ) -> Targets:
        """What every sample of the classifier should say, for padded objects of a batch."""
        grid = self.grid(image_size, boxes.device)
        if self.rule == "center":
            matched = assign_centres(grid["points"], grid["stride"], boxes, self.limit)
        elif self.head == "retina":
            matched = assign_anchors(grid["anchors"], boxes).flatten(1)
        else:
            matched = assign_locations(grid["anchors"], boxes)
        kinds = labels.gather(1, matched.clamp(min=0))
        image, sample = (matched >= 0).nonzero(as_tuple=True)
        return Targets(
            matched=matched,
            labels=torch.where(matched >= 0, kinds, matched),
            boxes=boxes[image, matched[image, sample]],
        )

    @torch.no_grad()
    def predict(
        self,
        x: Float[Tensor, "batch 3 height width"],
        threshold: float = 0.0,
        nms_iou: float = 0.5,
    ) -> list[Detections]:
        """Detections of each image; the module should be in evaluation mode.

        The score of a box is √(p · σ(q)): class probability and predicted quality. The other
        arguments are those of `toolkit.scenes.detections.select`.
        """
        size = (x.shape[2], x.shape[3])
        boxes, scores = self.candidates(self.forward(x))
        per_location = boxes.shape[1] // len(self.grid(size, x.device)["points"])
        cells = [per_location * (size[0] // s) * (size[1] // s) for s in self.strides]
        return select(boxes, scores, size, levels=cells, threshold=threshold, nms_iou=nms_iou)

    def candidates(
        self, out: Output
    ) -> tuple[Float[Tensor, "batch candidates 4"], Float[Tensor, "batch candidates classes"]]:
        """Every box that the head reports before suppression, with its scores."""
        p, q = out["cls"].sigmoid(), out["quality"].sigmoid()
        if self.head == "retina":
            return out["boxes"].flatten(1, 2), (p * q[..., None]).sqrt().flatten(1, 2)
        if self.decode == "all":
            scores = p[:, :, None].expand(-1, -1, self.K, -1).flatten(1, 2)
            return out["boxes"].flatten(1, 2), scores
        best = q.amax(2, keepdim=True)
        return self.report(out), (p * best).sqrt()

    def report(self, out: Output) -> Float[Tensor, "batch locations 4"]:
        """The one box of each location: of its best anchor by quality, or the weighted mean."""
        q = out["quality"]
        if self.decode == "mean":
            weight = q.sigmoid()[..., None]
            return (out["boxes"] * weight).sum(2) / weight.sum(2)
        best = q.argmax(2)[:, :, None, None].expand(-1, -1, 1, 4)
        return out["boxes"].gather(2, best)[:, :, 0]

    def grid(self, image_size: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
        """Anchors, priors of the regression, middles and strides of all cells, made once a size."""
        key = (tuple(image_size), str(device))
        if key not in self._grids:
            anchors = make_anchors(self.strides, image_size, self.scales, self.ratios, self.base)
            squares = make_anchors(self.strides, image_size, (1.0,), (1.0,), self.base)
            points, level = locations(self.strides, image_size)
            made = {
                "anchors": anchors,
                "priors": squares if self.head == "fcos" else anchors,
                "points": points,
                "stride": torch.tensor(self.strides).float()[level],
            }
            self._grids[key] = {name: one.to(device) for name, one in made.items()}
        return self._grids[key]

    def _box_losses(
        self, out: Output, targets: Targets, image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Sums over positive samples of the regression and the quality loss."""
        positive = targets.matched >= 0
        boxes, q = out["boxes"], out["quality"]
        if self.head == "retina":  # a sample is an anchor: one box each
            boxes, q = boxes.flatten(1, 2)[:, :, None], q.flatten(1)[:, :, None]
        boxes, q = boxes[positive], q[positive]
        chosen = torch.ones_like(q)
        grid = self.grid(image_size, boxes.device)
        where = positive.nonzero(as_tuple=True)[1]
        if self.head == "semi" and self.reg_anchors == "iou":
            chosen = near_anchors(grid["anchors"][where], targets.boxes)
        with torch.no_grad():
            if self.quality_kind == "centreness":
                wanted = centreness(grid["points"][where], targets.boxes)[:, None]
            else:
                wanted = paired_iou(boxes, targets.boxes)
        quality = F.binary_cross_entropy_with_logits(q, wanted, reduction="none")
        return giou_loss(boxes, targets.boxes, chosen), quality.mean(1).sum()


def near_anchors(
    anchors: Float[Tensor, "samples anchors 4"], targets: Float[Tensor, "samples 4"]
) -> Float[Tensor, "samples anchors"]:
    """1 for the anchors of IoU ≥ ½ with the object of their sample, and for the best; else 0."""
    iou = paired_iou(anchors, targets)
    return ((iou >= HI) | (iou == iou.amax(1, keepdim=True))).float()


def _check_options(num_classes: int, **given: str) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    for name, value in given.items():
        if value not in OPTIONS[name]:
            raise ValueError(f"{name} must be one of {', '.join(OPTIONS[name])}; got {value!r}")
    if given["head"] == "retina" and given["rule"] == "center":
        raise ValueError("centre sampling picks locations; head 'retina' classifies anchors")
    if given["head"] != "fcos" and given["quality"] == "centreness":
        raise ValueError("quality 'centreness' is that of a location: it needs head 'fcos'")
