"""Rewards (trial → number; or what is said of a text that is not tried) and filters (rewards of a unit's self-edits →
those that are kept). A control is one more filter."""

import math
from collections.abc import Callable, Sequence

from seal_lib.records import Trial
from seal_lib.seeds import rng

#: reward → (trial, accuracy of the frozen policy on that unit) → number, NaN if there is nothing to grade. Accuracy is
#: by the loop's grader, which the trial carries.
REWARDS: dict[str, Callable[[Trial, float], float]] = {
    "accuracy": lambda trial, frozen: trial.accuracy,
    # paper Eq. 2: 1 if the self-edit improves on the frozen policy, else 0 (the released code uses best-of-k instead)
    "improvement": lambda trial, frozen: math.nan if math.isnan(trial.accuracy) else float(trial.accuracy > frozen),
}
#: rewards that no self-edit is tried for: what the domain says of its text (`seal_lib.loops.domain.Rates`)
RATED = ("rubric",)
#: rewards that compare with the policy without an adapter, which is then asked once per unit
COMPARING = ("improvement",)


def _best_of_k(rewards: Sequence[float], seed: int, threshold: float) -> list[int]:
    """The authors' rule: the best of a unit's k, ties to the first, never none — unless all failed to train."""
    finite = [i for i, reward in enumerate(rewards) if not math.isnan(reward)]
    return [max(finite, key=lambda i: rewards[i])] if finite else []


def _random_one(rewards: Sequence[float], seed: int, threshold: float) -> list[int]:
    """Control: one of the k, blind to the reward."""
    return [rng(seed, "random filter").randrange(len(rewards))]


def _random_as_many(rewards: Sequence[float], seed: int, threshold: float) -> list[int]:
    """Control: blind to which ones, but as many as ``threshold`` keeps, so that only the choice differs."""
    return sorted(rng(seed, "random filter").sample(range(len(rewards)), len(_above(rewards, seed, threshold))))


def _above(rewards: Sequence[float], seed: int, threshold: float) -> list[int]:
    """All whose reward exceeds the threshold (ReST^EM's own filter)."""
    return [i for i, reward in enumerate(rewards) if reward > threshold]


def _best_above(rewards: Sequence[float], seed: int, threshold: float) -> list[int]:
    """The best of k, if it exceeds the threshold."""
    return [i for i in _best_of_k(rewards, seed, threshold) if rewards[i] > threshold]


#: filter → indices kept among one unit's k self-edits
FILTERS: dict[str, Callable[[Sequence[float], int, float], list[int]]] = {
    "best_of_k": _best_of_k,
    "random": _random_one,
    "random_as_many": _random_as_many,
    "threshold": _above,
    "best_above": _best_above,
}
#: filters that never look at a reward: nothing is scored for them
BLIND = ("random",)
