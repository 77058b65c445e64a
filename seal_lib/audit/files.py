"""Reads released result files of any known layout (``layouts.yaml``) as answers with verdicts.

A file without a known layout is refused in one sentence. Nothing is computed from the answers here.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastjsonschema
import numpy as np

from seal_lib import paths
from seal_lib.continual import metrics
from seal_lib.errors import DataError
from seal_lib.runs import yaml_files

SUFFIXES = (".json", ".json.gz")
STATES = ("adapter", "base")  # the model after training, and without it
PREFIX = {"adapter": "adapter", "base": "baseline"}  # prefixes of the authors' keys


@dataclass(frozen=True)
class Said:
    """One answer: its text (None if the file has none) and the verdict on it in [0, 1] (NaN if there is none)."""

    text: str | None = None
    verdict: float = math.nan


@dataclass(frozen=True)
class FileQuestion:
    """A question, its gold answer if the file has it, and what the model said in each of `STATES`."""

    question: str
    gold: str | None
    said: dict[str, Said]


@dataclass(frozen=True)
class FileEdit:
    """One self-edit: the questions asked after each training on it, one tuple per training."""

    runs: tuple[tuple[FileQuestion, ...], ...] = ()
    accuracy: dict[str, float] = field(default_factory=dict)  # by state, where the file has it but no questions
    proxy: float = math.nan  # the self-edit's score by a rubric, or NaN


@dataclass(frozen=True)
class FileUnit:
    """The independent unit of a file: a passage, or a question where passages are not told apart."""

    id: str
    title: str
    context: str
    completions: tuple[FileEdit, ...]

    def asked(self) -> list[FileQuestion]:
        """Return every question of every training."""
        return [asked for completion in self.completions for run in completion.runs for asked in run]


@dataclass(frozen=True)
class AnswerFile:
    """A file of answers."""

    name: str
    path: Path
    kind: str
    unit: str  # what the units are: "passage" or "question"
    units: tuple[FileUnit, ...]
    stored: dict[str, float]  # the accuracies that the file itself reports, by state
    grader: str = ""  # the source of the verdicts; "" if the file does not say
    remarks: tuple[str, ...] = ()  # what a reader must know about the file


@dataclass(frozen=True)
class Matrix:
    """A file of continual edits."""

    name: str
    path: Path
    mean: np.ndarray  # accuracy [K+1, K], NaN where not measured
    sequences: int | None  # number of sequences behind the mean, None if the file does not say
    kind: str = "continual"
    grader: str = ""
    remarks: tuple[str, ...] = ()


def find_files(given: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Return the files to read, each once, and one sentence for each path that cannot be used.

    A given folder stands for all JSON files in it, at any depth. Given files are not checked here but in `read`.
    """
    found: dict[Path, None] = {}
    refused: list[str] = []
    for path in map(Path, given):
        try:
            folder = path.is_dir()
            inside = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES) and p.is_file()) if folder else []
        except (OSError, ValueError) as error:
            refused.append(f"{path} cannot be looked at ({error}); give another path.")
            continue
        if folder and not inside:
            refused.append(f"{path}: no file in this folder ends in {' or '.join(SUFFIXES)}; give another folder.")
        found |= dict.fromkeys(inside if folder else [path])
    return list(found), refused


def read_all(given: Sequence[Path]) -> tuple[list[AnswerFile | Matrix], list[str]]:
    """Return the contents of the files that can be read, and one sentence for each of the others."""
    read_ones: list[AnswerFile | Matrix] = []
    refused: list[str] = []
    for path, name in zip(given, short_names(given), strict=True):
        try:
            read_ones.append(read(path, name))
        except DataError as error:
            refused.append(" ".join(str(error).split()))
    return read_ones, refused


def short_names(given: Sequence[Path]) -> list[str]:
    """Return a short name for each path: without its ending and without the folder that all paths share."""
    whole = [path.absolute() for path in given]
    base = Path(os.path.commonpath([path.parent for path in whole])) if whole else Path()
    plain = [path.relative_to(base).with_name(stem(path)).as_posix() for path in whole]
    return [short if plain.count(short) == 1 else path.name for short, path in zip(plain, whole, strict=True)]


def stem(path: Path) -> str:
    """Return the file's name without .json or .json.gz."""
    return re.sub(r"\.json(\.gz)?$", "", path.name)


def read(path: Path, name: str = "") -> AnswerFile | Matrix:
    """Return the content of one file.

    Raises:
        DataError: it cannot be read or has no known layout; the message names the file, the key and a remedy.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a result file, or a folder of them.")
    content = paths.read_data(path)
    layouts = _layouts()
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {_some(content)}, not results; give {_ways()}.")
    key = next((key for key in layouts if key in content), "")
    if not key:
        has = f"has the keys {', '.join(map(repr, list(content)[:4]))}" if content else "is empty"
        raise DataError(f"{path} {has}, and none of a result file; give {_ways()}.")
    kind, check = layouts[key]
    try:
        check(content)
    except fastjsonschema.JsonSchemaValueException as error:
        what = error.message.removeprefix("data.").removeprefix("data ")
        raise DataError(f"{path}: {what}, but is {_some(error.value)}; mend the file or fetch it again.") from error
    try:
        return _READERS[kind](content, name or stem(path), path, key)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


@functools.cache
def _layouts() -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """Return, for each key that identifies a layout, (kind, check of the content)."""
    file = yaml_files.read(Path(__file__).with_name("layouts.yaml"))
    return {
        key: (about["kind"], fastjsonschema.compile(about["schema"] | {"definitions": file["definitions"]}))
        for key, about in file["kinds"].items()
    }


def _ways() -> str:
    keys = list(_layouts())
    return f"a file with the key {', '.join(map(repr, keys[:-1]))} or {keys[-1]!r}"


def _some(value: object) -> str:
    """Describe a value in a few words, for a message."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


# ---------------------------------------------------------------------------------------------- single passages


def _single_passage(content: dict, name: str, path: Path, key: str) -> AnswerFile:
    rubric_only = content.get("reward_mode") == "proxy"
    units, remarks = [], []
    for number, article in enumerate(content["articles"]):
        completions = tuple(_completion(entry, rubric_only) for entry in article["completions"])
        units.append(FileUnit(f"{number:05d}", article.get("title") or "", article.get("context") or "", completions))
    every = [completion for unit in units for completion in unit.completions]
    questions, accuracies = any(unit.asked() for unit in units), any(c.accuracy for c in every)
    if not questions and not accuracies:
        if all(math.isnan(c.proxy) for c in every):
            raise DataError(
                "no completion has questions, an accuracy or a score by a rubric; give a file with results."
            )
        remarks.append("scores by a rubric only, nothing was trained: no accuracy (the zeros in the file are none)")
    elif not questions:
        remarks.append("no questions: accuracies of whole self-edits are taken as the file gives them")
    declared = content.get("n_articles")
    if declared is not None and declared != len(units):
        remarks.append(f"n_articles says {declared}, but there are {len(units)} passages")
    stored = _stored(content.get("overall"), "mean_accuracy") if questions or accuracies else {}
    return AnswerFile(name, path, "single_passage", "passage", tuple(units), stored, _grader(content), tuple(remarks))


def _completion(entry: dict, rubric_only: bool) -> FileEdit:
    by_rep: dict[int, list[FileQuestion]] = {}
    for item in entry.get("questions") or []:
        said = {s: Said(item.get(f"{PREFIX[s]}_answer"), _number(item.get(f"{PREFIX[s]}_correct"))) for s in STATES}
        by_rep.setdefault(item.get("rep") or 0, []).append(FileQuestion(item["question"], item.get("answer"), said))
    scores = [score for score in _scores(entry.get("proxy_scores")) if not math.isnan(score)]
    # a file whose reward is a rubric has accuracy 0.0 where nothing was measured; only these fields reveal it
    measured = not (by_rep or rubric_only or scores)
    accuracy = _stored(entry.get("stats"), "mean") if measured else {}
    proxy = sum(scores) / len(scores) if scores else math.nan
    return FileEdit(tuple(tuple(by_rep[rep]) for rep in sorted(by_rep)), accuracy, proxy)


def _scores(value: object) -> list[float]:
    """Return the final scores in ``proxy_scores``, which is one object or a list of objects."""
    if isinstance(value, list):
        return [score for item in value for score in _scores(item)]
    return [_number(value.get("final"))] if isinstance(value, dict) else []


# ---------------------------------------------------------------------------------------------- continued pretraining


def _pretraining(content: dict, name: str, path: Path, key: str) -> AnswerFile:
    reply, remarks = content[key], []
    n = len(reply["adapter_correct"])
    columns: dict[str, list[Said]] = {}
    for state in STATES:
        verdicts, texts = reply.get(f"{PREFIX[state]}_correct"), reply.get(f"{PREFIX[state]}_texts")
        if not verdicts:
            remarks.append("the base model was not asked")
            columns[state] = [Said()] * n
            continue
        for what, values in (("correct", verdicts), ("texts", texts)):
            if values and len(values) != n:
                whole = f"{key}.{PREFIX[state]}_{what}"
                raise DataError(
                    f"{whole} has {len(values)} entries for {n} questions; mend the file or fetch it again."
                )
        if not texts:
            remarks.append(f"no texts of the {state} model's answers: blank ones cannot be counted")
        columns[state] = [Said(texts[i] if texts else None, _number(verdict)) for i, verdict in enumerate(verdicts)]
    declared = content.get("eval_questions")
    if isinstance(declared, int) and not isinstance(declared, bool) and declared != n:
        remarks.append(f"eval_questions says {declared}, but {n} were answered")
    units = []
    for i, said in enumerate(zip(*columns.values(), strict=True)):
        asked = FileQuestion("", None, dict(zip(STATES, said, strict=True)))
        units.append(FileUnit(f"{i:05d}", "", "", (FileEdit(((asked,),)),)))
    stored = _stored(content.get("overall") or content.get("metrics") or reply, "accuracy")
    if not reply.get("baseline_correct"):
        stored.pop("base", None)
    return AnswerFile(name, path, "pretraining", "question", tuple(units), stored, _grader(content), tuple(remarks))


# ---------------------------------------------------------------------------------------------- continual edits


def _continual(content: dict, name: str, path: Path, key: str) -> Matrix:
    try:
        mean = metrics.released(content[key])
    except DataError as error:
        raise DataError(f"{key}: {error}") from error
    return Matrix(name, path, mean, content.get("n_sequences"), grader=_grader(content))


def _grader(content: dict) -> str:
    return content["grader"] if isinstance(content.get("grader"), str) else ""


def _stored(given: object, what: str) -> dict[str, float]:
    """Return the accuracies that a file reports under ``adapter_<what>`` and ``baseline_<what>``, by state."""
    found = (
        {state: _number(given.get(f"{PREFIX[state]}_{what}")) for state in STATES} if isinstance(given, dict) else {}
    )
    return {state: value for state, value in found.items() if math.isfinite(value)}


def _number(value: object) -> float:
    """Return a number of the file as a float; NaN for null, for anything else that is no number, and for infinity."""
    if not isinstance(value, bool | int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


_READERS: dict[str, Callable[..., AnswerFile | Matrix]] = {
    "single_passage": _single_passage,
    "pretraining": _pretraining,
    "continual": _continual,
}
