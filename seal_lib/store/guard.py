"""Measure what must not get worse when something new is used: prior questions, reading, and the learned answers.

The set is a file of (title, question, answer) and, for reading, a context. The shipped set for the suite's own small
models asks facts of their world; the one for real models asks general knowledge in our own words. Tasks of
lm-evaluation-harness can be named in addition (`seal_lib.store.harness`). A limit that is exceeded is the reason for a
refusal.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from seal_lib import paths
from seal_lib.errors import DataError, ParameterError
from seal_lib.grading import graders
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.world import known_questions
from seal_lib.loops import inner
from seal_lib.loops.domain import Candidate
from seal_lib.loops.policy import Policy
from seal_lib.records import Answer, Passage, Question
from seal_lib.store.harness import Tasks
from seal_lib.store.schema import Asked
from seal_lib.store.texts import has_texts
from seal_lib.training.jobs import Result

if TYPE_CHECKING:
    from seal_lib.training.adapters import Adapter

#: kind of question in a guard's set → its description
SETS = {"prior": "known before, asked without any text", "reading": "asked with a text in view"}
#: what a guard measures before and after → its description; each has a limit
GUARDED = {
    "prior": "prior questions",
    "reading": "questions about a text in view",
    "general": "tasks of lm-evaluation-harness",
    "learned": "questions about what was learned",
}


@dataclass(frozen=True)
class Limits:
    """The largest loss allowed of each of `GUARDED`, as a share of right answers.

    ``file``: the guard's question set, asked before and after. ``tasks``: those behind ``general``.
    """

    file: str
    prior: float = 0.1
    reading: float = 0.1
    learned: float = 0.1
    general: float = 0.1
    tasks: Tasks = field(default_factory=Tasks)

    def __post_init__(self):
        for name in GUARDED:
            if not 0 <= getattr(self, name) <= 1:
                raise ParameterError(f"most_lost {name}: {getattr(self, name)} is not between 0 and 1.")

    @property
    def told(self) -> dict[str, Any]:
        return asdict(self) | {"file": Path(self.file).name}


def questions_of(file: str) -> dict[str, list[Passage]]:
    """Return kind of question (`SETS`) → passages of a guard's set, each with its questions.

    Raises:
        DataError: the file is not there, a row is incomplete, or a kind has no question.
    """
    rows = paths.read_data(paths.given(file))
    found: dict[str, list[Passage]] = {kind: [] for kind in SETS}
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        if not has_texts(row, "title", "question", "answer"):
            raise DataError(f"{file}: row {number} is not whole; it has the texts title, question, answer.")
        context = row.get("context") or ""
        asked = (Question(row["question"], row["answer"]),)
        kind = "reading" if context else "prior"
        found[kind].append(Passage(f"{kind}-{number:03d}", row["title"], context, asked))
    if empty := [kind for kind, passages in found.items() if not passages]:
        raise DataError(f"{file} has no question of kind {empty[0]} ({SETS[empty[0]]}); add some.")
    return found


def prior_questions(file: str | None, count: int, seed: int) -> list[Question]:
    """Return ``count`` questions on what a model knew before, from a guard's set or, without a file, the made world."""
    if file is None:
        return [question for _, question in known_questions(count, seed)]
    return [question for passage in questions_of(file)["prior"] for question in passage.questions][:count]


def before_after(
    policy: Policy, domain: Knowledge, limits: Limits, adapters: Iterable["Adapter"]
) -> list[dict[str, float]]:
    """Return what the guard measures before and with each adapter (``prior_before``, …; with tasks ``general_…``).

    The base is asked once. Adapters are taken one after the other, so that few need to be in memory.
    """
    sets = questions_of(limits.file)

    def right(adapter: "Adapter | None", when: str) -> dict[str, float]:
        asked = {kind: _asked(policy, domain, several, adapter, kind == "reading") for kind, several in sets.items()}
        found = {f"{kind}_{when}": share(rights) for kind, rights in asked.items()}
        return found | ({f"general_{when}": limits.tasks.score(policy, adapter)} if limits.tasks.guard_tasks else {})

    before: dict[str, float] = {}
    found = []
    for adapter in adapters:
        before = before or right(None, "before")
        found.append(before | right(adapter, "after"))
    return found


def asked_again(
    policy: Policy, domain: Knowledge, units: Sequence[tuple[Passage, Sequence[Asked]]], adapter: "Adapter | None"
) -> list[float]:
    """Return the share of each passage's questions that are right with an adapter; NaN where none has a gold answer."""
    passages = [
        replace(passage, questions=tuple(Question(q.question, q.gold) for q in asked if not graders.is_blank(q.gold)))
        for passage, asked in units
    ]
    return _asked(policy, domain, passages, adapter)


def answers_of(
    policy: Policy, domain: Knowledge, passages: Sequence[Passage], adapter: "Adapter | None", shown: bool = False
) -> list[tuple[Answer, ...]]:
    """Return graded answers to each passage's questions, by the base or with an adapter, all asked together."""
    trains = adapter is not None
    candidates = [Candidate(p.id, p, None, "frozen", 0, trains=trains, shown=shown) for p in passages]
    results = {c.id: Result(c.id, adapter, [], 0, 0) for c in candidates} if trains else {}
    return [trial.answers for trial in inner.ask_candidates(policy, candidates, results, domain=domain)]


def _asked(
    policy: Policy, domain: Knowledge, passages: Sequence[Passage], adapter: "Adapter | None", shown: bool = False
) -> list[float]:
    """Return the share of each passage's `answers_of` that is right; NaN without a grade."""
    answers = answers_of(policy, domain, passages, adapter, shown)
    return [share([answer.grades[domain.grader] for answer in own]) for own in answers]


def share(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN without any."""
    there = [value for value in values if not math.isnan(value)]
    return fmean(there) if there else math.nan


def broken(report: Mapping[str, Any], limits: Limits, was: str, now: str) -> str:
    """Return in words which limit a report exceeds, "" if none; ``was``, ``now``: its keys for the learned answers."""
    for kind, told in GUARDED.items():
        before, after = (was, now) if kind == "learned" else (f"{kind}_before", f"{kind}_after")
        most = getattr(limits, kind)
        if before in report and report[before] - report[after] > most:
            return f"{told}: {report[after]:.0%} right, {report[before]:.0%} before; at most {most:.0%} may be lost"
    return ""
