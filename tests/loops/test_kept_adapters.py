"""Adapters of evaluated arms are kept: PEFT loads each and gives the answers of the run; a kill neither loses nor
doubles one. Run: pytest tests/loops/test_kept_adapters.py
"""

import json
from pathlib import Path

import pytest
from conftest import Suite
from fixtures_seal import DOMAIN, made, seedling

from seal_lib.errors import DataError
from seal_lib.generation.hf import HFGenerator
from seal_lib.knowledge import evaluate
from seal_lib.loops import inner
from seal_lib.loops.outer import run_loop
from seal_lib.loops.policy import Policy, Source
from seal_lib.loops.settings import OuterLoop
from seal_lib.models import budget
from seal_lib.plan import needs
from seal_lib.plan.work import Phase
from seal_lib.records import PassageTrial
from seal_lib.runs import lifecycle, manifest, opening

NOTEBOOK, PASSAGES = "11_kept", made(3)
OUTER = OuterLoop(samples=1, edit_tokens=60, sft_rank=8, sft_alpha=16, sft_lr=3e-3, sft_batch=1)


def opened(suite: Suite, keep: bool = True) -> lifecycle.Run:
    suite.params(NOTEBOOK)
    suite.notebook(NOTEBOOK, "keep_adapters: bool = False  # keep them", "run = 0")
    return opening.start(NOTEBOOK, {"keep_adapters": keep})


def policy() -> Policy:
    return Policy("untrained", *seedling(), "hf", Source("seedling-knowledge"))


def work(run: lifecycle.Run) -> None:
    """Two arms of the base, one of which trains nothing, and a round with its own."""
    for arm in ("frozen", "gold_notes"):
        evaluate.evaluate_arm(run, policy(), PASSAGES, arm, DOMAIN, OUTER, seed=0)
    run_loop(run, policy(), DOMAIN, OUTER, practice=lambda index: PASSAGES[:1], held_out=PASSAGES[:1], rounds=1, seed=0)


def kept(run: lifecycle.Run) -> dict[str, bytes]:
    """Every file under the adapters' folder."""
    folder = run.folder / "artifacts" / "adapters"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def asked_by_peft(folder: Path, trial: PassageTrial) -> list[str]:
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained(str(folder)).eval()
    passage = next(p for p in PASSAGES if p.id == trial.unit_id)
    tokenizer = seedling()[1]
    asked = DOMAIN.questions(inner.Candidate("", passage, None, "", 0, trains=False), None, tokenizer, 512)
    return [several[0].text.strip() for several in HFGenerator(model, tokenizer).generate(asked, DOMAIN.answering)]


def test_peft_loads_an_adapter_of_the_base_and_of_a_round_and_gives_the_answers_of_the_run(suite: Suite) -> None:
    run = opened(suite)
    work(run)
    rows = {row["phase"]: [] for row in manifest.rows(run.folder)}
    for row in manifest.rows(run.folder):
        rows[row["phase"]].append(row)
    frozen = [a["text"] for a in rows["evaluate/frozen"][0]["answers"]]
    bases, answers = [], []
    for phase in ("evaluate/gold_notes", "seed_0/evaluate/own_untrained", "seed_0/evaluate/seal_round_1"):
        shelf = inner.Shelf(run.adapters(phase), "")
        for row in rows[phase][:2]:
            trial = PassageTrial.from_dict({key: value for key, value in row.items() if key not in ("phase", "unit")})
            folder = shelf.place(row["unit"])
            answers.append(asked_by_peft(folder, trial))
            assert answers[-1] == [answer.text for answer in trial.answers], phase
            bases.append(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    assert len({*map(tuple, answers), tuple(frozen)}) >= 4  # what is loaded is told apart by its answers
    assert all(Path(base).is_dir() for base in bases)
    assert Path(bases[-1]) == run.folder / "artifacts" / "models" / "seed_0" / "seal_round_1"
    assert len({*bases}) == 2 and bases[0] == bases[2]

    trained = [p for p in rows if "evaluate/" in p and not p.endswith(("/write", "frozen"))]
    wanted = {f"{phase}/{inner.Shelf(Path(), '').place(row['unit'])}" for phase in trained for row in rows[phase]}
    assert {str(Path(name).parent) for name in kept(run)} == wanted  # none of practice, none of an arm without


def test_a_killed_run_neither_loses_nor_doubles_an_adapter(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(DOMAIN), "chunk", 1)  # a row a chunk
    run = opened(suite)
    work(run)
    whole, folder = kept(run), run.folder
    run.close()
    opening.set_aside(folder)

    asked, ask = [], inner.ask_candidates

    def dies(policy, candidates, *rest, **named):
        asked.extend(c.id for c in candidates)
        if len(asked) == 5:  # the second of gold_notes: its adapter is written, its row is not
            raise KeyboardInterrupt
        return ask(policy, candidates, *rest, **named)

    monkeypatch.setattr(inner, "ask_candidates", dies)
    run = opened(suite)
    with pytest.raises(KeyboardInterrupt):
        work(run)
    assert run.folder == folder and len(kept(run)) == 4 and len(manifest.rows(folder)) == 4
    leftover = folder / "artifacts" / "adapters" / "evaluate" / "gold_notes" / ".x.new-1"
    leftover.mkdir()  # of a kill in the middle of a file
    run.close()
    monkeypatch.setattr(inner, "ask_candidates", ask)
    run = opened(suite)
    assert run.resumed == 4
    work(run)
    assert kept(run) == whole and not leftover.exists()


def test_by_default_nothing_is_kept_and_the_run_is_the_same(suite: Suite) -> None:
    run = opened(suite, keep=False)
    evaluate.evaluate_arm(run, policy(), PASSAGES, "gold_notes", DOMAIN, OUTER, seed=0)
    assert not (run.folder / "artifacts").exists()
    before = manifest.rows(run.folder)
    key = manifest.run_key(NOTEBOOK, {})[0]
    assert run.key == key  # of the time before there was such a parameter
    run = opened(suite)
    assert run.key != key  # else a finished run would stand for one that has them
    evaluate.evaluate_arm(run, policy(), PASSAGES, "gold_notes", DOMAIN, OUTER, seed=0)
    assert manifest.rows(run.folder) == before
    run.forget("evaluate/gold_notes")  # a cell is run again
    assert kept(run) == {}


def test_weights_that_nobody_can_find_again_are_refused(suite: Suite) -> None:
    with pytest.raises(DataError, match="source=Source"):
        evaluate.evaluate_arm(opened(suite), Policy("p", *seedling()), PASSAGES, "gold_notes", DOMAIN, OUTER, seed=0)


def test_the_plan_counts_their_disk() -> None:
    shape = budget.shape_of("Qwen/Qwen2.5-7B")
    of = {"targets": "qv", "rank": 32}
    work = [Phase("train", "evaluate/a", 10, **of), Phase("train", "r/score", 99, **of), Phase("sft", "r", 1, **of)]
    plain = needs.run_bytes({"dtype": "bfloat16"}, work, shape)
    more = needs.run_bytes({"dtype": "bfloat16", "keep_adapters": True}, work, shape) - plain
    assert more == pytest.approx(10 * 4 * 10_092_544 + budget.weight_bytes(shape, "bfloat16"))
