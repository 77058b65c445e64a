"""The panels of the forgetting study: each takes rows of results.csv, draws on the given axes and returns them.

The rules are those of `seal_lib.report.plots`: pure functions, fixed colours, intervals always drawn, missing values
left blank. No model and no run folder is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from seal_lib.continual.arm import stores_text
from seal_lib.continual.tables import FATES, MATRIX
from seal_lib.errors import DataError
from seal_lib.report.arms import NOT_RUN, arm_label, arm_rank, colour
from seal_lib.report.marks import GREY, INK, LIGHT, arm_axis, names_at_right, names_near, share_axis
from seal_lib.report.paper_values import paper_values
from seal_lib.report.results import wants

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

FATE_STYLE = {
    "kept_base": ("known before, kept", "#222222"),
    "kept_injected": ("taught, kept", "#009E73"),
    "lost_base": ("known before, lost", "#8a8a8a"),
    "lost_injected": ("taught, lost", "#D55E00"),
    "never": ("never learned", "#e9e0d0"),
    "blank": ("no answer", "#56B4E9"),
}
BOUNDS = ("joint", "isolation_oracle")  # upper references: drawn dashed or as a star
_CELL = re.compile(r"accuracy_after_(\d+):passage_(\d+)")


def matrix_of(table: pd.DataFrame, arm: str) -> np.ndarray:
    """Return the mean matrix [K+1, K] of an arm from its rows `accuracy_after_<r>:passage_<n>`; NaN where none is.

    Raises:
        DataError: the table has no such row of this arm.
    """
    import numpy as np

    wants(table, ["arm", "metric", "value"])
    cells = {}
    for row in table[table["arm"] == arm].to_dict("records"):
        if found := _CELL.fullmatch(row["metric"]):
            cells[int(found[1]), int(found[2]) - 1] = row["value"]
    if not cells:
        raise DataError(f"The table has no matrix of arm {arm!r}; it needs rows accuracy_after_<edits>:passage_<n>.")
    K = max(i for _, i in cells) + 1
    return np.array([[cells.get((r, i), math.nan) for i in range(K)] for r in range(K + 1)], dtype=float)


def released_matrix() -> np.ndarray:
    """Return the authors' mean matrix [9, 8] over 64 sequences, NaN where not measured (source: paper_values.yaml)."""
    import pandas as pd

    rows = [row for row in paper_values() if row["experiment"] == MATRIX]
    return matrix_of(pd.DataFrame(rows), "sequential_authors_live")


def heat_map(matrix: np.ndarray, ax: Axes, difference: bool = False) -> Axes:
    """Draw a matrix, edits made (down) by passage (across): accuracy, or its difference to row 0 on a diverging scale.

    Passages not edited yet are hatched; cells that were not measured are blank.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    shown, (rows, columns) = matrix - matrix[0] if difference else matrix, matrix.shape
    look = {"cmap": "RdBu", "vmin": -1} if difference else {"cmap": "Blues", "vmin": 0}
    image = ax.imshow(shown, **look, vmax=1, aspect="auto")
    for r, i in np.ndindex(matrix.shape):
        value = shown[r, i]
        if math.isnan(value):
            continue
        if columns <= 10:
            text = f"{100 * value:{'+' if difference else ''}.0f}".replace("-", "−")
            paint = "white" if abs(value) > 0.62 else INK
            ax.text(i, r, text, ha="center", va="center", fontsize=6.5, color=paint)
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
    """Draw the gain over the unedited model after t later edits (`age_<t>`) with 95 % bands; zero is break-even."""
    names = _curves(table, ax, arms, "age", 0.14, markersize=3.5)
    ax.axhline(0, color=INK, linewidth=0.9, zorder=1)
    ax.set(xlabel="later edits", ylabel="gain over the unedited model")
    share_axis(ax.yaxis, "gain over the unedited model", signed=True)
    ax.grid(axis="y")
    names_at_right(ax, names)
    return ax


def _curves(
    table: pd.DataFrame, ax: Axes, arms: Sequence[str], metric: str, alpha: float, **marker: float
) -> list[tuple[float, str, str]]:
    """Draw `<metric>_<n>` over n, one line with a band per arm.

    Returns:
        The end value, label and colour of each line (`names_at_right`).

    Raises:
        DataError: the table has no such row of these arms.
    """
    names = []
    for arm in sorted(set(arms), key=arm_rank):
        rows = table[(table["arm"] == arm) & table["metric"].str.fullmatch(rf"{metric}_\d+")]
        rows = rows.assign(n=rows["metric"].str.removeprefix(f"{metric}_").astype(int)).sort_values("n")
        rows = rows[rows["n"] <= rows.loc[rows["value"].notna(), "n"].max()]  # a gap stays, but the end is a number
        if len(rows):
            paint, dashed = colour(arm), {"linestyle": "--"} if arm in BOUNDS else {}
            ax.fill_between(rows["n"], rows["low"], rows["high"], color=paint, alpha=alpha, linewidth=0)
            ax.plot(rows["n"], rows["value"], color=paint, marker="o", **marker, **dashed, gid=f"value:{arm}")
            names.append((float(rows["value"].iloc[-1]), arm_label(arm), paint))
    if not names:
        raise DataError(f"The table has no row {metric}_<number> of these arms.")
    return names


def _by_arm(table: pd.DataFrame, metrics: Sequence[str]) -> dict[str, dict[str, dict]]:
    """Return arm -> metric -> row, in the arms' order."""
    found: dict[str, dict[str, dict]] = {arm: {} for arm in sorted(table["arm"].unique(), key=arm_rank)}
    for row in table[table["metric"].isin(metrics)].to_dict("records"):
        found[row["arm"]][row["metric"]] = row
    return found


def plasticity_stability(table: pd.DataFrame, ax: Axes, sweep: pd.DataFrame | None, zoom: Axes) -> Axes:
    """Draw the learned gain (LA − base) against backward transfer, with grey lines of equal AA_K.

    The lines are exact, since AA_K = LA + BWT (K−1)/K. Arms that train nothing are left out.

    Args:
        sweep: tuning rows (rule, knobs, LA, BWT), if any; the settings of plain editing are joined by a line, the
            frontier of editing more or less strongly.
        zoom: axes for an enlarged view of the corner where most arms are good (`good_corner`).
    """
    K = max(int(m[3:]) for m in table["metric"] if re.fullmatch(r"AA_\d+", m))
    base = table.loc[table["metric"] == "base", "value"].iloc[0]
    skip = ("frozen", "rag", "passage_in_context")
    drawn = {
        arm: (p["LA_gain"], p["BWT"])
        for arm, p in _by_arm(table, ["LA_gain", "BWT"]).items()
        if arm not in skip and len(p) == 2 and not math.isnan(p["BWT"]["value"])
    }
    corner = good_corner(drawn)
    lines = [] if sweep is None else list(sweep.groupby("rule"))
    for one in (ax, zoom) if corner else (ax,):
        close = one is zoom
        if close:
            one.set(xlim=corner[:2], ylim=corner[2:])
        else:
            ends = [kept[end] for _, kept in drawn.values() for end in ("low", "value", "high")]
            ends = [0.0, *(end for end in ends if not math.isnan(end))]
            one.set(xlim=(-0.02, 1.0), ylim=(min(ends) - 0.05, max(ends) + 0.05))
        _equal_accuracy(one, base, K, 0.05 if close else 0.2)
        names = []
        for rule, settings in lines:
            if rule in ("sequential", "delta_scaling"):
                at = settings["knobs"].str.extract(r": ([\d.]+)")[0].astype(float)
                settings = settings.assign(at=at, gain=settings["LA"] - base).sort_values("at")
                one.plot(settings["gain"], settings["BWT"], color=colour(rule), linewidth=0.8, alpha=0.5, zorder=1)
                end = settings.loc[settings["gain"].idxmin()]
                if not close:
                    names.append((end["gain"], end["BWT"], f"{arm_label(rule)}: other strengths", colour(rule)))
        for arm, (gain, kept) in drawn.items():
            paint, x, y = colour(arm), gain["value"], kept["value"]
            one.plot([gain["low"], gain["high"]], [y, y], color=paint, linewidth=0.9, alpha=0.6)
            one.plot([x, x], [kept["low"], kept["high"]], color=paint, linewidth=0.9, alpha=0.6)
            star = {"marker": "*", "markersize": 12} if arm in BOUNDS else {"marker": "o"}
            one.plot([x], [y], color=paint, linestyle="", zorder=4, gid=f"value:{arm}", **star)
            inside = corner is not None and corner[0] <= x <= corner[1] and corner[2] <= y <= corner[3]
            if inside == close:
                names.append((x, y, arm_label(arm), paint))
        one.axhline(0, color=INK, linewidth=0.9, zorder=1)
        share_axis(one.xaxis, "learned right after the edit (LA − base)", signed=True)
        share_axis(one.yaxis, "" if close else "backward transfer (0: nothing forgotten)", signed=True)
        if close:
            one.set_ylabel("")
            ax.indicate_inset_zoom(one, edgecolor=GREY, alpha=0.8)
        names_near(one, names)
    return ax


def good_corner(drawn: Mapping[str, tuple[dict, dict]]) -> tuple[float, float, float, float] | None:
    """Return (left, right, bottom, top) around the arms that end within 20 points of the best one.

    None if these are fewer than four, or all arms.
    """
    ended = {arm: gain["value"] + kept["value"] for arm, (gain, kept) in drawn.items()}
    best = [drawn[arm] for arm, value in ended.items() if value > max(ended.values()) - 0.2]
    if not 4 <= len(best) < len(drawn):
        return None
    xs, ys = ([row[side]["value"] for row in best] for side in (0, 1))
    return min(xs) - 0.02, max(xs) + 0.03, min(ys) - 0.025, max(ys) + 0.025


def _equal_accuracy(ax: Axes, base: float, K: int, step: float) -> None:
    """Draw grey lines of equal accuracy after all edits, with the value where a line enters at the top."""
    import numpy as np

    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    x = np.array([left, right])
    for level in np.arange(step, 1.001, step):
        at = level - base - high * (K - 1) / K
        if left < at < right - 0.05 * (right - left):
            ax.plot(x, (level - base - x) * K / (K - 1), color=LIGHT, linewidth=0.8, zorder=0)
            ax.text(at, high, f" AA {100 * level:.0f} %", color=GREY, fontsize=7, va="top")
    ax.set(xlim=(left, right), ylim=(low, high))


def fates_by_age(table: pd.DataFrame, ax: Axes, arm: str) -> Axes:
    """Draw what became of the questions about edited passages, as stacked shares, by the number of later edits."""
    rows = table[(table["arm"] == arm) & table["metric"].str.fullmatch(rf"({'|'.join(FATES)}):age_\d+")]
    if not len(rows):
        raise DataError(f"The table has no fates of arm {arm!r} (metrics like kept_injected:age_0).")
    values = {tuple(r["metric"].split(":age_")): r["value"] for r in rows.to_dict("records")}
    ages = sorted({int(age) for _, age in values})
    bottom = [0.0] * len(ages)
    for fate in FATES:
        heights = [values.get((fate, str(age)), 0.0) for age in ages]
        label, paint = FATE_STYLE[fate]
        ax.bar(ages, heights, 0.8, bottom, color=paint, label=label, edgecolor="white", linewidth=0.4)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    ax.set(xlabel="later edits", xlim=(ages[0] - 0.5, ages[-1] + 0.5))
    share_axis(ax.yaxis, "questions on edited passages")
    ax.set_ylim(0, 1)
    ax.set_title(arm_label(arm))
    return ax


def cost_quality(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw accuracy after all edits against training time per edit (log scale); a ring marks arms that store text."""
    names = []
    for arm, found in _by_arm(table, ["seconds_per_edit", "accuracy"]).items():
        if len(found) < 2 or not found["seconds_per_edit"]["value"] > 0 or math.isnan(found["accuracy"]["value"]):
            continue
        x, q, paint = found["seconds_per_edit"]["value"], found["accuracy"], colour(arm)
        ax.plot([x, x], [q["low"], q["high"]], color=paint, linewidth=1.6, alpha=0.7)
        ax.plot([x], [q["value"]], "o", color=paint, zorder=4, gid=f"value:{arm}")
        if stores_text(arm):
            ax.plot([x], [q["value"]], "o", markersize=10, markerfacecolor="none", color=paint, zorder=3)
        names.append((x, q["value"], arm_label(arm), paint))
    if not names:
        raise DataError("The table has no arm with seconds_per_edit and accuracy.")
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(lambda v, _: f"{v:g}" if f"{v:e}"[0] in "235" else "")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.set_xlabel("CPU seconds of training per edit (log scale; ring: stores text)")
    share_axis(ax.yaxis, "questions on all edited passages, at the end")
    ax.set_xlim(ax.get_xlim()[0], 1.6 * ax.get_xlim()[1])
    ax.grid(axis="y")
    names_near(ax, names)
    return ax


def stream_length(table: pd.DataFrame, ax: Axes, metric: str = "AA") -> Axes:
    """Draw `AA_<K>` (or `prior_<K>`) against the number of edits, one line with a band per arm."""
    names = _curves(table, ax, table["arm"].unique(), metric, 0.13)
    ticks = sorted({int(m.rpartition("_")[2]) for m in table["metric"] if re.fullmatch(rf"{metric}_\d+", m)})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel("edits")
    share_axis(ax.yaxis, "questions on all edited passages" if metric == "AA" else "prior knowledge")
    ax.set_ylim(-0.02, 1.03)
    ax.grid(axis="y")
    names_at_right(ax, names)
    return ax


def overview(table: pd.DataFrame, axes: Sequence[Axes]) -> Sequence[Axes]:
    """Draw accuracy after all edits, backward transfer and prior knowledge kept in three columns, one row per arm."""
    from matplotlib.ticker import MaxNLocator

    wanted = [("accuracy", "right at the end"), ("BWT", "backward transfer"), ("prior_kept", "prior knowledge kept")]
    rows = _by_arm(table, [metric for metric, _ in wanted])
    arms = [arm for arm, found in rows.items() if "accuracy" in found]
    for ax, (metric, title) in zip(axes, wanted, strict=True):
        for y, arm in enumerate(arms):
            row = rows[arm].get(metric)
            if row is None or math.isnan(row["value"]):
                look = {"color": GREY, "style": "italic", "va": "center", "fontsize": 7.5}
                ax.text(0.02, y, "diverged" if row else NOT_RUN, transform=ax.get_yaxis_transform(), **look)
                continue
            ax.plot([row["low"], row["high"]], [y, y], color=colour(arm), linewidth=2.2, gid=f"interval:{arm}")
            ax.plot([row["value"]], [y], "o", color=colour(arm), markersize=4.5, gid=f"value:{arm}")
        arm_axis(ax, [arm_label(arm) if ax is axes[0] else "" for arm in arms])
        ax.set_ylim(len(arms) - 0.4, -0.6)
        share_axis(ax.xaxis, title, signed=metric == "BWT")
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if metric == "BWT":
            ax.axvline(0, color=INK, linewidth=0.9, zorder=1)
    return axes
