"""Adapters as values and as slots: PEFT's format, routing by batch row, merging."""

import json

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from seal_lib.errors import DataError, ParameterError, SealError
from seal_lib.training.adapters import Adapter, merge, target_linears, target_names
from seal_lib.training.attached import attached

torch.set_num_threads(1)
SIZES = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8)),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FAMILIES["llama"]().eval()


def random_adapter(model, seed: int, rank: int = 4, targets=("q_proj", "v_proj", "down_proj")) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    weights = {
        name: (torch.randn(rank, m.in_features, generator=draw), torch.randn(m.out_features, rank, generator=draw))
        for name, m in target_linears(model, targets).items()
    }
    return Adapter(rank, 2.0 * rank, tuple(targets), weights)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_a_saved_adapter_with_the_same_logits(family, tmp_path):
    from peft import PeftModel

    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    adapter, ids = random_adapter(model, 1), torch.randint(0, 61, (3, 7))
    plain = logits(model, ids)
    with attached(model, [adapter], [0, 0, 0]):
        ours = logits(model, ids)
    adapter.save(tmp_path / "a", "base")
    theirs = logits(PeftModel.from_pretrained(model, str(tmp_path / "a")).eval(), ids)
    assert (ours - plain).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_load_gives_back_what_was_saved_also_over_an_older_one(model, tmp_path):
    first, second = random_adapter(model, 1), random_adapter(model, 2)
    first.save(tmp_path / "a", "base")
    second.save(tmp_path / "a", "base")
    loaded = Adapter.load(tmp_path / "a")
    assert loaded.digest() == second.digest() != first.digest()
    assert loaded.targets == second.targets
    assert [p.name for p in tmp_path.iterdir()] == ["a"]  # no temporary folders left


def test_load_reads_what_peft_saved(model, tmp_path):
    from peft import LoraConfig, get_peft_model

    peft_model = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    layer = peft_model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    peft_model.save_pretrained(tmp_path)
    adapter = Adapter.load(tmp_path)
    torch.testing.assert_close(adapter.delta("model.layers.1.self_attn.q_proj"), layer.get_delta_weight("default"))


def test_load_refuses_what_is_no_plain_lora(model, tmp_path):
    with pytest.raises(DataError, match=r"adapter_config.json is missing"):
        Adapter.load(tmp_path)
    folder = random_adapter(model, 1).save(tmp_path / "a", "base")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(DataError, match="use_dora"):
        Adapter.load(folder)


@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 2, 2], [2, -1, 0, 1, 1, -1], [1] * 6, [-1] * 6, [2, 2, 0, 0, 1, 1]])
def test_each_row_uses_its_own_adapter_and_minus_one_is_bitwise_the_base(model, rows):
    adapters = [
        random_adapter(model, 1),
        random_adapter(model, 2, rank=2, targets=("q_proj",)),
        random_adapter(model, 3),
    ]
    ids = torch.randint(0, 61, (6, 5))
    plain = logits(model, ids)
    alone = []
    for adapter in adapters:
        alone.append(logits(merge(model, adapter, copy=True), ids))
    with attached(model, adapters, torch.tensor(rows)):
        mixed = logits(model, ids)
    for row, slot in enumerate(rows):
        if slot < 0:
            assert torch.equal(mixed[row], plain[row])
        else:
            torch.testing.assert_close(mixed[row], alone[slot][row], atol=2e-4, rtol=2e-4)
            assert (mixed[row] - plain[row]).abs().max() > 0.05
    assert torch.equal(logits(model, ids), plain)


def test_a_wrong_batch_and_an_adapter_that_is_not_there_are_refused(model):
    adapters, ids = [random_adapter(model, 1), random_adapter(model, 2)], torch.randint(0, 61, (3, 5))
    with attached(model, adapters, [0, 1, -1]):
        logits(model, ids)
        with pytest.raises(SealError, match=r"3 rows were routed"):
            logits(model, ids[:2])
    with pytest.raises(ParameterError, match="from -1 to 1"), attached(model, adapters, [2]):
        pass


def test_cached_generation_is_that_of_the_merged_model(model):
    adapters = [random_adapter(model, 1), random_adapter(model, 2)]
    ids = torch.randint(1, 61, (4, 5))
    options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
    with attached(model, adapters, [1, 0, -1, 1]):
        mixed = model.generate(ids, **options)
    models = [merge(model, adapter, copy=True) for adapter in adapters] + [model]
    for row, slot in enumerate([1, 0, -1, 1]):
        alone = models[slot].generate(ids[row : row + 1], **options | {"attention_mask": options["attention_mask"][:1]})
        assert torch.equal(mixed[row], alone[0])


def test_detached_after_an_exception_and_never_attached_twice(model):
    adapter, ids = random_adapter(model, 1), torch.randint(0, 61, (1, 5))
    plain, names = logits(model, ids), list(model.state_dict())
    with pytest.raises(ZeroDivisionError), attached(model, [adapter], [0]):
        assert list(model.state_dict()) == names
        with pytest.raises(SealError, match="already carries"), attached(model, [adapter], [0]):
            pass
        raise ZeroDivisionError
    assert torch.equal(logits(model, ids), plain)
    assert all("forward" not in m.__dict__ for m in model.modules())


def test_merge_of_a_copy_adds_delta_and_leaves_the_model(model):
    adapter, name = random_adapter(model, 1), "model.layers.0.self_attn.q_proj"
    before = model.get_submodule(name).weight.clone()
    merged = merge(model, adapter, copy=True)
    assert torch.equal(model.get_submodule(name).weight, before)
    torch.testing.assert_close(merged.get_submodule(name).weight, before + adapter.delta(name))
    assert torch.equal(merged.lm_head.weight, model.lm_head.weight)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert not any(p.requires_grad for p in merged.parameters())


def test_merge_into_bfloat16_rounds_once(model):
    half = model.to(torch.bfloat16)
    adapter, name = random_adapter(half, 1), "model.layers.1.mlp.down_proj"
    wide = half.get_submodule(name).weight.float() + adapter.delta(name)
    assert torch.equal(merge(half, adapter).get_submodule(name).weight, wide.bfloat16())


def test_targets(model):
    leaves = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert target_names(model, "all-linear") == leaves and target_names(model, "qv") == ("q_proj", "v_proj")
    model.model.down_proj = torch.nn.Linear(2, 2)
    model.get_output_embeddings = lambda: model.model.down_proj  # a head that is called as others are: every name whole
    assert target_names(model, "all-linear") == tuple(target_linears(model, "all-linear"))
    del model.get_output_embeddings, model.model.down_proj
    assert len(target_linears(model, "all-linear")) == 14
    assert {name.rpartition(".")[2] for name in target_linears(model, "qv")} == {"q_proj", "v_proj"}
    assert list(target_linears(model, ["layers.1.mlp.up_proj"])) == ["model.layers.1.mlp.up_proj"]
    with pytest.raises(ParameterError, match=r"'c_attn' names no Linear layer of LlamaForCausalLM.*q_proj"):
        target_linears(model, ["q_proj", "c_attn"])
    with pytest.raises(ParameterError, match="lm_head"):  # tied to the embeddings
        target_linears(model, "lm_head")


def test_an_adapter_of_another_model_is_refused(model):
    wider = LlamaForCausalLM(LlamaConfig(**SIZES | {"hidden_size": 64}))
    with pytest.raises(DataError, match="the model it was trained on"):
        merge(model, random_adapter(wider, 1))


def test_the_adapter_of_a_round_names_a_base_that_exists_and_says_what_it_stands_on(tmp_path):
    from fixtures_seal import MemoryRun, seedling
    from peft import AutoPeftModelForCausalLM

    from seal_lib.loops.policy import Policy, Source
    from seal_lib.loops.settings import OuterLoop

    run, outer, pairs = MemoryRun(tmp_path), OuterLoop(sft_epochs=1, sft_lr=0.01), [([5, 6, 7], [8, 9])] * 2
    policy = Policy("untrained", *seedling(), source=Source("seedling-knowledge"))
    first, _ = policy.finetuned(run, pairs, outer, name="round_1", seed=0)
    second, _ = first.finetuned(run, pairs, outer, name="round_2", seed=0)
    folders = [tmp_path / "policies" / f"round_{k}" for k in (1, 2)]
    ids = torch.arange(5, 12)[None]
    theirs = logits(AutoPeftModelForCausalLM.from_pretrained(str(folders[0] / "adapter")).eval(), ids)
    torch.testing.assert_close(theirs, logits(first.model, ids), atol=1e-4, rtol=1e-4)
    assert (theirs - logits(policy.model, ids)).abs().max() > 1e-3
    on = [json.loads((folder / "report.json").read_text())["stands_on"] for folder in folders]
    assert on == [[], [str(folders[0].resolve() / "adapter")]]
