"""The outer loop: in each round, sample self-edits, reward each by the inner loop, and update the policy.

The run records every trial, and a killed round resumes at its next chunk. A control uses a filter that ignores the
reward (`CONTROLS`).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.loops.domain import Candidate, Domain, Rates, Rejected, TrialT, Unit, Units
from seal_lib.loops.inner import score_candidates, score_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.rewards import BLIND, COMPARING, RATED, REWARDS
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.updates import Group, Update, imitate, kept_of, update_of
from seal_lib.records import Round, SelfEdit, Trial, to_dict, values_of
from seal_lib.runs.work import Count, Recorder, Work
from seal_lib.seeds import derive_seed

# ---------------------------------------------------------------------------------------------- writing


#: reason for a self-edit without text
LONG = "the prompt is longer than the model takes"
#: reason for a self-edit that has a text and a rating but no trial
UNTRIED = Rejected("untried", "its text was rated, and that was all")


@dataclass(frozen=True)
class EditPrompt:
    """The prompt for a self-edit about the unit ``id``."""

    id: str
    prompt: str


def write_self_edits(
    run: Recorder,
    policy: Policy,
    units: Units,
    domain: Domain,
    outer: OuterLoop,
    *,
    phase: str,
    seed: int,
    samples: int | None = None,
    chunk: int = 32,
) -> list[SelfEdit]:
    """Sample ``samples`` self-edits per unit (default ``outer.samples``) and return them unit by unit.

    A self-edit that the domain cannot parse is sampled again, up to ``domain.max_tries`` texts in all; its ``tokens``
    count every try.
    """

    def written(asked: Sequence[tuple[str, Unit]], samples: int, phase: str, seed: int) -> list[SelfEdit]:
        """Sample texts about units, each of which is asked for by a name."""
        prompts = [EditPrompt(name, domain.prompt(unit, policy.tokenizer)) for name, unit in asked]
        work = Work(partial(_texts, sampling=outer.sampling(samples, domain.schema), seed=seed), policy, run.count)
        rows = run.map(phase, prompts, work, chunk=chunk)
        return [SelfEdit.from_dict(edit) for row in rows for edit in row["edits"]]

    known = {unit.id: unit for unit in units}
    edits = written([(unit.id, unit) for unit in units], samples or outer.samples, phase, seed)
    for attempt in range(2, domain.max_tries + 1):
        read = [domain.read(known[edit.unit_id], edit, "", 0) for edit in edits]
        again = [i for i, found in enumerate(read) if isinstance(found, Rejected) and found.unread]
        if not again:
            break
        asked = [(edits[i].id, known[edits[i].unit_id]) for i in again]
        redrawn = written(asked, 1, f"{phase}/again_{attempt}", derive_seed(seed, "again", attempt))
        for i, new in zip(again, redrawn, strict=True):
            edits[i] = replace(edits[i], text=new.text, tokens=edits[i].tokens + new.tokens, tries=attempt)
    return edits


def _texts(policy: Policy, part: Sequence[EditPrompt], count: Count, *, sampling: Sampling, seed: int) -> list[dict]:
    requests = [Request(asked.prompt, derive_seed(seed, asked.id, "self-edit")) for asked in part]
    texts = policy.generator().generate(requests, sampling)
    rows = []
    for asked, completions in zip(part, texts, strict=True):
        edits = [
            SelfEdit(
                f"{asked.id}/{k}",
                asked.id,
                done.text.strip(),
                policy.name,
                seed,
                done.tokens,
                unwritten=LONG if done.finish == "too_long" else "",
            )
            for k, done in enumerate(completions)
        ]
        rows.append({"edits": [to_dict(edit) for edit in edits]})
    count(generated=sum(edit["tokens"] for row in rows for edit in row["edits"]))
    return rows


# ---------------------------------------------------------------------------------------------- one round


def rate_candidates(
    run: Recorder, policy: Policy, candidates: Sequence[Candidate], domain: Domain, *, phase: str
) -> dict[str, float]:
    """Return the domain's rating of each candidate's text in [0, 1], by candidate id; NaN if there is no rating.

    Raises:
        DataError: the domain cannot rate texts.
    """
    if not isinstance(domain, Rates):
        raise DataError(f"reward: the domain {domain.name} cannot rate a text; take a reward that tries it.")
    work = Work(partial(_ratings, domain=domain), policy, run.count)
    distinct = {candidate.id: candidate for candidate in candidates}
    rows = run.map(phase, list(distinct.values()), work, chunk=64)
    return {n: math.nan if row["rating"] is None else row["rating"] for n, row in zip(distinct, rows, strict=True)}


def rate_edits(
    run: Recorder, policy: Policy, edits: Sequence[SelfEdit], units: Units, domain: Domain, *, phase: str
) -> dict[str, float]:
    """Return the rating of each self-edit by its id (see `rate_candidates`); NaN if its text cannot be parsed."""
    known = {unit.id: unit for unit in units}
    read = {edit.id: domain.read(known[edit.unit_id], edit, phase, 0) for edit in edits}
    said = rate_candidates(run, policy, [c for c in read.values() if isinstance(c, Candidate)], domain, phase=phase)
    return {name: said.get(getattr(candidate, "id", ""), math.nan) for name, candidate in read.items()}


def _ratings(policy: Policy, part: Sequence[Candidate], count: Count, *, domain: Rates) -> list[dict]:
    ratings = domain.rate(part, count)
    count(rated=len(part), unrated=sum(map(math.isnan, ratings)))
    return [{"rating": to_dict(rating)} for rating in ratings]


def finalists_of(edits: Sequence[SelfEdit], ratings: dict[str, float], most: int) -> list[SelfEdit]:
    """Return the ``most`` highest-rated self-edits of each unit, in the order of ``edits``.

    Ties go to the earlier self-edit; a self-edit without a rating ranks last.
    """
    worth = {name: -math.inf if math.isnan(rating) else rating for name, rating in ratings.items()}
    ranked = values_of(sorted(edits, key=lambda edit: -worth[edit.id]), attrgetter("id"))[0]
    chosen = {name for names in ranked.values() for name in names[:most]}
    return [edit for edit in edits if edit.id in chosen]


def practise(
    run: Recorder, policy: Policy, units: Units, domain: Domain, outer: OuterLoop, *, phase: str, seed: int
) -> tuple[list[Group], dict[str, float]]:
    """E-step: sample self-edits of each unit and reward them.

    Returns:
        One group per unit, and the accuracy of the policy without an adapter by unit (empty unless the reward compares
        with it). A filter that ignores the reward (`BLIND`) leaves the self-edits without trials and rewards. A reward
        of `RATED` is the rating itself, and the trials are marked as untried.
    """
    edits = write_self_edits(run, policy, units, domain, outer, phase=f"{phase}/sample", seed=seed)
    frozen, ratings = dict[str, float](), dict[str, float]()
    tried = [] if outer.filter in BLIND or outer.reward in RATED else edits
    if outer.filter not in BLIND and (outer.reward in RATED or outer.finalists):
        ratings = rate_edits(run, policy, edits, units, domain, phase=f"{phase}/rate")
        tried = finalists_of(tried, ratings, outer.finalists)
    if tried and outer.reward in COMPARING:
        plain = [Candidate(f"{unit.id}/frozen", unit, None, "frozen", seed, trains=False) for unit in units]
        frozen = {t.unit_id: t.accuracy for t in score_candidates(run, policy, plain, domain, phase=f"{phase}/frozen")}
    repeats: list[list[Trial]] = []
    for s, draw in enumerate(domain.reward_seeds(seed, outer.reward_seeds) if tried else ()):
        where = f"{phase}/score_{s}" if s else f"{phase}/score"
        repeats.append(score_edits(run, policy, tried, units, domain, arm=phase, phase=where, seed=draw))
    trials = dict(zip((edit.id for edit in tried), zip(*repeats, strict=True), strict=True))
    if ratings:
        trials = {edit.id: trials.get(edit.id) or (domain.trial(edit, UNTRIED),) for edit in edits}
    groups = []
    for unit in units:
        own = tuple(edit for edit in edits if edit.unit_id == unit.id)
        several = tuple(trials[edit.id] for edit in own if edit.id in trials)
        if outer.reward in RATED:
            rewards = tuple(ratings[edit.id] for edit in own) if ratings else ()
        else:
            rewards = tuple(reward_of(of_one, frozen.get(unit.id, math.nan), outer.reward) for of_one in several)
        groups.append(Group(unit, own, several, rewards))
    return groups, frozen


def reward_of(trials: Sequence[Trial], frozen: float, reward: str) -> float:
    """Return the mean reward of a self-edit's trials; NaN, and so never kept, if one of them could not be graded."""
    return sum(REWARDS[reward](trial, frozen) for trial in trials) / len(trials)


def as_round(index: int, groups: Sequence[Group], update: Update, outer: OuterLoop, frozen: dict[str, float]) -> Round:
    """Return the record of a round: the first trial of every self-edit, its reward, and the ids of those kept."""
    trials = tuple(several[0] for group in groups for several in group.trials)
    rewards = tuple(reward for group in groups for reward in group.rewards)
    kept = tuple(edit.id for edit in update.kept)
    by_seed = tuple(
        tuple(REWARDS[outer.reward](trial, frozen.get(trial.unit_id, math.nan)) for trial in several)
        for group in groups
        for several in group.trials
        if outer.reward in REWARDS
    )
    return Round(index, trials, rewards, kept, update.loss, outer.reward, frozen, by_seed)


def one_round(
    run: Recorder, policy: Policy, units: Units, domain: Domain, outer: OuterLoop, *, index: int, name: str, seed: int
) -> tuple[Update, Round, list[Group]]:
    """Run one round, E-step and update to a policy called ``name``; return the update, its record and its groups."""
    learn = update_of(outer)
    groups, frozen = practise(run, policy, units, domain, outer, phase=name, seed=seed)
    update = learn(run, policy, groups, domain, outer, name=name, seed=seed)
    record = as_round(index, groups, update, outer, frozen)
    warn_if_blind(record, outer, domain.grader)
    return update, record, groups


def restem_round(
    run: Recorder, policy: Policy, units: Units, domain: Domain, outer: OuterLoop, *, index: int, name: str, seed: int
) -> tuple[Policy, Round]:
    """Run one round and return the next policy and the record of the round (`one_round` without its groups)."""
    update, record, _ = one_round(run, policy, units, domain, outer, index=index, name=name, seed=seed)
    return update.policy, record


def warn_if_blind(record: Round, outer: OuterLoop, grader: str) -> None:
    """Warn if the reward does not tell the self-edits of more than half of the units apart."""
    one_best = outer.filter.startswith("best")  # a filter that keeps all above a threshold is not blind at a tie
    share = record.undecided_share if one_best else record.zero_share
    if share > 0.5:
        warnings.warn(
            f"Round {record.index}: the best reward {'is shared by several self-edits or 0' if one_best else 'is 0'} "
            f"for {share:.0%} of the passages or tasks, so what filter {outer.filter!r} keeps there says little; ask "
            f"more questions, raise reward_seeds, or take another grader than {grader!r}.",
            stacklevel=3,
        )


def several_rounds(
    run: Recorder,
    base: Policy,
    domain: Domain,
    outer: OuterLoop,
    *,
    practice: Callable[[int], Units],
    rounds: int,
    seed: int,
    name: str,
) -> tuple[Policy, list[Round]]:
    """Run ``rounds`` rounds without evaluation and return the last policy and the records of all rounds.

    Round i is recorded as ``<name>_<i>`` and has the same seed as in `run_loop`.
    """
    policy, records = base, []
    for index in range(1, rounds + 1):
        one, draw = f"{name}_{index}", derive_seed(seed, index)
        policy, record = restem_round(run, policy, practice(index), domain, outer, index=index, name=one, seed=draw)
        records.append(record)
    return policy, records


# ---------------------------------------------------------------------------------------------- the whole loop


@dataclass(frozen=True)
class Control:
    """A control arm: a policy that learns from as many self-edits as SEAL but ignores their reward.

    ``filter`` selects which self-edits are kept. With ``own`` the policy runs all rounds on its own self-edits;
    otherwise it learns once, from the self-edits of SEAL's first round.
    """

    filter: str
    own: bool


#: arm → control
CONTROLS = {
    "random_edit_sft": Control("random", own=True),
    "random_config_sft": Control("random_as_many", own=False),
}


@dataclass(frozen=True)
class Loop:
    """The result of the whole loop for one seed.

    ``evaluated`` maps each arm (``own_untrained``, ``seal_round_1``, …, the control) to its trials on the evaluation
    units. ``fresh`` holds, per round, the trials of the selected self-edits trained again with an unused seed.
    """

    seed: int
    rounds: tuple[Round, ...]
    evaluated: dict[str, list[Any]]
    fresh: tuple[list[Any], ...] = ()


def fresh_rewards(record: Round, trials: Sequence[Trial]) -> dict[str, float]:
    """Return the mean reward of a round's selected self-edits under a fresh seed, by unit.

    ``trials`` are the trials under the fresh seed. If the round selected by a rating, the accuracy that the rating
    stands for takes the place of the reward. Trials that cannot be scored are left out.
    """
    of = REWARDS.get(record.reward, REWARDS["accuracy"])
    rewards = values_of(trials, lambda trial: of(trial, record.frozen.get(trial.unit_id, math.nan)))[0]
    known = {unit: [reward for reward in several if not math.isnan(reward)] for unit, several in rewards.items()}
    return {unit: sum(values) / len(values) for unit, values in known.items() if values}


def evaluate(
    run: Recorder,
    policy: Policy,
    units: Units,
    domain: Domain[TrialT],
    outer: OuterLoop,
    *,
    arm: str,
    seed: int,
    group: str = "",
    samples: int = 1,
) -> list[TrialT]:
    """Return the trials of the policy's own self-edits on ``units``, recorded as phase ``<group>evaluate/<arm>``."""
    phase = f"{group}evaluate/{arm}"
    edits = write_self_edits(run, policy, units, domain, outer, phase=f"{phase}/write", seed=seed, samples=samples)
    return score_edits(run, policy, edits, units, domain, arm=arm, phase=phase, seed=seed)


def run_loop(
    run: Recorder,
    base: Policy,
    domain: Domain,
    outer: OuterLoop,
    *,
    practice: Callable[[int], Units],
    held_out: Units,
    rounds: int,
    seed: int,
    control: str = "",
    samples: int = 1,
    group: str = "",
) -> Loop:
    """Run the whole experiment for one seed: evaluate, run and evaluate every round, then the control.

    Args:
        practice: maps the round number (from 1) to the units of that round.
        held_out: the units that every policy is evaluated on.
        samples: self-edits per evaluation unit.
        control: an arm of `CONTROLS`; "" for none.
        group: prefix of the phase names, for a run that holds loops of several models.
    """
    update_of(outer)  # refuse an unknown update before anything is sampled
    group = f"{group}seed_{seed}/"
    measure = partial(
        evaluate, run, units=held_out, domain=domain, seed=seed, group=group, samples=samples, outer=outer
    )
    evaluated = {"own_untrained": measure(base, arm="own_untrained")}
    policy, history, fresh = base, [], []
    blind = CONTROLS[control] if control else None
    for index in range(1, rounds + 1):
        name, draw, before, units = f"seal_round_{index}", derive_seed(seed, index), policy, practice(index)
        update, record, groups = one_round(run, before, units, domain, outer, index=index, name=group + name, seed=draw)
        policy = update.policy
        history.append(record)
        phase, unused = f"{group}{name}/fresh_seed", derive_seed(seed, index, "fresh seed")
        fresh.append(score_edits(run, before, update.kept, units, domain, arm=name, phase=phase, seed=unused))
        evaluated[name] = measure(policy, arm=name)
        if index == 1 and blind and not blind.own:
            kept = kept_of(groups, replace(outer, filter=blind.filter), draw)
            learned = imitate(run, base, kept, units, domain, outer, name=group + control, seed=draw)
            evaluated[control] = measure(learned.policy, arm=control)
    if blind and blind.own:
        blindly = replace(outer, filter=blind.filter)
        policy, _ = several_rounds(
            run, base, domain, blindly, practice=practice, rounds=rounds, seed=seed, name=f"{group}random_round"
        )
        evaluated[control] = measure(policy, arm=control)
    return Loop(seed, tuple(history), evaluated, tuple(fresh))
