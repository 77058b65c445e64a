"""The records that all packages exchange: plain data, to and from JSON, with an HTML view for Jupyter.

Accuracies and rates are fractions in [0, 1].
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

from seal_lib.errors import DataError

#: outcomes of a puzzle that leave nothing to grade
UNSCORED = ("diverged", "task_too_long")
LEFT = "text-align:left"  # Jupyter aligns tables to the right, which suits numbers only


def _escape(text: str) -> str:
    shown = text if len(text) <= 1200 else text[:1200] + f" … ({len(text)} characters)"
    return html.escape(shown).replace("\n", "<br>")


@dataclass(frozen=True)
class Question:
    """A question about a passage and its gold answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Passage:
    """A text with questions about it.

    ``references`` maps a writer's name (``gold``, ``external``, …) to its notes on the passage, ``unwritten`` the name
    of a writer without notes to the reason. ``facts`` holds the (name, attribute, value) triples behind a passage of
    the made world; it is empty for real text.
    """

    id: str
    title: str
    text: str
    questions: tuple[Question, ...]
    references: dict[str, str] = field(default_factory=dict)
    facts: tuple[tuple[str, str, str], ...] = ()
    unwritten: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, row: dict) -> "Passage":
        questions = tuple(Question(q["question"], q["answer"]) for q in row["questions"])
        facts = tuple(tuple(fact) for fact in row.get("facts", ()))
        named = {key: dict(row.get(key, {})) for key in ("references", "unwritten")}
        return cls(row["id"], row["title"], row["text"], questions, facts=facts, **named)

    def _repr_html_(self) -> str:
        asked = "".join(f"<li>{_escape(q.question)} — <b>{_escape(q.answer)}</b></li>" for q in self.questions)
        head = f"<h4>{_escape(self.title)} <small>{_escape(self.id)}</small></h4>"
        return f"{head}<p>{_escape(self.text)}</p><ul>{asked}</ul>"


@dataclass(frozen=True)
class SelfEdit:
    """A text about a passage or puzzle that a model is trained on; it is data and never executed.

    ``source`` names the writer (a policy or a reference). ``tokens`` is the number of generated tokens, 0 if no model
    wrote it. ``tries`` is the number of texts sampled until one could be parsed. ``unwritten`` is the reason why there
    is no text, or "".
    """

    id: str
    unit_id: str
    text: str
    source: str
    seed: int = 0
    tokens: int = 0
    tries: int = 1
    unwritten: str = ""

    @classmethod
    def from_dict(cls, row: dict) -> "SelfEdit":
        return cls(**{item.name: row[item.name] for item in fields(cls)})

    def _repr_html_(self) -> str:
        writer = _escape(self.source.replace("_", " "))
        return (
            f"<div style='border-left:3px solid #888;padding-left:.8em;{LEFT}'><small>{writer}"
            f"{f' · {self.tokens} tokens' if self.tokens else ''}</small><br>{_escape(self.text)}</div>"
        )


@dataclass(frozen=True)
class Answer:
    """One graded answer.

    ``grades`` maps each grader to its grade in [0, 1], NaN if the grader gave none. ``blank`` is True if the answer has
    no letter or digit.
    """

    question: str
    gold: str
    text: str
    grades: dict[str, float]
    blank: bool

    @classmethod
    def from_dict(cls, row: dict) -> "Answer":
        grades = {grader: math.nan if value is None else value for grader, value in row["grades"].items()}
        return cls(row["question"], row["gold"], row["text"], grades, row["blank"])


class Trial(Protocol):
    """The domain's record of a candidate or self-edit after the inner loop.

    Self-edits that describe the same training have the same ``key``. ``accuracy`` is that of the loop's grader, in
    [0, 1]; NaN if there is nothing to grade.
    """

    @property
    def id(self) -> str: ...

    @property
    def unit_id(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def edit(self) -> SelfEdit | None: ...

    @property
    def accuracy(self) -> float: ...


@dataclass(frozen=True)
class PassageTrial:
    """One pass of the inner loop: an adapter trained on one self-edit (or none) and its graded answers.

    ``grader`` is the loop's grader, a key of `seal_lib.grading.graders.GRADERS`; `accuracy` is its mean grade.
    ``outcome`` is ``ok``, ``empty_edit``, ``diverged``, ``too_long``, ``unwritten`` or ``untried``; the last four have
    no accuracy. ``left_out`` counts what was not trained on, asked or graded, by kind: lines and thoughts that protocol
    ``clean`` drops, tokens beyond ``max_length`` (``cut_tokens``), questions that do not fit the model's context
    (``questions``), answers without a verdict of the grader (``verdicts``).
    """

    id: str
    unit_id: str
    arm: str
    edit: SelfEdit | None
    seed: int
    answers: tuple[Answer, ...]
    grader: str
    outcome: str = "ok"
    reason: str = ""
    steps: int = 0
    tokens: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The trial's id, since every self-edit is trained separately."""
        return self.id

    @property
    def accuracy(self) -> float:
        """The mean grade by the trial's own grader; NaN if there are no grades."""
        return self.mean(self.grader)

    def scores(self, what: str) -> list[float]:
        """Return the grade of each answer by grader ``what``; for ``blank``, 1.0 for a blank answer and 0.0 otherwise.

        Answers without a grade are left out. A failed trial has no scores. DataError if ``what`` did not grade it.
        """
        if self.outcome not in ("ok", "empty_edit"):
            return []
        if what == "blank":
            return [float(answer.blank) for answer in self.answers]
        if any(what not in answer.grades for answer in self.answers):
            raise DataError(f"grader: the answers of trial {self.id} were not graded by {what!r}.")
        return [grade for answer in self.answers if not math.isnan(grade := answer.grades[what])]

    def mean(self, what: str) -> float:
        """Return the mean of `scores`; NaN if there are none."""
        return mean_of(self.scores(what))

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "PassageTrial":
        given = {item.name: row[item.name] for item in fields(cls)}
        given |= {key: math.nan for key in ("first_loss", "last_loss") if row[key] is None}
        given["edit"] = SelfEdit.from_dict(row["edit"]) if row["edit"] else None
        return cls(**given | {"answers": tuple(Answer.from_dict(answer) for answer in row["answers"])})

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='{LEFT}'>{_escape(a.question)}</td>"
            f"<td style='{LEFT};color:{_colour(a.grades[self.grader])}'>{_escape(a.text) or '<i>blank</i>'}</td>"
            f"<td style='{LEFT}'>{_escape(a.gold)}</td></tr>"
            for a in self.answers
        )
        counted = self.outcome in ("ok", "empty_edit")
        right = "not graded" if math.isnan(self.accuracy) else f"{self.accuracy:.0%} right ({_escape(self.grader)})"
        state = right if counted else _escape(f"{self.outcome}: {self.reason}")
        edit = self.edit._repr_html_() if self.edit else "<small>no self-edit</small>"
        head = "".join(f"<th style='{LEFT}'>{name}</th>" for name in ("question", "answer", "gold"))
        return (
            f"<h4>{_escape(self.unit_id)} · {state} · {self.steps} steps</h4>{edit}"  # what shows it knows the arm
            f"<table><tr>{head}</tr>{rows}</table>"
        )


def _colour(grade: float) -> str:
    """Return green for a right answer, red for a wrong one, amber in between, grey if there is no grade.

    Each colour has a contrast of 4 to a white and to a dark page, about the most that one colour can have to both.
    """
    if math.isnan(grade):
        return "#888888"
    return "#1e9150" if grade == 1 else "#e04a3f" if grade == 0 else "#ae7712"


@dataclass(frozen=True)
class Round:
    """One ReST^EM round: every candidate with its reward, and the ids of those kept for the M-step.

    ``reward`` names the reward (a key of `loops.rewards.REWARDS`, or one of its ``RATED``). ``frozen`` is the accuracy
    of the policy without an adapter by passage, if the reward compares with it. ``by_seed`` holds the rewards of each
    candidate under every reward seed; ``rewards`` are their means.
    """

    index: int
    candidates: tuple[Trial, ...]
    rewards: tuple[float, ...]  # one per candidate
    kept: tuple[str, ...]  # trial ids
    sft_loss: float = math.nan
    reward: str = "accuracy"
    frozen: dict[str, float] = field(default_factory=dict)
    by_seed: tuple[tuple[float, ...], ...] = ()

    @property
    def repeats(self) -> dict[str, list[tuple[float, ...]]]:
        """The rewards of each unit's distinct self-edits under every reward seed: unit → [self-edits, seeds]."""
        groups: dict[str, dict[str, tuple[float, ...]]] = {trial.unit_id: {} for trial in self.candidates}
        seeds = max(map(len, self.by_seed), default=0)
        for trial, rewards in zip(self.candidates, self.by_seed, strict=False):
            if len(rewards) == seeds:  # a self-edit that was only rated has no trials
                groups[trial.unit_id][trial.key] = rewards
        return {unit: list(rewards.values()) for unit, rewards in groups.items() if rewards}

    @property
    def grouped(self) -> dict[str, list[float]]:
        """The rewards of each unit's distinct self-edits (by their trials' ``key``), without failed ones (NaN)."""
        groups: dict[str, dict[str, float]] = {trial.unit_id: {} for trial in self.candidates}
        for trial, reward in zip(self.candidates, self.rewards, strict=True):
            if not math.isnan(reward):
                groups[trial.unit_id][trial.key] = reward
        return {unit: list(rewards.values()) for unit, rewards in groups.items()}

    @property
    def tied(self) -> dict[str, bool]:
        """For each passage with a reward, whether several of its self-edits share the best reward."""
        return {passage: g.count(max(g)) > 1 for passage, g in self.grouped.items() if g}

    @property
    def zero(self) -> dict[str, bool]:
        """For each passage with a reward, whether its best reward is 0."""
        return {passage: max(g) == 0 for passage, g in self.grouped.items() if g}

    @property
    def tied_share(self) -> float:
        """The share of `tied` passages; NaN without rewards."""
        return mean_of(self.tied.values())

    @property
    def zero_share(self) -> float:
        """The share of `zero` passages; NaN without rewards."""
        return mean_of(self.zero.values())

    @property
    def undecided_share(self) -> float:
        """The share of passages that are tied or zero, so that choosing the best self-edit is arbitrary."""
        return mean_of(tied or zero for tied, zero in zip(self.tied.values(), self.zero.values(), strict=True))

    def _repr_html_(self) -> str:
        worth = [-math.inf if math.isnan(reward) else reward for reward in self.rewards]
        order = sorted(range(len(self.candidates)), key=lambda i: -worth[i])
        picks = [i for i in order if self.candidates[i].id in set(self.kept)][:2] + order[-1:]
        edits = {i: edit._repr_html_() if (edit := self.candidates[i].edit) else "" for i in picks}
        shown = "".join(f"<td style='{LEFT}'>reward {self.rewards[i]:.2f}{html}</td>" for i, html in edits.items())
        many = f"{len(self.candidates)} self-edits, mean reward {mean_of(self.rewards):.2f}, kept {len(self.kept)}"
        shares = f"for {self.tied_share:.0%} of the passages, 0 for {self.zero_share:.0%}"
        return (
            f"<h4>Round {self.index}: {many}</h4><p>best reward shared by several self-edits {shares}</p>"
            f"<table><tr style='vertical-align:top'>{shown}</tr></table>"
        )


def mean_of(values: Iterable[float]) -> float:
    """Return the mean of the numbers, leaving out NaN; NaN if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def to_dict(record: Any) -> Any:
    """Convert a record to plain JSON values; numbers that are not finite become None."""
    if isinstance(record, float):
        return record if math.isfinite(record) else None
    if is_dataclass(record):
        return {item.name: to_dict(getattr(record, item.name)) for item in fields(record)}
    if isinstance(record, dict):
        return {str(key): to_dict(item) for key, item in record.items()}
    if isinstance(record, list | tuple):
        return [to_dict(item) for item in record]
    return record


def values_of(trials: Sequence[Any] | Mapping[Any, Sequence[Any]], value: Callable[..., Any]) -> dict[Any, dict]:
    """Return loop → unit → the values of its trials or self-edits; a mere sequence of them is loop 0."""
    found: dict[Any, dict[str, list]] = {}
    for loop, several in trials.items() if isinstance(trials, Mapping) else [(0, trials)]:
        units = found.setdefault(loop, {})
        for trial in several:
            units.setdefault(trial.unit_id, []).append(value(trial))
    return found


def by_passage(trials: Iterable[PassageTrial], what: str) -> dict[str, float]:
    """Return the mean score of each passage over its trials, by the grader ``what`` (or ``blank``).

    Intervals are computed over these means. A trial that cannot be scored is left out; a passage without scored trials
    is NaN.
    """
    means = values_of(list(trials), lambda trial: trial.mean(what))[0]
    return {passage: mean_of(several) for passage, several in means.items()}
