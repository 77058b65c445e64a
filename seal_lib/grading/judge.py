"""Models that read by a rubric: a judge grades answers with yes or no, a rater gives self-edits marks.

Such a model is any of `seal_lib.generation.others`, local or behind an HTTP endpoint. Its replies are cached on disk
by what it was asked and its identity. A failed call, or a reply without a verdict, gives no grade (NaN); it counts
neither as a wrong answer nor as the lowest mark, as a failed call does in the authors' code.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from seal_lib.errors import DataError, must_be_one_of
from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.others import Other
from seal_lib.generation.thoughts import without_thoughts
from seal_lib.records import Question
from seal_lib.runs import yaml_files
from seal_lib.runs.work import Count, uncounted

_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
#: greedy decoding with enough tokens for a judge that reasons first; most replies are one word
REPLY = Sampling(max_tokens=1024, skip_long=True)
#: the criteria of a rating (the paper's four), and the lowest and highest mark
CRITERIA, LOWEST, HIGHEST = ("length", "diversity", "quality", "correctness"), 1, 5
NOBODY = "grader: judge needs somebody who judges; name a model, or MODEL@URL, in the parameter judge."
NOBODY_RATES = "rubric: judge needs somebody who rates; name a model, or MODEL@URL, in the parameter rater."


@lru_cache
def rubrics(kind: str) -> dict[str, str]:
    """Return {rubric: text} of a kind; the head of ``rubrics.yaml`` lists the slots of each kind."""
    return yaml_files.read(Path(__file__).with_name("rubrics.yaml"))[kind]


def verdict(reply: str) -> float:
    """Return 1.0 if a reply says yes, 0.0 if it says no, NaN if it says neither or both; reasoning does not count."""
    said = {word.lower() for word in _WORD.findall(without_thoughts(reply)[0])}
    return float(said == {"yes"}) if len(said) == 1 else math.nan


def rating(reply: str) -> float:
    """Return the mean of the four marks of a reply, scaled to [0, 1]; NaN if a mark is missing or out of range.

    If a criterion is marked twice, the last mark counts. The authors' code clips a mark that is out of range.
    """
    said, marks = without_thoughts(reply)[0], []
    for name in CRITERIA:
        found = re.findall(rf"\b{name}\b[^:：\n]*[:：][\s*_]*(-?\d+(?:\.\d+)?)", said, re.IGNORECASE)
        marks.append(float(found[-1]) if found else math.nan)
    if not all(LOWEST <= mark <= HIGHEST for mark in marks):
        return math.nan
    return (sum(marks) / len(marks) - LOWEST) / (HIGHEST - LOWEST)


@dataclass(frozen=True)
class _Reader:
    """A model with a rubric of one kind. ``count`` receives the counters of `seal_lib.generation.others.Other.texts`.

    Another value of ``repeat`` asks anew in place of reading the cache, so that a model can be compared with itself.
    """

    who: Other
    rubric: str
    repeat: int = 0
    reply: Sampling = REPLY
    count: Count = field(default=uncounted, compare=False)
    kind: ClassVar[str]

    def __post_init__(self):
        must_be_one_of("rubric", self.rubric, rubrics(self.kind))

    def _asked(self, slots: Sequence[dict[str, str]], said: Callable[[str], float]) -> list[float]:
        """Return what the model says about each of several texts, NaN if nothing; equal ones are asked once."""
        template = rubrics(self.kind)[self.rubric]
        requests = [Request(template.format(**texts), self.repeat) for texts in slots]
        replies = self.who.texts(requests, self.reply, self.count)
        return [math.nan if reply.finish in ("failed", "too_long") else said(reply.text) for reply in replies]


@dataclass(frozen=True)
class Judge(_Reader):
    """A model that judges answers by a rubric."""

    rubric: str = "same-answer"
    kind: ClassVar[str] = "answers"

    def verdicts(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Return for each (question, answer) 1.0 (same as the gold answer), 0.0 (different) or NaN (no verdict)."""
        return self._asked([{"question": q.question, "gold": q.answer, "answer": a} for q, a in pairs], verdict)


@dataclass(frozen=True)
class Rater(_Reader):
    """A model that rates self-edits by a rubric without training on them: the paper's proxy reward (v2, Table 9)."""

    rubric: str = "worth-learning"
    kind: ClassVar[str] = "self-edits"

    def ratings(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the rating in [0, 1] of each (passage, self-edit), NaN if none."""
        return self._asked([{"passage": passage, "text": text} for passage, text in pairs], rating)


def judge_of(
    grader: str,
    who: str,
    key_env: str,
    calls: int,
    seconds: float,
    device: str,
    dtype: str,
    rubric: str = Judge.rubric,
) -> Judge | None:
    """Return the judge that a notebook's parameters name; None unless ``grader`` is ``judge``.

    Args:
        who: the name of the model; it and the next five arguments are those of `seal_lib.generation.others.Other`.

    Raises:
        DataError: no model is named, its address is invalid, its key is not in the environment, or there is no such
            rubric.
    """
    if grader != "judge":
        return None
    if not who:
        raise DataError(NOBODY)
    judge = Judge(Other(who, key_env, calls, seconds, device, dtype), rubric)
    judge.who.check()
    return judge
