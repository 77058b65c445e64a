"""Report what a run has spent per stage and per point of accuracy gained: seconds, tokens and, by a price list, money.

What a run will take is planned by `seal_lib.plan`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.report.arms import arm_label, arm_rank, difference_arm
from seal_lib.report.results import read_run
from seal_lib.report.stats import Estimate
from seal_lib.report.words import points
from seal_lib.runs import journal, yaml_files

if TYPE_CHECKING:
    import pandas as pd

#: counters of a run → their names in tables
COUNTED = {
    "generated": "tokens written",
    "trained": "tokens trained",
    "scored": "questions asked",
    "other_calls": "calls elsewhere",
    "other_prompt_tokens": "tokens read elsewhere",
    "other_completion_tokens": "tokens written elsewhere",
}

#: arm → the policy whose rounds it builds on, if the arm's name does not say so
ROUNDS = {"random_edit_sft": "random_round_99"}


@dataclass(frozen=True)
class Prices:
    """A price list in one currency: an hour of the machine, and a million tokens of a model elsewhere."""

    currency: str = ""
    hour: float = 0.0
    million_read: float = 0.0
    million_written: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Prices:
        """Read a price list from YAML, with the names of the fields as keys.

        Raises:
            DataError: there is no such file, an unknown key, or a price that is not a number from 0.
            ParameterError: the file is not YAML.
        """
        if not path.is_file():
            raise DataError(f"prices: no file {path}; write currency, hour, million_read, million_written into one.")
        value = yaml_files.read(path)
        known = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) - known:
            odd = ", ".join(map(str, set(value) - known)) if isinstance(value, dict) else type(value).__name__
            raise DataError(f"{path}: {odd} is no price; a list has {', '.join(sorted(known))}.")
        for name, price in value.items():
            number = isinstance(price, int | float) and not isinstance(price, bool)
            if name != "currency" and not (number and 0 <= price < math.inf):
                raise DataError(f"{path}: {name}: {price!r} is no price; write a number from 0.")
        return cls(**value)

    def of(self, spent: Mapping[str, float]) -> float:
        """Return the money for seconds and tokens, named as in `by_phase`."""
        elsewhere = self.million_read * spent.get("other_prompt_tokens", 0)
        elsewhere += self.million_written * spent.get("other_completion_tokens", 0)
        return self.hour * spent["seconds"] / 3600 + elsewhere / 1e6


def by_phase(folder: Path) -> dict[str, Counter]:
    """Return for each phase its seconds (over all workers), units and counters."""
    found: dict[str, Any] = {}
    for cost in journal.read(folder / "costs.jsonl"):
        if "phase" in cost:
            own = found.setdefault(cost["phase"], Counter(seconds=0, units=0))
            own.update({"seconds": cost.get("seconds", 0.0), "units": cost["units"]})
            own.update(cost.get("counts", {}))
    return found


def stage(phase: str) -> str:
    """Return what a phase does, whatever its seed, round and arm: ``score``, ``evaluate``, ``evaluate, write`` …"""
    parts = [part for part in phase.removeprefix("artifact:").split("/") if not re.search(r"_\d+$", part)]
    if "evaluate" in parts:
        return "evaluate, write" if parts[-1] == "write" else "evaluate"
    return parts[0] if phase.startswith("artifact:") else parts[-1] if parts else phase


def stages(folder: Path, prices: Prices | None = None) -> pd.DataFrame:
    """Return one line per stage and one for all: phases, units, seconds, counters, and money if there are prices.

    Raises:
        DataError: the run has spent nothing yet.
    """
    import pandas as pd

    lines: dict[str, Any] = {}
    for phase, spent in by_phase(folder).items():
        for name in (stage(phase), "all"):
            lines.setdefault(name, Counter(phases=0)).update({"phases": 1, **spent})
    if not lines:
        raise DataError(f"{paths.short(folder)} has spent nothing yet; look again when a phase has ended.")
    whole = lines.pop("all")
    ordered = dict(sorted(lines.items(), key=lambda item: -item[1]["seconds"])) | {"all": whole}
    for own in ordered.values():
        if prices is not None:
            own[prices.currency or "money"] = prices.of(own)
    frame = pd.DataFrame.from_dict(ordered, orient="index").fillna(0.0).rename(columns=COUNTED)
    return frame.loc[:, (frame != 0).any()]


def by_arm(folder: Path, prices: Prices | None = None) -> pd.DataFrame:
    """Return what the answers of each arm cost, in all and per point of accuracy above the frozen model.

    The rounds of an arm's policy are included. Raises RunError if the run is not finished, so its gains are unknown.
    """
    import pandas as pd

    rows, spent = read_run(folder), by_phase(folder)
    gained = {row["arm"]: Estimate.of_row(row) for row in rows.to_dict("records") if row["metric"] == "difference"}
    lines = {}
    for arm in sorted(set(rows.loc[rows["metric"] == "accuracy", "arm"]), key=arm_rank):
        total: Counter = Counter()
        for phase, cost in spent.items():
            total.update(cost if _is_of(phase, arm) else {})
        if not total:
            continue
        line: dict[str, Any] = {"seconds": round(total["seconds"], 1)}
        if prices is not None:
            line[prices.currency or "money"] = prices.of(total)
        gain = gained.get(difference_arm(arm, "frozen"))
        if gain is not None:
            line["points above the frozen model"] = points(gain)
            certain = gain.low > 0
            line["seconds a point"] = round(total["seconds"] / (100 * gain.value), 1) if certain else "no certain gain"
            if prices is not None and certain:
                line[f"{prices.currency or 'money'} a point"] = prices.of(total) / (100 * gain.value)
        lines[arm_label(arm)] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def _is_of(phase: str, arm: str) -> bool:
    """Return whether a phase is work for an arm: the arm's own, or a round of its policy up to it."""
    parts = phase.removeprefix("artifact:").split("/")
    policy = re.fullmatch(r"(.+)_(\d+)", ROUNDS.get(arm, arm))
    if arm in parts or policy is None or "evaluate" in parts:
        return arm in parts
    rounds = (re.fullmatch(rf"{re.escape(policy[1])}_(\d+)", part) for part in parts)
    return any(found and int(found[1]) <= int(policy[2]) for found in rounds)
