"""The inner loop on a puzzle: self-edit text → configuration → one adapter on the augmented data → a scored attempt.

Configurations of a task, and of several tasks, train side by side through the adapter bank; equal ones are trained
once and shared (the released code trains and scores each copy). Knows the model's tokenizer only through
:mod:`seal_lib.arc.render`; knows nothing of policies or rounds.

Whatever becomes of a self-edit is an outcome with a reason. Two kinds are told apart, as in the knowledge domain:

* *Wrong*: a text that is no configuration, or asks for more than is allowed, is graded 0, since the policy wrote it.
* *Not scored* (:data:`UNSCORED`): an adapter that diverged, and a task longer than the model takes, have no answer to
  grade. They are NaN: never kept, left out of every mean, and counted (``dropped``, and a rate of their own).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from seal_lib.arc import grids, render, training, vote
from seal_lib.arc.augment import PROTOCOLS
from seal_lib.arc.prompts import Prompts
from seal_lib.arc.self_edits import REASONS, Config, Limits, Reading, read, with_data
from seal_lib.arc.tasks import Task
from seal_lib.errors import DataError
from seal_lib.records import to_dict
from seal_lib.runs.work import Work
from seal_lib.seeds import derive_seed

#: how a test input is asked: the full prompt once; every leave-one-out subset; these and the turned ones (arc.md 5.1)
VIEWS = ("full", "leave_one_out", "all")
#: grader → its number in [0, 1] for an attempt that was scored. ``grid``: every test output equals one of the two
#: attempts (the paper's); ``pass_1``: the first attempt alone; ``cells``: share of right cells, best of the two
GRADERS: dict[str, Callable[["Attempt"], float]] = {
    "grid": lambda attempt: float(attempt.pass_2),
    "pass_1": lambda attempt: float(attempt.pass_1),
    "cells": lambda attempt: attempt.cells,
}
#: what protocol ``authors`` stands for besides its data (facts arc.md 4.3, 5.1)
AUTHORS = {"targets": "qv-mlp", "schedule": "cosine", "warmup": 11, "views": "all"}
#: outcomes that leave nothing to grade
UNSCORED = ("diverged", "task_too_long")


@dataclass(frozen=True)
class TestTimeTraining:
    """Settings of one adapter's training and scoring; rate, epochs, loss and data come from the self-edit.

    ``cap``: most training examples; ``copies``: permuted copies of each; ``example_tokens``: longer ones are left out;
    ``max_steps``, ``max_rate``, ``max_epochs``: a self-edit asking for more is rejected; ``views``: see :data:`VIEWS`.
    ``slots``: adapters trained side by side; 0: as many as the device's memory takes. ``grader``: what reward, tables
    and rows go by, see :data:`GRADERS`.

    Protocol ``authors`` is the released code's data (constant translate, second BOS, trained header) and method
    (adapters on q, v and the MLP, cosine, views of every kind); what contradicts it is refused.
    """

    __test__ = False  # not a test class, whatever its name says to pytest

    rank: int
    alpha: float
    targets: str
    batch: int = training.BATCH
    warmup: int = 11
    schedule: str = "cosine"
    clip: float = 1.0
    cap: int = training.CAP
    copies: int = 1
    example_tokens: int = 8192
    max_steps: int = training.MAX_STEPS
    max_rate: float = 1.0
    max_epochs: int = training.MAX_STEPS
    protocol: str = "clean"
    views: str = "all"
    answer_tokens: int = 1900  # a 30 × 30 grid takes about 1830
    slots: int = 16
    tokens_per_step: int = 0  # 0: no bound, or the bank's own for large models
    grader: str = "grid"

    def __post_init__(self):
        for key, allowed in (("protocol", PROTOCOLS), ("views", VIEWS), ("grader", GRADERS)):
            if getattr(self, key) not in allowed:
                raise DataError(f"{key}: {getattr(self, key)!r} is not one of {', '.join(allowed)}.")
        if self.protocol == "authors":
            for key, theirs in AUTHORS.items():
                if getattr(self, key) != theirs:
                    raise DataError(
                        f"{key}: {getattr(self, key)!r} is not the authors' way; use {theirs!r} or protocol: clean."
                    )

    @property
    def limits(self) -> Limits:
        return Limits(self.max_rate, self.max_epochs, self.max_steps, self.batch)


@dataclass(frozen=True)
class Attempt:
    """One adapter (or none) on one task.

    ``outcome``: ``ok``, ``untrained`` (no adapter asked for), one of :data:`UNSCORED`, or a key of
    :data:`seal_lib.arc.self_edits.REASONS` (rejected); ``attempts``: per test input the grids submitted, at most two;
    ``cells``: share of right cells; ``read``: how many answers were grids, and why the others were not.
    """

    id: str
    task_id: str
    outcome: str
    reason: str = ""
    config: Config | None = None
    examples: int = 0
    steps: int = 0
    tokens: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan
    attempts: tuple[tuple[grids.Grid, ...], ...] = ()
    pass_1: bool = False
    pass_2: bool = False
    cells: float = 0.0
    read: Mapping[str, int] = field(default_factory=dict)

    def graded(self, grader: str) -> float:
        """What the grader says, in [0, 1]; 0 if the self-edit was rejected, NaN if there is nothing to grade."""
        return math.nan if self.outcome in UNSCORED else GRADERS[grader](self)

    @property
    def success(self) -> float:
        """The paper's reward and metric: 1 if every test output is right with either attempt, else 0, or NaN."""
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

    def to_dict(self) -> dict:
        return to_dict(self)

    def _repr_html_(self) -> str:
        given = "".join(
            f"<td>{''.join(grids.to_html(grid) for grid in pair) or 'no answer'}</td>" for pair in self.attempts
        )
        verdict = "not scored" if self.outcome in UNSCORED else "right" if self.pass_2 else "wrong"
        told = f": {self.reason}" if self.reason else ""
        return f"<b>{self.id}</b> · {self.outcome}{told} · {verdict}<table><tr>{given}</tr></table>"


@dataclass(frozen=True)
class Candidate:
    """A configuration to be tried on a task (None: the model as it is)."""

    id: str
    task: Task
    config: Config | None


def candidates_of(readings: Sequence[tuple[Task, Reading]]) -> tuple[list[Candidate], list[str]]:
    """Distinct (task, configuration) pairs, and for each reading the id of its candidate (``""``: rejected)."""
    found: dict[tuple[str, Config], Candidate] = {}
    names = []
    for task, reading in readings:
        if reading.config is None:
            names.append("")
            continue
        key = (task.id, reading.config)
        if key not in found:
            found[key] = Candidate(f"{task.id}/{_name(reading.config)}", task, reading.config)
        names.append(found[key].id)
    return list(found.values()), names


def _name(config: Config) -> str:
    """A short, unique name of a configuration: ``basic+size,output,lr=0.01,epochs=4``."""
    switches = "+".join(s.split("_")[1] for s in config.switches) or "none"
    return f"{switches},{config.loss_on},lr={config.learning_rate!r},epochs={config.epochs}"


def training_examples(task: Task, config: Config, tokenizer, prompts: Prompts, settings: TestTimeTraining, seed: int,
                      sets: dict | None = None) -> list:  # fmt: skip
    """What the bank trains on for one configuration. ``sets`` keeps what was built for the same task and switches."""
    sets = {} if sets is None else sets
    key = (task.id, config.switches)
    if key not in sets:
        limit = settings.example_tokens
        keep = (lambda e: render.tokens(e, tokenizer, prompts) <= limit) if _may_exceed(task, limit) else _always
        sets[key] = training.training_set(
            task, config.switches, seed, settings.protocol, cap=settings.cap, copies=settings.copies, keep=keep
        )
    both = (*key, config.loss_on)
    if both not in sets:
        sets[both] = [
            render.training_example(example, tokenizer, prompts, config.loss_on, settings.protocol)
            for example in sets[key]
        ]
    return sets[both]


def _may_exceed(task: Task, limit: int) -> bool:
    """Whether some augmented example might be longer than ``limit`` tokens, at four tokens a cell: saves counting."""
    cells = sum(len(grid) * len(grid[0]) for pair in task.train for grid in (pair.input, pair.output))
    return 16 * cells + 400 > limit


def _always(example: training.Example) -> bool:
    return True


def train(model, tokenizer, candidates: Sequence[Candidate], prompts: Prompts, settings: TestTimeTraining,
          seed: int, count: Callable[..., None] | None = None) -> list:  # fmt: skip
    """One adapter per candidate, side by side; what it is not trained for stands in its place as a :class:`Reading`.

    Every configuration of a task starts from the same adapter and sees data in the same order: ``seed`` and the task
    alone decide both, so the order of candidates and their neighbours do not matter. ``count`` is told as
    ``out_of_memory`` how often the bank had to halve itself, if it had to.
    """
    from seal_lib.training.bank import AdapterBank, Job

    sets: dict = {}
    jobs, refused = [], {}
    for candidate in candidates:
        config = candidate.config
        examples = training_examples(candidate.task, config, tokenizer, prompts, settings, seed, sets)
        if not examples:  # of the task's length, whatever the configuration
            refused[candidate.id] = Reading(config.text(), None, "task_too_long", "every training example is too long")
            continue
        reading = with_data(Reading(config.text(), config), len(examples), settings.limits)
        if reading.config is None:
            refused[candidate.id] = reading
            continue
        jobs.append(
            Job(
                id=candidate.id,
                examples=examples,
                lr=config.learning_rate,
                epochs=config.epochs,
                rank=settings.rank,
                alpha=settings.alpha,
                batch=settings.batch,
                seed=derive_seed(seed, candidate.task.id, "test-time training"),
                schedule=settings.schedule,
                warmup=settings.warmup,
                clip=settings.clip,
            )
        )
    trained = {}
    if jobs:
        bound = settings.tokens_per_step or None
        with AdapterBank(model, slots=settings.slots, targets=settings.targets, tokens_per_step=bound) as bank:
            trained = {result.id: result for result in bank.run(jobs)}
            if count is not None and bank.halvings:
                count(out_of_memory=bank.halvings)
    counted = {job.id: len(job.examples) for job in jobs}
    return [(refused.get(c.id) or trained[c.id], counted.get(c.id, 0)) for c in candidates]


def views_of(task: Task, test: int, settings: TestTimeTraining, seed: int) -> list[vote.View]:
    """How one test input is asked."""
    if settings.views == "full":
        return [vote.View(training.question(task, test))]
    if settings.views == "leave_one_out":
        return [vote.View(example) for example in vote.subsets(task, test)]
    return vote.views(task, test, seed)


def answer_all(generator, tokenizer, tasks: Sequence[Task], adapters: Sequence, prompts: Prompts,
               settings: TestTimeTraining, seed: int) -> list[tuple]:  # fmt: skip
    """(attempts per test input, counts of what became of the answers) for each task with its adapter (None: none).

    A view too long for the model is not asked and counted as ``too_long``. A test input of which no view could be asked
    has None for its attempts.
    """
    from seal_lib.generation.contract import Request, Sampling

    room = generator.positions - settings.answer_tokens
    asked, requests, long = [], [], [0] * len(tasks)
    for i, task in enumerate(tasks):
        for test in range(len(task.tests)):
            for view in views_of(task, test, settings, seed):
                prompt = render.question_prompt(view.example, tokenizer, prompts)
                if len(tokenizer(prompt)["input_ids"]) > room:
                    long[i] += 1
                    continue
                asked.append((i, test, view))
                requests.append(Request(prompt, adapter=adapters[i]))
    texts = generator.generate(requests, Sampling(settings.answer_tokens, stop=(prompts.stop,)))
    parsed = [grids.parse(completion.text) for (completion,) in texts]
    answers: list[list[list]] = [[[] for _ in task.tests] for task in tasks]
    could = {(i, test) for i, test, _ in asked}
    told: list[list] = [[] for _ in tasks]
    for (i, test, view), found in zip(asked, parsed, strict=True):
        told[i].append(found)
        if found.grid:
            answers[i][test].append((view.turn, view.back(found.grid)))
    out = []
    for i, several in enumerate(answers):
        counts = {key: n for key, n in grids.count_reasons(told[i]).items() if n} | {"too_long": long[i]}
        tried = tuple(vote.vote(found) if (i, test) in could else None for test, found in enumerate(several))
        out.append((tried, {k: n for k, n in counts.items() if n}))
    return out


def run_candidates(model, tokenizer, candidates: Sequence[Candidate], prompts: Prompts, settings: TestTimeTraining,
                   seed: int, generator=None,
                   count: Callable[..., None] | None = None) -> list[Attempt]:  # fmt: skip
    """Train and score every candidate; one with ``config`` None is the model as it is."""
    from seal_lib.generation.hf import HFGenerator

    generator = generator or HFGenerator(model, tokenizer)
    to_train = [c for c in candidates if c.config is not None]
    trained = train(model, tokenizer, to_train, prompts, settings, seed, count)
    done = dict(zip([c.id for c in to_train], trained, strict=True))
    sound = [c for c in candidates if c.config is None or _adapter(done[c.id][0]) is not None]
    adapters = [None if c.config is None else _adapter(done[c.id][0]) for c in sound]
    answers = answer_all(generator, tokenizer, [c.task for c in sound], adapters, prompts, settings, seed)
    answered = {c.id: answer for c, answer in zip(sound, answers, strict=True)}
    return [_attempt(c, *done.get(c.id, (None, 0)), answered.get(c.id)) for c in candidates]


def _adapter(result):
    return getattr(result, "adapter", None)


def _attempt(candidate: Candidate, result, examples: int, answered) -> Attempt:
    about = {"id": candidate.id, "task_id": candidate.task.id, "config": candidate.config, "examples": examples}
    if isinstance(result, Reading):
        return Attempt(**about, outcome=result.reason, reason=result.detail)
    if result is not None:
        about |= {
            "steps": result.steps,
            "tokens": result.tokens,
            "first_loss": result.losses[0] if result.losses else math.nan,
            "last_loss": result.losses[-1] if result.losses else math.nan,
        }
        if result.adapter is None:
            return Attempt(**about, outcome=result.outcome, reason=result.reason)
    attempts, counts = answered
    outcome = "untrained" if result is None else "ok"
    if None in attempts:
        reason = "every view of a test input is longer than the model takes"
        return Attempt(**about, outcome="task_too_long", reason=reason, read=counts)
    score = vote.score(candidate.task, attempts)
    return Attempt(
        **about, outcome=outcome, attempts=attempts, pass_1=score.pass_1, pass_2=score.pass_2, cells=score.cells,
        read=counts,
    )  # fmt: skip


def attempts_of(run, policy, readings: Sequence[tuple[Task, Reading]], prompts: Prompts,
                settings: TestTimeTraining, *, phase: str, seed: int,
                chunk: int | None = None) -> list[Attempt]:  # fmt: skip
    """One attempt per self-edit, recorded under ``phase``; equal configurations of a task are trained once.

    A rejected self-edit is an attempt of its own, with its reason.
    """
    candidates, names = candidates_of(readings)
    found = record(run, policy, candidates, prompts, settings, phase=phase, seed=seed, chunk=chunk)
    made = {attempt.id: attempt for attempt in found}
    return [
        made[name] if name else Attempt(f"{task.id}/rejected", task.id, reading.reason, reading.detail)
        for name, (task, reading) in zip(names, readings, strict=True)
    ]


def record(run, policy, candidates: Sequence[Candidate], prompts: Prompts, settings: TestTimeTraining, *,
           phase: str, seed: int, chunk: int | None = None) -> list[Attempt]:  # fmt: skip
    """Attempts of all candidates, written to the run chunk by chunk."""
    work = Work(partial(_attempts, prompts=prompts, settings=settings, seed=seed), policy, run.count)
    chunk = chunk or 4 * (settings.slots or 16)
    return [Attempt.from_dict(row) for row in run.map(phase, candidates, work, chunk=chunk)]


def _attempts(policy, part: Sequence[Candidate], count, *, prompts: Prompts, settings: TestTimeTraining,
              seed: int) -> list[dict]:  # fmt: skip
    made = run_candidates(
        policy.model, policy.tokenizer, part, prompts, settings, seed, policy.generator(), count=count
    )
    count(trained=sum(a.tokens for a in made), scored=sum(sum(a.read.values()) for a in made))
    return [a.to_dict() for a in made]


def readings_of(texts: Sequence[str], tasks: Sequence[Task], settings: TestTimeTraining) -> list[tuple[Task, Reading]]:
    """Self-edit texts with their tasks, read within the settings' limits."""
    return [(task, read(text, settings.limits)) for text, task in zip(texts, tasks, strict=True)]
