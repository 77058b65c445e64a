"""The audit of several files as tables and as JSON; the numbers come from ``numbers``, and nothing is computed here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from seal_lib.audit import numbers
from seal_lib.audit.files import STATES, AnswerFile, Matrix, find_files, read_all
from seal_lib.records import to_dict
from seal_lib.report import stats
from seal_lib.report.stats import Estimate

KINDS = {
    "single_passage": "One passage at a time (query_server)",
    "pretraining": "Continued pretraining",
    "continual": "Continual edits",
}
MODELS = {"adapter": "after training", "base": "without training"}
ROUNDED = 1e-4  # the precision with which the files report their own accuracies
#: metric of continual edits → column title
METRICS = {
    "base": "before any edit, %",
    "LA": "right after its edit, %",
    "AA": "after all edits, %",
    "AIA": "mean over edits, %",
    "BWT": "BWT, points",
    "net_gain": "against no edit, points",
}


@dataclass(frozen=True)
class Audit:
    """Everything that was found in some files; ``refused`` has one sentence for each file that could not be used."""

    files: tuple[AnswerFile | Matrix, ...]
    refused: tuple[str, ...]
    states: tuple[numbers.StateNumbers, ...]
    gains: dict[str, Estimate]
    rewards: tuple[numbers.Reward, ...]
    proxies: dict[str, Estimate]
    comparisons: tuple[numbers.FileComparison, ...]
    continual: dict[str, dict[str, Estimate]]
    remarks: tuple[str, ...]

    def of(self, kind: str) -> list[AnswerFile | Matrix]:
        """Return the files of a kind."""
        return [file for file in self.files if file.kind == kind]


def audit(given: Iterable[str | Path]) -> Audit:
    """Read files, and those in folders, and compute all their numbers; what cannot be used is in ``refused``."""
    there, missing = find_files(given)
    files, refused = read_all(there)
    results = [file for file in files if isinstance(file, AnswerFile)]
    comparisons, unmatched = numbers.compare(results)
    return Audit(
        tuple(files),
        tuple(missing + refused),
        tuple(state for file in results for state in numbers.states(file)),
        {file.name: gain for file in results if (gain := numbers.gain(file)).n},
        tuple(reward for file in results if (reward := numbers.reward(file))),
        {file.name: score for file in results if (score := numbers.proxy(file)).n},
        tuple(comparisons),
        numbers.continual([file for file in files if isinstance(file, Matrix)]),
        tuple([f"{file.name}: {remark}" for file in files for remark in file.remarks] + unmatched),
    )


# ---------------------------------------------------------------------------------------------- tables


def accuracies(found: Audit, kind: str) -> pd.DataFrame:
    """Return two lines per file, after training and without: its accuracies beside its own claims and the paper's."""
    lines, notes = [], []
    files = {file.name: file for file in found.of(kind)}
    for one in (state for state in found.states if state.file in files):
        line = {"file": one.file, "model": MODELS[one.state]}
        if kind == "single_passage":
            line["accuracy (macro), %"] = _percent(one.macro)
        line["accuracy (micro), %"] = _percent(one.micro)
        line["right / asked"] = f"{one.right:g} / {one.questions}" if one.questions else ""
        if kind == "single_passage":
            line["passages"] = str(one.macro.n)
        blank, rest = "–", "–"
        if not math.isnan(one.blank):
            blank, rest = f"{one.blank:g} ({100 * one.blank / one.questions:.1f} %)", _percent(one.spoken)
        gained = found.gains.get(one.file) if one.state == "adapter" else None
        entry = numbers.printed(files[one.file].path, one.state)
        line |= {
            "blank": blank,
            "of the rest, %": rest,
            "gain, points": _percent(gained, "+") if gained else "",
            "the file says, %": _stored(one.stored, one.macro if kind == "single_passage" else one.micro),
            "paper, %": f"{100 * entry['value']:.1f} ({entry['table']})" if entry else "",
        }
        lines.append(line)
        if entry and entry["note"]:
            notes.append(f"{entry['table']}, {entry['cell']}: {entry['note']}.")
    table = pd.DataFrame(lines)
    if kind == "pretraining" and lines:
        notes.append("The files do not say which questions share a passage, so each counts as independent.")
    table.attrs["notes"] = list(dict.fromkeys(notes))
    return table


def containment(found: Audit) -> pd.DataFrame:
    """Return, for each file with gold answers, containment beside the verdicts in the file."""
    graders = {file.name: file.grader or "not named" for file in found.files}
    return pd.DataFrame(
        [
            {
                "file": one.file,
                "model": MODELS[one.state],
                "grader of the file": graders[one.file],
                "by it, %": _percent(beside.judged),
                "by containment, %": _percent(beside.contained),
                "agree, %": _share(beside.agree),
                "precision, %": _share(beside.precision),
                "recall, %": _share(beside.recall),
                "answers": str(beside.answers),
            }
            for one in found.states
            if (beside := one.contains)
        ]
    )


def _comparisons(found: Audit, kind: str) -> pd.DataFrame:
    """Return the paired differences between the files of a kind, after training."""
    names = {file.name for file in found.of(kind)}
    return pd.DataFrame(
        [
            {
                "a − b": f"{one.a} − {one.b}",
                "points": _percent(one.difference, "+"),
                "p (Holm)": _p(one.difference.p),
                "separable?": "yes" if stats.separable(one.difference) else "no",
                "shared": f"{one.difference.n} {one.difference.unit}s",
                "where both answer, points": _percent(one.spoken, "+"),
                "right there, a and b": f"{one.spoken_right[0]:g}, {one.spoken_right[1]:g} of {one.spoken_questions}"
                if one.spoken_questions
                else "–",
                "matched by": f"{one.by} ({one.note})" if one.note else one.by,
            }
            for one in found.comparisons
            if one.a in names
        ]
    )


def rewards(found: Audit) -> pd.DataFrame:
    """Return how reliable the rewards are, for the files with several self-edits per passage."""
    return pd.DataFrame(
        [
            {
                "file": one.file,
                "self-edits": str(one.edits),
                "trainings of each": str(one.runs),
                "mean reward, %": _percent(one.mean),
                "best of them, %": _percent(one.best),
                "best, by another training, %": _percent(one.fresh),
                "reliability": "–" if math.isnan(one.reliability.value) else f"{one.reliability.value:.2f}",
                "passages": str(one.mean.n),
            }
            for one in found.rewards
        ]
    )


def scores(found: Audit) -> pd.DataFrame:
    """Return the scores by a rubric of the files that have them; the authors' rubric goes from 4 to 20."""
    return pd.DataFrame(
        {"file": name, "score": f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]", "passages": str(one.n)}
        for name, one in found.proxies.items()
    )


def continual(found: Audit) -> pd.DataFrame:
    """Return one line per file of continual edits, and one for several runs together."""
    lines = []
    for name, metrics in found.continual.items():
        edits = max((int(key[3:]) for key in metrics if key.startswith("AA_")), default=0)
        shown = {"AA" if key == f"AA_{edits}" else key: value for key, value in metrics.items()}
        first = metrics.get("base")
        lines.append(
            {"file": name, "edits": str(edits or "–"), "over": f"{first.n} {first.unit}s" if first else "–"}
            | {
                column: _percent(shown[key], "+" if "points" in column else "") if key in shown else "–"
                for key, column in METRICS.items()
            }
        )
    return pd.DataFrame(lines)


def shown(found: Audit) -> dict[str, pd.DataFrame]:
    """Return title → table for all tables that have a line, in the order of a report."""
    tables = {}
    for kind in ("single_passage", "pretraining"):
        tables[KINDS[kind]] = accuracies(found, kind)
        tables[f"{KINDS[kind]}: paired comparisons after training"] = _comparisons(found, kind)
    tables |= {"Containment beside the file's grader": containment(found), "Rewards": rewards(found)}
    tables |= {"Scores by a rubric": scores(found), KINDS["continual"]: continual(found)}
    return {title: table for title, table in tables.items() if len(table)}


def as_json(found: Audit) -> dict:
    """Return all numbers as plain JSON values; a missing number is null."""
    printed = {(f.name, s): numbers.printed(f.path, s) or {"value": None} for f in found.files for s in STATES}
    return {
        "files": [
            {"name": f.name, "path": str(f.path), "kind": f.kind, "grader": f.grader, "remarks": list(f.remarks)}
            for f in found.files
        ],
        "states": [to_dict(one) | {"printed": printed[one.file, one.state]["value"]} for one in found.states],
        "gains": {name: to_dict(one) for name, one in found.gains.items()},
        "rewards": [to_dict(one) for one in found.rewards],
        "proxy_scores": {name: to_dict(one) for name, one in found.proxies.items()},
        "comparisons": [to_dict(one) for one in found.comparisons],
        "continual": {name: {k: to_dict(v) for k, v in of.items()} for name, of in found.continual.items()},
        "remarks": list(found.remarks),
        "refused": list(found.refused),
    }


# ---------------------------------------------------------------------------------------------- helpers


def _percent(estimate: Estimate, sign: str = "") -> str:
    """Format an estimate as "39.68 [35.8, 43.7]": two decimals for the value, as in the files, one for the interval."""
    if math.isnan(estimate.value):
        return "–"
    value = f"{100 * estimate.value:{sign}.2f}"
    if math.isnan(estimate.low):
        return value
    return f"{value} [{100 * estimate.low:{sign}.1f}, {100 * estimate.high:{sign}.1f}]"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _stored(given: float, ours: Estimate) -> str:
    """Format the accuracy that the file itself reports, and mark it if its own verdicts give another one."""
    if math.isnan(given):
        return "–"
    same = math.isnan(ours.value) or abs(given - ours.value) <= ROUNDED
    return f"{100 * given:.2f}" if same else f"{100 * given:.2f} (differs)"
