"""SICoT: an image branch and a word branch that share one classifier."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.search.sicot.words import UNKNOWN, WordEncoder

COUPLINGS = ("none", "kl", "l2")
CONTEXTS = ("visual", "class")
MODES = ("image", "words", "fused")
Criterion = Callable[[Tensor, Tensor], Tensor]


class SICoT(nn.Module):
    """Semantic embedding and visual feature, trained together (a reconstruction).

    Zhou, Pan, Zheng, Xu and Jin, "Large scale long-tailed product recognition system at Alibaba"
    (2020). Both branches predict the class: zᵛ = W f + b from the visual feature, zˢ = W s + b from
    the words. With W shared, what words teach about a rare class lies where the image is sent.
    """

    def __init__(
        self,
        backbone: nn.Module,
        word_encoder: WordEncoder,
        num_classes: int,
        shared_classifier: bool = True,
        coupling: str = "none",
        lam: float = 0.0,
        context: str = "visual",
        stop_gradient: bool = True,
    ) -> None:
        """Draw the classifier; the parts come drawn.

        Args:
            backbone: images to features [batch, d].
            word_encoder: words to the same width d.
            num_classes: C.
            shared_classifier: one W for both branches, or one each.
            coupling: `"none"`, `"kl"` (each branch learns the other's probabilities) or `"l2"`
                (feature and embedding of unit length move together).
            lam: λ, weight of the coupling.
            context: what steers the attention: `"visual"`, the feature, or `"class"`, the row of W
                of the label, which only training knows.
            stop_gradient: whether the attention may not change what steers it.

        Raises:
            ValueError: for an unknown coupling or context, a negative λ, or fewer than two classes.
        """
        super().__init__()
        if coupling not in COUPLINGS or context not in CONTEXTS:
            raise ValueError(
                f"coupling is one of {COUPLINGS}, context of {CONTEXTS}; got {coupling!r}, "
                f"{context!r}"
            )
        if lam < 0 or num_classes < 2:
            raise ValueError(f"need λ ≥ 0 and two classes, got {lam} and {num_classes}")
        self.backbone, self.words = backbone, word_encoder
        width = word_encoder.out.out_features
        self.classifier = nn.Linear(width, num_classes)
        self.word_classifier = None if shared_classifier else nn.Linear(width, num_classes)
        self.coupling, self.lam = coupling, lam
        self.context, self.stop_gradient = context, stop_gradient

    def forward(
        self,
        images: Float[Tensor, "batch ..."],
        tokens: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        y: Int[Tensor, " batch"] | None = None,
    ) -> dict[str, Tensor]:
        """Both predictions.

        Args:
            images: what the backbone takes.
            tokens: words of each image.
            mask: True at known words.
            y: labels, for the context `"class"` alone.

        Returns:
            `z_v` and `z_s` [batch, C], `f` and `s` [batch, d], `weights` [batch, length].

        Raises:
            ValueError: if the context needs labels and there are none; see also `WordEncoder`.
        """
        f = self.backbone(images)
        s, weights = self.words(tokens, mask, self._steer(f, y))
        if self.word_classifier is None:  # W is read once for both
            z_v, z_s = self.classifier(torch.cat([f, s])).chunk(2)
        else:
            z_v, z_s = self.classifier(f), self.word_classifier(s)
        return {"z_v": z_v, "z_s": z_s, "f": f, "s": s, "weights": weights}

    def loss(
        self,
        out: dict[str, Tensor],
        y: Int64[Tensor, " batch"],
        criterion: Criterion = F.cross_entropy,
    ) -> Float[Tensor, ""]:
        """CE(zᵛ, y) + CE(zˢ, y) + λ L_co, all of them means over the batch.

        Args:
            out: of `forward`.
            y: labels.
            criterion: `(logits, y) -> mean loss`, the same for both branches.
        """
        both = criterion(out["z_v"], y) + criterion(out["z_s"], y)
        if self.coupling == "none" or self.lam == 0:
            return both
        if self.coupling == "l2":
            gap = F.normalize(out["f"], dim=1) - F.normalize(out["s"], dim=1)
            return both + self.lam * gap.square().sum(1).mean()
        return both + self.lam * mutual_kl(out["z_v"], out["z_s"])

    @torch.no_grad()
    def predict(
        self,
        images: Float[Tensor, "n ..."],
        tokens: Int[Tensor, "n length"] | None = None,
        mode: str = "image",
        size: int = 1024,
    ) -> Float[Tensor, "n classes"]:
        """Probabilities of the classes, in evaluation mode.

        Args:
            images: what the backbone takes.
            tokens: words; needed but for images alone.
            mode: `"image"` (a shopper's photograph has no title), `"words"` (the visual feature
                still steers the attention), or `"fused"`, the mean of both.
            size: images at a time.

        Raises:
            ValueError: for another mode, or a mode that needs words and gets none.
        """
        if mode not in MODES:
            raise ValueError(f"mode is one of {MODES}, got {mode!r}")
        if mode != "image" and tokens is None:
            raise ValueError(f"mode {mode!r} needs tokens")
        if mode != "image" and self.context == "class":
            raise ValueError("a model steered by labels predicts from images alone")
        training = self.training
        self.eval()
        parts = []
        for start in range(0, len(images), size):
            some = slice(start, start + size)
            x, t = images[some], None if tokens is None else tokens[some]
            parts.append(self._probabilities(x, t, mode))
        self.train(training)
        return torch.cat(parts)

    def _probabilities(self, x: Tensor, tokens: Tensor | None, mode: str) -> Tensor:
        if mode == "image" or tokens is None:
            return self.classifier(self.backbone(x)).softmax(dim=1)
        out = self(x, tokens, tokens > UNKNOWN)
        words = out["z_s"].softmax(dim=1)
        return words if mode == "words" else (out["z_v"].softmax(dim=1) + words) / 2

    def _steer(self, f: Tensor, y: Tensor | None) -> Tensor:
        if self.context == "class":
            if y is None:
                raise ValueError("the context 'class' needs labels")
            row = self.classifier.weight[y]
        else:
            row = f
        return row.detach() if self.stop_gradient else row


def mutual_kl(
    z_v: Float[Tensor, "batch classes"], z_s: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """KL(pˢ‖pᵛ) + KL(pᵛ‖pˢ), the teacher of each term held constant (mutual learning)."""
    log_v, log_s = z_v.log_softmax(dim=1), z_s.log_softmax(dim=1)
    kl: Any = F.kl_div
    return kl(log_v, log_s.detach(), reduction="batchmean", log_target=True) + kl(
        log_s, log_v.detach(), reduction="batchmean", log_target=True
    )
