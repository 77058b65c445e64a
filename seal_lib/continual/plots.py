"""The figures of the forgetting study: tidy table in (results.csv), marks on the given axes, the axes back.

The same rules as `seal_lib.plots`, whose style and files they share: pure functions, fixed colours, intervals always
drawn, a missing value is a gap. Knows the arms' names, families and labels; no rows, models or runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import plots, report
from seal_lib.continual.tables import EXPERIMENT, FATES, MATRIX, committed_sweep
from seal_lib.continual.tables import MAPS as MAPS_EXPERIMENT
from seal_lib.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, LIGHT = plots.INK, plots.GREY, plots.LIGHT
#: family -> (colour, what it does); Okabe and Ito's palette
FAMILIES = {
    "reference": ("#222222", "no training, passage at hand"),
    "plain": ("#D55E00", "plain editing and its strength"),
    "rehearsal": ("#0072B2", "rehearsal, distillation"),
    "penalty": ("#CC79A7", "penalties, frozen parts, gate"),
    "projection": ("#009E73", "projection (null space)"),
    "both": ("#56B4E9", "projection and rehearsal"),
    "merging": ("#E69F00", "merging independent edits"),
    "isolation": ("#7A68A6", "isolated adapters"),
    "joint": ("#5c5c5c", "joint retraining"),
}
_FAMILY_OF = {  # family -> its arms
    "reference": "frozen passage_in_context rag",
    "plain": "sequential_authors sequential low_lr few_epochs delta_scaling",
    "penalty": "freeze_lower l2 ewc o_lora gated_merge",
    "rehearsal": "kl generative_replay replay kl_replay",
    "projection": "null_space_calibration null_space inflora",
    "both": "null_space_replay",
    "merging": "merge_sum merge_mean ties",
    "isolation": "isolation isolation_oracle",
    "joint": "joint",
}
ARMS = {  # arm -> (label, family); the order is that of tables and figures
    arm: (report.arm_label(arm), family) for family, arms in _FAMILY_OF.items() for arm in arms.split()
}
FATE_STYLE = {
    "kept_base": ("known before, kept", "#222222"), "kept_injected": ("taught, kept", "#009E73"),
    "lost_base": ("known before, lost", "#8a8a8a"), "lost_injected": ("taught, lost", "#D55E00"),
    "never": ("never learned", "#e9e0d0"), "blank": ("no answer", "#56B4E9"),
}  # fmt: skip
_LEADER = {"arrowstyle": "-", "linewidth": 0.4, "alpha": 0.6, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
_CELL = re.compile(r"accuracy_after_(\d+):passage_(\d+)")


def label(arm: str) -> str:
    """What a person reads for an arm."""
    return ARMS[arm][0] if arm in ARMS else arm.replace("_", " ")


def colour(arm: str) -> str:
    """The colour of the arm's family."""
    return FAMILIES[ARMS[arm][1]][0] if arm in ARMS else plots.OTHER_ARMS


def rank(arm: str) -> tuple[int, str]:
    """Sort key."""
    return (list(ARMS).index(arm) if arm in ARMS else len(ARMS), arm)


def matrix_of(table: pd.DataFrame, arm: str):
    """The mean matrix [K+1, K] of an arm from its `accuracy_after_<r>:passage_<n>` rows; NaN where there is none."""
    import numpy as np

    report.wants(table, ["arm", "metric", "value"])
    cells = {}
    for row in table[table["arm"] == arm].to_dict("records"):
        if found := _CELL.fullmatch(row["metric"]):
            cells[int(found[1]), int(found[2]) - 1] = row["value"]
    if not cells:
        raise DataError(f"The table has no matrix of arm {arm!r}; it needs rows accuracy_after_<edits>:passage_<n>.")
    K = max(i for _, i in cells) + 1
    return np.array([[cells.get((r, i), math.nan) for i in range(K)] for r in range(K + 1)], dtype=float)


def released_matrix():
    """The authors' mean matrix (64 sequences; source in paper_values.yaml), [9, 8], NaN where they did not measure."""
    import pandas as pd

    rows = [row for row in report.paper_values() if row["experiment"] == MATRIX]
    return matrix_of(pd.DataFrame(rows), "sequential")


def heat_map(matrix, ax: Axes, difference: bool = False, limits: tuple[float, float] | None = None) -> Axes:
    """Edits made so far (down) by passage (across): accuracy, or its difference to row 0 on a diverging scale.

    Passages not edited yet are hatched; what was not measured is blank.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    shown = matrix - matrix[0] if difference else matrix
    low, high = limits or ((-1, 1) if difference else (0, 1))
    image = ax.imshow(shown, cmap="RdBu" if difference else "Blues", vmin=low, vmax=high, aspect="auto")
    rows, columns = matrix.shape
    for r in range(rows):
        for i in range(columns):
            if math.isnan(shown[r, i]):
                continue
            strength = abs(shown[r, i] - (low + high) / 2) / ((high - low) / 2) if difference else shown[r, i] / high
            text = f"{100 * shown[r, i]:+.0f}" if difference else f"{100 * shown[r, i]:.0f}"
            if columns <= 10:
                dark = strength > 0.62
                ax.text(
                    i, r, text.replace("-", "−"), ha="center", va="center", fontsize=6.5, color="white" if dark else INK
                )
            if r and i >= r:
                box = Rectangle((i - 0.5, r - 0.5), 1, 1, fill=False, hatch="////", edgecolor="#ffffff", linewidth=0)
                ax.add_patch(box)
    edge = np.arange(columns)
    ax.plot(np.repeat([*edge, columns], 2)[1:-1] - 0.5, np.repeat(edge + 1, 2) - 0.5, color=INK, linewidth=1)
    ax.set_xticks(edge, edge + 1)
    ax.set_yticks(range(rows), ["none", *range(1, rows)])
    ax.set(xlabel="passage", ylabel="edits made")
    ax.tick_params(length=0)
    ax.seal_image = image
    return ax


def retention_by_age(table: pd.DataFrame, ax: Axes, arms: Sequence[str]) -> Axes:
    """Gain over the unedited model after t later edits (`age_<t>`), with 95 % bands; the zero line is break-even."""
    names = []
    for arm in sorted(set(arms), key=rank):
        rows = table[(table["arm"] == arm) & table["metric"].str.fullmatch(r"age_\d+")]
        rows = rows.assign(age=rows["metric"].str.removeprefix("age_").astype(int)).sort_values("age")
        if not len(rows) or rows["value"].isna().all():
            continue
        paint = colour(arm)
        ax.fill_between(rows["age"], rows["low"], rows["high"], color=paint, alpha=0.14, linewidth=0)
        dashed = {"linestyle": "--"} if arm in ("joint", "isolation_oracle") else {}
        ax.plot(rows["age"], rows["value"], color=paint, marker="o", markersize=3.5, **dashed, gid=f"value:{arm}")
        names.append((float(rows["value"].iloc[-1]), label(arm), paint))
    if not names:
        raise DataError("The table has no row age_0, age_1 … for these arms.")
    ax.axhline(0, color=INK, linewidth=0.9, zorder=1)
    ax.set(xlabel="later edits", ylabel="gain over the unedited model")
    plots.share_axis(ax.yaxis, "gain over the unedited model", signed=True)
    ax.grid(axis="y")
    plots._names_at_right(ax, names)
    return ax


def plasticity_stability(table: pd.DataFrame, ax: Axes, sweep: pd.DataFrame | None = None) -> Axes:
    """Learned gain (LA − base) against backward transfer, single-weight arms and references; grey lines join points of
    equal AA_K, for AA_K = LA + BWT (K−1)/K exactly.

    Args:
        sweep: tuning lines (rule, LA, AA, BWT); the settings of plain editing are joined as a strength frontier.
    """
    import numpy as np

    points = {arm: {} for arm in table["arm"].unique()}
    for row in table[table["metric"].isin(["LA_gain", "BWT", "base"])].to_dict("records"):
        points[row["arm"]][row["metric"]] = row
    K = int(max(m[3:] for m in table["metric"] if re.fullmatch(r"AA_\d", m))) if len(table) else 8
    base = next(p["base"]["value"] for p in points.values() if "base" in p)
    x = np.linspace(-0.05, 1.0, 50)
    for level in np.arange(0.2, 1.01, 0.2):
        ax.plot(x, (level - base - x) * K / (K - 1), color=LIGHT, linewidth=0.8, zorder=0)
        at = level - base - 0.085 * K / (K - 1)
        if at < 0.95:
            ax.text(at, 0.085, f" AA {100 * level:.0f} %", color=GREY, fontsize=7, va="top")
    for rule, one in () if sweep is None else sweep.groupby("rule"):
        if rule in ("sequential", "low_lr", "few_epochs", "delta_scaling"):
            one = one.assign(at=one["knobs"].str.extract(r": ([\d.]+)")[0].astype(float)).sort_values("at")
            ax.plot(one["LA"] - base, one["BWT"], color=colour(rule), linewidth=0.8, alpha=0.5, zorder=1)
    drawn = [(a, p) for a, p in points.items() if {"LA_gain", "BWT"} <= set(p) and not math.isnan(p["BWT"]["value"])]
    skip = ("frozen", "rag", "passage_in_context")
    for arm, p in sorted(drawn, key=lambda item: rank(item[0])):
        if arm in skip:
            continue
        gain, kept, paint = p["LA_gain"], p["BWT"], colour(arm)
        ax.plot([gain["low"], gain["high"]], [kept["value"]] * 2, color=paint, linewidth=0.9, alpha=0.6)
        ax.plot([gain["value"]] * 2, [kept["low"], kept["high"]], color=paint, linewidth=0.9, alpha=0.6)
        star = {"marker": "*", "markersize": 12} if arm in ("joint", "isolation_oracle") else {"marker": "o"}
        ax.plot([gain["value"]], [kept["value"]], color=paint, linestyle="", zorder=4, gid=f"value:{arm}", **star)
    ax.axhline(0, color=INK, linewidth=0.9, zorder=1)
    plots.share_axis(ax.xaxis, "learned right after the edit (LA − base)", signed=True)
    plots.share_axis(ax.yaxis, "backward transfer (0 = nothing forgotten)", signed=True)
    ax.set_ylim(-0.62, 0.09)
    ax.set_xlim(-0.02, 1.0)
    _column(ax, [(p["LA_gain"]["value"], p["BWT"]["value"], arm) for arm, p in drawn if arm not in skip])
    return ax


def _column(ax: Axes, marks: Sequence[tuple[float, float, str]]) -> None:
    """Arm names in a column right of the axes, in the order of their marks' heights, each with a thin leader."""
    from matplotlib.transforms import blended_transform_factory

    low, high = ax.get_ylim()
    place = blended_transform_factory(ax.transAxes, ax.transData)
    step = min(0.042, 1 / max(1, len(marks))) * (high - low)
    ordered = sorted(marks, key=lambda m: (m[1], -m[0]))
    heights: list[float] = []
    for _, y, _ in ordered:
        heights.append(max(y, heights[-1] + step if heights else low))
    over = heights[-1] - (high - step / 2)
    for n in reversed(range(len(heights))):  # the top ones give way downwards
        if over > 0:
            top = heights[n + 1] - step if n + 1 < len(heights) else high - step / 2
            heights[n] = min(heights[n], top)
    for (x, y, arm), at in zip(ordered, heights, strict=True):
        ax.annotate(
            label(arm), (x, y), (1.04, at), textcoords=place, fontsize=7.5, color=plots._darker(colour(arm)),
            va="center", arrowprops=dict(_LEADER, color=colour(arm)), annotation_clip=False,
        )  # fmt: skip


def fates_by_age(table: pd.DataFrame, ax: Axes, arm: str) -> Axes:
    """Stacked shares of the questions about edited passages by what became of them, by number of later edits."""
    rows = table[(table["arm"] == arm) & table["metric"].str.fullmatch(rf"({'|'.join(FATES)}):age_\d+")]
    if not len(rows):
        raise DataError(f"The table has no fates of arm {arm!r} (metrics like kept_injected:age_0).")
    values = {tuple(r["metric"].split(":age_")): r["value"] for r in rows.to_dict("records")}
    ages = sorted({int(age) for _, age in values})
    bottom = [0.0] * len(ages)
    for fate in FATES:
        heights = [values.get((fate, str(age)), 0.0) for age in ages]
        ax.bar(ages, heights, 0.8, bottom, color=FATE_STYLE[fate][1], label=FATE_STYLE[fate][0], edgecolor="white",
               linewidth=0.4)  # fmt: skip
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    ax.set(xlabel="later edits", ylim=(0, 1), xlim=(ages[0] - 0.5, ages[-1] + 0.5))
    plots.share_axis(ax.yaxis, "questions on edited passages")
    ax.set_ylim(0, 1)
    ax.set_title(label(arm))
    return ax


def cost_quality(table: pd.DataFrame, ax: Axes, cost: str = "seconds_per_edit", quality: str = "accuracy") -> Axes:
    """Accuracy after all edits against training time per edit (log); a ring around a mark: text is stored."""
    rows = {arm: {} for arm in table["arm"].unique()}
    for row in table[table["metric"].isin([cost, quality])].to_dict("records"):
        rows[row["arm"]][row["metric"]] = row
    marks = []
    for arm, m in sorted(rows.items(), key=lambda item: rank(item[0])):
        if cost not in m or quality not in m or not m[cost]["value"] > 0 or math.isnan(m[quality]["value"]):
            continue
        x, q, paint = m[cost]["value"], m[quality], colour(arm)
        ax.plot([x, x], [q["low"], q["high"]], color=paint, linewidth=1.6, alpha=0.7)
        ax.plot([x], [q["value"]], "o", color=paint, zorder=4, gid=f"value:{arm}")
        if _stores_text(arm):
            ax.plot([x], [q["value"]], "o", markersize=10, markerfacecolor="none", color=paint, zorder=3)
        marks.append((x, q["value"], arm))
    if not marks:
        raise DataError(f"The table has no arm with {cost} and {quality}.")
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(lambda v, _: f"{v:g}" if f"{v:e}"[0] in "235" else "")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.set_xlabel("CPU seconds of training per edit (log scale; ring: stores text)")
    plots.share_axis(ax.yaxis, "questions on all edited passages, at the end")
    ax.grid(axis="y")
    _column(ax, marks)
    return ax


def _stores_text(arm: str) -> bool:
    return arm in ("replay", "kl_replay", "null_space_replay", "joint", "isolation")


def stream_length(table: pd.DataFrame, ax: Axes, metric: str = "AA") -> Axes:
    """`AA_<K>` (or `prior_<K>`) against the number of edits, an arm a line, with bands."""
    names = []
    for arm in sorted(table["arm"].unique(), key=rank):
        rows = table[(table["arm"] == arm) & table["metric"].str.fullmatch(rf"{metric}_\d+")]
        rows = rows.assign(K=rows["metric"].str.removeprefix(f"{metric}_").astype(int)).sort_values("K")
        rows = rows[rows["value"].notna()]
        if len(rows):
            paint = colour(arm)
            ax.fill_between(rows["K"], rows["low"], rows["high"], color=paint, alpha=0.13, linewidth=0)
            dashed = {"linestyle": "--"} if arm in ("joint", "isolation_oracle") else {}
            ax.plot(rows["K"], rows["value"], color=paint, marker="o", **dashed, gid=f"value:{arm}")
            names.append((float(rows["value"].iloc[-1]), label(arm), paint))
    if not names:
        raise DataError(f"The table has no row {metric}_<K>.")
    ticks = sorted({int(m.rpartition("_")[2]) for m in table["metric"] if re.fullmatch(rf"{metric}_\d+", m)})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel("edits")
    what = "questions on all edited passages" if metric == "AA" else "prior knowledge"
    plots.share_axis(ax.yaxis, what)
    ax.set_ylim(-0.02, 1.03)
    ax.grid(axis="y")
    plots._names_at_right(ax, names)
    return ax


def overview(table: pd.DataFrame, axes: Sequence[Axes]) -> Sequence[Axes]:
    """Three columns, a line an arm: accuracy after all edits, backward transfer, prior knowledge kept."""
    from matplotlib.ticker import MaxNLocator

    wanted = [("accuracy", "right at the end"), ("BWT", "backward transfer"), ("prior_kept", "prior knowledge kept")]
    arms = sorted(set(table.loc[table["metric"] == "accuracy", "arm"]), key=rank)
    for ax, (metric, title) in zip(axes, wanted, strict=True):
        rows = {r["arm"]: r for r in table[table["metric"] == metric].to_dict("records")}
        for y, arm in enumerate(arms):
            row = rows.get(arm, {"value": math.nan})
            if math.isnan(row["value"]):
                ax.text(0.02, y, "diverged" if arm in rows else report.NOT_RUN, color=GREY, style="italic",
                        va="center", fontsize=7.5, transform=ax.get_yaxis_transform())  # fmt: skip
                continue
            ax.plot([row["low"], row["high"]], [y, y], color=colour(arm), linewidth=2.2, gid=f"interval:{arm}")
            ax.plot([row["value"]], [y], "o", color=colour(arm), markersize=4.5, gid=f"value:{arm}")
        ax.set_ylim(len(arms) - 0.4, -0.6)
        ax.set_yticks(range(len(arms)), [label(arm) for arm in arms] if ax is axes[0] else [""] * len(arms))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        plots.share_axis(ax.xaxis, title, signed=metric == "BWT")
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if metric == "BWT":
            ax.axvline(0, color=INK, linewidth=0.9, zorder=1)
    return axes


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
            plots.save(figure, names[-1], rows, folder)
    for name, kind, table in (("continual_paper", paper_figure, cells), ("continual_maps", maps_figure, maps)):
        if len(table):
            names.append(name)
            plots.save(kind(table), name, table, folder)
    lengths = df[df["experiment"] == "continual/stream_length"]
    if len(lengths):
        names.append("continual_length")
        plots.save(length_figure(lengths), names[-1], lengths, folder)
    return names


# --- whole figures ------------------------------------------------------------------------------------------------


def _axes(rows: int, columns: int, size: tuple[float, float], **options):
    import matplotlib.pyplot as plt

    with plots.style():
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
        plt.close(figure)
    return figure, axes


def paper_figure(cells: pd.DataFrame, arms: Sequence[str] = ("sequential_authors", "sequential")) -> Figure:
    """The paper's heat map: the authors' released matrix beside ours, one colour scale."""
    arms = [arm for arm in arms if arm in set(cells["arm"])]
    with plots.style():
        figure, axes = _axes(1, 1 + len(arms), (3.3 * (1 + len(arms)), 3.1))
        heat_map(released_matrix(), axes[0, 0])
        axes[0, 0].set_title("authors, Qwen2.5-7B (released)")
        for ax, arm in zip(axes[0, 1:], arms, strict=True):
            heat_map(matrix_of(cells, arm), ax)
            ax.set_title(f"ours: {label(arm)}")
        figure.colorbar(axes[0, 0].seal_image, ax=axes, shrink=0.8, label="accuracy")
    return figure


MAPS = ("sequential_authors", "sequential", "ewc", "merge_mean", "kl", "generative_replay", "replay",
        "null_space", "inflora", "null_space_replay", "joint")  # fmt: skip


def maps_figure(cells: pd.DataFrame, arms: Sequence[str] = MAPS) -> Figure:
    """Difference to the unedited model, arm by arm, on one scale; the authors' first."""
    arms = [arm for arm in arms if arm in set(cells["arm"])]
    with plots.style():
        columns = min(4, 1 + len(arms))
        lines = -(-(1 + len(arms)) // columns)
        figure, axes = _axes(lines, columns, (2.75 * columns, 2.55 * lines))
        flat = axes.flatten()
        heat_map(released_matrix(), flat[0], difference=True)
        flat[0].label_outer()
        flat[0].set_title("authors, Qwen2.5-7B")
        for ax, arm in zip(flat[1:], arms, strict=False):
            heat_map(matrix_of(cells, arm), ax, difference=True)
            ax.set_title(label(arm))
            ax.label_outer()
        for ax in flat[1 + len(arms) :]:
            ax.set_visible(False)
        figure.colorbar(flat[0].seal_image, ax=axes, shrink=0.6, label="accuracy − unedited")
    return figure


AGED = (
    "sequential_authors",
    "sequential",
    "replay",
    "generative_replay",
    "null_space",
    "null_space_replay",
    "merge_mean",
    "joint",
)


def age_figure(rows: pd.DataFrame, arms: Sequence[str] = AGED) -> Figure:
    """Retention against edit age."""
    with plots.style():
        figure, axes = _axes(1, 1, (6.6, 3.8))
        retention_by_age(rows, axes[0, 0], arms)
    return figure


def scatter_figure(rows: pd.DataFrame, sweep: pd.DataFrame | None = None) -> Figure:
    """Plasticity against stability, with a legend of families."""
    with plots.style():
        figure, axes = _axes(1, 1, (7.8, 5.2))
        plasticity_stability(rows, axes[0, 0], sweep)
        _family_legend(axes[0, 0], rows)
    return figure


FATED = ("sequential_authors", "sequential", "replay", "null_space", "null_space_replay", "joint")


def fates_figure(rows: pd.DataFrame, arms: Sequence[str] = FATED) -> Figure | None:
    """Where the accuracy goes, by age, for a few arms."""
    arms = [a for a in arms if len(rows[(rows["arm"] == a) & rows["metric"].str.startswith("never:")])]
    if not arms:
        return None
    with plots.style():
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
    with plots.style():
        figure, axes = _axes(1, 1, (7.6, 4.8))
        cost_quality(rows, axes[0, 0])
        _family_legend(axes[0, 0], rows)
    return figure


def overview_figure(rows: pd.DataFrame) -> Figure:
    """All arms: accuracy, forgetting, prior knowledge."""
    with plots.style():
        arms = rows.loc[rows["metric"] == "accuracy", "arm"].nunique()
        figure, axes = _axes(1, 3, (9.5, 1.0 + 0.21 * arms))
        overview(rows, list(axes[0]))
    return figure


def length_figure(rows: pd.DataFrame) -> Figure:
    """Accuracy and prior knowledge against the number of edits."""
    with plots.style():
        figure, axes = _axes(1, 2, (11, 3.8))
        stream_length(rows, axes[0, 0])
        stream_length(rows, axes[0, 1], "prior")
    return figure


def _family_legend(ax: Axes, rows: pd.DataFrame) -> None:
    from matplotlib.lines import Line2D

    there = {ARMS[a][1] for a in rows["arm"].unique() if a in ARMS}
    handles = [
        Line2D([], [], marker="o", linestyle="", color=paint, label=name)
        for family, (paint, name) in FAMILIES.items()
        if family in there and family != "reference"
    ]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=3, fontsize=7)
