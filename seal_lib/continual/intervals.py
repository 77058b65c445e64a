"""Forgetting metrics with 95 % intervals over sequences, and the comparison of two arms.

The input is stacks of accuracy matrices [S, K+1, K] (see ``metrics``) or numbers per sequence. Means, tests and the
names of intervals come from `seal_lib.report.stats`.

A metric that needs a NaN cell is NaN for that sequence. The sequence is left out of the mean and counted in `dropped`.
The sequences that diverge are the bad ones, so dropping them flatters the arm: read the share of diverged sequences
beside the mean. `Measure.outcome` names what happened:

* ``ok``: every sequence has the cells;
* ``survivors``: some sequences lack cells; the note says how many and why;
* ``not_measured``: the cells lie in the upper triangle, which no sequence has;
* ``no_reference``: no reference was given;
* ``incomplete``: no sequence has the cells;
* ``no_gain``: nothing was gained, so a share of the gain and its half-life are undefined;
* ``not_reached``: the curve is still above the level at the end.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats as scipy_stats

from seal_lib.continual import metrics
from seal_lib.continual.metrics import Metric
from seal_lib.errors import DataError
from seal_lib.report import stats
from seal_lib.report.stats import DIFFERENCE, DRAWS, LEVEL, SHARE, SMALLEST_N, Estimate

MARGIN = 0.03  # accuracy within 3 points counts as "as good as" (study plan: equivalence against joint retraining)
UNIT = "sequence"
FEW = 30  # below this many sequences, Student's t on the jackknife covers better than a bootstrap
#: the metrics of `metrics.LINEAR` that are accuracies; the others are differences of accuracies
SHARES = ("base", "LA", "AA", "AIA")


@dataclass(frozen=True)
class Measure:
    """An estimate, its outcome (see the module docstring), and a note where one is needed."""

    estimate: Estimate
    outcome: str = "ok"
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The difference a − b over the sequences that both arms have, and its equivalence verdict.

    The p-value in ``difference`` is adjusted by Holm within its family.
    """

    a: str
    b: str
    difference: Estimate
    verdict: str


def summary(
    R: object,
    isolated: object = None,
    joint: object = None,
    sequences: int | None = None,
    constant: Collection[str] = (),
    draws: int = DRAWS,
) -> dict[str, Measure]:
    """Return every metric of a matrix, or of a stack of matrices, by name.

    The names are those of `metrics.LINEAR` (AA as AA_<K>), F_<K>, half_life, break_even, AA_<k>, age_<t>, and
    intransigence_<reference> and recovery_<reference>.

    Args:
        R: a stack [S, K+1, K] gives 95 % intervals over sequences; one matrix [K+1, K] gives values only.
        isolated, joint: reference accuracies as a number, [K] or [S, K]; the uncertainty of a single number is ignored.
        sequences: the number of sequences behind one mean matrix.
        constant: names of the metrics that cannot vary between sequences, such as the gains of a frozen model; the word
            "age" stands for all age_<t>.
    """
    stack = metrics.check(R)
    if stack.ndim > 3:
        raise DataError(f"A summary takes one matrix or a stack of sequences, not an array of shape {stack.shape}.")
    many = stack.ndim == 3
    stack = stack if many else stack[None]
    K, run = stack.shape[-1], _Over(stack, draws)

    def mean_of(value_S: np.ndarray, name: str, share: bool = False) -> Measure:
        outcome, note = run.missing(np.isnan(value_S))
        found = mean(value_S, SHARE if share else DIFFERENCE, name in constant)
        return replace(found, outcome=outcome, note=note)

    result = {
        (f"AA_{K}" if name == "AA" else name): mean_of(metric(stack), name, name in SHARES)
        for name, metric in metrics.LINEAR.items()
    }
    result[f"F_{K}"] = run.ratio(metrics.forgetting, stack, centred=True, constant="F" in constant)
    for name, metric in {"half_life": metrics.half_life, "break_even": metrics.break_even}.items():
        result[name] = run.ratio(metric, stack)
    for name, reference in {"isolated": isolated, "joint": joint}.items():
        if reference is None:
            none = Measure(_nothing(0, 0), "no_reference", f"Needs the {name} accuracies.")
            result |= {f"intransigence_{name}": none, f"recovery_{name}": none}
            continue
        wide = metrics.as_reference(reference, stack)
        result[f"intransigence_{name}"] = mean_of(metrics.intransigence(stack, wide), f"intransigence_{name}")
        both = np.concatenate([stack, wide[:, None, :]], axis=1)  # a reference is resampled with its sequence
        result[f"recovery_{name}"] = run.ratio(
            lambda m: metrics.recovery(m[..., :-1, :], m[..., -1, :]), both, constant=f"recovery_{name}" in constant
        )
    for k in range(1, K):
        result[f"AA_{k}"] = mean_of(metrics.average_accuracy(stack, k), f"AA_{k}", share=True)
    for t, gain in enumerate(np.moveaxis(metrics.age_curve(stack), -1, 0)):
        result[f"age_{t}"] = mean_of(gain, "age")
    if not many:
        n = 1 if sequences is None else sequences
        note = "No interval: this is one mean matrix, and an interval needs the matrix of every sequence."
        for name, measure in result.items():
            if measure.outcome in ("ok", "not_reached"):
                estimate = Estimate(measure.estimate.value, math.nan, math.nan, n, UNIT)
                result[name] = Measure(estimate, measure.outcome, f"{measure.note} {note}".strip())
    return result


def mean(values: Sequence[float | None], bounds: tuple[float, float] = SHARE, constant: bool = False) -> Measure:
    """Return the mean over the sequences that have the number; the others (None or NaN: diverged) count as dropped.

    A ``constant`` number that rounding made vary after all has an interval like any other.
    """
    numbers = [math.nan if v is None else float(v) for v in values]
    constant = constant and len({x for x in numbers if not math.isnan(x)}) == 1
    estimate = stats.mean_over_units(numbers, bounds, UNIT, constant=constant)
    return Measure(estimate, "ok" if not estimate.dropped else "survivors" if estimate.n else "incomplete")


def kept_learned(
    before_S: Sequence[Sequence[float]], after_S: Sequence[Sequence[float]], constant: bool = False
) -> dict[str, Measure]:
    """Return kept = P(right after | right at base) and learned = P(right after | wrong at base) (ours).

    The pair separates prior from injected knowledge, which a single accuracy mixes. Both are ratios of sums over
    sequences: a sequence without a question of the kind adds nothing to either sum.

    Args:
        before_S, after_S: [S][Q_s], 1 or 0 per question, in the same order; None or NaN where not measured.
        constant: neither share can vary between sequences.

    Raises:
        DataError: the numbers of questions differ, or a value is neither 0 nor 1.
    """
    if [len(row) for row in before_S] != [len(row) for row in after_S]:
        raise DataError("Kept and learned compare the same questions before and after, but their numbers differ.")
    counts = {"kept": [], "learned": []}
    for both in zip(before_S, after_S, strict=True):
        b, a = np.array(both, dtype=float)
        if not np.isin((b, a), (0.0, 1.0)).all(where=~np.isnan((b, a))):
            raise DataError("Kept and learned need 1 (right) or 0 (wrong) for each question; give answers, not means.")
        b = np.where(np.isnan(a), np.nan, b)  # a question without its answer leaves its sequence out
        counts["kept"].append(((b * a).sum(), b.sum()))
        counts["learned"].append((((1 - b) * a).sum(), (1 - b).sum()))
    result = {}
    for name, pairs in counts.items():
        missing = sum(math.isnan(total) for _, total in pairs)
        estimate = stats.ratio_over_loops({0: {f"{n:06d}": pair for n, pair in enumerate(pairs)}}, UNIT)
        estimate = replace(estimate, dropped=missing)  # a sequence without a question of the kind is not lost
        if constant and estimate.value in (0.0, 1.0):  # else rounding flipped an answer
            estimate = replace(estimate, low=estimate.value, high=estimate.value, interval="by construction")
        if estimate.n == 0:
            kind = "right" if name == "kept" else "wrong"
            result[name] = Measure(estimate, "not_measured", f"No question was {kind} at base.")
        else:
            note = f"{missing} of {len(pairs)} sequences have questions without an answer." if missing else ""
            result[name] = Measure(estimate, "survivors" if missing else "ok", note)
    return result


def equivalence(difference: Estimate) -> str:
    """Classify the 95 % interval of a difference as equivalent, not_worse, higher, lower or undecided.

    ``equivalent``: the interval lies wholly within ±`MARGIN`, i.e. two one-sided tests at 2.5 % each (TOST by
    interval). ``not_worse``: it lies above −`MARGIN` only. ``higher`` and ``lower``: it lies wholly beyond the margin.
    Fewer pairs than `stats.SMALLEST_N` are always undecided.
    """
    low, high = difference.low, difference.high
    if difference.n < SMALLEST_N or math.isnan(low) or math.isnan(high):
        return "undecided"
    if low > -MARGIN and high < MARGIN:
        return "equivalent"
    if low > MARGIN:
        return "higher"
    if high < -MARGIN:
        return "lower"
    return "not_worse" if low > -MARGIN else "undecided"


def compare(values: Mapping[str, Mapping[str, float]], pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """Compare the arms of each pair, a − b, over the sequences that both have.

    Args:
        values: arm -> sequence id -> accuracy of that sequence; NaN if it diverged, which drops the sequence.
        pairs: one family for Holm's correction.

    Raises:
        DataError: a pair names an arm that `values` lacks.
    """
    for arm in (arm for pair in pairs for arm in pair):
        if arm not in values:
            raise DataError(f"There is no arm {arm!r} to compare; there are {', '.join(sorted(values))}.")
    found = stats.compare({arm: {0: units} for arm, units in values.items()}, pairs, DIFFERENCE, UNIT)
    return [Comparison(a, b, estimate, equivalence(estimate)) for (a, b), estimate in found.items()]


class _Over:
    """Computes ratios over the sequences of one stack, and says which sequences lack cells and why."""

    def __init__(self, stack: np.ndarray, draws: int):
        self.outcomes, self.draws = [metrics.outcome(matrix) for matrix in stack], draws

    def ratio(self, metric: Metric, stack: np.ndarray, centred: bool = False, constant: bool = False) -> Measure:
        """Return `metric` of the mean matrix, with an interval from resampled sequences.

        Whole sequences are resampled and averaged before the metric is taken. With few sequences the interval is
        Student's t on the jackknife's standard error (the tests measure its coverage with four). If leaving one
        sequence out gives no number, the percentiles of the resamples are used, widened after Hesterberg (2015,
        "expanded"): Student's t in place of the normal, times √(n/(n−1)).

        Set `centred` for maxima: resampling adds noise and a maximum turns noise into bias, so the interval could miss
        its own value; the median of the resamples is therefore shifted onto the value. The bias of the value itself
        stays.
        """
        needed = np.ones(stack.shape[1:], dtype=bool)
        needed[: stack.shape[2] + 1] = metrics.needed_cells(stack.shape[2])
        lost = np.isnan(stack[:, needed]).any(axis=1)
        how, note = self.missing(lost)
        stack, notes = stack[~lost], [note] if note else []
        n, dropped = len(stack), int(lost.sum())
        if not n:
            return Measure(_nothing(0, dropped), how, note)
        value = float(metric(stack.mean(axis=0)))
        if math.isnan(value):
            return Measure(_nothing(n, dropped), "no_gain", "On average nothing was gained, a share has no meaning.")
        if constant:
            return Measure(Estimate(value, value, value, n, UNIT, dropped, "by construction"), how)
        low = high = math.nan
        if n > 1:
            tail = expanded_tail(n)
            drawn = np.concatenate([metric(means) for means in _mean_matrices(stack, self.draws)])
            drawn = drawn - np.median(drawn) + value if centred else drawn
            empty = float(np.isnan(drawn).mean())
            if empty:
                notes.append(f"{empty:.1%} of the resamples gain nothing.")
            if empty < tail:  # a resample without a gain has no value, so it counts against both ends
                low = np.quantile(np.where(np.isnan(drawn), -np.inf, drawn), tail, method="lower")
                high = np.quantile(np.where(np.isnan(drawn), np.inf, drawn), 1 - tail, method="higher")
        if math.inf in (value, high):
            end = "value" if value == math.inf else "upper end"
            notes.append(f"The {end} lies beyond {stack.shape[2] - 1} later edits.")
            how = "not_reached" if value == math.inf else how
        value, low, high = (float(x) if math.isfinite(x) else math.nan for x in (value, low, high))
        kind = "bootstrap" if not math.isnan(low) or not math.isnan(high) else ""
        if kind and n < FEW and not centred and not math.isnan(reach := _jackknife(metric, stack)):
            low, high, kind = value - reach, value + reach, "t"
        return Measure(Estimate(value, low, high, n, UNIT, dropped, kind), how, " ".join(notes))

    def missing(self, lost_S: np.ndarray) -> tuple[str, str]:
        """Return the outcome if these sequences are lost, and a note that names the reasons."""
        lost, n = int(lost_S.sum()), len(lost_S)
        if not lost:
            return "ok", ""
        why = Counter(name for name, gone in zip(self.outcomes, lost_S, strict=True) if gone)
        if lost == n and set(why) == {"triangle"}:
            return "not_measured", "Needs passages not edited yet (upper triangle)."
        named = {"complete": "no reference", "triangle": "no upper triangle"}  # nothing is wrong with the matrix itself
        reasons = ", ".join(f"{count} {named.get(name, name)}" for name, count in sorted(why.items()))
        return "survivors" if lost < n else "incomplete", f"{lost} of {n} lost: {reasons}."


def _jackknife(metric: Metric, stack: np.ndarray) -> float:
    """Return half the width of the 95 % interval by Student's t on the jackknife's standard error.

    NaN if leaving one sequence out gives no number.
    """
    n = len(stack)
    without = np.array([float(metric(np.delete(stack, i, axis=0).mean(axis=0))) for i in range(n)])
    if not np.isfinite(without).all():
        return math.nan
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    return float(scipy_stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error


def expanded_tail(n: int) -> float:
    """Return the quantile at which a bootstrap of n sequences is cut at each end for 95 % (Hesterberg 2015)."""
    reach = float(scipy_stats.t.ppf((1 + LEVEL) / 2, n - 1)) * math.sqrt(n / (n - 1))
    return float(scipy_stats.norm.cdf(-reach))


def _mean_matrices(stack: np.ndarray, draws: int) -> Iterator[np.ndarray]:
    """Yield mean matrices [chunk, rows, K] of `draws` resamples of whole sequences, whatever order these come in."""
    flat = stack.reshape(len(stack), -1)
    flat = flat[np.lexsort(flat.T[::-1])]
    rng, step = np.random.default_rng(0), 1000
    for start in range(0, draws, step):
        weights = rng.multinomial(len(flat), [1 / len(flat)] * len(flat), size=min(step, draws - start)) / len(flat)
        yield (weights @ flat).reshape(-1, *stack.shape[1:])


def _nothing(n: int, dropped: int) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, n, UNIT, dropped)
