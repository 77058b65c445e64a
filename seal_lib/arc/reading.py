"""The results of ``arc/few_shot`` and ``arc/kinds`` as Markdown, generated from their rows.

Every number comes from the rows, and a claim that they do not support is not made. The rows are those of
`seal_lib.arc.tables` and `seal_lib.arc.kinds`; nothing is drawn here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from seal_lib.arc.tables import EXPERIMENT
from seal_lib.report import stats
from seal_lib.report.arms import arm_label, difference_arm, round_of
from seal_lib.report.words import bullets, percent, points

if TYPE_CHECKING:
    import pandas as pd

GAIN_WORDS = {"learning_rate": "learning rate", "num_train_epochs": "epochs", "strategy": "loss on tokens"}


def outcome(results: pd.DataFrame) -> str:
    """Return the levels of all arms, the separable differences, the role of the reward, and the choices that moved.

    For a difference it also says in how many single loops it is separable.
    """
    last = _last(results)
    lines = [_levels(results), _differences(results), _reward(results, last), _choices(results, last)]
    return bullets([line for line in lines if line])


def by_task(results: pd.DataFrame) -> str:
    """Return how SEAL compares with the untrained policy and the hand-made configuration, task by task and in cells."""
    last = _last(results)
    lines = [_between(results, last), _spread(results, last), _cells(results, last)]
    return bullets([line for line in lines if line])


def _last(results: pd.DataFrame) -> str:
    """Return the arm of the last round."""
    arms = results.loc[results["experiment"] == EXPERIMENT, "arm"].unique()
    rounds = [(found[1], arm) for arm in arms if (found := round_of(arm)) and found[0] == "seal"]
    return max(rounds, default=(0, "own_untrained"))[1]


def _find(results: pd.DataFrame, arm: str, metric: str, experiment: str = EXPERIMENT) -> stats.Estimate | None:
    rows = results[
        (results["experiment"] == experiment) & (results["arm"] == arm) & (results["metric"] == metric)
    ].to_dict("records")
    if not rows or math.isnan(rows[0]["value"]):
        return None
    return stats.Estimate.of_row(rows[0])


def _difference(results: pd.DataFrame, a: str, b: str) -> stats.Estimate | None:
    return _find(results, difference_arm(a, b), "difference")


def _levels(results: pd.DataFrame) -> str:
    arms = results.loc[(results["experiment"] == EXPERIMENT) & (results["metric"] == "success_rate"), "arm"]
    found = [(arm, estimate) for arm in arms.unique() if (estimate := _find(results, arm, "success_rate"))]
    if not found:
        return ""
    loops = max(estimate.loops for _, estimate in found)
    tasks = max(estimate.n for _, estimate in found)
    text = "; ".join(f"{arm_label(arm)} {percent(estimate)}" for arm, estimate in found)
    return f"Success over {tasks} tasks × {loops} loop{'s' if loops > 1 else ''}: {text}."


def _differences(results: pd.DataFrame) -> str:
    rows = results[(results["experiment"] == EXPERIMENT) & (results["metric"] == "difference")]
    apart, level = [], []
    for arm in rows["arm"].unique():
        found = _find(results, arm, "difference")
        if found is not None:
            text = f"{arm_label(arm)} ({points(found)}{_singly(results, arm)})"
            (apart if stats.separable(found) else level).append(text)
    parts = [f"Separable from zero: {'; '.join(apart)}"] if apart else []
    parts += [f"not separable: {'; '.join(level)}"] if level else []
    text = "; ".join(parts)
    return text and f"{text[0].upper()}{text[1:]}."


def _singly(results: pd.DataFrame, arm: str) -> str:
    """Return in how many loops alone the difference is separable; "" if there is only one loop."""
    names = [name for name in results["experiment"].unique() if str(name).startswith(f"{EXPERIMENT}/seed_")]
    if len(names) < 2:
        return ""
    alone = [_find(results, arm, "difference", name) for name in names]
    return f", in {sum(found is not None and stats.separable(found) for found in alone)} of {len(names)} loops alone"


def _reward(results: pd.DataFrame, last: str) -> str:
    ours = _difference(results, last, "random_config_sft")
    blind = _difference(results, "random_config_sft", "own_untrained")
    if ours is None or blind is None or not (stats.separable(ours) and ours.value > 0):
        return ""
    text = f"It is the reward: the control learned from as many configurations chosen blindly, and {arm_label(last)}"
    text += f" is ahead of it by {points(ours)}"
    if stats.separable(blind):
        return f"{text}; the control moved too, by {points(blind)}."
    return f"{text}, while the control itself did not separably move."


def _choices(results: pd.DataFrame, last: str) -> str:
    """Name the values whose share moved, in the last round, outside the untrained policy's interval, or the reverse."""
    where = f"{EXPERIMENT}/choices"
    rows = results[(results["experiment"] == where) & (results["arm"] == last)]
    moved = []
    for metric in rows.loc[rows["metric"].str.startswith("share:"), "metric"]:
        choice, _, value = metric.removeprefix("share:").partition("=")
        before, after = _find(results, "own_untrained", metric, where), _find(results, last, metric, where)
        if before is None or after is None or math.isnan(before.low) or math.isnan(after.low) or value == "False":
            continue
        if after.low > before.high or after.high < before.low:
            name = GAIN_WORDS.get(choice, choice.removeprefix("use_").replace("_", " "))
            what = name if value == "True" else f"{name} {value}"
            moved.append((after.value - before.value, f"{what} ({100 * before.value:.0f} → {100 * after.value:.0f} %)"))
    up = [text for gain, text in sorted(moved, reverse=True) if gain > 0]
    down = [text for gain, text in sorted(moved) if gain < 0]
    parts = [f"asks {how} often for {', '.join(said)}" for how, said in (("more", up), ("less", down)) if said]
    if not parts:
        return ""
    return f"After the last round the policy {' and '.join(parts)}; shares whose intervals overlap are left out."


def _between(results: pd.DataFrame, last: str) -> str:
    parts = []
    for other, name in {"own_untrained": "the untrained policy", "oracle": "the hand-made configuration"}.items():
        found = _difference(results, last, other)
        if found is not None and stats.separable(found):
            parts.append(f"{'above' if found.value > 0 else 'below'} {name} by {points(found)}")
    return f"{arm_label(last)} is separably {' and '.join(parts)}." if parts else ""


def _spread(results: pd.DataFrame, last: str) -> str:
    where = f"{EXPERIMENT}/tasks"
    rows = results[(results["experiment"] == where) & (results["arm"] == last) & results["value"].notna()]
    if not len(rows):
        return ""
    every, none = int((rows["value"] == 1).sum()), int((rows["value"] == 0).sum())
    return f"Of {len(rows)} tasks, {every} are solved by every self-edit of {arm_label(last)} and {none} by none."


def _cells(results: pd.DataFrame, last: str) -> str:
    cells, solved = _find(results, last, "cells"), _find(results, last, "grid") or _find(results, last, "success_rate")
    if cells is None or solved is None or solved.value >= 1 or cells.value <= solved.value:
        return ""
    wrong = (cells.value - solved.value) / (1 - solved.value)
    return f"Where {arm_label(last)} is not right, its better attempt still has {100 * wrong:.0f} % of the cells right."


def by_kind(results: pd.DataFrame) -> str:
    """Return the results of ``arc/kinds``: levels, whether policies read the puzzle, and the paired differences."""
    from seal_lib.arc import kinds

    where = kinds.EXPERIMENT
    rows = results[(results["experiment"] == where) & (results["metric"] == "success_rate")]
    levels = [(arm, found) for arm in rows["arm"] if (found := _find(results, arm, "success_rate", where))]
    lines = []
    if levels:
        text = "; ".join(f"{arm_label(arm)} {percent(found)}" for arm, found in levels)
        most = max((found for _, found in levels), key=lambda found: found.loops)
        lines.append(f"Success over {most.n} tasks, policies in {most.loops} loops: {text}.")
    for arm in rows["arm"]:
        read, suits = _find(results, arm, "reading", where), _find(results, arm, "suits", where)
        if read is None or suits is None:
            continue
        verdict = "reads" if stats.separable(read) and read.value > 0 else "is not seen to read"
        lines.append(
            f"{arm_label(arm)} {verdict} the puzzle: {percent(suits)} of its self-edits are of the way that suits the "
            f"kind of their puzzle, {points(read)} more than if they were dealt to the puzzles at random."
        )
    differences = results[(results["experiment"] == where) & (results["metric"] == "difference")]
    for arm in differences["arm"]:
        found = _find(results, arm, "difference", where)
        if found is not None:
            verdict = "separable from zero" if stats.separable(found) else "not separable from zero"
            lines.append(f"{arm_label(arm)}: {points(found)}, {verdict}.")
    return bullets(lines)
