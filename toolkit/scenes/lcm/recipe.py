"""Every setting of the small experiments: of the matcher, and of the networks."""

from dataclasses import dataclass

ALPHAS = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 100.0, 200.0)
ARMS = ("grm", "pgm", "orm", "lcm", "pgm_blind", "pgm_gate", "pgm_concat", "orm_pool")
SETS = ("tune", "judge", "alone", "teleport", "long")


@dataclass(frozen=True)
class MatcherRecipe:
    """The matcher that learns nothing, on one set of clips; nothing here is drawn.

    Arms: `global` (all earlier frames, by appearance), `position_α` and `window_ρ` (the previous
    frame), `kernel_σ` (Gaussian memory kernels), `copy` (the first mask).
    """

    clips: str = "judge"
    arms: tuple[str, ...] = ("global", "position_0", "position_20", "window_2", "kernel_2", "copy")
    seeds: int = 1
    every: int = 1  # frames between two that stay in memory; 0: none
    count: int = 0  # clips, the first of the set; 0: all

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if self.clips not in SETS:
            raise ValueError(f"clips must be one of {', '.join(SETS)}; got {self.clips!r}")


@dataclass(frozen=True)
class Recipe:
    """One base network a seed, then every arm from that base, for equal numbers of steps.

    Arms: `grm` (global read alone: STM), `pgm` (with position guidance), `orm` (with object
    relation), `lcm` (both); `pgm_blind` (no position code), `pgm_gate` and `pgm_concat` (other
    fusions), `orm_pool` (one prototype).
    """

    arms: tuple[str, ...] = ("grm", "pgm", "orm", "lcm")
    seeds: int = 1  # of verdicts
    base_steps: int = 60  # of the global read alone; ours
    arm_steps: int = 20  # of each arm; ours
    lr: float = 3e-3  # of AdamW with cosine; paper: Adam 1e-5 on pre-trained networks
    arm_lr: float = 3e-3  # of the arms, the same for all
    warmup: int = 20  # steps
    weight_decay: float = 1e-2
    clip: float = 5.0  # norm of the gradient
    batch: int = 6  # clips a step; paper 4
    frames: int = 3  # of a training clip; paper 3
    max_skip: int = 1  # frames left out between two of them, grown from 0; paper 25
    strangers: float = 1.0  # share of clips into which sprites of another are pasted; ours
    key_dim: int = 32  # paper 128
    value_dim: int = 48  # paper 512
    width: int = 32  # of the decoder; paper 256
    backbone: bool = False  # begin with the emoji classifier; paper: ImageNet
    every: int = 5  # frames between two that stay in memory; paper 5
    sets: tuple[str, ...] = ("judge", "alone", "teleport")  # to be scored on
    decoded: tuple[str, ...] = ()  # arms that are scored on `long` from its H.264 files, too
    intervals: tuple[int, ...] = ()  # of memory, tried on a few long clips; 0: none kept

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        for name, given, known in (("arms", self.arms, ARMS), ("sets", self.sets, SETS)):
            if set(given) - set(known):
                raise ValueError(f"{name} must be of {', '.join(known)}; got {given}")
        if min(self.base_steps, self.arm_steps, self.batch) < 1 or self.frames < 2:
            raise ValueError(
                f"need a step, a clip and two frames: {self.base_steps}, {self.arm_steps}, "
                f"{self.batch}, {self.frames}"
            )
