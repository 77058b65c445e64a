"""Passages found by vectors: a stand-in for an encoder, and a real sentence-transformers model where the extra is."""

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from fixtures_seal import DOMAIN, MemoryRun
from test_own_documents import ANNALS, home  # noqa: F401  a fixture
from test_store import DOCUMENT, PASSAGES, edit
from test_store_use import OUTER, policy

from seal_lib import paths
from seal_lib.__main__ import main
from seal_lib.errors import DataError, ParameterError
from seal_lib.knowledge import world
from seal_lib.records import Passage
from seal_lib.store import asking, database, growth, guard, routing, search, texts, transactions
from seal_lib.store.database import Store
from seal_lib.store.retrieval import WordIndex, threshold
from seal_lib.store.search import Search, Vectors

SEEDLING = paths.PACKAGE / "seedling" / "models" / "knowledge"
MEANINGS = (
    {"paid", "hired", "employed"},
    {"kale", "he"},
    {"mera"},
    {"zo", "she"},
    {"tadar"},
    {"sailed", "boat"},
    {"rin"},
)
TEXTS = ("Kale employed by Mera.", "Zo sailed to Tadar.", "Rin sailed, hired a boat.")
HERE = tuple(Passage(f"p{i}", "", text, ()) for i, text in enumerate(TEXTS))


@dataclass
class Fake:
    """Counts words by what they mean, and remembers what it was asked."""

    identity: str = "fake 1"
    seen: list[str] = field(default_factory=list)

    def passages(self, texts) -> np.ndarray:
        self.seen += texts
        return self.questions(texts)

    def questions(self, texts) -> np.ndarray:
        words = [[word.strip(".,?").lower() for word in text.split()] for text in texts]
        rows = np.array([[sum(w in means for w in one) for means in MEANINGS] for one in words], "f4")
        return rows / np.maximum(1e-9, np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.fixture
def fake(monkeypatch) -> Fake:
    """Stands in for whatever encoder a `Search` names."""
    encoder = Fake()
    monkeypatch.setattr(search, "find_spec", lambda name: True)
    monkeypatch.setattr(search, "loaded_sentences", lambda *named: encoder)
    return encoder


def near() -> Search:
    return Search("embeddings", str(SEEDLING))


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store") as made:
        made.add(replace(DOCUMENT, passages=HERE))
        yield made


def test_vectors_find_what_shares_no_word_with_the_question(store: Store, fake: Fake) -> None:
    index = near().index(store, HERE)
    assert WordIndex(HERE).rank("Who paid him?") == []
    assert [m.passage.id for m in index.rank("Who paid him?", 3)] == ["p0", "p2", "p1"]
    best, second = index.rank("Where has she a boat?")
    assert (
        best.passage.id == "p1" and best.weight == pytest.approx(2 / 6**0.5, abs=0.01) and second.weight < best.weight
    )
    assert [len(found) for found in index.rank_all(["Kale?", "Zo?"], 9)] == [3, 3]  # every passage is a match
    assert Vectors(store, [], fake).rank("Kale?") == [] and index.rank_all([]) == []
    assert Search().index(store, HERE).rank("Who paid him?") == []  # words are the default


def test_a_text_is_encoded_once_by_each_encoder_also_after_a_kill(store: Store, fake: Fake, monkeypatch) -> None:
    near().index(store, HERE)
    assert len(fake.seen) == 3
    near().index(store, [*HERE[::-1], Passage("p3", "New", "He sailed.", ())])
    assert fake.seen[3:] == ["New\nHe sailed."]
    with Store(store.folder) as again:
        assert near().index(again, HERE).rank("paid", 1)[0].passage.id == "p0" and len(fake.seen) == 4
    fake.identity = "fake 2"
    monkeypatch.setattr(database, "VECTORS_AT_ONCE", 1)
    whole = Fake.questions

    def dies(self, texts):
        if "Zo" in texts[0]:
            raise KeyboardInterrupt
        return whole(self, texts)

    monkeypatch.setattr(Fake, "questions", dies)
    with pytest.raises(KeyboardInterrupt):
        near().index(store, HERE)
    monkeypatch.setattr(Fake, "questions", whole)
    near().index(store, HERE)
    again = [text.split()[0] for text in fake.seen[4:]]
    assert again == ["Kale", "Zo", "Zo", "Rin"]  # a changed encoder sees all anew, what was kept is not made again
    assert dict(store._base.execute("SELECT encoder, COUNT(*) FROM vector GROUP BY encoder")) == {
        "fake 1": 4,
        "fake 2": 3,
    }


def test_a_store_of_an_older_version_learns_to_keep_vectors(tmp_path: Path, fake: Fake, monkeypatch) -> None:
    known = transactions.MIGRATIONS
    monkeypatch.setattr(transactions, "MIGRATIONS", known[:2])
    with Store(tmp_path / "old") as old:
        old.add(DOCUMENT)
        old.keep(edit(state="quarantined"), None)
        assert not old._base.execute("SELECT 1 FROM sqlite_master WHERE name = 'vector'").fetchone()
    monkeypatch.setattr(transactions, "MIGRATIONS", known)
    with Store(tmp_path / "old") as now:
        near().index(now, PASSAGES)
        assert len(fake.seen) == 3 and [e.id for e in now.edits()] == [1]


def test_the_threshold_is_measured_on_what_finds_the_passages(store: Store, fake: Fake) -> None:
    asked = [("Who employed Kale?", "p0"), ("Where did Zo go?", "p1"), ("Who paid him?", "p0"), ("Rin sailed?", "p2")]
    needed = threshold(near().index(store, HERE), asked)
    own = [next(m.weight for m in near().index(store, HERE).rank(q, 3) if m.passage.id == p) for q, p in asked]
    assert 0 < needed < min(own) < 1 and needed != threshold(WordIndex(HERE), asked)
    store.keep(
        replace(
            edit(),
            passage=HERE[0],
            questions=tuple(replace(edit().questions[0], question=q) for q, _ in asked[::2] * 2),
        ),
        None,
    )
    router = routing.Router(store, "ab" * 32, "measured", near())
    evidence, stage, why = router.route("Who paid him?")
    assert evidence.found and stage == "after" and router.needed > 0
    evidence, stage, why = router.route("What is the weather?")
    assert not evidence.found and stage == "before" and "its likeness to the best passage is 0.00, 0." in why
    with Store(store.folder / "empty") as empty:
        assert "the store has no passage" in routing.Router(empty, "", "measured", near()).route("Who?")[2]


def test_questions_are_answered_from_what_vectors_find(store: Store, fake: Fake) -> None:
    text = "Who paid him?"
    (by_words,), (by_vectors,) = (
        asking.ask(MemoryRun(), store, policy(), [text], DOMAIN, route="retrieval", search=how)
        for how in (None, near())
    )
    assert by_words.used == "before" and by_words.passage == ""
    assert by_vectors.used == "in_view" and by_vectors.passage == "p0" and by_vectors.place == "line 1"


def test_a_growing_store_is_also_asked_by_vectors_where_an_encoder_is_given(tmp_path: Path, fake: Fake) -> None:
    passages, prior = world.passages("heldout", 2, seed=3, people=2), guard.prior_questions(None, 2, 0)
    with Store(tmp_path / "store") as store:
        outer = replace(OUTER, samples=1)
        found = growth.grow(
            MemoryRun(), store, policy(), DOMAIN, outer, passages, [2], prior, merge_most=0, search=near()
        )
    more = {"store_measured_embeddings", "store_retrieval_embeddings"}
    assert set(found[1].trials) == {growth.arm_of(way) for way in routing.ROUTES} | more == set(growth.routes(near()))
    assert not more & set(growth.routes()) and fake.seen
    arms = {row["arm"] for row in growth.rows(found, protocol="", model="m", grader="exact")}
    assert {"store_retrieval_embeddings - store_retrieval", "store_measured_embeddings - store_measured"} <= arms
    read, seen = (found[1].trials[arm][1].accuracy for arm in ("store_retrieval", "store_retrieval_embeddings"))
    assert read == 1.0 > seen  # to this encoder all names are one, so it always reads the first passage


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"retrieval": "best"}, "retrieval: 'best' is not one of words, embeddings"),
        ({"retrieval": "embeddings"}, "embeddings need an encoder; name a sentence-transformers folder"),
        ({"retrieval": "embeddings", "encoder": "some/where"}, "no pinned revision; .* parameter `encoder_revision`"),
        ({"retrieval": "embeddings", "encoder": "nothing"}, "neither a shipped seedling, a folder"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_loaded(monkeypatch, settings, says) -> None:
    monkeypatch.setattr(search, "find_spec", lambda name: True)
    with pytest.raises((ParameterError, DataError), match=says):
        Search(**settings)


def test_without_the_extra_one_sentence_says_how_to_get_it(home: Path, monkeypatch, capsys) -> None:  # noqa: F811
    Store(paths.data() / "store").close()  # else that is said first
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    chosen = ["--set", "retrieval=embeddings", "--set", f"encoder={SEEDLING}"]
    for command in (["ask", "Who?"], ["route", "Who?"]):
        assert main([*command, *chosen]) == 2
        told = capsys.readouterr().err.strip()
        assert 'pip install -e ".[embeddings]"' in told and "\n" not in told


# ---------------------------------------------------------------------------------------------- with the extra


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A sentence-transformers folder of the shipped model: the mean of what its last layer says of each token."""
    pytest.importorskip("sentence_transformers", reason="the extra `embeddings` is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = Transformer(str(SEEDLING), max_seq_length=128)
    words.tokenizer.pad_token = words.tokenizer.eos_token
    folder = tmp_path_factory.mktemp("encoder") / "folder"
    prompts = {"query": "", "document": ""}
    SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())], device="cpu", prompts=prompts).save(
        str(folder)
    )
    return folder


def test_a_model_of_the_library_finds_passages_and_its_vectors_are_kept(encoder: Path, home: Path, capsys) -> None:  # noqa: F811
    def seal(*arguments: str) -> dict:
        assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    shutil.copy(ANNALS, home / "mine.md")
    chosen = ["--scale", "smoke", "--set", "retrieval=embeddings", "--set", f"encoder={encoder}", "--set", "device=cpu"]
    with Store(home / "data" / "store") as store:
        store.add(texts.read(home / "mine.md")[0])
        text = store.passages()[2].passage.text
    found = seal("route", text, *chosen)
    assert found["place"] == "line 11" and found["weight"] > 0.8
    reply = seal("ask", text[:80], *chosen, "--route", "retrieval")
    assert reply["place"] == "line 11" and reply["used"] == "in_view"
    with Store(home / "data" / "store") as store:
        ((identity, kept),) = store._base.execute("SELECT encoder, COUNT(*) FROM vector GROUP BY encoder").fetchall()
        passages = [part.passage for part in store.passages()]
        assert kept == len(passages) and identity == search.models.weight_hash(str(encoder))
        rows = store.vectors([f"{p.title}\n{p.text}" for p in passages], identity, lambda texts: 1 / 0)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
        index = Search("embeddings", str(encoder), device="cpu").index(store, passages)
        several = [p.text for p in passages]
        assert [m[0].passage.text for m in index.rank_all(several, 1)] == several


def test_an_encoder_that_is_none_or_is_pickled_is_refused(encoder: Path, tmp_path: Path, store: Store) -> None:
    with pytest.raises(DataError, match=r"has no modules.json, so it is no sentence-transformers model"):
        near().index(store, HERE)
    shutil.copytree(encoder, tmp_path / "pickled")
    (weights,) = (tmp_path / "pickled").rglob("model.safetensors")
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(DataError, match=r"pytorch_model.bin is pickled and is not read"):
        Search("embeddings", str(tmp_path / "pickled")).index(store, HERE)
    shutil.copytree(encoder, tmp_path / "code")
    modules = json.loads((tmp_path / "code" / "modules.json").read_text())
    (tmp_path / "code" / "modules.json").write_text(json.dumps([modules[0] | {"type": "subprocess.Popen"}, modules[1]]))
    with pytest.raises(DataError, match="not part of Sentence Transformers"):
        Search("embeddings", str(tmp_path / "code")).index(store, HERE)
