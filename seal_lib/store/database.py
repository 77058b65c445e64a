"""The folder that keeps documents, self-edits and adapters: one SQLite file, and a PEFT folder per adapter.

A change is one transaction. An adapter's folder is written under another name, made durable and renamed *within* the
transaction that names it, so a kill at any moment leaves the old state or the new one; a folder that no row names is
swept when a store is opened. SQLite's write lock makes two processes take turns.

Knows records and files. Does not know how anything was learned, and loads no model.
"""

import json
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_lib import models, paths
from seal_lib.errors import DataError
from seal_lib.models.checks import said
from seal_lib.records import Answer, Passage, PassageTrial, SelfEdit, to_dict
from seal_lib.runs.manifest import content_hash
from seal_lib.store.texts import Document

if TYPE_CHECKING:
    from seal_lib.loops.policy import Source
    from seal_lib.runs.lifecycle import Run
    from seal_lib.training.adapters import Adapter

FILE, ADAPTERS = "store.sqlite3", "adapters"
WAIT = 60.0  # s that one process waits for another to finish a change
#: what an edit may be: used when asking; part of merged weights; taken back; kept apart, for the reason that it has
STATES = ("active", "merged", "reverted", "quarantined")
#: answers of a question, by when it was asked
STAGES = ("before", "in_view", "after")
#: stage → the arm that it is in figures and tables
ARMS = {"before": "frozen", "in_view": "passage_in_context", "after": "own_chosen"}

#: statements that take an older schema one version up; the schema's version is how many were done
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
)


@dataclass(frozen=True)
class Asked:
    """A question of an edit with its answers at each of `STAGES`; without an adapter there is none after.

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
    """What was learned from one passage: the self-edit, its adapter, where both come from, and what they changed.

    ``model``, ``weights``, ``dtype``: the base (`seal_lib.models.weight_hash`). ``recipe``: every setting that it was
    made with. ``training``: its counts. ``adapter``: name of the folder, "" if there is none; ``digest``: of its files.
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

    def trial(self, stage: str) -> PassageTrial:
        """The answers at one of `STAGES` as a trial of the inner loop, to be shown and counted as such."""
        answers = tuple(found for asked in self.questions if (found := asked.at(stage)) is not None)
        about = {"seed": 0, "answers": answers, "grader": self.recipe["grader"]}
        if stage == "after" and self.adapter:
            about |= {key: self.training[key] for key in ("steps", "tokens")}
            losses = {key: self.training[key] for key in ("first_loss", "last_loss")}
            about |= {key: math.nan if loss is None else loss for key, loss in losses.items()}
        edit = self.self_edit if stage == "after" else None
        return PassageTrial(f"{self.passage.id}/{stage}", self.passage.id, ARMS[stage], edit, **about)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _dumped(value: object) -> str:
    return json.dumps(to_dict(value), ensure_ascii=False, allow_nan=False)


def _answers(texts: Sequence[str]) -> list[Any]:
    """Answers at each stage; null where there is none."""
    return [None if row is None else Answer.from_dict(row) for row in map(json.loads, texts)]


class Store:
    """A store in ``folder``, which is made if it is not there.

    Raises:
        DataError: one sentence where the folder or its file cannot be used: damaged, full, not to be written, of a
            newer version, or in use for longer than ``wait`` seconds.
    """

    def __init__(self, folder: str | Path, wait: float = WAIT) -> None:
        self.folder = Path(folder)
        self.adapters, self.file = self.folder / ADAPTERS, self.folder / FILE
        with self.told():
            self.adapters.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self.file, timeout=wait, isolation_level=None)
        try:
            with self.told():
                self._base.execute("PRAGMA journal_mode = WAL")
                self._base.execute("PRAGMA synchronous = FULL")  # a change that was reported survives a power cut
                self._base.execute("PRAGMA foreign_keys = ON")
                found = self._base.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise sqlite3.DatabaseError(found)
                version = self._base.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise DataError(
                    f"{self.file} has schema {version}, this program knows {len(MIGRATIONS)}: a newer one wrote it; "
                    "update this program."
                )
            self._prepare()
        except BaseException:
            self._base.close()
            raise

    def _prepare(self) -> None:
        """Bring the schema up to date, and remove folders that a killed process left behind."""
        with self._change():
            version = self._base.execute("PRAGMA user_version").fetchone()[0]  # another process may have been first
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    self._base.execute(statement)
            self._base.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            named = {name for (name,) in self._base.execute("SELECT adapter FROM edit WHERE adapter <> ''")}
            for path in self.adapters.iterdir():  # nobody else is between a folder and its row: the change is ours
                if path.is_dir() and path.name not in named:
                    shutil.rmtree(path)

    def close(self) -> None:
        self._base.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Errors of SQLite and of files as one sentence with the way out."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorname", "") or ""
            way = next((way for start, way in _WAYS.items() if code.startswith(start)), _DAMAGED)
            raise DataError(f"{self.file} cannot be used ({said(error)}): {way}.") from error
        except OSError as error:
            where = error.filename or self.folder
            raise DataError(f"{where} cannot be used ({error.strerror or error}): {_FILES}.") from error

    @contextmanager
    def _change(self) -> Iterator[None]:
        """One transaction, in which no other process changes anything."""
        with self.told():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise

    # ------------------------------------------------------------------ documents

    def add(self, document: Document) -> None:
        """Keep a document and its passages. A newer version takes the place of the older one of the same file: edits of
        passages that it still has stay, those of passages that no document has any more are taken back."""
        parts = list(zip(document.passages, document.places, strict=True))
        with self._change():
            row = self._base.execute("SELECT id, digest FROM document WHERE source = ?", (document.source,)).fetchone()
            number = row[0] if row else None
            held = self._base.execute(
                "SELECT passage FROM part WHERE document = ? ORDER BY number", (number,)
            ).fetchall()
            if row and row[1] == document.digest and [name for (name,) in held] == [p.id for p, _ in parts]:
                return
            self._base.execute("DELETE FROM part WHERE document = ?", (number,))
            number = self._base.execute(
                "INSERT OR REPLACE INTO document VALUES (?, ?, ?, ?, ?)",
                (number, document.source, document.name, document.digest, _now()),
            ).lastrowid
            self._base.executemany(
                "INSERT OR IGNORE INTO passage VALUES (?, ?, ?)", [(p.id, p.title, p.text) for p, _ in parts]
            )
            self._base.executemany(
                "INSERT INTO part VALUES (?, ?, ?, ?)", [(number, i, p.id, at) for i, (p, at) in enumerate(parts)]
            )
            self._base.execute(
                "UPDATE edit SET state = 'reverted', reason = ?, changed = ? "
                "WHERE state = 'active' AND passage NOT IN (SELECT passage FROM part)",
                (f"its passage is no longer in {document.name}", _now()),
            )

    def passages(self) -> list[tuple[Passage, str, str]]:
        """(passage, name of its document, its place there) of all that is kept, in the order in which it came."""
        with self.told():
            rows = self._base.execute(
                "SELECT p.id, p.title, p.text, d.name, part.place FROM part JOIN passage p ON p.id = part.passage "
                "JOIN document d ON d.id = part.document ORDER BY d.id, part.number"
            ).fetchall()
        found: dict[str, tuple[Passage, str, str]] = {}
        for name, title, text, document, place in rows:
            found.setdefault(name, (Passage(name, title, text, ()), document, place))
        return list(found.values())

    # ------------------------------------------------------------------ edits

    def edits(self, *states: str, passage: str = "", number: int = 0) -> list[Edit]:
        """Edits in these states (none: in any), of a passage, or the one of that number; in the order of making."""
        wanted = f"e.state IN ({', '.join('?' * len(states))})" if states else "1"
        with self.told():
            rows = self._base.execute(
                "SELECT e.id, e.state, e.reason, e.text, e.model, e.weights, e.dtype, e.recipe, e.training, e.adapter, "
                "e.digest, e.made, e.changed, p.id, p.title, p.text, e.document, e.place FROM edit e "
                "JOIN passage p ON p.id = e.passage "
                f"WHERE {wanted} AND (? = '' OR p.id = ?) AND (? = 0 OR e.id = ?) ORDER BY e.id",
                (*states, passage, passage, number, number),
            ).fetchall()
            return [self._edit(*row) for row in rows]

    def _edit(self, number: int, state: str, reason: str, text: str, model: str, weights: str, dtype: str, recipe: str,
              training: str, adapter: str, digest: str, made: str, changed: str, passage: str, title: str, body: str,
              document: str, place: str) -> Edit:  # fmt: skip
        rows = self._base.execute(
            "SELECT question, gold, origin, before, in_view, after FROM question WHERE edit = ? ORDER BY number",
            (number,),
        )
        asked = tuple(Asked(q, gold, origin, *_answers(texts)) for q, gold, origin, *texts in rows)
        written = json.loads(text)
        return Edit(
            Passage(passage, title, body, ()), document, place, SelfEdit.from_dict(written) if written else None, model,
            weights, dtype, json.loads(recipe), json.loads(training), asked, state, reason, number, adapter, digest,
            made, changed,
        )  # fmt: skip

    def edit(self, number: int) -> Edit:
        """The edit of that number.

        Raises:
            DataError: there is none.
        """
        found = self.edits(number=number)
        if not found:
            raise DataError(f"{self.folder} has no edit {number}; `seal list` shows those that are there.")
        return found[0]

    def keep(self, edit: Edit, adapter: "Adapter | None") -> Edit:
        """Keep an edit with its adapter, all of it or nothing; in use, it takes the place of the passage's last one."""
        folder: Path | None = None
        try:
            with self._change():
                now = _now()
                row = (
                    edit.passage.id, edit.document, edit.place, "quarantined", edit.reason, _dumped(edit.self_edit),
                    edit.self_edit.source if edit.self_edit else "", edit.model, edit.weights, edit.dtype,
                    _dumped(edit.recipe), _dumped(edit.training), "", "", now, now,
                )  # fmt: skip
                number = self._base.execute(
                    "INSERT INTO edit (passage, document, place, state, reason, text, writer, model, weights, dtype, "
                    f"recipe, training, adapter, digest, made, changed) VALUES ({', '.join('?' * len(row))})", row,
                ).lastrowid or 0  # fmt: skip
                self._base.executemany(
                    "INSERT INTO question VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (number, i, q.question, q.gold, q.origin, *(_dumped(q.at(stage)) for stage in STAGES))
                        for i, q in enumerate(edit.questions)
                    ],
                )
                name = digest = ""
                if adapter is not None:
                    name = f"{number:06d}-{adapter.digest()[:12]}"
                    folder = adapter.save(self.adapters / name, edit.model)
                    for path in (folder, self.adapters):
                        _fsync(path)
                    digest = content_hash(folder)
                if edit.state == "active":
                    self._base.execute(
                        "UPDATE edit SET state = 'reverted', reason = ?, changed = ? WHERE passage = ? AND weights = ? "
                        "AND state = 'active'", (f"edit {number} took its place", now, edit.passage.id, edit.weights),
                    )  # fmt: skip
                self._base.execute(
                    "UPDATE edit SET state = ?, adapter = ?, digest = ? WHERE id = ?",
                    (edit.state, name, digest, number),
                )
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)  # so that a full disk has its room again
            raise
        return replace(edit, id=number, adapter=name, digest=digest, made=now, changed=now)

    def revert(self, number: int, reason: str = "taken back by hand") -> Edit:
        """Take an edit back: it is kept with its adapter, and used no more.

        Raises:
            DataError: there is no such edit, or it is not in use.
        """
        with self._change():
            edit = self.edit(number)
            if edit.state != "active":
                raise DataError(f"edit {number} is {edit.state} ({edit.reason}), so there is nothing to take back.")
            self._base.execute(
                "UPDATE edit SET state = 'reverted', reason = ?, changed = ? WHERE id = ?", (reason, _now(), number)
            )
        return self.edit(number)

    def adapter(self, edit: Edit, source: "Source") -> "Adapter":
        """The adapter of an edit, for the base that it was trained on.

        Raises:
            DataError: it has none, was trained on another base, or its files are not those that were kept.
        """
        from seal_lib.training.adapters import Adapter

        if edit.weights != (weights := models.weight_hash(source.name, source.revision)):
            raise DataError(
                f"edit {edit.id} of {edit.document} was learned on {edit.model} ({edit.weights[:12]}), and this is "
                f"{source.name} ({weights[:12]}): an adapter fits its own base only; use model {edit.model}, or learn "
                "the document again."
            )
        return Adapter.load(self.folder_of(edit))

    def folder_of(self, edit: Edit) -> Path:
        """The PEFT folder of an edit.

        Raises:
            DataError: it has none, or its files are not those that were kept.
        """
        if not edit.adapter:
            raise DataError(f"edit {edit.id} has no adapter ({edit.reason}); learn its document again.")
        folder = self.adapters / edit.adapter
        if not folder.is_dir() or content_hash(folder) != edit.digest:
            raise DataError(
                f"{folder} is not what was kept for edit {edit.id}; copy it back from where you have it, or revert the "
                "edit and learn its document again."
            )
        return folder


def opened(run: "Run", folder: str) -> Store:
    """The store in a folder that a person named, or one of the run's own."""
    return Store(paths.given(folder) if folder else run.folder / "artifacts" / "store")


_DAMAGED = (
    "it is damaged; move the folder away and put back a copy, or learn the documents again (the adapters beside it are "
    "plain PEFT folders and stay)"
)
_FILES = "make room, mend its rights, or choose another folder with --store"
#: beginning of SQLite's name for an error → the way out
_WAYS = {
    "SQLITE_FULL": "the disk is full, and nothing was changed; make room and do it again",
    "SQLITE_READONLY": "it may not be written; mend its rights, or choose another folder with --store",
    "SQLITE_CANTOPEN": "it cannot be opened or made; mend the folder's rights, or choose another with --store",
    "SQLITE_BUSY": "another process is changing it; wait for that one and do it again",
    "SQLITE_LOCKED": "another process is changing it; wait for that one and do it again",
    "SQLITE_PERM": "it may not be opened; mend its rights",
    "SQLITE_IOERR": "the disk failed, and nothing was changed; make room or mend the disk, then do it again",
}


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
