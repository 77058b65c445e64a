"""Knobs of the update rules: tried on development streams with equal budget, chosen by AA_K, and read by the study.

Every rule gets the settings of its `grid` (four, fewer where it has nothing to set). Development streams share no
passage and no person with the test streams. The chosen knobs of the made world are committed as ``tuned.yaml``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from seal_lib.continual import metrics, tables
from seal_lib.continual.lab import Lab
from seal_lib.continual.rules import RULES
from seal_lib.continual.streams import Stream
from seal_lib.continual.study import Arm, Prior, run_arm
from seal_lib.errors import DataError

TUNED = Path(__file__).with_name("tuned.yaml")


def sweep(
    run, rules: Sequence[str], lab: Lab, streams: Sequence[Stream], prior: Prior, *, grader: str = "exact",
    slots: int = 16,
) -> list[dict]:  # fmt: skip
    """One line a setting: rule, knobs (JSON), AA, LA, BWT, prior, blank, diverged, and which one is chosen.

    Only the cells that these need are measured. Chosen: the highest mean AA_K, the first of equals; a setting in which
    any stream diverged is never chosen.
    """
    lines = []
    for rule in rules:
        if rule not in RULES:
            raise DataError(f"rules: {rule!r} is not one of {', '.join(RULES)}.")
        tried = []
        for n, knobs in enumerate(RULES[rule].grid):
            arm = Arm(f"{rule}.{n}", rule, knobs)
            K = len(streams[0])
            rows = run_arm(run, arm, lab, streams, prior, grader=grader, slots=slots, group="tuning/", full_rows=[0, K])
            R = tables.stack(rows)
            tried.append(
                {
                    "rule": rule, "knobs": json.dumps(knobs, sort_keys=True),
                    "AA": float(metrics.average_accuracy(R).mean()), "LA": float(metrics.learning_accuracy(R).mean()),
                    "BWT": float(metrics.backward_transfer(R).mean()), "prior": float(tables.prior(rows)[:, K].mean()),
                    "blank": float(tables.stack(rows, "blank")[:, K].mean()),
                    "diverged": sum(row["outcome"] != "ok" for row in rows if row["k"] == K),
                }
            )  # fmt: skip
        sound = [line for line in tried if not np.isnan(line["AA"])]
        best = max(sound, key=lambda line: line["AA"]) if sound else None
        lines += [line | {"chosen": line is best} for line in tried]
    return lines


def chosen(lines: Sequence[Mapping[str, object]]) -> dict[str, dict]:
    """rule -> knobs of its chosen setting."""
    return {line["rule"]: json.loads(line["knobs"]) for line in lines if line["chosen"]}


def tuned(file: Path = TUNED) -> dict[str, dict]:
    """The committed knobs; a rule that is missing keeps its default."""
    if not Path(file).is_file():
        raise DataError(f"knobs_file: {file} does not exist; give a YAML file of knobs, or null for the defaults.")
    found = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    unknown = sorted(set(found) - set(RULES))
    if unknown:
        raise DataError(f"{Path(file).name}: {unknown[0]!r} is no update rule; choose from {', '.join(RULES)}.")
    return found


def as_yaml(knobs: Mapping[str, Mapping[str, object]]) -> str:
    """The content of ``tuned.yaml``."""
    head = "# Chosen by notebook 16_continual_tuning with SET=full, on development streams of the made world.\n"
    return head + yaml.safe_dump({rule: dict(value) for rule, value in knobs.items()}, sort_keys=True)
