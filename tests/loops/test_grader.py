"""The grader is one setting of the loop: reward, filter, frozen baseline, honesty check, faces and tables read it."""

import json
import math
import warnings
from dataclasses import replace

import pytest
from fixtures_seal import INNER, WORDING, MemoryRun, mean, real, trial

from seal_lib.errors import DataError
from seal_lib.generation.contract import Completion
from seal_lib.grading.graders import GRADERS, contains, each, exact_match, grade, ungraded
from seal_lib.knowledge import evaluate, experiment
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops import inner, outer
from seal_lib.loops.domain import Candidate
from seal_lib.loops.policy import Policy
from seal_lib.loops.rewards import REWARDS
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Passage, PassageTrial, Question, Round, SelfEdit, to_dict
from seal_lib.training.jobs import Result

PASSAGE = Passage("p", "France", "Paris is the capital.", (Question("What is the capital?", "Paris"),))
WRONG, RIGHT = "Lyon. The city of Lyon lies on the Rhone.", "Paris. The city of Paris is on the Seine."
TEXTS = ["wrong notes", "right notes", "also wrong"]


class RunsOn:
    """Engine of a model that answers in sentences and runs on: rightly only after training on the right notes."""

    positions = 2048

    def __init__(self, before: str = WRONG):
        self.before = before

    def generate(self, requests, sampling):
        if sampling.n > 1:
            return [[Completion(text, 3, "eos") for text in TEXTS] for _ in requests]
        answers = {None: self.before, "right notes": RIGHT}
        return [[Completion(answers.get(request.adapter, WRONG), 12, "length")] for request in requests]


@pytest.fixture
def loop(monkeypatch):
    """A round of a policy whose engine is :class:`RunsOn`; an "adapter" is the text it was trained on."""

    def play(grader: str, before: str = WRONG, **settings) -> Round:
        def train(policy, candidates, domain, count):
            return [Result(c.id, c.edit.text, [1.0], 1, 1) for c in candidates]

        monkeypatch.setattr(Policy, "generator", lambda policy: RunsOn(before))
        monkeypatch.setattr(inner, "train", train)
        monkeypatch.setattr(Knowledge, "target", lambda domain, unit, text, policy: text)
        monkeypatch.setattr(Policy, "finetuned", lambda policy, run, pairs, outer, **_: (policy, 0.0))
        policy, domain = Policy("untrained", None, None), Knowledge(replace(INNER, grader=grader), WORDING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return outer.restem_round(
                MemoryRun(), policy, [PASSAGE], domain, OuterLoop(samples=3, **settings), index=1, name="r", seed=0
            )[1]

    return play


def test_an_answer_that_runs_on_is_wrong_by_exact_match_and_right_by_containment() -> None:
    assert (exact_match(RIGHT, "Paris"), contains(RIGHT, "Paris"), contains(WRONG, "Paris")) == (0.0, 1.0, 0.0)


def test_the_reward_keeps_the_self_edit_that_the_grader_prefers(loop) -> None:
    by_containment, by_match = loop("contains"), loop("exact")
    assert by_containment.rewards == (0.0, 1.0, 0.0) and by_containment.kept == ("p/1",)
    assert by_match.rewards == (0.0, 0.0, 0.0) and by_match.kept == ("p/0",)  # blind: the first of three ties
    assert loop("f1").kept == ("p/1",) and 0 < loop("f1").rewards[1] < 1
    assert {t.grader for t in by_containment.candidates} == {"contains"}


def test_improvement_and_the_frozen_baseline_read_the_grader(loop) -> None:
    settings = {"reward": "improvement", "filter": "threshold"}
    told = loop("contains", **settings)
    assert told.frozen == {"p": 0.0} and told.rewards == (0.0, 1.0, 0.0) and told.kept == ("p/1",)
    knew = loop("contains", before=RIGHT, reward="improvement")
    assert knew.frozen == {"p": 1.0} and knew.rewards == (0.0, 0.0, 0.0)  # nothing is better than right
    assert loop("exact", before=RIGHT, reward="improvement").frozen == {"p": 0.0}


def test_the_honesty_check_scores_the_selected_by_the_reward_that_selected_them(loop) -> None:
    def again(record: Round, grader: str) -> tuple[list[PassageTrial], ...]:
        return ([replace(t, grader=grader) for t in record.candidates if t.id in record.kept],)

    label = {"protocol": "clean", "model": "m"}
    for grader, value in (("contains", 1.0), ("exact", 0.0)):
        record = loop(grader)
        rows = experiment.reward_rows([outer.Loop(0, (record,), {}, again(record, grader))], **label, grader=grader)
        told = {row["metric"]: row["value"] for row in rows}
        assert told["reward_best_of_k"] == told["reward_selected_fresh_seed"] == value
        assert told["zero_share"] == 1 - value and told["tied_share"] == 1 - value
        assert {row["grader"] for row in rows} == {grader}
    improved = loop("contains", before=RIGHT, reward="improvement")  # accuracy 1 is no improvement on 1
    right = trial("p", [1.0], edit=improved.candidates[1].edit)
    assert experiment.fresh_rewards(improved, [replace(right, grader="contains")]) == {"p": 0.0}


def test_several_selected_self_edits_of_a_passage_count_as_their_mean_and_a_failed_one_not_at_all() -> None:
    record = Round(1, (), (), ())
    trials = [trial("p", [1, 1]), trial("p", [0, 1]), trial("p", [], outcome="diverged"), trial("q", [])]
    assert experiment.fresh_rewards(record, trials) == {"p": 0.75}


def test_tables_and_faces_read_the_grader(loop) -> None:
    trials = [t for t in loop("contains").candidates if t.edit.text == "right notes"]
    for grader, value in (("contains", 1.0), ("exact", 0.0)):
        rows = evaluate.result_rows("x", "arm", trials, protocol="clean", model="m", grader=grader)
        assert {row["metric"]: row["value"] for row in rows}["accuracy"] == value
        face = replace(trials[0], grader=grader)._repr_html_()
        assert f"{value:.0%} right ({grader})" in face and ("#1e9150" in face) is (value == 1)


def test_a_grader_that_calls_somebody_is_one_more_row_asked_once_per_answer(monkeypatch) -> None:
    """And where it does not answer (NaN) the answer is left out, never counted as wrong."""
    asked = []

    def opinion(answer: str, gold: str) -> float:
        asked.append(answer)
        return {"yes": 1.0, "no": 0.0}.get(answer, math.nan)

    monkeypatch.setitem(GRADERS, "judge", each(opinion))
    question = Question("Q?", "gold")
    answers = tuple(grade([(question, text) for text in ("yes", "no", "silence")], "judge"))
    assert asked == ["yes", "no", "silence"]
    judged = PassageTrial("t", "p", "arm", None, 0, answers, "judge")
    assert judged.accuracy == 0.5 == REWARDS["accuracy"](judged, 0.0) and judged.mean("exact") == 0.0
    assert "#888888" in judged._repr_html_()
    again = PassageTrial.from_dict(json.loads(json.dumps(to_dict(judged), allow_nan=False)))
    assert again.accuracy == 0.5 and math.isnan(again.answers[2].grades["judge"])
    silent = replace(judged, answers=answers[2:])
    assert "not graded" in silent._repr_html_() and "nan" not in silent._repr_html_()
    assert math.isnan(silent.accuracy) and math.isnan(REWARDS["improvement"](silent, 0.0))
    by_match = grade([(question, "yes")], "exact")
    assert len(asked) == 3  # not asked where it is not the loop's grader
    with pytest.raises(DataError, match="grader: .* not graded by 'judge'"):
        replace(judged, answers=tuple(by_match)).mean("judge")


def test_an_unknown_grader_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(DataError, match="grader: 'exactly' is not one of exact, contains, f1"):
        replace(INNER, grader="exactly")


# ------------------------------------------------------------------------------- ties and zeros


def record(*groups: list[float]) -> Round:
    trials = [
        trial(f"p{i}", [1.0], name=f"p{i}/{k}", edit=SelfEdit(f"p{i}/{k}", f"p{i}", "x", "m"))
        for i, group in enumerate(groups)
        for k in range(len(group))
    ]
    return Round(2, tuple(trials), tuple(reward for group in groups for reward in group), ())


def test_a_round_reports_ties_of_the_best_and_zeros() -> None:
    nan = math.nan
    told = record([0.5, 0.5, 0.1], [0.0, 0.0], [0.0, nan], [0.9, 0.1, 0.1], [nan, nan])
    assert told.tied == {"p0": True, "p1": True, "p2": False, "p3": False}  # p4 has no reward
    assert told.zero == {"p0": False, "p1": True, "p2": True, "p3": False}
    assert (told.tied_share, told.zero_share, told.undecided_share) == (0.5, 0.5, 0.75)
    assert "50%" in told._repr_html_()
    nothing = Round(1, (), (), ())
    assert math.isnan(nothing.tied_share) and math.isnan(nothing.undecided_share)


def test_a_round_warns_where_the_reward_decides_little() -> None:
    blind, seeing = record([0.5, 0.5], [0.0, 0.0], [0.1, 0.2]), record([0.5, 0.4], [0.0, 0.0])
    with pytest.warns(UserWarning, match="Round 2: the best reward .* 67% of the passages.*grader than 'exact'"):
        outer.warn_if_blind(blind, OuterLoop(), "exact")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outer.warn_if_blind(seeing, OuterLoop(), "exact")  # one half is not above one half
        outer.warn_if_blind(blind, OuterLoop(filter="threshold"), "exact")  # which keeps all that tie
        outer.warn_if_blind(Round(1, (), (), ()), OuterLoop(filter="random"), "exact")
    with pytest.warns(UserWarning, match="is 0 for 100%"):
        outer.warn_if_blind(record([0.0, 0.0]), OuterLoop(filter="threshold"), "exact")


def test_the_warning_comes_from_the_round_itself(loop, monkeypatch) -> None:
    seen, graders = [], []
    monkeypatch.setattr(outer, "warn_if_blind", lambda record, _, grader: seen.append(record) or graders.append(grader))
    loop("exact")
    assert [r.undecided_share for r in seen] == [1.0] and graders == ["exact"]


# ---------------------------------------------------------------------------------- released answers


def test_on_the_authors_answers_exact_match_sees_almost_nothing() -> None:
    """Their base model's answers after training on its own notes, one self-edit each, judged by GPT-4.1 (Table 2)."""
    articles = json.loads(real("seal_released", "query_eval_base.json").read_text(encoding="utf-8"))["articles"]
    trials, judged = [], []
    for number, article in enumerate(articles):
        (completion,) = article["completions"]
        answers = completion["questions"]
        graded = tuple(
            grade([(Question(a["question"], a["answer"]), a["adapter_answer"]) for a in answers], "contains")
        )
        trials.append(PassageTrial(str(number), str(number), "own_untrained", None, 0, graded, "contains"))
        judged += [float(a["adapter_correct"]) for a in answers]

    def share(grader: str) -> float:
        return mean(score for t in trials for score in t.scores(grader))

    assert len(judged) == 974
    assert (share("exact"), share("contains"), mean(judged)) == pytest.approx((0.022, 0.302, 0.407), abs=5e-4)
    assert sum(t.mean("exact") == 0 for t in trials) == 181
    assert sum(t.accuracy == 0 for t in trials) < 100  # by the loop's grader most passages have something to compare


def test_a_candidate_without_an_edit_is_graded_alike(loop) -> None:
    loop("contains")
    given = [
        Candidate("c", PASSAGE, SelfEdit("c", "p", "right notes", "m"), "arm", 0),
        Candidate("d", PASSAGE, None, "arm", 0, trains=False),
    ]
    for one in inner.try_all(Policy("p", None, None), given, domain=Knowledge(replace(INNER, grader="f1"), WORDING)):
        assert one.grader == "f1" and one.accuracy == one.mean("f1") and (one.accuracy > 0) is (one.id == "c")


def test_a_question_that_was_not_asked_is_ungraded_and_not_blank() -> None:
    answer = ungraded(Question("Who?", "Kale"), "exact")
    assert answer.text == "" and not answer.blank  # a blank answer is one that the model gave
    assert all(grade != grade for grade in answer.grades.values()) and "exact" in answer.grades
