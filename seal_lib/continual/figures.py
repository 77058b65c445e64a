"""The complete figures of the forgetting study, and the gallery of all figures that results.csv has data for.

This module decides which arms a figure shows and how large it is; `plots` draws the panels. Style and saving come from
`seal_lib.report`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_lib.continual import plots
from seal_lib.continual.tables import EXPERIMENT, FATES, MAPS_EXPERIMENT, MATRIX, committed_sweep
from seal_lib.report.arms import FAMILIES, arm_label, family_of_arm
from seal_lib.report.figures import narrowed, save, say
from seal_lib.report.plots import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAPPED_ARMS = ("sequential_authors_live", "sequential", "null_space_replay")  # to the right of the released matrix
AGED = (
    "sequential_authors",
    "sequential",
    "replay",
    "generative_replay",
    "null_space",
    "null_space_replay",
    "merge",
    "joint",
)
#: arms shown beside the released matrix; only the first follows the authors' protocol: the edited model writes
PAPER = ("sequential_authors_live", "sequential_authors", "sequential")
FATED = ("sequential_authors", "sequential", "sequential_live", "replay", "null_space", "null_space_replay", "joint")

_FIGURES: list[Callable] = []  # in the order of the gallery


def shows(experiment: str, metrics: str, of: Sequence[str] = (), intervals: bool = True) -> Callable:
    """Decorate a figure of the gallery: it gets only the rows of some metrics and arms, and has style and a caption.

    The decorated function returns None if the table has no such row.

    Args:
        experiment: the experiment whose rows the gallery passes to it.
        metrics: regular expression of the metrics it shows.
        of: the arms it shows, in order, unless the caller names others; empty: all arms.
        intervals: whether the figure draws intervals.
    """

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def figure_of(rows: pd.DataFrame, arms: Sequence[str] = of, **named: object) -> Figure | None:
            rows = only(rows, arms)
            there = [arm for arm in arms if arm in set(rows["arm"])]
            if not len(rows):
                return None
            with style():
                figure = function(rows, *([there] if of else []), **named)
                if figure is not None:
                    say(figure, rows, intervals)
            return figure

        def only(rows: pd.DataFrame, arms: Sequence[str] = of) -> pd.DataFrame:
            rows = narrowed(rows, metrics)
            return rows[rows["arm"].isin(list(arms))] if arms else rows

        vars(figure_of).update(experiment=experiment, only=only)
        _FIGURES.append(figure_of)
        return figure_of

    return decorate


def gallery(df: pd.DataFrame, folder: Path) -> list[str]:
    """Draw and save (PDF, PNG, CSV) every figure that `df` (results.csv) has data for, and return their names."""
    names = []
    made = df["model"].astype(str).str.startswith("seedling").any()  # the committed sweep was run on a seedling
    more = {scatter_figure: {"sweep": committed_sweep() if made else None}}
    for kind in _FIGURES:
        rows = kind.only(df[df["experiment"] == kind.experiment])
        if (figure := kind(rows, **more.get(kind, {}))) is not None:
            names.append(f"continual_{kind.__name__.removesuffix('_figure')}")
            save(figure, names[-1], rows, folder)
    return names


def _axes(rows: int, columns: int, size: tuple[float, float], title: str, **options: Any) -> tuple:
    """Return a figure, closed in pyplot, and its array of axes [rows, columns]."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    plt.close(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure, axes


@shows(EXPERIMENT, "accuracy|BWT|prior_kept")
def overview_figure(rows: pd.DataFrame) -> Figure:
    """Draw accuracy, backward transfer and prior knowledge kept for all arms."""
    arms = rows.loc[rows["metric"] == "accuracy", "arm"].nunique()
    figure, axes = _axes(1, 3, (9.5, 1.3 + 0.21 * arms), "All update rules")
    plots.overview(rows, list(axes[0]))
    return figure


@shows(EXPERIMENT, r"age_\d+", AGED)
def age_figure(rows: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Draw retention against the age of an edit."""
    figure, axes = _axes(1, 1, (6.6, 4.0), "What is left after later edits")
    plots.retention_by_age(rows, axes[0, 0], arms)
    return figure


@shows(EXPERIMENT, r"LA_gain|BWT|base|AA_\d+")
def scatter_figure(rows: pd.DataFrame, sweep: pd.DataFrame | None = None) -> Figure:
    """Draw plasticity against stability, with an enlarged view of the crowded corner beside it."""
    figure, axes = _axes(1, 2, (12.0, 5.2), "Learning against forgetting")
    plots.plasticity_stability(rows, axes[0, 0], sweep, axes[0, 1])
    axes[0, 1].set_visible(axes[0, 1].has_data())
    _family_legend(axes[0, 0], rows)
    return figure


@shows(EXPERIMENT, rf"({'|'.join(FATES)}):age_\d+", FATED, intervals=False)
def fates_figure(rows: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Draw what became of each question by age of the edit, one panel per arm."""
    columns = min(3, len(arms))
    lines = -(-len(arms) // columns)
    size = (2.9 * columns, 0.4 + 2.5 * lines)
    figure, axes = _axes(lines, columns, size, "What became of each question", sharey=True)
    for at, (ax, arm) in enumerate(zip(axes.flatten(), arms, strict=False)):
        plots.fates_by_age(rows, ax, arm)
        ax.label_outer()
        if at + columns >= len(arms):  # the lowest panel of its column
            ax.tick_params(labelbottom=True)
            ax.set_xlabel("later edits")
    for ax in axes.flatten()[len(arms) :]:
        ax.set_visible(False)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right center")
    return figure


@shows(EXPERIMENT, "seconds_per_edit|accuracy")
def cost_figure(rows: pd.DataFrame) -> Figure | None:
    """Draw accuracy against training time; return None if no time was measured."""
    if not (rows.loc[rows["metric"] == "seconds_per_edit", "value"] > 0).any():
        return None
    figure, axes = _axes(1, 1, (8.4, 5.2), "What an edit costs, and what is right at the end")
    plots.cost_quality(rows, axes[0, 0])
    _family_legend(axes[0, 0], rows)
    return figure


@shows(MATRIX, "accuracy_after_.*", PAPER, intervals=False)
def paper_figure(cells: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Draw the paper's heat map (Figure 6): the authors' released matrix beside ours, on one colour scale.

    The arm that follows the authors' protocol comes first.
    """
    return _matrices(cells, arms, False, "What is right after each edit (the paper's Figure 6)")


@shows(MAPS_EXPERIMENT, "accuracy_after_.*", MAPPED_ARMS, intervals=False)
def maps_figure(cells: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Draw how accuracy differs from the unedited model: the authors' release, then each arm, on one colour scale."""
    return _matrices(cells, arms, True, "What each edit changes")


@shows("continual/stream_length", r"(AA|prior)_\d+")
def length_figure(rows: pd.DataFrame) -> Figure:
    """Draw accuracy and prior knowledge against the number of edits."""
    figure, axes = _axes(1, 2, (11, 4.0), "Longer streams of edits")
    plots.stream_length(rows, axes[0, 0])
    plots.stream_length(rows, axes[0, 1], "prior")
    return figure


def _family_legend(ax: Axes, rows: pd.DataFrame) -> None:
    from matplotlib.lines import Line2D

    there = {family_of_arm(arm) for arm in rows["arm"].unique()}
    handles = [
        Line2D([], [], marker="o", linestyle="", color=shown.colour, label=shown.meaning)
        for key, shown in FAMILIES.items()
        if key in there and key != "reference"
    ]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=3, fontsize=7)


def _matrices(cells: pd.DataFrame, arms: Sequence[str], difference: bool, title: str) -> Figure:
    """Draw the authors' released matrix and the matrices of the arms side by side on one colour scale."""
    figure, axes = _axes(1, 1 + len(arms), (2.9 * (1 + len(arms)), 3.5), title)
    plots.heat_map(plots.released_matrix(), axes[0, 0], difference)
    axes[0, 0].set_title("the authors' release,\nQwen2.5-7B, 64 sequences", fontsize=8.5)
    for ax, arm in zip(axes[0, 1:], arms, strict=True):
        plots.heat_map(plots.matrix_of(cells, arm), ax, difference)
        ax.set_title("ours: " + textwrap.fill(arm_label(arm), 26), fontsize=8.5)
        ax.label_outer()
    label = "accuracy − unedited, points" if difference else "right, %"
    bar = figure.colorbar(axes[0, 0].seal_image, ax=axes, shrink=0.8, label=label)
    bar.ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:{'+' if difference and v else ''}.0f}".replace("-", "−"))
    return figure
