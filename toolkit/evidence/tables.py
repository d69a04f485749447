"""From the table of a sweep to what a page shows: a summary of arms, a curve."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from toolkit.evidence.estimates import mean


def summary(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row an arm (and setting): mean over seeds, 95 % interval, seeds.

    Args:
        frame: from `sweep`, with columns `"arm/metric"`.
        metric: such as `"accuracy"`.

    Returns:
        Columns `arm`, the varied fields, `mean`, `low`, `high`, `seeds`.

    Raises:
        ValueError: if no arm has that metric.
    """
    columns = [name for name in frame if str(name).endswith(f"/{metric}")]
    if not columns:
        known = sorted({str(c).rpartition("/")[2] for c in frame if "/" in str(c)})
        raise ValueError(f"no arm has the metric {metric!r}; there are {known}")
    fixed = [c for c in frame if "/" not in str(c) and c not in ("setting", "seed", "error")]
    rows = []
    for _, runs in frame.groupby("setting", sort=True):
        for column in columns:
            sample = runs[column].to_numpy(float)
            spread = mean(sample) if len(sample) > 1 else None
            rows.append(
                {"arm": str(column).rpartition("/")[0]}
                | {name: runs[name].iloc[0] for name in fixed}
                | {
                    "mean": sample.mean(),
                    "low": spread.low if spread else np.nan,
                    "high": spread.high if spread else np.nan,
                    "seeds": len(sample),
                }
            )
    return pd.DataFrame(rows)


def curve(frame: pd.DataFrame, name: str) -> tuple[NDArray, NDArray]:
    """The points `"arm/metric@x"` of a curve, by rising x.

    Returns:
        x of shape [P] and y of shape [S, P], one row a row of the frame.

    Raises:
        ValueError: if the frame has no such curve.
    """
    points = {float(str(c)[len(name) + 1 :]): c for c in frame if str(c).startswith(f"{name}@")}
    if not points:
        known = sorted({str(c).partition("@")[0] for c in frame if "@" in str(c)})
        raise ValueError(f"no curve is called {name!r}; there are {known}")
    x = np.array(sorted(points))
    return x, frame[[points[value] for value in x]].to_numpy(float)
