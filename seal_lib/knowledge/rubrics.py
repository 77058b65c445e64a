"""Rubrics rate a self-edit by its text alone: by a rule (`RUBRICS`), or by a model that reads it (``judge``).

A rule is a row: (passage, text) → number in [0, 1]. No rubric sees the questions that the inner loop asks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from seal_lib.errors import DataError, must_be_one_of
from seal_lib.generation.others import Other
from seal_lib.grading.graders import normalise
from seal_lib.grading.judge import NOBODY_RATES, Rater
from seal_lib.knowledge.world import describe_notes
from seal_lib.records import Passage
from seal_lib.runs.work import Count


def _facts(passage: Passage, text: str) -> float:
    """Return the share of the passage's facts stated usefully, times the share of lines not false; made world only."""
    if not passage.facts:
        raise DataError(f"rubric: facts are known of the made world only, not of passage {passage.id}; take another.")
    notes = describe_notes(text, passage)
    return notes["coverage"] * (1 - notes["false"] / max(1, notes["lines"]))


def _length(passage: Passage, text: str) -> float:
    """Return the number of words as a share of the passage's, at most 1: all it knows is that more is better."""
    return min(1.0, len(text.split()) / max(1, len(passage.text.split())))


def _likeness(passage: Passage, text: str) -> float:
    """Return the share of the passage's words that occur in the text: a copy is best."""
    words = set(normalise(passage.text).split())
    return len(words & set(normalise(text).split())) / max(1, len(words))


#: rubric → its function of (passage, text), a rating in [0, 1]
RUBRICS: dict[str, Callable[[Passage, str], float]] = {"facts": _facts, "length": _length, "likeness": _likeness}
#: values of a notebook's parameter ``rubric``
NAMES = (*RUBRICS, "judge")


@dataclass(frozen=True)
class Rubric:
    """A rule of `RUBRICS`, or ``judge`` with the model that rates."""

    name: str
    rater: Rater | None = None

    def __post_init__(self):
        must_be_one_of("rubric", self.name, NAMES)
        if self.rater is None and self.name not in RUBRICS:
            raise DataError(NOBODY_RATES)

    def rate(self, pairs: Sequence[tuple[Passage, str]], count: Count) -> list[float]:
        """Return the rating of each text about its passage; an empty text is rated 0 without asking."""
        written = [(passage, text) for passage, text in pairs if text.strip()]
        if self.rater:
            rater = replace(self.rater, count=count)
            rated = iter(rater.ratings([(f"{passage.title}\n{passage.text}", text) for passage, text in written]))
        else:
            rated = iter([RUBRICS[self.name](passage, text) for passage, text in written])
        return [next(rated) if text.strip() else 0.0 for _, text in pairs]


def rubric_of(name: str, who: str, key_env: str, calls: int, seconds: float, device: str, dtype: str) -> Rubric:
    """Return the rubric that the parameters of a notebook name.

    Args:
        who, …: fields of `seal_lib.generation.others.Other`, for the rubric ``judge``.

    Raises:
        DataError: the rubric is unknown, ``judge`` has no model, or the key is not in the environment.
    """
    if name != "judge" or not who:
        return Rubric(name)
    rater = Rater(Other(who, key_env, calls, seconds, device, dtype))
    rater.who.check()
    return Rubric(name, rater)
