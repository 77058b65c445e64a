"""Continued pretraining: whose texts a corpus holds, one training on all of it, answers, and its rows."""

import json
from dataclasses import replace

import pytest
import torch
from fixtures_seal import INNER, WORDING, MemoryRun, made, mean, plain_passage, seedling
from hypothesis import given
from hypothesis import strategies as st

from seal_lib.errors import DataError, ParameterError
from seal_lib.generation.contract import Completion
from seal_lib.knowledge import corpus, data, notes, pretraining, relations, world
from seal_lib.knowledge.corpus import Text
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop, Pretraining
from seal_lib.training.finetune import HalfAdamW, sft

OUTER = OuterLoop(edit_tokens=120)
SETTINGS = Pretraining(cpt_lr=2e-3, cpt_epochs=6, cpt_batch=8, cpt_lines=True)
LABEL = {"protocol": "clean", "model": "m", "grader": "exact"}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy("untrained", *seedling())


@pytest.fixture(scope="module")
def domain() -> Knowledge:
    return Knowledge(INNER, WORDING)


# ------------------------------------------------------------------------------------------- texts


def test_the_stronger_writer_writes_as_often_as_asked(policy, domain) -> None:
    passages = made(3)
    few, many = (
        corpus.write(MemoryRun(), policy, passages, "external", domain, OUTER, count=n, seed=0) for n in (2, 4)
    )
    assert len(few) == 6 and len(many) == 12
    assert [t for t in many if t.sample < 2] == few  # a larger number begins with the smaller one
    assert len({t.text for t in many}) > 6  # drawn again, not said again


def test_a_file_s_completions_are_taken_in_order_and_too_few_are_refused(tmp_path) -> None:
    passages = [plain_passage("One text.", name="a"), plain_passage("Another.", name="b")]
    file = tmp_path / "notes.json"
    file.write_text(json.dumps([{"context": p.text, "completions": ["x", {"text": "y"}, "z"]} for p in passages]))
    noted = notes.from_file(file, passages, 2)
    assert [notes.several(p, "external", 2, 0) for p in noted] == [["x", "y"], ["x", "y"]]
    with pytest.raises(DataError, match=r"a has 2 texts by 'external', not 3; ask for fewer"):
        notes.several(noted[0], "external", 3, 0)
    with pytest.raises(DataError, match=r"notes.json has 3 completions about passage a, not 4; ask for fewer"):
        notes.from_file(file, passages, 4)


def test_a_writer_that_failed_on_some_texts_leaves_fewer() -> None:
    passage = notes._noted(plain_passage(), ["only this"], "no answer in time")
    assert notes.several(passage, "external", 5, 0) == ["only this"]


def test_relations_are_told_of_what_the_group_is_in(policy, domain) -> None:
    passages = made(4)
    texts = corpus.write(MemoryRun(), policy, passages, "entigraph", domain, OUTER, count=3, seed=0)
    assert {len(t.about) for t in texts} == {2, 3} and len(texts) == 4 * 6
    known = {p.id: p for p in passages}
    for text in texts:
        facts = [f for f in known[text.unit_id].facts if f[0] in text.about or f[2] in text.about]
        told = world.describe_notes(text.text, replace(known[text.unit_id], facts=tuple(facts)))
        assert told["false"] == told["other"] == told["verbatim"] == 0 and told["lines"] >= 1
    pairs = corpus.write(MemoryRun(), policy, passages, "entigraph_pairs", domain, OUTER, count=3, seed=0)
    assert pairs == [t for t in texts if len(t.about) == 2]


def test_a_model_lists_entities_and_relates_them(domain) -> None:
    """Real text: first what is named, then a text for each drawn group; who names one thing alone is not related."""
    asked: list[str] = []

    class Writes:
        positions = 10_000

        def generate(self, requests, sampling):
            asked.extend(r.prompt for r in requests)
            said = ["- Rome\n2) Nero; fire.\n- Paris" if "one a line" in r.prompt else "They met." for r in requests]
            return [[Completion(text, 3, "eos")] for text in said]

    class Speaks(Policy):
        def generator(self):
            return Writes()

    policy = Speaks("writer", *seedling())
    passages = [plain_passage("Nero saw Rome in FIRE.", name="a"), plain_passage("Only Rome.", name="b")]
    texts = corpus.write(MemoryRun(), policy, passages, "entigraph", domain, OUTER, count=2, seed=0)
    assert {t.about for t in texts if len(t.about) == 2} <= {("Rome", "Nero"), ("Rome", "fire"), ("Nero", "fire")}
    assert [(t.unit_id, len(t.about)) for t in texts] == [("a", 2), ("a", 2), ("a", 3)]  # three things: one triple
    assert sum("Rome, Nero, fire" in prompt for prompt in asked) == 1


@given(st.lists(st.sampled_from(["Rome", "nero", "fire", "Paris", "", "7"]), max_size=30), st.sampled_from("\n;,"))
def test_listed_entities_are_of_the_passage_and_each_once(names: list[str], between: str) -> None:
    found = relations.entities_of(between.join(f"- {name}" for name in names), "Nero saw Rome in fire.")
    assert {name.casefold() for name in found} <= {"rome", "nero", "fire"}
    assert len({name.casefold() for name in found}) == len(found)
    assert {name.casefold() for name in names} & {"rome", "nero", "fire"} == {name.casefold() for name in found}


def test_an_unknown_arm_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(DataError, match="arms: 'wikipedia' is not one of frozen, passage_only"):
        corpus.writer_of("wikipedia")
    assert corpus.writer_of("seal_round_2") is corpus.WRITERS["seal"]


# ------------------------------------------------------------------------------------------- documents


def test_documents_follow_the_settings(domain) -> None:
    passages = [plain_passage("The passage.", title="T", name="a")]
    texts = [Text("a", "w", i, f"one {i}\ntwo {i}") for i in range(3)]

    def found(count: int, **settings) -> list[str]:
        return [d.text for d in corpus.documents(passages, texts, domain, Pretraining(**settings), count=count)]

    assert found(1) == ["T\none 0\ntwo 0", "T\nThe passage."]
    assert found(2, cpt_lines=True) == ["T\none 0", "T\ntwo 0", "T\none 1", "T\ntwo 1", "T\nThe passage."]
    assert found(3, cpt_passages="each")[3:] == ["T\nThe passage."] * 3  # paper v1
    made_of = corpus.documents(passages, texts, domain, SETTINGS, count=1)[0]
    assert (made_of.passage, made_of.title, made_of.writer, made_of.sample) == ("a", "T", "w", 0)


def test_a_corpus_is_exported_for_other_trainers(tmp_path, domain) -> None:
    from datasets import load_dataset

    passages = [plain_passage("The “passage”.", title="T", name="a")]
    documents = corpus.documents(passages, [Text("a", "w", 0, "x", ("Rome", "Nero"))], domain, SETTINGS, count=1)
    folder = corpus.export(MemoryRun(tmp_path), {"own_seed_0": documents})
    for kind, end in (("json", "jsonl"), ("parquet", "parquet")):
        rows = load_dataset(kind, data_files=str(folder / f"own_seed_0.{end}"), split="train", cache_dir=tmp_path / end)
        assert rows["text"] == ["T\nx", "T\nThe “passage”."]
        assert rows[0]["about"] == ["Rome", "Nero"] and rows[1]["kind"] == "passage"


# ------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def learned(policy, domain):
    """Four passages learned from the stronger writer's notes, and the same policy untouched."""
    passages, known = made(4), data.prior_passages("world:known", 30, 0)
    texts = corpus.write(MemoryRun(), policy, passages, "external", domain, OUTER, count=4, seed=0)
    documents = corpus.documents(passages, texts, domain, SETTINGS, count=4)
    run = MemoryRun()
    before = pretraining.evaluate(run, policy, [], passages, known, domain, SETTINGS, arm="frozen", phase="f", seed=0)
    after = pretraining.evaluate(
        run, policy, documents, passages, known, domain, SETTINGS, arm="external", phase="e", seed=0
    )
    again = pretraining.evaluate(run, policy, [], passages, known, domain, SETTINGS, arm="frozen", phase="g", seed=0)
    return documents, before, after, again


def test_all_passages_are_learned_at_once_and_the_policy_stays_as_it_was(learned) -> None:
    documents, before, after, again = learned
    assert mean(t.accuracy for t in before[0]) < 0.2 and mean(t.accuracy for t in after[0]) > 0.6
    assert [t.answers for t in before[0]] == [t.answers for t in again[0]]
    steps = SETTINGS.cpt_epochs * -(-len(documents) // SETTINGS.cpt_batch)
    assert {t.steps for t in after[0]} == {steps} and {t.steps for t in before[0]} == {0}


def test_training_all_weights_costs_prior_knowledge_that_is_reported(learned) -> None:
    _, before, after, _ = learned
    rows = pretraining.rows_of(
        "knowledge/cpt_4_full",
        {"frozen": ({0: before[0]}, {0: before[1]}), "external": ({0: after[0]}, {0: after[1]})},
        pretraining.comparisons(["frozen", "external", "own_untrained"], "seal_round_2"),
        **LABEL,
    )
    kept = {row["arm"]: row["value"] for row in rows if row["metric"] == "prior_right"}
    assert kept["frozen"] > 0.8 > kept["external"]
    tokens = {row["arm"]: row["value"] for row in rows if row["metric"] == "tokens_trained"}
    assert tokens["external"] == after[0][0].tokens > 0 and tokens["frozen"] != tokens["frozen"]
    assert [row["arm"] for row in rows if row["metric"] == "difference"] == ["external - frozen"]  # what ran


def test_an_adapter_learns_them_too(policy, domain) -> None:
    passages = made(2)
    texts = corpus.write(MemoryRun(), policy, passages, "external", domain, OUTER, count=4, seed=0)
    documents = corpus.documents(passages, texts, domain, SETTINGS, count=4)
    settings = replace(SETTINGS, cpt_method="lora", cpt_lr=1e-2, cpt_rank=8, cpt_alpha=16.0)
    trials, prior = pretraining.evaluate(
        MemoryRun(), policy, documents, passages, [], domain, settings, arm="external", phase="e", seed=0
    )
    assert mean(t.accuracy for t in trials) > 0.6 and prior == []


def test_a_training_that_diverges_is_an_outcome_of_all_its_passages(policy, domain) -> None:
    passages = made(2)
    documents = corpus.documents(passages, [], domain, SETTINGS, count=1)
    settings = replace(SETTINGS, cpt_lr=1e30, cpt_clip=0.0, cpt_epochs=3, cpt_batch=1)
    trials, _ = pretraining.evaluate(
        MemoryRun(), policy, documents, passages, [], domain, settings, arm="passage_only", phase="e", seed=0
    )
    assert {t.outcome for t in trials} == {"diverged"} and "lower lr" in trials[0].reason
    rows = pretraining.rows_of("e", {"passage_only": ({0: trials}, {0: []})}, [], **LABEL)
    accuracy = next(row for row in rows if row["metric"] == "accuracy")
    assert accuracy["value"] != accuracy["value"] and accuracy["dropped"] == 2


def test_a_long_document_is_cut_and_its_passage_says_so(policy, domain) -> None:
    passages = made(2)
    texts = [Text(passages[1].id, "w", 0, "word " * 50)]
    documents = corpus.documents(passages, texts, domain, SETTINGS, count=1)
    ids, cut = pretraining._encoded(policy, documents, replace(SETTINGS, cpt_length=10**9))
    assert not cut and all(one[-1] == policy.tokenizer.eos_token_id for one in ids)
    longest = max(map(len, ids)) - 7
    ids, cut = pretraining._encoded(policy, documents, replace(SETTINGS, cpt_length=longest))
    assert max(map(len, ids)) == longest and cut == {passages[1].id: {"cut_tokens": 7}}


# ------------------------------------------------------------------------------------------- questions


def test_some_questions_are_drawn_among_all_and_the_rest_is_not_asked() -> None:
    passages = made(5)
    drawn = data.some_questions(passages, 9, 42)
    assert sum(len(p.questions) for p in drawn) == 9 and all(p.questions for p in drawn)
    assert drawn == data.some_questions(passages, 9, 42) != data.some_questions(passages, 9, 43)
    assert data.some_questions(passages, None, 0) == list(passages)
    with pytest.raises(DataError, match="n_questions: 61 of 60 questions"):
        data.some_questions(passages, 61, 0)


def test_prior_questions_are_not_of_the_learned_passages(tmp_path) -> None:
    file = tmp_path / "p.json"
    file.write_text(
        json.dumps(
            [{"title": "t", "context": f"text {i}", "questions": [{"question": "q", "answer": "a"}]} for i in range(4)]
        )
    )
    taken = data.from_json(file)[:1]
    assert {p.text for p in data.prior_passages(str(file), 3, 0, without=taken)} == {"text 1", "text 2", "text 3"}
    with pytest.raises(DataError, match="n_prior: .* has 3 passages for 4 questions"):
        data.prior_passages(str(file), 4, 0, without=taken)


# ------------------------------------------------------------------------------------------- bfloat16


def test_small_updates_of_bfloat16_weights_are_not_lost() -> None:
    """A thousand updates of a hundredth of a spacing move the mean as in float32; with the usual rounding by 0."""
    exact = torch.nn.Parameter(torch.ones(4096))
    half, usual = (torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(2))
    lr = 2.0**-8 / 100  # spacing of bfloat16 below 1: 2^-8
    optimisers = [
        torch.optim.AdamW([exact], lr=lr, weight_decay=0.0),
        HalfAdamW([half], lr, 0.0, 1),
        torch.optim.AdamW([usual], lr=lr, weight_decay=0.0),
    ]
    for _ in range(1000):
        for weights, optimiser in zip((exact, half, usual), optimisers, strict=True):
            weights.grad = torch.full_like(weights, 0.5)
            optimiser.step()
    moved = [1 - float(weights.detach().float().mean()) for weights in (exact, half, usual)]
    assert moved[0] == pytest.approx(1000 * lr, rel=1e-3)
    assert moved[1] == pytest.approx(moved[0], rel=0.02)
    assert moved[2] == 0


def test_all_weights_are_trained_in_bfloat16_as_in_float32() -> None:
    model, tokenizer = seedling()
    pairs = [((), tokenizer("Kale Teboran was born in Sokumi.")["input_ids"])]
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        copy = seedling()[0].to(dtype) if dtype is torch.float32 else _copy(model).to(dtype)
        _, report = sft(copy, pairs, lr=1e-4, epochs=20, batch=1, loss_on="all", method="full", schedule="constant")
        losses[dtype] = report["losses"]
    assert losses[torch.float32][-1] < 0.8 * losses[torch.float32][0]
    assert losses[torch.bfloat16][-1] == pytest.approx(losses[torch.float32][-1], rel=0.1)
    with pytest.raises(ParameterError, match="all weights are trained in float32 or bfloat16, not torch.float16"):
        HalfAdamW([torch.nn.Parameter(torch.ones(2, dtype=torch.float16))], 1e-3, 0.0, 0)


def _copy(model):
    from copy import deepcopy

    return deepcopy(model)
