"""The table of the puzzles: graders, what cannot be scored, equal configurations, resampling, protocols, sentences."""

import json
import math
from dataclasses import replace

import pytest
from fixtures_seal import MemoryRun

from seal_lib.arc import experiment, prompts, reading, self_edits, tables, vote
from seal_lib.arc import world as world
from seal_lib.arc.domain import AUTHORS_TTT, PUZZLE_GRADERS, Attempt, Puzzles, PuzzleTrial, TestTimeTraining
from seal_lib.arc.self_edits import ORACLE, Config
from seal_lib.arc.tasks import Task
from seal_lib.errors import DataError
from seal_lib.generation.contract import Completion
from seal_lib.loops import inner, outer
from seal_lib.loops.outer import Loop, practise, reward_of, warn_if_blind, write_self_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.updates import Group, kept_of
from seal_lib.records import Round, SelfEdit
from seal_lib.report import stats

SETTINGS = TestTimeTraining(rank=4, alpha=4, targets="all-linear", views="leave_one_out")
OUTER = OuterLoop(samples=4, filter="threshold", threshold=0.5, edit_tokens=40)
DOMAIN = Puzzles(SETTINGS, prompts.load("seedling"))
TASKS = world.tasks("learning", 4, seed=5)
NAN = math.nan


def config(k: int) -> Config:
    return Config((), "train_using_output_tokens", 0.001 * (k + 1), 2)


def attempt(task: str, k: int = 0, right: bool = False, **more) -> Attempt:
    """One training of the k-th configuration; equal k on one task is the same training."""
    about = {"outcome": "ok", "config": config(k), "steps": 4, "pass_2": right, "cells": 1.0 if right else 0.5, **more}
    return Attempt(f"{task}/{k}", task, **about)


def trial(task: str, k: int = 0, right: bool = False, number: int = 0, tries: int = 1, **more) -> PuzzleTrial:
    edit = SelfEdit(f"{task}/{number}", task, config(k).text(), "policy", tries=tries)
    return PuzzleTrial(edit, attempt(task, k, right, **more))


def loop(seed: int, evaluated: dict[str, list[PuzzleTrial]], practised=(), kept=(), fresh=()) -> Loop:
    practised = tuple(practised) or (trial("p", 0, True),)
    rewards = tuple(t.accuracy for t in practised)
    return Loop(seed, (Round(1, practised, rewards, tuple(kept), 1.0),), evaluated, (list(fresh),))


def filtered(trials: list[PuzzleTrial], settings: OuterLoop) -> tuple[list[float], list[SelfEdit]]:
    """(reward, kept) of one task's self-edits, each tried once."""
    rewards = tuple(reward_of([t], NAN, settings.reward) for t in trials)
    group = Group(replace(TASKS[0], id="t"), tuple(t.edit for t in trials), tuple((t,) for t in trials), rewards)
    return list(rewards), kept_of([group], settings, seed=0)


def rows_of(loops, fixed=None, grader: str = "grid", max_tries: int = 1) -> dict[tuple[str, str, str], dict]:
    rows = tables.few_shot_rows(fixed or {}, loops, protocol="clean", model="m", grader=grader, max_tries=max_tries)
    table = {(row["experiment"], row["arm"], row["metric"]): row for row in rows}
    assert len(table) == len(rows)
    return table


MAIN = "arc/few_shot"

# ------------------------------------------------------------------------------------------------ graders


def test_the_graders_by_hand() -> None:
    task = Task("t", (), (((1,),), ((1,),)), (((1, 2), (3, 4)), ((5, 6),)))
    near, right, other = ((1, 2), (3, 9)), ((1, 2), (3, 4)), ((7,),)
    score = vote.score(task, [(near, right), (((5, 0),), other)])
    made = Attempt("t/x", "t", "ok", pass_1=score.pass_1, pass_2=score.pass_2, cells=score.cells)
    assert {name: made.graded(name) for name in PUZZLE_GRADERS} == {"grid": 0.0, "pass_1": 0.0, "cells": (1 + 0.5) / 2}
    second = vote.score(replace(task, tests=task.tests[:1], solutions=task.solutions[:1]), [(near, right)])
    assert (second.pass_1, second.pass_2, second.cells) == (False, True, 1.0)
    assert vote.score(task, [(near,), ()]).cells == 0.75 / 2  # no answer has no right cell


@pytest.mark.parametrize(("grader", "kept"), [("grid", ["t/1"]), ("pass_1", []), ("cells", ["t/0", "t/1"])])
def test_the_grader_decides_what_is_kept(grader: str, kept: list[str]) -> None:
    trials = [
        trial("t", 0, False, number=0, cells=0.75, grader=grader),
        trial("t", 1, True, number=1, grader=grader),
        trial("t", 2, False, number=2, cells=0.25, grader=grader),
    ]
    _, found = filtered(trials, OUTER)
    assert [edit.id for edit in found] == kept


def test_rows_name_their_grader_and_the_headline_follows_it() -> None:
    made = [loop(0, {"own_untrained": [trial(f"t{k}", 0, k < 2) for k in range(8)]})]
    for grader, value in (("grid", 0.25), ("pass_1", 0.0), ("cells", 0.25 + 0.75 / 2)):
        rows = rows_of(made, {"icl": [attempt(f"t{k}", outcome="untrained", config=None) for k in range(8)]}, grader)
        assert rows[MAIN, "own_untrained", "success_rate"]["value"] == pytest.approx(value)
        for (where, _, metric), row in rows.items():
            judged = metric.startswith(("success", "difference", "reward")) or metric in PUZZLE_GRADERS
            judged = judged or metric in ("tied_share", "zero_share")
            told = row["grader"]
            assert told == (metric if metric in PUZZLE_GRADERS else grader if judged else ""), (where, metric)
    with pytest.raises(DataError, match="grader: 'luck' is not one of grid, pass_1, cells"):
        replace(SETTINGS, grader="luck")


def test_a_round_reports_and_warns_where_no_task_was_solved() -> None:
    practised = [trial(f"p{t}", k, t == 0, number=k) for t in range(4) for k in range(3)]
    made = loop(0, {"own_untrained": [trial("t")]}, practised)
    (told,) = made.rounds
    assert told.zero_share == 0.75 and told.tied_share == 1.0
    rows = rows_of([made])
    assert rows[MAIN, "seal_round_1", "zero_share"]["value"] == 0.75
    assert rows[MAIN, "seal_round_1", "zero_share"]["n"] == 4
    assert tables.tally([told])[0]["best is 0"] == 0.75
    with pytest.warns(UserWarning, match="the best reward is 0 for 75%"):
        warn_if_blind(told, OUTER, DOMAIN.grader)


def test_the_honest_reward_of_a_round_is_that_of_the_kept_under_a_fresh_seed() -> None:
    """Rewards by task: a 1 0 (the 1 written twice), b 1 1 0, c 0 0, d 1 (its fresh training diverges)."""
    practised = [
        trial("a", 0, True, 0),
        trial("a", 0, True, 1),
        trial("a", 1, False, 2),
        trial("b", 0, True, 0),
        trial("b", 1, True, 1),
        trial("b", 2, False, 2),
        trial("c", 0, False, 0),
        trial("c", 1, False, 1),
        trial("d", 0, True, 0),
    ]
    kept = ["a/0", "a/1", "b/0", "b/1", "d/0"]
    fresh = [
        trial("a", 0, False, 0),
        trial("a", 0, False, 1),
        trial("b", 0, True, 0),
        trial("b", 1, False, 1),
        trial("d", 0, number=0, outcome="diverged"),
    ]
    rows = rows_of([loop(0, {"own_untrained": [trial("t")]}, practised, kept, fresh)])
    for where in (MAIN, f"{MAIN}/seed_0"):
        found = {m: rows[e, arm, m] for e, arm, m in rows if (e, arm) == (where, "seal_round_1")}
        told = {metric: found[metric]["value"] for metric in found if metric.startswith("reward")}
        # of a and b, of which something was kept and scored again; equal configurations count once
        assert told == pytest.approx(
            {"reward_mean": (1 / 2 + 2 / 3) / 2, "reward_best_of_k": 1.0, "reward_selected_fresh_seed": (0 + 1 / 2) / 2}
        )
        assert {(found[metric]["n"], found[metric]["dropped"]) for metric in told} == {(2, 2)}
        assert (found["tied_share"]["value"], found["zero_share"]["value"]) == (0.5, 0.25)
        assert {row["unit"] for row in found.values()} == {"task"}


def test_equal_kept_configurations_are_one_training_again() -> None:
    """Two of three kept texts are one configuration, which fails again: a half, not a third."""
    practised = [trial("a", 0, True, 0), trial("a", 0, True, 1), trial("a", 1, True, 2)]
    fresh = [trial("a", 0, False, 0), trial("a", 0, False, 1), trial("a", 1, True, 2)]
    rows = rows_of([loop(0, {"own_untrained": [trial("t")]}, practised, [t.id for t in practised], fresh)])
    assert rows[MAIN, "seal_round_1", "reward_selected_fresh_seed"]["value"] == 0.5


@pytest.mark.parametrize(
    ("changes", "rewards", "kept"),
    [
        ({}, [1.0, 0.0, 1.0, 1.0], ["/0", "/0", "/1"]),
        ({"reward_seeds": 2}, [1.0, 0.0, 0.5, 1.0], ["/0", "/1"]),  # the second training of one fails
        ({"reward": "improvement"}, [1.0, 0.0, 0.0, 0.0], ["/0"]),  # the other task is solved without an adapter
    ],
)
def test_the_reward_is_what_the_settings_say(monkeypatch, changes: dict, rewards: list[float], kept: list[str]) -> None:
    """Two tasks, two self-edits each; what their trainings give is made up."""
    settings = replace(OUTER, samples=2, **changes)
    first, second = TASKS[0].id, TASKS[1].id
    outcomes = {
        "r/score": {first: (True, False), second: (True, True)},
        "r/score_1": {first: (True, False), second: (False, True)},
    }
    seeds: dict[str, set[int]] = {}

    def score(run, policy, candidates, domain, *, phase):
        if phase == "r/frozen":
            assert not any(c.trains for c in candidates)
            return [attempt(c.unit.id, right=c.unit.id == second, outcome="untrained") for c in candidates]
        seeds[phase] = {c.seed for c in candidates}
        right = {domain.candidate(t, config(k), "", 0).id: outcomes[phase][t.id][k] for t in TASKS[:2] for k in (0, 1)}
        return [replace(attempt(c.unit.id, right=right[c.id]), id=c.id) for c in candidates]

    edits = [SelfEdit(f"{t}/{k}", t, config(k).text(), "policy") for t in (first, second) for k in range(2)]
    monkeypatch.setattr(outer, "write_self_edits", lambda *args, **kwargs: edits)
    monkeypatch.setattr(inner, "score_candidates", score)
    monkeypatch.setattr(outer, "score_candidates", score)
    groups, frozen = practise(MemoryRun(), None, TASKS[:2], DOMAIN, settings, phase="r", seed=1)
    assert [group.unit for group in groups] == TASKS[:2]
    assert [reward for group in groups for reward in group.rewards] == rewards
    assert [edit.id[-2:] for edit in kept_of(groups, settings, seed=1)] == kept
    assert frozen == ({first: 0.0, second: 1.0} if settings.reward == "improvement" else {})
    # every training of a reward has a seed of its own, the same for all self-edits
    assert len(seeds) == len(set.union(*seeds.values())) == settings.reward_seeds


# ------------------------------------------------------------------------- what cannot be scored is neither right nor 0


@pytest.mark.parametrize(("outcome", "metric"), [("diverged", "diverged_rate"), ("task_too_long", "too_long_rate")])
def test_what_cannot_be_scored_is_dropped_and_counted(outcome: str, metric: str) -> None:
    fine = [trial(f"t{k}", j, right=True, number=j) for k in range(8) for j in range(2)]
    lost = [trial(f"t{k}", 2, number=2, outcome=outcome) for k in range(8)]
    row = rows_of([loop(0, {"own_untrained": fine + lost})])
    assert row[MAIN, "own_untrained", "success_rate"]["value"] == 1.0
    assert row[MAIN, "own_untrained", "success_rate"]["dropped"] == 8
    assert row[MAIN, "own_untrained", metric]["value"] == pytest.approx(1 / 3)
    assert row[MAIN, "own_untrained", "rejected_rate"]["value"] == 0
    rewards, kept = filtered(lost, replace(OUTER, threshold=-1.0))
    assert kept == [] and all(math.isnan(reward) for reward in rewards)


def test_every_rejected_text_is_wrong_and_counted_a_text_too_long_too() -> None:
    """A self-edit longer than a configuration can be was once taken for a task too long, and not counted."""
    lost = [trial(f"t{k}", outcome=reason, config=None, steps=0) for k, reason in enumerate(self_edits.REASONS)]
    rows = rows_of([loop(0, {"own_untrained": lost})])
    assert rows[MAIN, "own_untrained", "rejected_rate"]["value"] == 1.0
    assert rows[MAIN, "own_untrained", "success_rate"]["value"] == 0.0
    assert rows[MAIN, "own_untrained", "success_rate"]["dropped"] == 0


def test_an_arm_with_nothing_scored_is_a_gap_not_a_zero() -> None:
    rows = rows_of([loop(0, {"own_untrained": [trial(f"t{k}", outcome="diverged") for k in range(8)]})])
    row = rows[MAIN, "own_untrained", "success_rate"]
    assert math.isnan(row["value"]) and row["dropped"] == 8 and row["n"] == 0
    assert rows[MAIN, "own_untrained", "diverged_rate"]["value"] == 1.0


# --------------------------------------------------------------------------------- intervals over tasks and loops


def test_loops_are_a_sample_as_tasks_are() -> None:
    """Three loops that differ much: an interval over tasks alone is narrow, the reported one is not."""
    gains = {0: 0.9, 1: 0.5, 2: 0.1}
    made = [
        loop(
            seed,
            {
                "own_untrained": [trial(f"t{k}", j, False, j) for k in range(20) for j in range(10)],
                "seal_round_1": [trial(f"t{k}", j, j < 10 * gain, j) for k in range(20) for j in range(10)],
            },
        )
        for seed, gain in gains.items()
    ]
    rows = rows_of(made)
    row = rows[MAIN, "seal_round_1", "success_rate"]
    assert (row["n"], row["loops"], row["interval"], row["unit"]) == (20, 3, "crossed", "task")
    assert row["value"] == pytest.approx(0.5) and row["high"] - row["low"] > 0.5
    apart = rows[MAIN, "seal_round_1 - own_untrained", "difference"]
    assert apart["loops"] == 3 and apart["low"] < 0 < apart["high"] and apart["p"] < 0.05
    assert not stats.separable(stats.Estimate(apart["value"], apart["low"], apart["high"], apart["n"], p=apart["p"]))
    alone = rows[f"{MAIN}/seed_0", "seal_round_1", "success_rate"]
    assert alone["loops"] == 1 and alone["high"] - alone["low"] < 0.3


def test_nothing_solved_has_a_bound_and_what_cannot_happen_is_marked() -> None:
    fixed = {"icl": [attempt(f"t{k}", outcome="untrained", config=None) for k in range(20)]}
    rows = rows_of([loop(0, {"own_untrained": [trial(f"t{k}") for k in range(20)]})], fixed)
    icl = rows[MAIN, "icl", "success_rate"]
    assert icl["value"] == icl["low"] == 0 and icl["high"] == pytest.approx(1 - 0.025 ** (1 / 20))
    assert icl["interval"] == "bound"
    for metric in ("rejected_rate", "diverged_rate"):
        row = rows[MAIN, "icl", metric]
        assert row["low"] == row["high"] == 0 and row["interval"] == "by construction"
    measured = rows[MAIN, "own_untrained", "rejected_rate"]
    assert measured["interval"] == "bound" and measured["high"] > 0
    for row in rows.values():
        same = row["low"] == row["high"]
        assert row["interval"] == "by construction" if same else row["interval"] != "by construction", row


# ------------------------------------------------------------------------------------ equal configurations count once


def test_equal_configurations_of_a_task_count_once_in_shares_maps_and_rounds() -> None:
    """One task asks nine times for configuration 0 and once for 1: two trainings, not ten."""
    written = [trial("t0", 0, True, j) for j in range(9)] + [trial("t0", 1, False, 9), trial("t1", 1, False, 0)]
    practised = [trial("p", 0, True, j) for j in range(5)] + [trial("p", 1, False, 5)]
    made = loop(0, {"own_untrained": written}, practised)
    rows = rows_of([made])
    choices = f"{MAIN}/choices"
    assert rows[choices, "own_untrained", "share:learning_rate=0.001"]["value"] == pytest.approx(1 / 3)
    assert rows[choices, "own_untrained", "share:learning_rate=0.002"]["value"] == pytest.approx(2 / 3)
    cell = rows[choices, "own_untrained", "success:learning_rate=0.002|num_train_epochs=2"]
    assert (cell["value"], cell["n"], cell["unit"]) == (0.0, 3, "task")  # tried on t0, t1 and p
    assert rows[choices, "own_untrained", "success:learning_rate=0.001|num_train_epochs=2"]["n"] == 2
    behind = tables.behind(made, "learning_rate", "num_train_epochs")
    assert list(behind) == [(0.001, 2), (0.002, 2)]  # those of the map; what solved something first
    assert [[t.id for t in found] for found in behind.values()] == [["p/0", "t0/0"], ["p/5", "t0/9", "t1/0"]]
    assert [tables.solved(found) for found in behind.values()] == ["2 of 2", "0 of 3"]
    line = tables.tally(made.rounds)[0]
    assert (line["self-edits"], line["distinct trainings"], line["of them right"]) == (6, 2, 1)
    assert made.rounds[0].tied_share == 0  # five equal texts are one best configuration, not a tie
    row = rows[f"{MAIN}/tasks", "own_untrained", "success_rate:t0"]
    assert row["value"] == 0.9 and (row["n"], row["unit"]) == (2, "configuration")
    assert rows[MAIN, "own_untrained", "success_rate"]["value"] == 0.45  # the paper's: a mean over self-edits


def test_equal_configurations_of_two_loops_are_two_trainings() -> None:
    both = [loop(seed, {"own_untrained": [trial("t0", 0, seed == 0)]}) for seed in (0, 1)]
    cell = rows_of(both)[f"{MAIN}/choices", "own_untrained", "success:learning_rate=0.001|num_train_epochs=2"]
    assert cell["value"] == pytest.approx((1 + 2 * 1) / 4)  # t0 in two loops, and p, right in both


def test_a_value_that_another_arm_asked_for_is_a_measured_zero() -> None:
    arms = {
        "own_untrained": [trial(f"t{k}", k % 2) for k in range(8)],
        "seal_round_1": [trial(f"t{k}", 0) for k in range(8)],
    }
    row = rows_of([loop(0, arms)])[f"{MAIN}/choices", "seal_round_1", "share:learning_rate=0.002"]
    assert row["value"] == 0 and row["high"] > 0 and row["interval"] == "bound"


# -------------------------------------------------------------------------------------------------- resampling

GOOD = config(0).text()


class Written:
    """A generator whose texts are given, one list a task, used from the front; remembers its seeds."""

    def __init__(self, texts: dict[str, list[str]]):
        self.texts, self.seeds = texts, []

    def generate(self, requests, sampling):
        out = []
        for request in requests:
            self.seeds.append(request.seed)
            left = next(texts for prompt, texts in self.texts.items() if prompt == request.prompt)
            out.append([Completion(left.pop(0), 7, "eos") for _ in range(sampling.n)])
        return out


def written(monkeypatch, texts: list[list[str]], **changes) -> tuple[MemoryRun, list[SelfEdit], Written]:
    """What a policy writes about two tasks for which a generator says ``texts``."""
    domain = replace(DOMAIN, **changes)
    policy = Policy("untrained", None, None, "hf")
    said = Written({domain.prompts.write(t)[1]: list(lines) for t, lines in zip(TASKS[:2], texts, strict=True)})
    monkeypatch.setattr(Policy, "generator", lambda self: said)
    run = MemoryRun()
    edits = write_self_edits(run, policy, TASKS[:2], domain, OUTER, phase="w", seed=3, samples=2)
    return run, edits, said


def test_off_a_text_that_is_no_json_stays(monkeypatch) -> None:
    run, edits, _ = written(monkeypatch, [["no json", GOOD], [GOOD, "{"]])
    assert [edit.text for edit in edits] == ["no json", GOOD, GOOD, "{"]
    assert [edit.tries for edit in edits] == [1] * 4 and set(run.phases) == {"w"}


def test_on_it_is_written_again_until_it_parses(monkeypatch) -> None:
    first, second = ["no json", GOOD, "", GOOD], [GOOD, '{"a": 1}']
    run, edits, said = written(monkeypatch, [first, second], max_tries=20)
    assert [edit.text for edit in edits] == [GOOD, GOOD, GOOD, '{"a": 1}']  # JSON of another kind is wrong, and stays
    assert [edit.tries for edit in edits] == [3, 1, 1, 1] and [edit.tokens for edit in edits] == [21, 7, 7, 7]
    assert [edit.id for edit in edits] == [f"{t.id}/{k}" for t in TASKS[:2] for k in range(2)]
    assert [edit.unit_id for edit in edits] == [t.id for t in TASKS[:2] for _ in range(2)]
    assert set(run.phases) == {"w", "w/again_2", "w/again_3"} and len(set(said.seeds)) == 4  # a new draw each time


def test_the_bound_on_tries_holds_and_what_is_left_is_rejected(monkeypatch) -> None:
    run, edits, _ = written(monkeypatch, [["x"] * 9, [GOOD, GOOD]], max_tries=3)
    assert [edit.tries for edit in edits] == [3, 3, 1, 1] and [edit.text for edit in edits][:2] == ["x", "x"]
    assert len(run.phases) == 3
    assert self_edits.read(edits[0].text).reason == "not_json"
    with pytest.raises(DataError, match="max_tries: 0"):
        written(monkeypatch, [[], []], max_tries=0)


def test_how_often_texts_were_written_again_is_reported() -> None:
    trials = [trial(f"t{k}", 0, tries=1 + k % 2) for k in range(8)]
    rows = rows_of([loop(0, {"own_untrained": trials}, [trial("p", tries=4)])], max_tries=4)
    row = rows[MAIN, "own_untrained", "texts_per_self_edit"]
    assert row["value"] == 1.5 and row["interval"] == "t"
    off = rows_of([loop(0, {"own_untrained": [trial(f"t{k}") for k in range(8)]})])
    assert off[MAIN, "own_untrained", "texts_per_self_edit"]["interval"] == "by construction"
    assert tables.tally([loop(0, {}, [trial("p", tries=4)]).rounds[0]])[0]["texts"] == 4


# --------------------------------------------------------------------------------------------------- protocols

THEIRS = replace(SETTINGS, protocol="clean", **AUTHORS_TTT)


@pytest.mark.parametrize(
    "change", [{"targets": "all-linear"}, {"schedule": "linear"}, {"warmup": 3}, {"views": "full"}]
)
def test_the_authors_inner_loop_is_theirs_or_refused(change: dict) -> None:
    replace(THEIRS, protocol="authors")
    (key,) = change
    with pytest.raises(DataError, match=f"{key}: .* is not the authors' way"):
        replace(THEIRS, protocol="authors", **change)


def test_the_authors_outer_loop_is_theirs_or_refused() -> None:
    theirs = Puzzles(replace(THEIRS, protocol="authors"), prompts.load("chat"), max_tries=20)
    settings = replace(OUTER, sft_schedule="cosine", sft_targets="qv-mlp")
    experiment.FewShot(TASKS[:2], TASKS[2:], theirs, settings)
    for told, domain, changed in (
        ("resample: false", replace(theirs, max_tries=1), settings),
        ("prompts: 'seedling' is no chat set", replace(theirs, prompts=prompts.load("seedling")), settings),
        ("sft_schedule: 'linear'", theirs, replace(settings, sft_schedule="linear")),
        ("sft_targets: 'all-linear'", theirs, replace(settings, sft_targets="all-linear")),
    ):
        with pytest.raises(DataError, match=told):
            experiment.FewShot(TASKS[:2], TASKS[2:], domain, changed)


def test_scale_paper_is_the_authors_way_in_both_domains_and_clean_is_the_other(monkeypatch) -> None:
    from seal_lib.runs import params

    for word, texts, puzzles in (("", "authors_v1", "authors"), ("clean", "clean", "clean")):
        monkeypatch.setenv("SET", word)
        assert params.resolve("12_restem_rounds", "paper")["protocol"] == texts
        for notebook in ("20_arc_tasks", "21_arc_self_edits"):
            assert params.resolve(notebook, "paper")["protocol"] == puzzles
        found = params.resolve("21_arc_self_edits", "paper")
        assert found["resample"] == (word == "")
        domain = Puzzles(
            params.pick(TestTimeTraining, found),
            prompts.load(found["prompts"]),
            found["max_tries"] if found["resample"] else 1,
            found["constrained"],
        )
        experiment.FewShot(TASKS[:1], TASKS[1:], domain, params.pick(OuterLoop, found), found["edits"])


# ---------------------------------------------------------------------------------------------------- sentences


def table(gain: float, oracle: float = 1.0, blind: float = 0.0):
    """Three loops in which the last round solves ``gain`` of the self-edits more than the untrained policy's none."""
    import pandas as pd

    def trials(rate: float, k0: int) -> list[PuzzleTrial]:
        right = round(10 * rate)  # self-edits that ask for the configuration that works
        return [trial(f"t{k}", k0 + (j >= right), j < right, j) for k in range(12) for j in range(10)]

    made = [
        loop(
            seed,
            {
                "own_untrained": trials(0.1, 0),
                "random_config_sft": trials(0.1 + blind, 0),
                "seal_round_1": trials(0.1 + gain, 10),
            },
        )
        for seed in range(3)
    ]
    fixed = {"oracle": [attempt(f"t{k}", right=k < 12 * oracle) for k in range(12)]}
    return pd.DataFrame(tables.few_shot_rows(fixed, made, protocol="clean", model="m", grader="grid", max_tries=1))


def test_sentences_hold_in_the_rows_or_are_not_said() -> None:
    won, lost = reading.outcome(table(0.5)), reading.outcome(table(0.0))
    assert "SEAL, round 1 60.0" in won and "12 tasks × 3 loops" in won and "in 3 of 3 loops alone" in won
    assert "It is the reward" in won and "did not separably move" in won and "learning rate 0.011" in won
    assert "It is the reward" not in lost
    assert "asks more often for" in lost and "learning rate 0.011 (0 → 50 %)" in lost  # others, to no avail
    assert "Separable from zero: SEAL, round 1 − untrained" in won
    assert "SEAL, round 1 − untrained" in lost.split("ot separable:")[1]
    both = reading.outcome(table(0.9, blind=0.5))
    assert "the control moved too, by +50.0" in both
    near = reading.by_task(table(0.5))
    assert "above the untrained policy by +50.0" in near and "below the hand-made configuration by −40.0" in near
    assert "Of 12 tasks, 0 are solved by every self-edit of SEAL, round 1 and 0 by none" in near
    assert "still has 50 % of the cells right" in near
    assert "separably" not in reading.by_task(table(0.0, oracle=0.0))


def test_no_sentence_has_a_number_of_its_own() -> None:
    """Other rows, other numbers: a text that quotes a run would not move."""
    assert reading.outcome(table(0.5)) != reading.outcome(table(0.4))
    assert reading.by_task(table(0.5)) != reading.by_task(table(0.4))
    assert json.loads(ORACLE.text())  # the hand-made configuration is JSON that the reader takes
