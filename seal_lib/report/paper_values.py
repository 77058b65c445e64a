"""Read the paper's numbers from paper_values.yaml, which pairs each with one of ours and says where it is printed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from seal_lib.errors import DataError
from seal_lib.runs import yaml_files


@cache
def paper_values() -> list[dict]:
    """Return every value of paper_values.yaml with its group's fields; the continual matrix gives one per cell."""
    values = []
    for group in yaml_files.read(Path(__file__).with_name("paper_values.yaml")):
        shared = {"low": None, "high": None, "note": "", "headline": True, "grader": ""}
        shared |= {key: value for key, value in group.items() if key not in ("rows", "matrix", "standard_errors")}
        values += [shared | row for row in group.get("rows", [])]
        for edits, pairs in enumerate(zip(group.get("matrix", []), group.get("standard_errors", []), strict=True)):
            for k, (value, error) in enumerate(zip(*pairs, strict=True), start=1):
                if value is not None:
                    interval = {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}
                    cell = {"metric": f"accuracy_after_{edits}:passage_{k}", "cell": f"row {edits}, d{k}"}
                    values.append(shared | cell | interval)
    return values


@cache
def paper_index() -> dict[tuple[str, str, str], dict]:
    """Return (experiment, arm, metric) -> the one value of the paper with which ours is compared."""
    index: dict[tuple[str, str, str], dict] = {}
    for entry in paper_values():
        key = (entry["experiment"], entry["arm"], entry["metric"])
        if not entry["headline"]:
            continue
        if key in index:
            raise DataError(f"paper_values.yaml: {'/'.join(key)} is there twice; mark one with headline: false.")
        index[key] = entry
    return index


def grader_sentence() -> str:
    """Return a sentence on how the grader moves the level, from the authors' own answers regraded by containment."""
    index = paper_index()
    both = [
        (entry["value"], index[experiment, arm, "accuracy"]["value"])
        for (experiment, arm, metric), entry in index.items()
        if experiment == "knowledge/single_passage" and metric == "contains"
    ]
    ours, theirs = (", ".join(f"{100 * pair[side]:.1f}" for pair in both) for side in (0, 1))
    return (
        "The paper's values are judged by GPT-4.1. The grader moves the level: on the authors' own released answers "
        f"containment gives {ours} where GPT-4.1 gives {theirs}. Levels by different graders are not comparable."
    )


def paper_source(entry: dict) -> str:
    """Return version, table, cell, protocol, model and grader of a paper's value in one line."""
    about = [entry["protocol"], entry["model"], *([f"grader {entry['grader']}"] if entry["grader"] else [])]
    return f"{entry['version']}, {entry['table']}, {entry['cell']} ({', '.join(about)})"
