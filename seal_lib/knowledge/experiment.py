"""The rows of the ReST^EM experiment in ``results.csv``.

One loop (`seal_lib.loops.outer.run_loop`) is its practice rounds, an evaluation after each, a check of the rewards
under a fresh seed, and a control that ignores the reward. Several loops with different seeds are crossed with the
passages; each is also reported on its own.
"""

import math
from collections.abc import Mapping, Sequence

from seal_lib.knowledge.evaluate import ArmTrials, difference_rows, edit_rows, result_rows
from seal_lib.loops.outer import Loop, fresh_rewards
from seal_lib.records import Passage, PassageTrial
from seal_lib.report import rewards
from seal_lib.report.arms import arm_label
from seal_lib.report.stats import Estimate
from seal_lib.report.words import Rows, bullets, number, percent

EXPERIMENT = "knowledge/restem"


def comparisons(rounds: int) -> list[tuple[str, str]]:
    """Return the pairs of arms to compare."""
    names = [f"seal_round_{i}" for i in range(1, rounds + 1)]
    last = names[-1]
    pairs = [(name, "own_untrained") for name in names] + list(zip(names[1:], names, strict=False))
    pairs += [("random_edit_sft", "own_untrained"), (last, "random_edit_sft"), (last, "external")]
    return pairs + [(name, "frozen") for name in ("own_untrained", *names, "random_edit_sft", "external")]


def restem_rows(
    controls: Mapping[str, Sequence[PassageTrial]],
    loops: Mapping[int, Loop],
    passages: Sequence[Passage],
    *,
    grader: str,
    **label: str,
) -> list[dict]:
    """Return the rows of ``knowledge/restem`` (all loops), ``knowledge/restem/seed_N``, and Table 2's rows of SEAL.

    Passages and loops are crossed, and both are samples. ``controls`` were run once and have no loops. The differences
    of Table 2 are those of notebook 11, one family; those of SEAL are in ``knowledge/restem``.
    """
    several = list(loops.values())
    rounds = len(several[0].rounds)
    arms = dict.fromkeys(arm for loop in several for arm in loop.evaluated)
    pooled: dict[str, ArmTrials] = {
        **controls,
        **{arm: {loop.seed: loop.evaluated[arm] for loop in several} for arm in arms},
    }
    rows = []
    for arm, trials in pooled.items():
        rows += result_rows(EXPERIMENT, arm, trials, grader=grader, **label)
        by_loop = trials if isinstance(trials, Mapping) else {0: trials}
        edits = {seed: [t.edit for t in own if t.edit] for seed, own in by_loop.items()}
        rows += edit_rows(EXPERIMENT, arm, edits, passages, prompts=None, **label)
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


def reward_rows(
    loops: Sequence[Loop], *, experiment: str = EXPERIMENT, family: str = "seal", **label: str
) -> list[dict]:
    """Return rows for each round, over all loops: the mean reward, the best of k, the reward of the selected self-edits
    under a fresh seed, and the shares of passages whose best reward is tied or 0."""
    rows = []
    for index in range(len(loops[0].rounds)):
        records = {loop.seed: loop.rounds[index] for loop in loops}
        fresh = {loop.seed: fresh_rewards(loop.rounds[index], loop.fresh[index]) for loop in loops}
        rows += rewards.reward_rows(experiment, f"{family}_round_{index + 1}", records, fresh, unit="passage", **label)
    return rows


def one_passage(before: PassageTrial, trials: Sequence[PassageTrial]) -> str:
    """Return Markdown on how many questions are right before, and after training on each of several self-edits."""
    right = [trial.accuracy for trial in trials if not math.isnan(trial.accuracy)]
    said = [f"Before: {percent(_one(before.accuracy))} of the {len(before.answers)} questions right."]
    if right:
        mean = _one(sum(right) / len(right))
        said.append(f"After: {percent(_one(min(right)))} to {percent(_one(max(right)))}, over {len(right)} self-edits.")
        said.append(f"A typical self-edit is worth {percent(mean)}: the mean, not the best of {len(right)}.")
    if len(set(right)) == 1:
        said.append("All self-edits are worth the same here: a choice among them would be blind.")
    return bullets(said)


def _one(value: float) -> Estimate:
    return Estimate(value, math.nan, math.nan, 1)


def writing(rows: Rows) -> str:
    """Return Markdown on how long self-edits are and, for passages of the made world, on their styles and coverage."""
    found: dict[str, dict[str, Estimate]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["metric"]] = Estimate.of_row(row)
    said = []
    for arm, one in found.items():
        said += [f"**{arm_label(arm)}** are {number(one['edit_tokens'])} tokens long."] if "edit_tokens" in one else []
        styles = {name.partition(":")[2]: e for name, e in one.items() if name.startswith("style_share:") and e.value}
        if styles:
            first = sorted(styles, key=lambda name: -styles[name].value)
            said.append("By style: " + ", ".join(f"*{name}* {percent(styles[name])}" for name in first) + ".")
        if "coverage" in one:
            said.append(f"From person to value they state {percent(one['coverage'])} of their passage's facts.")
    return bullets(said)
