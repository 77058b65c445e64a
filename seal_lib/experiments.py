"""The whole ReST^EM experiment for one seed, and its lines in ``results.csv``.

One loop = practice rounds, an evaluation after each, the reward's honesty check, and the control that ignores the
reward. Several loops with different seeds are crossed with the passages; each is also reported on its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from seal_lib import stats
from seal_lib.arms import arm_label
from seal_lib.evaluate import difference_rows, edit_rows, evaluate_arm, result_rows
from seal_lib.inner_loop import InnerLoop
from seal_lib.knowledge.data import load_passages
from seal_lib.knowledge.prompts import Prompts
from seal_lib.records import Passage, Round, Trial
from seal_lib.restem import REWARDS, OuterLoop, Policy, candidates_of, restem_round, score
from seal_lib.seeds import derive_seed

EXPERIMENT = "knowledge/restem"


@dataclass(frozen=True)
class Loop:
    """What one run of the whole loop left behind.

    ``evaluated``: trials on the evaluation passages by arm (``own_untrained``, ``seal_round_1``, …,
    ``random_edit_sft``); ``fresh``: per round, the selected self-edits trained again with an unused seed.
    """

    seed: int
    rounds: tuple[Round, ...]
    evaluated: dict[str, list[Trial]]
    fresh: tuple[list[Trial], ...]


def restem_loop(run, base: Policy, passages: Sequence[Passage], prompts: Prompts, inner: InnerLoop, outer: OuterLoop,
                *, practice: str, n_practice: int, practice_seed: int, rounds: int, seed: int,
                random_control: bool, group: str = "") -> Loop:  # fmt: skip
    """Run the loop once. Round ``i`` practises on the ``i``-th batch of ``n_practice`` passages of ``practice``.

    ``group``: what the names of its phases begin with, where one run holds loops of several models.
    """
    group = f"{group}seed_{seed}/"

    def evaluate(policy: Policy, name: str) -> list[Trial]:
        return evaluate_arm(
            run, policy, passages, "own_untrained", prompts, inner, outer, seed=seed, name=name, group=group
        )

    def batch(index: int) -> list[Passage]:
        return load_passages(practice, n_practice, practice_seed + seed, start=(index - 1) * n_practice)

    evaluated = {"own_untrained": evaluate(base, "own_untrained")}
    policy, history, fresh = base, [], []
    for index in range(1, rounds + 1):
        name = f"seal_round_{index}"
        before, practised = policy, batch(index)
        policy, record = restem_round(
            run, before, practised, prompts, inner, outer, index=index, name=group + name, seed=derive_seed(seed, index)
        )
        history.append(record)
        kept = [t.edit for t in record.candidates if t.edit.id in set(record.kept)]
        again = candidates_of(kept, practised, name, derive_seed(seed, index, "fresh seed"))
        fresh.append(score(run, before, again, prompts, inner, phase=f"{group}{name}/fresh_seed"))
        evaluated[name] = evaluate(policy, name)
    if random_control:
        blind, policy = replace(outer, filter="random"), base
        for index in range(1, rounds + 1):
            policy, _ = restem_round(
                run, policy, batch(index), prompts, inner, blind, index=index,
                name=f"{group}random_round_{index}", seed=derive_seed(seed, index),
            )  # fmt: skip
        evaluated["random_edit_sft"] = evaluate(policy, "random_edit_sft")
    return Loop(seed, tuple(history), evaluated, tuple(fresh))


def readings(rows: Sequence[Mapping[str, object]], experiment: str) -> str:
    """Markdown: the differences of an experiment that are separable from zero, and nothing of the others."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        if row["experiment"] == experiment and row["metric"] == "difference":
            a, b = row["arm"].split(" - ", 1)
            several = lines.setdefault(b, [])
            estimate = stats.Estimate.of_row(row)
            if stats.separable(estimate):
                interval = f"{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}"
                several.append(f"{arm_label(a)} {100 * estimate.value:+.1f} [{interval}]")
    if not lines:
        return "No two arms were compared."
    told = [f"- against **{arm_label(b)}**: {'; '.join(several)}" for b, several in lines.items() if several]
    over = "paired by passage; 95 % intervals over passages, and over loops where there are several"
    head = f"Separable from zero, in points of accuracy ({over})"
    return f"{head}:\n\n" + "\n".join(told) if told else "No difference of this run is separable from zero."


def comparisons(rounds: int) -> list[tuple[str, str]]:
    """The paired differences worth reporting."""
    names = [f"seal_round_{i}" for i in range(1, rounds + 1)]
    last = names[-1]
    pairs = [(name, "own_untrained") for name in names] + list(zip(names[1:], names, strict=False))
    pairs += [("random_edit_sft", "own_untrained"), (last, "random_edit_sft"), (last, "external")]
    return pairs + [(name, "frozen") for name in ("own_untrained", *names, "random_edit_sft", "external")]


def restem_rows(controls: Mapping[str, Sequence[Trial]], loops: Mapping[int, Loop], passages: Sequence[Passage], *,
                protocol: str, model: str, grader: str) -> list[dict]:  # fmt: skip
    """Lines for ``knowledge/restem`` (over all loops), ``knowledge/restem/seed_N``, and the SEAL rows of Table 2.

    Passages and loops are crossed: both are a sample. ``controls`` were run once and have no loops. Table 2's
    differences are those of notebook 11, one family; those of SEAL stand in ``knowledge/restem``.
    """
    label = {"protocol": protocol, "model": model}
    several = list(loops.values())
    rounds = len(several[0].rounds)
    arms = dict.fromkeys(arm for loop in several for arm in loop.evaluated)
    pooled = {**controls, **{arm: {loop.seed: loop.evaluated[arm] for loop in several} for arm in arms}}
    rows = []
    for arm, trials in pooled.items():
        rows += result_rows(EXPERIMENT, arm, trials, grader=grader, **label)
        by_loop = trials if isinstance(trials, Mapping) else {0: trials}
        edits = {seed: [t.edit for t in own if t.edit] for seed, own in by_loop.items()}
        rows += edit_rows(EXPERIMENT, arm, edits, passages, **label)
    rows += difference_rows(EXPERIMENT, pooled, comparisons(rounds), grader=grader, **label)
    learned = [f"seal_round_{i}" for i in range(1, rounds + 1)] + ["random_edit_sft"]
    for arm in learned:
        if arm in pooled:
            rows += result_rows("knowledge/single_passage", arm, pooled[arm], grader=grader, **label)
    for loop in several:
        where = f"{EXPERIMENT}/seed_{loop.seed}"
        alone = {**controls, **loop.evaluated}
        for arm, trials in loop.evaluated.items():
            rows += result_rows(where, arm, trials, grader=grader, **label)
        rows += difference_rows(where, alone, comparisons(rounds), grader=grader, **label)
    return rows + reward_rows(several, grader=grader, **label)


def reward_rows(loops: Sequence[Loop], *, protocol: str, model: str, grader: str) -> list[dict]:
    """Per round, over all loops: mean reward, best of k, the selected self-edits under a fresh seed, and the shares of
    passages whose best reward is tied or 0.
    """
    rows = []
    for index in range(len(loops[0].rounds)):
        arm, records = f"seal_round_{index + 1}", {loop.seed: loop.rounds[index] for loop in loops}
        fresh = {loop.seed: fresh_rewards(loop.rounds[index], loop.fresh[index]) for loop in loops}
        found = stats.best_of_k_bias({seed: record.grouped for seed, record in records.items()}, fresh)
        for metric, of in {"tied_share": "tied", "zero_share": "zero"}.items():
            shares = {seed: getattr(record, of) for seed, record in records.items()}
            found[metric] = stats.mean_over_loops(shares, stats.SHARE)
        rows += [e.row(EXPERIMENT, arm, metric, protocol, model, grader) for metric, e in found.items()]
    return rows


def fresh_rewards(record: Round, trials: Sequence[Trial]) -> dict[str, float]:
    """The reward by which the round selected, of its selected self-edits under a fresh seed: mean by passage.

    Trials that cannot be scored are left out.
    """
    groups: dict[str, list[float]] = {}
    for trial in trials:
        reward = REWARDS[record.reward](trial, record.frozen.get(trial.passage_id, math.nan))
        if not math.isnan(reward):
            groups.setdefault(trial.passage_id, []).append(reward)
    return {passage: sum(values) / len(values) for passage, values in groups.items()}
