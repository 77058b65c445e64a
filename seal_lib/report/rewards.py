"""The lines of ``results.csv`` on how far the rewards of a round can be trusted. Knows records, not loops."""

from collections.abc import Mapping
from typing import Any

from seal_lib.records import Round
from seal_lib.report import stats


def reward_rows(
    experiment: str,
    arm: str,
    rounds: Mapping[Any, Round],
    fresh: Mapping[Any, Mapping[str, float]],
    *,
    unit: str,
    **label: str,
) -> list[dict]:
    """Return the lines of one round over all loops.

    They are: the mean reward, the best of k, and the selected self-edits under a fresh seed (all three over the units
    with a selected self-edit); the shares of units whose best reward is tied or 0; and, if a reward is the mean over
    several seeds, its reliability (`seal_lib.report.stats.reliability`).

    Args:
        rounds: loop → its record of the round.
        fresh: loop → unit → reward of its selected self-edits under a seed that was not used in the selection.
        label: grader, protocol and model.
    """
    found = stats.best_of_k_bias({loop: record.grouped for loop, record in rounds.items()}, fresh, unit)
    for metric in ("tied", "zero"):
        flags = {
            loop: {name: float(flag) for name, flag in getattr(record, metric).items()}
            for loop, record in rounds.items()
        }
        found[f"{metric}_share"] = stats.mean_over_loops(flags, stats.SHARE, unit)
    repeats = [rewards for record in rounds.values() for rewards in record.repeats.values()]
    if any(len(of_one) > 1 for rewards in repeats for of_one in rewards):
        found["reward_reliability"] = stats.reliability(repeats, unit)
    return [estimate.row(experiment, arm, metric, **label) for metric, estimate in found.items()]
