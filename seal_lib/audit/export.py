"""Writes our own finished runs in the layouts of the authors' files, so that tools for those can read ours too.

It reads run folders of `11_single_passage` and `13_continual_edits`. The only numbers it computes are the mean
accuracies that such a file reports about itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seal_lib import paths
from seal_lib.audit.files import PREFIX
from seal_lib.continual.plots import matrix_of
from seal_lib.continual.tables import MATRIX
from seal_lib.knowledge.data import load_passages
from seal_lib.records import Answer, Passage, PassageTrial, by_passage
from seal_lib.report.results import read_run
from seal_lib.runs import manifest


def own_runs(folder: Path, singles: Path, edits: Path, arms: Sequence[str]) -> list[Path]:
    """Write the files of both runs, in one folder per kind, and return their paths."""
    return single_passages(singles, folder / "single_passage", arms) + continual_edits(edits, folder / "continual")


def single_passages(run: Path, folder: Path, arms: Sequence[str]) -> list[Path]:
    """Write one file per arm of a finished run of `11_single_passage`, with its loops as completions.

    Arms that the run lacks are left out.
    """
    used = manifest.read(run)["parameters"]
    passages = load_passages(used["passages"], used["n_passages"], used["passages_seed"])
    by_arm: dict[str, list[PassageTrial]] = {}
    for row in manifest.rows(run):
        if found := re.fullmatch(r"seed_\d+/evaluate/(\w+)", row["phase"]):
            by_arm.setdefault(found[1], []).append(PassageTrial.from_dict(row))
    frozen = {trial.unit_id: trial for trial in by_arm.get("frozen", [])}
    return [
        paths.write_json(folder / f"{arm}.json", as_released(passages, by_arm[arm], frozen, used["grader"]))
        for arm in arms
        if arm in by_arm
    ]


def as_released(
    passages: Sequence[Passage], trials: Sequence[PassageTrial], frozen: Mapping[str, PassageTrial], grader: str
) -> dict:
    """Return the trials of an arm in the layout of query_server: one completion per trial, each trained once.

    Args:
        frozen: passage id → the trial of the model without training; a passage without one has no base answers.
        grader: the grader whose grades become verdicts.
    """
    grouped: dict[str, list[PassageTrial]] = {}
    for trial in trials:
        grouped.setdefault(trial.unit_id, []).append(trial)
    articles = [
        {
            "title": passage.title,
            "context": passage.text,
            "prompt": "",
            "completions": [_completion(trial, frozen.get(passage.id), grader) for trial in grouped[passage.id]],
        }
        for passage in passages
        if passage.id in grouped
    ]
    sides = {"adapter": trials, "base": [frozen[name] for name in grouped if name in frozen]}
    overall = {f"{PREFIX[side]}_mean_accuracy": _mean(by_passage(of, grader).values()) for side, of in sides.items()}
    return {"overall": overall, "grader": grader, "n_articles": len(articles), "eval_times": 1, "articles": articles}


def _completion(trial: PassageTrial, base: PassageTrial | None, grader: str) -> dict:
    """Return one trial as a completion; a trial that could not be scored has no questions and therefore no accuracy."""
    scored = trial.outcome in ("ok", "empty_edit")
    before = base.answers if base and base.outcome == "ok" else ()
    questions = []
    for number, answer in enumerate(trial.answers if scored else ()):
        item: dict[str, Any] = {"rep": 0, "question": answer.question, "answer": answer.gold}
        item |= {"adapter_answer": answer.text, "adapter_correct": _verdict(answer, grader)}
        if number < len(before) and before[number].question == answer.question:
            item |= {"baseline_answer": before[number].text, "baseline_correct": _verdict(before[number], grader)}
        questions.append(item)
    return {"text": trial.edit.text if trial.edit else "", "questions": questions}


def _verdict(answer: Answer, grader: str) -> bool | float | None:
    grade = answer.grades[grader]
    return None if math.isnan(grade) else bool(grade) if grade in (0, 1) else grade


def _mean(values: Any) -> float | None:
    finite = [value for value in values if not math.isnan(value)]
    return sum(finite) / len(finite) if finite else None


def continual_edits(run: Path, folder: Path) -> list[Path]:
    """Write one file per update rule of a finished run of `13_continual_edits`, with its mean matrix.

    Cells of passages not edited yet are 0, as the authors write them.
    """
    rows = read_run(run)
    rows = rows[rows["experiment"] == MATRIX]
    written = []
    for arm, cells in rows.groupby("arm", sort=False):
        mean = matrix_of(cells, arm)
        r, i = np.indices(mean.shape)
        mean[(r > 0) & (i >= r)] = 0.0
        matrix = [[None if math.isnan(value) else value for value in row] for row in mean.tolist()]
        content = {"mean_over_sequences": matrix, "n_sequences": int(cells["n"].max()), "n_datapoints": mean.shape[1]}
        content |= {"grader": cells["grader"].iloc[0], "base_model": cells["model"].iloc[0]}
        written.append(paths.write_json(folder / f"{arm}.json", content))
    return written
