"""Figures of the grid puzzles, drawn on given axes in the style of `seal_lib.report.plots`.

From results.csv (rows of ``seal_lib.arc.tables``): `success_by_arm`, `success_by_round`, `choices`, `success_map`,
`success_by_task`. From tasks: `grid_picture`, `task_picture`, `augmentation_strip`. From a benchmark's table:
`bench_arc`. An empty cell is a configuration that no policy wrote, not a zero.

    figures.draw(success_map, table, down="learning_rate", across="num_train_epochs")
    with plots.style():
        task_picture(task, plt.figure(figsize=task_size(task)), attempt.attempts)
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from seal_lib.arc import grids
from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.grids import Grid
from seal_lib.arc.tasks import Pair, Task
from seal_lib.errors import DataError
from seal_lib.report import plots
from seal_lib.report.arms import OTHER, arm_label, arm_rank, colour, round_of
from seal_lib.report.marks import GREY, INK, LIGHT, by_arms, dots, draws, share_axis
from seal_lib.report.results import wants

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

CHOICE_LABELS = {  # choice of a self-edit -> its label, in the order of the panels
    "use_basic_augmentations": "basic (turn, mirror)",
    "use_size_augmentations": "size (enlarge)",
    "use_chain_augmentations": "chain (turn, enlarge)",
    "use_repeat_augmentations": "repeat (tile)",
    "strategy": "tokens in the loss",
    "learning_rate": "learning rate",
    "num_train_epochs": "epochs",
    "switches": "augmentations",
}
MAP_AXES = {"rate_epochs": ("learning_rate", "num_train_epochs"), "switches_strategy": ("switches", "strategy")}
MOST_VALUES = 6  # maximum number of values in a panel; rarer ones are drawn together
SOLVED, FAILED = "#009E73", "#D55E00"
VARIANTS = {  # variant in the benchmark -> label, colour
    "one_at_a_time_padded": ("one at a time, padded", "#D55E00"),
    "one_at_a_time": ("one at a time", "#E69F00"),
    "bank_padded": ("adapter bank, padded", "#7A68A6"),
    "bank": ("adapter bank", "#56B4E9"),
    "bank_bounded": ("adapter bank, bounded steps", "#2E86C1"),
    "bank_bucketed": ("adapter bank, like lengths together", "#009E73"),
    "bank_unique": ("adapter bank, no repeats", "#0072B2"),
}


@draws("success_rate|rejected_rate", by_arms, "puzzles solved by each arm")
def success_by_arm(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one line per arm: success rate with interval, rejected self-edits as a pale bar, the paper's diamond."""
    return plots.accuracy_by_arm(table, ax, "success_rate", "rejected_rate")


@draws("success_rate", title="puzzles solved over the rounds")
def success_by_round(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw success by round: thin lines for single seeds, a band for the pooled interval, a mark for the control."""
    return plots.accuracy_by_round(table, ax, "success_rate")


@draws("share:.*", title="what the policies ask for")
def choices(table: pd.DataFrame, axes: Sequence[Axes] | np.ndarray) -> np.ndarray:
    """Draw what policies ask for (metrics ``share:<choice>=<value>``): a panel per choice, a line per value.

    Each arm is a mark with its interval over tasks and loops; rare values that are drawn together have no interval.
    Axes left over are blank and carry the legend.

    Raises:
        DataError: the table has no such row, or there are fewer axes than choices.
    """
    import numpy as np

    shares = _named(table, "share:")
    known = list(CHOICE_LABELS)
    panels = {metric.split("=", 1)[0] for metric in shares["what"]}
    panels = sorted(panels, key=lambda choice: (known.index(choice) if choice in known else len(known), choice))
    axes = np.atleast_1d(axes)
    if axes.size < len(panels):
        raise DataError(f"choices: {len(panels)} panels but {axes.size} axes; give one for each choice.")
    arms = sorted(shares["arm"].unique(), key=arm_rank)
    for ax, choice in zip(axes.flat, panels, strict=False):
        rows = shares[shares["what"].str.startswith(f"{choice}=")]
        rows = rows.assign(option=rows["what"].str.split("=", n=1).str[1])
        dots(
            ax,
            {
                label: [
                    (arm_label(arm), colour(arm), _together(rows[(rows["arm"] == arm) & rows["option"].isin(members)]))
                    for arm in arms
                    if (rows["arm"] == arm).any()  # an arm without rows on the choice leaves a gap
                ]
                for label, members in _joined_options(rows)
            },
        )
        ax.set_title(CHOICE_LABELS.get(choice, choice.replace("_", " ")), fontsize=9, fontweight="normal")
        share_axis(ax.xaxis, "configurations")
        ax.set_xlim(-0.02, 1.02)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    beside = 0.0 if axes.size > len(panels) else 1.0  # legend on a blank panel, else right of the last one
    axes.flat[-1].legend(handles, labels, loc="center left", bbox_to_anchor=(beside, 0.5))
    return axes


@draws(r"success:{down}=.*\|{across}=.*", title="which configurations work")
def success_map(table: pd.DataFrame, ax: Axes, down: str, across: str) -> Axes:
    """Draw success by configuration (metrics ``success:<down>=<a>|<across>=<b>``).

    Each cell gives the share in per cent and, in small print, its interval and the number of tasks it was tried on. A
    configuration that was never written is hatched.
    """
    cells = {}
    for row in _named(table, f"success:{down}=", f"|{across}=").to_dict("records"):
        a, b = row["what"].split(f"|{across}=", 1)
        if (a, b) in cells:
            raise DataError(f"The table has {down}={a}, {across}={b} twice; narrow it to one arm, protocol and model.")
        cells[a, b] = row
    rows, columns = _ordered({a for a, _ in cells}), _ordered({b for _, b in cells})
    if all(map(_is_number, rows)):
        rows = rows[::-1]  # numbers grow upwards, as on an axis
    values = [[cells[a, b]["value"] if (a, b) in cells else math.nan for b in columns] for a in rows]
    ax.set_facecolor("#f4f4f4")
    ax.patch.set(hatch="////", edgecolor="#d0d0d0", linewidth=0)
    image = ax.imshow(values, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    for (a, b), row in cells.items():
        y, x = rows.index(a), columns.index(b)
        ink = "white" if row["value"] > 0.6 else INK
        ax.text(x, y + 0.1, f"{100 * row['value']:.0f}", color=ink, ha="center", va="bottom", gid=f"value:{a}|{b}")
        note = f"{int(row['n'])} task{'s' if row['n'] > 1 else ''}"
        if not math.isnan(row["low"]):
            note = f"{100 * row['low']:.0f}–{100 * row['high']:.0f}, {note}"
        ax.text(x, y + 0.13, note, color=ink, ha="center", va="top", fontsize=5.5, gid=f"n:{a}|{b}")
    ax.set_xticks(range(len(columns)), [_option(b) for b in columns])
    ax.set_yticks(range(len(rows)), [_option(a) for a in rows])
    ax.set(xlabel=CHOICE_LABELS.get(across, across), ylabel=CHOICE_LABELS.get(down, down))
    ax.set_xticks([x + 0.5 for x in range(len(columns) - 1)], minor=True)
    ax.set_yticks([y + 0.5 for y in range(len(rows) - 1)], minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    share_axis(bar.ax.yaxis, "success")
    bar.ax.set_ylim(0, 1)
    return ax


@draws(
    "success_rate:.*",
    lambda table: (1.1 + 1.05 * table["arm"].nunique(), 1.1 + 0.2 * table["metric"].nunique()),
    "task by task",
)
def success_by_task(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw success by task (metrics ``success_rate:<task>``): a line per task, a column from 0 to 100 % per arm.

    The tasks that are easiest for the untrained policy are on top. A dot has its interval over configurations and
    loops; what did not run stays empty.
    """
    rows = _named(table, "success_rate:")
    several = rows.groupby("arm")["n"].max() > 1  # a single attempt per task has no interval
    rows = rows[rows["arm"].map(several)] if several.any() else rows
    arms = sorted(rows["arm"].unique(), key=arm_rank)
    reference = "own_untrained" if "own_untrained" in arms else arms[0]
    known = rows[rows["arm"] == reference].set_index("what")["value"].to_dict()
    overall = rows.groupby("what")["value"].mean().to_dict()
    tasks = sorted(overall, key=lambda task: (-known.get(task, -1.0), -overall[task], task))
    span = 0.78
    for x in range(len(arms)):
        for at in (x, x + span / 2, x + span):
            ax.axvline(at, color=LIGHT, linewidth=0.7, zorder=0)
    for row in rows.to_dict("records"):
        x, y = arms.index(row["arm"]), tasks.index(row["what"])
        if math.isnan(row["value"]):
            continue
        paint, name = colour(row["arm"]), f"{row['arm']}:{row['what']}"
        value, *ends = (x + span * row[key] for key in ("value", "low", "high"))
        ax.plot(ends, [y, y], color=paint, linewidth=1.4, alpha=0.45, zorder=2, gid=f"interval:{name}")
        ax.plot([value], [y], "o", color=paint, markersize=4.2, zorder=3, clip_on=False, gid=f"value:{name}")
    for x, arm in enumerate(arms):
        counts = sorted(set(rows.loc[rows["arm"] == arm, "n"].dropna().astype(int)))
        each = f"{counts[0]}–{counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))
        name = textwrap.fill(arm_label(arm), 13, break_on_hyphens=False) + f"\nn = {each}"
        ax.text(x + span / 2, 1.01, name, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
    ax.set_xticks([x + end for x in range(len(arms)) for end in (0, span)], ["0", "100"] * len(arms), fontsize=7)
    ax.set_xlabel("self-edits that solve the task, % (n: distinct configurations)")
    ax.set_xlim(-0.08, len(arms) - 1 + span + 0.08)
    ax.set_yticks(range(len(tasks)), tasks, fontsize=7.5)
    ax.set_ylim(len(tasks) - 0.4, -0.6)
    ax.tick_params(length=0)
    ax.grid(axis="y", linewidth=0.5)
    ax.spines[:].set_visible(False)
    return ax


def grid_picture(grid: Grid, ax: Axes, title: str = "", frame: str = "") -> Axes:
    """Draw a grid in ARC's colours with thin lines between cells; ``frame`` is the colour of a thick border."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    rows, columns = grids.size(grid)
    line = 0.5 if max(rows, columns) <= 15 else 0.25
    ax.pcolormesh(
        np.array(grid), cmap=ListedColormap(grids.COLOURS), vmin=-0.5, vmax=9.5, edgecolors="#6b6b6b", linewidth=line
    )
    ax.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], aspect="equal", anchor="C")
    for spine in ax.spines.values():
        spine.set(visible=True, color=frame or "#6b6b6b", linewidth=2.5 if frame else line)
    if title:
        ax.set_title(title, fontsize=8, fontweight="normal", loc="center", pad=4)
    return ax


def task_picture(
    task: Task, where: FigureBase | np.ndarray, attempts: Sequence[Sequence[Grid]] | None = None
) -> np.ndarray:
    """Draw the demonstrations, input over output, then each test input over the truth with the attempts beside it.

    Words and colour say whether an attempt is right. Return the array of axes.

    Args:
        where: a figure, on which 2 × `task_columns` axes are made, or such an array of axes.
        attempts: per test input the submitted grids (as in ``Attempt.attempts``); None: no column of attempts.
    """
    columns = task_columns(task, attempts)
    axes = where if not hasattr(where, "subplots") else where.subplots(2, columns, squeeze=False)
    if axes.shape != (2, columns):
        raise DataError(f"task {task.id}: its picture takes axes of shape (2, {columns}), got {axes.shape}.")
    for k, pair in enumerate(task.train):
        _pair(pair, axes[:, k], f"demonstration {k + 1}")
    left = len(task.train)
    for k, test in enumerate(task.tests):
        number = f" {k + 1}" if len(task.tests) > 1 else ""
        truth = task.solutions[k] if task.solutions else None
        grid_picture(test, axes[0, left], f"test{number}", INK)
        if truth is None:
            _words(axes[1, left], "not known", "↓ truth")
        else:
            grid_picture(truth, axes[1, left], "↓ truth")
        left += 1
        if attempts is not None:
            tried = attempts[k] if k < len(attempts) else ()
            for place in range(2):
                _attempt(axes[place, left], tried, place, truth)
            left += 1
    return axes


def task_columns(task: Task, attempts: Sequence[Sequence[Grid]] | None = None) -> int:
    """Return the number of columns that `task_picture` fills: demonstrations, tests, and attempts if there are any."""
    return len(task.train) + len(task.tests) * (1 if attempts is None else 2)


def task_size(task: Task, attempts: Sequence[Sequence[Grid]] | None = None) -> tuple[float, float]:
    """Return a figure size in inches that suits `task_picture`."""
    return 1.35 * task_columns(task, attempts), 3.2


def augmentation_strip(pairs_with_names: Sequence[tuple[str, Pair]], axes: np.ndarray) -> np.ndarray:
    """Draw one pair under several augmenters side by side: each (name, turned pair) in a column of the 2 × n axes."""
    if axes.shape != (2, len(pairs_with_names)):
        n = len(pairs_with_names)
        raise DataError(f"augmentation_strip: {n} pairs take axes of shape (2, {n}), got {axes.shape}.")
    for (name, pair), column in zip(pairs_with_names, axes.T, strict=True):
        _pair(pair, column, name)
    return axes


def bench_arc(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the cost of a useful token by way of training; the pale end of a bar is the share of padding.

    The table has columns variant, ms_per_useful_token, useful_share and seconds, and optionally low and high, the
    spread over repetitions.
    """
    wants(table, ["variant", "ms_per_useful_token", "useful_share", "seconds"])
    known = list(VARIANTS)
    rows = table.to_dict("records")
    rows.sort(key=lambda row: known.index(row["variant"]) if row["variant"] in known else len(known))
    first = rows[0]["ms_per_useful_token"]
    for y, row in enumerate(rows):
        _, paint = VARIANTS.get(row["variant"], ("", OTHER))
        cost, useful = row["ms_per_useful_token"], row["useful_share"]
        ax.barh(y, cost, 0.62, color=paint, alpha=0.3, linewidth=0, gid=f"value:{row['variant']}")
        ax.barh(y, cost * useful, 0.62, color=paint, linewidth=0, gid=f"useful:{row['variant']}")
        if not math.isnan(low := row.get("low", math.nan)):
            ax.plot([low, row["high"]], [y, y], color=INK, linewidth=1.2, gid=f"interval:{row['variant']}")
        words = [f"{cost:.3g} ms", f"{100 * useful:.0f} % useful", f"{row['seconds']:.3g} s"]
        if y:
            words.append(f"{cost / first:.2f} of the first")
        end = cost if math.isnan(low) else row["high"]
        ax.annotate(" · ".join(words), (end, y), (5, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [VARIANTS.get(row["variant"], (row["variant"],))[0] for row in rows])
    ax.set_ylim(len(rows) - 0.45, -0.55)
    ax.set_xlim(0, 1.02 * max(ax.get_xlim()[1] / 1.05, first))
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("CPU ms per useful token (pale: share of padding; line: least to most)")
    return ax


def pictures(
    own: pd.DataFrame, full: pd.DataFrame, rows: pd.DataFrame
) -> list[tuple[Callable, str, pd.DataFrame, dict]]:
    """Return the figures that a puzzle experiment has rows for, in the format of `seal_lib.report.plots.pictures`."""
    import pandas as pd

    solved = set(own.loc[own["metric"] == "success_rate", "arm"])
    learned = [arm for arm in solved if arm != "own_untrained" and round_of(arm)]
    tasks = rows[rows["experiment"].str.endswith("/tasks")]
    chosen = rows[rows["experiment"].str.endswith("/choices")]
    found: list[tuple[Callable, str, pd.DataFrame, dict]] = []
    if len(solved) >= 2:
        found.append((success_by_arm, "success_by_arm", full, {}))
    if learned:
        by_seed = pd.concat([full, rows.drop(own.index)], ignore_index=True)
        found.append((success_by_round, "success_by_round", by_seed, {}))
    if tasks["metric"].str.startswith("success_rate:").any():
        found.append((success_by_task, "success_by_task", tasks, {}))
    if chosen["metric"].str.startswith("share:").any():
        found.append((choices, "choices", chosen, {"panels": (2, 4), "size": (11.0, 5.4)}))
    for kind, (down, across) in MAP_AXES.items():
        cells = chosen.loc[chosen["metric"].str.startswith(f"success:{down}="), "metric"]
        if len(cells):
            sides = cells.str.removeprefix("success:").str.split("|", regex=False)
            wide = 0.065 * sides.str[0].str.removeprefix(f"{down}=").str.len().max()  # the longest label
            size = (1.7 + wide + 0.95 * sides.str[1].nunique(), 1.1 + 0.36 * sides.str[0].nunique())
            found.append((success_map, f"success_map_{kind}", chosen, {"down": down, "across": across, "size": size}))
    return found


def _named(table: pd.DataFrame, start: str, holding: str = "") -> pd.DataFrame:
    """Return the rows whose metric starts with ``start`` and contains ``holding``; ``what`` is the rest of its name.

    Raises:
        DataError: there is none, or an arm has one metric twice.
    """
    wants(table, ["arm", "metric", "value", "low", "high", "n"])
    rows = table[table["metric"].str.startswith(start) & table["metric"].str.contains(holding, regex=False)]
    if len(rows) == 0:
        raise DataError(f"The table has no row whose metric starts with {start!r}; draw it from the experiment's rows.")
    if rows.duplicated(["arm", "metric"]).any():
        twice = rows.loc[rows.duplicated(["arm", "metric"])].iloc[0]
        double = f"{twice['arm']!r} twice for {twice['metric']}"
        raise DataError(f"The table has {double}; narrow it to one experiment, protocol and model.")
    return rows.assign(what=rows["metric"].str.removeprefix(start))


def _together(rows: pd.DataFrame) -> dict:
    """Return one row for a value, or for several rare values together, in which case it has no interval."""
    if len(rows) == 1:
        return rows.iloc[0].to_dict()
    arm = rows["arm"].iloc[0] if len(rows) else ""
    return {"arm": arm, "value": rows["value"].sum(), "low": math.nan, "high": math.nan}


def _joined_options(rows: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Return the (label, values) of a panel in order; beyond MOST_VALUES, the rarest are joined as "others"."""
    shares = rows.groupby("option")["value"].sum()
    names = _ordered(shares.index)
    if set(names) & {"True", "False"}:
        names = ["False", "True"]
    if len(names) <= MOST_VALUES:
        return [(_option(name), [name]) for name in names]
    kept = sorted(names, key=lambda name: -shares[name])[: MOST_VALUES - 1]
    rest = [name for name in names if name not in kept]
    return [(_option(name), [name]) for name in names if name in kept] + [(f"{len(rest)} others", rest)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _ordered(options: Sequence[str]) -> list[str]:
    """Sort numbers by size, and words by how many are joined with "+" and then by the order of the switches."""
    if all(map(_is_number, options)):
        return sorted(options, key=float)
    order = ["none", *(switch.split("_")[1] for switch in SWITCHES)]
    place = lambda word: order.index(word) if word in order else len(order)  # noqa: E731
    return sorted(options, key=lambda text: (text != "none", text.count("+"), [*map(place, text.split("+"))], text))


def _option(text: str) -> str:
    """Return the text of a value on an axis."""
    if text in ("True", "False"):
        return "on" if text == "True" else "off"
    if not _is_number(text):
        return text.replace("+", " + ")
    value = float(text)
    if not 0 < abs(value) < 0.01:
        return f"{value:.3g}"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    return f"{value / 10**power:.3g}e{power}"  # short enough to stand side by side


def _pair(pair: Pair, column: Sequence[Axes], title: str) -> None:
    grid_picture(pair.input, column[0], title)
    grid_picture(pair.output, column[1], "↓")


def _attempt(ax: Axes, tried: Sequence[Grid], place: int, truth: Grid | None) -> None:
    """Draw one attempt with its verdict, or a note that there is none."""
    name = f"attempt {place + 1}"
    if place >= len(tried):
        _words(ax, "no answer", name)
    elif truth is None:
        grid_picture(tried[place], ax, name)
    else:
        right = tried[place] == truth
        grid_picture(tried[place], ax, f"{name}: {'✓ right' if right else '✗ wrong'}", SOLVED if right else FAILED)


def _words(ax: Axes, text: str, title: str) -> None:
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.axis("off")
    ax.set_title(title, fontsize=8, fontweight="normal", loc="center", pad=4)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY, style="italic")
