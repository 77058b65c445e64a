"""Notes by other writers: the arm ``external`` from a file of completions, from an endpoint, and what failed."""

import gzip
import json

import pytest
from fake_endpoint import FakeEndpoint
from fixtures_seal import DOMAIN, WORDING, MemoryRun, made, real, seedling

from seal_lib.errors import DataError
from seal_lib.knowledge import evaluate, notes
from seal_lib.knowledge.data import load_passages
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Passage

OUTER = OuterLoop(samples=1, edit_tokens=40)


def entries(passages, texts=("Notes on it.", "others")) -> list[dict]:
    return [
        {"title": p.title, "context": p.text, "completions": [f"{t} {i}" for t in texts]}
        for i, p in enumerate(passages)
    ]


def by_external(passages: list[Passage], source: str, run: MemoryRun | None = None) -> list[Passage]:
    settings = ("", 100, 60.0, "cpu", "float32")
    return notes.with_external(run or MemoryRun(), passages, WORDING, OUTER, source, *settings)


@pytest.mark.parametrize("layout", ["list", "lines", "gzip", "one", "results"])
def test_a_file_of_completions_in_each_layout_is_an_arm(tmp_path, layout: str) -> None:
    passages = list(made(3))
    written = entries(passages)
    file = tmp_path / {"lines": "notes.jsonl", "gzip": "notes.json.gz"}.get(layout, "notes.json")
    if layout == "lines":
        file.write_text("\n".join(map(json.dumps, written)))
    elif layout == "gzip":
        file.write_bytes(gzip.compress(json.dumps(written).encode()))
    elif layout == "one":
        file.write_text(json.dumps([{"context": e["context"], "completion": e["completions"][0]} for e in written]))
    elif layout == "results":
        articles = [e | {"completions": [{"text": t, "stats": {}} for t in e["completions"]]} for e in written]
        file.write_text(json.dumps({"overall": {}, "articles": articles}))
    else:
        file.write_text(json.dumps(written[::-1]))  # found by their passage, in whatever order
    noted = by_external(passages, str(file))
    assert [p.references["external"] for p in noted] == [f"Notes on it. {i}" for i in range(3)]
    assert [p.id for p in noted] == [p.id for p in passages] and noted[0].references["gold"]


def test_the_arm_trains_on_the_file(tmp_path) -> None:
    passages = list(made(2))
    file = tmp_path / "notes.json"
    file.write_text(json.dumps([{"context": p.text, "completions": [p.references["gold"]]} for p in passages]))
    policy = Policy("untrained", *seedling())
    noted = by_external(passages, str(file))
    trials = evaluate.evaluate_arm(MemoryRun(), policy, noted, "external", DOMAIN, OUTER, seed=0)
    assert [t.edit.text for t in trials] == [p.references["gold"] for p in passages]
    assert [(t.arm, t.outcome) for t in trials] == [("external", "ok")] * 2
    assert sum(t.accuracy for t in trials) > 1.5  # as gold notes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "no completions about 2 of 2 passages .the first: heldout-3-0000"),
        ('[{"title": "x"}]', "entry 0: the key 'context' is missing"),
        ('[{"context": "x"}]', "entry 0: no completions"),
        ('[{"context": "x", "completions": []}]', "entry 0: no completions"),
        ('[{"context": "x", "completions": [3]}]', r"entry 0: completions\[0\] is 3, not text"),
        ('{"articles": 3}', "expected a list of passages with completions"),
        ("3", "holds a int"),
        ("nonsense", "is not JSON text"),
    ],
)
def test_what_is_no_file_of_completions_gets_one_sentence(tmp_path, content: str, says: str) -> None:
    file = tmp_path / "notes.json"
    file.write_text(content)
    with pytest.raises(DataError, match=says):
        by_external(list(made(2)), str(file))
    with pytest.raises(DataError, match="external: no file"):
        by_external(list(made(2)), str(tmp_path / "nowhere.json"))


def test_passages_that_bring_completions_along_have_the_arm_by_themselves(tmp_path) -> None:
    """The way that the parameter files name: a file with questions and completions as the source of passages."""
    file = tmp_path / "set.json"
    questions = [{"question": "Who?", "answer": "she"}]
    file.write_text(json.dumps([e | {"questions": questions} for e in entries(made(2))]))
    passages = load_passages(str(file), 2, 0)
    policy = Policy("untrained", *seedling())
    trials = evaluate.evaluate_arm(MemoryRun(), policy, passages, "external", DOMAIN, OUTER, seed=0)
    assert {t.edit.text for t in trials} == {"Notes on it. 0", "Notes on it. 1"}


def test_the_released_self_edits_are_an_arm_of_the_paper_s_evaluation_set() -> None:
    passages = load_passages(str(real("squad", "squad_val.json")), 200, seed=42)
    file = real("seal_released", "self_edits_base_val.json")
    released = json.loads(file.read_text())
    noted = by_external(passages, str(file))
    assert [p.references["external"] for p in noted] == [e["completions"][0].strip() for e in released]
    results = by_external(passages, str(real("seal_released", "query_eval_iter2.json")))
    assert len({p.references["external"] for p in results}) == 200
    assert all(a.references != b.references for a, b in zip(noted, results, strict=True))
    bringing = load_passages(str(file), 5, seed=0)
    assert all(len(p.references) == 5 and p.references["external"] for p in bringing)


def test_another_model_writes_once_a_passage_and_one_that_failed_is_counted(serve) -> None:
    passages = list(made(4))
    gone = passages[2].text

    def behave(prompt: str, nth: int) -> object:
        return (400, {}, "no") if gone in prompt else f"Notes {prompt.count('Passage')}"

    server: FakeEndpoint = serve(behave)
    run = MemoryRun()
    noted = by_external(passages, server.name, run)
    assert server.calls == 4 and {b["messages"][0]["content"] for b in server.bodies} == {
        WORDING.write(p) for p in passages
    }
    assert {(b["temperature"], b["max_tokens"]) for b in server.bodies} == {(OUTER.temperature, 40)}
    assert [p.references.get("external") for p in noted] == ["Notes 1", "Notes 1", None, "Notes 1"]
    assert noted[2].unwritten == {"external": "status 400: no"} and run.counts["other_failed"] == 1
    assert [row["reason"] for row in run.phases["external/write"].values()] == ["", "", "status 400: no", ""]
    trials = evaluate.evaluate_arm(run, Policy("p", *seedling()), noted, "external", DOMAIN, OUTER, seed=0)
    assert [t.outcome for t in trials] == ["ok", "ok", "unwritten", "ok"] and trials[2].reason == "status 400: no"
    assert trials[2].accuracy != trials[2].accuracy and trials[2].unit_id == passages[2].id  # NaN, not 0
    rows = evaluate.result_rows("x", "external", trials, protocol="clean", model="m", grader="exact")
    told = {row["metric"]: row for row in rows}
    assert (told["accuracy"]["n"], told["accuracy"]["dropped"], told["failed_rate"]["value"]) == (3, 1, 0.25)
    assert by_external(passages, server.name)[0].references["external"] == "Notes 1"
    assert server.calls == 5  # only the one that failed
