"""The audit of released files: their known numbers, where layouts may differ, and that damage is one sentence."""

import copy
import gzip
import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from fixtures_seal import made, real, trial
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_lib.audit import export, files, numbers, plots, tables
from seal_lib.audit.__main__ import main
from seal_lib.errors import DataError
from seal_lib.records import SelfEdit, by_passage
from seal_lib.report import stats
from seal_lib.runs import manifest, params

# ---------------------------------------------------------------------------------------------- made files


def query(seed: int = 0, passages: int = 8, edits: int = 1, runs: int = 1, level: float = 0.5) -> dict:
    """A file in the layout of query_server."""
    rng, articles = random.Random(seed), []
    for p in range(passages):
        completions = []
        for e in range(edits):
            asked = [
                {
                    "rep": rep,
                    "question": f"Where is {p}.{q}?",
                    "answer": f"in Town{q}",
                    "baseline_answer": f"Town{q}" if q == 0 else "elsewhere",
                    "baseline_correct": q == 0,
                    "adapter_answer": (said := rng.choice(["", f"It is in Town{q}.", "elsewhere"])),
                    "adapter_correct": bool(said) and rng.random() < level,
                }
                for rep in range(runs)
                for q in range(3)
            ]
            stats_ = {"baseline_mean": 1 / 3, "adapter_mean": 0.5, "adapter_std": 0.0, "gain_mean": 0.1}
            completions.append({"text": f"note {e}", "stats": stats_, "questions": asked})
        articles.append({"stats": {}, "title": f"T{p}", "context": f"C{p}", "completions": completions, "prompt": ""})
    return {"overall": {}, "exp_name": "made", "n_articles": passages, "articles": articles}


def pretraining(seed: int = 0, n: int = 40, layout: str = "per_question") -> dict:
    """A file of continued pretraining; the verdicts on the base model do not depend on the seed."""
    fixed, rng = random.Random(1), random.Random(seed)
    reply = {
        "baseline_texts": ["town"] * n,
        "baseline_correct": [fixed.random() < 0.4 for _ in range(n)],
        "adapter_texts": [rng.choice(["", "city", "town"]) for _ in range(n)],
        "adapter_correct": [rng.random() < 0.6 for _ in range(n)],
    }
    return {"timestamp": "x", "dataset": "d", "eval_questions": n, "args": {"k": 5}, "metrics": {}, layout: reply}


def matrix(seed: int = 0, edits: int = 4) -> dict:
    rng = random.Random(seed)
    mean = [[rng.random() if r == 0 or i < r else 0.0 for i in range(edits)] for r in range(edits + 1)]
    return {"mean_over_sequences": mean, "std_over_sequences": mean, "n_sequences": 8, "base_model": "m"}


def write(folder, name: str, content: object):
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def state(path, which: str = "adapter") -> numbers.StateNumbers:
    return {one.state: one for one in numbers.states(files.read(path))}[which]


# ---------------------------------------------------------------------------------------------- the authors' numbers

#: file → (state, macro in % or None, right, questions, blank answers, micro of the rest in %), as recomputed from the
#: release before
KNOWN = {
    ("query_eval_base", "adapter"): (39.68, 396, 974, 162, 48.8),
    ("query_eval_base", "base"): (32.67, 312, 974, 0, None),
    ("query_eval_iter2", "adapter"): (46.99, 455, 974, 98, 51.9),
    ("query_eval_iter2", "base"): (33.36, 324, 974, 0, None),
    ("cpt_base", "adapter"): (None, 399, 974, 0, 41.0),
}


@pytest.mark.parametrize(("name", "which"), KNOWN)
def test_released_files_have_their_known_numbers(name: str, which: str) -> None:
    macro, right, questions, blank, spoken = KNOWN[name, which]
    found = state(real("seal_released", f"{name}.json"), which)
    assert (found.right, found.questions, found.blank, found.ungraded) == (right, questions, blank, 0)
    assert found.micro.value == pytest.approx(right / questions)
    if macro is not None:
        assert round(100 * found.macro.value, 2) == macro and found.macro.n == 200
    if spoken is not None:
        assert round(100 * found.spoken.value, 1) == spoken
    assert found.stored == pytest.approx((found.macro if macro else found.micro).value, abs=tables.ROUNDED)


def test_intervals_of_released_files_are_near_the_bootstrap_of_before() -> None:
    for name, low, high in (("base", 0.359, 0.435), ("iter2", 0.433, 0.507)):
        macro = state(real("seal_released", f"query_eval_{name}.json")).macro
        assert (macro.low, macro.high) == (pytest.approx(low, abs=3e-3), pytest.approx(high, abs=3e-3))
    cpt = state(real("seal_released", "cpt_base.json")).micro
    assert (cpt.n, cpt.unit) == (974, "question") and 0.03 < cpt.high - cpt.value < 0.033


def test_released_files_are_paired_by_question() -> None:
    pair = [files.read(real("seal_released", f"query_eval_{name}.json")) for name in ("base", "iter2")]
    (found,), remarks = numbers.compare(pair)
    assert not remarks and (found.a, found.b, found.by) == ("query_eval_iter2", "query_eval_base", "question")
    difference = found.difference
    assert (round(difference.value, 3), difference.n, difference.dropped) == (0.073, 200, 0)
    assert (difference.low, difference.high) == (pytest.approx(0.028, abs=3e-3), pytest.approx(0.119, abs=3e-3))
    assert difference.p < 0.01 and stats.separable(difference)
    assert (found.spoken_right, found.spoken_questions) == ((387, 365), 739)  # 52.4 and 49.4 %
    assert [round(numbers.gain(one).value, 4) for one in pair] == [0.0701, 0.1363]


def test_containment_beside_the_judge_on_released_files() -> None:
    known = {("base", "adapter"): 0.288, ("base", "base"): 0.200, ("iter2", "adapter"): 0.363}
    for (name, which), value in known.items():
        beside = state(real("seal_released", f"query_eval_{name}.json"), which).contains
        assert beside is not None and round(beside.contained.value, 3) == value and beside.answers == 974
        assert 0.84 <= beside.agree <= 0.885 and 0.93 <= beside.precision <= 0.99 and 0.59 <= beside.recall <= 0.76
    assert state(real("seal_released", "cpt_base.json")).contains is None  # no gold answers in the file


def test_the_released_matrix_has_its_known_metrics() -> None:
    found = numbers.continual([files.read(real("seal_released", "continual_overall.json"))])["continual_overall"]
    known = {"base": 0.3075, "LA": 0.4146, "AA_8": 0.2474, "AIA": 0.3370, "BWT": -0.191, "net_gain": -0.060}
    known |= {"F_8": 0.191, "half_life": 0.92, "break_even": 1.63, "loss_per_edit": -0.048, "AA_4": 0.361}
    for name, value in known.items():
        assert found[name].value == pytest.approx(value, abs=5e-3 if "_" in name and value > 0.5 else 5e-4), name
    assert found["AA_8"].n == 64 and math.isnan(found["AA_8"].low)
    ages = [100 * found[f"age_{t}"].value for t in range(8)]
    assert [round(age, 1) for age in ages] == pytest.approx(
        [10.7, 5.2, -2.6, -6.6, -6.9, -10.0, -12.4, -14.2], abs=0.11
    )


def test_the_command_line_on_the_whole_folder(capsys) -> None:
    folder = real("seal_released", "query_eval_base.json").parent
    assert main([str(folder), "--json"]) == 1  # two files there are no results
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert len(content["files"]) == 4 and len(content["refused"]) == 2 == err.count("\n")
    printed = {(one["file"], one["state"]): one["printed"] for one in content["states"]}
    assert printed["query_eval_base", "adapter"] == 0.397 and printed["query_eval_iter2", "adapter"] == 0.470
    assert printed["query_eval_base", "base"] == 0.327 and printed["query_eval_iter2", "base"] is None
    assert printed["cpt_base", "adapter"] == 0.410
    assert main([str(folder / f"query_eval_{name}.json") for name in ("base", "iter2")]) == 0
    out = capsys.readouterr().out
    for text in ("39.68 [35.8, 43.7]", "396 / 974", "162 (16.6 %)", "46.99 [43.2, 50.8]", "455 / 974", "98 (10.1 %)"):
        assert text in out
    assert "differs" not in out


# ---------------------------------------------------------------------------------------------- layouts that differ


def test_several_self_edits_and_trainings_give_the_rewards_reliability(tmp_path) -> None:
    content, rng = query(edits=4, runs=3), np.random.default_rng(0)
    rewards = {}
    for p, article in enumerate(content["articles"]):
        ability = rng.random(4)
        drawn = rng.random((4, 3, 3)) < ability[:, None, None]  # edits, trainings, questions
        rewards[p] = drawn.mean(axis=2)
        for e, completion in enumerate(article["completions"]):
            for item, right in zip(completion["questions"], drawn[e].ravel(), strict=True):
                item["adapter_correct"] = bool(right)
    found = numbers.reward(files.read(write(tmp_path, "rank", content)))
    assert found is not None and (found.edits, found.runs) == (4, 3)
    assert found.mean.value == pytest.approx(np.mean([r.mean() for r in rewards.values()]))
    assert found.best.value == pytest.approx(np.mean([r.mean(axis=1).max() for r in rewards.values()]))
    assert found.reliability.value == pytest.approx(stats.reliability(rewards.values()).value)
    fresh = [np.mean([r[np.delete(r, s, axis=1).mean(axis=1).argmax(), s] for s in range(3)]) for r in rewards.values()]
    assert found.fresh.value == pytest.approx(np.mean(fresh)) and found.mean.value < found.fresh.value
    assert found.fresh.value < found.best.value
    assert numbers.reward(files.read(write(tmp_path, "one", query()))) is None


def test_macro_is_over_passages_and_micro_over_questions(tmp_path) -> None:
    content = query(passages=2)
    first, second = (article["completions"][0]["questions"] for article in content["articles"])
    del first[1:]
    for item, right in zip(first + second, (True, False, False, True), strict=True):
        item["adapter_correct"] = right
    found = state(write(tmp_path, "uneven", content))
    assert found.macro.value == pytest.approx((1 + 1 / 3) / 2) and found.micro.value == 0.5
    assert (found.right, found.questions, found.macro.n) == (2, 4, 2)


def test_a_verdict_that_is_missing_is_left_out_and_never_wrong(tmp_path) -> None:
    content = query(passages=7)
    for article in content["articles"]:
        for item in article["completions"][0]["questions"]:
            item["adapter_correct"] = True
    asked = content["articles"][0]["completions"][0]["questions"]
    asked[0]["adapter_correct"] = None
    del asked[1]["adapter_correct"]
    found = state(write(tmp_path, "gaps", content))
    assert (found.macro.value, found.right, found.questions, found.ungraded) == (1.0, 19, 19, 2)


def test_a_file_rebuilt_from_a_log_has_accuracies_but_no_questions(tmp_path) -> None:
    content = query(edits=2)
    for p, article in enumerate(content["articles"]):
        article["stats"] = None
        for e, completion in enumerate(article["completions"]):
            completion.update(questions=None, text=None)
            completion["stats"] |= {"adapter_mean": (p + e) / 10, "baseline_mean": None}
    read = files.read(write(tmp_path, "rank_iter1", content))
    (found,) = numbers.states(read)
    assert found.macro.value == pytest.approx(0.4) and found.questions == 0 and math.isnan(found.blank)
    assert any("no questions" in remark for remark in read.remarks)
    (compared,), _ = numbers.compare([read, files.read(write(tmp_path, "other", query(edits=2)))])
    assert compared.by == "passage" and compared.difference.n == 8 and compared.spoken_questions == 0


def test_scores_by_a_rubric_are_no_accuracy_of_zero(tmp_path) -> None:
    content = query(edits=2) | {"reward_mode": "proxy"}
    for article in content["articles"]:
        for completion in article["completions"]:
            completion.update(questions=[], proxy_scores=[{"length": 4, "final": 15}, {"final": 17}])
            completion["stats"] = dict.fromkeys(("baseline_mean", "adapter_mean"), 0.0) | {"proxy_mean": 16.0}
    path = write(tmp_path, "proxy", content)
    assert numbers.states(files.read(path)) == [] and numbers.proxy(files.read(path)).value == 16
    shown = tables.shown(tables.audit([path]))
    assert list(shown) == ["Scores by a rubric"] and shown["Scores by a rubric"]["score"][0].startswith("16.00 [")
    del content["reward_mode"]
    assert numbers.states(files.read(write(tmp_path, "unsaid", content))) == []


@pytest.mark.parametrize("layout", ["per_question", "server_reply"])
def test_both_layouts_of_continued_pretraining(tmp_path, layout: str) -> None:
    content = pretraining(layout=layout)
    read = files.read(write(tmp_path, "cpt", content))
    found = state(tmp_path / "cpt.json")
    assert found.right == sum(content[layout]["adapter_correct"]) and found.questions == 40 and not read.remarks
    assert found.blank == content[layout]["adapter_texts"].count("")
    for nothing in (None, [], "gone"):  # their script leaves the base model out unless it is told to ask it
        bare = copy.deepcopy(content)
        for what in ("correct", "texts"):
            if nothing == "gone":
                del bare[layout][f"baseline_{what}"]
            else:
                bare[layout][f"baseline_{what}"] = nothing
        read = files.read(write(tmp_path, "bare", bare))
        assert [one.state for one in numbers.states(read)] == ["adapter"] and numbers.gain(read).n == 0
        assert "the base model was not asked" in read.remarks


def test_what_a_file_says_of_itself_is_held_against_its_answers(tmp_path) -> None:
    content = query()
    read = state(write(tmp_path, "x", content))
    content["overall"] = {"adapter_mean_accuracy": round(read.macro.value, 4), "baseline_mean_accuracy": 0.9}
    content["n_articles"] = 9
    found = tables.audit([write(tmp_path, "x", content)])
    told = tables.accuracies(found, "single_passage")["the file says, %"].tolist()
    assert "differs" not in told[0] and told[1] == "90.00 (differs)"
    assert found.remarks == ("x: n_articles says 9, but there are 8 passages",)


def test_gzip_byte_order_mark_folders_and_unknown_keys(tmp_path) -> None:
    content = query() | {"a new key": [1], "articles": query()["articles"] + [query()["articles"][0] | {"more": None}]}
    plain = write(tmp_path, "a/plain", content)
    (tmp_path / "a" / "packed.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "a" / "b").mkdir()
    (tmp_path / "a" / "b" / "marked.json").write_text(json.dumps(content), encoding="utf-8-sig")
    (tmp_path / "a" / "notes.json.meta").write_text("{,}")
    found = tables.audit([tmp_path / "a", plain])
    assert [one.name for one in found.files] == ["b/marked", "packed", "plain"] and not found.refused
    assert len({one.macro.value for one in found.states if one.state == "adapter"}) == 1
    assert files.short_names([tmp_path / "x.json", tmp_path / "x.json.gz"]) == ["x.json", "x.json.gz"]


def test_questions_are_matched_whatever_their_order_and_number(tmp_path) -> None:
    ours = query(1, passages=10)
    theirs = copy.deepcopy(ours)
    random.Random(3).shuffle(theirs["articles"])
    for article in theirs["articles"]:
        article["completions"][0]["questions"].reverse()
        article["context"] = None
    same = [files.read(write(tmp_path, name, one)) for name, one in (("a", ours), ("b", theirs))]
    (found,), _ = numbers.compare(same)
    assert found.difference.value == 0 == found.spoken.value and found.difference.n == 10
    for article in theirs["articles"][:3]:
        del article["completions"][0]["questions"][0]
    del theirs["articles"][3:5]
    for article in theirs["articles"]:
        for item in article["completions"][0]["questions"]:
            item["adapter_correct"] = not item["adapter_correct"]
    less = files.read(write(tmp_path, "b", theirs))
    (found,), _ = numbers.compare([same[0], less])
    assert found.difference.n == 8  # of the passages that both have, the questions that both asked
    by_hand = {
        (article["title"], item["question"]): not item["adapter_correct"]
        for article in theirs["articles"]
        for item in article["completions"][0]["questions"]
    }
    means = []
    for article in ours["articles"]:
        pairs = [
            (by_hand[key], item["adapter_correct"])
            for item in article["completions"][0]["questions"]
            if (key := (article["title"], item["question"])) in by_hand
        ]
        assert all(x == y for x, y in pairs)
        means += [np.mean([(not x) - float(y) for x, y in pairs])] if pairs else []
    assert found.difference.value == pytest.approx(np.mean(means))


def test_a_question_that_two_passages_share_counts_for_both(tmp_path) -> None:
    content = query()
    for article in content["articles"][:2]:
        article["title"] = "T"
        article["completions"][0]["questions"][0]["question"] = "Where?"
    pair = [files.read(write(tmp_path, name, content)) for name in "ab"]
    (found,), _ = numbers.compare(pair)
    assert found.difference.n == 8 and found.spoken_questions == sum(
        bool(item["adapter_answer"]) for a in content["articles"] for item in a["completions"][0]["questions"]
    )


def test_files_without_question_texts_are_paired_by_place_only_if_their_order_is_the_same(tmp_path) -> None:
    one, two = pretraining(0), pretraining(1, layout="server_reply")
    (found,), remarks = numbers.compare([files.read(write(tmp_path, n, c)) for n, c in (("one", one), ("two", two))])
    rights = [c[k]["adapter_correct"] for c, k in ((two, "server_reply"), (one, "per_question"))]
    assert found.difference.value == pytest.approx((sum(rights[0]) - sum(rights[1])) / 40) and not remarks
    assert "kappa 1.00" in found.note
    turned = copy.deepcopy(two)
    for values in turned["server_reply"].values():
        values.reverse()
    unlike = [turned, pretraining(2, n=41)]
    for content, words in zip(unlike, ("agree too little", "40 questions"), strict=True):
        found, (remark,) = numbers.compare([files.read(write(tmp_path, n, c)) for n, c in (("1", one), ("2", content))])
        assert not found and words in remark
    blind = copy.deepcopy(two)
    blind["server_reply"]["baseline_correct"] = []
    found, (remark,) = numbers.compare([files.read(write(tmp_path, n, c)) for n, c in (("1", one), ("2", blind))])
    assert not found and "no verdicts on a base model" in remark


def test_p_values_are_one_family_and_many_files_meet_the_first_only(tmp_path) -> None:
    several = [files.read(write(tmp_path, f"f{k}", query(k, 14, level=0.15 * k))) for k in range(8)]
    found, remarks = numbers.compare(several[:6:2])
    raw = {}
    for one in found:
        sides = [
            {u.id: numbers.unit_accuracy(u, "adapter") for u in next(s for s in several if s.name == n).units}
            for n in (one.a, one.b)
        ]
        raw[one.a, one.b] = stats.sign_flip_test([sides[0][u] - sides[1][u] for u in sides[0]])
    assert {(o.a, o.b): o.difference.p for o in found} == pytest.approx(stats.holm(raw)) and len(found) == 3
    assert any(o.difference.p > raw[o.a, o.b] + 0.01 for o in found)
    found, remarks = numbers.compare(several)
    assert {one.b for one in found} == {"f0"} and len(found) == 7 and "f0 only" in remarks[0]


def test_runs_of_a_continual_study_get_an_interval_over_runs(tmp_path) -> None:
    paths_ = [write(tmp_path, f"run{k}/summary_{k}", matrix(k)) for k in range(6)] + [write(tmp_path, "all", matrix(9))]
    found = tables.audit(paths_)
    pooled = found.continual["6 runs of 4 edits"]
    last = [np.mean(matrix(k)["mean_over_sequences"][4]) for k in range(6)]
    assert pooled["AA_4"].value == pytest.approx(np.mean(last)) and pooled["AA_4"].n == 6
    assert pooled["AA_4"].low < pooled["AA_4"].value < pooled["AA_4"].high and pooled["AA_4"].unit == "run"
    assert len(tables.continual(found)) == 8
    assert "FWT" not in found.continual["all"]  # zeros above the diagonal were not measured
    holes = matrix()
    for line in holes["mean_over_sequences"][1:]:
        line[:] = [None] * 4
    (row,) = tables.continual(tables.audit([write(tmp_path, "holes", holes)])).to_dict("records")
    assert row["edits"] == "–" == row["after all edits, %"] and row["before any edit, %"] != "–"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("results/query_server/eval/base.json", 0.397),
        ("query_eval_iter1.json.gz", 0.437),
        ("results/cpt/old/cpt_iter2.json", 0.438),
        ("results/cpt/200/iter2.json", 0.582),
        ("results/cpt/2067/gpt4_1.json", 0.492),
        ("results/query_server/eval/base_prompt-rewrite.json", None),
        ("database.json", None),
        ("base.json", None),
    ],
)
def test_the_papers_value_goes_by_the_files_name(tmp_path, path: str, value: float | None) -> None:
    entry = numbers.printed(tmp_path / path)
    assert (entry["value"] if entry else None) == value


# ---------------------------------------------------------------------------------------------- our own runs


def test_our_trials_in_the_authors_layout_are_read_as_what_they_are(tmp_path) -> None:
    passages = made(6)
    edits = [SelfEdit(f"e{k}", p.id, f"note {k}", "m") for k in range(2) for p in passages]
    rights = [[k % 2, (k // 2) % 2, 1] for k in range(12)]
    trials = [trial(e.unit_id, right, "own", edit=e, name=e.id) for e, right in zip(edits, rights, strict=True)]
    trials[0] = trial(passages[0].id, [], "own", "diverged", edit=edits[0], name="e0")
    frozen = {p.id: trial(p.id, [0, 0, k % 2], "frozen") for k, p in enumerate(passages)}
    content = export.as_released(passages, trials, frozen, "exact")
    path = write(tmp_path, "own", content)
    found = {one.state: one for one in numbers.states(files.read(path))}
    expected = by_passage(trials, "exact")
    assert found["adapter"].macro.value == pytest.approx(np.mean(list(expected.values()))) == found["adapter"].stored
    assert found["base"].macro.value == pytest.approx(1 / 6) and found["adapter"].questions == 33  # one trial failed
    assert (
        files.read(path).grader == "exact"
        and "differs" not in tables.accuracies(tables.audit([path]), "single_passage").to_string()
    )


# ---------------------------------------------------------------------------------------------- refusals

REFUSED = {
    "list": ([1, 2], "holds a list of 2, not results"),
    "other": ({"a": 1}, "has the keys 'a', and none of a result file"),
    "empty": ({}, "is empty"),
    "no articles": ({"articles": []}, "articles must contain at least 1 items"),
    "text": ({"articles": "x"}, "articles must be array, but is 'x'"),
    "percent": (
        {"articles": [{"completions": [{"questions": [{"question": "q", "adapter_correct": 39}]}]}]},
        "articles[0].completions[0].questions[0].adapter_correct must be smaller than or equal to 1, but is 39",
    ),
    "no verdicts": ({"articles": [{"title": "t", "completions": [{"text": "x"}]}]}, "no completion has questions"),
    "uneven": (
        {"per_question": {"adapter_correct": [True, False], "adapter_texts": ["x"]}},
        "per_question.adapter_texts has 1 entries for 2 questions",
    ),
    "no answers": ({"server_reply": {"error": "timeout"}}, "server_reply must contain ['adapter_correct']"),
    "ragged": ({"mean_over_sequences": [[0.1, 0.2], [0.3]]}, "mean_over_sequences: The accuracy matrix must be"),
    "huge": ({"mean_over_sequences": [[10**400, 0], [0, 0], [0, 0]]}, "must be numbers"),
    "stack": ({"mean_over_sequences": [[[0, 0], [0, 0], [0, 0]]]}, "one matrix"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_used_is_one_sentence_and_the_others_are_read(tmp_path, capsys, case: str) -> None:
    content, words = REFUSED[case]
    bad, good = write(tmp_path, "bad", content), write(tmp_path, "good", query())
    with pytest.raises(DataError) as caught:
        files.read(bad)
    assert words in str(caught.value) and str(bad) in str(caught.value)
    assert main([str(bad), str(good)]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and str(bad) in err and "| good | after training |" in out
    assert main([str(bad)]) == 2


def test_paths_that_lead_to_nothing(tmp_path, capsys) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "cut.json").write_text('{"articles": [')
    (tmp_path / "binary.json.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    good = write(tmp_path, "good", matrix())
    given = ["hollow", "cut.json", "binary.json.gz", "nowhere.json"]
    assert main([*(str(tmp_path / name) for name in given), str(good), "--json"]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 4 and all(name in err for name in given)
    assert [one["name"] for one in json.loads(out)["files"]] == ["good"] and len(json.loads(out)["refused"]) == 4


# ---------------------------------------------------------------------------------------------- any damage

SMALL = {
    "query": query(passages=3, edits=2, runs=2),
    "reply": pretraining(n=7, layout="server_reply"),
    "question": pretraining(n=7),
    "matrix": matrix(edits=3),
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([10**400, -1, "", "\ud800", 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["title", "stats", "x"]), inner),
    max_leaves=4,
)


def damage(data, content: object) -> object:
    """Replace, remove, double or move one value somewhere in a JSON value."""
    content = copy.deepcopy(content)
    here: object = content
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return content
        key = data.draw(st.sampled_from(keys))
        if isinstance(here[key], dict | list) and here[key] and data.draw(st.integers(0, 3)):
            here = here[key]
            continue
        how = data.draw(st.sampled_from(["replace", "remove", "double"]))
        if how == "replace" or (how == "double" and isinstance(here, dict)):
            here[key] = data.draw(VALUES)
        elif how == "remove":
            del here[key]
        else:
            here.insert(key, copy.deepcopy(here[key]))
        return content


@settings(deadline=None)  # each example is two whole audits
@given(data=st.data())
def test_a_damaged_value_is_a_number_less_or_a_sentence_but_no_traceback(tmp_path, capsys, data) -> None:
    content = SMALL[data.draw(st.sampled_from(sorted(SMALL)))]
    for _ in range(data.draw(st.integers(1, 4))):
        content = damage(data, content)
    judge(write(tmp_path, "damaged", content), write(tmp_path, "whole", SMALL["query"]), capsys)


@settings(deadline=None)  # each example is two whole audits
@given(data=st.data())
def test_damaged_bytes_are_no_traceback(tmp_path, capsys, data) -> None:
    raw = bytearray(json.dumps(SMALL[data.draw(st.sampled_from(sorted(SMALL)))]).encode())
    if data.draw(st.booleans()):
        raw = bytearray(gzip.compress(bytes(raw), mtime=0))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.json"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    judge(path, write(tmp_path, "whole", SMALL["query"]), capsys)


def judge(path, whole, capsys) -> None:
    """Read with a whole file: both, or one sentence that names the damaged one."""
    status = main([str(path), str(whole)])
    out, err = capsys.readouterr()
    assert status == (1 if err else 0) and err.count("\n") <= 1 and (not err or str(path) in err)
    assert "| whole | after training |" in out
    assert main([str(path), str(whole), "--json"]) == status
    for one in json.loads(capsys.readouterr().out)["states"]:
        assert one["macro"]["value"] is None or 0 <= one["macro"]["value"] <= 1


# ---------------------------------------------------------------------------------------------- figures, the notebook


def test_figures_show_every_file_and_the_papers_value(tmp_path) -> None:
    import matplotlib.pyplot as plt

    (tmp_path / "eval").mkdir()
    found = tables.audit([write(tmp_path, "eval/base", query()), write(tmp_path, "cpt/x", pretraining())])
    figure, axes = plt.subplots(1, 2, figsize=plots.size(found))
    plots.accuracy_by_file(found, axes[0])
    plots.judge_and_containment(found, axes[1])
    drawn = {line.get_gid() for line in axes[0].lines}
    assert {f"value:{name}:{s}" for name in ("eval/base", "cpt/x") for s in files.STATES} <= drawn
    assert sorted(float(line.get_xdata()[0]) for line in axes[0].lines if line.get_gid() == "paper") == [0.327, 0.397]
    labels = [text.get_text() for text in axes[1].get_yticklabels()]
    assert labels == ["eval/base, after training", "eval/base, without training"]  # the other has no gold answers
    nothing = tables.audit([write(tmp_path, "m", matrix())])
    for draw, axis in zip((plots.accuracy_by_file, plots.judge_and_containment), plt.subplots(1, 2)[1], strict=True):
        assert draw(nothing, axis).texts[0].get_text().startswith("no file has")
    plt.close("all")


def test_the_command_line_loads_no_torch() -> None:
    code = "import sys, seal_lib.audit.__main__; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout == "False False\n", done.stderr


def test_other_content_of_a_given_file_is_another_run(tmp_path) -> None:
    values = params.resolve("80_audit_released", "seedling", {"files": [str(write(tmp_path, "x", query()))]})
    before = manifest.run_key("80_audit_released", values)[0]
    write(tmp_path, "x", query(1))
    assert manifest.run_key("80_audit_released", values)[0] != before
    assert (REPOSITORY / "notebooks" / "80_audit_released.ipynb").is_file()
