"""Streams, update rules and the study loop on the shipped model: what is kept, what resumes, what never leaks.

Run: pytest tests/test_continual_study.py
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fixtures_seal import WORDING, real, seedling

from seal_lib import runs
from seal_lib.continual import metrics, streams, study, tables, tuning
from seal_lib.continual.lab import Lab
from seal_lib.continual.routing import BM25
from seal_lib.continual.rules import RULES
from seal_lib.continual.rules.base import State
from seal_lib.errors import DataError, ParameterError, RunError
from seal_lib.inner_loop import InnerLoop
from seal_lib.records import Question
from seal_lib.runs import Scratch

INNER = InnerLoop(lr=4e-3, epochs=1, rank=4, alpha=8.0, targets="all-linear", answer_tokens=6)


def lab(**changes: object) -> Lab:
    return Lab(*seedling(), WORDING, replace(INNER, **changes), anchors=12, anchor_tokens=24)


def made(count: int = 2, length: int = 2, skip: int = 0) -> list[streams.Stream]:
    plain = streams.load_streams("world:heldout", count, length, seed=3, skip=skip, questions=2)
    return streams.with_edits(plain, "gold")


PRIOR = streams.prior_questions("world:known", 6, 1)


def run_arms(names: list[str], run=None, given=None, **options: object) -> dict[str, list[dict]]:
    bench, given = lab(), given or made()
    return {n: study.run_arm(run or Scratch(), study.Arm(n, n), bench, given, PRIOR, **options) for n in names}


@pytest.fixture
def open_run(suite):
    """A function that opens the same run folder again, as a restarted process does."""
    suite.notebook("10_demo", "seed: int = 0  # of every draw")
    identity = runs.identity_of("10_demo", "seedling", "abc", {"seed": 0}, {})
    folder = suite.home / "runs" / "10_demo" / "seedling" / "abc"
    opened: list[runs.Run] = []

    def start() -> runs.Run:
        if opened:
            opened[-1].close()
        opened.append(runs.Run(folder, identity, interactive=False))
        return opened[-1]

    yield start
    opened[-1].close()


def test_streams_share_no_passage_and_are_reproducible(tmp_path) -> None:
    one, again, other = made(3, 4), made(3, 4), made(2, 4, skip=3)
    assert one == again and len({s.id for s in one + other}) == 5
    texts = [p.text for s in one + other for p in s.passages]
    assert len(set(texts)) == len(texts) == 20
    assert all(len(p.questions) == 2 for s in one for p in s.passages)
    assert one[0].edits[0] == one[0].passages[0].references["gold"]
    with pytest.raises(DataError, match="2067 passages of SQuAD dev, not 1"):
        (tmp_path / "p.json").write_text(
            '[{"title": "t", "context": "c", "questions": [{"question": "q", "answer": "a"}]}]'
        )
        streams.load_streams(str(tmp_path / "p.json"), 2, 2, sequences="authors")
    with pytest.raises(DataError, match="not one of disjoint"):
        streams.load_streams("world:heldout", 2, 2, sequences="authors")
    given = made(2, 2)
    with pytest.raises(DataError, match="no notes by 'gpt'"):
        streams.with_edits(given, "gpt")


def test_the_authors_way_follows_their_protocol_whatever_the_other_arms_do() -> None:
    bench, given = lab(document_limit=1, add_passage=False), made(1)
    edit = "Heading\n1. one\n---\nMore\n1. two"
    given = [replace(given[0], edits=(edit, edit))]
    ours, theirs = (RULES[name](bench) for name in ("sequential", "sequential_authors"))
    assert theirs.lab.inner.label.startswith("authors_v1 (probe:16")
    title = given[0].passages[0].title
    texts = [bench.tokenizer.decode(ids) for ids in theirs.lab.documents(given[0], 0)]
    assert texts == [f"{title}\n{line}" for line in ("1. one", "More", "1. two", given[0].passages[0].text)]
    (job,) = theirs.jobs(given, [State()], 0)
    assert all(example.visible and max(example.weights) > 1 for example in job.examples)
    assert len(ours.jobs(given, [State()], 0)[0].examples) == 1


def test_the_authors_sequences_are_theirs() -> None:
    theirs = json.loads(real("seal_released", "continual_sequences.json").read_text())
    assert streams.authors_sequences() == theirs
    dev = streams.authors_sequences("authors_dev")
    assert len(dev) == 16 and not {i for row in dev for i in row} & {i for row in theirs for i in row}
    found = streams.load_streams(str(real("squad", "squad_val.json")), 3, 8, sequences="authors", skip=1)
    assert [len(s) for s in found] == [8, 8, 8] and found[0].id.endswith("-001")


def test_bm25_finds_the_passage_and_defers() -> None:
    index = BM25(["The cat sat on the mat in Oslo", "A dog ran through Rome", "Rome was not built in a day"])
    assert index.best("Where did the cat sit?") == 0 and index.best("the day Rome was built") == 2
    assert index.best("unknown words only") is None
    assert index.best("a cat of quantum chromodynamics flavours", threshold=0.5) is None
    assert BM25([]).best("anything") is None


def test_no_rule_sees_a_question() -> None:
    """The same streams with other questions: the same training jobs, draw for draw."""
    bench, plain = lab(), made()
    other = [
        replace(s, passages=tuple(replace(p, questions=(Question("Why?", "So."),)) for p in s.passages)) for s in plain
    ]
    for name, rule in RULES.items():
        if rule.trains:
            one, two = (rule(bench).jobs(given, [State(), State()], 0) for given in (plain, other))
            for a, b in zip(one, two, strict=True):
                assert (a.id, a.seed, a.order, a.plan()) == (b.id, b.seed, b.order, b.plan()), name
                assert [tuple(e.ids) for e in a.examples] == [tuple(e.ids) for e in b.examples], name


def test_every_rule_runs_and_gives_a_dense_matrix() -> None:
    by_arm = run_arms(list(RULES))
    base = tables.stack(by_arm["frozen"])
    for name, rows in by_arm.items():
        R = tables.stack(rows)
        assert R.shape == (2, 3, 2) and not np.isnan(R).any(), name
        assert np.array_equal(R[:, 0], base[:, 0]) and tables.prior(rows).shape == (2, 3), name
        trained = RULES[name].trains
        assert all((row.get("steps", 0) > 0) == (trained and row["k"] > 0) for row in rows), name
    assert np.array_equal(tables.stack(by_arm["frozen"])[:, 2], base[:, 0])
    # isolation answers from the own edit alone, so it forgets nothing; the first edit of every sequential arm is it
    oracle = tables.stack(by_arm["isolation_oracle"])
    assert (metrics.backward_transfer(oracle) == 0).all()
    assert np.array_equal(tables.stack(by_arm["sequential"])[:, 1], tables.stack(by_arm["merge_sum"])[:, 1])
    assert tables.stack(by_arm["passage_in_context"])[:, 2].mean() > 0.9
    assert tables.stack(by_arm["rag"])[:, 2].mean() > 0.9


def test_the_order_of_arms_changes_nothing() -> None:
    names = ["replay", "null_space", "sequential", "ewc", "kl"]
    one, two = run_arms(names), run_arms(names[::-1])
    assert one == two


def test_streams_do_not_depend_on_their_neighbours() -> None:
    given = made(3)
    together = run_arms(["null_space_replay"], given=given)["null_space_replay"]
    alone = run_arms(["null_space_replay"], given=given[1:2])["null_space_replay"]
    mine = [row for row in together if row["stream"] == given[1].id]
    for a, b in zip(mine, alone, strict=True):
        assert a["right"] == b["right"] and a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-3)
    assert [r["right"] for r in run_arms(["replay"], given=given, slots=1)["replay"]] == [
        r["right"] for r in run_arms(["replay"], given=given, slots=3)["replay"]
    ]


@pytest.mark.parametrize("rule", ["null_space_replay", "isolation", "ewc"])
def test_a_killed_stream_goes_on_after_its_last_finished_edit(open_run, monkeypatch, rule: str) -> None:
    whole = run_arms([rule])[rule]
    trained: list[int] = []
    train = study._Work._train

    def dying(self, given, states, alive, k):
        trained.append(k)
        if trained.count(1) == 1 and k == 1:
            raise KeyboardInterrupt  # the power goes in the middle of the second edit
        return train(self, given, states, alive, k)

    monkeypatch.setattr(study._Work, "_train", dying)
    with pytest.raises(KeyboardInterrupt):
        run_arms([rule], open_run())
    run = open_run()
    assert run_arms([rule], run)[rule] == whole
    assert trained == [0, 1, 1]  # the first edit was not trained again
    assert not list(run.folder.glob("states/**/*.safetensors"))  # weights go once the arm is done
    assert study.train_seconds(run, rule) > 0


def test_weights_that_are_gone_are_named(open_run, monkeypatch) -> None:
    monkeypatch.setattr(study._Work, "_remember", lambda *args: None)
    with pytest.raises(RunError, match="after edit 1 are gone"):
        run_arms(["sequential"], open_run())


def test_a_diverged_stream_is_recorded_and_not_averaged_away() -> None:
    bench, given = lab(clip=None), made(2, 3)
    arm = study.Arm("wild", "sequential", {"lr_scale": 1e33})
    rows = study.run_arm(Scratch(), arm, bench, given, PRIOR)
    assert [row["outcome"] for row in rows] == ["ok"] * 2 + ["diverged"] * 6
    assert "lower lr" in rows[2]["reason"]
    sound = study.run_arm(Scratch(), study.Arm("s", "sequential"), bench, given, PRIOR)
    mixture = [a if a["stream"] == given[0].id else b for a, b in zip(rows, sound, strict=True)]
    found = tables.arm_measures(mixture)
    assert math.isnan(found["AA_3"].estimate.value) and found["AA_3"].outcome == "incomplete"
    assert "stopped_at_1" in found["AA_3"].note and found["diverged"].estimate.value == 0.5
    assert math.isnan(found["prior_kept"].estimate.value)
    lines = tables.result_rows({"wild": mixture, "s": sound}, protocol="clean", model="m")
    assert {r["metric"] for r in lines if r["arm"] == "wild" and r["value"] == 0.5} >= {"diverged"}


def test_live_edits_are_written_by_the_current_model() -> None:
    plain = [replace(s, edits=(None, None)) for s in made()]
    with pytest.raises(DataError, match="without self-edits"):
        study.run_arm(Scratch(), study.Arm("frozen edits", "sequential"), lab(), plain, PRIOR)
    rows = study.run_arm(Scratch(), study.Arm("live", "sequential", live=True), lab(), plain, PRIOR, edit_tokens=60)
    assert all(row["outcome"] == "ok" and row["steps"] > 0 for row in rows if row["k"])


def test_full_rows_ask_less_and_the_same() -> None:
    dense = run_arms(["sequential"])["sequential"]
    sparse = run_arms(["sequential"], full_rows=[0, 2])["sequential"]
    a, b = tables.stack(dense), tables.stack(sparse)
    assert np.isnan(b).sum() == 2 and np.array_equal(a[~np.isnan(b)], b[~np.isnan(b)])
    assert np.array_equal(metrics.backward_transfer(a), metrics.backward_transfer(b))


def hand() -> list[dict]:
    """K = 2, one stream, three questions a passage: every fate once."""
    right = {0: ["100", "000"], 1: ["110", "000"], 2: ["010", "110"]}
    blank = {0: ["000", "000"], 1: ["000", "000"], 2: ["001", "001"]}
    return [
        {"stream": "s", "k": k, "outcome": "ok", "right": right[k], "blank": blank[k], "prior": "11", "stored": 0}
        for k in range(3)
    ]


def test_fates_by_hand() -> None:
    shares = {name: e.value for name, e in tables.fates(hand()).items()}
    # age 0: passage 1 after edit 1 = 1 1 0 (base 1 0 0), passage 2 after edit 2 = 1 1 blank (base 0 0 0)
    assert [shares[f"{f}:age_0"] * 6 for f in tables.FATES] == pytest.approx([1, 3, 0, 0, 1, 1])
    # age 1: passage 1 after edit 2 = 0 1 blank
    assert [shares[f"{f}:age_1"] * 3 for f in tables.FATES] == pytest.approx([0, 1, 1, 0, 0, 1])
    assert tables.stack(hand())[0].tolist() == pytest.approx(np.array([[1, 0], [2, 0], [1, 2]]) / 3)


def test_comparisons_are_paired_and_one_family() -> None:
    def rows(shift: int) -> list[dict]:
        return [
            {
                "stream": f"s{n}",
                "k": k,
                "outcome": "ok",
                "right": ["1" * (n % 3 + shift) + "0" * (9 - n % 3 - shift)] * 2,
            }
            for k in range(3)
            for n in range(8)
        ]

    lines, found = tables.comparisons(
        {"a": rows(3), "b": rows(0)}, [("a", "b"), ("a", "missing")], protocol="p", model="m"
    )
    assert len(found) == 1 and found[0].difference.value == pytest.approx(1 / 3) and found[0].verdict == "higher"
    assert [r["metric"] for r in lines] == ["difference", "p_holm"] and lines[0]["arm"] == "a - b"


def test_a_bfloat16_model_keeps_its_edits_beside_the_weights() -> None:
    """Sums in bfloat16 would round small edits away; the narrow path must still train, measure and answer."""
    from copy import deepcopy

    import torch

    model, tokenizer = seedling()
    bench = Lab(deepcopy(model).to(torch.bfloat16), tokenizer, WORDING, INNER, anchors=8, anchor_tokens=24)
    with bench.serving(None) as plain, bench.serving(object()) as done:
        assert plain and not done
    for name in ("null_space_replay", "kl", "ewc", "isolation"):
        rows = study.run_arm(Scratch(), study.Arm(name, name), bench, made(2, 2), PRIOR)
        assert all(row["outcome"] == "ok" and row["right"] for row in rows), name


def test_tuning_tries_every_setting_and_chooses_by_accuracy() -> None:
    lines = tuning.sweep(Scratch(), ["low_lr", "frozen"], lab(), made(), PRIOR)
    assert [line["rule"] for line in lines] == ["low_lr"] * 4 + ["frozen"]
    best = max(line["AA"] for line in lines[:4])
    assert [line["chosen"] for line in lines[:4]].count(True) == 1
    assert next(line["AA"] for line in lines if line["chosen"]) == best
    assert set(tuning.chosen(lines)) == {"low_lr", "frozen"}
    for rule, knobs in tuning.tuned().items():  # the committed knobs fit their rules
        RULES[rule](lab(), **knobs)
    assert all(1 <= len(rule.grid) <= 4 for rule in RULES.values())  # equal budget
    with pytest.raises(ParameterError, match="no knob 'speed'"):
        RULES["replay"](lab(), speed=1)
    with pytest.raises(DataError, match="is not one of"):
        study.Arm("x", "unheard_of").make(lab())
