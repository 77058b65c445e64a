"""Measures of how much several self-edits about one passage differ, in [0, 1], from their words alone."""

from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean

from seal_lib.grading.graders import normalise

LENGTH = 3  # words in a piece


def _pieces(text: str) -> list[tuple[str, ...]]:
    """Return every run of `LENGTH` words within a line; a shorter line is one piece."""
    lines = [normalise(line).split() for line in text.splitlines()]
    return [tuple(words[at : at + LENGTH]) for words in lines if words for at in range(max(1, len(words) - LENGTH + 1))]


def distinct(texts: Sequence[str]) -> float:
    """Return the number of distinct word trigrams over the number of all, in all texts together; NaN without any. It
    falls as texts are added, so compare it at equal counts only."""
    pieces = [piece for text in texts for piece in _pieces(text)]
    return len(set(pieces)) / len(pieces) if pieces else float("nan")


def overlap(texts: Sequence[str]) -> float:
    """Return the mean Jaccard similarity (shared trigrams over all) of all pairs of texts; NaN for fewer than two
    texts. Two empty texts are alike."""
    sets = [set(_pieces(text)) for text in texts]
    shares = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(sets, 2)]
    return fmean(shares) if shares else float("nan")


#: metric → its function of the texts of one passage's self-edits
MEASURES: dict[str, Callable[[Sequence[str]], float]] = {"distinct": distinct, "overlap": overlap}
