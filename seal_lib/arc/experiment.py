"""ReST^EM over training configurations: one whole loop per seed, and its lines in ``results.csv``.

A policy reads a puzzle's demonstrations and writes a configuration; it is trained on those that led to a right answer.
The arms share one set of evaluation tasks; a *task* with all its self-edits and seeds is the unit of every interval.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from seal_lib import stats
from seal_lib.arc import render
from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.inner_loop import Attempt, Candidate, TestTimeTraining, attempts_of, record
from seal_lib.arc.prompts import Prompts
from seal_lib.arc.self_edits import SCHEMA, Config, read
from seal_lib.arc.tasks import Task
from seal_lib.arms import difference_arm
from seal_lib.errors import DataError
from seal_lib.records import SelfEdit
from seal_lib.restem import FILTERS, OuterLoop, Policy, finetune_policy, write_self_edits
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


@dataclass(frozen=True)
class Trial:
    """A self-edit and what became of it."""

    edit: SelfEdit
    attempt: Attempt

    @property
    def success(self) -> float:
        return self.attempt.success

    def _repr_html_(self) -> str:
        return self.edit._repr_html_() + self.attempt._repr_html_()


@dataclass(frozen=True)
class Round:
    """One round: every self-edit of the practice tasks with its outcome, and which were kept for the M-step."""

    index: int
    trials: tuple[Trial, ...]
    kept: tuple[str, ...]
    sft_loss: float


@dataclass(frozen=True)
class Loop:
    """What one whole loop left behind: its rounds, and the trials on the evaluation tasks by arm."""

    seed: int
    rounds: tuple[Round, ...]
    evaluated: dict[str, list[Trial]]


@dataclass(frozen=True)
class FewShot:
    """The experiment's fixed parts: tasks, wording, inner and outer loop; ``edits`` self-edits per evaluation task.

    ``constrained``: self-edits are held to the schema while they are written, which needs engine vllm.
    """

    practice: Sequence[Task]
    held_out: Sequence[Task]
    prompts: Prompts
    inner: TestTimeTraining
    outer: OuterLoop
    edits: int = 5
    constrained: bool = False

    def __post_init__(self):
        for tasks in (self.practice, self.held_out):
            if len({t.id for t in tasks}) < len(tasks):
                raise DataError(f"a task stands twice among {len(tasks)}; list each id once.")
        double = {t.id for t in self.practice} & {t.id for t in self.held_out}
        if double:
            raise DataError(f"task {sorted(double)[0]!r} is both practised and evaluated; take it out of one list.")

    def write(self, run, policy: Policy, tasks: Sequence[Task], *, phase: str, seed: int,
              samples: int) -> list[SelfEdit]:  # fmt: skip
        """``samples`` self-edits per task, task by task."""
        writing = _Writing(policy.tokenizer, self.prompts)
        return write_self_edits(
            run, policy, tasks, writing, self.outer, phase=phase, seed=seed, samples=samples,
            schema=json.dumps(SCHEMA) if self.constrained else None,
        )  # fmt: skip

    def score(self, run, policy: Policy, edits: Sequence[SelfEdit], *, phase: str, seed: int) -> list[Trial]:
        """Each self-edit's adapter trained on the policy's own model and tried on its task."""
        known = {task.id: task for task in (*self.practice, *self.held_out)}
        readings = [(known[edit.passage_id], read(edit.text, self.inner.limits)) for edit in edits]
        attempts = attempts_of(run, policy, readings, self.prompts, self.inner, phase=phase, seed=seed)
        return [Trial(edit, attempt) for edit, attempt in zip(edits, attempts, strict=True)]

    def evaluate(self, run, policy: Policy, arm: str, *, seed: int) -> list[Trial]:
        """The policy's own self-edits on the held-out tasks."""
        phase = f"seed_{seed}/evaluate/{arm}"
        edits = self.write(run, policy, self.held_out, phase=f"{phase}/write", seed=seed, samples=self.edits)
        return self.score(run, policy, edits, phase=phase, seed=seed)

    def fixed(self, run, policy: Policy, arm: str, config: Config | None, *, seed: int = 0) -> list[Attempt]:
        """The same configuration on every held-out task; None: no training, answers in context."""
        candidates = [Candidate(f"{task.id}/{arm}", task, config) for task in self.held_out]
        phase = f"evaluate/{arm}"
        return record(run, policy, candidates, self.prompts, self.inner, phase=phase, seed=seed)

    def practise(self, run, policy: Policy, *, phase: str, seed: int) -> list[Trial]:
        """E-step: self-edits on the practice tasks and their outcomes."""
        edits = self.write(
            run, policy, self.practice, phase=f"{phase}/sample", seed=seed, samples=self.outer.samples
        )  # fmt: skip
        return self.score(run, policy, edits, phase=f"{phase}/score", seed=seed)

    def learn(self, run, policy: Policy, trials: Sequence[Trial], *, name: str, seed: int,
              filter: str | None = None) -> tuple[Policy, list[str], float]:  # fmt: skip
        """Filter and M-step: (next policy, ids of the kept self-edits, last SFT loss)."""
        kept = kept_trials(trials, replace(self.outer, filter=filter or self.outer.filter), seed)
        known, tokenizer = {task.id: task for task in self.practice}, policy.tokenizer
        pairs = []
        for trial in kept:
            task = known[trial.edit.passage_id]
            prompt = render.self_edit_prompt(task, tokenizer, self.prompts)
            completion = render.completion_ids(task, trial.edit.text, tokenizer, self.prompts)
            pairs.append((render.prompt_ids(prompt, tokenizer), completion))
        following, loss = finetune_policy(run, policy, pairs, self.outer, name=name, seed=seed)
        return following, [trial.edit.id for trial in kept], loss


@dataclass(frozen=True)
class _Writing:
    """Gives :func:`seal_lib.restem.write_self_edits` the prompt of a task."""

    tokenizer: object
    prompts: Prompts

    def write(self, task: Task) -> str:
        return render.self_edit_prompt(task, self.tokenizer, self.prompts)


def kept_trials(trials: Sequence[Trial], outer: OuterLoop, seed: int) -> list[Trial]:
    """The trials that the filter keeps, task by task; success is the reward."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.edit.passage_id, []).append(trial)
    kept = []
    for task, members in groups.items():
        rewards = [trial.success for trial in members]
        picked = FILTERS[outer.filter](rewards, derive_seed(seed, task), outer.threshold)
        kept += [members[i] for i in picked if members[i].edit.text]
    return kept


def few_shot_loop(run, base: Policy, study: FewShot, *, rounds: int, seed: int, random_control: bool) -> Loop:
    """Run the loop once: evaluate, then ``rounds`` times practise, learn and evaluate.

    The control learns once from as many self-edits of the first round, chosen without looking at success.
    """
    evaluated = {"own_untrained": study.evaluate(run, base, "own_untrained", seed=seed)}
    policy, history = base, []
    for index in range(1, rounds + 1):
        arm, draw = f"seal_round_{index}", derive_seed(seed, index)
        trials = study.practise(run, policy, phase=f"seed_{seed}/{arm}", seed=draw)
        if index == 1 and random_control:
            name = f"seed_{seed}/random_config_sft"
            blind, _, _ = study.learn(run, base, trials, name=name, seed=draw, filter="random_as_many")
            evaluated["random_config_sft"] = study.evaluate(run, blind, "random_config_sft", seed=seed)
        policy, kept, loss = study.learn(run, policy, trials, name=f"seed_{seed}/{arm}", seed=draw)
        history.append(Round(index, tuple(trials), tuple(kept), loss))
        evaluated[arm] = study.evaluate(run, policy, arm, seed=seed)
    return Loop(seed, tuple(history), evaluated)


# ----------------------------------------------------------------------------------------------- the table


def by_task(attempts: Sequence[Attempt], value: Callable[[Attempt], float] = lambda a: a.success) -> dict[str, float]:
    """Mean per task over its self-edits and seeds: the unit of every interval."""
    groups: dict[str, list[float]] = {}
    for attempt in attempts:
        groups.setdefault(attempt.task_id, []).append(value(attempt))
    return {task: sum(values) / len(values) for task, values in groups.items()}


def few_shot_rows(fixed: Mapping[str, Sequence[Attempt]], loops: Sequence[Loop], *, protocol: str,
                  model: str) -> list[dict]:  # fmt: skip
    """Lines of ``arc/few_shot`` (pooled over seeds), ``arc/few_shot/seed_N``, ``…/tasks`` and ``…/choices``."""
    label = {"protocol": protocol, "model": model}
    rounds = len(loops[0].rounds)
    pooled = {arm: list(attempts) for arm, attempts in fixed.items()}
    edits: dict[str, list[SelfEdit]] = {}
    for loop in loops:
        for arm, trials in loop.evaluated.items():
            pooled.setdefault(arm, []).extend(trial.attempt for trial in trials)
            edits.setdefault(arm, []).extend(trial.edit for trial in trials)
    rows = _arm_rows(EXPERIMENT, pooled, rounds, label)
    for loop in loops:
        alone = {arm: [trial.attempt for trial in trials] for arm, trials in loop.evaluated.items()}
        rows += _arm_rows(f"{EXPERIMENT}/seed_{loop.seed}", {**fixed, **alone}, rounds, label)
    for arm, attempts in pooled.items():
        several: dict[str, list[float]] = {}
        for attempt in attempts:
            several.setdefault(attempt.task_id, []).append(attempt.success)
        for task, values in several.items():
            estimate = stats.proportion(int(sum(values)), len(values), unit="self-edit")
            rows.append(estimate.row(f"{EXPERIMENT}/tasks", arm, f"success_rate:{task}", **label))
    rows += choice_rows(pooled, label)
    rows += map_rows(loops, label)
    return rows


def comparisons(rounds: int) -> list[tuple[str, str]]:
    """The paired differences worth reporting."""
    names = [f"seal_round_{i}" for i in range(1, rounds + 1)]
    pairs = [(name, "own_untrained") for name in names] + list(zip(names[1:], names, strict=False))
    pairs += [("random_config_sft", "own_untrained")] + [(name, "random_config_sft") for name in names]
    return pairs + [("own_untrained", "icl"), *((name, "oracle") for name in names)]


def _arm_rows(experiment: str, arms: Mapping[str, Sequence[Attempt]], rounds: int, label: dict) -> list[dict]:
    """Success, first attempts, rejected self-edits and cost of each arm, and paired differences between arms."""
    rows = []
    measures: dict[str, Callable[[Attempt], float]] = {
        "success_rate": lambda a: a.success,
        "pass_1": lambda a: float(a.pass_1),
        "rejected_rate": lambda a: float(a.outcome not in ("ok", "untrained", "diverged", "too_long")),
        "diverged_rate": lambda a: float(a.outcome == "diverged"),
        "no_answer_rate": lambda a: float(a.outcome in ("ok", "untrained") and not all(a.attempts)),
    }
    for arm, attempts in arms.items():
        for metric, value in measures.items():
            rows.append(_rate(attempts, value).row(experiment, arm, metric, **label))
        reasons = Counter(a.outcome for a in attempts)
        for outcome, count in sorted(reasons.items()):
            estimate = stats.proportion(count, len(attempts), unit="self-edit")
            rows.append(estimate.row(experiment, arm, f"outcome:{outcome}", **label))
    for a, b in comparisons(rounds):
        if a in arms and b in arms:
            difference = stats.paired_difference(by_task(arms[a]), by_task(arms[b]), unit="task")
            rows.append(difference.row(experiment, difference_arm(a, b), "difference", **label))
    return rows


def _rate(attempts: Sequence[Attempt], value: Callable[[Attempt], float]) -> stats.Estimate:
    """Mean over tasks, bootstrapped over tasks; where each task was tried once, Wilson's interval (0 of 24 has one)."""
    means = by_task(attempts, value)
    if len(means) == len(attempts):
        return stats.proportion(int(sum(means.values())), len(means))
    return stats.bootstrap_mean(means, unit="task")


def choice_rows(arms: Mapping[str, Sequence[Attempt]], label: dict) -> list[dict]:
    """What each policy chooses: the share of its readable self-edits with each value of each choice."""
    rows = []
    for arm, attempts in arms.items():
        configs = [a.config for a in attempts if a.config is not None]
        if not configs or arm in ("icl", "oracle"):
            continue
        for choice, of in CHOICES.items():
            for value, count in sorted(Counter(map(of, configs)).items()):
                estimate = stats.proportion(count, len(configs), unit="self-edit")
                rows.append(estimate.row(f"{EXPERIMENT}/choices", arm, f"share:{choice}={value}", **label))
    return rows


def map_rows(loops: Sequence[Loop], label: dict) -> list[dict]:
    """Success by configuration over everything the *untrained* policy wrote, on practice and held-out tasks."""
    attempts = [trial.attempt for loop in loops for trial in (*loop.rounds[0].trials, *loop.evaluated["own_untrained"])]
    rows = []
    for (down, across), of in MAPS.items():
        cells: dict[tuple, list[float]] = {}
        for attempt in attempts:
            if attempt.config is not None:
                cells.setdefault(of(attempt.config), []).append(attempt.success)
        for (a, b), values in sorted(cells.items()):
            estimate = stats.proportion(int(sum(values)), len(values), unit="self-edit")
            metric = f"success:{down}={a}|{across}={b}"
            rows.append(estimate.row(f"{EXPERIMENT}/choices", "own_untrained", metric, **label))
    return rows


def tally(rounds: Sequence[Round]) -> list[dict]:
    """Per round: self-edits written, distinct trainings, right ones, kept ones."""
    return [
        {
            "round": r.index,
            "self-edits": len(r.trials),
            "distinct trainings": len({t.attempt.id for t in r.trials if t.attempt.config is not None}),
            "right": int(sum(t.success for t in r.trials)),
            "kept": len(r.kept),
            "sft_loss": r.sft_loss if math.isfinite(r.sft_loss) else None,
        }
        for r in rounds
    ]
