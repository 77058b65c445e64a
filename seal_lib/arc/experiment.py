"""ReST^EM over training configurations: one whole loop per seed. What it leaves in ``results.csv`` is in `tables`.

A policy reads a puzzle's demonstrations and writes a configuration; it is trained on those that led to a right answer.
The arms share one set of evaluation tasks.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from seal_lib import records
from seal_lib.arc import render
from seal_lib.arc.inner_loop import Attempt, Candidate, TestTimeTraining, attempts_of, record
from seal_lib.arc.prompts import Prompts
from seal_lib.arc.self_edits import SCHEMA, UNPARSED, Config, read
from seal_lib.arc.tasks import Task
from seal_lib.errors import DataError
from seal_lib.loops.policy import Policy
from seal_lib.loops.restem import OuterLoop, filter_round, finetune_policy, warn_if_blind, write_self_edits
from seal_lib.records import SelfEdit
from seal_lib.seeds import derive_seed

#: what protocol ``authors`` stands for in the outer loop; its inner loop checks itself
AUTHORS = {"sft_schedule": "cosine", "sft_targets": "qv-mlp"}


@dataclass(frozen=True)
class Trial:
    """A self-edit and what became of it. ``tries``: how many texts were written until one was JSON."""

    edit: SelfEdit
    attempt: Attempt
    grader: str = "grid"
    tries: int = 1

    @property
    def id(self) -> str:
        return self.edit.id

    @property
    def passage_id(self) -> str:
        """The task, by the name that rewards and filters know."""
        return self.edit.passage_id

    @property
    def accuracy(self) -> float:
        """What the loop's grader says, NaN if there was nothing to grade."""
        return self.attempt.graded(self.grader)

    def _repr_html_(self) -> str:
        return self.edit._repr_html_() + self.attempt._repr_html_()


@dataclass(frozen=True)
class Round(records.Round):
    """One round: every self-edit of the practice tasks with its reward, and which were kept for the M-step."""

    @property
    def grouped(self) -> dict[str, list[float]]:
        """Rewards of each task's distinct configurations, texts that are none counting as one."""
        groups: dict[str, dict[str, float]] = {trial.passage_id: {} for trial in self.candidates}
        for trial, reward in zip(self.candidates, self.rewards, strict=True):
            if not math.isnan(reward):
                groups[trial.passage_id][trial.attempt.id] = reward
        return {task: list(rewards.values()) for task, rewards in groups.items()}


@dataclass(frozen=True)
class Loop:
    """What one whole loop left behind: its rounds, and the trials on the evaluation tasks by arm. ``resample``: texts
    that are no JSON were written again."""

    seed: int
    rounds: tuple[Round, ...]
    evaluated: dict[str, list[Trial]]
    resample: bool = False


@dataclass(frozen=True)
class FewShot:
    """The experiment's fixed parts: tasks, wording, inner and outer loop; ``edits`` self-edits per evaluation task.

    ``constrained``: self-edits are held to the schema while they are written, which needs engine vllm. ``resample``: a
    text that is no JSON is written again, as the authors do, ``max_tries`` texts at most (theirs has no bound).
    """

    practice: Sequence[Task]
    held_out: Sequence[Task]
    prompts: Prompts
    inner: TestTimeTraining
    outer: OuterLoop
    edits: int = 5
    constrained: bool = False
    resample: bool = False
    max_tries: int = 20

    def __post_init__(self):
        for tasks in (self.practice, self.held_out):
            if len({t.id for t in tasks}) < len(tasks):
                raise DataError(f"a task stands twice among {len(tasks)}; list each id once.")
        double = {t.id for t in self.practice} & {t.id for t in self.held_out}
        if double:
            raise DataError(f"task {sorted(double)[0]!r} is both practised and evaluated; take it out of one list.")
        if self.max_tries < 1:
            raise DataError(f"max_tries: {self.max_tries} is not a number of texts; give at least 1.")
        if self.inner.protocol == "authors":
            self._check_authors()

    def _check_authors(self) -> None:
        """Refuse what is not the authors' way, so that no row carries their label without it."""
        if not self.prompts.chat:
            raise DataError(f"prompts: {self.prompts.name!r} is no chat set, as protocol authors needs; use chat.")
        if not self.resample:
            raise DataError("resample: false is not the authors' way; use resample: true or protocol: clean.")
        for key, theirs in AUTHORS.items():
            if getattr(self.outer, key) != theirs:
                raise DataError(
                    f"{key}: {getattr(self.outer, key)!r} is not the authors' way; use {theirs!r} or protocol: clean."
                )

    def write(self, run, policy: Policy, tasks: Sequence[Task], *, phase: str, seed: int,
              samples: int) -> tuple[list[SelfEdit], list[int]]:  # fmt: skip
        """``samples`` self-edits per task, task by task, and how many texts were written for each."""
        known = {task.id: task for task in tasks}
        schema = json.dumps(SCHEMA) if self.constrained else None
        edits = write_self_edits(
            run, policy, tasks, _Writing(policy.tokenizer, self.prompts), self.outer, phase=phase, seed=seed,
            samples=samples, schema=schema,
        )  # fmt: skip
        tries = [1] * len(edits)
        for attempt in range(2, self.max_tries + 1 if self.resample else 2):
            again = [i for i, edit in enumerate(edits) if read(edit.text).reason in UNPARSED]
            if not again:
                break
            redrawn = write_self_edits(
                run, policy, [_Again(edits[i].id, known[edits[i].passage_id]) for i in again],
                _Writing(policy.tokenizer, self.prompts), self.outer, phase=f"{phase}/again_{attempt}",
                seed=derive_seed(seed, "again", attempt), samples=1, schema=schema,
            )  # fmt: skip
            for i, new in zip(again, redrawn, strict=True):
                edits[i] = replace(edits[i], text=new.text, tokens=edits[i].tokens + new.tokens)
                tries[i] = attempt
        return edits, tries

    def score(self, run, policy: Policy, edits: Sequence[SelfEdit], tries: Sequence[int], *, phase: str,
              seed: int) -> list[Trial]:  # fmt: skip
        """Each self-edit's adapter trained on the policy's own model and tried on its task."""
        known = {task.id: task for task in (*self.practice, *self.held_out)}
        readings = [(known[edit.passage_id], read(edit.text, self.inner.limits)) for edit in edits]
        attempts = attempts_of(run, policy, readings, self.prompts, self.inner, phase=phase, seed=seed)
        return [Trial(e, a, self.inner.grader, n) for e, a, n in zip(edits, attempts, tries, strict=True)]

    def evaluate(self, run, policy: Policy, arm: str, *, seed: int) -> list[Trial]:
        """The policy's own self-edits on the held-out tasks."""
        phase = f"seed_{seed}/evaluate/{arm}"
        edits, tries = self.write(run, policy, self.held_out, phase=f"{phase}/write", seed=seed, samples=self.edits)
        return self.score(run, policy, edits, tries, phase=phase, seed=seed)

    def fixed(self, run, policy: Policy, arm: str, config: Config | None, *, seed: int = 0) -> list[Attempt]:
        """The same configuration on every held-out task; None: no training, answers in context."""
        candidates = [Candidate(f"{task.id}/{arm}", task, config) for task in self.held_out]
        phase = f"evaluate/{arm}"
        return record(run, policy, candidates, self.prompts, self.inner, phase=phase, seed=seed)

    def practise(self, run, policy: Policy, *, phase: str,
                 seed: int) -> tuple[list[list[Trial]], dict[str, float]]:  # fmt: skip
        """E-step: the self-edits on the practice tasks, each with the ``reward_seeds`` trials of its reward; and what
        the policy is graded without an adapter, by task, where the reward compares with it."""
        outer = self.outer
        edits, tries = self.write(
            run, policy, self.practice, phase=f"{phase}/sample", seed=seed, samples=outer.samples
        )  # fmt: skip
        repeats = [
            self.score(run, policy, edits, tries, phase=f"{phase}/score" + (f"_{s}" if s else ""),
                       seed=derive_seed(seed, "reward", s) if s else seed)
            for s in range(outer.reward_seeds)
        ]  # fmt: skip
        frozen = {}
        if outer.reward == "improvement":
            plain = [Candidate(f"{task.id}/frozen", task, None) for task in self.practice]
            found = record(run, policy, plain, self.prompts, self.inner, phase=f"{phase}/frozen", seed=seed)
            frozen = {attempt.task_id: attempt.graded(self.inner.grader) for attempt in found}
        return [list(several) for several in zip(*repeats, strict=True)], frozen

    def learn(self, run, policy: Policy, kept: Sequence[SelfEdit], *, name: str, seed: int) -> tuple[Policy, float]:
        """M-step on the kept self-edits, equal ones as often as kept (as the authors): (next policy, loss)."""
        known, tokenizer = {task.id: task for task in self.practice}, policy.tokenizer
        pairs = []
        for edit in kept:
            task = known[edit.passage_id]
            prompt = render.self_edit_prompt(task, tokenizer, self.prompts)
            completion = render.completion_ids(task, edit.text, tokenizer, self.prompts)
            pairs.append((render.prompt_ids(prompt, tokenizer), completion))
        return finetune_policy(run, policy, pairs, self.outer, name=name, seed=seed)


@dataclass(frozen=True)
class _Again:
    """A self-edit that is written once more, under its own id."""

    id: str
    task: Task


@dataclass(frozen=True)
class _Writing:
    """Gives :func:`seal_lib.loops.restem.write_self_edits` the prompt of a task."""

    tokenizer: object
    prompts: Prompts

    def write(self, unit: Task | _Again) -> str:
        task = unit.task if isinstance(unit, _Again) else unit
        return render.self_edit_prompt(task, self.tokenizer, self.prompts)


def few_shot_loop(run, base: Policy, study: FewShot, *, rounds: int, seed: int, random_control: bool) -> Loop:
    """Run the loop once: evaluate, then ``rounds`` times practise, learn and evaluate.

    The control learns once from as many self-edits of the first round, chosen without looking at success.
    """
    evaluated = {"own_untrained": study.evaluate(run, base, "own_untrained", seed=seed)}
    policy, history = base, []
    for index in range(1, rounds + 1):
        arm, draw = f"seal_round_{index}", derive_seed(seed, index)
        trials, frozen = study.practise(run, policy, phase=f"seed_{seed}/{arm}", seed=draw)
        edits = [several[0].edit for several in trials]
        if index == 1 and random_control:
            _, kept = filter_round(trials, edits, frozen, replace(study.outer, filter="random_as_many"), draw)
            blind, _ = study.learn(run, base, kept, name=f"seed_{seed}/random_config_sft", seed=draw)
            evaluated["random_config_sft"] = study.evaluate(run, blind, "random_config_sft", seed=seed)
        rewards, kept = filter_round(trials, edits, frozen, study.outer, draw)
        policy, loss = study.learn(run, policy, kept, name=f"seed_{seed}/{arm}", seed=draw)
        first, ids = tuple(several[0] for several in trials), tuple(edit.id for edit in kept)
        history.append(Round(index, first, tuple(rewards), ids, loss, study.outer.reward, frozen))
        warn_if_blind(history[-1], study.outer, study.inner)
        evaluated[arm] = study.evaluate(run, policy, arm, seed=seed)
    return Loop(seed, tuple(history), evaluated, study.resample)
