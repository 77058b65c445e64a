"""Which passages a question is about: BM25 over title and text by SQLite's FTS5. Imports no torch."""

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing

from seal_lib.records import Passage


def rank(question: str, passages: Sequence[Passage]) -> list[Passage]:
    """Passages that share a word with the question, the best match first; equal ones in the order given."""
    words = list(dict.fromkeys(re.findall(r"\w+", question.lower())))
    if not words or not passages:
        return []
    with closing(sqlite3.connect(":memory:")) as index:
        index.execute("CREATE VIRTUAL TABLE passage USING fts5(title, text, tokenize = 'porter unicode61')")
        rows = [(number, passage.title, passage.text) for number, passage in enumerate(passages)]
        index.executemany("INSERT INTO passage(rowid, title, text) VALUES (?, ?, ?)", rows)
        wanted = " OR ".join(f'"{word}"' for word in words)  # in quotes a word is never read as an operator
        found = index.execute(
            "SELECT rowid FROM passage WHERE passage MATCH ? ORDER BY bm25(passage), rowid", (wanted,)
        ).fetchall()
    return [passages[number] for (number,) in found]
