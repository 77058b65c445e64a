"""A model as grader: does an answer say the same as the gold answer? By a rubric of ours, yes or no.

The judge is any model of `seal_lib.generation.others`, here or behind an HTTP address. What it says is kept on
disk by content: rubric, question, gold, answer and the judge's identity. A call that failed, and a reply that is no
verdict, is no grade (NaN); it is never taken for a wrong answer.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.others import Other, uncounted
from seal_lib.generation.thoughts import without_thoughts
from seal_lib.records import Question
from seal_lib.runs import yaml_files

_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
#: greedy; room for a judge that thinks first. A reply usually is one word
REPLY = Sampling(max_tokens=1024, skip_long=True)


NOBODY = "grader: judge needs somebody who judges; name a model, or MODEL@URL, in the parameter judge."


@lru_cache
def rubrics(kind: str = "answers") -> dict[str, str]:
    """Rubric → its text, with the slots that the head of ``rubrics.yaml`` gives its kind."""
    return yaml_files.read(Path(__file__).with_name("rubrics.yaml"))[kind]


def verdict(reply: str) -> float:
    """1.0 for yes, 0.0 for no; NaN if the reply says neither or both."""
    said = {word.lower() for word in _WORD.findall(without_thoughts(reply)[0])}
    return float(said == {"yes"}) if len(said) == 1 else math.nan


@dataclass(frozen=True)
class Judge:
    """Who judges, and by which rubric. ``repeat``: asks anew, so that a judge can be compared with itself.

    ``count``: takes the counters of `seal_lib.generation.others.Other.texts`.
    """

    who: Other
    rubric: str = "same-answer"
    repeat: int = 0
    reply: Sampling = REPLY
    count: Callable[..., None] = field(default=uncounted, compare=False)

    def __post_init__(self):
        if self.rubric not in rubrics():
            raise DataError(f"rubric: {self.rubric!r} is not one of {', '.join(rubrics())}.")

    def again(self) -> "Judge":
        """The same judge, asked once more."""
        return replace(self, repeat=self.repeat + 1)

    def verdicts(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """1.0 (the same answer), 0.0 (another) or NaN (no verdict) for each question and answer; equal ones are asked
        once.
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


def judge_of(grader: str, who: str, key_env: str, calls: int, seconds: float, device: str, dtype: str,
             rubric: str = "same-answer") -> Judge | None:  # fmt: skip
    """The judge that the parameters of a notebook name; None unless ``grader`` is ``judge``.

    Args:
        who, …: of `seal_lib.generation.others.Other`.

    Raises:
        DataError: nobody is named, that is no address, or its key is not in the environment.
    """
    if grader != "judge":
        return None
    if not who:
        raise DataError(NOBODY)
    judge = Judge(Other(who, key_env, calls, seconds, device, dtype), rubric)
    judge.who.check()
    return judge
