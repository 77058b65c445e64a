"""One pure drawing function per kind of figure: it takes a tidy table, draws on the given axes and returns them.

Does not know runs, statistics, files or the origin of a table, and does not change the global style: `style()` is a
context. The table is results.csv (`results.collect`), narrowed to one protocol and model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib.errors import DataError
from seal_lib.report.arms import amount_of, arm_label, arm_rank, by_round, colour, round_of
from seal_lib.report.marks import (
    GREY,
    INK,
    LIGHT,
    arm_lines,
    by_arms,
    dots,
    draws,
    label_once,
    legend,
    mark,
    names_at_right,
    paper_mark,
    round_axis,
    share_axis,
)
from seal_lib.report.results import arm_rows, wants

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LEVEL_LINES = ("icl", "frozen", "external", "oracle")  # level lines in a figure over rounds
CONTROL_PLACES = {  # arms measured once: arm -> place on the axis of rounds, given the last round
    "random_edit_sft": lambda last: last,
    "random_config_sft": lambda last: 1.1,  # beside round 1, whose samples it uses
}
STYLE_WORDS = {  # styles of notes in the made world
    "forward": "person to value",
    "questions": "questions",
    "mixed": "mixed",
    "verbatim": "verbatim copy",
    "remark": "vague remarks",
    "other": "other",
    "false": "false statements",
    "empty": "empty",
}
GRADER_COLOURS = ("#222222", "#0072B2", "#56B4E9", "#D55E00", "#E69F00")
SHARE_LABELS = {  # metric -> label of its axis
    "accuracy": "questions answered correctly",
    "success_rate": "self-edits that solve their task",
}
WORTH_A_FIGURE = 0.01  # failure rates below this get no figure; they are in the tables
FAILURES = {"blank_rate": "blank answers", "rejected_rate": "rejected self-edits"}
REWARD_LINES = {
    "reward_best_of_k": ("best of k, as selected", "#D55E00", "^"),
    "reward_selected_fresh_seed": ("the selected one, fresh seeds", "#0072B2", "o"),
    "reward_mean": ("mean of k", "#8a8a8a", "s"),
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of all figures within the block, and restore the former style after it."""
    import matplotlib.pyplot as plt

    with plt.style.context(Path(__file__).with_name("seal.mplstyle")):
        yield
        interactive = plt.isinteractive()
    plt.interactive(interactive)


@draws("accuracy|blank_rate", by_arms, "accuracy of each arm")
def accuracy_by_arm(table: pd.DataFrame, ax: Axes, metric: str = "accuracy", failures: str = "blank_rate") -> Axes:
    """Draw one line per arm: accuracy with its interval, a pale bar for blank answers, and the paper's diamond.

    ``metric`` may be another key of `SHARE_LABELS`, and ``failures`` another key of `FAILURES`.
    """
    rows = arm_rows(table, metric)
    failed = {row["arm"]: row["value"] for row in arm_rows(table, failures, needed=False)}
    for y, row in enumerate(rows):
        if failed.get(row["arm"], math.nan) >= WORTH_A_FIGURE:
            share = failed[row["arm"]]
            ax.barh(y, share, height=0.62, color="#e9e9e9", zorder=0, label=label_once(ax, FAILURES[failures]))
    arm_lines(ax, rows, table)
    share_axis(ax.xaxis, SHARE_LABELS[metric])
    return ax


@draws("blank_rate", by_arms, "blank answers")
def blank_rate_by_arm(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one line per arm: the share of empty answers with its interval (an empty answer counts as wrong)."""
    arm_lines(ax, arm_rows(table, "blank_rate"), table)
    share_axis(ax.xaxis, "blank answers")
    return ax


@draws("accuracy:.+", by_arms, "accuracy by grader")
def accuracy_by_grader(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one line per arm and one mark per grader: the accuracy of the same answers, with its interval."""
    rows = table[table["metric"].str.startswith("accuracy:")]
    paints = dict(zip(rows["grader"].unique(), cycle(GRADER_COLOURS), strict=False))
    lines: dict[str, list[tuple[str, str, dict]]] = {}
    for row in sorted(rows.to_dict("records"), key=lambda row: arm_rank(row["arm"])):
        lines.setdefault(arm_label(row["arm"]), []).append((row["grader"], paints[row["grader"]], row))
    dots(ax, lines)
    share_axis(ax.xaxis, SHARE_LABELS["accuracy"])
    legend(ax)
    return ax


@draws("difference", by_arms, "paired differences")
def differences(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw paired differences with their intervals around a zero line; a filled mark is separable from zero."""
    rows = arm_rows(table, "difference", needed=False)
    if not rows:  # a run of one arm
        ax.text(0.5, 0.5, "no two arms were compared", transform=ax.transAxes, ha="center", va="center")
        ax.set_axis_off()
        return ax
    ax.axvline(0, color=INK, linewidth=0.9, zorder=1)
    arm_lines(ax, rows, table, "+")
    share_axis(ax.xaxis, "paired difference (filled: separable)", signed=True)
    return ax


@draws("accuracy", title="accuracy over the rounds")
def accuracy_by_round(table: pd.DataFrame, ax: Axes, metric: str = "accuracy") -> Axes:
    """Draw the paper's Figure 4: accuracy by round, thin lines for single seeds of the loop, and bands for intervals.

    The table holds the pooled experiment and, optionally, its `<experiment>/seed_<k>` children. Round 0 is the
    untrained policy. Arms without rounds (`LEVEL_LINES`) are level lines, and the paper's rounds are diamonds.
    """
    everything = table[table["metric"] == metric]
    child = everything["experiment"].str.contains(r"/seed_\w+$")
    pooled, names = arm_rows(everything[~child], metric), []
    families: dict[str, dict[int, dict]] = {}
    for row in pooled:
        if found := round_of(row["arm"]):
            families.setdefault(found[0], {})[found[1]] = row
    for _, rows in everything[child].groupby("experiment"):
        rounds_of_seal = [(round_of(row["arm"]), row["value"]) for row in arm_rows(rows, metric)]
        one = sorted((found[1], value) for found, value in rounds_of_seal if found and found[0] == "seal")
        label = label_once(ax, "single seeds of the loop")
        ax.plot(*zip(*one, strict=True), color=colour("seal"), linewidth=0.9, alpha=0.55, zorder=2, label=label)
    start = {0: families["seal"][0]} if 0 in families.get("seal", {}) else {}
    for family, rounds in families.items():
        paint, known = colour(family), start | rounds
        xs = list(range(min(known), max(known) + 1))
        rows = [known.get(x, {"arm": "", "value": math.nan, "low": math.nan, "high": math.nan}) for x in xs]
        lows, highs = [row["low"] for row in rows], [row["high"] for row in rows]
        ax.fill_between(xs, lows, highs, color=paint, alpha=0.13, linewidth=0, zorder=1)
        ax.plot(xs, [row["value"] for row in rows], color=paint, linewidth=2, zorder=3)  # a gap breaks the line
        for x, row in zip(xs, rows, strict=True):
            mark(ax, row, x, paint, upright=True)
        ran = [row["value"] for row in rows if not math.isnan(row["value"])]
        names += [(ran[-1], arm_label(family), paint)] if ran else []
    diamonds = [(x, row["paper_value"]) for x, row in sorted(families.get("seal", {}).items())]
    ax.plot([x for x, _ in diamonds], [value for _, value in diamonds], color=GREY, linewidth=0.8, linestyle=":")
    for x, value in diamonds:
        paper_mark(ax, value, x, table, upright=True)
    last = max([1, *(x for rounds in families.values() for x in rounds)])
    for row in pooled:
        if row["arm"] in LEVEL_LINES:
            names += _level(ax, row)
        elif row["arm"] in CONTROL_PLACES and not math.isnan(row["value"]):
            mark(ax, row, CONTROL_PLACES[row["arm"]](last), colour(row["arm"]), upright=True)
            names.append((row["value"], arm_label(row["arm"]), colour(row["arm"])))
    round_axis(ax, ["untrained", *(f"round {k}" for k in range(1, last + 1))])
    share_axis(ax.yaxis, SHARE_LABELS[metric])
    names_at_right(ax, names)
    legend(ax)
    return ax


AMOUNT_AXES = {"x": "self-edits a passage", "tokens": "tokens trained on, all passes"}


@draws("accuracy|tokens_per_edit", title="accuracy by amount")
def accuracy_by_amount(table: pd.DataFrame, ax: Axes, against: str = "x") -> Axes:
    """Draw one line per writer: accuracy with its interval against the number of self-edits or of trained tokens.

    ``against`` is ``x`` (self-edits) or ``tokens`` (all arms with an amount, of either kind).
    """
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, LogLocator, NullFormatter

    cost = {row["arm"]: row["value"] for row in arm_rows(table, "tokens_per_edit", needed=False)}
    lines: dict[str, list[tuple[float, dict]]] = {}
    for row in arm_rows(table, "accuracy"):
        amount = amount_of(row["arm"])
        if amount and (against == "tokens" or amount[1] == against):
            at = cost.get(row["arm"], math.nan) if against == "tokens" else float(amount[2])
            lines.setdefault(amount[0], []).append((at, row))
    for arm, several in sorted(lines.items(), key=lambda line: arm_rank(line[0])):
        several.sort(key=lambda pair: pair[0])
        xs, paint = [at for at, _ in several], colour(arm)
        ax.plot(xs, [row["value"] for _, row in several], color=paint, linewidth=1.6, zorder=2, label=arm_label(arm))
        for at, row in several:
            mark(ax, row, at, paint, upright=True)
    ax.set_xscale("log")
    ticks = sorted({at for several in lines.values() for at, _ in several})
    ax.xaxis.set_major_locator(FixedLocator(ticks) if against == "x" else LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FormatStrFormatter("%d"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(AMOUNT_AXES[against])
    share_axis(ax.yaxis, SHARE_LABELS["accuracy"])
    legend(ax)
    return ax


@draws("distinct|overlap", by_arms, "how much self-edits differ")
def diversity_by_arm(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one line per writer: the share of different trigrams, and the share that two of its self-edits share."""
    names = {"distinct": ("different trigrams", "#0072B2"), "overlap": ("trigrams that two share", "#D55E00")}
    found: dict[str, list[tuple[str, str, dict]]] = {}
    for metric, (label, paint) in names.items():
        for row in arm_rows(table, metric):
            found.setdefault(arm_label(row["arm"]), []).append((label, paint, row))
    dots(ax, found)
    share_axis(ax.xaxis, "of a passage's self-edits")
    legend(ax)
    return ax


def _level(ax: Axes, row: dict) -> list[tuple[float, str, str]]:
    """Draw a level line with its band for an arm without rounds, and the paper's dotted; return their names."""
    paint, name, names = colour(row["arm"]), arm_label(row["arm"]), []
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


@draws("accuracy|tokens_trained", lambda _: (6.4, 3.8), "right answers by tokens trained on")
def accuracy_by_tokens(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw accuracy against the tokens trained on, with one line per arm over the numbers of texts.

    At one place of the axis all arms have trained on equally many tokens. The table holds an experiment and its
    ``/texts_<n>`` children.
    """
    values: dict[str, dict[str, dict[str, dict]]] = {}
    for row in table.to_dict("records"):
        values.setdefault(row["arm"], {}).setdefault(row["experiment"], {})[row["metric"]] = row
    points: dict[str, list[tuple[float, dict]]] = {}
    for arm, several in values.items():
        own = [found for found in several.values() if "accuracy" in found]
        tokens = [found.get("tokens_trained", {"value": math.nan})["value"] for found in own]
        points[arm] = [(x, found["accuracy"]) for x, found in zip(tokens, own, strict=True)]
    return _curves(points, ax, "tokens trained on")


@draws("accuracy", lambda _: (6.4, 3.8), "right answers by number of passages")
def accuracy_by_passages(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw accuracy against the number of passages in the corpus, with one line per arm.

    The table holds an experiment for each number (``knowledge/cpt_<n>_<method>``).
    """
    points: dict[str, list[tuple[float, dict]]] = {}
    for row in table.to_dict("records"):
        number = re.fullmatch(r".*/cpt_(\d+)_\w+", row["experiment"])
        if number and row["metric"] == "accuracy":
            points.setdefault(row["arm"], []).append((int(number[1]), row))
    return _curves(points, ax, "passages in the corpus")


def _curves(points: dict[str, list[tuple[float, dict]]], ax: Axes, along: str) -> Axes:
    """Draw one line per arm through its points (x, row of accuracy), x on a log scale; a level where no x is known."""
    from matplotlib.ticker import LogLocator, NullFormatter

    names = []
    for arm in sorted(points, key=arm_rank):
        known = sorted(((x, row) for x, row in points[arm] if not math.isnan(x)), key=lambda point: point[0])
        paint, line = colour(arm), [row["value"] for _, row in known]
        if known:
            ax.plot([x for x, _ in known], line, color=paint, linewidth=1.6, zorder=3)
        elif points[arm]:  # it is not trained
            line = [points[arm][0][1]["value"]]
            ax.axhline(line[0], color=paint, linewidth=1, linestyle="--", zorder=1)
        for x, row in known:
            mark(ax, row, x, paint, upright=True)
        names += [(value, arm_label(arm), paint) for value in line[-1:]]
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", " "))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(along)
    share_axis(ax.yaxis, SHARE_LABELS["accuracy"])
    names_at_right(ax, names)
    ax.grid(axis="y")
    return ax


@draws("coverage", title="what the notes cover")
def coverage_by_round(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the share of a passage's facts that the self-edits state, by round of the policy, with intervals."""
    rows = by_round(arm_rows(table, "coverage"))
    line = [row["value"] for _, row in rows if (round_of(row["arm"]) or [""])[0] == "seal"]
    ax.plot(range(len(line)), line, color=LIGHT, zorder=1)
    for x, (_, row) in enumerate(rows):
        mark(ax, row, x, colour(row["arm"]), upright=True)
    round_axis(ax, [label for label, _ in rows])
    share_axis(ax.yaxis, "facts of the passage covered")
    return ax


@draws(
    "style_share:.*",
    lambda table: (5.6, 1.6 + 0.2 * table["metric"].nunique() * (0.7 + 0.3 * table["arm"].nunique())),
    "styles of self-edits",
)
def style_by_round(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one line per note style and one mark per arm: the share of its self-edits in that style, with intervals."""
    shares = table[table["metric"].str.startswith("style_share:")]
    names = list(shares.loc[shares["value"] > 0, "metric"].str.split(":").str[1].unique())
    if not names:
        raise DataError("The table has no row whose metric starts with 'style_share:' and is above zero.")
    lines = {}
    for name in sorted(names, key=lambda name: [*STYLE_WORDS, name].index(name)):
        rows = [row for _, row in by_round(arm_rows(shares, f"style_share:{name}"))]
        lines[STYLE_WORDS.get(name, name)] = [(arm_label(row["arm"]), colour(row["arm"]), row) for row in rows]
    dots(ax, lines)
    share_axis(ax.xaxis, "self-edits of the style")
    legend(ax)
    return ax


@draws("|".join(REWARD_LINES), title="what selection seems to gain, and gains")
def reward_honesty(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the reward per round: mean of the k self-edits, best of k, and the selected one rescored with fresh seeds.

    The distance between the upper two is the winner's curse; only the lower two say what selection gained.
    """
    arms = table.loc[table["metric"].isin(REWARD_LINES), "arm"].unique()
    ticks = [tick for tick, _ in by_round([{"arm": arm} for arm in arms])]
    for k, (metric, (label, paint, marker)) in enumerate(REWARD_LINES.items()):
        rows = by_round(arm_rows(table, metric))
        xs = [ticks.index(tick) + 0.14 * (k - 1) for tick, _ in rows]
        ax.plot(xs, [row["value"] for _, row in rows], color=paint, linewidth=0.9, alpha=0.5, zorder=2)
        for x, (_, row) in zip(xs, rows, strict=True):
            mark(ax, row, x, paint, marker=marker, upright=True, label=label_once(ax, label))
            paper_mark(ax, row["paper_value"], x, table, upright=True)
    round_axis(ax, ticks)
    share_axis(ax.yaxis, "reward of a self-edit")
    legend(ax)
    return ax


def loss_curves(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the loss by optimizer step: adapters as thin lines, and the median of each arm in bold.

    The table has the columns adapter, step, loss and, optionally, arm.
    """
    wants(table, ["adapter", "step", "loss"])
    arms = table["arm"] if "arm" in table else table["adapter"].map(lambda _: "adapters")
    for arm, rows in sorted(table.groupby(arms), key=lambda item: arm_rank(str(item[0]))):
        paint = colour(str(arm))
        for _, one in rows.groupby("adapter"):
            one = one.sort_values("step")
            ax.plot(one["step"], one["loss"], color=paint, linewidth=0.7, alpha=0.3, zorder=1)
        # steps that fewer than half of the adapters reach would make the median jump
        enough = rows.groupby("step")["loss"].count() >= max(1, rows["adapter"].nunique() / 2)
        median = rows.groupby("step")["loss"].median()[enough]
        name = f"{arm_label(str(arm))}, median of {rows['adapter'].nunique()}"
        ax.plot(median.index, median, color=paint, linewidth=2, zorder=3, label=name)
    ax.set(xlabel="optimizer step", ylabel="training loss", ylim=(0, None))
    ax.grid(axis="y")
    legend(ax)
    return ax


def pictures(
    own: pd.DataFrame, full: pd.DataFrame, rows: pd.DataFrame
) -> list[tuple[Callable, str, pd.DataFrame, dict]]:
    """Return (function, kind, table, options of `seal_lib.report.figures.draw`) for what an experiment has rows for.

    ``own``: its rows; ``full``: the same with gaps for arms that did not run; ``rows``: also those of its seeds, tasks
    and choices.
    """
    import pandas as pd

    arms = {metric: set(own.loc[own["metric"] == metric, "arm"]) for metric in own["metric"].unique()}
    ran = arms.get("accuracy", ())
    learned = [arm for arm in ran if arm != "own_untrained" and round_of(arm)]
    # that an arm answers more than the frozen model is built into a made world: those differences are in the table
    compared = [arm for arm in arms.get("difference", ()) if not arm.endswith(" - frozen")]
    amounts = any(amount_of(arm) for arm in ran)
    families = {found[0] for arm in arms.get("reward_mean", ()) if (found := round_of(arm))}
    wanted = [
        (accuracy_by_arm, full, len(ran) >= 2 and not amounts),
        (accuracy_by_amount, own, amounts),
        (diversity_by_arm, own, "overlap" in arms),
        (accuracy_by_round, pd.concat([full, rows.drop(own.index)], ignore_index=True), len(learned) >= 2),
        (accuracy_by_tokens, rows, "tokens_trained" in arms),
        (accuracy_by_grader, own, any(metric.startswith("accuracy:") for metric in arms)),
        (differences, own[~own["arm"].str.endswith(" - frozen")], bool(compared)),
        (blank_rate_by_arm, own, own.loc[own["metric"] == "blank_rate", "value"].max() >= WORTH_A_FIGURE),
        (coverage_by_round, own, len(by_round(arm_rows(own, "coverage", needed=False))) >= 2),
        (style_by_round, own, any(metric.startswith("style_share:") for metric in arms)),
        (reward_honesty, own, set(REWARD_LINES) <= set(arms) and len(families) == 1),  # it joins the rounds of one
    ]
    tokens = [(accuracy_by_amount, "accuracy_by_tokens", own, {"against": "tokens"})] if amounts else []
    return [(function, function.__name__, table, {}) for function, table, there in wanted if there] + tokens
