"""A model as grader: by a rubric, it says yes or no to whether an answer says the same as the gold answer.

The judge is any model of `seal_lib.generation.others`, local or behind an HTTP endpoint. Its replies are cached on disk
by rubric, question, gold answer, answer and the judge's identity. A failed call, or a reply without a verdict, gives no
grade (NaN); it never counts as a wrong answer.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.others import Other
from seal_lib.generation.thoughts import without_thoughts
from seal_lib.records import Question
from seal_lib.runs import yaml_files
from seal_lib.runs.work import Count, uncounted

_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
#: greedy decoding with enough tokens for a judge that reasons first; most replies are one word
REPLY = Sampling(max_tokens=1024, skip_long=True)


NOBODY = "grader: judge needs somebody who judges; name a model, or MODEL@URL, in the parameter judge."


@lru_cache
def rubrics(kind: str = "answers") -> dict[str, str]:
    """Return {rubric: text} of a kind; the head of ``rubrics.yaml`` lists the slots of each kind."""
    return yaml_files.read(Path(__file__).with_name("rubrics.yaml"))[kind]


def verdict(reply: str) -> float:
    """Return 1.0 if a reply says yes, 0.0 if it says no, NaN if it says neither or both; reasoning does not count."""
    said = {word.lower() for word in _WORD.findall(without_thoughts(reply)[0])}
    return float(said == {"yes"}) if len(said) == 1 else math.nan


@dataclass(frozen=True)
class Judge:
    """A model that judges answers by a rubric.

    Another value of ``repeat`` asks anew in place of reading the cache, so that a judge can be compared with itself.
    ``count`` receives the counters of `seal_lib.generation.others.Other.texts`.
    """

    who: Other
    rubric: str = "same-answer"
    repeat: int = 0
    reply: Sampling = REPLY
    count: Count = field(default=uncounted, compare=False)

    def __post_init__(self):
        if self.rubric not in rubrics():
            raise DataError(f"rubric: {self.rubric!r} is not one of {', '.join(rubrics())}.")

    def again(self) -> "Judge":
        """Return the same judge, to be asked once more."""
        return replace(self, repeat=self.repeat + 1)

    def verdicts(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Return for each (question, answer) 1.0 (same as the gold answer), 0.0 (different) or NaN (no verdict).

        Equal pairs are asked once.
        """
        template = rubrics()[self.rubric]
        requests = [
            Request(template.format(question=q.question, gold=q.answer, answer=answer), self.repeat)
            for q, answer in pairs
        ]
        return [
            math.nan if reply.finish in ("failed", "too_long") else verdict(reply.text)
            for reply in self.who.texts(requests, self.reply, self.count)
        ]


def judge_of(
    grader: str,
    who: str,
    key_env: str,
    calls: int,
    seconds: float,
    device: str,
    dtype: str,
    rubric: str = "same-answer",
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
