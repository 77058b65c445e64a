"""Choosing an engine is data: names, what ``auto`` stands for, and what each engine cannot do is said."""

import json
from types import SimpleNamespace

import pytest
from fixtures_seal import DOMAIN, MemoryRun, made, seedling

from seal_lib.errors import DataError
from seal_lib.generation import engines
from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.hf import HFGenerator
from seal_lib.loops.outer import write_self_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop

SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]})


def model(device: str, **config) -> SimpleNamespace:
    return SimpleNamespace(device=SimpleNamespace(type=device), config=SimpleNamespace(**config))


@pytest.mark.parametrize("installed", [True, False])
def test_auto_is_vllm_only_where_it_is_installed_and_on_a_gpu(monkeypatch, installed: bool) -> None:
    monkeypatch.setattr(engines, "installed", lambda: installed)
    assert engines.resolve("auto", model("cuda")) == ("vllm" if installed else "hf")
    assert engines.resolve("auto", model("cpu")) == "hf"
    assert engines.resolve("auto", model("cuda", quantization_config={"bits": 4})) == "hf"
    assert engines.resolve("hf", model("cuda")) == "hf"


def test_what_cannot_be_had_is_refused_with_the_way_out(monkeypatch) -> None:
    with pytest.raises(DataError, match="engine: 'tgi' is not one of auto, hf, vllm"):
        engines.resolve("tgi", model("cpu"))
    monkeypatch.setattr(engines, "installed", lambda: False)
    with pytest.raises(DataError, match="vllm is not installed .*use engine hf"):
        Policy("untrained", *seedling(), "vllm")


def test_a_policy_says_which_engine_it_is_and_uses_it(monkeypatch) -> None:
    asked = []
    rows = {"hf": HFGenerator, "vllm": lambda *parts: asked.append(parts) or HFGenerator(*parts)}
    monkeypatch.setattr(engines, "ENGINES", rows)
    monkeypatch.setattr(engines, "installed", lambda: True)
    assert Policy("p", *seedling(), "auto").engine == "hf" and Policy("p", *seedling()).engine == "hf"
    policy = Policy("p", *seedling(), "vllm")
    edits = write_self_edits(
        MemoryRun(), policy, made(1), DOMAIN, OuterLoop(samples=2, edit_tokens=5), phase="w", seed=1
    )
    assert policy.engine == "vllm" and len(edits) == 2 and asked == [seedling()]


def test_hugging_face_refuses_a_schema_and_a_schema_must_be_one() -> None:
    with pytest.raises(DataError, match="hf cannot .* use engine vllm"):
        HFGenerator(*seedling()).generate([Request("a")], Sampling(4, schema=SCHEMA))
    for wrong in ("", "{", "[1]", "true"):
        with pytest.raises(DataError, match="is not a JSON object"):
            Sampling(4, schema=wrong)
    assert hash(Sampling(4, schema=SCHEMA)) == hash(Sampling(4, schema=SCHEMA))


def test_vllm_refuses_what_it_cannot_hold_before_it_starts() -> None:
    import copy

    import torch

    from seal_lib.generation import vllm_engine
    from seal_lib.training.adapters import Adapter

    weights, tokenizer = seedling()
    with pytest.raises(DataError, match="not torch.float64"):
        vllm_engine.VLLMGenerator(copy.deepcopy(weights).double(), tokenizer)
    generator = vllm_engine.VLLMGenerator(weights, tokenizer, vllm_engine.Settings(max_model_len=64))
    assert generator.positions == 64
    with pytest.raises(DataError, match="max_tokens is 63, together more than the model's 64 positions"):
        generator.generate([Request("Topic: Annals of")], Sampling(63))
    small = vllm_engine.VLLMGenerator(weights, tokenizer, vllm_engine.Settings(kv_bytes=1000))
    with pytest.raises(DataError, match="kv_bytes=1000 is less than"):
        small.generate([Request("Topic")], Sampling(4))
    name = "model.layers.0.self_attn.q_proj"
    out, into = dict(weights.named_modules())[name].weight.shape
    vast = Adapter(513, 1.0, (name,), {name: (torch.zeros(513, into), torch.zeros(out, 513))})
    foreign = Adapter(2, 1.0, (name,), {name: (torch.zeros(2, into + 1), torch.zeros(out, 2))})
    plain = vllm_engine.VLLMGenerator(weights, tokenizer)
    for adapter, says in ((vast, "rank 512 at most, not 513; use engine hf"), (foreign, "does not have in that shape")):
        with pytest.raises(DataError, match=says):
            plain.generate([Request("Topic", adapter=adapter)], Sampling(4))
    with pytest.raises(DataError, match="temperatures up to 2, not 2.5; use engine hf"):
        plain.generate([Request("Topic")], Sampling(4, temperature=2.5))
    assert vllm_engine._engine is None


def test_memory_for_keys_and_values_bounds_the_length() -> None:
    from seal_lib.generation.vllm_engine import Settings, VLLMGenerator

    weights, tokenizer = seedling()
    config = weights.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert VLLMGenerator(weights, tokenizer).positions == config.max_position_embeddings
    assert VLLMGenerator(weights, tokenizer, Settings(kv_bytes=1100 * token)).positions == 896  # whole blocks, one free


def test_an_engine_is_started_anew_only_where_it_must_be(monkeypatch) -> None:
    import copy

    from seal_lib.generation import vllm_engine
    from seal_lib.generation.vllm_engine import Settings, VLLMGenerator

    started = []

    class Fake:
        """What an engine is asked for, without one."""

        def __init__(self, generator, settings):
            self.kind, self.settings, self.bases = generator.kind, settings, []
            self.child = SimpleNamespace(alive=True, close=lambda: setattr(self.child, "alive", False))
            started.append(self)

        def load_base(self, model, limits):
            self.bases.append(model)

    monkeypatch.setattr(vllm_engine, "Engine", Fake)
    monkeypatch.setattr(vllm_engine, "_engine", None)
    weights, tokenizer = seedling()
    other = copy.deepcopy(weights)
    # (model, rank of the largest adapter, settings) in turn, and how many engines were started until then
    asked = [
        (weights, 0, Settings(), 1),
        (other, 16, Settings(), 1),  # other weights go under the running one
        (weights, 17, Settings(), 2),  # larger adapters want larger slots
        (weights, 3, Settings(), 2),  # which hold small ones too
        (weights, 3, Settings(stall_seconds=5.0), 2),
        (weights, 3, Settings(max_loras=3), 3),
        (copy.deepcopy(weights).bfloat16(), 3, Settings(max_loras=3), 4),
    ]
    for model, rank, settings, count in asked:
        engine = vllm_engine._engine_for(VLLMGenerator(model, tokenizer, settings), rank)
        assert len(started) == count and engine is started[-1] and engine.bases[-1] is model
        assert [e.child.alive for e in started] == [False] * (count - 1) + [True]  # one at a time
    assert [e.settings.max_lora_rank for e in started] == [16, 32, 16, 16]
    started[-1].child.alive = False  # it died meanwhile
    vllm_engine._engine_for(VLLMGenerator(weights, tokenizer), 0)
    assert len(started) == 5
