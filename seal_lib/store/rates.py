"""Measure how often the review of documents and self-edits is right, where the truth is known.

Documents: a set written by somebody who did not know the rules (``poison.jsonl``). Half of it was read while the rules
were improved (column ``half``), so the other half says more. Self-edits: those about the made world, where every line
is known to be true or false.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.knowledge import world
from seal_lib.records import Passage, SelfEdit
from seal_lib.report import stats
from seal_lib.store import review, texts
from seal_lib.store.learning import findings_in
from seal_lib.store.review import Lines, lines_of
from seal_lib.store.texts import has_texts

EXPERIMENT = "own_documents/review"
CLEAN, POISONED = "clean", "all poisoned"


@dataclass(frozen=True)
class Judged:
    """A document of the set after its review. ``half``: was it read while the rules were improved? ``stopped``: why."""

    name: str
    kind: str
    half: str
    stopped: str


def documents(file: str | Path, allow: Sequence[str] = ()) -> list[Judged]:
    """Review each document as `seal_lib.store.learning.learn` does: read as a file, cut into passages.

    Raises:
        DataError: the file is not there, or a row is incomplete.
    """
    rows = paths.read_data(paths.given(file))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(rows):
            if not has_texts(row, "name", "kind", "text"):
                raise DataError(f"{file}: row {number} is not whole; it has the texts name, kind, half, text.")
            path = Path(folder) / f"{number}.md"
            path.write_text(row["text"], encoding="utf-8")
            findings = [one for document in texts.read(path) for p in document.passages for one in findings_in(p)]
            found.append(Judged(row["name"], row["kind"], row.get("half", ""), review.stopped(findings, allow)))
    return found


def document_rows(judged: Sequence[Judged]) -> list[dict]:
    """Return rows with the share of each kind that is stopped, of all documents and of the half that nobody read."""
    found = []
    groups = {kind: [one for one in judged if one.kind == kind] for kind in dict.fromkeys(one.kind for one in judged)}
    groups[POISONED] = [one for one in judged if one.kind != CLEAN]
    for kind, several in groups.items():
        for metric, half in (("stopped", None), ("stopped_unread", "unread")):
            values = {one.name: float(bool(one.stopped)) for one in several if half in (None, one.half)}
            if values:
                found.append(stats.mean_over_units(values, stats.SHARE, "document").row(EXPERIMENT, kind, metric))
    return found


def _flagged(passages: Sequence[Passage], edits: Mapping[str, SelfEdit], wrong: bool) -> dict[str, float]:
    """Return passage id → the share flagged as ungrounded of its self-edit's lines that state what the passage does
    not (``wrong``), or of the others; known in the made world only. Passages without such lines are left out."""
    found = {}
    for passage in passages:
        distinct = dict.fromkeys(lines_of(edits[passage.id]))
        lines = [line for line in distinct if bool(world.describe_notes(line, passage)["false"]) == wrong]
        if lines:
            found[passage.id] = sum(bool(review.lacking(line, passage)) for line in lines) / len(lines)
    return found


def changed(passage: Passage) -> Passage:
    """Return the passage with another value for each of its facts, as a later document would contradict it."""
    text, facts = passage.text, []
    for name, attribute, value in passage.facts:
        values = world.VALUES[attribute]
        other = values[(values.index(value) + 7) % len(values)]
        text = text.replace(value, other)
        facts.append((name, attribute, other))
    return Passage(f"{passage.id}-changed", passage.title, text, (), facts=tuple(facts))


def edit_rows(
    passages: Sequence[Passage], edits: Mapping[str, SelfEdit], later: Mapping[str, SelfEdit], *, model: str
) -> list[dict]:
    """Return rows with the shares of self-edits and lines that the rules flag, rightly and wrongly.

    Args:
        edits: passage id → its self-edit.
        later: id of each changed passage (`changed`) → its self-edit.
    """
    theirs = {p.id: later[f"{p.id}-changed"] for p in passages}
    against, others, every = {}, {}, Lines()
    for p in passages:
        every.add(lines_of(edits[p.id]), p.id)
    for p in passages:
        own = Lines()
        own.add(lines_of(edits[p.id]), p.id)
        against[p.id] = float(any(own.against(line) for line in lines_of(theirs[p.id])))
        others[p.id] = float(any(every.against(line, p.id) for line in lines_of(edits[p.id])))
    several = {
        "lines of a changed passage: ungrounded": _flagged(passages, theirs, wrong=True),
        "true lines: ungrounded": _flagged(passages, edits, wrong=False),
        "a changed passage: contradiction": against,
        "another passage: contradiction": others,
    }
    found = []
    for arm, values in several.items():
        if values:
            found.append(stats.mean_over_units(values, stats.SHARE).row(EXPERIMENT, arm, "found", model=model))
    return found
