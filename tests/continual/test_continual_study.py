"""Streams, update rules and the study loop on the shipped model: what is kept, what resumes, what never leaks.

Run: pytest tests/continual/test_continual_study.py
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures_seal import WORDING, real, seedling
from test_continual_rules import trained

from seal_lib.continual import edits, intervals, metrics, streams, study, tables, tuning
from seal_lib.continual.arm import TUNED, Arm, arms_of, notes_by, tuned
from seal_lib.continual.lab import Lab
from seal_lib.continual.routing import BM25
from seal_lib.continual.rules import RULES
from seal_lib.continual.rules.base import State
from seal_lib.errors import DataError, RunError
from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.generation.hf import HFGenerator
from seal_lib.knowledge import data
from seal_lib.knowledge.domain import InnerLoop, Knowledge
from seal_lib.knowledge.world import home, known_facts
from seal_lib.loops.policy import Policy
from seal_lib.records import Question
from seal_lib.report.arms import arm_label, arm_rank
from seal_lib.runs import lifecycle, params
from seal_lib.runs.lifecycle import Scratch

INNER = InnerLoop(lr=4e-3, epochs=1, rank=4, alpha=8.0, targets="all-linear", answer_tokens=6)


def lab(**changes: object) -> Lab:
    return Lab(Policy("base", *seedling()), Knowledge(replace(INNER, **changes), WORDING), anchors=12, anchor_tokens=24)


def made(count: int = 2, length: int = 2, skip: int = 0) -> list[streams.Stream]:
    plain = streams.load_streams("world:heldout", count, length, seed=3, skip=skip, questions=2)
    return streams.with_prior(streams.with_edits(plain, "gold"), "world:known", 6, 1)


WRITING = Sampling(60, temperature=1.0, top_p=0.95)
LABEL = {"model": "m", "grader": "exact"}


def run_arms(names: list[str], run=None, given=None, **options: object) -> dict[str, list[dict]]:
    bench, given = lab(), given or made()
    return {n: study.run_arm(run or Scratch(), Arm(n, n), bench, given, **options) for n in names}


@pytest.fixture
def open_run(suite):
    """A function that opens the same run folder again, as a restarted process does."""
    suite.notebook("10_demo", "seed: int = 0  # of every draw")
    identity = {"notebook": "10_demo", "scale": "seedling", "key": "abc", "parameters": {"seed": 0}, "input_hashes": {}}
    folder = suite.home / "runs" / "10_demo" / "seedling" / "abc"
    opened: list[lifecycle.Run] = []

    def start() -> lifecycle.Run:
        if opened:
            opened[-1].close()
        opened.append(lifecycle.Run(folder, identity, interactive=False))
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


def test_rows_say_what_the_arm_did_and_not_what_the_study_is_set_to() -> None:
    """The authors' arm trained as authors_v1 and its rows said clean."""
    by_arm = run_arms(["frozen", "sequential", "sequential_authors"], given=made(2, 2))
    theirs, ours = "authors_v1 (probe:16, answer_tokens=6)", "clean"
    told = {"frozen": ours, "sequential": ours, "sequential_authors": theirs}
    assert {arm: {row["protocol"] for row in rows} for arm, rows in by_arm.items()} == {a: {p} for a, p in told.items()}
    lengths = tables.length_rows(by_arm, [1, 2], **LABEL)
    for line in tables.result_rows(by_arm, **LABEL) + tables.matrix_rows(by_arm, **LABEL) + lengths:
        assert line["protocol"] == told[line["arm"]], line
    pairs = [("sequential_authors", "frozen"), ("sequential", "frozen"), ("sequential_authors", "sequential")]
    lines, _ = tables.comparisons(by_arm, pairs, **LABEL)
    assert [line["protocol"] for line in lines] == [theirs, ours, f"{theirs} − {ours}"]  # frozen follows none
    tried = tuning.sweep(Scratch(), ["sequential_authors", "sequential"], lab(), made(), most=1)
    found = {line["arm"].split()[0]: line["protocol"] for line in tuning.rows_of(tried, 2, **LABEL)}
    assert found == {"sequential_authors": theirs, "sequential": ours}


@pytest.mark.parametrize("add_passage", [False, True])
def test_an_empty_self_edit_is_counted_and_its_stream_goes_on(add_passage: bool) -> None:
    """Without the passage there was nothing to train on, and the study fell over."""
    (one, other), bench = made(2, 3), lab(add_passage=add_passage)
    given = [replace(one, edits=(one.edits[0], " \n", one.edits[2])), replace(other, edits=("", *other.edits[1:]))]
    reason = "the self-edit is empty: the passage alone" if add_passage else "nothing to train on"
    for name, rule in RULES.items():
        rows = study.run_arm(Scratch(), study.Arm(name, name), bench, given)
        R = tables.stack(rows)
        assert R.shape == (2, 4, 3) and not np.isnan(R).any(), name
        found = {(row["stream"], row["k"]): row for row in rows}
        empty = {(one.id, 2), (other.id, 1)} if rule.trains else set()
        assert {key for key, row in found.items() if row["outcome"] == "empty_edit"} == empty, name
        whole = add_passage or name == "sequential_authors"  # the authors' way has the passage in any case
        for key in empty:
            assert found[key]["reason"] == (reason if not whole else "the self-edit is empty: the passage alone"), name
            assert (found[key]["steps"] > 0) == (whole or name == "joint" and key == (one.id, 2)), name
        measures = tables.arm_measures(rows, rule=name)
        assert measures["empty_edits"].estimate.value == (pytest.approx(1 / 3) if rule.trains else 0), name
        assert measures["diverged"].estimate.value == 0, name
        if rule.trains and not whole and name != "joint":  # the model as it was, and later edits as if it had not been
            assert np.array_equal(R[1, 1], R[1, 0]) and np.array_equal(R[0, 2], R[0, 1]), name
        lines = {r["metric"]: r for r in tables.length_rows({name: rows}, [1, 3], **LABEL)}
        assert lines["empty_edits"]["value"] == measures["empty_edits"].estimate.value, name
        assert lines["empty_edits"]["grader"] == ""


def test_a_live_arm_may_write_nothing(monkeypatch) -> None:
    generate = HFGenerator.generate

    def silent(self, requests, sampling):
        return (
            [[Completion("", 0, "eos")] for _ in requests]
            if sampling == WRITING
            else generate(self, requests, sampling)
        )

    monkeypatch.setattr(HFGenerator, "generate", silent)
    plain = [replace(s, edits=(None, None)) for s in made()]
    arm = study.Arm("sequential_live", "sequential", live=True)
    rows = study.run_arm(Scratch(), arm, lab(add_passage=False), plain, writing=WRITING)
    assert [row["outcome"] for row in rows] == ["ok"] * 2 + ["empty_edit"] * 4
    assert tables.arm_measures(rows)["empty_edits"].estimate.value == 1


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
    one = study.run_arm(Scratch(), Arm("one", "merge", {"scale": 1.0}), lab(), made())
    assert np.array_equal(tables.stack(by_arm["sequential"])[:, 1], tables.stack(one)[:, 1])
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
    train = edits.Edits._train

    def dying(self, given, states, alive, k):
        trained.append(k)
        if trained.count(1) == 1 and k == 1:
            raise KeyboardInterrupt  # the power goes in the middle of the second edit
        return train(self, given, states, alive, k)

    monkeypatch.setattr(edits.Edits, "_train", dying)
    with pytest.raises(KeyboardInterrupt):
        run_arms([rule], open_run())
    run = open_run()
    assert run_arms([rule], run)[rule] == whole
    assert trained == [0, 1, 1]  # the first edit was not trained again
    assert not list(run.folder.glob("states/**/*.safetensors"))  # weights go once the arm is done
    assert study.train_seconds(run, rule) > 0


@pytest.mark.parametrize("fault", [lambda raw: raw[:-9], lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]])
def test_an_arm_whose_kept_weights_are_damaged_is_made_again(open_run, monkeypatch, capsys, fault) -> None:
    whole = run_arms(["sequential"])["sequential"]
    train = edits.Edits._train

    def dying(self, given, states, alive, k):
        if k == 1:
            raise KeyboardInterrupt
        return train(self, given, states, alive, k)

    monkeypatch.setattr(edits.Edits, "_train", dying)
    run = open_run()
    with pytest.raises(KeyboardInterrupt):
        run_arms(["sequential"], run)
    monkeypatch.setattr(edits.Edits, "_train", train)
    (file, *_) = sorted(run.folder.glob("states/**/*.safetensors"))
    file.write_bytes(fault(file.read_bytes()))
    assert run_arms(["sequential"], open_run())["sequential"] == whole
    assert "The arm sequential is made again" in capsys.readouterr().out


def test_weights_that_are_gone_are_named(open_run, monkeypatch) -> None:
    monkeypatch.setattr(edits.Edits, "_remember", lambda *args: None)
    with pytest.raises(RunError, match="after edit 1 are gone"):
        run_arms(["sequential"], open_run())


def test_a_diverged_stream_is_dropped_and_counted() -> None:
    bench, given = lab(clip=None), made(3, 3)
    arm = Arm("wild", "sequential", {"lr_scale": 1e33})
    rows = study.run_arm(Scratch(), arm, bench, given)
    assert [row["outcome"] for row in rows] == ["ok"] * 3 + ["diverged"] * 9
    assert "lower lr" in rows[3]["reason"]
    sound = study.run_arm(Scratch(), Arm("s", "sequential"), bench, given)
    mixture = [a if a["stream"] == given[0].id else b for a, b in zip(rows, sound, strict=True)]
    rest = [row for row in sound if row["stream"] != given[0].id]
    found, alone = tables.arm_measures(mixture), tables.arm_measures(rest)
    for name in ("AA_3", "BWT", "F_3", "prior_kept", "prior", "blank_rate", "drift", "age_1"):
        assert found[name].estimate.value == pytest.approx(alone[name].estimate.value, nan_ok=True), name
        assert (found[name].estimate.n, found[name].estimate.dropped, found[name].outcome) == (2, 1, "survivors"), name
    assert "1 stopped_at_1" in found["AA_3"].note and found["diverged"].estimate.value == pytest.approx(1 / 3)
    by_arm = {"wild": mixture, "joint": mixture, "s": sound}
    lines = {(r["arm"], r["metric"]): r for r in tables.result_rows(by_arm, **LABEL)}
    assert lines["wild", "diverged"]["value"] == pytest.approx(1 / 3)
    assert lines["wild", "kept_injected:age_0"]["dropped"] == lines["s", "recovery_joint"]["dropped"] == 1
    (cell,) = [r for r in tables.matrix_rows({"wild": mixture}, **LABEL) if r["metric"] == "accuracy_after_3:passage_1"]
    assert cell["n"] == 2 and cell["dropped"] == 1 and not math.isnan(cell["value"])
    (difference,), _ = tables.comparisons(by_arm, [("wild", "s")], **LABEL)
    assert (difference["n"], difference["dropped"]) == (2, 1)
    lengths = tables.length_rows({"wild": mixture}, [1, 3], **LABEL)
    assert {r["metric"]: r["dropped"] for r in lengths}["AA_3"] == 1
    everything = tables.arm_measures(rows)["AA_3"]  # none survived: no mean at all
    assert math.isnan(everything.estimate.value) and everything.outcome == "incomplete"
    assert tables.comparisons({"wild": rows, "s": sound}, [("wild", "s")], **LABEL) == ([], [])


def test_live_edits_are_written_by_the_current_model(monkeypatch) -> None:
    plain = [replace(s, edits=(None, None)) for s in made()]
    with pytest.raises(DataError, match="without self-edits"):
        study.run_arm(Scratch(), Arm("frozen edits", "sequential"), lab(), plain)
    live = Arm("sequential_live", "sequential", live=True)
    with pytest.raises(DataError, match="say how"):
        study.run_arm(Scratch(), live, lab(), plain)
    rows = study.run_arm(Scratch(), live, lab(), plain, writing=WRITING)
    assert all(row["outcome"] == "ok" and row["steps"] > 0 for row in rows if row["k"])
    every = study.run_arm(
        Scratch(), Arm("joint_live", "joint", live=True), lab(), plain, writing=WRITING, full_rows=[2]
    )
    assert all(row["steps"] > 0 for row in every if row["k"])  # no row is skipped: the next edit's writer is its model
    seen: list[tuple] = []
    generate = HFGenerator.generate

    def spy(self, requests, sampling):
        seen.extend((request.adapter is None, sampling) for request in requests if sampling.temperature == 1.0)
        return generate(self, requests, sampling)

    monkeypatch.setattr(HFGenerator, "generate", spy)
    arms = arms_of(["sequential", "sequential_own", "sequential_live", "null_space_replay_live"])
    by_arm = study.run_arms(Scratch(), arms, lab(), made(), writing=WRITING)
    writing = [unedited for unedited, sampling in seen if sampling == WRITING]
    # own: 4 notes by the base; live: the first edit of each of two streams by the base, the second by the edited model
    assert writing == [True] * 4 + [True, True, False, False] * 2
    first = {name: [row["loss"] for row in rows if row["k"] == 1] for name, rows in by_arm.items()}
    assert first["sequential_own"] == pytest.approx(first["sequential_live"], rel=1e-4)  # the same draws
    assert first["sequential"] != first["sequential_own"]


@pytest.mark.parametrize("notebook", ["13_continual_edits", "14_continual_mitigations"])
def test_live_notes_may_be_as_long_as_the_parameters_say(monkeypatch, notebook: str) -> None:
    """At paper scale a live arm asks for 8192 tokens at the authors' temperature, through the notebook's own cells."""
    p = params.resolve(notebook, "paper")
    cells = params.cells(notebook)
    (line,) = [cell["source"] for cell in cells if "writing = Sampling(" in cell["source"]]
    expression = next(x for x in line.splitlines() if x.startswith("writing = "))
    names = {"Sampling": Sampling, **p}
    exec(expression, names)  # noqa: S102 - the cell's own line
    asked: list[Sampling] = []

    def generate(self, requests, sampling):
        if sampling.temperature:
            asked.append(sampling)
        return [[Completion("A note.", 3, "eos")] for _ in requests]

    monkeypatch.setattr(HFGenerator, "generate", generate)
    bench = lab()
    bench.cache["anchors"] = [[5, 6, 7]] * 4
    live = [arm for arm in arms_of(p["arms"]) if arm.live]
    assert "sequential_authors_live" in [arm.name for arm in live]
    study.run_arm(Scratch(), live[0], bench, made(), writing=names["writing"], full_rows=[])
    assert set(asked) == {Sampling(8192, temperature=1.0, top_p=0.95)}
    assert any("writing=writing" in cell["source"] and "run_arms(" in cell["source"] for cell in cells)


def test_notes_have_an_author() -> None:
    writers = {a: notes_by(a, "reference:external") for a in ("frozen", "ewc", "ewc_own", "ewc_live")}
    assert writers == {
        "frozen": "–",
        "ewc": "stronger writer",
        "ewc_own": "the unedited model, once",
        "ewc_live": "the edited model, before each edit",
    }
    assert notes_by("ewc", "policy") == "the unedited model, once"
    assert arm_label("sequential_live") == "sequential edits, own live notes"
    assert [a for a in sorted(["rag", "sequential_live", "sequential", "frozen"], key=arm_rank)] == [
        "frozen",
        "sequential",
        "sequential_live",
        "rag",
    ]
    rows = [row | {"norm": 1.0, "drift": 0.1} for row in hand()]
    lines = tables.result_rows({"sequential": rows, "sequential_live": rows, "joint": rows}, **LABEL)
    # joint's gain is measured on the writer's notes, so an arm on its own notes has no share of it
    shares = {r["arm"]: r["value"] for r in lines if r["metric"] == "recovery_joint"}
    assert math.isnan(shares["sequential_live"]) and shares["sequential"] == shares["joint"] == 1.0


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
        {
            "stream": "s",
            "k": k,
            "protocol": "p",
            "outcome": "ok",
            "right": right[k],
            "blank": blank[k],
            "prior": "11",
            "stored": 0,
        }
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
        def answers(n: int) -> str:
            right = n % 3 + shift + (n % 2 if shift else 0)
            return "1" * right + "0" * (9 - right)

        return [
            {"stream": f"s{n}", "k": k, "protocol": "p", "outcome": "ok", "right": [answers(n)] * 2}
            for k in range(3)
            for n in range(8)
        ]

    lines, found = tables.comparisons({"a": rows(3), "b": rows(0)}, [("a", "b"), ("a", "missing")], **LABEL)
    assert len(found) == 1 and found[0].difference.value == pytest.approx(3.5 / 9)
    assert found[0].verdict == "higher"
    assert [(r["metric"], r["arm"], r["grader"]) for r in lines] == [("difference", "a - b", "exact")]
    assert lines[0]["p"] == found[0].difference.p == pytest.approx(2 / 2**8)


def test_a_bfloat16_model_keeps_its_edits_beside_the_weights() -> None:
    """Sums in bfloat16 would round small edits away; the narrow path must still train, measure and answer."""
    from copy import deepcopy

    model, tokenizer = seedling()
    bench = Lab(
        Policy("base", deepcopy(model).to(torch.bfloat16), tokenizer),
        Knowledge(INNER, WORDING),
        anchors=8,
        anchor_tokens=24,
    )
    with bench.serving(None) as plain, bench.serving(object()) as done:
        assert plain and not done
    for name in ("null_space_replay", "kl", "ewc", "isolation"):
        rows = study.run_arm(Scratch(), Arm(name, name), bench, made(2, 2))
        assert all(row["outcome"] == "ok" and row["right"] for row in rows), name


LADDERS = {"a": (1, 2, 4, 8, 16, 32), "b": (0.1, 0.2, 0.4, 0.8)}


def test_a_climb_goes_on_until_the_optimum_is_inside() -> None:
    asked: list[dict] = []

    def score(knobs: dict) -> float:
        asked.append(knobs)
        return -((math.log2(knobs["a"]) - 4) ** 2) - (math.log2(knobs["b"] / 0.4)) ** 2

    best, edge = tuning.climb({"a": 1, "b": 0.2, "m": 3}, LADDERS, score, most=20)
    assert best == {"a": 16, "b": 0.4, "m": 3} and edge == ""  # from the lowest value, four steps up
    tried = [(k["a"], k["b"]) for k in asked]
    assert {(8, 0.4), (32, 0.4), (16, 0.2), (16, 0.8)} <= set(tried) and len(set(tried)) == len(tried)
    assert all(k["m"] == 3 for k in asked)


def test_a_climb_says_what_cut_it_short() -> None:
    best, edge = tuning.climb({"a": 8, "b": 0.2}, LADDERS, lambda k: k["a"] - k["b"])
    assert best == {"a": 32, "b": 0.1} and edge == "a, b"  # both ladders end
    best, edge = tuning.climb({"a": 1, "b": 0.2}, LADDERS, lambda k: k["a"] - k["b"], most=3)
    assert best["a"] == 4 and edge == "unfinished"
    best, edge = tuning.climb({"a": 2}, {"a": (1, 2, 4)}, lambda k: math.nan if k["a"] == 4 else k["a"])
    assert best == {"a": 2} and edge == ""  # a setting that diverged is no optimum
    assert tuning.climb({}, {}, lambda k: 1.0) == ({}, "")


def test_the_sweep_says_its_price_and_what_it_chose() -> None:
    lines = tuning.sweep(Scratch(), ["sequential", "frozen"], lab(), made(), most=4)
    first = [line for line in lines if line["rule"] == "sequential"]
    assert 2 <= len(first) <= 4 and [line["rule"] for line in lines[len(first) :]] == ["frozen"]
    assert json.loads(first[0]["knobs"]) == {"lr_scale": 1.0} and all(line["trainings"] == 4 for line in first)
    assert [line["chosen"] for line in first].count(True) == 1
    assert next(line["AA"] for line in first if line["chosen"]) == max(line["AA"] for line in first)
    assert set(tuning.chosen(lines)) == {"sequential", "frozen"}
    price = tables.tuning_price(lines)
    assert price == {"sequential": (len(first), 4 * len(first)), "frozen": (1, 0)}
    rows = tables.result_rows({"sequential": run_arms(["sequential"])["sequential"]}, price=price, **LABEL)
    told = {r["metric"]: (r["value"], r["grader"]) for r in rows}
    assert told["tuning_settings"] == (len(first), "") and told["AA_2"][1] == "exact"


def test_the_committed_knobs_are_what_the_committed_sweep_chose() -> None:
    for rule, knobs in tuned().items():
        assert set(knobs) <= set(RULES[rule].knobs), rule
    file = TUNED.with_name("sweep.jsonl")
    if not file.is_file():
        pytest.skip("sweep.jsonl is not there: the rules have not been tuned on this model yet")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert tuned() == tuning.chosen(lines)
    for line in lines:  # inside what was tried, or it is said
        if line["chosen"]:
            ladders, knobs = RULES[line["rule"]].ladders, json.loads(line["knobs"])
            ends = [knob for knob, ladder in ladders.items() if knobs[knob] in (ladder[0], ladder[-1])]
            assert line["edge"].removeprefix("unfinished").strip(", ") == ", ".join(ends), line


def test_settings_of_the_inner_loop_reach_the_training() -> None:
    bench, stream = lab(), made()[0]
    whole = bench.documents(stream, 0)
    bare = lab(add_passage=False).documents(stream, 0)
    assert whole[:-1] == bare and len(lab(document_limit=1).documents(stream, 0)) == 2
    assert len(lab(split_newlines=False).documents(stream, 0)) == 2
    assert max(map(len, lab(max_length=5).documents(stream, 0))) == 5
    job = RULES["sequential"](lab(schedule="cosine", clip=0.5)).jobs([stream], [State()], 0)[0]
    assert (job.schedule, job.clip) == ("cosine", 0.5)
    theirs = [RULES["sequential_authors"](replace(bench, authors_pads=f"probe:{m}")) for m in (4, 9)]
    assert all((r.lab.inner.protocol, r.lab.inner.targets) == ("authors_v1", "qv") for r in theirs)
    pads = [rule.fresh(stream, 0)[0] for rule in theirs]
    assert len(pads[1].ids) - len(pads[0].ids) == 5


def test_measurements_are_those_of_the_merged_model_text_by_text() -> None:
    """Log-probabilities, inputs and Fisher information of base + edit, against one plain pass of each text alone."""

    from seal_lib.training.adapters import merge

    bench, given = lab(), made(1, 1)
    (edit,) = trained(RULES["sequential"](bench), given, State())
    texts = bench.documents(given[0], 0)[:3]
    texts = [texts[0], texts[1][:4], texts[2][:7]]  # of different lengths
    for adapter in (None, edit.history):
        plain = bench.model if adapter is None else merge(bench.model, adapter, copy=True)
        linears = {name: plain.get_submodule(name) for names in bench.groups for name in names}
        assert len(linears) == 7 * bench.model.config.num_hidden_layers
        read: dict[str, list] = {name: [] for name in linears}
        hooks = [
            x.register_forward_pre_hook(lambda m, given, to=read[n]: to.append(given[0][0].detach()))
            for n, x in linears.items()
        ]
        rows, squares = [], dict.fromkeys(linears, 0.0)
        for x in linears.values():
            x.weight.requires_grad_(True)
        for text in texts:
            logs = plain(input_ids=torch.tensor([text])).logits[0, :-1].log_softmax(-1)
            rows.append(logs.detach())
            mean = sum(logs[t, token] for t, token in enumerate(text[1:])) / (len(text) - 1)
            grads = torch.autograd.grad(mean, [x.weight for x in linears.values()])
            squares = {n: squares[n] + g**2 / 3 for n, g in zip(linears, grads, strict=True)}
        for x in linears.values():
            x.weight.requires_grad_(False)
        for hook in hooks:
            hook.remove()
        for at_once in (64, 2):
            for got, wanted in zip(bench.logprobs(texts, adapter, at_once), rows, strict=True):
                assert torch.allclose(got, wanted, atol=1e-4)
            found = bench.inputs(texts, adapter, at_once)
            assert set(found) == {names[0] for names in bench.groups}
            for names in bench.groups:  # what a group reads, every member of it reads
                for name in names:
                    assert torch.allclose(found[names[0]], torch.cat(read[name]), atol=1e-4), name
        for name, fisher in bench.fisher(texts, adapter).items():
            assert torch.allclose(fisher, squares[name], rtol=1e-2, atol=1e-4 * float(squares[name].max())), name
        assert not any(p.requires_grad for p in bench.model.parameters())


def test_an_adapter_that_many_requests_use_is_summed_into_the_layers_and_the_texts_are_the_same() -> None:
    bench, given = lab(), made(1, 1)
    (state,) = trained(RULES["sequential"](bench), given, State())
    asked = [Request(f"Topic: {n}", n, state.history if n % 2 else None) for n in range(32)]
    few = asked[:5]
    seen: list[list[bool]] = []
    generate = bench.generator.generate

    def spy(requests, sampling):
        seen.append([request.adapter is None for request in requests])
        return generate(requests, sampling)

    bench.generator.generate = spy
    many = bench.complete(asked, Sampling(4))
    assert seen == [[True] * 16, [True] * 16]  # those of the adapter; and those without one
    assert bench.complete(few, Sampling(4)) == many[:5] and seen[2:] == [[True] * 3 + [False] * 2]
    assert many == [one for (one,) in generate(asked, Sampling(4))]


def test_prior_questions_are_other_ones_in_every_stream() -> None:
    given = streams.with_prior(made(8), "world:known", 30, 5)
    asked = [q for s in given for q in s.prior]
    assert len(asked) == len({(title, q.question, q.answer) for title, q in asked}) == 240
    assert (
        given == streams.with_prior(made(8), "world:known", 30, 5) != streams.with_prior(made(8), "world:known", 30, 6)
    )
    with pytest.raises(DataError, match="ask for 180 at most"):
        streams.with_prior(made(8), "world:known", 181, 5)


@pytest.mark.parametrize("shared", [False, True])
def test_the_interval_of_prior_knowledge_holds_for_other_questions(shared: bool) -> None:
    """Questions differ in how easily they are lost. Over streams that ask other questions the interval covers the
    share among all questions; over streams that ask the same ones it does not."""
    chance = {q: hard for q, hard in zip(known_facts(), np.random.default_rng(1).beta(0.7, 0.4, 1440), strict=True)}
    truth, hits, trials = float(np.mean(list(chance.values()))), 0, 200
    keys = {(home(f.name), f.value): f for f in known_facts()}
    plain = made(16)
    for trial in range(trials):
        draw = np.random.default_rng(trial)
        given = streams.with_prior(plain, "world:known", 24, trial)
        if shared:
            given = [replace(s, prior=given[0].prior) for s in given]
        rows = []
        for stream in given:
            p = np.array([chance[keys[title, q.answer]] for title, q in stream.prior])
            kept = draw.random(len(p)) < np.clip(p + draw.normal(0, 0.03), 0, 1)
            after = "".join(str(int(x)) for x in kept)
            rows += [{"stream": stream.id, "k": k, "prior": a} for k, a in ((0, "1" * len(p)), (1, after))]
        kept = intervals.kept_learned(tables.answers(rows, 0), tables.answers(rows, 1))["kept"].estimate
        hits += kept.low <= truth <= kept.high
    assert (hits / trials > 0.9) != shared, hits / trials


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_prior_questions_come_from_passages_of_no_practice(scale: str) -> None:
    """Both shuffle the same source with the same seed, so leaving out the first n is leaving out the practice."""
    loop = params.resolve("12_restem_rounds", scale)
    for notebook in ("13_continual_edits", "14_continual_mitigations", "15_retention_over_time", "16_continual_tuning"):
        p = params.resolve(notebook, scale)
        assert (p["prior"], p["prior_seed"]) == (loop["practice"], loop["practice_seed"]), notebook
        assert p["prior"] != p["passages"]  # another split: no passage of a stream
        assert p["prior_skip"] >= loop["rounds"] * loop["n_practice"] * len(loop["seeds"]), notebook


def test_prior_questions_of_squad_are_apart_from_streams_and_practice() -> None:
    train, dev = str(real("squad", "squad_train_150.json")), str(real("squad", "squad_val.json"))
    practice = data.load_passages(train, 50, 42)
    given = streams.load_streams(dev, 3, 8, sequences="authors")
    asked = [q for s in streams.with_prior(given, train, 33, 42, skip=50) for q in s.prior]
    assert len(asked) == 99
    assert not {q for _, q in asked} & {q for p in practice for q in p.questions}
    same = streams.with_prior(
        given, dev, 600, 42, skip=200
    )  # from the streams' own source: their passages are left out
    taken = {q for s in given for p in s.passages for q in p.questions}
    first = {q for p in data.load_passages(dev, 200, 42) for q in p.questions}
    assert not {q for s in same for _, q in s.prior} & (taken | first)
    with pytest.raises(DataError, match="ask for 33 at most"):
        streams.with_prior(given, train, 34, 42, skip=50)


@pytest.mark.parametrize("sets", ["", "full"])
def test_a_set_has_streams_enough_for_its_comparisons_to_be_told_apart(sets: str, monkeypatch) -> None:
    """The smallest p of an exact sign-flip test by Holm is pairs × 2 / 2^streams; above 0.05 no effect could count."""
    monkeypatch.setenv("SET", sets)
    p = params.resolve("14_continual_mitigations", "seedling")
    pairs = [pair for pair in tables.CONTRASTS if set(pair) <= set(p["arms"])]
    assert len(pairs) >= 6 and len(pairs) * 2 / 2 ** p["n_sequences"] < 0.05
