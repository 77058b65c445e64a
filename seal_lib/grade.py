"""Graders: SQuAD exact match, F1 and containment. An answer is graded against one gold text; no model is called."""

import re
import string
from collections import Counter

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
    """Nothing but white space and punctuation."""
    return not any(character.isalnum() for character in answer)


def grade(question: Question, answer: str) -> Answer:
    gold = question.answer
    return Answer(
        question=question.question,
        gold=gold,
        text=answer,
        exact=exact_match(answer, gold),
        f1=f1(answer, gold),
        contains=contains(answer, gold),
        blank=is_blank(answer),
    )
