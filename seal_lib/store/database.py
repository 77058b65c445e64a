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
from seal_lib.store.schema import STAGES, Asked, Edit, MergedAdapter, Queued, Renewal
from seal_lib.store.texts import Document, Part
from seal_lib.store.transactions import Folder

if TYPE_CHECKING:
    from seal_lib.loops.policy import Policy, Source
    from seal_lib.runs.lifecycle import Run
    from seal_lib.training.adapters import Adapter


VECTORS_AT_ONCE = 256  # texts whose vectors are made and kept together


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _dumped(value: object) -> str:
    return json.dumps(to_dict(value), ensure_ascii=False, allow_nan=False)


def _self_edit(text: str) -> SelfEdit | None:
    written = json.loads(text)
    return SelfEdit.from_dict(written) if written else None


def base_of(policy: "Policy") -> str:
    """Return the weight hash of the policy's base."""
    return models.weight_hash(policy.base.name, policy.base.revision)


#: columns of an edit that are fields of `Edit`, as they are and as JSON
_PLAIN = ("document", "place", "model", "weights", "dtype", "reason")
_JSON = ("recipe", "training")


class Store(Folder):
    """A folder (`seal_lib.store.transactions.Folder`) with documents, edits, merges, the queue and updates."""

    # ------------------------------------------------------------------ documents

    def add(self, document: Document) -> None:
        """Keep a document and its passages; a newer version of the same file replaces the older one.

        Edits of passages that the newer version still has stay; active edits of passages that no document has any more
        are taken back.
        """
        parts = document.parts
        with self._change():
            known = self._base.execute("SELECT id, digest FROM document WHERE source = ?", (document.source,))
            number, digest = known.fetchone() or (None, None)
            held = self._base.execute("SELECT passage FROM part WHERE document = ? ORDER BY number", (number,))
            if digest == document.digest and [name for (name,) in held.fetchall()] == [p.id for p in parts]:
                return
            self._base.execute("DELETE FROM part WHERE document = ?", (number,))
            number = self._base.execute(
                "INSERT OR REPLACE INTO document VALUES (?, ?, ?, ?, ?)",
                (number, document.source, document.name, document.digest, _now()),
            ).lastrowid
            self._base.executemany(
                "INSERT OR IGNORE INTO passage VALUES (?, ?, ?)", [(p.id, p.title, p.text) for p in document.passages]
            )
            self._base.executemany(
                "INSERT INTO part VALUES (?, ?, ?, ?)", [(number, i, p.id, p.place) for i, p in enumerate(parts)]
            )
            unused = "state = 'active' AND passage NOT IN (SELECT passage FROM part)"
            self._turn("reverted", f"its passage is no longer in {document.name}", unused)

    def passages(self) -> list[Part]:
        """Return all passages that are kept, in the order of documents."""
        with self.told():
            rows = self._base.execute(
                "SELECT p.id, p.title, p.text, d.name, part.place FROM part JOIN passage p ON p.id = part.passage "
                "JOIN document d ON d.id = part.document ORDER BY d.id, part.number"
            ).fetchall()
        found: dict[str, Part] = {}
        for name, title, text, document, place in rows:
            found.setdefault(name, Part(Passage(name, title, text, ()), document, place))
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
        for first in range(0, len(new), VECTORS_AT_ONCE):
            part = dict(list(new.items())[first : first + VECTORS_AT_ONCE])
            made = zip(part, encode(list(part.values())), strict=True)
            rows = [(key, encoder, row.astype("<f4").tobytes()) for key, row in made]
            kept |= {key: vector for key, _, vector in rows}
            with self._change():  # another process may have made the same ones meanwhile
                self._base.executemany("INSERT OR IGNORE INTO vector VALUES (?, ?, ?)", rows)
        return np.stack([np.frombuffer(kept[key], "<f4") for key in keys])

    # ------------------------------------------------------------------ edits

    def edits(self, *states: str, passage: str = "", weights: str = "", number: int | None = None) -> list[Edit]:
        """Return the edits in these states (none: in any), of a passage, a base, or one number, in order of making."""
        wanted = f"e.state IN ({', '.join('?' * len(states))})" if states else "1"
        with self.whole():
            rows = self._base.execute(
                "SELECT e.*, p.title, p.text AS body FROM edit e JOIN passage p ON p.id = e.passage "
                f"WHERE {wanted} AND (? = '' OR p.id = ?) AND (? = '' OR e.weights = ?) AND (? IS NULL OR e.id = ?) "
                "ORDER BY e.id",
                (*states, passage, passage, weights, weights, number, number),
            )
            names = [column[0] for column in rows.description]
            return [self._edit(dict(zip(names, row, strict=True))) for row in rows.fetchall()]

    def _edit(self, row: Mapping[str, Any]) -> Edit:
        rows = self._base.execute(
            "SELECT question, gold, origin, before, in_view, after FROM question WHERE edit = ? ORDER BY number",
            (row["id"],),
        )
        asked = []
        for question, gold, origin, *texts in rows:
            answers: list[Any] = [None if one is None else Answer.from_dict(one) for one in map(json.loads, texts)]
            asked.append(Asked(question, gold, origin, *answers))
        edit = Edit(
            passage=Passage(row["passage"], row["title"], row["body"], ()),
            self_edit=_self_edit(row["text"]),
            questions=tuple(asked),
            findings=tuple(Finding(**one) for one in json.loads(row["findings"])),
            **{key: row[key] for key in (*_PLAIN, "id", "state", "adapter", "digest", "made", "changed")},
            **{key: json.loads(row[key]) for key in _JSON},
        )
        for stage in STAGES:  # read what others count, so that damage is reported here and not there
            _ = edit.trial(stage).accuracy, edit.training["tried"], edit.training["cost"]["seconds"]
        return edit

    def lines(self, weights: str) -> Lines:
        """Return the lines of all self-edits in use on a base."""
        with self.whole():
            rows = self._base.execute(
                "SELECT passage, text FROM edit WHERE state IN ('active', 'merged') AND weights = ? ORDER BY id",
                (weights,),
            )
            found = Lines()
            for passage, text in rows.fetchall():
                found.add(lines_of(_self_edit(text)), passage)
        return found

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
        with self._change():
            now, name, digest = _now(), "", ""
            row = {
                "passage": edit.passage.id,
                "state": "quarantined",
                "text": _dumped(edit.self_edit),
                "writer": edit.self_edit.source if edit.self_edit else "",
                "adapter": "",
                "digest": "",
                "made": now,
                "changed": now,
                **{key: getattr(edit, key) for key in _PLAIN},
                **{key: _dumped(getattr(edit, key)) for key in (*_JSON, "findings")},
            }
            number = self._insert("edit", row)
            self._base.executemany(
                "INSERT INTO question VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (number, i, q.question, q.gold, q.origin, *(_dumped(q.at(stage)) for stage in STAGES))
                    for i, q in enumerate(edit.questions)
                ],
            )
            if adapter is not None:
                name = f"{number:06d}-{adapter.digest()[:12]}"
                digest = self._save(adapter, name, edit.model)
            if edit.state == "active":
                self._take_over(number, edit)
            self._base.execute(
                "UPDATE edit SET state = ?, adapter = ?, digest = ? WHERE id = ?", (edit.state, name, digest, number)
            )
        return replace(edit, id=number, adapter=name, digest=digest, made=now, changed=now)

    def _insert(self, table: str, row: Mapping[str, Any]) -> int:
        """Insert a row, and return its number."""
        statement = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
        return self._base.execute(statement, tuple(row.values())).lastrowid or 0

    def _turn(self, state: str, reason: str, where: str, *about: object) -> int:
        """Give the edits that ``where`` names another state; return how many they are."""
        statement = f"UPDATE edit SET state = ?, reason = ?, changed = ? WHERE {where}"
        return self._base.execute(statement, (state, reason, _now(), *about)).rowcount

    def _take_over(self, number: int, edit: Edit) -> None:
        """Take back the edit of the same passage that was active until now, for a newer one."""
        active = "passage = ? AND weights = ? AND state = 'active' AND id <> ?"
        self._turn("reverted", f"edit {number} took its place", active, edit.passage.id, edit.weights, number)

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
            self._turn("reverted", reason, "id = ?", number)
        return self.edit(number)

    def prune(self, number: int, reason: str) -> Edit:
        """Take an active edit back and remove its adapter; the record stays.

        Raises:
            DataError: there is no such edit, or it is not active.
        """
        with self._change():
            folder = self.adapters / self.edit(number).adapter
            if not self._turn("reverted", reason, "id = ? AND state = 'active' AND adapter <> ''", number):
                raise DataError(f"edit {number} is not active, so there is nothing to prune; see `seal list`.")
            self._base.execute("UPDATE edit SET adapter = '', digest = '' WHERE id = ?", (number,))
        with self.told():
            shutil.rmtree(folder)  # if killed before this, it is deleted when the store is next opened
        return self.edit(number)

    # ------------------------------------------------------------------ merges

    def merges(self, *, active: bool = True) -> list[MergedAdapter]:
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
                found.append(MergedAdapter(number, weights, state, adapter, digest, edits, json.loads(report), made))
            return found

    def merge(
        self,
        edits: Sequence[Edit],
        adapter: "Adapter | None",
        report: Mapping[str, Any],
        reason: str = "no longer merged",
        base: str = "",
    ) -> MergedAdapter | None:
        """Use these edits as one adapter in place of the merge in use on their base, all of it or nothing.

        Edits of that merge that are not among these are taken back for ``reason``.

        Args:
            edits: active or merged, of one base.
            adapter: the edits joined; None if there are none, so that the base of hash ``base`` has no merge any more.
        """
        former = [m for m in self.merges() if m.weights == (base or edits[0].weights)]
        with self._change():
            for edit in edits:
                if self.edit(edit.id).state != edit.state:
                    raise DataError(f"edit {edit.id} was changed meanwhile; look at `seal list` and do it again.")
            for old in former:
                self._base.execute(
                    "UPDATE merge SET state = 'reverted', adapter = '', digest = '' WHERE id = ?", (old.id,)
                )
                for member in set(old.edits) - {edit.id for edit in edits}:
                    self._turn("reverted", reason, "id = ? AND state = 'merged'", member)
            number = 0
            if adapter is not None:
                row = {"weights": edits[0].weights, "state": "active", "adapter": "", "digest": "", "made": _now()}
                number = self._insert("merge", row | {"report": _dumped(report)})
                name = f"merge-{number:06d}-{adapter.digest()[:12]}"
                digest = self._save(adapter, name, edits[0].model)
                self._base.execute("UPDATE merge SET adapter = ?, digest = ? WHERE id = ?", (name, digest, number))
                for edit in edits:
                    self._base.execute("INSERT INTO member VALUES (?, ?)", (number, edit.id))
                    self._turn("merged", "", "id = ?", edit.id)
        for old in former:
            shutil.rmtree(self.adapters / old.adapter, ignore_errors=True)  # else deleted when next opened
        return next((merge for merge in self.merges() if merge.id == number), None)

    def merged(self, merge: MergedAdapter) -> "Adapter":
        """Return the adapter of a merge.

        Raises:
            DataError: its files are not those that were kept.
        """
        from seal_lib.training.adapters import Adapter

        what = f"merge {merge.id}; merge its edits again (`seal merge`)"
        return Adapter.load(self._kept(merge.adapter, merge.digest, what))

    # ------------------------------------------------------------------ queue and updates

    def enqueue(self, source: str | Path) -> None:
        """Let a file or folder wait for the next update; one that waits already is not queued twice."""
        with self._change():
            self._base.execute(
                "INSERT OR IGNORE INTO queue (source, state, reason, added, changed) VALUES (?, 'waiting', '', ?, ?)",
                (str(Path(source).resolve()), _now(), _now()),
            )

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
            if self._base.execute("SELECT id FROM renewal WHERE state = 'open'").fetchone() is None:
                self._insert("renewal", {"state": "open", "report": "{}", "begun": _now(), "changed": _now()})
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
                    self._take_over(number, edit)
                self._turn(state, reason, "id = ?", number)
            for number, (state, reason) in queued.items():
                self._base.execute(
                    "UPDATE queue SET state = ?, reason = ?, changed = ? WHERE id = ?", (state, reason, now, number)
                )
            self._base.execute(
                "UPDATE renewal SET state = 'done', report = ?, changed = ? WHERE id = ?",
                (_dumped(report), now, renewal.id),
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
        what = f"edit {edit.id}; copy it back from where you have it, or revert the edit and learn its document again"
        return self._kept(edit.adapter, edit.digest, what)

    def _kept(self, name: str, digest: str, what: str) -> Path:
        """Return an adapter's folder. Raises DataError if its files are not those that were kept for ``what``."""
        folder = self.adapters / name
        if not folder.is_dir() or content_hash(folder) != digest:
            raise DataError(f"{folder} is not what was kept for {what}.")
        return folder


def opened(run: "Run", folder: str) -> Store:
    """Return the store in the folder that a person named, or the run's own."""
    return Store(paths.given(folder) if folder else run.folder / "artifacts" / "store")
