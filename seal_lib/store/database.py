"""The contents of a store and their changes: documents, edits, merges, the queue, updates.

It keeps the records of `seal_lib.store.schema`; each change is one transaction of the folder
(`seal_lib.store.transactions`). It does not know how anything was learned, and loads no model.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seal_lib import models, paths
from seal_lib.errors import DataError
from seal_lib.records import Answer, Passage, SelfEdit, to_dict
from seal_lib.runs.manifest import content_hash
from seal_lib.store.review import Finding, Lines, lines_of
from seal_lib.store.schema import STAGES, Asked, Edit, Merge, Queued, Renewal
from seal_lib.store.texts import Document
from seal_lib.store.transactions import Folder

if TYPE_CHECKING:
    from seal_lib.loops.policy import Source
    from seal_lib.runs.lifecycle import Run
    from seal_lib.training.adapters import Adapter


TOGETHER = 256  # texts whose vectors are made and kept together


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _dumped(value: object) -> str:
    return json.dumps(to_dict(value), ensure_ascii=False, allow_nan=False)


def _answers(texts: Sequence[str]) -> list[Any]:
    """Return the answers at each stage; None where there is none."""
    return [None if row is None else Answer.from_dict(row) for row in map(json.loads, texts)]


class Store(Folder):
    """A store in ``folder``: documents, edits, merges, the queue and updates.

    Raises:
        DataError: as `seal_lib.store.transactions.Folder`.
    """

    # ------------------------------------------------------------------ documents

    def add(self, document: Document) -> None:
        """Keep a document and its passages; a newer version of the same file replaces the older one.

        Edits of passages that the newer version still has stay; active edits of passages that no document has any more
        are taken back.
        """
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
        """Return (passage, name of its document, its place there) for all that is kept, in the order of documents."""
        with self.told():
            rows = self._base.execute(
                "SELECT p.id, p.title, p.text, d.name, part.place FROM part JOIN passage p ON p.id = part.passage "
                "JOIN document d ON d.id = part.document ORDER BY d.id, part.number"
            ).fetchall()
        found: dict[str, tuple[Passage, str, str]] = {}
        for name, title, text, document, place in rows:
            found.setdefault(name, (Passage(name, title, text, ()), document, place))
        return list(found.values())

    def vectors(self, texts: Sequence[str], encoder: str, encode: Callable[[list[str]], np.ndarray]) -> np.ndarray:
        """Return one row of 32-bit floats per text; ``encode`` makes those of the texts that this encoder has not seen.

        New rows are saved a few at a time, so a killed call resumes.

        Args:
            encoder: an identifier of all that determines the vectors; each identifier has its own.
        """
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        with self.told():
            kept = dict(self._base.execute("SELECT text, vector FROM vector WHERE encoder = ?", (encoder,)).fetchall())
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in kept}
        for first in range(0, len(new), TOGETHER):
            part = dict(list(new.items())[first : first + TOGETHER])
            made = [row.astype("<f4").tobytes() for row in encode(list(part.values()))]
            kept |= zip(part, made, strict=True)
            with self._change():  # another process may have made the same ones meanwhile
                rows = [(key, encoder, vector) for key, vector in zip(part, made, strict=True)]
                self._base.executemany("INSERT OR IGNORE INTO vector VALUES (?, ?, ?)", rows)
        return np.stack([np.frombuffer(kept[key], "<f4") for key in keys])

    # ------------------------------------------------------------------ edits

    def edits(self, *states: str, passage: str = "", number: int | None = None) -> list[Edit]:
        """Return the edits in these states (none: in any), of a passage, or of one number, in the order of making."""
        wanted = f"e.state IN ({', '.join('?' * len(states))})" if states else "1"
        with self.whole():
            rows = self._base.execute(
                "SELECT e.id, e.state, e.reason, e.text, e.model, e.weights, e.dtype, e.recipe, e.training, e.adapter, "
                "e.digest, e.made, e.changed, e.findings, p.id, p.title, p.text, e.document, e.place FROM edit e "
                "JOIN passage p ON p.id = e.passage "
                f"WHERE {wanted} AND (? = '' OR p.id = ?) AND (? IS NULL OR e.id = ?) ORDER BY e.id",
                (*states, passage, passage, number, number),
            ).fetchall()
            return [self._edit(*row) for row in rows]

    def lines(self, weights: str) -> Lines:
        """Return the lines of all self-edits in use on a base."""
        with self.whole():
            rows = self._base.execute(
                "SELECT passage, text FROM edit WHERE state IN ('active', 'merged') AND weights = ? ORDER BY id",
                (weights,),
            ).fetchall()
            found = Lines()
            for passage, text in rows:
                written = json.loads(text)
                found.add(lines_of(SelfEdit.from_dict(written) if written else None), passage)
        return found

    def _edit(
        self,
        number: int,
        state: str,
        reason: str,
        text: str,
        model: str,
        weights: str,
        dtype: str,
        recipe: str,
        training: str,
        adapter: str,
        digest: str,
        made: str,
        changed: str,
        findings: str,
        passage: str,
        title: str,
        body: str,
        document: str,
        place: str,
    ) -> Edit:
        rows = self._base.execute(
            "SELECT question, gold, origin, before, in_view, after FROM question WHERE edit = ? ORDER BY number",
            (number,),
        )
        asked = tuple(Asked(q, gold, origin, *_answers(texts)) for q, gold, origin, *texts in rows)
        written = json.loads(text)
        edit = Edit(
            Passage(passage, title, body, ()),
            document,
            place,
            SelfEdit.from_dict(written) if written else None,
            model,
            weights,
            dtype,
            json.loads(recipe),
            json.loads(training),
            asked,
            state,
            reason,
            number,
            adapter,
            digest,
            made,
            changed,
            tuple(Finding(**row) for row in json.loads(findings)),
        )
        for stage in STAGES:  # read what others count, so that damage is reported here and not there
            _ = edit.trial(stage).accuracy, edit.training["tried"], edit.training["cost"]["seconds"]
        return edit

    def edit(self, number: int) -> Edit:
        """Return the edit of that number.

        Raises:
            DataError: there is none.
        """
        found = self.edits(number=number)
        if not found:
            raise DataError(f"{self.folder} has no edit {number}; `seal list` shows those that are there.")
        return found[0]

    def keep(self, edit: Edit, adapter: "Adapter | None") -> Edit:
        """Keep an edit with its adapter, all of it or nothing; an active one replaces the passage's active one."""
        folder: Path | None = None
        try:
            with self._change():
                now = _now()
                row = {
                    "passage": edit.passage.id,
                    "document": edit.document,
                    "place": edit.place,
                    "state": "quarantined",
                    "reason": edit.reason,
                    "text": _dumped(edit.self_edit),
                    "writer": edit.self_edit.source if edit.self_edit else "",
                    "model": edit.model,
                    "weights": edit.weights,
                    "dtype": edit.dtype,
                    "recipe": _dumped(edit.recipe),
                    "training": _dumped(edit.training),
                    "adapter": "",
                    "digest": "",
                    "made": now,
                    "changed": now,
                    "findings": _dumped(edit.findings),
                }
                statement = f"INSERT INTO edit ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
                number = self._base.execute(statement, tuple(row.values())).lastrowid or 0
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
                    folder, digest = self._saved(adapter, name, edit.model)
                if edit.state == "active":
                    self._take_over(number, edit.passage.id, edit.weights, now)
                self._base.execute(
                    "UPDATE edit SET state = ?, adapter = ?, digest = ? WHERE id = ?",
                    (edit.state, name, digest, number),
                )
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)  # so that a full disk has its room again
            raise
        return replace(edit, id=number, adapter=name, digest=digest, made=now, changed=now)

    def _take_over(self, number: int, passage: str, weights: str, now: str) -> None:
        """Take back the passage's edit that was active until now, for a newer one."""
        self._base.execute(
            "UPDATE edit SET state = 'reverted', reason = ?, changed = ? "
            "WHERE passage = ? AND weights = ? AND state = 'active' AND id <> ?",
            (f"edit {number} took its place", now, passage, weights, number),
        )

    def revert(self, number: int, reason: str = "taken back by hand") -> Edit:
        """Take an active edit back: it is kept with its adapter, but used no more.

        Raises:
            DataError: there is no such edit, or it is not in use.
        """
        with self._change():
            edit = self.edit(number)
            if edit.state != "active":
                why = f" ({edit.reason})" if edit.reason else ""
                raise DataError(f"edit {number} is {edit.state}{why}, so there is nothing to take back.")
            self._base.execute(
                "UPDATE edit SET state = 'reverted', reason = ?, changed = ? WHERE id = ?", (reason, _now(), number)
            )
        return self.edit(number)

    def prune(self, number: int, reason: str) -> Edit:
        """Take an active edit back and remove its adapter; the record stays.

        Raises:
            DataError: there is no such edit, or it is not active.
        """
        folder = self.adapters / self.edit(number).adapter
        with self._change():
            self.edit(number)
            changed = self._base.execute(
                "UPDATE edit SET state = 'reverted', reason = ?, adapter = '', digest = '', changed = ? "
                "WHERE id = ? AND state = 'active' AND adapter <> ''",
                (reason, _now(), number),
            ).rowcount
            if not changed:
                raise DataError(f"edit {number} is not active, so there is nothing to prune; see `seal list`.")
        with self.told():
            shutil.rmtree(folder)  # if killed before this, it is deleted when the store is next opened
        return self.edit(number)

    # ------------------------------------------------------------------ merges

    def merges(self, *, active: bool = True) -> list[Merge]:
        """Return the merges in use, or all that there were, in the order of making."""
        with self.whole():
            rows = self._base.execute(
                "SELECT id, weights, state, adapter, digest, report, made FROM merge "
                "WHERE state = 'active' OR ? ORDER BY id",
                (not active,),
            ).fetchall()
            found = []
            for number, weights, state, adapter, digest, report, made in rows:
                members = self._base.execute("SELECT edit FROM member WHERE merge = ? ORDER BY edit", (number,))
                edits = tuple(edit for (edit,) in members)
                found.append(Merge(number, weights, state, adapter, digest, edits, json.loads(report), made))
            return found

    def merge(
        self,
        edits: Sequence[Edit],
        adapter: "Adapter | None",
        report: Mapping[str, Any],
        reason: str = "no longer merged",
        base: str = "",
    ) -> Merge | None:
        """Use these edits as one adapter in place of the merge in use on their base, all of it or nothing.

        Edits of that merge that are not among these are taken back for ``reason``.

        Args:
            edits: active or merged, of one base.
            adapter: the edits joined; None if there are none, so that the base of hash ``base`` has no merge any more.
        """
        former = [m for m in self.merges() if m.weights == (base or edits[0].weights)]
        folder: Path | None = None
        try:
            with self._change():
                now = _now()
                for edit in edits:
                    if self.edit(edit.id).state != edit.state:
                        raise DataError(f"edit {edit.id} was changed meanwhile; look at `seal list` and do it again.")
                for old in former:
                    self._base.execute(
                        "UPDATE merge SET state = 'reverted', adapter = '', digest = '' WHERE id = ?", (old.id,)
                    )
                    self._base.executemany(
                        "UPDATE edit SET state = 'reverted', reason = ?, changed = ? WHERE id = ? AND state = 'merged'",
                        [(reason, now, number) for number in old.edits if number not in {e.id for e in edits}],
                    )
                number = 0
                if adapter is not None:
                    number = (
                        self._base.execute(
                            "INSERT INTO merge (weights, state, adapter, digest, report, made) "
                            "VALUES (?, 'active', '', '', ?, ?)",
                            (edits[0].weights, _dumped(dict(report)), now),
                        ).lastrowid
                        or 0
                    )
                    name = f"merge-{number:06d}-{adapter.digest()[:12]}"
                    folder, digest = self._saved(adapter, name, edits[0].model)
                    self._base.execute("UPDATE merge SET adapter = ?, digest = ? WHERE id = ?", (name, digest, number))
                    for edit in edits:
                        self._base.execute("INSERT INTO member VALUES (?, ?)", (number, edit.id))
                        self._base.execute(
                            "UPDATE edit SET state = 'merged', reason = '', changed = ? WHERE id = ?", (now, edit.id)
                        )
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        for old in former:
            shutil.rmtree(self.adapters / old.adapter, ignore_errors=True)  # else deleted when next opened
        return next((merge for merge in self.merges() if merge.id == number), None)

    def merged(self, merge: Merge) -> "Adapter":
        """Return the adapter of a merge.

        Raises:
            DataError: its files are not those that were kept.
        """
        from seal_lib.training.adapters import Adapter

        folder = self.adapters / merge.adapter
        if not folder.is_dir() or content_hash(folder) != merge.digest:
            raise DataError(
                f"{folder} is not what was kept for merge {merge.id}; merge its edits again (`seal merge`)."
            )
        return Adapter.load(folder)

    # ------------------------------------------------------------------ queue and updates

    def enqueue(self, source: str | Path) -> Queued:
        """Let a file or folder wait for the next update; one that waits already is not queued twice."""
        with self._change():
            row = (str(Path(source).resolve()), _now(), _now())
            self._base.execute(
                "INSERT OR IGNORE INTO queue (source, state, reason, added, changed) VALUES (?, 'waiting', '', ?, ?)",
                row,
            )
        return next(one for one in self.queue() if one.source == row[0])

    def queue(self, state: str = "waiting") -> list[Queued]:
        """Return the documents in this state, first come first."""
        with self.told():
            rows = self._base.execute(
                "SELECT id, source, state, reason, added FROM queue WHERE state = ? ORDER BY id", (state,)
            ).fetchall()
        return [Queued(*row) for row in rows]

    def renewals(self) -> list[Renewal]:
        """Return the updates, the open one last."""
        with self.whole():
            rows = self._base.execute("SELECT id, state, report, begun, changed FROM renewal ORDER BY id").fetchall()
            return [Renewal(number, state, json.loads(report), *times) for number, state, report, *times in rows]

    def renew(self) -> Renewal:
        """Return the update that was begun and not finished, or begin a new one."""
        with self._change():
            held = self._base.execute("SELECT id FROM renewal WHERE state = 'open'").fetchone()
            if held is None:
                self._base.execute(
                    "INSERT INTO renewal (state, report, begun, changed) VALUES ('open', '{}', ?, ?)", (_now(), _now())
                )
        return self.renewals()[-1]

    def settle(
        self,
        renewal: Renewal,
        verdicts: Mapping[int, tuple[str, str]],
        queued: Mapping[int, tuple[str, str]],
        report: Mapping[str, Any],
    ) -> Renewal:
        """End an update in one transaction: edits get the state that its guard decided, documents leave the queue.

        Args:
            verdicts: number of an edit → (state, reason).
            queued: number in the queue → (state, reason).
        """
        with self._change():
            now = _now()
            for number, (state, reason) in verdicts.items():
                edit = self.edit(number)
                if state == "active":
                    self._take_over(number, edit.passage.id, edit.weights, now)
                self._base.execute(
                    "UPDATE edit SET state = ?, reason = ?, changed = ? WHERE id = ?", (state, reason, now, number)
                )
            for number, (state, reason) in queued.items():
                self._base.execute(
                    "UPDATE queue SET state = ?, reason = ?, changed = ? WHERE id = ?", (state, reason, now, number)
                )
            self._base.execute(
                "UPDATE renewal SET state = 'done', report = ?, changed = ? WHERE id = ?",
                (_dumped(dict(report)), now, renewal.id),
            )
        return next(one for one in self.renewals() if one.id == renewal.id)

    def adapter(self, edit: Edit, source: "Source") -> "Adapter":
        """Return the adapter of an edit, for the base that it was trained on.

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
        """Return the PEFT folder of an edit.

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
    """Return the store in the folder that a person named, or the run's own."""
    return Store(paths.given(folder) if folder else run.folder / "artifacts" / "store")
