"""Which passages a question is about: BM25 over title and text by SQLite's FTS5. Imports no torch."""

import math
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from seal_lib.records import Passage


@dataclass(frozen=True)
class Match:
    """A passage that a question may be about. ``weight``: of the question's words that stand in it, together; a word
    that n of the N passages have weighs ln((N + 1) / (n + 0.5)), so rare words count."""

    passage: Passage
    weight: float


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"\w+", text.lower())))


class Index:
    """An index of passages, held in memory."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = list(passages)
        self._words = [set(_words(f"{p.title} {p.text}")) for p in self.passages]
        self._held = Counter(word for words in self._words for word in words)
        self._base = sqlite3.connect(":memory:")
        self._base.execute("CREATE VIRTUAL TABLE passage USING fts5(title, text, tokenize = 'porter unicode61')")
        rows = [(number, passage.title, passage.text) for number, passage in enumerate(self.passages)]
        self._base.executemany("INSERT INTO passage(rowid, title, text) VALUES (?, ?, ?)", rows)

    def rank(self, question: str, most: int = 2) -> list[Match]:
        """Passages that share a word with the question, the best match first; equal ones in the order given."""
        words = _words(question)
        if not words or not self.passages:
            return []
        wanted = " OR ".join(f'"{word}"' for word in words)  # in quotes a word is never read as an operator
        found = self._base.execute(
            "SELECT rowid FROM passage WHERE passage MATCH ? ORDER BY bm25(passage), rowid LIMIT ?", (wanted, most)
        )
        return [Match(self.passages[number], self._weight(words, number)) for (number,) in found.fetchall()]

    def _weight(self, words: Sequence[str], number: int) -> float:
        there = [word for word in words if word in self._words[number]]
        return sum(math.log((len(self.passages) + 1) / (self._held[word] + 0.5)) for word in there)


def rank(question: str, passages: Sequence[Passage]) -> list[Passage]:
    """Passages that share a word with the question, the best match first; equal ones in the order given."""
    return [match.passage for match in Index(passages).rank(question, len(passages))]


ENOUGH = 4  # questions from which the threshold is measured; with fewer, a shared word is enough


def threshold(index: Index, asked: Iterable[tuple[str, str]]) -> float:
    """The weight from which the best match is believed, measured on questions whose passage is known.

    Each question is tried twice: with its passage there, and with the best of the others, as if its own were not. The
    threshold lies in the middle of the widest gap of those that tell most of these apart. The weight is not divided by
    that of all words of a question, since a longer wording of it would then be believed less.

    Args:
        asked: (question, id of its passage).
    """
    with_own, without = [], []
    for question, passage in asked:
        matches = index.rank(question)
        if matches and matches[0].passage.id == passage:
            with_own.append(matches[0].weight)
        without.append(next((match.weight for match in matches if match.passage.id != passage), 0.0))
    if len(with_own) < ENOUGH:
        return 0.0
    weights = sorted({0.0, *with_own, *without})
    gaps = [
        (sum(w > low for w in with_own) + sum(w <= low for w in without), high - low, (low + high) / 2)
        for low, high in zip(weights, weights[1:], strict=False)
    ]
    return max(gaps, default=(0, 0.0, 0.0))[2]
