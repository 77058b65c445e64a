"""ReST^EM: what is kept, that the reward is what teaches, and that a killed round ends as an undisturbed one."""

import json
import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Suite
from fixtures_seal import DOMAIN, INNER, WORDING, MemoryRun, digest, made, mean, plain_passage, seedling, trial

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops import inner, outer, updates
from seal_lib.loops.policy import Policy, Source
from seal_lib.loops.rewards import FILTERS
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import SelfEdit
from seal_lib.runs import manifest, params
from seal_lib.seeds import rng

NAN = math.nan


# ------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("name", "rewards", "threshold", "kept"),
    [
        ("best_of_k", [0.1, 0.7, 0.3], 0.9, [1]),  # no threshold: one is kept however bad
        ("best_of_k", [0.5, 0.5, 0.5], 0.0, [0]),  # ties: the first
        ("best_of_k", [0.2, 0.5, 0.5], 0.0, [1]),
        ("best_of_k", [0.0, 0.0], 0.0, [0]),
        ("best_of_k", [NAN, 0.1, 0.4], 0.0, [2]),
        ("best_of_k", [0.4, NAN, 0.4], 0.0, [0]),
        ("best_of_k", [NAN, NAN], 0.0, []),
        ("threshold", [0.1, 0.5, 0.9, NAN], 0.4, [1, 2]),
        ("threshold", [0.5], 0.5, []),  # exceeds, not reaches
        ("threshold", [NAN, NAN], 0.0, []),
        ("best_above", [0.1, 0.5, 0.9], 0.4, [2]),
        ("best_above", [0.1, 0.2], 0.4, []),
        ("best_above", [0.4, 0.2], 0.4, []),
        ("best_above", [NAN, 0.6], 0.4, [1]),
        ("best_above", [NAN], 0.4, []),
    ],
)
def test_filters_by_hand(name: str, rewards: list[float], threshold: float, kept: list[int]) -> None:
    assert FILTERS[name](rewards, 0, threshold) == kept


def test_the_random_filter_is_even_and_blind() -> None:
    picks = [FILTERS["random"]([0.0, 1.0, NAN, 0.5], seed, 0.0) for seed in range(2000)]
    assert all(len(pick) == 1 for pick in picks)
    for k in range(4):
        assert mean(pick == [k] for pick in picks) == pytest.approx(0.25, abs=0.05)
    assert picks == [FILTERS["random"]([9.0, 0.0, 0.0, 0.0], seed, 5.0) for seed in range(2000)]


def edits_of(*groups: tuple[str, int], text: str = "text") -> list[SelfEdit]:
    return [SelfEdit(f"{p}/{k}", p, text, "policy") for p, count in groups for k in range(count)]


@pytest.fixture
def practised(monkeypatch):
    """The groups of an E-step whose self-edits and their trials (one per reward seed), and those of the frozen policy,
    are given."""

    def play(trials, edits: list[SelfEdit], settings: OuterLoop, frozen=(), seed: int = 0) -> list[updates.Group]:
        repeats = iter(zip(*trials, strict=True))
        monkeypatch.setattr(outer, "write_self_edits", lambda *_, **__: edits)
        monkeypatch.setattr(outer, "score_edits", lambda *_, **__: list(next(repeats)))
        monkeypatch.setattr(outer, "score_candidates", lambda *_, **__: list(frozen))
        passages = [plain_passage(name=name) for name in dict.fromkeys(e.unit_id for e in edits)]
        groups, _ = outer.practise(None, None, passages, DOMAIN, settings, phase="r", seed=seed)
        assert [g.unit for g in groups] == passages and [e for g in groups for e in g.edits] == edits
        assert next(repeats, None) is None  # every reward seed was used
        return groups

    return play


def rewards_of(groups: list[updates.Group]) -> list[float]:
    return [reward for group in groups for reward in group.rewards]


def test_rewards_are_means_over_seeds_and_each_passage_keeps_its_own_best(practised) -> None:
    edits = edits_of(("a", 2), ("b", 3))
    grades = [[[1, 0], [0, 0]], [[1, 0], [1, 1]], [[0], [0]], [[1], [0]], [[1], [1]]]
    trials = [[trial(e.unit_id, right) for right in several] for e, several in zip(edits, grades, strict=True)]
    settings = OuterLoop(reward_seeds=2)
    groups = practised(trials, edits, settings)
    assert rewards_of(groups) == [0.25, 0.75, 0.0, 0.5, 1.0]
    assert [[list(several) for several in g.trials] for g in groups] == [trials[:2], trials[2:]]
    assert [e.id for e in updates.kept_of(groups, settings, seed=0)] == ["a/1", "b/2"]
    record = outer.as_round(1, groups, updates.Update(None, (), 0.0), settings, {})
    assert record.by_seed == ((0.5, 0.0), (0.5, 1.0), (0.0, 0.0), (1.0, 0.0), (1.0, 1.0))


def test_improvement_compares_with_the_frozen_model_of_that_passage(practised) -> None:
    edits = edits_of(("a", 2), ("b", 2))
    trials = [[trial(e.unit_id, right)] for e, right in zip(edits, [[1, 0], [1, 1], [1, 0], [0, 0]], strict=True)]
    settings, frozen = OuterLoop(reward="improvement", filter="threshold"), [trial("b", [0, 0]), trial("a", [0, 1])]
    groups = practised(trials, edits, settings, frozen)
    kept = updates.kept_of(groups, settings, seed=0)
    assert rewards_of(groups) == [0.0, 1.0, 1.0, 0.0] and [e.id for e in kept] == ["a/1", "b/0"]


def test_a_passage_whose_adapters_all_failed_and_an_empty_edit_contribute_nothing(practised) -> None:
    edits = edits_of(("a", 2)) + [SelfEdit("b/0", "b", " \n", "policy"), SelfEdit("b/1", "b", "text", "policy")]
    trials = [[trial("a", [], outcome="diverged")]] * 2 + [[trial("b", [1], outcome="empty_edit")], [trial("b", [0])]]
    groups = practised(trials, edits, OuterLoop())
    rewards, kept = rewards_of(groups), updates.kept_of(groups, OuterLoop(), seed=0)
    assert math.isnan(rewards[0]) and math.isnan(rewards[1]) and rewards[2:] == [1.0, 0.0]
    assert kept == []  # an empty text is nothing to learn from, even when it scored best


def test_a_self_edit_with_one_failed_trial_has_no_reward(practised) -> None:
    failed = trial("a", [], outcome="diverged")
    groups = practised(
        [[trial("a", [1]), failed], [trial("a", [0])] * 2], edits_of(("a", 2)), OuterLoop(reward_seeds=2)
    )
    assert math.isnan(groups[0].rewards[0]) and groups[0].rewards[1] == 0.0
    assert [e.id for e in updates.kept_of(groups, OuterLoop(), seed=0)] == ["a/1"]


def test_the_control_picks_as_the_random_filter_does_and_drops_empty_edits(practised) -> None:
    edits, settings = edits_of(("a", 5), ("b", 5), ("c", 5)), OuterLoop(filter="random")
    groups = practised([], edits, settings, seed=4)
    kept = updates.kept_of(groups, settings, seed=4)
    assert rewards_of(groups) == [] and [e.unit_id for e in kept] == ["a", "b", "c"]
    scored = practised([[trial(e.unit_id, [int(e.id[-1])])] for e in edits], edits, OuterLoop(), seed=4)
    assert len(rewards_of(scored)) == 15 and updates.kept_of(scored, settings, seed=4) == kept  # blind
    assert updates.kept_of(practised([], edits_of(("a", 3), text=" "), settings), settings, seed=4) == []


def test_names_that_are_not_registered_are_refused() -> None:
    with pytest.raises(DataError, match="reward: 'luck'"):
        OuterLoop(reward="luck")
    with pytest.raises(DataError, match="filter: 'worst'.*best_of_k"):
        OuterLoop(filter="worst")


def test_an_outer_algorithm_that_is_not_registered_is_refused_before_anything_is_written() -> None:
    run, wrong = MemoryRun(), OuterLoop(update="luck")
    with pytest.raises(DataError, match="update: 'luck' is not one of restem"):
        outer.restem_round(run, None, made(1), DOMAIN, wrong, index=1, name="r", seed=0)
    with pytest.raises(DataError, match="update: 'luck' is not one of restem"):
        outer.run_loop(run, None, DOMAIN, wrong, practice=lambda _: made(1), held_out=made(1), rounds=1, seed=0)
    assert run.phases == {}


# ----------------------------------------------------------------------- a bandit: is it the reward?

ARMS = ("good", "bad", "ugly")


class Bandit(Knowledge):
    """Where a policy learns texts, not tokens."""

    def target(self, unit, text: str, policy: Policy) -> str:
        return text


def bandit(monkeypatch, settings: OuterLoop, rounds: int = 3, seed: int = 0) -> list[float]:
    """Share of the good arm by round, where a policy is a weight per text and a good text scores 1 of 2 times more."""
    scored = []

    def write(run, policy, passages, domain, outer, *, phase, seed, **_):
        return [
            SelfEdit(f"{p.id}/{k}", p.id, rng(seed, p.id, k).choices(ARMS, policy.model)[0], policy.name)
            for p in passages
            for k in range(outer.samples)
        ]

    def score(run, policy, candidates, domain, *, phase, chunk=None):
        scored.extend(candidates)
        chance = {"good": 0.8, "bad": 0.4, "ugly": 0.4}
        return [
            trial(
                c.unit.id,
                [float(rng(c.seed, q).random() < chance[c.edit.text]) for q in range(4)],
                edit=c.edit,
                name=c.id,
            )
            for c in candidates
        ]

    def finetuned(policy, run, texts, outer, *, name, seed):
        return replace(policy, name=name, model=[texts.count(arm) + 1 for arm in ARMS]), 0.0

    monkeypatch.setattr(outer, "write_self_edits", write)
    monkeypatch.setattr(inner, "score_candidates", score)
    monkeypatch.setattr(Policy, "finetuned", finetuned)
    policy, shares = Policy("start", [1, 1, 1], None), [1 / 3]
    passages = [plain_passage(name=f"p{i}") for i in range(200)]
    for index in range(1, rounds + 1):
        policy, record = outer.restem_round(
            None,
            policy,
            passages,
            Bandit(INNER, WORDING),
            settings,
            index=index,
            name=f"round_{index}",
            seed=seed + index,
        )
        assert len(record.kept) == 200 and policy.name == f"round_{index}" and record.index == index
        shares.append(policy.model[0] / sum(policy.model))
    assert bool(scored) is (settings.filter != "random")  # the control does not pay for a reward it ignores
    return shares


def test_rounds_raise_what_the_reward_prefers(monkeypatch) -> None:
    shares = bandit(monkeypatch, OuterLoop(samples=5))
    assert shares[1] > 0.5 and shares[-1] > 0.85 and shares == sorted(shares)


def test_a_random_edit_teaches_no_preference(monkeypatch) -> None:
    assert all(abs(share - 1 / 3) < 0.2 for share in bandit(monkeypatch, OuterLoop(samples=5, filter="random")))


def test_more_reward_seeds_choose_better(monkeypatch) -> None:
    few, many = (bandit(monkeypatch, OuterLoop(samples=5, reward_seeds=n), rounds=1)[1] for n in (1, 4))
    assert many > few + 0.05


# ------------------------------------------------------------------------ a round on the shipped model

OUTER = OuterLoop(
    samples=3, edit_tokens=60, sft_rank=8, sft_alpha=16, sft_lr=2e-3, sft_epochs=2, sft_batch=4, temperature=1.0
)
SMALL = Knowledge(replace(INNER, epochs=4), WORDING)


def real_round(folder, settings: OuterLoop = OUTER, seed: int = 5, passages=None):
    run = MemoryRun(folder)
    policy = Policy("untrained", *seedling())
    passages = passages or made(4, population="learning")
    return run, outer.restem_round(run, policy, passages, SMALL, settings, index=1, name="r/one", seed=seed)


def test_a_round_is_recorded_whole_and_is_a_function_of_its_seed(tmp_path) -> None:
    base = digest(seedling()[0])
    run, (policy, record) = real_round(tmp_path / "a")
    passages = made(4, population="learning")
    asked = len(passages[0].questions)
    assert set(run.phases) == {"r/one/sample", "r/one/score"}
    assert len(record.candidates) == len(record.rewards) == 12
    for number, (t, reward) in enumerate(zip(record.candidates, record.rewards, strict=True)):
        assert t.id == f"{passages[number // 3].id}/{number % 3}" and t.edit.source == "untrained" and t.seed
        assert reward == t.accuracy and len(t.answers) == asked and t.edit.tokens > 0
    for i in range(4):
        group = record.rewards[3 * i : 3 * i + 3]
        assert record.candidates[3 * i + group.index(max(group))].id == record.kept[i]
    assert run.counts["scored"] == 12 * asked
    assert run.counts["generated"] == sum(t.edit.tokens for t in record.candidates)
    assert run.counts["trained"] == sum(t.tokens for t in record.candidates)
    assert policy.name == "r/one" and digest(policy.model) != base == digest(seedling()[0])  # a copy was trained
    assert math.isfinite(record.sft_loss)

    again, (same, record_again) = real_round(tmp_path / "b")
    assert again.phases == run.phases and record_again.kept == record.kept
    assert digest(same.model) == digest(policy.model)
    other, (_, _) = real_round(tmp_path / "c", seed=6)
    assert other.phases["r/one/sample"] != run.phases["r/one/sample"]


def test_self_edits_of_a_passage_do_not_depend_on_its_company(tmp_path) -> None:
    policy, passages = Policy("untrained", *seedling()), made(5)

    def written(part, **options):
        edits = outer.write_self_edits(MemoryRun(), policy, part, DOMAIN, OUTER, phase="w", seed=9, **options)
        return {e.id: e.text for e in edits}

    whole = written(passages)
    assert len(whole) == 15 and written(passages, chunk=2) == whole
    assert written(passages[3:4]).items() <= whole.items()
    assert written(passages, samples=1).items() <= whole.items()  # the first of k is what an evaluation writes


def test_the_control_scores_nothing_and_finetunes_on_one_edit_each(tmp_path) -> None:
    run, (policy, record) = real_round(tmp_path, replace(OUTER, filter="random"))
    assert set(run.phases) == {"r/one/sample"} and record.candidates == () and record.rewards == ()
    assert len(record.kept) == 4 and "scored" not in run.counts
    assert digest(policy.model) != digest(seedling()[0])


def test_the_improvement_reward_asks_the_frozen_policy_too(tmp_path) -> None:
    settings = replace(OUTER, reward="improvement", samples=2)
    run, (_, record) = real_round(tmp_path, settings, passages=made(2, population="learning"))
    assert set(run.phases) == {"r/one/sample", "r/one/score", "r/one/frozen"}
    frozen = run.phases["r/one/frozen"]
    for t, reward in zip(record.candidates, record.rewards, strict=True):
        before = mean(a["grades"]["exact"] for a in frozen[f"{t.unit_id}/frozen"]["answers"])
        assert record.frozen[t.unit_id] == before and reward == float(t.accuracy > before)


def test_nothing_kept_is_one_clear_sentence(tmp_path) -> None:
    with pytest.raises(DataError, match="no self-edit passed the filter 'threshold'; lower"):
        real_round(tmp_path, replace(OUTER, filter="threshold", threshold=1.0), passages=made(1, population="learning"))


# ------------------------------------------------------------------------------------------- resume

ROUND = """
    import os, signal, sys, tempfile
    from pathlib import Path
    import torch
    from seal_lib import InnerLoop, Knowledge, OuterLoop, Policy, models
    from seal_lib.generation import hf
    from seal_lib.knowledge import prompts, world
    from seal_lib.loops import inner, outer
    from seal_lib.runs import journal, manifest, opening
    from seal_lib.training import adapters, finetune

    torch.set_num_threads(1)
    manifest.code_of = lambda notebook: {}  # the library may be edited while its tests run
    folders = [Path(line) for line in sys.argv[1:]]
    model, tokenizer = models.load("seedling-knowledge")
    passages = world.passages("learning", 5, seed=1, facts=4)
    small = InnerLoop(lr=2e-3, epochs=3, rank=4, alpha=8, targets="all-linear", answer_tokens=6, slots=2)
    settings = OuterLoop(samples=2, edit_tokens=40, sft_rank=4, sft_alpha=8, sft_lr=2e-3, sft_batch=2)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def after(owner, name, calls, before=False):
        # die at the given call of a function, before or after it did its work
        real, seen = getattr(owner, name), [0]
        def counted(*args, **options):
            seen[0] += 1
            if before and seen[0] == calls:
                die()
            got = real(*args, **options)
            if seen[0] == calls:
                die()
            return got
        setattr(owner, name, counted)

    def torn(descriptor, block, write=os.write):
        write(descriptor, bytes(block)[: len(block) // 2])
        die()

    def tear():
        real, seen = inner.try_all, [0]
        def tried(*args, **options):
            seen[0] += 1
            if seen[0] == 2:
                os.write = torn
            return real(*args, **options)
        inner.try_all = tried

    KILLS = {
        "first chunk of sampling is computed": lambda: after(hf.HFGenerator, "generate", 1),
        "first chunk of sampling is written": lambda: after(journal.Journal, "append", 3),
        "in the second chunk of scoring": lambda: after(Knowledge, "questions", 4, before=True),
        "the row of a scored chunk is torn": tear,
        "half of the artifact is there": lambda: after(finetune, "sft", 1),
        "the artifact is there, the merge is not": lambda: after(adapters, "merge", 1, before=True),
    }

    def go(folder, kill=None):
        pid = os.fork()
        if pid:
            return os.waitpid(pid, 0)[1]
        os.environ["SEAL_RUN_DIR"] = str(folder)
        try:
            if kill:
                KILLS[kill]()
            run = opening.start("11_demo", {"seed": 3})
            whole = run.map
            run.map = lambda phase, units, fn, chunk=32: whole(phase, units, fn, chunk=min(chunk, 3))
            policy, domain = Policy("untrained", model, tokenizer), Knowledge(small, prompts.load("seedling"))
            policy, record = outer.restem_round(
                run, policy, passages, domain, settings, index=1, name="round_1", seed=3)
            weights = sum(float(p.double().abs().sum()) for p in policy.model.parameters())
            run.finish([{"metric": "weights", "value": weights}], {"kept": list(record.kept), "loss": record.sft_loss})
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    assert go(folders[0]) == 0, "the undisturbed run failed"
    for folder, kill in zip(folders[1:], KILLS, strict=True):
        status = go(folder, kill)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (kill, status)
        print(kill, (folder / "rows.jsonl").stat().st_size if (folder / "rows.jsonl").exists() else 0)
        assert go(folder) == 0, kill
"""


@pytest.mark.slow
def test_a_round_killed_anywhere_and_resumed_ends_with_the_bytes_of_an_undisturbed_one(suite: Suite, tmp_path) -> None:
    suite.notebook("11_demo", "seed: int = 3  # seed")
    suite.params("11_demo")
    values = params.resolve("11_demo", "seedling")
    identity = manifest.identity_of("11_demo", "seedling", values)
    folders = [paths.runs() / "11_demo" / "seedling" / f"{identity['key']}-{n}" for n in range(7)]
    for folder in folders:
        paths.write_json(folder / "parameters.json", identity)
    script = tmp_path / "round.py"
    script.write_text(textwrap.dedent(ROUND))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SEAL_BATCH": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, folders)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sizes = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.split()[-1].isdecimal()]
    undisturbed = {name: (folders[0] / name).read_bytes() for name in ("rows.jsonl", "metrics.json")}
    assert len(sizes) == 6 and sizes[0] < sizes[1] < sizes[2] < sizes[3] < sizes[4] == len(undisturbed["rows.jsonl"])
    value = (folders[0] / "results.csv").read_text().split(",")
    for folder in folders[1:]:
        assert {name: (folder / name).read_bytes() for name in undisturbed} == undisturbed
        assert (folder / "results.csv").read_text().split(",") == value  # the policy's weights, to the last digit
        assert sorted(p.name for p in (folder / "artifacts/policies").iterdir()) == [".round_1.sha256", "round_1"]
        record = json.loads((folder / "run.json.pending").read_text())
        assert len(record["sessions"]) == 2
    rows = [json.loads(line) for line in undisturbed["rows.jsonl"].splitlines()]
    assert [r["phase"] for r in rows] == ["round_1/sample"] * 5 + ["round_1/score"] * 10


def test_a_policy_says_where_its_weights_are() -> None:
    shipped, pinned = Source("seedling-knowledge"), Source("owner/name", revision="abc")
    (folder, revision), there = (Policy("p", None, None, source=source).place(None) for source in (shipped, pinned))
    assert Path(folder, "config.json").is_file() and revision is None and there == ("owner/name", "abc")
