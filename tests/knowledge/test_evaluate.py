"""The table: columns, macro and micro by hand, paired differences, and every arm once on the shipped model."""

import math
import random
from dataclasses import replace

import pytest
from fixtures_seal import DOMAIN, MemoryRun, made, mean, seedling, trial

from seal_lib.errors import DataError
from seal_lib.knowledge import experiment
from seal_lib.knowledge.data import batches
from seal_lib.knowledge.evaluate import BASELINES, difference_rows, edit_rows, evaluate_arm, result_rows
from seal_lib.knowledge.experiment import comparisons, restem_rows, reward_rows
from seal_lib.loops.outer import Loop, evaluate, run_loop
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Round, SelfEdit
from seal_lib.report import stats, words
from seal_lib.runs import lifecycle

LABEL = {"protocol": "clean", "model": "tiny", "grader": "exact"}
OF_EDITS = {"protocol": "clean", "model": "tiny"}


def metric(rows: list[dict], name: str, arm: str | None = None, experiment: str | None = None) -> dict:
    (row,) = [
        r for r in rows if r["metric"] == name and arm in (None, r["arm"]) and experiment in (None, r["experiment"])
    ]
    return row


def test_accuracy_is_the_mean_of_passages_and_micro_the_share_of_questions() -> None:
    rows = result_rows("x", "arm", [trial("a", [1]), trial("b", [1, 0, 0, 0], blanks=2)], **LABEL)
    assert metric(rows, "accuracy")["value"] == 0.625  # (1 + 1/4) / 2
    assert metric(rows, "accuracy_micro")["value"] == pytest.approx(0.4)  # 2 of 5
    assert metric(rows, "blank_rate")["value"] == 0.25
    assert metric(rows, "failed_rate")["value"] == 0.0
    assert metric(rows, "accuracy")["n"] == 2 and metric(rows, "accuracy")["unit"] == "passage"
    for row in rows:
        assert set(row) <= set(lifecycle.COLUMNS) and (row["experiment"], row["arm"]) == ("x", "arm")
        assert row["protocol"] == "clean" and row["model"] == "tiny"
        assert row["low"] <= row["value"] <= row["high"]


def test_a_failed_trial_is_counted_apart_and_not_as_wrong() -> None:
    trials = [trial("a", [1, 1]), trial("b", [], outcome="diverged"), trial("c", [0, 1]), trial("d", [0, 1])]
    rows = result_rows("x", "arm", trials, **LABEL)
    assert metric(rows, "accuracy")["value"] == pytest.approx(2 / 3) and metric(rows, "accuracy")["n"] == 3
    assert metric(rows, "accuracy_micro")["value"] == pytest.approx(4 / 6)
    assert metric(rows, "failed_rate")["value"] == 0.25 and metric(rows, "failed_rate")["n"] == 4


def test_empty_self_edits_are_counted() -> None:
    empty, full = SelfEdit("a/0", "a", " \n", "p"), SelfEdit("b/0", "b", "x", "p")
    trials = [trial("a", [0], outcome="empty_edit", edit=empty), trial("b", [1], edit=full)]
    rows = result_rows("x", "arm", trials, **LABEL)
    assert metric(rows, "empty_edit_rate")["value"] == 0.5 and metric(rows, "accuracy")["value"] == 0.5
    assert not [r for r in result_rows("x", "arm", [trial("a", [0])], **LABEL) if r["metric"] == "empty_edit_rate"]


def test_the_grade_that_decides_is_the_one_asked_for() -> None:
    one = trial("a", [0, 0])
    one = replace(one, answers=tuple(replace(a, grades=a.grades | {"contains": 1.0}) for a in one.answers))
    assert metric(result_rows("x", "arm", [one, trial("b", [0])], **LABEL), "accuracy")["value"] == 0.0
    rows = result_rows("x", "arm", [one, trial("b", [0])], **LABEL | {"grader": "contains"})
    assert metric(rows, "accuracy")["value"] == 0.5 and metric(rows, "accuracy_micro")["value"] == pytest.approx(2 / 3)


def test_differences_are_paired_by_passage() -> None:
    a, b = (
        [trial(p, r, "a") for p, r in (("x", [1, 1]), ("y", [1, 0]), ("z", [1]))],
        [trial(p, r, "b") for p, r in (("y", [0, 0]), ("x", [1, 0]), ("w", [1]))],
    )
    (row,) = difference_rows("e", {"a": a, "b": b}, [("a", "b"), ("a", "absent")], **LABEL)
    assert (row["arm"], row["metric"], row["value"], row["n"]) == ("a - b", "difference", 0.5, 2)  # x and y alone
    assert set(row) <= set(lifecycle.COLUMNS)
    wide = [trial(f"p{i}", [float(j < i % 10) for j in range(12)], "b") for i in range(20)]
    better = [trial(f"p{i}", [float(j < i % 10 + 2 - i % 2) for j in range(12)], "a") for i in range(20)]
    (row,) = difference_rows("e", {"a": better, "b": wide}, [("a", "b")], **LABEL)
    # pairing removes the spread of the passages, which alone is wide
    assert row["value"] == pytest.approx(1 / 8) and row["high"] - row["low"] < 0.05
    assert metric(result_rows("e", "b", wide, **LABEL), "accuracy")["high"] > 0.4


def test_a_failed_side_leaves_the_pair_out() -> None:
    a = [trial("x", [1]), trial("y", [], outcome="diverged"), trial("z", [1])]
    b = [trial("x", [0]), trial("y", [0]), trial("z", [1])]
    (row,) = difference_rows("e", {"a": a, "b": b}, [("a", "b")], **LABEL)
    assert row["value"] == 0.5 and row["n"] == 2


def test_loops_are_crossed_with_passages_and_their_spread_is_in_every_interval() -> None:
    def loop(add: int) -> list:
        return [trial(f"p{i}", [float(j < 4 + i % 5 + add) for j in range(12)]) for i in range(40)]

    one, same, apart = loop(0), {0: loop(0), 1: loop(0), 2: loop(0)}, {0: loop(-3), 1: loop(0), 2: loop(3)}
    rows = {name: result_rows("x", "arm", t, **LABEL) for name, t in (("one", one), ("same", same), ("apart", apart))}
    for name in ("accuracy", "accuracy_micro", "f1"):
        found = {key: metric(several, name) for key, several in rows.items()}
        width = {key: row["high"] - row["low"] for key, row in found.items()}
        assert {key: (row["n"], row["loops"]) for key, row in found.items()} == {
            "one": (40, 1),
            "same": (40, 3),
            "apart": (40, 3),
        }
        assert found["one"]["value"] == pytest.approx(found["apart"]["value"]), name
        assert width["same"] == pytest.approx(width["one"], rel=0.01), name  # the same loop thrice is no new evidence
        assert width["apart"] > 3 * width["one"], name  # loops at 25, 50 and 75 %: three of them say little
    frozen = [trial(f"p{i}", [0.0] * 12) for i in range(40)]
    (row,) = difference_rows("x", {"a": apart, "frozen": frozen}, [("a", "frozen")], **LABEL)
    assert (row["n"], row["loops"], row["interval"]) == (40, 3, "crossed")
    assert row["high"] - row["low"] > 3 * width["one"]


def test_rows_name_the_grader_that_made_them() -> None:
    rows = result_rows("x", "arm", [trial("a", [1]), trial("b", [0])], **LABEL | {"grader": "contains"})
    assert {r["metric"]: r["grader"] for r in rows} == {
        "accuracy": "contains",
        "accuracy_micro": "contains",
        "blank_rate": "",
        "f1": "f1",
        "contains": "contains",
        "failed_rate": "",
    }
    both = {"a": [trial("p", [1])], "b": [trial("p", [0])]}
    assert difference_rows("x", both, [("a", "b")], **LABEL | {"grader": "f1"})[0]["grader"] == "f1"


def test_nothing_that_could_vary_has_an_interval_without_width() -> None:
    rows = result_rows("x", "arm", [replace(trial(f"p{i}", [1, 1]), steps=10) for i in range(3)], **LABEL)
    for row in rows:
        assert row["low"] < row["high"] and row["interval"] == "bound", row
    still = metric(result_rows("x", "frozen", [trial(f"p{i}", [1, 0]) for i in range(3)], **LABEL), "failed_rate")
    assert (still["low"], still["high"], still["interval"]) == (0, 0, "by construction")


def test_differences_of_one_experiment_are_one_family() -> None:
    rng = random.Random(0)
    arms = {
        name: [trial(f"p{i}", [float(rng.random() < share) for _ in range(12)]) for i in range(12)]
        for name, share in (("a", 0.9), ("b", 0.6), ("c", 0.5))
    }
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    alone = [difference_rows("x", arms, [pair], **LABEL)[0]["p"] for pair in pairs]
    together = [row["p"] for row in difference_rows("x", arms, pairs, **LABEL)]
    assert together == list(stats.holm(dict(enumerate(alone))).values()) and together != alone


def test_edit_rows_say_what_notes_are_like() -> None:
    passages = made(2)
    edits = [
        SelfEdit("0", passages[0].id, passages[0].references["gold"], "p", tokens=40),
        SelfEdit("1", passages[1].id, passages[1].references["remark"], "p", tokens=20),
    ]
    rows = edit_rows("e", "arm", edits, passages, **OF_EDITS)
    assert metric(rows, "edit_tokens")["value"] == 30 and metric(rows, "edit_documents")["value"] == 6
    assert metric(rows, "coverage")["value"] == 0.5
    assert metric(rows, "style_share:forward")["value"] == metric(rows, "style_share:remark")["value"] == 0.5
    assert metric(rows, "false_line_share")["value"] == 0.0
    assert sum(r["value"] for r in rows if r["metric"].startswith("style_share:")) == pytest.approx(1)
    assert edit_rows("e", "arm", [], passages, **OF_EDITS) == []


# --------------------------------------------------------------------------------- arms on the model

OUTER = OuterLoop(samples=2, edit_tokens=40, sft_rank=8, sft_alpha=16, sft_lr=2e-3, sft_epochs=1, sft_batch=4)


@pytest.mark.parametrize("arm", list(BASELINES))
def test_every_arm_gives_one_trial_per_passage(arm: str) -> None:
    run, passages = MemoryRun(), made(2)
    policy = Policy("untrained", *seedling())
    trials = evaluate_arm(run, policy, passages, arm, DOMAIN, OUTER, seed=0, group="seed_0/")
    assert [t.unit_id for t in trials] == [p.id for p in passages] and {t.arm for t in trials} == {arm}
    expected = {f"seed_0/evaluate/{arm}"} | ({f"seed_0/evaluate/{arm}/write"} if arm == "own_untrained" else set())
    assert set(run.phases) == expected
    assert run.counts["scored"] == sum(len(p.questions) for p in passages)
    kind = BASELINES[arm].text
    for passage, t in zip(passages, trials, strict=True):
        if kind in ("none", "passage"):
            assert t.edit is None and t.steps == (0 if kind == "none" else 10)
        elif kind == "policy":
            assert t.edit.source == "untrained" and t.edit.tokens > 0 and t.steps >= 20
        else:
            writer = kind.removeprefix("reference:")
            assert (t.edit.text, t.edit.source) == (passage.references[writer], writer)
            assert t.steps == 10 * (1 + len(t.edit.text.split("\n")))


def test_gold_notes_teach_far_more_than_the_passage_and_remarks_nothing() -> None:
    passages, policy = made(6), Policy("untrained", *seedling())
    score = {
        arm: mean(t.accuracy for t in evaluate_arm(MemoryRun(), policy, passages, arm, DOMAIN, OUTER, seed=0))
        for arm in ("frozen", "passage_only", "gold_notes", "notes_remark", "external")
    }
    assert score["gold_notes"] > score["passage_only"] + 0.4
    assert score["external"] > score["notes_remark"] + 0.25
    assert max(score["frozen"], score["notes_remark"]) < 0.35


def test_an_unknown_arm_or_absent_notes_are_named() -> None:
    policy = Policy("untrained", *seedling())
    with pytest.raises(DataError, match="arms: 'silver'.*gold_notes"):
        evaluate_arm(MemoryRun(), policy, made(1), "silver", DOMAIN, OUTER, seed=0)
    from fixtures_seal import plain_passage

    with pytest.raises(DataError, match="'external'.*has no notes by 'external' .it has none.; drop the arm"):
        evaluate_arm(MemoryRun(), policy, [plain_passage()], "external", DOMAIN, OUTER, seed=0)


# -------------------------------------------------------------------------------------- the whole loop


def test_the_loop_practises_on_new_passages_each_round_and_its_rows_are_complete(tmp_path) -> None:
    run, passages = MemoryRun(tmp_path), made(2, facts=4)
    loop = run_loop(
        run,
        Policy("untrained", *seedling()),
        DOMAIN,
        OUTER,
        practice=batches("world:learning", 2, 1),
        held_out=passages,
        rounds=2,
        seed=0,
        control="random_edit_sft",
    )
    assert list(loop.evaluated) == ["own_untrained", "seal_round_1", "seal_round_2", "random_edit_sft"]
    practised = [{t.unit_id for t in r.candidates} for r in loop.rounds]
    assert len(practised) == 2 and not practised[0] & practised[1]
    assert all(p.startswith("learning-") for group in practised for p in group)
    assert [t.edit.source for t in loop.rounds[1].candidates] == ["seed_0/seal_round_1"] * 4  # the new policy writes
    assert {t.edit.source for t in loop.evaluated["random_edit_sft"]} == {"seed_0/random_round_2"}
    for record, fresh in zip(loop.rounds, loop.fresh, strict=True):
        assert [t.edit.id for t in fresh] == list(record.kept)
        first = {t.edit.id: t for t in record.candidates}
        assert all(t.seed != first[t.edit.id].seed and t.edit == first[t.edit.id].edit for t in fresh)

    controls = {arm: [trial(p.id, [1.0, 0.0], arm) for p in passages] for arm in ("external", "frozen")}
    rows = restem_rows(controls, {0: loop}, passages, **LABEL)
    assert all(set(row) <= set(lifecycle.COLUMNS) for row in rows)
    keys = [(r["experiment"], r["arm"], r["metric"]) for r in rows]
    assert len(set(keys)) == len(keys)
    for arm in ("own_untrained", "seal_round_1", "seal_round_2", "random_edit_sft", "external"):
        assert ("knowledge/restem", arm, "accuracy") in keys and ("knowledge/restem", arm, "blank_rate") in keys
    for a, b in comparisons(2):
        assert ("knowledge/restem", f"{a} - {b}", "difference") in keys
        assert ("knowledge/restem/seed_0", f"{a} - {b}", "difference") in keys
    assert ("knowledge/single_passage", "seal_round_2", "accuracy") in keys
    mine = metric(rows, "accuracy", "seal_round_2", "knowledge/restem")
    assert mine["value"] == pytest.approx(mean(t.accuracy for t in loop.evaluated["seal_round_2"]))


def test_comparisons_name_the_last_round_against_the_controls() -> None:
    pairs = comparisons(2)
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) >= {
        ("seal_round_1", "own_untrained"),
        ("seal_round_2", "own_untrained"),
        ("seal_round_2", "seal_round_1"),
        ("random_edit_sft", "own_untrained"),
        ("seal_round_2", "random_edit_sft"),
        ("seal_round_2", "external"),
    }
    assert ("seal_round_3", "random_edit_sft") in comparisons(3) and ("seal_round_1", "own_untrained") in comparisons(1)


def test_the_honest_reward_of_the_selected_is_the_fresh_one() -> None:
    def candidate(p: str, k: int, right: list[float]):
        return trial(p, right, name=f"{p}/{k}", edit=SelfEdit(f"{p}/{k}", p, "x", "policy"))

    first = [candidate(p, k, [float(k)]) for p in ("a", "b", "c") for k in (0, 1)]
    record = Round(1, tuple(first), tuple(t.accuracy for t in first), ("a/1", "b/1", "c/1"))
    again = [candidate("a", 1, [1.0]), candidate("b", 1, [0.0]), candidate("c", 1, [])]
    rows = reward_rows([Loop(0, (record,), {}, (again,))], **LABEL)
    values = {r["metric"]: r["value"] for r in rows}
    assert {r["arm"] for r in rows} == {"seal_round_1"} and {r["experiment"] for r in rows} == {experiment.EXPERIMENT}
    # c has no fresh answer, so a and b alone: mean of 0 and 1, best 1, again (1 + 0) / 2
    rewards = {"reward_mean": 0.5, "reward_best_of_k": 1.0, "reward_selected_fresh_seed": 0.5}
    assert values == rewards | {"tied_share": 0.0, "zero_share": 0.0}
    twice = replace(record, by_seed=((0.0, 0.5), (1.0, 0.5), (0.0, 0.0), (1.0, 1.0), (0.0, math.nan), (1.0, 1.0)))
    (row,) = [r for r in reward_rows([Loop(0, (twice,), {}, (again,))], **LABEL) if r["metric"] == "reward_reliability"]
    # a: MS_seed 1/8, MS_edit 2 x 1/8; b: 0 and 2 x 1/2; c has a NaN
    assert row["value"] == pytest.approx(1 - (1 / 16) / (5 / 8)) and (row["n"], row["dropped"]) == (2, 1)


# ------------------------------------------------------------------------- one table, one untrained arm


def graded(passages, arm: str, seed: int, lean: float) -> list:
    """Trials of an arm in one loop, made up: passage by passage some share of four answers is right."""
    from seal_lib.seeds import rng

    return [
        trial(p.id, [float(rng(arm, seed, p.id, q).random() < lean) for q in range(4)], arm, name=f"{p.id}/{seed}")
        for p in passages
    ]


def test_every_difference_of_the_single_passage_table_is_that_of_two_of_its_rows(monkeypatch) -> None:
    """Both notebooks write into one table; with one seed there and three here, 62.1 - 41.6 would read 22.1."""
    from fixtures_seal import plain_passage

    from seal_lib.knowledge import evaluate

    passages, seeds = [plain_passage(name=f"p{i}") for i in range(8)], [0, 1, 2]
    lean = {"frozen": 0.1, "own_untrained": 0.4, "seal_round_1": 0.7, "random_edit_sft": 0.3, "external": 0.6}

    def arm(run, policy, passages, arm, *_, seed, group=""):
        assert group == f"seed_{seed}/"
        return graded(passages, arm, seed if BASELINES[arm].text == "policy" else 0, lean[arm])

    monkeypatch.setattr(evaluate, "evaluate_arm", arm)
    asked = ("frozen", "own_untrained", "external")
    alone = evaluate.evaluate_arms(None, None, passages, asked, DOMAIN, OUTER, seeds=seeds)
    assert [len(alone[name]) for name in asked] == [8, 3, 8]  # own_untrained: one set of trials a loop
    pairs = [("own_untrained", "frozen"), ("external", "own_untrained"), ("external", "frozen")]
    rows = [row for name in asked for row in result_rows("knowledge/single_passage", name, alone[name], **LABEL)]
    rows += difference_rows("knowledge/single_passage", alone, pairs, **LABEL)

    learnt = ("own_untrained", "seal_round_1", "random_edit_sft")
    loops = {
        s: Loop(s, (Round(1, (), (), ()),), {a: graded(passages, a, s, lean[a]) for a in learnt}, ([],)) for s in seeds
    }
    controls = {name: alone[name] for name in ("frozen", "external")}
    rows += restem_rows(controls, loops, passages, **LABEL)
    loops_of = {(r["arm"], r["metric"]): r["loops"] for r in rows if r["experiment"] == "knowledge/single_passage"}
    for arm, loops in (("own_untrained", 3), ("seal_round_1", 3), ("frozen", 1), ("external", 1)):
        assert loops_of.get((arm, "accuracy"), loops) == loops, arm
    assert loops_of["own_untrained - frozen", "difference"] == 3  # frozen stands beside every loop
    checked = 0
    for name in {row["experiment"] for row in rows}:
        value = {r["arm"]: r["value"] for r in rows if r["experiment"] == name and r["metric"] == "accuracy"}
        for row in rows:
            if row["experiment"] == name and row["metric"] == "difference":
                a, b = row["arm"].split(" - ")
                if {a, b} <= set(value):
                    assert row["value"] == pytest.approx(value[a] - value[b], abs=1e-9), (name, row["arm"])
                    checked += 1
    for arm, where in (("seal_round_1 - own_untrained", "restem"), ("own_untrained - frozen", "single_passage")):
        assert any((r["experiment"], r["arm"]) == (f"knowledge/{where}", arm) for r in rows)
    assert checked >= 15


def test_the_p_values_of_an_experiment_are_one_family() -> None:
    """Notebook 12 adjusted eight differences of notebook 11's table by themselves, so one table held two families."""
    from fixtures_seal import plain_passage

    passages, seeds = [plain_passage(name=f"p{i}") for i in range(8)], [0, 1]
    arms = {"own_untrained": 0.4, "seal_round_1": 0.7, "random_edit_sft": 0.3}
    loops = {
        s: Loop(s, (Round(1, (), (), ()),), {a: graded(passages, a, s, x) for a, x in arms.items()}, ([],))
        for s in seeds
    }
    controls = {"frozen": graded(passages, "frozen", 0, 0.1)}
    rows = [row for row in restem_rows(controls, loops, passages, **LABEL) if row["metric"] == "difference"]
    assert {r["experiment"] for r in rows} == {"knowledge/restem", "knowledge/restem/seed_0", "knowledge/restem/seed_1"}
    levels = {
        r["arm"]
        for r in restem_rows(controls, loops, passages, **LABEL)
        if r["experiment"] == "knowledge/single_passage"
    }
    assert levels == {"seal_round_1", "random_edit_sft"}


def test_a_loop_and_the_table_write_the_same_untrained_self_edits() -> None:
    from seal_lib.knowledge.evaluate import evaluate_arms

    policy, passages = Policy("untrained", *seedling()), made(2, facts=4)
    table = evaluate_arms(MemoryRun(), policy, passages, ["own_untrained"], DOMAIN, OUTER, seeds=[0, 3])
    trials = table["own_untrained"]
    in_loop = evaluate(MemoryRun(), policy, passages, DOMAIN, OUTER, arm="own_untrained", seed=3, group="x/")
    assert trials[3] == in_loop != trials[0]


def test_words_name_what_is_separable_and_are_silent_about_the_rest() -> None:
    def row(arm: str, value: float, low: float, high: float, n: int = 50, p: float = 0.01, **other) -> dict:
        from seal_lib.report import stats

        return stats.Estimate(value, low, high, n, p=p).row("x", arm, "difference", **LABEL) | other

    rows = [
        row("seal_round_2 - own_untrained", 0.221, 0.18, 0.26),
        row("seal_round_2 - external", -0.01, -0.04, 0.02),
        row("random_edit_sft - own_untrained", -0.05, -0.08, -0.02),
        row("gold_notes - frozen", 0.5, 0.4, 0.6, n=4),
        row("elsewhere - frozen", 0.5, 0.4, 0.6, experiment="y"),
    ]
    told = words.told(words.differences(rows, "x"))
    assert "against **untrained self-edits**: SEAL, round 2 +22.1 points [+18.0, +26.0]; random" in told
    assert "−5.0 points [−8.0, −2.0]" in told and "2 of 4 differences can be told apart" in told
    for silent in ("stronger writer", "gold", "frozen", "elsewhere"):
        assert silent not in told
    none = words.told(words.differences(rows[1:2], "x"))
    assert none.startswith("- 0 of 1 differences can be told apart from none (paired over 50 passages")
    assert words.told(words.differences(rows[3:4], "x")) == "4 passages can tell nothing apart; 6 are the fewest."
    assert words.told({}) == "No two arms were compared."
