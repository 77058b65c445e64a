"""Rows of a study → accuracy matrices → lines of ``results.csv``. Knows the rows of ``study`` and the metrics."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from seal_lib import stats
from seal_lib.arms import difference_arm
from seal_lib.continual import intervals, metrics
from seal_lib.continual.intervals import Measure
from seal_lib.stats import Estimate

EXPERIMENT = "continual/mitigations"
MATRIX = "continual/matrix"  # of the paper's experiment
MAPS = "continual/maps"  # of every arm
UNIT = intervals.UNIT
#: what becomes of a question about an edited passage; the order is the figure's
FATES = ("kept_base", "kept_injected", "lost_base", "lost_injected", "never", "blank")
#: paper_values.yaml names the same metrics by words
PAPER_NAMES = {
    "LA": "learning_accuracy", "BWT": "backward_transfer", "AIA": "average_incremental_accuracy",
    "net_gain": "net_knowledge_gain",
}  # fmt: skip

#: registered before the test streams were run (study plan 3.3): one family for Holm
CONTRASTS = (
    ("low_lr", "sequential"), ("replay", "sequential"), ("generative_replay", "sequential"),
    ("kl_replay", "sequential"),
    ("null_space", "sequential"), ("null_space_replay", "sequential"), ("isolation", "sequential"),
    ("sequential", "frozen"), ("kl_replay", "joint"), ("null_space_replay", "joint"), ("isolation", "joint"),
)  # fmt: skip

Rows = Sequence[Mapping[str, object]]


def ids(rows: Rows) -> list[str]:
    """Stream ids in order."""
    return list(dict.fromkeys(row["stream"] for row in rows))


def stack(rows: Rows, key: str = "right") -> np.ndarray:
    """[S, K+1, K]: share of a passage's questions that were right (or blank); NaN where not asked or diverged."""
    order = {name: n for n, name in enumerate(ids(rows))}
    K = max(row["k"] for row in rows)
    out = np.full((len(order), K + 1, K), np.nan)
    for row in rows:
        for i, answers in enumerate(row.get(key) or []):
            if answers is not None:
                out[order[row["stream"]], row["k"], i] = _share(answers)
    return out


def prior(rows: Rows) -> np.ndarray:
    """[S, K+1]: share of the prior-knowledge questions that were right; NaN where not asked."""
    order = {name: n for n, name in enumerate(ids(rows))}
    out = np.full((len(order), max(row["k"] for row in rows) + 1), np.nan)
    for row in rows:
        if row.get("prior"):
            out[order[row["stream"]], row["k"]] = _share(row["prior"])
    return out


def answers(rows: Rows, k: int, key: str = "prior") -> list[list[float]]:
    """[S][Q] 1 or 0 per prior question after k edits; NaN for a stream without answers."""
    Q = max((len(row.get(key) or "") for row in rows), default=0)
    found = {row["stream"]: row.get(key) for row in rows if row["k"] == k}
    return [[float(c) for c in found[s]] if found.get(s) else [math.nan] * Q for s in ids(rows)]


def arm_measures(rows: Rows, isolated: object = None, joint: object = None, seed: int = 0) -> dict[str, Measure]:
    """Every metric of one arm by name (study plan): the matrix's, the prior knowledge's, blanks, compute and storage.

    Args:
        isolated, joint: reference accuracies [S, K], each passage edited alone and all trained jointly.
    """
    R = stack(rows)
    found = intervals.summary(R, isolated=isolated, joint=joint, seed=seed)
    K = R.shape[-1]
    if any(row.get("prior") for row in rows):
        before, after = answers(rows, 0), answers(rows, K)
        found |= {f"prior_{name}": m for name, m in intervals.kept_learned(before, after, seed=seed).items()}
        P = prior(rows)
        found["prior"] = _mean(P[:, K])
        found["prior_after_1"] = _mean(P[:, 1])
    found["blank_rate"] = _mean(stack(rows, "blank")[:, K].mean(-1))
    for key in ("drift", "norm"):
        found[key] = _mean([row.get(key) for row in rows if row["k"] == K])
    found["stored_bytes"] = _mean([row.get("stored") for row in rows if row["k"] == K])
    per_stream = {s: [row.get("tokens") or 0 for row in rows if row["stream"] == s and row["k"]] for s in ids(rows)}
    found["tokens_per_edit"] = _mean([float(np.mean(v)) for v in per_stream.values()])
    found["diverged"] = _mean([float(row["outcome"] != "ok") for row in rows if row["k"] == K])
    return found


def _mean(values: Sequence[float | None]) -> Measure:
    """Mean over streams; one missing stream leaves no mean."""
    numbers = [math.nan if v is None else float(v) for v in values]
    lost = sum(map(math.isnan, numbers))
    if lost:
        return Measure(Estimate(math.nan, math.nan, math.nan, len(numbers) - lost, UNIT, lost), "incomplete")
    return Measure(stats.bootstrap_mean(numbers, unit=UNIT))


def references(by_arm: Mapping[str, Rows]) -> dict[str, np.ndarray]:
    """[S, K] of the arms that serve as references, if they ran: isolated edits, and joint training after all edits."""
    found = {}
    if "isolation_oracle" in by_arm:
        found["isolated"] = stack(by_arm["isolation_oracle"])[:, -1]
    if "joint" in by_arm:
        found["joint"] = stack(by_arm["joint"])[:, -1]
    return {name: value for name, value in found.items() if not np.isnan(value).any()}


def result_rows(
    by_arm: Mapping[str, Rows], *, protocol: str, model: str, experiment: str = EXPERIMENT,
    seconds: Mapping[str, float] | None = None,
) -> list[dict]:  # fmt: skip
    """Lines of results.csv for all arms, with the paper's names beside ours where it has the value."""
    rows, label, refs = [], {"protocol": protocol, "model": model}, references(by_arm)
    for arm, given in by_arm.items():
        measures = arm_measures(given, **refs)
        K = max(row["k"] for row in given)
        also = {"accuracy": measures[f"AA_{K}"], "forgetting": measures[f"F_{K}"]}
        also |= {paper: measures[ours] for ours, paper in PAPER_NAMES.items()}
        rows += [m.estimate.row(experiment, arm, name, **label) for name, m in (measures | also).items()]
        if seconds and arm in seconds:
            value = Estimate(seconds[arm], math.nan, math.nan, len(ids(given)), UNIT)
            rows.append(value.row(experiment, arm, "seconds_per_edit", **label))
        rows += [e.row(experiment, arm, name, **label) for name, e in fates(given).items()]
    return rows


def matrix_rows(by_arm: Mapping[str, Rows], *, protocol: str, model: str, experiment: str = MATRIX) -> list[dict]:
    """The mean matrix of each arm as one line a cell, named as the paper's: accuracy_after_<edits>:passage_<n>."""
    rows = []
    for arm, given in by_arm.items():
        R = stack(given)
        for r in range(R.shape[1]):
            for i in range(R.shape[2]):
                name = f"accuracy_after_{r}:passage_{i + 1}"
                rows.append(_mean(R[:, r, i]).estimate.row(experiment, arm, name, protocol, model))
    return rows


def comparisons(
    by_arm: Mapping[str, Rows], pairs: Sequence[tuple[str, str]] = CONTRASTS, *, protocol: str, model: str,
    experiment: str = EXPERIMENT,
) -> tuple[list[dict], list[intervals.Comparison]]:  # fmt: skip
    """Paired differences of AA_K over streams, one family for Holm: results.csv lines and the comparisons."""
    values = {
        arm: dict(zip(ids(rows), metrics.average_accuracy(stack(rows)), strict=True)) for arm, rows in by_arm.items()
    }
    wanted = [pair for pair in pairs if pair[0] in values and pair[1] in values and pair[0] != pair[1]]
    found = intervals.compare(values, wanted)
    rows = []
    for c in found:
        arm, n = difference_arm(c.a, c.b), c.difference.n
        rows.append(c.difference.row(experiment, arm, "difference", protocol, model))
        p = Estimate(c.p_holm, math.nan, math.nan, n, UNIT)
        rows.append(p.row(experiment, arm, "p_holm", protocol, model))
    return rows, found


def fates(rows: Rows) -> dict[str, Estimate]:
    """``<fate>:age_<t>``: where the accuracy on an edited passage goes after t later edits, as shares of its questions.

    kept_base / lost_base: right before any edit, and right / wrong now. kept_injected: wrong before, right now.
    lost_injected: wrong before, right after the own edit, wrong now. never: wrong before, after the own edit and now.
    blank: no answer now (taken out of the wrong ones).
    """
    seen = {(row["stream"], row["k"]): row for row in rows}
    K = max(row["k"] for row in rows)
    shares: dict[tuple[str, int], list[float]] = {}
    for s in ids(rows):
        for t in range(K):
            cells = [(i, i + 1 + t) for i in range(K - t)]
            count = dict.fromkeys(FATES, 0)
            asked = [(seen[s, 0], seen[s, i + 1], seen[s, r], i) for i, r in cells]
            if any(not row.get("right") or row["right"][i] is None for *three, i in asked for row in three):
                for fate in FATES:
                    shares.setdefault((fate, t), []).append(math.nan)
                continue
            for base, own, now, i in asked:
                digits = zip(base["right"][i], own["right"][i], now["right"][i], now["blank"][i], strict=True)
                for b, o, n, empty in digits:
                    count[_fate(b == "1", o == "1", n == "1", empty == "1")] += 1
            total = sum(count.values())
            for fate in FATES:
                shares.setdefault((fate, t), []).append(count[fate] / total)
    return {f"{fate}:age_{t}": _mean(values).estimate for (fate, t), values in shares.items()}


def _fate(base: bool, own: bool, now: bool, blank: bool) -> str:
    if now:
        return "kept_base" if base else "kept_injected"
    if blank:
        return "blank"
    return "lost_base" if base else "lost_injected" if own else "never"


def _share(digits: str) -> float:
    return sum(c == "1" for c in digits) / len(digits)


def targets(by_arm: Mapping[str, Rows]) -> list[dict]:
    """The study's targets beside the measured values; a target whose arms did not run, or diverged, is not met."""
    refs, found = references(by_arm), {}
    for arm, given in by_arm.items():
        measures = arm_measures(given, **refs)
        K = max(row["k"] for row in given)
        found[arm] = {name: m.estimate.value for name, m in measures.items()} | {
            "AA": measures[f"AA_{K}"].estimate.value
        }
    isolated = found.get("isolation_oracle", {}).get("AA", math.nan)
    none = dict.fromkeys(("AA", "LA", "BWT", "recovery_joint", "recovery_isolated", "prior_kept"), math.nan)

    def of(arm: str) -> dict[str, float]:
        return none | found.get(arm, {})

    def best(names: Sequence[str]) -> str:
        ran = [n for n in names if not math.isnan(of(n)["recovery_joint"])]
        return max(ran, key=lambda n: of(n)["recovery_joint"], default=names[0])

    text = best(("null_space_replay", "replay", "kl_replay"))
    bare = best(("null_space", "inflora", "generative_replay", "kl"))
    lines = [
        ("sequential: BWT", "sequential", of("sequential")["BWT"], "<=", -0.25),
        ("sequential: prior knowledge kept (ours)", "sequential", of("sequential")["prior_kept"], "<=", 0.75),
        ("best single-weight arm: share of joint's gain", text, of(text)["recovery_joint"], ">=", 0.90),
        ("… its BWT", text, of(text)["BWT"], ">=", -0.05),
        ("… its LA / isolated LA", text, of(text)["LA"] / isolated if isolated > 0 else math.nan, ">=", 0.95),
        ("no text stored: share of joint's gain", bare, of(bare)["recovery_joint"], ">=", 0.60),
        ("isolation + BM25: share of isolated's gain", "isolation", of("isolation")["recovery_isolated"], ">=", 0.98),
    ]
    return [
        {"target": name, "arm": arm, "measured": round(value, 4), "wanted": f"{sign} {goal}",
         "met": bool(value <= goal if sign == "<=" else value >= goal)}
        for name, arm, value, sign, goal in lines
    ]  # fmt: skip


def committed_sweep():
    """The committed tuning table (rule, knobs, AA, LA, BWT, prior, chosen), or None before there is one."""
    from pathlib import Path

    import pandas as pd

    file = Path(__file__).with_name("sweep.jsonl")
    return pd.read_json(file, lines=True) if file.is_file() else None


def length_rows(by_arm: Mapping[str, Rows], lengths: Sequence[int], *, protocol: str, model: str) -> list[dict]:
    """Lines of experiment ``continual/stream_length``: AA_<K>, prior_<K>, and LA of the edits since the last K."""
    rows, label, where = [], {"protocol": protocol, "model": model}, "continual/stream_length"
    for arm, given in by_arm.items():
        R, P = stack(given), prior(given)
        for n, K in enumerate(lengths):
            first = 0 if n == 0 else lengths[n - 1]
            own = np.stack([R[:, i + 1, i] for i in range(first, K)], -1).mean(-1)
            found = {f"AA_{K}": metrics.average_accuracy(R, K), f"prior_{K}": P[:, K], f"LA_{first + 1}_to_{K}": own}
            rows += [_mean(v).estimate.row(where, arm, name, **label) for name, v in found.items()]
    return rows
