"""Metrics of forgetting on the accuracy matrix of a stream of edits: exact definitions, one number per matrix.

The only data is an array R[..., r, i], the accuracy on passage i after r edits, with r = 0..K (row 0 is the unedited
model) and i = 0..K−1. Passage i is edited at step i+1, so R[i+1, i] is the accuracy right after its own edit, and the
cells with i >= r >= 1, the upper triangle, belong to passages not edited yet. A stack [S, K+1, K] holds S sequences. A
cell that was not measured is NaN, never 0, and a metric that needs it is NaN. ``intervals`` adds intervals.
"""

from collections.abc import Callable

import numpy as np

from seal_lib.errors import DataError

Metric = Callable[[np.ndarray], np.ndarray]
ROUNDING = 1e-9  # a mean of ones over sequences can exceed 1 in the last bit


def check(R: object) -> np.ndarray:
    """Return `R` as a float64 array [..., K+1, K] in which None is NaN.

    Raises:
        DataError: `R` is ragged or not numeric, has not K+1 rows for K >= 2 passages, or holds a value outside 0..1.
    """
    try:
        array = np.array(R, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise DataError("The accuracy matrix must be numbers in rows of equal length; write null where none.") from None
    if array.ndim < 2 or array.shape[-1] < 2 or array.shape[-2] != array.shape[-1] + 1 or array.size == 0:
        raise DataError(
            f"The accuracy matrix must have K+1 rows (row 0 is the unedited model) for K >= 2 passages, but its shape "
            f"is {array.shape}; give one matrix [K+1, K] or a stack [S, K+1, K]."
        )
    bad = array[~np.isnan(array) & ~((array >= -ROUNDING) & (array <= 1 + ROUNDING))]
    if bad.size:
        raise DataError(f"Accuracies are fractions from 0 to 1, but there is a {bad[0]:g}; divide percent by 100.")
    return array


def released(R: object) -> np.ndarray:
    """Return the authors' mean matrix [K+1, K] as `check` does, with NaN above the diagonal if all is 0 there.

    The authors did not measure these cells and wrote 0.

    Raises:
        DataError: as `check`, or `R` is not one matrix.
    """
    matrix = check(R)
    if matrix.ndim != 2:
        raise DataError(f"The released accuracies must be one matrix, but their shape is {matrix.shape}.")
    above = ~needed_cells(matrix.shape[1])
    return np.where(above, np.nan, matrix) if (matrix[above] == 0).all() else matrix


def outcome(R: np.ndarray) -> str:
    """Return which cells a matrix [K+1, K] has: complete, triangle, stopped_at_r or missing_cells.

    ``triangle``: all but the upper triangle, as in the authors' release. ``stopped_at_r``: rows r..K are missing
    entirely, because the stream diverged in edit r or was not finished; the matrix cannot tell which.
    """
    there = ~np.isnan(R)
    if there.all():
        return "complete"
    needed = needed_cells(R.shape[-1])
    if there[needed].all():
        return "missing_cells" if there[~needed].any() else "triangle"
    gone = np.flatnonzero(~there.any(axis=1))
    if gone.size and (gone == np.arange(gone[0], len(R))).all() and there[: gone[0]][needed[: gone[0]]].all():
        return f"stopped_at_{gone[0]}"
    return "missing_cells"


# --- one number per matrix: [..., K+1, K] -> [...], NaN where a needed cell is NaN --------------------------------


def base_accuracy(R: np.ndarray) -> np.ndarray:
    """b = (1/K) Σ_i R[0, i], the accuracy of the unedited model."""
    return R[..., 0, :].mean(axis=-1)


def average_accuracy(R: np.ndarray, k: int | None = None) -> np.ndarray:
    """AA_k = (1/k) Σ_{i<k} R[k, i], on the passages edited so far; default k = K (Lopez-Paz & Ranzato 2017, ACC).

    It mixes learning and retention: a rule that learns nothing scores b. Report it with LA and BWT.
    """
    k = R.shape[-1] if k is None else k
    if not 1 <= k <= R.shape[-1]:
        raise DataError(f"k counts edits from 1 to K = {R.shape[-1]}, got {k}.")
    return R[..., k, :k].mean(axis=-1)


def average_incremental_accuracy(R: np.ndarray) -> np.ndarray:
    """AIA = (1/K) Σ_{k=1..K} AA_k (Rebuffi et al. 2017)."""
    return np.mean([average_accuracy(R, k) for k in range(1, R.shape[-1] + 1)], axis=0)


def learning_accuracy(R: np.ndarray) -> np.ndarray:
    """LA = (1/K) Σ_i R[i+1, i], each passage right after its own edit (Riemer et al. 2019)."""
    return _own(R).mean(axis=-1)


def learned_gain(R: np.ndarray) -> np.ndarray:
    """LA − b: the accuracy that the edits add at the moment they are made."""
    return learning_accuracy(R) - base_accuracy(R)


def net_gain(R: np.ndarray) -> np.ndarray:
    """AA_K − b: how much better the edited model is than the unedited one (ours)."""
    return average_accuracy(R) - base_accuracy(R)


def backward_transfer(R: np.ndarray) -> np.ndarray:
    """BWT = (1/(K−1)) Σ_{i<K−1} (R[K, i] − R[i+1, i]); negative values are forgetting (Lopez-Paz & Ranzato 2017).

    This is the primary measure of the study.
    """
    return (R[..., -1, :-1] - _own(R)[..., :-1]).mean(axis=-1)


def forward_transfer(R: np.ndarray) -> np.ndarray:
    """FWT = (1/(K−1)) Σ_{i>=1} (R[i, i] − R[0, i]): a passage just before its edit against the unedited model.

    After Lopez-Paz & Ranzato 2017, with the base model in place of their random initialisation. Needs the upper
    triangle.
    """
    before = np.diagonal(R[..., 1:-1, 1:], axis1=-2, axis2=-1)
    return (before - R[..., 0, 1:]).mean(axis=-1)


def loss_per_edit(R: np.ndarray) -> np.ndarray:
    """Mean of R[r+1, i] − R[r, i] over all edited passages and later edits (i < r < K), all pairs weighted equally."""
    later, column = np.tril_indices(R.shape[-1] - 1)
    return (R[..., later + 2, column] - R[..., later + 1, column]).mean(axis=-1)


def intransigence(R: np.ndarray, reference: object) -> np.ndarray:
    """(1/K) Σ_k (reference_k − R[k, k−1]), the inability to learn a passage (Chaudhry et al. 2018).

    The reference is that of `recovery`.
    """
    return (np.asarray(reference, dtype=float) - _own(R)).mean(axis=-1)


def recovery(R: np.ndarray, reference: object) -> np.ndarray:
    """(AA_K − b) / (AA_reference − b): the share of the reference's gain that is left after all K edits (ours).

    The reference is each passage edited alone (isolated) or all trained jointly: a number, [K] or [..., K]. Compute it
    on a mean matrix, because the mean of such ratios over sequences explodes. NaN where the reference gains nothing.
    """
    reach = as_reference(reference, R).mean(axis=-1) - base_accuracy(R)
    return net_gain(R) / np.where(reach > 0, reach, np.nan)


def age_curve(R: np.ndarray) -> np.ndarray:
    """Return [..., K]: g(t) = mean_i (R[i+1+t, i] − R[0, i]), the gain over the unedited model after t later edits.

    Only the first K−t passages see t later edits, so the set of passages changes along the curve.
    """
    return np.stack([_aged(R, t).mean(axis=-1) for t in range(R.shape[-1])], axis=-1)


def chained_age_curve(R: np.ndarray) -> np.ndarray:
    """Return [..., K]: LA − b plus the summed mean steps from age t−1 to t, each over the passages that have both ages.

    Unlike in `age_curve`, an easy or hard passage that drops out does not move the curve. Half-life and break-even are
    read from it.
    """
    ages = range(1, R.shape[-1])
    steps = [(_aged(R, t) - _aged(R, t - 1)[..., : R.shape[-1] - t]).mean(axis=-1) for t in ages]
    return np.cumsum(np.stack([learned_gain(R), *steps], axis=-1), axis=-1)


def crossing_age(curve: np.ndarray, level: object) -> np.ndarray:
    """Return, for a curve [..., K], the first age [...] at which it is at or below `level`, interpolated linearly.

    0 if the curve starts there, inf if it does not get there within the K−1 later edits, NaN if it has NaN.
    """
    level = np.broadcast_to(np.asarray(level, dtype=float), curve.shape[:-1])
    below = curve <= level[..., None]
    after = below.argmax(axis=-1)
    before = np.maximum(after - 1, 0)
    high = np.take_along_axis(curve, before[..., None], -1)[..., 0]
    low = np.take_along_axis(curve, after[..., None], -1)[..., 0]
    fall = np.where(after > 0, high - low, 1.0)
    age = np.where(after > 0, before + (high - level) / np.where(fall > 0, fall, 1.0), 0.0)
    age = np.where(below.any(axis=-1), age, np.inf)
    return np.where(np.isnan(curve).any(axis=-1) | np.isnan(level), np.nan, age)


def half_life(R: np.ndarray) -> np.ndarray:
    """Return after how many later edits half of the injected gain (LA − b) is gone; NaN if nothing was gained.

    Read from the chained age curve.
    """
    curve = chained_age_curve(R)
    return crossing_age(curve, np.where(curve[..., 0] > 0, curve[..., 0] / 2, np.nan))


def break_even(R: np.ndarray) -> np.ndarray:
    """Return after how many later edits the chained age curve is at or below 0: no better than the unedited model."""
    return crossing_age(chained_age_curve(R), 0.0)


#: metrics that are linear in R: their mean over sequences is the metric of the mean matrix
LINEAR: dict[str, Metric] = {
    "base": base_accuracy,
    "LA": learning_accuracy,
    "LA_gain": learned_gain,
    "AA": average_accuracy,
    "net_gain": net_gain,
    "AIA": average_incremental_accuracy,
    "BWT": backward_transfer,
    "FWT": forward_transfer,
    "loss_per_edit": loss_per_edit,
}


def forgetting(R: np.ndarray) -> np.ndarray:
    """F_K = (1/(K−1)) Σ_{i<K−1} (max_{l=i+1..K−1} R[l, i] − R[K, i]) (Chaudhry et al. 2018), for a *mean* matrix.

    A maximum over noisy cells is biased upwards, so average the sequences first: F per sequence, averaged afterwards,
    would be 0.313 where the authors' mean matrix gives 0.191.
    """
    K = R.shape[-1]
    drops = [R[..., i + 1 : K, i].max(axis=-1) - R[..., K, i] for i in range(K - 1)]
    return np.mean(drops, axis=0)


def needed_cells(K: int) -> np.ndarray:
    """Return the mask [K+1, K] of all cells outside the upper triangle: row 0 and the edited passages (i < r)."""
    r, i = np.indices((K + 1, K))
    return (r == 0) | (i < r)


def _own(R: np.ndarray) -> np.ndarray:
    """Return R[i+1, i] as [..., K]."""
    return np.diagonal(R[..., 1:, :], axis1=-2, axis2=-1)


def _aged(R: np.ndarray, t: int) -> np.ndarray:
    """Return R[i+1+t, i] − R[0, i] as [..., K−t], for the passages that see t later edits."""
    i = np.arange(R.shape[-1] - t)
    return R[..., i + 1 + t, i] - R[..., 0, i]


def as_reference(reference: object, R: np.ndarray) -> np.ndarray:
    """Return a reference broadcast to [..., K], to stand beside R [..., K+1, K].

    Raises:
        DataError: the shape does not fit, or a value lies outside 0..1.
    """
    shape = (*R.shape[:-2], R.shape[-1])
    try:
        wide = np.broadcast_to(np.array(reference, dtype=float), shape)
    except (TypeError, ValueError):
        raise DataError(f"A reference must be one accuracy, K of them, or one per cell of shape {shape}.") from None
    if ((wide < -ROUNDING) | (wide > 1 + ROUNDING)).any():
        raise DataError("Reference accuracies are fractions from 0 to 1; divide percent by 100.")
    return wide
