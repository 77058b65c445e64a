"""Architectures of the Hub: the bank trains as PEFT does, or refuses. Run: pytest tests/training/test_families.py"""

import pytest
import torch
from test_bank import difference, tokens
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from seal_lib.errors import ParameterError, SealError
from seal_lib.training.adapters import Adapter, merge, target_linears, target_names
from seal_lib.training.attached import attached
from seal_lib.training.bank import AdapterBank
from seal_lib.training.finetune import train_alone
from seal_lib.training.jobs import Example, Job, pad_examples

SIZES = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    max_position_embeddings=256,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
)
#: rotary embedding of Llama 3.2, with a context small enough that its rescaling shows within 40 tokens
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=32.0,
    high_freq_factor=4.0,
    low_freq_factor=1.0,
    original_max_position_embeddings=16,
)
FAMILIES = {
    "qwen2.5": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, rope_theta=1e6)),
    "llama3.2": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "mistral, window past the text": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=64)),
    "mistral, window within": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "gemma2": lambda: gemma2(),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, sliding_window=6, layer_types=["sliding_attention"] * 2 + ["full_attention"])
    ),
}


def gemma2(**options):
    """Caps tight enough to be felt; every other layer has a window."""
    config = Gemma2Config(
        **SIZES,
        sliding_window=6,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
        **options,
    )
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config)


def make(build, dtype=torch.float32):
    torch.manual_seed(0)
    model = build().eval()
    for name, p in model.named_parameters():  # random norms and biases, and weights that attend to something
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(p, float("norm" in name and "Gemma" not in type(model).__name__), std=0.2)
        elif "proj" in name:
            nn.init.normal_(p, std=0.15)
    return model.to(dtype)


def jobs(pads: bool) -> list[Job]:
    documents = [[tokens(10 * i + j, 5 + (7 * i + 11 * j) % 35) for j in range(3)] for i in range(5)]
    found = [
        Job(str(i), [Example(ids) for ids in part], lr=5e-3, epochs=2, rank=4, alpha=8, seed=i, batch=1 + i % 2)
        for i, part in enumerate(documents)
    ]
    if pads:
        found.append(Job("pads", [pad_examples(documents[0][0], "probe:5", 60, 0)], lr=5e-3, epochs=2, rank=4, alpha=8))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bank_equals_peft(family):
    model, windowed = make(FAMILIES[family]), family in ("mistral, window within", "gemma2", "gemma3")
    chosen = jobs(pads=not windowed)
    with AdapterBank(model, slots=4) as bank:
        results = bank.run(chosen)
    for job, result in zip(chosen, results, strict=True):
        alone = train_alone(model, job)
        assert result.losses == pytest.approx(alone.losses, rel=1e-4), job.id
        assert difference(result.adapter, alone.adapter) <= 5e-3, job.id  # another seed: about 1.4
        assert len(set(result.losses)) == result.steps


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_longer_than_attention_takes_whole_are_the_same_too(family):
    """Past 128 tokens the model's own attention runs, on torch's kernels."""
    model = make(FAMILIES[family])
    long = [
        Job(str(i), [Example(tokens(i, 140 + 9 * i)), Example(tokens(9 + i, 20))], lr=3e-3, epochs=1, rank=4, batch=2)
        for i in range(2)
    ]
    with AdapterBank(model, slots=2) as bank:
        results = bank.run(long)
    for job, result in zip(long, results, strict=True):
        alone = train_alone(model, job)
        assert result.losses == pytest.approx(alone.losses, rel=1e-4)
        assert difference(result.adapter, alone.adapter) <= 2e-3


@pytest.mark.parametrize("family", ["qwen2.5", "llama3.2", "gemma3"])
def test_a_bfloat16_base_with_float32_adapters_is_near_float32(family):
    """A few per cent in dW, where another seed is 120 % away."""
    wide, narrow = make(FAMILIES[family]), make(FAMILIES[family], torch.bfloat16)
    for p, q in zip(wide.parameters(), narrow.parameters(), strict=True):
        p.data.copy_(q)  # the same weights, so that only the arithmetic differs
    chosen, found = jobs(pads=False), []
    for model in (wide, narrow):
        with AdapterBank(model, slots=4) as bank:
            found.append(bank.run(chosen))
    again = [train_alone(wide, Job(**{**vars(job), "seed": job.seed + 100})) for job in chosen]
    for exact, rounded, other in zip(*found, again, strict=True):
        assert {a.dtype for pair in rounded.adapter.weights.values() for a in pair} == {torch.float32}
        assert rounded.losses == pytest.approx(exact.losses, rel=2e-2)
        assert difference(rounded.adapter, exact.adapter) < 0.25 < 0.5 * difference(other.adapter, exact.adapter)


def test_pads_in_the_loss_are_refused_where_a_layer_has_a_window():
    with AdapterBank(make(FAMILIES["gemma3"])) as bank, pytest.raises(SealError, match="only 6 tokens back"):
        bank.run(jobs(pads=True)[-1:])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)), "own logits"),
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=48, n_layer=2, n_head=4)), "has no Linear"),
    ],
)
def test_what_the_bank_cannot_do_it_refuses_in_a_sentence(build, message):
    model = make(build)
    ids = torch.arange(9)[None]
    before = model(input_ids=ids).logits
    with pytest.raises(SealError, match=message) as caught:
        AdapterBank(model)
    assert "\n" not in str(caught.value)
    assert torch.equal(model(input_ids=ids).logits, before)


# ------------------------------------------------------------------------------- every layer that a model has

_KV, _EXPERTS = {"num_key_value_heads": 2}, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_PLAIN = {k: SIZES[k] for k in SIZES if k not in ("head_dim", "num_key_value_heads")}
_LINEAR = dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)
#: model_type → sizes, layers that "all-linear" names (None: none), whether examples can be packed
ARCHITECTURES = {
    "phi": (_PLAIN, "q_proj k_proj v_proj dense fc1 fc2", True),
    "phi3": (_PLAIN | _KV | {"pad_token_id": 0}, "o_proj qkv_proj gate_up_proj down_proj", True),
    "gpt_neox": (_PLAIN, "query_key_value dense dense_h_to_4h dense_4h_to_h", True),
    "falcon": (_PLAIN | {"alibi": False}, "query_key_value dense dense_h_to_4h dense_4h_to_h", False),
    "gpt_oss": (SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}, "q_proj k_proj v_proj o_proj", False),
    "mixtral": (SIZES | {"num_local_experts": 4}, "q_proj k_proj v_proj o_proj", True),
    "qwen3_moe": (SIZES | _EXPERTS, "q_proj k_proj v_proj o_proj", True),
    "qwen3_5_text": (
        SIZES | _LINEAR | {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
        "in_proj_qkv in_proj_z in_proj_b in_proj_a out_proj gate_proj up_proj down_proj q_proj k_proj v_proj o_proj",
        False,
    ),
    "bloom": (
        {"vocab_size": 97, "hidden_size": 48, "n_layer": 2, "n_head": 4},
        "query_key_value dense dense_h_to_4h dense_4h_to_h",
        False,
    ),
    "cohere": (_PLAIN | _KV, "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj", False),
    "olmo2": (_PLAIN | _KV, "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj", True),
    "gpt2": ({"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4}, None, None),
}


def architecture(kind: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ARCHITECTURES[kind][0])).eval()


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if ARCHITECTURES[kind][1]])
def test_all_linear_is_every_linear_layer_but_the_head_as_in_peft(kind: str, tmp_path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model, ids = architecture(kind), torch.arange(1, 13)[None]
    assert set(target_names(model, "all-linear")) == set(ARCHITECTURES[kind][1].split())
    linears = target_linears(model, "all-linear")
    weights = {n: (torch.randn(2, m.in_features) / 9, torch.randn(m.out_features, 2) / 9) for n, m in linears.items()}
    adapter = Adapter(2, 4.0, target_names(model, "all-linear"), weights)
    with torch.no_grad():
        merged = merge(model, adapter, copy=True)(input_ids=ids, use_cache=False).logits
        with attached(model, [adapter], [0]):
            ours = model(input_ids=ids, use_cache=False).logits
        adapter.save(tmp_path, "base")
        theirs = PeftModel.from_pretrained(model, str(tmp_path)).eval()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(merged, theirs, atol=1e-4, rtol=1e-3)
    chosen = get_peft_model(architecture(kind), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    # PEFT also adapts the experts of some mixtures, which are tensors by themselves and no layers (ParamWrapper)
    found = {
        n for n, m in chosen.base_model.model.named_modules() if hasattr(m, "lora_A") and "Linear" in type(m).__name__
    }
    assert found == {*linears}


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("targets", ["qv", "qv-mlp", "c_attn", ["q_proj", "nothing"], "lm_head", "all-linear"])
def test_a_refusal_recommends_only_what_would_be_taken(kind: str, targets) -> None:
    model = architecture(kind)
    try:
        assert target_linears(model, targets)
    except ParameterError as error:
        said = str(error)
        assert said.startswith("targets: ") and "\n" not in said
        if "choose another model" in said:
            assert kind == "gpt2"
            return
        words, _, listed = said.partition("; choose ")[2].partition(" or a list from: ")
        ways = [*words.replace("'", "").split(", "), listed.rstrip(".").split(", ")]
        assert targets not in ways and "all-linear" in ways
        assert all(target_linears(model, way) for way in ways)


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if ARCHITECTURES[kind][1]])
def test_where_packing_is_impossible_one_slot_trains_one_at_a_time(kind: str) -> None:
    model, (*_, packs) = architecture(kind), ARCHITECTURES[kind]
    chosen = [
        Job(
            str(i),
            [Example(tokens(7 * i + j, 6 + 3 * i + j)) for j in range(2)],
            lr=5e-3,
            epochs=2,
            rank=4,
            batch=1 + i,
        )
        for i in range(2)
    ]
    before, steps = {name: p.clone() for name, p in model.named_parameters()}, []
    if not packs:
        with pytest.raises(SealError, match="cannot train side by side; set slots to 1 to train one at a time") as said:
            AdapterBank(model, slots=2)
        assert "\n" not in str(said.value)
    with AdapterBank(model, slots=1) as bank:
        assert bank.alone is not packs
        results = bank.run(chosen, steps.append)
    assert steps[-1]["steps"] == steps[-1]["of"] == sum(r.steps for r in results) and not steps[-1]["waiting"]
    assert steps[-1]["halvings"] == 0 and steps[-1]["tokens"] == sum(r.tokens for r in results)
    for job, result in zip(chosen, results, strict=True):
        alone = train_alone(model, job)
        assert result.id == job.id and result.losses == pytest.approx(alone.losses, rel=1e-4)
        assert difference(result.adapter, alone.adapter) <= 2e-3
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any("lora" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if ARCHITECTURES[kind][1]])
def test_every_architecture_generates_in_batches_with_adapters(kind: str) -> None:
    """Rows of other lengths (left padding, cache) and other adapters change nothing of a row's text."""
    from types import SimpleNamespace

    from seal_lib.generation.contract import Sampling
    from seal_lib.generation.hf import _decode_tokens

    model, prompts = architecture(kind), [tokens(3, 9), tokens(4, 5)]
    linears, tokenizer = target_linears(model, "all-linear"), SimpleNamespace(pad_token_id=0, eos_token_id=None)
    model.generation_config.eos_token_id = None
    weights = {n: (torch.randn(2, m.in_features) / 4, torch.randn(m.out_features, 2) / 4) for n, m in linears.items()}
    adapter = Adapter(2, 4.0, target_names(model, "all-linear"), weights)
    with torch.no_grad():
        with attached(model, [adapter], [0, -1]):
            mixed = _decode_tokens(model, tokenizer, prompts, [0, 0], Sampling(6))
        alone = _decode_tokens(merge(model, adapter, copy=True), tokenizer, prompts[:1], [0], Sampling(6))
        alone += _decode_tokens(model, tokenizer, prompts[1:], [0], Sampling(6))
        ids = torch.tensor([prompts[1]])
        for _ in range(6):  # without a cache
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert mixed == alone and mixed[1] == ids[0, 5:].tolist()


def test_one_at_a_time_refuses_what_it_cannot_do() -> None:
    model = architecture("qwen3_5_text")
    with AdapterBank(model, slots=1) as bank:
        with pytest.raises(ParameterError, match="set pad_loss to none or eos"):
            bank.run(jobs(pads=True)[-1:])
        with pytest.raises(SealError, match="nothing|none to predict"):  # before anything trains
            bank.run([*jobs(pads=False)[:1], Job("empty", [Example([5])])])
    from seal_lib.continual.trainer import StreamBank

    with pytest.raises(SealError, match="choose another model here"):
        StreamBank(model, slots=1)


def test_how_many_fit_of_a_model_that_cannot_be_planned_is_asked_for() -> None:
    with (
        AdapterBank(architecture("gpt_neox"), slots=0) as bank,
        pytest.raises(ParameterError, match="slots: how many fit cannot be planned here, so give a number"),
    ):
        bank.run(jobs(pads=False)[:1])
