"""The hyper-parameters of the small experiment."""

import math
from dataclasses import dataclass, replace

from toolkit.networks.nystrom_distillation.distiller import Term

LANDMARKS = ("kda", "kmeans", "random", "gaussian")
"""First word of an arm whose partial kernels are matched: with class means, cluster means, single
examples, random combinations."""

LAYERS = {"feature": ("feature",), "logit": ("logit",), "combo": ("feature", "logit")}

ARMS = (
    "ce",
    "kd_logit",
    "fitnet_feature",
    "at_map",
    "rkd_feature",
    "sp_feature",
    *(f"gram_{layer}" for layer in LAYERS),
    *(f"{kind}_{layer}" for kind in LANDMARKS for layer in LAYERS),
)


@dataclass(frozen=True)
class Recipe:
    """Students that differ in what they take over from one teacher.

    An arm is `ce` (labels only) or KIND_LAYER, with the layer `feature`,
    `logit` or `combo` (both); a suffix such as `@40` sets the number of landmarks.
    """

    arms: tuple[str, ...] = ("ce", "kd_logit", "gram_feature", "kda_feature", "kda_logit")
    seeds: int = 4  # behind a verdict
    data: str = "fashion"  # or glyphs
    classes: int = 10  # L; paper 100 and 200
    images: int = 1024  # of the student, of those that the teacher saw
    teacher_images: int = 15_000
    teacher_epochs: int = 4
    teacher_seed: int = 0
    teacher_width: tuple[int, int] = (24, 96)  # first channels, features; paper ResNet-34, 512
    student_width: tuple[int, int] = (6, 32)  # paper ResNet-18, 512
    epochs: int = 30  # paper 120
    batch: int = 64  # paper 256
    lr: float = 0.1  # of SGD; paper 0.1
    momentum: float = 0.9  # paper 0.9
    weight_decay: float = 5e-4  # paper 5e-4
    warmup: int = 2  # epochs with labels only and a rising rate; paper 5
    weights: tuple[tuple[str, float], ...] = ()  # α by arm; paper 0.04, for its own sizes
    test_images: int = 4_000

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if not self.arms or any(arm.partition("@")[0] not in ARMS for arm in self.arms):
            raise ValueError(f"arms must be some of {', '.join(ARMS)}; got {self.arms}")
        if self.data not in ("fashion", "glyphs"):
            raise ValueError(f"data is 'fashion' or 'glyphs', got {self.data!r}")
        if self.data == "fashion" and self.classes != 10:
            raise ValueError(f"Fashion-MNIST has 10 classes, got {self.classes}")
        if not 1 <= self.batch <= self.images <= self.teacher_images:
            raise ValueError(
                "need batch ≤ images ≤ teacher_images, got "
                f"{self.batch}, {self.images}, {self.teacher_images}"
            )
        if self.images % self.batch:
            raise ValueError(
                f"images must be whole batches, so that every epoch sees every image; got "
                f"{self.images} and batches of {self.batch}"
            )
        if not 1 <= self.warmup < self.epochs:
            raise ValueError(f"warmup must lie in 1…{self.epochs - 1}, got {self.warmup}")

    def terms(self, arm: str) -> tuple[Term, ...]:
        """What an arm asks of the student beside the labels."""
        name = arm.partition("@")[0]
        if name == "ce":
            return ()
        kind, _, place = name.partition("_")
        loss = "kda" if kind in LANDMARKS else kind
        return tuple((layer, loss, self.weight(arm)) for layer in LAYERS.get(place, (place,)))

    def weight(self, arm: str) -> float:
        """α of an arm: the recipe's, else a usual one.

        Other landmarks take the α of the class means; m of them instead of L keep α√m.
        """
        chosen = DEFAULTS | dict(self.weights)
        name, _, number = arm.partition("@")
        kind, _, place = name.partition("_")
        alpha = chosen.get(name) or chosen[f"kda_{place}" if kind in LANDMARKS else name]
        return alpha * math.sqrt(self.classes / int(number)) if number else alpha

    def landmarks(self, arm: str) -> int:
        """How many landmarks an arm has."""
        return int(arm.partition("@")[2] or self.classes)


DEFAULTS = {
    "kd_logit": 0.9,
    "fitnet_feature": 2.0,
    "at_map": 6.0,
    "rkd_feature": 0.1,
    "sp_feature": 80.0,
    "gram_feature": 0.08,
    "gram_logit": 0.08,
    "gram_combo": 0.08,
    "kda_feature": 0.2,
    "kda_logit": 0.08,
    "kda_combo": 0.08,
}
"""α by arm, where the recipe names none."""


def studies(profile: str) -> dict[str, list[Recipe]]:
    """Every setting of the chapter's students, by the study it belongs to.

    `main` decides most claims. In `full` alone: `strength` (class means and the batch Gram at equal
    α√m), `kinds` and `numbers` (other landmarks, and how many), `sizes` (a smaller and a larger
    student), `easy` (a student with all of its teacher's images), `glyphs` (200 classes: more
    landmarks than a batch has examples).

    Raises:
        ValueError: for another profile.
    """
    if profile == "quick":
        return {"main": [Recipe()]}
    if profile != "full":
        raise ValueError(f"the chapter's studies are those of quick or full, got {profile!r}")
    rivals = ("ce", "kd_logit", "fitnet_feature", "at_map", "rkd_feature", "sp_feature")
    main = Recipe(arms=(*rivals, *ARMS[6:8], *ARMS[9:12]), seeds=8)
    few = ("ce", "kd_logit", "gram_feature", "kda_feature", "kda_logit")
    equal = (("gram_feature", 0.08), ("kda_feature", 0.08 * math.sqrt(64 / 10)))
    kinds = tuple(f"{kind}_{layer}" for kind in LANDMARKS[1:3] for layer in ("feature", "logit"))
    numbers = tuple(f"{kind}_feature@{m}" for kind in LANDMARKS[1:] for m in (5, 20, 80))
    glyphs = replace(
        main,
        arms=few,
        seeds=6,
        data="glyphs",
        classes=200,
        images=1600,
        teacher_images=1600,
        teacher_epochs=40,
        test_images=800,
    )
    ours = ("ce", "kda_feature", "kda_logit")
    easy = replace(
        main, arms=ours[:2], seeds=2, images=3072, teacher_images=3072, teacher_epochs=20
    )
    return {
        "main": [main],
        "strength": [replace(main, arms=("gram_feature", "kda_feature"), weights=equal)],
        "kinds": [replace(main, arms=kinds, seeds=4)],
        "numbers": [replace(main, arms=numbers, seeds=1)],
        "sizes": [replace(main, arms=ours, seeds=2, student_width=w) for w in ((4, 16), (12, 64))],
        "easy": [easy],
        "glyphs": [glyphs],
    }
