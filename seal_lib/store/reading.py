"""Summarise the studies of a store as Markdown; every number comes from their rows.

It knows the names of the rows of `seal_lib.store.growth`, `rates` and `grounding`, and draws nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from seal_lib.report import words
from seal_lib.report.arms import arm_label, arm_rank
from seal_lib.report.stats import Estimate
from seal_lib.store import grounding, growth, rates

if TYPE_CHECKING:
    import pandas as pd


def _by_arm(results: pd.DataFrame, experiment: str, metric: str) -> dict[str, Estimate]:
    if not len(results):
        return {}
    rows = results[(results["experiment"] == experiment) & (results["metric"] == metric)]
    found = {row["arm"]: Estimate.of_row(row) for row in rows.to_dict("records")}
    return dict(sorted(found.items(), key=lambda pair: arm_rank(pair[0])))


def grown(results: pd.DataFrame) -> str:
    """Return Markdown on what each arm gets right at the largest size, its costs and losses, and what is separable."""
    metrics = set(results["metric"]) if len(results) else set()
    sizes = sorted(int(found[1]) for metric in metrics if (found := re.fullmatch(r"right_(\d+)", metric)))
    if not sizes:
        return "Nothing was asked in this run."
    last = sizes[-1]
    right = _by_arm(results, growth.EXPERIMENT, f"right_{last}")
    kept = _by_arm(results, growth.EXPERIMENT, f"kept_{last}")
    tokens = _by_arm(results, growth.EXPERIMENT, f"prompt_tokens_{last}")
    lines = []
    for arm, e in right.items():
        parts = [f"{words.percent(e)} of the questions right"]
        parts += [f"{words.percent(kept[arm])} of prior ones"] if arm in kept else []
        parts += [f"{tokens[arm].value:.0f} tokens a prompt"] if arm in tokens else []
        lines.append(f"{last} passages, {arm_label(arm)}: {', '.join(parts)}")
    nothing = _by_arm(results, growth.EXPERIMENT, "kept_0").get(growth.FROZEN)
    if nothing:
        lines.append(f"before anything was learned: {words.percent(nothing)} of the prior questions right")
    merged = {size: _by_arm(results, growth.EXPERIMENT, f"right_{size}").get(growth.MERGED) for size in sizes}
    told = [f"{size} passages {words.percent(e)}" for size, e in merged.items() if e]
    lines += [f"all adapters merged: {'; '.join(told)}"] if told else []
    apart = words.told(words.differences(results.to_dict("records"), growth.EXPERIMENT))
    return f"{words.bullets(lines)}\n{apart}"


def reviewed(results: pd.DataFrame) -> str:
    """Return Markdown on how many poisoned and ordinary documents were stopped, and on the rules for self-edits."""
    stopped = _by_arm(results, rates.EXPERIMENT, "stopped")
    unread = _by_arm(results, rates.EXPERIMENT, "stopped_unread")
    lines = []
    for arm, name in ((rates.POISONED, "poisoned"), (rates.CLEAN, "ordinary")):
        if arm in stopped:
            lines.append(f"{name} documents stopped: {words.percent(stopped[arm])} of {stopped[arm].n}")
        if arm in unread:
            lines[-1] += f"; of those that nobody read while the rules were mended {words.percent(unread[arm])}"
    kinds = {arm: e for arm, e in unread.items() if arm not in (rates.POISONED, rates.CLEAN)}
    if kinds:
        least = min(kinds, key=lambda arm: kinds[arm].value)
        lines.append(f"what most often gets through, of the unread: {least}, {words.percent(kinds[least])} stopped")
    for arm, e in _by_arm(results, rates.EXPERIMENT, "found").items():
        lines.append(f"{arm}: {words.percent(e)}")
    if len(results):
        lines += grounding.in_words(results[results["experiment"] == grounding.EXPERIMENT].to_dict("records"))
    return words.bullets(lines)
