"""When to smooth: the schedules of θ over epochs."""

import math
from dataclasses import asdict, dataclass
from typing import Any

KINDS = ("drop", "linear", "cosine", "reverse", "constant")


@dataclass
class TwoStageSchedule:
    """θ as a function of the epoch; `"drop"` is TSLA.

    Xu et al., "Towards Understanding Label Smoothing" (2020), Algorithm TSLA: smooth with θ while
    epoch < s, then use one-hot labels. Only the label changes at s: optimiser, momentum and
    learning-rate schedule run through.

    Args:
        strength: θ of the first stage (of the second for `"reverse"`), in [0, 1].
        drop_at: s, the first epoch without smoothing; where `"linear"` and `"cosine"` reach 0;
            unused by `"constant"` (LSR).
        kind: `"drop"`, `"linear"`, `"cosine"`, `"reverse"` or `"constant"`.

    Raises:
        ValueError: for θ outside [0, 1], a negative epoch or an unknown kind.
    """

    strength: float
    drop_at: float
    kind: str = "drop"

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"theta must lie in [0, 1], got {self.strength}")
        if not self.drop_at >= 0:
            raise ValueError(f"drop_at must not be negative, got {self.drop_at}")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")

    def theta(self, epoch: float) -> float:
        """θ at an epoch, counted from 0 (a fraction is allowed)."""
        if self.kind == "constant":
            return self.strength
        if self.kind == "reverse":
            return self.strength if epoch >= self.drop_at else 0.0
        if epoch >= self.drop_at:
            return 0.0
        if self.kind == "drop":
            return self.strength
        done = epoch / self.drop_at
        share = 1 - done if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.strength * share

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs; the schedule has no state beside its settings."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the settings of a checkpoint.

        Raises:
            ValueError: as when made anew.
        """
        self.__init__(**state)  # type: ignore[misc]
