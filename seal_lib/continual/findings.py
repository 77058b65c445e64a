"""The findings of the forgetting study as Markdown, generated from its rows for the last cells of notebooks 13 to 16.

A difference is stated only if `stats.separable` holds, with its adjusted p-value; a level is stated with its interval.
Arms that did not run are not mentioned. Uses the rows of `tables` and `tuning`; needs no models and no figures.
"""

import json
import math
import re
from collections.abc import Mapping

from seal_lib.continual import tables
from seal_lib.report import stats
from seal_lib.report.arms import arm_label, arm_rank
from seal_lib.report.stats import Estimate
from seal_lib.report.words import Rows, bullets, chance, number, percent, points


def edits(rows: Rows) -> str:
    """Return the findings of notebook 13: how much later edits take from earlier ones, per arm, and the comparisons."""
    found = _found(rows)
    said = []
    for arm in sorted({arm for arm, _ in found if " - " not in arm}, key=arm_rank):
        one = {metric: e for (name, metric), e in found.items() if name == arm}
        lost, moved = one.get("BWT"), one.get("FWT")
        if lost is None or not _away(lost):
            continue
        last = max((name for name in one if re.fullmatch(r"AA_\d+", name)), key=lambda name: int(name[3:]))
        what = "overwrite what was taught" if lost.value < 0 else "add to what was taught"
        text = f"**{arm_label(arm)}**: later edits {what}. {percent(one['LA'])} are right after their own edit, "
        text += f"{percent(one[last])} at the end (backward transfer {points(lost)})."
        if "half_life" in one and not math.isnan(one["half_life"].value):
            text += f" Half of the injected gain is gone after {number(one['half_life'])} later edits."
        if "prior_kept" in one and one["prior_kept"].high < 1:
            text += f" Of what the model knew before any edit {percent(one['prior_kept'])} is left."
        if moved is not None and _away(moved):
            text += f" Passages not edited yet move by {points(moved)}."
        said.append(text)
    return bullets(said + _differences(found))


def mitigations(rows: Rows) -> str:
    """Return the findings of notebook 14: the separable comparisons, and the prior knowledge the better arms keep."""
    found = _found(rows)
    said = _differences(found)
    apart = {arm: e for (arm, metric), e in found.items() if metric == "difference" and stats.separable(e)}
    better = {arm.split(" - ")[0] for arm, e in apart.items() if e.value > 0}
    kept = {arm: found.get((arm, "prior_kept")) for arm in sorted(better, key=arm_rank)}
    if told := [f"{arm_label(arm)} {percent(e)}" for arm, e in kept.items() if e and e.high < 1]:
        said.append(f"What the better arms keep of prior knowledge: {', '.join(told)}.")
    return bullets(said)


def retention(rows: Rows) -> str:
    """Return the findings of notebook 15: the arms that lose or gain accuracy between the first and the last length.

    The prior knowledge left at the last length is stated for these arms.
    """
    said, found = [], _found(rows)
    for (arm, metric), e in found.items():
        if (match := re.fullmatch(r"change_(\d+)_to_(\d+)", metric)) and stats.separable(e):
            first, last = match.groups()
            text = f"**{arm_label(arm)}** {'loses' if e.value < 0 else 'gains'} {points(e)} between {first} and {last} "
            text += f"edits ({percent(found[arm, f'AA_{first}'])} to {percent(found[arm, f'AA_{last}'])}{_p(e)})."
            if (arm, f"prior_{last}") in found:
                text += f" Of the prior questions it answers {percent(found[arm, f'prior_{last}'])} at the end."
            said.append(text)
    return bullets(said)


def tuning(lines: Rows) -> str:
    """Return the findings of notebook 16: what tuning cost, and whether each choice lies inside the search range."""
    price = tables.tuning_price(lines)
    settings, trainings = (sum(column) for column in zip(*price.values(), strict=True))
    most, fewest = max(price.values()), min(price.values())
    said = [
        f"{settings} settings of {len(price)} rules were tried, {trainings} trainings of one edit: "
        f"{fewest[0]} to {most[0]} settings a rule."
    ]
    ends = [(line["rule"], line["edge"], json.loads(line["knobs"])) for line in lines if line["chosen"]]
    inside = [arm_label(rule) for rule, edge, _ in ends if not edge]
    if inside:
        said.append(f"No neighbour is better than the choice: {', '.join(inside)}.")
    for rule, edge, knobs in ends:
        if edge:
            at = ", ".join(f"{k} = {v:g}" for k, v in knobs.items())
            ends_of = [part for part in edge.split(", ") if part != "unfinished"]
            why = ["the settings were used up"] if "unfinished" in edge else []
            why += [f"the values of {' and '.join(ends_of)} end there"] if ends_of else []
            said.append(f"**{arm_label(rule)}** ({at}): {', and '.join(why)}. A better setting may lie beyond.")
    if lost := sum(line["diverged"] > 0 for line in lines):
        said.append(f"{lost} settings made a stream diverge and were not chosen.")
    return bullets(said)


def _found(rows: Rows) -> dict[tuple[str, str], Estimate]:
    """Return (arm, metric) -> estimate for the rows that have a number."""
    return {(row["arm"], row["metric"]): Estimate.of_row(row) for row in rows if not math.isnan(row["value"])}


def _differences(estimates: Mapping[tuple[str, str], Estimate]) -> list[str]:
    """Return one sentence per separable difference, then one that counts them among all comparisons."""
    family = [(arm, e) for (arm, metric), e in estimates.items() if metric == "difference"]
    sentences = []
    for arm, e in family:
        if stats.separable(e):
            a, b = (arm_label(name) for name in arm.split(" - "))
            where = "above" if e.value > 0 else "below"
            lost = f", {e.dropped} dropped" if e.dropped else ""
            sentences.append(f"**{a}** ends {where} **{b}** by {points(e)} ({e.n} streams{lost}{_p(e)}).")
    if family:
        sentences.append(f"{len(sentences)} of {len(family)} comparisons can be told apart.")
    return sentences


def _away(e: Estimate) -> bool:
    return e.interval != "by construction" and stats.separable(e)


def _p(e: Estimate) -> str:
    return f", {chance(e)}" if chance(e) else ""
