"""A rubric instead of the inner loop, as the reward or to preselect the self-edits to try (paper v2, Table 9).

This module computes the rows of ``knowledge/proxy_reward``: the final accuracy of each arm, the cost of its rewards,
and how well a rubric's ratings agree with the real rewards of the same self-edits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.evaluate import ArmTrials, table_rows
from seal_lib.knowledge.rubrics import Rubric
from seal_lib.loops import outer as outer_loop
from seal_lib.loops.domain import Candidate
from seal_lib.loops.policy import Policy
from seal_lib.loops.rewards import RATED
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Passage, PassageTrial, Round
from seal_lib.report import stats
from seal_lib.report.arms import arm_label
from seal_lib.report.stats import DIFFERENCE, SHARE, Estimate
from seal_lib.report.words import Rows, bullets, differences, number, percent, points, told
from seal_lib.runs.work import Recorder

EXPERIMENT = "knowledge/proxy_reward"
#: loop → its rounds
Records = Mapping[int, Sequence[Round]]
#: measure of a rubric's agreement with the real reward on one passage's self-edits → bounds of its values
MEASURES = {
    "rank_correlation": DIFFERENCE,
    "same_pick": SHARE,
    "reward_of_pick": SHARE,
    "reward_mean": SHARE,
    "pick_gain": DIFFERENCE,
}


def ways(
    domain: Knowledge, outer: OuterLoop, rounds: int, rubric: Rubric, poor: Rubric | None, finalists: int
) -> dict[str, tuple[Knowledge, OuterLoop]]:
    """Return the arms of the experiment, each with the domain and the outer-loop settings of its rounds.

    The arms are the real reward, the rubric as reward, a poorer rubric as reward (if ``poor`` is given), and the real
    reward of the ``finalists`` self-edits that the rubric rates highest.
    """
    rated, rates = replace(outer, reward=RATED[0]), replace(domain, rubric=rubric)
    found = {f"seal_round_{rounds}": (domain, outer), "seal_proxy": (rates, rated)}
    if poor:
        found["seal_poor_proxy"] = (replace(domain, rubric=poor), rated)
    return found | {"seal_prefilter": (rates, replace(outer, finalists=finalists))}


def level_rows(trials: Mapping[str, ArmTrials], **label: str) -> list[dict]:
    """Return rows for the level of each arm and for the differences, which are one family: each trained arm against the
    untrained policy, and each other trained arm against the real reward."""
    learned = [arm for arm in trials if arm not in ("frozen", "own_untrained")]
    real, *others = learned
    pairs = [(arm, "own_untrained") for arm in learned] + [(arm, real) for arm in others]
    return table_rows(EXPERIMENT, trials, pairs, **label)


# ---------------------------------------------------------------------------------------------- agreement


def rate_trials(
    run: Recorder,
    policy: Policy,
    trials: Sequence[PassageTrial],
    units: Sequence[Passage],
    domain: Knowledge,
    *,
    phase: str,
) -> dict[str, float]:
    """Return trial id → the rating of its self-edit by the domain's rubric, without trials that have no self-edit."""
    known = {unit.id: unit for unit in units}
    asked = [Candidate(t.id, known[t.unit_id], t.edit, phase, 0) for t in trials if t.edit and not t.edit.unwritten]
    return outer_loop.rate_candidates(run, policy, asked, domain, phase=phase)


def agreement_rows(
    records: Mapping[int, Round], ratings: Mapping[str, Mapping[int, Mapping[str, float]]], **label: str
) -> list[dict]:
    """Return rows ``rubric_<name>`` that compare ratings with real rewards among each passage's self-edits.

    ``rank_correlation`` is Spearman's; passages whose ratings or rewards do not vary are dropped. ``same_pick`` is 1 if
    the first self-edit of highest rating is the first of highest reward. ``reward_of_pick`` is the real reward of the
    self-edit that the rubric picks, ``reward_mean`` that expected of a random pick, and ``pick_gain`` their difference,
    passage by passage.

    The policy before any round is the same in every loop, so intervals are over passages only.

    Args:
        records: loop → its first round under the real reward.
        ratings: rubric → loop → trial id → rating.
    """
    rows = []
    for name, by_loop in ratings.items():
        found: dict[str, list[tuple[float, ...]]] = {}
        for loop, record in records.items():
            for passage, measured in _agreement(record, by_loop[loop]).items():
                found.setdefault(passage, []).append(measured)
        for place, (metric, bounds) in enumerate(MEASURES.items()):
            values = {passage: [measured[place] for measured in several] for passage, several in found.items()}
            rows.append(stats.mean_over_units(values, bounds).row(EXPERIMENT, f"rubric_{name}", metric, **label))
    return rows


def _agreement(record: Round, ratings: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
    """Return passage → the values of `MEASURES` for one round."""
    both: dict[str, list[tuple[float, float]]] = {}
    for trial, reward in zip(record.candidates, record.rewards, strict=True):
        if trial.id in ratings:
            both.setdefault(trial.unit_id, []).append((ratings[trial.id], reward))
    found: dict[str, tuple[float, ...]] = {}
    for passage, pairs in both.items():
        known = [pair for pair in pairs if not any(map(math.isnan, pair))]
        if not known:
            found[passage] = (math.nan,) * len(MEASURES)
            continue
        said, real = [rating for rating, _ in known], [reward for _, reward in known]
        pick, mean = said.index(max(said)), math.fsum(real) / len(real)
        same = float(pick == real.index(max(real)))
        found[passage] = stats.rank_correlation(said, real), same, real[pick], mean, real[pick] - mean
    return found


# --------------------------------------------------------------------------------------------------- cost


def cost_rows(
    records: Mapping[str, Records], levels: Rows, seconds: Callable[[str], float], **label: str
) -> list[dict]:
    """Return rows for what the rewards of a whole loop cost, as means over loops: inner loops, tokens that they trained
    on, self-edits rated and seconds; and inner loops per point gained over the untrained policy, if the interval of
    that gain is above zero.

    Finetuning and evaluating the policy cost the same in every arm and are not included.

    Args:
        records: arm → loop → its rounds.
        levels: the rows of `level_rows`.
        seconds: returns the seconds spent in the phases that match a pattern (`seal_lib.runs.lifecycle.Run.seconds`).
    """
    apart, rows = differences(levels, EXPERIMENT), []
    for arm, by_loop in records.items():
        spent: dict[str, list[float]] = {name: [] for name in ("inner_loops", "tokens_reward", "rated")}
        for several in by_loop.values():
            tried = [(t, max(1, len(s))) for r in several for t, s in _with_seeds(r) if t.steps]
            spent["inner_loops"].append(float(sum(times for _, times in tried)))
            spent["tokens_reward"].append(float(sum(trial.tokens * times for trial, times in tried)))
            rated = any(t.outcome == "untried" for r in several for t, _ in _with_seeds(r))
            spent["rated"].append(float(sum(len(r.candidates) for r in several)) if rated else 0.0)
        took = [seconds(rf"seed_{loop}/{arm}_round_\d+/(rate|frozen|score\w*)") for loop in by_loop]
        costs = {
            metric: Estimate(fmean(values), math.nan, math.nan, len(values), "loop")
            for metric, values in (*spent.items(), ("seconds_reward", took))
        }
        gain, loops = apart.get((arm, "own_untrained")), costs["inner_loops"].value
        if gain and gain.low > 0 and loops:
            bounds = (loops / (100 * gain.value), loops / (100 * gain.high), loops / (100 * gain.low))
            costs["inner_loops_per_point"] = Estimate(*bounds, gain.n, loops=gain.loops, interval=gain.interval)
        rows += [estimate.row(EXPERIMENT, arm, metric, **label) for metric, estimate in costs.items()]
    return rows


def _with_seeds(record: Round) -> list[tuple[PassageTrial, tuple[float, ...]]]:
    """Return (first trial, its reward under each seed) for every self-edit."""
    of_passages = [trial for trial in record.candidates if isinstance(trial, PassageTrial)]
    return list(zip(of_passages, record.by_seed or ((),) * len(of_passages), strict=True))


# -------------------------------------------------------------------------------------------------- words


def in_words(rows: Rows) -> str:
    """Return Markdown on how well each rubric agrees, what each arm costs, and which differences are separable."""
    found: dict[str, dict[str, Estimate]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["metric"]] = Estimate.of_row(row)
    said = [
        f"**{arm_label(arm)}**: rank correlation {number(one['rank_correlation'], 2)} with the real reward; its pick "
        f"is the real one's in {percent(one['same_pick'])} of the passages, worth {percent(one['reward_of_pick'])}, "
        f"{points(one['pick_gain'])} against a random one."
        for arm, one in found.items()
        if "same_pick" in one
    ]
    said += [
        f"**{arm_label(arm)}**: {one['inner_loops'].value:.0f} inner loops for its rewards"
        + (f", {number(one['inner_loops_per_point'])} a point." if "inner_loops_per_point" in one else ".")
        for arm, one in found.items()
        if "inner_loops" in one
    ]
    return f"{bullets(said)}\n{told(differences(rows, EXPERIMENT))}"
