"""Memory planned from shapes alone is what models and autograd really take. Run: pytest tests/models/test_budget.py"""

import json
import subprocess
import sys

import pytest
import torch
from transformers import GemmaConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from seal_lib import models
from seal_lib.errors import DataError, ParameterError
from seal_lib.models import budget
from seal_lib.models.budget import GB, SHAPES, Budget, Shape, colocated, shape_of, slots_that_fit
from seal_lib.training.bank import AdapterBank
from seal_lib.training.jobs import Example, Job

torch.set_num_threads(1)
SEVEN = SHAPES["Qwen/Qwen2.5-7B"]
TOTALS = {
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
}


def config_of(shape: Shape):
    kind = Qwen2Config if shape.qkv_bias else LlamaConfig
    return kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        head_dim=shape.head_dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=shape.tied,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_a_known_shape_is_the_model_of_that_name(name):
    shape, config = SHAPES[name], config_of(SHAPES[name])
    with torch.device("meta"):
        model = (Qwen2ForCausalLM if shape.qkv_bias else LlamaForCausalLM)(config)
    total = TOTALS.get(name) or TOTALS[name.removesuffix("-Instruct")]
    assert shape.parameters == sum(p.numel() for p in model.parameters()) == total
    linears = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not model.lm_head]
    assert shape.linear_parameters == sum(m.weight.numel() for m in linears)
    assert shape.adapter_parameters("all-linear", 4) == 4 * sum(m.in_features + m.out_features for m in linears)
    assert Shape.of(config, name) == shape == shape_of(name)


def test_every_pinned_model_and_every_seedling_has_a_shape():
    assert set(models.REVISIONS) <= set(SHAPES)
    for name in ("seedling-knowledge", "seedling-grids"):
        assert shape_of(name).parameters == models.load(name)[0].num_parameters()


def test_what_has_no_shape_is_told_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"'someone/else' is not known here.*Qwen2.5-7B"):
        shape_of("someone/else")
    with pytest.raises(DataError, match=r"config.json is missing"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_head": 12}))
    with pytest.raises(DataError, match="no 'num_attention_heads'"):
        shape_of(str(tmp_path))
    assert Shape.of(GemmaConfig(head_dim=8)).head_dim == 8
    with pytest.raises(ParameterError, match="'c_attn'"):
        SEVEN.adapter_parameters("c_attn", 1)
    with pytest.raises(ParameterError, match="dtype: 'int3'"):
        budget.weight_bytes(SEVEN, "int3")


def test_the_figures_of_the_7b_bank():
    """Measured on a GPU (rank 32; their activations are PEFT's, which keeps more than the bank does)."""
    assert SEVEN.adapter_parameters("qv", 32) == 10_092_544 and SEVEN.adapter_parameters("all-linear", 32) == 80_740_352
    assert budget.slot_bytes(SEVEN, "qv", 32) == pytest.approx(0.161 * GB, rel=5e-3)
    assert budget.slot_bytes(SEVEN, "all-linear", 32) == pytest.approx(1.29 * GB, rel=5e-3)
    assert budget.weight_bytes(SEVEN, "bfloat16") == pytest.approx(15.2 * GB, rel=5e-3)
    assert budget.weight_bytes(SEVEN, "4bit") == pytest.approx(5.55 * GB, rel=5e-3)
    assert budget.kv_bytes(SEVEN, 1) == 57_344
    assert budget.logits_bytes(SEVEN, 1) == pytest.approx(2.4e6, rel=2e-2)
    for targets, most in (("qv", 4.9), ("all-linear", 8.8)):
        assert 0.5 * most < budget.activation_bytes(SEVEN, 1, targets) / 2**20 < most


def kept_by_autograd(model, targets: str, slots: int, length: int, checkpointing: bool) -> int:
    """Bytes of what the body's forward pass leaves for backward, the weights apart."""
    draw = torch.Generator().manual_seed(0)
    jobs = [Job(str(i), [Example(torch.randint(0, 100, (length + 1,), generator=draw).tolist())]) for i in range(slots)]
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x  # holding it keeps the address its own
        return x

    with AdapterBank(model, slots=slots, targets=targets, gradient_checkpointing=checkpointing) as bank:
        bank._allocate(slots, 32)
        ids, positions, *_ = bank._pack([bank._prepare(i, job).next for i, job in enumerate(jobs)])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            bank.model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        bank._release()
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.mark.parametrize("targets", ["qv", "all-linear"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("slots", "length"), [(4, 24), (1, 160)])
def test_activations_are_what_autograd_keeps(targets, dtype, slots, length):
    """The difference of two depths is that of a layer; within 6 % (the bank's h is float32 on a CPU)."""
    kept, planned = [], []
    for layers in (1, 3):
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=104,
            hidden_size=112,
            intermediate_size=592,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        model = Qwen2ForCausalLM._from_config(config, dtype=getattr(torch, dtype)).eval()
        kept.append(kept_by_autograd(model, targets, slots, length, False))
        planned.append(budget.activation_bytes(Shape.of(config), slots * length, targets, dtype=dtype))
    assert kept[1] - kept[0] == pytest.approx(planned[1] - planned[0], rel=0.06)
    assert kept[1] < planned[1]  # the working space of a layer comes on top
    recomputed = kept_by_autograd(model, targets, slots, length, True)
    narrow = budget.activation_bytes(Shape.of(config), slots * length, targets, True, dtype)
    assert recomputed < narrow < planned[1]


def test_a_budget_names_its_largest_part_and_the_ways_out():
    settings = dict(targets="qv", rank=32, tokens_per_step=1024, predicted=1024, kv_tokens=100_000)
    alone = colocated(SEVEN, "bfloat16", 16, engine="hf", total=80 * GB, **settings)
    both = colocated(SEVEN, "bfloat16", 16, engine="vllm", total=80 * GB, **settings)
    assert alone.check() is alone and alone.fits and both.fits
    assert both.needed - alone.needed > budget.weight_bytes(SEVEN, "bfloat16")  # vLLM has its own copy
    assert "vLLM's own copy of the weights" in both.table() and "15.23 GB" in both.table()
    with pytest.raises(
        ParameterError, match=r"needed and there are 24.0 GB; the largest part is weights \(bfloat16\)"
    ) as e:
        colocated(SEVEN, "bfloat16", 16, engine="hf", total=24 * GB, **settings).check()
    for way in ("fewer slots", "gradient_checkpointing", "4bit", "smaller KV", "smaller model"):
        assert way in str(e.value)
    assert colocated(SEVEN, "4bit", 16, engine="hf", total=24 * GB, **settings).fits
    with pytest.raises(ParameterError, match="engine: 'sglang'"):
        colocated(SEVEN, "bfloat16", 16, engine="sglang", **settings)
    assert Budget("x", {"a": 92.0}, 100.0).fits and not Budget("x", {"a": 92.1}, 100.0).fits


def test_as_many_slots_as_fit_and_not_one_more():
    free = 80 * GB - budget.weight_bytes(SEVEN, "bfloat16")
    k = slots_that_fit(SEVEN, free, "qv", 32, 60, 1024)
    for slots, fits in ((k, True), (k + 1, False)):
        parts = {
            "slots": slots * budget.slot_bytes(SEVEN, "qv", 32),
            "activations": budget.activation_bytes(SEVEN, 1024, "qv"),
            "logits": budget.logits_bytes(SEVEN, 1024, budget.chunk_of(SEVEN)),
        }
        assert Budget("x", parts, free).fits is fits
    assert slots_that_fit(SEVEN, free, "qv", 32, 60) < k  # all slots in one step take more
    assert slots_that_fit(SEVEN, free, "qv", 32, 60, checkpointing=True) > slots_that_fit(SEVEN, free, "qv", 32, 60)
    assert slots_that_fit(SEVEN, 1e8, "qv", 32, 60) == 0


def test_planning_loads_no_torch():
    code = "import sys, seal_lib.models.budget as b; b.shape_of('seedling-knowledge'); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(models.paths.ROOT)},
    )
    assert done.stdout == "False\n"
