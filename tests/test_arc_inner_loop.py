"""Self-edits on puzzles: equal configurations once, order irrelevant, rejected texts earn nothing, kill and resume."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures_seal import MemoryRun
from seal_lib.arc.inner_loop import (  # fmt: skip
    GRADERS,
    Attempt,
    Candidate,
    TestTimeTraining,
    attempts_of,
    candidates_of,
    readings_of,
    run_candidates,
    train,
    views_of,
)

from seal_lib import models
from seal_lib.arc import experiment, prompts, self_edits, tables
from seal_lib.arc import world as world
from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.self_edits import Config
from seal_lib.arc.tasks import Pair, Task
from seal_lib.errors import DataError
from seal_lib.loops import restem
from seal_lib.loops.policy import Policy
from seal_lib.runs.lifecycle import Run

SETTINGS = TestTimeTraining(
    rank=4, alpha=4, targets="all-linear", batch=4, warmup=1, cap=8, max_steps=12, views="leave_one_out",
    answer_tokens=24, slots=4, example_tokens=150,
)  # fmt: skip
GOOD = Config(SWITCHES[3:], "train_using_output_tokens", 0.01, 2)
WORDING = prompts.load("seedling")


@pytest.fixture(scope="module")
def seedling():
    return models.load("seedling-grids")


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return world.tasks("learning", 3, seed=5)


def test_equal_configurations_are_trained_once_and_shared(seedling, tasks) -> None:
    other = replace(GOOD, epochs=1)
    spaced = json.dumps(json.loads(GOOD.text()), indent=2)  # another text, the same configuration
    texts = [GOOD.text(), other.text(), spaced, "no configuration", GOOD.text()]
    puzzles = [tasks[0]] * 4 + [tasks[1]]
    run = MemoryRun()
    made = attempts_of(
        run, Policy("untrained", *seedling), readings_of(texts, puzzles, SETTINGS), WORDING, SETTINGS, phase="p", seed=0
    )
    assert len(run.phases["p"]) == 3 and len(made) == 5
    assert made[0] == made[2] != made[1]
    assert made[4].task_id == tasks[1].id and made[4].config == made[0].config
    assert made[3].outcome == "not_json" and made[3].success == 0 and made[3].config is None and made[3].steps == 0


def test_order_and_neighbours_do_not_matter(seedling, tasks) -> None:
    configs = [GOOD, replace(GOOD, learning_rate=0.003), replace(GOOD, switches=(), epochs=3)]
    candidates = [Candidate(f"{t.id}/{i}", t, c) for t in tasks for i, c in enumerate(configs)]
    forth = {a.id: a for a in run_candidates(*seedling, candidates, WORDING, SETTINGS, seed=1)}
    back = {a.id: a for a in run_candidates(*seedling, candidates[::-1], WORDING, SETTINGS, seed=1)}
    alone = run_candidates(*seedling, candidates[4:5], WORDING, SETTINGS, seed=1)[0]
    for name, attempt in forth.items():
        assert back[name].attempts == attempt.attempts and back[name].steps == attempt.steps
        assert back[name].last_loss == pytest.approx(attempt.last_loss, rel=1e-3)
    assert alone.attempts == forth[alone.id].attempts


def test_a_configuration_decides_data_loss_rate_and_epochs(seedling, tasks) -> None:
    def trained(config: Config):
        (found,) = train(*seedling, [Candidate("x", tasks[0], config)], WORDING, SETTINGS, seed=0)
        return found[0]

    base = trained(GOOD)
    assert base.steps == 2 * math.ceil(8 / 4)
    assert trained(replace(GOOD, epochs=3)).steps == 3 * math.ceil(8 / 4)
    assert trained(replace(GOOD, learning_rate=0.02)).losses[0] == base.losses[0]
    assert trained(replace(GOOD, learning_rate=0.02)).losses[-1] != base.losses[-1]
    assert trained(replace(GOOD, strategy="train_using_all_tokens")).losses[0] != base.losses[0]
    assert trained(replace(GOOD, switches=())).tokens != base.tokens


def test_what_cannot_be_trained_earns_nothing_and_says_why(seedling, tasks) -> None:
    wild = [replace(GOOD, learning_rate=1e30), replace(GOOD, epochs=10**9), replace(GOOD, epochs=7)]
    texts = [c.text() for c in wild] + ["", "\x00\xff" * 50, "[" * 10_000, GOOD.text() * 2]
    readings = readings_of(texts, [tasks[0]] * len(texts), SETTINGS)
    made = attempts_of(MemoryRun(), Policy("untrained", *seedling), readings, WORDING, SETTINGS, phase="p", seed=0)
    outcomes = [attempt.outcome for attempt in made]
    assert outcomes == [
        "out_of_range", "out_of_range", "too_many_steps", "empty", "not_json", "too_long", "not_json"
    ]  # fmt: skip
    assert all(attempt.success == 0 and attempt.reason and not attempt.attempts for attempt in made)


def test_a_diverged_adapter_is_an_outcome(seedling, tasks) -> None:
    open_ended = replace(SETTINGS, max_rate=1e30)
    candidate = Candidate("x", tasks[0], replace(GOOD, learning_rate=1e20, epochs=3))
    (attempt,) = run_candidates(*seedling, [candidate], WORDING, open_ended, seed=0)
    assert attempt.outcome == "diverged" and "lower lr" in attempt.reason
    assert all(math.isnan(attempt.graded(grader)) for grader in GRADERS)  # nothing to grade, not a wrong answer


def test_tasks_longer_than_the_model_are_counted_not_crashed(seedling) -> None:
    wide = tuple(tuple((r * c) % 10 for c in range(30)) for r in range(30))
    giant = Task("giant", (Pair(wide, wide),) * 3, (wide,), (wide,))
    untrained, trained = run_candidates(
        *seedling, [Candidate("a", giant, None), Candidate("b", giant, GOOD)], WORDING, SETTINGS, seed=0
    )
    assert untrained.read == {"too_long": len(views_of(giant, 0, SETTINGS, 0))}
    assert [a.outcome for a in (untrained, trained)] == ["task_too_long"] * 2  # the task's fault, not the self-edit's
    assert not trained.rejected and math.isnan(trained.success) and math.isnan(untrained.success)


def test_an_attempt_survives_the_journal(seedling, tasks) -> None:
    made = run_candidates(
        *seedling, [Candidate("a", tasks[0], GOOD), Candidate("b", tasks[0], None)], WORDING, SETTINGS, 0
    )
    for attempt in made:
        again = Attempt.from_dict(json.loads(json.dumps(attempt.to_dict())))
        assert again.attempts == attempt.attempts and again.config == attempt.config and again.read == attempt.read
        assert again.to_dict() == attempt.to_dict()


def test_candidates_have_names_that_tell_them_apart(tasks) -> None:
    configs = [GOOD, replace(GOOD, switches=SWITCHES[:2]), replace(GOOD, epochs=3), replace(GOOD, learning_rate=1e-5)]
    readings = [(t, self_edits.read(c.text())) for t in tasks for c in configs]
    found, names = candidates_of(readings)
    assert len({c.id for c in found}) == len(found) == len(names) == len(tasks) * len(configs)


# ------------------------------------------------------------------------------------------------ the outer loop

OUTER = restem.OuterLoop(
    samples=3, temperature=1.0, top_p=1.0, edit_tokens=80, filter="threshold", threshold=-1.0, sft_rank=4, sft_alpha=4,
    sft_lr=1e-3, sft_epochs=1, sft_batch=2,
)  # fmt: skip


def study(tasks: list[Task], **changes) -> experiment.FewShot:
    parts = {"inner": replace(SETTINGS, cap=4, max_steps=2), "outer": OUTER, "edits": 2, **changes}
    return experiment.FewShot(tasks[:2], tasks[2:], WORDING, **parts)


@contextmanager
def run_in(folder: Path):
    folder.mkdir(exist_ok=True)
    identity = {"notebook": "demo", "scale": "seedling", "key": "demo", "parameters": {}, "inputs": {}}
    run = Run(folder, identity, interactive=True)
    try:
        yield run
    finally:
        run.close()


def test_a_task_is_never_practised_and_evaluated(tasks) -> None:
    with pytest.raises(DataError, match=f"{tasks[1].id}' is both practised and evaluated"):
        experiment.FewShot(tasks[:2], tasks[1:], WORDING, SETTINGS, OUTER)


def test_the_control_keeps_as_many_but_blindly(tasks) -> None:
    def trial(task: Task, k: int, right: bool) -> experiment.Trial:
        edit = restem.SelfEdit(f"{task.id}/{k}", task.id, f"text {k}", "policy")
        return experiment.Trial(edit, Attempt(f"{task.id}/{k}", task.id, "ok", pass_2=right))

    trials = [trial(t, k, k < 5) for t in tasks for k in range(50)]
    edits, success = [t.edit for t in trials], {t.id: t.accuracy for t in trials}
    outer = replace(OUTER, filter="threshold", threshold=0.5)
    _, kept = restem.filter_round([[t] for t in trials], edits, {}, outer, seed=0)
    _, blind = restem.filter_round([[t] for t in trials], edits, {}, replace(outer, filter="random_as_many"), seed=0)
    assert [success[e.id] for e in kept] == [1.0] * 15 and len(blind) == 15
    assert sum(success[e.id] for e in blind) < 8
    assert {e.unit_id for e in blind} == {t.id for t in tasks}


def test_the_loop_resumes_after_a_kill_with_the_same_rows(seedling, tasks, tmp_path, monkeypatch) -> None:
    """Killed once inside every phase in turn; the rows of the finished run are those of an undisturbed one."""
    base = restem.Policy("untrained", *seedling)

    def loop(run):
        made = experiment.few_shot_loop(run, base, study(tasks), rounds=1, seed=0, random_control=True)
        return tables.few_shot_rows({"icl": study(tasks).fixed(run, base, "icl", None)}, [made], protocol="clean",
                                        model="m", grader="grid")  # fmt: skip

    with run_in(tmp_path / "whole") as run:
        rows, undisturbed = loop(run), (run.folder / "rows.jsonl").read_bytes()
    kills = 0
    for _ in range(30):
        with run_in(tmp_path / "killed") as run:
            real, left = run._rows.append, [1]

            def append(lines, real=real, left=left):
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                real(lines)

            monkeypatch.setattr(run._rows, "append", append)
            try:
                again = loop(run)
                break
            except KeyboardInterrupt:
                kills += 1
    assert kills >= 5 and again == rows
    assert (tmp_path / "killed" / "rows.jsonl").read_bytes() == undisturbed
