"""Find the passages that a question is about: an index, the one by words, and the weight from which a match is trusted.

`seal_lib.store.search` has the index by vectors. Imports no torch.
"""

import math
import re
import sqlite3
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from seal_lib.records import Passage


@dataclass(frozen=True)
class Match:
    """A passage that a question may be about. ``weight``: how well it matches, on the scale of the index."""

    passage: Passage
    weight: float


class Index(ABC):
    """An index of the passages that questions may be about.

    ``told``, ``none``: half a sentence on a weight and the needed one, and on there being no match.
    """

    told: ClassVar[str]
    none: ClassVar[str]

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = list(passages)

    @abstractmethod
    def rank_all(self, questions: Sequence[str], most: int = 2) -> list[list[Match]]:
        """Return for each question the passages that it may be about, best first; ties in the order given."""

    def rank(self, question: str, most: int = 2) -> list[Match]:
        return self.rank_all([question], most)[0]


#: letters of scripts that are written without spaces (kana, Han): each is a word
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"


def _words(text: str) -> list[str]:
    return re.findall(rf"[{UNSPACED}]|[^\W{UNSPACED}]+", text.lower())


class WordIndex(Index):
    """BM25 over title and text by SQLite's FTS5, in memory. A match shares a word with the question.

    The weight of a match is the sum over the question's words that occur in it; a word that n of the N passages have
    weighs ln((N + 1) / (n + 0.5)), so rare words count.
    """

    told = "the words of it that the best passage has weigh {weight:.1f}, {needed:.1f} are needed"
    none = "no passage of the store has a word of it"

    def __init__(self, passages: Sequence[Passage]) -> None:
        super().__init__(passages)
        self._words = [set(_words(f"{p.title} {p.text}")) for p in self.passages]
        self._held = Counter(word for words in self._words for word in words)
        self._base = sqlite3.connect(":memory:")
        self._base.execute("CREATE VIRTUAL TABLE passage USING fts5(title, text, tokenize = 'porter unicode61')")
        rows = [(n, *(" ".join(_words(text)) for text in (p.title, p.text))) for n, p in enumerate(self.passages)]
        self._base.executemany("INSERT INTO passage(rowid, title, text) VALUES (?, ?, ?)", rows)

    def rank_all(self, questions: Sequence[str], most: int = 2) -> list[list[Match]]:
        return [self._ranked(list(dict.fromkeys(_words(question))), most) for question in questions]

    def _ranked(self, words: Sequence[str], most: int) -> list[Match]:
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
    """Return the passages that share a word with the question, best match first; ties in the order given."""
    return [match.passage for match in WordIndex(passages).rank(question, len(passages))]


ENOUGH = 4  # questions needed to measure the threshold; with fewer it is 0


def threshold(index: Index, asked: Sequence[tuple[str, str]]) -> float:
    """Return the weight from which the best match is trusted, measured on questions whose passage is known.

    Each question is tried twice: with its passage there, and with the best of the others, as if its own were missing.
    Of the weights that tell most of these apart, the middle of the widest gap is taken. A weight of words is not
    divided by that of all words of a question, since a longer wording of it would then be trusted less.

    Args:
        asked: (question, id of its passage).
    """
    with_own, without = [], []
    ranked = index.rank_all([question for question, _ in asked])
    for (_, passage), matches in zip(asked, ranked, strict=True):
        if matches and matches[0].passage.id == passage:
            with_own.append(matches[0].weight)
        without.append(next((match.weight for match in matches if match.passage.id != passage), 0.0))
    if len(with_own) < ENOUGH:
        return 0.0
    weights = sorted({0.0, *with_own, *without})
    with_own.sort()
    without.sort()
    gaps = [
        (len(with_own) - bisect_right(with_own, low) + bisect_right(without, low), high - low, (low + high) / 2)
        for low, high in pairwise(weights)
    ]
    return max(gaps, default=(0, 0.0, 0.0))[2]
