"""The interface between the loops and a task: the `Domain` and the records that they exchange.

A *unit* is what one self-edit is about: a passage, a puzzle. The loops know its id and nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.loops.policy import Policy
from seal_lib.records import SelfEdit, Trial
from seal_lib.training.jobs import Job, Result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from seal_lib.training.adapters import Adapter


class Unit(Protocol):
    """A passage, a puzzle."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True)
class Candidate:
    """One thing that the inner loop tries on a unit.

    ``edit``: what to train on, in the domain's own form; ``trains=False``: the model as it is. ``shown``: the unit's
    text is in view when the model is asked. ``seed``: of the training, and of whatever else is drawn. ``more``: further
    self-edits of the unit that the same adapter is trained on, where the domain can do that.
    Candidates with one id are one: it is trained once, however many self-edits ask for it.
    """

    id: str
    unit: Any
    edit: Any
    arm: str
    seed: int
    trains: bool = True
    shown: bool = False
    more: tuple[Any, ...] = ()


#: why a job is rejected whose examples the model has too few positions for
TOO_LONG = "too_long"


@dataclass(frozen=True)
class Rejected:
    """Why a self-edit cannot be trained on; a counted outcome. ``unread``: its text could not be parsed."""

    reason: str
    detail: str = ""
    unread: bool = False


TrialT = TypeVar("TrialT", bound=Trial)


class Domain(Protocol[TrialT]):
    """A task on which a model can adapt itself: how self-edits are asked for, read, trained on and graded.

    ``grader``: the grader behind the trials' accuracy. ``training``: settings of the adapter bank (slots, targets, …).
    ``answering``: how answers are decoded. ``chunk``: candidates between two saves. ``max_tries``: most texts written
    for one self-edit while they cannot be parsed (1: never again). ``schema``: a JSON schema, as text, to which the
    engine constrains self-edits, where it can.
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
        """What the policy reads before it writes a self-edit about the unit."""

    def read(self, unit: Any, edit: SelfEdit, arm: str, seed: int) -> Candidate | Rejected:
        """A written self-edit as something to try; a text that cannot be is rejected with its reason."""

    def jobs(self, candidates: Sequence[Candidate], tokenizer: "PreTrainedTokenizerBase") -> list[Job | Rejected]:
        """Training data and settings of each candidate's adapter."""

    def questions(
        self, candidate: Candidate, adapter: "Adapter | None", tokenizer: "PreTrainedTokenizerBase", positions: int
    ) -> list[Request | None]:
        """What the adapted model is asked; None: a question longer than ``positions`` tokens allow."""

    def grade(
        self, candidates: Sequence[Candidate], results: Sequence[Result | Rejected | None],
        answers: Sequence[Sequence[Completion | None]], count: "Count",
    ) -> list[TrialT]:  # fmt: skip
        """The record of each candidate: its training (None: not trained), its graded answers (none if it failed). All
        at once, since a grader may be somebody who is asked many things at a time."""

    def trial(self, edit: SelfEdit, tried: TrialT | Rejected) -> TrialT:
        """The record of a self-edit, from the trial of the candidate it asked for or the reason why it was rejected."""

    def load(self, row: Mapping[str, Any]) -> TrialT:
        """A record of `grade` from the plain values that a run kept of it."""

    def reward_seeds(self, seed: int, count: int) -> list[int]:
        """Seeds of the ``count`` trials whose mean is a reward, from the round's."""

    def target(self, unit: Any, text: str, policy: Policy) -> tuple[list[int], list[int]]:
        """(prompt ids, completion ids) with which the policy learns to write ``text`` about the unit."""


@runtime_checkable
class Rates(Protocol):
    """A domain that can also say what a self-edit is worth without trying it: by a rule, or by one who reads it."""

    def rate(self, candidates: Sequence[Candidate], count: "Count") -> list[float]:
        """The worth of each in [0, 1]; NaN where it could not be said, which is never kept."""


#: takes counters: tokens trained, questions asked, …
Count = Callable[..., None]


def uncounted(**counts: float) -> None:
    """Ignore the counters; the default where no run keeps them."""
