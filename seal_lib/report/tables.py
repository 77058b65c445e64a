"""Make tables of our numbers beside the paper's: Markdown for RESULTS.md and the README, HTML for notebooks.

Knows which experiments are headlines and what a table shows of each. An arm that only the paper has is shown as a gap
("not run"), never as a zero.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib.report import stats
from seal_lib.report.arms import NOT_RUN, arm_label, arm_rank, difference_arm
from seal_lib.report.paper_values import grader_sentence, paper_index
from seal_lib.report.results import KEYS, with_paper_values
from seal_lib.report.stats import Estimate
from seal_lib.report.words import chance, units
from seal_lib.runs import yaml_files
from seal_lib.runs.lifecycle import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

OTHER_TRIALS = "compared on other trials than the rows shown"


@dataclass(frozen=True)
class Shown:
    """The part of an experiment that a table shows."""

    metric: str = "accuracy"  # the headline metric
    beside: Sequence[str] = ("blank_rate", "blank, %")  # metric and column of the share of failures shown beside it
    failed: str = "failed_rate"  # metric of the share of trials that could not be scored; shown if there are any
    #: the arms that the others are compared with, and their names in the columns
    references: Mapping[str, str] = field(default_factory=lambda: {"frozen": "frozen", "own_untrained": "untrained"})
    also: Mapping[str, str] = field(default_factory=dict)  # further metrics, and their columns
    note: str = ""  # what a reader must know of the columns; it stands below the table
    few: Sequence[str] = ()  # the rows of the README's table; empty for no table there


_TABLE = yaml_files.read(Path(__file__).with_name("experiments.yaml"))  # the head of each part says what it holds
TITLES, OTHER_TITLES, LEVELS = (_TABLE[part] for part in ("headlines", "others", "levels"))
SHOWN = {name: Shown(**row) for name, row in _TABLE["shown"].items()}


def title(experiment: str) -> str:
    """Return the title of an experiment, or of a part of it, for figures and tables."""
    found = ((re.fullmatch(pattern, experiment), name) for pattern, name in OTHER_TITLES.items())
    if own := next((match.expand(name) for match, name in found if match), TITLES.get(experiment)):
        return own
    whole, _, part = experiment.rpartition("/")
    return f"{title(whole)}, {part.replace('_', ' ')}" if whole and title(whole) != whole else experiment


def shown(experiment: str) -> Shown:
    """Return what a table shows of an experiment, or of one seed of it: by default accuracy and blank answers."""
    kind = re.sub(r"^knowledge/cpt_\d+_\w+", "knowledge/cpt", re.sub(r"/seed_\w+$", "", experiment))
    return SHOWN.get(kind, Shown())


def with_gaps(df: pd.DataFrame, experiment: str, metric: str | None = None) -> pd.DataFrame:
    """Return the rows of one experiment, plus a row of ``metric`` without a value for each arm that only the paper has.

    The default is the headline metric.
    """
    import pandas as pd

    metric = metric or shown(experiment).metric
    rows = df[df["experiment"] == experiment]
    have = set(rows.loc[rows["metric"] == metric, "arm"])
    known = [key for key in paper_index() if key[0] == experiment and key[2] == metric and key[1] not in have]
    gaps = pd.DataFrame([dict(zip(KEYS, (*key, "", ""), strict=True)) for key in known]).reindex(columns=COLUMNS)
    gaps = with_paper_values(gaps.assign(unit="", run=""))
    return pd.concat([rows, gaps], ignore_index=True) if len(rows) else gaps


def table(df: pd.DataFrame, experiment: str, metric: str | None = None) -> pd.DataFrame:
    """Return a readable table with one line per arm: ours [interval], n, failures, verdicts, the paper's value.

    A verdict says whether the paired difference to a reference, by default the frozen model and untrained self-edits,
    is separable from zero ("–" = not computed). Experiments with another headline are in `SHOWN`. The sentences below
    the table and the notes on the paper's values are in `attrs["notes"]`; `to_markdown` and `to_html` print them.
    """
    import pandas as pd

    about = shown(experiment)
    metric, (failures, failed) = metric or about.metric, about.beside
    everything = with_gaps(df, experiment, metric)
    rows = everything[everything["metric"] == metric]
    mixed = rows.loc[rows["run"] != "", ["protocol", "model"]].drop_duplicates()
    graders = set(rows["grader"].dropna()) - {""}
    lost = everything.loc[everything["metric"] == about.failed, "value"].max() > 0
    lines, notes = [], []
    for row in sorted(rows.to_dict("records"), key=lambda row: (arm_rank(row["arm"]), row["protocol"], row["model"])):
        beside = everything[(everything["protocol"] == row["protocol"]) & (everything["model"] == row["model"])]
        blank, broken = (_find(beside, row["arm"], name) for name in (failures, about.failed))
        ran, estimate = not math.isnan(row["value"]), Estimate.of_row(row)
        line = {"arm": arm_label(row["arm"])}
        if len(mixed) > 1:
            line |= {"protocol": row["protocol"], "model": row["model"]}
        if len(graders) > 1:
            line["grader"] = row["grader"] if ran else ""
        nothing = f"none: {estimate.dropped} dropped" if estimate.dropped else NOT_RUN
        line |= {
            f"{metric.replace('_', ' ')}, %": percent_of_row(row) if ran else nothing,
            "n": units(estimate) if ran else "",
            **{
                column: percent_of_row(found) if (found := _find(beside, row["arm"], name)) else "–" if ran else ""
                for name, column in about.also.items()
            },
            failed: f"{100 * blank['value']:.1f}" if blank else "–" if ran else "",
        }
        if lost:
            line["failed, %"] = f"{100 * broken['value']:.1f}" if broken else ""
        line |= {
            f"separable from {word}?": verdict(beside, row["arm"], arm, metric) if ran else ""
            for arm, word in about.references.items()
        }
        paper, note = "", paper_index().get((experiment, row["arm"], metric), {}).get("note", "")
        if not math.isnan(row["paper_value"]):
            paper = f"{100 * row['paper_value']:.1f}"
            if note:
                notes.append(note)
                paper += f" (note {len(notes)})"
        lines.append(line | {"paper, %": paper, "paper source": row["paper_source"]})
    frame = pd.DataFrame(lines)
    notes = [f"Note {k}: {text}." for k, text in enumerate(notes, 1)]
    frame.attrs["notes"] = [*_sentences(rows[rows["value"].notna()], rows, graders), *notes]
    return frame


def _sentences(ran: pd.DataFrame, rows: pd.DataFrame, graders: set[str]) -> list[str]:
    """Return sentences about a whole table: the grader, and what is known of the spread between loops."""
    said = [f"Grader: {graders.copy().pop()}."] if len(graders) == 1 else []
    if graders and rows["paper_source"].str.contains("grader GPT-4.1", regex=False).any():
        said.append(grader_sentence())
    loops = ran["loops"].fillna(1).astype(int)
    if len(loops) and (loops <= 1).all():
        said.append("One loop: the spread between loops is unknown.")
    elif (loops <= 1).any():
        said.append("Rows that name no loops were run once; the spread between loops is in the others' intervals only.")
    return said


def to_markdown(frame: pd.DataFrame) -> str:
    """Return a GitHub table, with pipes in cells escaped, followed by the sentences about it."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n\n".join([body, *([" ".join(notes)] if (notes := frame.attrs.get("notes")) else [])])


def to_html(frame: pd.DataFrame, caption: str = "") -> str:
    """Return the same table for a notebook: thin lines, gaps in grey, nothing loaded from elsewhere."""
    cell = "padding:0.25em 0.8em;text-align:left;border:0;background:none;"
    head = "".join(f"<th style='{cell}border-bottom:1px solid #888'>{html.escape(name)}</th>" for name in frame.columns)
    body = []
    for line in frame.astype(str).values.tolist():
        grey = "color:#888;font-style:italic;" if NOT_RUN in line else ""
        cells = "".join(f"<td style='{cell}'>{html.escape(text)}</td>" for text in line)
        body.append(f"<tr style='background:none;{grey}'>{cells}</tr>")
    title = f"<caption style='text-align:left;padding:0.4em 0.8em'>{html.escape(caption)}</caption>" if caption else ""
    below = "".join(f"<p style='margin:0.2em 0.8em'>{html.escape(note)}</p>" for note in frame.attrs.get("notes", []))
    return f"<table style='border-collapse:collapse'>{title}<tr>{head}</tr>{''.join(body)}</table>{below}"


def tabled(df: pd.DataFrame) -> list[str]:
    """Return the headline experiments that have rows, in the README's order."""
    return [name for name in TITLES if (df["experiment"] == name).any()]


def _find(frame: pd.DataFrame, arm: str, metric: str) -> dict | None:
    rows = frame[(frame["arm"] == arm) & (frame["metric"] == metric) & frame["value"].notna()].to_dict("records")
    return rows[0] if rows else None


def percent_of_row(row: dict, sign: str = "") -> str:
    return Estimate.of_row(row).text(f"{sign}.1f")


def verdict(frame: pd.DataFrame, arm: str, reference: str, metric: str) -> str:
    """Return the paired difference and its verdict, or that it comes from other trials than the two rows shown."""
    row = _find(frame, difference_arm(arm, reference), "difference")
    if row is None and (back := _find(frame, difference_arm(reference, arm), "difference")):
        row = back | {"value": -back["value"], "low": -back["high"], "high": -back["low"]}
    if row is None:
        return "" if arm == reference else "–"
    first, second = (_find(frame, one, metric) for one in (arm, reference))
    if first and second and not any(Estimate.of_row(one).dropped for one in (row, first, second)):
        apart = first["value"] - second["value"]
        if abs(apart - row["value"]) > 5e-6:  # three numbers, each rounded to six digits
            return f"{OTHER_TRIALS} ({100 * row['value']:+.1f})"
    e = Estimate.of_row(row)
    return ", ".join(filter(None, ["yes" if stats.separable(e) else "no", e.text("+.1f"), chance(e)]))
