"""What a plan counts is what a run does: against finished runs, against the loops themselves, and against the rules."""

import csv

import pytest
from conftest import REPOSITORY
from fixtures_seal import MemoryRun, made, real_data
from making_lengths import of_passages, of_puzzles

from seal_lib.errors import ParameterError
from seal_lib.generation.contract import Completion
from seal_lib.knowledge import evaluate, prompts
from seal_lib.knowledge.data import batches
from seal_lib.knowledge.domain import InnerLoop, Knowledge
from seal_lib.loops import inner
from seal_lib.loops.outer import run_loop
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.plan import cells, checks, lengths
from seal_lib.plan.work import totals
from seal_lib.runs import params
from seal_lib.training.jobs import Result

#: tokens and questions in run.json of runs at scale seedling with SET=full, made for this comparison at commit 2853997;
#: those of 00, 10 and 11 are of 412fa47, after the knowledge seedling was grown again; that of 21 is of 96d01a7, with
#: fresh seeds
FINISHED = {
    "00_tour": ({}, {"generated": 5840, "trained": 170170, "scored": 1908}),
    "10_self_edits": ({}, {"generated": 19794, "trained": 0, "scored": 0}),
    "11_single_passage": ({}, {"generated": 20092, "trained": 1430490, "scored": 16800}),
    "13_continual_edits": (
        {"arms": ["frozen", "sequential_authors", "sequential"]},
        {"trained": 620640, "scored": 41472, "edits": 384},
    ),
    "21_arc_self_edits": ({"seeds": [0], "rounds": 1}, {"generated": 23387, "trained": 3918685, "scored": 4972}),
}


@pytest.mark.parametrize("notebook", FINISHED)
def test_the_plan_agrees_with_finished_runs(notebook: str, monkeypatch) -> None:
    monkeypatch.setenv("SET", "full")
    changes, run = FINISHED[notebook]
    total = totals(cells.of(notebook, {**params.resolve(notebook, "seedling"), **changes}))
    exact = notebook != "21_arc_self_edits"  # there the policy decides how many self-edits are trained
    assert total["answers"] == pytest.approx(run["scored"], rel=1e-9 if exact else 0.02)
    assert total["trainings"] == run.get("edits", total["trainings"])
    assert total["trained_tokens"] == pytest.approx(run["trained"], rel=0.1 if not exact else 0.03)
    if "generated" in run:
        assert total["written_tokens"] == pytest.approx(run["generated"], rel=0.03)


def test_tokens_an_edit_are_those_of_the_committed_table() -> None:
    """Every rule of notebook 14: tokens trained on per edit, replayed and distilled ones included."""
    p = params.resolve("14_continual_mitigations", "seedling")
    with open(REPOSITORY / "figures" / "seedling" / "results.csv", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["experiment"] == "continual/mitigations"]
    measured = {r["arm"]: float(r["value"]) for r in rows if r["metric"] == "tokens_per_edit"}
    if not measured:
        pytest.skip("the committed table has no rows of notebook 14: run it")
    work, both = cells.of("14_continual_mitigations", p), set(p["arms"]) & set(measured)
    assert {"replay", "joint", "null_space_replay"} <= both
    for arm in both:
        edits = p["n_sequences"] * p["length"]
        planned = sum(w.tokens for w in work if w.kind == "train" and w.phase == arm) / edits
        near = 0.25 if arm.endswith("_live") else 0.04  # what an edited model writes is shorter than the plan can know
        assert planned == pytest.approx(measured[arm], rel=near), arm


def _stub(monkeypatch) -> None:
    """The loops with nothing in them: every text is the same, every training one step."""

    class Fake:
        positions = 2048

        def generate(self, requests, sampling):
            return [[Completion("Note.", 7, "eos")] * sampling.n for _ in requests]

    def train(policy, candidates, domain, count):
        return [Result(c.id, object(), [1.0], 1, 1) for c in candidates]

    monkeypatch.setattr(Policy, "generator", lambda policy: Fake())
    monkeypatch.setattr(inner, "train", train)
    monkeypatch.setattr(Knowledge, "target", lambda domain, unit, text, policy: text)

    def learn(policy, run, pairs, outer, *, name, seed):
        run.count(sft=len(pairs))
        return policy, 0.0

    monkeypatch.setattr(Policy, "finetuned", learn)


@pytest.mark.parametrize("changes", [{}, {"reward_seeds": 3, "random_control": False}, {"rounds": 1, "controls": []}])
def test_units_of_the_whole_loop_are_those_of_the_loop_itself(monkeypatch, changes: dict) -> None:
    sizes = {"n_passages": 5, "n_practice": 3, "rounds": 2, "samples": 4, "seeds": [0, 1]}
    p = {**params.resolve("12_restem_rounds", "seedling"), **sizes, **changes}
    work = cells.of("12_restem_rounds", p)
    _stub(monkeypatch)
    policy, run = Policy("base", None, None), MemoryRun()
    domain, outer = Knowledge(params.pick(InnerLoop, p), prompts.load("seedling")), params.pick(OuterLoop, p)
    data = list(made(p["n_passages"]))
    for arm in p["controls"]:
        evaluate.evaluate_arm(run, policy, data, arm, domain, outer, seed=0)
    for seed in p["seeds"]:
        run_loop(
            run,
            policy,
            domain,
            outer,
            practice=batches(p["practice"], p["n_practice"], seed),
            held_out=data,
            rounds=p["rounds"],
            seed=seed,
            control="random_edit_sft" if p["random_control"] else "",
        )
    total = totals(work)
    rows = [row for phase in run.phases.values() for row in phase.values()]
    assert total["written"] == sum(len(row["edits"]) for row in rows if "edits" in row)
    assert total["trainings"] == sum(bool(row.get("steps")) for row in rows)
    assert total["answers"] == run.counts["scored"]
    assert sum(w.units for w in work if w.kind == "sft") == run.counts["sft"]


STUDY = params.resolve("14_continual_mitigations", "seedling")


def test_a_rule_declares_what_it_costs() -> None:
    from seal_lib.continual.rules import RULES

    families = {name: RULES[name] for name in ("replay", "kl", "null_space_calibration", "null_space")}
    for name, rule in RULES.items():
        assert bool(rule.knobs.get("m")) == bool(rule.cost.more), name  # further sequences are of some kind
        assert bool(rule.cost.factors) == issubclass(rule, families["null_space_calibration"]), name
        assert (rule.cost.factors == "edit") == issubclass(rule, families["null_space"]), name
        assert ("anchors" in rule.cost.more or rule.cost.more == "both") == issubclass(rule, families["kl"]), name
    with pytest.raises(ParameterError, match="'seqential' is not one of frozen"):
        checks.rule_of("seqential")


def of_study(**changes: object) -> list:
    return cells.of("14_continual_mitigations", {**STUDY, "n_sequences": 6, "length": 3, "slots": 2, **changes})


def test_a_study_is_counted_by_one_chunk_of_streams_and_stands_for_all() -> None:
    arms = ["sequential", "replay", "generative_replay", "kl", "null_space", "joint"]
    one, three = (of_study(arms=arms, slots=slots) for slots in (6, 2))  # all side by side; three chunks of two
    for kind in ("train", "answer", "factor", "read"):
        for value in ("units", "tokens", "steps"):
            whole, parts = (sum(getattr(w, value) for w in work if w.kind == kind) for work in (one, three))
            assert parts == pytest.approx(whole, rel=0.05), (kind, value)
    steps = {w.phase: w for w in three if w.kind == "train"}
    assert all(steps[arm].units == 6 * 3 for arm in arms) and steps["sequential"].slots == 2
    assert steps["replay"].tokens > steps["sequential"].tokens and steps["joint"].steps > steps["replay"].steps
    written = [w for w in three if w.kind == "write"]
    assert sum(w.units for w in written if w.phase == "generative_replay") == 6 * 3 * 192
    assert [w.units for w in written if w.phase != "generative_replay"] == [STUDY["anchors"]]  # once for all
    assert {w.phase: w.units for w in three if w.kind == "factor"} == {"null_space": 1 + 6 * 3}


def test_live_edits_are_written_and_passages_in_view_are_read() -> None:
    work = of_study(arms=["frozen", "passage_in_context", "sequential_live"])
    assert sum(w.units for w in work if w.kind == "write" and w.phase == "sequential_live") == 6 * 3 + STUDY["anchors"]
    asked = {w.phase: w.prompt for w in work if w.kind == "answer" and not w.adapters}
    assert asked["passage_in_context"] > asked["frozen"] == lengths.profile("world:heldout").ask


def test_notebooks_without_work_are_those_that_read_and_draw() -> None:
    idle = {name for name in params.names() if not cells.of(name, params.resolve(name, "smoke"))}
    assert idle == {
        "18_graders",
        "20_arc_tasks",
        "22_arc_results",
        "80_audit_released",
        "90_tables",
        "91_figures",
        "99_compare_runs",
    }


def of_cells(monkeypatch, source: str) -> list:
    """What is counted of a notebook that nobody planned for."""
    p = params.resolve("10_self_edits", "seedling")
    with monkeypatch.context() as patched:
        patched.setattr(params, "cells", lambda notebook: [{"source": source, "tags": []}])
        return cells.of("99_new", p)


NEW = """
import nothing_that_is_installed as drawing
import seal_lib
from seal_lib import models
from seal_lib.knowledge import prompts as prompt_sets
run = seal_lib.start("99_new", globals())
run
base = seal_lib.Policy("untrained", *models.load(model, device, dtype), engine)
run.describe(model=model)
domain, outer = seal_lib.Knowledge(None, prompt_sets.load(prompts)), seal_lib.OuterLoop(edit_tokens=edit_tokens)
data = seal_lib.load_passages(passages, 7)
edits = [seal_lib.write_self_edits(run, base, data, domain, outer, phase=f"p{i}", seed=i, samples=2) for i in range(3)]
drawing.picture(edits)
with drawing.style():
    figure = drawing.histogram([len(edit.text) for several in edits for edit in several])
run.finish([], {"edits": len(edits)})
"""


def test_a_new_notebook_is_planned_by_its_own_cells(monkeypatch) -> None:
    work = of_cells(monkeypatch, NEW)
    assert [(w.kind, w.phase, w.units) for w in work] == [("write", f"p{i}", 14) for i in range(3)]
    with pytest.raises(ParameterError, match=r"99_new cannot be planned: `edits = .*` ended in NameError"):
        of_cells(monkeypatch, NEW.replace("data, domain", "date, domain"))


def test_counts_follow_their_parameters() -> None:
    p = params.resolve("11_single_passage", "paper")

    def total(**changes: object) -> dict[str, float]:
        return totals(cells.of("11_single_passage", {**p, **changes}))

    once, full, clean = total(), total(pad_loss="full"), total(protocol="clean", pad_loss="none")
    assert total(n_passages=400)["trained_tokens"] == pytest.approx(2 * once["trained_tokens"])
    assert clean["trained_tokens"] < once["trained_tokens"] < full["trained_tokens"] == once["steps"] * 2048
    assert once["steps"] == pytest.approx(200 * (10 * 8.57 + 10))  # 86 steps a self-edit, 10 a passage
    cut = total(edit_tokens=100)
    assert cut["written_tokens"] <= 200 * 100 and cut["steps"] < once["steps"]
    limited = total(protocol="clean", pad_loss="eos", document_limit=2)
    assert limited["steps"] == pytest.approx(200 * 40, rel=0.05)
    later, capped = total(protocol="authors_v2"), total(protocol="authors_v2", document_limit=30)
    assert later == capped and later["steps"] < once["steps"]  # the protocol brings its cap


# ---------------------------------------------------------------------------------------------- lengths


def test_recorded_lengths_say_what_the_study_found() -> None:
    squad = lengths.profiles()["squad"]
    assert (len(squad.documents), len(squad.edits)) == (200, 1000)
    documents, tokens = (sum(map(of, squad.documents)) / 200 for of in (len, sum))
    assert documents == pytest.approx(8.57, abs=0.01) and tokens / documents == pytest.approx(47.3, abs=0.2)
    assert squad.longest(1, 8192) == pytest.approx(squad.edit(8192)) and squad.longest(1, 50) <= 50
    assert squad.edit(8192) < squad.longest(16, 8192) < squad.longest(1000, 8192) < max(squad.edits)
    assert lengths.profile("world:heldout") is lengths.profiles()["world"]
    assert lengths.profile("world:heldout:20") is lengths.profiles()["grids"]
    assert lengths.profile("data/ARC-AGI/data/training") is lengths.profiles()["puzzles"]
    puzzles = lengths.profiles()["puzzles"]
    assert (puzzles.of(60), puzzles.of(250), puzzles.of(20), puzzles.of(9999)) == (60, 239.5, 20, 239.5)


def test_recorded_lengths_are_those_of_the_released_files() -> None:
    folder = real_data()
    if folder is None:
        pytest.skip("SEAL_DATA is not set")
    from seal_lib.arc.data import load_tasks
    from seal_lib.knowledge import data

    squad, puzzles = (lengths.profiles()[name] for name in ("squad", "puzzles"))
    released = data.from_json(folder / "seal_released" / "self_edits_base_val.json")
    real = of_passages(released, prompts.load("implications"))
    assert {k: v for k, v in real.items() if v != getattr(squad, k)} == {}
    names = ("training_{}_filtered_1B_training_set", "evaluation_{}_filtered_1B_eval_set")
    tasks = [
        task
        for name in names
        for task in load_tasks(
            *(str(folder / "arc" / f"arc-agi_{name.format(kind)}.json") for kind in ("challenges", "solutions"))
        )
    ]
    assert {k: v for k, v in of_puzzles(tasks).items() if v != getattr(puzzles, k)} == {}
