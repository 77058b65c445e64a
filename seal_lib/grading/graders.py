"""Graders of an answer against one gold text: SQuAD exact match, containment and F1. No model is called.

The grader of a loop is one word, a key of :data:`GRADERS`: reward, frozen baseline, honesty check and tables read it.
"""

import re
import string
from collections import Counter
from collections.abc import Callable

from seal_lib.errors import DataError
from seal_lib.records import Answer, Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """SQuAD v1.1 normalisation: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1.0 if both normalise to the same non-empty text, else 0.0."""
    return float(normalise(answer) == normalise(gold) != "")


def f1(answer: str, gold: str) -> float:
    """Token F1 after normalisation, in [0, 1]."""
    ours, theirs = normalise(answer).split(), normalise(gold).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def contains(answer: str, gold: str) -> float:
    """1.0 if the gold words occur, in a row and as whole words, in the answer."""
    wanted = normalise(gold)
    return float(bool(wanted) and f" {wanted} " in f" {normalise(answer)} ")


def is_blank(answer: str) -> bool:
    """Whether a text has only white space and punctuation."""
    return not any(character.isalnum() for character in answer)


#: grader → (question with its gold answer, answer) → grade in [0, 1]; NaN: the grader did not answer. Called once per
#: answer, and a grader that is not in :data:`ALWAYS` only where it is the loop's.
GRADERS: dict[str, Callable[[Question, str], float]] = {
    "exact": lambda question, answer: exact_match(answer, question.answer),
    "contains": lambda question, answer: contains(answer, question.answer),
    "f1": lambda question, answer: f1(answer, question.answer),
}
#: graders that cost nothing: their grades stand beside those of the loop's grader
ALWAYS = ("exact", "contains", "f1")


def check(grader: str) -> None:
    """Raises DataError if there is no such grader."""
    if grader not in GRADERS:
        raise DataError(f"grader: {grader!r} is not one of {', '.join(GRADERS)}.")


def grade(question: Question, answer: str, grader: str) -> Answer:
    """The answer graded by ``grader`` and by the graders that cost nothing."""
    grades = {name: GRADERS[name](question, answer) for name in dict.fromkeys((*ALWAYS, grader))}
    return Answer(question.question, question.answer, answer, grades, is_blank(answer))
