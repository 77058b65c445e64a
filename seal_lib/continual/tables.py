"""Turns rows of `study` into accuracy matrices and those into rows of ``results.csv``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from seal_lib.continual import intervals, metrics
from seal_lib.continual.intervals import Measure
from seal_lib.report import stats
from seal_lib.report.arms import difference_arm, plain
from seal_lib.report.stats import ANY, DIFFERENCE, SHARE, Estimate

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

#: rule -> the metrics that cannot vary between streams, whatever the model does (see `intervals.summary`)
CONSTANT = {
    "frozen": (
        "LA_gain",
        "net_gain",
        "BWT",
        "FWT",
        "loss_per_edit",
        "age",
        "F",
        "recovery_isolated",
        "recovery_joint",
        "prior_kept",
        "prior_learned",
        "drift",
        "norm",
        "stored_bytes",
        "tokens_per_edit",
        "diverged",
        "empty_edits",
    ),
    "passage_in_context": (
        "BWT",
        "FWT",
        "loss_per_edit",
        "F",
        "prior_kept",
        "prior_learned",
        "drift",
        "norm",
        "stored_bytes",
        "tokens_per_edit",
        "diverged",
        "empty_edits",
    ),
    "rag": ("drift", "norm", "stored_bytes", "tokens_per_edit", "diverged", "empty_edits"),
    "isolation_oracle": (
        "BWT",
        "FWT",
        "loss_per_edit",
        "F",
        "recovery_isolated",
        "intransigence_isolated",
        "prior_kept",
        "prior_learned",
        "drift",
        "norm",
        "stored_bytes",
    ),
    "isolation": ("drift", "norm", "stored_bytes"),
    "joint": ("recovery_joint", "stored_bytes"),
}

Rows = Sequence[Mapping[str, object]]


def ids(rows: Rows) -> list[str]:
    """Return the stream ids in order."""
    return list(dict.fromkeys(row["stream"] for row in rows))


def stack(rows: Rows, key: str = "right") -> np.ndarray:
    """Return [S, K+1, K]: the share of a passage's questions with digit 1 under ``key`` (``right`` or ``blank``).

    NaN where the questions were not asked or the stream diverged.
    """
    order = {name: n for n, name in enumerate(ids(rows))}
    K = max(row["k"] for row in rows)
    out = np.full((len(order), K + 1, K), np.nan)
    for row in rows:
        for i, answers in enumerate(row.get(key) or []):
            if answers is not None:
                out[order[row["stream"]], row["k"], i] = _share(answers)
    return out


def prior(rows: Rows) -> np.ndarray:
    """Return [S, K+1]: the share of the prior-knowledge questions answered right; NaN where not asked."""
    order = {name: n for n, name in enumerate(ids(rows))}
    out = np.full((len(order), max(row["k"] for row in rows) + 1), np.nan)
    for row in rows:
        if row.get("prior"):
            out[order[row["stream"]], row["k"]] = _share(row["prior"])
    return out


def answers(rows: Rows, k: int, key: str = "prior") -> list[list[float]]:
    """Return [S][Q]: 1 or 0 per prior question after k edits; NaN for a stream without answers."""
    Q = max((len(row.get(key) or "") for row in rows), default=0)
    found = {row["stream"]: row.get(key) for row in rows if row["k"] == k}
    return [[float(c) for c in found[s]] if found.get(s) else [math.nan] * Q for s in ids(rows)]


def arm_measures(rows: Rows, isolated: object = None, joint: object = None, rule: str = "") -> dict[str, Measure]:
    """Return every metric of one arm by name: of the matrix, of prior knowledge, blanks, compute and storage.

    Args:
        isolated, joint: reference accuracies [S, K], with each passage edited alone and with all trained jointly.
        rule: the arm's rule; metrics that cannot vary under it (`CONSTANT`) are marked so.
    """
    constant, R = CONSTANT.get(rule, ()), stack(rows)
    found = intervals.summary(R, isolated=isolated, joint=joint, constant=constant)
    K = R.shape[-1]
    last = [row for row in rows if row["k"] == K]
    if any(row.get("prior") for row in rows):
        before, after = answers(rows, 0), answers(rows, K)
        for name, measure in intervals.kept_learned(before, after).items():
            found[f"prior_{name}"] = _fixed(measure) if f"prior_{name}" in constant else measure
        P = prior(rows)
        found["prior"], found["prior_after_1"] = mean(P[:, K]), mean(P[:, 1])
    found["blank_rate"] = mean(stack(rows, "blank")[:, K].mean(-1))
    for key in ("drift", "norm"):
        found[key] = mean([row.get(key) for row in last], ANY, key in constant)
    found["stored_bytes"] = mean([row.get("stored") for row in last], ANY, "stored_bytes" in constant)
    per_stream = {s: [row.get("tokens") or 0 for row in rows if row["stream"] == s and row["k"]] for s in ids(rows)}
    tokens = [float(np.mean(v)) for v in per_stream.values()]
    found["tokens_per_edit"] = mean(tokens, ANY, "tokens_per_edit" in constant)
    return found | failures(rows, rule)


def failures(rows: Rows, rule: str = "") -> dict[str, Measure]:
    """Return ``diverged`` and ``empty_edits``, two shares.

    ``diverged`` is the share of streams that ended before their last edit. ``empty_edits`` is the share of a stream's
    edits whose self-edit was empty; such an edit stays in the stream, which learns the passage alone or nothing.
    """
    constant, K = CONSTANT.get(rule, ()), max(row["k"] for row in rows)
    lost = [float(row["outcome"] == "diverged") for row in rows if row["k"] == K]
    made: dict[str, list[float]] = {s: [] for s in ids(rows)}
    for row in rows:
        if row["k"] and row["outcome"] != "diverged":
            made[row["stream"]].append(float(row["outcome"] == "empty_edit"))
    empty = [float(np.mean(flags)) if flags else math.nan for flags in made.values()]
    return {
        "diverged": mean(lost, SHARE, "diverged" in constant),
        "empty_edits": mean(empty, SHARE, "empty_edits" in constant),
    }


def mean(values: Sequence[float | None], bounds: tuple[float, float] = SHARE, constant: bool = False) -> Measure:
    """Return the mean over the streams that have the number; the others (None or NaN: diverged) count as dropped."""
    numbers = [math.nan if v is None else float(v) for v in values]
    constant = constant and len({x for x in numbers if not math.isnan(x)}) == 1  # rounding may flip an answer
    estimate = stats.mean_over_units(numbers, bounds, intervals.UNIT, constant=constant)
    outcome = "ok" if not estimate.dropped else "survivors" if estimate.n else "incomplete"
    return Measure(estimate, outcome)


def _fixed(measure: Measure) -> Measure:
    """Return a share that cannot vary, marked "by construction"; unchanged if rounding flipped an answer."""
    e = measure.estimate
    if e.value not in (0.0, 1.0):
        return measure
    return replace(measure, estimate=replace(e, low=e.value, high=e.value, interval="by construction"))


def references(by_arm: Mapping[str, Rows]) -> dict[str, np.ndarray]:
    """Return [S, K] of the reference arms that ran: isolated edits, and joint training after all edits.

    A stream in which a reference diverged is NaN there and is dropped from everything measured against that reference.
    """
    arms = {"isolated": "isolation_oracle", "joint": "joint"}
    return {name: stack(by_arm[arm])[:, -1] for name, arm in arms.items() if arm in by_arm}


#: metrics that do not depend on grades
UNJUDGED = (
    "drift",
    "norm",
    "stored_bytes",
    "tokens_per_edit",
    "seconds_per_edit",
    "diverged",
    "empty_edits",
    "blank_rate",
    "tuning_settings",
    "tuning_trainings",
)


def result_rows(
    by_arm: Mapping[str, Rows],
    *,
    model: str,
    grader: str,
    experiment: str = EXPERIMENT,
    seconds: Mapping[str, float] | None = None,
    price: Mapping[str, tuple[int, int]] | None = None,
) -> list[dict]:
    """Return the rows of results.csv of all arms; metrics that the paper has too also appear under its names.

    An arm with self-edits of its own has no share of the gain of joint or isolated training, since these trained on
    other self-edits.

    Args:
        seconds: arm -> CPU seconds of training per edit.
        price: rule -> (settings tried, trainings) of its tuning (`tuning_price`).
    """
    rows, refs = [], references(by_arm)
    for arm, given in by_arm.items():
        rule, K = plain(arm), max(row["k"] for row in given)
        measures = arm_measures(given, **(refs if rule == arm else {}), rule=rule)
        also = {"accuracy": measures[f"AA_{K}"], "forgetting": measures[f"F_{K}"]}
        also |= {paper: measures[ours] for ours, paper in PAPER_NAMES.items()}
        found = {name: m.estimate for name, m in (measures | also).items()} | fates(given, rule)
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
        for r in range(R.shape[1]):
            for i in range(R.shape[2]):
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
    values = {
        arm: dict(zip(ids(rows), metrics.average_accuracy(stack(rows)), strict=True)) for arm, rows in by_arm.items()
    }
    values = {arm: units for arm, units in values.items() if any(map(math.isfinite, units.values()))}
    found = intervals.compare(values, [pair for pair in pairs if set(pair) <= set(values)])
    rows = []
    for c in found:
        label = {"protocol": _protocol(by_arm[c.a], by_arm[c.b]), "model": model, "grader": grader}
        rows.append(c.difference.row(experiment, difference_arm(c.a, c.b), "difference", **label))
    return rows, found


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
    never = {("lost_injected", 0)}  # at age 0 the answer after the own edit is the answer now
    if rule == "frozen":
        never |= {(fate, t) for fate in ("kept_injected", "lost_base", "lost_injected") for t in range(K)}
    return {f"{f}:age_{t}": mean(v, SHARE, (f, t) in never).estimate for (f, t), v in shares.items()}


def _fate(base: bool, own: bool, now: bool, blank: bool) -> str:
    if now:
        return "kept_base" if base else "kept_injected"
    if blank:
        return "blank"
    return "lost_base" if base else "lost_injected" if own else "never"


def _share(digits: str) -> float:
    return sum(c == "1" for c in digits) / len(digits)


def targets(by_arm: Mapping[str, Rows]) -> list[dict]:
    """Return the study's targets beside the measured values; a target whose arms did not run or diverged is not met."""
    refs, found = references(by_arm), {}
    for arm, given in by_arm.items():
        measures = arm_measures(given, **(refs if plain(arm) == arm else {}), rule=plain(arm))
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
    from pathlib import Path

    import pandas as pd

    file = Path(__file__).with_name("sweep.jsonl")
    return pd.read_json(file, lines=True) if file.is_file() else None


def tuning_price(lines: Sequence[Mapping[str, object]]) -> dict[str, tuple[int, int]]:
    """Return rule -> (number of settings tried to choose its knobs, number of single-edit trainings this took)."""
    found: dict[str, tuple[int, int]] = {}
    for line in lines:
        settings, trainings = found.get(line["rule"], (0, 0))
        found[line["rule"]] = (settings + 1, trainings + int(line["trainings"]))
    return found


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
        for n, K in enumerate(lengths):
            first = 0 if n == 0 else lengths[n - 1]
            own = np.stack([R[:, i + 1, i] for i in range(first, K)], -1).mean(-1)
            found = {f"AA_{K}": metrics.average_accuracy(R, K), f"prior_{K}": P[:, K], f"LA_{first + 1}_to_{K}": own}
            rows += [mean(v).estimate.row(where, arm, name, **labels[arm]) for name, v in found.items()]
        lost = failures(given, plain(arm))
        rows += [m.estimate.row(where, arm, name, **labels[arm] | {"grader": ""}) for name, m in lost.items()]
    return rows + _changes(by_arm, lengths[0], lengths[-1], where, labels)


def _changes(by_arm: Mapping[str, Rows], first: int, last: int, where: str, labels: Mapping[str, dict]) -> list[dict]:
    """Return AA after the last length minus AA after the first, over the same streams of each arm."""
    values = {}
    for arm, given in by_arm.items():
        for K in (first, last):
            values[f"{K} {arm}"] = {0: dict(zip(ids(given), metrics.average_accuracy(stack(given), K), strict=True))}
    survived = [arm for arm in by_arm if any(map(math.isfinite, values[f"{last} {arm}"][0].values()))]
    found = stats.compare(values, [(f"{last} {arm}", f"{first} {arm}") for arm in survived], DIFFERENCE, intervals.UNIT)
    name = f"change_{first}_to_{last}"
    return [e.row(where, arm, name, **labels[arm]) for arm, e in zip(survived, found.values(), strict=True)]
