"""Estimates with a 95 % interval and an n: bootstraps over passages, paired differences, tests, reward honesty.

Knows numpy arrays and dictionaries of numbers. Does not know passages, arms, models, files or figures, and needs no
torch. Nested data carries its axes in its name: `rewards_P_E_S[p][e][s]` is passage p, self-edit e, inner-loop seed s.
Every function is deterministic: the draws come from `seed`, and values are sorted first, so that the order in which
units arrive changes nothing.

A percentile bootstrap says little below about ten units: with one unit low and high are NaN, and a sample without any
spread gets an interval of width zero. For counts (grids solved out of n) use `proportion`, which does not collapse.

    >>> bootstrap_mean([0.0, 0.5, 1.0, 0.5]).value
    0.5
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seal_lib.errors import DataError

LEVEL = 0.95
DRAWS = 10_000
_CELLS = 4_000_000  # resampled numbers held in memory at once


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and how many units (passages, tasks, sequences, seeds) stand behind it.

    `dropped` counts the units that were given but could not be used (NaN, or without a partner). `interval` names how
    low and high were made, `loops` how many whole loops (seeds) each unit was seen by, and `p` is the p-value of a
    difference, adjusted by Holm over its family.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str = "passage"
    dropped: int = 0
    interval: str = ""
    loops: int = 1
    p: float = math.nan

    def row(
        self, experiment: str, arm: str, metric: str, protocol: str = "", model: str = "", grader: str = ""
    ) -> dict[str, object]:
        """One row of results.csv (the run name is added by `run.finish`). `grader`: what judged the answers, if any."""
        return {
            "experiment": experiment, "arm": arm, "metric": metric, "value": self.value, "low": self.low,
            "high": self.high, "n": self.n, "unit": self.unit, "loops": self.loops, "dropped": self.dropped,
            "interval": self.interval, "p": self.p, "grader": grader, "protocol": protocol, "model": model,
        }  # fmt: skip

    def __str__(self) -> str:
        units = f"n = {self.n} {self.unit}"
        if math.isnan(self.low):
            return f"{self.value:.3f} (no interval, {units})"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] ({units})"


@dataclass(frozen=True)
class Reliability:
    """How much of the spread of rewards between self-edits of one passage would repeat with new inner-loop seeds.

    `of_mean` is for the mean over the S seeds that were run, `of_one` for a single inner run; both lie in [0, 1].
    """

    of_mean: float
    of_one: float
    edit_sd: float
    seed_sd: float
    passages: int
    dropped: int


def bootstrap_mean(
    values_per_unit: Mapping[str, float] | Sequence[float], seed: int = 0, draws: int = DRAWS, unit: str = "passage"
) -> Estimate:
    """Mean over units (macro) with a percentile bootstrap over units; NaN units are left out and counted.

    Args:
        values_per_unit: [P] one number per independent unit, or a dictionary id -> number.
    """
    values, dropped = _finite(_numbers(values_per_unit))
    if len(values) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, unit, dropped)
    rows = np.sort(values)[:, None]  # (P, 1)
    means = [rows[index, 0].mean(axis=1) for index in _resamples(len(rows), seed, draws)]
    return _estimate(float(values.mean()), means, len(values), unit, dropped)


def paired_difference(
    a: Mapping[str, float], b: Mapping[str, float], seed: int = 0, draws: int = DRAWS, unit: str = "passage"
) -> Estimate:
    """Mean of a − b over the ids both have, bootstrapped over those ids; `dropped` counts the ids that fell out.

    Raises:
        DataError: the two share no id with a finite value.
    """
    differences, dropped = paired(a, b)
    estimate = bootstrap_mean(differences, seed, draws, unit)
    return Estimate(estimate.value, estimate.low, estimate.high, estimate.n, unit, dropped)


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[dict[str, float], int]:
    """The differences a − b by id, and how many ids of either side had no finite partner."""
    everything = sorted(set(a) | set(b))
    differences = {key: float(a[key]) - float(b[key]) for key in everything if key in a and key in b}
    differences = {key: value for key, value in differences.items() if math.isfinite(value)}
    if not differences:
        raise DataError(
            f"A paired difference needs ids that both sides have, but none of the {len(a)} and {len(b)} ids is common "
            "with a finite value; compare arms that were evaluated on the same passages."
        )
    return differences, len(everything) - len(differences)


def micro(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0, draws: int = DRAWS, unit: str = "passage"
) -> Estimate:
    """Ratio of sums (e.g. questions right / questions asked), bootstrapped over the units that hold the questions.

    Args:
        numerators, denominators: [P] per unit, in the same order.
    """
    pairs = np.column_stack([_numbers(numerators), _numbers(denominators)])  # (P, 2)
    keep = np.isfinite(pairs).all(axis=1) & (pairs[:, 1] > 0)
    pairs, dropped = pairs[keep], int((~keep).sum())
    if len(pairs) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, unit, dropped)
    value = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    rows = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    ratios = []
    for index in _resamples(len(rows), seed, draws):
        sums = rows[index].sum(axis=1)  # (draws, 2)
        ratios.append(sums[:, 0] / sums[:, 1])
    return _estimate(value, ratios, len(rows), unit, dropped)


def cluster_bootstrap(
    values_per_cluster: Mapping[str, Sequence[float]], seed: int = 0, draws: int = DRAWS, unit: str = "passage"
) -> Estimate:
    """Mean over clusters of the mean within a cluster, for units nested in clusters (self-edits or seeds in a passage).

    Whole clusters are resampled: the units of one passage are not independent, and the spread of the cluster means
    already holds the noise within them, so resampling the units again would count that noise twice.
    """
    means: dict[str, float] = {}
    for key, values in values_per_cluster.items():
        finite, _ = _finite(_numbers(values))
        means[key] = float(finite.mean()) if len(finite) else math.nan
    return bootstrap_mean(means, seed, draws, unit)


def crossed_bootstrap(
    values_S_P: Sequence[Sequence[float]], seed: int = 0, draws: int = DRAWS, unit: str = "passage × seed"
) -> Estimate:
    """Mean over S seeds of the whole loop that all saw the same P passages; seeds and passages are both resampled.

    Owen's pigeonhole bootstrap, somewhat wide. n is the number of finite cells. With one seed this says nothing about
    the spread between seeds, and with two it says very little.

    Args:
        values_S_P: [S, P]; NaN where a seed has no value for a passage.
    """
    grid = np.asarray(values_S_P, dtype=float)
    if grid.ndim != 2:
        raise DataError(f"crossed_bootstrap wants seeds × passages, got an array of shape {grid.shape}.")
    there = np.isfinite(grid)
    n, dropped = int(there.sum()), int((~there).sum())
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, unit, dropped)
    filled, mask = np.where(there, grid, 0.0), there.astype(float)
    seeds, passages = grid.shape
    rng = np.random.default_rng(seed)
    weight_S = rng.multinomial(seeds, [1 / seeds] * seeds, size=draws)  # (draws, S)
    weight_P = rng.multinomial(passages, [1 / passages] * passages, size=draws)  # (draws, P)
    sums = ((weight_S @ filled) * weight_P).sum(axis=1)
    counts = ((weight_S @ mask) * weight_P).sum(axis=1)
    means = sums[counts > 0] / counts[counts > 0]
    return _estimate(float(grid[there].mean()), [means], n, unit, dropped)


def proportion(successes: int, n: int, unit: str = "task") -> Estimate:
    """Share of independent successes with Wilson's interval, which keeps a width at 0 of n and n of n."""
    if not 0 <= successes <= n:
        raise DataError(f"A proportion needs 0 <= successes <= n, got {successes} of {n}.")
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, unit)
    z, p = 1.959963984540054, successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n, unit)


def separable(difference: Estimate, smallest_n: int = 6) -> bool:
    """Does the interval of a difference exclude zero?

    Fewer than six pairs are never called separable: even if all agree in sign, the exact two-sided sign-flip test
    (`sign_flip_test`) cannot reach 0.05 with five, while the bootstrap interval may look narrow.
    """
    if difference.n < smallest_n or math.isnan(difference.low) or math.isnan(difference.high):
        return False
    return difference.low > 0 or difference.high < 0


def sign_flip_test(differences: Mapping[str, float] | Sequence[float], seed: int = 0, draws: int = DRAWS) -> float:
    """Two-sided p-value of "the mean paired difference is zero" under flipping the sign of each pair.

    Exact over all 2^n sign patterns up to n = 14, else Monte Carlo with the observed pattern counted in. NaN pairs are
    left out; without any pair the answer is NaN.
    """
    values, _ = _finite(_numbers(differences))
    n = len(values)
    if n == 0:
        return math.nan
    values = np.sort(values)
    bar = abs(values.sum()) - 1e-9 * max(1.0, float(np.abs(values).sum()))  # equal sums differ in the last bit
    if n <= 14:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # (2^n, n)
        return float((np.abs(signs @ values) >= bar).mean())
    rng, hits = np.random.default_rng(seed), 0
    for size in _chunks(draws, n):
        signs = 1 - 2 * rng.integers(0, 2, size=(size, n))
        hits += int((np.abs(signs @ values) >= bar).sum())
    return (hits + 1) / (draws + 1)


def holm(pvalues: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: p-values of one family -> adjusted p-values under the same names. NaN stays NaN."""
    ordered = sorted((p, name) for name, p in pvalues.items() if not math.isnan(p))
    adjusted = {name: math.nan for name in pvalues}
    running = 0.0
    for rank, (p, name) in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - rank) * p))
        adjusted[name] = running
    return adjusted


def best_of_k_bias(
    rewards_P_E: Sequence[Sequence[float]], fresh_P: Sequence[float], seed: int = 0, draws: int = DRAWS
) -> dict[str, Estimate]:
    """What selection seems to gain and what it really gains, over the same passages.

    The maximum of k noisy rewards is high even if all self-edits are equally good (winner's curse; paper facts 3.2:
    54.3 against a mean of 40.2, but 43.9 with a held-out seed). So the selected self-edit is scored once more with
    inner-loop seeds that took no part in the selection.

    Args:
        rewards_P_E: [P, k] reward of each self-edit, as used for selection; ragged rows and NaN are allowed.
        fresh_P: [P] reward of the selected self-edit under fresh seeds.

    Returns:
        The estimates `reward_mean`, `reward_best_of_k`, `reward_selected_fresh_seed`.
    """
    if len(rewards_P_E) != len(fresh_P):
        raise DataError(f"Rewards are for {len(rewards_P_E)} passages but fresh scores for {len(fresh_P)}; match them.")
    means, bests, fresh, dropped = [], [], [], 0
    for rewards, again in zip(rewards_P_E, _numbers(fresh_P), strict=True):
        finite, _ = _finite(_numbers(rewards))
        if len(finite) == 0 or not math.isfinite(again):
            dropped += 1  # all three numbers must speak about the same passages
            continue
        means.append(float(finite.mean()))
        bests.append(float(finite.max()))
        fresh.append(float(again))
    named = {"reward_mean": means, "reward_best_of_k": bests, "reward_selected_fresh_seed": fresh}
    result = {}
    for name, values in named.items():
        estimate = bootstrap_mean(values, seed, draws)
        result[name] = Estimate(estimate.value, estimate.low, estimate.high, estimate.n, "passage", dropped)
    return result


def reliability(rewards_P_E_S: Sequence[Sequence[Sequence[float]]]) -> Reliability:
    """Split the spread of rewards within a passage into self-edits (signal) and inner-loop seeds (noise).

    One-way variance components pooled over passages: MS_edit from the means of E self-edits, MS_seed from S seeds of
    one self-edit; reliability of the S-seed mean = 1 − MS_seed / MS_edit, not below 0. The paper's main round 1 has
    0.32 with three seeds (paper facts 3.2). Passages holding a NaN are left out and counted.

    Args:
        rewards_P_E_S: [P, E, S], S >= 2 and E >= 2 (else every share is NaN).
    """
    cube = np.asarray(rewards_P_E_S, dtype=float)
    if cube.ndim != 3:
        raise DataError(f"reliability wants passages × self-edits × seeds, got an array of shape {cube.shape}.")
    keep = np.isfinite(cube).all(axis=(1, 2))
    cube, dropped = cube[keep], int((~keep).sum())
    passages, edits, seeds = cube.shape
    if passages == 0 or edits < 2 or seeds < 2:
        return Reliability(math.nan, math.nan, math.nan, math.nan, passages, dropped)
    ms_seed = float(cube.var(axis=2, ddof=1).mean())
    ms_edit = float(seeds * cube.mean(axis=2).var(axis=1, ddof=1).mean())
    edit_variance = max(0.0, (ms_edit - ms_seed) / seeds)
    of_mean = max(0.0, 1 - ms_seed / ms_edit) if ms_edit > 0 else math.nan
    total = edit_variance + ms_seed
    of_one = edit_variance / total if total > 0 else math.nan
    return Reliability(of_mean, of_one, math.sqrt(edit_variance), math.sqrt(ms_seed), passages, dropped)


def _numbers(values: Mapping[str, float] | Sequence[float]) -> np.ndarray:
    """[n] float64; None counts as NaN."""
    sequence = values.values() if isinstance(values, Mapping) else values
    return np.array([math.nan if value is None else float(value) for value in sequence], dtype=float)


def _finite(values: np.ndarray) -> tuple[np.ndarray, int]:
    keep = np.isfinite(values)
    return values[keep], int((~keep).sum())


def _chunks(draws: int, n: int) -> Iterator[int]:
    """Sizes that add up to `draws`, small enough that size × n numbers fit in memory."""
    step = max(1, _CELLS // max(1, n))
    for start in range(0, draws, step):
        yield min(step, draws - start)


def _resamples(n: int, seed: int, draws: int) -> Iterator[np.ndarray]:
    """Index arrays (chunk, n) of `draws` resamples with replacement; nothing for a single unit."""
    if n < 2:
        return
    rng = np.random.default_rng(seed)
    for size in _chunks(draws, n):
        yield rng.integers(0, n, size=(size, n))


def _estimate(value: float, draws: list[np.ndarray], n: int, unit: str, dropped: int) -> Estimate:
    if n < 2 or not draws:
        return Estimate(value, math.nan, math.nan, n, unit, dropped)
    low, high = np.quantile(np.concatenate(draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n, unit, dropped)
