"""Claims, the rules they are held against, and their verdicts."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.evidence.estimates import LEVEL, Estimate

MIME = "application/vnd.toolkit.verdict+json"
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"


@dataclass(frozen=True)
class Rule:
    """The open interval that the whole 95 % interval of the estimate must lie in."""

    low: float = -np.inf
    high: float = np.inf

    def outcome(self, low: float, high: float) -> str:
        """*holds* if the interval lies inside, *fails* if it lies outside, else *undecided*."""
        if np.isnan(low) or np.isnan(high):
            return UNDECIDED
        if self.low < low and high < self.high:
            return HOLDS
        if high <= self.low or low >= self.high:
            return FAILS
        return UNDECIDED

    def __str__(self) -> str:
        if np.isinf(self.high):
            return f"> {self.low:g}"
        if np.isinf(self.low):
            return f"< {self.high:g}"
        return f"in ({self.low:g}, {self.high:g})"


def above(threshold: float) -> Rule:
    """The rule "the interval lies above the threshold"."""
    return Rule(low=float(threshold))


def below(threshold: float) -> Rule:
    """The rule "the interval lies below the threshold"."""
    return Rule(high=float(threshold))


def within(low: float, high: float) -> Rule:
    """The rule "the interval lies between the two": equivalence, or agreement with a number.

    Raises:
        ValueError: if low is not below high.
    """
    if not low < high:
        raise ValueError(f"need low < high, got {low} and {high}")
    return Rule(float(low), float(high))


@dataclass(frozen=True)
class Verdict:
    """What a run says about a claim.

    Attributes:
        id: `"SLUG/C1"`, unique in the book.
        statement: the claim in one sentence.
        source: where it is claimed: a section of the paper, "derived", "ours".
        estimate: the number that decides.
        rule: fixed before the run.
        outcome: *holds*, *fails* or *undecided*.
        p: 1 − the widest level whose interval still satisfies the rule; Holm's input.
        published: the paper's own number, where it states one.
        void: why this run cannot judge the claim; empty where it can.
        dated: when it was recorded; empty for a verdict of this run.
    """

    id: str
    statement: str
    source: str
    estimate: Estimate
    rule: Rule
    outcome: str
    p: float
    published: str | float | None = None
    void: str = ""
    dated: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: what notebooks and records keep."""
        e = self.estimate
        return {
            "id": self.id,
            "statement": self.statement,
            "source": self.source,
            "value": _plain(e.value),
            "low": _plain(e.low),
            "high": _plain(e.high),
            "n": e.n,
            "method": e.method,
            "rule": [_plain(self.rule.low), _plain(self.rule.high)],
            "outcome": self.outcome,
            "p": _plain(self.p),
            "published": self.published,
            "void": self.void,
        }

    @staticmethod
    def from_json(data: dict[str, Any], dated: str = "") -> "Verdict":
        """Read what `to_json` wrote.

        Raises:
            ValueError: if a field is missing or of another form.
        """
        try:
            value, low, high = (_number(data[name]) for name in ("value", "low", "high"))
            least, most = data["rule"]
            return Verdict(
                id=str(data["id"]),
                statement=str(data["statement"]),
                source=str(data["source"]),
                estimate=Estimate(value, low, high, int(data["n"]), str(data["method"])),
                rule=Rule(
                    -np.inf if least is None else float(least),
                    np.inf if most is None else float(most),
                ),
                outcome=str(data["outcome"]),
                p=_number(data["p"]),
                published=data.get("published"),
                void=str(data.get("void", "")),
                dated=dated,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no recorded verdict: {error!r}") from error

    def __repr__(self) -> str:
        reason = f" ({self.void})" if self.void else ""
        dated = f", recorded {self.dated}" if self.dated else ""
        return f"{self.id} {self.outcome}{reason}: {self.estimate}, rule {self.rule}{dated}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": _card(self)}
        if not self.dated:
            bundle[MIME] = self.to_json()
        return bundle


def claim(
    id: str,
    statement: str,
    source: str,
    estimate: Estimate,
    holds_if: Rule,
    *,
    published: str | float | None = None,
    void: str | None = None,
) -> Verdict:
    """Hold an estimate against a rule that was fixed before the run.

    Args:
        id: `"SLUG/C1"`.
        statement: the claim in one sentence.
        source: where it is claimed.
        estimate: from this package's functions.
        holds_if: `above(t)`, `below(t)` or `within(low, high)`.
        published: the paper's own number, if it states one.
        void: a reason why this run cannot judge the claim ("under-trained"); the outcome is then
            *undecided*.

    Raises:
        ValueError: if the id has no slug and name.
        TypeError: if the estimate or the rule is of another kind.
    """
    slug, _, name = id.partition("/")
    if not slug or not name:
        raise ValueError(f"a claim's id looks like 'knn_softmax/C2', got {id!r}")
    if not isinstance(estimate, Estimate) or not isinstance(holds_if, Rule):
        raise TypeError("claim needs an Estimate and a rule such as above(0)")
    outcome = UNDECIDED if void else holds_if.outcome(estimate.low, estimate.high)
    reason = void or ""
    if not reason and np.isnan(estimate.low):
        reason = estimate.method
    p = 1.0 if void else _p_value(estimate, holds_if)
    return Verdict(id, statement, source, estimate, holds_if, outcome, p, published, reason)


def flips(now: Iterable[Verdict], then: Iterable[Verdict]) -> list[tuple[Verdict, Verdict]]:
    """Pairs (now, then) of the same claim whose outcome changed."""
    before = {verdict.id: verdict for verdict in then}
    pairs = [(verdict, before[verdict.id]) for verdict in now if verdict.id in before]
    return [(new, old) for new, old in pairs if new.outcome != old.outcome]


def holm(verdicts: Sequence[Verdict], level: float = LEVEL) -> list[bool]:
    """Which of the verdicts that hold do so after Holm's step-down correction over all given."""
    order = sorted(range(len(verdicts)), key=lambda i: verdicts[i].p)
    kept, survives = True, [False] * len(verdicts)
    for rank, index in enumerate(order):
        kept = kept and verdicts[index].p <= (1 - level) / (len(verdicts) - rank)
        survives[index] = kept and verdicts[index].outcome == HOLDS
    return survives


def _p_value(estimate: Estimate, rule: Rule) -> float:
    """1 − the widest level whose interval satisfies the rule, by bisection to 1e-5 relative."""
    if rule.outcome(*_span(estimate, 1e-6)) != HOLDS:
        return 1.0
    low, high = np.log(1e-12), 0.0  # of p
    if rule.outcome(*_span(estimate, 1 - 1e-12)) == HOLDS:
        return 1e-12
    while high - low > 1e-3:
        middle = (low + high) / 2
        if rule.outcome(*_span(estimate, 1 - np.exp(middle))) == HOLDS:
            high = middle
        else:
            low = middle
    return float(np.exp(high))


def _span(estimate: Estimate, level: float) -> tuple[float, float]:
    return estimate.interval(min(max(level, 1e-12), 1 - 1e-12))


def _plain(value: float) -> float | None:
    """Numbers for JSON: six significant digits, None for what is not finite."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _card(verdict: Verdict) -> str:
    e = verdict.estimate
    facts = [
        ("measured", str(e)),
        ("rule", f"95 % interval {verdict.rule}"),
        ("seeds", str(e.n)) if e.n > 1 else None,
        ("paper", str(verdict.published)) if verdict.published is not None else None,
        ("interval", e.method),
        ("source", verdict.source),
        ("recorded", verdict.dated) if verdict.dated else None,
    ]
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>"
        for name, text in filter(None, facts)
    )
    note = f'<p class="verdict-void">{html.escape(verdict.void)}</p>' if verdict.void else ""
    return (
        f'<section class="verdict verdict-{verdict.outcome}" aria-label="Claim {verdict.id}">'
        f'<header><span class="verdict-id">{html.escape(verdict.id)}</span>'
        f'<span class="verdict-outcome">{verdict.outcome}</span></header>'
        f"<p>{html.escape(verdict.statement)}</p>{note}<dl>{cells}</dl></section>"
    )
