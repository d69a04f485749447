"""What every experiment of the chapter has in common."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A study: its arms, and the seeds behind a verdict."""

    arms: tuple[str, ...] = ()  # methods to run
    seeds: int = 32  # runs behind a verdict; paper: not stated
