"""Computes the numbers of a released file: accuracies, blanks, gains, containment, reliability and comparisons.

The input is the records of ``files``. Every interval is one of `seal_lib.report.stats`.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from seal_lib.audit.files import STATES, AnswerFile, FileUnit, Matrix, Said, stem
from seal_lib.continual import intervals
from seal_lib.errors import DataError
from seal_lib.grading.graders import grade, is_blank
from seal_lib.records import Answer, Question
from seal_lib.report import stats
from seal_lib.report.paper_values import paper_values
from seal_lib.report.stats import Estimate

#: with more files of a kind, each is compared with the first only, so that the family of p-values stays small
ALL_PAIRS = 6
#: Two files without question texts are paired by position if the verdicts on their base models agree at least this well
#: beyond chance (Cohen's kappa). The same model asked twice agrees better; with another order of questions, kappa is
#: near 0.
SAME_ORDER = 0.5
CONTAINS = "contains"


@dataclass(frozen=True)
class StateNumbers:
    """The numbers of a file for the model after training ("adapter") or without it ("base").

    ``macro`` and ``micro`` are NaN if the file lacks what they need.
    """

    file: str
    state: str
    macro: Estimate  # mean accuracy over units
    micro: Estimate  # questions right of those asked, over all trainings
    right: float  # the sum of verdicts over ``questions`` graded questions
    questions: int
    ungraded: int  # the number of answers without a verdict, which are left out
    blank: float  # the number of answers that say nothing; NaN if the file has no texts
    blank_rate: Estimate  # their share
    spoken: Estimate  # micro accuracy of the other answers
    stored: float  # the accuracy that the file itself reports
    contains: Agreement | None  # containment compared with the file's grader, if there are gold answers


@dataclass(frozen=True)
class Agreement:
    """Containment compared with the verdicts of the file's grader, over the answers that have both."""

    judged: Estimate  # mean over units of the verdicts
    contained: Estimate  # mean over units of containment
    agree: float  # the share of answers on which both agree
    precision: float  # the share that the grader calls right, of the answers that contain the gold answer
    recall: float  # the share that contains the gold answer, of the answers that the grader calls right
    answers: int


@dataclass(frozen=True)
class Reward:
    """The reliability of the rewards in a file with several self-edits per passage; the reward is the accuracy.

    ``fresh`` is averaged over the choice of the one training that it is measured by.
    """

    file: str
    edits: int  # self-edits per unit
    runs: int  # trainings per self-edit
    mean: Estimate  # the mean reward
    best: Estimate  # the reward of the best self-edit of each unit
    fresh: Estimate  # the reward, by one training, of the self-edit that is best by all other trainings
    reliability: Estimate  # see `stats.reliability`


@dataclass(frozen=True)
class FileComparison:
    """The difference a − b after training, paired by what both files asked.

    Its p-value is adjusted by Holm over all comparisons of the kind. ``spoken`` has n = 0 if the files have no texts.
    """

    a: str
    b: str
    by: str  # what the pairs are matched by
    difference: Estimate
    spoken: Estimate  # the difference over the ``spoken_questions`` that both answered with something
    spoken_right: tuple[float, float]  # the verdict sums of a and of b over these questions
    spoken_questions: int
    note: str = ""


# ---------------------------------------------------------------------------------------------- one file


def states(results: AnswerFile) -> list[StateNumbers]:
    """Return the numbers of a file for each of its states."""
    found = [_state(results, state) for state in STATES]
    return [one for one in found if one.macro.n or one.questions]


def _state(results: AnswerFile, state: str) -> StateNumbers:
    said = {unit.id: [asked.said[state] for asked in unit.asked()] for unit in results.units}
    graded = {unit: [one for one in several if not math.isnan(one.verdict)] for unit, several in said.items()}
    texts = {unit: [one for one in several if one.text is not None] for unit, several in graded.items()}
    blanks = {unit: [float(is_blank(one.text or "")) for one in several] for unit, several in texts.items() if several}
    spoken = {unit: list(filter(_speaks, texts[unit])) for unit in blanks}
    right, spoken_right = ({unit: _right(several) for unit, several in of.items()} for of in (graded, spoken))
    questions = sum(map(len, graded.values()))
    return StateNumbers(
        results.name,
        state,
        stats.mean_over_units({u.id: unit_accuracy(u, state) for u in results.units}, stats.SHARE, results.unit),
        stats.ratio_over_loops({0: right}, results.unit),
        math.fsum(verdicts for verdicts, _ in right.values()),
        questions,
        sum(map(len, said.values())) - questions,
        math.fsum(itertools.chain(*blanks.values())) if blanks else math.nan,
        stats.mean_over_units(blanks, stats.SHARE, results.unit),
        stats.ratio_over_loops({0: spoken_right}, results.unit),
        results.stored.get(state, math.nan),
        _agreement(results, state),
    )


def _right(said: Sequence[Said]) -> tuple[float, float]:
    """Return the sum of verdicts and the number of answers."""
    return math.fsum(one.verdict for one in said), float(len(said))


def unit_accuracy(unit: FileUnit, state: str) -> float:
    """Return the mean over a unit's self-edits of the mean over their trainings; NaN without a verdict."""
    return _mean(_mean(rewards) for rewards in _accuracies(unit, state))


def _accuracies(unit: FileUnit, state: str) -> list[list[float]]:
    """Return the accuracy of each self-edit after each of its trainings, NaN where nothing was graded."""
    found = []
    for completion in unit.completions:
        by_run = [_mean(asked.said[state].verdict for asked in run) for run in completion.runs]
        found.append(by_run or [completion.accuracy.get(state, math.nan)])
    return found


def gain(results: AnswerFile) -> Estimate:
    """Return accuracy after training minus accuracy without it, paired over units."""
    each = {u.id: unit_accuracy(u, "adapter") - unit_accuracy(u, "base") for u in results.units}
    found = stats.mean_over_units(each, stats.DIFFERENCE, results.unit)
    return replace(found, p=stats.sign_flip_test(list(each.values())))


def _agreement(results: AnswerFile, state: str) -> Agreement | None:
    rows = [
        (unit.id, one.verdict, _graded(asked.question, asked.gold, one.text).grades[CONTAINS])
        for unit in results.units
        for asked in unit.asked()
        if asked.gold and (one := asked.said[state]).text is not None and not math.isnan(one.verdict)
    ]
    if not rows:
        return None
    table = pd.DataFrame(rows, columns=["unit", "judged", "contained"])
    by_unit = table.groupby("unit", sort=False).agg(list)
    judged, contained = (
        stats.mean_over_units(by_unit[column].to_dict(), stats.SHARE, results.unit) for column in by_unit
    )
    right, held = table["judged"] > 0.5, table["contained"] == 1
    agree, precision, recall = map(float, ((right == held).mean(), right[held].mean(), held[right].mean()))
    return Agreement(judged, contained, agree, precision, recall, len(table))  # shares of no answers are NaN


@functools.lru_cache(maxsize=65536)
def _graded(question: str, gold: str, text: str) -> Answer:
    return grade([(Question(question, gold), text)], CONTAINS)[0]


def reward(results: AnswerFile) -> Reward | None:
    """Return the rewards of a file with several self-edits per unit; None if each has one, or nothing was graded."""
    rewards = {unit.id: _accuracies(unit, "adapter") for unit in results.units}
    edits, seeds = max(map(len, rewards.values())), max(len(r) for several in rewards.values() for r in several)
    if edits < 2 or not any(_finite(r) for several in rewards.values() for r in several):
        return None
    best = {name: max(_finite(map(_mean, several)), default=math.nan) for name, several in rewards.items()}
    fresh = {name: _mean(_fresh(several, held_out) for held_out in range(seeds)) for name, several in rewards.items()}
    means = {name: _mean(map(_mean, several)) for name, several in rewards.items()}
    mean, top, again = (stats.mean_over_units(v, stats.SHARE, results.unit) for v in (means, best, fresh))
    equal = [several for several in rewards.values() if {len(r) for r in several} == {seeds}]
    return Reward(results.name, edits, seeds, mean, top, again, stats.reliability(equal, results.unit))


def _fresh(several: Sequence[Sequence[float]], held_out: int) -> float:
    """Return the reward, by the held-out training, of the self-edit that is best by the other trainings.

    Of equally good ones, the first.
    """
    scored = [(_mean(r[:held_out] + r[held_out + 1 :]), r[held_out]) for r in map(list, several) if len(r) > held_out]
    known = [(others, own) for others, own in scored if not math.isnan(others + own)]
    return max(known, key=lambda pair: pair[0])[1] if known else math.nan


def proxy(results: AnswerFile) -> Estimate:
    """Return the mean score by a rubric over units, as in the file; n is 0 if there is none.

    The authors' rubric goes up to 20.
    """
    return stats.mean_over_units(
        {u.id: _mean(c.proxy for c in u.completions) for u in results.units}, stats.ANY, results.unit
    )


# ---------------------------------------------------------------------------------------------- two files


def compare(results: Sequence[AnswerFile]) -> tuple[list[FileComparison], list[str]]:
    """Compare the files of each kind in pairs (over `ALL_PAIRS` files: each with the first); one Holm family per kind.

    Returns:
        The comparisons, each as later file − earlier file, and a sentence for each pair that shares nothing or whose
        questions cannot be matched.
    """
    found: list[FileComparison] = []
    remarks: list[str] = []
    for kind in sorted({file.kind for file in results}):
        files = [file for file in results if file.kind == kind]
        pairs = list(itertools.combinations(files, 2))
        if len(files) > ALL_PAIRS:
            pairs = [pair for pair in pairs if pair[0] is files[0]]
            remarks.append(f"{len(files)} files of one kind: each is compared with {files[0].name} only")
        family = []
        for b, a in pairs:
            try:
                family.append(_pair(a, b))
            except DataError as reason:
                remarks.append(f"{a.name} and {b.name} are not compared: {reason}")
        adjusted = stats.holm({i: one.difference.p for i, one in enumerate(family)})
        found += [replace(one, difference=replace(one.difference, p=adjusted[i])) for i, one in enumerate(family)]
    return found, remarks


Matched = dict[str, list[tuple[Said, Said]]]  # unit -> (answer of a, answer of b) to each shared question


def _pair(a: AnswerFile, b: AnswerFile) -> FileComparison:
    """Return the comparison of two files of one kind.

    Raises:
        DataError: there is none; the message is the reason.
    """
    by, note = "question", ""
    if a.kind == "pretraining":
        by = "position"
        matched, note = _by_position(a, b)
    else:
        matched = _by_question(a, b)
    sides = _sides(matched)
    if not matched:
        by, sides = "passage", _by_passage(a, b)
    if not sides[0]:
        raise DataError("they share no question and no passage")
    both = {unit: [pair for pair in pairs if all(map(_speaks, pair))] for unit, pairs in matched.items()}
    spoken = {unit: pairs for unit, pairs in both.items() if pairs}
    ours, theirs = (math.fsum(pair[side].verdict for pair in itertools.chain(*spoken.values())) for side in (0, 1))
    questions = sum(map(len, spoken.values()))
    differences = _difference(sides, a.unit), _difference(_sides(spoken), a.unit)
    return FileComparison(a.name, b.name, by, *differences, (ours, theirs), questions, note)


def _speaks(said: Said) -> bool:
    return said.text is not None and not is_blank(said.text)


def _sides(matched: Matched) -> list[dict[str, float]]:
    """Return the accuracies of a and of b in each unit."""
    return [{unit: _mean(pair[side].verdict for pair in pairs) for unit, pairs in matched.items()} for side in (0, 1)]


def _difference(sides: Sequence[dict[str, float]], unit: str) -> Estimate:
    """Return a − b with its unadjusted p-value; n is 0 if there is nothing to pair."""
    if not sides[0]:
        return Estimate(math.nan, math.nan, math.nan, 0, unit)
    return stats.compare({"a": {0: sides[0]}, "b": {0: sides[1]}}, [("a", "b")], unit=unit)["a", "b"]


def _by_question(a: AnswerFile, b: AnswerFile) -> Matched:
    """Return the answers to the questions that both files have, by unit of a; matched by title and question.

    Several answers of a file to one question become their mean.
    """
    ours, theirs = _answers(a), _answers(b)
    found: Matched = {}
    for key, (unit, said) in ours.items():
        if key in theirs:
            found.setdefault(unit, []).append((said, theirs[key][1]))
    return found


def _answers(results: AnswerFile) -> dict[tuple[str, str, int], tuple[str, Said]]:
    """Return (title, question, number of earlier occurrences) -> (unit, answer after training).

    Several trainings give the mean verdict, and a blank text if one of them is blank. Occurrences are counted because
    SQuAD asks a few questions twice, about one passage or about two.
    """
    found: dict[tuple[str, str, int], tuple[str, Said]] = {}
    before: Counter[tuple[str, str]] = Counter()
    for unit in results.units:
        several: dict[tuple[str, int], list[Said]] = {}
        for run in (run for completion in unit.completions for run in completion.runs):
            within: Counter[str] = Counter()
            for asked in run:
                several.setdefault((asked.question, within[asked.question]), []).append(asked.said["adapter"])
                within[asked.question] += 1
        for (question, _), said in several.items():
            key = unit.title, question
            texts = [one.text for one in said]
            text = None if None in texts else next((t for t in texts if is_blank(t or "")), texts[0])
            verdict = _mean(one.verdict for one in said)
            if not math.isnan(verdict):
                found[*key, before[key]] = unit.id, Said(text, verdict)
            before[key] += 1
    return found


def _by_passage(a: AnswerFile, b: AnswerFile) -> list[dict[str, float]]:
    """Return the accuracies of a and of b on the passages that both have, matched by title and text.

    Used if the files share no question.
    """
    sides = [
        {f"{u.title}\n{u.context}": value for u in r.units if not math.isnan(value := unit_accuracy(u, "adapter"))}
        for r in (a, b)
    ]
    for side in sides:
        side.pop("\n", None)  # passages without title and text
    return [{key: value for key, value in side.items() if key in sides[0] and key in sides[1]} for side in sides]


def _by_position(a: AnswerFile, b: AnswerFile) -> tuple[Matched, str]:
    """Match questions by position if both files seem to hold the same ones; also return a note on that.

    Raises:
        DataError: they do not; the message is the reason.
    """
    if len(a.units) != len(b.units):
        raise DataError(f"they hold {len(a.units)} and {len(b.units)} questions, and no text by which to match them")
    pairs = [(x.id, x.asked()[0].said, y.asked()[0].said) for x, y in zip(a.units, b.units, strict=True)]
    known = _known((x["base"], y["base"]) for _, x, y in pairs)
    if not known:
        raise DataError("they hold no question texts, and no verdicts on a base model by which to check the order")
    kappa = _kappa([(x.verdict, y.verdict) for x, y in known])
    if not kappa >= SAME_ORDER:
        raise DataError(
            f"they hold no question texts, and the verdicts on their base models agree too little (kappa {kappa:.2f}) "
            "for the same questions in the same order"
        )
    after = {unit: _known([(x["adapter"], y["adapter"])]) for unit, x, y in pairs}
    return {unit: pair for unit, pair in after.items() if pair}, f"base models agree, kappa {kappa:.2f}"


def _known(pairs: Iterable[tuple[Said, Said]]) -> list[tuple[Said, Said]]:
    """Return the pairs of which both have a verdict."""
    return [(x, y) for x, y in pairs if not math.isnan(x.verdict + y.verdict)]


def _kappa(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Cohen's kappa of two lists of verdicts; NaN if neither of them varies."""
    x, y = np.array(pairs).T > 0.5
    chance = x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean())
    return float(((x == y).mean() - chance) / (1 - chance)) if 0 < x.mean() < 1 or 0 < y.mean() < 1 else math.nan


# ---------------------------------------------------------------------------------------------- continual edits


def continual(matrices: Sequence[Matrix]) -> dict[str, dict[str, Estimate]]:
    """Return file → metric → estimate.

    One mean matrix has no interval. Several files of the authors' runs (their script names each ``summary_<time>``)
    give one more entry, "N runs of K edits", with intervals over runs.
    """
    found = {m.name: _summary(m.mean, m.sequences) for m in matrices}
    groups: dict[int, list[np.ndarray]] = {}
    for matrix in matrices:
        if matrix.path.name.startswith("summary"):
            groups.setdefault(matrix.mean.shape[1], []).append(matrix.mean)
    for edits, several in groups.items():
        if len(several) > 1:
            made = {name: replace(one, unit="run") for name, one in _summary(np.stack(several), None).items()}
            found[f"{len(several)} runs of {edits} edits"] = made
    return found


def _summary(R: np.ndarray, sequences: int | None) -> dict[str, Estimate]:
    made = intervals.summary(R, sequences=sequences)
    return {name: measure.estimate for name, measure in made.items() if math.isfinite(measure.estimate.value)}


# ---------------------------------------------------------------------------------------------- the paper's values


def printed(path: Path, state: str = "adapter") -> dict | None:
    """Return the row of paper_values.yaml for a file of this name, or for the base model in it; None if there is none.

    A row fits if the path ends in its ``file``, punctuation aside; the longest match wins.
    """
    whole = f"_{_words(str(path.with_name(stem(path))))}"
    fits = [
        entry
        for entry in paper_values()
        if entry.get("file")
        and (entry["arm"] == "frozen") is (state == "base")
        and whole.endswith(f"_{_words(entry['file'])}")
    ]
    return max(fits, key=lambda entry: len(entry["file"]), default=None)


def _words(text: str) -> str:
    return re.sub(r"[\W_]+", "_", text).strip("_").lower()


# ---------------------------------------------------------------------------------------------- helpers


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(values: Iterable[float]) -> float:
    finite = _finite(values)
    return math.fsum(finite) / len(finite) if finite else math.nan
