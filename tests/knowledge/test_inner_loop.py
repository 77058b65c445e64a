"""The inner loop on the shipped model: what is trained on decides the answers, and nothing leaks."""

import math
from dataclasses import replace

import pytest
from fixtures_seal import (
    INNER,
    WORDING,
    candidate,
    digest,
    made,
    mean,
    seedling,
    trial,
    trials_of,
    untrained,
    wrong_notes,
    wrong_value,
)

from seal_lib.errors import DataError
from seal_lib.grading.graders import exact_match
from seal_lib.knowledge.domain import InnerLoop, Knowledge
from seal_lib.loops.rewards import REWARDS
from seal_lib.records import to_dict


def examples_of(passage, text, settings=INNER):
    return Knowledge(settings, WORDING).examples(candidate(passage, text), seedling()[1])


def test_the_right_edit_teaches_the_facts_a_wrong_one_the_wrong_facts_and_none_nothing() -> None:
    passages = made(5)
    right, wrong, none = (
        trials_of([candidate(p, text(p), seed=i) for i, p in enumerate(passages)])
        for text in (lambda p: p.references["gold"], wrong_notes, lambda p: None)
    )
    accuracy = [mean(t.accuracy for t in group) for group in (right, wrong, none)]
    assert accuracy[0] > 0.6 and accuracy[0] > accuracy[1] + 0.4 and accuracy[0] > accuracy[2] + 0.4
    # trained on false notes the model answers what the notes say: the adapter, not the passage, is what is asked
    believed = []
    for p, t in zip(passages, wrong, strict=True):
        false = {fact[2]: wrong_value(p, *fact) for fact in p.facts}
        believed += [exact_match(answer.text, false[answer.gold]) for answer in t.answers]
    assert mean(believed) > 0.4 and mean(believed) > accuracy[1] + 0.3
    for t in right:
        assert t.outcome == "ok" and t.steps == 10 * 7 and math.isfinite(t.first_loss + t.last_loss)
    assert all(t.steps == 10 for t in none)


def test_trials_do_not_depend_on_their_neighbours_and_the_model_is_untouched() -> None:
    model, _ = seedling()
    before, attention = digest(model), model.config._attn_implementation
    passages = made(4)
    texts = [passages[0].references["gold"], None, wrong_notes(passages[2]), passages[3].references["questions"]]
    group = [candidate(p, text, seed=i) for i, (p, text) in enumerate(zip(passages, texts, strict=True))]
    together = trials_of(group)
    assert [t.id for t in together] == [c.id for c in group]
    others = (
        trials_of(group[::-1])[::-1],  # another order
        trials_of(group, replace(INNER, slots=1)),  # one after the other
        [trials_of([one])[0] for one in group],  # each alone
    )
    for again in others:
        for a, b in zip(together, again, strict=True):
            assert a.answers == b.answers and (a.steps, a.tokens, a.outcome) == (b.steps, b.tokens, b.outcome)
            assert b.last_loss == pytest.approx(a.last_loss, rel=1e-3)
    assert digest(model) == before and model.config._attn_implementation == attention
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_the_same_candidates_give_the_same_trials_bit_for_bit_and_another_seed_does_not() -> None:
    group = [candidate(p, p.references["gold"], seed=i) for i, p in enumerate(made(2))]
    assert [to_dict(t) for t in trials_of(group)] == [to_dict(t) for t in trials_of(group)]
    other = [replace(c, seed=c.seed + 100) for c in group]
    assert [t.last_loss for t in trials_of(group)] != [t.last_loss for t in trials_of(other)]


def test_an_empty_edit_is_the_passage_alone_and_says_so() -> None:
    passage = made(1)[0]
    empty, none = trials_of([candidate(passage, " \n\n"), candidate(passage, None)])
    assert (empty.outcome, none.outcome) == ("empty_edit", "ok")
    assert empty.steps == none.steps == 10 and empty.tokens == none.tokens
    assert empty.accuracy == none.accuracy and not math.isnan(empty.accuracy)


def test_an_empty_edit_without_the_passage_is_counted_and_does_not_stop_the_others() -> None:
    one, two = made(2)
    settings = replace(INNER, add_passage=False)
    empty, full = trials_of([candidate(one, ""), candidate(two, two.references["gold"])], settings)
    assert empty.outcome == "empty_edit" and empty.steps == 0
    assert full.outcome == "ok" and full.steps == 60


def test_divergence_is_an_outcome_with_a_reason_not_an_accuracy_of_zero() -> None:
    group = [candidate(p, p.references["gold"]) for p in made(2)]
    for result in trials_of(group, replace(INNER, lr=1e20)):
        assert result.outcome == "diverged" and "lr" in result.reason and result.reason.endswith(".")
        assert math.isnan(result.accuracy) and result.answers == ()
        assert result.edit.text and all(math.isnan(reward(result, 0.0)) for reward in REWARDS.values())


def test_one_diverging_adapter_leaves_its_neighbours_as_they_are(monkeypatch) -> None:
    from seal_lib.knowledge import domain

    group = [candidate(p, p.references["gold"], arm=f"a{i}") for i, p in enumerate(made(3))]
    alone = trials_of([group[0], group[2]])
    job = domain.Job
    bad = group[1].id
    monkeypatch.setattr(
        domain, "Job", lambda id, *data, **how: job(id, *data, **how | ({"lr": 1e20} if id == bad else {}))
    )
    mixed = trials_of(group)
    assert [t.outcome for t in mixed] == ["ok", "diverged", "ok"]
    assert [t.answers for t in (mixed[0], mixed[2])] == [t.answers for t in alone]


def test_untrained_rows_ask_the_frozen_model_with_or_without_the_passage() -> None:
    passages = made(6)
    frozen, ceiling = trials_of(untrained(passages)), trials_of(untrained(passages, "ceiling", shown=True))
    assert [t.id for t in frozen] == [f"frozen/{p.id}" for p in passages]
    assert all(
        t.steps == 0 and t.edit is None and len(t.answers) == len(p.questions)
        for t, p in zip(frozen, passages, strict=True)
    )
    assert mean(t.accuracy for t in ceiling) > mean(t.accuracy for t in frozen) + 0.3


def test_answers_belong_to_their_question_and_stop_at_the_line() -> None:
    passages = made(3)
    for passage, t in zip(passages, trials_of(untrained(passages, shown=True)), strict=True):
        assert [(a.question, a.gold) for a in t.answers] == [(q.question, q.answer) for q in passage.questions]
        assert all("\n" not in a.text and a.text == a.text.strip() for a in t.answers)


# ------------------------------------------------------------------------------------------ examples


def test_examples_are_the_documents_with_one_end_of_text_each() -> None:
    tokenizer, passage = seedling()[1], made(1)[0]
    examples = examples_of(passage, "one\ntwo")
    assert len(examples) == 3
    assert tokenizer.decode(examples[0].ids) == f"{passage.title}\none<eos>"
    assert tokenizer.decode(examples[2].ids) == f"{passage.title}\n{passage.text}<eos>"
    bare = examples_of(passage, "one", replace(INNER, pad_loss="none"))
    assert tokenizer.decode(bare[0].ids) == f"{passage.title}\none"


def test_documents_are_cut_at_max_length() -> None:
    passage = made(1)[0]
    settings = replace(INNER, pad_loss="none", max_length=5)
    assert [len(e.ids) for e in examples_of(passage, "x" * 999, settings)] == [5, 5]


def test_the_authors_protocol_puts_pads_in_the_loss_and_a_probe_stands_for_them() -> None:
    tokenizer, passage = seedling()[1], made(1)[0]
    authors = replace(INNER, protocol="authors_v1", pad_loss="full", max_length=256, targets="qv")
    full = examples_of(passage, "one", authors)[0]
    probe = examples_of(passage, "one", replace(authors, pad_loss="probe:4"))[0]
    text = len(tokenizer(f"{passage.title}\none")["input_ids"])
    assert len(full.ids) == 256 and set(full.ids[text:]) == {tokenizer.eos_token_id}
    assert sum(full.weights[1:]) == pytest.approx(255) == pytest.approx(sum(probe.weights[1:]))
    assert len(probe.ids) < 32
    again = examples_of(passage, "one", replace(authors, pad_loss="probe:4"))[0]
    assert again.positions == probe.positions  # the probes come from the candidate's seed
    few = trials_of([candidate(passage, "one")], replace(authors, pad_loss="probe:4", epochs=2))
    assert few[0].outcome == "ok"


@pytest.mark.parametrize(
    ("protocol", "pad_loss", "word"),
    [
        ("clean", "full", "none or eos"),
        ("clean", "probe:8", "none or eos"),
        ("authors_v1", "eos", "full or probe"),
        ("authors_v2", "none", "full or probe"),
        ("authors", "full", "protocol"),
        ("clean", "", "none or eos"),
    ],
)
def test_pads_that_do_not_belong_to_the_protocol_are_refused(protocol: str, pad_loss: str, word: str) -> None:
    with pytest.raises(DataError, match=word):
        InnerLoop(1e-3, 10, 8, 16, "all-linear", protocol=protocol, pad_loss=pad_loss)


@pytest.mark.parametrize(
    ("protocol", "pad_loss"), [("authors_v1", "probe"), ("authors_v1", "full:3"), ("clean", "eos:2")]
)
def test_a_misspelt_pad_loss_is_refused_before_anything_is_trained(protocol: str, pad_loss: str) -> None:
    with pytest.raises(DataError, match="pad_loss"):
        InnerLoop(1e-3, 10, 8, 16, "all-linear", protocol=protocol, pad_loss=pad_loss)


AUTHORS = InnerLoop(1e-3, 10, 32, 64.0, "qv", protocol="authors_v1", pad_loss="full")


@pytest.mark.parametrize("protocol", ["authors_v1", "authors_v2"])
@pytest.mark.parametrize(
    "change",
    [{"targets": "all-linear"}, {"targets": "k_proj"}, {"schedule": "cosine"}, {"clip": None}, {"document_limit": 7}],
    ids=str,
)
def test_the_authors_protocols_take_nothing_that_their_code_has_otherwise(protocol: str, change: dict) -> None:
    with pytest.raises(DataError, match=f"{next(iter(change))}.*{protocol}"):
        replace(AUTHORS, protocol=protocol, **change)
    replace(AUTHORS, protocol="clean", pad_loss="eos", **change)


def test_the_label_says_what_departs_from_the_protocol() -> None:
    clean = InnerLoop(1e-3, 10, 8, 16, "all-linear", answer_tokens=8)
    assert (clean.label, AUTHORS.label) == ("clean", "authors_v1")
    assert replace(AUTHORS, protocol="authors_v2", lr=2e-3, rank=64, epochs=5, batch=4, slots=1).label == "authors_v2"
    probe = replace(AUTHORS, pad_loss="probe:64")
    assert probe.label == "authors_v1 (probe:64)"
    assert replace(clean, pad_loss="none", document_limit=3).label == "clean (none, document_limit=3)"
    departed = {"max_length": 256, "split_newlines": False, "add_passage": False, "answer_tokens": 8}
    labels = {replace(probe, **{key: value}).label for key, value in departed.items()}
    assert labels == {f"authors_v1 (probe:64, {key}={value})" for key, value in departed.items()}


def test_the_settings_bring_the_rules_of_their_protocol() -> None:
    passage = made(1)[0]
    text = "Thoughts.\nImplications:\n" + "\n".join(f"Line {i}." for i in range(50))
    counts = {
        protocol: len(examples_of(passage, text, replace(AUTHORS, protocol=protocol)))
        for protocol in ("authors_v1", "authors_v2")
    }
    assert counts == {"authors_v1": 53, "authors_v2": 31}  # with the passage
    shown = Knowledge(replace(AUTHORS, protocol="authors_v2"), WORDING).documents(passage, text)
    assert [d.text for d in shown[:2]] == [f"{passage.title}\nLine 0.", f"{passage.title}\nLine 1."]
    assert len(Knowledge(replace(INNER, document_limit=4), WORDING).documents(passage, text)) == 5


def test_rewards_of_a_trial() -> None:
    good = trial("p", [1, 1, 0, 0])
    assert REWARDS["accuracy"](good, 0.9) == 0.5
    assert [REWARDS["improvement"](good, frozen) for frozen in (0.25, 0.5, 0.75)] == [1.0, 0.0, 0.0]
