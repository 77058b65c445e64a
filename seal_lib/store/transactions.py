"""The folder of a store: open it, bring it up to date, change it in transactions, and report errors in one sentence.

A change is one transaction. An adapter's folder is written under another name, made durable and renamed *within* the
transaction that names it, so a kill at any moment leaves the old state or the new one; a folder that no row names is
deleted when a store is next opened. SQLite's write lock makes two processes take turns. The module knows nothing of
documents and edits.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from seal_lib.errors import DataError, SealError
from seal_lib.models.checks import said
from seal_lib.runs.manifest import content_hash
from seal_lib.store.schema import MIGRATIONS

if TYPE_CHECKING:
    from seal_lib.training.adapters import Adapter

FILE, ADAPTERS = "store.sqlite3", "adapters"
LEAST_ROOM = 64 * 1024  # bytes; with less of the disk free, an input/output error means a full disk
WAIT = 60.0  # s that one process waits for another to finish a change


class Folder:
    """A folder with one SQLite file and the adapters that its rows name; it is made if it is not there.

    Raises:
        DataError: the folder or its file is damaged, full, not writable, of a newer version, or in use for longer than
            ``wait`` seconds.
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
        """Bring the schema up to date, and delete folders that a killed process left behind."""
        with self._change():
            version = self._base.execute("PRAGMA user_version").fetchone()[0]  # another process may have been first
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    self._base.execute(statement)
            self._base.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            named = {
                name
                for (name,) in self._base.execute("SELECT adapter FROM edit UNION SELECT adapter FROM merge")
                if name
            }
            for path in self.adapters.iterdir():  # in our transaction nobody else has a folder without a row
                if path.is_dir() and path.name not in named:
                    shutil.rmtree(path)

    def close(self) -> None:
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turn errors of SQLite and of files into a DataError: one sentence with the way out."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for a damaged name in SQLite's message
            code = getattr(error, "sqlite_errorname", "") or ""
            if code.startswith("SQLITE_IOERR") and shutil.disk_usage(self.folder).free < LEAST_ROOM:
                code = "SQLITE_FULL"  # SQLite reports a full disk only when it writes the database file itself
            way = next((way for start, way in _WAYS.items() if code.startswith(start)), _DAMAGED)
            raise DataError(f"{self.file} cannot be used ({said(error)}): {way}.") from error
        except OSError as error:
            where = error.filename or self.folder
            raise DataError(f"{where} cannot be used ({error.strerror or error}): {_FILES}.") from error

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Also report rows that cannot be parsed as damage, in one sentence; SQLite keeps no checksum of rows."""
        with self.told():
            try:
                yield
            except SealError:
                raise
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise DataError(f"{self.file} cannot be used (a row reads {said(error)}): {_DAMAGED}.") from error

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Run one transaction, in which no other process changes anything; if it fails, what it saved is removed."""
        with self.told():
            self._fresh: list[Path] = []
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                for folder in self._fresh:
                    shutil.rmtree(folder, ignore_errors=True)  # so that a full disk has its room again
                raise

    def _save(self, adapter: "Adapter", name: str, model: str) -> str:
        """Save an adapter durably (fsync) in a change; return its digest."""
        folder = self.adapters / name
        self._fresh.append(folder)
        adapter.save(folder, model)
        for path in (folder, self.adapters):
            _fsync(path)
        return content_hash(folder)


_DAMAGED = (
    "it is damaged; move the folder away and put back a copy, or learn the documents again (the adapters beside it are "
    "plain PEFT folders and stay)"
)
_FILES = "make room, mend its rights, or choose another folder with --store"
#: prefix of SQLite's name of an error → the way out
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
