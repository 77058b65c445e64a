"""Architectures of the Hub: the bank trains as PEFT does, or refuses. Run: pytest tests/test_families.py"""

import pytest
import torch
from test_bank import difference, tokens
from torch import nn
from transformers import (
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

from seal_lib.errors import SealError
from seal_lib.training.bank import AdapterBank
from seal_lib.training.finetune import train_alone
from seal_lib.training.jobs import Example, Job, pad_examples

SIZES = dict(vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=3, max_position_embeddings=256,
             num_attention_heads=6, num_key_value_heads=2, head_dim=8)  # fmt: skip
#: rotary embedding of Llama 3.2, with a context small enough that its rescaling shows within 40 tokens
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
              original_max_position_embeddings=16)  # fmt: skip
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
    config = Gemma2Config(**SIZES, sliding_window=6, attn_logit_softcapping=0.5, final_logit_softcapping=2.0,
                          query_pre_attn_scalar=8, **options)  # fmt: skip
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
        assert difference(result.adapter, alone.adapter) <= 2e-3, job.id
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
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=48, n_layer=2, n_head=4)), "names no Linear"),
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
