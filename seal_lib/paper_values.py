"""The paper's numbers: reads paper_values.yaml, and says which one stands beside which of ours and where it is printed.

Knows the form of that file; does not know our results.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from seal_lib.errors import DataError


def paper_values() -> list[dict]:
    """Every value of paper_values.yaml with its group's fields filled in; the continual matrix as one row a cell."""
    values = []
    for group in yaml.safe_load(Path(__file__).with_name("paper_values.yaml").read_text(encoding="utf-8")):
        shared = {"low": None, "high": None, "note": "", "headline": True}
        shared |= {key: value for key, value in group.items() if key not in ("rows", "matrix")}
        values += [shared | row for row in group.get("rows", [])]
        for edits, line in enumerate(group.get("matrix", [])):
            cells = enumerate(line, start=1)
            values += [
                shared | {"metric": f"accuracy_after_{edits}:passage_{k}", "value": v, "cell": f"row {edits}, d{k}"}
                for k, v in cells
                if v is not None
            ]
    return values


def paper_index() -> dict[tuple[str, str, str], dict]:
    """(experiment, arm, metric) -> the one paper value it is compared with."""
    index: dict[tuple[str, str, str], dict] = {}
    for entry in paper_values():
        key = (entry["experiment"], entry["arm"], entry["metric"])
        if not entry["headline"]:
            continue
        if key in index:
            raise DataError(f"paper_values.yaml: {'/'.join(key)} is there twice; mark one with headline: false.")
        index[key] = entry
    return index


def paper_source(entry: dict) -> str:
    """Version, table, cell, protocol and model of a paper value in one line."""
    return f"{entry['version']}, {entry['table']}, {entry['cell']} ({entry['protocol']}, {entry['model']})"
