"""Claims as executed statistical tests.

An `Estimate` is a value with its interval; `claim` holds it against a rule that was fixed before
the run and gives a `Verdict`: *holds*, *fails* or *undecided*. Records keep the verdicts of a run,
the scoreboard lists them all.

Everything works on NumPy arrays, one entry a seed; nothing here knows a paper.
"""

from toolkit.evidence.claims import Rule, Verdict, above, below, claim, flips, holm, within
from toolkit.evidence.estimates import (
    Estimate,
    bootstrap,
    difference,
    exact,
    loglog_curvature,
    loglog_slope,
    mean,
    paired_difference,
    proportion,
    ratio,
)
from toolkit.evidence.records import Record, harvest, read_record, recorded, write_record
from toolkit.evidence.tables import curve, summary

__all__ = [
    "Estimate",
    "Record",
    "Rule",
    "Verdict",
    "above",
    "below",
    "bootstrap",
    "claim",
    "curve",
    "difference",
    "exact",
    "flips",
    "harvest",
    "holm",
    "loglog_curvature",
    "loglog_slope",
    "mean",
    "paired_difference",
    "proportion",
    "ratio",
    "read_record",
    "recorded",
    "summary",
    "within",
    "write_record",
]
