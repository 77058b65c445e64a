"""Rewards that no self-edit is tried for: rubrics by rule and by a judge, finalists, agreement and cost."""

import math
import re
from dataclasses import replace

import pytest
from fixtures_seal import DOMAIN, INNER, WORDING, MemoryRun, made, plain_passage, seedling, trial

from seal_lib.errors import DataError, SealError
from seal_lib.grading.judge import rating
from seal_lib.knowledge import proxy
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.rubrics import RUBRICS, Rubric, rubric_of
from seal_lib.loops import outer
from seal_lib.loops.domain import Candidate, Rejected
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.updates import Update, kept_of
from seal_lib.plan.checks import check
from seal_lib.records import PassageTrial, Round, SelfEdit
from seal_lib.report import stats

NAN = math.nan


def judge(server) -> Rubric:
    return rubric_of("judge", server.name, "", 10_000, 600.0, "cpu", "float32")


# ------------------------------------------------------------------------------------------- by a rule


def test_the_rules_order_notes_as_they_say() -> None:
    (passage,) = made(1)
    gold, copy, remark = (passage.references[name] for name in ("gold", "verbatim", "remark"))
    false = gold.replace(passage.facts[0][2], "Nowhere")
    worth = {name: [rule(passage, text) for text in (gold, false, copy, remark)] for name, rule in RUBRICS.items()}
    assert worth["facts"] == [1.0, pytest.approx(25 / 36), 0.0, 0.0]  # 5 of 6 facts, and 1 line of 6 is false
    assert RUBRICS["likeness"](passage, passage.text) == 1.0 > worth["likeness"][2] > worth["likeness"][0]
    assert worth["likeness"][0] > worth["likeness"][3] > 0
    longer = gold + "\n" + gold
    assert RUBRICS["length"](passage, longer) > worth["length"][0] and RUBRICS["length"](passage, longer * 9) == 1.0


def test_an_empty_text_is_worth_nothing_and_wrong_names_are_refused() -> None:
    (passage,) = made(1)
    assert Rubric("length").rate([(passage, " \n"), (passage, "a word")], lambda **_: None)[0] == 0.0
    with pytest.raises(DataError, match="rubric: 'taste' is not one of facts, length, likeness, judge"):
        Rubric("taste")
    with pytest.raises(DataError, match="name a model, or MODEL@URL, in the parameter rater"):
        rubric_of("judge", "", "", 1, 1.0, "cpu", "float32")
    with pytest.raises(DataError, match="facts are known of the made world only, not of passage p"):
        Rubric("facts").rate([(plain_passage(), "a")], lambda **_: None)
    with pytest.raises(DataError, match="need a rubric"):
        DOMAIN.rate([Candidate("a", passage, SelfEdit("a", passage.id, "x", "p"), "", 0)], lambda **_: None)


# ------------------------------------------------------------------------------------------- by a judge


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("length: 5\ndiversity: 5\nquality: 5\ncorrectness: 5", 1.0),
        ("Length: 1\nDiversity: 1\nQuality: 1\nCorrectness: 1", 0.0),
        ("**Length (1-5):** 4/5\n- Diversity: **2**\nquality: 3 because\nCorrectness: 5", 0.625),
        ("<think>length: 1</think>length: 5 diversity: 5\nquality: 5\ncorrectness: 5", 1.0),
        ("length: 1\nlength: 5\ndiversity: 5\nquality: 5\ncorrectness: 5", 1.0),  # the last
        ("length: 5\ndiversity: 5\nquality: 5", None),
        ("length: 9\ndiversity: 5\nquality: 5\ncorrectness: 5", None),
        ("length: -5\ndiversity: 5\nquality: 5\ncorrectness: 5", None),
        ("5 5 5 5", None),
        ("", None),
    ],
)
def test_a_rating_has_four_marks_and_anything_else_is_none(reply: str, says: float | None) -> None:
    assert math.isnan(rating(reply)) if says is None else rating(reply) == says


def marks(mark: int) -> str:
    return f"length: {mark}\ndiversity: {mark}\nquality: {mark}\ncorrectness: {mark}"


@pytest.mark.parametrize("fault", [(500, {}, ""), (429, {}, ""), "drop", "cut", "garbage", "maybe", "empty"], ids=str)
def test_a_judge_that_fails_gives_no_rating_and_it_is_counted(serve, fault) -> None:
    server = serve(lambda prompt, nth: fault if "bad notes" in prompt else marks(5 if "best" in prompt else 2))
    run, passages = MemoryRun(), [plain_passage(name="a"), plain_passage(name="b")]
    edits = [
        SelfEdit(f"{p.id}/{k}", p.id, text, "policy")
        for p in passages
        for k, text in enumerate(("some notes", "bad notes", "best notes", ""))
    ]
    domain = Knowledge(INNER, WORDING, rubric=judge(server))
    said = outer.rate_edits(run, None, edits, passages, domain, phase="rate")
    assert [said[f"a/{k}"] for k in (0, 2, 3)] == [0.25, 1.0, 0.0] and math.isnan(said["a/1"])
    assert run.counts["unrated"] == 2 and run.counts["rated"] == 8
    assert "Some text." in server.bodies[0]["messages"][0]["content"]
    assert [e.id for e in outer.finalists_of(edits, said, 1)] == ["a/2", "b/2"]
    assert [e.id for e in outer.finalists_of(edits, said, 3)] == ["a/0", "a/2", "a/3", "b/0", "b/2", "b/3"]


# --------------------------------------------------------------------------------------------- in a round

WORTH = {"gold": 1.0, "half": 0.5, "remark": 0.0}


@pytest.fixture
def written(monkeypatch):
    """Self-edits that are the hand-written notes of three kinds, worst first."""

    def write(run, policy, units, *_, **__) -> list[SelfEdit]:
        return [SelfEdit(f"{p.id}/{k}", p.id, p.references[w], "policy") for p in units for k, w in enumerate(WORTH)]

    monkeypatch.setattr(outer, "write_self_edits", write)


def practised(settings: OuterLoop, rubric: str) -> tuple[MemoryRun, list]:
    run, passages = MemoryRun(), made(3)
    domain = Knowledge(INNER, WORDING, rubric=Rubric(rubric))
    groups, _ = outer.practise(run, Policy("p", *seedling()), passages, domain, settings, phase="r", seed=0)
    return run, groups


def test_by_a_rubric_nothing_is_trained_and_the_highest_rating_is_kept(written) -> None:
    settings = OuterLoop(samples=3, reward="rubric")
    run, groups = practised(settings, "facts")
    assert [*run.phases] == ["r/rate"] and "trained" not in run.counts
    assert [g.rewards for g in groups] == [(1.0, 0.5, 0.0)] * 3
    assert [e.id for e in kept_of(groups, settings, 0)] == [f"{p.id}/0" for p in made(3)]
    record = outer.as_round(1, groups, Update(None, (), 0.0), settings, {})
    assert {t.outcome for t in record.candidates} == {"untried"} and record.by_seed == ()
    assert record.rewards == (1.0, 0.5, 0.0) * 3 and record.tied_share == 0.0
    assert outer.fresh_rewards(record, ()) == {}


def test_only_finalists_are_trained_and_the_others_are_never_kept(written) -> None:
    settings = OuterLoop(samples=3, finalists=2)
    run, groups = practised(settings, "likeness")  # ranks copies first, so not by worth
    assert [len(run.phases[name]) for name in ("r/rate", "r/score")] == [9, 6]
    for group in groups:
        tried = [not math.isnan(reward) for reward in group.rewards]
        assert sum(tried) == 2 and [t.outcome == "untried" for (t,) in group.trials] == [not one for one in tried]
        kept = kept_of([group], settings, 0)
        assert tried[[e.id for e in group.edits].index(kept[0].id)]
    record = outer.as_round(1, groups, Update(None, (), 0.0), settings, {})
    assert all(len(several) == 2 for several in record.grouped.values())


def test_the_reliability_of_finalists_leaves_out_those_that_were_only_rated(written) -> None:
    settings = OuterLoop(samples=3, finalists=2, reward_seeds=2)
    _, groups = practised(settings, "likeness")
    record = outer.as_round(1, groups, Update(None, (), 0.0), settings, {})
    assert [[len(one) for one in several] for several in record.repeats.values()] == [[2, 2]] * 3
    assert stats.reliability(record.repeats.values()).n == 3


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(DataError, match="finalists: 2 cannot be tried, by reward rubric none is"):
        OuterLoop(reward="rubric", finalists=2)
    with pytest.raises(DataError, match="finalists: 6 cannot be tried, there are 5"):
        OuterLoop(finalists=6)
    assert OuterLoop(finalists=5).finalists == 5


def test_a_domain_that_says_nothing_of_texts_is_refused_and_a_text_that_cannot_be_read_has_no_rating() -> None:
    class Silent:
        name = "silent"

    with pytest.raises(DataError, match="the domain silent cannot rate a text"):
        outer.rate_edits(MemoryRun(), None, [], [], Silent(), phase="r")

    class Odd(Silent):
        def read(self, unit, edit, arm, seed):
            return Rejected("unread") if edit.text == "?" else Candidate("same", unit, edit, arm, seed)

        def rate(self, candidates, count):
            return [0.7] * len(candidates)

    edits = [SelfEdit(f"a/{k}", "a", text, "p") for k, text in enumerate(("x", "?", "x"))]
    said = outer.rate_edits(MemoryRun(), None, edits, [plain_passage(name="a")], Odd(), phase="r")
    assert said["a/0"] == said["a/2"] == 0.7 and math.isnan(said["a/1"])


# ------------------------------------------------------------------------------------- agreement and cost


def tried(passage: str, k: int, right: list[int], steps: int = 7, tokens: int = 100) -> PassageTrial:
    edit = SelfEdit(f"{passage}/{k}", passage, f"text {k}", "policy")
    return replace(trial(passage, right, edit=edit, name=edit.id), steps=steps, tokens=tokens)


def record(rewards: dict[str, list[float]], seeds: int = 1) -> Round:
    trials = tuple(tried(p, k, [r]) for p, several in rewards.items() for k, r in enumerate(several))
    flat = tuple(r for several in rewards.values() for r in several)
    return Round(1, trials, flat, (), by_seed=tuple((r,) * seeds for r in flat))


LABEL = {"protocol": "clean", "model": "m"}


def by_metric(rows: list[dict], arm: str) -> dict[str, dict]:
    return {row["metric"]: row for row in rows if row["arm"] == arm}


def test_agreement_is_within_passages_and_by_the_first_of_the_best() -> None:
    real = record({"a": [0.0, 0.5, 1.0], "b": [1.0, 0.5, 0.0], "c": [0.5, 0.5, 0.5]})
    ratings = {
        "a/0": 0.1,
        "a/1": 0.2,
        "a/2": 0.9,
        "b/0": 0.1,
        "b/1": 0.2,
        "b/2": 0.9,
        "c/0": 0.1,
        "c/1": 0.3,
        "c/2": 0.2,
    }
    found = by_metric(proxy.agreement_rows({0: real}, {"judge": {0: ratings}}, grader="exact", **LABEL), "rubric_judge")
    assert found["rank_correlation"]["value"] == 0.0 and found["rank_correlation"]["n"] == 2  # +1 and −1; c is tied
    assert found["rank_correlation"]["dropped"] == 1
    assert found["same_pick"]["value"] == pytest.approx(1 / 3)  # a; of c the loop picks the first
    assert found["reward_of_pick"]["value"] == 0.5 == found["reward_mean"]["value"] and found["pick_gain"]["value"] == 0


def test_what_has_no_rating_is_in_no_agreement_and_loops_of_one_policy_are_more_passages() -> None:
    first, second = record({"a": [0.0, 1.0, 0.5]}), record({"b": [0.0, 1.0]})
    ratings = {0: {"a/0": 0.2, "a/1": NAN, "a/2": 0.9}, 1: {"b/0": 0.1, "b/1": 0.9}}
    rows = proxy.agreement_rows({0: first, 1: second}, {"length": ratings}, grader="exact", **LABEL)
    found = by_metric(rows, "rubric_length")
    assert (found["same_pick"]["value"], found["same_pick"]["n"], found["same_pick"]["loops"]) == (1.0, 2, 1)
    assert found["reward_of_pick"]["value"] == pytest.approx((0.5 + 1.0) / 2)


def test_ranks_of_ties_are_their_mean_and_a_list_that_does_not_vary_has_none() -> None:
    assert stats.rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert stats.rank_correlation([1, 2, 3, NAN], [3, 2, 1, 9]) == pytest.approx(-1)
    assert stats.rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(stats.rank_correlation([1, 1], [1, 2])) and math.isnan(stats.rank_correlation([1], [1]))


def test_costs_are_of_rewards_alone_and_a_gain_that_may_be_none_has_no_price() -> None:
    real, rated = record({"a": [0.0, 1.0]}, seeds=3), record({"a": [0.2, 0.9]})
    untried = tuple(replace(t, outcome="untried", answers=(), steps=0, tokens=0) for t in rated.candidates)
    rated = replace(rated, candidates=untried, by_seed=(), reward="rubric")
    asked: list[str] = []
    levels = [
        stats.Estimate(0.2, low, 0.3, 9).row("knowledge/proxy_reward", f"{arm} - own_untrained", "difference")
        for arm, low in (("seal_round_1", 0.1), ("seal_prefilter", -0.1))
    ]
    records = {"seal_round_1": {0: [real, real]}, "seal_proxy": {0: [rated]}, "seal_prefilter": {0: [real]}}
    rows = proxy.cost_rows(records, levels, lambda phases: asked.append(phases) or 6.0, **LABEL)
    found = {arm: {m: row["value"] for m, row in by_metric(rows, arm).items()} for arm in records}
    assert found["seal_round_1"] == {
        "inner_loops": 12,
        "tokens_reward": 1200,
        "rated": 0,
        "seconds_reward": 6,
        "inner_loops_per_point": 0.6,
    }
    assert found["seal_proxy"] == {"inner_loops": 0, "tokens_reward": 0, "rated": 2, "seconds_reward": 6}
    assert "inner_loops_per_point" not in found["seal_prefilter"]
    price = by_metric(rows, "seal_round_1")["inner_loops_per_point"]
    assert (price["low"], price["high"]) == (pytest.approx(0.4), pytest.approx(1.2))
    (pattern, *_) = asked
    for phase, counted in (
        ("seed_0/seal_round_1_round_2/score_1", True),
        ("seed_0/seal_round_1_round_1/rate", True),
        ("seed_0/seal_round_1_round_1/sample", False),
        ("seed_0/evaluate/seal_round_1", False),
    ):
        assert bool(re.fullmatch(pattern, phase)) == counted, phase


def test_every_way_has_its_reward_and_its_rubric() -> None:
    good, poor = Rubric("facts"), Rubric("length")
    ways = proxy.ways(DOMAIN, OuterLoop(), 2, good, poor, 2)
    assert [*ways] == ["seal_round_2", "seal_proxy", "seal_poor_proxy", "seal_prefilter"]
    found = {arm: (domain.rubric, outer.reward, outer.finalists) for arm, (domain, outer) in ways.items()}
    assert found == {
        "seal_round_2": (None, "accuracy", 0),
        "seal_proxy": (good, "rubric", 0),
        "seal_poor_proxy": (poor, "rubric", 0),
        "seal_prefilter": (good, "accuracy", 2),
    }


def test_parameters_of_a_rubric_fit_each_other() -> None:
    known = {"passages": "world:heldout", "rubric": "facts", "poor_rubric": "length", "rater": ""}
    check(known)
    for changes, says in (
        ({"rubric": "judge"}, "name a model, or MODEL@URL, in the parameter rater"),
        ({"rater": "m@http://host/v1"}, "is named, but no rubric is judge"),
        ({"passages": "mine.json"}, "facts are known of the made world only"),
    ):
        with pytest.raises(SealError, match=says):
            check(known | changes)
