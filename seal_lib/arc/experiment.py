"""ReST^EM over training configurations: one whole loop per seed, and its lines in ``results.csv``.

A policy reads a puzzle's demonstrations and writes a configuration; it is trained on those that led to a right answer.
The arms share one set of evaluation tasks. A *task* with all its self-edits is the unit of every interval, crossed with
whole loops (seeds) where there are several. Self-edits of a task that ask for the same configuration share one training
and are one observation, so whatever counts configurations counts them once; only success is, as in the paper, a mean
over the self-edits that the policy writes. What could not be scored is NaN, as in the knowledge domain
(:mod:`seal_lib.arc.inner_loop` says what that is): left out, and counted as dropped and in a rate of its own.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from seal_lib import records, stats
from seal_lib.arc import render
from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.inner_loop import GRADERS, Attempt, Candidate, TestTimeTraining, attempts_of, record
from seal_lib.arc.prompts import Prompts
from seal_lib.arc.self_edits import SCHEMA, UNPARSED, Config, read
from seal_lib.arc.tasks import Task
from seal_lib.arms import difference_arm
from seal_lib.errors import DataError
from seal_lib.records import SelfEdit
from seal_lib.restem import OuterLoop, Policy, filter_round, finetune_policy, warn_if_blind, write_self_edits
from seal_lib.seeds import derive_seed

EXPERIMENT = "arc/few_shot"
#: what a self-edit decides, and how a value is written in a metric's name
CHOICES: dict[str, Callable[[Config], object]] = {
    **{switch: lambda config, switch=switch: switch in config.switches for switch in SWITCHES},
    "strategy": lambda config: config.loss_on,
    "learning_rate": lambda config: config.learning_rate,
    "num_train_epochs": lambda config: config.epochs,
}
#: pairs of choices whose success is reported cell by cell: the heat maps
MAPS = {
    ("learning_rate", "num_train_epochs"): lambda c: (c.learning_rate, c.epochs),
    ("switches", "strategy"): lambda c: ("+".join(s.split("_")[1] for s in c.switches) or "none", c.loss_on),
}
#: what protocol ``authors`` stands for in the outer loop (facts arc.md 4.1, 6); its inner loop checks itself
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
    """Gives :func:`seal_lib.restem.write_self_edits` the prompt of a task."""

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


# ----------------------------------------------------------------------------------------------- the table

#: loop → attempts on the same tasks; an arm that no loop changes has one
ByLoop = Mapping[object, Sequence[Attempt]]


def by_task(attempts: Iterable[Attempt], value: Callable[[Attempt], float]) -> dict[str, list[float]]:
    """Values of each task's attempts."""
    groups: dict[str, list[float]] = {}
    for attempt in attempts:
        groups.setdefault(attempt.task_id, []).append(value(attempt))
    return groups


def rate(attempts: ByLoop, value: Callable[[Attempt], float], constant: bool = False) -> stats.Estimate:
    """Mean over tasks, each the mean of its self-edits, with the interval over tasks and loops; NaN is dropped."""
    values = {loop: by_task(several, value) for loop, several in attempts.items()}
    return stats.mean_over_loops(values, stats.SHARE, "task", constant=constant)


def share(attempts: ByLoop, counted: Callable[[Attempt], float]) -> stats.Estimate:
    """Share among distinct (loop, task, configuration)s, each once, with the interval over tasks and loops."""
    pairs: dict[object, dict[str, tuple[float, float]]] = {}
    dropped = 0
    for loop, several in attempts.items():
        pairs[loop] = {}
        for task, values in by_task(distinct(several), counted).items():
            known = [value for value in values if not math.isnan(value)]
            dropped += len(values) - len(known)
            if known:
                pairs[loop][task] = (sum(known), len(known))
    return replace(stats.ratio_over_loops(pairs, "task"), dropped=dropped)


def distinct(attempts: Iterable[Attempt]) -> list[Attempt]:
    """The attempts of *one loop* that had a configuration, equal ones of a task once: they share one training."""
    return list({a.id: a for a in attempts if a.config is not None}.values())


def few_shot_rows(fixed: Mapping[str, Sequence[Attempt]], loops: Sequence[Loop], *, protocol: str, model: str,
                  grader: str) -> list[dict]:  # fmt: skip
    """Lines of ``arc/few_shot`` (all loops), ``arc/few_shot/seed_N``, ``…/tasks`` and ``…/choices``."""
    label = {"protocol": protocol, "model": model}
    rounds = len(loops[0].rounds)
    pooled: dict[str, dict[object, Sequence[Attempt]]] = {arm: {0: attempts} for arm, attempts in fixed.items()}
    for loop in loops:
        for arm, trials in loop.evaluated.items():
            pooled.setdefault(arm, {})[loop.seed] = [trial.attempt for trial in trials]
    rows = _arm_rows(EXPERIMENT, pooled, rounds, grader, label) + round_rows(EXPERIMENT, loops, label)
    for loop in loops:
        where = f"{EXPERIMENT}/seed_{loop.seed}"
        alone = {arm: {0: attempts} for arm, attempts in fixed.items()}
        alone |= {arm: {loop.seed: pooled[arm][loop.seed]} for arm in loop.evaluated}
        rows += _arm_rows(where, alone, rounds, grader, label) + round_rows(where, [loop], label)
    for arm, attempts in pooled.items():
        rows += task_rows(arm, attempts, grader, label)
    rows += choice_rows(pooled, label)
    rows += map_rows(loops, grader, label)
    return rows


def comparisons(rounds: int) -> list[tuple[str, str]]:
    """The paired differences worth reporting."""
    names = [f"seal_round_{i}" for i in range(1, rounds + 1)]
    pairs = [(name, "own_untrained") for name in names] + list(zip(names[1:], names, strict=False))
    pairs += [("random_config_sft", "own_untrained")] + [(name, "random_config_sft") for name in names]
    return pairs + [("own_untrained", "icl"), *((name, "oracle") for name in names)]


def _arm_rows(experiment: str, arms: Mapping[str, ByLoop], rounds: int, grader: str, label: dict) -> list[dict]:
    """Success by the loop's grader and by the others, failures, and paired differences between arms (one Holm family).

    Rates of failures are over all self-edits; what cannot happen in an arm is 0 by construction.
    """
    rows = []
    for arm, attempts in arms.items():
        graded = {"success_rate": grader} | {name: name for name in GRADERS if name != grader}
        for metric, by in graded.items():
            found = rate(attempts, lambda a, by=by: a.graded(by))
            rows.append(found.row(experiment, arm, metric, grader=by, **label))
        everything = [attempt for several in attempts.values() for attempt in several]
        asked = all(attempt.outcome == "untrained" for attempt in everything)  # nobody wrote or trained anything
        failures: dict[str, tuple[Callable[[Attempt], float], bool]] = {
            "rejected_rate": (lambda a: float(a.rejected), asked),
            "diverged_rate": (lambda a: float(a.outcome == "diverged"), asked),
            "too_long_rate": (lambda a: float(a.outcome == "task_too_long"), False),
            "no_answer_rate": (lambda a: float(a.outcome in ("ok", "untrained") and not all(a.attempts)), False),
        }
        for metric, (value, constant) in failures.items():
            rows.append(rate(attempts, value, constant).row(experiment, arm, metric, **label))
        for outcome in sorted({attempt.outcome for attempt in everything}):
            found = rate(attempts, lambda a, outcome=outcome: float(a.outcome == outcome))
            rows.append(found.row(experiment, arm, f"outcome:{outcome}", **label))
    values = {
        arm: {loop: by_task(several, lambda a: a.graded(grader)) for loop, several in attempts.items()}
        for arm, attempts in arms.items()
    }
    for (a, b), found in stats.compare(values, comparisons(rounds), unit="task").items():
        rows.append(found.row(experiment, difference_arm(a, b), "difference", grader=grader, **label))
    return rows


def round_rows(experiment: str, loops: Sequence[Loop], label: dict) -> list[dict]:
    """Of each round: for how many practice tasks the best reward is shared or 0, and how many texts a self-edit took
    until it was JSON (1 unless they are written again)."""
    rows = []
    for index in range(len(loops[0].rounds)):
        history = {loop.seed: loop.rounds[index] for loop in loops}
        for metric in ("tied", "zero"):
            flags = {seed: {t: float(f) for t, f in getattr(r, metric).items()} for seed, r in history.items()}
            found = stats.mean_over_loops(flags, stats.SHARE, "task")
            rows.append(found.row(experiment, f"seal_round_{index + 1}", f"{metric}_share", **label))
    for arm in loops[0].evaluated:
        tries: dict[object, dict[str, list[float]]] = {}
        for loop in loops:
            for trial in loop.evaluated[arm]:
                tries.setdefault(loop.seed, {}).setdefault(trial.passage_id, []).append(float(trial.tries))
        found = stats.mean_over_loops(tries, stats.ANY, "task", constant=not loops[0].resample)
        rows.append(found.row(experiment, arm, "texts_per_self_edit", **label))
    return rows


def task_rows(arm: str, attempts: ByLoop, grader: str, label: dict) -> list[dict]:
    """Success of each task by itself: the mean over its self-edits, which are not independent, so the interval is over
    its distinct configurations (texts that are none are one each) and loops."""
    tasks: dict[str, dict[object, dict[str, tuple[float, float]]]] = {}
    for loop, several in attempts.items():
        for number, attempt in enumerate(several):
            pairs = tasks.setdefault(attempt.task_id, {}).setdefault(loop, {})
            name = f"text {number}" if attempt.config is None else attempt.id
            right, count = pairs.get(name, (0.0, 0.0))
            pairs[name] = (right + attempt.graded(grader), count + 1.0)
    return [
        stats.ratio_over_loops(loops, "configuration").row(
            f"{EXPERIMENT}/tasks", arm, f"success_rate:{task}", grader=grader, **label
        )
        for task, loops in tasks.items()
    ]


def choice_rows(arms: Mapping[str, ByLoop], label: dict) -> list[dict]:
    """What each policy asks for: the share of its distinct configurations with each value of each choice.

    A value that some arm asked for and another did not is a measured 0 of the other.
    """
    written = {arm: attempts for arm, attempts in arms.items() if arm not in ("icl", "oracle")}
    written = {arm: a for arm, a in written.items() if any(distinct(several) for several in a.values())}
    configs = [x.config for attempts in written.values() for several in attempts.values() for x in distinct(several)]
    rows = []
    for arm, attempts in written.items():
        for choice, of in CHOICES.items():
            for value in sorted(set(map(of, configs))):
                found = share(attempts, lambda a, of=of, value=value: float(of(a.config) == value))
                rows.append(found.row(f"{EXPERIMENT}/choices", arm, f"share:{choice}={value}", **label))
    return rows


def map_rows(loops: Sequence[Loop], grader: str, label: dict) -> list[dict]:
    """Success by configuration over everything the *untrained* policy wrote, on practice and held-out tasks, equal
    configurations of a task once; ``n`` counts the tasks that a cell was tried on."""
    written = {
        loop.seed: [trial.attempt for trial in (*loop.rounds[0].candidates, *loop.evaluated["own_untrained"])]
        for loop in loops
    }
    rows = []
    for (down, across), of in MAPS.items():
        cells: dict[tuple, dict[object, list[Attempt]]] = {}
        for loop, attempts in written.items():
            for attempt in distinct(attempts):
                cells.setdefault(of(attempt.config), {}).setdefault(loop, []).append(attempt)
        for (a, b), tried in sorted(cells.items()):
            metric = f"success:{down}={a}|{across}={b}"
            found = share(tried, lambda x: x.graded(grader))
            rows.append(found.row(f"{EXPERIMENT}/choices", "own_untrained", metric, grader=grader, **label))
    return rows


def tally(rounds: Sequence[Round]) -> list[dict]:
    """Per round: self-edits written, texts that took, distinct trainings and how many were right, self-edits kept, and
    the shares of tasks whose best reward is 0 or shared."""
    return [
        {
            "round": r.index,
            "self-edits": len(r.candidates),
            "texts": sum(t.tries for t in r.candidates),
            "distinct trainings": len(trained := [a for a in distinct(t.attempt for t in r.candidates) if a.steps]),
            "of them right": sum(a.success == 1 for a in trained),
            "kept": len(r.kept),
            "best is 0": r.zero_share,
            "best is shared": r.tied_share,
            "sft_loss": r.sft_loss if math.isfinite(r.sft_loss) else None,
        }
        for r in rounds
    ]
