"""Every setting of the small experiment."""

from dataclasses import dataclass

ARMS: dict[str, dict] = {
    "supervised": {"unlabelled": "none"},
    "static": {"unlabelled": "frozen", "mix_prob": 0.0, "lambda_u": 2.0},
    "instant": {},
    "no_mix": {"mix_prob": 0.0},
    "co_rectify": {"networks": 2},
    "co_rectify_1": {"networks": 2, "passes": 1},
    "ema": {"ema": 0.98},
    "oracle": {"unlabelled": "true"},
    "refresh20": {"refresh": 20},
    "refresh80": {"refresh": 80},
    "tau30": {"tau": 0.3},
    "tau50": {"tau": 0.5},
    "tau70": {"tau": 0.7},
    "tau90": {"tau": 0.9},
}
"""What each arm has of its own, beside the settings of `InstantTeacher`."""


@dataclass(frozen=True)
class Recipe:
    """Burn in on few labels, then go on in several ways from there; one seed, all arms.

    Arms: `supervised` learns from the labelled pictures alone; `static` from labels written once
    after the burn-in, without mixing (like STAC); `instant` is Instant-Teaching, `no_mix` it
    without Mixup and Mosaic; `co_rectify` is Instant-Teaching* with two networks (`co_rectify_1`
    with one pass); `ema` labels by a moving average of the weights; `oracle` gets the true labels;
    `refresh20`, `refresh80` label by the weights of the last 20th or 80th step; `tau30` … `tau90`
    have other thresholds.
    """

    arms: tuple[str, ...] = ("supervised", "static", "instant", "no_mix", "co_rectify")
    seeds: int = 1  # of verdicts; seed k learns from labelled fold k modulo 5
    burn_in: int = 260  # supervised steps before any pseudo label; release: none
    steps: int = 180  # of every arm, from the same burn-in
    batch: int = 8  # labelled pictures a step, and as many unlabelled; release 8 + 8
    lr_burn_in: float = 4e-3  # largest rate of AdamW, cosine; release SGD .01
    lr: float = 2e-3  # after the burn-in
    rates: tuple[tuple[str, float], ...] = ()  # arms with a rate of their own
    tau: float = 0.5  # threshold of pseudo labels, chosen on validation; release .9
    mix_prob: float = 0.5  # of mixing an unlabelled picture; release .5
    clip: float = 10.0  # largest norm of the gradient; release 35
    unlabelled: int = 600  # pictures; paper: 90 to 99 % of COCO
    test_images: int = 200  # of the split that judges
    judge: str = "test"  # or "val", to choose rates on

    def __post_init__(self) -> None:
        """Refuse what cannot run, before any work."""
        if not self.arms or set(self.arms) - set(ARMS):
            raise ValueError(f"arms must be some of {', '.join(ARMS)}; got {self.arms}")
        if min(self.burn_in, self.steps, self.batch, self.test_images) < 1:
            raise ValueError("burn_in, steps, batch and test_images must be at least 1")
        if min(self.lr, self.lr_burn_in, self.clip) <= 0:
            raise ValueError("rates and clip must be positive")
        if not 0 < self.tau < 1 or not 0 <= self.mix_prob <= 1:
            raise ValueError(f"need 0 < tau < 1 and 0 ≤ mix_prob ≤ 1, got {self}")
        if not self.batch <= self.unlabelled <= 600:
            raise ValueError(f"unlabelled must lie in {self.batch}…600, got {self.unlabelled}")
        if self.judge not in ("test", "val"):
            raise ValueError(f"judge must be 'test' or 'val', got {self.judge!r}")

    def rate(self, arm: str) -> float:
        """The learning rate of an arm after the burn-in."""
        return dict(self.rates).get(arm, self.lr)
