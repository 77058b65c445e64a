"""Grade whether passages support the lines of self-edits: by rules, by a judge, in the made world by truth.

Each self-edit is a trial whose answers are its lines, graded 1 (grounded), 0 (not) or NaN (no verdict), so that graders
are compared as those of answers are (`seal_lib.grading.agreement`). A call that failed is no verdict.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seal_lib.grading import agreement
from seal_lib.grading.judge import Judge
from seal_lib.knowledge import world
from seal_lib.records import Answer, Passage, PassageTrial, SelfEdit
from seal_lib.report import stats
from seal_lib.report.words import percent, units
from seal_lib.runs.work import Recorder
from seal_lib.store.review import lacking, lines_of

EXPERIMENT = "own_documents/grounding"
RUBRIC = "grounded"  # what a judge of lines reads (`seal_lib/grading/rubrics.yaml`)
BY_RULES, TRUTH = "rules", "truth"
JUDGE = agreement.JUDGES[0]
WORDS = {1.0: "grounded", 0.0: "not grounded"}  # any other grade is no verdict


def by_truth(line: str, passage: Passage) -> float:
    """Return 1 if a line is true in the made world, else 0; NaN for other passages, or a line in none of its forms."""
    if not passage.facts:
        return math.nan
    told = world.describe_notes(line, passage)
    return math.nan if told["other"] else float(not told["false"])


#: grader that asks nobody → function of (line, passage) that returns a grade
LINE_GRADERS: dict[str, Callable[[str, Passage], float]] = {
    BY_RULES: lambda line, passage: float(not lacking(line, passage)),
    TRUTH: by_truth,
}


def graded(
    run: Recorder,
    arm: str,
    pairs: Sequence[tuple[Passage, SelfEdit | None]],
    judge: Judge | None,
    *,
    by: Sequence[str] = (BY_RULES,),
    twice: bool = False,
) -> list[PassageTrial]:
    """Return a trial per self-edit that has lines, in the order given.

    Args:
        by: keys of `LINE_GRADERS`.
        judge: also grades each line; None: no judge.
        twice: ask the judge once more, so that it can be compared with itself.
    """
    trials = []
    for number, (passage, edit) in enumerate(pairs):
        lines = lines_of(edit)
        answers = tuple(
            Answer(passage.title, passage.text, line, {name: LINE_GRADERS[name](line, passage) for name in by}, False)
            for line in lines
        )
        if lines:
            trials.append(PassageTrial(f"{number}/{passage.id}", passage.id, arm, edit, 0, answers, by[0]))
    if judge is None or not trials:
        return trials
    who = agreement.JUDGES if twice else agreement.JUDGES[:1]
    return agreement.judge_all(run, {0: trials}, judge, phase=f"judge/{arm}", who=who)[0]


def rows(by_arm: Mapping[str, Sequence[PassageTrial]], *, protocol: str = "", model: str = "") -> list[dict]:
    """Return rows ``grounded:grader``, ``agree:a:b`` and ``only:a:b``, with intervals over passages.

    ``grounded`` is the share of an arm's lines that a grader calls so (dropped: those without a verdict); the others
    are over all lines that both graded.
    """
    label = {"protocol": protocol, "model": model}
    loops = {arm: {0: trials} for arm, trials in by_arm.items() if trials}
    there = agreement.graders_of(loops)
    graders = [name for name in (*LINE_GRADERS, *agreement.JUDGES) if name in there]
    found = []
    for arm, trials in by_arm.items():
        for grader in graders:
            values: dict[str, list[float]] = {}
            for trial in trials:
                values.setdefault(trial.unit_id, []).extend(answer.grades[grader] for answer in trial.answers)
            estimate = stats.mean_over_units(values, stats.SHARE)
            found.append(estimate.row(EXPERIMENT, arm, f"grounded:{grader}", grader=grader, **label))
    return found + agreement.agreement_rows(EXPERIMENT, loops, graders, **label)


def in_words(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for what each grader calls grounded, and for how often every two agree."""
    told = []
    for row in results:
        kind, _, rest = row["metric"].partition(":")
        e = stats.Estimate.of_row(row)
        if kind == "grounded":
            silent = f"; lines without a verdict: {e.dropped}" if e.dropped else ""
            told.append(f"{row['arm']}, grounded by {rest}: {percent(e)} of the lines{silent}")
        elif kind == "agree" and e.n:
            a, b = rest.split(":")
            told.append(f"{a} and {b} agree on {percent(e)} of the lines that both judged ({units(e)})")
    return told
