"""The rows of ``results.csv`` for whole loops over puzzles: success, differences, rounds, tasks, choices and maps.

A *task* with all its self-edits is the unit of every interval, crossed with whole loops (seeds) where there are
several. Self-edits of a task that ask for the same configuration share one training and are one observation, so every
number that counts configurations counts them once; only success is, as in the paper, a mean over the self-edits that
the policy writes. What could not be scored is NaN, as in the knowledge domain (see `seal_lib.arc.domain`): it is left
out, and counted as dropped and in a rate of its own. Nothing is run here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import methodcaller

from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.domain import PUZZLE_GRADERS, Attempt, PuzzleTrial
from seal_lib.arc.self_edits import Config
from seal_lib.loops.outer import Loop, fresh_rewards
from seal_lib.records import Round, values_of
from seal_lib.report import rewards, stats
from seal_lib.report.arms import difference_arm

EXPERIMENT = "arc/few_shot"
#: choice of a self-edit → its value in a configuration; both appear in a metric's name
CHOICES: dict[str, Callable[[Config], object]] = {
    **{switch: lambda config, switch=switch: switch in config.switches for switch in SWITCHES},
    "strategy": lambda config: config.loss_on,
    "learning_rate": lambda config: config.learning_rate,
    "num_train_epochs": lambda config: config.epochs,
}
#: pairs of choices whose success is reported cell by cell, for the heat maps
PAIRS_OF_CHOICES = {
    ("learning_rate", "num_train_epochs"): lambda c: (c.learning_rate, c.epochs),
    ("switches", "strategy"): lambda c: ("+".join(s.split("_")[1] for s in c.switches) or "none", c.loss_on),
}

#: loop → attempts on the same tasks; an arm that does not depend on the loop has one entry
ByLoop = Mapping[object, Sequence[Attempt]]


def rate(attempts: ByLoop, value: Callable[[Attempt], float], constant: bool = False) -> stats.Estimate:
    """Return the mean over tasks of the means of their self-edits, without NaN, with its interval."""
    return stats.mean_over_loops(values_of(attempts, value), stats.SHARE, "task", constant=constant)


def _share(attempts: ByLoop, counted: Callable[[Attempt], float]) -> stats.Estimate:
    """Return the share among distinct configurations, each counted once per loop and task, with its interval."""
    pairs: dict[object, dict[str, tuple[float, float]]] = {}
    dropped = 0
    for loop, tasks in values_of({loop: _distinct(several) for loop, several in attempts.items()}, counted).items():
        pairs[loop] = {}
        for task, values in tasks.items():
            known = [value for value in values if not math.isnan(value)]
            dropped += len(values) - len(known)
            if known:
                pairs[loop][task] = (sum(known), len(known))
    return replace(stats.ratio_over_loops(pairs, "task"), dropped=dropped)


def _distinct(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Return the attempts of *one loop* that had a configuration, each configuration of a task once."""
    return list({a.id: a for a in attempts if a.config is not None}.values())


def few_shot_rows(
    fixed: Mapping[str, Sequence[Attempt]], loops: Sequence[Loop], *, grader: str, max_tries: int, **label: str
) -> list[dict]:
    """Return the rows of ``arc/few_shot`` (all loops), ``arc/few_shot/seed_N``, ``…/tasks`` and ``…/choices``.

    Args:
        fixed: arm → attempts of the arms that no loop changes.
        max_tries: that of the domain.
        label: protocol and model.
    """
    rows, pairs = [], _comparisons(len(loops[0].rounds))
    for where, some in {EXPERIMENT: loops, **{f"{EXPERIMENT}/seed_{loop.seed}": [loop] for loop in loops}}.items():
        rows += _arm_rows(where, by_arm(fixed, some), pairs, grader, label)
        rows += round_rows(where, some, max_tries, grader, label)
    arms = by_arm(fixed, loops)
    for arm, attempts in arms.items():
        rows += task_rows(arm, attempts, grader, label)
    return rows + choice_rows(arms, label) + map_rows(loops, grader, label)


def by_arm(fixed: Mapping[str, Sequence[Attempt]], loops: Sequence[Loop]) -> dict[str, dict[object, Sequence[Attempt]]]:
    """Return arm → loop → attempts, for the arms that no loop changes and for those that the loops evaluated."""
    arms: dict[str, dict[object, Sequence[Attempt]]] = {arm: {0: attempts} for arm, attempts in fixed.items()}
    for loop in loops:
        for arm, trials in loop.evaluated.items():
            arms.setdefault(arm, {})[loop.seed] = [trial.attempt for trial in trials]
    return arms


def _comparisons(rounds: int) -> list[tuple[str, str]]:
    """Return the paired differences to report, as pairs of arms."""
    names = [f"seal_round_{i}" for i in range(1, rounds + 1)]
    pairs = [(name, "own_untrained") for name in names] + list(zip(names[1:], names, strict=False))
    pairs += [("random_config_sft", "own_untrained")] + [(name, "random_config_sft") for name in names]
    return pairs + [("own_untrained", "icl"), *((name, "oracle") for name in names)]


def table_rows(
    experiment: str,
    trials: Mapping[str, Sequence[PuzzleTrial] | Mapping[object, Sequence[PuzzleTrial]]],
    pairs: Sequence[tuple[str, str]],
    *,
    grader: str,
    **label: str,
) -> list[dict]:
    """Return the rows of several arms (trials of one loop, or loop → trials) and of their differences."""
    by_loop = {arm: own if isinstance(own, Mapping) else {0: own} for arm, own in trials.items()}
    arms = {arm: {loop: [t.attempt for t in own] for loop, own in loops.items()} for arm, loops in by_loop.items()}
    return _arm_rows(experiment, arms, pairs, grader, label)


def _arm_rows(
    experiment: str, arms: Mapping[str, ByLoop], pairs: Sequence[tuple[str, str]], grader: str, label: dict
) -> list[dict]:
    """Return success by the loop's grader and by the others, failures, and paired differences between arms.

    The differences are one Holm family. Rates of failures are over all self-edits; a failure that cannot happen in an
    arm is 0 by construction.
    """
    rows = []
    for arm, attempts in arms.items():
        graded = {"success_rate": grader} | {name: name for name in PUZZLE_GRADERS if name != grader}
        for metric, by in graded.items():
            found = rate(attempts, lambda a, by=by: a.graded(by))
            rows.append(found.row(experiment, arm, metric, grader=by, **label))
        everything = [attempt for several in attempts.values() for attempt in several]
        asked = all(attempt.outcome == "untrained" for attempt in everything)  # True: nothing was written or trained
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
    values = {arm: values_of(attempts, methodcaller("graded", grader)) for arm, attempts in arms.items()}
    for (a, b), found in stats.compare(values, pairs, unit="task").items():
        rows.append(found.row(experiment, difference_arm(a, b), "difference", grader=grader, **label))
    return rows


def round_rows(experiment: str, loops: Sequence[Loop], max_tries: int, grader: str, label: dict) -> list[dict]:
    """Return the rows of each round, and the number of texts written per self-edit.

    For each round these are its rewards, the kept self-edits under a fresh seed, and the shares of practice tasks whose
    best reward is tied or 0. The number of texts is 1 unless texts that are not JSON are written again.
    """
    rows = []
    for index in range(len(loops[0].rounds)):
        history = {loop.seed: loop.rounds[index] for loop in loops}
        trained = {loop.seed: {trial.key: trial for trial in loop.fresh[index]} for loop in loops}  # equal ones once
        fresh = {seed: fresh_rewards(record, list(trained[seed].values())) for seed, record in history.items()}
        arm = f"seal_round_{index + 1}"
        rows += rewards.reward_rows(experiment, arm, history, fresh, unit="task", grader=grader, **label)
    for arm in loops[0].evaluated:
        tries = values_of({loop.seed: loop.evaluated[arm] for loop in loops}, lambda t: float(t.edit.tries))
        found = stats.mean_over_loops(tries, stats.ANY, "task", constant=max_tries == 1)
        rows.append(found.row(experiment, arm, "texts_per_self_edit", **label))
    return rows


def task_rows(arm: str, attempts: ByLoop, grader: str, label: dict) -> list[dict]:
    """Return the success of each task by itself, as the mean over its self-edits.

    Self-edits of a task are not independent, so the interval is over its distinct configurations and loops; each text
    that is no configuration counts as one of its own.
    """
    tasks: dict[str, dict[object, dict[str, tuple[float, float]]]] = {}
    for loop, several in attempts.items():
        for number, attempt in enumerate(several):
            pairs = tasks.setdefault(attempt.unit_id, {}).setdefault(loop, {})
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
    """Return the share of each policy's distinct configurations that has each value of each choice.

    A value that some arm asked for and another did not is a measured 0 of the other.
    """
    written = {arm: attempts for arm, attempts in arms.items() if arm not in ("icl", "oracle")}
    written = {arm: a for arm, a in written.items() if any(_distinct(several) for several in a.values())}
    configs = [x.config for attempts in written.values() for several in attempts.values() for x in _distinct(several)]
    rows = []
    for arm, attempts in written.items():
        for choice, of in CHOICES.items():
            for value in sorted(set(map(of, configs))):
                found = _share(attempts, lambda a, of=of, value=value: float(of(a.config) == value))
                rows.append(found.row(f"{EXPERIMENT}/choices", arm, f"share:{choice}={value}", **label))
    return rows


def _untrained(loop: Loop) -> list[PuzzleTrial]:
    """Return everything that the untrained policy wrote in one loop, on practice and held-out tasks."""
    return [*loop.rounds[0].candidates, *loop.evaluated["own_untrained"]]


def behind(loop: Loop, down: str, across: str) -> dict[tuple, list[PuzzleTrial]]:
    """Return the trials of one loop behind each cell of a map (`map_rows`); those that solved something come first."""
    cells: dict[tuple, dict[str, PuzzleTrial]] = {}
    for trial in _untrained(loop):
        if trial.attempt.config is not None:
            cells.setdefault(PAIRS_OF_CHOICES[down, across](trial.attempt.config), {}).setdefault(trial.key, trial)

    def worth(trial: PuzzleTrial) -> float:
        return -1.0 if math.isnan(trial.accuracy) else trial.accuracy

    ordered = {cell: sorted(found.values(), key=worth, reverse=True) for cell, found in cells.items()}
    return dict(sorted(ordered.items(), key=lambda item: -worth(item[1][0])))


def solved(trials: Sequence[PuzzleTrial]) -> str:
    """Return how many trials succeeded, of those that were graded: "3 of 5"."""
    graded = [trial.accuracy for trial in trials if not math.isnan(trial.accuracy)]
    return f"{sum(value == 1 for value in graded)} of {len(graded)}"


def map_rows(loops: Sequence[Loop], grader: str, label: dict) -> list[dict]:
    """Return success by configuration over everything the *untrained* policy wrote, on practice and held-out tasks.

    Equal configurations of a task count once; ``n`` is the number of tasks that a cell was tried on.
    """
    written = {loop.seed: [trial.attempt for trial in _untrained(loop)] for loop in loops}
    rows = []
    for (down, across), of in PAIRS_OF_CHOICES.items():
        cells: dict[tuple, dict[object, list[Attempt]]] = {}
        for loop, attempts in written.items():
            for attempt in _distinct(attempts):
                cells.setdefault(of(attempt.config), {}).setdefault(loop, []).append(attempt)
        for (a, b), tried in sorted(cells.items()):
            metric = f"success:{down}={a}|{across}={b}"
            found = _share(tried, lambda x: x.graded(grader))
            rows.append(found.row(f"{EXPERIMENT}/choices", "own_untrained", metric, grader=grader, **label))
    return rows


def tally(rounds: Sequence[Round]) -> list[dict]:
    """Return a table with one line per round; the last columns are shares of tasks."""
    return [
        {
            "round": r.index,
            "self-edits": len(r.candidates),
            "texts": sum(t.edit.tries for t in r.candidates),
            "distinct trainings": len(trained := [a for a in _distinct(t.attempt for t in r.candidates) if a.steps]),
            "of them right": sum(a.success == 1 for a in trained),
            "kept": len(r.kept),
            "best is 0": r.zero_share,
            "best is shared": r.tied_share,
            "sft_loss": r.sft_loss if math.isfinite(r.sft_loss) else None,
        }
        for r in rounds
    ]
