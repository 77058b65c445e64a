"""How much several self-edits about one passage differ: numbers in [0, 1] from their words alone."""

from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean

from seal_lib.grading.graders import normalise

LENGTH = 3  # words of a piece that is compared


def _pieces(text: str) -> list[tuple[str, ...]]:
    """Every run of `LENGTH` words within a line; a shorter line is one piece."""
    lines = [normalise(line).split() for line in text.splitlines()]
    return [tuple(words[at : at + LENGTH]) for words in lines if words for at in range(max(1, len(words) - LENGTH + 1))]


def distinct(texts: Sequence[str]) -> float:
    """Different word trigrams over all of them, in all texts together; NaN without any. The more texts, the lower: it
    is comparable at equal counts only."""
    pieces = [piece for text in texts for piece in _pieces(text)]
    return len(set(pieces)) / len(pieces) if pieces else float("nan")


def overlap(texts: Sequence[str]) -> float:
    """Mean over all pairs of texts of the trigrams they share (Jaccard: shared over all); NaN for fewer than two
    texts. Two empty texts are alike."""
    sets = [set(_pieces(text)) for text in texts]
    shares = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(sets, 2)]
    return fmean(shares) if shares else float("nan")


#: metric → (self-edits about one passage) → number
MEASURES: dict[str, Callable[[Sequence[str]], float]] = {"distinct": distinct, "overlap": overlap}
