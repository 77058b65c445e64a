"""The outer loop: sample self-edits, try each in the inner loop, reward, update the policy; round after round.

The run records every trial, and a killed round resumes at its next chunk. A control is a filter that ignores the reward
(`CONTROLS`).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from seal_lib.generation.contract import Request, Sampling
from seal_lib.loops.domain import Candidate, Count, Domain, Rejected, TrialT, Unit
from seal_lib.loops.inner import score, score_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.rewards import BLIND, COMPARING, REWARDS
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.updates import Group, Update, imitate, kept_of, update_of
from seal_lib.records import Round, SelfEdit, Trial, to_dict
from seal_lib.runs.work import Recorder, Work
from seal_lib.seeds import derive_seed

# ---------------------------------------------------------------------------------------------- writing


#: why a self-edit was not written
LONG = "the prompt is longer than the model takes"


@dataclass(frozen=True)
class EditPrompt:
    """The prompt for a self-edit about the unit ``id``."""

    id: str
    prompt: str


def write_self_edits(run: Recorder, policy: Policy, units: Sequence[Unit], domain: Domain, outer: OuterLoop, *,
                     phase: str, seed: int, samples: int | None = None, chunk: int = 32) -> list[SelfEdit]:  # fmt: skip
    """``samples`` self-edits per unit (default ``outer.samples``), unit by unit."""
    asked = [EditPrompt(unit.id, domain.prompt(unit, policy.tokenizer)) for unit in units]
    edits = _written(run, policy, asked, domain, outer, phase, seed, samples or outer.samples, chunk)
    known = {unit.id: unit for unit in units}
    for attempt in range(2, domain.max_tries + 1):
        again = [i for i, edit in enumerate(edits) if _unread(domain, known[edit.unit_id], edit)]
        if not again:
            break
        asked = [EditPrompt(edits[i].id, domain.prompt(known[edits[i].unit_id], policy.tokenizer)) for i in again]
        other = derive_seed(seed, "again", attempt)
        redrawn = _written(run, policy, asked, domain, outer, f"{phase}/again_{attempt}", other, 1, chunk)
        for i, new in zip(again, redrawn, strict=True):
            edits[i] = replace(edits[i], text=new.text, tokens=edits[i].tokens + new.tokens, tries=attempt)
    return edits


def _unread(domain: Domain, unit: Unit, edit: SelfEdit) -> bool:
    read = domain.read(unit, edit, "", 0)
    return isinstance(read, Rejected) and read.unread


def _written(run: Recorder, policy: Policy, asked: Sequence[EditPrompt], domain: Domain, outer: OuterLoop, phase: str,
             seed: int, samples: int, chunk: int) -> list[SelfEdit]:  # fmt: skip
    sampling = Sampling(
        outer.edit_tokens, outer.temperature, outer.top_p, samples, schema=domain.schema, skip_long=True
    )
    work = Work(partial(_texts, sampling=sampling, seed=seed), policy, run.count)
    return [SelfEdit.from_dict(edit) for row in run.map(phase, asked, work, chunk=chunk) for edit in row["edits"]]


def _texts(policy: Policy, part: Sequence[EditPrompt], count: Count, *, sampling: Sampling, seed: int) -> list[dict]:
    requests = [Request(asked.prompt, derive_seed(seed, asked.id, "self-edit")) for asked in part]
    texts = policy.generator().generate(requests, sampling)
    rows = []
    for asked, completions in zip(part, texts, strict=True):
        edits = [
            SelfEdit(
                f"{asked.id}/{k}", asked.id, done.text.strip(), policy.name, seed, done.tokens,
                unwritten=LONG if done.finish == "too_long" else "",
            )
            for k, done in enumerate(completions)
        ]  # fmt: skip
        rows.append({"edits": [to_dict(edit) for edit in edits]})
    count(generated=sum(edit["tokens"] for row in rows for edit in row["edits"]))
    return rows


# ---------------------------------------------------------------------------------------------- one round


def practise(run: Recorder, policy: Policy, units: Sequence[Unit], domain: Domain, outer: OuterLoop, *, phase: str,
             seed: int) -> tuple[list[Group], dict[str, float]]:  # fmt: skip
    """E-step: the rewarded self-edits of each unit; and the accuracy of the policy without an adapter, by unit, where
    the reward compares with it."""
    edits = write_self_edits(run, policy, units, domain, outer, phase=f"{phase}/sample", seed=seed)
    frozen: dict[str, float] = {}
    repeats: list[list[Trial]] = []
    if outer.filter not in BLIND:
        if outer.reward in COMPARING:
            plain = [Candidate(f"{unit.id}/frozen", unit, None, "frozen", seed, trains=False) for unit in units]
            frozen = {t.unit_id: t.accuracy for t in score(run, policy, plain, domain, phase=f"{phase}/frozen")}
        for s, draw in enumerate(domain.reward_seeds(seed, outer.reward_seeds)):
            where = f"{phase}/score_{s}" if s else f"{phase}/score"
            repeats.append(score_edits(run, policy, edits, units, domain, arm=phase, phase=where, seed=draw))
    trials = list(zip(*repeats, strict=True)) if repeats else [()] * len(edits)
    groups = []
    for unit in units:
        own = [i for i, edit in enumerate(edits) if edit.unit_id == unit.id]
        rewards = [reward_of(trials[i], frozen.get(unit.id, math.nan), outer.reward) for i in own if trials[i]]
        groups.append(
            Group(unit, tuple(edits[i] for i in own), tuple(trials[i] for i in own if trials[i]), tuple(rewards))
        )
    return groups, frozen


def reward_of(trials: Sequence[Trial], frozen: float, reward: str) -> float:
    """Mean reward of a self-edit's trials; NaN if one of them could not be graded: never the best, never kept."""
    return sum(REWARDS[reward](trial, frozen) for trial in trials) / len(trials)


def round_of(index: int, groups: Sequence[Group], update: Update, outer: OuterLoop, frozen: dict[str, float]) -> Round:
    """The record of a round: the first trial of every self-edit, its reward, what was kept."""
    trials = tuple(several[0] for group in groups for several in group.trials)
    rewards = tuple(reward for group in groups for reward in group.rewards)
    kept = tuple(edit.id for edit in update.kept)
    by_seed = tuple(
        tuple(REWARDS[outer.reward](trial, frozen.get(trial.unit_id, math.nan)) for trial in several)
        for group in groups
        for several in group.trials
    )
    return Round(index, trials, rewards, kept, update.loss, outer.reward, frozen, by_seed)


def one_round(run: Recorder, policy: Policy, units: Sequence[Unit], domain: Domain, outer: OuterLoop, *, index: int,
              name: str, seed: int) -> tuple[Update, Round, list[Group]]:  # fmt: skip
    """Practise on ``units`` and update the policy, which is then called ``name``; with the full record.

    With filter ``random`` no self-edit is scored, as the reward is not used.
    """
    learn = update_of(outer)
    groups, frozen = practise(run, policy, units, domain, outer, phase=name, seed=seed)
    update = learn(run, policy, groups, domain, outer, name=name, seed=seed)
    record = round_of(index, groups, update, outer, frozen)
    warn_if_blind(record, outer, domain.grader)
    return update, record, groups


def restem_round(run: Recorder, policy: Policy, units: Sequence[Unit], domain: Domain, outer: OuterLoop, *, index: int,
                 name: str, seed: int) -> tuple[Policy, Round]:  # fmt: skip
    """`one_round` for a person: the next policy, and the full record."""
    update, record, _ = one_round(run, policy, units, domain, outer, index=index, name=name, seed=seed)
    return update.policy, record


def warn_if_blind(record: Round, outer: OuterLoop, grader: str) -> None:
    """Warn where the reward cannot tell the self-edits of more than half of the units apart."""
    one_best = outer.filter.startswith("best")  # a filter that keeps all above a threshold is not blind at a tie
    share = record.undecided_share if one_best else record.zero_share
    if share > 0.5:
        warnings.warn(
            f"Round {record.index}: the best reward {'is shared by several self-edits or 0' if one_best else 'is 0'} "
            f"for {share:.0%} of the passages or tasks, so what filter {outer.filter!r} keeps there says little; ask "
            f"more questions, raise reward_seeds, or take another grader than {grader!r}.",
            stacklevel=3,
        )


# ---------------------------------------------------------------------------------------------- the whole loop


@dataclass(frozen=True)
class Control:
    """A policy that learns from the same number of self-edits without their reward.

    ``filter``: a filter that ignores the reward. ``own``: the policy does all rounds on its own self-edits; otherwise
    it learns once, from the self-edits of SEAL's first round.
    """

    filter: str
    own: bool


#: arm → the control that it is
CONTROLS = {
    "random_edit_sft": Control("random", own=True),
    "random_config_sft": Control("random_as_many", own=False),
}


@dataclass(frozen=True)
class Loop:
    """The result of one run of the whole loop.

    ``evaluated``: the domain's trials on the evaluation units by arm (``own_untrained``, ``seal_round_1``, …, the
    controls); ``fresh``: per round, trials of the selected self-edits, trained again with an unused seed.
    """

    seed: int
    rounds: tuple[Round, ...]
    evaluated: dict[str, list[Any]]
    fresh: tuple[list[Any], ...] = ()


def fresh_rewards(record: Round, trials: Sequence[Trial]) -> dict[str, float]:
    """The reward by which the round selected, of its selected self-edits under a fresh seed: mean by unit.

    Trials that cannot be scored are left out.
    """
    groups: dict[str, list[float]] = {}
    for trial in trials:
        reward = REWARDS[record.reward](trial, record.frozen.get(trial.unit_id, math.nan))
        if not math.isnan(reward):
            groups.setdefault(trial.unit_id, []).append(reward)
    return {unit: sum(values) / len(values) for unit, values in groups.items()}


def evaluate(run: Recorder, policy: Policy, units: Sequence[Unit], domain: Domain[TrialT], outer: OuterLoop, *,
             arm: str, seed: int, group: str = "", samples: int = 1) -> list[TrialT]:  # fmt: skip
    """Trials of the policy's own self-edits on ``units``, recorded as phase ``<group>evaluate/<arm>``."""
    phase = f"{group}evaluate/{arm}"
    edits = write_self_edits(run, policy, units, domain, outer, phase=f"{phase}/write", seed=seed, samples=samples)
    return score_edits(run, policy, edits, units, domain, arm=arm, phase=phase, seed=seed)


def practised(run: Recorder, policy: Policy, domain: Domain, outer: OuterLoop, *,
              practice: Callable[[int], Sequence[Unit]], rounds: int, seed: int, name: str) -> Policy:  # fmt: skip
    """The policy after some rounds, which are called ``<name>_1``, …; nothing is evaluated in between."""
    for index in range(1, rounds + 1):
        policy, _ = restem_round(
            run, policy, practice(index), domain, outer, index=index, name=f"{name}_{index}",
            seed=derive_seed(seed, index),
        )  # fmt: skip
    return policy


def run_loop(run: Recorder, base: Policy, domain: Domain, outer: OuterLoop, *,
             practice: Callable[[int], Sequence[Unit]], held_out: Sequence[Unit], rounds: int, seed: int,
             control: str = "", samples: int = 1, group: str = "") -> Loop:  # fmt: skip
    """The whole experiment for one seed: evaluate; then per round practise, update, evaluate; then the control.

    Args:
        practice: round (from 1) → the units that it practises on.
        samples: self-edits per evaluation unit.
        control: an arm of `CONTROLS`; "": none.
        group: what the names of its phases begin with, where one run holds loops of several models.
    """
    update_of(outer)  # an unknown one is refused before anything is written
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
        fresh.append(
            score_edits(
                run, before, update.kept, units, domain, arm=name, phase=f"{group}{name}/fresh_seed",
                seed=derive_seed(seed, index, "fresh seed"),
            )
        )  # fmt: skip
        evaluated[name] = measure(policy, arm=name)
        if index == 1 and blind and not blind.own:
            kept = kept_of(groups, replace(outer, filter=blind.filter), draw)
            learned = imitate(run, base, kept, units, domain, outer, name=group + control, seed=draw)
            evaluated[control] = measure(learned.policy, arm=control)
    if blind and blind.own:
        blindly = replace(outer, filter=blind.filter)
        policy = practised(
            run, base, domain, blindly, practice=practice, rounds=rounds, seed=seed, name=f"{group}random_round"
        )
        evaluated[control] = measure(policy, arm=control)
    return Loop(seed, tuple(history), evaluated, tuple(fresh))
