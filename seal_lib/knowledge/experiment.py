"""The ReST^EM experiment's lines in ``results.csv``.

One loop (`seal_lib.loops.outer.run_loop`) = practice rounds, an evaluation after each, the reward's honesty
check, and the control that ignores the reward. Several loops with different seeds are crossed with the passages; each
is also reported on its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from seal_lib.knowledge.evaluate import Loops, difference_rows, edit_rows, result_rows
from seal_lib.loops.outer import Loop, fresh_rewards
from seal_lib.records import Passage, PassageTrial
from seal_lib.report import rewards, stats
from seal_lib.report.arms import arm_label

EXPERIMENT = "knowledge/restem"


def readings(rows: Sequence[Mapping[str, Any]], experiment: str) -> str:
    """Markdown that lists the differences of an experiment that are separable from zero, and no others."""
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
    shown = [f"- against **{arm_label(b)}**: {'; '.join(several)}" for b, several in lines.items() if several]
    over = "paired by passage; 95 % intervals over passages, and over loops where there are several"
    head = f"Separable from zero, in points of accuracy ({over})"
    return f"{head}:\n\n" + "\n".join(shown) if shown else "No difference of this run is separable from zero."


def comparisons(rounds: int) -> list[tuple[str, str]]:
    """The paired differences worth reporting."""
    names = [f"seal_round_{i}" for i in range(1, rounds + 1)]
    last = names[-1]
    pairs = [(name, "own_untrained") for name in names] + list(zip(names[1:], names, strict=False))
    pairs += [("random_edit_sft", "own_untrained"), (last, "random_edit_sft"), (last, "external")]
    return pairs + [(name, "frozen") for name in ("own_untrained", *names, "random_edit_sft", "external")]


def restem_rows(controls: Mapping[str, Sequence[PassageTrial]], loops: Mapping[int, Loop], passages: Sequence[Passage],
                *, protocol: str, model: str, grader: str) -> list[dict]:  # fmt: skip
    """Lines for ``knowledge/restem`` (over all loops), ``knowledge/restem/seed_N``, and the SEAL rows of Table 2.

    Passages and loops are crossed: both are a sample. ``controls`` were run once and have no loops. Table 2's
    differences are those of notebook 11, one family; those of SEAL are in ``knowledge/restem``.
    """
    label = {"protocol": protocol, "model": model}
    several = list(loops.values())
    rounds = len(several[0].rounds)
    arms = dict.fromkeys(arm for loop in several for arm in loop.evaluated)
    pooled: dict[str, Loops] = {
        **controls,
        **{arm: {loop.seed: loop.evaluated[arm] for loop in several} for arm in arms},
    }
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
    label = {"protocol": protocol, "model": model, "grader": grader}
    rows = []
    for index in range(len(loops[0].rounds)):
        records = {loop.seed: loop.rounds[index] for loop in loops}
        fresh = {loop.seed: fresh_rewards(loop.rounds[index], loop.fresh[index]) for loop in loops}
        rows += rewards.reward_rows(EXPERIMENT, f"seal_round_{index + 1}", records, fresh, unit="passage", **label)
    return rows
