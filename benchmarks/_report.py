"""How every benchmark reports: one line a figure, with its spread and its target."""

import pandas as pd


def report(
    name: str,
    values: pd.Series,
    unit: str = "×",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    """Print the median over rounds, the 10 % and 90 % quantiles, and whether the target is met."""
    low, middle, high = values.quantile([0.1, 0.5, 0.9])
    line = f"{name:50} {_digits(middle):>8} {unit} ({_digits(low)} to {_digits(high)})"
    if at_least is not None:
        line += f"  target ≥ {at_least:,g}: {'met' if middle >= at_least else 'MISSED'}"
    if at_most is not None:
        line += f"  target ≤ {at_most:,g}: {'met' if middle <= at_most else 'MISSED'}"
    print(line)


def _digits(number: float) -> str:
    """Three significant digits, whole thousands in full."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
