"""The interface between the loops and a task: the `Domain` protocol and the records that both sides exchange.

A *unit* is the passage or the puzzle that a self-edit is about. The loops use its id and nothing else of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.loops.policy import Policy
from seal_lib.records import SelfEdit, Trial
from seal_lib.runs.work import Count
from seal_lib.training.jobs import Job, Result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from seal_lib.training.adapters import Adapter


class Unit(Protocol):
    """A passage or a puzzle."""

    @property
    def id(self) -> str: ...


Units = Sequence[Unit]


@dataclass(frozen=True)
class Candidate:
    """A self-edit, or a baseline without one, that the inner loop tries on a unit.

    ``edit`` is the training data in the domain's own form; with ``trains=False`` the model is used as it is. ``shown``
    puts the unit's text into the prompt of each question. ``seed`` determines the training and every other random
    draw. ``more`` holds further self-edits of the unit that the same adapter is trained on, if the domain supports it.

    Two candidates with the same id are the same candidate: it is trained once, however many self-edits ask for it.
    """

    id: str
    unit: Any
    edit: Any
    arm: str
    seed: int
    trains: bool = True
    shown: bool = False
    more: tuple[Any, ...] = ()


#: reason for rejecting a job with an example that is longer than the model's context
TOO_LONG = "too_long"


@dataclass(frozen=True)
class Rejected:
    """The reason why a self-edit cannot be trained on, a counted outcome; ``unread``: its text could not be parsed."""

    reason: str
    detail: str = ""
    unread: bool = False


#: the result of training each candidate; None: it was not to be trained
Results = Sequence[Result | Rejected | None]
#: the answers to the questions of each candidate; None: the question was too long to be asked
Answers = Sequence[Sequence[Completion | None]]


def job_settings(settings: Any) -> dict[str, Any]:
    """Return the settings of an inner loop (a dataclass) that a `Job` has by the same name."""
    shared = {item.name for item in fields(Job)} & {item.name for item in fields(settings)}
    return {name: getattr(settings, name) for name in shared}


TrialT = TypeVar("TrialT", bound=Trial)


class Domain(Protocol[TrialT]):
    """A task on which a model can adapt itself: it prompts for self-edits, parses them, trains on them and grades.

    ``grader`` names the grader behind each trial's accuracy. ``training`` holds the settings of the adapter bank
    (slots, targets, …), ``answering`` the sampling settings of answers. ``chunk`` is the number of candidates between
    two saves. ``max_tries`` is the largest number of texts sampled for one self-edit until one can be parsed (1: no
    second try). ``schema`` is a JSON schema, as text, to which an engine that supports it constrains self-edits.
    """

    @property
    def name(self) -> str: ...

    @property
    def grader(self) -> str: ...

    @property
    def training(self) -> Mapping[str, Any]: ...

    @property
    def answering(self) -> Sampling: ...

    @property
    def chunk(self) -> int: ...

    @property
    def max_tries(self) -> int: ...

    @property
    def schema(self) -> str | None: ...

    def prompt(self, unit: Any, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the prompt from which the policy writes a self-edit about the unit."""

    def read(self, unit: Any, edit: SelfEdit, arm: str, seed: int) -> Candidate | Rejected:
        """Parse a self-edit into a candidate; return a rejection with its reason if it cannot be trained on."""

    def jobs(self, candidates: Sequence[Candidate], tokenizer: "PreTrainedTokenizerBase") -> list[Job | Rejected]:
        """Return the training job of each candidate's adapter (data and settings), or a rejection."""

    def questions(
        self, candidate: Candidate, adapter: "Adapter | None", tokenizer: "PreTrainedTokenizerBase", positions: int
    ) -> list[Request | None]:
        """Return the requests for the adapted model; None in place of a question that exceeds ``positions`` tokens."""

    def grade(self, candidates: Sequence[Candidate], results: Results, answers: Answers, count: Count) -> list[TrialT]:
        """Grade the answers and return one trial per candidate.

        A candidate that was not trained has the result None; one that failed has no answers. All candidates are
        graded in one call, since a model as grader takes its questions in batches.
        """

    def trial(self, edit: SelfEdit, tried: TrialT | Rejected) -> TrialT:
        """Return the trial of a self-edit, given the trial of its candidate or the reason why it was rejected."""

    def load(self, row: Mapping[str, Any]) -> TrialT:
        """Rebuild a trial from the plain values that a run stored."""

    def reward_seeds(self, seed: int, count: int) -> list[int]:
        """Derive from the round's seed the seeds of the ``count`` trials that a reward averages."""

    def target(self, unit: Any, text: str, policy: Policy) -> tuple[list[int], list[int]]:
        """Return (prompt ids, completion ids), the pair that teaches the policy to write ``text`` about the unit."""


@runtime_checkable
class Rates(Protocol):
    """A domain that can also rate a self-edit without training on it, by a rule or by a model that reads it."""

    def rate(self, candidates: Sequence[Candidate], count: Count) -> list[float]:
        """Return the rating of each candidate in [0, 1]; NaN if there is none, and then the self-edit is never kept."""
