"""One item that is too long for the model never decides: it is named and counted, and the others go on."""

import json
import math
from dataclasses import replace

import pytest
from fixtures_seal import (
    DOMAIN,
    INNER,
    WORDING,
    MemoryRun,
    candidate,
    made,
    plain_passage,
    seedling,
    trials_of,
    untrained,
)

from seal_lib import models
from seal_lib.arc.domain import Puzzles, TestTimeTraining, views_of
from seal_lib.arc.prompts import load
from seal_lib.arc.tasks import Pair, Task
from seal_lib.continual import study
from seal_lib.continual.lab import Lab
from seal_lib.continual.streams import Stream
from seal_lib.errors import DataError
from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.generation.hf import HFGenerator
from seal_lib.knowledge import evaluate
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops import inner, outer
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import PassageTrial, Question, SelfEdit, to_dict

LONG = "All work and no play makes Jack a dull boy. " * 2_000
QUICK = replace(INNER, epochs=1)
#: an item that is too long in one place → (what becomes of a trial on its notes, of a self-edit, of asking in context)
ITEMS = {
    "passage": (plain_passage(LONG, name="long"), "ok", "too_long", "too_long"),
    "title": (plain_passage(title=LONG, name="long"), "too_long", "too_long", "too_long"),
    "question": (
        replace(plain_passage(name="long"), questions=(Question(LONG, "a"), Question("Who?", "somebody"))),
        "ok",
        "ok",
        "ok",
    ),
    "title without a space": (plain_passage(title="x" * 30_000, name="long"), "too_long", "too_long", "too_long"),
}


def test_engines_leave_out_a_prompt_that_is_too_long_where_the_caller_counts_it() -> None:
    generator = HFGenerator(*seedling())
    asked = [Request("Topic:"), Request(LONG), Request("Question:")]
    sampling = Sampling(4, temperature=1.0, n=2, skip_long=True)
    done = generator.generate(asked, sampling)
    assert done[1] == [Completion("", 0, "too_long")] * 2
    assert [done[0], done[2]] == generator.generate([asked[0], asked[2]], sampling)
    assert generator.generate(asked[1:2], sampling) == [done[1]] and generator.generate([], sampling) == []
    with pytest.raises(DataError, match="prompt 1 has .* begins 'All work and no play"):
        generator.generate(asked, replace(sampling, skip_long=False))


@pytest.mark.parametrize("name", list(ITEMS))
def test_a_passage_that_is_too_long_is_counted_and_the_others_go_on(name: str) -> None:
    item, trained, _, shown = ITEMS[name]
    sane = made(1)[0]
    for group, outcome in (
        ([candidate(item, "A note."), candidate(sane, sane.references["gold"])], trained),
        (untrained([item, sane], "ceiling", shown=True), shown),
    ):
        strange, other = (PassageTrial.from_dict(json.loads(json.dumps(to_dict(t)))) for t in trials_of(group, QUICK))
        assert (strange.outcome, other.outcome) == (outcome, "ok") and strange.unit_id == "long"
        assert other.answers == trials_of(group[1:], QUICK)[0].answers
        assert not other.left_out and len(other.answers) == len(sane.questions)
        assert math.isnan(strange.accuracy) is (outcome == "too_long") and (outcome == "ok" or strange.reason)
        rows = evaluate.result_rows("x", "arm", [strange, other], protocol="clean", model="m", grader="exact")
        told = {row["metric"]: row for row in rows}
        assert told["accuracy"]["dropped"] == (outcome == "too_long")
        assert told["failed_rate"]["value"] == (outcome == "too_long") / 2
    if name == "question":
        assert strange.left_out == {"questions": 1} and math.isnan(strange.answers[0].grades["exact"])
        assert len(strange.scores("exact")) == 1 and told["left_out:questions"]["value"] == 0.5


def test_what_is_cut_from_a_document_is_counted_in_tokens() -> None:
    tokenizer = seedling()[1]
    item = ITEMS["passage"][0]
    (cut,) = trials_of([candidate(item, "A note.")], QUICK)
    whole = len(tokenizer(WORDING.training_text(item.title, item.text.strip()))["input_ids"])
    assert cut.left_out == {"cut_tokens": whole - QUICK.max_length} and cut.outcome == "ok" and cut.steps == 2
    (fits,) = trials_of([candidate(made(1)[0], "A note.")], QUICK)
    assert fits.left_out == {}


def test_a_document_longer_than_the_model_is_a_counted_outcome() -> None:
    beyond = replace(QUICK, max_length=3000)  # the model has 2048 positions
    sane = made(1)[0]
    long, other = trials_of([candidate(ITEMS["passage"][0], "A note."), candidate(sane, "A note.")], beyond)
    assert long.outcome == "too_long" and "3000 positions, the model has 2048" in long.reason and other.outcome == "ok"


def test_a_loop_goes_on_without_the_passage_whose_self_edit_cannot_be_written(tmp_path) -> None:
    run, policy = MemoryRun(tmp_path), Policy("untrained", *seedling())
    settings = OuterLoop(samples=2, edit_tokens=24, sft_epochs=1)
    units = [ITEMS["passage"][0], *made(2)]
    following, record = outer.restem_round(
        run, policy, units, Knowledge(QUICK, WORDING), settings, index=1, name="round_1", seed=0
    )
    assert [t.outcome for t in record.candidates[:2]] == ["too_long"] * 2
    assert all(t.outcome == "ok" for t in record.candidates[2:])
    assert [math.isnan(reward) for reward in record.rewards] == [True] * 2 + [False] * 4
    assert record.kept and not any(name.startswith("long/") for name in record.kept)
    trials = outer.evaluate(run, policy, units, DOMAIN, settings, arm="own", seed=0)
    assert [t.outcome for t in trials] == ["too_long", "ok", "ok"] and trials[0].edit.unwritten == outer.LONG
    assert SelfEdit.from_dict(to_dict(trials[0].edit)) == trials[0].edit


# ------------------------------------------------------------------------------------------------ puzzles

GRIDS = TestTimeTraining(rank=4, alpha=4.0, targets="all-linear", views="leave_one_out", answer_tokens=24, slots=4)
PAIR = Pair(((1, 2), (3, 4)), ((2, 1), (4, 3)))
SMALL = Task("small", (PAIR,) * 3, (((5, 6), (7, 8)),), (((6, 5), (8, 7)),))
LARGE = Pair(((1,) * 30,) * 30, ((2,) * 30,) * 30)
GIANT = Task("giant", (LARGE,) * 3, (LARGE.input,), (LARGE.output,))
CONFIG = json.dumps(
    {
        "data_generation": {f"use_{kind}_augmentations": False for kind in ("basic", "size", "chain", "repeat")},
        "training": {"strategy": "train_using_output_tokens", "learning_rate": 0.001, "num_train_epochs": 1},
    }
)


@pytest.fixture(scope="module")
def grids():
    return Policy("untrained", *models.load("seedling-grids"))


def tried(policy: Policy, tasks: list[Task]) -> list:
    domain = Puzzles(GRIDS, load("seedling"))
    edits = [SelfEdit(f"{t.id}/0", t.id, CONFIG, "x") for t in tasks]
    return inner.score_edits(MemoryRun(), policy, edits, tasks, domain, arm="a", phase="p", seed=0)


def test_a_puzzle_of_thirty_by_thirty_is_counted_and_the_others_go_on(grids) -> None:
    giant, small = tried(grids, [GIANT, SMALL])
    assert (giant.attempt.outcome, small.attempt.outcome) == ("task_too_long", "ok")
    assert giant.unit_id == "giant" and "positions" in giant.attempt.reason and math.isnan(giant.accuracy)
    assert small.attempt == tried(grids, [SMALL])[0].attempt
    domain, run = Puzzles(GRIDS, load("seedling")), MemoryRun()
    written = outer.evaluate(
        run, grids, [GIANT, SMALL], domain, OuterLoop(samples=1, edit_tokens=60), arm="own", seed=0
    )
    assert written[0].attempt.outcome == "task_too_long" and math.isnan(written[0].accuracy)
    assert written[1].attempt.outcome != "task_too_long"


def test_a_puzzle_with_one_demonstration_shows_it(grids) -> None:
    one = Task("one", (PAIR,), SMALL.tests, SMALL.solutions)
    (trial,) = tried(grids, [one])
    assert trial.attempt.outcome == "ok" and sum(trial.attempt.read.values()) == len(views_of(one, 0, GRIDS, 0)) == 1
    for views in ("full", "leave_one_out", "all"):
        asked = views_of(one, 0, replace(GRIDS, views=views), 0)
        assert asked and all(len(view.example.demonstrations) == 1 for view in asked)


# ------------------------------------------------------------------------------------- edits in a row


@pytest.mark.parametrize("name", ["passage", "title", "question"])
def test_the_forgetting_study_names_a_passage_that_is_too_long_before_anything_runs(name: str) -> None:
    """A stream without one of its edits has no matrix."""
    lab = Lab(Policy("base", *seedling()), DOMAIN)
    sane, writing = Stream("a", tuple(made(2)), (None, None)), Sampling(24, temperature=1.0)
    study.check_lengths(lab, [sane], writing)
    run = MemoryRun()
    long = Stream("b", (made(1)[0], ITEMS[name][0]), (None, None))
    with pytest.raises(DataError, match="passage long takes [0-9]+ tokens to be .*, more than 2048; leave it out"):
        study.frozen_edits(run, lab, [sane, long], "policy", writing)
    assert not run.phases
