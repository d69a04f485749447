"""LLR-NAS: local linear regression around a master network, and its vectorised search."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.typing import NDArray

from toolkit.networks.genet.networks import TYPES, typed
from toolkit.networks.latency import LatencyTable
from toolkit.networks.structures import BlockSpec, check_channels, repair

KINDS = tuple(TYPES)


class Option(NamedTuple):
    """What may become of one stage: a block type, Δd more layers, m times the width."""

    kind: str
    depth: int
    width: float


@dataclass(frozen=True)
class SearchSpace:
    """All combinations of options for the stages of a master network.

    Attributes:
        master: the structure F₀.
        stages: places of the super-blocks that change, one after the other; a block follows them.
        kinds: block types.
        depths: layers added, Δd; a stage keeps at least one layer.
        widths: factors m of the output width, which is rounded to an even number of channels.
    """

    master: tuple[BlockSpec, ...]
    stages: tuple[int, ...]
    kinds: tuple[str, ...] = KINDS
    depths: tuple[int, ...] = (-1, 0, 1, 2)
    widths: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)

    def __post_init__(self) -> None:
        """Refuse a space without options."""
        check_channels(self.master)
        if unknown := set(self.kinds) - set(TYPES):
            raise ValueError(f"a block type is one of {', '.join(TYPES)}, got {sorted(unknown)}")
        successive = tuple(range(min(self.stages, default=0), max(self.stages, default=-1) + 1))
        if not self.stages or self.stages != successive or successive[-1] > len(self.master) - 2:
            raise ValueError(f"stages must follow each other, a block after them: {self.stages}")
        if any(not self.options(stage) for stage in self.stages):
            raise ValueError("every stage needs an option: kinds, depths and widths")

    def options(self, stage: int) -> list[Option]:
        """The options of the super-block at that place."""
        depth = self.master[stage].n
        combined = itertools.product(self.kinds, self.depths, self.widths)
        return [Option(*option) for option in combined if depth + option[1] >= 1]

    def block(self, stage: int, option: Option) -> BlockSpec:
        """The super-block at that place under an option; its input as in the master."""
        before = self.master[stage]
        out = max(2, 2 * round(option.width * before.out_ch / 2))
        return typed(option.kind, before.in_ch, out, before.stride, before.n + option.depth)

    def vary(self, stage: int, option: Option) -> tuple[BlockSpec, ...]:
        """The master with one stage replaced, channels repaired."""
        changed = list(self.master)
        changed[stage] = self.block(stage, option)
        return repair(changed)

    def structure(self, choice: Iterable[SupportsIndex]) -> tuple[BlockSpec, ...]:
        """The structure with one option a stage, given by their places among `options`."""
        changed = list(self.master)
        for stage, place in zip(self.stages, choice, strict=True):
            changed[stage] = self.block(stage, self.options(stage)[place])
        return repair(changed)

    def draw(self, rng: np.random.Generator, size: int) -> Int[np.ndarray, "size stages"]:
        """Uniform random choices, one option a stage."""
        counts = [len(self.options(stage)) for stage in self.stages]
        return np.stack([rng.integers(0, count, size) for count in counts], axis=1)


class Found(NamedTuple):
    """One structure that a search returns."""

    choice: tuple[int, ...]
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class LLR:
    """Accuracy of a structure as the master's plus what each stage's option changes.

    Â(F) = A₀ + Σᵢ β⁽ⁱ·ᵇ⁾ · [1, Δd, log₂ m]. That changes add up, and are linear near the master,
    are the two assumptions of Lin et al. 2020.

    Attributes:
        base: A₀, the master's accuracy.
        beta: one vector a (stage, block type).
        r2: of leave-one-out predictions, by the same keys; NaN where all changes agree.
    """

    base: float
    beta: dict[tuple[int, str], NDArray]
    r2: dict[tuple[int, str], float]

    @classmethod
    def fit(cls, records: pd.DataFrame, base: float, ridge: float = 1e-3) -> "LLR":
        """Ridge regression per stage and block type.

        Args:
            records: one variant a row, columns `stage kind depth width change`.
            base: A₀.
            ridge: penalty of β.

        Raises:
            ValueError: for missing columns or fewer than three variants of a stage and type.
        """
        needed = {"stage", "kind", "depth", "width", "change"}
        if missing := needed - set(records):
            raise ValueError(f"records lack the columns {sorted(missing)}")
        beta, r2 = {}, {}
        for (stage, kind), rows in records.groupby(["stage", "kind"], sort=True):
            if len(rows) < 3:
                raise ValueError(f"stage {stage}, {kind}: need three variants, got {len(rows)}")
            x = features(rows["depth"].to_numpy(), rows["width"].to_numpy())
            y = rows["change"].to_numpy(float)
            gram = x.T @ x + ridge * np.eye(3)
            beta[int(stage), str(kind)] = np.linalg.solve(gram, x.T @ y)
            r2[int(stage), str(kind)] = _leave_one_out(x, y, gram)
        return cls(base, beta, r2)

    def gains(self, space: SearchSpace) -> list[NDArray]:
        """What each option of each stage adds to the accuracy.

        Raises:
            ValueError: if a stage and type of the space was not fitted.
        """
        table = []
        for stage in space.stages:
            options = space.options(stage)
            if absent := {o.kind for o in options if (stage, o.kind) not in self.beta}:
                raise ValueError(f"stage {stage} was not fitted for {sorted(absent)}")
            x = features(np.array([o.depth for o in options]), np.array([o.width for o in options]))
            slopes = np.stack([self.beta[stage, o.kind] for o in options])
            table.append((x * slopes).sum(axis=1))
        return table

    def predict(
        self, space: SearchSpace, choices: Int[np.ndarray, "k stages"]
    ) -> Float[np.ndarray, "k"]:
        """Â of structures, each given by one option a stage."""
        gains = self.gains(space)
        return self.base + sum(gain[choices[:, i]] for i, gain in enumerate(gains))

    def search(
        self,
        space: SearchSpace,
        table: LatencyTable,
        budget: float,
        topq: int,
        *,
        res: int,
        batch: int,
    ) -> list[Found]:
        """The structures of highest Â among all whose predicted latency is within the budget.

        Args:
            space: enumerated as a whole.
            table: knows every layer of the space.
            budget: seconds of a forward pass.
            topq: how many, the best first.
            res: side of the input, in pixels.
            batch: images of the pass.

        Raises:
            ValueError: if `topq` is below 1 or no structure meets the budget.
        """
        times = StageTimes.of(space, table, res, batch)
        return times.best(self, space, budget, topq)


@dataclass(frozen=True)
class StageTimes:
    """Latencies of a space, taken apart so that all its structures are one broadcast sum.

    Attributes:
        fixed: seconds of the blocks before the first stage.
        times: for each stage, and for what follows the last one, seconds by the width before it
            and the option; widths are numbered as in `space.widths`.
        width: for each stage, the number of the width that an option puts out.
    """

    fixed: float
    times: list[NDArray]
    width: list[NDArray]

    @classmethod
    def of(cls, space: SearchSpace, table: LatencyTable, res: int, batch: int) -> "StageTimes":
        """Look all layers up.

        Raises:
            ValueError: if the table lacks a layer.
        """
        first, last = space.stages[0], space.stages[-1]
        sides = _sides(space.master, res)
        fixed = table.predict(space.master[:first], res, batch) if first else 0.0
        before = [space.master[first].in_ch]
        times, width = [], []
        for stage in space.stages:
            options = space.options(stage)
            blocks = [space.block(stage, option) for option in options]
            times.append(
                np.array(
                    [
                        [table.predict([replace(b, in_ch=ch)], sides[stage], batch) for b in blocks]
                        for ch in before
                    ]
                )
            )
            width.append(np.array([space.widths.index(option.width) for option in options]))
            before = [space.block(stage, options[0]._replace(width=m)).out_ch for m in space.widths]
        rest = space.master[last + 1 :]
        tails = [repair([replace(rest[0], in_ch=ch), *rest[1:]]) for ch in before]
        tail = [[table.predict(specs, sides[last + 1], batch)] for specs in tails]
        return cls(fixed, [*times, np.array(tail)], width)

    def grid(self) -> NDArray:
        """Seconds of every structure: one axis a stage, one place an option."""
        total = self.fixed + self.times[0][0]
        for number, seconds in enumerate(self.times[1:]):
            total = total[..., None] + seconds[self.width[number]]
        return total[..., 0]

    def best(self, llr: LLR, space: SearchSpace, budget: float, topq: int) -> list[Found]:
        """See `LLR.search`."""
        if topq < 1:
            raise ValueError(f"topq must be at least 1, got {topq}")
        seconds = self.grid()
        accuracy = llr.base + reduce(np.add.outer, llr.gains(space))
        inside = np.where(seconds <= budget, accuracy, -np.inf).ravel()
        allowed = int((seconds <= budget).sum())
        if not allowed:
            raise ValueError(
                f"no structure meets the budget of {1e3 * budget:.4g} ms; "
                f"the fastest takes {1e3 * seconds.min():.4g} ms"
            )
        q = min(topq, allowed)
        places = np.argpartition(-inside, q - 1)[:q]
        places = places[np.lexsort((places, -inside[places]))]
        choices = np.stack(np.unravel_index(places, seconds.shape), axis=1)
        return [
            Found(tuple(map(int, choice)), float(inside[place]), float(seconds.ravel()[place]))
            for choice, place in zip(choices, places, strict=True)
        ]


def draw_structures(
    space: SearchSpace,
    table: LatencyTable,
    budget: float,
    rng: np.random.Generator,
    within: int,
    beyond: int,
    *,
    res: int,
    batch: int,
) -> Int[np.ndarray, "n stages"]:
    """Uniform random choices: the first so many within the budget, then the first beyond it.

    Args:
        space: drawn from.
        table: knows every layer of the space.
        budget: seconds of a forward pass.
        rng: NumPy's generator.
        within: how many structures take at most the budget.
        beyond: how many take more.
        res: side of the input, in pixels.
        batch: images of the pass.

    Raises:
        ValueError: if 10,000 draws hold too few of either.
    """
    choices = space.draw(rng, 10_000)
    seconds = StageTimes.of(space, table, res, batch).grid()[tuple(choices.T)]
    inside, outside = np.flatnonzero(seconds <= budget), np.flatnonzero(seconds > budget)
    if len(inside) < within or len(outside) < beyond:
        raise ValueError(
            f"of 10,000 structures {len(inside)} are within {1e3 * budget:.4g} ms and "
            f"{len(outside)} beyond; {within} and {beyond} are needed"
        )
    return choices[np.concatenate([inside[:within], outside[:beyond]])]


def features(
    depth: Int[np.ndarray, "n"], width: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n 3"]:
    """Rows [1, Δd, log₂ m] of the regression."""
    return np.stack([np.ones(len(depth)), depth.astype(float), np.log2(width)], axis=1)


def _leave_one_out(x: NDArray, y: NDArray, gram: NDArray) -> float:
    """1 − Σ(left-out residual)² / Σ(y − mean of the others)², from the hat matrix."""
    residual = y - x @ np.linalg.solve(gram, x.T @ y)
    leverage = np.einsum("ij,jk,ik->i", x, np.linalg.inv(gram), x)
    constant = (y - y.mean()) * len(y) / (len(y) - 1)
    spread = float((constant**2).sum())
    return 1 - float(((residual / (1 - leverage)) ** 2).sum()) / spread if spread else float("nan")


def _sides(specs: Sequence[BlockSpec], res: int) -> list[int]:
    sides = [res]
    for spec in specs:
        sides.append((sides[-1] - 1) // spec.stride + 1)
    return sides
