"""Every setting of the small experiment."""

from dataclasses import dataclass

ARMS: dict[str, dict] = {
    "retina": {"head": "retina"},
    "fcos": {"head": "fcos"},
    "semi": {"head": "semi"},
    "semi_iou": {"head": "semi", "reg_anchors": "iou"},
    "semi_dr": {"head": "semi", "cls_loss": "dr"},
    "semi_center": {"head": "semi", "rule": "center"},
    "fcos_center": {"head": "fcos", "rule": "center"},
    "fcos_centreness": {"head": "fcos", "rule": "center", "quality": "centreness"},
    "semi_1": {"head": "semi", "scales": (1.0,), "ratios": (1.0,)},
    "semi_3": {"head": "semi", "scales": (1.0,)},
}
"""Options of `OneStageDetector` by arm."""


@dataclass(frozen=True)
class Recipe:
    """Train detectors that differ in their samples; one seed, all arms.

    Arms: `retina` classifies and regresses anchors, `fcos` classifies locations and regresses one
    box, both with `semi`'s pyramid, losses and quality branch; `semi_iou` regresses only anchors of
    IoU ≥ ½; `semi_dr` has the ranking loss; `semi_center`, `fcos_center` sample the middle of
    objects, `fcos_centreness` is FCOS with its centre-ness, too; `semi_1`, `semi_3` have one anchor
    or three at each location.
    """

    arms: tuple[str, ...] = ("retina", "fcos", "semi")
    seeds: int = 1  # of verdicts
    aspect: int = 3  # largest ratio of an object's sides, 3 or 1; ours
    steps: int = 120  # of AdamW; paper 180,000 of SGD [unverified]
    batch: int = 12  # images a step; paper 16 [unverified]
    lr: float = 4e-3  # largest rate of AdamW, cosine; ours
    rates: tuple[tuple[str, float], ...] = ()  # arms with a rate of their own
    warmup: int = 20  # steps of linear warm-up; ours
    clip: float = 10.0  # largest norm of the gradient; ours
    test_images: int = 150  # of the split that judges; paper: COCO test-dev
    judge: str = "test"  # or "val", to choose rates on
    decodes: tuple[str, ...] = ()  # further ways to decode `semi`, without training again
    base: float = 3.0  # side of an anchor at scale 1, in strides; paper 4 [unverified]

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if not self.arms or set(self.arms) - set(ARMS):
            raise ValueError(f"arms must be some of {', '.join(ARMS)}; got {self.arms}")
        if set(self.decodes) - {"all", "mean"}:
            raise ValueError(f"decodes must be of 'all' and 'mean', got {self.decodes}")
        if min(self.steps, self.batch, self.test_images) < 1 or self.lr <= 0:
            raise ValueError("steps, batch, test_images and lr must be positive")
        if self.aspect not in (1, 3):
            raise ValueError(f"aspect must be 1 or 3, got {self.aspect}")
        if self.judge not in ("test", "val"):
            raise ValueError(f"judge must be 'test' or 'val', got {self.judge!r}")

    def rate(self, arm: str) -> float:
        """The learning rate of an arm."""
        return dict(self.rates).get(arm, self.lr)
