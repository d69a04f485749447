"""One loss for a student: the labels, and what its teacher knows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.networks.nystrom_distillation.landmarks import LandmarkBank
from toolkit.networks.nystrom_distillation.losses import (
    at_loss,
    attention,
    gram_loss,
    hint_loss,
    kd_loss,
    kda_loss,
    rkd_loss,
    sp_loss,
)

Term = tuple[str, str, float]
LAYERS = {"feature": "before the last layer", "logit": "after it", "map": "before pooling"}
KINDS = ("kda", "gram", "sp", "rkd", "kd", "fitnet", "at")


class Taps:
    """The feature (input of the head), logits (its output) and map of a network's last call.

    Forward hooks read them, so any network whose last layer is one module will do.
    """

    def __init__(self, model: nn.Module, head: str, body: str = "") -> None:
        """Attach to a network.

        Args:
            model: the network.
            head: the name of its last layer.
            body: the name of the module whose output is the map; none is kept without.

        Raises:
            ValueError: if the network has no such module.
        """
        modules = dict(model.named_modules())
        for name in (head, body):
            if name and name not in modules:
                raise ValueError(f"the network has no module {name!r}; it has {[*modules][1:9]}")
        self.layers: dict[str, Tensor] = {}
        modules[head].register_forward_hook(self._keep_head)
        if body:
            modules[body].register_forward_hook(self._keep_map)

    def _keep_head(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.layers |= {"feature": inputs[0], "logit": output}

    def _keep_map(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self.layers["map"] = output


class Distiller(nn.Module):
    """Cross-entropy plus distillation terms, with a frozen teacher and the landmarks of both.

    A term is (layer, kind, weight). Layers are `"feature"`, `"logit"` and `"map"`; kinds are

    - `"kda"`: partial kernels with landmarks, the paper's method;
    - `"gram"`, `"sp"`, `"rkd"`: relations within the batch;
    - `"kd"`: soft labels; its weight w also takes the cross-entropy down to 1 − w;
    - `"fitnet"`: features through a linear adaptor; `"at"`: attention of maps.

    For the first `warmup` epochs only the labels count. Training calls the distiller for every
    batch and `end_epoch` once an epoch, on every process. Its parameters are those of the student
    and of the adaptors.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        terms: Sequence[Term] = (("feature", "kda", 0.2), ("logit", "kd", 0.9)),
        warmup: int = 2,
        *,
        num_classes: int,
        widths: tuple[int, int],
        landmarks: int = 0,
        head: str = "head",
        body: tuple[str, str] = ("", ""),
    ) -> None:
        """Attach to both networks and freeze the teacher.

        Args:
            student: to be trained.
            teacher: is set to evaluation mode and stays there; None where there are no terms.
            terms: (layer, kind, weight).
            warmup: epochs with labels only; at least 1 where a term needs landmarks.
            num_classes: L.
            widths: of the features, student and teacher; they may differ.
            landmarks: how many; by default one a class.
            head: the name of the last layer in both networks.
            body: the names of the modules before pooling, for the layer `"map"`.

        Raises:
            ValueError: for terms without a teacher, an unknown layer or kind, a negative weight,
                weights of `"kd"` over 1, a warm-up too short for landmarks, or a network without
                such modules.
        """
        super().__init__()
        _check_terms(terms, warmup)
        if terms and teacher is None:
            raise ValueError("distillation terms need a teacher")
        self.student, self.teacher = student, teacher
        self.terms, self.warmup, self.epoch = tuple(terms), warmup, 0
        mapped = any(layer == "map" for layer, _, _ in terms)
        self.student_taps = Taps(student, head, body[0] if mapped else "")
        if teacher is not None:
            teacher.requires_grad_(False).eval()
            self.teacher_taps = Taps(teacher, head, body[1] if mapped else "")
        dims = {"feature": widths, "logit": (num_classes, num_classes)}
        number = landmarks or num_classes
        self.pairs = {
            layer: (LandmarkBank(number, dims[layer][0]), LandmarkBank(number, dims[layer][1]))
            for layer in sorted({layer for layer, kind, _ in terms if kind == "kda"})
        }
        self.banks = nn.ModuleList(bank for pair in self.pairs.values() for bank in pair)
        hinted = sorted({layer for layer, kind, _ in terms if kind == "fitnet"})
        self.adaptors = nn.ModuleDict({layer: nn.Linear(*dims[layer]) for layer in hinted})

    def train(self, mode: bool = True) -> "Distiller":
        """Switch the student's mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(
        self,
        x: Float[Tensor, "b ..."],
        y: Int64[Tensor, " b"],
        groups: Tensor | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch; also adds the batch to the landmarks.

        Args:
            x: inputs.
            y: labels.
            groups: of which landmark each example is part, as in `LandmarkBank.update`; by default
                its class.
            known: the teacher's layers for this batch, where they were computed before (only
                without augmentation); `"map"` is its `attention`.
        """
        student, teacher = self.layers(x, known)
        for layer, pair in self.pairs.items():
            for bank, features in zip(pair, (student[layer], teacher[layer]), strict=True):
                bank.update(features.detach(), y if groups is None else groups)
        labels, transfer = self.parts(student, teacher, y)
        return labels if transfer is None else labels + transfer

    def layers(
        self, x: Float[Tensor, "b ..."], known: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run the student, and the teacher unless its layers are known."""
        self.student(x)
        taught = self._taught(x) if known is None else dict(known)
        return dict(self.student_taps.layers), taught

    def parts(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], y: Int64[Tensor, " b"]
    ) -> tuple[Tensor, Tensor | None]:
        """What the labels ask for and what the teacher does, weighted; no teacher in warm-up."""
        labels = F.cross_entropy(student["logit"], y)
        if self.epoch < self.warmup or not self.terms:
            return labels, None
        soft = sum(weight for _, kind, weight in self.terms if kind == "kd")
        return (1 - soft) * labels, self._transfer(student, teacher)

    def end_epoch(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Fix the landmarks that the next epoch uses."""
        for pair in self.pairs.values():
            for bank in pair:
                bank.end_epoch(process_group)
        self.epoch += 1

    def get_extra_state(self) -> int:
        """The number of finished epochs, for resuming."""
        return self.epoch

    def set_extra_state(self, state: int) -> None:
        """Resume after so many epochs."""
        self.epoch = int(state)

    @torch.no_grad()
    def _taught(self, x: Tensor) -> dict[str, Tensor]:
        if self.teacher is None:
            return {}
        self.teacher(x)
        layers = dict(self.teacher_taps.layers)
        if "map" in layers:
            layers["map"] = attention(layers["map"])
        return layers

    def _transfer(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the terms."""
        total = student["logit"].new_zeros(())
        for layer, kind, weight in self.terms:
            mine, other = student[layer], teacher[layer]
            if kind == "kda":
                centres, truth = (bank.centres for bank in self.pairs[layer])
                total = total + weight * kda_loss(mine, other, centres, truth)
            elif kind == "fitnet":
                total = total + weight * hint_loss(self.adaptors[layer](mine), other)
            else:
                total = total + weight * RELATIONS[kind](mine, other)
        return total


RELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gram": gram_loss,
    "sp": sp_loss,
    "rkd": rkd_loss,
    "kd": kd_loss,
    "at": at_loss,
}


def _check_terms(terms: Sequence[Term], warmup: int) -> None:
    for layer, kind, weight in terms:
        if layer not in LAYERS or kind not in KINDS:
            raise ValueError(
                f"a term is (layer, kind, weight) with a layer of {', '.join(LAYERS)} and a kind "
                f"of {', '.join(KINDS)}; got {(layer, kind, weight)}"
            )
        if kind == "kd" and layer != "logit":
            raise ValueError("soft labels belong to the layer 'logit'")
        if (kind == "at") != (layer == "map"):
            raise ValueError(f"'at' and the layer 'map' belong together, got {(layer, kind)}")
        if weight < 0:
            raise ValueError(f"weights are 0 or more, got {weight} for {kind}")
    if sum(weight for _, kind, weight in terms if kind == "kd") > 1:
        raise ValueError(
            "the weights of 'kd' sum to more than 1, which leaves the labels less than 0"
        )
    if warmup < 1 and any(kind == "kda" for _, kind, _ in terms):
        raise ValueError(
            f"landmarks exist after one epoch: warmup must be at least 1, got {warmup}"
        )
