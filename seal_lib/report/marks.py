"""The parts of figures: colours of arms, a value with its interval, the paper's diamond, axes, and names beside lines.

Intervals are always drawn. A row without a value is an arm that did not run and is drawn as a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seal_lib.report import stats
from seal_lib.report.arms import NOT_RUN, arm_label, colour

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

AROUND = (  # where a name may stand beside its mark: its alignment, and the direction
    ("left", 0.7, 0.8),
    ("right", -0.7, 0.8),
    ("left", 0.7, -0.8),
    ("right", -0.7, -0.8),
    ("left", 1, 0),
    ("right", -1, 0),
    ("center", 0, 1),
    ("center", 0, -1),
)
INK, GREY, LIGHT = "#222222", "#8a8a8a", "#d9d9d9"
DIAMOND: dict[str, Any] = {"color": INK, "markerfacecolor": "none", "markersize": 7, "markeredgewidth": 1}


def darker(paint: str) -> str:
    """Return the colour darkened so that it can be read as text on white."""
    return "#" + "".join(f"{round(int(paint[i : i + 2], 16) * 0.78):02x}" for i in (1, 3, 5))


def mark(
    ax: Axes,
    row: dict,
    at: float,
    paint: str,
    *,
    upright: bool = False,
    filled: bool = True,
    marker: str = "o",
    label: str | None = None,
) -> None:
    """Draw a value with its interval along line `at`, or upright over it; without a value write "not run"."""
    if math.isnan(row["value"]):
        x, y, where = (at, 0.06, ax.get_xaxis_transform()) if upright else (0.012, at, ax.get_yaxis_transform())
        side = "center" if upright else "left"
        ax.text(x, y, NOT_RUN, transform=where, color=GREY, style="italic", va="center", ha=side)
        return
    turn = -1 if upright else 1
    bounds, value, arm = ([row["low"], row["high"]], [at, at]), ([row["value"]], [at]), row["arm"]
    ax.plot(*bounds[::turn], color=paint, linewidth=2.2, zorder=3, gid=f"interval:{arm}")
    inside = paint if filled else "white"
    ax.plot(*value[::turn], marker, color=paint, markerfacecolor=inside, zorder=4, label=label, gid=f"value:{arm}")


def paper_mark(ax: Axes, value: float, at: float, table: pd.DataFrame, upright: bool = False) -> None:
    """Draw the paper's value as a hollow diamond; the legend names the paper's model and data, which are not ours.

    Rows of a seedling have no value of the paper (`results.arm_rows`).
    """
    if value is None or math.isnan(value):
        return
    arc = "experiment" in table and table["experiment"].astype(str).str.startswith("arc/").any()
    label = label_once(ax, "paper (Llama-3.2-1B, ARC)" if arc else "paper (Qwen2.5-7B, SQuAD)")
    x, y = (at, value) if upright else (value, at)
    ax.plot([x], [y], "D", **DIAMOND, zorder=5, label=label, gid="paper")


def arm_lines(ax: Axes, rows: list[dict], table: pd.DataFrame, sign: str = "") -> None:
    """Draw arms from top to bottom: mark, interval, the paper's diamond, and the number at the right edge.

    With a ``sign`` the rows are differences, and only separable ones are filled.
    """
    for y, row in enumerate(rows):
        filled = not sign or stats.separable(stats.Estimate.of_row(row))
        mark(ax, row, y, colour(row["arm"].split(" - ")[0]), filled=filled)
        paper_mark(ax, row["paper_value"], y, table)
        if not math.isnan(row["value"]):
            text = f"{100 * row['value']:{sign}.1f}".replace("-", "−")
            ax.text(1.015, y, text, transform=ax.get_yaxis_transform(), va="center_baseline", fontsize=8.5)
    arm_axis(ax, [arm_label(row["arm"]) for row in rows])
    legend(ax)


def dots(ax: Axes, lines: Mapping[str, Sequence[tuple[str, str, dict]]]) -> None:
    """Draw one line per name, the first on top, with a mark and interval for each (label, colour, row) side by side."""
    order = list(dict.fromkeys(label for several in lines.values() for label, *_ in several))
    for y, several in enumerate(lines.values()):
        for label, paint, row in several:
            if not math.isnan(row["value"]):
                at = y + 0.7 * ((order.index(label) + 0.5) / len(order) - 0.5)
                mark(ax, row, at, paint, label=label_once(ax, label))
    arm_axis(ax, list(lines))
    for y in range(len(lines) - 1):
        ax.axhline(y + 0.5, color=LIGHT, linewidth=0.6, zorder=0)


def names_at_right(ax: Axes, names: Sequence[tuple[float, str, str]], size: float = 8.5) -> None:
    """Write each (y, name, colour) beside its line, as near to it as possible without overlap.

    The limits of the axes must be final.
    """
    lines = 1 + max((name.count("\n") for _, name, _ in names), default=0)
    gap = 1.25 * size * lines / (0.75 * 72 * ax.figure.bbox.height / ax.figure.dpi)  # roughly, as a share of the axes
    to = ax.transScale + ax.transLimits
    ends = sorted((float(to.transform((1, y))[1]), name, paint) for y, name, paint in names)
    for at, (_, name, paint) in zip(apart([y for y, *_ in ends], gap), ends, strict=True):
        ax.text(1.015, at, name, transform=ax.transAxes, color=darker(paint), va="center", fontsize=size)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Move ascending places as little as possible (least squares) so that neighbours are at least ``gap`` apart."""
    from scipy.optimize import isotonic_regression

    if not places:
        return []
    moved = isotonic_regression([place - k * gap for k, place in enumerate(places)]).x
    return [float(place) + k * gap for k, place in enumerate(moved)]


def names_near(ax: Axes, marks: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each (x, y, name, colour) close to its mark, where it hides no other mark or name and crosses few lines.

    A name that stands off gets a thin leader line. The limits of the axes must be final.
    """
    from matplotlib.patheffects import withStroke

    whole = ax.figure.bbox
    # approximate size of the axes in points: titles, legends and captions are drawn later
    wide, high = (72 * share * side / ax.figure.dpi for share, side in ((0.9, whole.width), (0.73, whole.height)))
    count = ax.get_subplotspec()
    wide = wide / count.get_gridspec().ncols if count else wide
    to = ax.transScale + ax.transLimits  # data → 0 … 1
    at = [tuple(to.transform((x, y)) * (wide, high)) for x, y, *_ in marks]
    boxes = [(x - 4, y - 4, x + 4, y + 4) for x, y in at]
    lines = _along(ax, wide, high)
    size = 7.5
    for (x, y), (data_x, data_y, name, paint) in zip(at, marks, strict=True):
        length = 0.58 * size * len(name)
        places: list[tuple] = []
        for far in (7, 11, 15, 20, 25, 31, 38, 46, 55, 65, 75):
            for side, dx, dy in AROUND:
                left = x + far * dx - {"left": 0.0, "right": length, "center": length / 2}[side]
                middle = y + far * dy
                box = (left, middle - 0.6 * size, left + length, middle + 0.6 * size)
                inside = box[0] >= 0 and box[2] <= 1.12 * wide and box[1] >= 0 and box[3] <= high
                hidden = sum(_overlap(box, other) for other in boxes if other != (x - 4, y - 4, x + 4, y + 4))
                crossed = ((box[0] < lines[0]) & (lines[0] < box[2]) & (box[1] < lines[1]) & (lines[1] < box[3])).sum()
                cost = 10 * hidden + 6 * float(crossed) + far + (0 if inside else 1e5)
                places.append((cost, len(places), far, box, side, (far * dx, far * dy)))
        _, _, far, box, side, offset = min(places, key=lambda place: place[:2])
        boxes.append(box)
        arrow = {"arrowstyle": "-", "linewidth": 0.4, "color": paint, "shrinkA": 0, "shrinkB": 2} if far > 15 else None
        ax.annotate(
            name,
            (data_x, data_y),
            offset,
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=size,
            color=darker(paint),
            arrowprops=arrow,
            annotation_clip=False,
            zorder=6,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )


def _along(ax: Axes, wide: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the x and y of points along every line of axes of ``wide`` × ``high`` points, 2 points apart."""
    import numpy as np

    found: list[np.ndarray] = [np.zeros((0, 2))]
    for line in ax.lines:
        if line.get_linestyle() in ("None", "", " "):
            continue
        ends = ax.transAxes.inverted().transform(line.get_transform().transform(line.get_xydata())) * (wide, high)
        for a, b in zip(ends, ends[1:], strict=False):
            if (count := np.nan_to_num(np.hypot(*(b - a))) / 2) >= 1:
                found.append(np.linspace(a, b, int(min(count, 2000)) + 1))
    return tuple(np.concatenate(found).T)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def arm_axis(ax: Axes, labels: list[str]) -> None:
    """Set up one line per arm, the first on top."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def round_axis(ax: Axes, labels: list[str]) -> None:
    """Set up one tick per round."""
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlim(-0.45, len(labels) - 0.55)
    ax.grid(axis="y")


def share_axis(axis: Axis, label: str, signed: bool = False) -> None:
    """Show fractions as per cent, from zero and without cutting an interval.

    ``signed`` shows differences of fractions, as points.
    """
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    sign, unit = ("+", "") if signed else ("", " %")
    axis.set_major_formatter(lambda v, _: f"{100 * v:{sign if abs(v) > 1e-9 else ''}.0f}{unit}".replace("-", "−"))
    axis.set_label_text(f"{label}, points" if signed else label)
    if not signed:
        high = min(1.03, max(0.05, axis.get_view_interval()[1]))
        limits = axis.axes.set_xlim if axis is axis.axes.xaxis else axis.axes.set_ylim
        limits(-0.02 * high, high)


def legend(ax: Axes) -> None:
    """Put the legend above the axes, where there is no data."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2, columnspacing=1.4)


def label_once(ax: Axes, label: str) -> str | None:
    """Return the label, or None if the legend of these axes has it already."""
    return None if label in ax.get_legend_handles_labels()[1] else label


def draws(metrics: str, size: Callable[[pd.DataFrame], tuple[float, float]] | None = None, title: str = "") -> Callable:
    """Return a decorator that gives a drawing function what `seal_lib.report.figures.draw` needs.

    ``metrics``: pattern of the metrics it draws, with the function's own options in braces; ``size``: returns the size
    in inches for a table, without it 5.6 × 3.4; ``title``: what it shows, in a few words.
    """

    def mark_function(function: Callable) -> Callable:
        vars(function).update(metrics=metrics, size=size, title=title)
        return function

    return mark_function


def by_arms(table: pd.DataFrame) -> tuple[float, float]:
    """Return the size of a figure with one line per arm, wider for long labels, so that the axis keeps its room."""
    longest = max((len(arm_label(arm)) for arm in table["arm"].unique()), default=0)
    return 5.6 + 0.075 * max(0, longest - 38), 1.15 + 0.31 * table["arm"].nunique()
