"""Instant-Teaching: label and learn in the same step."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from toolkit.scenes.boxes import is_box, pad_boxes, pad_labels
from toolkit.scenes.detections import Detections
from toolkit.scenes.instant_teaching.augment import (
    View,
    clip_boxes,
    map_boxes,
    original,
    strong_augment,
    weak_augment,
)
from toolkit.scenes.instant_teaching.detector import RCNN, one_hot
from toolkit.scenes.instant_teaching.labels import check_tau, co_rectify, pseudo_label
from toolkit.scenes.instant_teaching.mixing import Example, mix

Augment = Callable[[Tensor, torch.Generator], tuple[Tensor, View]]


class Batch(NamedTuple):
    """Pictures with boxes in them, true or frozen, or with none at hand."""

    images: UInt8[Tensor, "batch 3 height width"]
    boxes: Float[Tensor, "batch most 4"] | None = None
    """Padded with NaN; `None`: the networks must label."""
    labels: Int64[Tensor, "batch most"] | None = None
    """Padded with −1."""


class InstantTeacher:
    """One or two detectors that teach themselves; with two, each corrects the other's labels."""

    def __init__(
        self,
        models: Sequence[RCNN],
        tau: float,
        lambda_u: float = 1.0,
        mix_prob: float = 0.5,
        refresh: int = 1,
        *,
        ema: float | None = None,
        passes: int = 2,
        generator: torch.Generator,
        weak: Augment = weak_augment,
        strong: Augment = strong_augment,
        trained: Sequence[nn.Module] | None = None,
    ):
        """Prepare to teach.

        Args:
            models: one detector (Instant-Teaching), or two that began apart (Instant-Teaching*).
            tau: τ, the threshold of pseudo labels.
            lambda_u: λ_u, the weight of the unlabelled loss.
            mix_prob: probability that an unlabelled picture is mixed with a labelled one.
            refresh: steps between two looks of the labelling network at the learning one; 1 is
                instant.
            ema: if given, label by this moving average of the weights (not in the paper).
            passes: of co-rectify.
            generator: on the CPU: views, mixtures, samples.
            weak: α, the views of labelled pictures and those in which labels are found.
            strong: A, the views to learn from.
            trained: what wraps the models in training, as DistributedDataParallel does.

        Raises:
            ValueError: for τ outside (0, 1), no or more than two models, a probability or average
                outside [0, 1], a negative weight or no refresh.
        """
        check_tau(tau)
        if len(models) not in (1, 2):
            raise ValueError(f"need one model or two, got {len(models)}")
        if not 0 <= mix_prob <= 1 or not 0 <= (ema or 0) < 1:
            raise ValueError(f"need 0 ≤ mix_prob ≤ 1 and 0 ≤ ema < 1, got {mix_prob=}, {ema=}")
        if lambda_u < 0 or refresh < 1:
            raise ValueError(f"need lambda_u ≥ 0 and refresh ≥ 1, got {lambda_u=}, {refresh=}")
        self.models, self.tau, self.lambda_u = list(models), tau, lambda_u
        self.mix_prob, self.refresh, self.ema, self.passes = mix_prob, refresh, ema, passes
        self.generator, self.weak, self.strong = generator, weak, strong
        self.trained, self.steps = list(trained or models), 0
        instant = refresh == 1 and ema is None
        self.labellers = self.models if instant else [deepcopy(model) for model in models]

    def step(self, labelled: Batch, unlabelled: Batch | None) -> dict[str, Float[Tensor, ""]]:
        """The loss of one training step; the caller takes the gradient.

        Args:
            labelled: with true boxes.
            unlabelled: as many pictures; with boxes (frozen labels) these are used as they are.
                `None`: learn from the labelled ones alone.

        Returns:
            `total`, to minimise, and `boxes`, pseudo labels a picture.

        Raises:
            ValueError: for batches of different size, or labelled pictures without boxes.
        """
        if labelled.boxes is None or labelled.labels is None:
            raise ValueError("labelled pictures need boxes")
        if unlabelled is not None and len(unlabelled.images) != len(labelled.images):
            sizes = len(labelled.images), len(unlabelled.images)
            raise ValueError(f"mixing needs batches of one size, got {sizes[0]} and {sizes[1]}")
        pictures, view = self.weak(labelled.images.float() / 255, self.generator)
        here = original(len(pictures))
        known = self._examples(pictures, labelled.boxes, labelled.labels, here, view)
        if unlabelled is None:
            return {"total": self._loss(0, known)}
        found, view = self._labels(unlabelled)
        total = torch.stack(
            [
                self._lesson(number, known, unlabelled.images, boxes, labels, view)
                for number, (boxes, labels) in enumerate(found)
            ]
        ).sum()
        self.steps += 1
        return {"total": total, "boxes": is_box(found[0][0]).sum(1).float().mean()}

    def _labels(self, unlabelled: Batch) -> tuple[list[tuple[Tensor, Tensor]], View]:
        """Boxes and classes for each network, and the view in which they were found."""
        count = len(unlabelled.images)
        if unlabelled.boxes is not None and unlabelled.labels is not None:
            return [(unlabelled.boxes, unlabelled.labels)] * len(self.models), original(count)
        self._look()
        weak, view = self.weak(unlabelled.images.float() / 255, self.generator)
        first, second = self.labellers[0], self.labellers[-1]
        if first is second:
            found = [pseudo_label(first, weak, self.tau)]
        else:
            found = [*co_rectify(first, second, weak, self.tau, self.passes)]
        return [padded(labels) for labels in found], view

    def _lesson(
        self,
        number: int,
        known: list[Example],
        images: UInt8[Tensor, "batch 3 height width"],
        boxes: Float[Tensor, "batch most 4"],
        labels: Int64[Tensor, "batch most"],
        view: View,
    ) -> Float[Tensor, ""]:
        """The loss of one network, in a strong view of its own."""
        strong, target = self.strong(images.float() / 255, self.generator)
        guessed = self._examples(strong, boxes, labels, view, target)
        for place, example in enumerate(guessed):
            if float(torch.rand((), generator=self.generator)) < self.mix_prob:
                partner = int(torch.randint(len(known), (), generator=self.generator))
                guessed[place] = mix(example, known[partner], self.generator)
        if self.lambda_u == 1:  # the release: one joint loss
            return self._loss(number, known + guessed)
        supervised, unsupervised = self._loss(number, known), self._loss(number, guessed)
        return 0.5 * supervised + 0.5 * self.lambda_u * unsupervised

    def _examples(
        self, pictures: Tensor, boxes: Tensor, labels: Tensor, T_from: View, T_to: View
    ) -> list[Example]:
        """Pictures with their boxes carried to their view and cut at the border."""
        size = (pictures.shape[2], pictures.shape[3])
        moved = clip_boxes(map_boxes(boxes, T_from, T_to), size)
        soft, real = one_hot(labels, self.models[0].num_classes), is_box(moved)
        return [
            Example(picture, some[mask], weights[mask])
            for picture, some, weights, mask in zip(pictures, moved, soft, real, strict=True)
        ]

    def _loss(self, number: int, examples: list[Example]) -> Float[Tensor, ""]:
        pictures, boxes, soft = (list(column) for column in zip(*examples, strict=True))
        losses = self.trained[number](torch.stack(pictures), boxes, soft, self.generator)
        return losses["total"]

    @torch.no_grad()
    def _look(self) -> None:
        """Let the labelling network take over what has been learnt, when it is time."""
        if self.labellers is self.models:
            return
        for labeller, model in zip(self.labellers, self.models, strict=True):
            if self.ema is not None:
                for old, new in zip(labeller.parameters(), model.parameters(), strict=True):
                    old.lerp_(new, 1 - self.ema)
            elif self.steps % self.refresh == 0:
                labeller.load_state_dict(model.state_dict())


def padded(found: Sequence[Detections]) -> tuple[Tensor, Tensor]:
    """Boxes and classes of detections as padded tensors; the scores are thrown away."""
    boxes, labels = ([getattr(one, name) for one in found] for name in ("boxes", "labels"))
    return pad_boxes(boxes), pad_labels(labels)
