"""Learn, ask, revert, export on the shipped model and document, as functions and as commands."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures_seal import DOMAIN, MemoryRun, digest, made, seedling

from seal_lib import paths
from seal_lib.__main__ import main
from seal_lib.errors import DataError
from seal_lib.generation.contract import Sampling
from seal_lib.grading.graders import exact_match
from seal_lib.knowledge import world
from seal_lib.loops.domain import Candidate
from seal_lib.loops.inner import try_all
from seal_lib.loops.policy import Policy, Source
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Question
from seal_lib.store import asking, learning, questions, texts
from seal_lib.store.database import Store
from seal_lib.store.schema import STAGES
from seal_lib.store.sharing import export, take_in
from seal_lib.training.attached import attached

ANNALS = paths.PACKAGE / "store" / "annals.md"
OUTER = OuterLoop(samples=8, edit_tokens=200)
OWN = learning.OwnQuestions(DOMAIN.prompts, 8)
ASKED = ("Which firm paid Beza Dekobo?", "What honour was Mefe Tefeso given?")


def policy(name: str = "seedling-knowledge") -> Policy:
    source = Source(name)
    return Policy("untrained", *(seedling() if name == "seedling-knowledge" else source.load()), source=source)


def document(passages: int = 2) -> texts.Document:
    """The first passages of the shipped document, a question at each."""
    whole = texts.with_questions(texts.read(ANNALS)[0], [Question(text, "") for text in ASKED])
    return replace(whole, passages=whole.passages[:passages], places=whole.places[:passages])


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """(store, edits, answers before anything was learned, digest of the model then); tests leave it as it is."""
    store = Store(tmp_path_factory.mktemp("own") / "store")
    fresh, before = digest(seedling()[0]), []
    store.add(document())
    before = asking.ask(MemoryRun(), store, policy(), ASKED, DOMAIN)
    edits = learning.learn(MemoryRun(), store, policy(), document(), DOMAIN, OUTER, OWN)
    yield store, edits, before, fresh
    store.close()


def test_wrong_before_right_after_and_all_of_it_is_kept(learned) -> None:
    store, edits, _, _ = learned
    assert [edit.passage.title for edit in edits] == ["Annals of Kalor", "Annals of Kevi"]
    assert [edit.place for edit in edits] == ["line 3", "line 7"]
    assert any(edit.state == "active" for edit in edits)
    for edit in edits:
        was, now = (learning.accuracy(edit.questions, stage, "exact") for stage in ("before", "after"))
        assert (edit.state == "active") == (now > was)
        assert edit.questions[0].origin == "in_view" and edit.questions[0].gold == edit.questions[0].in_view.text
        assert edit.training["tried"] == 8 and edit.training["cost"]["trained"] > edit.training["tokens"] > 0
        assert max(edit.training["rewards"]) == pytest.approx(now)  # the best of those tried
        assert edit.weights == store.edit(edit.id).weights and edit.recipe["inner"]["lr"] == DOMAIN.inner.lr
    right = {q.question: q.gold for edit in edits for q in edit.questions if q.after.grades["exact"] == 1.0}
    wrong = {q.question for edit in edits for q in edit.questions if q.before.grades["exact"] == 0.0}
    assert set(right) & wrong  # wrong before, right after


def test_the_gold_answers_are_true_in_the_made_world(learned) -> None:
    """The gold answers that nobody gave come from the model; here the truth is known."""
    _, edits, _, _ = learned
    facts = {(fact[0], fact[2]) for p in world.passages("heldout", 4, seed=1) for fact in p.facts}
    asked = [q for edit in edits for q in edit.questions]
    assert all(any(name in q.question and value == q.gold for name, value in facts) for q in asked)


def test_learning_again_does_nothing_and_other_settings_do(learned) -> None:
    store, edits, _, _ = learned
    run = MemoryRun()
    again = learning.learn(run, store, policy(), document(), DOMAIN, OUTER, OWN)
    assert again == edits and not run.counts and len(store.edits()) == 2


def test_a_question_is_answered_by_its_passages_adapter_without_the_passage(learned) -> None:
    store, edits, before, _ = learned
    replies = asking.ask(MemoryRun(), store, policy(), ASKED, DOMAIN)
    for reply, edit, first in zip(replies, edits, before, strict=True):
        asked = next(q for q in edit.questions if q.question == reply.question)
        assert (reply.document, reply.place, reply.title) == ("annals.md", edit.place, edit.passage.title)
        assert reply.answers["before"] == asked.before.text == first.answers["before"]
        assert reply.answers["in_view"] == asked.in_view.text == first.answer and first.used == "in_view"
        if edit.state == "active":
            assert reply.used == "after" and reply.edit == edit.id and reply.answer == asked.after.text
    (lost,) = asking.ask(MemoryRun(), store, policy(), ["Zyx?"], DOMAIN)
    assert lost.used == "before" and lost.document == "" and "no passage" in lost.why


def test_revert_is_exact(learned, tmp_path: Path) -> None:
    _, edits, before, fresh = learned
    shutil.copytree(learned[0].folder, tmp_path / "copy")
    with Store(tmp_path / "copy") as store:
        for edit in store.edits("active"):
            store.revert(edit.id)
        after = asking.ask(MemoryRun(), store, policy(), ASKED, DOMAIN)
    assert after == before and digest(seedling()[0]) == fresh  # the same texts from the same bits


def test_another_base_is_refused_by_name(learned) -> None:
    store, edits, _, _ = learned
    used = next(edit for edit in edits if edit.state == "active")
    asked = used.questions[0].question
    with pytest.raises(
        DataError, match=f"edit {used.id} of annals.md was learned on seedling-knowledge .*seedling-know"
    ):
        asking.ask(MemoryRun(), store, policy("seedling-knowledge-1"), [asked], DOMAIN)


def test_peft_loads_what_is_exported_unmodified_with_the_same_logits(learned, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel

    store, edits, _, _ = learned
    model, tokenizer = seedling()
    edit = next(edit for edit in edits if edit.state == "active")
    (folder,) = export(store, tmp_path / "out", [edit.id])
    prompt = DOMAIN.prompts.ask(edit.passage, Question(edit.questions[0].question, ""))
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with attached(model, [store.adapter(edit, Source("seedling-knowledge"))], [0]):
            ours = model(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(Source("seedling-knowledge").load()[0], str(folder)).eval()(input_ids=ids)
        alone = AutoPeftModelForCausalLM.from_pretrained(str(folder)).eval()(input_ids=ids)  # finds its base itself
    assert (ours - plain).abs().max() > 0.1
    torch.testing.assert_close(theirs.logits, ours, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.logits, ours, atol=1e-4, rtol=1e-4)


def test_what_was_exported_is_taken_in_and_measured_anew(learned, tmp_path: Path) -> None:
    store, edits, _, _ = learned
    used = [edit for edit in edits if edit.state == "active"]
    export(store, tmp_path / "out")
    with Store(tmp_path / "other") as other:
        taken = take_in(other, policy(), tmp_path / "out", DOMAIN)
        assert [e.state for e in taken] == ["active"] * len(used)
        for here, there in zip(taken, used, strict=True):
            assert here.passage.id == there.passage.id and here.self_edit.text == there.self_edit.text
            assert [q.after.text for q in here.questions] == [q.after.text for q in there.questions]
        asked = used[0].questions[0].question
        replies = [asking.ask(MemoryRun(), one, policy(), [asked], DOMAIN)[0] for one in (store, other)]
        assert replies[0].answer == replies[1].answer and replies[1].used == "after"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("adapter", "../annals-1", "is no name of a folder beside it"),
        ("weights", "00" * 32, "was learned on seedling-knowledge .*use model seedling-knowledge"),
        ("questions", ["Who?"], "is not whole: questions are"),
        ("title", None, "line 1 is not whole"),
        ("use_dora", True, "is no plain LoRA adapter: use_dora is 'True'"),
        ("init_lora_weights", "pissa", "init_lora_weights is 'pissa'"),
    ],
)
def test_what_cannot_be_taken_in_is_refused_and_nothing_is_kept(learned, tmp_path: Path, key, value, says) -> None:
    store, edits, _, _ = learned
    (folder,) = export(store, tmp_path / "out", [next(edit.id for edit in edits if edit.state == "active")])
    file = folder / "adapter_config.json" if key.startswith(("use", "init")) else tmp_path / "out" / "corpus.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with Store(tmp_path / "other") as other:
        with pytest.raises(DataError, match=says):
            take_in(other, policy(), tmp_path / "out", DOMAIN)
        assert not other.edits() and not other.passages()
    with Store(tmp_path / "other") as other, pytest.raises(DataError, match="has no corpus.jsonl"):
        take_in(other, policy(), folder, DOMAIN)


def test_without_any_question_nothing_is_used_unmeasured(tmp_path: Path) -> None:
    bare = texts.read(ANNALS)[0]
    bare = replace(bare, passages=bare.passages[:1], places=bare.places[:1])
    with Store(tmp_path / "store") as store:
        (edit,) = learning.learn(
            MemoryRun(),
            store,
            policy(),
            bare,
            DOMAIN,
            replace(OUTER, samples=1),
            learning.OwnQuestions(DOMAIN.prompts, 0),
        )
        assert edit.state == "quarantined" and "no question to measure it by" in edit.reason and edit.adapter
        assert math.isnan(learning.accuracy(edit.questions, "after", "exact"))
    with pytest.raises(DataError, match="does not say which model it is"):
        learning.learn(MemoryRun(), store, replace(policy(), source=None), bare, DOMAIN, OUTER, OWN)


@pytest.mark.slow
def test_how_far_own_questions_can_be_trusted() -> None:
    """Of the model's own questions that pass the test, nearly all have the right answer; the made world knows."""
    passages = made(24)
    written = questions.write(policy(), passages, DOMAIN.prompts, Sampling(200, 1.0, 0.95, 6), seed=0)
    asked = [replace(p, questions=tuple(written[p.id])) for p in passages if written[p.id]]
    shown = [Candidate(p.id, p, None, "in_view", 0, trains=False, shown=True) for p in asked]
    kept = [
        (t.unit_id, a) for t in try_all(policy(), shown, domain=DOMAIN) for a in t.answers if a.grades["exact"] == 1.0
    ]
    facts = {p.id: p.facts for p in passages}
    right = [
        any(
            exact_match(answer.gold, value) and answer.question == wording.format(n=name)
            for name, attribute, value in facts[unit]
            for wording in world.WORDINGS[attribute].question
        )
        for unit, answer in kept
    ]
    print(f"{sum(right)} of {len(right)} own questions kept are right")
    assert len(right) >= 20 and sum(right) / len(right) >= 0.9


# ---------------------------------------------------------------------------------------------- commands


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    for name in ("SEAL_SOURCE", "SET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_do_it_all(home: Path, capsys) -> None:
    def seal(*arguments: str, code: int = 0) -> str:
        assert main([*arguments]) == code
        told = capsys.readouterr()
        assert ("made world only; for other text name a model" in told.err) == (arguments[0] == "learn")
        return told.err if code else told.out

    shutil.copy(ANNALS, home / "mine.md")
    assert "There is no store in" in seal("list", code=2) and not (home / "data").exists()
    text = seal("learn", "mine.md", "--question", ASKED[0], "--scale", "smoke", "--set", "epochs=10")
    assert "edit 1 · mine.md, line 3 · Annals of Kalor" in text and "passage in view" in text and ASKED[0] in text
    edits = json.loads(seal("list", "--json"))
    assert [e["document"] for e in edits] == ["mine.md"] * 4 and (home / "data" / "store" / "store.sqlite3").is_file()
    assert json.loads(seal("show", "1", "--json")) == edits[0]
    card = seal("show", "1")
    assert "The house of Mera hired Beza Dekobo." in card and "on seedling-knowledge (float32, " in card
    text = seal("ask", ASKED[0], "--scale", "smoke")
    assert "mine.md, line 3, 'Annals of Kalor'" in text and "tokens of its prompt" in text and "s, all answers" in text
    reply = json.loads(seal("ask", ASKED[0], "--scale", "smoke", "--json"))
    assert reply["answer"] == reply["answers"][reply["used"]] == text.splitlines()[0] and reply["seconds"] > 0
    assert reply["place"] == "line 3" and set(reply["answers"]) <= set(STAGES) and reply["answers"]["in_view"] == "Mera"
    used = [e["id"] for e in edits if e["state"] == "active"]
    if used:
        assert len(json.loads(seal("export", "out", "--json"))) == len(used)
        assert "is reverted" in seal("revert", str(used[0]))
    assert "so there is nothing to take back" in seal("revert", str(used[0] if used else 1), code=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["learn", "none.md"], "There is no document none.md"),
        (["learn", "a.md", "--set", "epochs"], "--set epochs has no value"),
        (
            ["learn", "a.md", "--set", "epoch=2"],
            "'epoch' is not a parameter of 03_your_document; did you mean 'epochs'",
        ),
        (["learn", "a.md", "--scale", "huge"], "has scales: paper, seedling, small, smoke"),
        (["ask", "Who?", "--model", "seedling-none", "--store", "empty"], "does not ship"),
        (["show", "3", "--store", "empty"], "has no edit 3"),
        (["list", "--store", "a.md"], "There is no store in a.md"),
        (["learn", "a.md", "--scale", "smoke", "--store", "a.md"], "a.md/adapters cannot be used"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(home: Path, capsys, arguments: list[str], says: str) -> None:
    (home / "a.md").write_text("Some text.")
    Store(home / "empty").close()
    assert main(arguments) == 2
    told = capsys.readouterr().err.strip()
    assert says in told and "\n" not in told
