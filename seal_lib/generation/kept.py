"""A cache of completions on disk, keyed by content, so that nothing is requested, or paid for, twice.

It is one SQLite file for all runs, safe for several processes on one machine; a kill loses only the requests in flight.
Every row has a checksum; a row that does not match its checksum counts as missing.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.generation.contract import Completion, Request, Sampling

_TABLE = (
    "CREATE TABLE IF NOT EXISTS completions (key TEXT PRIMARY KEY, text TEXT NOT NULL, tokens INTEGER NOT NULL, "
    "finish TEXT NOT NULL, digest TEXT NOT NULL)"
)


def key_of(model: str, request: Request, sampling: Sampling) -> str:
    """Return the key of a completion: the SHA-256 of the model's identity, the request and the sampling settings."""
    asked = [
        model,
        request.prompt,
        request.seed,
        sampling.max_tokens,
        sampling.temperature,
        sampling.top_p,
        sampling.stop,
    ]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()


def _digest(key: str, completion: Completion) -> str:
    parts = json.dumps([key, completion.text, completion.tokens, completion.finish])
    return hashlib.sha256(parts.encode()).hexdigest()


class Kept:
    """The completions stored in an SQLite file, by default ``data/completions.sqlite3``.

    Raises:
        DataError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None = None):
        self.path = path or paths.data() / "completions.sqlite3"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                connection.execute(_TABLE)
                yield connection
        except sqlite3.Error as error:
            raise DataError(
                f"{paths.short(self.path)} cannot be used ({error}); make room, or move it away: what it held is asked "
                "again."
            ) from error

    def read(self, keys: Iterable[str]) -> dict[str, Completion]:
        """Return the stored completions among ``keys``."""
        found = {}
        with self._open() as connection:
            for key in keys:
                row = connection.execute(
                    "SELECT text, tokens, finish, digest FROM completions WHERE key = ?", (key,)
                ).fetchone()
                if row and row[3] == _digest(key, completion := Completion(*row[:3])):
                    found[key] = completion
        return found

    def write(self, key: str, completion: Completion) -> None:
        """Store one completion; it is on disk when this returns."""
        row = (key, completion.text, completion.tokens, completion.finish, _digest(key, completion))
        with self._open() as connection:
            connection.execute("INSERT OR REPLACE INTO completions VALUES (?, ?, ?, ?, ?)", row)
