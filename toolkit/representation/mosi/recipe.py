"""Every setting of the small experiment."""

from dataclasses import dataclass

PRETEXTS = (
    "masked",
    "unmasked",
    "flip_wrong",
    "stills",
    "flicker",
    "pairs25",
    "separate",
    "subpixel",
    "rotation",
    "pace",
    "shuffled",
)
ARMS = ("random", *PRETEXTS)


@dataclass(frozen=True)
class Recipe:
    """Pre-train a tiny video network without labels, then ask what it knows; one seed, all arms.

    Arms: `random` (untrained, batch norm calibrated), `masked` (MoSI), `unmasked` (no static mask),
    `flip_wrong` (mirrors clips and keeps their labels, as the released generator does), `stills`
    (sources are photographs, no video frame), `flicker` (brightness and contrast drawn anew in each
    frame, before the mask: the released order), `pairs25` (25 classes, both axes at once),
    `separate` (those with one head an axis), `subpixel` (windows between pixels), `rotation` and
    `pace` (other pretext tasks, on video), `shuffled` (MoSI with its frames shuffled: the control
    that cannot see motion).
    """

    arms: tuple[str, ...] = ("random", "masked", "unmasked", "flip_wrong")
    seeds: int = 1  # of verdicts
    size: str = "small"  # of the video sets, see load_emoji_video; ours
    source_levels: tuple[str, ...] = ("easy",)  # whose training frames are slid over
    levels: tuple[str, ...] = ("easy",)  # whose classes are probed
    look_levels: tuple[str, ...] = ("easy", "hard")  # of the pointing game
    K: int = 2  # speed granularity; paper 2
    source: int = 58  # pixels of the source square; paper 320
    ratio: tuple[float, float] = (0.3, 0.5)  # side of the moving rectangle; paper the same
    steps: int = 120  # of pre-training
    images: int = 4  # a step, each in all classes; paper 10 or 5 a GPU
    lr: float = 1e-2  # largest rate of Adam's one cycle; paper 1e-3
    rates: tuple[tuple[str, float], ...] = ()  # arms with a rate of their own
    weight_decay: float = 1e-4  # paper the same
    dropout: float = 0.0  # before the head; paper 0.5, which a few hundred steps cannot afford
    labels: tuple[int, ...] = ()  # per class, of fine-tuning; 0 stands for all
    tuned_arms: tuple[str, ...] = ()  # arms that are fine-tuned; "scratch" is one, too
    tuned_levels: tuple[str, ...] = ("easy",)  # where
    tuned_steps: int = 60  # of fine-tuning, equal for all
    tuned_lr: float = 3e-3  # largest rate of Adam's one cycle
    tuned_rates: tuple[tuple[str, float], ...] = ()  # arms with a rate of their own
    judge: str = "test"  # or "validation": a fifth of the training scenes, to choose rates on

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        for name, given, known in (
            ("arms", self.arms, ARMS),
            ("tuned_arms", self.tuned_arms, TUNED),
            ("levels", self.levels, LEVELS),
            ("source_levels", self.source_levels, LEVELS),
            ("look_levels", self.look_levels, LEVELS),
            ("tuned_levels", self.tuned_levels, LEVELS),
            ("judge", (self.judge,), ("test", "validation")),
        ):
            if set(given) - set(known):
                raise ValueError(f"{name} must be of {', '.join(known)}; got {given}")
        if self.steps < 1 or self.images < 1 or self.tuned_steps < 1:
            raise ValueError(f"need at least one step and image: {self.steps}, {self.images}")
        if not 40 < self.source <= 72:
            raise ValueError(f"source must be in 41…72 pixels, got {self.source}")

    def rate(self, arm: str) -> float:
        """The learning rate of an arm's pre-training."""
        return dict(self.rates).get(arm, self.lr)

    def tuned_rate(self, arm: str) -> float:
        """The learning rate of its fine-tuning."""
        return dict(self.tuned_rates).get(arm, self.tuned_lr)


LEVELS = ("easy", "hard")
TUNED = ("scratch", "scratch_shuffled", "scratch_frame", *ARMS)
