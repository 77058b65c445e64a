"""BM25 retrieval: which stored passage a question is about, or none of them.

It sees only the words of titles, passages and questions. A system that finds the right adapter this way could as well
retrieve the passage, so compare routing with retrieval.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from seal_lib.continual.streams import Stream
from seal_lib.records import Question


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"\w+", text.lower())


class BM25:
    """An Okapi BM25 index (Robertson & Zaragoza 2009) with idf = ln(1 + (N - df + .5)/(df + .5))."""

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        self.counts = [Counter(_words(text)) for text in texts]
        lengths = [sum(count.values()) for count in self.counts]
        mean = sum(lengths) / max(1, len(lengths))
        self.norms = [k1 * (1 - b + b * length / max(mean, 1e-9)) for length in lengths]
        self.k1, df = k1, Counter(word for count in self.counts for word in count)
        self.idf = {word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in df.items()}

    def best(self, query: str, threshold: float = 0.0) -> int | None:
        """Return the index of the best text (the first of equals), or None if too few of the query's words are in it.

        ``threshold`` is the smallest accepted share of the query's distinct words. The share weights all words equally,
        because idf over one or two stored texts is not informative yet.
        """
        asked = Counter(_words(query))
        if not self.counts or not asked:
            return None
        scores = [
            sum(self.idf[w] * c[w] * (self.k1 + 1) / (c[w] + norm) for w in asked if w in c)
            for c, norm in zip(self.counts, self.norms, strict=True)
        ]
        top = scores.index(max(scores))
        found = sum(word in self.counts[top] for word in asked) / len(asked)
        return top if scores[top] > 0 and found >= threshold else None


_index = lru_cache(maxsize=1024)(BM25)


def route(stream: Stream, k: int, title: str, question: Question, threshold: float) -> int | None:
    """Return the index, among the first k passages, of the one that the question (with its title) is about, or None."""
    key = tuple(f"{p.title} {p.text}" for p in stream.passages[:k])  # all questions of a step share one index
    return _index(key).best(f"{title} {question.question}", threshold)
