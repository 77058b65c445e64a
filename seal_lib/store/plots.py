"""Draw the figure of ``own_documents/growing`` (see `seal_lib.store.growth`) from a table on the given axes.

figures.draw(growing, table, panels=(1, 3))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from seal_lib.errors import DataError
from seal_lib.report.arms import arm_label, arm_rank
from seal_lib.report.marks import colour, share_axis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

EXPERIMENT = "own_documents/growing"
PANELS = {"right": "questions answered correctly", "kept": "prior questions right", "prompt_tokens": "tokens a prompt"}


def growing(table: pd.DataFrame, axes: Sequence[Axes]) -> Sequence[Axes]:
    """Plot right answers, prior knowledge and prompt length against the number of passages, one line per arm.

    Raises:
        DataError: the table has no rows of the experiment.
    """
    rows = table[table["experiment"] == EXPERIMENT]
    if not len(rows):
        raise DataError(f"The table has no rows of {EXPERIMENT}; run the notebook that writes it.")
    for ax, (metric, words) in zip(axes, PANELS.items(), strict=True):
        own = rows.assign(size=rows["metric"].str.extract(rf"^{metric}_(\d+)$", expand=False)).dropna(subset="size")
        own = own.astype({"size": int}).sort_values("size")
        sizes = list(own["size"].unique())
        arms = sorted(own["arm"].unique(), key=arm_rank)
        for k, arm in enumerate(arms):
            line = own[own["arm"] == arm]
            shift = (k - (len(arms) - 1) / 2) * 0.05
            xs = [sizes.index(size) + shift for size in line["size"]]
            paint = colour(arm)
            ax.plot(xs, line["value"], "o-", color=paint, label=arm_label(arm), markersize=4)
            for x, bounds in zip(xs, line[["low", "high"]].to_numpy(), strict=True):
                ax.plot([x, x], bounds, color=paint, linewidth=1.2)
        ax.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        ax.set_xlabel("passages in the store")
        ax.set_title(words, loc="left", fontsize=9)
        if metric != "prompt_tokens":
            share_axis(ax.yaxis, "")
            ax.set_ylim(-0.02, 1.02)
        ax.grid(axis="y")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return axes


def pictures(
    own: pd.DataFrame, full: pd.DataFrame, rows: pd.DataFrame
) -> list[tuple[Callable, str, pd.DataFrame, dict]]:
    """Return the figures of an experiment, in the form of `seal_lib.report.plots.pictures`."""
    there = len(own) and (own["experiment"] == EXPERIMENT).all()
    return [(growing, "growing", own, {"panels": (1, 3), "size": (12.5, 3.4)})] if there else []
