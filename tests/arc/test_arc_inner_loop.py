"""Self-edits on puzzles: equal configurations once, order irrelevant, rejected texts earn nothing, kill and resume."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures_seal import MemoryRun

from seal_lib import models
from seal_lib.arc import experiment, prompts, tables
from seal_lib.arc import world as world
from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.domain import PUZZLE_GRADERS, Attempt, Puzzles, PuzzleTrial, TestTimeTraining, views_of
from seal_lib.arc.self_edits import Config
from seal_lib.arc.tasks import Pair, Task
from seal_lib.errors import DataError
from seal_lib.loops.domain import Candidate
from seal_lib.loops.inner import score_edits, train, try_all
from seal_lib.loops.outer import reward_of
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.updates import Group, kept_of
from seal_lib.records import SelfEdit, to_dict
from seal_lib.runs.lifecycle import Run

SETTINGS = TestTimeTraining(
    rank=4,
    alpha=4,
    targets="all-linear",
    batch=4,
    warmup=1,
    cap=8,
    max_steps=12,
    views="leave_one_out",
    answer_tokens=24,
    slots=4,
    example_tokens=150,
)
GOOD = Config(SWITCHES[3:], "train_using_output_tokens", 0.01, 2)
WORDING = prompts.load("seedling")
DOMAIN = Puzzles(SETTINGS, WORDING)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy("untrained", *models.load("seedling-grids"))


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return world.tasks("learning", 3, seed=5)


def candidate(name: str, task: Task, config: Config | None, seed: int = 0) -> Candidate:
    return Candidate(name, task, config, "arm", seed, trains=config is not None)


def score(run: MemoryRun, policy: Policy, texts: list[str], puzzles: list[Task]) -> list[Attempt]:
    """What becomes of these self-edits."""
    edits = [SelfEdit(f"{t.id}/{k}", t.id, text, "w") for k, (text, t) in enumerate(zip(texts, puzzles, strict=True))]
    made = score_edits(run, policy, edits, puzzles, DOMAIN, arm="arm", phase="p", seed=0)
    assert [trial.edit for trial in made] == edits
    return [trial.attempt for trial in made]


def test_equal_configurations_are_trained_once_and_shared(policy, tasks) -> None:
    other = replace(GOOD, epochs=1)
    spaced = json.dumps(json.loads(GOOD.text()), indent=2)  # another text, the same configuration
    texts = [GOOD.text(), other.text(), spaced, "no configuration", GOOD.text()]
    puzzles = [tasks[0]] * 4 + [tasks[1]]
    run = MemoryRun()
    made = score(run, policy, texts, puzzles)
    assert len(run.phases["p"]) == 3 and len(made) == 5
    assert made[0] == made[2] != made[1]
    assert made[4].unit_id == tasks[1].id and made[4].config == made[0].config
    assert made[3].outcome == "not_json" and made[3].success == 0 and made[3].config is None and made[3].steps == 0


def test_order_and_neighbours_do_not_matter(policy, tasks) -> None:
    configs = [GOOD, replace(GOOD, learning_rate=0.003), replace(GOOD, switches=(), epochs=3)]
    candidates = [candidate(f"{t.id}/{i}", t, c, seed=1) for t in tasks for i, c in enumerate(configs)]
    forth = {a.id: a for a in try_all(policy, candidates, domain=DOMAIN)}
    back = {a.id: a for a in try_all(policy, candidates[::-1], domain=DOMAIN)}
    (alone,) = try_all(policy, candidates[4:5], domain=DOMAIN)
    for name, attempt in forth.items():
        assert back[name].attempts == attempt.attempts and back[name].steps == attempt.steps
        assert back[name].last_loss == pytest.approx(attempt.last_loss, rel=1e-3)
    assert alone.attempts == forth[alone.id].attempts


def test_a_configuration_decides_data_loss_rate_and_epochs(policy, tasks) -> None:
    def trained(config: Config):
        (found,) = train(policy, [candidate("x", tasks[0], config)], DOMAIN)
        return found

    base = trained(GOOD)
    assert base.steps == 2 * math.ceil(8 / 4)
    assert trained(replace(GOOD, epochs=3)).steps == 3 * math.ceil(8 / 4)
    assert trained(replace(GOOD, learning_rate=0.02)).losses[0] == base.losses[0]
    assert trained(replace(GOOD, learning_rate=0.02)).losses[-1] != base.losses[-1]
    assert trained(replace(GOOD, strategy="train_using_all_tokens")).losses[0] != base.losses[0]
    assert trained(replace(GOOD, switches=())).tokens != base.tokens


def test_what_cannot_be_trained_earns_nothing_and_says_why(policy, tasks) -> None:
    wild = [replace(GOOD, learning_rate=1e30), replace(GOOD, epochs=10**9), replace(GOOD, epochs=7)]
    texts = [c.text() for c in wild] + ["", "\x00\xff" * 50, "[" * 10_000, GOOD.text() * 2]
    made = score(MemoryRun(), policy, texts, [tasks[0]] * len(texts))
    outcomes = [attempt.outcome for attempt in made]
    assert outcomes == ["out_of_range", "out_of_range", "too_many_steps", "empty", "not_json", "too_long", "not_json"]
    assert all(attempt.success == 0 and attempt.reason and not attempt.attempts for attempt in made)


def test_a_diverged_adapter_is_an_outcome(policy, tasks) -> None:
    open_ended = replace(DOMAIN, inner=replace(SETTINGS, max_rate=1e30))
    wild = candidate("x", tasks[0], replace(GOOD, learning_rate=1e20, epochs=3))
    (attempt,) = try_all(policy, [wild], domain=open_ended)
    assert attempt.outcome == "diverged" and "lower lr" in attempt.reason
    assert all(math.isnan(attempt.graded(grader)) for grader in PUZZLE_GRADERS)  # nothing to grade, not a wrong answer


def test_tasks_longer_than_the_model_are_counted_not_crashed(policy) -> None:
    wide = tuple(tuple((r * c) % 10 for c in range(30)) for r in range(30))
    giant = Task("giant", (Pair(wide, wide),) * 3, (wide,), (wide,))
    untrained, trained = try_all(policy, [candidate("a", giant, None), candidate("b", giant, GOOD)], domain=DOMAIN)
    assert untrained.read == {"too_long": len(views_of(giant, 0, SETTINGS, 0))}
    assert [a.outcome for a in (untrained, trained)] == ["task_too_long"] * 2  # the task's fault, not the self-edit's
    assert not trained.rejected and math.isnan(trained.success) and math.isnan(untrained.success)


def test_an_attempt_survives_the_journal(policy, tasks) -> None:
    cells = replace(DOMAIN, inner=replace(SETTINGS, grader="cells"))
    for attempt in try_all(policy, [candidate("a", tasks[0], GOOD), candidate("b", tasks[0], None)], domain=cells):
        again = cells.load(json.loads(json.dumps(to_dict(attempt))))
        assert again.attempts == attempt.attempts and again.config == attempt.config and again.read == attempt.read
        assert again.accuracy == attempt.accuracy == attempt.cells
        assert to_dict(again) == to_dict(attempt)


def test_candidates_have_names_that_tell_them_apart(tasks) -> None:
    configs = [GOOD, replace(GOOD, switches=SWITCHES[:2]), replace(GOOD, epochs=3), replace(GOOD, learning_rate=1e-5)]
    found = [DOMAIN.read(t, SelfEdit("x", t.id, c.text(), "w"), "arm", 0) for t in tasks for c in configs]
    assert [c.edit for c in found] == configs * len(tasks)
    assert len({c.id for c in found}) == len(tasks) * len(configs)


# ------------------------------------------------------------------------------------------------ the outer loop

OUTER = OuterLoop(
    samples=3,
    temperature=1.0,
    top_p=1.0,
    edit_tokens=80,
    filter="threshold",
    threshold=-1.0,
    sft_rank=4,
    sft_alpha=4,
    sft_lr=1e-3,
    sft_epochs=1,
    sft_batch=2,
)


def study(tasks: list[Task], **changes) -> experiment.FewShot:
    parts = {"domain": Puzzles(replace(SETTINGS, cap=4, max_steps=2), WORDING), "outer": OUTER, "edits": 2, **changes}
    return experiment.FewShot(tasks[:2], tasks[2:], **parts)


@contextmanager
def run_in(folder: Path):
    folder.mkdir(exist_ok=True)
    identity = {"notebook": "21_arc_self_edits", "scale": "seedling", "key": "demo", "parameters": {}, "inputs": {}}
    run = Run(folder, identity, interactive=True)
    try:
        yield run
    finally:
        run.close()


def test_a_task_is_never_practised_and_evaluated(tasks) -> None:
    with pytest.raises(DataError, match=f"{tasks[1].id}' is both practised and evaluated"):
        experiment.FewShot(tasks[:2], tasks[1:], DOMAIN, OUTER)


def test_the_control_keeps_as_many_but_blindly(tasks) -> None:
    def trial(task: Task, k: int, right: bool) -> PuzzleTrial:
        edit = SelfEdit(f"{task.id}/{k}", task.id, f"text {k}", "policy")
        return PuzzleTrial(edit, Attempt(f"{task.id}/{k}", task.id, "ok", pass_2=right))

    outer = replace(OUTER, filter="threshold", threshold=0.5)
    groups, success = [], {}
    for task in tasks:
        trials = [trial(task, k, k < 5) for k in range(50)]
        rewards = tuple(reward_of([t], math.nan, outer.reward) for t in trials)
        groups.append(Group(task, tuple(t.edit for t in trials), tuple((t,) for t in trials), rewards))
        success |= {t.id: t.accuracy for t in trials}
    kept = kept_of(groups, outer, seed=0)
    blind = kept_of(groups, replace(outer, filter="random_as_many"), seed=0)
    assert [success[e.id] for e in kept] == [1.0] * 15 and len(blind) == 15
    assert sum(success[e.id] for e in blind) < 8
    assert {e.unit_id for e in blind} == {t.id for t in tasks}


def test_the_loop_trains_the_kept_again_under_an_unused_seed(policy, tasks, tmp_path) -> None:
    """Made for the honest reward; equal configurations once, and what is rejected stays so."""
    run = MemoryRun(tmp_path)
    loop = study(tasks, domain=DOMAIN).loop(run, policy, rounds=1, seed=0)
    (record,), (fresh,) = loop.rounds, loop.fresh
    assert [t.edit.id for t in fresh] == list(record.kept) == [t.id for t in record.candidates]  # the filter keeps all
    first, again = (run.phases[f"seed_0/seal_round_1/{phase}"] for phase in ("score", "fresh_seed"))
    assert set(first) == set(again) == {t.key for t in fresh if t.attempt.config}
    for before, after in zip(record.candidates, fresh, strict=True):
        assert (after.key, after.attempt.outcome, after.attempt.config) == (
            before.key,
            before.attempt.outcome,
            before.attempt.config,
        )
        if after.attempt.steps:
            assert after.attempt.first_loss != before.attempt.first_loss  # other data, another start
    assert any(t.attempt.steps for t in fresh)


def test_the_loop_resumes_after_a_kill_with_the_same_rows(policy, tasks, tmp_path, monkeypatch) -> None:
    """Killed once inside every phase in turn; the rows of the finished run are those of an undisturbed one."""

    def loop(run):
        made = study(tasks).loop(run, policy, rounds=1, seed=0, control="random_config_sft")
        return tables.few_shot_rows(
            {"icl": study(tasks).fixed(run, policy, "icl", None)},
            [made],
            protocol="clean",
            model="m",
            grader="grid",
            max_tries=1,
        )

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
