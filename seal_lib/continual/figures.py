"""The whole figures of the forgetting study, and the gallery of all that results.csv has data for.

Knows which arms and sizes a figure has; how a panel is drawn is in `plots`. Style and files are the library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib.continual.plots import (
    cost_quality,
    fates_by_age,
    heat_map,
    matrix_of,
    overview,
    plasticity_stability,
    released_matrix,
    retention_by_age,
    stream_length,
)
from seal_lib.continual.tables import EXPERIMENT, MAPS_EXPERIMENT, MATRIX, committed_sweep
from seal_lib.report.arms import FAMILIES, arm_label, family
from seal_lib.report.figures import save
from seal_lib.report.plots import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAPPED_ARMS = ("sequential_authors_live", "sequential_authors", "sequential_live", "sequential", "ewc", "merge", "kl",
        "generative_replay", "replay", "null_space", "inflora", "null_space_replay_live", "null_space_replay",
        "joint")  # fmt: skip
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
#: beside the released matrix; only the first is the authors' protocol, the edited model writing
PAPER = ("sequential_authors_live", "sequential_authors", "sequential")
FATED = ("sequential_authors", "sequential", "sequential_live", "replay", "null_space", "null_space_replay", "joint")


def gallery(df: pd.DataFrame, folder: Path) -> list[str]:
    """Draw and save (PDF, PNG, CSV) every figure of the study for which `df` (results.csv) has data; their names."""
    names = []
    rows, cells = df[df["experiment"] == EXPERIMENT], df[df["experiment"] == MATRIX]
    maps = df[df["experiment"] == MAPS_EXPERIMENT]
    made = rows["model"].astype(str).str.startswith("seedling").any()  # whose tuning is committed
    more = {scatter_figure: {"sweep": committed_sweep() if made else None}}
    for kind in (overview_figure, age_figure, scatter_figure, fates_figure, cost_figure):
        if len(rows) and (figure := kind(rows, **more.get(kind, {}))) is not None:
            names.append(f"continual_{kind.__name__.removesuffix('_figure')}")
            save(figure, names[-1], rows, folder)
    for name, kind, table in (("continual_paper", paper_figure, cells), ("continual_maps", maps_figure, maps)):
        if len(table):
            names.append(name)
            save(kind(table), name, table, folder)
    lengths = df[df["experiment"] == "continual/stream_length"]
    if len(lengths):
        names.append("continual_length")
        save(length_figure(lengths), names[-1], lengths, folder)
    return names


def _axes(rows: int, columns: int, size: tuple[float, float], **options):
    """A closed figure and its axes [rows, columns], in the style that the caller entered."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    plt.close(figure)
    return figure, axes


def paper_figure(cells: pd.DataFrame, arms: Sequence[str] = PAPER) -> Figure:
    """The paper's heat map: the authors' released matrix beside ours, their protocol first; one colour scale."""
    arms = [arm for arm in arms if arm in set(cells["arm"])]
    with style():
        figure, axes = _axes(1, 1 + len(arms), (3.3 * (1 + len(arms)), 3.1))
        heat_map(released_matrix(), axes[0, 0])
        axes[0, 0].set_title("authors, Qwen2.5-7B (released)")
        for ax, arm in zip(axes[0, 1:], arms, strict=True):
            heat_map(matrix_of(cells, arm), ax)
            ax.set_title(f"ours: {arm_label(arm)}")
        figure.colorbar(axes[0, 0].seal_image, ax=axes, shrink=0.8, label="accuracy")
    return figure


def maps_figure(cells: pd.DataFrame, arms: Sequence[str] = MAPPED_ARMS) -> Figure:
    """Difference to the unedited model, arm by arm, on one scale; the authors' first."""
    arms = [arm for arm in arms if arm in set(cells["arm"])]
    with style():
        columns = min(4, 1 + len(arms))
        lines = -(-(1 + len(arms)) // columns)
        figure, axes = _axes(lines, columns, (2.75 * columns, 2.55 * lines))
        flat = axes.flatten()
        heat_map(released_matrix(), flat[0], difference=True)
        flat[0].label_outer()
        flat[0].set_title("authors, Qwen2.5-7B")
        for ax, arm in zip(flat[1:], arms, strict=False):
            heat_map(matrix_of(cells, arm), ax, difference=True)
            ax.set_title(arm_label(arm))
            ax.label_outer()
        for ax in flat[1 + len(arms) :]:
            ax.set_visible(False)
        figure.colorbar(flat[0].seal_image, ax=axes, shrink=0.6, label="accuracy − unedited")
    return figure


def age_figure(rows: pd.DataFrame, arms: Sequence[str] = AGED) -> Figure:
    """Retention against edit age."""
    with style():
        figure, axes = _axes(1, 1, (6.6, 3.8))
        retention_by_age(rows, axes[0, 0], arms)
    return figure


def scatter_figure(rows: pd.DataFrame, sweep: pd.DataFrame | None = None) -> Figure:
    """Plasticity against stability, with a legend of families."""
    with style():
        figure, axes = _axes(1, 1, (7.8, 5.2))
        plasticity_stability(rows, axes[0, 0], sweep)
        _family_legend(axes[0, 0], rows)
    return figure


def fates_figure(rows: pd.DataFrame, arms: Sequence[str] = FATED) -> Figure | None:
    """Where the accuracy goes, by age, for a few arms."""
    arms = [a for a in arms if len(rows[(rows["arm"] == a) & rows["metric"].str.startswith("never:")])]
    if not arms:
        return None
    with style():
        columns = min(3, len(arms))
        lines = -(-len(arms) // columns)
        figure, axes = _axes(lines, columns, (2.9 * columns, 2.5 * lines), sharey=True)
        for ax, arm in zip(axes.flatten(), arms, strict=False):
            fates_by_age(rows, ax, arm)
            ax.label_outer()
        for ax in axes.flatten()[len(arms) :]:
            ax.set_visible(False)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles[::-1], names[::-1], loc="outside right center")
    return figure


def cost_figure(rows: pd.DataFrame) -> Figure | None:
    """Accuracy against cost."""
    if not (rows.loc[rows["metric"] == "seconds_per_edit", "value"] > 0).any():
        return None
    with style():
        figure, axes = _axes(1, 1, (7.6, 4.8))
        cost_quality(rows, axes[0, 0])
        _family_legend(axes[0, 0], rows)
    return figure


def overview_figure(rows: pd.DataFrame) -> Figure:
    """All arms: accuracy, forgetting, prior knowledge."""
    with style():
        arms = rows.loc[rows["metric"] == "accuracy", "arm"].nunique()
        figure, axes = _axes(1, 3, (9.5, 1.0 + 0.21 * arms))
        overview(rows, list(axes[0]))
    return figure


def length_figure(rows: pd.DataFrame) -> Figure:
    """Accuracy and prior knowledge against the number of edits."""
    with style():
        figure, axes = _axes(1, 2, (11, 3.8))
        stream_length(rows, axes[0, 0])
        stream_length(rows, axes[0, 1], "prior")
    return figure


def _family_legend(ax: Axes, rows: pd.DataFrame) -> None:
    from matplotlib.lines import Line2D

    there = {family(arm) for arm in rows["arm"].unique()}
    handles = [
        Line2D([], [], marker="o", linestyle="", color=shown.colour, label=shown.meaning)
        for key, shown in FAMILIES.items()
        if key in there and key != "reference"
    ]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=3, fontsize=7)
