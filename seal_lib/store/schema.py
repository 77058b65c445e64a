"""The records of a store, and the tables of its SQLite file with the migrations from version to version.

`seal_lib.store.database` reads and writes them.
"""

import math
from dataclasses import dataclass
from typing import Any

from seal_lib.loops.domain import Candidate
from seal_lib.records import Answer, Passage, PassageTrial, SelfEdit
from seal_lib.store.review import Finding

#: when a question is asked: before learning, with the passage in view, after learning
STAGES = ("before", "in_view", "after")
#: stage → the arm that it is in figures and tables
ARM_AT = {"before": "frozen", "in_view": "passage_in_context", "after": "own_chosen"}


def candidate(unit: Passage, stage: str, name: str = "") -> Candidate:
    """Return the asking of a passage's questions at a stage, one of `STAGES` or "both", for the inner loop."""
    trains, shown = stage in ("after", "both"), stage in ("in_view", "both")
    return Candidate(name or f"{unit.id}/{stage}", unit, None, ARM_AT.get(stage, stage), 0, trains=trains, shown=shown)


#: each entry takes the schema one version up; its version is the number of entries that were run
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE document (id INTEGER PRIMARY KEY, source TEXT NOT NULL UNIQUE, name TEXT NOT NULL, "
        "digest TEXT NOT NULL, added TEXT NOT NULL)",
        "CREATE TABLE passage (id TEXT PRIMARY KEY, title TEXT NOT NULL, text TEXT NOT NULL)",
        "CREATE TABLE part (document INTEGER NOT NULL REFERENCES document, number INTEGER NOT NULL, "
        "passage TEXT NOT NULL REFERENCES passage, place TEXT NOT NULL, PRIMARY KEY (document, number))",
        "CREATE TABLE edit (id INTEGER PRIMARY KEY AUTOINCREMENT, passage TEXT NOT NULL REFERENCES passage, "
        "document TEXT NOT NULL, place TEXT NOT NULL, "
        "state TEXT NOT NULL CHECK (state IN ('active', 'merged', 'reverted', 'quarantined')), reason TEXT NOT NULL, "
        "text TEXT NOT NULL, writer TEXT NOT NULL, model TEXT NOT NULL, weights TEXT NOT NULL, dtype TEXT NOT NULL, "
        "recipe TEXT NOT NULL, training TEXT NOT NULL, adapter TEXT NOT NULL, digest TEXT NOT NULL, "
        "made TEXT NOT NULL, changed TEXT NOT NULL)",
        "CREATE UNIQUE INDEX one_in_use ON edit (passage, weights) WHERE state IN ('active', 'merged')",
        "CREATE TABLE question (edit INTEGER NOT NULL REFERENCES edit, number INTEGER NOT NULL, "
        "question TEXT NOT NULL, gold TEXT NOT NULL, origin TEXT NOT NULL, before TEXT NOT NULL, "
        "in_view TEXT NOT NULL, after TEXT NOT NULL, PRIMARY KEY (edit, number))",
    ),
    (
        "ALTER TABLE edit ADD COLUMN findings TEXT NOT NULL DEFAULT '[]'",
        "DROP INDEX one_in_use",  # a newer edit beside the merged one of its passage is used first
        "CREATE UNIQUE INDEX one_active ON edit (passage, weights) WHERE state = 'active'",
        "CREATE UNIQUE INDEX one_merged ON edit (passage, weights) WHERE state = 'merged'",
        "CREATE TABLE merge (id INTEGER PRIMARY KEY AUTOINCREMENT, weights TEXT NOT NULL, "
        "state TEXT NOT NULL CHECK (state IN ('active', 'reverted')), adapter TEXT NOT NULL, digest TEXT NOT NULL, "
        "report TEXT NOT NULL, made TEXT NOT NULL)",
        "CREATE UNIQUE INDEX one_merge ON merge (weights) WHERE state = 'active'",
        "CREATE TABLE member (merge INTEGER NOT NULL REFERENCES merge, edit INTEGER NOT NULL REFERENCES edit, "
        "PRIMARY KEY (merge, edit))",
        "CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL, "
        "state TEXT NOT NULL CHECK (state IN ('waiting', 'done', 'failed')), reason TEXT NOT NULL, "
        "added TEXT NOT NULL, changed TEXT NOT NULL)",
        "CREATE UNIQUE INDEX one_waiting ON queue (source) WHERE state = 'waiting'",
        "CREATE TABLE renewal (id INTEGER PRIMARY KEY AUTOINCREMENT, "
        "state TEXT NOT NULL CHECK (state IN ('open', 'done')), report TEXT NOT NULL, "
        "begun TEXT NOT NULL, changed TEXT NOT NULL)",
    ),
    (
        "CREATE TABLE vector (text TEXT NOT NULL, encoder TEXT NOT NULL, vector BLOB NOT NULL, "
        "PRIMARY KEY (text, encoder)) WITHOUT ROWID",  # a digest of the text; the encoder's identity; 32-bit floats
    ),
)


@dataclass(frozen=True)
class Asked:
    """A question of an edit with its answers at each of `STAGES`; ``after`` is None without an adapter.

    ``origin`` of its gold answer: ``given`` by a person or file, ``own`` (written by the model with the passage in
    view), ``in_view`` (the model's answer with the passage in view, since nobody gave one).
    """

    question: str
    gold: str
    origin: str
    before: Answer
    in_view: Answer
    after: Answer | None = None

    def at(self, stage: str) -> Answer | None:
        return getattr(self, stage)


@dataclass(frozen=True)
class Edit:
    """The record of learning one passage: the self-edit, its adapter, where both come from, and what they changed.

    ``state``: ``active`` (used when asking), ``merged``, ``reverted`` (taken back), ``quarantined`` (kept apart) for
    ``reason``. ``model``, ``weights``, ``dtype``: the base (`seal_lib.models.weight_hash`). ``recipe``: every setting
    that it was made with. ``training``: counts. ``adapter``: name of its folder, "" if there is none; ``digest``: hash
    of its files.
    """

    passage: Passage
    document: str
    place: str
    self_edit: SelfEdit | None
    model: str
    weights: str
    dtype: str
    recipe: dict[str, Any]
    training: dict[str, Any]
    questions: tuple[Asked, ...]
    state: str = "active"
    reason: str = ""
    id: int = 0
    adapter: str = ""
    digest: str = ""
    made: str = ""
    changed: str = ""
    findings: tuple[Finding, ...] = ()

    def trial(self, stage: str) -> PassageTrial:
        """Return the answers at one of `STAGES` as a trial of the inner loop, to be shown and counted like others."""
        answers = tuple(found for asked in self.questions if (found := asked.at(stage)) is not None)
        about = {"seed": 0, "answers": answers, "grader": self.recipe["grader"]}
        if stage == "after" and self.adapter:
            about |= {key: self.training[key] for key in ("steps", "tokens")}
            losses = {key: self.training[key] for key in ("first_loss", "last_loss")}
            about |= {key: math.nan if loss is None else loss for key, loss in losses.items()}
        edit = self.self_edit if stage == "after" else None
        return PassageTrial(f"{self.passage.id}/{stage}", self.passage.id, ARM_AT[stage], edit, **about)


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter that adds what several edits add; ``edits``: their numbers, ``report``: what was measured of it."""

    id: int
    weights: str
    state: str
    adapter: str
    digest: str
    edits: tuple[int, ...]
    report: dict[str, Any]
    made: str


@dataclass(frozen=True)
class Queued:
    """A document in the queue for an update: waiting, done or failed."""

    id: int
    source: str
    state: str
    reason: str
    added: str


@dataclass(frozen=True)
class Renewal:
    """An update of the store, ``open`` until its guard has decided; ``report``: what it did, and why."""

    id: int
    state: str
    report: dict[str, Any]
    begun: str
    changed: str
