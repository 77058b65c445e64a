"""A rubric in place of the inner loop: as the reward, or to choose which self-edits are tried (paper v2, Table 9).

The lines of ``knowledge/proxy_reward``: what each way ends at, what its rewards cost, and how far a rubric agrees with
the reward that it stands for, on the same self-edits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.evaluate import Loops, difference_rows, result_rows
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
#: how a rubric agrees with the real reward on one passage's self-edits → where that number can lie
MEASURES = {
    "rank_correlation": DIFFERENCE, "same_pick": SHARE, "reward_of_pick": SHARE, "reward_mean": SHARE,
    "pick_gain": DIFFERENCE,
}  # fmt: skip


def ways(domain: Knowledge, outer: OuterLoop, rounds: int, rubric: Rubric, poor: Rubric | None,
         finalists: int) -> dict[str, tuple[Knowledge, OuterLoop]]:  # fmt: skip
    """Arm → the domain and settings of its rounds: the real reward, a rubric, a poorer one, finalists by the rubric."""
    rated, rates = replace(outer, reward=RATED[0]), replace(domain, rubric=rubric)
    found = {f"seal_round_{rounds}": (domain, outer), "seal_proxy": (rates, rated)}
    if poor:
        found["seal_poor_proxy"] = (replace(domain, rubric=poor), rated)
    return found | {"seal_prefilter": (rates, replace(outer, finalists=finalists))}


def level_rows(trials: Mapping[str, Loops], *, protocol: str, model: str, grader: str) -> list[dict]:
    """Levels of the arms and, one family, their differences: to the untrained policy, and of every way to the real
    reward."""
    label = {"protocol": protocol, "model": model, "grader": grader}
    rows = [row for arm, several in trials.items() for row in result_rows(EXPERIMENT, arm, several, **label)]
    learned = [arm for arm in trials if arm not in ("frozen", "own_untrained")]
    real, *others = learned
    pairs = [(arm, "own_untrained") for arm in learned] + [(arm, real) for arm in others]
    return rows + difference_rows(EXPERIMENT, trials, pairs, **label)


# ---------------------------------------------------------------------------------------------- agreement


def rate_trials(run: Recorder, policy: Policy, trials: Sequence[PassageTrial], units: Sequence[Passage],
                domain: Knowledge, *, phase: str) -> dict[str, float]:  # fmt: skip
    """Trial's id → what the domain's rubric says of its self-edit; a trial without one is left out."""
    known = {unit.id: unit for unit in units}
    asked = [Candidate(t.id, known[t.unit_id], t.edit, phase, 0) for t in trials if t.edit and not t.edit.unwritten]
    return outer_loop.rate(run, policy, asked, domain, phase=phase)


def agreement_rows(records: Mapping[int, Round], ratings: Mapping[str, Mapping[int, Mapping[str, float]]], *,
                   protocol: str, model: str, grader: str) -> list[dict]:  # fmt: skip
    """Lines ``rubric_<name>``: within each passage, ratings of its self-edits against their real rewards.

    ``rank_correlation`` (Spearman; passages where one of both does not vary are dropped), ``same_pick`` (both loops'
    first best is the same), ``reward_of_pick`` beside ``reward_mean``: the real reward of what the rubric picks, and
    what a random pick would have; ``pick_gain``: the one minus the other, passage by passage.

    The policy before any round is the same in every loop, so passages are the only sample.

    Args:
        records: loop → the first round by the real reward. ratings: rubric → loop → trial's id → rating.
    """
    label = {"protocol": protocol, "model": model, "grader": grader}
    rows = []
    for name, by_loop in ratings.items():
        found: dict[str, dict[str, list[float]]] = {metric: {} for metric in MEASURES}
        for loop, record in records.items():
            for metric, values in _agreement(record, by_loop[loop]).items():
                for passage, value in values.items():
                    found[metric].setdefault(passage, []).append(value)
        rows += [
            stats.mean_over_units(values, MEASURES[metric]).row(EXPERIMENT, f"rubric_{name}", metric, **label)
            for metric, values in found.items()
        ]
    return rows


def _agreement(record: Round, ratings: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """metric → passage → value, of one round."""
    both: dict[str, list[tuple[float, float]]] = {}
    for trial, reward in zip(record.candidates, record.rewards, strict=True):
        if trial.id in ratings:
            both.setdefault(trial.unit_id, []).append((ratings[trial.id], reward))
    found: dict[str, dict[str, float]] = {name: {} for name in MEASURES}
    for passage, pairs in both.items():
        known = [pair for pair in pairs if not any(map(math.isnan, pair))]
        said, real = [rating for rating, _ in known], [reward for _, reward in known]
        pick = said.index(max(said)) if known else 0
        found["rank_correlation"][passage] = stats.rank_correlation(said, real)
        found["same_pick"][passage] = float(pick == real.index(max(real))) if known else math.nan
        found["reward_of_pick"][passage] = real[pick] if known else math.nan
        found["reward_mean"][passage] = math.fsum(real) / len(real) if known else math.nan
        found["pick_gain"][passage] = found["reward_of_pick"][passage] - found["reward_mean"][passage]
    return found


# --------------------------------------------------------------------------------------------------- cost


def cost_rows(records: Mapping[str, Records], levels: Rows, seconds: Callable[[str], float], *, protocol: str,
              model: str) -> list[dict]:  # fmt: skip
    """What the rewards of a whole loop cost, a mean over loops: inner loops, tokens they trained on, texts rated,
    seconds; and inner loops for each point above the untrained policy, where that gain is above zero.

    Finetuning the policy and evaluating it cost every way the same and are not in it.

    Args:
        records: arm → loop → its rounds. levels: what `level_rows` gave. seconds: of the phases that fit a pattern
            (`seal_lib.runs.lifecycle.Run.seconds`).
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
        rows += [estimate.row(EXPERIMENT, arm, metric, protocol, model) for metric, estimate in costs.items()]
    return rows


def _with_seeds(record: Round) -> list[tuple[PassageTrial, tuple[float, ...]]]:
    """(first trial, its reward by seed) of every self-edit."""
    of_passages = [trial for trial in record.candidates if isinstance(trial, PassageTrial)]
    return list(zip(of_passages, record.by_seed or ((),) * len(of_passages), strict=True))


# -------------------------------------------------------------------------------------------------- words


def in_words(rows: Rows) -> str:
    """Markdown: agreement of each rubric, what the ways cost, and the separable differences."""
    rows = list(rows)
    found: dict[str, dict[str, Estimate]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["metric"]] = Estimate.of_row(row)
    said = [
        f"**{arm_label(arm)}**: rank correlation {number(one['rank_correlation'], 2)} with the real reward; its pick "
        f"is the real one's in {percent(one['same_pick'])} of the passages, worth {percent(one['reward_of_pick'])}, "
        f"{points(one['pick_gain'])} against a random one."
        for arm, one in found.items() if "same_pick" in one
    ]  # fmt: skip
    said += [
        f"**{arm_label(arm)}**: {one['inner_loops'].value:.0f} inner loops for its rewards"
        + (f", {number(one['inner_loops_per_point'])} a point." if "inner_loops_per_point" in one else ".")
        for arm, one in found.items() if "inner_loops" in one
    ]  # fmt: skip
    return f"{bullets(said)}\n{told(differences(rows, EXPERIMENT))}"
