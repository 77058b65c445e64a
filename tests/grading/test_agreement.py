"""How much the grader decides: levels, agreement, test–retest, and the answers on which graders differ."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from fixtures_seal import MemoryRun, trial

from seal_lib.grading import agreement
from seal_lib.grading.agreement import agreement_rows, disagreements, graders_of, judge_all, level_rows
from seal_lib.grading.judge import Judge
from seal_lib.knowledge.evaluate import recorded_trials
from seal_lib.records import to_dict
from seal_lib.report import plots
from seal_lib.runs.journal import Journal

LABEL = {"protocol": "clean", "model": "m"}


def graded(passage: str, **grades: list[float]):
    """A trial whose answers have the given grades by grader."""
    made = trial(passage, next(iter(grades.values())))
    answers = tuple(
        replace(a, text=f"{passage} {i}", grades={name: several[i] for name, several in grades.items()})
        for i, a in enumerate(made.answers)
    )
    return replace(made, answers=answers)


ARMS = {
    "frozen": {0: [graded("p", exact=[0, 0], contains=[1, 0]), graded("q", exact=[0, 1], contains=[1, 1])]},
    "own_untrained": {
        0: [graded("p", exact=[1, 1], contains=[1, 1]), graded("q", exact=[0, 0], contains=[0, math.nan])],
        1: [graded("p", exact=[1, 0], contains=[0, 0])],
    },
}


def told(rows: list[dict]) -> dict:
    return {(r["arm"], r["metric"], r["grader"]): r for r in rows}


def test_levels_are_means_of_passages_by_every_grader() -> None:
    rows = told(level_rows("x", ARMS, ["exact", "contains"], **LABEL))
    assert rows["frozen", "accuracy:exact", "exact"]["value"] == 0.25
    assert rows["frozen", "accuracy:contains", "contains"]["value"] == 0.75
    own = rows["own_untrained", "accuracy:exact", "exact"]
    assert (own["value"], own["loops"], own["n"]) == (pytest.approx((0.75 + 0) / 2), 2, 2)
    assert rows["own_untrained", "accuracy:contains", "contains"]["value"] == pytest.approx((0.5 + 0) / 2)


def test_agreement_counts_answers_that_both_graded_within_their_passages() -> None:
    rows = told(agreement_rows("x", ARMS, ["exact", "contains"], **LABEL))
    agree = rows[agreement.ALL, "agree:exact:contains", "exact, contains"]
    # p: 1 0 | 1 1 | 0 1, q: 0 1 | 1 and one that containment did not grade
    assert agree["value"] == pytest.approx((1 + 2 + 1 + 1 + 1) / 9) and agree["n"] == 2
    assert rows[agreement.ALL, "only:contains:exact", "contains, exact"]["value"] == pytest.approx(2 / 9)
    assert rows[agreement.ALL, "only:exact:contains", "exact, contains"]["value"] == pytest.approx(1 / 9)
    assert len(rows) == 3 and not math.isnan(agree["low"])


def test_f1_counts_as_right_from_one_half() -> None:
    arms = {"a": {0: [graded("p", f1=[0.5, 0.49], exact=[1, 0]), graded("q", f1=[0.4], exact=[0])]}}
    rows = told(agreement_rows("x", arms, ["exact", "f1"], **LABEL))
    assert rows[agreement.ALL, "agree:exact:f1", "exact, f1"]["value"] == 1.0


def test_the_answers_on_which_graders_differ_are_shown_once() -> None:
    shown = disagreements(ARMS, ["exact", "contains"], 10)
    assert [(s["arm"], s["answer"]) for s in shown] == [("frozen", "p 0"), ("frozen", "q 0")]
    assert (
        shown[0]["exact"] == 0 and shown[0]["contains"] == 1 and len(disagreements(ARMS, ["exact", "contains"], 1)) == 1
    )


def test_a_judge_is_asked_twice_about_each_answer_and_what_it_said_is_recorded() -> None:
    class Fickle(Judge):
        def verdicts(self, pairs):
            found = [math.nan if answer == "p 1" else float(answer[0] == "p") for _, answer in pairs]
            return [1 - v if self.repeat and a == "q 0" else v for v, (_, a) in zip(found, pairs, strict=True)]

    run = MemoryRun()
    arms = {arm: judge_all(run, loops, Fickle("nobody"), phase=f"judge/{arm}") for arm, loops in ARMS.items()}
    assert list(run.phases) == ["judge/frozen", "judge/own_untrained"] and len(run.phases["judge/own_untrained"]) == 3
    assert run.phases["judge/frozen"]["0/p/arm"] == {"judge": [1.0, None], "judge again": [1.0, None]}
    assert graders_of(arms) == ["exact", "contains", "judge", "judge again"] and graders_of(ARMS) == [
        "exact",
        "contains",
    ]
    (p, q) = arms["frozen"][0]
    assert math.isnan(p.answers[1].grades["judge"]) and p.answers[1].grades["exact"] == 0
    rows = told(agreement_rows("x", arms, graders_of(arms), **LABEL))
    again = rows[agreement.ALL, "agree:judge:judge again", "judge, judge again"]
    assert again["value"] == pytest.approx(
        5 / 7
    )  # twice another word about "q 0", of seven that it said anything about


def test_a_run_s_trials_are_found_by_arm_and_seed(tmp_path) -> None:
    rows = [(f"seed_{s}/evaluate/frozen", trial(p, [s])) for s in (0, 1) for p in "pq"]
    rows += [("seed_0/evaluate/external", trial("p", [1])), ("external/write", trial("p", [0]))]
    lines = [{"phase": phase, "unit": t.unit_id, **to_dict(t)} for phase, t in rows]
    Journal(tmp_path / "rows.jsonl").append(lines)
    found = recorded_trials(tmp_path, ["external", "frozen", "gold_notes"])
    assert list(found) == ["external", "frozen"] and list(found["frozen"]) == [0, 1]
    assert [t.accuracy for t in found["frozen"][1]] == [1, 1] and [t.unit_id for t in found["external"][0]] == ["p"]


def test_the_figure_has_a_mark_for_every_arm_and_grader() -> None:
    import matplotlib.pyplot as plt

    rows = level_rows("x", ARMS, ["exact", "contains"], **LABEL)
    with plots.style():
        _, ax = plt.subplots()
        plots.accuracy_by_grader(pd.DataFrame(rows), ax)
    marks = [line for line in ax.get_lines() if str(line.get_gid()).startswith("value:")]
    assert sorted(round(float(line.get_xdata()[0]), 3) for line in marks) == [0.25, 0.25, 0.375, 0.75]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["exact", "contains"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["frozen model", "untrained self-edits"]
    plt.close("all")
