"""Rewards and filters of the outer loop.

A reward maps a trial to a number, or is the rating of a text that is not trained on. A filter selects which of a unit's
self-edits are kept, given their rewards. A control is a filter that ignores them.
"""

import math
from collections.abc import Callable, Sequence

from seal_lib.records import Trial
from seal_lib.seeds import rng

#: reward → function of (trial, accuracy of the frozen policy on that unit) → number, NaN if there is nothing to grade.
#: The accuracy is that of the loop's grader, which the trial carries.
REWARDS: dict[str, Callable[[Trial, float], float]] = {
    "accuracy": lambda trial, frozen: trial.accuracy,
    # paper Eq. 2: 1 if the self-edit improves on the frozen policy, else 0 (the released code uses best-of-k instead)
    "improvement": lambda trial, frozen: math.nan if math.isnan(trial.accuracy) else float(trial.accuracy > frozen),
}
#: rewards that need no training: the domain rates the text of the self-edit (`seal_lib.loops.domain.Rates`)
RATED = ("rubric",)
#: rewards that compare with the policy without an adapter, which is then evaluated once per unit
COMPARING = ("improvement",)


def _best_of_k(rewards: Sequence[float], seed: int, threshold: float) -> list[int]:
    """Keep the best of a unit's k self-edits (the authors' rule); ties go to the first, none only if all failed."""
    finite = [i for i, reward in enumerate(rewards) if not math.isnan(reward)]
    return [max(finite, key=lambda i: rewards[i])] if finite else []


def _random_one(rewards: Sequence[float], seed: int, threshold: float) -> list[int]:
    """Keep one of the k at random, ignoring the reward (control)."""
    return [rng(seed, "random filter").randrange(len(rewards))]


def _random_as_many(rewards: Sequence[float], seed: int, threshold: float) -> list[int]:
    """Keep as many as ``threshold`` would, but chosen at random, so that only the choice differs (control)."""
    return sorted(rng(seed, "random filter").sample(range(len(rewards)), len(_above(rewards, seed, threshold))))


def _above(rewards: Sequence[float], seed: int, threshold: float) -> list[int]:
    """Keep all self-edits whose reward exceeds the threshold (ReST^EM's own filter)."""
    return [i for i, reward in enumerate(rewards) if reward > threshold]


def _best_above(rewards: Sequence[float], seed: int, threshold: float) -> list[int]:
    """Keep the best of the k if its reward exceeds the threshold."""
    return [i for i in _best_of_k(rewards, seed, threshold) if rewards[i] > threshold]


#: filter → function of (rewards of one unit's k self-edits, seed, threshold) that returns the indices to keep
FILTERS: dict[str, Callable[[Sequence[float], int, float], list[int]]] = {
    "best_of_k": _best_of_k,
    "random": _random_one,
    "random_as_many": _random_as_many,
    "threshold": _above,
    "best_above": _best_above,
}
#: filters that need no reward, so that no self-edit is scored for them
BLIND = ("random",)
