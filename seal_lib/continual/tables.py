"""Turns rows of `study` into accuracy matrices and those into rows of ``results.csv``."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seal_lib.continual import intervals, metrics
from seal_lib.continual.intervals import Measure, mean
from seal_lib.report import stats
from seal_lib.report.arms import difference_arm, plain
from seal_lib.report.stats import ANY, DIFFERENCE, SHARE, Estimate
from seal_lib.report.words import Rows

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "continual/mitigations"
MATRIX = "continual/matrix"  # the matrices of the paper's experiment
MAPS_EXPERIMENT = "continual/maps"  # the matrices of every arm
#: what can become of a question about an edited passage, in the order of the figure
FATES = ("kept_base", "kept_injected", "lost_base", "lost_injected", "never", "blank")
#: our metric -> its name in paper_values.yaml
PAPER_NAMES = {
    "LA": "learning_accuracy",
    "BWT": "backward_transfer",
    "AIA": "average_incremental_accuracy",
    "net_gain": "net_knowledge_gain",
}

#: The comparisons of the study, one family for Holm's correction. Those of the study plan (3.3) were registered before
#: the test streams were run; one of them, a lower learning rate, is now a setting of plain editing and left out. Those
#: on the model's own self-edits were registered when these became arms.
CONTRASTS = (
    ("replay", "sequential"),
    ("generative_replay", "sequential"),
    ("kl_replay", "sequential"),
    ("null_space", "sequential"),
    ("null_space_replay", "sequential"),
    ("isolation", "sequential"),
    ("sequential", "frozen"),
    ("kl_replay", "joint"),
    ("null_space_replay", "joint"),
    ("isolation", "joint"),
    ("null_space_replay_live", "sequential_live"),
    ("sequential_live", "sequential_own"),
    ("sequential_live", "frozen"),
    ("sequential_authors_live", "frozen"),
)

# the weights; what training does; what later edits change
_STORED = ("drift", "norm", "stored_bytes")
_TRAINED = (*_STORED, "tokens_per_edit", "diverged", "empty_edits")
_MOVED = ("BWT", "FWT", "loss_per_edit", "F", "prior_kept", "prior_learned")
#: rule -> the metrics that cannot vary between streams, whatever the model does (see `intervals.summary`)
CONSTANT = {
    "frozen": (*_MOVED, *_TRAINED, "LA_gain", "net_gain", "age", "recovery_isolated", "recovery_joint"),
    "passage_in_context": (*_MOVED, *_TRAINED),
    "rag": _TRAINED,
    "isolation_oracle": (*_MOVED, *_STORED, "recovery_isolated", "intransigence_isolated"),
    "isolation": _STORED,
    "joint": ("recovery_joint", "stored_bytes"),
}
#: metrics that do not depend on grades
UNJUDGED = (*_TRAINED, "seconds_per_edit", "blank_rate", "tuning_settings", "tuning_trainings")


def ids(rows: Rows) -> list[str]:
    """Return the stream ids in order."""
    return list(dict.fromkeys(row["stream"] for row in rows))


def stack(rows: Rows, key: str = "right") -> np.ndarray:
    """Return [S, K+1, K]: the share of a passage's questions with digit 1 under ``key`` (``right`` or ``blank``).

    NaN where the questions were not asked or the stream diverged.
    """
    names, K = ids(rows), max(row["k"] for row in rows)
    out = np.full((len(names), K + 1, K), np.nan)
    for row in rows:
        for i, digits in enumerate(row.get(key) or []):
            if digits is not None:
                out[names.index(row["stream"]), row["k"], i] = digits.count("1") / len(digits)
    return out


def prior(rows: Rows) -> np.ndarray:
    """Return [S, K+1]: the share of the prior-knowledge questions answered right; NaN where not asked."""
    return stack([{**row, "prior": [row.get("prior") or None]} for row in rows], "prior")[..., 0]


def answers(rows: Rows, k: int) -> list[list[float]]:
    """Return [S][Q]: 1 or 0 per prior question after k edits; NaN for a stream without answers."""
    Q = max((len(row.get("prior") or "") for row in rows), default=0)
    found = {row["stream"]: row.get("prior") for row in rows if row["k"] == k}
    return [[float(c) for c in found[s]] if found.get(s) else [math.nan] * Q for s in ids(rows)]


def arm_measures(rows: Rows, isolated: object = None, joint: object = None, rule: str = "") -> dict[str, Measure]:
    """Return every metric of one arm by name: of the matrix, of prior knowledge, blanks, compute and storage.

    Args:
        isolated, joint: reference accuracies [S, K], with each passage edited alone and with all trained jointly.
        rule: the arm's rule; metrics that cannot vary under it (`CONSTANT`) are marked so.
    """
    constant, R = CONSTANT.get(rule, ()), stack(rows)
    K, found = R.shape[-1], intervals.summary(R, isolated=isolated, joint=joint, constant=constant)
    if any(row.get("prior") for row in rows):
        kept = intervals.kept_learned(answers(rows, 0), answers(rows, K), "prior_kept" in constant)
        P, found = prior(rows), found | {f"prior_{name}": measure for name, measure in kept.items()}
        found |= {"prior": mean(P[:, K]), "prior_after_1": mean(P[:, 1])}
    found["blank_rate"] = mean(stack(rows, "blank")[:, K].mean(-1))
    for name, key in {"drift": "drift", "norm": "norm", "stored_bytes": "stored"}.items():
        found[name] = mean([row.get(key) for row in rows if row["k"] == K], ANY, name in constant)
    tokens = _per_stream(rows, lambda row: row.get("tokens") or 0)
    found["tokens_per_edit"] = mean(tokens, ANY, "tokens_per_edit" in constant)
    return found | failures(rows, rule)


def failures(rows: Rows, rule: str = "") -> dict[str, Measure]:
    """Return ``diverged`` and ``empty_edits``, two shares.

    ``diverged`` is the share of streams that ended before their last edit. ``empty_edits`` is the share of a stream's
    edits whose self-edit was empty; such an edit stays in the stream, which learns the passage alone or nothing.
    """
    constant, K = CONSTANT.get(rule, ()), max(row["k"] for row in rows)
    lost = [row["outcome"] == "diverged" for row in rows if row["k"] == K]
    empty = _per_stream(rows, lambda row: None if row["outcome"] == "diverged" else row["outcome"] == "empty_edit")
    return {
        "diverged": mean(lost, SHARE, "diverged" in constant),
        "empty_edits": mean(empty, SHARE, "empty_edits" in constant),
    }


def _per_stream(rows: Rows, number: Callable[[Mapping], float | None]) -> list[float]:
    """Return the mean of a number over the edits of each stream that have it; NaN if none has."""
    found: dict[str, list[float]] = {s: [] for s in ids(rows)}
    for row in rows:
        if row["k"] and (value := number(row)) is not None:
            found[row["stream"]].append(value)
    return [float(np.mean(values)) if values else math.nan for values in found.values()]


def _measures(by_arm: Mapping[str, Rows]) -> dict[str, dict[str, Measure]]:
    """Return arm -> all its metrics; those that the paper has too also appear under its names.

    The references are isolated edits and joint training after all edits, where these arms ran; a stream in which one
    diverged is dropped from everything measured against it. An arm with self-edits of its own has no share of their
    gain, since they trained on other self-edits.
    """
    arms = {"isolated": "isolation_oracle", "joint": "joint"}
    references = {name: stack(by_arm[arm])[:, -1] for name, arm in arms.items() if arm in by_arm}
    found = {}
    for arm, rows in by_arm.items():
        rule, K = plain(arm), max(row["k"] for row in rows)
        measures = arm_measures(rows, **(references if rule == arm else {}), rule=rule)
        also = {"accuracy": measures[f"AA_{K}"], "forgetting": measures[f"F_{K}"]}
        found[arm] = measures | also | {paper: measures[ours] for ours, paper in PAPER_NAMES.items()}
    return found


def result_rows(
    by_arm: Mapping[str, Rows],
    *,
    model: str,
    grader: str,
    experiment: str = EXPERIMENT,
    seconds: Mapping[str, float] | None = None,
    price: Mapping[str, tuple[int, int]] | None = None,
) -> list[dict]:
    """Return the rows of results.csv of all arms.

    Args:
        seconds: arm -> CPU seconds of training per edit.
        price: rule -> (settings tried, trainings) of its tuning (`tuning_price`).
    """
    rows = []
    for arm, measures in _measures(by_arm).items():
        given, rule = by_arm[arm], plain(arm)
        found = {name: m.estimate for name, m in measures.items()} | fates(given, rule)
        numbers = {"seconds_per_edit": seconds[arm]} if seconds and arm in seconds else {}
        if price and rule in price:
            numbers |= dict(zip(("tuning_settings", "tuning_trainings"), map(float, price[rule]), strict=True))
        found |= {name: Estimate(v, math.nan, math.nan, len(ids(given)), intervals.UNIT) for name, v in numbers.items()}
        for name, estimate in found.items():
            judge = "" if name in UNJUDGED else grader
            rows.append(estimate.row(experiment, arm, name, _protocol(given), model, judge))
    return rows


def matrix_rows(by_arm: Mapping[str, Rows], *, model: str, grader: str, experiment: str = MATRIX) -> list[dict]:
    """Return the mean matrix of each arm, one row per cell, under the paper's names.

    A cell is named accuracy_after_<edits>:passage_<n>.
    """
    rows = []
    for arm, given in by_arm.items():
        R = stack(given)
        for r, i in np.ndindex(R.shape[1:]):
            name = f"accuracy_after_{r}:passage_{i + 1}"
            rows.append(mean(R[:, r, i]).estimate.row(experiment, arm, name, _protocol(given), model, grader))
    return rows


def comparisons(
    by_arm: Mapping[str, Rows],
    pairs: Sequence[tuple[str, str]] = CONTRASTS,
    *,
    model: str,
    grader: str,
    experiment: str = EXPERIMENT,
) -> tuple[list[dict], list[intervals.Comparison]]:
    """Return the paired differences of AA_K over streams, as rows of results.csv and as comparisons; one Holm family.

    A pair is left out if one of its arms did not run or no stream of it survived.
    """
    values = {arm: _accuracies(rows) for arm, rows in by_arm.items()}
    values = {arm: units for arm, units in values.items() if any(map(math.isfinite, units.values()))}
    found = intervals.compare(values, [pair for pair in pairs if set(pair) <= set(values)])
    rows = []
    for c in found:
        name, protocol = difference_arm(c.a, c.b), _protocol(by_arm[c.a], by_arm[c.b])
        rows.append(c.difference.row(experiment, name, "difference", protocol, model, grader))
    return rows, found


def _accuracies(rows: Rows, k: int | None = None) -> dict[str, float]:
    """Return stream -> AA_k (default: after all edits)."""
    return dict(zip(ids(rows), metrics.average_accuracy(stack(rows), k), strict=True))


def _protocol(*arms: Rows) -> str:
    """Return the protocol of one arm, or of the two sides of a difference.

    A side that trains nothing has no protocol; if two sides train by different protocols, both are named.
    """
    trained = [rows for rows in arms if any(row.get("steps") for row in rows)] or arms
    return " − ".join(dict.fromkeys(str(rows[0]["protocol"]) for rows in trained))


def fates(rows: Rows, rule: str = "") -> dict[str, Estimate]:
    """Return ``<fate>:age_<t>``: what became of the questions on an edited passage after t later edits, as shares.

    * kept_base, lost_base: right before any edit, and right or wrong now.
    * kept_injected: wrong before, right now.
    * lost_injected: wrong before, right after the passage's own edit, wrong now.
    * never: wrong before, after the own edit and now.
    * blank: no answer now; taken out of the wrong ones.
    """
    seen = {(row["stream"], row["k"]): row for row in rows}
    K = max(row["k"] for row in rows)
    shares: dict[tuple[str, int], list[float]] = {}
    for s in ids(rows):
        for t in range(K):
            asked = [(seen[s, 0], seen[s, i + 1], seen[s, i + 1 + t], i) for i in range(K - t)]
            there = all(row.get("right") and row["right"][i] is not None for *three, i in asked for row in three)
            count = Counter(fate for cell in asked for fate in _fates(*cell)) if there else Counter()
            for fate in FATES:
                shares.setdefault((fate, t), []).append(count[fate] / count.total() if there else math.nan)
    never = {("lost_injected", 0)}  # at age 0 the answer after the own edit is the answer now
    if rule == "frozen":
        never |= {(fate, t) for fate in ("kept_injected", "lost_base", "lost_injected") for t in range(K)}
    return {f"{f}:age_{t}": mean(v, SHARE, (f, t) in never).estimate for (f, t), v in shares.items()}


def _fates(base: Mapping, own: Mapping, now: Mapping, i: int) -> list[str]:
    """Return the fate of each question on passage i, from the rows before any edit, after its own edit, and now."""
    digits = zip(base["right"][i], own["right"][i], now["right"][i], now["blank"][i], strict=True)
    found = []
    for before, after, right, blank in digits:
        kind = "base" if before == "1" else "injected"
        if right == "1":
            found.append(f"kept_{kind}")
        elif blank == "1":
            found.append("blank")
        else:
            found.append(f"lost_{kind}" if "1" in (before, after) else "never")
    return found


def targets(by_arm: Mapping[str, Rows]) -> list[dict]:
    """Return the study's targets beside the measured values; a target whose arms did not run or diverged is not met."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(lambda: math.nan))
    for arm, measures in _measures(by_arm).items():
        found[arm].update({name: m.estimate.value for name, m in measures.items()})
    plain_edits, isolated = found["sequential"], found["isolation_oracle"]["accuracy"]

    def best(*names: str) -> str:
        ran = [name for name in names if not math.isnan(found[name]["recovery_joint"])]
        return max(ran, key=lambda name: found[name]["recovery_joint"], default=names[0])

    text = best("null_space_replay", "replay", "kl_replay")
    bare = best("null_space", "inflora", "generative_replay", "kl")
    learned = found[text]["LA"] / isolated if isolated > 0 else math.nan
    routed = found["isolation"]["recovery_isolated"]
    lines = [
        ("sequential: BWT", "sequential", plain_edits["BWT"], "<=", -0.25),
        ("sequential: prior knowledge kept (ours)", "sequential", plain_edits["prior_kept"], "<=", 0.75),
        ("best single-weight arm: share of joint's gain", text, found[text]["recovery_joint"], ">=", 0.90),
        ("… its BWT", text, found[text]["BWT"], ">=", -0.05),
        ("… its LA / isolated LA", text, learned, ">=", 0.95),
        ("no text stored: share of joint's gain", bare, found[bare]["recovery_joint"], ">=", 0.60),
        ("isolation + BM25: share of isolated's gain", "isolation", routed, ">=", 0.98),
    ]
    return [
        {
            "target": name,
            "arm": arm,
            "measured": round(value, 4),
            "wanted": f"{sign} {goal}",
            "met": bool(value <= goal if sign == "<=" else value >= goal),
        }
        for name, arm, value, sign, goal in lines
    ]


def committed_sweep() -> "pd.DataFrame | None":
    """Return the committed tuning table, or None if there is none.

    Its columns include rule, knobs, AA, LA, BWT, prior, trainings and chosen.
    """
    import pandas as pd

    file = Path(__file__).with_name("sweep.jsonl")
    return pd.read_json(file, lines=True) if file.is_file() else None


def tuning_price(lines: Sequence[Mapping[str, object]]) -> dict[str, tuple[int, int]]:
    """Return rule -> (number of settings tried to choose its knobs, number of single-edit trainings this took)."""
    found = defaultdict(list)
    for line in lines:
        found[line["rule"]].append(int(line["trainings"]))
    return {rule: (len(trainings), sum(trainings)) for rule, trainings in found.items()}


def length_rows(by_arm: Mapping[str, Rows], lengths: Sequence[int], *, model: str, grader: str) -> list[dict]:
    """Return the rows of experiment ``continual/stream_length``.

    They hold AA_<K>, prior_<K>, LA of the edits since the previous length, the shares of streams that diverged and of
    self-edits that were empty, and the paired ``change_<first>_to_<last>`` between the first and the last length, whose
    p-values are one family over the arms.
    """
    rows, where = [], "continual/stream_length"
    labels = {arm: {"protocol": _protocol(given), "model": model, "grader": grader} for arm, given in by_arm.items()}
    for arm, given in by_arm.items():
        R, P = stack(given), prior(given)
        for first, K in pairwise([0, *lengths]):
            own = np.stack([R[:, i + 1, i] for i in range(first, K)], -1).mean(-1)
            found = {f"AA_{K}": metrics.average_accuracy(R, K), f"prior_{K}": P[:, K], f"LA_{first + 1}_to_{K}": own}
            rows += [mean(v).estimate.row(where, arm, name, **labels[arm]) for name, v in found.items()]
        lost = failures(given, plain(arm))
        rows += [m.estimate.row(where, arm, name, **labels[arm] | {"grader": ""}) for name, m in lost.items()]
    first, last = lengths[0], lengths[-1]
    values = {f"{K} {arm}": {0: _accuracies(given, K)} for arm, given in by_arm.items() for K in (first, last)}
    survived = [arm for arm in by_arm if any(map(math.isfinite, values[f"{last} {arm}"][0].values()))]
    found = stats.compare(values, [(f"{last} {arm}", f"{first} {arm}") for arm in survived], DIFFERENCE, intervals.UNIT)
    name = f"change_{first}_to_{last}"
    return rows + [e.row(where, arm, name, **labels[arm]) for arm, e in zip(survived, found.values(), strict=True)]
