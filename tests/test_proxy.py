"""Rewards that no self-edit is tried for: rubrics by rule and by a judge, finalists, agreement and cost."""

import math

import pytest
from fixtures_seal import DOMAIN, INNER, WORDING, MemoryRun, made, plain_passage, seedling

from seal_lib.errors import DataError
from seal_lib.grading.rating import rating
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.rubrics import RUBRICS, Rubric, rubric_of
from seal_lib.loops import outer
from seal_lib.loops.domain import Candidate, Rejected
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.updates import Update, kept_of
from seal_lib.records import SelfEdit

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
    edits = [SelfEdit(f"{p.id}/{k}", p.id, text, "policy") for p in passages
             for k, text in enumerate(("some notes", "bad notes", "best notes", ""))]  # fmt: skip
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
    record = outer.round_of(1, groups, Update(None, (), 0.0), settings, {})
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
    record = outer.round_of(1, groups, Update(None, (), 0.0), settings, {})
    assert all(len(several) == 2 for several in record.grouped.values())


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
