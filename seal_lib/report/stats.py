"""Estimates with a 95 % interval and an n: means over units and loops, paired differences, tests, reward honesty.

Knows numpy arrays and dictionaries of numbers. Does not know passages, arms, models, files or figures, and needs no
torch. Only the sign flips of `sign_flip_test` are random, and their seed is fixed: the same values give the same
numbers, in whatever order the units arrive.

The **unit** (passage, task, stream) is what is independent. Questions, self-edits and attempts of one unit are not
independent, and enter as its mean. Several **loops** (whole runs with other seeds) that saw the same units are crossed
with them: both are samples, and the interval accounts for other units *and* other loops. The kind of interval depends
on the number:

* a share of 0 … 1 (`SHARE`): Korn and Graubard's interval for clustered questions, "clustered": Clopper and Pearson's
  for the number of independent answers that would vary as much as the units do (Survey Methodology 24, 1998);
* any other number (`DIFFERENCE`, `ANY`): Student's "t";
* several loops: the same two with the variance over loops and units, degrees of freedom by Satterthwaite: "crossed";
* units that all agree have no spread to estimate: the "bound" that Clopper and Pearson give for none of n units;
* a number that cannot vary: low = high, "by construction". One unit has no interval, and the name is empty.

    >>> mean_over_units([0.0, 0.5, 1.0, 0.5], SHARE).value
    0.5
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from seal_lib.errors import DataError

LEVEL, _ALPHA = 0.95, 0.05
DRAWS, _SEED = 10_000, 0  # of sign flips
_TAIL = _ALPHA / 2
_CELLS = 4_000_000  # sign-flipped numbers held in memory at once
SHARE, DIFFERENCE, ANY = (0.0, 1.0), (-1.0, 1.0), (-math.inf, math.inf)  # range of one unit's value
SMALLEST_N = 6  # pairs: with five, the exact two-sided sign-flip test cannot reach 0.05
#: unit -> its value, or several values (questions, self-edits, attempts) that are averaged
UnitValues = Mapping[str, float | Sequence[float]] | Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and the number of units (passages, tasks, sequences, seeds) that it comes from.

    `dropped` counts the given values that could not be used (NaN: diverged, not scorable; or a unit without a partner).
    `interval` names the kind of interval (module docstring), `loops` is the number of whole loops (seeds) that saw the
    units, and `p` is the p-value of a difference, adjusted by Holm over its family (`compare`).
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

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Estimate:
        """Return the estimate in a row of results.csv; missing columns get the defaults."""
        there: dict[str, Any] = {"n": 0} | {name: row[name] for name in ("unit", "interval", "p") if name in row}
        for name in ("n", "dropped", "loops"):
            if isinstance(count := row.get(name), Real) and math.isfinite(count):
                there[name] = int(float(count))
        return cls(**there, value=row["value"], low=row["low"], high=row["high"])

    def row(
        self, experiment: str, arm: str, metric: str, protocol: str = "", model: str = "", grader: str = ""
    ) -> dict[str, object]:
        """Return one row of results.csv; `run.finish` adds the run's name. ``grader``: what judged the answers."""
        names = ("value", "low", "high", "n", "unit", "loops", "dropped", "interval", "p")
        numbers = {name: getattr(self, name) for name in names}
        about = {"grader": grader, "protocol": protocol, "model": model}
        return {"experiment": experiment, "arm": arm, "metric": metric, **numbers, **about}

    def text(self, form: str = ".1f", scale: float = 100, after: str = "") -> str:
        """Return the value and its interval, if it has one: "41.3 % [37.4, 45.3]" for ``after`` " %"."""
        value = f"{scale * self.value:{form}}{after}"
        if math.isnan(self.low) or math.isnan(self.high):
            return value
        return f"{value} [{scale * self.low:{form}}, {scale * self.high:{form}}]"

    def __str__(self) -> str:
        units = f"n = {self.n} {self.unit}" + (f" × {self.loops} loops" if self.loops > 1 else "")
        return f"{self.text('.3f', 1)} ({'no interval, ' if math.isnan(self.low) else ''}{units})"


def mean_over_units(
    values: UnitValues, bounds: tuple[float, float], unit: str = "passage", *, constant: bool = False
) -> Estimate:
    """Return the macro mean over units of one loop, as `mean_over_loops`.

    NaN and None are left out and count as dropped.

    Args:
        values: one number per unit, or several that are averaged; a dictionary gives the units their ids.
        bounds: the range of one unit's value: `SHARE`, `DIFFERENCE` or `ANY`.
        constant: the number cannot vary between samples (a setting, frozen's gain): "by construction".
    """
    return mean_over_loops({0: values}, bounds, unit, constant=constant)


def mean_over_loops(
    values_by_loop: Mapping[Any, UnitValues],
    bounds: tuple[float, float],
    unit: str = "passage",
    *,
    constant: bool = False,
) -> Estimate:
    """Return the mean over units, each averaged over its loops, with an interval over other units and other loops.

    Two-way random effects: the variance is that of loop means plus that of unit means, which counts the residual twice
    and is therefore wide (like Owen's pigeonhole bootstrap, Ann. Appl. Stat. 1, 2007), with degrees of freedom by
    Satterthwaite. A bootstrap of so few loops would be too narrow, since it takes no account of the few degrees of
    freedom. Two loops say little (coverage about 0.87 if loops differ much); one loop says nothing about the spread
    between loops.

    Args:
        values_by_loop: loop -> its units. If no unit was seen by two loops, units are nested in loops.

    Raises:
        DataError: a value lies outside `bounds`, or a `constant` number varies.
    """
    cells, dropped = _cells(values_by_loop)
    for value in cells.values():
        if not bounds[0] - 1e-9 <= value <= bounds[1] + 1e-9:
            raise DataError(f"A {unit} has the value {value:g}, which is outside {bounds}; give the bounds it has.")
    seen = Counter(key for _, key in cells)
    loops, n = len({loop for loop, _ in cells}), len(seen)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0, unit, dropped, loops=len(values_by_loop))
    weights = {cell: 1 / (n * seen[cell[1]]) for cell in cells}
    value = math.fsum(weights[cell] * cells[cell] for cell in cells)
    if constant:
        if max(cells.values()) - min(cells.values()) > 1e-9:
            raise DataError(f"A number that cannot vary has different values among its {n} units; let it vary.")
        return Estimate(value, value, value, n, unit, dropped, "by construction", loops)
    pull = {cell: weights[cell] * (cells[cell] - value) for cell in cells}
    return _estimate(pull, bounds, Estimate(value, math.nan, math.nan, n, unit, dropped, "", loops))


def ratio_over_loops(pairs_by_loop: Mapping[Any, Mapping[str, tuple[float, float]]], unit: str = "passage") -> Estimate:
    """Return a micro mean, the ratio of sums (questions right / questions asked), with its interval.

    Args:
        pairs_by_loop: loop -> unit -> (numerator, denominator), a share; a unit without a denominator is dropped.
    """
    given = {(loop, key): pair for loop, pairs in pairs_by_loop.items() for key, pair in pairs.items()}
    kept = {cell: pair for cell, pair in given.items() if math.isfinite(pair[0] + pair[1]) and pair[1] > 0}
    n, loops, dropped = len({key for _, key in kept}), len({loop for loop, _ in kept}), len(given) - len(kept)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0, unit, dropped, loops=len(pairs_by_loop))
    total = math.fsum(below for _, below in kept.values())
    value = math.fsum(above for above, _ in kept.values()) / total
    pull = {cell: (above - value * below) / total for cell, (above, below) in kept.items()}
    return _estimate(pull, SHARE, Estimate(value, math.nan, math.nan, n, unit, dropped, "", loops))


def compare(
    values: Mapping[str, Mapping[Any, UnitValues]],
    pairs: Sequence[tuple[str, str]],
    bounds: tuple[float, float] = DIFFERENCE,
    unit: str = "passage",
) -> dict[tuple[str, str], Estimate]:
    """Return paired differences a − b over the units (and loops) that both arms have.

    The pairs form one family for Holm's adjustment. An arm with a single loop (frozen, another writer's notes) is the
    same in every loop of the other arm. `p` is the two-sided sign-flip p-value over units, of their means over loops,
    adjusted by Holm over all given pairs. Loops enter the interval but not p; `separable` asks for both. Pairs with a
    missing arm are left out.

    Args:
        values: arm -> loop -> units. An arm without loops: ``{0: units}``.

    Raises:
        DataError: as `differences`.
    """
    found: dict[tuple[str, str], Estimate] = {}
    for a, b in pairs:
        if a in values and b in values:
            apart = differences(values[a], values[b])
            means: dict[str, list[float]] = {}
            for (_, key), value in _cells(apart)[0].items():
                means.setdefault(key, []).append(value)
            p = sign_flip_test([math.fsum(v) / len(v) for v in means.values()])
            found[a, b] = replace(mean_over_loops(apart, bounds, unit), p=p)
    adjusted = holm({pair: estimate.p for pair, estimate in found.items()})
    return {pair: replace(estimate, p=adjusted[pair]) for pair, estimate in found.items()}


def differences(a: Mapping[Any, UnitValues], b: Mapping[Any, UnitValues]) -> dict[object, dict[str, float]]:
    """Return loop -> unit -> a − b.

    A side with one loop is compared with every loop of the other. Units that only one side has are NaN. Raises
    DataError if both sides have several loops, and not the same ones; or they have no unit in common.
    """
    ids = [{str(key) for units in side.values() for key in _named(units)} for side in (a, b)]
    if not ids[0] & ids[1]:
        raise DataError(
            f"A paired difference needs units that both sides have, but none of the {len(ids[0])} and {len(ids[1])} is "
            "common; compare arms that were evaluated on the same ones."
        )
    if len(a) > 1 and len(b) > 1 and set(a) != set(b):
        raise DataError(f"Loops {sorted(map(str, a))} and {sorted(map(str, b))} cannot be paired; run both for each.")
    loops = list(a if len(a) >= len(b) else b)
    (ours, _), (theirs, _) = _cells(a), _cells(b)

    def of(cells: Mapping, side: Mapping, loop: object) -> dict[str, float]:
        there = loop if len(side) > 1 else next(iter(side))
        return {key: value for (one, key), value in cells.items() if one == there}

    result = {}
    for loop in loops:
        left, right = of(ours, a, loop), of(theirs, b, loop)
        result[loop] = {key: left.get(key, math.nan) - right.get(key, math.nan) for key in sorted(ids[0] | ids[1])}
    return result


def separable(difference: Estimate) -> bool:
    """Return whether a paired difference is separable from zero, by the one definition for tables, figures and texts.

    It needs at least `SMALLEST_N` units, an interval that excludes zero, and an adjusted p below 0.05 if there is one.
    """
    if difference.n < SMALLEST_N or math.isnan(difference.low) or math.isnan(difference.high):
        return False
    return (difference.low > 0 or difference.high < 0) and not difference.p >= _ALPHA


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of "the mean paired difference is zero" under flipping the sign of each pair.

    It is exact over all 2^n sign patterns up to n = 14, and beyond that Monte Carlo with the observed pattern counted
    in. NaN pairs are left out; without any pair the result is NaN.
    """
    values = np.sort(np.array([v for v in differences if math.isfinite(v)], dtype=float))
    n = len(values)
    if n == 0:
        return math.nan
    bar = abs(values.sum()) - 1e-9 * max(1.0, float(np.abs(values).sum()))  # equal sums differ in the last bit
    if n <= 14:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # (2^n, n)
        return float((np.abs(signs @ values) >= bar).mean())
    rng, hits = np.random.default_rng(_SEED), 0
    step = max(1, _CELLS // n)
    for start in range(0, DRAWS, step):
        signs = 1 - 2 * rng.integers(0, 2, size=(min(step, DRAWS - start), n))
        hits += int((np.abs(signs @ values) >= bar).sum())
    return (hits + 1) / (DRAWS + 1)


def holm(pvalues: Mapping[Any, float]) -> dict[object, float]:
    """Return p-values of one family after Holm's step-down adjustment, under the same names; NaN stays NaN."""
    ordered = sorted(((p, name) for name, p in pvalues.items() if not math.isnan(p)), key=lambda pair: pair[0])
    adjusted = {name: math.nan for name in pvalues}
    running = 0.0
    for rank, (p, name) in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - rank) * p))
        adjusted[name] = running
    return adjusted


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's correlation of two lists, with ties at their mean rank; NaN if one of them does not vary.

    Pairs with a NaN are left out.
    """
    pairs = np.array([pair for pair in zip(a, b, strict=True) if all(map(math.isfinite, pair))], dtype=float)
    if len(pairs) < 2:
        return math.nan
    ranks = [(column[:, None] > column).sum(1) + (column[:, None] == column).sum(1) / 2 for column in pairs.T]
    x, y = (rank - rank.mean() for rank in ranks)
    spread = math.sqrt(float((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread else math.nan


def best_of_k_bias(
    rewards_by_loop: Mapping[Any, Mapping[str, Sequence[float]]],
    fresh_by_loop: Mapping[Any, Mapping[str, float]],
    unit: str = "passage",
) -> dict[str, Estimate]:
    """Return what selection seems to gain and what it really gains, over the same units.

    The estimates are `reward_mean`, `reward_best_of_k` and `reward_selected_fresh_seed`.
    The maximum of k noisy rewards is high even if all self-edits are equally good (winner's curse: in the trials that
    the authors released 54.3 against a mean of 40.2, but 43.9 with a held-out seed). So the selected self-edit is
    scored once more with inner-loop seeds that were not used in the selection.

    Args:
        rewards_by_loop: loop -> unit -> reward of each self-edit, as used for selection; NaN is allowed.
        fresh_by_loop: loop -> unit -> reward of the selected self-edit under fresh seeds; a unit without is dropped.
    """
    three: dict[object, dict[str, tuple[float, ...]]] = {loop: {} for loop in rewards_by_loop}
    for loop, rewards in rewards_by_loop.items():
        for name, several in rewards.items():
            finite = [reward for reward in several if math.isfinite(reward)]
            again = fresh_by_loop.get(loop, {}).get(name, math.nan)
            there = bool(finite) and math.isfinite(again)  # all three numbers must be over the same units
            three[loop][name] = (sum(finite) / len(finite), max(finite), again) if there else (math.nan,) * 3
    return {
        name: mean_over_loops({loop: {u: v[k] for u, v in of.items()} for loop, of in three.items()}, SHARE, unit)
        for k, name in enumerate(("reward_mean", "reward_best_of_k", "reward_selected_fresh_seed"))
    }


def reliability(rewards: Iterable[Sequence[Sequence[float]]], unit: str = "passage") -> Estimate:
    """Return the share of the spread of rewards among a unit's self-edits that other inner-loop seeds would reproduce.

    It lies in [0, 1], is for the mean over the S seeds that were run, and has no interval. One-way variance components
    pooled over units: 1 − MS_seed / MS_edit, not below 0, with MS_edit from the means of a unit's self-edits and
    MS_seed from the S seeds of one self-edit. Units that hold a NaN are dropped. ``rewards``: for each unit [E, S]: E
    self-edits (E may differ), S seeds (E and S >= 2, else the value is NaN).
    """
    given = [np.asarray(one, dtype=float) for one in rewards]
    units = [one for one in given if np.isfinite(one).all()]
    several = [one for one in units if one.shape[0] > 1 and one.shape[1] > 1]
    value = math.nan
    if several:
        freedom = [len(one) - 1 for one in several]
        ms_seed = float(np.concatenate([one.var(axis=1, ddof=1) for one in several]).mean())
        ms_edit = float(np.average([one.shape[1] * one.mean(axis=1).var(ddof=1) for one in several], weights=freedom))
        value = max(0.0, 1 - ms_seed / ms_edit) if ms_edit > 0 else math.nan
    return Estimate(value, math.nan, math.nan, len(several), unit, len(given) - len(units))


def _named(units: UnitValues) -> Mapping[Any, Any]:
    return units if isinstance(units, Mapping) else dict(enumerate(units))


def _cells(values_by_loop: Mapping[Any, UnitValues]) -> tuple[dict[tuple[object, str], float], int]:
    """Return (loop, unit) -> mean of its finite values, in an order of its own, and the number of dropped values."""
    cells, dropped = {}, 0
    for loop, units in values_by_loop.items():
        for key, given in _named(units).items():
            several = [given] if given is None or np.ndim(given) == 0 else list(given)
            finite = [float(v) for v in several if v is not None and math.isfinite(v)]
            dropped += len(several) - len(finite)
            if finite:
                cells[loop, str(key)] = math.fsum(finite) / len(finite)
    return dict(sorted(cells.items(), key=lambda cell: (str(cell[0][0]), cell[0][1]))), dropped


def _estimate(pull: Mapping[tuple[object, str], float], bounds: tuple[float, float], plain: Estimate) -> Estimate:
    """Return `plain` with its interval.

    `pull` is how far each (loop, unit) moves the value; the pulls add up to zero.
    """
    from scipy.special import betaincinv, ndtri, stdtrit

    parts = [_spread(pull, axis=1)]
    shared = plain.n < len(pull)  # some unit was seen by two loops
    if plain.loops > 1:
        parts = [_spread(pull, axis=0), *(parts if shared else [])]
    variance, value = math.fsum(part for _, part in parts), plain.value
    if plain.n < 2 or variance <= 1e-18 and not all(map(math.isfinite, bounds)):
        return plain
    if variance <= 1e-18:  # all units have one value, and others are rarer than Clopper and Pearson's limit
        rare = 1 - _TAIL ** (1 / plain.n)
        low, high = value - rare * (value - bounds[0]), value + rare * (bounds[1] - value)
        return replace(plain, low=low, high=high, interval="bound")
    df = variance**2 / math.fsum(part**2 / (n - 1) for n, part in parts)
    crossed = "crossed" if plain.loops > 1 else ""
    t = float(stdtrit(df, 1 - _TAIL))
    if bounds != SHARE or not 0 < value < 1:
        half = t * math.sqrt(variance)
        low, high = max(bounds[0], value - half), min(bounds[1], value + half)
        return replace(plain, low=low, high=high, interval=crossed or "t")
    answers = value * (1 - value) / variance * (float(ndtri(1 - _TAIL)) / t) ** 2
    right = value * answers
    low = float(betaincinv(right, answers - right + 1, _TAIL))
    high = float(betaincinv(right + 1, answers - right, 1 - _TAIL))
    return replace(plain, low=low, high=high, interval=crossed or "clustered")


def _spread(pull: Mapping[tuple[object, str], float], axis: int) -> tuple[int, float]:
    """Return the number of groups along one axis (loops 0, units 1), and the value's variance if they are redrawn."""
    sums: dict[object, list[float]] = {}
    for cell, part in pull.items():
        sums.setdefault(cell[axis], []).append(part)
    n = len(sums)
    return n, math.fsum(math.fsum(part) ** 2 for part in sums.values()) * n / (n - 1) if n > 1 else 0.0
