"""Put numbers and verdicts into words, from rows of results.csv: the parts of every *What this run shows*.

A difference is told only if `stats.separable` holds; what did not run is not mentioned. Knows no experiment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from seal_lib.report import stats
from seal_lib.report.arms import arm_label
from seal_lib.report.stats import Estimate

Rows = Sequence[Mapping[str, Any]]
NOTHING_SEPARABLE = "Nothing in this run can be told apart: too few units, or too small differences."


def percent(e: Estimate) -> str:
    """Return a share: "41.3 % [37.4, 45.3]"."""
    return e.text(after=" %")


def points(e: Estimate) -> str:
    """Return a difference of shares: "+39.6 points [+32.2, +47.1]"."""
    return e.text("+.1f", after=" points").replace("-", "−")


def number(e: Estimate, digits: int = 1) -> str:
    """Return any other number: "3.4 [2.9, 3.8]"."""
    return e.text(f".{digits}f", 1).replace("-", "−")


def chance(e: Estimate) -> str:
    """Return the p-value of a difference, "p = 0.012", or "" if it has none."""
    return "" if math.isnan(e.p) else "p < 0.001" if e.p < 0.001 else f"p = {e.p:.3f}"


def units(e: Estimate, loops: str = "loops") -> str:
    """Return what a number is a mean over: "100 passages × 5 loops (2 dropped)"."""
    text = f"{e.n} {e.unit}{'s' if e.n != 1 and e.unit else ''}"
    text += f" × {e.loops} {loops}" if e.loops > 1 else ""
    return text + (f" ({e.dropped} dropped)" if e.dropped else "")


def bullets(sentences: Sequence[str], otherwise: str = NOTHING_SEPARABLE) -> str:
    """Return a Markdown list, or ``otherwise`` if there are no sentences."""
    return "\n".join(f"- {text}" for text in sentences) or otherwise


def differences(rows: Rows, experiment: str) -> dict[tuple[str, str], Estimate]:
    """Return (a, b) → a − b, from an experiment's rows."""
    found = {}
    for row in rows:
        if row["experiment"] == experiment and row["metric"] == "difference":
            a, _, b = str(row["arm"]).partition(" - ")
            found[a, b] = Estimate.of_row(row)
    return found


def told(apart: Mapping[tuple[str, str], Estimate]) -> str:
    """Return Markdown with the separable differences, one line per arm of comparison, and how many they are of all."""
    lines: dict[str, list[str]] = {}
    for (a, b), e in apart.items():
        if stats.separable(e):
            lines.setdefault(b, []).append(f"{arm_label(a)} {points(e)}")
    most = max((e for e in apart.values()), key=lambda e: (e.n, e.loops), default=None)
    if most is None:
        return "No two arms were compared."
    if most.n < stats.SMALLEST_N:
        return f"{units(most).capitalize()} can tell nothing apart; {stats.SMALLEST_N} are the fewest."
    said = [f"against **{arm_label(b)}**: {'; '.join(several)}" for b, several in lines.items()]
    found = sum(map(len, lines.values()))
    how = f"paired over {units(most)}, 95 % intervals"
    return bullets([*said, f"{found} of {len(apart)} differences can be told apart from none ({how})."])
