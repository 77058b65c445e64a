"""Adapters on a base of 4 bits, with bitsandbytes where it is installed."""

import sys
import types
from importlib.util import find_spec

import pytest
import torch
from test_bank import difference, examples, mixed_jobs, tokens
from transformers import Qwen2Config, Qwen2ForCausalLM

from seal_lib import models
from seal_lib.errors import DataError
from seal_lib.models import budget
from seal_lib.training.adapters import Adapter, merge, target_linears
from seal_lib.training.attached import attached
from seal_lib.training.bank import AdapterBank
from seal_lib.training.finetune import train_alone
from seal_lib.training.jobs import Job

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes (extra 4bit) is absent")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Qwen2 on disk, with a tokenizer beside it."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    model = Qwen2ForCausalLM(config)
    for name, p in model.named_parameters():
        if "proj.weight" in name:
            torch.nn.init.normal_(p, std=0.1)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    models.load_tokenizer("seedling-grids").save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def packed(folder):
    return models.load(folder, dtype="4bit")[0]


@needs_bitsandbytes
def test_the_decoder_is_packed_and_all_else_is_not(folder, packed):
    plain = models.load(folder, dtype="bfloat16")[0]
    linears = target_linears(packed, "all-linear")
    assert len(linears) == 14 and {m.weight.dtype for m in linears.values()} == {torch.uint8}
    assert packed.lm_head.weight.dtype == packed.model.embed_tokens.weight.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in packed.parameters()) and not packed.training
    ids = torch.tensor([tokens(1, 20)])
    gap = (packed(input_ids=ids).logits - plain(input_ids=ids).logits).float().norm() / plain(
        input_ids=ids
    ).logits.norm()
    assert 0 < gap < 0.5  # a tiny model with random weights; another model would be 1.4 away
    shape = budget.shape_of(folder)
    held = sum(p.numel() * p.element_size() for p in packed.parameters())  # their constants come on top
    assert 0.9 * budget.weight_bytes(shape, "4bit") < held <= budget.weight_bytes(shape, "4bit")


@needs_bitsandbytes
@pytest.mark.parametrize("targets", ["all-linear", "qv"])
def test_the_bank_trains_on_it_as_peft_does(packed, targets):
    jobs = [Job(str(i), examples(i), lr=5e-3, epochs=3, rank=4, alpha=8, seed=i) for i in range(4)]
    with AdapterBank(packed, slots=3, targets=targets) as bank:
        results = bank.run(jobs)
    for job, result in zip(jobs, results, strict=True):
        alone = train_alone(packed, job, targets)
        assert result.losses == pytest.approx(alone.losses, rel=2e-2)
        assert difference(result.adapter, alone.adapter) < 0.2  # bfloat16; another seed: about 1.4
        assert sum(result.losses[-3:]) < sum(result.losses[:3])  # the last epoch and the first


@needs_bitsandbytes
def test_its_gradients_are_those_of_the_unpacked_weights(folder):
    """In float32, where bank and plain model can be held to rounding: the same weights, packed and not."""
    from bitsandbytes.functional import dequantize_4bit

    packed = torch.nn.Module.float(models.load(folder, dtype="4bit")[0])  # what is packed stays packed
    plain = models.load(folder, dtype="float32")[0]
    rest = {k: v for k, v in packed.state_dict().items() if v.is_floating_point() and ".weight." not in k}
    plain.load_state_dict(rest, strict=False)
    for name, layer in target_linears(packed, "all-linear").items():
        layer.compute_dtype = layer.weight.quant_state.dtype = torch.float32
        plain.get_submodule(name).weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    jobs, found = mixed_jobs()[:5], []
    for model in (packed, plain):
        with AdapterBank(model, slots=5) as bank:
            found.append(bank.run(jobs))
    for one, other in zip(*found, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert difference(one.adapter, other.adapter) < 2e-3


@needs_bitsandbytes
def test_generation_uses_adapters_in_place_and_nothing_is_merged(packed, tmp_path):
    job = Job("j", examples(1), lr=1e-2, epochs=6, rank=4, alpha=8)
    with AdapterBank(packed, slots=1) as bank:
        adapter = bank.run([job])[0].adapter
    ids = torch.tensor([tokens(1, 9)] * 2)
    plain = packed(input_ids=ids, use_cache=False).logits
    with attached(packed, [adapter], [0, -1]), torch.no_grad():
        mixed = packed(input_ids=ids, use_cache=False).logits
    assert torch.equal(mixed[1], plain[1]) and (mixed[0] - plain[0]).abs().max() > 0.05
    assert Adapter.load(adapter.save(tmp_path / "a", "base")).digest() == adapter.digest()
    with pytest.raises(DataError, match="4 bits; load the model with dtype bfloat16"):
        merge(packed, adapter)


class Packed(torch.nn.Linear):
    """Stands in for bitsandbytes' layer where that is absent: 8-bit numbers and one constant a row."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        scale = layer.weight.abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((layer.weight / scale).round().to(torch.int8), requires_grad=False)
        self.weight.quant_state, self.bias = scale, layer.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, unpacked(self.weight, self.weight.quant_state), self.bias)


def unpacked(weight, scale):
    return weight.float() * scale


def test_any_packed_linear_is_trained_on_by_its_own_forward(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    module = types.ModuleType("bitsandbytes.functional")
    module.dequantize_4bit = unpacked
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", module)
    packed, plain = (models.load(folder, dtype="float32")[0] for _ in range(2))
    for name, layer in target_linears(plain, "all-linear").items():
        parent, _, leaf = name.rpartition(".")
        setattr(packed.get_submodule(parent), leaf, Packed(layer))
        layer.weight.data = unpacked(packed.get_submodule(name).weight, packed.get_submodule(name).weight.quant_state)
    jobs, found = mixed_jobs()[:6], []
    for model in (packed, plain):
        with AdapterBank(model, slots=6) as bank:
            found.append(bank.run(jobs))
    for one, other in zip(*found, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert difference(one.adapter, other.adapter) < 1e-3
    with attached(packed, [found[0][0].adapter], [0]), torch.no_grad():
        ours = packed(input_ids=torch.tensor([tokens(1, 9)])).logits
    with attached(plain, [found[0][0].adapter], [0]), torch.no_grad():
        assert torch.allclose(ours, plain(input_ids=torch.tensor([tokens(1, 9)])).logits, atol=1e-4)
    with pytest.raises(DataError, match="4 bits"):
        merge(packed, found[0][0].adapter)


def test_without_the_library_the_way_to_it_is_told(folder, monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pip install -e "\.\[4bit\]"'):
        models.load(folder, dtype="4bit")
