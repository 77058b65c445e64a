"""Tuning of the update rules' knobs: searched on development streams by AA_K, then read by the study.

Every trained rule may take the same learning rates (`rules.base.RATES`) beside its own knobs. The search starts from
the rule's defaults and moves one knob at a time along its ladder as long as the next value is better; it stops where no
neighbour is better. The choice therefore lies inside the range that was tried, unless a ladder ends there (`edge`) or
`_MAX_SETTINGS` settings are used up. The cost is recorded with every setting. Development streams share no passage and
no person with the test streams. For the made world, the chosen knobs are committed as ``tuned.yaml`` and all settings
as ``sweep.jsonl``.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seal_lib.continual import intervals, metrics, tables
from seal_lib.continual.arm import Arm
from seal_lib.continual.lab import Lab
from seal_lib.continual.rules import RULES
from seal_lib.continual.streams import Stream
from seal_lib.continual.study import run_arm
from seal_lib.errors import DataError
from seal_lib.report.stats import Estimate
from seal_lib.report.words import Rows
from seal_lib.runs import yaml_files

if TYPE_CHECKING:
    from seal_lib.runs.work import Recorder

#: the maximum number of settings tried per rule
_MAX_SETTINGS = 12

Knobs = dict[str, float]


def climb(
    defaults: Mapping[str, float],
    ladders: Mapping[str, Sequence[float]],
    score: Callable[[Knobs], float],
    most: int = _MAX_SETTINGS,
) -> tuple[Knobs, str]:
    """Return the knobs that no single step on a ladder improves, and what cut the search short.

    Args:
        defaults: the starting point; a knob with a ladder starts at one of its values.
        ladders: knob -> its values in order.
        score: the number to maximise; NaN is worse than any number. It is called once per setting.
        most: the maximum number of settings.

    Returns:
        The best setting and a note: "" if every neighbour was tried and is not better, else the knobs whose best value
        is an end of their ladder ("energy, past"), after "unfinished" if ``most`` settings were used up.
    """
    known: dict[tuple, float] = {}
    here = {knob: list(ladder).index(defaults[knob]) for knob, ladder in ladders.items()}

    def score_at(at: Mapping[str, int]) -> float:
        key = tuple(at.values())
        if key not in known:
            if len(known) >= most:
                raise _UsedUp
            value = score({**defaults, **{knob: ladders[knob][n] for knob, n in at.items()}})
            known[key] = -math.inf if math.isnan(value) else value
        return known[key]

    def better(at: Mapping[str, int], knob: str, step: int) -> dict[str, int] | None:
        there = {**at, knob: at[knob] + step}
        return there if 0 <= there[knob] < len(ladders[knob]) and score_at(there) > score_at(at) else None

    note = ""
    try:
        score_at(here)
        moved = True
        while moved:
            moved = False
            for knob in ladders:
                for step in (-1, 1):
                    while there := better(here, knob, step):
                        here, moved = there, True
    except _UsedUp:
        note = "unfinished"
    ends = [knob for knob, n in here.items() if n in (0, len(ladders[knob]) - 1)]
    best = {**defaults, **{knob: ladders[knob][n] for knob, n in here.items()}}
    return best, ", ".join(filter(None, [note, *ends]))


class _UsedUp(Exception):
    """Raised when the maximum number of settings of a rule has been tried."""


def sweep(
    run: "Recorder",
    rules: Sequence[str],
    lab: Lab,
    streams: Sequence[Stream],
    *,
    slots: int = 16,
    most: int = _MAX_SETTINGS,
) -> list[dict]:
    """Tune rules and return one line per setting, in the order tried.

    A line holds rule, protocol, knobs (JSON), AA, LA, BWT, prior, blank, diverged, trainings, and whether the setting
    was chosen; ``edge`` is the note of `climb` for the chosen one. Only the cells that these numbers need are measured.
    The means are over the streams that did not diverge, but a setting in which one diverged is never chosen.

    Raises:
        DataError: a rule is unknown.
    """
    lines = []
    for rule in rules:
        if rule not in RULES:
            raise DataError(f"rules: {rule!r} is not one of {', '.join(RULES)}.")
        tried: list[dict] = []

        def score(knobs: Knobs, rule: str = rule, tried: list[dict] = tried) -> float:
            arm, K = Arm(f"{rule}.{len(tried)}", rule, knobs), len(streams[0])
            rows = run_arm(run, arm, lab, streams, slots=slots, group="tuning/", full_rows=[0, K])
            about = {"rule": rule, "protocol": rows[0]["protocol"], "knobs": json.dumps(knobs, sort_keys=True)}
            tried.append(about | measured(rows))
            return math.nan if tried[-1]["diverged"] else tried[-1]["AA"]

        best, edge = climb(RULES[rule].knobs, RULES[rule].ladders, score, most)
        key = json.dumps(best, sort_keys=True)
        for line in tried:
            chosen = line["knobs"] == key and not line["diverged"]
            lines.append(line | {"chosen": chosen, "edge": edge if chosen else ""})
    return lines


def measured(rows: Rows) -> dict[str, float]:
    """Return the numbers of a sweep line from the rows of a setting."""
    R, K = tables.stack(rows), max(row["k"] for row in rows)
    means = {
        "AA": metrics.average_accuracy(R),
        "LA": metrics.learning_accuracy(R),
        "BWT": metrics.backward_transfer(R),
        "prior": tables.prior(rows)[:, K],
        "blank": tables.stack(rows, "blank")[:, K].mean(-1),
    }
    found = {
        name: round(float(np.mean(v[~np.isnan(v)])), 6) if (~np.isnan(v)).any() else None for name, v in means.items()
    }
    lost = sum(row["outcome"] == "diverged" for row in rows if row["k"] == K)
    return found | {"diverged": lost, "trainings": sum(bool(row.get("steps")) for row in rows)}


def rows_of(lines: Sequence[Mapping[str, object]], streams: int, *, model: str, grader: str) -> list[dict]:
    """Return the rows of experiment ``continual/tuning``: each setting's scores, and the tuning cost of each rule."""
    rows = []
    for line in lines:
        arm = f"{line['rule']} {line['knobs']}"
        for metric in ("AA", "LA", "BWT", "prior"):
            e = Estimate(line[metric], math.nan, math.nan, streams - line["diverged"], intervals.UNIT, line["diverged"])
            rows.append(e.row("continual/tuning", arm, metric, line["protocol"], model, grader))
    protocols = {line["rule"]: line["protocol"] for line in lines}
    for rule, price in tables.tuning_price(lines).items():
        for metric, value in zip(("tuning_settings", "tuning_trainings"), price, strict=True):
            e = Estimate(float(value), math.nan, math.nan, streams, intervals.UNIT)
            rows.append(e.row("continual/tuning", rule, metric, protocols[rule], model))
    return rows


def chosen(lines: Sequence[Mapping[str, object]]) -> dict[str, dict]:
    """Return rule -> knobs of its chosen setting."""
    return {line["rule"]: json.loads(line["knobs"]) for line in lines if line["chosen"]}


def as_yaml(knobs: Mapping[str, Mapping[str, object]]) -> str:
    """Return the content of ``tuned.yaml``."""
    head = "# Chosen by notebook 16_continual_tuning with SET=large, on development streams of the made world.\n"
    return head + yaml_files.text({rule: dict(value) for rule, value in knobs.items()})
