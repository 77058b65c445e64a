"""Few-shot puzzles as a domain of the loops: a task, a configuration as self-edit, and test-time training.

A self-edit's text becomes a configuration, then one adapter trained on the augmented data, then two attempts per test
input, which are graded. Equal configurations of a task are one candidate (the released code trains and scores each
copy).

Every self-edit has an outcome with a reason. There are two kinds of failure, as in the knowledge domain:

* *Wrong*: a text that is no configuration, or that asks for more than is allowed, is graded 0, since the policy wrote
  it.
* *Not scored* (`UNSCORED`): an adapter that diverged, and a task longer than the model can read, leave no answer to
  grade. They are NaN: never kept, left out of every mean, and counted (as ``dropped`` and in a rate of their own).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from seal_lib.arc import grids, render, vote
from seal_lib.arc.augment import ARC_PROTOCOLS
from seal_lib.arc.examples import BATCH, CAP, MAX_STEPS, question, training_set
from seal_lib.arc.prompts import PuzzlePrompts
from seal_lib.arc.self_edits import REASONS, SCHEMA, UNPARSED, Config, ConfigLimits, Reading, read, with_data
from seal_lib.arc.tasks import Task
from seal_lib.errors import DataError, must_be_one_of
from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.loops.domain import TOO_LONG, Answers, Candidate, Rejected, Results, job_settings
from seal_lib.loops.policy import Policy
from seal_lib.models.tokens import read_ids
from seal_lib.records import UNSCORED, SelfEdit
from seal_lib.runs.work import Count
from seal_lib.seeds import derive_seed
from seal_lib.training.jobs import Example, Job, Result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from seal_lib.training.adapters import Adapter

#: the views in which a test input is asked: the full prompt; every leave-one-out subset; these and turned ones
VIEWS = ("full", "leave_one_out", "all")
#: grader → its grade in [0, 1] of an attempt that was scored. ``grid``: every test output equals one of the two
#: attempts (the paper's); ``pass_1``: the first attempt alone; ``cells``: the share of right cells of the better one
PUZZLE_GRADERS: dict[str, Callable[["Attempt"], float]] = {
    "grid": lambda attempt: float(attempt.pass_2),
    "pass_1": lambda attempt: float(attempt.pass_1),
    "cells": lambda attempt: attempt.cells,
}
#: the settings of protocol ``authors`` besides its data
AUTHORS_TTT = {"targets": "qv-mlp", "schedule": "cosine", "warmup": 11, "views": "all"}


def check_theirs(settings: object, theirs: Mapping[str, object]) -> None:
    """Raise DataError if a setting differs from the authors', so that no other run carries their label."""
    for key, value in theirs.items():
        if (ours := getattr(settings, key)) != value:
            raise DataError(f"{key}: {ours!r} is not the authors' way; use {value!r} or protocol: clean.")


@dataclass(frozen=True)
class TestTimeTraining:
    """Settings for training and scoring one adapter; rate, epochs, loss and data come from the self-edit.

    Attributes:
        rank, alpha, targets: of the adapter.
        batch, warmup, schedule, clip: of the optimisation.
        cap: the maximum number of training examples.
        copies: the number of permuted copies of each example.
        example_tokens: the maximum length of an example; longer ones are left out.
        max_steps, max_rate, max_epochs: a self-edit that asks for more is rejected.
        protocol: ``authors`` is the released code's data (constant translation, second BOS, trained header) and method
            (adapters on q, v and the MLP, cosine schedule, views of every kind); settings that contradict it are
            refused.
        views: see `VIEWS`.
        answer_tokens: the maximum length of an answer.
        slots: the number of adapters trained side by side; 0: as many as the device's memory holds.
        tokens_per_step: bound on the tokens of one training step.
        grader: the grader behind rewards, tables and rows, see `PUZZLE_GRADERS`.

    Raises:
        DataError: a setting is unknown, or contradicts protocol ``authors``.
    """

    __test__ = False  # not a test class, whatever its name says to pytest

    rank: int
    alpha: float
    targets: str
    batch: int = BATCH
    warmup: int = 11
    schedule: str = "cosine"
    clip: float = 1.0
    cap: int = CAP
    copies: int = 1
    example_tokens: int = 8192
    max_steps: int = MAX_STEPS
    max_rate: float = 1.0
    max_epochs: int = MAX_STEPS
    protocol: str = "clean"
    views: str = "all"
    answer_tokens: int = 1900  # a 30 × 30 grid takes about 1830
    slots: int = 16
    tokens_per_step: int = 0  # 0: no bound, or the bank's own for large models
    grader: str = "grid"

    def __post_init__(self):
        for key, allowed in (("protocol", ARC_PROTOCOLS), ("views", VIEWS), ("grader", PUZZLE_GRADERS)):
            must_be_one_of(key, getattr(self, key), allowed)
        if self.protocol == "authors":
            check_theirs(self, AUTHORS_TTT)

    @property
    def limits(self) -> ConfigLimits:
        return ConfigLimits(self.max_rate, self.max_epochs, self.max_steps, self.batch)


@dataclass(frozen=True)
class Attempt:
    """The trial of a candidate: one adapter (or none) on one task.

    Attributes:
        outcome: ``ok``, ``untrained`` (no adapter was asked for), one of `UNSCORED`, or a key of
            `seal_lib.arc.self_edits.REASONS` (rejected).
        attempts: the grids submitted per test input, at most two each.
        cells: the share of right cells.
        read: how many answers were grids, and why the others were not.
    """

    id: str
    unit_id: str
    outcome: str
    reason: str = ""
    config: Config | None = None
    steps: int = 0
    tokens: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan
    attempts: tuple[tuple[grids.Grid, ...], ...] = ()
    pass_1: bool = False
    pass_2: bool = False
    cells: float = 0.0
    read: Mapping[str, int] = field(default_factory=dict)
    grader: str = "grid"
    edit: None = None  # several self-edits may ask for the same attempt

    def graded(self, grader: str) -> float:
        """Return the grade by ``grader`` in [0, 1]: 0 if the self-edit was rejected, NaN if nothing can be graded."""
        return math.nan if self.outcome in UNSCORED else PUZZLE_GRADERS[grader](self)

    @property
    def key(self) -> str:
        """Equal for the self-edits of a task that ask for the same configuration."""
        return self.id

    @property
    def accuracy(self) -> float:
        """The grade by the loop's grader."""
        return self.graded(self.grader)

    @property
    def success(self) -> float:
        """The paper's reward and metric: 1 if, for every test output, an attempt is right, else 0; NaN if unscored."""
        return self.graded("grid")

    @property
    def rejected(self) -> bool:
        return self.outcome in REASONS

    @classmethod
    def from_dict(cls, row: dict) -> "Attempt":
        number = {key: math.nan if row[key] is None else row[key] for key in ("first_loss", "last_loss")}
        config = row["config"] and Config(**{**row["config"], "switches": tuple(row["config"]["switches"])})
        attempts = tuple(tuple(tuple(map(tuple, grid)) for grid in pair) for pair in row["attempts"])
        return cls(**{**row, **number, "config": config, "attempts": attempts})

    def _repr_html_(self) -> str:
        given = "".join(
            f"<td>{''.join(grids.to_html(grid) for grid in pair) or 'no answer'}</td>" for pair in self.attempts
        )
        verdict = "not scored" if self.outcome in UNSCORED else "right" if self.pass_2 else "wrong"
        reason = f": {self.reason}" if self.reason else ""
        return f"<b>{self.id}</b> · {self.outcome}{reason} · {verdict}<table><tr>{given}</tr></table>"


@dataclass(frozen=True)
class PuzzleTrial:
    """A self-edit and the attempt that it led to."""

    edit: SelfEdit
    attempt: Attempt

    @property
    def id(self) -> str:
        return self.edit.id

    @property
    def unit_id(self) -> str:
        return self.edit.unit_id

    @property
    def key(self) -> str:
        return self.attempt.id

    @property
    def accuracy(self) -> float:
        """The grade by the loop's grader; NaN if there was nothing to grade."""
        return self.attempt.accuracy

    def _repr_html_(self) -> str:
        return self.edit._repr_html_() + self.attempt._repr_html_()


@dataclass(frozen=True)
class Puzzles:
    """The puzzle domain (see `seal_lib.loops.domain.Domain`): its settings and its prompts. A unit is a task.

    Attributes:
        max_tries: the maximum number of texts written for one self-edit while they are not JSON; the authors have no
            limit.
        constrained: decoding of self-edits is constrained to the schema, which needs engine vllm.
    """

    inner: TestTimeTraining
    prompts: PuzzlePrompts
    max_tries: int = 1
    constrained: bool = False
    name: str = "arc"

    def __post_init__(self):
        if self.max_tries < 1:
            raise DataError(f"max_tries: {self.max_tries} is not a number of texts; give at least 1.")

    @property
    def grader(self) -> str:
        return self.inner.grader

    @property
    def training(self) -> Mapping[str, Any]:
        bound = self.inner.tokens_per_step or None
        return {"slots": self.inner.slots, "targets": self.inner.targets, "tokens_per_step": bound}

    @property
    def answering(self) -> Sampling:
        return Sampling(self.inner.answer_tokens, stop=(self.prompts.stop,), skip_long=True)

    @property
    def chunk(self) -> int:
        return 4 * (self.inner.slots or 16)

    @property
    def schema(self) -> str | None:
        return json.dumps(SCHEMA) if self.constrained else None

    def prompt(self, unit: Task, tokenizer: "PreTrainedTokenizerBase") -> str:
        return render.self_edit_prompt(unit, tokenizer, self.prompts)

    def read(self, unit: Task, edit: SelfEdit, arm: str, seed: int) -> Candidate | Rejected:
        if edit.unwritten:  # the task is too long, which is not the policy's fault
            return Rejected("task_too_long", edit.unwritten)
        reading = read(edit.text, self.inner.limits)
        if reading.config is None:
            return Rejected(reading.reason, reading.detail, reading.reason in UNPARSED)
        return self.candidate(unit, reading.config, arm, seed)

    def candidate(self, task: Task, config: Config, arm: str, seed: int) -> Candidate:
        """Return the candidate that tries a configuration on a task."""
        return Candidate(f"{task.id}/{_name(config)}", task, config, arm, seed)

    def jobs(self, candidates: Sequence[Candidate], tokenizer: "PreTrainedTokenizerBase") -> list[Job | Rejected]:
        """Return one job per candidate, or its rejection.

        Every configuration of a task starts from the same adapter and sees data in the same order: both depend on seed
        and task alone, so neither the order of candidates nor their neighbours matter.
        """
        sets: dict = {}
        return [self._job(candidate, self.examples(candidate, tokenizer, sets)) for candidate in candidates]

    def examples(self, candidate: Candidate, tokenizer: "PreTrainedTokenizerBase", sets: dict) -> list[Example]:
        """Return the training examples of one candidate; ``sets``: see `training_examples`."""
        settings, task, config = self.inner, candidate.unit, candidate.edit
        return training_examples(task, config, tokenizer, self.prompts, settings, candidate.seed, sets)

    def _job(self, candidate: Candidate, examples: Sequence[Example]) -> Job | Rejected:
        inner, task, config = self.inner, candidate.unit, candidate.edit
        if not examples:  # because of the task's length, whatever the configuration
            return Rejected("task_too_long", "every training example is too long")
        reading = with_data(Reading(config.text(), config), len(examples), inner.limits)
        if reading.config is None:
            return Rejected(reading.reason, reading.detail)
        return Job(
            id=candidate.id,
            examples=examples,
            lr=config.learning_rate,
            epochs=config.epochs,
            seed=derive_seed(candidate.seed, task.id, "test-time training"),
            **job_settings(inner),
        )

    def questions(
        self, candidate: Candidate, adapter: "Adapter | None", tokenizer: "PreTrainedTokenizerBase", positions: int
    ) -> list[Request | None]:
        """Return the views of every test input as requests; None for a view that is too long for the model."""
        room, asked = positions - self.inner.answer_tokens, []
        for _, view in self._views(candidate):
            prompt = render.question_prompt(view.example, tokenizer, self.prompts)
            short = len(tokenizer(prompt)["input_ids"]) <= room
            asked.append(Request(prompt, adapter=adapter) if short else None)
        return asked

    def _views(self, candidate: Candidate) -> list[tuple[int, vote.View]]:
        task = candidate.unit
        return [(t, v) for t in range(len(task.tests)) for v in views_of(task, t, self.inner, candidate.seed)]

    def grade(self, candidates: Sequence[Candidate], results: Results, answers: Answers, count: Count) -> list[Attempt]:
        return [self._attempt(*each) for each in zip(candidates, results, answers, strict=True)]

    def _attempt(
        self, candidate: Candidate, result: Result | Rejected | None, answers: Sequence[Completion | None]
    ) -> Attempt:
        """Vote on the answers and score them; a test input of which no view could be asked leaves nothing to grade."""
        about: dict[str, Any] = {
            "id": candidate.id,
            "unit_id": candidate.unit.id,
            "config": candidate.edit,
            "grader": self.grader,
        }
        if isinstance(result, Rejected):
            outcome = "task_too_long" if result.reason == TOO_LONG else result.reason
            return Attempt(**about, outcome=outcome, reason=result.detail)
        if result is not None:
            about |= result.summary()
            if result.adapter is None:
                return Attempt(**about, outcome=result.outcome, reason=result.reason)
        tried: list[list] = [[] for _ in candidate.unit.tests]
        could, parsed, unasked, cut = set(), [], 0, 0
        for (test, view), answer in zip(self._views(candidate), answers, strict=True):
            if answer is None or answer.finish == "too_long":
                unasked += 1
                continue
            could.add(test)
            if answer.finish == "length":  # cut at the token limit: not an answer, whatever it looks like
                cut += 1
                continue
            parsed.append(grids.parse(answer.text))
            if parsed[-1].grid:
                tried[test].append((view.turn, view.back(parsed[-1].grid)))
        counts = {**grids.count_reasons(parsed), "too_long": unasked, "truncated": cut}
        counts = {reason: n for reason, n in counts.items() if n}
        if len(could) < len(tried):
            reason = "every view of a test input is longer than the model takes"
            return Attempt(**about, outcome="task_too_long", reason=reason, read=counts)
        attempts = tuple(vote.vote(found) for found in tried)
        score = vote.score(candidate.unit, attempts)
        return Attempt(
            **about,
            outcome="untrained" if result is None else "ok",
            attempts=attempts,
            pass_1=score.pass_1,
            pass_2=score.pass_2,
            cells=score.cells,
            read=counts,
        )

    def trial(self, edit: SelfEdit, tried: Attempt | Rejected) -> PuzzleTrial:
        """Return the trial of a self-edit; rejected ones of a task share one attempt key, with the reason of each."""
        if isinstance(tried, Rejected):
            name = f"{edit.unit_id}/rejected"
            tried = Attempt(name, edit.unit_id, tried.reason, tried.detail, grader=self.grader)
        return PuzzleTrial(edit, tried)

    def load(self, row: Mapping[str, Any]) -> Attempt:
        return Attempt.from_dict(row)

    def reward_seeds(self, seed: int, count: int) -> list[int]:
        """Return one seed per reward; the first is the round's own, so that practice and evaluation augment alike."""
        return [derive_seed(seed, "reward", s) if s else seed for s in range(count)]

    def target(self, unit: Task, text: str, policy: Policy) -> tuple[list[int], list[int]]:
        prompt = render.self_edit_prompt(unit, policy.tokenizer, self.prompts)
        completion = render.completion_ids(unit, text, policy.tokenizer, self.prompts)
        return read_ids(prompt, policy.tokenizer), completion


def _name(config: Config) -> str:
    """Return a short, unique name of a configuration: ``basic+size,output,lr=0.01,epochs=4``."""
    switches = "+".join(s.split("_")[1] for s in config.switches) or "none"
    return f"{switches},{config.loss_on},lr={config.learning_rate!r},epochs={config.epochs}"


def training_examples(
    task: Task,
    config: Config,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: PuzzlePrompts,
    settings: TestTimeTraining,
    seed: int,
    sets: dict | None = None,
) -> list:
    """Return the bank's examples for one configuration; ``sets`` caches them, and the tokens of each task's grids."""
    sets = {} if sets is None else sets
    key = (task.id, config.switches)
    if task.id not in sets:  # an example is tokenised once, whatever asks for it
        sets[task.id] = cache(partial(render.ids, tokenizer=tokenizer, prompts=prompts))
    ids = sets[task.id]
    if key not in sets:
        limit, how = settings.example_tokens, {"cap": settings.cap, "copies": settings.copies}
        if _may_exceed(task, limit):
            how["keep"] = lambda example: sum(map(len, ids(example, authors=False))) <= limit
        sets[key] = training_set(task, config.switches, seed, settings.protocol, **how)
    both = (*key, config.loss_on)
    if both not in sets:
        authors = settings.protocol == "authors"
        sets[both] = [render.weighted(*ids(example, authors=authors), config.loss_on) for example in sets[key]]
    return sets[both]


def _may_exceed(task: Task, limit: int) -> bool:
    """Return whether an augmented example might exceed ``limit`` tokens; four per cell is quicker than counting."""
    cells = sum(len(grid) * len(grid[0]) for pair in task.train for grid in (pair.input, pair.output))
    return 16 * cells + 400 > limit


def views_of(task: Task, test: int, settings: TestTimeTraining, seed: int) -> list[vote.View]:
    """Return the views in which one test input is asked."""
    if settings.views == "full":
        return [vote.View(question(task, test))]
    if settings.views == "leave_one_out":
        return [vote.View(example) for example in vote.subsets(task, test)]
    return vote.views(task, test, seed)
