"""Faster pieces of a frozen model give what the model's own give. Run: pytest tests/training/test_fused.py"""

from functools import partial

import pytest
import torch
from test_bank import FAMILIES
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from seal_lib.errors import SealError
from seal_lib.training import fused, steps
from seal_lib.training.bank import AdapterBank
from seal_lib.training.finetune import train_alone
from seal_lib.training.jobs import Example, Job
from seal_lib.training.packing import Packing

torch.set_num_threads(1)
needs_onednn = pytest.mark.skipif(fused._ONEDNN is None, reason="no AVX-512 or a torch without oneDNN")


def make(family: str = "llama", dtype=torch.float32):
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for name, p in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(p, float("norm" in name), std=0.2)
    return model.to(dtype).eval().requires_grad_(False)


def jobs(count: int = 3) -> list[Job]:
    draw = torch.Generator().manual_seed(2)
    return [
        Job(
            str(i),
            [Example(torch.randint(1, 97, (7 + (i + j) % 5,), generator=draw).tolist()) for j in range(2)],
            lr=1e-2,
            epochs=3,
            rank=4,
            alpha=8,
            seed=i,
        )
        for i in range(count)
    ]


def difference(a, b) -> float:
    return max(float((a.delta(n) - b.delta(n)).norm() / b.delta(n).norm()) for n in b.weights)


@needs_onednn
@pytest.mark.parametrize("rows", [128, 131, 160, 517])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_the_same_whatever_the_number_of_rows(rows, transposed):
    draw = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(*shape, generator=draw) for shape in ((rows, 48), (72, 48), (72,)))
    weight = weight.T.contiguous().T if transposed else weight
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    got = fused.product(x, weight, bias)
    assert got.shape == (rows, 72) and got.is_contiguous()
    assert (got - exact).abs().max() < 1e-4  # float32; a lost row or bias is off by 1 and more
    assert (fused.product(x, weight) + bias - exact).abs().max() < 1e-4


def test_other_types_and_few_rows_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(fused, "_ONEDNN", lambda *args: pytest.fail("not for this"))
    for rows, dtype in ((127, torch.float32), (200, torch.float64), (200, torch.bfloat16)):
        x, weight = torch.randn(rows, 8, dtype=dtype), torch.randn(5, 8, dtype=dtype)
        assert torch.equal(fused.product(x, weight), torch.nn.functional.linear(x, weight))


def test_gradients_of_a_frozen_linear():
    layer = nn.Linear(5, 3).double().requires_grad_(False)
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(fused._linear(layer, x), layer(x))
    assert torch.autograd.gradcheck(partial(fused._linear, layer), x)
    layer, x = layer.float(), torch.randn(150, 5, requires_grad=True)
    (got,) = torch.autograd.grad(fused._linear(layer, x).square().sum(), x)
    (wanted,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(got, wanted)


def plain_norm(self, x):
    """Llama's RMSNorm without its passage through float32."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def test_rms_norm_is_exact_in_float64(monkeypatch):
    monkeypatch.setattr(LlamaRMSNorm, "forward", plain_norm)
    norm = LlamaRMSNorm(6, eps=1e-2).double()
    norm.weight = nn.Parameter(torch.linspace(0.5, 2, 6, dtype=torch.float64), requires_grad=False)
    assert fused._is_rms_norm(norm)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(fused._rms_norm(norm, x), norm(x), atol=1e-14, rtol=1e-14)
    assert torch.autograd.gradcheck(partial(fused._rms_norm, norm), x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_rms_norm_rounds_as_llama_does(dtype, tolerance):
    norm = LlamaRMSNorm(64).to(dtype).requires_grad_(False)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    x, grad = (30 * torch.randn(50, 64)).to(dtype).requires_grad_(), torch.randn(50, 64).to(dtype)
    wanted, got = norm(x), fused._rms_norm(norm, x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    (there,), (here,) = (torch.autograd.grad(y, x, grad) for y in (wanted, got))
    torch.testing.assert_close(here, there, rtol=tolerance, atol=tolerance * float(there.abs().max()))


def test_the_gate_of_an_mlp_and_its_gradient_are_silu_times_up():
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(5, 7, generator=draw).requires_grad_() for _ in range(2)]
    out = fused._Gated.apply(*given)
    weight = torch.randn(5, 7, generator=draw)
    wanted = nn.functional.silu(given[0]) * given[1]
    assert torch.allclose(out, wanted, atol=1e-6)
    got, want = (torch.autograd.grad((x * weight).sum(), given) for x in (out, wanted))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, want, strict=True))


def test_only_what_computes_the_same_is_taken_for_an_rms_norm():
    class OtherRMSNorm(LlamaRMSNorm):
        def forward(self, x):
            return super().forward(x) + 1e-3

    gemma = make("gemma").model.norm
    gemma.variance_epsilon = gemma.eps
    assert fused._is_rms_norm(LlamaRMSNorm(8))
    assert not any(map(fused._is_rms_norm, (OtherRMSNorm(8), gemma, nn.RMSNorm(8))))
    assert not fused._is_rms_norm(LlamaRMSNorm(8).double())  # which goes through float32


def test_a_norm_kept_in_another_type_runs_by_itself():
    norm, x = LlamaRMSNorm(8), torch.randn(2, 8).bfloat16()
    assert fused._rms_norm(norm, x).dtype == norm(x).dtype == torch.float32


def packed_attention(model, lengths, x):
    """Attention of layer 0 over packed examples, by the fused piece; x [N, D]."""
    slots = torch.tensor(lengths)
    packing = Packing(slots, slots, slots, torch.ones(len(lengths), dtype=x.dtype), x.dtype, False)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    rotary = model.model.rotary_emb(x[None], positions)
    module = model.model.layers[0].self_attn
    return fused._attend(module, lambda: packing, x[None], position_embeddings=rotary, attention_mask=None)[0][0]


def own_attention(model, lengths, x):
    """The same, one example at a time, by transformers' eager code."""
    module, out = model.model.layers[0].self_attn, []
    window = getattr(module, "sliding_window", getattr(model.config, "sliding_window", None)) or 99
    for part in x.split(lengths):
        t = torch.arange(len(part))
        hidden = (t > t[:, None]) | (t <= t[:, None] - window)
        mask = torch.zeros(hidden.shape, dtype=x.dtype).masked_fill(hidden, -1e9)[None, None]
        rotary = model.model.rotary_emb(part[None], t[None])
        out.append(type(module).forward(module, part[None], position_embeddings=rotary, attention_mask=mask)[0][0])
    return torch.cat(out)


@pytest.mark.parametrize("lengths", [[5, 5, 5], [3, 1, 7], [17, 20]])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_attention_and_its_gradient_are_transformers_own(family, lengths, monkeypatch):
    model = make(family, torch.float64)
    model.config._attn_implementation = "eager"
    # transformers' eager softmax goes through float32, which is all that may differ
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype: torch.softmax(x, dim))
    x = torch.randn(sum(lengths), 32, dtype=torch.float64, requires_grad=True)
    got, wanted = packed_attention(model, lengths, x), own_attention(model, lengths, x)
    torch.testing.assert_close(got, wanted, atol=1e-7, rtol=1e-7)  # cos and sin are float32 at heart
    weights = torch.randn_like(got)
    (there,), (here,) = (torch.autograd.grad((y * weights).sum(), x) for y in (wanted, got))
    torch.testing.assert_close(here, there, atol=1e-7, rtol=1e-7)


def test_gradcheck_of_attention():
    model = make("llama", torch.float64)
    x = torch.randn(6, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: packed_attention(model, [4, 2], x), x, fast_mode=True)


def test_what_is_replaced_in_which_model():
    def kinds(model) -> set[str]:
        return {type(module).__name__ for module in fused.forwards(model, lambda: None)} - {"Linear"}

    assert kinds(make("llama")) == {"LlamaRMSNorm", "LlamaAttention"}
    assert kinds(make("qwen2")) == {"Qwen2RMSNorm", "Qwen2Attention"}
    assert kinds(make("gemma")) == set()
    hooked = make("llama")
    hooked.model.norm.forward = lambda x: x
    assert hooked.model.norm not in fused.forwards(hooked, lambda: None)


@needs_onednn
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"targets": ("q_proj", "down_proj")}])
def test_a_bank_of_many_rows_equals_each_alone_and_gives_the_model_back(options, monkeypatch):
    monkeypatch.setattr(fused, "_ROWS", 1)  # oneDNN for every product
    calls, onednn = [], fused._ONEDNN
    monkeypatch.setattr(fused, "_ONEDNN", lambda *args: calls.append(args) or onednn(*args))
    model = make("qwen2")
    before = model(torch.arange(1, 9)[None]).logits
    with AdapterBank(model, slots=3, **options) as bank:
        assert sum("forward" in module.__dict__ for module in model.modules()) == 15 + 5 + 2  # Linear, norm, attention
        results = bank.run(jobs())
    assert len(calls) > 6 * 2 * 14  # steps, both ways, Linears of the layers
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(model(torch.arange(1, 9)[None]).logits, before)
    for job, result in zip(jobs(), results, strict=True):
        assert difference(result.adapter, train_alone(model, job, options.get("targets", "all-linear")).adapter) <= 1e-3


def test_long_examples_go_the_models_own_way(monkeypatch):
    monkeypatch.setattr("seal_lib.training.packing.SHORT_EXAMPLE", 8)
    monkeypatch.setattr("seal_lib.training.packing._Attention.apply", lambda *args: pytest.fail("too long for this"))
    model, job = make(), Job("long", [Example(list(range(1, 20)))], lr=1e-2, epochs=3, rank=4, alpha=8)
    monkeypatch.setattr(AdapterBank, "_error", lambda *args: 0.0)  # whose examples are short
    with AdapterBank(model, slots=1) as bank:
        (result,) = bank.run([job])
    assert difference(result.adapter, train_alone(model, job).adapter) <= 1e-3


def test_a_model_that_only_looks_known_keeps_its_own_pieces(monkeypatch):
    model = make()
    wrong = {layer.input_layernorm: (lambda x: 2 * x) for layer in model.model.layers}
    monkeypatch.setattr(steps, "forwards", lambda *args: wrong)
    with AdapterBank(model, slots=2) as bank:
        assert not any("forward" in module.__dict__ for module in wrong)
        results = bank.run(jobs(2))
    for job, result in zip(jobs(2), results, strict=True):
        assert difference(result.adapter, train_alone(model, job).adapter) <= 1e-3


def test_an_opening_that_fails_gives_the_model_back(monkeypatch):
    model = make()
    monkeypatch.setattr(AdapterBank, "_error", lambda *args: 1.0)
    with pytest.raises(SealError, match="own logits"):
        AdapterBank(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
