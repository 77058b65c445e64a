"""Figures of ``arc/kinds`` (see `seal_lib.arc.kinds`): functions that draw rows on the given axes and return them.

figures.draw(success_by_kind, table)
ways_by_kind(table, axes)   # one axis per kind
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seal_lib.errors import DataError
from seal_lib.report.arms import arm_label, arm_rank
from seal_lib.report.marks import INK, colour, share_axis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

EXPERIMENT = "arc/kinds"
KIND_LABELS = {"moves": "cells move", "around_black": "around black cells", "key_colour": "one colour changes"}
WAY_STYLES = {  # how a configuration alters its copies -> label, colour
    "plain": ("as they are", "#999999"),
    "recoloured": ("recoloured", "#E69F00"),
    "turned": ("turned and recoloured", "#56B4E9"),
    "rejected": ("no configuration", "#e4e4e4"),
}


def success_by_kind(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the success rate with its interval: one group per kind of rule and one for all tasks, one bar per arm."""
    groups = {**{f"{EXPERIMENT}/{kind}": name for kind, name in KIND_LABELS.items()}, EXPERIMENT: "all tasks"}
    rows = table[(table["metric"] == "success_rate") & table["experiment"].isin(groups)]
    if not len(rows):
        raise DataError(f"The table has no success_rate of {EXPERIMENT}; run the notebook that writes it.")
    arms = sorted(rows["arm"].unique(), key=arm_rank)
    width = 0.84 / len(arms)
    for row in rows.to_dict("records"):
        k = arms.index(row["arm"])
        at = list(groups).index(row["experiment"]) + width * (k - (len(arms) - 1) / 2)
        label = arm_label(row["arm"]) if row["experiment"] == EXPERIMENT else None
        ax.bar(at, row["value"], 0.9 * width, color=colour(row["arm"]), label=label, gid=f"value:{row['arm']}")
        ax.plot([at, at], [row["low"], row["high"]], color=INK, linewidth=1, alpha=0.8, gid=f"interval:{row['arm']}")
    ax.set_xticks(range(len(groups)), list(groups.values()))
    share_axis(ax.yaxis, "puzzles solved")
    ax.set_ylim(0, 1.02)
    ax.grid(axis="y")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def ways_by_kind(table: pd.DataFrame, axes: Sequence[Axes]) -> Sequence[Axes]:
    """Draw what each policy writes: one panel per kind of rule, one bar per arm, split into the three ways.

    A policy that does not read the puzzle has the same bar in every panel.
    """
    rows = table[table["metric"].str.startswith("share:")]
    arms = sorted(rows["arm"].unique(), key=arm_rank)
    for ax, (kind, name) in zip(axes, KIND_LABELS.items(), strict=True):
        for y, arm in enumerate(arms):
            left = 0.0
            own = rows[(rows["experiment"] == f"{EXPERIMENT}/{kind}") & (rows["arm"] == arm)]
            shares = dict(zip(own["metric"], own["value"], strict=True))
            for way, (label, paint) in WAY_STYLES.items():
                share = shares.get(f"share:{way}", 0.0)
                ax.barh(y, share, 0.7, left=left, color=paint, label=label if y == 0 else None, gid=f"{arm}:{way}")
                if share >= 0.12:
                    ax.text(left + share / 2, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5)
                left += share
        ax.set_yticks(range(len(arms)), [arm_label(arm) for arm in arms] if ax is axes[0] else [""] * len(arms))
        ax.set_ylim(len(arms) - 0.4, -0.6)
        ax.set_xlim(0, 1)
        share_axis(ax.xaxis, "self-edits")
        ax.set_title(name, fontsize=9, fontweight="normal")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="copies are")
    return axes
