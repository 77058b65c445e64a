"""The records everything exchanges: plain data, JSON in and out, and a face in Jupyter.

They know nothing of models, files or statistics. Accuracy and rates are fractions in [0, 1].
"""

import html
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from seal_lib.errors import DataError

#: What can become of a trial. Only the first two carry an accuracy.
OUTCOMES = ("ok", "empty_edit", "diverged")

LEFT = "text-align:left"  # Jupyter's own tables align right, which is for numbers


def _escape(text: str, limit: int = 1200) -> str:
    shown = text if len(text) <= limit else text[:limit] + f" … ({len(text)} characters)"
    return html.escape(shown).replace("\n", "<br>")


@dataclass(frozen=True)
class Question:
    """A question about a passage and its gold answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Passage:
    """A text with questions on it.

    ``references`` are notes somebody else wrote about it, by writer (``gold``, ``external``, …); ``facts`` the
    (name, attribute, value) triples behind a passage of a made world, empty for real text.
    """

    id: str
    title: str
    text: str
    questions: tuple[Question, ...]
    references: dict[str, str] = field(default_factory=dict)
    facts: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def from_dict(cls, row: dict) -> "Passage":
        questions = tuple(Question(q["question"], q["answer"]) for q in row["questions"])
        facts = tuple(tuple(fact) for fact in row.get("facts", ()))
        return cls(row["id"], row["title"], row["text"], questions, dict(row.get("references", {})), facts)

    def _repr_html_(self) -> str:
        asked = "".join(f"<li>{_escape(q.question)} — <b>{_escape(q.answer)}</b></li>" for q in self.questions)
        head = f"<h4>{_escape(self.title)} <small>{_escape(self.id)}</small></h4>"
        return f"{head}<p>{_escape(self.text)}</p><ul>{asked}</ul>"


@dataclass(frozen=True)
class SelfEdit:
    """Text a writer produced about a passage, to be trained on. Data only: never executed.

    ``source`` names the writer (a policy or a reference); ``tokens`` is the number generated, 0 if not by a model.
    """

    id: str
    passage_id: str
    text: str
    source: str
    seed: int = 0
    tokens: int = 0

    @classmethod
    def from_dict(cls, row: dict) -> "SelfEdit":
        return cls(**{key: row[key] for key in ("id", "passage_id", "text", "source", "seed", "tokens")})

    def _repr_html_(self) -> str:
        return (
            f"<div style='border-left:3px solid #888;padding-left:.8em;{LEFT}'><small>{_escape(self.source)} · "
            f"{self.tokens} tokens</small><br>{_escape(self.text)}</div>"
        )


@dataclass(frozen=True)
class Answer:
    """One graded answer; ``exact``, ``f1`` and ``contains`` as SQuAD defines them, ``blank`` if it says nothing."""

    question: str
    gold: str
    text: str
    exact: float
    f1: float
    contains: float
    blank: bool


@dataclass(frozen=True)
class Trial:
    """One pass of the inner loop: an adapter trained on one self-edit (or none), questioned without the passage."""

    id: str
    passage_id: str
    arm: str
    edit: SelfEdit | None
    seed: int
    answers: tuple[Answer, ...]
    outcome: str = "ok"
    reason: str = ""
    steps: int = 0
    tokens: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan

    @property
    def accuracy(self) -> float:
        """Share of exact-match answers; NaN when the trial has no answers to count."""
        return self.mean("exact")

    @property
    def blank_rate(self) -> float:
        return self.mean("blank")

    def mean(self, grade: str) -> float:
        """Mean of one grade (``exact``, ``f1``, ``contains``, ``blank``) over the questions; NaN if not answered."""
        if self.outcome not in ("ok", "empty_edit") or not self.answers:
            return math.nan
        return sum(float(getattr(answer, grade)) for answer in self.answers) / len(self.answers)

    @classmethod
    def from_dict(cls, row: dict) -> "Trial":
        number = {key: math.nan if row[key] is None else row[key] for key in ("first_loss", "last_loss")}
        edit = SelfEdit.from_dict(row["edit"]) if row["edit"] else None
        answers = tuple(Answer(**answer) for answer in row["answers"])
        plain = {key: row[key] for key in ("id", "passage_id", "arm", "seed", "outcome", "reason", "steps", "tokens")}
        return cls(edit=edit, answers=answers, **plain, **number)

    def _repr_html_(self) -> str:
        colour = {True: "#0a7d3c", False: "#b3261e"}
        rows = "".join(
            f"<tr><td style='{LEFT}'>{_escape(a.question)}</td>"
            f"<td style='{LEFT};color:{colour[a.exact == 1]}'>{_escape(a.text) or '<i>blank</i>'}</td>"
            f"<td style='{LEFT}'>{_escape(a.gold)}</td></tr>"
            for a in self.answers
        )
        counted = self.outcome in ("ok", "empty_edit")
        state = f"{self.accuracy:.0%} right" if counted else _escape(f"{self.outcome}: {self.reason}")
        edit = self.edit._repr_html_() if self.edit else "<small>no self-edit</small>"
        return (
            f"<h4>{_escape(self.arm)} · {_escape(self.passage_id)} · {state} · {self.steps} steps</h4>{edit}"
            f"<table><tr><th>question</th><th>answer</th><th>gold</th></tr>{rows}</table>"
        )


@dataclass(frozen=True)
class Round:
    """One ReST^EM round: every candidate with its reward, and which were kept for the M-step."""

    index: int
    candidates: tuple[Trial, ...]
    rewards: tuple[float, ...]  # one per candidate
    kept: tuple[str, ...]  # trial ids
    sft_loss: float = math.nan

    def _repr_html_(self) -> str:
        finite = [reward for reward in self.rewards if not math.isnan(reward)]
        worth = [-math.inf if math.isnan(reward) else reward for reward in self.rewards]
        order = sorted(range(len(self.candidates)), key=lambda i: -worth[i])
        picks = [i for i in order if self.candidates[i].id in set(self.kept)][:2] + order[-1:]
        shown = "".join(
            f"<td style='text-align:left'>reward {self.rewards[i]:.2f}{self.candidates[i].edit._repr_html_()}</td>"
            for i in picks
        )
        mean = sum(finite) / len(finite) if finite else math.nan
        return (
            f"<h4>Round {self.index}: {len(self.candidates)} self-edits, mean reward {mean:.2f}, kept {len(self.kept)}"
            f"</h4><table><tr style='vertical-align:top'>{shown}</tr></table>"
        )


def to_dict(record) -> dict:
    """A record as plain JSON values (NaN becomes None)."""
    return json.loads(json.dumps(_finite(asdict(record))))


def _finite(value):
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_jsonl(path: Path) -> list[dict]:
    """Rows of a JSONL file; a broken line is named."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{path}:{number} is not a JSON object ({error.msg}); mend or remove the line."
                    ) from error
    return rows


def by_passage(trials: Iterable[Trial], grade: str = "exact") -> dict[str, float]:
    """Mean grade per passage over its trials: the unit every interval is computed over. NaN trials stay NaN."""
    groups: dict[str, list[float]] = {}
    for trial in trials:
        groups.setdefault(trial.passage_id, []).append(trial.mean(grade))
    return {passage: sum(values) / len(values) for passage, values in groups.items()}
