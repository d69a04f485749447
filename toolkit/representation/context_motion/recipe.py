"""Every setting of the small experiment."""

from dataclasses import dataclass

TASKS = {
    "random": ("context",),
    "context": ("context",),
    "motion": ("motion",),
    "both": ("context", "motion"),
    "linear": ("context", "motion"),
    "regression": ("context", "regression"),
    "supervised": ("labels",),
    "supervised_motion": ("labels", "motion"),
    "mosi": ("labels",),
    "pace": ("labels",),
}
"""What each arm is trained to do."""
ARMS = tuple(TASKS)


@dataclass(frozen=True)
class Recipe:
    """Pre-train a tiny video network on compressed video, then ask what it knows; one seed.

    Arms: `context`, `motion` (one task alone), `both` (the method), `regression` (with L1 to the
    vectors instead of InfoNCE), `linear` (a linear map instead of the transformer), `random`
    (untrained, batch norm calibrated), `mosi` and `pace` (other pretext tasks), `supervised` and
    `supervised_motion` (few labels, the second with motion prediction beside them).
    """

    arms: tuple[str, ...] = ("random", "context", "motion", "both")
    seeds: int = 1  # of verdicts
    level: str = "easy"  # of emoji_video
    size: str = "small"  # of its sets
    steps: int = 300  # of pre-training; paper 120 epochs
    videos: int = 8  # a step and task; paper 64 (UCF101), 512 (Kinetics-400)
    kin: int = 8  # of them from one scene where motion is learnt, in other classes; ours
    lr: float = 5e-3  # largest rate of Adam's one cycle; the paper uses SGD
    rates: tuple[tuple[str, float], ...] = ()  # arms with a rate of their own
    weight_decay: float = 1e-4  # paper 1e-3 with SGD
    clip: float = 15.0  # largest norm of the gradient; paper 15
    tau: float = 0.1  # temperature; paper 0.1
    width: int = 64  # of the transformer; paper 512
    layers: tuple[int, int] = (1, 1)  # of encoder and decoder; paper 2 and 4
    heads: int = 4  # paper 8
    dropout: float = 0.0  # in the transformer; paper 0.1
    projection: tuple[int, int] = (128, 64)  # widths of the heads; paper 2048, 512
    gap: int = 2  # frames from the clip's end to the predicted motion; paper 2; negative: overlap
    queries: int = 12  # positions of a clip, the fastest, at which motion is asked for; paper: all
    negatives: int = 3  # other motion windows of a video; paper 3
    shared_crop: bool = False  # whether they share the clip's crop; paper: no
    aware: bool = True  # vectors follow flips and crops; the released code: no
    mirror: float = 0.5  # probability of a flip; paper 0.5
    area: tuple[float, float] = (0.6, 1.0)  # of a crop; paper 0.2–1
    labels: int = 10  # a class, of the two supervised arms
    judge: str = "test"  # or "validation": a fifth of the training scenes, to choose rates on

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if not self.arms or set(self.arms) - set(ARMS):
            raise ValueError(f"arms must be of {', '.join(ARMS)}; got {self.arms}")
        if self.level not in ("easy", "hard"):
            raise ValueError(f"level must be easy or hard, got {self.level!r}")
        if self.judge not in ("test", "validation"):
            raise ValueError(f"judge must be test or validation, got {self.judge!r}")
        if self.steps < 1 or self.videos < 2:
            raise ValueError(f"need a step and two videos: {self.steps}, {self.videos}")
        if self.kin < 1 or self.videos % self.kin:
            raise ValueError(f"videos must be a multiple of kin: {self.videos}, {self.kin}")
        if not -15 <= self.gap <= 2:
            raise ValueError(f"gap must be in -15…2 frames, got {self.gap}")
        if not 0 <= self.negatives <= 3:
            raise ValueError(f"negatives must be in 0…3, got {self.negatives}")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must rise within (0, 1], got {self.area}")

    def rate(self, arm: str) -> float:
        """The learning rate of an arm."""
        return dict(self.rates).get(arm, self.lr)
