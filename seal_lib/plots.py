"""One pure drawing function per kind of figure: tidy table in, marks on the given axes, the axes back.

Knows colours, labels and layout. Does not know runs, statistics or where a table comes from, and touches no global
style: `style()` is a context, and `draw` and `save` enter it themselves. The table is results.csv (`report.collect`),
narrowed to one protocol and model; a row without a value is an arm that did not run and is drawn as a gap.
Intervals are always drawn. The paper's value is a hollow diamond.

    table = report.with_gaps(results, "knowledge/single_passage")
    plots.draw(plots.accuracy_by_arm, table, "single_passage", folder)     # .pdf, .png and .csv side by side
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths, report, stats
from seal_lib.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, LIGHT = "#222222", "#8a8a8a", "#d9d9d9"
# Okabe and Ito's palette, which keeps its contrasts under the common colour-vision deficiencies.
COLOURS = {
    "icl": "#8a8a8a", "frozen": "#8a8a8a", "passage_only": "#CC79A7", "own_untrained": "#56B4E9",
    "external": "#E69F00", "gold_notes": "#009E73", "oracle": "#009E73", "joint": "#009E73",
    "passage_in_context": "#222222", "sequential": "#0072B2", "seal_proxy": "#7A68A6", "random_edit_sft": "#D55E00",
    "random_config_sft": "#D55E00",
}  # fmt: skip
FAMILY_SHADES = {  # rounds 1, 2, 3 and later; the first is the colour of the family
    "seal": ["#0072B2", "#005684", "#003B5C"], "random": ["#D55E00", "#A84A00", "#7C3700"],
}  # fmt: skip
OTHER_ARMS = "#7A6A4F"
LEVELS = ("icl", "frozen", "external", "oracle")  # level lines in a figure over rounds
CONTROLS = {  # measured once: arm -> where on the axis of rounds, given the last
    "random_edit_sft": lambda last: last, "random_config_sft": lambda last: 1.1,  # beside round 1, whose samples it has
}  # fmt: skip
STYLE_COLOURS = {
    "forward": "#0072B2", "questions": "#56B4E9", "mixed": "#009E73", "verbatim": "#E69F00", "remark": "#CC79A7",
    "other": "#bdbdbd", "false": "#D55E00", "empty": "#ececec",
}  # fmt: skip
DARK_STYLES = ("forward", "mixed", "false")  # take white numbers
SHARES = {  # metric -> what its share is a share of
    "accuracy": "questions answered correctly", "success_rate": "self-edits that solve their task",
}  # fmt: skip
FAILURES = {"blank_rate": "blank answers", "rejected_rate": "rejected self-edits"}
REWARDS = {
    "reward_best_of_k": ("best of k, as selected", "#D55E00", "^"),
    "reward_selected_fresh_seed": ("the selected one, fresh seeds", "#0072B2", "o"),
    "reward_mean": ("mean of k", "#8a8a8a", "s"),
}
METRICS = {  # function (here or in seal_lib.arc.plots) -> the metrics it draws, as a pattern of its options
    "accuracy_by_arm": "accuracy|blank_rate", "accuracy_by_round": "accuracy", "differences": "difference",
    "blank_rate_by_arm": "blank_rate", "coverage_by_round": "coverage", "style_by_round": "style_share:.*",
    "reward_honesty": "|".join(REWARDS), "success_by_arm": "success_rate|rejected_rate",
    "success_by_round": "success_rate", "success_by_task": "success_rate:.*", "choices": "share:.*",
    "success_map": r"success:{down}=.*\|{across}=.*",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure, as a context that leaves nothing behind but a notebook's backend come alive."""
    import matplotlib.pyplot as plt

    with plt.style.context(Path(__file__).with_name("seal.mplstyle")):
        yield
        interactive = plt.isinteractive()
    plt.interactive(interactive)


def colour(arm: str) -> str:
    """The fixed colour of an arm; later rounds of a family are darker."""
    found = report.round_of(arm)
    if arm in COLOURS or not found:
        return COLOURS.get(arm, OTHER_ARMS)
    shades = FAMILY_SHADES.get(found[0], [OTHER_ARMS])
    return shades[max(1, min(found[1], len(shades))) - 1]


def accuracy_by_arm(table: pd.DataFrame, ax: Axes, metric: str = "accuracy", failures: str = "blank_rate") -> Axes:
    """One line an arm: accuracy (or another metric of :data:`SHARES`) with its interval, the share of blank answers
    (or other failures) as a pale bar, the paper's diamond."""
    rows = report.arm_rows(table, metric)
    failed = {row["arm"]: row["value"] for row in report.arm_rows(table, failures, needed=False)}
    for y, row in enumerate(rows):
        if not math.isnan(share := failed.get(row["arm"], math.nan)):
            ax.barh(y, share, height=0.62, color="#e9e9e9", zorder=0, label=_once(ax, FAILURES[failures]))
    _arm_lines(ax, rows, table)
    share_axis(ax.xaxis, SHARES[metric])
    return ax


def blank_rate_by_arm(table: pd.DataFrame, ax: Axes) -> Axes:
    """One line an arm: share of empty answers with its interval (an empty answer counts as wrong)."""
    _arm_lines(ax, report.arm_rows(table, "blank_rate"), table)
    share_axis(ax.xaxis, "blank answers")
    return ax


def differences(table: pd.DataFrame, ax: Axes) -> Axes:
    """Paired differences with their intervals around a zero line; a filled mark is separable from zero."""
    ax.axvline(0, color=INK, linewidth=0.9, zorder=1)
    _arm_lines(ax, report.arm_rows(table, "difference"), table, "+")
    share_axis(ax.xaxis, "paired difference (filled: separable)", signed=True)
    return ax


def accuracy_by_round(table: pd.DataFrame, ax: Axes, metric: str = "accuracy") -> Axes:
    """The paper's Figure 4: accuracy by round, thin lines for single seeds of the whole loop, bands for intervals.

    The table holds the pooled experiment and, optionally, its `<experiment>/seed_<k>` children. Round 0 is the
    untrained policy; arms without rounds (:data:`LEVELS`) are level lines; the paper's rounds are diamonds.
    """
    everything = table[table["metric"] == metric]
    child = everything["experiment"].str.contains(r"/seed_\w+$")
    pooled, names = report.arm_rows(everything[~child], metric), []
    families: dict[str, dict[int, dict]] = {}
    for row in pooled:
        if found := report.round_of(row["arm"]):
            families.setdefault(found[0], {})[found[1]] = row
    for _, rows in everything[child].groupby("experiment"):
        one = [(report.round_of(row["arm"]), row["value"]) for row in report.arm_rows(rows, metric)]
        one = sorted((found[1], value) for found, value in one if found and found[0] == "seal")
        ax.plot([x for x, _ in one], [value for _, value in one], color=FAMILY_SHADES["seal"][0], linewidth=0.9,
                alpha=0.55, zorder=2, label=_once(ax, "single seeds of the loop"))  # fmt: skip
    start = {0: families["seal"][0]} if 0 in families.get("seal", {}) else {}
    for family, rounds in families.items():
        paint, known = FAMILY_SHADES.get(family, [OTHER_ARMS])[0], start | rounds
        xs = list(range(min(known), max(known) + 1))
        rows = [known.get(x, {"arm": "", "value": math.nan, "low": math.nan, "high": math.nan}) for x in xs]
        lows, highs = [row["low"] for row in rows], [row["high"] for row in rows]
        ax.fill_between(xs, lows, highs, color=paint, alpha=0.13, linewidth=0, zorder=1)
        ax.plot(xs, [row["value"] for row in rows], color=paint, linewidth=2, zorder=3)  # a gap breaks the line
        for x, row in zip(xs, rows, strict=True):
            mark(ax, row, x, paint, upright=True)
        ran = [row["value"] for row in rows if not math.isnan(row["value"])]
        names += [(ran[-1], report.FAMILIES.get(family, (0, family.replace("_", " ")))[1], paint)] if ran else []
    diamonds = [(x, row["paper_value"]) for x, row in sorted(families.get("seal", {}).items())]
    ax.plot([x for x, _ in diamonds], [value for _, value in diamonds], color=GREY, linewidth=0.8, linestyle=":")
    for x, value in diamonds:
        _paper(ax, value, x, table, upright=True)
    last = max([1, *(x for rounds in families.values() for x in rounds)])
    for row in pooled:
        if row["arm"] in LEVELS:
            names += _level(ax, row)
        elif row["arm"] in CONTROLS and not math.isnan(row["value"]):
            mark(ax, row, CONTROLS[row["arm"]](last), colour(row["arm"]), upright=True)
            names.append((row["value"], report.arm_label(row["arm"]), colour(row["arm"])))
    _round_axis(ax, ["untrained", *(f"round {k}" for k in range(1, last + 1))])
    share_axis(ax.yaxis, SHARES[metric])
    _names_at_right(ax, names)
    legend(ax)
    return ax


def coverage_by_round(table: pd.DataFrame, ax: Axes) -> Axes:
    """Share of a passage's facts that the self-edits state, by round of the policy, with intervals."""
    rows = report.by_round(report.arm_rows(table, "coverage"))
    line = [row["value"] for _, row in rows if (report.round_of(row["arm"]) or [""])[0] == "seal"]
    ax.plot(range(len(line)), line, color=LIGHT, zorder=1)
    for x, (_, row) in enumerate(rows):
        mark(ax, row, x, colour(row["arm"]), upright=True)
    _round_axis(ax, [label for label, _ in rows])
    share_axis(ax.yaxis, "facts of the passage covered")
    return ax


def style_by_round(table: pd.DataFrame, ax: Axes) -> Axes:
    """Stacked share of self-edits per note style by round; the whisker at the top of a part is that part's interval."""
    shares = table[table["metric"].str.startswith("style_share:")]
    names = list(dict.fromkeys(shares["metric"].str.split(":").str[1]))
    names.sort(key=lambda name: list(STYLE_COLOURS).index(name) if name in STYLE_COLOURS else len(STYLE_COLOURS))
    names = [name for name in names if shares.loc[shares["metric"] == f"style_share:{name}", "value"].max() > 0]
    if not names:
        raise DataError("The table has no row whose metric starts with 'style_share:' and is above zero.")
    ticks = report.round_ticks(shares["arm"])
    bottoms = dict.fromkeys(ticks, 0.0)
    for k, name in enumerate(names):
        paint = STYLE_COLOURS.get(name, OTHER_ARMS)
        for tick, row in report.by_round(report.arm_rows(shares, f"style_share:{name}")):
            x, bottom, value = ticks.index(tick), bottoms[tick], row["value"]
            if math.isnan(value):
                continue
            ax.bar(x, value, 0.7, bottom, color=paint, edgecolor="white", linewidth=0.8, label=_once(ax, name))
            if value > 0.015:
                at = x + 0.02 + 0.29 * (k + 0.5) / len(names)  # side by side, so that whiskers never hide each other
                ax.plot([at, at], [bottom + row["low"], min(1, bottom + row["high"])], color=INK, linewidth=0.9,
                        alpha=0.8, gid=f"interval:{row['arm']}")  # fmt: skip
            if value >= 0.06:
                ink = "white" if name in DARK_STYLES else INK
                ax.text(x - 0.16, bottom + value / 2, f"{100 * value:.0f}", color=ink, ha="center", va="center")
            bottoms[tick] = bottom + value
    _round_axis(ax, ticks)
    share_axis(ax.yaxis, "self-edits")
    ax.set_ylim(0, 1.015)
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def reward_honesty(table: pd.DataFrame, ax: Axes) -> Axes:
    """Reward per round three ways: mean of the k self-edits, best of k, and the selected one scored with fresh seeds.

    The distance between the upper two is the winner's curse; only the lower two say what selection gained.
    """
    ticks = report.round_ticks(table.loc[table["metric"].isin(REWARDS), "arm"])
    for k, (metric, (label, paint, marker)) in enumerate(REWARDS.items()):
        rows = report.by_round(report.arm_rows(table, metric))
        xs = [ticks.index(tick) + 0.14 * (k - 1) for tick, _ in rows]
        ax.plot(xs, [row["value"] for _, row in rows], color=paint, linewidth=0.9, alpha=0.5, zorder=2)
        for x, (_, row) in zip(xs, rows, strict=True):
            mark(ax, row, x, paint, marker=marker, upright=True, label=_once(ax, label))
            _paper(ax, row["paper_value"], x, table, upright=True)
    _round_axis(ax, ticks)
    share_axis(ax.yaxis, "reward (accuracy after the inner loop)")
    legend(ax)
    return ax


def loss_curves(table: pd.DataFrame, ax: Axes) -> Axes:
    """Loss by optimizer step (columns adapter, step, loss, optionally arm): adapters thin, each arm's median bold."""
    report.wants(table, ["adapter", "step", "loss"])
    arms = table["arm"] if "arm" in table else table["adapter"].map(lambda _: "adapters")
    for arm, rows in sorted(table.groupby(arms), key=lambda item: report.arm_rank(str(item[0]))):
        paint = colour(str(arm))
        for _, one in rows.groupby("adapter"):
            one = one.sort_values("step")
            ax.plot(one["step"], one["loss"], color=paint, linewidth=0.7, alpha=0.3, zorder=1)
        # steps that fewer than half of the adapters reach would make the median jump
        enough = rows.groupby("step")["loss"].count() >= max(1, rows["adapter"].nunique() / 2)
        median = rows.groupby("step")["loss"].median()[enough]
        name = f"{report.arm_label(str(arm))}, median of {rows['adapter'].nunique()}"
        ax.plot(median.index, median, color=paint, linewidth=2, zorder=3, label=name)
    ax.set(xlabel="optimizer step", ylabel="training loss", ylim=(0, None))
    ax.grid(axis="y")
    legend(ax)
    return ax


def score_distribution(table: pd.DataFrame, ax: Axes) -> Axes:
    """Histogram of the accuracy per passage (columns arm, accuracy; NaN is left out), one ridge an arm; the dot is
    the mean with its interval."""
    import numpy as np

    report.wants(table, ["arm", "accuracy"])
    arms = sorted(table["arm"].unique(), key=report.arm_rank)
    edges = np.linspace(-0.05, 1.05, 12)  # bars centred on 0, 0.1 … 1
    for y, arm in enumerate(arms):
        values = table.loc[table["arm"] == arm, "accuracy"].dropna().to_numpy(dtype=float)
        if len(values) == 0:
            ax.text(0, y, report.NOT_RUN, color=GREY, style="italic", va="center")
            continue
        counts, _ = np.histogram(values, bins=edges)
        heights = 0.74 * counts / counts.max()
        ax.bar(edges[:-1] + 0.05, -heights, bottom=y + 0.3, width=0.086, color=colour(arm), alpha=0.45, zorder=1)
        ax.axhline(y + 0.3, color=LIGHT, linewidth=0.8, zorder=0)
        mark(ax, stats.bootstrap_mean(list(values)).row("", arm, "accuracy"), y + 0.3, colour(arm))
    _arm_axis(ax, [report.arm_label(arm) for arm in arms])
    share_axis(ax.xaxis, "accuracy of a passage (ridges: share of passages)")
    ax.set_xlim(-0.06, 1.06)
    ax.grid(visible=False)
    return ax


def draw(
    function: Callable[[pd.DataFrame, Axes], Axes], table: pd.DataFrame, name: str = "", folder: Path | None = None,
    title: str = "", size: tuple[float, float] | None = None, panels: tuple[int, int] = (1, 1), **options: str,
) -> Figure:  # fmt: skip
    """One styled figure from one function, saved when a folder is given; as the last value of a cell it shows itself.

    A table of results is narrowed to the metrics that the function draws, so that the CSV holds what is seen.
    `panels` (rows, columns) other than one gives the function an array of axes; `options` are its further arguments.
    """
    import matplotlib.pyplot as plt

    if pattern := METRICS.get(function.__name__):
        table = table[table["metric"].str.fullmatch(pattern.format(**options))]
    with style():
        figure, axes = plt.subplots(*panels, figsize=size or _size(function, table), layout="constrained")
        function(table, axes, **options)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        plt.close(figure)
        if folder is not None:
            save(figure, name or function.__name__, table, folder)
    return figure


def save(fig: Figure, name: str, table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write name.pdf, name.png and name.csv (the plotted table) side by side, each whole or not at all; closes `fig`.

    The files hold no time stamp and no version: the same figure gives the same bytes.
    """
    import matplotlib.pyplot as plt

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"pdf": dict.fromkeys(("CreationDate", "ModDate", "Producer", "Creator")), "png": {"Software": None}}
    written = [folder / f"{name}.{kind}" for kind in plain]
    with style():
        for path, (kind, metadata) in zip(written, plain.items(), strict=True):
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                fig.savefig(temporary, format=kind, metadata=metadata)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    plt.close(fig)
    return [*written, paths.write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))]


def gallery(df: pd.DataFrame, folder: Path) -> list[str]:
    """Draw every figure for which `df` (results.csv) has data; the names written, `<experiment>_<kind>`.

    An experiment with several protocols or models gives one figure each, so that they never share an axis.
    """
    import pandas as pd

    from seal_lib.arc import plots as arc

    names = []
    parent = df["experiment"].str.replace(r"/(seed_\w+|tasks|choices)$", "", regex=True)
    for (experiment, protocol, model), rows in df.groupby([parent, "protocol", "model"]):
        own = rows[rows["experiment"] == experiment]
        kinds = df.loc[parent == experiment, ["protocol", "model"]].drop_duplicates()
        slug = re.sub(r"\W+", "_", " ".join([experiment, *([protocol, model] if len(kinds) > 1 else [])])).strip("_")
        arms = {metric: set(own.loc[own["metric"] == metric, "arm"]) for metric in own["metric"].unique()}
        headline = report.shown(experiment).metric
        ran = arms.get(headline, ())
        rounds = [arm for arm in ran if arm != "own_untrained" and report.round_of(arm)]
        grids = headline == "success_rate"
        full = report.with_gaps(own, experiment)
        wanted: list[tuple[Callable, pd.DataFrame, bool]] = [
            (arc.success_by_arm if grids else accuracy_by_arm, full, len(ran) >= 2),
            (arc.success_by_round if grids else accuracy_by_round,
             pd.concat([full, rows.drop(own.index)], ignore_index=True), len(rounds) >= (1 if grids else 2)),
            (differences, own, "difference" in arms),
            (blank_rate_by_arm, own, len(arms.get("blank_rate", ())) >= 2),
            (coverage_by_round, own, len(report.by_round(report.arm_rows(own, "coverage", needed=False))) >= 2),
            (style_by_round, own, any(metric.startswith("style_share:") for metric in arms)),
            (reward_honesty, own, set(REWARDS) <= set(arms)),
        ]  # fmt: skip
        pictures = [(function, function.__name__, table, {}) for function, table, there in wanted if there]
        for function, kind, table, options in pictures + arc.pictures(rows, experiment):
            names.append(f"{slug}_{kind}")
            draw(function, table, names[-1], folder, title=report.TITLES.get(experiment, experiment), **options)
    return names


def _once(ax: Axes, label: str) -> str | None:
    """The label, unless the legend of these axes has it already."""
    return None if label in ax.get_legend_handles_labels()[1] else label


def mark(ax: Axes, row: dict, at: float, paint: str, *, upright: bool = False, filled: bool = True, marker: str = "o",
         label: str | None = None) -> None:  # fmt: skip
    """A value with its interval, lying on line `at` or upright over it; without a value the words "not run"."""
    if math.isnan(row["value"]):
        x, y, where = (at, 0.06, ax.get_xaxis_transform()) if upright else (0.012, at, ax.get_yaxis_transform())
        side = "center" if upright else "left"
        ax.text(x, y, report.NOT_RUN, transform=where, color=GREY, style="italic", va="center", ha=side)
        return
    turn = (lambda along, across: (across, along)) if upright else (lambda along, across: (along, across))
    ax.plot(*turn([row["low"], row["high"]], [at, at]), color=paint, linewidth=2.2, zorder=3,
            gid=f"interval:{row['arm']}")  # fmt: skip
    ax.plot(*turn([row["value"]], [at]), marker, color=paint, markerfacecolor=paint if filled else "white", zorder=4,
            label=label, gid=f"value:{row['arm']}")  # fmt: skip


def _paper(ax: Axes, value: float, at: float, table: pd.DataFrame, upright: bool = False) -> None:
    """The paper's value as a hollow diamond; its model and data are named, for they are not ours."""
    if value is None or math.isnan(value):
        return
    label = _once(ax, "paper (Llama-3.2-1B, ARC)" if _is_arc(table) else "paper (Qwen2.5-7B, SQuAD)")
    x, y = (at, value) if upright else (value, at)
    ax.plot([x], [y], "D", color=INK, markerfacecolor="none", markersize=7, markeredgewidth=1, zorder=5, label=label,
            gid="paper")  # fmt: skip


def _is_arc(table: pd.DataFrame) -> bool:
    return "experiment" in table and bool(table["experiment"].astype(str).str.startswith("arc/").any())


def _arm_lines(ax: Axes, rows: list[dict], table: pd.DataFrame, sign: str = "") -> None:
    """Arms from top to bottom: mark, interval, the paper's diamond, and the number at the right edge."""
    for y, row in enumerate(rows):
        n = 0 if math.isnan(row["value"]) else int(row["n"])
        estimate = stats.Estimate(row["value"], row["low"], row["high"], n, row["unit"])
        mark(ax, row, y, colour(row["arm"].split(" - ")[0]), filled=not sign or stats.separable(estimate))
        _paper(ax, row["paper_value"], y, table)
        if not math.isnan(row["value"]):
            text = f"{100 * row['value']:{sign}.1f}".replace("-", "−")
            ax.text(1.015, y, text, transform=ax.get_yaxis_transform(), va="center_baseline", fontsize=8.5)
    _arm_axis(ax, [report.arm_label(row["arm"]) for row in rows])
    legend(ax)


def _level(ax: Axes, row: dict) -> list[tuple[float, str, str]]:
    """A level line with its band for an arm without rounds, the paper's dotted; returns what to write beside them."""
    paint, name, names = colour(row["arm"]), report.arm_label(row["arm"]), []
    if not math.isnan(row["low"]):
        ax.axhspan(row["low"], row["high"], color=paint, alpha=0.10, linewidth=0, zorder=0)
    if not math.isnan(row["value"]):
        ax.axhline(row["value"], color=paint, linewidth=1.4, linestyle="--", zorder=1, gid=f"value:{row['arm']}")
        same = abs(row["value"] - row["paper_value"]) < 0.005  # one line, so one name
        names.append((row["value"], f"{name}, paper too" if same else name, paint))
        if same:
            return names
    if not math.isnan(row["paper_value"]):
        ax.axhline(row["paper_value"], color=paint, linewidth=1, linestyle=":", zorder=1, gid="paper")
        writer = "GPT-4.1's notes" if row["arm"] == "external" else name
        names.append((row["paper_value"], f"{writer}, paper", paint))
    return names


def _names_at_right(ax: Axes, names: list[tuple[float, str, str]]) -> None:
    """Write each name beside its line, pushed apart where two would overlap."""
    (low, high), at = ax.get_ylim(), -math.inf
    for y, name, paint in sorted(names):
        at = max(y, at + 0.062 * (high - low))
        ax.text(1.015, at, name, transform=ax.get_yaxis_transform(), color=_darker(paint), va="center", fontsize=8.5)


def _arm_axis(ax: Axes, labels: list[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def _round_axis(ax: Axes, labels: list[str]) -> None:
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlim(-0.45, len(labels) - 0.55)
    ax.grid(axis="y")


def share_axis(axis, label: str, signed: bool = False) -> None:
    """Fractions shown as per cent; unless signed, from zero, and never cutting an interval."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda v, _: f"{100 * v:{'+' if signed and abs(v) > 1e-9 else ''}.0f} %".replace("-", "−"))
    axis.set_label_text(label)
    if not signed:
        high = min(1.03, max(0.05, axis.get_view_interval()[1]))
        axis.axes.set(**{f"{axis.axis_name}lim": (-0.02 * high, high)})


def legend(ax: Axes) -> None:
    """Above the axes, where no data can be."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2, columnspacing=1.4)


def _size(function: Callable, table: pd.DataFrame) -> tuple[float, float]:
    """Horizontal figures grow with their arms or tasks."""
    name = function.__name__
    if name == "differences" or name.endswith("_by_arm"):
        return 5.6, 1.15 + 0.31 * table["arm"].nunique()
    if name == "success_by_task":
        return 1.1 + 1.05 * table["arm"].nunique(), 1.1 + 0.2 * table["metric"].nunique()
    return 5.6, 0.9 + 0.55 * table["arm"].nunique() if function is score_distribution else 3.4


def _darker(paint: str) -> str:
    """The colour, dark enough to be read as text on white."""
    return "#" + "".join(f"{round(int(paint[i : i + 2], 16) * 0.78):02x}" for i in (1, 3, 5))
