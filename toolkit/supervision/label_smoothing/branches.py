"""Arms that part from a saved state: TSLA continues LSR's model, momentum and schedule."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from toolkit.supervision.label_smoothing.schedule import TwoStageSchedule


def train_branches(
    schedules: Mapping[str, TwoStageSchedule],
    epochs: int,
    model: nn.Module,
    optimizer: Optimizer,
    advance: Callable[[int, float], None],
    finish: Callable[[str], None],
    start: int = 0,
) -> None:
    """Train several schedules of θ one after another, each shared beginning only once.

    Where they part, model and optimiser are saved, and every branch starts from that state: TSLA
    forks from LSR with its momentum.

    Args:
        schedules: by name.
        epochs: E.
        model: trained in place.
        optimizer: with its momentum.
        advance: `(epoch, theta)` trains one epoch; its data order may depend on the epoch only.
        finish: `(name)` is called with the model in that schedule's final state.
        start: the first epoch.
    """
    for epoch in range(start, epochs):
        alike: dict[float, dict[str, TwoStageSchedule]] = {}
        for name, schedule in schedules.items():
            alike.setdefault(schedule.theta(epoch), {})[name] = schedule
        if len(alike) > 1:
            state = _saved(model, optimizer)
            for branch in alike.values():
                _restore(model, optimizer, state)
                train_branches(branch, epochs, model, optimizer, advance, finish, epoch)
            return
        advance(epoch, next(iter(alike)))
    for name in schedules:
        finish(name)


def _saved(model: nn.Module, optimizer: Optimizer) -> tuple[dict, dict[str, Any]]:
    return copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())


def _restore(model: nn.Module, optimizer: Optimizer, state: tuple[dict, dict[str, Any]]) -> None:
    model.load_state_dict(state[0])
    optimizer.load_state_dict(copy.deepcopy(state[1]))
