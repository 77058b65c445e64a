"""Agreement of graders: the same answers graded by several graders, the accuracy of each arm, and pairwise agreement.

An answer counts as right if its grade is at least one half; only F1 gives grades between 0 and 1. Intervals are over
passages (and loops), since answers about one passage are not independent, whatever the arm.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations, permutations
from operator import methodcaller

from seal_lib.generation.thoughts import without_thoughts
from seal_lib.grading.graders import ALWAYS, judged
from seal_lib.grading.judge import Judge
from seal_lib.records import Answer, PassageTrial, Question, values_of
from seal_lib.report import stats
from seal_lib.report.arms import arm_label
from seal_lib.report.words import Rows, bullets, percent
from seal_lib.runs.work import Recorder

#: the grades of the judge, and those of the same judge asked a second time
JUDGES = ("judge", "judge again")
ALL = "all answers"

#: the trials of an arm by loop, i.e. {loop: trials}
Loops = Mapping[int, Sequence[PassageTrial]]


def judge_all(
    run: Recorder, loops: Loops, judge: Judge, *, phase: str, who: Sequence[str] = JUDGES
) -> dict[int, list[PassageTrial]]:
    """Return the trials of an arm with the judge's grades added, under each name in ``who``; recorded as ``phase``.

    The n-th name in ``who`` is the n-th time that the judge is asked.
    """
    trials = [trial for several in loops.values() for trial in several]
    names = [f"{loop}/{trial.id}" for loop, several in loops.items() for trial in several]
    by_name = dict(zip(names, trials, strict=True))

    def verdicts(part: Sequence[str]) -> list[dict]:
        answers = [answer for name in part for answer in by_name[name].answers]
        pairs = [(Question(a.question, a.gold), without_thoughts(a.text)[0].strip()) for a in answers]
        asked = replace(judge, count=run.count)
        found = {name: iter(judged(pairs, replace(asked, repeat=asked.repeat + n))) for n, name in enumerate(who)}
        return [
            {name: [next(several) for _ in by_name[one].answers] for name, several in found.items()} for one in part
        ]

    rows = iter(run.map(phase, names, verdicts, chunk=64))
    return {loop: [_regraded(trial, next(rows)) for trial in several] for loop, several in loops.items()}


def _regraded(trial: PassageTrial, row: Mapping[str, Sequence[float | None]]) -> PassageTrial:
    more = {name: [math.nan if grade is None else grade for grade in grades] for name, grades in row.items()}
    given = [{name: grades[i] for name, grades in more.items()} for i in range(len(trial.answers))]
    both = zip(trial.answers, given, strict=True)
    return replace(trial, answers=tuple(replace(answer, grades=answer.grades | own) for answer, own in both))


def _answers(arms: Mapping[str, Loops]) -> Iterator[tuple[str, str, Answer]]:
    """Yield (arm, id of the passage, answer) for every answer."""
    for arm, loops in arms.items():
        for trial in chain(*loops.values()):
            yield from ((arm, trial.unit_id, answer) for answer in trial.answers)


def graders_of(arms: Mapping[str, Loops]) -> list[str]:
    """Return the graders that graded every answer, those without cost first."""
    graded = [set(answer.grades) for _, _, answer in _answers(arms)]
    common = set.intersection(*graded) if graded else set()
    return sorted(common, key=lambda name: ([*ALWAYS, *JUDGES].index(name) if name in (*ALWAYS, *JUDGES) else 99, name))


def level_rows(experiment: str, arms: Mapping[str, Loops], graders: Sequence[str], **label: str) -> list[dict]:
    """Return the rows ``accuracy:<grader>`` of every arm, means over passages; trials without a score are dropped.

    ``label`` is protocol and model, here and below.
    """
    rows = []
    for arm, loops in arms.items():
        for grader in graders:
            estimate = stats.mean_over_loops(values_of(loops, methodcaller("mean", grader)), stats.SHARE)
            rows.append(estimate.row(experiment, arm, f"accuracy:{grader}", grader=grader, **label))
    return rows


def agreement_rows(experiment: str, arms: Mapping[str, Loops], graders: Sequence[str], **label: str) -> list[dict]:
    """Return rows of the agreement of every two graders over the answers of all arms that both graded.

    ``agree:a:b``, one per pair, is the share of answers that both call right or both call wrong. ``only:a:b``, one per
    ordered pair, is the share that a calls right and b wrong. For a judge that was asked twice, ``agree`` is the
    test–retest agreement.
    """
    rows = []
    for a, b in permutations(graders, 2):
        measures: dict[str, Callable[[bool, bool], bool]] = {f"only:{a}:{b}": lambda x, y: x and not y}
        if list(graders).index(a) < list(graders).index(b):
            measures[f"agree:{a}:{b}"] = lambda x, y: x == y
        for metric, of in measures.items():
            estimate = stats.ratio_over_loops({0: _counts(arms, a, b, of)})
            rows.append(estimate.row(experiment, ALL, metric, grader=f"{a}, {b}", **label))
    return rows


def _counts(
    arms: Mapping[str, Loops], a: str, b: str, of: Callable[[bool, bool], bool]
) -> dict[str, tuple[float, float]]:
    """Return for each passage (number of answers for which ``of`` holds, number of answers that both graded)."""
    found: dict[str, tuple[float, float]] = {}
    for _, passage, answer in _answers(arms):
        grades = answer.grades[a], answer.grades[b]
        if not any(map(math.isnan, grades)):
            holds, both = found.get(passage, (0.0, 0.0))
            found[passage] = (holds + of(*(grade >= 0.5 for grade in grades)), both + 1)
    return found


def disagreements(arms: Mapping[str, Loops], graders: Sequence[str], limit: int) -> list[dict]:
    """Return the first ``limit`` distinct answers that some graders call right and others wrong, with their grades."""
    found: dict[tuple[str, str], dict] = {}
    for arm, _, answer in _answers(arms):
        grades = {name: answer.grades[name] for name in graders}
        if len({grade >= 0.5 for grade in grades.values() if not math.isnan(grade)}) == 2:
            about = {"arm": arm, "question": answer.question, "answer": answer.text, "gold": answer.gold}
            found.setdefault((answer.question, answer.text), about | grades)
    return list(found.values())[:limit]


def in_words(rows: Rows) -> str:
    """Return as Markdown how often every two graders agree, and which arms they rank in a different order."""
    levels: dict[str, dict[str, float]] = {}
    said = []
    for row in rows:
        kind, _, rest = row["metric"].partition(":")
        if kind == "accuracy":
            levels.setdefault(rest, {})[row["arm"]] = row["value"]
        elif kind == "agree":
            first, second = rest.split(":")
            said.append(f"**{first}** and **{second}** agree on {percent(stats.Estimate.of_row(row))} of the answers.")
    turned = [
        f"**{arm_label(a)}** and **{arm_label(b)}** ({first}: {100 * one[a]:.1f} and {100 * one[b]:.1f} %, "
        f"{second}: {100 * two[a]:.1f} and {100 * two[b]:.1f} %)"
        for (first, one), (second, two) in combinations(levels.items(), 2)
        for a, b in combinations(one, 2)
        if (one[a] - one[b]) * (two[a] - two[b]) < 0
    ]
    if turned:
        said.append(f"Graders put these arms in another order: {'; '.join(turned)}.")
    elif len(levels) > 1:
        said.append("Every grader puts the arms in the same order.")
    return bullets(said)
