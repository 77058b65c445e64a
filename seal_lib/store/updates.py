"""Scheduled updates: documents wait in a queue, those worth it are learned within a budget, and a guard lets them in.

What is learned stays quarantined until the guard has measured it; one transaction of the store then makes edits active,
or keeps them quarantined with the reason. So a killed update leaves nothing half active, and the next call goes on with
it.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from seal_lib import paths
from seal_lib.errors import ParameterError, SealError
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import to_dict
from seal_lib.report import pages
from seal_lib.runs.journal import Lock
from seal_lib.runs.work import Recorder, once
from seal_lib.store import texts
from seal_lib.store.database import Store, base_of
from seal_lib.store.guard import GUARDED, Limits, before_after, broken
from seal_lib.store.learning import Learner, OwnQuestions, accuracy, findings_in, waiting
from seal_lib.store.review import stopped
from seal_lib.store.schema import Edit, Queued, Renewal
from seal_lib.store.texts import Document, Part

LOCK, REPORTS = "update.lock", "updates"
UNKNOWN = 60.0  # seconds that a passage is expected to take if the store has learned none yet; else their median


@dataclass(frozen=True)
class Need:
    """The facts about a passage that are known before it is learned.

    ``known``: share of its questions that are right already, NaN without any; ``seconds``: how long learning it is
    expected to take.
    """

    part: Part
    known: float
    seconds: float


#: rule → function of a need that returns its worth; passages worth 0 are left out, the others come most worthy first
WORTH: dict[str, Callable[[Need], float]] = {
    "need": lambda need: 0.0 if math.isnan(need.known) else (1.0 - need.known) / max(need.seconds, 1e-6),
    "all": lambda need: 1.0,
}


@dataclass(frozen=True)
class Plan:
    """The plan of an update: its budget in seconds, its rule, the limits of its guard, and the words of a passage.

    Raises:
        ParameterError: the budget is not positive, or there is no such rule.
    """

    budget: float
    limits: Limits
    rule: str = "need"
    words: int = 150

    def __post_init__(self):
        if not self.budget > 0:
            raise ParameterError(f"budget: {self.budget} is not above 0; give seconds, or 10min.")
        if self.rule not in WORTH:
            raise ParameterError(f"rule: {self.rule!r} is not one of {', '.join(WORTH)}.")


#: ending of a duration → its seconds
_UNITS = {"min": 60.0, "h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}


def seconds(text: str) -> float:
    """Return the seconds of a duration as people write it: ``90``, ``90s``, ``10min``, ``2h``.

    Raises:
        ParameterError: it is not a duration.
    """
    number = text.strip().lower()
    unit = next(unit for unit in _UNITS if number.endswith(unit))
    try:
        found = float(number.removesuffix(unit)) * _UNITS[unit]
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise ParameterError(f"budget: {text!r} is no length of time; write 90s, 10min or 2h.")
    return found


def update(run: Recorder, store: Store, learner: Learner, plan: Plan) -> Renewal:
    """Learn the queued documents that are worth it; if the update is killed, the next call goes on with it.

    Raises:
        RunError: another process updates this store.
    """
    lock = Lock(store.folder / LOCK)
    try:
        for done in store.renewals():
            if done.state == "done":
                write_report(store, done)
        return _update(run, store, learner, plan)
    finally:
        lock.release()


def update_once(
    run: Recorder,
    store: Store,
    policy: Policy,
    domain: Knowledge,
    outer: OuterLoop,
    own: OwnQuestions,
    plan: Plan,
    source: str | Path,
    *,
    seed: int = 0,
) -> Renewal:
    """Queue a document and update the store, once per run: the number of the update is recorded."""
    learner = Learner(policy, domain, outer, own, seed=seed)

    def made() -> dict[str, Any]:
        store.enqueue(source)
        return {"renewal": update(run, store, learner, plan).id}

    row = once(run, "update", made)
    return next(one for one in store.renewals() if one.id == row["renewal"])


def _update(run: Recorder, store: Store, learner: Learner, plan: Plan) -> Renewal:
    begun = time.monotonic()
    renewal = store.renew()
    found, failed, left_out = _documents(store.queue(), plan.words)
    learner = replace(learner, consent=replace(learner.consent, held=renewal.id))
    todo, stopping = _todo(store, [document for several in found.values() for document in several], learner)
    known = learner.known_before([part.passage for part in todo], run.count)
    costs = [edit.training["cost"]["seconds"] for edit in store.edits() if edit.self_edit]
    price = median(costs[-20:]) if costs else UNKNOWN
    needs = [Need(part, share, price) for part, share in zip(todo, known, strict=True)]
    worth = WORTH[plan.rule]
    wanted = sorted((need for need in needs if worth(need) > 0), key=worth, reverse=True)
    worthy = [*stopping, *(need.part for need in wanted)]
    learned, late = _within(run, store, learner, worthy, plan.budget - (time.monotonic() - begun), price)
    edits = [store.edit(number) for number in learned]
    waiting_ones = [e for e in store.edits("quarantined") if e.reason == waiting(renewal.id)]
    measured = _measured(store, learner, plan.limits, waiting_ones)
    verdicts = {}
    for edit in waiting_ones:
        why = broken(measured[edit.id], plan.limits, was="learned_before", now="learned_after")
        verdicts[edit.id] = ("quarantined", f"the guard of update {renewal.id}: {why}") if why else ("active", "")
    left = {part.id for part in late}
    queued = dict(failed)
    for one, documents in found.items():
        if not left & {p.id for document in documents for p in document.passages}:
            queued[one.id] = ("done", f"update {renewal.id}")
    told = [(need.part, need.known) for need in needs] + [(part, math.nan) for part in stopping]
    report = {
        "budget": plan.budget,
        "rule": plan.rule,
        "limits": plan.limits.told,
        "seconds": round(time.monotonic() - begun, 3),
        "passages": [_row(part, share, edits, verdicts, part.id in left) for part, share in told],
        "guard": to_dict(measured),
        "failed": [reason for _, reason in failed.values()] + left_out,
    }
    renewal = store.settle(renewal, verdicts, queued, report)
    write_report(store, renewal)
    return renewal


def _documents(
    queue: Sequence[Queued], words: int
) -> tuple[dict[Queued, list[Document]], dict[int, tuple[str, str]], list[str]]:
    """Return (what could be read; what could not, with the reason; what was left out of folders)."""
    found: dict[Queued, list[Document]] = {}
    failed: dict[int, tuple[str, str]] = {}
    left_out: list[str] = []
    for one in queue:
        try:
            found[one] = texts.read(one.source, words, left_out.append)
        except SealError as error:
            failed[one.id] = ("failed", str(error))
    return found, failed, left_out


def _todo(store: Store, documents: Sequence[Document], learner: Learner) -> tuple[list[Part], list[Part]]:
    """Add the documents to the store; return (passages to measure, passages that the review stops) not yet in use."""
    used = {edit.passage.id for edit in store.edits("active", "merged", weights=base_of(learner.policy))}
    every: dict[str, Part] = {}
    for document in documents:
        store.add(document)
        for part in document.parts:
            every.setdefault(part.id, part)
    new = [part for name, part in every.items() if name not in used]
    bad = [part for part in new if stopped(findings_in(part.passage), learner.consent.allow)]
    return [part for part in new if part not in bad], bad


def _within(
    run: Recorder, store: Store, learner: Learner, todo: Sequence[Part], budget: float, price: float
) -> tuple[list[int], list[Part]]:
    """Learn passages within the budget, at least a batch; return (numbers of their edits, passages left out)."""
    numbers: list[int] = []
    begun, left, size = time.monotonic(), list(todo), learner.together
    while left:
        spent = time.monotonic() - begun
        if numbers and spent + price * min(size, len(left)) > budget:
            break
        part, left = left[:size], left[size:]
        numbers += [row["edit"] for row in learner.learn_parts(store, part, run.count)]
        price = (time.monotonic() - begun) / len(numbers)
    return numbers, left


def _measured(store: Store, learner: Learner, limits: Limits, edits: Sequence[Edit]) -> dict[int, dict[str, float]]:
    """Return number of an edit → what its guard measured, with its own questions before and after learning."""
    policy, domain = learner.policy, learner.domain
    adapters = (store.adapter(edit, policy.base) for edit in edits)
    found = {}
    for edit, told in zip(edits, before_after(policy, domain, limits, adapters), strict=True):
        was, now = (accuracy(edit.questions, stage, domain.grader) for stage in ("before", "after"))
        found[edit.id] = {"learned_before": was, "learned_after": now, **told}
    return found


# ---------------------------------------------------------------------------------------------- what it did


def _row(
    part: Part, known: float, edits: Sequence[Edit], verdicts: dict[int, tuple[str, str]], late: bool
) -> dict[str, Any]:
    """Return what became of a passage as a row of the report."""
    edit = next((edit for edit in edits if edit.passage.id == part.id), None)
    if edit:
        state, reason = verdicts.get(edit.id, (edit.state, edit.reason))
    else:
        known_already = "the model answers its questions already" if not math.isnan(known) else "no question"
        state, reason = "left out", "no budget left" if late else known_already
    return {
        "edit": edit.id if edit else 0,
        "document": part.document,
        "place": part.place,
        "title": part.passage.title,
        "known": to_dict(known),
        "state": state,
        "reason": reason,
    }


def text_of(renewal: Renewal) -> str:
    """Return the report of an update as Markdown."""
    report = renewal.report
    if renewal.state != "done":
        return f"# Update {renewal.id}\n\nNot finished; `seal update` goes on with it.\n"
    counts = Counter(row["state"] for row in report["passages"])
    told = ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "nothing waited"
    spent = f"{report['seconds']:.0f} s of {report['budget']:.0f} s, rule `{report['rule']}`"
    lines = [f"# Update {renewal.id}", "", f"Begun {renewal.begun}, {spent}: {told}.", ""]
    rows = [{**row, "edit": row["edit"] or "-", "known": percent_of(row["known"])} for row in report["passages"]]
    keys = ("edit", "document", "place", "title", "known", "state", "reason")
    head = ("edit", "document", "place", "title", "known before", "state", "why")
    lines += _table(head, [[row[key] for key in keys] for row in rows])
    if report["guard"]:
        most, guard = report["limits"], list(report["guard"].values())
        kinds = [kind for kind in GUARDED if f"{kind}_before" in guard[0]]
        limits = ", ".join(f"{most[kind]:.0%} of {GUARDED[kind]}" for kind in kinds)
        lines += ["", f"Guard, on {most['file']}; it refuses where more than this is lost: {limits}.", ""]
        lines += _table(
            ("edit", *(f"{kind} before → after" for kind in kinds)),
            [
                (number, *(f"{percent_of(of[f'{kind}_before'])} → {percent_of(of[f'{kind}_after'])}" for kind in kinds))
                for number, of in report["guard"].items()
            ],
        )
    if report["failed"]:
        lines += ["", "Could not be read:", "", *(f"* {_plain(reason)}" for reason in report["failed"])]
    return "\n".join(lines) + "\n"


def percent_of(value: float | None) -> str:
    """Return a share as people read it; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.0%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    cells = [[_plain(cell) for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _plain(value: object) -> str:
    """Return words of a document on one line, escaped so that Markdown makes no link, picture, cell or markup."""
    return re.sub(r"([\\`*\[<|])", r"\\\1", " ".join(str(value).split()))


def write_report(store: Store, renewal: Renewal) -> Path:
    """Write an update's report as Markdown and as an HTML page, unless they are there; return the Markdown file."""
    file, text = store.folder / REPORTS / f"update-{renewal.id:04d}.md", text_of(renewal)
    for path, content in (file, text), (file.with_suffix(".html"), pages.of_markdown(f"Update {renewal.id}", text)):
        if not path.is_file():
            paths.write_text(path, content)
    return file
