"""The two figures of an audit: accuracy by file beside the paper's values, and the file's grader against containment.

They draw on the axes they are given and compute nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from seal_lib.audit import numbers
from seal_lib.audit.tables import MODELS, Audit
from seal_lib.report import marks, plots
from seal_lib.report.arms import OTHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASE = "#8a8a8a"


def accuracy_by_file(found: Audit, ax: Axes) -> Axes:
    """Draw one line per file and model: accuracy with its interval, blank answers as a pale bar, the paper's diamond.

    Accuracy is the mean over passages, or over questions for files that do not tell passages apart.
    """
    files = {file.name: file for file in found.files}
    everything = pd.DataFrame({"experiment": []})
    ran = [one for one in found.states if one.macro.n]
    for y, one in enumerate(ran):
        if one.blank_rate.n:
            label = marks.label_once(ax, "blank answers")
            ax.barh(y, one.blank_rate.value, height=0.62, color="#e9e9e9", zorder=0, label=label)
        name, paint = f"{one.file}:{one.state}", OTHER if one.state == "adapter" else BASE
        marks.mark(ax, one.macro.row("", name, "accuracy"), y, paint, filled=one.state == "adapter")
        entry = numbers.printed(files[one.file].path, one.state)
        marks.paper_mark(ax, entry["value"] if entry else math.nan, y, everything)
        text = f"{100 * one.macro.value:.1f}"
        ax.text(1.015, y, text, transform=ax.get_yaxis_transform(), va="center_baseline", fontsize=8.5)
    return _finished(ax, ran, "no file has an accuracy")


def judge_and_containment(found: Audit, ax: Axes) -> Axes:
    """Draw accuracy by the file's grader and by containment, per file and model with gold answers, with intervals."""
    both = [(one, one.contains) for one in found.states if one.contains]
    for y, (one, beside) in enumerate(both):
        for estimate, shift, marker, paint, label in (
            (beside.judged, -0.16, "o", OTHER, "grader of the file"),
            (beside.contained, 0.16, "s", "#0072B2", "containment"),
        ):
            row = estimate.row("", f"{one.file}:{one.state}:{label}", "accuracy")
            marks.mark(ax, row, y + shift, paint, marker=marker, label=marks.label_once(ax, label))
        text = f"{100 * beside.agree:.0f} % agree"
        ax.text(1.015, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8.5)
    return _finished(ax, [one for one, _ in both], "no file has answers and gold answers")


def _finished(ax: Axes, drawn: list[numbers.StateNumbers], why: str) -> Axes:
    """Return the axes with names, scale and legend of what was drawn; with nothing drawn they say ``why``."""
    if not drawn:
        ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center")
        ax.set_axis_off()
        return ax
    marks.arm_axis(ax, [f"{one.file}, {MODELS[one.state]}" for one in drawn])
    marks.share_axis(ax.xaxis, plots.SHARE_LABELS["accuracy"])
    marks.legend(ax)
    return ax


def size(found: Audit) -> tuple[float, float]:
    """Return the size in inches for the two figures side by side."""
    return 13.0, 1.3 + 0.31 * max(1, len(found.states))
