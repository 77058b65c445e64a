"""A model that rates self-edits by a rubric without training on them: the paper's proxy reward (v2, Table 9).

The rater is any model of `seal_lib.generation.others`. The authors' code counts a failed call as the lowest mark and
clips a mark that is out of range; here both give no rating (NaN).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.others import Other
from seal_lib.generation.thoughts import without_thoughts
from seal_lib.grading.judge import REPLY, rubrics
from seal_lib.runs.work import Count, uncounted

#: the criteria of the rating (the paper's four), and the lowest and highest mark
CRITERIA, LOWEST, HIGHEST = ("length", "diversity", "quality", "correctness"), 1, 5
NOBODY = "rubric: judge needs somebody who rates; name a model, or MODEL@URL, in the parameter rater."


def rating(reply: str) -> float:
    """Return the mean of the four marks of a reply, scaled to [0, 1]; NaN if a mark is missing or out of range.

    If a criterion is marked twice, the last mark counts.
    """
    said, marks = without_thoughts(reply)[0], []
    for name in CRITERIA:
        found = re.findall(rf"\b{name}\b[^:：\n]*[:：][\s*_]*(-?\d+(?:\.\d+)?)", said, re.IGNORECASE)
        marks.append(float(found[-1]) if found else math.nan)
    if not all(LOWEST <= mark <= HIGHEST for mark in marks):
        return math.nan
    return (sum(marks) / len(marks) - LOWEST) / (HIGHEST - LOWEST)


@dataclass(frozen=True)
class Rater:
    """A model that rates self-edits by a rubric.

    ``count`` receives the counters of `seal_lib.generation.others.Other.texts`.
    """

    who: Other
    rubric: str = "worth-learning"
    reply: Sampling = REPLY
    count: Count = field(default=uncounted, compare=False)

    def __post_init__(self):
        if self.rubric not in rubrics("self-edits"):
            raise DataError(f"rubric: {self.rubric!r} is not one of {', '.join(rubrics('self-edits'))}.")

    def ratings(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the rating in [0, 1] of each (passage, self-edit), NaN if none; equal pairs are asked once."""
        template = rubrics("self-edits")[self.rubric]
        requests = [Request(template.format(passage=passage, text=text)) for passage, text in pairs]
        return [
            math.nan if reply.finish in ("failed", "too_long") else rating(reply.text)
            for reply in self.who.texts(requests, self.reply, self.count)
        ]
