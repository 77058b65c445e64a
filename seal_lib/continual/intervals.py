"""Forgetting metrics with 95 % intervals over sequences, and the comparison of two arms.

Knows stacks of accuracy matrices [S, K+1, K] (``metrics``) and numbers per sequence. Does not know models, arms, files
or figures, and needs only numpy.

A metric that needs a cell that is NaN is NaN for that sequence, and the mean over sequences is then not given either,
unless `survivors=True` asks for it: sequences that diverge are the bad ones, and leaving them out flatters the arm.
What happened is named in `Measure.outcome`:

* ``ok``; ``survivors``: mean over the sequences that have the cells, as asked for;
* ``not_measured``: the cells lie in an upper triangle that no sequence has; ``no_reference``: no reference was given;
* ``incomplete``: some sequences lack cells, the note says how many and why;
* ``no_gain``: nothing was gained, so its share or half-life has no meaning; ``not_reached``: still above at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seal_lib import stats
from seal_lib.continual import metrics
from seal_lib.errors import DataError
from seal_lib.stats import DRAWS, LEVEL, Estimate

MARGIN = 0.03  # accuracy within 3 points counts as "as good as" (study plan: equivalence against joint retraining)
UNIT = "sequence"
_TAIL = (1 - LEVEL) / 2


@dataclass(frozen=True)
class Measure:
    """An estimate, how it came about (module docstring), and one sentence more where it is needed."""

    estimate: Estimate
    outcome: str = "ok"
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """a − b over the sequences both have: sign-flip p, Holm-adjusted within its family, and the equivalence verdict."""

    a: str
    b: str
    difference: Estimate
    p: float
    p_holm: float
    verdict: str
    outcome: str = "ok"


def summary(
    R: object, isolated: object = None, joint: object = None, sequences: int | None = None, survivors: bool = False,
    seed: int = 0, draws: int = DRAWS,
) -> dict[str, Measure]:  # fmt: skip
    """Every metric by name: `metrics.LINEAR` (AA as AA_<K>), F_<K>, half_life, break_even, AA_<k>, age_<t>, and
    intransigence_ and recovery_ against each reference.

    Args:
        R: a stack [S, K+1, K] gives 95 % bootstrap intervals over sequences; one matrix [K+1, K] gives values only.
        isolated, joint: reference accuracies, a number (its own uncertainty is then left out), [K] or [S, K].
        sequences: how many sequences one mean matrix stands for.
    """
    stack = metrics.check(R)
    if stack.ndim > 3:
        raise DataError(f"A summary takes one matrix or a stack of sequences, not an array of shape {stack.shape}.")
    many = stack.ndim == 3
    stack = stack if many else stack[None]
    K, run = stack.shape[-1], _Over(stack, survivors, seed, draws)
    result = {(f"AA_{K}" if name == "AA" else name): run.mean(metric(stack)) for name, metric in metrics.LINEAR.items()}
    result[f"F_{K}"] = run.ratio(metrics.mean_matrix_forgetting, stack, centred=True)
    for name, metric in {"half_life": metrics.half_life, "break_even": metrics.break_even}.items():
        result[name] = run.ratio(metric, stack)
    for name, reference in {"isolated": isolated, "joint": joint}.items():
        if reference is None:
            none = Measure(_nothing(0, 0), "no_reference", f"Needs the {name} accuracies.")
            result |= {f"intransigence_{name}": none, f"recovery_{name}": none}
            continue
        wide = metrics.as_reference(reference, stack)
        result[f"intransigence_{name}"] = run.mean(metrics.intransigence(stack, wide))
        both = np.concatenate([stack, wide[:, None, :]], axis=1)  # (S, K+2, K): the reference travels with its sequence
        result[f"recovery_{name}"] = run.ratio(lambda m: metrics.recovery(m[..., :-1, :], m[..., -1, :]), both)
    for k in range(1, K):
        result[f"AA_{k}"] = run.mean(metrics.average_accuracy(stack, k))
    for t, gain in enumerate(np.moveaxis(metrics.age_curve(stack), -1, 0)):
        result[f"age_{t}"] = run.mean(gain)
    if not many:
        n = 1 if sequences is None else sequences
        note = "No interval: this is one mean matrix, and an interval needs the matrix of every sequence."
        for name, measure in result.items():
            if measure.outcome in ("ok", "not_reached"):
                estimate = Estimate(measure.estimate.value, math.nan, math.nan, n, UNIT)
                result[name] = Measure(estimate, measure.outcome, f"{measure.note} {note}".strip())
    return result


def kept_learned(
    before_S: Sequence[Sequence[float]], after_S: Sequence[Sequence[float]], survivors: bool = False, seed: int = 0
) -> dict[str, Measure]:
    """kept = P(right after | right at base), learned = P(right after | wrong at base), over questions (ours).

    Tells injected knowledge from prior knowledge, which one accuracy mixes. Ratios of sums over sequences; a sequence
    without a question of the kind adds nothing to either sum.

    Args:
        before_S, after_S: [S][Q_s] 1 or 0 per question of each sequence, in the same order; None or NaN: not measured.
    """
    if [len(row) for row in before_S] != [len(row) for row in after_S]:
        raise DataError("Kept and learned compare the same questions before and after, but their numbers differ.")
    counts = {"kept": [], "learned": []}
    for before, after in zip(before_S, after_S, strict=True):
        b, a = np.array(before, dtype=float), np.array(after, dtype=float)
        known = np.isnan(b) | np.isnan(a)
        if not np.isin(np.concatenate([b[~known], a[~known]]), (0.0, 1.0)).all():
            raise DataError("Kept and learned need 1 (right) or 0 (wrong) for each question; give answers, not means.")
        lost = math.nan if known.any() else 0.0
        counts["kept"].append((float((b * a).sum()) + lost, float(b.sum()) + lost))
        counts["learned"].append((float(((1 - b) * a).sum()) + lost, float((1 - b).sum()) + lost))
    result = {}
    for name, pairs in counts.items():
        missing = sum(math.isnan(total) for _, total in pairs)
        estimate = stats.micro([x for x, _ in pairs], [total for _, total in pairs], seed, unit=UNIT)
        if missing and not survivors:
            note = f"{missing} of {len(pairs)} sequences have questions without an answer."
            result[name] = Measure(_nothing(len(pairs) - missing, missing), "incomplete", note)
        elif estimate.n == 0:
            kind = "right" if name == "kept" else "wrong"
            result[name] = Measure(estimate, "not_measured", f"No question was {kind} at base.")
        else:
            result[name] = Measure(estimate, "survivors" if missing else "ok")
    return result


# --- two arms -----------------------------------------------------------------------------------------------------


def equivalence(difference: Estimate, margin: float = MARGIN, smallest_n: int = 6) -> str:
    """Where the 95 % interval of a difference lies: equivalent, not_worse, higher, lower or undecided.

    ``equivalent``: wholly within ±margin, i.e. two one-sided tests at 2.5 % each (TOST by interval). ``not_worse``:
    above −margin only. ``higher``/``lower``: wholly beyond the margin. Fewer than six pairs decide nothing.
    """
    low, high = difference.low, difference.high
    if difference.n < smallest_n or math.isnan(low) or math.isnan(high):
        return "undecided"
    if low > -margin and high < margin:
        return "equivalent"
    if low > margin:
        return "higher"
    if high < -margin:
        return "lower"
    return "not_worse" if low > -margin else "undecided"


def compare(
    values: Mapping[str, Mapping[str, float]], pairs: Sequence[tuple[str, str]], margin: float = MARGIN,
    survivors: bool = False, seed: int = 0, draws: int = DRAWS,
) -> list[Comparison]:  # fmt: skip
    """The arms of each pair, a − b, over the same sequences; `pairs` is one family for Holm's correction.

    Args:
        values: arm -> sequence id -> one metric of that sequence; NaN where the sequence has none (diverged).

    A pair in which some sequence lacks a partner or a value is ``incomplete``: no difference, p NaN, undecided.

    Raises:
        DataError: an arm that `values` does not have.
    """
    rows: list[tuple[str, str, Estimate, str]] = []
    ps: dict[str, float] = {}
    for a, b in pairs:
        for arm in (a, b):
            if arm not in values:
                raise DataError(f"There is no arm {arm!r} to compare; there are {', '.join(sorted(values))}.")
        common = [key for key in values[a] if key in values[b] and math.isfinite(values[a][key] - values[b][key])]
        lost = len(set(values[a]) | set(values[b])) - len(common)
        key, p, difference, how = str(len(rows)), math.nan, _nothing(len(common), lost), "incomplete"
        if common and (survivors or not lost):
            difference = stats.paired_difference(values[a], values[b], seed, draws, UNIT)
            p = stats.sign_flip_test(list(stats.paired(values[a], values[b])[0].values()), seed, draws)
            how = "survivors" if lost else "ok"
        rows.append((a, b, difference, how))
        ps[key] = p
    adjusted = stats.holm(ps)
    return [
        Comparison(a, b, difference, ps[str(i)], adjusted[str(i)], equivalence(difference, margin), how)
        for i, (a, b, difference, how) in enumerate(rows)
    ]


# --- inner parts --------------------------------------------------------------------------------------------------


class _Over:
    """Means and ratios over the sequences of one stack, all with the same rule about missing cells."""

    def __init__(self, stack: np.ndarray, survivors: bool, seed: int, draws: int):
        self.outcomes = [metrics.outcome(matrix) for matrix in stack]
        self.survivors, self.seed, self.draws = survivors, seed, draws

    def mean(self, value_S: np.ndarray) -> Measure:
        missing = self._missing(np.isnan(value_S))
        if missing and missing.outcome != "survivors":
            return missing
        estimate = stats.bootstrap_mean(value_S, self.seed, self.draws, UNIT)
        return Measure(estimate, missing.outcome, missing.note) if missing else Measure(estimate)

    def ratio(self, metric: Callable[[np.ndarray], np.ndarray], stack: np.ndarray, centred: bool = False) -> Measure:
        """`metric` of the mean matrix; whole sequences are resampled and averaged before the metric is taken.

        `centred` is for maxima: resampling adds noise, a maximum turns noise into bias, and the interval could miss
        its own value; so the median of the resamples is moved onto the value. The bias of the value itself stays.
        """
        needed = np.ones(stack.shape[1:], dtype=bool)
        needed[: stack.shape[2] + 1] = metrics.needed_cells(stack.shape[2])
        lost = np.isnan(stack[:, needed]).any(axis=1)
        missing = self._missing(lost)
        if missing and missing.outcome != "survivors":
            return missing
        how, notes = (missing.outcome, [missing.note]) if missing else ("ok", [])
        stack = stack[~lost]
        n, value = len(stack), float(metric(stack.mean(axis=0)))
        if math.isnan(value):
            note = "On average nothing was gained, a share has no meaning."
            return Measure(_nothing(n, int(lost.sum())), "no_gain", note)
        low = high = math.nan
        if n > 1:
            drawn = np.concatenate([metric(means) for means in _mean_matrices(stack, self.seed, self.draws)])
            drawn = drawn - np.median(drawn) + value if centred else drawn
            empty = float(np.isnan(drawn).mean())
            if empty:
                notes.append(f"{empty:.1%} of the resamples gain nothing.")
            if empty < _TAIL:  # a resample without a gain could be anything, so it counts against both ends
                low = np.quantile(np.where(np.isnan(drawn), -np.inf, drawn), _TAIL, method="lower")
                high = np.quantile(np.where(np.isnan(drawn), np.inf, drawn), 1 - _TAIL, method="higher")
        if math.inf in (value, high):
            end = "value" if value == math.inf else "upper end"
            notes.append(f"The {end} lies beyond {stack.shape[2] - 1} later edits.")
            how = "not_reached" if value == math.inf else how
        value, low, high = (float(x) if math.isfinite(x) else math.nan for x in (value, low, high))
        return Measure(Estimate(value, low, high, n, UNIT, int(lost.sum())), how, " ".join(notes))

    def _missing(self, lost_S: np.ndarray) -> Measure | None:
        """None if no sequence is lost; else what to report instead of a mean, or ``survivors`` if one was asked for."""
        lost, n = int(lost_S.sum()), len(lost_S)
        if not lost:
            return None
        why = Counter(name for name, gone in zip(self.outcomes, lost_S, strict=True) if gone)
        if lost == n and set(why) == {"triangle"}:
            return Measure(_nothing(0, n), "not_measured", "Needs passages not edited yet (upper triangle).")
        named = {"complete": "no reference", "triangle": "no upper triangle"}  # the matrix itself has what it needs
        reasons = ", ".join(f"{count} {named.get(name, name)}" for name, count in sorted(why.items()))
        how = "survivors" if self.survivors and lost < n else "incomplete"
        return Measure(_nothing(n - lost, lost), how, f"{lost} of {n} lost: {reasons}.")


def _mean_matrices(stack: np.ndarray, seed: int, draws: int) -> Iterator[np.ndarray]:
    """Mean matrices (chunk, rows, K) of `draws` resamples of whole sequences; their order changes nothing."""
    flat = stack.reshape(len(stack), -1)
    flat = flat[np.lexsort(flat.T[::-1])]
    rng, step = np.random.default_rng(seed), 1000
    for start in range(0, draws, step):
        weights = rng.multinomial(len(flat), [1 / len(flat)] * len(flat), size=min(step, draws - start)) / len(flat)
        yield (weights @ flat).reshape(-1, *stack.shape[1:])


def _nothing(n: int, dropped: int) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, n, UNIT, dropped)
