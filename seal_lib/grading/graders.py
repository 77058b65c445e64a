"""Graders that compare an answer with one gold answer: SQuAD exact match, containment, F1, and a model as judge.

The grader of a loop is named by a key of `GRADERS`; the reward, the frozen baseline, the fresh-seed check and the
tables use it.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from seal_lib.errors import DataError
from seal_lib.generation.thoughts import without_thoughts
from seal_lib.grading.judge import NOBODY, Judge
from seal_lib.records import Answer, Question

_ARTICLES = ("a", "an", "the")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_APART = str.maketrans({mark: f" {mark} " for mark in string.punctuation})
#: characters within a word or a number that are removed, as SQuAD's rule removes ``'`` and ``-``: apostrophes, hyphens,
#: points, marks of Arabic and Hebrew numbers and abbreviations, and the Arabic line that only lengthens a word
_JOINERS = set("’‘ʼ‛′‐‑‒–−·・٫٬\u05f3\u05f4\u0640\u00ad")
#: optional marks: vowels of Arabic and Hebrew, and the variant selectors of emoji
_OPTIONAL = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u0652\u0670\u06d6-\u06ed\ufe0e\ufe0f]"
)
#: separators of thousands
_THOUSANDS = re.compile(r"(?<=\d)(?:[，．](?=\d)|[\u00a0\u2009\u202f](?=\d{3}(?!\d)))")
#: kinds of compatibility forms that are not replaced, since their meaning would change: 10² is not 102
_OTHER = ("<super>", "<fraction>", "<circle>")
#: scripts written without spaces (Thai to Myanmar, Khmer, Javanese and similar, kana, Han) or with particles joined to
#: the word (Hangul): each of their letters is a word
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb\u1780-\u17ff\u1950-\u19df\u1a20-\u1aad\u1b00-\u1b7f\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029"
    "\u3041-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua980-\ua9df\uaa60-\uaa7f"
    "\uf900-\ufaff\U00016ff0-\U0003ffff]"
)


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """Return the plain form of a non-ASCII character: width, font and digit variants become plain, marks vanish."""
    category = unicodedata.category(character)
    if character in _JOINERS or category in ("Cf", "Sk") or _OPTIONAL.match(character):  # Sk: accents without a letter
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category[0] == "P":
        return " "
    kind = unicodedata.decomposition(character).partition(" ")[0]
    if not kind.startswith("<") or kind in _OTHER:
        return character
    return unicodedata.normalize("NFKC", character)


def _spelt(text: str) -> str:
    """Return ``text`` in one Unicode spelling; the case does not change, nor does ASCII text."""
    if text.isascii():
        return text
    text = _THOUSANDS.sub("", unicodedata.normalize("NFC", text))
    return unicodedata.normalize("NFC", "".join(c if c.isascii() else _plain(c) for c in text))


@lru_cache(maxsize=4096)
def _words(text: str, articles: bool = False, punctuation: bool = False, case: bool = False) -> list[str]:
    """Split a text into the words that graders compare; each flag keeps what is dropped by default."""
    if punctuation:
        text = re.sub(r"([^\w\s])", r" \1 ", unicodedata.normalize("NFKC", text)).translate(_APART)
    else:
        text = _spelt(text).translate(_PUNCTUATION)
    if not case:
        text = text.lower() if text.isascii() else unicodedata.normalize("NFC", text.casefold().replace("i\u0307", "i"))
    words: list[str] = []
    for run in text.split():
        words += [run] if run.isascii() or not _UNSPACED.search(run) else _letters(run)
    return words if articles else [word for word in words if word not in _ARTICLES]


def _letters(run: str) -> list[str]:
    """Split a text without spaces at every letter of an unspaced script; combining marks stay with their letter."""
    words: list[str] = []
    alone = True  # True if the next character begins a word
    for character in run:
        unspaced = bool(_UNSPACED.match(character))
        if words and (unicodedata.category(character)[0] == "M" or not (unspaced or alone)):
            words[-1] += character
        else:
            words.append(character)
            alone = unspaced
    return words


def normalise(text: str) -> str:
    """Normalise a text as SQuAD v1.1 does: lower case, no punctuation, no articles, single spaces.

    For ASCII text this is exactly SQuAD's rule. For other text, spelling variants become equal: composed and decomposed
    letters, Arabic and Hebrew with and without vowel marks, width and font variants, digits of all scripts, other
    punctuation. A letter of a script without spaces is a word, as in the graders of multilingual SQuAD, and so is a
    letter of Hangul, as in the grader of KorQuAD.
    """
    return " ".join(_words(text))


def _compared(answer: str, gold: str) -> tuple[list[str], list[str], bool]:
    """Return the words of the answer and of the gold answer, and True if articles had to be kept.

    If the gold answer normalises to nothing (``A``, ``The``, ``+``), articles are kept; if that is not enough,
    punctuation and case too.
    """
    if theirs := _words(gold):
        return _words(answer), theirs, False
    if theirs := _words(gold, articles=True):
        return _words(answer, articles=True), theirs, True
    return _words(answer, True, True), _words(gold, True, True), False


def exact_match(answer: str, gold: str) -> float:
    """Return 1.0 if both texts have the same words, and at least one, else 0.0."""
    ours, theirs, _ = _compared(answer, gold)
    return float(ours == theirs != [])


def f1(answer: str, gold: str) -> float:
    """Return the F1 score over words, in [0, 1]."""
    ours, theirs, _ = _compared(answer, gold)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def contains(answer: str, gold: str) -> float:
    """Return 1.0 if the answer contains the words of the gold answer consecutively, else 0.0.

    If the gold answer is an article and the answer has further words, the case must match too, since nearly every
    sentence has an "a".
    """
    ours, theirs, article = _compared(answer, gold)
    if article and ours != theirs:
        ours, theirs = _words(answer, articles=True, case=True), _words(gold, articles=True, case=True)
    return float(bool(theirs) and f" {' '.join(theirs)} " in f" {' '.join(ours)} ")


def is_blank(answer: str) -> bool:
    """Return True if a text has no letter or digit."""
    return not any(character.isalnum() for character in answer)


#: function of the pairs (question with its gold answer, answer) and the judge, if any, that returns one grade per pair
Grader = Callable[[Sequence[tuple[Question, str]], Judge | None], list[float]]


def each(score: Callable[[str, str], float]) -> Grader:
    """Make a grader from a score of (answer, gold answer)."""

    def grades(pairs: Sequence[tuple[Question, str]], judge: Judge | None) -> list[float]:
        return [score(answer, question.answer) for question, answer in pairs]

    return grades


def judged(pairs: Sequence[tuple[Question, str]], judge: Judge | None) -> list[float]:
    """Return the judge's verdicts; a blank answer is wrong without asking, as in the paper.

    Raises:
        DataError: there is no judge.
    """
    if judge is None:
        raise DataError(NOBODY)
    asked = [(question, answer) for question, answer in pairs if not is_blank(answer)]
    verdicts = iter(judge.verdicts(asked))
    return [0.0 if is_blank(answer) else next(verdicts) for _, answer in pairs]


#: grader → function that grades many answers in one call; grades are in [0, 1], NaN if the grader gave none. A grader
#: outside `ALWAYS` is called only if it is the loop's grader.
GRADERS: dict[str, Grader] = {
    "exact": each(exact_match),
    "contains": each(contains),
    "f1": each(f1),
    "judge": judged,
}
#: graders without cost, whose grades are recorded in addition to those of the loop's grader
ALWAYS = ("exact", "contains", "f1")


def ungraded(question: Question, grader: str) -> Answer:
    """Return the record of a question that was not asked: every grade is NaN, and it is not blank."""
    return Answer(question.question, question.answer, "", dict.fromkeys((*ALWAYS, grader), math.nan), False)


def grade(pairs: Sequence[tuple[Question, str]], grader: str, judge: Judge | None = None) -> list[Answer]:
    """Grade answers by ``grader`` and by all graders without cost; reasoning before an answer is not graded."""
    said = [(question, without_thoughts(answer)[0].strip()) for question, answer in pairs]
    grades = {name: GRADERS[name](said, judge) for name in dict.fromkeys((*ALWAYS, grader))}
    return [
        Answer(
            question.question, question.answer, answer, {name: grades[name][i] for name in grades}, is_blank(said[i][1])
        )
        for i, (question, answer) in enumerate(pairs)
    ]
