"""Merge several edits into one adapter, take one back out of it, and remove the least useful adapters.

Adapters are joined exactly: their ranks stand side by side (`seal_lib.training.adapters.joined`), so a merge without
one edit is the merge of the others, bit for bit. Merged adapters change the same weights and interfere with each other,
so a merge is measured on all questions of its edits and refused if too many answers are lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seal_lib.errors import DataError, ParameterError
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops.policy import Policy
from seal_lib.runs.work import Recorder, once
from seal_lib.store.database import Store, base_of
from seal_lib.store.guard import Limits, asked_again, before_after, broken, share
from seal_lib.store.learning import accuracy, grades_of
from seal_lib.store.retrieval import rank
from seal_lib.store.schema import Edit, MergedAdapter

if TYPE_CHECKING:
    from seal_lib.training.adapters import Adapter


@dataclass(frozen=True)
class Merged:
    """The outcome of a merge: the merge in use, or None with the reason; ``report``: what was measured."""

    merge: MergedAdapter | None
    reason: str
    report: dict[str, Any]


def to_merge(store: Store, weights: str, numbers: Sequence[int] = ()) -> list[Edit]:
    """Return the edits to merge: those of these numbers or all active ones, and the members of the merge in use.

    Of each passage only the newest edit is taken, and only if the store still keeps the passage.

    Raises:
        DataError: there is none, or one is not in use or of another base.
    """
    kept = {part.id for part in store.passages()}
    wanted = [store.edit(number) for number in numbers] or store.edits("active")
    for edit in wanted:
        if edit.state not in ("active", "merged") or edit.weights != weights:
            raise DataError(
                f"edit {edit.id} ({edit.document}) is {edit.state} and of {edit.model} ({edit.weights[:12]}); only "
                f"edits in use of one base can be merged, and this is {weights[:12]}."
            )
    newest = {edit.passage.id: edit for edit in store.edits("merged", weights=weights)}
    newest |= {edit.passage.id: edit for edit in sorted(wanted, key=lambda edit: edit.id) if edit.state == "active"}
    found = [edit for edit in sorted(newest.values(), key=lambda edit: edit.id) if edit.passage.id in kept]
    if not found:
        raise DataError(
            f"{store.folder} has no edit in use on this base, so there is nothing to merge; see `seal list`."
        )
    return found


def related(store: Store, edit: Edit, most: int) -> list[Edit]:
    """Return this edit and those in use on its base whose passages share most words with its own, ``most`` in all."""
    others = {e.passage.id: e for e in store.edits("active", "merged", weights=edit.weights)}
    others.pop(edit.passage.id, None)
    found = rank(f"{edit.passage.title} {edit.passage.text}", [other.passage for other in others.values()])
    return [edit, *(others[passage.id] for passage in found[: most - 1])]


def joined_adapter(store: Store, edits: Sequence[Edit]) -> "Adapter":
    """Return one adapter that adds what these edits add, joined in the order of their numbers."""
    from seal_lib.training import adapters

    loaded = [adapters.Adapter.load(store.folder_of(edit)) for edit in sorted(edits, key=lambda edit: edit.id)]
    return adapters.joined(loaded)


def check_count(edits: Sequence[Edit]) -> None:
    """Raise DataError if there are fewer than two edits."""
    if len(edits) < 2:
        raise DataError("A merge has two edits at least; learn another document first, or name more edits.")


def merge_edits(store: Store, policy: Policy, domain: Knowledge, edits: Sequence[Edit], limits: Limits) -> Merged:
    """Use these edits as one adapter if what it loses is within the limits; otherwise change nothing.

    Raises:
        DataError: there are fewer than two edits.
    """
    check_count(edits)
    adapter = joined_adapter(store, edits)
    after = asked_again(policy, domain, [(edit.passage, edit.questions) for edit in edits], adapter)
    report: dict[str, Any] = {
        "edits": [edit.id for edit in edits],
        "rank": adapter.rank,
        "alone": share([accuracy(edit.questions, "after", domain.grader) for edit in edits]),
        "merged": share(after),
        "by_edit": {str(edit.id): value for edit, value in zip(edits, after, strict=True)},
        **before_after(policy, domain, limits, [adapter])[0],
    }
    report["limits"] = limits.told
    reason = broken(report, limits, was="alone", now="merged")
    if reason:
        return Merged(None, reason, report)
    return Merged(store.merge(edits, adapter, report), "", report)


def merge_in_use(run: Recorder, store: Store, policy: Policy, domain: Knowledge, limits: Limits) -> Merged:
    """Merge all edits in use, once per run; the outcome is recorded."""

    def made() -> dict[str, Any]:
        base = base_of(policy)
        count = len(store.edits("active", "merged", weights=base))
        if count < 2:
            done = Merged(None, f"{count} edits are in use, and a merge has two at least", {})
        else:
            done = merge_edits(store, policy, domain, to_merge(store, base), limits)
        return {"merge": done.merge.id if done.merge else 0, "reason": done.reason, "report": done.report}

    row = once(run, "merge", made)
    made_then = next((merge for merge in store.merges(active=False) if merge.id == row["merge"]), None)
    return Merged(made_then, row["reason"], row["report"])


def revert(store: Store, number: int, reason: str = "taken back by hand") -> Edit:
    """Take an edit back, also out of a merge, whose other edits are then joined again; no model is needed.

    Raises:
        DataError: there is no such edit, or it is not in use.
    """
    edit = store.edit(number)
    if edit.state != "merged":
        return store.revert(number, reason)
    former = next(merge for merge in store.merges() if merge.weights == edit.weights)
    left = [store.edit(member) for member in former.edits if member != number]
    report = {"edits": [e.id for e in left], "without": number, "of": former.id}
    store.merge(left, joined_adapter(store, left) if left else None, report, reason, base=edit.weights)
    return store.edit(number)


@dataclass(frozen=True)
class Worth:
    """The worth of an edit's adapter: the gain in right answers to its own questions, and its size in bytes."""

    edit: Edit
    gained: float
    size: int


def worths(store: Store) -> list[Worth]:
    """Return the active edits, the least useful first: by the questions that each gained; of equals the larger first.

    An adapter stands beside the model and answers its own passage's questions only, so leaving it out changes these and
    nothing else: what was measured when it was learned is what is lost.
    """
    found = []
    for edit in store.edits("active"):
        size = sum(path.stat().st_size for path in store.folder_of(edit).iterdir())
        was, now = (grades_of(edit.questions, stage, edit.recipe["grader"]) for stage in ("before", "after"))
        found.append(Worth(edit, sum(now) - sum(was), size))
    return sorted(found, key=lambda worth: (worth.gained, -worth.size, worth.edit.id))


def prune(store: Store, budget: int) -> list[Edit]:
    """Remove the adapters of the least useful active edits until the others take at most ``budget`` bytes.

    Raises:
        ParameterError: the budget is negative.
    """
    if budget < 0:
        raise ParameterError(f"budget: {budget} is negative; give the bytes that adapters may take.")
    ranked = worths(store)
    held, gone = sum(worth.size for worth in ranked), []
    for worth in ranked:
        if held <= budget:
            break
        held -= worth.size
        gone.append(store.prune(worth.edit.id, f"pruned: it gained {worth.gained:.1f} of its own questions"))
    return gone
