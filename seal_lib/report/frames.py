"""Make tables of a run's rows for its notebook: one line per arm or difference, with readable names.

Tables beside the paper's numbers are in `seal_lib.report.tables`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_lib.report import stats
from seal_lib.report.arms import arm_label, arm_rank
from seal_lib.report.stats import Estimate
from seal_lib.report.words import Rows, chance, units
from seal_lib.runs import yaml_files

if TYPE_CHECKING:
    import pandas as pd

SCALED = ("%", "points")


@cache
def _words() -> dict[str, tuple[str, str]]:
    table = yaml_files.read(Path(__file__).with_name("metrics.yaml"))
    return {name: (words, unit) for name, (words, unit) in table.items()}


def metric_words(metric: str) -> tuple[str, str]:
    """Return (name, unit) of a metric, e.g. AA_8 -> ("right after 8 edits (AA)", "%").

    A metric that is not listed keeps its own name.
    """
    if metric in _words():
        return _words()[metric]
    if two := re.fullmatch(r"(\w+?)_(\d+)_to_(\d+)", metric):
        name, a, b = two.groups()
        label, unit = _words().get(name, (name, ""))
        return (label.format(a=a, b=b) if "{" in label else f"{label}, edits {a} to {b}"), unit
    name, _, rest = metric.rpartition("_")
    label, unit = _words().get(name, (metric.replace("_", " "), ""))
    return label.format(rest), unit


def levels(rows: Rows | pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return one line per arm of an experiment and one column per metric, with cells such as "41.3 [37.4, 45.3]".

    A metric that no arm has is left out.
    """
    found: dict[tuple[str, str, str], dict[str, Estimate]] = {}
    for row in _records(rows):
        if row["metric"] in metrics and " - " not in row["arm"]:
            found.setdefault(_key(row), {})[row["metric"]] = Estimate.of_row(row)
    there = [metric for metric in metrics if any(metric in one for one in found.values())]
    order = list(dict.fromkeys(model for model, *_ in found))
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for key, one in sorted(found.items(), key=lambda item: (order.index(item[0][0]), arm_rank(item[0][1]))):
        lines[key] = line = {}
        for metric in there:
            words, unit = metric_words(metric)
            line[f"{words}, {unit}" if unit else words] = _cell(one.get(metric), unit)
        line["n"] = units(next(iter(one.values())))
    return _framed(lines)


def contrasts(rows: Rows | pd.DataFrame) -> pd.DataFrame:
    """Return one line per paired difference a − b: points with interval, n, Holm's p, and whether it is separable."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in _records(rows):
        if row["metric"] == "difference":
            e = Estimate.of_row(row)
            told = {"difference, points": _cell(e, "points"), "n": units(e), "chance (Holm)": chance(e)}
            lines[_key(row)] = told | {"separable": "yes" if stats.separable(e) else "no"}
    return _framed(lines)


def _records(rows: Rows | pd.DataFrame) -> Sequence[Mapping[str, Any]]:
    return rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["arm"], row["protocol"]


def _framed(lines: Mapping[tuple[str, str, str], dict[str, str]]) -> pd.DataFrame:
    """Return one line per key; the model and the protocol are shown only if there are several."""
    import pandas as pd

    named = [{"model": m, "arm": arm_label(a), "protocol": p, **line} for (m, a, p), line in lines.items()]
    frame = pd.DataFrame(named)
    frame = frame.drop(columns=[name for name in ("model", "protocol") if named and frame[name].nunique() < 2])
    return frame.set_index([name for name in ("model", "arm") if name in frame]) if named else frame


def _cell(e: Estimate | None, unit: str) -> str:
    if e is None or math.isnan(e.value):
        return "–"
    scale = 100 if unit in SCALED else 1
    form = ("+.1f" if unit == "points" else ".1f") if scale == 100 else ".3g" if abs(e.value) < 1000 else ".0f"
    text = e.text(form, scale) if e.low < e.high else f"{scale * e.value:{form}}"
    return text.replace("-", "−") + (f" ({e.dropped} dropped)" if e.dropped else "")
