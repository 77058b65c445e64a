"""What only vLLM can get wrong: adapters in one batch, weights under a running engine, hangs, memory; on the seedlings.

The contract of all engines is in ``test_generate.py``. Every silent error that was seen in vLLM itself has a test here.
"""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from conftest import REPOSITORY
from fixtures_seal import DOMAIN, INNER, NEEDS_VLLM, WORDING, MemoryRun, candidate, made, seedling, vllm_settings
from test_child import gone
from test_generate import adapters, prompts

from seal_lib.errors import DataError, SealError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.hf import HFGenerator
from seal_lib.loops.inner import score_candidates, score_edits
from seal_lib.loops.outer import restem_round
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop

pytestmark = list(NEEDS_VLLM)
SHORT = Sampling(24)


def vllm(model=None, **changes):
    from seal_lib.generation.vllm_engine import VLLMGenerator

    return VLLMGenerator(model or seedling()[0], seedling()[1], vllm_settings(**changes))


def pid() -> int | None:
    from seal_lib.generation import vllm_engine

    engine = vllm_engine._engine
    return engine.child.pid if engine is not None and engine.child.alive else None


def same(requests: list[Request], sampling: Sampling = SHORT, model=None, **changes) -> None:
    """vLLM and Hugging Face give the same tokens, text and ending for every request."""
    theirs = HFGenerator(model or seedling()[0], seedling()[1]).generate(requests, sampling)
    ours = vllm(model, **changes).generate(requests, sampling)
    wrong = [i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
    assert not wrong, (len(wrong), len(requests), ours[wrong[0]], theirs[wrong[0]])


def made_up(number: int, rank: int = 4, targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj")):
    """An adapter of random numbers, large enough to change what is said."""
    import torch

    from seal_lib.training.adapters import Adapter, target_linears

    random = torch.Generator().manual_seed(number)
    weights = {
        name: (
            torch.randn(rank, layer.in_features, generator=random) * 0.1,
            torch.randn(layer.out_features, rank, generator=random) * 0.1,
        )
        for name, layer in target_linears(seedling()[0], targets).items()
    }
    return Adapter(rank, 2.0 * rank, targets, weights)


@lru_cache
def merged(number: int):
    """Another model of the same shape: what a round of ReST^EM leaves behind."""
    from seal_lib.training.adapters import merge

    return merge(seedling()[0], adapters()[number], copy=True)


def long_prompts(count: int = 6) -> list[str]:
    """Of 300 and more tokens, equal but for their last line: whole blocks of the prefix cache are shared."""
    head = "\n".join(WORDING.write(p) for p in made(5))
    assert len(seedling()[1](head)["input_ids"]) > 300
    return [f"{head}\n{WORDING.ask(p, p.questions[0])}" for p in made(count)]


# --------------------------------------------------------------------------------------- adapters and bases


def test_base_and_adapters_in_one_batch_when_every_slot_has_been_used() -> None:
    # vLLM 0.32 on a CPU gives a base prompt the adapter of the last slot once that slot has been filled
    three, asked = adapters(), prompts()
    for adapter in three:
        same([Request(p, adapter=adapter) for p in asked])
    same([Request(p, adapter=a) for p in asked for a in (None, *three)])
    same([Request(p) for p in asked])
    same([Request(p, adapter=a) for p in long_prompts() for a in (None, *three, None)])


def test_samples_of_long_prompts_repeat_whatever_the_batch() -> None:
    # more prompt tokens than one step takes: on a CPU a seeded row whose prompt is read in pieces is an error of vLLM's
    asked = [Request(p, n, a) for n, p in enumerate(long_prompts(10)) for a in (None, adapters()[0])]
    sampling = Sampling(16, temperature=1.0, n=2)
    whole = vllm().generate(asked, sampling)
    assert vllm().generate(asked[::-1], sampling)[::-1] == whole
    assert vllm().generate(asked[3:5], sampling) == whole[3:5]


def test_a_hundred_adapters_pass_through_two_slots() -> None:
    ranks, targets = (1, 3, 8, 16), (("q_proj",), ("down_proj", "o_proj"))
    many = [made_up(n, ranks[n % 4], targets[n % 2]) for n in range(100)]
    asked = [Request(prompts(3)[n % 3], adapter=a) for n, a in enumerate(many)]
    same(asked, Sampling(8))
    texts = {c.text for (c,) in vllm().generate(asked, Sampling(8))}
    assert len(texts) > 30  # they do say different things


def test_an_adapter_that_was_changed_is_another_one() -> None:
    adapter, asked = copy.deepcopy(adapters()[0]), long_prompts()
    before = vllm().generate([Request(p, adapter=adapter) for p in asked], SHORT)
    for name, (a, b) in adapters()[1].weights.items():
        adapter.weights[name][0].copy_(a), adapter.weights[name][1].copy_(b)
    same([Request(p, adapter=adapter) for p in asked])
    assert vllm().generate([Request(p, adapter=adapter) for p in asked], SHORT) != before


def test_another_base_from_memory_without_a_restart() -> None:
    asked = [Request(p, adapter=a) for p in (*prompts(), *long_prompts()) for a in (None, adapters()[2])]
    same(asked)
    running = pid()
    for model in (merged(0), merged(1), seedling()[0], merged(1)):  # keys and values of the last one must not be served
        same(asked, model=model)
    assert pid() == running
    assert vllm(merged(0)).generate(asked, SHORT) != vllm(merged(1)).generate(asked, SHORT)


def test_weights_written_in_place_are_seen() -> None:
    model = copy.deepcopy(seedling()[0])
    asked = [Request(p) for p in long_prompts()]
    same(asked, model=model)
    for mine, other in zip(model.parameters(), merged(0).parameters(), strict=True):
        mine.copy_(other)
    same(asked, model=model)


def test_a_bad_adapter_is_refused_and_the_engine_goes_on(monkeypatch) -> None:
    from seal_lib.generation import vllm_engine

    # what we know to be bad never gets there (test_engines.py), so this is what vLLM itself refuses
    asked = [Request(p) for p in prompts()]
    same(asked)
    running, odd = pid(), made_up(1, rank=20)
    monkeypatch.setattr(vllm_engine, "_bucket", lambda rank: 16)
    for _ in range(2):  # inside vLLM's generate it would be an error first and a hang the second time
        with pytest.raises(DataError, match="vLLM does not take an adapter: .* rank 20 .*; use engine hf"):
            vllm().generate([Request("Topic", adapter=odd), Request("Topic", adapter=adapters()[0])], SHORT)
        same([*asked, *[replace(r, adapter=adapters()[1]) for r in asked]])
    assert pid() == running


# ------------------------------------------------------------------------------------------------ the process


def test_a_hang_is_an_error_within_the_limit_and_a_new_engine_follows() -> None:
    asked = [Request(p) for p in prompts()]
    same(asked)
    running = pid()
    os.kill(running, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(SealError, match="no sign of life for 2 seconds and was ended; raise stall_seconds .*engine hf"):
        vllm(stall_seconds=2.0).generate(asked, SHORT)
    assert time.monotonic() - begun < 30 and gone(running)
    same([replace(r, adapter=made_up(1, rank=20)) for r in asked])
    assert pid() not in (None, running)


def test_an_engine_for_larger_ranks_serves_smaller_ones_too() -> None:
    same([Request(p, adapter=made_up(1, rank=20)) for p in prompts()])
    running = pid()
    same([Request(p, adapter=a) for p in prompts() for a in (None, made_up(2, rank=2), made_up(3, rank=32))])
    assert pid() == running


def test_a_killed_engine_is_an_error(monkeypatch) -> None:
    from seal_lib.generation.vllm_engine import Engine

    asked, real = [Request(p, adapter=adapters()[0]) for p in prompts()], Engine._save

    def killed(engine, *parts):
        os.kill(engine.child.pid, signal.SIGKILL)
        return real(engine, *parts)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_save", killed)
        with pytest.raises(SealError, match=r"engine ended unexpectedly \(signal 9\).*; run it again or use engine hf"):
            vllm().generate(asked, SHORT)
    assert pid() is None


def test_an_engine_that_cannot_start_says_why(monkeypatch, tmp_path: Path) -> None:
    from seal_lib.generation import vllm_engine

    vllm_engine.shutdown()
    real = vllm_engine._arguments
    monkeypatch.setattr(vllm_engine, "_arguments", lambda *parts: real(*parts) | {"max_lora_rank": 7})
    with pytest.raises(SealError, match="the vLLM engine failed: .*7.*; run it again or use engine hf"):
        vllm().generate([Request("Topic")], SHORT)
    assert pid() is None


def test_in_bfloat16_it_says_mostly_the_same() -> None:
    import torch

    model = copy.deepcopy(seedling()[0]).to(torch.bfloat16)
    asked = [Request(p, adapter=a) for p in prompts(8) for a in (None, adapters()[0])]
    theirs = HFGenerator(model, seedling()[1]).generate(asked, Sampling(8))
    ours = vllm(model).generate(asked, Sampling(8))
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= len(asked) // 2  # two roundings, two ways at a tie


SCRIPT = """
import os, signal, sys
from seal_lib import models
from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation import vllm_engine
generator = vllm_engine.VLLMGenerator(*models.load("seedling-knowledge"))
print(generator.generate([Request(sys.argv[1])], Sampling(24))[0][0].text.encode(), flush=True)
print(vllm_engine._engine.child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_plain_script_may_use_it_and_be_killed() -> None:
    from seal_lib.generation import vllm_engine

    vllm_engine.shutdown()  # two engines at once are none too many, but slow
    command = [sys.executable, "-c", SCRIPT, prompts(1)[0]]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    said, child = done.stdout.splitlines()
    assert done.returncode == -signal.SIGKILL and gone(int(child))
    ((expected,),) = HFGenerator(*seedling()).generate([Request(prompts(1)[0])], SHORT)
    assert said == str(expected.text.encode())


# ------------------------------------------------------------------------------------------- held to a schema

ANY = {
    "type": "object",
    "properties": {
        "yes": {"type": "boolean"},
        "kind": {"enum": ["a", "bc"]},
        "n": {"type": "integer", "enum": [1, 20]},
    },
    "required": ["yes", "kind", "n"],
    "additionalProperties": False,
}


def test_a_text_held_to_a_schema_fits_it_whatever_the_model() -> None:
    sampling = Sampling(60, temperature=1.0, n=8, schema=json.dumps(ANY))
    engine = Policy("untrained", *seedling(), "vllm").generator()
    several = engine.generate([Request(p, i) for i, p in enumerate(prompts())], sampling)
    for completion in (c for group in several for c in group):
        value = json.loads(completion.text)
        assert completion.finish == "eos" and set(value) == {"yes", "kind", "n"}
        assert completion.text == json.dumps(value)  # spaced as policies have learnt to write it
        assert isinstance(value["yes"], bool) and value["kind"] in ("a", "bc") and value["n"] in (1, 20)
    assert len({c.text for group in several for c in group}) > 3
    free = engine.generate([Request(prompts()[0])], SHORT)[0][0]
    assert not free.text.startswith("{")  # the next request is free again
    running = pid()
    with pytest.raises(DataError, match="the JSON schema cannot be made a grammar: .*properties"):
        engine.generate([Request("Topic")], Sampling(4, schema='{"type": "object", "properties": 3}'))
    assert pid() == running and engine.generate([Request(prompts()[0])], SHORT)[0][0] == free


# ------------------------------------------------------------------------------------------- whole rounds

OUTER = OuterLoop(
    samples=2, edit_tokens=60, sft_rank=8, sft_alpha=16, sft_lr=2e-3, sft_epochs=2, sft_batch=4, temperature=1.0
)


def test_a_knowledge_round_on_vllm(tmp_path: Path) -> None:
    domain, passages = replace(DOMAIN, inner=replace(INNER, epochs=4)), made(3, population="learning")
    policy = Policy("untrained", *seedling(), "vllm")
    run = MemoryRun(tmp_path)
    following, record = restem_round(run, policy, passages, domain, OUTER, index=1, name="one", seed=5)
    assert following.engine == "vllm" and len(record.candidates) == 6 and len(record.kept) == 3
    edits = [t.edit for t in record.candidates]
    # questions are answered greedily, so both engines grade the same self-edits alike
    ours, theirs = (
        score_edits(MemoryRun(), replace(policy, engine=engine), edits, passages, domain, arm="one", phase="s", seed=7)
        for engine in ("vllm", "hf")
    )
    assert [t.answers for t in ours] == [t.answers for t in theirs] and sum(t.accuracy for t in ours) > 0
    trial = candidate(passages[0], passages[0].references["gold"])
    learnt = score_candidates(MemoryRun(), following, [trial], DOMAIN, phase="s")
    assert learnt[0].outcome == "ok" and learnt[0].accuracy > 0.5


def test_close_gives_the_memory_back() -> None:
    from seal_lib.generation import vllm_engine

    generator = Policy("untrained", *seedling(), "vllm").generator()
    assert generator.generate([Request("Topic")], SHORT)
    running, folder = pid(), vllm_engine._engine.child.folder
    assert folder.exists() and not list(folder.rglob("*.safetensors"))  # the weights are in the engine only
    generator.close()
    assert gone(running, 0.1) and pid() is None and not folder.exists()


@lru_cache
def grids():
    from seal_lib import models

    return models.load("seedling-grids")


@lru_cache
def study(constrained: bool):
    from seal_lib.arc import data, experiment
    from seal_lib.arc import prompts as wordings
    from seal_lib.arc.domain import Puzzles, TestTimeTraining

    inner = TestTimeTraining(
        16,
        16.0,
        "all-linear",
        batch=4,
        warmup=3,
        cap=8,
        example_tokens=120,
        max_steps=6,
        max_epochs=100,
        views="leave_one_out",
        answer_tokens=24,
    )
    outer = OuterLoop(
        samples=4,
        temperature=1.0,
        top_p=1.0,
        edit_tokens=80,
        filter="threshold",
        threshold=-1.0,
        sft_rank=16,
        sft_alpha=16.0,
        sft_lr=1e-3,
        sft_epochs=1,
        sft_batch=5,
    )
    found = [data.load_tasks(f"world:{which}:2", seed=0) for which in ("learning", "heldout")]
    return experiment.FewShot(*found, Puzzles(inner, wordings.load("seedling"), constrained=constrained), outer, 2)


def test_configurations_held_to_the_schema_are_configurations(tmp_path: Path) -> None:
    from seal_lib.arc.self_edits import read
    from seal_lib.loops.outer import write_self_edits

    policy = Policy("untrained", *grids(), "vllm")
    hot = replace(study(True).outer, temperature=2.0)  # so that a free text is mostly none
    written = {
        held: write_self_edits(
            MemoryRun(), policy, study(held).practice, study(held).domain, hot, phase="w", seed=1, samples=12
        )
        for held in (True, False)
    }
    reasons = {held: [read(edit.text).reason for edit in edits] for held, edits in written.items()}
    # a number may be out of range, and a text may be cut off at the limit; of any other reason there is none
    ended = [r for r, edit in zip(reasons[True], written[True], strict=True) if edit.tokens < 80]
    assert ended and set(ended) <= {"", "out_of_range"}
    assert sum(r == "" for r in reasons[True]) > sum(r == "" for r in reasons[False])


def test_an_arc_round_on_vllm(tmp_path: Path) -> None:
    from seal_lib.loops.inner import score_edits

    parts, base = study(False), Policy("untrained", *grids(), "vllm")
    run = MemoryRun(tmp_path)
    loop = parts.loop(run, base, rounds=1, seed=0)
    assert len(loop.rounds[0].candidates) == 8 and set(loop.evaluated) == {"own_untrained", "seal_round_1"}
    edits = [trial.edit for trial in loop.rounds[0].candidates]
    ours, theirs = (
        score_edits(
            MemoryRun(), replace(base, engine=engine), edits, parts.practice, parts.domain, arm="s", phase="s", seed=0
        )
        for engine in ("vllm", "hf")
    )
    assert [t.attempt for t in ours] == [t.attempt for t in theirs]
    assert any(t.attempt.outcome == "ok" for t in ours)


@pytest.mark.notebook
def test_a_notebook_on_vllm(tmp_path: Path, monkeypatch, capfd) -> None:
    from seal_lib import paths
    from seal_lib.runs import manifest, runner

    for name in ("SEAL_SOURCE", "SEAL_RUN_DIR", "SEAL_BATCH", "SET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    assert runner.run("01_one_self_edit", "smoke", {"engine": "vllm"}) == 0, capfd.readouterr().err
    record = paths.read_json(manifest.newest("01_one_self_edit", "smoke") / "run.json")
    assert record["described"]["engine"] == "vllm" and record["parameters"]["engine"] == "vllm"
