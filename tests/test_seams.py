"""What is added by a row: a domain, a reward, a filter, an outer algorithm, a grader, an arm. Nothing in the library is
edited here, so each count of files is what the test itself defines."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
from fixtures_seal import MemoryRun, seedling

from seal_lib.generation.contract import Request, Sampling
from seal_lib.grading import graders
from seal_lib.knowledge import evaluate, prompts
from seal_lib.knowledge.data import load_passages
from seal_lib.knowledge.domain import InnerLoop, Knowledge
from seal_lib.loops import inner, outer, rewards, updates
from seal_lib.loops.domain import Candidate, Rejected
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.models.tokens import read_ids, written_ids
from seal_lib.records import SelfEdit
from seal_lib.training.jobs import Example, Job

SMALL = {
    "samples": 2,
    "edit_tokens": 12,
    "sft_rank": 2,
    "sft_alpha": 4,
    "sft_lr": 1e-3,
    "sft_epochs": 1,
    "sft_batch": 2,
}


@dataclass(frozen=True)
class Name:
    """A unit of the toy domain: a text that is to be continued."""

    id: str
    begin: str


@dataclass(frozen=True)
class Said:
    """Its trial: what the adapted model says."""

    id: str
    unit_id: str
    text: str
    accuracy: float
    edit: SelfEdit | None = None

    @property
    def key(self) -> str:
        return self.id


@dataclass(frozen=True)
class Talkative:
    """The third domain: a self-edit is a text to train on; the more the model then says, the better."""

    name: str = "talkative"
    grader: str = "length"
    chunk: int = 4
    max_tries: int = 1
    schema: str | None = None
    training: Any = None
    answering: Sampling = Sampling(6)

    def prompt(self, unit, tokenizer):
        return unit.begin

    def read(self, unit, edit, arm, seed):
        text = edit.text.strip()
        return Candidate(edit.id, unit, text, arm, seed) if text else Rejected("silent", "nothing was said")

    def jobs(self, candidates, tokenizer):
        end = tokenizer.eos_token_id
        return [
            Job(c.id, [Example([*read_ids(f"{c.unit.begin} {c.edit}", tokenizer), end])], epochs=2, rank=2, alpha=4.0)
            for c in candidates
        ]

    def questions(self, candidate, adapter, tokenizer, positions):
        return [Request(candidate.unit.begin, adapter=adapter)]

    def grade(self, candidates, results, answers, count):
        texts = [given[0].text if given else None for given in answers]
        return [
            Said(c.id, c.unit.id, text or "", math.nan if text is None else min(1.0, len(text) / 20))
            for c, text in zip(candidates, texts, strict=True)
        ]

    def trial(self, edit, tried):
        return Said(edit.id, edit.unit_id, "", 0.0, edit) if isinstance(tried, Rejected) else tried

    def load(self, row):
        return Said(**row)

    def reward_seeds(self, seed, count):
        return [seed + s for s in range(count)]

    def target(self, unit, text, policy):
        tokenizer = policy.tokenizer
        return read_ids(unit.begin, tokenizer), written_ids(text, tokenizer.eos_token_id, tokenizer)


def test_a_domain_is_one_class(tmp_path) -> None:
    domain = Talkative(training={"slots": 2, "targets": "all-linear"})
    units = [Name("a", "Annals of Sokumi"), Name("b", "Topic: Annals of Teboran")]
    loop = outer.run_loop(
        MemoryRun(tmp_path),
        Policy("untrained", *seedling()),
        domain,
        OuterLoop(**SMALL),
        practice=lambda index: units,
        held_out=units,
        rounds=1,
        seed=0,
        control="random_edit_sft",
    )
    assert list(loop.evaluated) == ["own_untrained", "seal_round_1", "random_edit_sft"]
    assert len(loop.rounds[0].candidates) == 4 and len(loop.rounds[0].kept) == 2
    assert all(0 <= trial.accuracy <= 1 for trials in loop.evaluated.values() for trial in trials)


def test_a_domain_may_reject_what_was_written() -> None:
    domain, unit = Talkative(training={"slots": 1, "targets": "qv"}), Name("a", "Annals of Sokumi")
    edits = [SelfEdit("a/0", "a", "  ", "p"), SelfEdit("a/1", "a", "word", "p")]
    policy = Policy("p", *seedling())
    silent, said = inner.score_edits(MemoryRun(), policy, edits, [unit], domain, arm="x", phase="s", seed=0)
    assert silent.accuracy == 0.0 and silent.edit == edits[0] and said.id == "a/1"


@pytest.fixture
def knowledge():
    settings = InnerLoop(2e-3, 1, 2, 4.0, "all-linear", answer_tokens=4)
    return Knowledge(settings, prompts.load("seedling")), load_passages("world:heldout", 2, 0)


def test_a_reward_a_filter_and_an_outer_algorithm_are_one_row_each(knowledge, tmp_path, monkeypatch) -> None:
    domain, passages = knowledge
    monkeypatch.setitem(rewards.REWARDS, "brief", lambda trial, frozen: -float(len(trial.edit.text)))
    monkeypatch.setitem(rewards.FILTERS, "last", lambda values, seed, threshold: [len(values) - 1])
    seen = []

    def watch(run, policy, groups, domain, settings, *, name, seed):
        seen.append([group.rewards for group in groups])
        return updates.Update(policy, tuple(updates.kept_of(groups, settings, seed)), math.nan)

    monkeypatch.setitem(updates.UPDATES, "watch", watch)
    settings = OuterLoop(**SMALL, reward="brief", filter="last", update="watch")
    base = Policy("untrained", *seedling())
    policy, record = outer.restem_round(
        MemoryRun(tmp_path), base, passages, domain, settings, index=1, name="r", seed=0
    )
    assert policy is base and record.reward == "brief"
    assert seen == [[tuple(record.rewards[:2]), tuple(record.rewards[2:])]]
    assert record.rewards == tuple(-float(len(trial.edit.text)) for trial in record.candidates)
    assert record.kept == tuple(f"{passage.id}/1" for passage in passages)


def test_a_grader_is_one_row(knowledge, monkeypatch) -> None:
    domain, passages = knowledge
    monkeypatch.setitem(graders.GRADERS, "long", graders.each(lambda answer, gold: float(len(answer) > 3)))
    kind = Knowledge(InnerLoop(2e-3, 1, 2, 4.0, "all-linear", answer_tokens=4, grader="long"), domain.prompts)
    asked = [Candidate("frozen", passages[0], None, "frozen", 0, trains=False)]
    (trial,) = inner.try_all(Policy("p", *seedling()), asked, domain=kind)
    long = [len(answer.text) > 3 for answer in trial.answers]
    assert trial.grader == "long" and trial.accuracy == sum(long) / len(long) and any(long)


def test_an_arm_is_one_row(knowledge, monkeypatch) -> None:
    domain, passages = knowledge
    row = evaluate.Baseline("reference:remark", "remarks, asked with the passage in view")
    monkeypatch.setitem(evaluate.BASELINES, "mine", row)
    trials = evaluate.evaluate_arm(
        MemoryRun(), Policy("p", *seedling()), passages, "mine", domain, OuterLoop(**SMALL), seed=0
    )
    assert [trial.arm for trial in trials] == ["mine", "mine"]
