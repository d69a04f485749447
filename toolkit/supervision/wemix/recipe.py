"""The hyper-parameters of the small experiment.

The paper's tables and hyper-parameters could not be read: no value here is the paper's. All
methods share one learning rate and one schedule; the study `rates` asks whether that is fair.
"""

from dataclasses import dataclass

from toolkit.supervision.wemix.augment import LABEL_MIXING, LABEL_PRESERVING
from toolkit.supervision.wemix.method import PRESETS, WeMixSchedule

CONTROLS = ("orig_double", "regmixup", "refine")


@dataclass(frozen=True)
class Recipe:
    """One augmentation and the methods that use it, on a few hundred images.

    The arms that exist: `orig`, `aug`, `augdrop`, `mixloss`, `wemix`; and as controls
    `orig_double` (originals, twice the batch: MixLoss's compute), `regmixup` (the sum of both
    losses instead of the mean) and `refine` (AugDrop, but each stage has a cosine of its own).
    """

    arms: tuple[str, ...] = PRESETS  # methods to run
    seeds: int = 4  # runs behind a verdict; ours
    augmentation: str = "affine"  # its name
    strength: float = 0.35  # σ in [0, 1], of the label-preserving ones
    alpha: float = 1.0  # of Beta(alpha, alpha), of mixup and CutMix
    flip: bool = True  # whether the affine augmentation mirrors
    lam: float = 0.5  # λ, the weight of the originals in MixLoss; ours
    stage1_fraction: float = 0.75  # T₁ / T; ours
    images: int = 500  # n, originals
    test_images: int = 3000  # never augmented
    steps: int = 600  # T, the same for every method
    batch: int = 50  # originals a step
    lr: float = 0.05  # at the first step, with a cosine to 0 over all T steps
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # of SGD
    refine_lr: float = 0.005  # first rate of stage 2 in `refine`
    draws: int = 20  # of the augmentation, to measure its bias; 0 does not

    def check(self) -> None:
        """Refuse what cannot be run, before any work.

        Raises:
            ValueError: for an unknown arm or augmentation, or a number out of range.
        """
        if unknown := [arm for arm in self.arms if arm not in (*PRESETS, *CONTROLS)]:
            raise ValueError(f"arms are {', '.join((*PRESETS, *CONTROLS))}; got {unknown[0]!r}")
        if self.augmentation not in (*LABEL_PRESERVING, *LABEL_MIXING):
            raise ValueError(f"there is no augmentation {self.augmentation!r}")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength lies in [0, 1], got {self.strength}")
        if not 1 <= self.batch <= self.images:
            raise ValueError(f"batch must be 1 to {self.images} images, got {self.batch}")
        if min(self.lr, self.refine_lr) <= 0:
            raise ValueError(f"learning rates are positive, got {self.lr} and {self.refine_lr}")
        if self.draws and self.draws < 3:
            raise ValueError(f"draws is 0 or at least 3, got {self.draws}")
        WeMixSchedule(self.steps, self.stage1_fraction, self.lam)
