"""Outer algorithms: each makes the next policy from the rewarded self-edits of a round and has one row in `UPDATES`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seal_lib.errors import DataError, must_be_one_of
from seal_lib.loops.domain import Domain, Unit, Units
from seal_lib.loops.policy import Policy
from seal_lib.loops.rewards import FILTERS
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import SelfEdit, Trial
from seal_lib.runs.work import Recorder
from seal_lib.seeds import derive_seed


@dataclass(frozen=True)
class Group:
    """One unit's k self-edits with their rewards, which every outer algorithm learns from.

    ``trials`` holds one trial per reward seed for each self-edit (one with outcome ``untried`` if it was only rated);
    ``rewards`` holds one number per self-edit, the mean over its trials or its rating, NaN if one of them could not be
    graded. Both are empty if the filter ignores the reward.
    """

    unit: Unit
    edits: tuple[SelfEdit, ...]
    trials: tuple[tuple[Trial, ...], ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class Update:
    """The result of an outer algorithm: the next policy, the self-edits it learned from, and the last loss."""

    policy: Policy
    kept: tuple[SelfEdit, ...]
    loss: float


def kept_of(groups: Sequence[Group], outer: OuterLoop, seed: int) -> list[SelfEdit]:
    """Return the self-edits that the filter keeps, group by group, without those whose text is empty."""
    kept = []
    for group in groups:
        rewards = group.rewards or (0.0,) * len(group.edits)
        picked = FILTERS[outer.filter](rewards, derive_seed(seed, group.unit.id), outer.threshold)
        kept += [group.edits[k] for k in picked if group.edits[k].text.strip()]
    return kept


def restem(
    run: Recorder, policy: Policy, groups: Sequence[Group], domain: Domain, outer: OuterLoop, *, name: str, seed: int
) -> Update:
    """ReST^EM: filter the self-edits by their reward, then finetune the policy on those kept."""
    kept = kept_of(groups, outer, seed)
    return imitate(run, policy, kept, [group.unit for group in groups], domain, outer, name=name, seed=seed)


def imitate(
    run: Recorder,
    policy: Policy,
    edits: Sequence[SelfEdit],
    units: Units,
    domain: Domain,
    outer: OuterLoop,
    *,
    name: str,
    seed: int,
) -> Update:
    """Finetune a copy of the policy on self-edits by LoRA; the adapter is an artifact of the run.

    Equal self-edits count as often as they are given.

    Raises:
        DataError: there are no self-edits.
    """
    known = {unit.id: unit for unit in units}
    pairs = [domain.target(known[edit.unit_id], edit.text, policy) for edit in edits]
    if not pairs:
        raise DataError(f"{name}: no self-edit passed the filter {outer.filter!r}; lower its threshold or sample more.")
    following, loss = policy.finetuned(run, pairs, outer, name=name, seed=seed)
    return Update(following, tuple(edits), loss)


#: outer algorithm → function of (run, policy, groups, domain, settings, name, seed)
UPDATES: dict[str, Callable[..., Update]] = {"restem": restem}


def update_of(outer: OuterLoop) -> Callable[..., Update]:
    """Return the outer algorithm that the settings name."""
    must_be_one_of("update", outer.update, UPDATES)
    return UPDATES[outer.update]
